//! The folder that shows a guest its `terminationMessagePath`: WASI knows directories only, so it holds the one file.
//!
//! It is made when a guest first looks, as most leave no last words. What a guest can put there is bounded without a mount or a
//! quota: it makes nothing beside the file, as the folder is read-only for the runner too, and of the file the disk keeps the end,
//! which is all that anybody reads. Absent: reading the message, which the agent does.
//!
//! ```text
//! /state/words/<pod UID>/<container>/<attempt>     the message, from the attempt's end until the next one's looks or the pod goes
//!                                    <attempt>.d/  the folder that is shown, from the first look until the attempt's end
//! ```

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use copepod_shim::protocol::{StartContainer, layout};
use rustix::fs::{FallocateFlags, OFlags};

use crate::exit::MAX_MESSAGE;
use crate::root::Root;

/// What the file may take of the disk before its beginning is given back: enough that no ordinary guest ever comes so far.
const MOST_ON_DISK: u64 = 64 << 10;

/// Where one container's last words are.
#[derive(Debug)]
pub struct LastWords {
    /// The folder that is shown.
    directory: PathBuf,
    /// Its path in the guest.
    guest_directory: String,
    /// The file in the folder, as the guest names it.
    file: PathBuf,
    /// Where the agent reads.
    log: PathBuf,
    /// Another attempt came before this one.
    is_repeated: bool,
    /// A guest has looked.
    is_shown: Mutex<bool>,
}

impl LastWords {
    /// As the spec has them; none where it names no file.
    pub(crate) fn of(spec: &StartContainer, root: &Root) -> Option<Self> {
        let guest = Path::new(&spec.termination_path);
        let name = guest.file_name()?;
        let guest_directory = guest.parent()?.to_str()?.to_owned();
        if spec.termination_log.is_empty() {
            return None;
        }
        let log = root.path(&spec.termination_log);
        let mut directory = log.as_os_str().to_owned();
        directory.push(".d");
        let directory = PathBuf::from(directory);
        let file = directory.join(name);
        let is_repeated = spec.id.attempt > 0;
        Some(Self {
            directory,
            guest_directory,
            file,
            log,
            is_repeated,
            is_shown: Mutex::default(),
        })
    }

    /// The folder that is shown.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its path in the guest.
    pub(crate) fn guest_directory(&self) -> &str {
        &self.guest_directory
    }

    /// Makes the folder with the empty file in it, unless that was done.
    pub(crate) fn show(&self) -> io::Result<()> {
        let mut is_shown = self.is_shown();
        if *is_shown {
            return Ok(());
        }
        if self.is_repeated
            && let Some(folder) = self.log.parent()
        {
            // The agent has what earlier attempts said: it starts none before it has the exit of the one before in its journal.
            remove_container(folder)?;
        }
        std::fs::create_dir_all(&self.directory)?;
        open(&self.file, OpenOptions::new().append(true).create(true))?;
        std::fs::set_permissions(&self.directory, Permissions::from_mode(0o555))?;
        *is_shown = true;
        Ok(())
    }

    fn is_shown(&self) -> MutexGuard<'_, bool> {
        self.is_shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back to the disk what is not the end of the file, if it has become large. To be called now and then while guests run.
    pub(crate) fn trim(&self) {
        if *self.is_shown()
            && let Err(error) = self.try_trim()
        {
            tracing::debug!(%error, "a termination message is not trimmed");
        }
    }

    fn try_trim(&self) -> io::Result<()> {
        let metadata = std::fs::symlink_metadata(&self.file)?;
        // Blocks are counted in 512 bytes, whatever the file system's are.
        if !metadata.is_file() || metadata.blocks() * 512 <= MOST_ON_DISK {
            return Ok(());
        }
        let file = open(&self.file, OpenOptions::new().write(true))?;
        let unread = metadata.len().saturating_sub(MAX_MESSAGE as u64);
        // Its length stays, and so does every offset that the guest has.
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&file, hole, 0, unread) {
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(0),
            done => Ok(done?),
        }
    }

    /// Puts the end of what the guest wrote, if it did, where the agent reads it, and takes the folder away.
    pub(crate) fn collect(&self) {
        if !*self.is_shown() {
            return;
        }
        match self.read() {
            Ok(words) if words.is_empty() => {}
            Ok(words) => {
                if let Err(error) = std::fs::write(&self.log, words) {
                    tracing::warn!(%error, "a termination message was not kept");
                }
            }
            Err(error) => tracing::debug!(%error, "no termination message"),
        }
        if let Err(error) = remove_shown(&self.directory) {
            tracing::warn!(%error, "a guest's folder for its last words is left over");
        }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let file = open(&self.file, OpenOptions::new().read(true))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let start = metadata.len().saturating_sub(MAX_MESSAGE as u64);
        let mut words = vec![0; (metadata.len() - start) as usize];
        file.read_exact_at(&mut words, start)?;
        Ok(words)
    }
}

/// Removes the last words of a pod that is removed.
pub(crate) fn remove(root: &Root, pod: &str) {
    if let Err(error) = remove_pod(&root.path(layout::WORDS).join(pod)) {
        tracing::warn!(pod, %error, "last words are left over");
    }
}

/// Removes what an earlier runner in this root left there, but for pods with an exit that nobody has acknowledged.
pub(crate) fn sweep(root: &Root, is_recorded: impl Fn(&str) -> bool) {
    let Ok(pods) = std::fs::read_dir(root.path(layout::WORDS)) else { return };
    for pod in pods.flatten() {
        let pod = pod.file_name();
        // Names that are no UTF-8 are no pod's.
        if let Some(pod) = pod.to_str().filter(|pod| !is_recorded(pod)) {
            remove(root, pod);
        }
    }
}

