//! The life of one pod: events go in by [`PodLife::observe`], steps come out of [`PodLife::plan`].
//!
//! A turn of the agent's loop, for one pod:
//! ```text
//! observe(event, now)…  →  plan(now)  →  take_facts() onto the disk  →  perform the actions, publish status()
//! ```
//! All that must survive a restart of the agent is a [`Fact`]; the state is nothing but the sum of its facts ([`mod@record`])
//! and of what is in flight. So [`PodLife::recover`] takes the facts and then hears, for each attempt in
//! [`PodLife::unconfirmed`], what its runner says: `Started`, `Exited`, `NotSeen` or `Lost`. A history that has grown long is
//! replaced by [`PodLife::so_far`], which comes to the same.
//!
//! Absent: time, disks, sockets; and how a pod looks from outside (`status`).

mod backoff;
mod container;
mod observe;
mod plan;
mod probe;
mod record;
mod so_far;
mod spec;
mod words;

use std::{net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

pub(crate) use self::{
    backoff::go_duration,
    container::{Ended, Slot, State},
    spec::{LifeSpec, Role},
};
pub use self::{
    so_far::{ContainerSoFar, PodSoFar},
    spec::{Handler, LONGEST},
    words::{
        Action, EndReason, ExitReason, ExitRecord, Fact, HookKind, Journaled, PodEvent,
        PodEventRecord, ProbeKind, ProbeResult, PullPolicy, Pulled,
    },
};
use crate::{
    annotations::{self, NodeCeilings},
    defaults, fields,
    name::ContainerName,
    refusal::Refusal,
    status::{Conditions, Phase},
    validate,
};

/// One pod: its spec, and how far its life is.
#[derive(Debug)]
pub struct PodLife {
    pub(crate) pod: Arc<Pod>,
    pub(crate) spec: LifeSpec,
    pub(crate) slots: Vec<Slot>,
    pub(crate) stage: Stage,
    pub(crate) sandbox: Sandbox,
    /// The addresses of the newest sandbox; kept when it is gone, as status shows them.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) start_time: Timestamp,
    /// All init containers are done in the present sandbox, all sidecars were started: the app containers may start.
    pub(crate) initialized: bool,
    pub(crate) conditions: Conditions,
    facts: Vec<Journaled>,
    events: Vec<PodEventRecord>,
}

/// A pod's way from start to end. There is no way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// What can run, runs.
    Live,
    /// Nothing starts any more, and what runs is stopped by the deadline.
    Ending {
        deadline: Timestamp,
        why: EndReason,
        /// No hooks, no shortest time.
        forced: bool,
    },
    /// Nothing runs any more. The phase is final.
    TearingDown {
        #[serde(skip)]
        asked: bool,
        phase: Phase,
        why: EndReason,
    },
    /// Nothing is left of it on this node but its status and its logs.
    Over { phase: Phase, why: EndReason },
}

/// The pod's volumes, addresses and place in a runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sandbox {
    /// To be made, not before then.
    Absent {
        not_before: Timestamp,
        /// The last set-up failed for want of something that the pod refers to.
        in_want: bool,
    },
    /// In the making.
    Asked {
        /// What the pod refers to has changed since.
        outdated: bool,
    },
    /// It stands.
    Up,
}

impl Sandbox {
    /// To be made, not before then, for whatever reason.
    pub(crate) fn absent(not_before: Timestamp) -> Self {
        Self::Absent { not_before, in_want: false }
    }

    /// In the making.
    pub(crate) fn is_asked(self) -> bool {
        matches!(self, Self::Asked { .. })
    }
}

impl PodLife {
    /// Takes a pod on, or says all that is wrong with it. Missing fields get the API server's defaults.
    pub fn admit(pod: Pod, ceilings: &NodeCeilings, now: Timestamp) -> Result<Self, Vec<Refusal>> {
        let (pod, spec) = judge(pod, ceilings)?;
        let mut life = Self::new(Arc::new(pod), spec, now);
        life.record(Fact::Admitted, now);
        Ok(life)
    }

    /// Goes on with another version of the pod: containers whose image has another name are ended and started anew, whatever the
    /// restart policy; another deadline counts; all else is for the next start, and for the volumes that show it. Nothing is
    /// journaled but what follows: whoever keeps the pod puts this version in the place of the last.
    ///
    /// # Errors
    /// All that is wrong with it. The pod stays as it is then.
    pub fn update(
        &mut self,
        pod: Pod,
        ceilings: &NodeCeilings,
        now: Timestamp,
    ) -> Result<(), Vec<Refusal>> {
        let (pod, spec) = judge(pod, ceilings)?;
        let names = |spec: &LifeSpec, ephemeral: bool| -> Vec<_> {
            let of_kind =
                spec.containers.iter().filter(|it| (it.role == Role::Ephemeral) == ephemeral);
            of_kind.map(|container| container.name.clone()).collect()
        };
        if names(&spec, false) != names(&self.spec, false) {
            let why = "the containers of a pod stay the same for its life";
            return Err(vec![Refusal::new("spec.containers", why)]);
        }
        if !names(&spec, true).starts_with(&names(&self.spec, true)) {
            let why = "ephemeral containers are added to a pod, and stay";
            return Err(vec![Refusal::new("spec.ephemeralContainers", why)]);
        }
        for (slot, container) in self.slots.iter_mut().zip(&spec.containers) {
            let is_other = slot.spec.image != container.image;
            slot.spec = container.clone();
            if is_other {
                slot.image_changed();
            }
        }
        // They are the last of all.
        let added = spec.containers[self.slots.len()..].iter().cloned();
        self.slots.extend(added.map(Slot::new));
        (self.pod, self.spec) = (Arc::new(pod), spec);
        self.settle(now);
        Ok(())
    }

