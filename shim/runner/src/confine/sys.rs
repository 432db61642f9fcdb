//! The system calls of the set-up stage that no safe wrapper has.
//!
//! Absent: any decision.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::thread::UnshareFlags;

/// Leaves namespaces.
pub(super) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "the descriptor table is never unshared");
    // SAFETY: only `FILES` could harm, by closing descriptors under other threads, and it is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Closes every descriptor past standard error but these.
pub(super) fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    numbers.sort_unstable();
    let mut next = 3;
    for number in numbers {
        if number > next {
            close_range(next, number - 1)?;
        }
        next = next.max(number + 1);
    }
    close_range(next, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the process has one thread, which holds no other descriptor than the kept ones: what is closed was inherited
    // by accident and has no owner here.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Any system call with number arguments, for [`super::attempt`]: an attacker's view, after confinement.
pub(super) fn raw(number: libc::c_long, arguments: [usize; 5]) -> io::Result<libc::c_long> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the callers pass zeros, plain numbers, or pointers to NUL-terminated static strings, and the calls write nowhere.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}
