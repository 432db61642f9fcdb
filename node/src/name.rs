//! Names as Kubernetes writes them, and the doors that check them.
//!
//! Absent: what the names stand for.

use std::{fmt, ops::Deref, sync::Arc};

use serde::{Deserialize, Serialize};

/// A container's name, unique in its pod: an RFC 1123 label of at most 63 bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerName(Arc<str>);

/// It is no RFC 1123 label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name: write at most 63 lower case letters, digits and '-', with a letter or digit at both ends"
)]
pub struct NotALabel(pub String);

impl ContainerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for ContainerName {
    type Error = NotALabel;
    fn try_from(name: &str) -> Result<Self, NotALabel> {
        if is_dns_label(name) { Ok(Self(name.into())) } else { Err(NotALabel(name.to_owned())) }
    }
}

impl TryFrom<String> for ContainerName {
    type Error = NotALabel;
    fn try_from(name: String) -> Result<Self, NotALabel> {
        Self::try_from(name.as_str())
    }
}

impl From<ContainerName> for String {
    fn from(name: ContainerName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl Deref for ContainerName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// An RFC 1123 label: 1 to 63 of `[a-z0-9-]`, with a letter or digit at both ends.
pub fn is_dns_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// An RFC 1123 subdomain: labels between dots, at most 253 bytes together.
///
/// As upstream, a label inside a subdomain has no limit of 63 of its own.
pub fn is_dns_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    (1..=253).contains(&name.len()) && name.split('.').all(label)
}

/// A port's name: 1 to 15 of `[a-z0-9-]` with at least one letter, no `-` at an end and no `--` (IANA_SVC_NAME).
pub fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && is_dns_label(name)
        && !name.contains("--")
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
}

/// A key of a ConfigMap or Secret: 1 to 253 of `[-._a-zA-Z0-9]`, neither `.` nor beginning with `..`.
pub fn is_config_key(key: &str) -> bool {
    (1..=253).contains(&key.len())
        && key != "."
        && !key.starts_with("..")
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A pod's UID as we take it: opaque, but safe as the name of a folder; 1 to 128 of `[-_.a-zA-Z0-9]`, first a letter or digit.
pub fn is_uid(uid: &str) -> bool {
    (1..=128).contains(&uid.len())
        && uid.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && uid.as_bytes()[0].is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_name_is_an_rfc_1123_label() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert!(ContainerName::try_from(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "..", "ä", &"x".repeat(64)] {
            assert!(ContainerName::try_from(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_uid_is_safe_as_the_name_of_a_folder() {
        assert!(is_uid("5f1c6d1e-7b0a-4e57-9d36-0d8c1a6f9d11"));
        for bad in ["", ".", "..", "../x", "a/b", "-a", "a\0", " "] {
            assert!(!is_uid(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_port_name_holds_a_letter_and_at_most_15_bytes() {
        assert!(is_port_name("http"));
        for bad in ["", "80", "a--b", "http-", "averyveryverylongname"] {
            assert!(!is_port_name(bad), "{bad}");
        }
    }
}
