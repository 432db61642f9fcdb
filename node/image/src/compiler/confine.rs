//! What the compile child takes from itself before it reads a byte of the module.
//!
//! Limits, an empty network, another user, and a list of the only system calls left: it can open no file, make no socket and
//! start no program. Absent: a cgroup. The child is one process, and its own limits say all that one would.

#![allow(unsafe_code)] // One call of unshare.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use copepod_shim::filters::{Filters, always};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Uid, setpriority_process, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::Limits;

/// Linux's `nobody`.
const NOBODY: u32 = 65534;
/// The largest file of code: what a module at the memory limit could come to.
const MAX_CODE: u64 = 4 << 30;

/// Confines this process, which must have one thread.
pub(super) fn enter(limits: &Limits) -> Result<(), String> {
    let told =
        |what: &'static str| move |error: rustix::io::Errno| format!("cannot {what}: {error}");
    let limit = |resource, soft: u64, hard: u64| {
        setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) })
    };
    // The signal at the soft limit tells the parent which limit it was; the hard one holds if that is not enough.
    limit(Resource::Cpu, limits.cpu_seconds, limits.cpu_seconds + 5)
        .map_err(told("limit CPU time"))?;
    limit(Resource::As, limits.memory_bytes, limits.memory_bytes).map_err(told("limit memory"))?;
    limit(Resource::Core, 0, 0).map_err(told("forbid core files"))?;
    limit(Resource::Fsize, MAX_CODE, MAX_CODE).map_err(told("limit the code's size"))?;
    limit(Resource::Nofile, 16, 16).map_err(told("limit open files"))?;
    // Guests come first. Where it is refused, the compile is only less polite.
    let _ = setpriority_process(None, 10);
    std::env::set_current_dir("/").map_err(|error| format!("cannot go to /: {error}"))?;

    if rustix::process::geteuid().is_root() && !is_the_only_user() {
        // SAFETY: descriptors are not unshared, and there is one thread.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWIPC) }
            .map_err(told("leave the network"))?;
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_groups(&[]).map_err(told("drop groups"))?;
        set_thread_res_gid(gid, gid, gid).map_err(told("change the group"))?;
        set_thread_res_uid(uid, uid, uid).map_err(told("change the user"))?;
    } else {
        // Some systems forbid user namespaces. Then the list of system calls alone keeps the network away.
        // SAFETY: as above.
        let _ =
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) };
        // A new user namespace comes with every capability in it.
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).map_err(told("drop capabilities"))?;
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(told("forbid being traced"))?;
    set_no_new_privs(true).map_err(told("give up privileges"))?;
    filter().map_err(|error| format!("cannot install the list of system calls: {error}"))?;
    die_with_parent().map_err(|error| format!("cannot watch the parent: {error}"))
}

/// Whether this is the root of an ordinary user's namespace, in which nobody else is and no group can be left.
fn is_the_only_user() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

/// The report's pipe breaks when the agent dies: then nobody wants the code. (`PR_SET_PDEATHSIG` would fire when the
/// agent's *thread* ends that started us.)
fn die_with_parent() -> io::Result<()> {
    let report = io::stderr().as_fd().try_clone_to_owned()?;
    std::thread::Builder::new().name("parent".into()).stack_size(64 << 10).spawn(move || {
        loop {
            let mut watched = [PollFd::new(&report, PollFlags::empty())];
            if poll(&mut watched, None).is_ok() {
                std::process::exit(1);
            }
        }
    })?;
    Ok(())
}

/// CPU time of all threads so far.
pub(super) fn cpu_millis() -> u64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(used).map_or(0, |used| u64::try_from(used.as_millis()).unwrap_or(u64::MAX))
}

/// What a compiler needs once it is started: memory, threads, time, and the descriptors that are open.
const ALLOWED: [libc::c_long; 40] = [
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_prlimit64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
];

fn filter() -> Result<(), seccompiler::Error> {
    let only_if = |index, operator, value| -> Result<Vec<SeccompRule>, seccompiler::Error> {
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    };
    let is_clear = |bits: libc::c_int| SeccompCmpOp::MaskedEq(bits.unsigned_abs().into());
    let mut rules = always(&ALLOWED);
    // Nothing here runs the code it makes.
    rules.insert(libc::SYS_mmap, only_if(2, is_clear(libc::PROT_EXEC), 0)?);
    rules.insert(libc::SYS_mprotect, only_if(2, is_clear(libc::PROT_EXEC), 0)?);
    // Threads, no processes.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    rules.insert(libc::SYS_clone, only_if(0, SeccompCmpOp::MaskedEq(thread), thread)?);
    // A thread's name, and nothing else of prctl.
    rules.insert(
        libc::SYS_prctl,
        only_if(0, SeccompCmpOp::Eq, libc::PR_SET_NAME.unsigned_abs().into())?,
    );
    // abort() signals its own process.
    rules.insert(libc::SYS_tgkill, only_if(0, SeccompCmpOp::Eq, std::process::id().into())?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_poll, Vec::new());
    // glibc learns of clone's flags from the older call only if the newer, whose flags no filter can see, is "unknown".
    Filters::new(&[libc::SYS_clone3], rules)?.install()
}
