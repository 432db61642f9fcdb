//! The system calls that no safe wrapper has.
//!
//! Absent: any decision.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags};
use rustix::thread::UnshareFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Leaves namespaces, or stops sharing the working directory with other threads.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "the descriptor table is never unshared");
    // SAFETY: only `FILES` could harm, by closing descriptors under other threads, and it is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// What to change in a mount and all mounts beneath it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MountChange<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MS_PRIVATE`, `MS_SHARED` or 0 for no change.
    pub(crate) propagation: u64,
    /// The user namespace by which owners are mapped, with `MOUNT_ATTR_IDMAP`.
    pub(crate) owners: Option<BorrowedFd<'a>>,
}

/// Changes a mount that a descriptor refers to.
pub(crate) fn change_mount(
    mount: impl AsFd,
    change: MountChange<'_>,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: change.set,
        attr_clr: 0,
        propagation: change.propagation,
        userns_fd: change.owners.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated string, the structure is complete, its size is its own, and both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A user namespace in which user and group `inside` stand for `outside`: for idmapped mounts, nothing ever runs in it.
pub(crate) fn user_namespace(inside: u32, outside: u32) -> io::Result<OwnedFd> {
    // SAFETY: a plain fork of this thread into a new user namespace. The child touches no memory and calls nothing but `pause`
    // and `exit`, which are safe whatever locks other threads held at the fork.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        loop {
            // SAFETY: waits for the parent's SIGKILL.
            unsafe { libc::syscall(libc::SYS_ppoll, 0, 0, 0, 0, 0) };
        }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::Other)?;
    let child = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let number = pid.as_raw_nonzero();
    let map = format!("{inside} {outside} 1");
    let made = std::fs::write(format!("/proc/{number}/uid_map"), &map)
        .and_then(|()| std::fs::write(format!("/proc/{number}/gid_map"), &map))
        .and_then(|()| std::fs::File::open(format!("/proc/{number}/ns/user")));
    let _ = rustix::process::pidfd_send_signal(&child, rustix::process::Signal::KILL);
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(child.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    made.map(OwnedFd::from)
}

/// Watches a descriptor of a process, which becomes readable when the process ends.
pub(crate) fn watch(process: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one open descriptor, always the same, until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }?)
}

/// The version of Landlock that this kernel has, if any.
pub(crate) fn landlock_version() -> Option<u32> {
    // SAFETY: with this flag (LANDLOCK_CREATE_RULESET_VERSION) the call reads no memory and answers a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
    u32::try_from(version).ok()
}
