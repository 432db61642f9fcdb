//! Mounts: the agent's own pinned mount namespace, and what is put into a domain's tree.
//!
//! Everything is addressed by descriptor: a path is resolved once, beneath a root and without links, and what was resolved is what gets
//! mounted. Absent: which volumes a pod has, and where they lie in its domain (the agent decides both).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use rustix::thread::{CpuSet, LinkNameSpaceType, UnshareFlags};

use crate::error::{HostError, Step};
use crate::sys::{self, MountChange};

/// Magic number of the file system in which namespaces live, `NSFS_MAGIC`.
const NSFS: rustix::fs::FsWord = 0x6e73_6673;

/// The calling thread's mount namespace. Not `/proc/self`: that is the first thread's.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/mnt";

/// No set-user-id, no devices, no programs: every mount of a domain but its code.
pub(crate) const PLAIN: u64 =
    libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// As [`PLAIN`], read-only, but with programs: compiled code is mapped executable, which a `noexec` mount forbids.
pub(crate) const CODE: u64 =
    libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Something of the host that is to be seen in a domain.
#[derive(Debug)]
pub struct BindMount {
    /// What.
    pub source: Source,
    /// Where: a path in the domain's root. What is missing of it is made.
    pub target: PathBuf,
    /// Whether the kernel refuses every write through this mount.
    pub read_only: bool,
    /// Whether files of the disk's user 0 appear as the domain's, and its files are written as user 0.
    pub idmap: bool,
}

/// Where a mount comes from.
#[derive(Debug)]
pub enum Source {
    /// A path beneath a trusted directory; no step of the path may be a link or lead out.
    Beneath {
        /// The directory, whose own path may contain links.
        root: PathBuf,
        /// The path in it; empty for the directory itself.
        path: PathBuf,
    },
    /// What the caller has resolved, opened with `O_PATH` or otherwise.
    Descriptor(OwnedFd),
}

impl Source {
    fn open(self) -> Result<(OwnedFd, PathBuf), HostError> {
        match self {
            Self::Descriptor(fd) => Ok((fd, PathBuf::from("(a resolved volume)"))),
            Self::Beneath { root, path } => {
                let whole = root.join(&path);
                let directory = open_path(&root)?;
                if path.as_os_str().is_empty() {
                    return Ok((directory, whole));
                }
                let fd = resolve(directory.as_fd(), &path)
                    .step(|| format!("open {} without following a link", whole.display()))?;
                Ok((fd, whole))
            }
        }
    }
}

/// A descriptor of a path, whose links are followed: for paths that nobody but root can change.
pub(crate) fn open_path(path: &Path) -> Result<OwnedFd, HostError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .step(|| format!("open {}", path.display()))
}

/// Resolves a relative path beneath a directory; a link or a step out of it is an error.
pub(crate) fn resolve(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), beneath)
}

