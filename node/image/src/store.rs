//! Images on this machine's disk: blobs by digest, one record per image, one small file per name.
//!
//! ```text
//! images/blobs/sha256/<hex>      bytes, as pulled; visible only when whole and verified
//! images/records/<hex>.json      what a manifest comes to: its program, entrypoint, environment
//! images/refs/<hex of name>.json a name, the manifest it stands for, who may use it; its mtime is the last use
//! images/roots/<hex>/            the files of an image that has more than its program, by its manifest
//! images/tmp/                    being written; each file or folder is locked by its writer
//! images/lock                    shared by pulls and loads, exclusive for garbage collection
//! images/salt                    random: marks of logins mean nothing elsewhere
//! ```
//!
//! A file becomes visible by rename, after its fsync and before its folder's. Several processes may use one store:
//! a file in `tmp` whose lock can be taken has no writer any more, and goes.
//!
//! Absent: the network, and compiled code ([`crate::code`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::reference::Reference;

/// The largest record or name file: an environment of 1 MiB and room.
const MAX_RECORD: u64 = 4 << 20;

/// What a manifest comes to, worked out once when it is pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The manifest of the one image (never of an index).
    pub(crate) manifest: Digest,
    /// Every blob that the image consists of, the manifest and an unpacked program included.
    pub(crate) blobs: Vec<Digest>,
    /// The program.
    pub(crate) wasm: Digest,
    pub(crate) wasm_bytes: u64,
    /// All blobs together.
    pub(crate) bytes: u64,
    /// The program's file name, or the repository's last part.
    pub(crate) program: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: String,
    /// The bytes of its files, where it has more than the program: then they lie in `roots`.
    #[serde(default)]
    pub(crate) root_bytes: Option<u64>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Named {
    /// The whole name.
    pub(crate) reference: String,
    /// What the registry resolved the name to: an index or a manifest.
    pub(crate) resolved: Digest,
    /// The image's manifest.
    pub(crate) manifest: Digest,
    /// Marks of the logins that were allowed to pull it. Empty with `open`.
    #[serde(default)]
    pub(crate) logins: BTreeSet<Digest>,
    /// Whether it was pulled without a login, or loaded by hand: then everyone may use it.
    #[serde(default)]
    pub(crate) open: bool,
}

/// The store in one directory.
pub(crate) struct Store {
    root: PathBuf,
    salt: Vec<u8>,
    counter: AtomicU64,
}

/// Held while blobs are on disk that no record names yet: keeps garbage collection away.
pub(crate) struct Busy {
    _lock: File,
}

