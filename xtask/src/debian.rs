//! Programs of Debian packages, downloaded and unpacked into the cache with the libraries that this machine lacks.
//!
//! The machine's own apt does it, with its sources and keys, so a package is checked as apt checks it. Absent: installing.
//! A package's scripts never run, so no service is left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::command::{output, run, step};

/// Where a package keeps its programs and its libraries.
const PROGRAM_FOLDERS: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];
const LIBRARY_FOLDERS: [&str; 2] = ["usr/lib", "lib"];

/// How long a fetched package index serves: Debian's stable archive changes seldom, and an old one ends in a 404.
const INDEX_AGE: Duration = Duration::from_hours(24);

/// The program `program` of `package`: the one on the PATH, else one unpacked into the cache.
pub(crate) fn program(cache: &Cache, package: &str, program: &str) -> Result<PathBuf> {
    if let Some(installed) = on_path(program) {
        return Ok(installed);
    }
    let folder = cache.debian().join(package);
    let starter = folder.join("start").join(program);
    if !starter.exists() {
        step(&format!("unpacking Debian's {package}"), || unpack(cache, package, &folder))?;
    }
    if !starter.exists() {
        bail!(
            "Debian's {package} has no program {program}; delete {} to try again",
            folder.display()
        );
    }
    Ok(starter)
}

/// The file itself of a program that needs no library, without its starter: to be copied somewhere else.
pub(crate) fn unpacked(cache: &Cache, package: &str, name: &str) -> Result<PathBuf> {
    let started = program(cache, package, name)?;
    let root = cache.debian().join(package).join("root");
    let candidates = PROGRAM_FOLDERS.map(|folder| root.join(folder).join(name));
    Ok(candidates.into_iter().find(|file| file.is_file()).unwrap_or(started))
}

/// A folder of a package with programs that are on no PATH, such as plugins.
pub(crate) fn folder(cache: &Cache, package: &str, inside: &str) -> Result<PathBuf> {
    let installed = Path::new("/").join(inside);
    if installed.is_dir() {
        return Ok(installed);
    }
    let unpacked = cache.debian().join(package);
    let found = unpacked.join("root").join(inside);
    if !found.is_dir() {
        step(&format!("unpacking Debian's {package}"), || unpack(cache, package, &unpacked))?;
    }
    if !found.is_dir() {
        bail!("Debian's {package} has no folder {inside}");
    }
    Ok(found)
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Programs for root are often not on a user's PATH.
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn unpack(cache: &Cache, package: &str, folder: &Path) -> Result<()> {
    let apt = Apt::open(cache)?;
    let part = cache.debian().join(format!("{package}.part"));
    let _ = fs::remove_dir_all(&part);
    let root = part.join("root");
    fs::create_dir_all(&root)?;

    // What this machine lacks for it, itself included.
    let plan =
        output(apt.get().args(["--simulate", "--no-install-recommends", "install", package]))?;
    let lacking: Vec<&str> =
        plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next()).collect();
    if lacking.is_empty() {
        bail!(
            "{package} counts as installed on this machine, but its program is not there; reinstall it: apt-get install --reinstall {package}"
        );
    }
    run(apt.get().current_dir(&part).args(["--quiet=2", "download"]).args(&lacking))?;
    for entry in fs::read_dir(&part)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&root))?;
            fs::remove_file(file)?;
        }
    }
    write_starters(&root, &part.join("start"))?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&part, folder)?;
    Ok(())
}

/// A starter for each program, which finds the unpacked libraries by its own place.
fn write_starters(root: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let libraries: Vec<String> = LIBRARY_FOLDERS
        .iter()
        .flat_map(|folder| {
            [(*folder).to_owned(), format!("{folder}/{}-linux-gnu", std::env::consts::ARCH)]
        })
        .filter(|folder| root.join(folder).is_dir())
        .map(|folder| format!("$r/{folder}"))
        .collect();
    for folder in PROGRAM_FOLDERS {
        let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
        for entry in entries {
            let name = entry?.file_name();
            let starter = to.join(&name);
            let script = format!(
                "#!/bin/sh\nr=${{0%/*}}/../root\nLD_LIBRARY_PATH=\"{}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\" exec \"$r/{folder}/{}\" \"$@\"\n",
                libraries.join(":"),
                name.to_string_lossy()
            );
            fs::write(&starter, script)?;
            fs::set_permissions(&starter, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// apt with the machine's sources and keys, and package lists of its own in the cache.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn open(cache: &Cache) -> Result<Self> {
        let apt = Self { folder: cache.debian().join("apt") };
        fs::create_dir_all(apt.folder.join("lists/partial"))?;
        fs::create_dir_all(apt.folder.join("cache/archives/partial"))?;
        let fresh = apt.folder.join("fresh");
        let age = |file: &Path| {
            SystemTime::now().duration_since(fs::metadata(file).ok()?.modified().ok()?).ok()
        };
        if age(&fresh).is_none_or(|age| age > INDEX_AGE) {
            step("reading the index of this machine's Debian archive", || {
                run(apt.get().args(["--quiet=2", "update"]))
                    .context("apt cannot read its sources (/etc/apt)")
            })?;
            fs::write(fresh, "")?;
        }
        Ok(apt)
    }

    fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        let folder = self.folder.display();
        for option in [
            format!("Dir::State::Lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            // Images for containers often switch apt's parsed cache off: without it each question costs seconds.
            "Dir::Cache::pkgcache=pkgcache.bin".to_owned(),
            "Dir::Cache::srcpkgcache=srcpkgcache.bin".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // apt's own user may not enter the cache folder.
            "APT::Sandbox::User=".to_owned(),
            "APT::Get::AllowUnauthenticated=false".to_owned(),
            "Debug::NoLocking=1".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.env("LC_ALL", "C");
        command
    }
}
