//! A pod's life as Kubernetes reports it: phase, conditions, and in [`containers`] one status per container.
//!
//! Absent: writing it to an API server, and conditions of other owners (readiness gates).

mod containers;
mod qos;

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{HostIP, PodCondition, PodIP, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde::{Deserialize, Serialize};

use self::containers::ContainerStatuses;
pub use self::qos::{QosClass, qos_class};
use crate::life::{EndReason, PodLife, Role, Sandbox, Slot, Stage, State};

/// A pod's phase. `Succeeded` and `Failed` never change any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// An init container is not done, or an app container has never run.
    Pending,
    /// It runs, or will again.
    Running,
    /// All its containers ended with 0.
    Succeeded,
    /// All its containers ended, not all with 0.
    Failed,
}

impl Phase {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// It never changes any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// The conditions that are ours, each with the time of its last flip. Reasons and messages follow from the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Conditions {
    ready_to_start: Flag,
    initialized: Flag,
    ready: Flag,
    containers_ready: Flag,
    scheduled: Flag,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Flag {
    up: bool,
    since: Timestamp,
}

impl Flag {
    fn set(&mut self, up: bool, now: Timestamp) {
        if self.up != up {
            *self = Self { up, since: now };
        }
    }
}

impl Conditions {
    pub(crate) fn new(start: Timestamp) -> Self {
        let flag = |up| Flag { up, since: start };
        Self {
            ready_to_start: flag(false),
            initialized: flag(false),
            ready: flag(false),
            containers_ready: flag(false),
            scheduled: flag(true),
        }
    }
}

impl PodLife {
    /// The pod's phase.
    pub fn phase(&self) -> Phase {
        if let Stage::TearingDown { phase, .. } | Stage::Over { phase, .. } = self.stage {
            return phase;
        }
        let mut mains = self.slots.iter().filter(|slot| slot.spec.role == Role::Main);
        if mains.all(|slot| slot.attempts > 0) { Phase::Running } else { Phase::Pending }
    }

    /// The pod's status, on a node with these addresses.
    pub fn status(&self, host_ips: &[IpAddr]) -> PodStatus {
        let phase = self.phase();
        let over_deadline =
            self.end_reason() == Some(EndReason::DeadlineExceeded) && phase.is_terminal();
        let ContainerStatuses { apps, inits, ephemeral } = self.container_statuses();
        PodStatus {
            conditions: Some(self.conditions()),
            container_statuses: Some(apps),
            ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
            init_container_statuses: (!inits.is_empty()).then_some(inits),
            host_ip: host_ips.first().map(IpAddr::to_string),
            host_ips: (!host_ips.is_empty())
                .then(|| host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
            message: over_deadline.then(|| {
                "Pod was active on the node longer than the specified deadline".to_owned()
            }),
            reason: over_deadline.then(|| "DeadlineExceeded".to_owned()),
            observed_generation: self.spec.generation,
            phase: Some(phase.as_str().to_owned()),
            pod_ip: self.ips.first().map(IpAddr::to_string),
            pod_ips: (!self.ips.is_empty())
                .then(|| self.ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
            qos_class: Some(qos_class(&self.pod).as_str().to_owned()),
            start_time: Some(Time(self.start_time)),
            ..PodStatus::default()
        }
    }

    /// The pod takes requests.
    pub fn is_ready(&self) -> bool {
        self.conditions.ready.up
    }

    /// Flips the conditions that the state asks for.
    pub(crate) fn refresh_conditions(&mut self, now: Timestamp) {
        let terminal = self.phase().is_terminal();
        let has_inits = self.slots.iter().any(|slot| slot.spec.role.is_init());
        let ready =
            !terminal && self.slots.iter().filter(|slot| slot.spec.role.counts()).all(is_ready);
        let up = self.sandbox == Sandbox::Up && !terminal;
        let initialized = self.conditions.initialized.up || self.initialized || !has_inits;
        self.conditions.ready_to_start.set(up, now);
        self.conditions.initialized.set(initialized, now);
        self.conditions.containers_ready.set(ready, now);
        self.conditions.ready.set(ready, now);
    }

    /// In a kubelet's order.
    fn conditions(&self) -> Vec<PodCondition> {
        let flags = &self.conditions;
        let not_up = || ("PodSandboxNotReady", None);
        let (not_initialized, not_ready) = (|| self.not_initialized(), || self.not_ready());
        let completed = self.phase() == Phase::Succeeded;
        let initialized = self.condition("Initialized", flags.initialized, &not_initialized);
        vec![
            self.condition("PodReadyToStartContainers", flags.ready_to_start, &not_up),
            PodCondition {
                reason: initialized.reason.or(completed.then(|| "PodCompleted".to_owned())),
                ..initialized
            },
            self.condition("Ready", flags.ready, &not_ready),
            self.condition("ContainersReady", flags.containers_ready, &not_ready),
            self.condition("PodScheduled", flags.scheduled, &|| ("", None)),
        ]
    }

    fn condition(
        &self,
        type_: &str,
        flag: Flag,
        why_not: &dyn Fn() -> (&'static str, Option<String>),
    ) -> PodCondition {
        let (reason, message) = if flag.up { ("", None) } else { why_not() };
        PodCondition {
            type_: type_.to_owned(),
            status: if flag.up { "True" } else { "False" }.to_owned(),
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            message,
            last_transition_time: Some(Time(flag.since)),
            observed_generation: self.spec.generation,
            last_probe_time: None,
        }
    }

    fn not_initialized(&self) -> (&'static str, Option<String>) {
        let inits = self.slots.iter().filter(|slot| slot.spec.role.is_init());
        let open = names(inits.filter(|slot| !slot.lets_the_next_start()));
        ("ContainersNotInitialized", Some(format!("containers with incomplete status: [{open}]")))
    }

    fn not_ready(&self) -> (&'static str, Option<String>) {
        match self.phase() {
            Phase::Succeeded => ("PodCompleted", None),
            Phase::Failed => ("PodFailed", None),
            Phase::Pending | Phase::Running => {
                // As a kubelet lists them: sidecars, then app containers, each in spec order.
                let counted = self.slots.iter().filter(|slot| slot.spec.role.counts());
                let unready = names(counted.filter(|slot| !is_ready(slot)));
                let message = format!("containers with unready status: [{unready}]");
                ("ContainersNotReady", Some(message))
            }
        }
    }
}

/// The container takes requests.
fn is_ready(slot: &Slot) -> bool {
    matches!(&slot.state, State::Running(running) if running.ready)
}

fn names<'a>(slots: impl Iterator<Item = &'a Slot>) -> String {
    slots.map(|slot| slot.spec.name.as_str()).collect::<Vec<_>>().join(" ")
}
