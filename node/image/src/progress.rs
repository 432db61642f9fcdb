//! How far a long pull or compile has come, for whoever waits and watches.
//!
//! Absent: rates and estimates, which the one who shows it works out.

use std::fmt;

use crate::sizes;

/// One step or the state of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The registry is asked which digest the name has.
    Resolving,
    /// Bytes of blobs that came so far, of all that must come.
    Pulling {
        /// Bytes here.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The program is taken out of a container image's layers.
    Unpacking,
    /// The compile child runs.
    Compiling {
        /// The size of the module.
        wasm_bytes: u64,
    },
}

/// A line for `describe` and for terminals.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolving => f.write_str("asking the registry"),
            Self::Pulling { done, total } => {
                write!(f, "pulling: {} of {}", sizes::shown(*done), sizes::shown(*total))
            }
            Self::Unpacking => f.write_str("unpacking"),
            Self::Compiling { wasm_bytes } => {
                write!(f, "compiling {} of WebAssembly", sizes::shown(*wasm_bytes))
            }
        }
    }
}

/// Where progress is told. Called from whichever task is at work: it must be quick.
pub type ProgressFn<'a> = &'a (dyn Fn(Progress) + Send + Sync);
