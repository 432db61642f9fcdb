//! Where the built programs and guests are: `cargo xtask test` builds them and names them in the environment.
//!
//! Absent: building them, or guessing where they might be.

use std::path::PathBuf;

/// What `cargo xtask test` built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The `copepod` program; `copepod-runner` lies beside it.
    pub copepod: PathBuf,
    /// The folder of `<guest>.wasm` files.
    pub guests: PathBuf,
    /// Debian's `docker-registry`.
    pub registry: PathBuf,
    /// `nft`.
    pub nft: PathBuf,
}

impl Built {
    /// What the environment names.
    ///
    /// # Panics
    /// Where it names nothing: the tests were not started by `cargo xtask test`.
    pub fn from_env() -> Self {
        let path = |variable: &str| match std::env::var_os(variable) {
            Some(path) => PathBuf::from(path),
            None => panic!("{variable} is not set: run cargo xtask test"),
        };
        Self {
            copepod: path("COPEPOD_BIN"),
            guests: path("COPEPOD_GUESTS"),
            registry: path("COPEPOD_REGISTRY"),
            nft: path("COPEPOD_NFT"),
        }
    }

    /// The file of a guest.
    pub fn guest(&self, name: &str) -> PathBuf {
        self.guests.join(name).with_extension("wasm")
    }
}