/// Enters the data directory's mount namespace, making and pinning it where there is none; the host's comes
/// back, and whether a new one was made.
///
/// In it the data directory is a private mount, from which a bind mount costs 7 µs (from a shared one 6 ms at 20,000 mounts), and the
/// host's other mounts arrive as they come. The namespace outlives the agent: the next one enters it again and finds its mounts.
///
/// Only the calling thread and those that it starts later are moved.
pub(crate) fn enter_pinned_namespace(data: &Path) -> Result<(OwnedFd, bool), HostError> {
    let host = OwnedFd::from(File::open(OWN_NAMESPACE).step(|| format!("open {OWN_NAMESPACE}"))?);
    // A thread that shares its working directory with others cannot change its mount namespace.
    sys::unshare(UnshareFlags::FS).step(|| "stop sharing the working directory".into())?;
    let directory = data.join("ns");
    fs::create_dir_all(&directory).step(|| format!("make {}", directory.display()))?;
    let pin = directory.join("mnt");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&pin)
        .or_else(|_| File::open(&pin))
        .step(|| format!("open {}", pin.display()))?;
    let kind = rustix::fs::fstatfs(&file).step(|| format!("examine {}", pin.display()))?.f_type;
    drop(file);
    if kind == NSFS {
        let own = File::open(&pin).step(|| format!("open {}", pin.display()))?;
        enter_namespace(own.as_fd())?;
        return Ok((host, false));
    }

    // The pin lies on a private mount: on a shared one it would propagate into the namespace that it pins, which the kernel forbids.
    if !is_mount(&directory)? {
        rustix::mount::mount_bind(&directory, &directory)
            .step(|| format!("bind {}", directory.display()))?;
    }
    rustix::mount::mount_change(&directory, MountPropagationFlags::PRIVATE)
        .step(|| format!("make {} a private mount", directory.display()))?;
    let all = rustix::thread::sched_getaffinity(None).step(|| "read the CPUs".into())?;
    let one_by_one = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)).map(|cpu| {
        let mut one = CpuSet::new();
        one.set(cpu);
        one
    });
    // A namespace can be pinned only from an older one. The kernel compares numbers, which since 6.18 each CPU takes from a supply of
    // its own: where the host's namespace is younger than the machine (in a container), only some CPUs have higher ones.
    let mut last = Ok(());
    for cpus in std::iter::once(all).chain(one_by_one) {
        rustix::thread::sched_setaffinity(None, &cpus).step(|| "choose a CPU".into())?;
        let own = make_namespace(data)?;
        enter_namespace(host.as_fd())?;
        let link = format!("/proc/self/fd/{}", own.as_raw_fd());
        last = rustix::mount::mount_bind(&link, &pin);
        if last != Err(rustix::io::Errno::INVAL) {
            rustix::thread::sched_setaffinity(None, &all).step(|| "free the CPU".into())?;
            last.step(|| format!("pin the namespace at {}", pin.display()))?;
            enter_namespace(own.as_fd())?;
            return Ok((host, true));
        }
    }
    rustix::thread::sched_setaffinity(None, &all).step(|| "free the CPU".into())?;
    last.step(|| format!("pin the namespace at {}", pin.display()))?;
    Ok((host, true))
}

/// Moves the calling thread into a new namespace, set up for domains.
pub(crate) fn make_namespace(data: &Path) -> Result<OwnedFd, HostError> {
    sys::unshare(UnshareFlags::NEWNS).step(|| "make a mount namespace".into())?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).step(|| "receive the host's mounts only".into())?;
    rustix::mount::mount_bind(data, data).step(|| format!("bind {}", data.display()))?;
    rustix::mount::mount_change(data, MountPropagationFlags::PRIVATE)
        .step(|| format!("make {} a private mount", data.display()))?;
    Ok(OwnedFd::from(File::open(OWN_NAMESPACE).step(|| format!("open {OWN_NAMESPACE}"))?))
}

/// Moves the calling thread into a mount namespace.
pub(crate) fn enter_namespace(namespace: BorrowedFd<'_>) -> Result<(), HostError> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))
        .step(|| "enter a mount namespace".into())
}

/// Lets go of the pinned namespace: its mounts vanish with the last process in it.
pub(crate) fn unpin(data: &Path, host: OwnedFd) -> Result<(), HostError> {
    let directory = data.join("ns");
    on_a_thread(move || {
        sys::unshare(UnshareFlags::FS).step(|| "stop sharing the working directory".into())?;
        enter_namespace(host.as_fd())?;
        for path in [directory.join("mnt"), directory] {
            if is_mount(&path)? {
                rustix::mount::unmount(&path, UnmountFlags::DETACH)
                    .step(|| format!("unmount {}", path.display()))?;
            }
        }
        Ok(())
    })
}

/// Runs on a thread of its own, for what changes the calling thread.
pub(crate) fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let thread = std::thread::Builder::new()
        .name("copepod-setns".into())
        .spawn(work)
        .step(|| "start a thread".into())?;
    thread.join().unwrap_or_else(|_| {
        Err(HostError::Failed {
            step: "finish in another namespace".into(),
            source: io::Error::other("the thread panicked"),
        })
    })
}

/// Whether a mount's root is at this path; false where there is nothing.
pub(crate) fn is_mount(path: &Path) -> Result<bool, HostError> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(CWD, path, flags, StatxFlags::empty()) {
        Ok(status) => Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error).step(|| format!("examine {}", path.display())),
    }
}

