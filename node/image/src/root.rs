//! A container image's files as one folder: its layers laid over each other, whiteouts applied, and the program found in it.
//!
//! A path of an image is resolved by the kernel as if the folder were the root of all files (`RESOLVE_IN_ROOT`), so that neither `..` nor a
//! link leads out of it, whatever a layer holds. Nothing is made but folders, ordinary files and links: no device, no owner but ours, no mode
//! but what everybody may read. Links that begin with `/` are written as relative ones, as a guest's view of files knows no other. Absent:
//! writing to it; it is shown read-only to every container of the image.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Timespec, Timestamps,
};
use rustix::io::Errno;
use tar::EntryType;

use crate::digest::{Digest, Hash};
use crate::guard::{Failure, PullRules};
use crate::layers::{self, Budget, Entry, damaged, normal};
use crate::pull::refusal_by_ends;
use crate::sizes;
use crate::store::{Store, TempFolder};

/// Deeper than any image's folders; each is a call to the kernel.
const MAX_DEPTH: usize = 128;

/// Folders that layers leave out and have files in: builders write them down, so it is seldom any.
const MAX_MADE: u64 = 100_000;
/// All paths of one layer together; a full distribution has some 4 MiB.
const MAX_NAMES: usize = 64 << 20;
/// What a file takes of the disk beside its bytes.
const BLOCK: u64 = 4096;

/// A program taken out of an image, and the image's other files.
pub(crate) struct Unpacked {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    /// Its file name.
    pub(crate) name: String,
    /// All files and their bytes; none where the program is the only one.
    pub(crate) root: Option<(TempFolder, u64)>,
}

/// Lays the layers (lowest first) over each other, and finds `path` in what comes of it.
pub(crate) fn compose(
    store: &Store,
    layers: &[Digest],
    diff_ids: &[Digest],
    path: &str,
    rules: &PullRules,
) -> Result<Unpacked, Failure> {
    if !diff_ids.is_empty() && diff_ids.len() != layers.len() {
        return Err(Failure::Corrupt(format!(
            "its configuration names {} layers, and its manifest {}",
            diff_ids.len(),
            layers.len()
        )));
    }
    let folder = store.temp_folder()?;
    let mut root = Root::new(open_folder(folder.path())?)?;
    let mut budget = Budget::new(rules);
    let mut others = 0_u64;
    for (number, layer) in layers.iter().enumerate() {
        root.placed = HashSet::new();
        root.placed_bytes = 0;
        layers::read(store, layer, diff_ids.get(number), &mut budget, &mut |entry| {
            if entry.path != path && entry.kind != EntryType::Directory {
                others += 1;
            }
            if entry.path == path && entry.size > rules.max_layer_bytes {
                return Err(Failure::Unusable(format!(
                    "its program has {}, more than the limit of {} (COPEPOD_MAX_LAYER_BYTES)",
                    sizes::shown(entry.size),
                    sizes::shown(rules.max_layer_bytes)
                )));
            }
            root.take(entry)
        })?;
    }
    let (digest, bytes) = root.program(store, path)?;
    let name = path.rsplit('/').next().unwrap_or(path).to_owned();
    let root = (others > 0).then_some((folder, root.bytes));
    Ok(Unpacked { digest, bytes, name, root })
}

struct Root {
    folder: OwnedFd,
    /// Where the folder lies on the machine.
    lies: String,
    /// What the layer that is being read has put here, without links on the way: whiteouts hide what is below the layer, not what it
    /// holds itself.
    placed: HashSet<String>,
    placed_bytes: usize,
    /// Folders that had to be made for what is in them.
    made: u64,
    bytes: u64,
}

impl Root {
    fn new(folder: OwnedFd) -> io::Result<Self> {
        let lies = path_of(&folder)?;
        let placed = HashSet::new();
        Ok(Self { folder, lies, placed, placed_bytes: 0, made: 0, bytes: 0 })
    }

