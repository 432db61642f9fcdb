//! Our own programs: `copepod`, `copepod-runner` and the toolbox, side by side in the target folder.
//!
//! They are built by two calls of cargo. One call would build both with the features of either, and a compiler would be
//! linked into the runner, which a test asserts is not there. Absent: the guests.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::Cache;
use crate::command::{cargo, run, step};
use crate::guests;

/// How cargo optimises.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For tests and the demo.
    Dev,
    /// For figures and for use.
    Release,
}

impl Profile {
    pub(crate) fn of(release: bool) -> Self {
        if release { Self::Release } else { Self::Dev }
    }
}

/// Built in one call with `copepod`: it shares all its dependencies, with the same features.
const COMPILER_OF_TESTS: &str = "compile-for-tests";

/// Where the programs are.
pub(crate) struct Programs {
    pub(crate) copepod: PathBuf,
    pub(crate) runner: PathBuf,
    /// What `exec` finds in every container.
    pub(crate) toolbox: PathBuf,
    /// Compiles the guests of the runner's own tests, which cannot link a compiler.
    pub(crate) compiler_of_tests: PathBuf,
}

pub(crate) fn build(cache: &Cache, profile: Profile) -> Result<Programs> {
    let target = cache.target();
    for packages in [&["copepod", COMPILER_OF_TESTS][..], &["copepod-runner"]] {
        step(&format!("building {}", packages.join(" and ")), || {
            let mut command = cargo(&target);
            command.args(["build", "--locked"]);
            command.args(packages.iter().flat_map(|package| ["--package", package]));
            if profile == Profile::Release {
                command.arg("--release");
            }
            run(&mut command)
        })?;
    }
    let folder = target.join(if profile == Profile::Release { "release" } else { "debug" });
    let toolbox = folder.join("copepod-toolbox.wasm");
    guests::toolbox(cache, &toolbox)?;
    Ok(Programs {
        copepod: folder.join("copepod"),
        runner: folder.join("copepod-runner"),
        toolbox,
        compiler_of_tests: folder.join(COMPILER_OF_TESTS),
    })
}
