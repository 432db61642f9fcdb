//! From a process born as root, of the machine or of an ordinary user's namespace, to a runner that can do nothing but serve its
//! pods: entered once, before any thread exists.
//!
//! Two stages. With privileges: leave the host's namespaces and make the domain's tree the only `/`. Then every privilege goes:
//! user, groups, capabilities, core dumps, file system beyond `/` (Landlock), system calls beyond a list (seccomp).
//! Absent: the network's set-up and the cgroup, which the agent does from outside (`node/domain`); a PID namespace: it would cost a
//! second process, and a runner sees no other process anyway (no `/proc`, a uid of its own, no `kill`).

pub mod attempt;
mod filter;
mod sys;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use copepod_shim::protocol::layout;
use copepod_shim::stage::{self, Begin, FromRunner, Network, Outside, ToRunner};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, LinkNameSpaceType, Uid, UnshareFlags};

/// What is left in the hands of a confined process.
#[derive(Debug)]
pub struct Confined {
    /// The socket on which agents connect.
    pub listener: UnixListener,
    /// The domain's name.
    pub domain: String,
    /// The way out of an ordinary user's pods, whose network has none.
    pub outside: Option<(Outside, OwnedFd)>,
}

/// The step that failed. The process still has privileges and must end.
#[derive(Debug, thiserror::Error)]
#[error("cannot confine the runner: {step}")]
pub struct ConfineError {
    step: &'static str,
    source: io::Error,
}

trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, ConfineError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, ConfineError> {
        self.map_err(|error| ConfineError { step, source: error.into() })
    }
}

/// Confines this process as the agent at the other end of standard input says.
///
/// # Errors
/// The step that failed, which the agent is told too. The caller ends the process.
pub fn enter() -> Result<Confined, ConfineError> {
    let control = io::stdin().as_fd().try_clone_to_owned().step("take the agent's socket")?;
    match confine(&control) {
        Ok((confined, missing)) => {
            stage::send(&control, &FromRunner::Confined { missing }, &[])
                .step("tell the agent that all is done")?;
            Ok(confined)
        }
        Err(error) => {
            let message = format!("{error}: {}", error.source);
            // The agent may be gone; then nobody is there to be told.
            let _ = stage::send(&control, &FromRunner::Failed { message }, &[]);
            Err(error)
        }
    }
}

fn confine(control: &OwnedFd) -> Result<(Confined, Vec<String>), ConfineError> {
    let (begin, [listener, root, host], extra) = receive_begin(control)?;
    be_alone_in_the_process()?;
    rustix::process::setsid().step("lead a session of its own")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .step("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).step("put /dev/null in place of the agent's socket")?;
    drop(null);
    let needed = [control, &listener, &root, &host];
    let needed: Vec<_> = needed.into_iter().chain(&extra).map(AsFd::as_fd).collect();
    sys::close_all_but(&needed).step("close inherited descriptors")?;

    rustix::thread::move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount))
        .step("enter the host's mount namespace")?;
    drop(host);
    let mut leave = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if begin.network == Network::Own {
        leave |= UnshareFlags::NEWNET;
    }
    if begin.outside.is_some() {
        leave |= UnshareFlags::NEWUSER;
    }
    sys::unshare(leave).step("leave the host's namespaces")?;
    let broker = match (begin.network, extra) {
        (Network::Shared, Some(network)) => {
            let kind = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(network.as_fd(), kind)
                .step("enter the domain's network")?;
            None
        }
        (_, extra) => extra,
    };
    if begin.outside.is_some() {
        be_the_only_user().step("be the one user of a namespace of its own")?;
    }
    stage::send(control, &FromRunner::Unshared, &[]).step("tell the agent of the namespaces")?;
    make_the_only_root(&root, &begin.mount_point)?;
    drop(root);
    rustix::system::sethostname(begin.domain.as_bytes()).step("set the host name")?;

    match stage::receive::<ToRunner>(control).step("wait for the network")? {
        (ToRunner::Proceed, _) => {}
        (ToRunner::Begin(_), _) => {
            return Err(io::Error::from(io::ErrorKind::InvalidData)).step("wait for the network");
        }
    }
    let missing = give_up_everything(&begin)?;
    let outside = begin.outside.zip(broker);
    Ok((Confined { listener: listener.into(), domain: begin.domain, outside }, missing))
}

/// What to become; the listening socket, the root and the host's mount namespace; the broker's socket, or the network to enter.
type Received = (Begin, [OwnedFd; stage::BEGIN_DESCRIPTORS], Option<OwnedFd>);

