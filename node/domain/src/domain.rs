//! One domain: a runner and the fences around it, from its birth to the last of its files.
//!
//! Absent: what the agent and the runner talk about once it serves (`copepod_shim::protocol`).

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use copepod_shim::stage::{self, Begin, FromRunner, Outside, ToRunner};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

mod heir;

pub use self::heir::Heir;
use crate::authorities;
pub use crate::cgroup::{Limits, Usage};
use crate::error::{HostError, Step};
use crate::host::{Inner, blocking};
use crate::mounts::{self, BindMount, Layers, Source};
use crate::names::DomainId;
use crate::netlink::Change;
use crate::network::{self, Link};
use crate::sys;
use crate::tree::{self, Record, RunnerRecord, Tree};
use crate::user;

/// How long each step of a runner's birth may take; hundreds start at once on a machine that comes up.
const BIRTH: Duration = Duration::from_secs(30);

/// How long the kernel may take to end a process that was killed.
const DEATH: Duration = Duration::from_secs(30);

/// Most bytes of a runner's own words, by the size of the tmpfs that they are on.
const LOG_BYTES: u64 = 256 << 10;

/// In which network a domain lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// One of its own.
    Own,
    /// The host's: for pods that ask for `hostNetwork`.
    Host,
}

/// What a domain is to be.
#[derive(Clone, Debug)]
pub struct DomainSpec {
    /// Its name.
    pub id: DomainId,
    /// The runner's program.
    pub program: PathBuf,
    /// Arguments of the program; none for an ordinary runner.
    pub arguments: Vec<String>,
    /// The directory of compiled code, seen as `/code`.
    pub code: PathBuf,
    /// What the kernel holds it to.
    pub limits: Limits,
    /// Its network.
    pub network: Network,
}

/// A domain that lives. Clones share it.
#[derive(Clone, Debug)]
pub struct Domain {
    inner: Arc<Shared>,
}

/// What was found of an earlier agent's domain.
#[derive(Debug)]
pub enum Adopted {
    /// Its runner lives.
    Alive(Domain),
    /// Its runner is gone, or is not the process that it was: to be removed.
    Dead,
}

#[derive(Debug)]
struct Shared {
    host: Arc<Inner>,
    id: DomainId,
    tree: Tree,
    uid: u32,
    process: OwnedFd,
    pid: Pid,
    program: PathBuf,
    socket: &'static str,
    root: OwnedFd,
    root_path: PathBuf,
    link: Option<Arc<Mutex<Link>>>,
    owners: OnceLock<OwnedFd>,
    missing: Vec<String>,
}

impl Domain {
    /// Its name.
    pub fn id(&self) -> &DomainId {
        &self.inner.id
    }

    /// A new connection to the runner. It may have to wait for the runner: not for async code.
    ///
    /// # Errors
    /// The socket's.
    pub fn connect(&self) -> io::Result<UnixStream> {
        // The path of a socket has room for 107 bytes; a descriptor's path is always short.
        let directory = mounts::open_path(&self.inner.tree.directory).map_err(io::Error::other)?;
        UnixStream::connect(format!(
            "/proc/self/fd/{}/{}",
            directory.as_raw_fd(),
            self.inner.socket
        ))
    }

    /// Starts a second runner in this one's tree, network and cgroup, under its user, which can take over what this one serves.
    ///
    /// # Errors
    /// An ordinary user's runner can have none; a step that failed, with nothing changed.
    pub async fn start_heir(&self, spec: DomainSpec) -> Result<Heir, HostError> {
        let ancestor = self.clone();
        blocking(move || heir::start(&ancestor, &spec)).await
    }

    /// The directory that is the runner's `/`.
    pub fn root(&self) -> &Path {
        &self.inner.root_path
    }

