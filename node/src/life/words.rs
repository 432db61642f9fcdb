//! The words between the core and whoever acts for it: events in, actions out, facts for the journal.
//!
//! Absent: any decision, and the runner's protocol: the agent translates.

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    so_far::{ContainerSoFar, PodSoFar},
    spec::Handler,
};
use crate::name::ContainerName;

/// What happened in the world. Events that speak of an attempt long over, or that answer nothing, change nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum PodEvent {
    /// The answer to [`Action::SetUp`]: the pod's volumes, sandbox and addresses stand.
    SetUp {
        /// The pod's addresses, the node's family first.
        ips: Vec<IpAddr>,
    },
    /// The answer to [`Action::SetUp`]: it did not work; it is asked for again after a while.
    SetUpFailed {
        /// The Warning event's reason, e.g. `FailedCreatePodSandBox` or `FailedMount`.
        reason: String,
        /// What went wrong.
        message: String,
    },
    /// A ConfigMap, a Secret, a token or a Service's variable that the pod refers to is there now, or another: what failed for want of one
    /// is tried again at once.
    ObjectsChanged,
    /// The pod's runner is dead, and all its containers with it (those whose exits were recorded come as `Exited` first).
    SandboxLost,
    /// A registry is being asked for the image; the pull's answer is still to come.
    Pulling {
        /// Whose image.
        container: ContainerName,
    },
    /// The answer to [`Action::Pull`].
    ImageReady {
        /// Whose image.
        container: ContainerName,
        /// The image's reference by digest, for `imageID`.
        image_id: String,
        /// What the pull took; none: it was there.
        pulled: Option<Pulled>,
    },
    /// The answer to [`Action::Pull`].
    ImageFailed {
        /// Whose image.
        container: ContainerName,
        /// The kubelet's word: `ErrImagePull`, `InvalidImageName`, `ErrImageNeverPull`, …
        reason: String,
        /// What went wrong.
        message: String,
        /// Whether another try can help. If not (a Linux image), the container waits with that reason for good.
        retry: bool,
    },
    /// The answer to [`Action::Start`]; after a restart of the agent also: this attempt runs, seen at its runner.
    Started {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
        /// When its first instruction ran.
        at: Timestamp,
    },
    /// The answer to [`Action::Start`]: this attempt did not run and will not.
    StartFailed {
        /// Which container.
        container: ContainerName,
        /// Which attempt; its number is used again.
        attempt: u32,
        /// The kubelet's word, e.g. `CreateContainerConfigError`.
        reason: String,
        /// What went wrong.
        message: String,
        /// Whether another try can help. If not, the container waits with that reason for good.
        retry: bool,
    },
    /// An attempt is over. May come in place of `Started`, and answers a [`Action::Stop`].
    Exited {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
        /// How it ended.
        exit: ExitRecord,
    },
    /// An attempt is over and nobody knows how: its runner died. 137, `ContainerStatusUnknown`.
    Lost {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
    },
    /// After a restart of the agent: the living runner has never heard of this attempt, so it is sent (again).
    NotSeen {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
    },
    /// The answer to [`Action::Probe`].
    ProbeDone {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
        /// Which probe.
        probe: ProbeKind,
        /// What it said.
        result: ProbeResult,
    },
    /// The answer to [`Action::Hook`].
    HookDone {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
        /// Which hook.
        hook: HookKind,
        /// `Err` tells what went wrong.
        result: Result<(), String>,
    },
    /// The user wants the pod gone. Again: the grace may only become shorter.
    DeleteAsked {
        /// The grace from now; none: the pod's own.
        grace: Option<Duration>,
    },
    /// The answer to [`Action::TearDown`].
    TornDown,
}

/// What a pull took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The time of the pull itself.
    pub took: Duration,
    /// The time including waiting for other pulls.
    pub waited: Duration,
    /// The image's size.
    pub bytes: u64,
}

/// The three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProbeKind {
    /// Gates the other two until it has passed once.
    Startup,
    /// Its failure restarts the container.
    Liveness,
    /// Says whether the container takes requests.
    Readiness,
}

/// What one run of a probe said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// It passed.
    Passed,
    /// It passed, with something that the user should read (a redirect to another host).
    PassedWithWarning(String),
    /// It failed; what was seen.
    Failed(String),
    /// It could not be tried. No result, as under a kubelet: the thresholds do not move.
    Errored(String),
}

/// The two hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HookKind {
    /// Runs beside the entry point; its failure ends the container.
    PostStart,
    /// Runs before the container is told to stop.
    PreStop,
}

/// One step to take. Each has exactly one answering event, and is not planned again before that (but `Stop`, with a nearer deadline).
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the pod's volumes, sandbox and addresses. Idempotent. Answer: `SetUp` or `SetUpFailed`.
    SetUp,
    /// Have the image and its code here. Answer: `ImageReady` or `ImageFailed`. To be given up once the pod is torn down.
    Pull {
        /// For which container.
        container: ContainerName,
        /// The image as the spec names it.
        image: Arc<str>,
        /// When to ask the registry.
        policy: PullPolicy,
    },
    /// Start this attempt. Idempotent by its number. Answer: `Started`, `StartFailed`, or the attempt's `Exited` or `Lost`.
    Start {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
    },
    /// Run a probe once. Answer: `ProbeDone`.
    Probe {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
        /// Which probe.
        probe: ProbeKind,
        /// What to do.
        handler: Arc<Handler>,
        /// Past it, the probe has failed.
        timeout: Duration,
    },
    /// Run a hook. Answer: `HookDone`.
    Hook {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
        /// Which hook.
        hook: HookKind,
        /// What to do.
        handler: Arc<Handler>,
        /// When to give up (preStop); none: it may take as long as it does.
        deadline: Option<Timestamp>,
    },
    /// Ask the container to stop, and end it at the deadline. Answer: the attempt's `Exited` or `Lost`.
    Stop {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
        /// When it is over, whatever it does; a past time: at once.
        deadline: Timestamp,
    },
    /// Nothing of the pod runs any more: give back sandbox, addresses and volumes; end pulls of it. Idempotent. Answer: `TornDown`.
    TearDown,
}

