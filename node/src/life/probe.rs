//! When a probe of one run is due, and what its results add up to.
//!
//! Absent: asking (`perform` in the agent) and what a failure leads to (`turn`).

use std::time::Duration;

use jiff::Timestamp;

use super::{
    backoff::later,
    spec::{ContainerSpec, ProbeSpec},
    words::{ProbeKind, ProbeResult},
};

/// The probes of one run of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probers {
    startup: Prober,
    liveness: Prober,
    readiness: Prober,
}

/// One probe: at most one try at a time, a period apart from start to start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Prober {
    /// When the next try is due; none: after the start's initial delay.
    next: Option<Timestamp>,
    /// When the try now out was sent.
    asked: Option<Timestamp>,
    /// How many tries in a row gave `last`.
    run: u32,
    last: Option<bool>,
}

/// What a probe's result has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A threshold is reached: it counts as passing.
    Up,
    /// A threshold is reached: it counts as failing.
    Down,
    /// No threshold is reached.
    Undecided,
}

impl Probers {
    /// The probes of a run found after a restart of the agent: each waits a part of its period, another for each pod,
    /// so that a node full of pods is not probed in one instant.
    pub(crate) fn resumed(spec: &ContainerSpec, uid: &str, now: Timestamp) -> Self {
        let part = |kind: ProbeKind| {
            let period = probe_of(spec, kind).map_or(Duration::ZERO, |probe| probe.period);
            // FNV-1a: no randomness in the core, and the pods' UIDs are as good.
            let hash = uid.bytes().chain(spec.name.bytes()).fold(0xcbf2_9ce4_u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
            Prober {
                next: Some(later(now, period.mul_f64(f64::from(hash) / f64::from(u32::MAX)))),
                ..Prober::default()
            }
        };
        Self {
            startup: part(ProbeKind::Startup),
            liveness: part(ProbeKind::Liveness),
            readiness: part(ProbeKind::Readiness),
        }
    }

    /// When this probe's next try is due; none while one is out.
    pub(crate) fn due(
        &self,
        kind: ProbeKind,
        spec: &ProbeSpec,
        since: Timestamp,
    ) -> Option<Timestamp> {
        let prober = self.get(kind);
        if prober.asked.is_some() {
            return None;
        }
        Some(prober.next.unwrap_or_else(|| later(since, spec.initial_delay)))
    }

    /// A try goes out.
    pub(crate) fn ask(&mut self, kind: ProbeKind, now: Timestamp) {
        self.get_mut(kind).asked = Some(now);
    }

    /// A try came back. `None` if none was out.
    pub(crate) fn answer(
        &mut self,
        kind: ProbeKind,
        spec: &ProbeSpec,
        result: &ProbeResult,
    ) -> Option<Verdict> {
        let prober = self.get_mut(kind);
        prober.next = Some(later(prober.asked.take()?, spec.period));
        let passed = match result {
            ProbeResult::Passed | ProbeResult::PassedWithWarning(_) => true,
            ProbeResult::Failed(_) => false,
            ProbeResult::Errored(_) => return Some(Verdict::Undecided),
        };
        prober.run = if prober.last == Some(passed) { prober.run.saturating_add(1) } else { 1 };
        prober.last = Some(passed);
        Some(match passed {
            true if prober.run >= spec.successes => Verdict::Up,
            false if prober.run >= spec.failures => Verdict::Down,
            _ => Verdict::Undecided,
        })
    }

    fn get(&self, kind: ProbeKind) -> &Prober {
        match kind {
            ProbeKind::Startup => &self.startup,
            ProbeKind::Liveness => &self.liveness,
            ProbeKind::Readiness => &self.readiness,
        }
    }

    fn get_mut(&mut self, kind: ProbeKind) -> &mut Prober {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Liveness => &mut self.liveness,
            ProbeKind::Readiness => &mut self.readiness,
        }
    }
}

/// The container's probe of this kind, if it has one.
pub(crate) fn probe_of(spec: &ContainerSpec, kind: ProbeKind) -> Option<&ProbeSpec> {
    match kind {
        ProbeKind::Startup => spec.startup.as_ref(),
        ProbeKind::Liveness => spec.liveness.as_ref(),
        ProbeKind::Readiness => spec.readiness.as_ref(),
    }
}
