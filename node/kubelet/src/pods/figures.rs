//! What the node's `/metrics` gains from what pods come to: starts, how long they took, and how long the API server was behind; and
//! its `/metrics/probes` from their probes.
//!
//! Start at [`Figures::took_on`]. Pods that were here before this process are not counted: a restart starts nothing. Absent: figures
//! that are counted when somebody asks (`crate::server`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use copepod_agent::api::PodName;
use copepod_agent::front::{NewEvent, Probed};
use copepod_node::life::ProbeKind;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use crate::server::metrics::{
    Metrics, POD_START, POD_START_SLI, POD_START_TOTAL, POD_STATUS_SYNC, PROBE_DURATION, PROBES,
    STARTED_CONTAINERS, STARTED_PODS,
};

/// Keeps the figures of pods.
#[derive(Debug)]
pub struct Figures {
    metrics: Arc<Metrics>,
    /// Pods on their way to running.
    starts: HashMap<String, Start>,
    /// Pods of whose probes figures are shown.
    probed: HashMap<String, PodName>,
}

/// A start that is not over.
#[derive(Debug)]
struct Start {
    seen: Instant,
    created: Option<Timestamp>,
    /// When the pull began that is under way, by its container's field.
    pulling: HashMap<Option<String>, Timestamp>,
    pulled: Duration,
}

impl Figures {
    /// Figures that go there.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, starts: HashMap::new(), probed: HashMap::new() }
    }

    /// A pod was seen for the first time, and is taken on.
    pub fn took_on(&mut self, uid: &str, pod: &Pod, now: Instant) {
        self.starts.entry(uid.to_owned()).or_insert_with(|| Start {
            seen: now,
            created: pod.metadata.creation_timestamp.as_ref().map(|it| it.0),
            pulling: HashMap::new(),
            pulled: Duration::ZERO,
        });
    }

    /// A pod is here no more.
    pub fn release(&mut self, uid: &str) {
        self.starts.remove(uid);
        self.forget_probes(uid);
    }

    /// What a pod's probes came to; nothing is probed any more of one that is over.
    pub fn probed(&mut self, uid: &str, pod: &PodName, probes: &[Probed], over: bool) {
        if over {
            self.forget_probes(uid);
            return;
        }
        if !probes.is_empty() {
            self.probed.entry(uid.to_owned()).or_insert_with(|| pod.clone());
        }
        let PodName { namespace, name } = pod;
        for Probed { container, kind, passed, took } in probes {
            let probe_type = match kind {
                ProbeKind::Startup => "Startup",
                ProbeKind::Liveness => "Liveness",
                ProbeKind::Readiness => "Readiness",
            };
            let of = [
                ("container", container.as_str()),
                ("namespace", namespace.as_str()),
                ("pod", name.as_str()),
                ("probe_type", probe_type),
            ];
            let result = if *passed { "successful" } else { "failed" };
            let counted = [of.as_slice(), &[("pod_uid", uid), ("result", result)]].concat();
            self.metrics.add(&PROBES, &counted, 1.0);
            // Of those that failed a kubelet does not tell it.
            if *passed {
                self.metrics.observe(&PROBE_DURATION, &of, *took);
            }
        }
    }

    fn forget_probes(&mut self, uid: &str) {
        if let Some(PodName { namespace, name }) = self.probed.remove(uid) {
            self.metrics.forget(&PROBES, &[("pod_uid", uid)]);
            // Another pod of the name may have come meanwhile: its times begin anew.
            self.metrics.forget(&PROBE_DURATION, &[("namespace", &namespace), ("pod", &name)]);
        }
    }

    /// The agent told this of a pod, whose status was `before` until now.
    pub fn news(
        &mut self,
        uid: &str,
        before: Option<&PodStatus>,
        status: &PodStatus,
        events: &[NewEvent],
        now: Instant,
    ) {
        let start = self.starts.get_mut(uid);
        let none = PodStatus::default();
        let before = match (before, &start) {
            (Some(before), _) => before,
            (None, Some(_)) => &none,
            // It ran before this process did, who knows since when.
            (None, None) => return,
        };
        if is_true(status, SANDBOX) && !is_true(before, SANDBOX) {
            self.metrics.add(&STARTED_PODS, &[], 1.0);
        }
        for (kind, all, earlier) in [
            ("container", &status.container_statuses, &before.container_statuses),
            ("init_container", &status.init_container_statuses, &before.init_container_statuses),
            (
                "ephemeral_container",
                &status.ephemeral_container_statuses,
                &before.ephemeral_container_statuses,
            ),
        ] {
            let started = all.iter().flatten().filter(|it| has_started(it, earlier)).count();
            if started > 0 {
                let labels = [("container_type", kind)];
                self.metrics.add(&STARTED_CONTAINERS, &labels, started as f64);
            }
        }
        let Some(start) = start else { return };
        for event in events {
            start.hear(event);
        }
        if runs(status) && !runs(before) {
            self.metrics.observe(&POD_START, &[], now.saturating_duration_since(start.seen));
        }
    }

    /// The API server has a pod's status, which began to differ from its own at `changed`.
    pub fn written(&mut self, uid: &str, status: &PodStatus, changed: Instant, now: Instant) {
        self.metrics.observe(&POD_STATUS_SYNC, &[], now.saturating_duration_since(changed));
        if !runs(status) {
            return;
        }
        let Some(Start { created: Some(created), pulled, .. }) = self.starts.remove(uid) else {
            return;
        };
        let total = Duration::try_from(Timestamp::now().duration_since(created));
        let total = total.unwrap_or_default();
        self.metrics.observe(&POD_START_TOTAL, &[], total);
        let own = total.saturating_sub(pulled).saturating_sub(initialized_in(status));
        self.metrics.observe(&POD_START_SLI, &[], own);
    }
}

