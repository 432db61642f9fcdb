//! What each fact makes of a life. The same facts at the same times make the same life: live and after a restart.
//!
//! Absent: whether a fact is so (`observe`, `plan`), and anything that is not journaled.

use jiff::Timestamp;

use super::{
    EndReason, Fact, PodLife, Role, Sandbox, Slot, Stage, State,
    backoff::later,
    container::{Hook, Image},
    probe::Probers,
    spec::RestartPolicy,
};
use crate::status::Phase;

impl PodLife {
    /// Makes it so.
    pub(super) fn apply(&mut self, fact: &Fact, at: Timestamp) {
        match fact {
            Fact::Admitted => self.start_time = at,
            Fact::SandboxUp { ips } => {
                self.sandbox = Sandbox::Up;
                self.ips.clone_from(ips);
            }
            Fact::SandboxLost => self.lose_sandbox(at),
            Fact::ImageIs { container, image_id } => {
                if let Some(slot) = self.slot_mut(container) {
                    slot.image_id = Some(image_id.clone());
                }
            }
            Fact::AttemptSent { container, attempt, image } => {
                if let Some(slot) = self.slot_mut(container) {
                    slot.sent(*attempt, image.clone(), at);
                }
            }
            Fact::AttemptUnsent { container, .. } => {
                if let Some(slot) = self.slot_mut(container) {
                    slot.unsent();
                }
            }
            Fact::Started { container, attempt, since } => {
                let stage = self.stage;
                if let Some(slot) = self.slot_mut(container) {
                    slot.started(*attempt, *since);
                    if let (State::Running(running), Stage::Ending { deadline, forced, .. }) =
                        (&mut slot.state, stage)
                    {
                        running.end(&slot.spec, deadline, forced);
                    }
                }
            }
            Fact::PostStartDone { container } => {
                if let Some(slot) = self.slot_mut(container)
                    && let State::Running(running) = &mut slot.state
                {
                    running.post_start = Hook::Over;
                    running.started = slot.spec.startup.is_none();
                    running.ready = running.started && slot.spec.readiness.is_none();
                }
            }
            Fact::Probed { container, started, ready } => {
                if let Some(slot) = self.slot_mut(container)
                    && let State::Running(running) = &mut slot.state
                {
                    (running.started, running.ready) = (*started, *ready);
                }
            }
            Fact::ContainerEnds { container, deadline, replaced } => {
                if let Some(slot) = self.slot_mut(container)
                    && let State::Running(running) = &mut slot.state
                {
                    running.replaced |= replaced;
                    running.end(&slot.spec, *deadline, false);
                }
            }
            Fact::PreStopDone { container } => {
                if let Some(slot) = self.slot_mut(container)
                    && let State::Running(running) = &mut slot.state
                    && let Some(ending) = &mut running.ending
                {
                    ending.pre_stop = Hook::Over;
                }
            }
            Fact::StopSent { container, deadline } => {
                if let Some(slot) = self.slot_mut(container)
                    && let State::Running(running) = &mut slot.state
                    && let Some(ending) = &mut running.ending
                {
                    ending.told(*deadline, at);
                }
            }
            Fact::Exited { container, attempt, exit } => {
                let restarts = self.stage == Stage::Live;
                if let Some(slot) = self.slot_mut(container) {
                    slot.exited(*attempt, exit.clone(), restarts);
                }
            }
            Fact::PodEnds { deadline, why, forced } => self.end(*deadline, *why, *forced),
            Fact::TornDown => {
                if let Stage::TearingDown { phase, why, .. } = self.stage {
                    self.stage = Stage::Over { phase, why };
                }
            }
            // Parts of one whole, which was settled before it was taken down.
            Fact::ContainerSoFar { container, so_far } => {
                if let Some(slot) = self.slot_mut(container) {
                    so_far.give_to(slot);
                }
                return;
            }
            Fact::PodSoFar(so_far) => return so_far.give_to(self),
        }
        self.settle(at);
    }

    /// The agent died: what it had sent, heard and counted without a fact is gone.
    pub(super) fn forget_what_was_in_flight(&mut self, now: Timestamp) {
        for slot in &mut self.slots {
            slot.state.forget_what_is_in_flight();
            if let State::Running(running) = &mut slot.state {
                running.probers = Probers::resumed(&slot.spec, &self.spec.uid, now);
            }
        }
        self.settle(now);
    }

