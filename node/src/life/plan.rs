//! What to do next: stops first, as they free what starts ask for; then the sandbox, starts, hooks and probes.
//!
//! Absent: doing it. A second `plan` without an event between is empty, and so is one before `next_wake`.

use jiff::Timestamp;

use super::{
    Action, EndReason, Fact, HookKind, PodLife, ProbeKind, Role, Sandbox, Stage, State,
    backoff::later,
    container::{Hook, Image, Running, Slot},
    probe::probe_of,
};

impl PodLife {
    /// The steps to take now. What is in flight is not planned again.
    #[must_use]
    pub fn plan(&mut self, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(at) = self.deadline()
            && now >= at
        {
            let message =
                "Pod was active on the node longer than the specified deadline".to_owned();
            self.event(false, "DeadlineExceeded", message, None);
            let deadline = later(now, self.spec.grace);
            self.end_pod(deadline, EndReason::DeadlineExceeded, false, now);
        }
        match &mut self.stage {
            Stage::Live => {
                self.plan_replacements(now);
                self.plan_stops(now, &mut actions);
                self.plan_sandbox(now, &mut actions);
                self.plan_starts(now, &mut actions);
                self.plan_post_starts(&mut actions);
                self.plan_probes(now, &mut actions);
            }
            Stage::Ending { .. } => {
                self.plan_stops(now, &mut actions);
                self.plan_probes(now, &mut actions);
            }
            Stage::TearingDown { asked, .. } => {
                // A set-up under way is waited for, so that nothing is made behind the tearing down.
                if !self.sandbox.is_asked() && !std::mem::replace(asked, true) {
                    actions.push(Action::TearDown);
                }
            }
            Stage::Over { .. } => {}
        }
        actions
    }

