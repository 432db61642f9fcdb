//! The system calls that a runner may make: what wasmtime, tokio and hyper need to serve, and nothing that starts, traces or mounts.
//!
//! Absent: what other fences hold (files: Landlock and the mount namespace; addresses: the agent's routes).

use std::io;

use copepod_shim::filters::{Filters, Rules, always};
use libc::c_long;
use seccompiler::{SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompRule};

/// Answered as if the kernel were too old, which makes callers fall back: glibc from `clone3`, whose flags a filter cannot
/// see, to `clone`; wasmtime from a memfd to a copy of the file's own mapping.
const UNKNOWN: &[c_long] = &[libc::SYS_clone3, libc::SYS_memfd_create];

/// Allowed whatever the arguments.
const ALLOWED: &[c_long] = &[
    // Decided by the other filter.
    libc::SYS_clone3,
    libc::SYS_memfd_create,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    // Threads and time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_signalfd4,
    // Descriptors and files.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets, once made.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// The older forms of calls above, which this architecture's C library still makes.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_access,
    libc::SYS_chmod,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[libc::SYS_accept];

/// Asks for one's own auxiliary vector; `libc` has the number for Android only.
const PR_GET_AUXV: i32 = 0x4155_5856;

/// Installs both filters, for every thread to come.
pub(super) fn install() -> io::Result<()> {
    let filters = filters(std::process::id()).map_err(io::Error::other)?;
    filters.install().map_err(io::Error::other)
}

fn filters(own_pid: u32) -> Result<Filters, seccompiler::Error> {
    let mut allowed = always(ALLOWED);
    allowed.extend(always(OLDER));
    allowed.extend(judged_by_argument(own_pid)?);
    Filters::new(UNKNOWN, allowed)
}

fn judged_by_argument(own_pid: u32) -> Result<Rules, seccompiler::Error> {
    let is = |argument: u8, value: i32| {
        SeccompCondition::new(argument, Len::Dword, Op::Eq, u64::from(value.cast_unsigned()))
    };
    let masked = |argument: u8, mask: i32, value: i32| {
        let (mask, value) = (u64::from(mask.cast_unsigned()), u64::from(value.cast_unsigned()));
        SeccompCondition::new(argument, Len::Dword, Op::MaskedEq(mask), value)
    };
    let mut rules = Rules::new();

    // TCP and UDP; no raw, packet, netlink or other socket, and no protocol beside the two.
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in
            [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)]
        {
            for protocol in [0, protocol] {
                sockets.push(SeccompRule::new(vec![
                    is(0, family)?,
                    // The low four bits are the kind; above them are CLOEXEC and NONBLOCK.
                    masked(1, 0xf, kind)?,
                    is(2, protocol)?,
                ])?);
            }
        }
    }
    sockets.push(SeccompRule::new(vec![is(0, libc::AF_UNIX)?])?);
    rules.insert(libc::SYS_socket, sockets);
    let pair = SeccompRule::new(vec![is(0, libc::AF_UNIX)?])?;
    rules.insert(libc::SYS_socketpair, vec![pair]);

    // A thread of this process, never another process.
    let thread = SeccompRule::new(vec![masked(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?])?;
    rules.insert(libc::SYS_clone, vec![thread]);

    // A signal to oneself: `abort`.
    let pid = i32::try_from(own_pid).unwrap_or(i32::MAX);
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![is(0, pid)?])?]);

    // Reading one's own limits, not setting any.
    let read_own =
        SeccompRule::new(vec![is(0, 0)?, SeccompCondition::new(2, Len::Qword, Op::Eq, 0)?])?;
    rules.insert(libc::SYS_prlimit64, vec![read_own]);

    // Names of threads and of memory regions; what the CPU can do, as the kernel told this process at its start.
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA, PR_GET_AUXV];
    let names: Result<Vec<_>, _> =
        names.iter().map(|&name| SeccompRule::new(vec![is(0, name)?])).collect();
    rules.insert(libc::SYS_prctl, names?);

    // How much is there to read; blocking or not.
    let asks = [libc::FIONREAD, libc::FIONBIO, libc::FIOCLEX];
    let mut ioctls = Vec::new();
    for ask in asks {
        let value = SeccompCondition::new(1, Len::Dword, Op::Eq, ask)?;
        ioctls.push(SeccompRule::new(vec![value])?);
    }
    rules.insert(libc::SYS_ioctl, ioctls);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_starts_traces_or_mounts_is_on_no_list() {
        let never = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_keyctl,
            libc::SYS_kill,
            libc::SYS_pidfd_open,
            libc::SYS_setresuid,
            libc::SYS_mknodat,
        ];

        let judged = judged_by_argument(1).expect("the rules are well formed");

        for call in never {
            assert!(!ALLOWED.contains(&call) && !OLDER.contains(&call), "{call} is allowed");
            assert!(!judged.contains_key(&call), "{call} is judged");
        }
    }

    #[test]
    fn the_rules_are_well_formed() {
        filters(7).expect("they compile");
    }
}