    fn take(&mut self, mut entry: Entry<'_>) -> Result<(), Failure> {
        let path = std::mem::take(&mut entry.path);
        if path.split('/').count() > MAX_DEPTH {
            return Err(too_deep());
        }
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if let Some(hidden) = name.strip_prefix(".wh.") {
            return match hidden {
                ".wh..opq" => self.hide_contents(folder),
                // Others of aufs's own say nothing of files, and these are no names.
                _ if hidden.starts_with(".wh.") || matches!(hidden, "" | "." | "..") => Ok(()),
                _ => self.hide(folder, hidden),
            }
            .map_err(|error| unusable(&path, error));
        }
        self.place(folder, name, &mut entry).map_err(|why| match why {
            Why::Failure(failure) => failure,
            Why::Os(error) => unusable(&path, error),
        })
    }

    /// The path of a folder of the image from its root, without links on the way.
    fn real(&self, folder: &OwnedFd) -> Result<String, Why> {
        let whole = path_of(folder)?;
        let path = whole.strip_prefix(&self.lies).unwrap_or_default().trim_matches('/').to_owned();
        if path.split('/').count() >= MAX_DEPTH {
            return Err(too_deep().into());
        }
        Ok(path)
    }

    fn place(&mut self, folder: &str, name: &str, entry: &mut Entry<'_>) -> Result<(), Why> {
        let parent = self.folder_of(folder)?;
        let folder = &*self.real(&parent)?;
        let path = joined(folder, name);
        self.placed_bytes += path.len();
        if self.placed_bytes > MAX_NAMES {
            return Err(
                Failure::Unusable("the names in one of its layers are too long".into()).into()
            );
        }
        self.placed.insert(path);
        self.bytes += BLOCK;
        let is_folder = entry.kind == EntryType::Directory;
        match file_type(&parent, name)? {
            Some(FileType::Directory) if is_folder => return Ok(()),
            Some(there) => remove(&parent, name, there)?,
            None => {}
        }
        match entry.kind {
            EntryType::Directory => make_folder(&parent, name)?,
            EntryType::Regular | EntryType::Continuous => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let mode: RawMode = if entry.is_executable { 0o755 } else { 0o644 };
                let flags = flags | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(mode);
                let made = rustix::fs::openat(&parent, name, flags, mode)?;
                // Whatever this process takes away from modes.
                rustix::fs::fchmod(&made, mode)?;
                let mut file = File::from(made);
                self.bytes += copy(entry, &mut file)?;
                let changed =
                    Timespec { tv_sec: entry.changed.try_into().unwrap_or(0), tv_nsec: 0 };
                let times = Timestamps { last_access: changed, last_modification: changed };
                rustix::fs::futimens(&file, &times)?;
            }
            EntryType::Symlink => {
                let target = relative(folder, &entry.link);
                rustix::fs::symlinkat(
                    CString::new(target).map_err(io::Error::from)?,
                    &parent,
                    name,
                )?;
            }
            EntryType::Link => {
                let target = normal(&entry.link).unwrap_or_default();
                let (folder, last) = target.rsplit_once('/').unwrap_or(("", &target));
                let holder = self.folder_of(folder)?;
                let kind = file_type(&holder, last)?;
                if !matches!(kind, Some(FileType::RegularFile | FileType::Symlink)) {
                    return Err(Why::Failure(Failure::Unusable(format!(
                        "one of its layers has a link to /{target}, which is no file of the image"
                    ))));
                }
                rustix::fs::linkat(&holder, last, &parent, name, AtFlags::empty())?;
            }
            // A device, a pipe: nothing that a guest could use.
            _ => {}
        }
        Ok(())
    }

    /// The folder at this path, made where it is not there.
    fn folder_of(&mut self, path: &str) -> Result<OwnedFd, Why> {
        match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {}
            opened => return Ok(opened?),
        }
        let mut so_far = String::new();
        for part in path.split('/') {
            let parent = self.open(&so_far, OFlags::RDONLY | OFlags::DIRECTORY)?;
            if file_type(&parent, part)?.is_none() {
                self.real(&parent)?;
                self.made += 1;
                self.bytes += BLOCK;
                if self.made > MAX_MADE {
                    let why = format!("its layers leave out more than {MAX_MADE} folders");
                    return Err(Failure::Unusable(why).into());
                }
                make_folder(&parent, part)?;
            }
            if !so_far.is_empty() {
                so_far.push('/');
            }
            so_far.push_str(part);
        }
        Ok(self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?)
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { "." } else { path };
        let flags = flags | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut last = Errno::AGAIN;
        // A rename anywhere on the machine may make the kernel unsure of a `..`.
        for _ in 0..16 {
            match rustix::fs::openat2(&self.folder, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error),
                opened => return opened,
            }
            last = Errno::AGAIN;
        }
        Err(last)
    }

    fn hide(&self, folder: &str, name: &str) -> Result<(), Errno> {
        let parent = match self.open(folder, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            parent => parent?,
        };
        let real = self.real(&parent).map_err(|_| Errno::NAMETOOLONG)?;
        let path = joined(&real, name);
        match file_type(&parent, name)? {
            None => Ok(()),
            Some(FileType::Directory) => {
                self.hide_contents(&path)?;
                if self.placed.contains(&path) {
                    return Ok(());
                }
                match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
                    // Something of this layer is in it.
                    Err(Errno::NOTEMPTY) => Ok(()),
                    removed => removed,
                }
            }
            Some(_) if self.placed.contains(&path) => Ok(()),
            Some(there) => remove(&parent, name, there),
        }
    }

    fn hide_contents(&self, folder: &str) -> Result<(), Errno> {
        let opened = match self.open(folder, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            opened => opened?,
        };
        names(&opened)?.iter().try_for_each(|name| self.hide(folder, name))
    }

    /// The program, as a blob of its own.
    fn program(&self, store: &Store, path: &str) -> Result<(Digest, u64), Failure> {
        let refused =
            |why: &str| Failure::Unusable(format!("its entrypoint /{path} cannot be run: {why}"));
        let opened = match self.open(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(Failure::Unusable(format!(
                    "its entrypoint /{path} is in none of its layers, or a later one removes it"
                )));
            }
            Err(Errno::LOOP) => return Err(refused("its links lead in a circle")),
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let stat = rustix::fs::fstat(&opened).map_err(io::Error::from)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused("it is no ordinary file"));
        }
        keep(store, File::from(opened))
    }
}

