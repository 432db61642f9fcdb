//! What an event makes of a life: the facts in it, and the user's events.
//!
//! Absent: what to do next (`plan`). An event that fits nothing (too late, twice) is dropped without a word.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    EndReason, ExitRecord, Fact, HookKind, PodEvent, PodLife, ProbeKind, ProbeResult, Pulled, Role,
    Sandbox, Slot, Stage, State,
    backoff::{self, go_duration, later},
    container::{Hook, Image, Trouble, lost},
    probe::{Verdict, probe_of},
};
use crate::name::ContainerName;

/// How long after a failed set-up, or a start that failed for want of something, the next try is; a kubelet's resync after an error.
const RETRY: Duration = Duration::from_secs(10);

/// The reasons of what fails for want of an object, among others: another try costs little, so none is told apart.
const IN_WANT_OF_A_VOLUME: &str = "FailedMount";
const IN_WANT_OF_A_VARIABLE: &str = "CreateContainerConfigError";

impl PodLife {
    /// Takes in what happened.
    pub fn observe(&mut self, event: PodEvent, now: Timestamp) {
        match event {
            PodEvent::SetUp { ips } => {
                if self.sandbox.is_asked() {
                    match self.stage {
                        Stage::Live => self.record(Fact::SandboxUp { ips }, now),
                        // Nobody needs it any more; it is torn down at once.
                        _ => self.sandbox = Sandbox::absent(now),
                    }
                }
            }
            PodEvent::SetUpFailed { reason, message } => {
                if let Sandbox::Asked { outdated } = self.sandbox {
                    let in_want = reason == IN_WANT_OF_A_VOLUME;
                    let wait = if in_want && outdated { Duration::ZERO } else { RETRY };
                    self.sandbox = Sandbox::Absent { not_before: later(now, wait), in_want };
                    self.event(true, &reason, message, None);
                    self.settle(now);
                }
            }
            PodEvent::ObjectsChanged => self.objects_changed(now),
            PodEvent::SandboxLost => self.sandbox_lost(now),
            PodEvent::Pulling { container } => {
                if let Some(i) = self.pulling(&container) {
                    let message = format!("Pulling image \"{}\"", self.slots[i].spec.image);
                    self.event(false, "Pulling", message, Some(i));
                }
            }
            PodEvent::ImageReady { container, image_id, pulled } => {
                self.image_ready(&container, image_id, pulled, now);
            }
            PodEvent::ImageFailed { container, reason, message, retry } => {
                self.image_failed(&container, &reason, &message, retry, now);
            }
            PodEvent::Started { container, attempt, at } => {
                self.started(container, attempt, at, now);
            }
            PodEvent::StartFailed { container, attempt, reason, message, retry } => {
                self.start_failed(container, attempt, reason, message, retry, now);
            }
            PodEvent::Exited { container, attempt, exit } => {
                self.exited(container, attempt, Some(exit), now);
            }
            PodEvent::Lost { container, attempt } => self.exited(container, attempt, None, now),
            PodEvent::NotSeen { container, attempt } => {
                let Some(slot) = self.slot_mut(&container) else { return };
                match &slot.state {
                    State::Starting(starting) if starting.attempt == attempt => {
                        self.record(Fact::AttemptUnsent { container, attempt }, now);
                    }
                    // It ran once: whatever its runner remembers, it is not to run a second time.
                    _ => self.exited(container, attempt, None, now),
                }
            }
            PodEvent::ProbeDone { container, attempt, probe, result } => {
                self.probed(&container, attempt, probe, &result, now);
            }
            PodEvent::HookDone { container, attempt, hook, result } => {
                self.hooked(container, attempt, hook, result, now);
            }
            PodEvent::DeleteAsked { grace } => self.delete_asked(grace, now),
            PodEvent::TornDown => {
                if matches!(self.stage, Stage::TearingDown { asked: true, .. }) {
                    self.record(Fact::TornDown, now);
                }
            }
        }
    }

