//! `install` and `uninstall`: the programs in a folder of the PATH.
//!
//! Absent: a service, a user, a configuration. The programs make what they need when they need it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::programs::{self, Profile};

const NAMES: [&str; 3] = ["copepod", "copepod-runner", "copepod-toolbox.wasm"];

pub(crate) fn install(cache: &Cache, prefix: &Path) -> Result<()> {
    let built = programs::build(cache, Profile::Release)?;
    let bin = prefix.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    for (name, from) in NAMES.iter().zip([built.copepod, built.runner, built.toolbox]) {
        // A program that runs cannot be written to, but its name can be given to another file.
        let part = bin.join(format!(".{name}.part"));
        let to = bin.join(name);
        fs::copy(&from, &part)
            .with_context(|| format!("cannot write to {} (root can)", bin.display()))?;
        fs::rename(&part, &to)?;
        println!("{}", to.display());
    }
    Ok(())
}

pub(crate) fn uninstall(prefix: &Path) -> Result<()> {
    for name in NAMES {
        let file = prefix.join("bin").join(name);
        match fs::remove_file(&file) {
            Ok(()) => println!("removed {}", file.display()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("{} is not there", file.display())
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove {}", file.display()));
            }
        }
    }
    Ok(())
}