    /// The runner's process; readable once it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.inner.process.as_fd()
    }

    /// The runner's number, for messages.
    pub fn pid(&self) -> i32 {
        self.inner.pid.as_raw_nonzero().get()
    }

    /// The program that the runner was started from, with no link in its path; also where its file is gone since.
    pub fn program(&self) -> &Path {
        &self.inner.program
    }

    /// The user and group that the runner has, and nobody else; under an ordinary user's agent, all runners and the agent.
    pub fn uid(&self) -> u32 {
        self.inner.uid
    }

    /// Where the runner's own words are, panics above all.
    pub fn log_path(&self) -> PathBuf {
        self.inner.tree.log()
    }

    /// What this kernel could not enforce on the runner.
    pub fn missing(&self) -> &[String] {
        &self.inner.missing
    }

    /// Ends the runner at once, without waiting for it; whoever is connected to it hears of it.
    pub fn kill(&self) {
        if let Err(error) = rustix::process::pidfd_send_signal(self.pidfd(), Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(domain = %self.inner.id, %error, "a runner cannot be killed");
        }
    }

    /// Waits until the runner has ended.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub async fn ended(&self) -> io::Result<()> {
        let process = self.inner.process.try_clone()?;
        sys::watch(process)?.readable().await?.retain_ready();
        reap(self.inner.process.as_fd());
        Ok(())
    }

    /// Makes addresses the domain's.
    ///
    /// # Errors
    /// One is not of the data directory's blocks; the domain lives in the host's network; a step that failed.
    pub async fn add_addresses(&self, addresses: &[IpAddr]) -> Result<(), HostError> {
        self.with_link(addresses, Link::add).await
    }

    /// Takes addresses from it; also such as it has not.
    ///
    /// # Errors
    /// As for [`Domain::add_addresses`].
    pub async fn remove_addresses(&self, addresses: &[IpAddr]) -> Result<(), HostError> {
        self.with_link(addresses, Link::remove).await
    }

    async fn with_link(
        &self,
        addresses: &[IpAddr],
        change: fn(&mut Link, &mut crate::netlink::Netlink, &[IpAddr]) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        let (shared, addresses) = (self.inner.clone(), addresses.to_owned());
        let blocks = shared.host.blocks;
        if let Some(foreign) = addresses.iter().find(|address| !blocks.has_for_pods(**address)) {
            return Err(HostError::Invalid(format!("{foreign} is no pod's address in {blocks}")));
        }
        blocking(move || {
            let Some(link) = &shared.link else {
                return Err(HostError::Invalid(
                    "a domain in the host's network has no addresses of its own".into(),
                ));
            };
            let mut link = link.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut link, &mut shared.host.netlink(), &addresses)
        })
        .await
    }

    /// Shows something of the host in the domain; the runner sees it at once.
    ///
    /// # Errors
    /// A link on the way to the source or the target; owners that this file system cannot map ([`HostError::NoIdmap`]); a step that failed.
    pub async fn mount(&self, mount: BindMount) -> Result<(), HostError> {
        let shared = self.inner.clone();
        blocking(move || {
            let BindMount { source, target, read_only, idmap } = mount;
            let mut attributes = mounts::PLAIN;
            if read_only {
                attributes |= libc::MOUNT_ATTR_RDONLY;
            }
            // Where there is one user only, owners are what they are.
            let maps = idmap && shared.host.user.is_none();
            let owners = if maps { Some(shared.owners()?) } else { None };
            mounts::bind(shared.root.as_fd(), source, &target, attributes, owners)
        })
        .await
    }

    /// Whether a directory of the host is what is mounted at this place of the domain.
    ///
    /// # Errors
    /// Either cannot be examined.
    pub fn shows(&self, source: &Path, target: &Path) -> io::Result<bool> {
        let here = match fs::symlink_metadata(self.inner.root_path.join(target)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            here => here?,
        };
        let there = fs::symlink_metadata(source)?;
        Ok((here.dev(), here.ino()) == (there.dev(), there.ino()))
    }

    /// Mounts a new, empty tmpfs of at most `size` bytes, writable by the runner.
    ///
    /// # Errors
    /// As for [`Domain::mount`].
    pub async fn mount_tmpfs(&self, target: &Path, size: u64) -> Result<(), HostError> {
        let (shared, target) = (self.inner.clone(), target.to_owned());
        blocking(move || mounts::tmpfs(shared.root.as_fd(), &target, size, shared.uid, "0777"))
            .await
    }

    /// Mounts a layer that the runner writes to over one that it only reads, unless something is mounted there already.
    ///
    /// # Errors
    /// As for [`Domain::mount`]; and where the data directory's file system cannot be written to in this way (another overlay, a network's).
    pub async fn mount_layers(&self, layers: Layers, target: &Path) -> Result<(), HostError> {
        let (shared, target) = (self.inner.clone(), target.to_owned());
        blocking(move || {
            if mounts::is_mounted(shared.root.as_fd(), &target)? {
                return Ok(());
            }
            let is_one_user_s = shared.host.user.is_some();
            mounts::overlay(shared.root.as_fd(), &layers, &target, is_one_user_s)
        })
        .await
    }

    /// Takes a mount off; nothing mounted there is no error.
    ///
    /// # Errors
    /// A link on the way to the target; a step that failed.
    pub async fn unmount(&self, target: &Path) -> Result<(), HostError> {
        let (shared, target) = (self.inner.clone(), target.to_owned());
        blocking(move || mounts::unmount(shared.root.as_fd(), &target)).await
    }

    /// Changes the most memory of the domain; none: the machine's.
    ///
    /// # Errors
    /// The kernel's: `EBUSY` where more is in use.
    pub async fn set_memory_max(&self, bytes: Option<u64>) -> Result<(), HostError> {
        let shared = self.inner.clone();
        blocking(move || {
            let step = || format!("limit the memory of domain {}", shared.id);
            shared.host.cgroups.set_memory(shared.id.as_str(), bytes).step(step)
        })
        .await
    }

    /// What the domain has used.
    ///
    /// # Errors
    /// The file system's.
    pub fn usage(&self) -> Result<Usage, HostError> {
        let step = || format!("read what domain {} uses", self.inner.id);
        self.inner.host.cgroups.usage(self.inner.id.as_str()).step(step)
    }
}