enum Why {
    Failure(Failure),
    Os(Errno),
}

impl From<Errno> for Why {
    fn from(error: Errno) -> Self {
        Self::Os(error)
    }
}

impl From<Failure> for Why {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<io::Error> for Why {
    fn from(error: io::Error) -> Self {
        Self::Failure(error.into())
    }
}

/// What the kernel says of a path that a layer chose is the layer's fault, but for a disk that is full or broken.
fn unusable(path: &str, error: Errno) -> Failure {
    match error {
        // A link that leads nowhere has nothing behind it.
        Errno::NOENT
        | Errno::NOTDIR
        | Errno::LOOP
        | Errno::NAMETOOLONG
        | Errno::INVAL
        | Errno::ILSEQ
        | Errno::EXIST
        | Errno::MLINK => {
            let path: String = path.chars().filter(|it| !it.is_control()).take(200).collect();
            let why = io::Error::from(error);
            Failure::Unusable(format!("/{path} of one of its layers cannot be laid out: {why}"))
        }
        error => io::Error::from(error).into(),
    }
}

fn too_deep() -> Failure {
    Failure::Unusable(format!("one of its layers holds folders more than {MAX_DEPTH} deep"))
}

fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// Where a folder lies on the machine now.
fn path_of(folder: &OwnedFd) -> io::Result<String> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()))?;
    Ok(link.to_string_lossy().into_owned())
}

fn make_folder(parent: &OwnedFd, name: &str) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::mkdirat(parent, name, mode)?;
    // Whatever this process takes away from modes.
    rustix::fs::chmodat(parent, name, mode, AtFlags::empty())
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn file_type(folder: &OwnedFd, name: &str) -> Result<Option<FileType>, Errno> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn names(folder: &OwnedFd) -> Result<Vec<String>, Errno> {
    let entries = Dir::read_from(folder)?;
    let names = entries.map(|it| Ok(it?.file_name().to_string_lossy().into_owned()));
    names.filter(|it| !matches!(it.as_deref(), Ok("." | ".."))).collect()
}

