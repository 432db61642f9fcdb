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

/// Makes a process's new user namespace one in which its own user and group, and nobody else, is 0.
pub(crate) fn map_one_user(process: &str, uid: u32, gid: u32) -> io::Result<()> {
    // An ordinary user may map a group only where nobody can leave one: a group can also be what a file is closed to.
    std::fs::write(format!("/proc/{process}/setgroups"), "deny")?;
    std::fs::write(format!("/proc/{process}/uid_map"), format!("0 {uid} 1"))?;
    std::fs::write(format!("/proc/{process}/gid_map"), format!("0 {gid} 1"))
}

/// Has a socket send and receive through one link only, by its number. Only root can take that back.
pub(crate) fn bind_to_link(socket: impl AsFd, link: u32) -> io::Result<()> {
    let link = libc::c_int::try_from(link).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open while `socket` is borrowed, and the option is one `int`, of which pointer and size are given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            (&raw const link).cast(),
            size_of_val(&link) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Tries, in a process of its own, what an ordinary user's pods stand on: mounts and a network in a new user namespace.
pub(crate) fn try_ground_of_a_user() -> io::Result<()> {
    // SAFETY: as in `user_namespace`; this child also leaves its namespaces and looks at its own errno, which take no lock either.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: this process has one thread, and both calls take numbers alone. The second does not return.
        unsafe {
            let left = libc::syscall(libc::SYS_unshare, libc::CLONE_NEWNS | libc::CLONE_NEWNET);
            libc::syscall(
                libc::SYS_exit_group,
                if left == 0 { 0 } else { *libc::__errno_location() },
            );
        }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::Other)?;
    let ended = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
    match ended.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error)),
        None => Err(io::ErrorKind::Other.into()),
    }
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
