//! The messages between the agent and a runner: additive only, so that either side may be the newer one.
//!
//! A frame holds one [`ToRunner`] or one [`FromRunner`] in CBOR. A field that a side does not know is skipped; a field
//! that is missing takes its default, so every field added after the first release carries `#[serde(default)]`. A
//! request that a runner does not know decodes to [`Request::Unknown`] and is answered [`Failure::Unsupported`].
//!
//! Absent: any path outside the runner's root. A runner's `/` is its domain tree ([`layout`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::kind::Kind;

/// The range of protocol versions that this build speaks. A peer whose range does not overlap is refused.
pub const VERSIONS: Versions = Versions { oldest: 1, newest: 2 };

/// What lies where in the runner's root directory, which on the host is `<data>/domains/<domain>/root`.
pub mod layout {
    /// Compiled code: a read-only mount for each engine that a runner of this tree has, named by the engine's hash; the names in it
    /// are `<sha256 of the wasm>.cwasm`.
    pub const CODE: &str = "/code";
    /// The files of images that have more than a program: a read-only mount for each, named by the manifest's digest.
    pub const IMAGES: &str = "/images";
    /// What the agent writes and the runner reads: one folder per pod UID.
    pub const RO: &str = "/ro";
    /// The certificates of the authorities that the node trusts, in PEM, for guests' `https` requests; missing where it has none.
    pub const AUTHORITIES: &str = "/ro/ca-certificates.crt";
    /// What guests write: one folder per pod UID, with its emptyDirs.
    pub const RW: &str = "/rw";
    /// Pod log directories, one per pod UID; the agent opens nothing in them but beneath and without links.
    pub const LOGS: &str = "/logs";
    /// Mount points of hostPath and other outside directories: `<pod UID>/<n>`.
    pub const MNT: &str = "/mnt";
    /// Exit records that nobody acknowledged yet.
    pub const EXITS: &str = "/state/exits";
    /// Termination messages: one folder per pod UID, which the runner makes with the first guest that looks, and removes with the pod.
    pub const WORDS: &str = "/state/words";
}

/// Protocol versions, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest version still spoken.
    pub oldest: u32,
    /// The newest version spoken.
    pub newest: u32,
}

impl Versions {
    /// The newest version that both sides speak, if any.
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// The first frame of either side on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The versions that the sender speaks.
    pub versions: Versions,
    /// Hex sha256 of the sender's program file: which generation it belongs to.
    pub build: String,
    /// The compatibility hash of the sender's engine: code compiled under another one is not loaded.
    pub engine: String,
}

/// One frame from the agent. `id` is chosen by the agent and comes back in the reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToRunner {
    /// Names the request on this connection.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// One frame from the runner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromRunner {
    /// The answer to the request `id`. Descriptors that belong to it travel with this frame.
    Reply {
        /// The request's id.
        id: u64,
        /// What came of it.
        result: Result<Answer, Failure>,
    },
    /// Something happened. Sent to every connected agent; what must not be lost is in [`Answer::List`] too.
    Event(Event),
}