    /// The moves that follow by themselves.
    pub(super) fn settle(&mut self, now: Timestamp) {
        // Once all is over, a container that only counts as ended says nothing of the others' turn.
        if !self.initialized && matches!(self.stage, Stage::Live | Stage::Ending { .. }) {
            let inits = self.slots.iter().filter(|slot| slot.spec.role.is_init());
            self.initialized =
                self.sandbox == Sandbox::Up && inits.into_iter().all(Slot::lets_the_next_start);
        }
        if self.stage == Stage::Live && self.is_done() {
            let deadline = later(now, self.spec.grace);
            self.end(deadline, EndReason::Done, false);
        }
        if let Stage::Ending { why, .. } = self.stage
            && !self.slots.iter().any(Slot::is_alive)
        {
            // As a kubelet: of a pod that was initialised, a container that never ran counts as failed.
            let must_have_run = self.initialized && why != EndReason::Done;
            for slot in &mut self.slots {
                slot.over(must_have_run && slot.spec.role == Role::Main, now);
            }
            let phase = self.final_phase(why);
            self.stage = Stage::TearingDown { asked: false, phase, why };
        }
        Self::refresh_conditions(self, now);
    }

    /// No container will do anything more by itself, but sidecars.
    fn is_done(&self) -> bool {
        let ended = |slot: &Slot| matches!(slot.state, State::Ended(_));
        let mut mains = self.slots.iter().filter(|slot| slot.spec.role == Role::Main);
        mains.all(ended) || self.slots.iter().any(Self::init_failed)
    }

    /// An init container that will not be tried again has failed.
    pub(crate) fn init_failed(slot: &Slot) -> bool {
        slot.spec.role == Role::Init
            && matches!(&slot.state, State::Ended(ended) if ended.exit.code != 0)
    }

    fn final_phase(&self, why: EndReason) -> Phase {
        let succeeded = |slot: &Slot| match (&slot.state, slot.spec.role) {
            (State::Ended(ended), Role::Main) => ended.exit.code == 0,
            (_, Role::Main) => false,
            (_, Role::Init | Role::Sidecar) => !Self::init_failed(slot),
            (_, Role::Ephemeral) => true,
        };
        if why != EndReason::DeadlineExceeded && self.slots.iter().all(succeeded) {
            Phase::Succeeded
        } else {
            Phase::Failed
        }
    }

    /// It is to end by then. Of two deadlines the nearer holds, of two reasons the first.
    fn end(&mut self, deadline: Timestamp, why: EndReason, forced: bool) {
        self.stage = match self.stage {
            Stage::Live => Stage::Ending { deadline, why, forced },
            Stage::Ending { deadline: before, why, forced: already } => {
                Stage::Ending { deadline: deadline.min(before), why, forced: forced || already }
            }
            over @ (Stage::TearingDown { .. } | Stage::Over { .. }) => over,
        };
        if let Stage::Ending { deadline, forced, .. } = self.stage {
            for slot in &mut self.slots {
                match &mut slot.state {
                    State::Running(running) => {
                        running.end(&slot.spec, deadline, forced);
                    }
                    // A pull may go on, but nobody waits for it.
                    State::Waiting(waiting) => waiting.image = Image::Wanted,
                    State::Starting(_) | State::Ended(_) => {}
                }
            }
        }
    }

    /// A new sandbox is needed, and in it all init containers run once more: whatever they prepared may be gone.
    fn lose_sandbox(&mut self, at: Timestamp) {
        self.sandbox = Sandbox::absent(at);
        if self.stage != Stage::Live {
            return;
        }
        let ran = |slot: &Slot| slot.spec.role != Role::Ephemeral && slot.attempts > 0;
        let mut to_the_end =
            self.slots.iter().filter(|it| matches!(it.spec.role, Role::Init | Role::Main));
        if self.spec.restart == RestartPolicy::Never
            && self.slots.iter().any(ran)
            && to_the_end.all(|slot| slot.spec.runs_once())
        {
            // Nothing of such a pod runs twice: what has not run yet never will.
            self.end(at, EndReason::Lost, true);
            return;
        }
        self.initialized = false;
        for slot in &mut self.slots {
            if slot.spec.role == Role::Init {
                slot.again();
            }
        }
    }
}
