//! A pod and a clock, and short words for what happens to it.
//!
//! Absent: judgements; each test makes its own.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};
use serde_json::{Value, json};

use crate::{
    annotations::NodeCeilings,
    life::{
        Action, ExitReason, ExitRecord, HookKind, Journaled, PodEvent, PodLife, ProbeKind,
        ProbeResult,
    },
    name::ContainerName,
    refusal::Refusal,
};

pub(super) struct Bench {
    pub(super) life: PodLife,
    pub(super) now: Timestamp,
    pub(super) journal: Vec<Journaled>,
    pod: Pod,
}

pub(super) fn name(name: &str) -> ContainerName {
    ContainerName::try_from(name).expect("a test's names are labels")
}

/// A pod with this spec; containers need no image.
pub(super) fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if container["image"].is_null() {
                container["image"] = json!("app:1");
            }
        }
    }
    if spec["initContainers"].is_null() {
        spec.as_object_mut().expect("a map").remove("initContainers");
    }
    let meta = json!({"name": "p", "namespace": "ns", "uid": "u-1", "generation": 7});
    serde_json::from_value(json!({"metadata": meta, "spec": spec})).expect("a pod")
}

impl Bench {
    pub(super) fn new(spec: Value) -> Self {
        let (pod, now) = (pod(spec), Timestamp::from_second(1_000_000).expect("small"));
        let life = PodLife::admit(pod.clone(), &NodeCeilings::default(), now)
            .unwrap_or_else(|wrong| panic!("{wrong:?}"));
        Self { life, now, journal: Vec::new(), pod }
    }

    /// A pod of one container `c`, which runs.
    pub(super) fn running(container: Value, policy: &str) -> Self {
        let mut container = container;
        container["name"] = json!("c");
        let mut bench = Self::new(json!({"restartPolicy": policy, "containers": [container]}));
        bench.set_up();
        bench.run("c");
        bench
    }

    pub(super) fn event(&mut self, event: PodEvent) {
        self.life.observe(event, self.now);
        self.journal.extend(self.life.take_facts());
    }

    /// The steps in short words.
    pub(super) fn plan(&mut self) -> Vec<String> {
        let actions = self.life.plan(self.now);
        self.journal.extend(self.life.take_facts());
        actions.iter().map(word).collect()
    }

    pub(super) fn after(&mut self, duration: Duration) -> &mut Self {
        self.now = self.now.checked_add(duration).expect("in range");
        self
    }

    pub(super) fn after_seconds(&mut self, seconds: u64) -> &mut Self {
        self.after(Duration::from_secs(seconds))
    }

    pub(super) fn set_up(&mut self) {
        assert_eq!(self.plan(), ["set up"]);
        self.event(PodEvent::SetUp { ips: vec!["10.64.0.5".parse().expect("an address")] });
    }

    pub(super) fn image(&mut self, container: &str) {
        let image_id = "app@sha256:00".to_owned();
        self.event(PodEvent::ImageReady { container: name(container), image_id, pulled: None });
    }

    /// The pull and start that are due, answered.
    pub(super) fn run(&mut self, container: &str) {
        let pull = format!("pull {container}");
        assert!(self.plan().contains(&pull), "{pull} is not planned");
        self.image(container);
        let start = self.plan();
        let attempt = start
            .iter()
            .find_map(|word| word.strip_prefix(&format!("start {container} ")))
            .unwrap_or_else(|| panic!("no start in {start:?}"));
        let attempt = attempt.parse().expect("a number");
        self.started(container, attempt);
    }

    pub(super) fn started(&mut self, container: &str, attempt: u32) {
        let at = self.now;
        self.event(PodEvent::Started { container: name(container), attempt, at });
    }

    pub(super) fn exited(&mut self, container: &str, attempt: u32, code: i32) {
        let exit = ExitRecord {
            code,
            reason: ExitReason::Ended,
            message: String::new(),
            started_at: Some(self.now),
            finished_at: self.now,
        };
        self.event(PodEvent::Exited { container: name(container), attempt, exit });
    }

    pub(super) fn probed(&mut self, kind: ProbeKind, passed: bool) {
        let result =
            if passed { ProbeResult::Passed } else { ProbeResult::Failed("no".to_owned()) };
        let attempt = self.attempt("c");
        self.event(PodEvent::ProbeDone { container: name("c"), attempt, probe: kind, result });
    }