/// What an agent may ask. Descriptors that belong to a request travel with its frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Make a pod's sandbox: its network identity, no container. Idempotent by UID; `Done`.
    CreatePod(PodSandbox),
    /// Start a container's instance. Idempotent by (pod, container, attempt); [`Answer::Started`].
    Start(Box<StartContainer>),
    /// Stop a container by an absolute deadline, which may come nearer but not move away. `Done` at once; the exit is an event.
    Stop(StopContainer),
    /// End all that is left of a pod and forget it, its unacknowledged exits too. Idempotent; `Done`.
    RemovePod {
        /// The pod's UID.
        pod: String,
    },
    /// Everything this runner holds; [`Answer::List`].
    List,
    /// The exit of this attempt is on the agent's own disk: the record may go. `Done`.
    Acknowledge(AttemptId),
    /// Run another instance in a container's sandbox. Descriptors: stdin, stdout, stderr. [`Answer::Exited`] at its end.
    Exec(ExecContainer),
    /// Give a client a running container's own streams. Descriptors: what it reads beside what others write, where its spec has `stdin`;
    /// and where it writes beside its log, from now on. [`Answer::Exited`] at its end, [`Answer::Done`] once the client reads no more.
    Attach(AttemptId),
    /// The wasm file that a running container sees by this name, for [`Request::Exec`] of it: [`Answer::Descriptor`], with the file opened.
    /// [`Failure::NotFound`] where there is none.
    OpenProgram {
        /// The running attempt.
        id: AttemptId,
        /// A path in the container, or a name that is looked for in the folders of its `PATH`.
        name: String,
    },
    /// A connection to a port of the pod, as from outside it. [`Answer::Descriptor`], with the connected socket.
    Dial {
        /// The pod's UID.
        pod: String,
        /// The TCP port.
        port: u16,
    },
    /// Serve a listening TCP socket of the host, whose descriptor travels with this frame: each connection to it goes to the pod's
    /// port, as [`Request::Dial`] connects, until the pod is removed. So a published port outlives the agent. `Done`.
    Publish {
        /// The pod's UID.
        pod: String,
        /// The pod's TCP port.
        port: u16,
    },
    /// What each container of the runner uses now; [`Answer::Stats`].
    Stats,
    /// What a runner of another generation in the same tree needs to serve an HTTP component beside this one: with
    /// [`Answer::HandedOver`] travel the sockets on which the attempt listens. Both accept from then on, until [`Request::Retire`].
    /// [`Failure::Busy`] where the attempt is being stopped, is no HTTP component, or has more sockets than a frame takes.
    HandOver(AttemptId),
    /// The same for the ports of the host that are served for a pod; [`Answer::Published`], with a listening socket for each.
    HandOverPublished {
        /// The pod's UID.
        pod: String,
    },
    /// All that runs here is served by a runner of another generation now: accept nothing more, let what has been accepted come to
    /// its end, and end. No exit is recorded or told from then on. `Done`; [`Failure::Busy`] where anything runs here that is
    /// not in the list, where something in it does not run any more, or where an exit is not acknowledged.
    Retire(Retire),
    /// End the runner once it holds no pod; `Done`, or [`Failure::Busy`].
    Exit,
    /// A request of a newer protocol.
    #[serde(other)]
    Unknown,
}

/// What comes back where a request succeeded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Done, nothing to tell.
    Done,
    /// The instance runs (or an earlier request for this attempt started it).
    Started {
        /// Unix time in microseconds at which the guest's first instruction was about to run; for an HTTP component, at which its
        /// listeners were open.
        at_us: i64,
    },
    /// All pods and containers of the runner.
    List(Vec<PodReport>),
    /// An exec's exit code, as a shell counts it.
    Exited {
        /// The code.
        code: i32,
        /// What to tell the user where it was not the program's own doing.
        message: Option<String>,
    },
    /// The descriptor travels with this frame.
    Descriptor,
    /// Use per container.
    Stats(Vec<ContainerStats>),
    /// An attempt's listening sockets travel with this frame.
    HandedOver {
        /// Unix time in microseconds of its first instruction.
        since_us: i64,
    },
    /// The pod's TCP ports that are served for the host; a listening socket for each travels with this frame, in this order.
    Published(Vec<u16>),
}

/// Why a request failed: one variant per thing that the agent does next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The runner knows no such request: an older generation.
    #[error("the runner is of an older generation and does not know this request")]
    Unsupported,
    /// No such pod or container here.
    #[error("no such pod or container in this runner")]
    NotFound,
    /// It holds pods, or the number of something has reached its ceiling.
    #[error("{0}")]
    Busy(String),
    /// The code cannot be loaded (wrong engine, damaged): the agent compiles again and retries once.
    #[error("the compiled code cannot be loaded: {0}")]
    BadCode(String),
    /// The container can never start as asked; the reason is the kubelet's word, e.g. `CreateContainerError`.
    #[error("{message}")]
    Refused {
        /// The status reason.
        reason: String,
        /// What is wrong and what to write instead.
        message: String,
    },
    /// Connection refused or no answer by the dialled port.
    #[error("{0}")]
    Unreachable(String),
}

/// One attempt to run one container. Attempts count from 0 and rise by one with every restart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttemptId {
    /// The pod's UID.
    pub pod: String,
    /// The container's name.
    pub container: String,
    /// 0 for the first start, then one more each.
    pub attempt: u32,
}

/// A pod's network identity and what all its containers share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSandbox {
    /// The pod's UID.
    pub pod: String,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's own address per family; already local in the runner's network namespace.
    pub ipv4: Option<Ipv4Addr>,
    /// As `ipv4`.
    pub ipv6: Option<Ipv6Addr>,
    /// The address in 127.0.0.0/8 that stands for this pod's loopback; unique in the runner.
    pub loopback: Ipv4Addr,
    /// The pod's host name.
    pub hostname: String,
    /// Names answered from the pod's own hosts file, beside `localhost`.
    pub hosts: Vec<HostEntry>,
    /// Where other names are asked for; none: no name but those of `hosts` resolves.
    pub dns: Dns,
    /// Addresses that no guest of this pod may reach, beyond the built-in ones (foreign loopbacks, link-local, multicast):
    /// the node's own addresses.
    pub denied: Vec<IpAddr>,
    /// Most open sockets of the pod at a time.
    pub max_sockets: u32,
}