fn is_mount_root(fd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let status = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// A copy of the mount at a descriptor, with all that is mounted beneath, not yet attached anywhere.
pub(crate) fn copy_of(source: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(source, "", flags)
}

fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags)
}

/// Makes a directory a mount of its own, shared: what is mounted in it later arrives in the copies of this mount. The mount comes back.
pub(crate) fn make_shared_root(directory: &Path) -> Result<OwnedFd, HostError> {
    let here = open_path(directory)?;
    let step = || format!("make {} a mount of its own", directory.display());
    let mount = copy_of(here.as_fd()).step(step)?;
    let shared = MountChange { set: PLAIN, propagation: libc::MS_SHARED, owners: None };
    sys::change_mount(&mount, shared, false).step(step)?;
    attach(mount.as_fd(), here.as_fd()).step(step)?;
    Ok(mount)
}

/// Mounts `source` with these attributes on a path in `root`, making what is missing of the path.
pub(crate) fn bind(
    root: BorrowedFd<'_>,
    source: Source,
    target: &Path,
    attributes: u64,
    owners: Option<BorrowedFd<'_>>,
) -> Result<(), HostError> {
    let (source, name) = source.open()?;
    let step = || format!("mount {} at {} in the domain", name.display(), target.display());
    let status = rustix::fs::fstat(&source).step(step)?;
    let is_directory = match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => true,
        FileType::RegularFile => false,
        other => {
            return Err(HostError::Invalid(format!(
                "{} is neither a directory nor a regular file but {other:?}; it is not mounted",
                name.display()
            )));
        }
    };
    let mount = copy_of(source.as_fd()).step(step)?;
    let mut change = MountChange { set: attributes, propagation: libc::MS_PRIVATE, owners };
    if owners.is_some() {
        change.set |= libc::MOUNT_ATTR_IDMAP;
    }
    match sys::change_mount(&mount, change, true) {
        Err(error) if owners.is_some() && error.raw_os_error() == Some(libc::EINVAL) => {
            return Err(HostError::NoIdmap { path: name });
        }
        other => other.step(step)?,
    }
    let target = make_target(root, target, is_directory)?;
    attach(mount.as_fd(), target.as_fd()).step(step)
}

/// Mounts a new, empty tmpfs of at most `size` bytes that belongs to `owner`.
pub(crate) fn tmpfs(
    root: BorrowedFd<'_>,
    target: &Path,
    size: u64,
    owner: u32,
    mode: &str,
) -> Result<(), HostError> {
    let target_fd = make_target(root, target, true)?;
    attach_tmpfs(target_fd.as_fd(), size, owner, mode)
        .step(|| format!("mount a tmpfs of {size} bytes at {}", target.display()))
}

pub(crate) fn attach_tmpfs(
    target: BorrowedFd<'_>,
    size: u64,
    owner: u32,
    mode: &str,
) -> rustix::io::Result<()> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // A size of 0 would mean no limit at all.
    let size = size.max(4096);
    // An empty file costs kernel memory but no size: one per KiB is as many as anybody needs.
    let files = (size / 1024).clamp(128, 1 << 20);
    for (key, value) in [
        ("size", size.to_string()),
        ("nr_inodes", files.to_string()),
        ("uid", owner.to_string()),
        ("gid", owner.to_string()),
        ("mode", mode.to_owned()),
    ] {
        rustix::mount::fsconfig_set_string(&context, key, value.as_str())?;
    }
    attach_new(context.as_fd(), target)
}

