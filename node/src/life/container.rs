//! One container of a pod: its states, and the moves between them.
//!
//! Absent: when to move (`turn` decides) and how it looks from outside (`status`).

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    backoff::{CrashBackoff, later},
    probe::Probers,
    spec::{ContainerSpec, Role},
    words::{ExitReason, ExitRecord},
};

/// The least time between the word to stop and the kill; a kubelet's `minimumGracePeriodInSeconds`.
const SHORTEST_STOP: Duration = Duration::from_secs(2);

/// A container and what is remembered of it from one run to the next.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) spec: Arc<ContainerSpec>,
    pub(crate) state: State,
    /// The run before the one that `state` speaks of.
    pub(crate) last: Option<Ended>,
    /// How many attempts have run, which is also the next one's number.
    pub(crate) attempts: u32,
    /// How many attempts were ever sent: at most one more than `attempts`.
    pub(super) sent: u32,
    pub(crate) image_id: Option<String>,
    pub(super) crashes: CrashBackoff,
    /// Why the start is held up. Not journaled: after a restart of the agent it is simply tried again.
    pub(crate) trouble: Option<Trouble>,
}

/// A container's states. Serialized without what is in flight.
///
/// ```text
/// Waiting ──attempt sent──▶ Starting ──started──▶ Running ──exited──▶ Ended
///    ▲  ▲                      │                                        │
///    │  └───── never ran ──────┘                                        │
///    └──────────────────── restart, after back-off ─────────────────────┘
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// No instance. Its image is fetched and it is started, once its turn and the time have come.
    Waiting(Waiting),
    /// An attempt was sent and nobody has said yet what became of it.
    Starting(Starting),
    /// An instance runs. It is probed, and left alone until it is to end.
    Running(Running),
    /// The last run is over, and no other follows.
    Ended(Ended),
}

/// Waiting for its turn, its image, or the time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    /// The end of the crash back-off and its length.
    pub(crate) crashed: Option<(Timestamp, Duration)>,
    #[serde(skip)]
    pub(crate) image: Image,
}

/// How far the image is, for the next start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Image {
    /// To be asked for.
    #[default]
    Wanted,
    /// Asked for.
    Asked,
    /// Asked for by a name that the spec has another for since: the answer is of no use.
    Superseded,
    /// Here.
    Here,
}

/// What held up a start, and until when.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// With the image; else with the start.
    pub(crate) image: bool,
    /// How long the wait is.
    pub(crate) wait: Duration,
    /// When to try again; none: never, it cannot help.
    pub(crate) until: Option<Timestamp>,
}

/// An attempt on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Starting {
    pub(crate) attempt: u32,
    /// Sent by this agent, or found by it; else nobody has looked since the agent's start.
    #[serde(skip)]
    pub(crate) confirmed: bool,
    /// What the pod refers to has changed since.
    #[serde(skip)]
    pub(crate) outdated: bool,
    /// As in [`Running`].
    #[serde(default)]
    pub(crate) image: Option<Arc<str>>,
}

/// A live instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) attempt: u32,
    pub(crate) since: Timestamp,
    /// Seen by this agent; else nobody has looked since the agent's start.
    #[serde(skip)]
    pub(crate) confirmed: bool,
    pub(crate) post_start: Hook,
    /// The startup probe has passed, and the postStart hook is done.
    pub(crate) started: bool,
    /// It takes requests.
    pub(crate) ready: bool,
    #[serde(skip)]
    pub(crate) probers: Probers,
    pub(crate) ending: Option<Ending>,
    /// The image that it was started from, as the spec named it; none: an agent sent it that did not say.
    #[serde(default)]
    pub(crate) image: Option<Arc<str>>,
    /// It ends so that another image takes its place, whatever the restart policy says.
    #[serde(default)]
    pub(crate) replaced: bool,
}

/// A hook of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Hook {
    /// To be run.
    Due,
    /// Out.
    Asked,
    /// Done, given up, or there is none.
    Over,
}

/// An instance that is to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ending {
    /// By when.
    pub(crate) deadline: Timestamp,
    /// No hook, no shortest time.
    pub(crate) forced: bool,
    pub(crate) pre_stop: Hook,
    sent: Option<Sent>,
}

/// The stop as it was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sent {
    deadline: Timestamp,
    at: Timestamp,
    /// By this agent.
    #[serde(skip)]
    confirmed: bool,
}

/// A run that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// None: it never ran.
    pub(crate) attempt: Option<u32>,
    pub(crate) exit: ExitRecord,
}

impl Slot {
    pub(crate) fn new(spec: Arc<ContainerSpec>) -> Self {
        Self {
            spec,
            state: State::Waiting(Waiting::default()),
            last: None,
            attempts: 0,
            sent: 0,
            image_id: None,
            crashes: CrashBackoff::default(),
            trouble: None,
        }
    }

