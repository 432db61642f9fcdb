//! The folder that shows a guest its `terminationMessagePath`: WASI knows directories only, so it holds the one file.
//!
//! It is made when a guest first looks, as most leave no last words. What a guest can put there is bounded without a mount or a
//! quota: it makes nothing beside the file, as the folder is read-only for the runner too, and of the file the disk keeps the end,
//! which is all that anybody reads. Absent: reading the message, which the agent does.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use copepod_shim::protocol::StartContainer;
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
    /// A guest has looked.
    is_shown: AtomicBool,
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
        Some(Self { directory, guest_directory, file, log, is_shown: AtomicBool::new(false) })
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
        if self.is_shown.load(Ordering::Relaxed) {
            return Ok(());
        }
        std::fs::create_dir_all(&self.directory)?;
        open(&self.file, OpenOptions::new().append(true).create(true))?;
        std::fs::set_permissions(&self.directory, Permissions::from_mode(0o555))?;
        self.is_shown.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back to the disk what is not the end of the file, if it has become large. To be called now and then while guests run.
    pub(crate) fn trim(&self) {
        if self.is_shown.load(Ordering::Relaxed)
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
        match self.read() {
            Ok(words) if words.is_empty() => {}
            Ok(words) => {
                if let Err(error) = std::fs::write(&self.log, words) {
                    tracing::warn!(%error, "a termination message was not kept");
                }
            }
            Err(error) => tracing::debug!(%error, "no termination message"),
        }
        let _ = std::fs::set_permissions(&self.directory, Permissions::from_mode(0o755));
        let _ = std::fs::remove_dir_all(&self.directory);
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
            is_shown: AtomicBool::new(false),
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
        words.collect();

        assert!(!words.log.exists());
        assert_eq!(std::fs::read_to_string(&secret).expect("there"), "secret");
    }
}
