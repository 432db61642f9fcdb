//! The ground that an ordinary user's pods stand on: a user namespace in which this user is root over mounts and networks of its own.
//!
//! ```text
//! host's user namespace, this user        the broker: host's network and mounts, keeps the namespaces
//!  └ user namespace: 0 = this user        the agent: own mounts, host's network
//!     └ the pods' network namespace       one link to each domain; no way out
//! ```
//! The agent stays in the host's network, so that it pulls images and opens published ports as any program of the user does.
//! Absent: users of their own for domains, cgroups, masquerade and settings of the machine, which only root has.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use copepod_shim::broker::{self, Ask, NAMESPACES, Told};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::broker::socket_path;
use crate::error::{HostError, Step};
use crate::mounts;
use crate::netlink::{Change, Netlink};
use crate::network::LOOPBACK;
use crate::sys;

/// What is lost for an ordinary user, in a sentence.
pub(crate) const LOST: &str = "not root: all domains run as this one user, without a cgroup, and pods reach the world through a \
     broker; a pod's limits are kept by its runner alone";

/// The broker answers at once; this long only a stopped one takes.
const ANSWER: Duration = Duration::from_secs(10);

/// An ordinary user's ground, entered by the calling thread.
#[derive(Debug)]
pub(crate) struct Ground {
    /// The mount namespace as the host's mounts are, for runners to start from.
    pub(crate) host: OwnedFd,
    /// The pods' network namespace.
    pub(crate) network: OwnedFd,
    broker: Mutex<OwnedFd>,
}

impl Ground {
    /// Enters the namespaces that the data directory's broker keeps, or makes them and has them kept.
    ///
    /// To be called while the process has one thread: the kernel moves no other into a user namespace.
    pub(crate) fn enter(
        data: &Path,
        program: &Path,
        arguments: &[String],
    ) -> Result<Self, HostError> {
        let mut broker = reach_broker(data, program, arguments)?;
        let answered = ask(&broker, Ask::Namespaces, &[]).or_else(|_| {
            // It was about to go, as its last client had, when we came.
            broker = reach_broker(data, program, arguments)?;
            ask(&broker, Ask::Namespaces, &[])
        });
        let (told, kept) = answered?;
        let (host, network) = match <[OwnedFd; NAMESPACES]>::try_from(kept) {
            Ok([user, host, own, network]) if told == Told::Namespaces => {
                let kind = Some(LinkNameSpaceType::User);
                rustix::thread::move_into_link_name_space(user.as_fd(), kind)
                    .step(|| "enter the user namespace of this data directory".into())?;
                mounts::enter_namespace(own.as_fd())?;
                (host, network)
            }
            _ => make(data, &broker)?,
        };
        Ok(Self { host, network, broker: Mutex::new(broker) })
    }

    /// The socket on which a new runner asks the broker.
    pub(crate) fn socket_of_runner(&self) -> Result<OwnedFd, HostError> {
        let (runners, brokers) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .step(|| "make a pair of sockets".into())?;
        let broker = self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        ask(&broker, Ask::Serve, &[brokers.as_fd()])?;
        Ok(runners)
    }
}

/// A connection to the broker, which is started where none is at work.
fn reach_broker(data: &Path, program: &Path, arguments: &[String]) -> Result<OwnedFd, HostError> {
    let path = socket_path(data);
    let step = || format!("reach the broker at {}", path.display());
    // The path of a socket has room for 107 bytes; a descriptor's path is always short.
    let directory = mounts::open_path(data)?;
    let short = format!("/proc/self/fd/{}/broker.sock", directory.as_raw_fd());
    match connect(&short) {
        Err(Errno::NOENT | Errno::CONNREFUSED) => {}
        other => return other.step(step),
    }
    // Under the agent's lock there is no other that could start one.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).step(step),
        _ => {}
    }
    let listener = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .step(step)?;
    let address = SocketAddrUnix::new(&short).step(step)?;
    rustix::net::bind(&listener, &address).step(step)?;
    rustix::net::listen(&listener, 16).step(step)?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").stdin(Stdio::from(listener)).stdout(Stdio::null());
    // It ends by itself; whoever is its parent then reaps it.
    command.spawn().map(drop).step(|| format!("start {}", program.display()))?;
    connect(&short).step(step)
}