impl Shared {
    fn owners(&self) -> Result<BorrowedFd<'_>, HostError> {
        if let Some(owners) = self.owners.get() {
            return Ok(owners.as_fd());
        }
        let made = sys::user_namespace(0, self.uid).step(|| "make a map of owners".into())?;
        Ok(self.owners.get_or_init(|| made).as_fd())
    }
}

pub(crate) fn start(host: &Arc<Inner>, spec: &DomainSpec) -> Result<Domain, HostError> {
    if let Adopted::Alive(_) = adopt(host, &spec.id)? {
        return Err(HostError::Invalid(format!("domain {} runs already", spec.id)));
    }
    let predecessor = unplug(host, &spec.id)?;
    let keep = predecessor.is_some();
    start_new(host, spec, predecessor).inspect_err(|_| {
        let undone =
            if keep { unplug(host, &spec.id).map(drop) } else { remove(host, &spec.id) };
        if let Err(error) = undone {
            tracing::warn!(domain = %spec.id, %error, "what a failed start left behind is not removed");
        }
    })
}

/// Starts a runner in a tree of its own, or in the one that a dead predecessor left: with its user, exit records and volumes.
fn start_new(
    host: &Arc<Inner>,
    spec: &DomainSpec,
    predecessor: Option<Record>,
) -> Result<Domain, HostError> {
    let tree = Tree::new(&host.data, spec.id.as_str());
    let own_network = spec.network == Network::Own;
    let mut record = predecessor.map(|record| Record { own_network, runner: None, ..record });
    let fresh = record.is_none();
    let mut reserve = |index, uid| {
        let step = || format!("make {}", tree.directory.display());
        fs::create_dir(&tree.directory).step(step)?;
        let reserved = Record { index, uid, own_network, runner: None };
        tree.write_record(&reserved)?;
        record = Some(reserved);
        Ok(())
    };
    if fresh {
        host.reserve(&mut reserve)?;
    }
    let Some(mut record) = record else {
        return Err(HostError::Exhausted("number for another domain"));
    };
    tree.make(record.uid)?;
    // Before the root is a mount: links do not reach from one mount into another.
    if let Err(error) = authorities::lay(&host.data, &tree.root().join("ro")) {
        tracing::warn!(domain = %spec.id, %error, "guests' https requests will find no authorities to trust");
    }
    let root = mounts::make_shared_root(&tree.root())?;
    show_code(&root, &spec.code)?;
    let log_directory = mounts::open_path(&tree.log_directory())?;
    mounts::attach_tmpfs(log_directory.as_fd(), LOG_BYTES, 0, "0700")
        .step(|| "bound the runner's own log".into())?;
    host.cgroups
        .create(spec.id.as_str(), spec.limits)
        .step(|| format!("make the cgroup of domain {}", spec.id))?;
    // A fresh descriptor of the mount as it now stands in the tree.
    let root = mounts::open_path(&tree.root())?;
    let network = if own_network { stage::Network::Own } else { stage::Network::Host };
    let born = bear(host, spec, &tree, &mut record, &root, Ancestry { network, from: None })?;
    Ok(born.into_domain(host, spec.id.clone(), tree, record.uid, root))
}

