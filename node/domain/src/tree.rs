//! A domain's directory on the host: its tree, its record, its socket; and how it is deleted without harm.
//!
//! ```text
//! <data>/domains/<d>/runner.json   the record, for the next agent
//!                    runner.sock   where the runner listens, or runner.2.sock, by turns: two live at once for a moment
//!                    log/          the runner's own words, on a tmpfs that bounds them
//!                    root/         the runner's `/`: code, ro, rw, logs, mnt, state (`copepod_shim::protocol::layout`)
//! ```
//! Absent: what the agent and the runner put into `root`.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use crate::error::{HostError, Step};
use crate::names::DomainIndex;

/// What the next agent must know of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The domain's number: its user and its link.
    pub(crate) index: DomainIndex,
    /// Its user.
    pub(crate) uid: u32,
    /// Whether it has a network namespace of its own.
    pub(crate) own_network: bool,
    /// The runner, once there is one.
    pub(crate) runner: Option<RunnerRecord>,
}

/// Enough to tell a process from every other that ever had or will have its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunnerRecord {
    /// Its number.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot.
    pub(crate) started: u64,
    /// In which boot of the machine.
    pub(crate) boot: String,
    /// Its program.
    pub(crate) program: PathBuf,
    /// The name of its socket, one of [`SOCKETS`].
    #[serde(default = "first_socket")]
    pub(crate) socket: String,
    /// Where in the root its engine's code is.
    #[serde(default)]
    pub(crate) code: PathBuf,
}

/// The names of a runner's socket. A runner that is to take over from another one has the other name.
pub(crate) const SOCKETS: [&str; 2] = ["runner.sock", "runner.2.sock"];

fn first_socket() -> String {
    SOCKETS[0].to_owned()
}

/// The name that a new runner's socket has beside `taken`.
pub(crate) fn next_socket(taken: Option<&str>) -> &'static str {
    if taken == Some(SOCKETS[0]) { SOCKETS[1] } else { SOCKETS[0] }
}

/// The name of a socket on record, if it is one.
pub(crate) fn known_socket(name: &str) -> Option<&'static str> {
    SOCKETS.into_iter().find(|known| *known == name)
}

/// The paths of one domain.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) directory: PathBuf,
}

impl Tree {
    pub(crate) fn new(data: &Path, domain: &str) -> Self {
        Self { directory: data.join("domains").join(domain) }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn log_directory(&self) -> PathBuf {
        self.directory.join("log")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.log_directory().join("runner.log")
    }

    fn record(&self) -> PathBuf {
        self.directory.join("runner.json")
    }

    pub(crate) fn write_record(&self, record: &Record) -> Result<(), HostError> {
        let step = || format!("write {}", self.record().display());
        let bytes = serde_json::to_vec(record).map_err(io::Error::from).step(step)?;
        let new = self.directory.join("runner.json.new");
        let mut file = fs::File::create(&new).step(step)?;
        file.write_all(&bytes).step(step)?;
        // Renamed, so that no reader ever sees half of it. Not synced: the process it tells of does not outlive the machine.
        fs::rename(&new, self.record()).step(step)
    }

    /// The record; none where the domain's making was cut short before it, or where it is damaged.
    pub(crate) fn read_record(&self) -> Option<Record> {
        let bytes = fs::read(self.record()).ok()?;
        serde_json::from_slice(&bytes)
            .map_err(|error| tracing::warn!(domain = %self.directory.display(), %error, "a damaged record"))
            .ok()
    }

    /// Makes the directories of the root. The domain's user can write `state` only, and what the agent gives it in `rw` and `logs`:
    /// those themselves are root's, so that the agent's way to a pod's folder never leads through one that the runner can replace.
    ///
    /// Where a predecessor ran under this user, `state` may hold anything that it was able to leave there: a link in place of a directory is
    /// replaced, never followed.
    pub(crate) fn make(&self, uid: u32) -> Result<(), HostError> {
        let root = self.root();
        let seen = ["", "code", "ro", "rw", "logs", "mnt"].map(|name| root.join(name));
        for (mode, paths) in [(0o700, &[self.log_directory()][..]), (0o755, &seen[..])] {
            for path in paths {
                let step = || format!("make {}", path.display());
                fs::DirBuilder::new().recursive(true).mode(mode).create(path).step(step)?;
            }
        }
        let step = || format!("hand {} over", root.join("state").display());
        let root = open_directory(CWD, &root, ResolveFlags::NO_MAGICLINKS).step(step)?;
        let state = own_directory(root.as_fd(), "state", uid).step(step)?;
        own_directory(state.as_fd(), "exits", uid).step(step)?;
        Ok(())
    }
}

/// A directory of the domain's user in `at`, whatever was there before.
fn own_directory(at: BorrowedFd<'_>, name: &str, uid: u32) -> rustix::io::Result<OwnedFd> {
    let own = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let directory = match open_directory(at, name, own) {
        Ok(directory) => directory,
        Err(error) => {
            if error != rustix::io::Errno::NOENT {
                rustix::fs::unlinkat(at, name, AtFlags::empty())?;
            }
            rustix::fs::mkdirat(at, name, Mode::from(0o700))?;
            open_directory(at, name, own)?
        }
    };
    let (user, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(uid));
    rustix::fs::fchown(&directory, Some(user), Some(group))?;
    Ok(directory)
}

/// Deletes a directory and all that is in it, whatever a hostile owner made of it: no link is followed, no mount is entered, and no
/// depth exhausts the stack or the descriptors. Nothing there: nothing to do.
///
/// Directories found at the second level are moved up to the first, so that it never goes deeper.
pub(crate) fn delete(directory: &Path) -> Result<(), HostError> {
    let step = || format!("delete {}", directory.display());
    let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
        return Err(HostError::Invalid(format!("{} is not deleted", directory.display())));
    };
    let parent = match open_directory(CWD, parent, ResolveFlags::NO_MAGICLINKS) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.step(step)?,
    };
    let own = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let top = match open_directory(parent.as_fd(), Path::new(name), own) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.step(step)?,
    };
    let mut moved = 0_u64;
    loop {
        let entries = entries(top.as_fd()).step(step)?;
        if entries.is_empty() {
            break;
        }
        for (entry, kind) in entries {
            if kind != FileType::Directory {
                rustix::fs::unlinkat(&top, &*entry, AtFlags::empty()).step(step)?;
                continue;
            }
            let inner = open_directory(top.as_fd(), entry.as_c_str(), own).step(step)?;
            empty(inner.as_fd(), top.as_fd(), &mut moved).step(step)?;
            rustix::fs::unlinkat(&top, &*entry, AtFlags::REMOVEDIR).step(step)?;
        }
    }
    rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).step(step)
}

