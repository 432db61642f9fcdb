//! Where the runner's root directory lies, and the paths of the protocol in it.
//!
//! Absent: access. A path of the protocol comes from the agent, which is trusted; what a guest names goes through
//! `wasmtime-wasi`'s sandbox and never through here.

use std::path::{Path, PathBuf};

/// The runner's root directory: `/` once confined, a folder of its own in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The root at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where the protocol's `path` lies; it is absolute in the root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// The root itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_protocol_is_below_the_root() {
        assert_eq!(Root::new("/").path("/code/x.cwasm"), Path::new("/code/x.cwasm"));
        assert_eq!(Root::new("/tmp/t").path("/rw/u/app"), Path::new("/tmp/t/rw/u/app"));
    }
}