/// Shows an engine's code in a tree, under the engine's hash.
fn show_code(root: &OwnedFd, code: &Path) -> Result<(), HostError> {
    let target = code_target(code)?;
    let source = Source::Beneath { root: code.to_owned(), path: PathBuf::new() };
    mounts::bind(root.as_fd(), source, &target, mounts::CODE, None)
}

fn code_target(code: &Path) -> Result<PathBuf, HostError> {
    let engine = code.file_name();
    let engine = engine
        .ok_or_else(|| HostError::Invalid(format!("{} is no folder of code", code.display())))?;
    Ok(Path::new("code").join(engine))
}

/// Where a new runner lives.
struct Ancestry<'a> {
    network: stage::Network,
    /// The network of the runner that it is to take over from, and whose place on record it has not taken yet.
    from: Option<BorrowedFd<'a>>,
}

/// A runner that serves, and is not known by anybody yet.
struct Born {
    process: OwnedFd,
    pid: Pid,
    program: PathBuf,
    socket: &'static str,
    link: Option<Arc<Mutex<Link>>>,
    missing: Vec<String>,
}

impl Born {
    fn into_domain(
        self,
        host: &Arc<Inner>,
        id: DomainId,
        tree: Tree,
        uid: u32,
        root: OwnedFd,
    ) -> Domain {
        let Self { process, pid, program, socket, link, missing } = self;
        let shared = Shared {
            host: host.clone(),
            id,
            root_path: tree.root(),
            tree,
            uid,
            process,
            pid,
            program,
            socket,
            root,
            link,
            owners: OnceLock::new(),
            missing,
        };
        Domain { inner: Arc::new(shared) }
    }
}

/// Starts a runner's process in a tree that is ready for it, and makes it what it is to be.
fn bear(
    host: &Inner,
    spec: &DomainSpec,
    tree: &Tree,
    record: &mut Record,
    root: &OwnedFd,
    ancestry: Ancestry<'_>,
) -> Result<Born, HostError> {
    let socket = tree::next_socket(record.runner.as_ref().map(|runner| &*runner.socket));
    let listener = listen(tree, socket)?;
    let (control, theirs) = control_sockets().step(|| "make a pair of sockets".into())?;
    let child = spawn(spec, tree, theirs)?;
    let pid = child_pid(&child)?;
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .step(|| "watch the runner's process".into())?;
    // Dropping it neither ends nor reaps the process; its descriptor does both.
    drop(child);
    let birth = Birth { host, spec, tree, control, process: process.as_fd(), pid, socket };
    let finished = birth.go_through(record, root, &listener, ancestry);
    let (link, missing) = finished.inspect_err(|_| end(process.as_fd()))?;
    let program =
        record.runner.as_ref().map_or_else(|| spec.program.clone(), |it| it.program.clone());
    let link = link.map(|link| Arc::new(Mutex::new(link)));
    Ok(Born { process, pid, program, socket, link, missing })
}

/// The pair over which a runner is told what to become: messages, not bytes, and never an endless wait on our side.
fn control_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_timeout(&ours, Timeout::Recv, Some(BIRTH))?;
    sockopt::set_socket_timeout(&ours, Timeout::Send, Some(BIRTH))?;
    Ok((ours, theirs))
}