/// Empties a directory; what in it is not empty itself moves up to `top`.
fn empty(
    directory: BorrowedFd<'_>,
    top: BorrowedFd<'_>,
    moved: &mut u64,
) -> rustix::io::Result<()> {
    loop {
        let entries = entries(directory)?;
        if entries.is_empty() {
            return Ok(());
        }
        for (name, kind) in entries {
            if kind != FileType::Directory {
                rustix::fs::unlinkat(directory, &*name, AtFlags::empty())?;
            } else if rustix::fs::unlinkat(directory, &*name, AtFlags::REMOVEDIR).is_err() {
                let up = loop {
                    *moved += 1;
                    let up = format!(".deleted-{moved}");
                    let there = rustix::fs::statat(top, &up, AtFlags::SYMLINK_NOFOLLOW);
                    if matches!(there, Err(rustix::io::Errno::NOENT)) {
                        break up;
                    }
                };
                rustix::fs::renameat(directory, &*name, top, up)?;
            }
        }
    }
}

fn open_directory(
    at: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(at, name, flags, Mode::empty(), resolve)
}

type Entry = (std::ffi::CString, FileType);

/// Some of the entries, none only where there is none: a hostile directory can hold millions.
fn entries(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let status = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(status.st_mode)
            }
            known => known,
        };
        entries.push((name.to_owned(), kind));
        if entries.len() == 1024 {
            break;
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_tree_goes_without_a_deep_stack_or_many_descriptors() {
        let root = tempfile::tempdir().expect("a directory");
        let victim = root.path().join("victim");
        fs::create_dir(&victim).expect("made");
        let mut at = rustix::fs::open(&victim, OFlags::DIRECTORY, Mode::empty()).expect("opened");
        // Past the usual limit of 1,024 open files, and past any path that the kernel takes.
        for _ in 0..3_000 {
            rustix::fs::mkdirat(&at, "d", Mode::from(0o755)).expect("made");
            at = rustix::fs::openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).expect("opened");
        }
        drop(at);

        delete(&victim).expect("deleted");

        assert!(!victim.exists());
    }

    #[test]
    fn what_a_link_points_at_survives_the_links_deletion() {
        let root = tempfile::tempdir().expect("a directory");
        let canary = root.path().join("canary");
        fs::create_dir(&canary).expect("made");
        fs::write(canary.join("file"), "alive").expect("written");
        let victim = root.path().join("victim");
        fs::create_dir_all(victim.join("a/b")).expect("made");
        for place in ["link", "a/link", "a/b/link", ".deleted-1"] {
            std::os::unix::fs::symlink(&canary, victim.join(place)).expect("linked");
        }

        delete(&victim).expect("deleted");

        assert!(!victim.exists());
        assert_eq!(fs::read_to_string(canary.join("file")).expect("there"), "alive");
    }

    #[test]
    fn a_directory_that_was_swapped_for_a_link_is_not_followed() {
        let root = tempfile::tempdir().expect("a directory");
        let canary = root.path().join("canary");
        fs::create_dir(&canary).expect("made");
        fs::write(canary.join("file"), "alive").expect("written");
        let victim = root.path().join("victim");
        std::os::unix::fs::symlink(&canary, &victim).expect("linked");

        delete(&victim).expect_err("it is a link");

        assert!(canary.join("file").exists());
    }

    #[test]
    fn a_link_that_a_predecessor_left_in_place_of_its_directory_is_replaced_and_not_followed() {
        use std::os::unix::fs::MetadataExt;
        let data = tempfile::tempdir().expect("a directory");
        let own = fs::metadata(data.path()).expect("there").uid();
        let canary = data.path().join("canary");
        fs::create_dir(&canary).expect("made");
        let before = fs::metadata(&canary).expect("there").ctime_nsec();
        let tree = Tree::new(data.path(), "d");
        tree.make(own).expect("made");
        let exits = tree.root().join("state/exits");
        fs::remove_dir(&exits).expect("removed");
        std::os::unix::fs::symlink(&canary, &exits).expect("linked");

        tree.make(own).expect("made again");

        assert!(fs::symlink_metadata(&exits).expect("there").is_dir());
        let after = fs::metadata(&canary).expect("there").ctime_nsec();
        assert_eq!(after, before, "the canary was not handed over");
    }

    #[test]
    fn deleting_what_is_not_there_is_done_already() {
        let root = tempfile::tempdir().expect("a directory");

        delete(&root.path().join("no/such")).expect("nothing to do");
    }
}
