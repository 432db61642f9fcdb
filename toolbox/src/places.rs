//! The container's files as a program sees them.
//!
//! A guest has no root of its own but the folders that it was given, each by its path. So a folder that only leads to one of them (`/` itself,
//! mostly) cannot be opened, and is made up here. Absent: who may write, which the host decides.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use crate::streams::Input;

/// `path` as seen from `folder`, without `.` and `..`.
pub fn joined(folder: &Path, path: &str) -> PathBuf {
    let mut whole = PathBuf::from("/");
    for part in folder.join(path).components() {
        match part {
            Component::Normal(part) => whole.push(part),
            Component::ParentDir => drop(whole.pop()),
            _ => {}
        }
    }
    whole
}

/// What a path leads to.
#[derive(Debug)]
pub enum Found {
    /// Something of the container's files.
    Real(Metadata),
    /// A folder that is only on the way to others.
    OnTheWay,
}

impl Found {
    /// Whether it is a folder.
    pub fn is_dir(&self) -> bool {
        match self {
            Self::Real(metadata) => metadata.is_dir(),
            Self::OnTheWay => true,
        }
    }

    /// Its bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Real(metadata) => metadata.len(),
            Self::OnTheWay => 0,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is at this path; a link stands for what it leads to where `follow`.
///
/// # Errors
/// The file system's.
pub fn found(path: &Path, follow: bool) -> io::Result<Found> {
    let real = if follow { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) };
    real.map(Found::Real)
        .or_else(|error| if leads_somewhere(path) { Ok(Found::OnTheWay) } else { Err(error) })
}

/// The names in a folder, in order.
///
/// # Errors
/// The file system's.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names: BTreeSet<String> = given()
        .iter()
        .filter_map(|given| Path::new(given).strip_prefix(folder).ok())
        .filter_map(|below| below.components().next())
        .map(|first| first.as_os_str().to_string_lossy().into_owned())
        .collect();
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                names.insert(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        Err(_) if leads_somewhere(folder) => {}
        Err(error) => return Err(error),
    }
    Ok(names.into_iter().collect())
}

fn leads_somewhere(folder: &Path) -> bool {
    given().iter().any(|given| Path::new(given).starts_with(folder))
}

/// Opens a file to read. The few devices that scripts name are there too.
///
/// # Errors
/// The file system's.
pub fn open(path: &Path) -> io::Result<Input> {
    if path == Path::new("/dev/null") {
        return Ok(Input::Null);
    }
    if found(path, true)?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    Ok(Input::File(Rc::new(File::open(path)?)))
}

/// The folders that this guest was given.
#[cfg(target_os = "wasi")]
fn given() -> Vec<String> {
    wasip2::filesystem::preopens::get_directories().into_iter().map(|(_, path)| path).collect()
}

/// Elsewhere all folders can be opened.
#[cfg(not(target_os = "wasi"))]
fn given() -> Vec<String> {
    Vec::new()
}

/// Makes a symbolic link.
///
/// # Errors
/// The file system's.
#[cfg(target_os = "wasi")]
pub fn link(target: &str, path: &Path) -> io::Result<()> {
    let directories = wasip2::filesystem::preopens::get_directories();
    let nearest = directories
        .iter()
        .filter_map(|(folder, given)| Some((folder, path.strip_prefix(given).ok()?)))
        .min_by_key(|(_, below)| below.components().count());
    let (folder, below) = nearest.ok_or(io::ErrorKind::NotFound)?;
    folder
        .symlink_at(target, &below.to_string_lossy())
        .map_err(|error| io::Error::other(format!("{error:?}")))
}

/// Makes a symbolic link.
///
/// # Errors
/// The file system's.
#[cfg(not(target_os = "wasi"))]
pub fn link(target: &str, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}