impl Start {
    fn hear(&mut self, event: &NewEvent) {
        match event.reason.as_str() {
            "Pulling" => drop(self.pulling.insert(event.field_path.clone(), event.at)),
            "Pulled" => {
                if let Some(began) = self.pulling.remove(&event.field_path) {
                    let took = Duration::try_from(event.at.duration_since(began));
                    self.pulled += took.unwrap_or_default();
                }
            }
            _ => {}
        }
    }
}

/// The condition that tells that a pod's sandbox stands.
const SANDBOX: &str = "PodReadyToStartContainers";

fn is_true(status: &PodStatus, condition: &str) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|it| it.type_ == condition && it.status == "True")
}

/// All its containers were started, as a phase says it; also where one ended in no time.
fn runs(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Running" | "Succeeded"))
}

/// It runs, and not since a time that was told before.
fn has_started(now: &ContainerStatus, before: &Option<Vec<ContainerStatus>>) -> bool {
    let since = |it: &ContainerStatus| {
        let running = it.state.as_ref()?.running.as_ref()?;
        Some((it.restart_count, running.started_at.as_ref().map(|it| it.0)))
    };
    let before = before.iter().flatten().find(|it| it.name == now.name).and_then(since);
    since(now).is_some_and(|since| before != Some(since))
}

