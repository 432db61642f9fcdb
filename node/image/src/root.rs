//! A container image's files as one folder: its layers laid over each other, whiteouts applied, and the program found in it.
//!
//! A path of an image is resolved by the kernel as if the folder were the root of all files (`RESOLVE_IN_ROOT`), so that neither `..` nor a
//! link leads out of it, whatever a layer holds. Nothing is made but folders, ordinary files and links: no device, no owner but ours, no mode
//! but what everybody may read. Links that begin with `/` are written as relative ones, as a guest's view of files knows no other. Absent:
//! writing to it; it is shown read-only to every container of the image.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Timespec, Timestamps,
};
use rustix::io::Errno;
use tar::EntryType;

use crate::digest::{Digest, copy_hashed};
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
        // A rename anywhere on the machine may make the kernel unsure of a `..`.
        for _ in 0..16 {
            match rustix::fs::openat2(&self.folder, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                opened => return opened,
            }
        }
        Err(Errno::AGAIN)
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
    let (digest, length) = copy_hashed(&mut program, &mut temp.file())?;
    let mut kept = temp.file().try_clone()?;
    let mut head = Vec::new();
    kept.seek(SeekFrom::Start(0))?;
    (&kept).take(4096).read_to_end(&mut head)?;
    if let Some(refusal) = refusal_by_ends(&head, &mut kept)? {
        return Err(Failure::Unusable(refusal.to_string()));
    }
    store.commit_blob(temp, &digest)?;
    Ok((digest, length))
}

#[cfg(test)]
mod tests;
