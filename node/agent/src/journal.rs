//! What the agent must not forget: facts about pods, written before anything is done because of them, and on disk where it is
//! something that must not be done twice.
//!
//! One append-only file for all pods, so that many facts share one `fdatasync`. A record is a little-endian `u32` length, the
//! `u32` CRC-32 of what follows, and CBOR. A tail that a crash cut off is dropped, as nothing came of it that is not gone too; damage
//! before the tail is an error, because what follows it was acted on. A file that has grown long is replaced by what its facts come to.
//!
//! Absent: a database. An embedded one costs threads and memory on every node for what is a list of a few facts per pod that is
//! only ever read whole, at start.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

/// The largest record: a fact holds at most a termination message (4 KiB) and a few names.
const MAX_RECORD: usize = 1 << 20;

/// A journal grows to this before it is replaced while the agent runs: some 100,000 facts.
const LONG: u64 = 16 << 20;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record that was acted on is damaged. Nothing is deleted: a person decides.
    #[error(
        "{path} is damaged at byte {offset}, with sound records after it: the disk or another program changed it. Stop all \
         pods by `copepod node reset --data-dir ...`, or restore the file"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: usize,
    },
}

/// An open journal of facts of type `F`, each about one pod.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    long_from: u64,
}

impl Journal {
    /// Opens or makes the journal and returns its facts in the order in which they were appended.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub(crate) fn open<F: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<F>), JournalError> {
        let error = |source| JournalError::Io { path: path.to_owned(), source };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                write_whole(path, &[], 0o666).map_err(error)?;
                Vec::new()
            }
            Err(other) => return Err(error(other)),
        };
        let (facts, sound) = decode(&bytes)
            .map_err(|offset| JournalError::Damaged { path: path.to_owned(), offset })?;
        let file = OpenOptions::new().append(true).open(path).map_err(error)?;
        let length = sound as u64;
        if sound < bytes.len() {
            file.set_len(length).and_then(|()| file.sync_all()).map_err(error)?;
        }
        Ok((Self { path: path.to_owned(), file, length, long_from: LONG }, facts))
    }

    /// Appends facts; when it returns, they outlive the agent, and with the next [`sync`](Self::sync) a power cut.
    ///
    /// # Errors
    /// [`JournalError::Io`], after which nothing may be acted on and the agent ends.
    pub(crate) fn append<F: Serialize>(&mut self, facts: &[F]) -> Result<(), JournalError> {
        if facts.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(128 * facts.len());
        for fact in facts {
            encode(fact, &mut bytes);
        }
        self.file
            .write_all(&bytes)
            .map_err(|source| JournalError::Io { path: self.path.clone(), source })?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// When it returns, all that was appended outlives a power cut.
    ///
    /// # Errors
    /// [`JournalError::Io`], after which the agent ends: a failed `fdatasync` is not repeated, as the kernel may have dropped the pages.
    pub(crate) fn sync(&mut self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(|source| JournalError::Io { path: self.path.clone(), source })
    }

    /// Whether so much was appended that [`replace`](Self::replace) is due.
    pub(crate) fn is_long(&self) -> bool {
        self.length > self.long_from
    }

    /// Puts `facts` in the place of all that are in the file: they come to the same, in short.
    ///
    /// # Errors
    /// [`JournalError::Io`]; the old file is then still whole, and as after [`append`](Self::append) the agent ends.
    pub(crate) fn replace<F: Serialize>(
        &mut self,
        facts: impl IntoIterator<Item = F>,
    ) -> Result<(), JournalError> {
        let mut bytes = Vec::new();
        for fact in facts {
            encode(&fact, &mut bytes);
        }
        let error = |source| JournalError::Io { path: self.path.clone(), source };
        write_whole(&self.path, &bytes, 0o666).map_err(error)?;
        self.file = OpenOptions::new().append(true).open(&self.path).map_err(error)?;
        self.length = bytes.len() as u64;
        // Twice what had to be kept, so that replacing costs no more than what was appended since.
        self.long_from = (2 * self.length).max(LONG);
        Ok(())
    }
}

/// Puts a file with `bytes` in the place of `path`, whole or not at all, also over a power cut.
/// Nobody reads it whom `mode` does not let, at any moment.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    put_in_place(path, bytes, mode, File::sync_all)?;
    File::open(folder)?.sync_all()
}

/// The same, but that after a power cut the file may be empty or missing.
pub(crate) fn write_whole_for_now(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put_in_place(path, bytes, mode, |_| Ok(()))
}