    /// Hastens what waits for an object, and has what is under way without the new ones tried again as soon as it fails.
    fn objects_changed(&mut self, now: Timestamp) {
        match &mut self.sandbox {
            Sandbox::Absent { not_before, in_want: true } => *not_before = now.min(*not_before),
            Sandbox::Asked { outdated } => *outdated = true,
            Sandbox::Absent { .. } | Sandbox::Up => {}
        }
        for slot in &mut self.slots {
            match (&mut slot.state, &mut slot.trouble) {
                (State::Starting(starting), _) => starting.outdated = true,
                (State::Waiting(_), Some(Trouble { reason, until: Some(until), .. }))
                    if reason == IN_WANT_OF_A_VARIABLE =>
                {
                    *until = now.min(*until);
                }
                _ => {}
            }
        }
    }

    fn sandbox_lost(&mut self, now: Timestamp) {
        if self.sandbox != Sandbox::Up || !matches!(self.stage, Stage::Live | Stage::Ending { .. })
        {
            return;
        }
        for (container, attempt) in self.alive() {
            self.exited(container, attempt, None, now);
        }
        if self.stage == Stage::Live {
            let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
            self.event(false, "SandboxChanged", message, None);
        }
        self.record(Fact::SandboxLost, now);
    }

    /// The container, where its image's answer is awaited; the answer for one that the spec no longer names is of no use.
    fn awaited(&mut self, container: &ContainerName) -> Option<usize> {
        if let Some(Slot { state: State::Waiting(waiting), .. }) = self.slot_mut(container)
            && waiting.image == Image::Superseded
        {
            waiting.image = Image::Wanted;
        }
        self.pulling(container)
    }

    /// The container, while its image is asked for.
    fn pulling(&self, container: &ContainerName) -> Option<usize> {
        let i = self.slot_index(container)?;
        let asked = matches!(&self.slots[i].state, State::Waiting(w) if w.image == Image::Asked);
        asked.then_some(i)
    }

    fn image_ready(
        &mut self,
        container: &ContainerName,
        image_id: String,
        pulled: Option<Pulled>,
        now: Timestamp,
    ) {
        let Some(i) = self.awaited(container) else { return };
        let slot = &mut self.slots[i];
        if let State::Waiting(waiting) = &mut slot.state {
            waiting.image = Image::Here;
        }
        slot.trouble.take_if(|trouble| trouble.image);
        let image = &slot.spec.image;
        let message = match pulled {
            Some(Pulled { took, waited, bytes }) => format!(
                "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {bytes} bytes.",
                go_duration(took),
                go_duration(waited),
            ),
            None => format!(
                "Container image \"{image}\" already present on machine and can be accessed by the pod"
            ),
        };
        let changed = slot.image_id.as_ref() != Some(&image_id);
        self.event(false, "Pulled", message, Some(i));
        if changed {
            self.record(Fact::ImageIs { container: container.clone(), image_id }, now);
        }
    }

    fn image_failed(
        &mut self,
        container: &ContainerName,
        reason: &str,
        message: &str,
        retry: bool,
        now: Timestamp,
    ) {
        let Some(i) = self.awaited(container) else { return };
        let slot = &mut self.slots[i];
        if let State::Waiting(waiting) = &mut slot.state {
            waiting.image = Image::Wanted;
        }
        let before = slot.trouble.as_ref().filter(|trouble| trouble.image);
        let again = before.is_some() && retry;
        let wait = before.map_or(backoff::FIRST, |before| backoff::doubled(before.wait));
        let image = slot.spec.image.clone();
        // As a kubelet: the second failure in a row is told as the wait that follows it.
        let shown = match reason {
            "ErrImagePull" | "RegistryUnavailable" if again => "ImagePullBackOff",
            _ => reason,
        };
        let shown_message = if shown == reason {
            message.to_owned()
        } else {
            format!("Back-off pulling image \"{image}\": {reason}: {message}")
        };
        slot.trouble = Some(Trouble {
            reason: shown.to_owned(),
            message: shown_message,
            image: true,
            wait,
            until: retry.then(|| later(now, wait)),
        });
        self.event(true, "Failed", format!("Failed to pull image \"{image}\": {message}"), Some(i));
        self.event(true, "Failed", format!("Error: {reason}"), Some(i));
        if again {
            self.event(false, "BackOff", format!("Back-off pulling image \"{image}\""), Some(i));
            self.event(true, "Failed", "Error: ImagePullBackOff".to_owned(), Some(i));
        }
        self.settle(now);
    }