    pub(super) fn hooked(&mut self, container: &str, hook: HookKind, result: Result<(), String>) {
        let attempt = self.attempt(container);
        self.event(PodEvent::HookDone { container: name(container), attempt, hook, result });
    }

    fn attempt(&self, container: &str) -> u32 {
        let alive = self.life.alive();
        alive.into_iter().find(|(c, _)| &**c == container).expect("it is alive").1
    }

    pub(super) fn delete(&mut self, seconds: u64) {
        self.event(PodEvent::DeleteAsked { grace: Some(Duration::from_secs(seconds)) });
    }

    /// The pod has this spec from now on, but for its restart policy.
    pub(super) fn update(&mut self, spec: Value) -> Result<(), Vec<Refusal>> {
        let mut pod = pod(spec);
        let policy = self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.clone());
        pod.spec.as_mut().expect("a spec").restart_policy = policy;
        self.life.update(pod.clone(), &NodeCeilings::default(), self.now)?;
        self.pod = pod;
        self.journal.extend(self.life.take_facts());
        Ok(())
    }

    /// The agent dies and comes back.
    pub(super) fn restart_agent(&mut self) {
        self.life = PodLife::recover(self.pod.clone().into(), &self.journal, self.now)
            .expect("it parsed once");
        self.journal.extend(self.life.take_facts());
    }

    pub(super) fn status(&self) -> PodStatus {
        self.life.status(&["192.0.2.1".parse().expect("an address")])
    }

    pub(super) fn phase(&self) -> &'static str {
        self.life.phase().as_str()
    }

    pub(super) fn container(&self, container: &str) -> ContainerStatus {
        let status = self.status();
        let all = status.init_container_statuses.into_iter().chain(status.container_statuses);
        all.flatten().find(|status| status.name == container).expect("it has a status")
    }

    /// `waiting`'s reason, `running`, or `terminated`'s reason.
    pub(super) fn state(&self, container: &str) -> String {
        let state = self.container(container).state.unwrap_or_default();
        let waiting = state.waiting.and_then(|waiting| waiting.reason);
        let terminated = state.terminated.and_then(|terminated| terminated.reason);
        waiting.or(terminated).unwrap_or_else(|| "running".to_owned())
    }

    pub(super) fn condition(&self, type_: &str) -> PodCondition {
        let conditions = self.status().conditions.unwrap_or_default();
        conditions.into_iter().find(|condition| condition.type_ == type_).expect("it is ours")
    }

    /// The user's events since the last call, as `Reason: message`.
    pub(super) fn events(&mut self) -> Vec<String> {
        let events = self.life.take_events();
        events.into_iter().map(|e| format!("{}: {}", e.reason, e.message)).collect()
    }

    /// Seconds until something is due.
    pub(super) fn wakes_in(&self) -> Option<i64> {
        self.life.next_wake().map(|at| at.duration_since(self.now).as_secs())
    }

    pub(super) fn word_with_deadline(&self, action: &Action) -> String {
        match action {
            Action::Stop { deadline, .. } => {
                format!("{} in {}", word(action), deadline.duration_since(self.now).as_secs())
            }
            _ => word(action),
        }
    }

    /// As `plan`, with how far away a stop's deadline is.
    pub(super) fn plan_with_deadlines(&mut self) -> Vec<String> {
        let actions = self.life.plan(self.now);
        self.journal.extend(self.life.take_facts());
        actions.iter().map(|action| self.word_with_deadline(action)).collect()
    }
}

/// An action in short.
pub(super) fn word(action: &Action) -> String {
    match action {
        Action::SetUp => "set up".to_owned(),
        Action::Pull { container, .. } => format!("pull {container}"),
        Action::Start { container, attempt } => format!("start {container} {attempt}"),
        Action::Probe { container, probe, .. } => format!("probe {container} {probe:?}"),
        Action::Hook { container, hook, .. } => format!("hook {container} {hook:?}"),
        Action::Stop { container, .. } => format!("stop {container}"),
        Action::TearDown => "tear down".to_owned(),
    }
}
