//! A life in short: one fact for each container and one for the pod, which together say what the whole history said.
//!
//! A container that crashes for weeks makes facts for weeks; what they come to has always the same size. Absent: what is in
//! flight, which is not in a history either, and when a history is worth shortening (the agent's journal).

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Ended, Fact, Journaled, PodLife, Sandbox, Slot, Stage, State, backoff::CrashBackoff};
use crate::status::Conditions;

/// What the facts so far say of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSoFar {
    state: State,
    last: Option<Ended>,
    attempts: u32,
    sent: u32,
    image_id: Option<String>,
    crashes: CrashBackoff,
}

/// What the facts so far say of a pod beside its containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSoFar {
    stage: Stage,
    /// The sandbox stands. Whether it is asked for, or waited for, is in flight.
    sandbox: bool,
    ips: Vec<IpAddr>,
    start_time: Timestamp,
    initialized: bool,
    conditions: Conditions,
}

impl PodLife {
    /// A history that comes to the same as the whole one: at most one fact more than the pod has containers. It takes the place
    /// of all facts up to now, those that [`Self::take_facts`] would give next among them.
    #[must_use]
    pub fn so_far(&mut self) -> Vec<Journaled> {
        self.facts.clear();
        let at = self.start_time;
        let container = |slot: &Slot| Fact::ContainerSoFar {
            container: slot.spec.name.clone(),
            so_far: Box::new(ContainerSoFar::of(slot)),
        };
        let containers = self.slots.iter().map(container);
        let pod = Fact::PodSoFar(Box::new(PodSoFar::of(self)));
        containers.chain([pod]).map(|fact| Journaled { at, fact }).collect()
    }
}

impl ContainerSoFar {
    fn of(slot: &Slot) -> Self {
        // Named one by one: whoever adds a field says here whether facts make it.
        let Slot { spec: _, state, last, attempts, sent, image_id, crashes, trouble: _ } = slot;
        let mut state = state.clone();
        state.forget_what_is_in_flight();
        Self {
            state,
            last: last.clone(),
            attempts: *attempts,
            sent: *sent,
            image_id: image_id.clone(),
            crashes: *crashes,
        }
    }

    /// Makes it so.
    pub(super) fn give_to(&self, slot: &mut Slot) {
        let Self { state, last, attempts, sent, image_id, crashes } = self.clone();
        *slot = Slot {
            spec: slot.spec.clone(),
            state,
            last,
            attempts,
            sent,
            image_id,
            crashes,
            trouble: None,
        };
    }
}

impl PodSoFar {
    fn of(life: &PodLife) -> Self {
        let stage = match life.stage {
            Stage::TearingDown { asked: _, phase, why } => {
                Stage::TearingDown { asked: false, phase, why }
            }
            other => other,
        };
        Self {
            stage,
            sandbox: life.sandbox == Sandbox::Up,
            ips: life.ips.clone(),
            start_time: life.start_time,
            initialized: life.initialized,
            conditions: life.conditions,
        }
    }

    /// Makes it so.
    pub(super) fn give_to(&self, life: &mut PodLife) {
        let Self { stage, sandbox, ips, start_time, initialized, conditions } = self.clone();
        life.sandbox = match sandbox {
            true => Sandbox::Up,
            false => Sandbox::absent(Timestamp::MIN),
        };
        (life.stage, life.ips, life.start_time) = (stage, ips, start_time);
        (life.initialized, life.conditions) = (initialized, conditions);
    }
}