/// A file in the making. Dropped uncommitted, it is gone.
pub(crate) struct Temp {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Temp {
    /// A new file in `folder`, locked for as long as it is open here or in a child.
    pub(crate) fn create(folder: &Path, counter: &AtomicU64) -> io::Result<Self> {
        loop {
            let number = counter.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{}-{number}", std::process::id()));
            let file = match File::options().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => file,
                // Of a dead process with our id, or of another store object in this one.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            file.lock()?;
            // A sweep may have come between the two lines above; then the file has no name any more.
            if file.metadata()?.nlink() > 0 {
                return Ok(Self { file, path, kept: false });
            }
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file visible as `target`: whole after a power cut, or not there.
    pub(crate) fn commit(mut self, target: &Path) -> io::Result<()> {
        // A failed fsync is final: the kernel forgets the pages, and a second one would lie. The file goes with `self`.
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        self.kept = true;
        sync_folder(target)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.kept {
            // Where it cannot be removed now, the next opening of the store does it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A folder in the making. Dropped uncommitted, it is gone.
pub(crate) struct TempFolder {
    /// Holds the lock.
    _opened: File,
    path: PathBuf,
    kept: bool,
}

impl TempFolder {
    fn create(folder: &Path, counter: &AtomicU64) -> io::Result<Self> {
        loop {
            let number = counter.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{}-{number}", std::process::id()));
            match fs::DirBuilder::new().mode(0o755).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            // A sweep may take it before the lock does, or be at it while the lock waits; then there is another.
            let Ok(opened) = File::open(&path) else { continue };
            opened.lock()?;
            // Whatever this process takes away from modes: every runner is to read it.
            opened.set_permissions(fs::Permissions::from_mode(0o755))?;
            if opened.metadata()?.nlink() > 0 {
                return Ok(Self { _opened: opened, path, kept: false });
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder visible as `target`, unless one is there already: whole after a power cut, or not there. One that is there is whole,
    /// holds the same, and may be a running pod's.
    fn commit(mut self, target: &Path) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;

        rustix::fs::syncfs(&self._opened)?;
        match renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST | Errno::NOTEMPTY) => return Ok(()),
            renamed => renamed?,
        }
        self.kept = true;
        sync_folder(target)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        if !self.kept {
            // Where it cannot be removed now, the next opening of the store does it.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn sync_folder(of: &Path) -> io::Result<()> {
    match of.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes the files and folders in `folder` that no living process writes.
pub(crate) fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // Another process may be faster, or the file's own writer done.
        if let Ok(file) = File::open(&path)
            && file.try_lock().is_ok()
        {
            let is_folder = file.metadata().is_ok_and(|it| it.is_dir());
            let _ = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
    Ok(())
}

/// Writes a small file so that it is whole or as before.
pub(crate) fn write_whole(
    tmp: &Path,
    counter: &AtomicU64,
    target: &Path,
    bytes: &[u8],
) -> io::Result<()> {
    let temp = Temp::create(tmp, counter)?;
    temp.file().write_all(bytes)?;
    temp.commit(target)
}

impl Store {
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        // Root's alone: what was pulled with one pod's secret is no other user's to read.
        let make = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        make(root)?;
        for folder in ["blobs/sha256", "records", "refs", "roots", "tmp"] {
            make(&root.join(folder))?;
        }
        let mut store =
            Self { root: root.to_owned(), salt: Vec::new(), counter: AtomicU64::new(0) };
        sweep(&root.join("tmp"))?;
        store.salt = store.read_or_make_salt()?;
        Ok(store)
    }

    fn read_or_make_salt(&self) -> io::Result<Vec<u8>> {
        let path = self.root.join("salt");
        for _ in 0..2 {
            match fs::read(&path) {
                Ok(salt) if salt.len() == 32 => return Ok(salt),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let mut salt = [0; 32];
            File::open("/dev/urandom")?.read_exact(&mut salt)?;
            // Of two processes that start together one wins, and both read what it wrote.
            write_whole(&self.root.join("tmp"), &self.counter, &path, &salt)?;
        }
        Err(io::Error::other("the store's salt cannot be kept"))
    }

    pub(crate) fn salt(&self) -> &[u8] {
        &self.salt
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// The size of a blob that is here.
    pub(crate) fn blob_bytes(&self, digest: &Digest) -> io::Result<Option<u64>> {
        match fs::symlink_metadata(self.blob_path(digest)) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn read_blob(&self, digest: &Digest, cap: u64) -> io::Result<Vec<u8>> {
        read_capped(&self.blob_path(digest), cap)
    }

    pub(crate) fn temp(&self) -> io::Result<Temp> {
        Temp::create(&self.root.join("tmp"), &self.counter)
    }

    pub(crate) fn temp_folder(&self) -> io::Result<TempFolder> {
        TempFolder::create(&self.root.join("tmp"), &self.counter)
    }

    /// The folder with an image's files.
    pub(crate) fn root_path(&self, manifest: &Digest) -> PathBuf {
        self.root.join("roots").join(manifest.hex())
    }

    /// Makes `temp` the files of an image.
    pub(crate) fn commit_root(&self, temp: TempFolder, manifest: &Digest) -> io::Result<()> {
        temp.commit(&self.root_path(manifest))
    }

    /// Makes `temp`, whose bytes have been found to hash to `digest`, a blob.
    pub(crate) fn commit_blob(&self, temp: Temp, digest: &Digest) -> io::Result<()> {
        temp.commit(&self.blob_path(digest))
    }

    /// Stores `bytes`, unless they are here.
    pub(crate) fn put(&self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        if self.blob_bytes(&digest)? != Some(bytes.len() as u64) {
            write_whole(&self.root.join("tmp"), &self.counter, &self.blob_path(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// A damaged blob goes, so that the next pull brings it again.
    pub(crate) fn remove_blob(&self, digest: &Digest) -> io::Result<()> {
        remove(&self.blob_path(digest)).map(|_| ())
    }

    /// Waits for a garbage collection under way, and keeps the next one off. Blocks: not for async code.
    pub(crate) fn busy(&self) -> io::Result<Busy> {
        let lock = self.lock_file()?;
        lock.lock_shared()?;
        Ok(Busy { _lock: lock })
    }

    fn lock_file(&self) -> io::Result<File> {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.root.join("lock"))
    }

    fn record_path(&self, manifest: &Digest) -> PathBuf {
        self.root.join("records").join(format!("{}.json", manifest.hex()))
    }

    pub(crate) fn write_record(&self, record: &Record) -> io::Result<()> {
        self.write_json(&self.record_path(&record.manifest), record)
    }

    /// The record of an image, if it and all of its blobs are here.
    pub(crate) fn record(&self, manifest: &Digest) -> io::Result<Option<Record>> {
        let Some(record) = read_json::<Record>(&self.record_path(manifest))? else {
            return Ok(None);
        };
        for blob in &record.blobs {
            if self.blob_bytes(blob)?.is_none() {
                return Ok(None);
            }
        }
        let has_root = record.root_bytes.is_none() || self.root_path(manifest).is_dir();
        Ok(has_root.then_some(record))
    }

    fn ref_path(&self, whole_name: &str) -> PathBuf {
        self.root.join("refs").join(format!("{}.json", Digest::of(whole_name.as_bytes()).hex()))
    }

    /// What a name stands for; reading it counts as use.
    pub(crate) fn named(&self, reference: &Reference) -> io::Result<Option<Named>> {
        let path = self.ref_path(&reference.to_string());
        let named = read_json::<Named>(&path)?;
        if named.is_some() {
            touch(&path);
        }
        Ok(named)
    }

    /// Sets what a name stands for.
    pub(crate) fn write_named(&self, named: &Named) -> io::Result<()> {
        self.write_json(&self.ref_path(&named.reference), named)
    }

    /// Forgets a name; whether it was there.
    pub(crate) fn remove_named(&self, whole_name: &str) -> io::Result<bool> {
        remove(&self.ref_path(whole_name))
    }

    /// All names with their last use, the oldest first.
    pub(crate) fn names(&self) -> io::Result<Vec<(Named, SystemTime)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join("refs"))? {
            let entry = entry?;
            if let Some(named) = read_json::<Named>(&entry.path())? {
                let used =
                    entry.metadata().and_then(|it| it.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                names.push((named, used));
            }
        }
        names.sort_by(|(a, a_used), (b, b_used)| {
            a_used.cmp(b_used).then_with(|| a.reference.cmp(&b.reference))
        });
        Ok(names)
    }

    fn write_json(&self, path: &Path, value: &impl Serialize) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(value)?;
        write_whole(&self.root.join("tmp"), &self.counter, path, &json)
    }

    /// Removes what no name leads to, then, above `quota` bytes, the names used longest ago, down to 80 % of it (the kubelet's
    /// own step is from 85 to 80 %). Neither an image in `keep` nor a file younger than `min_age` goes. `None` where a pull is under way.
    pub(crate) fn collect(
        &self,
        keep: &BTreeSet<Digest>,
        quota: u64,
        min_age: Duration,
    ) -> io::Result<Option<Collected>> {
        sweep(&self.root.join("tmp"))?;
        let lock = self.lock_file()?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        let old_enough = |when: SystemTime| {
            SystemTime::now().duration_since(when).is_ok_and(|age| age >= min_age)
        };
        let mut collected = Collected::default();
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(self.root.join("records"))? {
            if let Some(record) = read_json::<Record>(&entry?.path())? {
                records.insert(record.manifest.clone(), record);
            }
        }
        let mut names: Vec<(Named, SystemTime)> = self.names()?;
        let resolved =
            |named: &Named| keep.contains(&named.resolved).then(|| named.manifest.clone());
        let meant = names.iter().filter_map(|(named, _)| resolved(named));
        let keep: &BTreeSet<Digest> = &keep.iter().cloned().chain(meant).collect();
        let mut in_use = self.in_use(&names, &records, keep);
        let mut total = self.bytes_of(&in_use, &records)?;
        if total > quota {
            let target = quota / 10 * 8;
            while total > target {
                let oldest = names
                    .iter()
                    .position(|(named, used)| !keep.contains(&named.manifest) && old_enough(*used));
                let Some(oldest) = oldest else { break };
                let (named, _) = names.remove(oldest);
                self.remove_named(&named.reference)?;
                collected.names.push(named.reference);
                in_use = self.in_use(&names, &records, keep);
                total = self.bytes_of(&in_use, &records)?;
            }
        }
        let named: BTreeSet<&Digest> = names.iter().map(|(named, _)| &named.manifest).collect();
        for manifest in records.keys() {
            let path = self.record_path(manifest);
            let age = fs::metadata(&path).and_then(|it| it.modified());
            if !named.contains(manifest) && !keep.contains(manifest) && age.is_ok_and(old_enough) {
                remove(&path)?;
            }
        }
        for entry in fs::read_dir(self.root.join("roots"))? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(of_hex);
            let known = digest.is_some_and(|digest| in_use.contains(&digest));
            if !known && entry.metadata()?.modified().is_ok_and(old_enough) {
                // Out of sight first: half of an image's files are never found under its name.
                let number = self.counter.fetch_add(1, Ordering::Relaxed);
                let name = format!("{}-{number}-gone", std::process::id());
                let gone = self.root.join("tmp").join(name);
                fs::rename(entry.path(), &gone)?;
                if let Err(error) = fs::remove_dir_all(&gone) {
                    tracing::warn!(%error, "the files of an image are not all removed yet");
                }
            }
        }
        for entry in fs::read_dir(self.root.join("blobs/sha256"))? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(of_hex);
            let known = digest.is_some_and(|digest| in_use.contains(&digest));
            let found = entry.metadata()?;
            if !known && found.modified().is_ok_and(old_enough) && remove(&entry.path())? {
                collected.blobs += 1;
                collected.bytes += found.len();
            }
        }
        Ok(Some(collected))
    }

    fn in_use(
        &self,
        names: &[(Named, SystemTime)],
        records: &BTreeMap<Digest, Record>,
        keep: &BTreeSet<Digest>,
    ) -> BTreeSet<Digest> {
        let manifests = names.iter().map(|(named, _)| &named.manifest).chain(keep);
        let mut blobs: BTreeSet<Digest> = manifests
            .filter_map(|manifest| records.get(manifest))
            .flat_map(|record| record.blobs.iter().cloned())
            .collect();
        blobs.extend(names.iter().map(|(named, _)| named.resolved.clone()));
        blobs
    }

    /// The bytes of these blobs, and of the files of the images whose manifests are among them.
    fn bytes_of(
        &self,
        blobs: &BTreeSet<Digest>,
        records: &BTreeMap<Digest, Record>,
    ) -> io::Result<u64> {
        let roots = blobs.iter().filter_map(|blob| records.get(blob)?.root_bytes);
        let roots: u64 = roots.sum();
        blobs.iter().try_fold(roots, |sum, blob| Ok(sum + self.blob_bytes(blob)?.unwrap_or(0)))
    }

    /// What lies in `tmp`: for tests of what an interrupted pull leaves.
    #[cfg(test)]
    pub(crate) fn unfinished(&self) -> usize {
        fs::read_dir(self.root.join("tmp")).map_or(0, Iterator::count)
    }
}

fn of_hex(hex: &str) -> Option<Digest> {
    format!("sha256:{hex}").parse().ok()
}

/// What a garbage collection removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs removed.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Names forgotten to get below the quota.
    pub names: Vec<String>,
}

pub(crate) fn touch(path: &Path) {
    // Only the order of eviction depends on it.
    if let Ok(file) = File::options().append(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_capped(path: &Path, cap: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.size();
    if size > cap {
        return Err(io::Error::other(format!(
            "{} has {size} bytes, more than {cap}",
            path.display()
        )));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(cap).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads one of our own JSON files; one that is damaged counts as not there, and is written anew by the next pull.
pub(crate) fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<Option<T>> {
    match read_capped(path, MAX_RECORD) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a damaged file of the image store is ignored");
                Ok(None)
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("images")).expect("a store");
        (folder, store)
    }

    fn image(store: &Store, name: &str, bytes: &[u8]) -> Digest {
        let wasm = store.put(bytes).expect("a blob");
        let manifest = store.put(name.as_bytes()).expect("a manifest");
        let record = Record {
            manifest: manifest.clone(),
            blobs: vec![manifest.clone(), wasm.clone()],
            wasm,
            wasm_bytes: bytes.len() as u64,
            bytes: bytes.len() as u64,
            program: "a.wasm".into(),
            entrypoint: vec![],
            cmd: vec![],
            env: vec![],
            working_dir: String::new(),
            root_bytes: None,
        };
        store.write_record(&record).expect("a record");
        store.write_named(&named(name, &manifest)).expect("a name");
        manifest
    }

    fn named(name: &str, manifest: &Digest) -> Named {
        Named {
            reference: Reference::parse(name).expect("a name").to_string(),
            resolved: manifest.clone(),
            manifest: manifest.clone(),
            logins: BTreeSet::new(),
            open: true,
        }
    }

    #[test]
    fn what_a_dead_writer_left_is_gone_at_the_next_opening_and_a_living_ones_stays() {
        let (folder, store) = store();
        let dead = folder.path().join("images/tmp/1-1");
        fs::write(&dead, b"half").expect("written");
        let living = store.temp().expect("a file in the making");

        let again = Store::open(&folder.path().join("images")).expect("opens");

        assert!(!dead.exists());
        assert!(living.path.exists());
        assert_eq!(again.unfinished(), 1);
        drop(living);
        assert_eq!(again.unfinished(), 0);
    }

    #[test]
    fn a_collection_removes_what_no_name_leads_to_and_keeps_what_is_in_use() {
        let (_folder, store) = store();
        let kept = image(&store, "kept", &[1; 100]);
        let running = image(&store, "running", &[2; 100]);
        let gone = image(&store, "gone", &[3; 100]);
        for name in ["running", "gone"] {
            let whole = Reference::parse(name).expect("name").to_string();
            assert!(store.remove_named(&whole).expect("removed"));
        }

        let collected = store
            .collect(&BTreeSet::from([running.clone()]), u64::MAX, Duration::ZERO)
            .expect("collects")
            .expect("nobody pulls");

        assert_eq!((collected.blobs, collected.bytes), (2, 104));
        assert!(store.record(&kept).expect("reads").is_some());
        assert!(store.record(&running).expect("reads").is_some());
        assert!(store.record(&gone).expect("reads").is_none());
    }

    #[test]
    fn an_index_that_is_in_use_keeps_the_manifest_that_its_name_led_to() {
        let (_folder, store) = store();
        let manifest = image(&store, "running", &[1; 100]);
        let index = Digest::of(b"an index");
        let name = Named { resolved: index.clone(), ..named("running", &manifest) };
        store.write_named(&name).expect("named");

        store.collect(&BTreeSet::from([index]), 0, Duration::ZERO).expect("collects");

        assert!(store.record(&manifest).expect("reads").is_some());
        assert_eq!(store.names().expect("lists").len(), 1);
    }

    #[test]
    fn above_the_quota_the_names_used_longest_ago_go_first() {
        let (_folder, store) = store();
        for (age, name) in [(300u64, "oldest"), (200, "older"), (100, "newest")] {
            image(&store, name, &[age as u8; 1000]);
            let path = store.ref_path(&Reference::parse(name).expect("name").to_string());
            let when = SystemTime::now() - Duration::from_secs(age);
            File::options().write(true).open(path).expect("opens").set_modified(when).expect("set");
        }

        let collected = store
            .collect(&BTreeSet::new(), 2_600, Duration::ZERO)
            .expect("collects")
            .expect("nobody pulls");

        assert_eq!(collected.names, ["docker.io/library/oldest:latest"]);
        assert_eq!(collected.bytes, 1006);
        assert_eq!(store.names().expect("lists").len(), 2);
    }

    #[test]
    fn no_collection_runs_beside_a_pull() {
        let (_folder, store) = store();
        let busy = store.busy().expect("a pull");

        assert_eq!(store.collect(&BTreeSet::new(), 0, Duration::ZERO).expect("asks"), None);
        drop(busy);
        assert!(store.collect(&BTreeSet::new(), 0, Duration::ZERO).expect("asks").is_some());
    }

    #[test]
    fn a_damaged_record_counts_as_absent() {
        let (_folder, store) = store();
        let manifest = image(&store, "a", b"x");
        fs::write(store.record_path(&manifest), b"{").expect("written");

        assert_eq!(store.record(&manifest).expect("reads"), None);
    }
}