/// One line of a hosts file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// The address.
    pub ip: IpAddr,
    /// Its names.
    pub names: Vec<String>,
}

/// A resolver's configuration, as `/etc/resolv.conf` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers, asked in this order over UDP port 53.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Names with at least this many dots are tried as they are first.
    pub ndots: u8,
}

/// All that one instance needs. Paths are in the runner's root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartContainer {
    /// Which attempt this is.
    pub id: AttemptId,
    /// Hex sha256 of the wasm: its code is `/code/<digest>.cwasm`.
    pub code: String,
    /// What the module is.
    pub kind: Kind,
    /// The arguments, argv[0] first.
    pub args: Vec<String>,
    /// The environment, in order; names are unique.
    pub env: Vec<(String, String)>,
    /// Directories that the guest sees.
    pub mounts: Vec<GuestMount>,
    /// The container's declared TCP and UDP ports.
    pub ports: Vec<Port>,
    /// Ceilings.
    pub limits: Limits,
    /// How an HTTP component is served; ignored for the other kinds.
    pub http: HttpSettings,
    /// The current log file, e.g. `/logs/<uid>/app/0.log`; made on the first byte.
    pub log: String,
    /// Where the runner puts what the guest says last, e.g. `/state/words/<uid>/app/0`; read by the agent at exit.
    pub termination_log: String,
    /// The guest path of `terminationMessagePath`; its directory shows the one file.
    pub termination_path: String,
    /// When true, stdin stays open for [`Request::Attach`]; else it is at its end from the start.
    pub stdin: bool,
    /// Whether stdin ends with the first client that was attached to it.
    #[serde(default)]
    pub stdin_once: bool,
    /// Whether the program is told that its streams are a terminal.
    #[serde(default)]
    pub tty: bool,
    /// The working directory that it is told of: an absolute path in the guest. Empty: `/`.
    #[serde(default)]
    pub cwd: String,
    /// Where the attempt has run in another runner, which hands it over: when it started there, in Unix microseconds. The sockets on
    /// which it listened travel with the frame.
    #[serde(default)]
    pub since_us: Option<i64>,
}

/// A directory in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    /// Absolute path in the guest.
    pub guest: String,
    /// Absolute path in the runner's root; a directory.
    pub source: String,
    /// No write through it. Where the source must not be changed by anybody, its mount is read-only for the kernel too.
    pub read_only: bool,
    /// Most bytes beneath `source` that all writers may hold together, counted where they write; none: no limit of ours.
    pub size_limit: Option<u64>,
}

/// A declared port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name, or empty.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// UDP; else TCP.
    pub udp: bool,
}

/// A container's ceilings. Every field is enforced; there is no "unlimited" but what the agent chose so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of everything that the guest makes the host hold: `limits.memory`, else allocatable.
    pub memory: u64,
    /// CPU time per second of wall time, in thousandths: `limits.cpu`; none: no limit.
    pub cpu_millis: Option<u32>,
    /// Relative weight in thousandths of a core: `requests.cpu`, at least 2.
    pub cpu_weight: u32,
    /// Log bytes per second that are kept; what exceeds it waits, then is dropped with a note.
    pub log_bytes_per_second: u64,
    /// Size of a log file at which it is rotated (the kubelet's containerLogMaxSize: 10 MiB).
    pub log_file_bytes: u64,
    /// How many log files are kept, the current one included (containerLogMaxFiles: 5).
    pub log_files: u32,
    /// Most open WASI resources (files, sockets, streams, pollables) of an instance.
    pub handles: u32,
}

/// How an HTTP component is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpSettings {
    /// Requests that one instance serves, one after the other, before it goes; 1 is a fresh instance for each.
    pub reuse: u32,
    /// Requests in work at a time; more wait, in order.
    pub concurrency: u32,
    /// Requests that may wait; more get 503.
    pub queue: u32,
    /// Longest time in milliseconds from a request's head to the response's head.
    pub timeout_ms: u64,
}

/// Stop one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopContainer {
    /// Which.
    pub id: AttemptId,
    /// Unix time in milliseconds by which it is over, whatever it does; a past time kills at once.
    pub deadline_ms: i64,
}

/// Leave everything to another runner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retire {
    /// The attempts that the other runner serves.
    pub attempts: Vec<AttemptId>,
    /// Unix time in milliseconds by which this one ends, whatever is still in work.
    pub deadline_ms: i64,
}