fn listen(tree: &Tree, name: &str) -> Result<UnixListener, HostError> {
    let step = || format!("listen on {}", tree.socket(name).display());
    // Of a runner that ended before it took over.
    remove_socket(tree, name)?;
    let directory = mounts::open_path(&tree.directory)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())).step(step)
}

fn remove_socket(tree: &Tree, name: &str) -> Result<(), HostError> {
    match fs::remove_file(tree.socket(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).step(|| format!("remove {}", tree.socket(name).display()))
        }
        _ => Ok(()),
    }
}

/// Born with nothing but its end of the pair and a log: no `pre_exec`, so that the standard library may spawn without a fork, which
/// is safe and cheap however many threads and however much memory the agent has.
fn spawn(spec: &DomainSpec, tree: &Tree, control: OwnedFd) -> Result<Child, HostError> {
    let step = || format!("start {}", spec.program.display());
    let log = fs::File::options().create(true).append(true).open(tree.log()).step(step)?;
    let mut command = Command::new(&spec.program);
    command.args(&spec.arguments).env_clear().current_dir("/");
    for name in ["RUST_LOG", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::from(control)).stdout(log.try_clone().step(step)?).stderr(log);
    command.spawn().step(step)
}

fn child_pid(child: &Child) -> Result<Pid, HostError> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| HostError::Invalid("the kernel gave a process no number".into()))
}

/// A runner between its first instruction and its confinement.
struct Birth<'a> {
    host: &'a Inner,
    spec: &'a DomainSpec,
    tree: &'a Tree,
    control: OwnedFd,
    process: BorrowedFd<'a>,
    pid: Pid,
    socket: &'static str,
}

impl Birth<'_> {
    fn go_through(
        &self,
        record: &mut Record,
        root: &OwnedFd,
        listener: &UnixListener,
        ancestry: Ancestry<'_>,
    ) -> Result<(Option<Link>, Vec<String>), HostError> {
        let Self { host, spec, pid, .. } = self;
        // First of all, so that every page that it touches from now on is counted.
        host.cgroups
            .add(spec.id.as_str(), *pid)
            .step(|| format!("put the runner into the cgroup of domain {}", spec.id))?;
        record.runner = Some(RunnerRecord {
            pid: pid.as_raw_nonzero().get(),
            started: started(*pid).step(|| "read when the runner started".into())?,
            boot: network::boot_id()?,
            // One that ended at once has none any more, and will say so by its silence.
            program: program_of(*pid).unwrap_or_else(|_| spec.program.clone()),
            socket: self.socket.to_owned(),
            code: code_target(&spec.code)?,
        });
        if ancestry.from.is_none() {
            self.tree.write_record(record)?;
        }

        // A copy of the shared root: what is mounted in the one later arrives in the other.
        let seen = mounts::copy_of(root.as_fd()).step(|| "copy the domain's root".into())?;
        let outside = host.user.as_ref().map(user::Ground::socket_of_runner).transpose()?;
        let block = match host.blocks.first().base() {
            IpAddr::V4(base) => Some(Outside { base, prefix: host.blocks.first().prefix() }),
            // An ordinary user's pods have IPv4 only.
            IpAddr::V6(_) => None,
        };
        let begin = Begin {
            domain: spec.id.host_name().to_owned(),
            uid: record.uid,
            network: ancestry.network,
            mount_point: self.tree.root().to_string_lossy().into_owned(),
            max_files: host.max_files,
            outside: outside.as_ref().and(block),
        };
        let mut descriptors = vec![listener.as_fd(), seen.as_fd(), host.namespace.as_fd()];
        descriptors.extend(outside.as_ref().map(AsFd::as_fd));
        if ancestry.network == stage::Network::Shared {
            descriptors.extend(ancestry.from);
        }
        self.tell(&ToRunner::Begin(begin), &descriptors)?;
        self.expect(|said| matches!(said, FromRunner::Unshared).then_some(()))?;
        let link = if ancestry.network == stage::Network::Own {
            let namespace = network_of(*pid)?;
            let mut netlink = host.netlink();
            let namespace = namespace.as_fd();
            let place = host.place();
            Some(Link::make(
                &mut netlink,
                host.id,
                record.index,
                host.blocks,
                host.mtu,
                place,
                namespace,
            )?)
        } else {
            None
        };
        self.tell(&ToRunner::Proceed, &[])?;
        let missing = self.expect(|said| match said {
            FromRunner::Confined { missing } => Some(missing),
            _ => None,
        })?;
        Ok((link, missing))
    }

    fn tell(&self, message: &ToRunner, descriptors: &[BorrowedFd<'_>]) -> Result<(), HostError> {
        stage::send(&self.control, message, descriptors).map_err(|error| self.failed(&error))
    }

    fn expect<T>(&self, wanted: impl FnOnce(FromRunner) -> Option<T>) -> Result<T, HostError> {
        let (said, _) = stage::receive(&self.control).map_err(|error| self.failed(&error))?;
        let failed =
            |message: String| HostError::Runner { domain: self.spec.id.to_string(), message };
        if let FromRunner::Failed { message } = said {
            return Err(failed(message));
        }
        wanted(said).ok_or_else(|| failed("it said something else than was expected".into()))
    }

    fn failed(&self, error: &io::Error) -> HostError {
        // Its last words are worth more than "connection reset".
        end(self.process);
        let words = fs::read_to_string(self.tree.log()).unwrap_or_default();
        let last: Vec<_> = words.lines().rev().take(5).collect();
        let last: Vec<_> = last.into_iter().rev().collect();
        let message = match error.kind() {
            io::ErrorKind::WouldBlock => format!("it was silent for {} s", BIRTH.as_secs()),
            _ => error.to_string(),
        };
        HostError::Runner {
            domain: self.spec.id.to_string(),
            message: format!("{message}; its log ends: {}", last.join(" | ")),
        }
    }
}