    /// The same life again, after a restart of the agent: `pod` as it was admitted, and its facts in their order.
    ///
    /// Nothing is planned for the attempts in [`Self::unconfirmed`] before their runner has been asked.
    pub fn recover(
        mut pod: Arc<Pod>,
        history: &[Journaled],
        now: Timestamp,
    ) -> Result<Self, Vec<Refusal>> {
        defaults::apply(Arc::make_mut(&mut pod));
        let spec = LifeSpec::parse(&pod)?;
        let start = history.first().map_or(now, |first| first.at);
        let mut life = Self::new(pod, spec, start);
        if history.is_empty() {
            life.record(Fact::Admitted, now);
        }
        for Journaled { at, fact } in history {
            life.apply(fact, *at);
        }
        life.forget_what_was_in_flight(now);
        Ok(life)
    }

    fn new(pod: Arc<Pod>, spec: LifeSpec, start: Timestamp) -> Self {
        Self {
            slots: spec.containers.iter().cloned().map(Slot::new).collect(),
            pod,
            spec,
            stage: Stage::Live,
            sandbox: Sandbox::absent(Timestamp::MIN),
            ips: Vec::new(),
            start_time: start,
            initialized: false,
            conditions: Conditions::new(start),
            facts: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The pod, with its defaults.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// The pod's UID.
    pub fn uid(&self) -> &str {
        &self.spec.uid
    }

    /// The facts since the last call. They are to be journaled before the planned actions are performed, and on disk where they have
    /// to outlive the machine.
    #[must_use]
    pub fn take_facts(&mut self) -> Vec<Journaled> {
        std::mem::take(&mut self.facts)
    }

    /// The user's events since the last call.
    #[must_use]
    pub fn take_events(&mut self) -> Vec<PodEventRecord> {
        std::mem::take(&mut self.events)
    }

    /// Nothing is left of the pod but its status and its logs.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over { .. })
    }

    /// The attempts that the journal knows and that no runner has been asked about since the agent's start.
    pub fn unconfirmed(&self) -> Vec<(ContainerName, u32)> {
        let unconfirmed = |slot: &Slot| match &slot.state {
            State::Starting(s) if !s.confirmed => Some((slot.spec.name.clone(), s.attempt)),
            State::Running(r) if !r.confirmed => Some((slot.spec.name.clone(), r.attempt)),
            _ => None,
        };
        self.slots.iter().filter_map(unconfirmed).collect()
    }

    /// The containers with an instance, or with one that may exist.
    pub fn alive(&self) -> Vec<(ContainerName, u32)> {
        let alive = |slot: &Slot| Some((slot.spec.name.clone(), slot.live_attempt()?));
        self.slots.iter().filter_map(alive).collect()
    }

    /// What the containers' images were resolved to when they were last at hand: each a status's `imageID`.
    pub fn image_ids(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().filter_map(|slot| slot.image_id.as_deref())
    }

    /// The sandbox stands: after a restart of the agent it is looked for, and `SandboxLost` is said where it is gone.
    pub fn has_sandbox(&self) -> bool {
        self.sandbox == Sandbox::Up && !self.is_over()
    }

    /// The addresses of the newest sandbox.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// The first container that waits for good, with reason and message: the pod as it is can never run.
    pub fn can_never_run(&self) -> Option<(&ContainerName, &str, &str)> {
        self.slots.iter().find_map(|slot| {
            let trouble = slot.trouble.as_ref().filter(|trouble| trouble.until.is_none())?;
            Some((&slot.spec.name, trouble.reason.as_str(), trouble.message.as_str()))
        })
    }

    /// Why the pod ends or ended; none: it does not.
    pub fn end_reason(&self) -> Option<EndReason> {
        match self.stage {
            Stage::Live => None,
            Stage::Ending { why, .. }
            | Stage::TearingDown { why, .. }
            | Stage::Over { why, .. } => Some(why),
        }
    }

    fn slot_index(&self, name: &ContainerName) -> Option<usize> {
        self.slots.iter().position(|slot| slot.spec.name == *name)
    }

    fn slot_mut(&mut self, name: &ContainerName) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.spec.name == *name)
    }

    /// Makes it so, and has it journaled.
    fn record(&mut self, fact: Fact, now: Timestamp) {
        self.apply(&fact, now);
        self.facts.push(Journaled { at: now, fact });
    }

    fn event(&mut self, warning: bool, reason: &str, message: String, slot: Option<usize>) {
        let field_path = slot.map(|slot| self.slots[slot].spec.field_path.clone());
        self.events.push(PodEventRecord {
            warning,
            reason: reason.to_owned(),
            message,
            field_path,
        });
    }
}

/// The pod with its defaults, and what decides its life; or all that is wrong with it.
fn judge(mut pod: Pod, ceilings: &NodeCeilings) -> Result<(Pod, LifeSpec), Vec<Refusal>> {
    defaults::apply(&mut pod);
    let mut wrong = fields::check(&pod);
    wrong.extend(validate::check(&pod));
    if let Err(refusals) = annotations::parse(&pod, ceilings) {
        wrong.extend(refusals);
    }
    match LifeSpec::parse(&pod) {
        Ok(spec) if wrong.is_empty() => Ok((pod, spec)),
        Ok(_) => Err(wrong),
        Err(refusals) => {
            wrong.extend(refusals);
            wrong.dedup();
            Err(wrong)
        }
    }
}

#[cfg(test)]
mod tests;