/// Run another instance in a container's sandbox, with its mounts, environment and limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecContainer {
    /// The running attempt whose sandbox it is.
    pub id: AttemptId,
    /// The code to run: the container's own, or another module that the agent compiled.
    pub code: String,
    /// Its kind.
    pub kind: Kind,
    /// The arguments, argv[0] first.
    pub args: Vec<String>,
    /// Longest run in milliseconds; at its end the instance is dropped and the code is 137.
    pub timeout_ms: Option<u64>,
    /// Whether the program is told that its streams are a terminal. It ends, with 129, once nobody reads what it writes.
    #[serde(default)]
    pub tty: bool,
    /// It is of the toolbox, and is told what runs in the pod.
    #[serde(default)]
    pub of_toolbox: bool,
}

/// A pod as its runner has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// The pod's UID.
    pub pod: String,
    /// Its containers' newest attempts, and those whose exit is not acknowledged.
    pub containers: Vec<ContainerReport>,
}

/// An attempt as its runner has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// The container's name.
    pub container: String,
    /// Which attempt.
    pub attempt: u32,
    /// What it is doing.
    pub state: AttemptState,
}

/// The two states in which a runner can hold an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttemptState {
    /// It runs since then, in Unix microseconds.
    Running {
        /// The start.
        since_us: i64,
    },
    /// It is over.
    Exited(Exit),
}

/// What happened without being asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// An attempt is over. Its record is on the runner's disk until acknowledged.
    Exited {
        /// Which attempt.
        id: AttemptId,
        /// How it ended.
        exit: Exit,
    },
    /// Something that the user should read as a Warning event of the pod.
    Warning {
        /// Which attempt.
        id: AttemptId,
        /// The event's reason, one CamelCase word.
        reason: String,
        /// The event's message.
        message: String,
    },
    /// An event of a newer protocol.
    #[serde(other)]
    Unknown,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As a kubelet reports it: `proc_exit(n)` → n, a trap 134, out of memory or killed 137, asked to stop 143 or its own code.
    pub code: i32,
    /// Why.
    pub reason: ExitReason,
    /// Trap text with backtrace, or empty.
    pub message: String,
    /// Unix microseconds of the first instruction.
    pub started_us: i64,
    /// Unix microseconds of the end.
    pub finished_us: i64,
}

/// Why an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// It ended by itself, or in time after a stop: `Completed` for code 0, else `Error`.
    Ended,
    /// It trapped: `Error` with the trap as message.
    Trapped,
    /// Past its memory limit: `OOMKilled`.
    OutOfMemory,
    /// The grace period was over: `Error`, 137.
    Killed,
    /// A reason of a newer protocol: `Error`.
    #[serde(other)]
    Unknown,
}

/// What a container uses. Counters start at 0 with each attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    /// Which attempt.
    pub id: AttemptId,
    /// CPU time in nanoseconds, host calls made on the guest's behalf included.
    pub cpu_ns: u64,
    /// Bytes in the container's memory ledger.
    pub memory: u64,
    /// The most that `memory` ever was.
    pub memory_peak: u64,
    /// HTTP requests answered.
    pub requests: u64,
    /// Instances alive.
    pub instances: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cbor<T: Serialize>(value: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes).expect("a vector takes every byte");
        bytes
    }

    #[test]
    fn the_newest_version_that_both_sides_speak_is_chosen() {
        let old = Versions { oldest: 1, newest: 2 };
        let new = Versions { oldest: 2, newest: 5 };
        let newest = Versions { oldest: 3, newest: 3 };

        assert_eq!(old.common(new), Some(2));
        assert_eq!(new.common(old), Some(2));
        assert_eq!(old.common(newest), None);
    }

    #[test]
    fn a_field_of_a_newer_protocol_is_skipped() {
        #[derive(Serialize)]
        struct Newer {
            pod: &'static str,
            container: &'static str,
            attempt: u32,
            added_later: bool,
        }
        let bytes = cbor(&Newer { pod: "u", container: "c", attempt: 3, added_later: true });

        let id: AttemptId = ciborium::from_reader(&bytes[..]).expect("known fields suffice");

        assert_eq!(id, AttemptId { pod: "u".into(), container: "c".into(), attempt: 3 });
    }

    #[test]
    fn a_request_without_fields_of_a_newer_protocol_decodes_to_unknown() {
        let request: Request = ciborium::from_reader(&cbor(&"Hibernate")[..]).expect("it decodes");

        assert_eq!(request, Request::Unknown);
    }
}