    /// An instance may exist.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.state, State::Starting(_) | State::Running(_))
    }

    /// The attempt that may exist.
    pub(crate) fn live_attempt(&self) -> Option<u32> {
        match &self.state {
            State::Starting(starting) => Some(starting.attempt),
            State::Running(running) => Some(running.attempt),
            State::Waiting(_) | State::Ended(_) => None,
        }
    }

    /// The instance, where the event speaks of it.
    pub(crate) fn running(&mut self, attempt: u32) -> Option<&mut Running> {
        match &mut self.state {
            State::Running(running) if running.attempt == attempt => Some(running),
            _ => None,
        }
    }

    /// The next init container may start.
    pub(crate) fn lets_the_next_start(&self) -> bool {
        match (&self.state, self.spec.role) {
            (State::Ended(ended), Role::Init) => ended.exit.code == 0,
            (State::Running(running), Role::Sidecar) => running.started,
            _ => false,
        }
    }

    /// The app container after this one waits: this one is at its first start or in its postStart hook.
    pub(crate) fn holds_up_the_next(&self) -> bool {
        self.last.is_none()
            && match &self.state {
                State::Waiting(waiting) => waiting.image != Image::Wanted,
                State::Starting(_) => true,
                State::Running(running) => {
                    running.post_start != Hook::Over && running.ending.is_none()
                }
                State::Ended(_) => false,
            }
    }

    /// When a waiting container may go on; none where it is not waiting, in work, or held for good.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        let State::Waiting(waiting) = &self.state else { return None };
        if matches!(waiting.image, Image::Asked | Image::Superseded) {
            return None;
        }
        let crashed = waiting.crashed.map_or(Timestamp::MIN, |(until, _)| until);
        let held = self.trouble.as_ref().map_or(Some(Timestamp::MIN), |trouble| trouble.until)?;
        Some(crashed.max(held))
    }

    /// It runs from another image than the spec names now. An init container runs to its end, and an ephemeral one never changes.
    pub(crate) fn is_outdated(&self) -> bool {
        let State::Running(Running { image: Some(image), .. }) = &self.state else { return false };
        *image != self.spec.image && self.spec.role.counts()
    }

    /// The spec names another image from now on; whatever was found out about the one before is of no use.
    pub(crate) fn image_changed(&mut self) {
        self.trouble.take_if(|trouble| trouble.image);
        if let State::Waiting(waiting) = &mut self.state {
            waiting.crashed = None;
            waiting.image = match waiting.image {
                Image::Asked | Image::Superseded => Image::Superseded,
                Image::Wanted | Image::Here => Image::Wanted,
            };
        }
    }

    /// Waiting → Starting.
    pub(crate) fn sent(&mut self, attempt: u32, image: Option<Arc<str>>, now: Timestamp) {
        if attempt >= self.sent {
            self.sent = attempt + 1;
            if let Some(last) = &self.last {
                self.crashes.restarted(last.exit.finished_at, now);
            }
        }
        self.state = State::Starting(Starting { attempt, confirmed: true, outdated: false, image });
    }

    /// Starting → Waiting: it never ran.
    pub(crate) fn unsent(&mut self) {
        self.state = State::Waiting(Waiting::default());
    }

    /// Starting → Running.
    pub(crate) fn started(&mut self, attempt: u32, since: Timestamp) {
        self.attempts = attempt + 1;
        self.trouble = None;
        let spec = &self.spec;
        let post_start = if spec.post_start.is_some() { Hook::Due } else { Hook::Over };
        let started = post_start == Hook::Over && spec.startup.is_none();
        let image = match &mut self.state {
            State::Starting(starting) => starting.image.take(),
            _ => None,
        };
        self.state = State::Running(Running {
            attempt,
            since,
            confirmed: true,
            post_start,
            started,
            ready: started && spec.readiness.is_none(),
            probers: Probers::default(),
            ending: None,
            image,
            replaced: false,
        });
    }

    /// Starting or Running → Ended, or on to Waiting where `restarts` and the policy says so.
    pub(crate) fn exited(&mut self, attempt: u32, exit: ExitRecord, restarts: bool) {
        self.attempts = attempt + 1;
        self.trouble = None;
        let replaced = matches!(&self.state, State::Running(running) if running.replaced);
        // An attempt replayed without its sending (a fast exit) still counts as sent.
        self.sent = self.sent.max(self.attempts);
        let ended = Ended { attempt: Some(attempt), exit };
        self.state = if restarts && (replaced || self.spec.restarts_after(ended.exit.code)) {
            // Of another image nothing is known that would hold it back.
            let crashed = (!replaced).then(|| self.crashes.after(ended.exit.finished_at));
            let waiting = Waiting { crashed, image: Image::Wanted };
            self.last = Some(ended);
            State::Waiting(waiting)
        } else {
            State::Ended(ended)
        };
    }

    /// Ended or Waiting → Waiting: an init container runs once more, in a new sandbox.
    pub(crate) fn again(&mut self) {
        if let State::Ended(ended) = &self.state {
            self.last = Some(ended.clone());
            self.state = State::Waiting(Waiting::default());
        }
    }

    /// Waiting → Ended, as the pod is over: with the last run, or with 137 if `must_have_run`.
    pub(crate) fn over(&mut self, must_have_run: bool, now: Timestamp) {
        if !matches!(self.state, State::Waiting(_)) {
            return;
        }
        if let Some(last) = self.last.take() {
            self.state = State::Ended(last);
        } else if must_have_run {
            self.state = State::Ended(Ended { attempt: None, exit: lost(None, now) });
        }
    }
}