    /// When `plan` has something to do if nothing happens before.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let mut wakes = Vec::new();
        wakes.extend(self.deadline());
        if self.stage == Stage::Live {
            if let Sandbox::Absent { not_before, .. } = self.sandbox {
                wakes.push(not_before);
            }
            wakes.extend(self.startable().into_iter().filter_map(|i| self.slots[i].due()));
        }
        if matches!(self.stage, Stage::Live | Stage::Ending { .. }) {
            for slot in &self.slots {
                let State::Running(running) = &slot.state else { continue };
                if !running.confirmed {
                    continue;
                }
                if let Some(ending) = &running.ending
                    && ending.is_untold()
                {
                    wakes.push(ending.deadline);
                }
                wakes.extend(PROBES.into_iter().filter_map(|kind| probe_due(slot, running, kind)));
            }
        }
        wakes.into_iter().min()
    }

    /// When `activeDeadlineSeconds` ends a live pod.
    fn deadline(&self) -> Option<Timestamp> {
        let active = self.spec.active_deadline.filter(|_| self.stage == Stage::Live)?;
        Some(later(self.start_time, active))
    }

    fn plan_sandbox(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if let Sandbox::Absent { not_before, .. } = self.sandbox
            && not_before <= now
        {
            self.sandbox = Sandbox::Asked { outdated: false };
            actions.push(Action::SetUp);
        }
    }

    /// The containers whose turn it is, should they be waiting.
    fn startable(&self) -> Vec<usize> {
        let mut startable = Vec::new();
        if self.sandbox != Sandbox::Up {
            return startable;
        }
        let mut open = true;
        for (i, slot) in self.slots.iter().enumerate() {
            match slot.spec.role {
                // A sidecar that ran once restarts whatever its neighbours do.
                Role::Sidecar if open || slot.attempts > 0 => startable.push(i),
                Role::Init if open && !self.initialized => startable.push(i),
                Role::Main if open && self.initialized => startable.push(i),
                Role::Ephemeral => startable.push(i),
                _ => {}
            }
            open &= match slot.spec.role {
                Role::Main => !slot.holds_up_the_next(),
                Role::Init | Role::Sidecar => self.initialized || slot.lets_the_next_start(),
                Role::Ephemeral => true,
            };
        }
        startable
    }

    fn plan_starts(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        // Asking for an image or starting may close the way for the next one, so look again after each step.
        while let Some(i) = self
            .startable()
            .into_iter()
            .find(|&i| self.slots[i].due().is_some_and(|due| due <= now))
        {
            let slot = &mut self.slots[i];
            let State::Waiting(waiting) = &mut slot.state else { break };
            let container = slot.spec.name.clone();
            match waiting.image {
                Image::Wanted => {
                    waiting.image = Image::Asked;
                    let (image, policy) = (slot.spec.image.clone(), slot.spec.pull);
                    actions.push(Action::Pull { container, image, policy });
                }
                Image::Here => {
                    let attempt = slot.attempts;
                    let image = Some(slot.spec.image.clone());
                    let sent = Fact::AttemptSent { container: container.clone(), attempt, image };
                    self.record(sent, now);
                    actions.push(Action::Start { container, attempt });
                }
                Image::Asked | Image::Superseded => break,
            }
        }
    }

    fn plan_post_starts(&mut self, actions: &mut Vec<Action>) {
        for slot in &mut self.slots {
            let State::Running(running) = &mut slot.state else { continue };
            if let Some(handler) = &slot.spec.post_start
                && running.confirmed
                && running.ending.is_none()
                && running.post_start == Hook::Due
            {
                running.post_start = Hook::Asked;
                actions.push(Action::Hook {
                    container: slot.spec.name.clone(),
                    attempt: running.attempt,
                    hook: HookKind::PostStart,
                    handler: handler.clone(),
                    deadline: None,
                });
            }
        }
    }

    fn plan_probes(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        for slot in &mut self.slots {
            for kind in PROBES {
                let State::Running(running) = &slot.state else { break };
                if probe_due(slot, running, kind).is_none_or(|due| due > now) {
                    continue;
                }
                let Some(probe) = probe_of(&slot.spec, kind) else { continue };
                let State::Running(running) = &mut slot.state else { break };
                running.probers.ask(kind, now);
                actions.push(Action::Probe {
                    container: slot.spec.name.clone(),
                    attempt: running.attempt,
                    probe: kind,
                    handler: probe.handler.clone(),
                    timeout: probe.timeout,
                });
            }
        }
    }

    /// Ends what runs from another image than the spec names by now.
    fn plan_replacements(&mut self, now: Timestamp) {
        for i in 0..self.slots.len() {
            let slot = &self.slots[i];
            let State::Running(running) = &slot.state else { continue };
            if !slot.is_outdated() || !running.confirmed || running.ending.is_some() {
                continue;
            }
            let container = slot.spec.name.clone();
            let message = format!("Container {container} definition changed, will be restarted");
            self.event(false, "Killing", message, Some(i));
            let deadline = later(now, self.spec.grace);
            self.record(Fact::ContainerEnds { container, deadline, replaced: true }, now);
        }
    }

    fn plan_stops(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        for i in 0..self.slots.len() {
            let its_turn = self.may_stop_now(i);
            let slot = &mut self.slots[i];
            let State::Running(running) = &mut slot.state else { continue };
            let (container, attempt) = (slot.spec.name.clone(), running.attempt);
            let Some(ending) = running.ending.as_mut().filter(|_| running.confirmed) else {
                continue;
            };
            if ending.pre_stop == Hook::Due
                && !ending.must_stop(now)
                && let Some(handler) = &slot.spec.pre_stop
            {
                ending.pre_stop = Hook::Asked;
                actions.push(Action::Hook {
                    container: container.clone(),
                    attempt,
                    hook: HookKind::PreStop,
                    handler: handler.clone(),
                    deadline: Some(ending.deadline),
                });
            }
            // A stop that was told once stays told, also where the pod's end has since put others before it.
            let turn = its_turn || ending.must_stop(now) || !ending.is_untold();
            if !ending.may_stop(now) || !turn {
                continue;
            }
            match ending.stop(now) {
                Some(Ok(deadline)) => {
                    self.record(Fact::StopSent { container: container.clone(), deadline }, now);
                    actions.push(Action::Stop { container, attempt, deadline });
                }
                Some(Err(deadline)) => {
                    ending.told_again();
                    actions.push(Action::Stop { container, attempt, deadline });
                }
                None => {}
            }
        }
    }

    /// Mains and init containers stop at once; a sidecar after them and after all sidecars behind it.
    fn may_stop_now(&self, i: usize) -> bool {
        if self.stage == Stage::Live || Self::stops_first(self.slots[i].spec.role) {
            return true;
        }
        let before = |(j, slot): (usize, &Slot)| {
            slot.is_alive() && (Self::stops_first(slot.spec.role) || j > i)
        };
        !self.slots.iter().enumerate().any(before)
    }
}

const PROBES: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

/// When this probe of a run is due; none where it has none, one is out, or it does not apply now.
fn probe_due(slot: &Slot, running: &Running, kind: ProbeKind) -> Option<Timestamp> {
    let probe = probe_of(&slot.spec, kind)?;
    let applies = match kind {
        ProbeKind::Startup => !running.started && running.ending.is_none(),
        ProbeKind::Liveness => running.started && running.ending.is_none(),
        ProbeKind::Readiness => running.started,
    };
    if !applies || !running.is_probed() {
        return None;
    }
    running.probers.due(kind, probe, running.since)
}