/// Makes the file system that a context describes, and mounts it as all of a domain's are.
fn attach_new(context: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::mount::fsconfig_create(context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    attach(mount.as_fd(), target)
}

/// Folders of a domain that one mount shows as one; paths in the domain's root.
#[derive(Clone, Debug)]
pub struct Layers {
    /// What is seen where nothing was written: a mount that [`bind`] made, with owners mapped.
    pub lower: PathBuf,
    /// What is written; an empty folder of the domain's user at first, on a disk that no guest reaches.
    pub upper: PathBuf,
    /// The kernel's own, beside it.
    pub work: PathBuf,
}

/// Mounts layers on a path in `root`, making what is missing of the path.
pub(crate) fn overlay(
    root: BorrowedFd<'_>,
    layers: &Layers,
    target: &Path,
    is_one_user_s: bool,
) -> Result<(), HostError> {
    let step = || format!("lay a writable layer over {} in the domain", layers.lower.display());
    let resolved = |path: &Path| resolve(root, &relative(path)?).step(step);
    let (lower, upper, work) =
        (resolved(&layers.lower)?, resolved(&layers.upper)?, resolved(&layers.work)?);
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
    let set = |key: &str, value: &str| {
        rustix::mount::fsconfig_set_string(&context, key, value).step(step)
    };
    for (key, folder) in [("lowerdir", &lower), ("upperdir", &upper), ("workdir", &work)] {
        set(key, &format!("/proc/self/fd/{}", folder.as_raw_fd()))?;
    }
    if is_one_user_s {
        // What the kernel remembers of a file it can write down only where an ordinary user can.
        rustix::mount::fsconfig_set_flag(&context, "userxattr").step(step)?;
    }
    let target = make_target(root, target, true)?;
    attach_new(context.as_fd(), target.as_fd()).step(step)
}

/// Whether something is mounted at a path in `root`.
pub(crate) fn is_mounted(root: BorrowedFd<'_>, target: &Path) -> Result<bool, HostError> {
    let target = relative(target)?;
    let step = || format!("examine {} in the domain", target.display());
    match resolve(root, &target) {
        Ok(found) => is_mount_root(found.as_fd()).step(step),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error).step(step),
    }
}

/// Takes a mount off, with all that is mounted on it, and the empty mount point away. Nothing mounted there: nothing to do.
pub(crate) fn unmount(root: BorrowedFd<'_>, target: &Path) -> Result<(), HostError> {
    let target = relative(target)?;
    let step = || format!("unmount {} in the domain", target.display());
    let mount = match resolve(root, &target) {
        Ok(mount) => mount,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).step(step),
    };
    if is_mount_root(mount.as_fd()).step(step)? {
        let link = format!("/proc/self/fd/{}", mount.as_raw_fd());
        rustix::mount::unmount(&link, UnmountFlags::DETACH).step(step)?;
    }
    drop(mount);
    remove_mount_point(root, &target);
    Ok(())
}

/// As far as it is an empty directory or an empty file; what is left is used again or goes with the domain.
fn remove_mount_point(root: BorrowedFd<'_>, target: &Path) {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else { return };
    let own = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let Ok(parent) = resolve(root, own) else { return };
    if rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) == Err(rustix::io::Errno::NOTDIR)
        && rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|status| status.st_size == 0)
    {
        let _ = rustix::fs::unlinkat(&parent, name, AtFlags::empty());
    }
}

fn relative(target: &Path) -> Result<PathBuf, HostError> {
    let mut path = PathBuf::new();
    for component in target.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(HostError::Invalid(format!(
                    "{} does not name a place in the domain",
                    target.display()
                )));
            }
        }
    }
    if path.as_os_str().is_empty() {
        return Err(HostError::Invalid("the domain's root itself is no mount target".into()));
    }
    Ok(path)
}

/// The mount point: every missing directory is made, step by step, beneath `root` and through no link.
fn make_target(root: BorrowedFd<'_>, target: &Path, directory: bool) -> Result<OwnedFd, HostError> {
    let target = relative(target)?;
    let step = || format!("make the mount point {} in the domain", target.display());
    let mut at = root.try_clone_to_owned().step(step)?;
    let mut names = target.iter().peekable();
    while let Some(name) = names.next() {
        let name = Path::new(name);
        let wants_directory = directory || names.peek().is_some();
        at = match resolve(at.as_fd(), name) {
            Err(rustix::io::Errno::NOENT) => {
                if wants_directory {
                    rustix::fs::mkdirat(&at, name, Mode::from(0o755)).step(step)?;
                } else {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(&at, name, flags | OFlags::WRONLY, Mode::from(0o644))
                        .step(step)?;
                }
                resolve(at.as_fd(), name).step(step)?
            }
            other => other.step(step)?,
        };
    }
    Ok(at)
}
