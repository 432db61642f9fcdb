//! Where everything that a task brings or builds lies: one folder outside the checkout.
//!
//! Absent: cleaning it. Delete the folder; the next task brings back what it needs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The cache folder: `COPEPOD_CACHE`, else `copepod` in the user's own cache folder.
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(crate) fn open() -> Result<Self> {
        let root = match (set("COPEPOD_CACHE"), set("XDG_CACHE_HOME"), set("HOME")) {
            (Some(own), ..) => own,
            (None, Some(xdg), _) => xdg.join("copepod"),
            (None, None, Some(home)) => home.join(".cache/copepod"),
            (None, None, None) => {
                anyhow::bail!("set COPEPOD_CACHE to a folder for what the tasks download and build")
            }
        };
        std::fs::create_dir_all(&root).with_context(|| {
            format!("cannot make {}; set COPEPOD_CACHE to a folder you may write", root.display())
        })?;
        Ok(Self { root: root.canonicalize()? })
    }

    /// The compiler for guests.
    pub(crate) fn guest_rust(&self) -> PathBuf {
        self.root.join("guest-rust")
    }

    /// Cargo's target folder for guests.
    pub(crate) fn guests_target(&self) -> PathBuf {
        self.root.join("guests-target")
    }

    /// The finished guests, one `.wasm` each.
    pub(crate) fn guests(&self) -> PathBuf {
        self.root.join("guests")
    }

    /// Unpacked Debian programs.
    pub(crate) fn debian(&self) -> PathBuf {
        self.root.join("debian")
    }

    /// What benchmarks compare with and is no Debian package.
    pub(crate) fn peers(&self) -> PathBuf {
        self.root.join("peers")
    }

    /// Kubernetes' programs, a folder for each set of them.
    pub(crate) fn kube(&self) -> PathBuf {
        self.root.join("kube")
    }

    /// Cargo's target folder for our programs: `CARGO_TARGET_DIR` where it is set.
    pub(crate) fn target(&self) -> PathBuf {
        set("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), |dir| checkout().join(dir))
    }
}

/// The checkout that this task was built from.
pub(crate) fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

fn set(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
