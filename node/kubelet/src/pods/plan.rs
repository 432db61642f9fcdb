//! What is to be done next about one pod, from what the API server and the agent say of it. Pure.
//!
//! ```text
//! API server:  bound ───────────────▶ deletion asked ──────────────────────▶ gone
//! steps:       TakeOn, Write…         End, Write… (terminal), Delete         Forget
//! ```
//! A pod is deleted in the API only after its terminal phase is there (kubelet.md F6), and forgotten by the agent, logs and all, only
//! after it is gone from there.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::Value;

use super::patch;
use super::seen::{Form, Seen};

/// So long a status that nobody waits for is held back, so that what comes next goes with it.
pub const HOLD: Duration = Duration::from_millis(100);

/// A pod, from both sides.
#[derive(Debug)]
pub struct Tracked {
    /// The API server's side; none: it has no such pod, or has not been asked yet.
    pub seen: Option<Seen>,
    /// The agent's side.
    pub local: Local,
    /// The form of the pod that the agent goes by; none until it has said.
    pub given: Option<Form>,
    /// A form of a running pod that the agent will not go on with.
    pub unfit: Option<Form>,
    /// What the pod is to look like; none until the agent has said.
    pub status: Option<PodStatus>,
    /// When `status` last began to differ from the API's.
    pub changed: Option<Instant>,
    /// What was last written, and the version of the pod that came of it: an API server that keeps something else than it was told is
    /// not told again.
    pub written: Option<(Value, u128)>,
    /// The grace that the agent was told to end it in.
    pub ending: Option<Duration>,
    /// A step that failed is not tried again before then.
    pub not_before: Option<Instant>,
    /// How often in a row steps have failed.
    pub failures: u32,
    /// A step is being made.
    pub busy: bool,
}

/// Where a pod is with the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// The agent does not have it.
    Unknown,
    /// The agent has it.
    Here {
        /// Nothing of it is left but its logs.
        over: bool,
    },
    /// The node cannot run what the pod asks for, as it is in this generation.
    Refused {
        /// `metadata.generation`.
        generation: Option<i64>,
    },
}

/// What to do about a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Have the agent run it.
    TakeOn,
    /// Have the agent go on with it as it is now.
    Update,
    /// Have the agent end it.
    End(Duration),
    /// Write its status into the API.
    Write(Value),
    /// Give it a last phase, as it ended before this node knew it.
    Fail,
    /// Delete it in the API, without grace.
    Delete,
    /// Have the agent forget it.
    Forget,
    /// Nobody has it any more.
    Drop,
    /// Nothing before then.
    Wait(Instant),
    /// Nothing until something happens.
    Rest,
}

impl Tracked {
    /// A pod of which nothing is known.
    pub fn new() -> Self {
        Self {
            seen: None,
            local: Local::Unknown,
            given: None,
            unfit: None,
            status: None,
            changed: None,
            written: None,
            ending: None,
            not_before: None,
            failures: 0,
            busy: false,
        }
    }

    /// The next step. `listed`: the API server has told of all pods at least once, so that one that is not there is gone.
    pub fn next(&self, listed: bool, now: Instant) -> Step {
        if self.busy {
            return Step::Rest;
        }
        if let Some(at) = self.not_before.filter(|at| *at > now) {
            return Step::Wait(at);
        }
        let Some(seen) = &self.seen else {
            return match self.local {
                _ if !listed => Step::Rest,
                Local::Here { .. } => Step::Forget,
                Local::Unknown | Local::Refused { .. } => Step::Drop,
            };
        };
        match self.local {
            Local::Unknown => match seen.deletion {
                Some(_) if seen.is_terminal() => Step::Delete,
                Some(_) => Step::Fail,
                None if seen.is_terminal() => Step::Rest,
                None => Step::TakeOn,
            },
            Local::Refused { generation } => match seen.deletion {
                Some(_) if seen.is_terminal() => Step::Delete,
                Some(_) => Step::Fail,
                None if generation != seen.generation && !seen.is_terminal() => Step::TakeOn,
                None => self.write(seen, now),
            },
            Local::Here { over } => match seen.deletion {
                Some(grace) if !over && self.ending.is_none_or(|told| grace < told) => {
                    Step::End(grace)
                }
                Some(_) if over => match self.write(seen, now) {
                    Step::Rest if seen.is_terminal() => Step::Delete,
                    other => other,
                },
                None if !over && self.is_changed(seen) => Step::Update,
                _ => self.write(seen, now),
            },
        }
    }