fn remove_pod(folder: &Path) -> io::Result<()> {
    let containers = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        containers => containers?,
    };
    for container in containers {
        remove_container(&container?.path())?;
    }
    std::fs::remove_dir(folder)
}

fn remove_container(folder: &Path) -> io::Result<()> {
    let attempts = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        attempts => attempts?,
    };
    for attempt in attempts {
        let attempt = attempt?;
        if attempt.file_type()?.is_dir() {
            remove_shown(&attempt.path())?;
        } else {
            std::fs::remove_file(attempt.path())?;
        }
    }
    std::fs::remove_dir(folder)
}

fn remove_shown(directory: &Path) -> io::Result<()> {
    // What is in it can be removed by who may write in it only, be it its owner.
    std::fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    std::fs::remove_dir_all(directory)
}

/// Opens what should be the file: where something else is in its place, a link or a FIFO, it is neither followed nor waited for.
fn open(file: &Path, how: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    how.mode(0o644).custom_flags(flags.bits() as i32).open(file)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn last_words(folder: &Path) -> LastWords {
        let directory = folder.join("message.d");
        LastWords {
            file: directory.join("termination-log"),
            directory,
            guest_directory: "/dev".into(),
            log: folder.join("message"),
            is_repeated: false,
            is_shown: Mutex::default(),
        }
    }

    /// The last words of this attempt of the container `app` of the pod `u`, in a runner with this root.
    fn attempt(root: &Root, attempt: u32) -> LastWords {
        let log = root.path(layout::WORDS).join(format!("u/app/{attempt}"));
        let directory = log.with_extension("d");
        LastWords {
            file: directory.join("termination-log"),
            directory,
            guest_directory: "/dev".into(),
            log,
            is_repeated: attempt > 0,
            is_shown: Mutex::default(),
        }
    }

    #[test]
    fn nothing_is_made_before_a_guest_looks_and_then_one_file_beside_which_nothing_can_be_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let words = last_words(folder.path());
        words.trim();
        assert!(!words.directory.exists());

        words.show().expect("shown");
        words.show().expect("shown again");

        let mode = std::fs::metadata(&words.directory).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o555);
        assert_eq!(std::fs::read(&words.file).expect("there"), b"");
    }

    #[test]
    fn a_guest_that_says_nothing_leaves_no_message() {
        let folder = tempfile::tempdir().expect("a folder");
        let words = last_words(folder.path());
        words.show().expect("shown");

        words.collect();

        assert!(!words.log.exists());
        assert!(!words.directory.exists());
    }

    #[test]
    fn of_a_flood_the_disk_keeps_the_end_and_the_end_is_the_message() {
        let folder = tempfile::tempdir().expect("a folder");
        let words = last_words(folder.path());
        words.show().expect("shown");
        let mut guest = OpenOptions::new().write(true).open(&words.file).expect("opened");
        let mut most = 0;
        for _ in 0..100 {
            guest.write_all(&[b'x'; 64 << 10]).expect("written");
            words.trim();
            most = most.max(std::fs::metadata(&words.file).expect("there").blocks() * 512);
        }
        guest.write_all(b"the end").expect("written");

        words.collect();

        assert!(most <= 2 * MOST_ON_DISK, "{most}");
        let message = std::fs::read_to_string(&words.log).expect("a message");
        assert_eq!(message, format!("{}the end", "x".repeat(MAX_MESSAGE - 7)));
    }

    #[test]
    fn a_link_in_the_file_s_place_is_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let words = last_words(folder.path());
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "secret").expect("written");
        std::fs::create_dir(&words.directory).expect("made");
        std::os::unix::fs::symlink(&secret, &words.file).expect("linked");

        assert!(words.show().is_err());
        *words.is_shown() = true;
        words.collect();

        assert!(!words.log.exists());
        assert_eq!(std::fs::read_to_string(&secret).expect("there"), "secret");
    }

    #[test]
    fn a_guest_that_looked_nowhere_costs_no_look_either() {
        let folder = tempfile::tempdir().expect("a folder");
        let words = last_words(folder.path());
        std::fs::create_dir(&words.directory).expect("made");
        std::fs::write(&words.file, "not the guest's").expect("written");

        words.collect();

        assert!(!words.log.exists());
    }

    #[test]
    fn an_attempt_that_looks_removes_what_earlier_ones_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::new(folder.path());
        let first = attempt(&root, 0);
        first.show().expect("shown");
        std::fs::write(&first.file, "said").expect("written");
        first.collect();
        let killed = attempt(&root, 1);
        killed.show().expect("shown");
        assert!(!first.log.exists());

        let third = attempt(&root, 2);
        third.show().expect("shown");
        third.show().expect("shown again");

        let left = std::fs::read_dir(root.path("/state/words/u/app")).expect("there");
        let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["2.d"]);
    }

    #[test]
    fn a_successor_keeps_the_last_words_of_recorded_exits_and_removes_those_of_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::new(folder.path());
        sweep(&root, |_| false);
        let said = attempt(&root, 0);
        said.show().expect("shown");
        std::fs::write(&said.file, "said").expect("written");
        said.collect();

        sweep(&root, |pod| pod == "u");
        assert_eq!(std::fs::read(&said.log).expect("kept"), b"said");
        attempt(&root, 0).show().expect("shown");
        sweep(&root, |_| false);

        assert_eq!(std::fs::read_dir(root.path(layout::WORDS)).expect("there").count(), 0);
    }

    #[test]
    fn a_removed_pod_leaves_no_last_words() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::new(folder.path());
        remove(&root, "u");
        let words = attempt(&root, 0);
        words.show().expect("shown");

        remove(&root, "u");

        assert!(!root.path("/state/words/u").exists());
    }
}