/// The network namespace of a process.
fn network_of(pid: Pid) -> Result<fs::File, HostError> {
    let path = format!("/proc/{}/ns/net", pid.as_raw_nonzero());
    fs::File::open(&path).step(|| format!("open {path}"))
}

/// When a process started, in clock ticks since boot: field 22 of its `stat`.
fn started(pid: Pid) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    // The second field is the program's name in parentheses, and may hold anything.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = rest.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// A process's program, also where its file has been deleted since.
fn program_of(pid: Pid) -> io::Result<PathBuf> {
    let link = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()))?;
    let text = link.to_string_lossy();
    Ok(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text)))
}

/// The process of a record, if it still is the one.
fn same_process(record: &RunnerRecord) -> Result<Option<(OwnedFd, Pid)>, HostError> {
    if record.boot != network::boot_id()? {
        return Ok(None);
    }
    let Some(pid) = Pid::from_raw(record.pid) else { return Ok(None) };
    // Opened before it is examined: afterwards the number cannot pass to another process unnoticed.
    let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(None);
    };
    if !started(pid).is_ok_and(|started| started == record.started) {
        return Ok(None);
    }
    if has_ended(process.as_fd()) {
        reap(process.as_fd());
        return Ok(None);
    }
    let same = match program_of(pid) {
        Ok(program) => program == record.program,
        // A runner of an ordinary user whose namespaces nobody kept: no agent may look at it again, but end it. Number and start suffice.
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    };
    Ok(same.then_some((process, pid)))
}