    /// The agent goes by another form of the pod, and has not refused this one.
    fn is_changed(&self, seen: &Seen) -> bool {
        self.given.is_some_and(|given| given != seen.form) && self.unfit != Some(seen.form)
    }

    fn write(&self, seen: &Seen, now: Instant) -> Step {
        let Some(status) = &self.status else { return Step::Rest };
        let Some(patch) = patch::patch(seen, status) else { return Step::Rest };
        if self
            .written
            .as_ref()
            .is_some_and(|(it, version)| (it, version) == (&patch, &seen.version))
        {
            return Step::Rest;
        }
        let ready = self.changed.map_or(now, |changed| changed + HOLD);
        if ready > now && !patch::is_urgent(seen, status) {
            Step::Wait(ready)
        } else {
            Step::Write(patch)
        }
    }
}

impl Default for Tracked {
    fn default() -> Self {
        Self::new()
    }
}

/// The pause after so many failures in a row: 200 ms doubling to 10 s, as often as a kubelet tries again after an error.
pub fn pause(failures: u32) -> Duration {
    Duration::from_millis(200)
        .saturating_mul(1 << failures.saturating_sub(1).min(6))
        .min(Duration::from_secs(10))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(phase: &str, deletion: Option<i64>) -> Seen {
        let mut meta = json!({ "namespace": "default", "name": "p", "uid": "u", "resourceVersion": "1", "generation": 1 });
        if let Some(grace) = deletion {
            meta["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            meta["deletionGracePeriodSeconds"] = json!(grace);
        }
        let pod = json!({ "metadata": meta, "spec": { "containers": [] }, "status": { "phase": phase, "observedGeneration": 1 } });
        Seen::of(serde_json::from_value(pod).expect("a pod")).expect("whole")
    }

    fn tracked(seen: Option<Seen>, local: Local, status: Option<&str>) -> Tracked {
        let status =
            status.map(|phase| PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() });
        Tracked { seen, local, status, ..Tracked::new() }
    }

    fn next(tracked: &Tracked) -> Step {
        tracked.next(true, Instant::now())
    }

    const RUNS: Local = Local::Here { over: false };
    const OVER: Local = Local::Here { over: true };

    #[test]
    fn a_pod_bound_to_the_node_is_taken_on_once() {
        assert_eq!(next(&tracked(Some(seen("Pending", None)), Local::Unknown, None)), Step::TakeOn);
        assert_eq!(next(&tracked(Some(seen("Pending", None)), RUNS, Some("Pending"))), Step::Rest);
    }

    #[test]
    fn a_pod_that_ended_before_is_not_begun_again() {
        for phase in ["Succeeded", "Failed"] {
            assert_eq!(next(&tracked(Some(seen(phase, None)), Local::Unknown, None)), Step::Rest);
        }
    }

    #[test]
    fn before_a_complete_list_nothing_is_forgotten() {
        let mut gone = tracked(None, RUNS, Some("Running"));

        assert_eq!(gone.next(false, Instant::now()), Step::Rest);
        assert_eq!(gone.next(true, Instant::now()), Step::Forget);
        gone.local = Local::Unknown;
        assert_eq!(gone.next(true, Instant::now()), Step::Drop);
    }

    #[test]
    fn a_change_of_a_running_pod_is_given_to_the_agent_once_and_not_again_where_it_refused() {
        let mut pod = tracked(Some(seen("Pending", None)), RUNS, Some("Pending"));
        let form = |pod: &Tracked| pod.seen.as_ref().map(|seen| seen.form);
        pod.given = form(&pod);
        assert_eq!(next(&pod), Step::Rest);

        let mut other = seen("Pending", None);
        let changed = json!({ "metadata": { "generation": 1, "labels": { "tier": "gold" } } });
        other.form = Form::of(&serde_json::from_value(changed).expect("a pod"));
        pod.seen = Some(other);
        assert_eq!(next(&pod), Step::Update);

        pod.unfit = form(&pod);
        assert_eq!(next(&pod), Step::Rest);
        pod.unfit = None;
        pod.given = form(&pod);
        assert_eq!(next(&pod), Step::Rest);
        pod.given = None;
        assert_eq!(next(&pod), Step::Rest, "what the agent has is not known yet");
    }

    #[test]
    fn a_deletion_ends_the_pod_and_a_shorter_grace_ends_it_sooner() {
        let mut pod = tracked(Some(seen("Running", Some(30))), RUNS, Some("Running"));
        assert_eq!(next(&pod), Step::End(Duration::from_secs(30)));

        pod.ending = Some(Duration::from_secs(30));
        assert_eq!(next(&pod), Step::Rest);

        pod.seen = Some(seen("Running", Some(5)));
        assert_eq!(next(&pod), Step::End(Duration::from_secs(5)));
    }

    #[test]
    fn a_pod_is_deleted_only_after_the_api_has_its_last_phase() {
        let mut pod = tracked(Some(seen("Running", Some(30))), OVER, Some("Succeeded"));
        pod.ending = Some(Duration::from_secs(30));
        assert!(matches!(next(&pod), Step::Write(_)));

        pod.seen = Some(seen("Succeeded", Some(30)));
        assert_eq!(next(&pod), Step::Delete);
    }

    #[test]
    fn a_pod_that_is_to_end_and_that_nobody_runs_is_failed_and_deleted() {
        assert_eq!(
            next(&tracked(Some(seen("Running", Some(30))), Local::Unknown, None)),
            Step::Fail
        );
        assert_eq!(
            next(&tracked(Some(seen("Failed", Some(30))), Local::Unknown, None)),
            Step::Delete
        );
    }

    #[test]
    fn a_refused_pod_is_looked_at_again_when_its_spec_changes() {
        let refused = |generation| Local::Refused { generation: Some(generation) };

        assert_eq!(
            next(&tracked(Some(seen("Pending", None)), refused(1), Some("Pending"))),
            Step::Rest
        );
        assert_eq!(
            next(&tracked(Some(seen("Pending", None)), refused(0), Some("Pending"))),
            Step::TakeOn
        );
    }

    #[test]
    fn what_nobody_waits_for_is_held_back_so_that_one_write_tells_all() {
        let mut pod = tracked(Some(seen("Pending", None)), RUNS, Some("Pending"));
        let now = Instant::now();
        pod.status.as_mut().expect("one").pod_ip = Some("10.0.0.1".into());
        pod.changed = Some(now);
        assert_eq!(pod.next(true, now), Step::Wait(now + HOLD));
        assert!(matches!(pod.next(true, now + HOLD), Step::Write(_)));

        pod.status.as_mut().expect("one").phase = Some("Failed".into());
        assert!(matches!(pod.next(true, now), Step::Write(_)), "an end is told at once");
    }

    #[test]
    fn what_the_api_server_does_not_keep_is_not_written_for_ever() {
        let mut pod = tracked(Some(seen("Pending", None)), RUNS, Some("Running"));
        let Step::Write(patch) = next(&pod) else { panic!("it differs") };

        // The answer to the write: the same as before, in another version.
        let mut answer = seen("Pending", None);
        answer.version = 2;
        pod.seen = Some(answer.clone());
        pod.written = Some((patch, 2));
        assert_eq!(next(&pod), Step::Rest);

        answer.version = 3;
        pod.seen = Some(answer);
        assert!(matches!(next(&pod), Step::Write(_)), "somebody has changed the pod since");
    }

    #[test]
    fn what_was_not_changed_just_now_is_written_without_a_pause() {
        let refused = Local::Refused { generation: Some(1) };
        let mut pod = tracked(Some(seen("Pending", None)), refused, Some("Pending"));
        pod.status.as_mut().expect("one").message = Some("spec.hostPID: leave it out".into());

        assert!(matches!(next(&pod), Step::Write(_)));
    }

    #[test]
    fn a_failed_step_waits_longer_each_time_and_never_longer_than_ten_seconds() {
        let pauses: Vec<_> = (1..10).map(|n| pause(n).as_millis()).collect();

        assert_eq!(pauses[..4], [200, 400, 800, 1600]);
        assert_eq!(pauses.last(), Some(&10_000));
    }
}
