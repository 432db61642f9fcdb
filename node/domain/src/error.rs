//! What can go wrong on the host, one variant per thing that the caller does next.

use std::io;
use std::path::PathBuf;

/// Why something could not be done on this host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Final for this user.
    #[error("namespaces, mounts and routes need root; run as root")]
    NotRoot,
    /// The caller's value is wrong; the message says which and how.
    #[error("{0}")]
    Invalid(String),
    /// This kernel or machine cannot do it: final until the machine changes.
    #[error("{what} is not possible here: {remedy}")]
    Unsupported {
        /// What was wanted.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// The file system under a source cannot map owners: the pod waits with this reason.
    #[error(
        "the file system of {path} cannot be mounted with mapped owners (idmapped mounts); move it to ext4, xfs, btrfs or \
         tmpfs, or use a newer kernel"
    )]
    NoIdmap {
        /// The mount's source.
        path: PathBuf,
    },
    /// Nothing free is left of something counted.
    #[error("no {0} is free")]
    Exhausted(&'static str),
    /// The runner could not confine itself, or died on the way: worth one retry.
    #[error("the runner of domain {domain} did not start: {message}")]
    Runner {
        /// Which domain.
        domain: String,
        /// What it said.
        message: String,
    },
    /// The kernel refused a step.
    #[error("cannot {step}")]
    Failed {
        /// What was being done, to what.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Names the step that failed.
pub(crate) trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, HostError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, HostError> {
        self.map_err(|error| HostError::Failed { step: step(), source: error.into() })
    }
}