fn put_in_place(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    before_it_is_seen: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let new = folder.join(name);
    // Of a crash, with whatever mode it had.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(bytes)?;
    before_it_is_seen(&file)?;
    std::fs::rename(&new, path)
}

fn encode<F: Serialize>(fact: &F, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    bytes.extend([0; 8]);
    ciborium::into_writer(fact, &mut *bytes).expect("a vector takes every byte");
    let (head, body) = bytes[start..].split_at_mut(8);
    let length = u32::try_from(body.len()).expect("a fact is far below 4 GiB");
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
}

/// All facts and how many bytes they take, or the offset of a damaged record that sound ones follow.
fn decode<F: DeserializeOwned>(bytes: &[u8]) -> Result<(Vec<F>, usize), usize> {
    let mut facts = Vec::new();
    let mut offset = 0;
    while let Some((fact, length)) = record(&bytes[offset..]) {
        facts.push(ciborium::from_reader(fact).map_err(|_| offset)?);
        offset += length;
    }
    let damaged = (offset + 1..bytes.len()).any(|later| {
        record(&bytes[later..]).is_some_and(|(fact, _)| ciborium::from_reader::<F, _>(fact).is_ok())
    });
    if damaged { Err(offset) } else { Ok((facts, offset)) }
}

/// The first record's body and its whole length, where it is there and sound.
fn record(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (head, rest) = bytes.split_at_checked(8)?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let body = rest.get(..length).filter(|_| (1..=MAX_RECORD).contains(&length))?;
    (crc32fast::hash(body) == u32::from_le_bytes(head[4..].try_into().ok()?))
        .then_some((body, 8 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(numbers: std::ops::Range<u32>) -> Vec<(String, u32)> {
        numbers.map(|number| (format!("pod-{}", number % 3), number)).collect()
    }

    fn open(path: &Path) -> Result<Vec<(String, u32)>, JournalError> {
        Journal::open(path).map(|(_, facts)| facts)
    }

    #[test]
    fn facts_come_back_in_their_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let (mut journal, none) = Journal::open::<(String, u32)>(&path).expect("made");
        assert!(none.is_empty());

        journal.append(&facts(0..5)).expect("appended");
        journal.append(&facts(5..9)).expect("appended");

        assert_eq!(open(&path).expect("sound"), facts(0..9));
    }

    #[test]
    fn what_takes_the_place_of_all_facts_is_all_that_comes_back_with_those_after_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open::<(String, u32)>(&path).expect("made");
        journal.append(&facts(0..9)).expect("appended");

        journal.replace(facts(8..9)).expect("replaced");
        journal.append(&facts(9..11)).expect("appended");

        assert_eq!(open(&path).expect("sound"), facts(8..11));
    }

    #[test]
    fn a_journal_is_long_once_it_has_grown_to_twice_what_it_had_to_keep() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut journal, _) =
            Journal::open::<String>(&folder.path().join("journal")).expect("made");
        let megabyte = "x".repeat((1 << 20) - 64);
        let grow = |journal: &mut Journal| {
            let mut appended = 0;
            while !journal.is_long() {
                journal.append(std::slice::from_ref(&megabyte)).expect("appended");
                appended += 1;
            }
            appended
        };

        assert_eq!(grow(&mut journal), 17);
        journal.replace(vec![megabyte.clone(); 12]).expect("replaced");

        assert_eq!(grow(&mut journal), 13);
    }

    #[test]
    fn a_tail_that_a_crash_cut_off_anywhere_is_dropped_and_the_rest_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut whole = Vec::new();
        facts(0..3).iter().for_each(|fact| encode(fact, &mut whole));
        let mut two = Vec::new();
        facts(0..2).iter().for_each(|fact| encode(fact, &mut two));

        for length in two.len()..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("written");

            let (mut journal, sound) = Journal::open::<(String, u32)>(&path).expect("sound");
            assert_eq!(sound, facts(0..2));
            journal.append(&facts(2..3)).expect("appended");
            assert_eq!(open(&path).expect("sound"), facts(0..3));
        }
    }

    #[test]
    fn a_flipped_bit_before_the_tail_is_an_error_that_deletes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut whole = Vec::new();
        facts(0..3).iter().for_each(|fact| encode(fact, &mut whole));
        whole[9] ^= 0x10;
        std::fs::write(&path, &whole).expect("written");

        assert!(matches!(open(&path), Err(JournalError::Damaged { offset: 0, .. })));
        assert_eq!(std::fs::read(&path).expect("there"), whole);
    }
}
