//! The status of each container: its state, the run before, and what of its spec is in effect.
//!
//! Absent: the pod's own status (`super`).

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
        ContainerStateWaiting, ContainerStatus, VolumeMountStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::containers::{self, List};
use crate::life::{Ended, ExitReason, PodLife, Role, Slot, Stage, State, go_duration};

/// Most bytes of one termination message; the kubelet's `MaxContainerTerminationMessageLength`.
const LONGEST_MESSAGE: usize = 4096;
/// Most bytes of all termination messages of a pod; the kubelet's `MaxPodTerminationMessageLogLength`.
const LONGEST_MESSAGES: usize = 12 * 1024;

/// One status for each container.
#[derive(Debug, Default)]
pub(super) struct ContainerStatuses {
    pub(super) apps: Vec<ContainerStatus>,
    pub(super) inits: Vec<ContainerStatus>,
    pub(super) ephemeral: Vec<ContainerStatus>,
}

impl PodLife {
    /// App containers and ephemeral ones by name, init containers and sidecars in spec order.
    pub(super) fn container_statuses(&self) -> ContainerStatuses {
        let mut statuses = ContainerStatuses::default();
        // The slots were made from these lists, in this order.
        for (slot, listed) in self.slots.iter().zip(containers::all(&self.pod)) {
            let status = self.container_status(slot, &listed.container);
            match listed.list {
                List::App => statuses.apps.push(status),
                List::Init => statuses.inits.push(status),
                List::Ephemeral => statuses.ephemeral.push(status),
            }
        }
        statuses.apps.sort_by(|a, b| a.name.cmp(&b.name));
        statuses.ephemeral.sort_by(|a, b| a.name.cmp(&b.name));
        statuses
    }

    fn container_status(&self, slot: &Slot, container: &Container) -> ContainerStatus {
        let (state, last_state) = self.states(slot);
        let (started, ready) = match &slot.state {
            State::Running(running) => (running.started, running.ready),
            State::Ended(ended) => (false, slot.spec.role == Role::Init && ended.exit.code == 0),
            State::Waiting(_) | State::Starting(_) => (false, false),
        };
        // A running init container that is no sidecar is never ready; it is ready once it is done.
        let ready =
            ready && (slot.spec.role != Role::Init || matches!(slot.state, State::Ended(_)));
        let newest = slot.attempts.checked_sub(1);
        let resources =
            container.resources.clone().filter(|resources| *resources != Default::default());
        ContainerStatus {
            name: slot.spec.name.to_string(),
            image: slot.spec.image.to_string(),
            image_id: slot.image_id.clone().unwrap_or_default(),
            container_id: newest.map(|attempt| self.container_id(slot, attempt)),
            ready,
            started: Some(started),
            restart_count: i32::try_from(newest.unwrap_or(0)).unwrap_or(i32::MAX),
            state: Some(state),
            last_state: Some(last_state),
            allocated_resources: resources
                .as_ref()
                .and_then(|resources| resources.requests.clone()),
            resources,
            volume_mounts: container.volume_mounts.as_ref().map(|mounts| {
                let status = |mount: &k8s_openapi::api::core::v1::VolumeMount| VolumeMountStatus {
                    mount_path: mount.mount_path.clone(),
                    name: mount.name.clone(),
                    read_only: mount.read_only,
                    recursive_read_only: mount.read_only.and_then(|read_only| {
                        read_only.then(|| {
                            mount
                                .recursive_read_only
                                .clone()
                                .unwrap_or_else(|| "Disabled".to_owned())
                        })
                    }),
                    volume_status: None,
                };
                mounts.iter().map(status).collect()
            }),
            ..ContainerStatus::default()
        }
    }

    /// `state` and `lastState`.
    fn states(&self, slot: &Slot) -> (ContainerState, ContainerState) {
        let last = slot.last.as_ref().map(|ended| self.terminated(slot, ended)).unwrap_or_default();
        match &slot.state {
            State::Ended(ended) => (self.terminated(slot, ended), last),
            State::Running(running) => {
                let since = ContainerStateRunning { started_at: Some(Time(running.since)) };
                (ContainerState { running: Some(since), ..ContainerState::default() }, last)
            }
            // A pod that is to end restarts nothing: its crashed container is just over.
            State::Waiting(_) if self.stage != Stage::Live && slot.last.is_some() => {
                (last, ContainerState::default())
            }
            State::Waiting(_) | State::Starting(_) => {
                let waiting = Some(self.waiting(slot));
                (ContainerState { waiting, ..ContainerState::default() }, last)
            }
        }
    }

    fn waiting(&self, slot: &Slot) -> ContainerStateWaiting {
        if let Some(trouble) = &slot.trouble {
            return ContainerStateWaiting {
                reason: Some(trouble.reason.clone()),
                message: Some(trouble.message.clone()),
            };
        }
        if let State::Waiting(waiting) = &slot.state
            && let Some((_, wait)) = waiting.crashed.filter(|(_, wait)| !wait.is_zero())
        {
            return ContainerStateWaiting {
                reason: Some("CrashLoopBackOff".to_owned()),
                message: Some(format!(
                    "back-off {} restarting failed container={} pod={}",
                    go_duration(wait),
                    slot.spec.name,
                    self.pod_in_messages(),
                )),
            };
        }
        let has_inits = self.slots.iter().any(|slot| slot.spec.role.is_init());
        let reason = if has_inits { "PodInitializing" } else { "ContainerCreating" };
        ContainerStateWaiting { reason: Some(reason.to_owned()), message: None }
    }

    fn terminated(&self, slot: &Slot, ended: &Ended) -> ContainerState {
        let exit = &ended.exit;
        let reason = match exit.reason {
            ExitReason::Ended if exit.code == 0 => "Completed",
            ExitReason::Ended => "Error",
            ExitReason::OutOfMemory => "OOMKilled",
            ExitReason::Lost => "ContainerStatusUnknown",
        };
        let most = LONGEST_MESSAGE.min(LONGEST_MESSAGES / self.slots.len().max(1));
        let message = &exit.message[..exit.message.floor_char_boundary(most)];
        ContainerState {
            terminated: Some(ContainerStateTerminated {
                container_id: ended.attempt.map(|attempt| self.container_id(slot, attempt)),
                exit_code: exit.code,
                finished_at: Some(Time(exit.finished_at)),
                message: (!message.is_empty()).then(|| message.to_owned()),
                reason: Some(reason.to_owned()),
                signal: None,
                started_at: exit.started_at.map(Time),
            }),
            ..ContainerState::default()
        }
    }

    fn container_id(&self, slot: &Slot, attempt: u32) -> String {
        format!("copepod://{}/{}/{attempt}", self.spec.uid, slot.spec.name)
    }
}