pub(crate) fn adopt(host: &Arc<Inner>, id: &DomainId) -> Result<Adopted, HostError> {
    let tree = Tree::new(&host.data, id.as_str());
    let Some(record) = tree.read_record() else { return Ok(Adopted::Dead) };
    let Some(runner) = &record.runner else { return Ok(Adopted::Dead) };
    let Some((process, pid)) = same_process(runner)? else { return Ok(Adopted::Dead) };
    let root_path = tree.root();
    // Without the mount that it shares with the runner the domain can be given nothing more. And a runner whose birth was cut short
    // listens to nobody; it ended when its agent did.
    let Some(socket) = tree::known_socket(&runner.socket) else { return Ok(Adopted::Dead) };
    if !mounts::is_mount(&root_path)? || !tree.socket(socket).exists() {
        return Ok(Adopted::Dead);
    }
    // An heir that had not taken over yet, or a runner that one had taken over from, when an agent died.
    end_members(host, id, Some(pid))?;
    let link = if record.own_network {
        let namespace = network_of(pid)?;
        match Link::find(host.id, record.index, host.blocks, host.place(), namespace.as_fd()) {
            Ok(link) => Some(Arc::new(Mutex::new(link))),
            Err(error) => {
                tracing::warn!(domain = %id, %error, "a runner without its link cannot be adopted");
                return Ok(Adopted::Dead);
            }
        }
    } else {
        None
    };
    let root = mounts::open_path(&root_path)?;
    let program = runner.program.clone();
    let found = Born { process, pid, program, socket, link, missing: Vec::new() };
    Ok(Adopted::Alive(found.into_domain(host, id.clone(), tree, record.uid, root)))
}

pub(crate) fn remove(host: &Inner, id: &DomainId) -> Result<(), HostError> {
    unplug(host, id)?;
    tree::delete(&Tree::new(&host.data, id.as_str()).directory)
}

/// Ends a domain's processes and takes away all that the kernel holds for it, but not its files. The record is what a successor
/// needs to go on in them; none where there was no domain.
fn unplug(host: &Inner, id: &DomainId) -> Result<Option<Record>, HostError> {
    let tree = Tree::new(&host.data, id.as_str());
    let record = tree.read_record();
    if let Some((process, _)) =
        record.as_ref().and_then(|r| r.runner.as_ref()).map(same_process).transpose()?.flatten()
    {
        end(process.as_fd());
    }
    // Whatever else is in its cgroup; a runner cannot have children, so this finds one whose record was lost.
    end_members(host, id, None)?;
    if let Some(record) = &record {
        let name = host.id.link(record.index);
        host.netlink()
            .apply(&[Change::remove_link(&name)])
            .step(|| format!("remove the link {name}"))?;
    }
    for path in [tree.root(), tree.log_directory()] {
        // More than one only where a start was cut short and repeated.
        while mounts::is_mount(&path)? {
            rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH)
                .step(|| format!("unmount {}", path.display()))?;
        }
    }
    host.cgroups.remove(id.as_str()).step(|| format!("remove the cgroup of domain {id}"))?;
    tree::SOCKETS.iter().try_for_each(|name| remove_socket(&tree, name))?;
    Ok(record)
}

/// Ends the processes of a domain's cgroup but this one.
fn end_members(host: &Inner, id: &DomainId, but: Option<Pid>) -> Result<(), HostError> {
    let step = || format!("end the processes of domain {id}");
    let members = host.cgroups.members(id.as_str()).step(step)?;
    let watched: Vec<OwnedFd> = members
        .into_iter()
        .filter(|member| Some(*member) != but)
        .filter_map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
        .collect();
    if watched.is_empty() {
        return Ok(());
    }
    if but.is_none() {
        host.cgroups.kill(id.as_str()).step(step)?;
    }
    for process in &watched {
        end(process.as_fd());
    }
    Ok(())
}

/// Kills a process and waits until it is no more.
fn end(process: BorrowedFd<'_>) {
    if let Err(error) = rustix::process::pidfd_send_signal(process, Signal::KILL)
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(%error, "a runner cannot be killed");
    }
    wait_for_the_end(process);
}

fn wait_for_the_end(process: BorrowedFd<'_>) {
    let limit = Timespec { tv_sec: DEATH.as_secs().cast_signed(), tv_nsec: 0 };
    let mut poll = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut poll, Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => {
                tracing::warn!("a killed process does not end; it hangs in the kernel");
                return;
            }
            _ => break,
        }
    }
    reap(process);
}

fn has_ended(process: BorrowedFd<'_>) -> bool {
    let mut poll = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Takes the exit of a child of ours; that of an adopted runner is init's.
fn reap(process: BorrowedFd<'_>) {
    let _ = rustix::process::waitid(
        WaitId::PidFd(process),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    );
}