/// How long its init containers took, as far as they are over.
fn initialized_in(status: &PodStatus) -> Duration {
    let took = |it: &ContainerStatus| {
        let over = it.state.as_ref()?.terminated.as_ref()?;
        let (began, ended) = (over.started_at.as_ref()?.0, over.finished_at.as_ref()?.0);
        Duration::try_from(ended.duration_since(began)).ok()
    };
    status.init_container_statuses.iter().flatten().filter_map(took).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::server::metrics::Page;

    fn status(phase: &str, sandbox: bool, since: Option<&str>) -> PodStatus {
        let state =
            since.map_or(json!({ "waiting": {} }), |it| json!({ "running": { "startedAt": it } }));
        let container = json!({
            "name": "app", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": state,
        });
        serde_json::from_value(json!({
            "phase": phase,
            "conditions": [{ "type": SANDBOX, "status": if sandbox { "True" } else { "False" } }],
            "containerStatuses": [container],
        }))
        .expect("a status")
    }

    fn event(reason: &str, second: i64) -> NewEvent {
        NewEvent {
            warning: false,
            reason: reason.into(),
            message: String::new(),
            field_path: Some("spec.containers{app}".into()),
            at: Timestamp::from_second(second).expect("small"),
        }
    }

    fn pod(created: Timestamp) -> Pod {
        serde_json::from_value(json!({ "metadata": { "creationTimestamp": created.to_string() } }))
            .expect("a pod")
    }

    /// The lines of the page that tell of pods.
    fn shown(figures: &Figures) -> Vec<String> {
        let page = figures.metrics.show(Page::Own);
        let tells = |line: &&str| !line.starts_with('#') && !line.contains("_bucket");
        page.lines().filter(tells).map(str::to_owned).collect()
    }

    const LATER: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn a_pod_that_starts_is_counted_once_with_all_that_it_took() {
        let mut figures = Figures::new(Arc::default());
        let (seen, created) = (Instant::now(), Timestamp::now() - Duration::from_secs(100));
        let after = |seconds| seen + Duration::from_secs(seconds);
        let (pending, running) =
            (status("Pending", true, None), status("Running", true, Some(LATER)));

        figures.took_on("u", &pod(created), seen);
        figures.news("u", None, &status("Pending", false, None), &[event("Pulling", 10)], seen);
        let before = status("Pending", false, None);
        figures.news("u", Some(&before), &pending, &[event("Pulled", 70)], after(1));
        figures.news("u", Some(&pending), &running, &[], after(2));
        figures.news("u", Some(&running), &running, &[], after(3));
        figures.written("u", &running, after(2), after(5));
        figures.written("u", &running, after(6), after(7));

        let lines = shown(&figures);
        for line in [
            "kubelet_started_pods_total 1",
            "kubelet_started_containers_total{container_type=\"container\"} 1",
            "kubelet_pod_start_duration_seconds_sum 2",
            "kubelet_pod_start_duration_seconds_count 1",
            "kubelet_pod_start_total_duration_seconds_count 1",
            "kubelet_pod_start_sli_duration_seconds_count 1",
            "kubelet_pod_status_sync_duration_seconds_sum 4",
            "kubelet_pod_status_sync_duration_seconds_count 2",
        ] {
            assert!(lines.iter().any(|it| it == line), "{line}: {lines:#?}");
        }
        let sum = |name: &str| -> f64 {
            let name = format!("kubelet_pod_start_{name}_duration_seconds_sum ");
            let of = lines.iter().find_map(|line| line.strip_prefix(&name)).expect("it is told");
            of.parse().expect("a number")
        };
        assert!((sum("total") - sum("sli") - 60.0).abs() < 0.001, "less the pull");
    }

    #[test]
    fn probes_are_counted_by_their_results_until_the_pod_is_over_or_gone() {
        let mut figures = Figures::new(Arc::default());
        let name = |name: &str| PodName { namespace: "ns".into(), name: name.into() };
        let tried = |passed| Probed {
            container: "app".into(),
            kind: ProbeKind::Readiness,
            passed,
            took: Duration::from_millis(20),
        };
        let page = |figures: &Figures| figures.metrics.show(Page::Probes);

        figures.probed("u1", &name("a"), &[tried(false), tried(true), tried(true)], false);
        figures.probed("u2", &name("b"), &[tried(true)], false);
        figures.probed("u3", &name("c"), &[], false);

        let of = r#"container="app",namespace="ns",pod="a",probe_type="Readiness""#;
        for line in [
            format!(r#"prober_probe_total{{{of},pod_uid="u1",result="failed"}} 1"#),
            format!(r#"prober_probe_total{{{of},pod_uid="u1",result="successful"}} 2"#),
            format!("prober_probe_duration_seconds_count{{{of}}} 2"),
        ] {
            assert!(page(&figures).lines().any(|it| it == line), "{line}\n{}", page(&figures));
        }
        assert!(!page(&figures).contains("pod=\"c\""), "it has no probes");
        figures.probed("u1", &name("a"), &[tried(true)], true);
        assert!(!page(&figures).contains("pod=\"a\""), "it is over");
        figures.release("u2");
        assert!(!page(&figures).contains("pod=\"b\""), "it is gone");
    }

    #[test]
    fn a_pod_that_ran_before_this_process_is_not_a_start_and_its_next_restart_is() {
        let mut figures = Figures::new(Arc::default());
        let running = status("Running", true, Some("2025-01-01T00:00:00Z"));
        let now = Instant::now();

        figures.news("u", None, &running, &[], now);
        assert_eq!(shown(&figures), [""; 0]);
        figures.news("u", Some(&running), &status("Running", true, Some(LATER)), &[], now);

        let one = "kubelet_started_containers_total{container_type=\"container\"} 1";
        assert_eq!(shown(&figures), [one]);
    }
}