/// When to ask the registry for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Before every start.
    Always,
    /// When it is not here.
    IfNotPresent,
    /// Never.
    Never,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit code as a kubelet reports it.
    pub code: i32,
    /// Why it ended.
    pub reason: ExitReason,
    /// The termination message: the file's content, the log's tail or the trap, as the container's policy says.
    pub message: String,
    /// When its first instruction ran; none where nobody knows.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// Why an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// By itself, by a trap, or stopped: `Completed` for code 0, else `Error`.
    Ended,
    /// Past its memory limit: `OOMKilled`.
    OutOfMemory,
    /// Nobody knows: `ContainerStatusUnknown`.
    Lost,
}

/// One fact of a pod's life, to be in the journal before the actions planned in the same turn are performed.
///
/// All facts of a pod, in order, are its history: [`super::PodLife::recover`] makes the same life of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journaled {
    /// When it became so.
    pub at: Timestamp,
    /// What.
    pub fact: Fact,
}

/// What a journal entry says. A variant of a newer version is skipped by nobody: the agent's journal carries a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// The pod was taken on: `startTime`.
    Admitted,
    /// The sandbox stands, with these addresses.
    SandboxUp {
        /// The pod's addresses.
        ips: Vec<IpAddr>,
    },
    /// The runner died.
    SandboxLost,
    /// This is the image that the container runs from now on.
    ImageIs {
        /// Which container.
        container: ContainerName,
        /// For `imageID`.
        image_id: String,
    },
    /// The attempt is about to be sent. From here on nobody may send a later one before this one's end is known.
    AttemptSent {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
        /// Its image, as the spec names it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<Arc<str>>,
    },
    /// The attempt never ran; its number is free again.
    AttemptUnsent {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
    },
    /// The attempt runs.
    Started {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
        /// Since when.
        since: Timestamp,
    },
    /// The postStart hook is done.
    PostStartDone {
        /// Which container.
        container: ContainerName,
    },
    /// The running attempt's `started` and `ready` are now these.
    Probed {
        /// Which container.
        container: ContainerName,
        /// The startup probe has passed.
        started: bool,
        /// It takes requests.
        ready: bool,
    },
    /// This attempt alone is to end by then, and the container to go on as its restart policy says.
    ContainerEnds {
        /// Which container.
        container: ContainerName,
        /// When it is over.
        deadline: Timestamp,
        /// Another image takes its place, whatever the restart policy says.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        replaced: bool,
    },
    /// The preStop hook is done or given up.
    PreStopDone {
        /// Which container.
        container: ContainerName,
    },
    /// A stop with this deadline is about to be sent.
    StopSent {
        /// Which container.
        container: ContainerName,
        /// When it is over.
        deadline: Timestamp,
    },
    /// The attempt is over.
    Exited {
        /// Which container.
        container: ContainerName,
        /// Which attempt.
        attempt: u32,
        /// How it ended.
        exit: ExitRecord,
    },
    /// The whole pod is to end by then.
    PodEnds {
        /// When all is over.
        deadline: Timestamp,
        /// Why.
        why: EndReason,
        /// With no grace at all: kill, no hooks.
        forced: bool,
    },
    /// Nothing is left of it.
    TornDown,
    /// All that the facts before say of one container: they are not needed any more.
    ContainerSoFar {
        /// Which container.
        container: ContainerName,
        /// What they come to.
        so_far: Box<ContainerSoFar>,
    },
    /// All that the facts before say of the pod beside its containers; after those of all its containers.
    PodSoFar(Box<PodSoFar>),
}

impl Fact {
    /// Whether it has to outlive a power cut, and not the agent alone. What is said of a sandbox and of what runs in it does not: with
    /// the machine all of that is gone, and by what was sent the next agent knows what it has lost.
    pub fn outlives_the_machine(&self) -> bool {
        match self {
            Self::Admitted
            | Self::SandboxUp { .. }
            | Self::SandboxLost
            | Self::ImageIs { .. }
            | Self::Started { .. }
            | Self::PostStartDone { .. }
            | Self::Probed { .. } => false,
            Self::AttemptSent { .. }
            | Self::AttemptUnsent { .. }
            | Self::ContainerEnds { .. }
            | Self::PreStopDone { .. }
            | Self::StopSent { .. }
            | Self::Exited { .. }
            | Self::PodEnds { .. }
            | Self::TornDown
            | Self::ContainerSoFar { .. }
            | Self::PodSoFar(_) => true,
        }
    }
}

/// Why a pod ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// Its containers are done; only sidecars still run.
    Done,
    /// Somebody deleted it.
    Deleted,
    /// `activeDeadlineSeconds` is over.
    DeadlineExceeded,
    /// Its runner died, and nothing of it may run twice.
    Lost,
}

/// An event for `kubectl describe`, about the pod or one of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEventRecord {
    /// `Warning`; else `Normal`.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: String,
    /// What happened.
    pub message: String,
    /// `spec.containers{name}` and the like; none: the pod.
    pub field_path: Option<String>,
}