/// Removes a name and all that is beneath it, following no link.
fn remove(folder: &OwnedFd, name: &str, kind: FileType) -> Result<(), Errno> {
    if kind != FileType::Directory {
        return rustix::fs::unlinkat(folder, name, AtFlags::empty());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    for name in names(&opened)? {
        if let Some(kind) = file_type(&opened, &name)? {
            remove(&opened, &name, kind)?;
        }
    }
    rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
}

fn copy(entry: &mut Entry<'_>, to: &mut File) -> Result<u64, Failure> {
    let mut buffer = vec![0; 64 << 10];
    let mut copied = 0;
    loop {
        let count = entry.bytes.read(&mut buffer).map_err(|e| damaged(&e))?;
        if count == 0 {
            return Ok(copied);
        }
        to.write_all(&buffer[..count])?;
        copied += count as u64;
    }
}

/// A link's target as it is written from `folder`: one that begins at the root begins where the folder is.
fn relative(folder: &str, target: &str) -> String {
    let Some(rest) = target.strip_prefix('/') else { return target.to_owned() };
    let up = folder.split('/').filter(|part| !part.is_empty()).count();
    let rest = rest.trim_start_matches('/');
    let whole = format!("{}{rest}", "../".repeat(up));
    if whole.is_empty() { ".".to_owned() } else { whole }
}

/// Stores a program's bytes as a blob, after a look at what they are.
fn keep(store: &Store, mut program: File) -> Result<(Digest, u64), Failure> {
    let temp = store.temp()?;
    let mut hash = Hash::default();
    let mut length = 0u64;
    let mut head = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = program.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let bytes = &buffer[..count];
        hash.update(bytes);
        length += count as u64;
        if head.len() < 4096 {
            head.extend_from_slice(&bytes[..count.min(4096 - head.len())]);
        }
        temp.file().write_all(bytes)?;
    }
    if let Some(refusal) = refusal_by_ends(&head, &mut temp.file().try_clone()?)? {
        return Err(Failure::Unusable(refusal.to_string()));
    }
    let digest = hash.finish();
    store.commit_blob(temp, &digest)?;
    Ok((digest, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WASM: &[u8] = b"\0asm\x01\0\0\0";

    struct Layer(tar::Builder<Vec<u8>>);

    impl Layer {
        fn new() -> Self {
            Self(tar::Builder::new(Vec::new()))
        }

        fn entry(mut self, path: &str, kind: EntryType, bytes: &[u8]) -> Self {
            let mut header = tar::Header::new_ustar();
            let field = &mut header.as_old_mut().name;
            field[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.set_link_name("/etc/passwd").expect("a link");
            }
            header.set_cksum();
            self.0.append(&header, bytes).expect("appends");
            self
        }

        fn link(mut self, path: &str, kind: EntryType, target: &str) -> Self {
            let mut header = tar::Header::new_ustar();
            header.set_path(path).expect("a path");
            header.set_entry_type(kind);
            header.set_size(0);
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_cksum();
            self.0.append(&header, io::empty()).expect("appends");
            self
        }

        fn file(self, path: &str, bytes: &[u8]) -> Self {
            self.entry(path, EntryType::Regular, bytes)
        }

        fn bytes(self) -> Vec<u8> {
            self.0.into_inner().expect("a tar file")
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).expect("compresses");
        encoder.finish().expect("compresses")
    }

    /// What came of it, and where it lies as long as the folder lives.
    type Stacked = (Unpacked, tempfile::TempDir);

    fn stacked_with(
        layers: &[Vec<u8>],
        diff_ids: &[Digest],
        rules: &PullRules,
    ) -> Result<Stacked, Failure> {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("a store");
        let digests: Vec<Digest> = layers.iter().map(|it| store.put(it).expect("a blob")).collect();
        Ok((compose(&store, &digests, diff_ids, "app/main.wasm", rules)?, folder))
    }

    /// All names in a composed root with what they are: a file's bytes, a link's target, a folder's `/`.
    fn contents(stacked: &Stacked) -> Vec<(String, String)> {
        fn walk(folder: &Path, at: &str, found: &mut Vec<(String, String)>) {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let entry = entry.expect("an entry");
                let name = format!("{at}{}", entry.file_name().display());
                let kind = entry.file_type().expect("a kind");
                if kind.is_dir() {
                    found.push((name.clone(), "/".into()));
                    walk(&entry.path(), &format!("{name}/"), found);
                } else if kind.is_symlink() {
                    let target = std::fs::read_link(entry.path()).expect("a link");
                    found.push((name, format!("-> {}", target.display())));
                } else {
                    let bytes = std::fs::read(entry.path()).expect("a file");
                    found.push((name, String::from_utf8_lossy(&bytes).into_owned()));
                }
            }
        }
        let mut found = Vec::new();
        if let Some((root, _)) = &stacked.0.root {
            walk(root.path(), "", &mut found);
        }
        found.retain(|(name, _)| name != "app" && name != "app/main.wasm");
        found.sort();
        found
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    fn stacked(layers: &[Vec<u8>]) -> Result<Stacked, Failure> {
        stacked_with(layers, &[], &PullRules::default())
    }

    #[test]
    fn the_uppermost_layer_that_holds_the_program_gives_it() {
        let old = [WASM, b"old"].concat();
        let lower = Layer::new().file("./app/main.wasm", &old).file("etc/motd", b"hi").bytes();
        let upper = gzip(&Layer::new().file("/app//main.wasm", WASM).bytes());

        let found = stacked(&[lower, upper]).expect("found");

        assert_eq!(found.0.digest, Digest::of(WASM));
        assert_eq!(found.0.name, "main.wasm");
        assert_eq!(contents(&found), pairs(&[("etc", "/"), ("etc/motd", "hi")]));
    }

    #[test]
    fn a_whiteout_of_the_file_or_a_folder_above_it_removes_it_from_the_layers_below() {
        let lower = || Layer::new().file("app/main.wasm", WASM).bytes();
        for whiteout in ["app/.wh.main.wasm", ".wh.app", "app/.wh..wh..opq", ".wh..wh..opq"] {
            let upper = Layer::new().file(whiteout, b"").bytes();
            let error = stacked(&[lower(), upper]).err().expect(whiteout).to_string();
            assert!(error.contains("a later one removes it"), "{whiteout}: {error}");

            let both = Layer::new().file(whiteout, b"").file("app/main.wasm", WASM).bytes();
            assert!(stacked(&[lower(), both]).is_ok(), "{whiteout}");
        }
        let harmless = Layer::new().file("app/.wh.other", b"").bytes();
        assert!(stacked(&[lower(), harmless]).is_ok());
    }

    #[test]
    fn an_image_of_the_program_alone_has_no_folder() {
        let layer =
            Layer::new().entry("app", EntryType::Directory, b"").file("app/main.wasm", WASM);

        let (found, _folder) = stacked(&[layer.bytes()]).expect("found");

        assert!(found.root.is_none());
    }

    #[test]
    fn later_layers_add_replace_and_remove() {
        let lower = Layer::new()
            .file("app/main.wasm", WASM)
            .file("etc/a", b"1")
            .file("etc/b", b"1")
            .file("lib/x/deep", b"1")
            .file("lib/y", b"1")
            .file("gone/file", b"1")
            .file("was-file", b"1")
            .bytes();
        let upper = Layer::new()
            .file("etc/a", b"2")
            .file("etc/.wh.b", b"")
            // Hides what is below, not what this layer has there itself, whichever comes first.
            .file("lib/x/new", b"2")
            .file("lib/.wh..wh..opq", b"")
            .file(".wh.gone", b"")
            .file("was-file/now-a-folder", b"2")
            .file("etc/.wh.never-there", b"")
            .bytes();

        let error = stacked(&[lower.clone(), upper]).err().expect("a file is no folder");
        assert!(matches!(&error, Failure::Unusable(text) if text.contains("was-file")), "{error}");
        let upper = Layer::new()
            .file("etc/a", b"2")
            .file("etc/.wh.b", b"")
            .file("lib/x/new", b"2")
            .file("lib/.wh..wh..opq", b"")
            .file(".wh.gone", b"")
            .entry("was-file", EntryType::Directory, b"")
            .file("was-file/now-a-folder", b"2")
            .bytes();

        let expected = pairs(&[
            ("etc", "/"),
            ("etc/a", "2"),
            ("lib", "/"),
            ("lib/x", "/"),
            ("lib/x/new", "2"),
            ("was-file", "/"),
            ("was-file/now-a-folder", "2"),
        ]);
        assert_eq!(contents(&stacked(&[lower, upper]).expect("composed")), expected);
    }

    #[test]
    fn links_lead_nowhere_but_into_the_image_r12() {
        let outside = tempfile::tempdir().expect("a folder");
        let canary = outside.path().join("canary");
        std::fs::write(&canary, "untouched").expect("written");
        let to = outside.path().to_str().expect("a path").to_owned();
        let climbing = format!("../../../../../../../../../..{to}");
        let dangling = Layer::new()
            .file("app/main.wasm", WASM)
            .link("a", EntryType::Symlink, &to)
            .file("a/canary", b"written");
        assert!(matches!(stacked(&[dangling.bytes()]), Err(Failure::Unusable(_))));
        let layer = Layer::new()
            .file("app/main.wasm", WASM)
            .file(&format!("{}/beside", to.trim_start_matches('/')), b"")
            .link("a/absolute", EntryType::Symlink, &to)
            .link("a/climbing", EntryType::Symlink, &climbing)
            // Through the links, as if they led out.
            .file("a/absolute/canary", b"written")
            .file("a/climbing/canary", b"written")
            .link("a/beside", EntryType::Symlink, "absolute")
            .bytes();

        let made = stacked(&[layer]).expect("composed");

        assert_eq!(std::fs::read_to_string(&canary).expect("there"), "untouched");
        let found = contents(&made);
        let inside = format!("{}/canary", to.trim_start_matches('/'));
        let of = |name: &str| found.iter().find(|it| it.0 == name).map(|it| it.1.as_str());
        assert_eq!(of(&inside), Some("written"));
        assert_eq!(of("a/absolute"), Some(&*format!("-> ../{}", to.trim_start_matches('/'))));
        assert_eq!(of("a/beside"), Some("-> absolute"));
        // No other file of this machine's either.
        let hard = Layer::new().file("app/main.wasm", WASM);
        let hard = hard.link("b", EntryType::Link, canary.to_str().expect("a path")).bytes();
        assert!(matches!(stacked(&[hard]), Err(Failure::Unusable(_))));
    }

    #[test]
    fn the_program_may_be_a_link_and_is_an_ordinary_file_at_its_end_r12() {
        let linked = |target: &str| {
            let layer = Layer::new().file("lib/real.wasm", WASM);
            stacked(&[layer.link("app/main.wasm", EntryType::Symlink, target).bytes()])
        };
        assert_eq!(linked("../lib/real.wasm").expect("found").0.digest, Digest::of(WASM));
        assert_eq!(linked("/lib/real.wasm").expect("found").0.digest, Digest::of(WASM));
        for target in ["main.wasm", "/lib", "/nowhere", "/etc/passwd"] {
            assert!(matches!(linked(target), Err(Failure::Unusable(_))), "{target}");
        }
        let lower = || Layer::new().file("app/main.wasm", WASM).bytes();
        for (path, kind) in [
            ("app/main.wasm", EntryType::Fifo),
            ("app/main.wasm", EntryType::Char),
            ("app/main.wasm", EntryType::Directory),
            ("app", EntryType::Regular),
        ] {
            let upper = Layer::new().entry(path, kind, b"").bytes();
            let refused = stacked(&[lower(), upper]);
            assert!(matches!(refused, Err(Failure::Unusable(_))), "{path} {kind:?}");
        }
        let escaping = Layer::new().file("../app/main.wasm", WASM).bytes();
        assert!(matches!(stacked(&[escaping]), Err(Failure::Unusable(_))));
    }

    #[test]
    fn files_are_everybody_s_to_read_and_nobody_s_to_gain_rights_by() {
        use std::os::unix::fs::PermissionsExt as _;

        let mut archive = Layer::new().file("app/main.wasm", WASM);
        for (path, mode) in [("secret", 0o000), ("tool", 0o4700)] {
            let mut header = tar::Header::new_ustar();
            header.set_path(path).expect("a path");
            header.set_size(0);
            header.set_mode(mode);
            header.set_uid(1234);
            header.set_mtime(1_000_000_000);
            header.set_cksum();
            archive.0.append(&header, io::empty()).expect("appends");
        }

        let (made, _folder) = stacked(&[archive.bytes()]).expect("composed");

        let root = made.root.expect("a folder").0;
        let of = |name: &str| std::fs::metadata(root.path().join(name)).expect("there");
        let mode = |name: &str| of(name).permissions().mode() & 0o7777;
        assert_eq!((mode("secret"), mode("tool"), mode("app")), (0o644, 0o755, 0o755));
        let changed = of("tool").modified().expect("a time");
        assert_eq!(
            changed.duration_since(std::time::UNIX_EPOCH).expect("later").as_secs(),
            1_000_000_000
        );
    }

    #[test]
    fn folders_without_an_end_are_refused() {
        let deep = "d/".repeat(MAX_DEPTH + 1);
        let record = format!("path={deep}x\n");
        let record = format!("{} {record}", record.len() + 4);
        let layer = Layer::new()
            .file("app/main.wasm", WASM)
            .entry("x", EntryType::XHeader, record.as_bytes())
            .file("short", b"")
            .bytes();

        let error = stacked(&[layer]).err().expect("refused");

        assert!(error.to_string().contains("deep"), "{error}");
    }

    #[test]
    fn a_gzip_bomb_is_stopped_by_its_ratio_and_its_size_r11() {
        let zeros = vec![0; 64 << 20];
        let bomb = gzip(&Layer::new().file("zeros", &zeros).bytes());
        // A member after the first is counted like it.
        let twice =
            [gzip(&Layer::new().file("app/main.wasm", WASM).bytes()), gzip(&zeros)].concat();
        let rules = PullRules { max_image_bytes: 1 << 20, ..PullRules::default() };
        let plain = Layer::new().file("zeros", &zeros[..2 << 20]).bytes();

        for result in [stacked(&[bomb]), stacked(&[twice]), stacked_with(&[plain], &[], &rules)] {
            let error = result.err().expect("a bomb");
            assert!(
                matches!(&error, Failure::Unusable(text) if text.contains("unpacks to more")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_layer_whose_unpacked_bytes_are_not_those_of_the_configuration_is_refused() {
        let layer = Layer::new().file("app/main.wasm", WASM).bytes();
        let right = Digest::of(&layer);
        let rules = PullRules::default();

        assert!(stacked_with(&[gzip(&layer)], &[right], &rules).is_ok());
        assert!(matches!(
            stacked_with(&[gzip(&layer)], &[Digest::of(b"other")], &rules),
            Err(Failure::Corrupt(_))
        ));
    }

    #[test]
    fn native_code_in_the_programs_place_is_refused_r21() {
        let elf = Layer::new().file("app/main.wasm", b"\x7fELF\x02\x01\x01").bytes();
        let aot =
            Layer::new().file("app/main.wasm", b"\x7fELF\x02\x01\x01 .wasmtime.engine").bytes();

        assert!(stacked(&[elf]).err().expect("elf").to_string().contains("Linux program"));
        assert!(stacked(&[aot]).err().expect("aot").to_string().contains("precompiled"));
    }

    #[test]
    fn a_header_of_two_sizes_or_too_many_bytes_is_refused_r12() {
        let huge = Layer::new().entry("x", EntryType::XHeader, &vec![b'x'; 128 << 10]).bytes();
        let desynced = Layer::new()
            .entry("x", EntryType::XHeader, b"13 size=9999\n")
            .file("app/main.wasm", WASM)
            .bytes();
        let cut = &Layer::new().file("app/main.wasm", &[WASM, &[0; 4096]].concat()).bytes()[..1024];

        assert!(matches!(stacked(&[huge]), Err(Failure::Unusable(_))));
        assert!(matches!(stacked(&[desynced]), Err(Failure::Unusable(_))));
        assert!(matches!(stacked(&[cut.to_vec()]), Err(Failure::Corrupt(_))));
    }

    #[test]
    fn a_pax_path_names_the_file() {
        let record = b"22 path=app/main.wasm\n";
        let layer = Layer::new().entry("x", EntryType::XHeader, record).file("short", WASM).bytes();

        assert!(stacked(&[layer]).is_ok());
    }
}
