//! The agent's own API for the `copepod` program on the same machine: CBOR frames on `<data>/agent.sock`.
//!
//! A connection carries one [`Call`] and then its [`Reply`]s: one for most calls, a stream for [`Call::Watch`] and
//! [`Call::Logs`], which the client ends by closing. Only the user who runs the agent, and root, may connect. Kubernetes
//! objects travel as their JSON text, so that both sides read them with the types of `k8s-openapi`.
//!
//! Absent: anything remote. The kubelet's HTTPS API is another front to the same agent.

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

/// The version of this API; a client and an agent of different versions refuse each other with a sentence.
pub const VERSION: u32 = 1;

/// Bytes of pods in one frame, far below what a frame may hold, so that one large pod still fits behind many small ones.
const PART: usize = 1 << 20;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// Is this agent the one that the client can talk to? [`Reply::Agent`].
    Hello {
        /// The client's [`VERSION`].
        version: u32,
        /// Hex sha256 of the client's program file.
        build: String,
    },
    /// Run pods. All or none is accepted; [`Reply::Accepted`] with one entry per pod, or [`Reply::Refused`].
    Run(Box<RunPods>),
    /// All pods; [`Reply::Pods`].
    List,
    /// One pod; [`Reply::Pods`] with one entry.
    Get(PodName),
    /// [`Reply::Pods`] with the pods named, at once and after each change of any of them.
    Watch {
        /// The pods' UIDs.
        uids: Vec<String>,
    },
    /// A container's log: [`Reply::Log`]s, then [`Reply::Done`] unless followed (then at the end of the container's last run).
    Logs(LogsOf),
    /// Another program in a container's sandbox; the frame carries stdin, stdout and stderr. [`Reply::Exited`].
    Exec(ExecIn),
    /// A running container's own streams, from now on; the frame carries stdin, stdout and stderr. [`Reply::Exited`] where it ended,
    /// [`Reply::Done`] where the client reads no more.
    Attach(AttachTo),
    /// Stop pods gracefully and forget them: [`Reply::Done`] once all are gone.
    Stop(StopPods),
    /// What each container uses; [`Reply::Stats`].
    Stats,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Who the agent is.
    Agent {
        /// Its [`VERSION`].
        version: u32,
        /// Hex sha256 of its program file.
        build: String,
        /// Its process.
        pid: u32,
    },
    /// The pods were accepted, in the order asked.
    Accepted(Vec<AcceptedPod>),
    /// Nothing was accepted. Each line is for the user and names the field.
    Refused(Vec<String>),
    /// Pods as they are now, or the last part of them.
    Pods(Vec<PodView>),
    /// A part of what [`Reply::Pods`] completes: thousands of pods are more than a frame holds.
    SomePods(Vec<PodView>),
    /// A piece of a log.
    Log(LogPiece),
    /// An exec's exit code, and what to tell where it was not the program's own doing.
    Exited {
        /// The code.
        code: i32,
        /// A sentence, or none.
        message: Option<String>,
    },
    /// Use per container.
    Stats(Vec<ContainerUse>),
    /// Done; nothing follows.
    Done,
    /// The call failed; the text is for the user.
    Failed(String),
}

/// A pod's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl PodName {
    /// The name of a pod.
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

/// Pods to run, and the objects that they name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunPods {
    /// JSON of `v1.Pod`s with name and namespace set; a UID is given by the agent.
    pub pods: Vec<String>,
    /// JSON of the `v1.ConfigMap`s of the manifest.
    pub config_maps: Vec<String>,
    /// JSON of the `v1.Secret`s of the manifest.
    pub secrets: Vec<String>,
    /// Host ports to open.
    pub publish: Vec<Publish>,
    /// Credentials for the registries that the pods' images come from.
    pub credentials: Vec<RegistryCredentials>,
}

/// What `docker login` left for a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryCredentials {
    /// The registry's host, with the port where it has one.
    pub registry: String,
    /// The user.
    pub username: String,
    /// The password or token.
    pub password: String,
}

impl std::fmt::Debug for RegistryCredentials {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.username, self.registry)
    }
}

/// `--publish HOST:POD`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Which pod of [`RunPods::pods`], by index.
    pub pod: usize,
    /// The address on the host, 127.0.0.1 unless said otherwise.
    pub host_ip: std::net::IpAddr,
    /// The port on the host; 0 takes a free one, told in [`AcceptedPod::published`].
    pub host_port: u16,
    /// The pod's TCP port.
    pub pod_port: u16,
}

/// A pod that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedPod {
    /// Its UID.
    pub uid: String,
    /// Its name.
    pub pod: PodName,
    /// Host address and pod port of each published port.
    pub published: Vec<(std::net::SocketAddr, u16)>,
}

/// A pod and what happened to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodView {
    /// JSON of the `v1.Pod`, status included.
    pub pod: String,
    /// Its events, oldest first.
    pub events: Vec<PodEventView>,
    /// Nothing of it runs, and nothing will run again.
    pub over: bool,
    /// It waits for something that this machine will never give (an image that is no wasm, a refused field): the sentence why.
    pub never: Option<String>,
    /// Progress of a long pull or compile, for a person.
    pub progress: Option<String>,
}