    fn started(
        &mut self,
        container: ContainerName,
        attempt: u32,
        since: Timestamp,
        now: Timestamp,
    ) {
        let Some(i) = self.slot_index(&container) else { return };
        match &mut self.slots[i].state {
            State::Starting(starting) if starting.attempt == attempt => {
                self.event(false, "Created", "Container created".to_owned(), Some(i));
                self.event(false, "Started", "Container started".to_owned(), Some(i));
                self.record(Fact::Started { container, attempt, since }, now);
                if matches!(self.stage, Stage::Ending { .. }) {
                    self.killing_event(i);
                }
            }
            State::Running(running) if running.attempt == attempt => running.confirmed = true,
            _ => {}
        }
    }

    fn start_failed(
        &mut self,
        container: ContainerName,
        attempt: u32,
        reason: String,
        message: String,
        retry: bool,
        now: Timestamp,
    ) {
        let Some(i) = self.slot_index(&container) else { return };
        let outdated = match &self.slots[i].state {
            State::Starting(starting) if starting.attempt == attempt => starting.outdated,
            _ => return,
        };
        self.event(true, "Failed", format!("Error: {message}"), Some(i));
        self.record(Fact::AttemptUnsent { container, attempt }, now);
        let slot = &mut self.slots[i];
        let before = slot.trouble.as_ref().filter(|trouble| !trouble.image);
        // What the container's configuration waits for (a ConfigMap) may come any moment; a runner that refuses is not pressed.
        let wait = match before {
            Some(before) if reason != IN_WANT_OF_A_VARIABLE => backoff::doubled(before.wait),
            _ => RETRY,
        };
        let at_once = outdated && reason == IN_WANT_OF_A_VARIABLE;
        let until = retry.then(|| if at_once { now } else { later(now, wait) });
        slot.trouble = Some(Trouble { reason, message, image: false, wait, until });
        self.settle(now);
    }

    fn exited(
        &mut self,
        container: ContainerName,
        attempt: u32,
        exit: Option<ExitRecord>,
        now: Timestamp,
    ) {
        let Some(i) = self.slot_index(&container) else { return };
        if self.slots[i].live_attempt() != Some(attempt) {
            return;
        }
        let exit = exit.unwrap_or_else(|| {
            let since = match &self.slots[i].state {
                State::Running(running) => Some(running.since),
                _ => None,
            };
            lost(since, now)
        });
        self.record(Fact::Exited { container, attempt, exit }, now);
        if let State::Waiting(waiting) = &self.slots[i].state
            && waiting.crashed.is_some_and(|(until, _)| until > now)
        {
            let message = format!(
                "Back-off restarting failed container {} in pod {}",
                self.slots[i].spec.name,
                self.pod_in_messages()
            );
            self.event(true, "BackOff", message, Some(i));
        }
    }

    fn probed(
        &mut self,
        container: &ContainerName,
        attempt: u32,
        kind: ProbeKind,
        result: &ProbeResult,
        now: Timestamp,
    ) {
        let Some(i) = self.slot_index(container) else { return };
        let spec = self.slots[i].spec.clone();
        let Some(probe) = probe_of(&spec, kind) else { return };
        let Some(running) = self.slots[i].running(attempt) else { return };
        let Some(verdict) = running.probers.answer(kind, probe, result) else { return };
        if running.ending.is_some() && kind != ProbeKind::Readiness {
            return;
        }
        let (was_started, was_ready) = (running.started, running.ready);
        let word = match kind {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        };
        match result {
            ProbeResult::Passed => {}
            ProbeResult::PassedWithWarning(seen) => {
                let message = format!("{word} probe warning: {seen}");
                self.event(true, "ProbeWarning", message, Some(i));
            }
            ProbeResult::Failed(seen) => {
                self.event(true, "Unhealthy", format!("{word} probe failed: {seen}"), Some(i));
            }
            ProbeResult::Errored(seen) => {
                let message = format!("{word} probe errored and resulted in unknown state: {seen}");
                self.event(true, "Unhealthy", message, Some(i));
            }
        }
        let (started, ready) = match (kind, verdict) {
            (_, Verdict::Undecided) | (ProbeKind::Liveness, Verdict::Up) => {
                (was_started, was_ready)
            }
            (ProbeKind::Startup, Verdict::Up) => {
                (true, was_ready || (!was_started && spec.readiness.is_none()))
            }
            (ProbeKind::Readiness, Verdict::Up) => (was_started, was_started),
            (ProbeKind::Readiness, Verdict::Down) => (was_started, false),
            (ProbeKind::Startup | ProbeKind::Liveness, Verdict::Down) => {
                let why = format!("{} probe", word.to_lowercase());
                self.kill_one(i, container.clone(), &why, probe.grace, now);
                return;
            }
        };
        if (started, ready) != (was_started, was_ready) {
            self.record(Fact::Probed { container: container.clone(), started, ready }, now);
        }
    }

