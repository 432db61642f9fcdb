//! What is wrong with a pod: which field, and what to write instead.
//!
//! Absent: deciding it (`fields`, `validate`, `annotations`) and showing it (the caller).

use std::fmt;

/// One field of a pod that cannot be taken as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The field's path as a user writes it, e.g. `spec.containers[0].securityContext.privileged`.
    pub field: String,
    /// What is wrong with it and what to write instead.
    pub message: String,
}

impl Refusal {
    /// A refusal of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}