impl PodView {
    /// About as many bytes as it takes in a frame.
    fn size(&self) -> usize {
        let events = self.events.iter().map(|it| it.reason.len() + it.message.len() + 100);
        self.pod.len() + events.sum::<usize>() + 1000
    }
}

impl Reply {
    /// The reply as it fits into frames: itself, or pods in parts.
    pub fn in_parts(self) -> Vec<Self> {
        let Self::Pods(pods) = self else { return vec![self] };
        let (mut parts, mut part, mut size) = (Vec::new(), Vec::new(), 0);
        for pod in pods {
            if size + pod.size() > PART && !part.is_empty() {
                parts.push(Self::SomePods(std::mem::take(&mut part)));
                size = 0;
            }
            size += pod.size();
            part.push(pod);
        }
        parts.push(Self::Pods(part));
        parts
    }
}

/// An event of a pod, as `kubectl describe` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodEventView {
    /// `Normal` or `Warning`.
    pub kind: String,
    /// One CamelCase word.
    pub reason: String,
    /// The sentence.
    pub message: String,
    /// Unix seconds of the last time.
    pub last: i64,
    /// How often.
    pub count: u32,
}

/// Which log, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsOf {
    /// The pod.
    pub pod: PodName,
    /// The container; may be left out where there is one.
    pub container: Option<String>,
    /// The previous run's instead of the newest's.
    pub previous: bool,
    /// Go on with what comes, over restarts, until the pod is over.
    pub follow: bool,
    /// Only so many last lines.
    pub tail: Option<u64>,
    /// Only lines since this Unix time in seconds.
    pub since: Option<i64>,
    /// Go on after this position, which an earlier piece told.
    pub after: Option<LogPosition>,
}

/// A place in a container's logs that outlives agent and client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogPosition {
    /// The attempt whose log it is.
    pub attempt: u32,
    /// Unix nanoseconds of the last line that was sent.
    pub time_ns: i64,
    /// How many lines of just that time were sent.
    pub lines: u32,
}

/// Whole lines of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPiece {
    /// The lines, oldest first.
    pub lines: Vec<LogLine>,
    /// Where to go on.
    pub position: LogPosition,
}

/// A line that a container wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Unix nanoseconds.
    pub time_ns: i64,
    /// From stderr; else stdout.
    pub stderr: bool,
    /// The line's bytes, without the newline.
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
    /// The next line continues this one.
    pub partial: bool,
}

/// `copepod exec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecIn {
    /// The pod.
    pub pod: PodName,
    /// The container; the first where left out.
    pub container: Option<String>,
    /// The arguments, argv[0] first.
    pub args: Vec<String>,
    /// Whether the program is told that it is at a terminal, and ends with it.
    #[serde(default)]
    pub tty: bool,
}

/// `copepod attach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachTo {
    /// The pod.
    pub pod: PodName,
    /// The container; the first where left out.
    pub container: Option<String>,
}

/// `copepod stop`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopPods {
    /// Which; empty with `all`.
    pub pods: Vec<PodName>,
    /// All pods of this data directory.
    pub all: bool,
    /// Seconds of grace instead of the pod's own.
    pub grace: Option<u32>,
}

/// What a container uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUse {
    /// The pod.
    pub pod: PodName,
    /// The container.
    pub container: String,
    /// CPU time since its start, in nanoseconds.
    pub cpu_ns: u64,
    /// Bytes held now.
    pub memory: u64,
    /// HTTP requests answered.
    pub requests: u64,
    /// Instances alive.
    pub instances: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(bytes: usize) -> PodView {
        PodView {
            pod: "p".repeat(bytes),
            events: Vec::new(),
            over: false,
            never: None,
            progress: None,
        }
    }

    #[test]
    fn pods_that_no_frame_holds_come_in_parts_and_in_their_order() {
        let pods: Vec<PodView> = (0..5_000).map(|n| view(3_000 + n % 7)).collect();

        let parts = Reply::Pods(pods.clone()).in_parts();

        let Some((Reply::Pods(last), before)) = parts.split_last() else { panic!("the end") };
        let joined = before.iter().flat_map(|part| match part {
            Reply::SomePods(pods) => pods.clone(),
            other => panic!("{other:?}"),
        });
        assert!(before.len() > 10);
        assert_eq!(joined.chain(last.clone()).collect::<Vec<_>>(), pods);
        for part in &parts {
            let mut bytes = Vec::new();
            ciborium::into_writer(part, &mut bytes).expect("a vector takes every byte");
            assert!(bytes.len() < copepod_shim::wire::MAX_FRAME);
        }
    }

    #[test]
    fn no_pods_and_every_other_reply_are_one_frame() {
        assert_eq!(Reply::Pods(Vec::new()).in_parts(), [Reply::Pods(Vec::new())]);
        assert_eq!(Reply::Done.in_parts(), [Reply::Done]);
    }
}