    /// Ends the container, not the pod, as its probe failed.
    fn kill_one(
        &mut self,
        i: usize,
        container: ContainerName,
        why: &str,
        grace: Option<Duration>,
        now: Timestamp,
    ) {
        let restarts = !self.slots[i].spec.runs_once();
        let then = if restarts { ", will be restarted" } else { "" };
        let message = format!("Container {container} failed {why}{then}");
        self.event(false, "Killing", message, Some(i));
        let deadline = later(now, grace.unwrap_or(self.spec.grace));
        self.record(Fact::ContainerEnds { container, deadline, replaced: false }, now);
    }

    fn hooked(
        &mut self,
        container: ContainerName,
        attempt: u32,
        hook: HookKind,
        result: Result<(), String>,
        now: Timestamp,
    ) {
        let Some(i) = self.slot_index(&container) else { return };
        let grace = self.spec.grace;
        let Some(running) = self.slots[i].running(attempt) else { return };
        match hook {
            HookKind::PostStart if running.post_start == Hook::Asked => match result {
                Ok(()) => self.record(Fact::PostStartDone { container }, now),
                Err(error) => {
                    running.post_start = Hook::Due;
                    if running.ending.is_none() {
                        let message = format!("PostStartHook failed: {error}");
                        self.event(true, "FailedPostStartHook", message, Some(i));
                        self.event(false, "Killing", "FailedPostStartHook".to_owned(), Some(i));
                        let deadline = later(now, grace);
                        self.record(
                            Fact::ContainerEnds { container, deadline, replaced: false },
                            now,
                        );
                    }
                }
            },
            HookKind::PreStop
                if running.ending.as_ref().is_some_and(|e| e.pre_stop == Hook::Asked) =>
            {
                if let Err(error) = result {
                    let message = format!("PreStopHook failed: {error}");
                    self.event(true, "FailedPreStopHook", message, Some(i));
                }
                self.record(Fact::PreStopDone { container }, now);
            }
            HookKind::PostStart | HookKind::PreStop => {}
        }
    }

    fn delete_asked(&mut self, grace: Option<Duration>, now: Timestamp) {
        let grace = grace.unwrap_or(self.spec.grace);
        let deadline = later(now, grace);
        let forced = grace.is_zero();
        let nearer = match self.stage {
            Stage::Live => true,
            Stage::Ending { deadline: before, forced: already, .. } => {
                deadline < before || (forced && !already)
            }
            Stage::TearingDown { .. } | Stage::Over { .. } => false,
        };
        if nearer {
            self.end_pod(deadline, EndReason::Deleted, forced, now);
        }
    }

    /// Ends the pod, with a Killing event for each container that runs and was not ending already.
    pub(super) fn end_pod(
        &mut self,
        deadline: Timestamp,
        why: EndReason,
        forced: bool,
        now: Timestamp,
    ) {
        let running = |state: &State| matches!(state, State::Running(r) if r.ending.is_none());
        let killed: Vec<_> =
            (0..self.slots.len()).filter(|&i| running(&self.slots[i].state)).collect();
        for i in killed {
            self.killing_event(i);
        }
        self.record(Fact::PodEnds { deadline, why, forced }, now);
    }

    fn killing_event(&mut self, i: usize) {
        let message = format!("Stopping container {}", self.slots[i].spec.name);
        self.event(false, "Killing", message, Some(i));
    }

    /// `name_namespace(uid)`, as a kubelet's messages name a pod.
    pub(crate) fn pod_in_messages(&self) -> String {
        format!("{}_{}({})", self.spec.name, self.spec.namespace, self.spec.uid)
    }

    /// Its role holds the pod open.
    pub(super) fn stops_first(role: Role) -> bool {
        role != Role::Sidecar
    }
}