fn connect(path: &str) -> rustix::io::Result<OwnedFd> {
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(kind.0, kind.1, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(ANSWER))?;
    Ok(socket)
}

fn ask(
    broker: &OwnedFd,
    question: Ask,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(Told, Vec<OwnedFd>), HostError> {
    broker::ask(broker, question, descriptors)
        .step(|| "ask the broker of this data directory".into())
}

/// Makes the namespaces, moves the calling thread into all but the network, and has them kept; the host's mounts and the network
/// come back.
fn make(data: &Path, broker: &OwnedFd) -> Result<(OwnedFd, OwnedFd), HostError> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(|e| forbidden(e.into()))?;
    sys::map_one_user("self", uid.as_raw(), gid.as_raw()).map_err(forbidden)?;
    let namespace = |kind: &str| -> Result<OwnedFd, HostError> {
        let path = format!("/proc/thread-self/ns/{kind}");
        Ok(OwnedFd::from(File::open(&path).step(|| format!("open {path}"))?))
    };
    let (user, host) = (namespace("user")?, namespace("mnt")?);
    let own = mounts::make_namespace(data).map_err(|error| match error {
        // AppArmor lets the namespace be made, and then allows nothing in it.
        HostError::Failed { source, .. } if is_refusal(&source) => forbidden(source),
        other => other,
    })?;
    let network = mounts::on_a_thread(move || {
        let step = || "make a network for the pods".to_owned();
        sys::unshare(UnshareFlags::NEWNET).step(step)?;
        Netlink::open()
            .and_then(|mut links| links.apply(&[Change::set_up(LOOPBACK)]))
            .step(step)?;
        Ok(OwnedFd::from(File::open("/proc/thread-self/ns/net").step(step)?))
    })?;
    let kept = [user.as_fd(), host.as_fd(), own.as_fd(), network.as_fd()];
    ask(broker, Ask::Keep, &kept)?;
    Ok((host, network))
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// The error of a machine that lets this user make no namespaces, with the setting that says so.
fn forbidden(error: io::Error) -> HostError {
    HostError::Unsupported {
        what: format!("running pods as an ordinary user ({error})"),
        remedy: format!("{}; or run as root", remedy(&|file| fs::read_to_string(file).ok())),
    }
}

/// What forbids user namespaces here, and how it is changed. Pure but for `read`.
pub(crate) fn remedy(read: &dyn Fn(&str) -> Option<String>) -> String {
    let is = |file: &str, value: &str| read(file).is_some_and(|text| text.trim() == value);
    if is("/proc/sys/user/max_user_namespaces", "0") {
        return "user namespaces are forbidden here by user.max_user_namespaces=0; root allows them with sysctl \
                user.max_user_namespaces=10000"
            .into();
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return "user namespaces are forbidden to ordinary users by kernel.unprivileged_userns_clone=0; root allows them with \
                sysctl kernel.unprivileged_userns_clone=1"
            .into();
    }
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        return "AppArmor restricts user namespaces of ordinary users \
                (kernel.apparmor_restrict_unprivileged_userns=1); root allows them with sysctl \
                kernel.apparmor_restrict_unprivileged_userns=0, or by an AppArmor profile for copepod with the rule userns"
            .into();
    }
    let filtered = read("/proc/self/status").is_some_and(|status| {
        status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"]))
    });
    if filtered {
        return "a seccomp filter, probably a container's, forbids user namespaces: start the container with a profile that \
                allows unshare"
            .into();
    }
    "the kernel allows this user no user namespace: it may have too many (user.max_user_namespaces), or be built without \
     CONFIG_USER_NS"
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_user_namespaces_is_told_by_the_name_of_its_setting() {
        let table = [
            ("/proc/sys/user/max_user_namespaces", "0\n", "user.max_user_namespaces=0"),
            ("/proc/sys/kernel/unprivileged_userns_clone", "0\n", "unprivileged_userns_clone=0"),
            (
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1\n",
                "kernel.apparmor_restrict_unprivileged_userns=1",
            ),
            ("/proc/self/status", "Name:\tx\nSeccomp:\t2\n", "seccomp"),
            ("/none", "", "CONFIG_USER_NS"),
        ];

        for (file, text, named) in table {
            let told = remedy(&|asked| (asked == file).then(|| text.to_owned()));
            assert!(told.contains(named), "{file}: {told}");
        }
    }
}