fn receive_begin(control: &OwnedFd) -> Result<Received, ConfineError> {
    const STEP: &str = "learn from the agent what to become";
    let (message, mut descriptors) = stage::receive::<ToRunner>(control).step(STEP)?;
    let ToRunner::Begin(begin) = message else {
        return Err(io::Error::from(io::ErrorKind::InvalidData)).step(STEP);
    };
    let has_extra = begin.outside.is_some() || begin.network == Network::Shared;
    let extra = if has_extra { descriptors.pop() } else { None };
    let always = descriptors
        .try_into()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
        .step(STEP)?;
    Ok((begin, always, extra))
}

/// What follows changes the calling thread only, so there may be no other.
fn be_alone_in_the_process() -> Result<(), ConfineError> {
    const STEP: &str = "be the only thread";
    let threads = std::fs::read_dir("/proc/self/task").step(STEP)?.count();
    if threads == 1 { Ok(()) } else { Err(io::Error::from(io::ErrorKind::Other)).step(STEP) }
}

/// An ordinary user's runner has the same user as its agent. In a user namespace of its own it is nobody over the agent's mounts and
/// the pods' network, whatever privileges it may come to. No group can be left in there.
fn be_the_only_user() -> io::Result<()> {
    // The one user and the one group of the agent's namespace are 0 there, too.
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", "0 0 1")?;
    std::fs::write("/proc/self/gid_map", "0 0 1")
}

fn make_the_only_root(root: &OwnedFd, mount_point: &str) -> Result<(), ConfineError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).step("cut the host's mounts off")?;
    let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(root, "", CWD, mount_point, from_descriptor)
        .step("attach the domain's tree")?;
    // A slave: what the agent mounts in the tree later arrives here, and nothing goes back.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change(mount_point, slave).step("receive later mounts")?;
    rustix::process::chdir(mount_point).step("enter the domain's tree")?;
    rustix::process::pivot_root(".", ".").step("make the domain's tree the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("let go of the host's tree")?;
    rustix::process::chdir("/").step("enter the new root")
}

fn give_up_everything(begin: &Begin) -> Result<Vec<String>, ConfineError> {
    let files = Rlimit { current: Some(begin.max_files), maximum: Some(begin.max_files) };
    rustix::process::setrlimit(Resource::Nofile, files).step("set the limit of open files")?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).step("forbid core dumps")?;

    rustix::thread::clear_ambient_capability_set().step("clear the ambient capabilities")?;
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The first number that this kernel does not know ends the list.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error).step("empty the capability bounding set"),
        }
    }
    let (uid, gid) = (Uid::from_raw(begin.uid), Gid::from_raw(begin.uid));
    // An ordinary user's namespace lets nobody leave a group.
    if begin.outside.is_none() {
        rustix::thread::set_thread_groups(&[]).step("leave all groups")?;
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid).step("become the domain's group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("become the domain's user")?;
    let empty = CapabilitySet::empty();
    let sets = CapabilitySets { effective: empty, permitted: empty, inheritable: empty };
    rustix::thread::set_capabilities(None, sets).step("drop all capabilities")?;
    rustix::thread::set_no_new_privs(true).step("forbid new privileges")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .step("forbid that others look into this process")?;
    // A huge page for a guest's first byte would cost 2 MiB: measured 72 instead of 27 KiB an instance.
    rustix::thread::disable_transparent_huge_pages(true).step("turn huge pages off")?;

    let mut missing = Vec::new();
    missing.extend(landlock()?);
    filter::install().step("install the system call filter")?;
    Ok(missing)
}

/// Read beneath `/`, write where the layout says so, execute nowhere; no signal and no abstract socket of other domains.
fn landlock() -> Result<Option<String>, ConfineError> {
    const STEP: &str = "restrict the file system by Landlock";
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write: BitFlags<AccessFs> = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::RemoveDir
        | AccessFs::RemoveFile
        | AccessFs::MakeDir
        | AccessFs::MakeReg
        | AccessFs::MakeSym
        | AccessFs::Refer;
    let restrict = || -> Result<RestrictionStatus, Box<dyn std::error::Error + Send + Sync>> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V10))?
            .scope(Scope::AbstractUnixSocket | Scope::Signal)?
            .create()?
            .add_rule(PathBeneath::new(PathFd::new("/")?, read))?;
        for path in [layout::RW, layout::LOGS, layout::MNT, "/state"] {
            rules = rules.add_rule(PathBeneath::new(PathFd::new(path)?, write))?;
        }
        Ok(rules.restrict_self()?)
    };
    let status = restrict().map_err(io::Error::other).step(STEP)?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => Ok(Some("Landlock".into())),
        // What came after version 6 refines what other fences hold as well.
        (_, LandlockStatus::Available { effective_abi, .. }) if effective_abi < ABI::V6 => {
            Ok(Some("the fence around signals and abstract sockets (Landlock version 6)".into()))
        }
        _ => Ok(None),
    }
}