impl State {
    /// What was in flight when the agent died is not: whether it arrived is for the runner to say.
    pub(crate) fn forget_what_is_in_flight(&mut self) {
        match self {
            Self::Waiting(waiting) => waiting.image = Image::Wanted,
            Self::Starting(starting) => {
                starting.confirmed = false;
                starting.outdated = false;
            }
            Self::Running(running) => {
                running.confirmed = false;
                running.post_start.forget_asking();
                running.probers = Probers::default();
                if let Some(ending) = &mut running.ending {
                    ending.pre_stop.forget_asking();
                    ending.forget_sending();
                }
            }
            Self::Ended(_) => {}
        }
    }
}

impl Hook {
    /// An answer that went to an agent that is gone never comes.
    fn forget_asking(&mut self) {
        if *self == Self::Asked {
            *self = Self::Due;
        }
    }
}

impl Running {
    /// It is to end by then; of two deadlines the nearer holds.
    pub(crate) fn end(&mut self, spec: &ContainerSpec, deadline: Timestamp, forced: bool) {
        match &mut self.ending {
            Some(ending) => {
                ending.deadline = ending.deadline.min(deadline);
                ending.forced |= forced;
            }
            none => {
                let pre_stop = if spec.pre_stop.is_some() { Hook::Due } else { Hook::Over };
                *none = Some(Ending { deadline, forced, pre_stop, sent: None });
            }
        }
    }

    /// Its probes may be asked: only after the postStart hook, and not before somebody has seen it.
    pub(crate) fn is_probed(&self) -> bool {
        self.confirmed && self.post_start == Hook::Over
    }
}

impl Ending {
    /// Nothing but its turn stands between it and its stop.
    pub(crate) fn may_stop(&self, now: Timestamp) -> bool {
        self.pre_stop == Hook::Over || self.must_stop(now)
    }

    /// Neither hook nor turn is waited for any longer.
    pub(crate) fn must_stop(&self, now: Timestamp) -> bool {
        self.forced || now >= self.deadline
    }

    /// The deadline to send now, if one is to be sent; `Err` where it is already in the journal.
    pub(crate) fn stop(&self, now: Timestamp) -> Option<Result<Timestamp, Timestamp>> {
        let least = |told: Timestamp| {
            if self.forced { self.deadline } else { self.deadline.max(later(told, SHORTEST_STOP)) }
        };
        match &self.sent {
            None => Some(Ok(least(now))),
            Some(sent) if least(sent.at) < sent.deadline => Some(Ok(least(sent.at))),
            Some(sent) if !sent.confirmed => Some(Err(sent.deadline)),
            Some(_) => None,
        }
    }

    /// The stop was told.
    pub(crate) fn told(&mut self, deadline: Timestamp, now: Timestamp) {
        let at = self.sent.as_ref().map_or(now, |sent| sent.at);
        self.sent = Some(Sent { deadline, at, confirmed: true });
    }

    /// The stop in the journal has gone out once more.
    pub(crate) fn told_again(&mut self) {
        if let Some(sent) = &mut self.sent {
            sent.confirmed = true;
        }
    }

    /// This agent has sent nothing yet.
    fn forget_sending(&mut self) {
        if let Some(sent) = &mut self.sent {
            sent.confirmed = false;
        }
    }

    /// No stop was told yet.
    pub(crate) fn is_untold(&self) -> bool {
        self.sent.is_none()
    }
}

/// The record of a run of which nobody knows the end.
pub(crate) fn lost(started_at: Option<Timestamp>, now: Timestamp) -> ExitRecord {
    ExitRecord {
        code: 137,
        reason: ExitReason::Lost,
        message: "The container could not be located when the pod was terminated".to_owned(),
        started_at,
        finished_at: now,
    }
}
