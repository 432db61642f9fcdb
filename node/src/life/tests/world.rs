//! Random lives: a world that answers actions in any order, loses runners and agents, and watches what is promised.
//!
//! Absent: what a particular life looks like; the other tests tell that.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateWaiting, Pod};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::bench::{self, name, word};
use crate::{
    annotations::NodeCeilings,
    life::{
        Action, ExitReason, ExitRecord, Journaled, PodEvent, PodLife, ProbeResult, Role,
        spec::RestartPolicy,
    },
};

/// What the runner holds, what is in flight, and what was promised.
struct World {
    pod: Pod,
    life: PodLife,
    now: Timestamp,
    disk: Vec<Journaled>,
    /// The same history, shortened now and then.
    short: Vec<Journaled>,
    /// Actions that have not been answered yet.
    pending: Vec<Action>,
    /// The runner's truth: which attempt of which container runs since when.
    running: BTreeMap<String, (u32, Timestamp)>,
    /// Exits that the runner has on its disk and the agent has not heard of.
    exits: Vec<(String, u32, i32)>,
    /// Every attempt that ever ran, by container.
    ran: BTreeMap<String, Vec<u32>>,
    sandbox: bool,
}

impl World {
    fn new(spec: Value) -> Self {
        let (pod, now) = (bench::pod(spec), Timestamp::from_second(1_000_000).expect("small"));
        let life = PodLife::admit(pod.clone(), &NodeCeilings::default(), now)
            .unwrap_or_else(|wrong| panic!("{wrong:?}"));
        Self {
            pod,
            life,
            now,
            disk: Vec::new(),
            short: Vec::new(),
            pending: Vec::new(),
            running: BTreeMap::new(),
            exits: Vec::new(),
            ran: BTreeMap::new(),
            sandbox: false,
        }
    }

    /// One turn of the agent's loop after an event.
    fn turn(&mut self, event: Option<PodEvent>) {
        let before = self.life.phase();
        if let Some(event) = event {
            self.life.observe(event, self.now);
        }
        let actions = self.life.plan(self.now);
        self.journal();
        for action in actions {
            if let Action::Stop { container, attempt, .. } = &action {
                // A nearer deadline replaces the stop that is out.
                self.pending.retain(|other| {
                    !matches!(other, Action::Stop { container: c, attempt: a, .. } if c == container && a == attempt)
                });
            }
            assert!(
                !self.pending.contains(&action),
                "{} was planned while in flight",
                word(&action)
            );
            self.pending.push(action);
        }
        let after = self.life.phase();
        assert!(!before.is_terminal() || before == after, "{before:?} became {after:?}");
        assert_eq!(self.life.plan(self.now), [], "a second plan is empty");
        let wake = self.life.next_wake();
        assert!(wake.is_none_or(|wake| wake > self.now), "woken again at once");
        if after.is_terminal() {
            assert!(self.running.is_empty(), "{after:?} while something runs");
        }
        self.check_recovery();
        self.check_short_history();
    }

    /// What is new goes to the disk.
    fn journal(&mut self) {
        let facts = self.life.take_facts();
        self.disk.extend(facts.iter().cloned());
        self.short.extend(facts);
    }

    fn recovered(&self, history: &[Journaled]) -> PodLife {
        PodLife::recover(self.pod.clone().into(), history, self.now).expect("it parsed")
    }

    /// However often a history was shortened, it makes the life that the whole one makes, and a short one of the same length.
    fn check_short_history(&mut self) {
        let so_far = self.life.so_far();
        assert_eq!(so_far.len(), self.life.slots.len() + 1);
        let text = serde_json::to_string(&so_far).expect("facts are JSON");
        let read: Vec<Journaled> = serde_json::from_str(&text).expect("and come back");
        assert_eq!(read, so_far);

        for history in [&read, &self.short] {
            let (mut whole, mut other) = (self.recovered(&self.disk), self.recovered(history));
            assert_eq!(other.take_facts(), [], "recovery finds nothing new");
            assert_eq!(other.so_far(), so_far);
            assert_eq!(whole.so_far(), so_far);
            assert_eq!(other.unconfirmed(), whole.unconfirmed());
            for life in [&mut whole, &mut other] {
                for (container, attempt) in life.unconfirmed() {
                    let event = PodEvent::Started { container, attempt, at: self.now };
                    life.observe(event, self.now);
                }
            }
            assert_eq!(other.status(&[]), whole.status(&[]));
            assert_eq!(other.plan(self.now), whole.plan(self.now));
            assert_eq!(other.next_wake(), whole.next_wake());
        }
    }

    /// A life made of the disk alone would decide the same.
    fn check_recovery(&self) {
        let mut other = self.recovered(&self.disk);
        assert_eq!(other.take_facts(), [], "recovery finds nothing new");
        let beginning = |action: &Action| matches!(action, Action::SetUp | Action::Start { .. });
        if self.life.end_reason().is_some() && self.pending.iter().any(beginning) {
            // An ending pod waits for what is on its way to be answered; after a restart there may be nothing to wait for.
            return;
        }
        let starting: Vec<_> = self.pending.iter().filter_map(started_attempt).collect();
        for (container, attempt) in other.unconfirmed() {
            let event = if starting.contains(&(container.to_string(), attempt)) {
                PodEvent::NotSeen { container, attempt }
            } else {
                PodEvent::Started { container, attempt, at: self.now }
            };
            other.observe(event, self.now);
        }
        assert_eq!(plain_status(&other), plain_status(&self.life));

        let decided = |actions: &[Action]| {
            let lasting = |action: &&Action| {
                matches!(action, Action::Stop { .. } | Action::Hook { .. } | Action::TearDown)
            };
            let mut keys: Vec<_> = actions.iter().filter(lasting).map(key).collect();
            keys.sort();
            keys
        };
        // What was in flight is sent once more, and nothing else; probes and back-offs of pulls begin anew.
        let in_flight: Vec<_> = self
            .pending
            .iter()
            .filter(|action| match action {
                Action::Hook { container, attempt, .. }
                | Action::Stop { container, attempt, .. } => {
                    self.life.alive().contains(&(container.clone(), *attempt))
                }
                _ => true,
            })
            .cloned()
            .collect();
        let again = other.plan(self.now);
        let gone = |hook: &Action| {
            matches!(hook, Action::Hook { .. })
                && !again.iter().any(|other| key(other) == key(hook))
        };
        // A hook that nobody waits for any longer is not run again.
        let in_flight: Vec<_> = in_flight.into_iter().filter(|action| !gone(action)).collect();
        assert_eq!(decided(&again), decided(&in_flight));
    }

    /// Takes one unanswered action and answers it, well or badly.
    fn answer(&mut self, which: u8, how: u8) {
        if self.pending.is_empty() {
            return;
        }
        let action = self.pending.remove(usize::from(which) % self.pending.len());
        let bad = how.is_multiple_of(4);
        let event = match action {
            Action::SetUp if bad => PodEvent::SetUpFailed {
                reason: "FailedCreatePodSandBox".to_owned(),
                message: "no".to_owned(),
            },
            Action::SetUp => {
                self.sandbox = true;
                PodEvent::SetUp { ips: vec!["10.64.0.9".parse().expect("an address")] }
            }
            Action::Pull { container, .. } if bad => PodEvent::ImageFailed {
                container,
                reason: "ErrImagePull".to_owned(),
                message: "no".to_owned(),
                retry: true,
            },
            Action::Pull { container, .. } => {
                PodEvent::ImageReady { container, image_id: "id".to_owned(), pulled: None }
            }
            Action::Start { container, attempt } if bad => PodEvent::StartFailed {
                container,
                attempt,
                reason: "CreateContainerConfigError".to_owned(),
                message: "no".to_owned(),
                retry: true,
            },
            Action::Start { container, attempt } => {
                self.start(&container, attempt);
                PodEvent::Started { container, attempt, at: self.now }
            }
            Action::Probe { container, attempt, probe, .. } => {
                let result =
                    if bad { ProbeResult::Failed("no".to_owned()) } else { ProbeResult::Passed };
                PodEvent::ProbeDone { container, attempt, probe, result }
            }
            Action::Hook { container, attempt, hook, .. } => {
                let result = if bad { Err("no".to_owned()) } else { Ok(()) };
                PodEvent::HookDone { container, attempt, hook, result }
            }
            Action::Stop { container, attempt, .. } => {
                if self.running.get(&*container).is_none_or(|(running, _)| *running != attempt) {
                    return;
                }
                self.exit(&container, if bad { 137 } else { 0 });
                return self.hear();
            }
            Action::TearDown => {
                assert!(self.running.is_empty(), "torn down while something runs");
                self.sandbox = false;
                PodEvent::TornDown
            }
        };
        self.turn(Some(event));
    }

    /// The runner starts an attempt: idempotent, and never twice.
    fn start(&mut self, container: &str, attempt: u32) {
        assert!(self.sandbox, "started without a sandbox");
        if let Some((running, _)) = self.running.get(container) {
            assert_eq!(*running, attempt, "{container} would run twice at a time");
            return;
        }
        let ran = self.ran.entry(container.to_owned()).or_default();
        assert!(
            ran.last().is_none_or(|last| *last < attempt),
            "{container} {attempt} after {ran:?}"
        );
        ran.push(attempt);
        self.running.insert(container.to_owned(), (attempt, self.now));
    }

    /// The runner sees a container end.
    fn exit(&mut self, container: &str, code: i32) {
        if let Some((attempt, _)) = self.running.remove(container) {
            self.exits.push((container.to_owned(), attempt, code));
        }
    }

    /// The agent hears of all exits.
    fn hear(&mut self) {
        for (container, attempt, code) in std::mem::take(&mut self.exits) {
            let exit = ExitRecord {
                code,
                reason: ExitReason::Ended,
                message: String::new(),
                started_at: Some(self.now),
                finished_at: self.now,
            };
            self.turn(Some(PodEvent::Exited { container: name(&container), attempt, exit }));
        }
    }

    fn runner_dies(&mut self) {
        if !self.sandbox {
            return;
        }
        self.running.clear();
        self.sandbox = false;
        // What was asked of the runner is answered by its death.
        self.pending.retain(|action| !matches!(action, Action::Start { .. } | Action::Stop { .. }));
        if self.pending.contains(&Action::TearDown) {
            return;
        }
        self.hear();
        self.turn(Some(PodEvent::SandboxLost));
    }

    /// The agent dies, perhaps before its newest decisions were on the disk, and comes back. What it had sent may have arrived.
    fn agent_dies(&mut self, arrived: u8, before_journaling: bool) {
        if before_journaling {
            // These decisions reach neither the disk nor the world.
            let _ = self.life.plan(self.now);
        }
        let sandbox_asked = self.pending.contains(&Action::SetUp);
        for (i, action) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            if arrived >> (i % 8) & 1 == 0 {
                continue;
            }
            match action {
                Action::Start { container, attempt } => self.start(&container, attempt),
                Action::Stop { container, attempt, .. }
                    if self.running.get(&*container).is_some_and(|(it, _)| *it == attempt) =>
                {
                    self.exit(&container, 143);
                }
                _ => {}
            }
        }
        self.life = self.recovered(&self.short);
        if self.life.has_sandbox() && !self.sandbox && !sandbox_asked {
            self.turn(Some(PodEvent::SandboxLost));
        }
        for (container, attempt) in self.life.unconfirmed() {
            let running = self.running.get(&*container).copied();
            let event = match running.filter(|(running, _)| *running == attempt) {
                Some((_, at)) => PodEvent::Started { container, attempt, at },
                None if self.exits.iter().any(|(c, a, _)| *c == *container && *a == attempt) => {
                    continue;
                }
                None => PodEvent::NotSeen { container, attempt },
            };
            self.life.observe(event, self.now);
            self.journal();
        }
        for (container, attempt, code) in std::mem::take(&mut self.exits) {
            let exit = ExitRecord {
                code,
                reason: ExitReason::Ended,
                message: String::new(),
                started_at: None,
                finished_at: self.now,
            };
            let container = name(&container);
            self.life.observe(PodEvent::Exited { container, attempt, exit }, self.now);
            self.journal();
        }
        self.turn(None);
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.checked_add(Duration::from_secs(seconds)).expect("in range");
        self.turn(None);
    }

    fn step(&mut self, (what, which, how): (u8, u8, u8)) {
        match what % 16 {
            0..=8 => self.answer(which, how),
            9 | 10 => self.pass(u64::from(which)),
            11 | 12 => {
                let nth = usize::from(which) % self.running.len().max(1);
                if let Some(container) = self.running.keys().nth(nth).cloned() {
                    self.exit(&container, i32::from(how % 3));
                    self.hear();
                }
            }
            13 => self.agent_dies(which, how % 2 == 0),
            14 if which % 4 == 0 => self.runner_dies(),
            14 if which % 4 == 1 => self.short = self.life.so_far(),
            15 if which % 4 == 1 => self.turn(Some(PodEvent::ObjectsChanged)),
            15 if which % 4 == 0 => {
                let grace = Some(Duration::from_secs(u64::from(how % 40)));
                self.turn(Some(PodEvent::DeleteAsked { grace }));
            }
            _ => self.turn(None),
        }
    }

    /// Deletes the pod and answers everything, until nothing is left.
    fn finish(&mut self) {
        self.turn(Some(PodEvent::DeleteAsked { grace: None }));
        for _ in 0..1000 {
            if self.life.is_over() {
                return;
            }
            if self.pending.is_empty() {
                let wake = self.life.next_wake().expect("nothing in flight, nothing due: stuck");
                self.now = wake;
                self.turn(None);
            } else {
                self.answer(0, 1);
            }
        }
        panic!("the pod does not end");
    }

    fn check_history(&self) {
        for slot in &self.life.slots {
            let ran = self.ran.get(&*slot.spec.name).map_or(0, Vec::len);
            if slot.spec.restart == RestartPolicy::Never && slot.spec.role != Role::Sidecar {
                assert!(ran <= 1, "{} ran {ran} times under Never", slot.spec.name);
            }
        }
    }
}

/// What an action is to, without a hook's deadline, which may have come nearer since it was sent.
fn key(action: &Action) -> (String, Option<u32>, Option<Timestamp>) {
    let (attempt, deadline) = match action {
        Action::Hook { attempt, .. } => (Some(*attempt), None),
        Action::Stop { attempt, deadline, .. } => (Some(*attempt), Some(*deadline)),
        _ => (None, None),
    };
    (word(action), attempt, deadline)
}

fn started_attempt(action: &Action) -> Option<(String, u32)> {
    match action {
        Action::Start { container, attempt } => Some((container.to_string(), *attempt)),
        _ => None,
    }
}

/// The status without the words of waiting, which speak of tries that are not journaled.
fn plain_status(life: &PodLife) -> Value {
    let mut status = life.status(&[]);
    let lists = [&mut status.container_statuses, &mut status.init_container_statuses];
    for container in lists.into_iter().flatten().flatten() {
        if let Some(ContainerState { waiting: Some(waiting), .. }) = &mut container.state {
            *waiting = ContainerStateWaiting::default();
        }
    }
    serde_json::to_value(status).expect("a status is JSON")
}

fn container(role: Role) -> impl Strategy<Value = Value> {
    let bits = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    bits.prop_map(move |(startup, liveness, readiness, post_start, pre_stop)| {
        let mut container = json!({});
        if role == Role::Sidecar {
            container["restartPolicy"] = json!("Always");
        }
        if role != Role::Init {
            let probe =
                json!({"tcpSocket": {"port": 1}, "failureThreshold": 2, "periodSeconds": 5});
            for (wanted, field) in [
                (startup, "startupProbe"),
                (liveness, "livenessProbe"),
                (readiness, "readinessProbe"),
            ] {
                if wanted {
                    container[field] = probe.clone();
                }
            }
            for (wanted, field) in [(post_start, "postStart"), (pre_stop, "preStop")] {
                if wanted {
                    container["lifecycle"][field] = json!({"sleep": {"seconds": 1}});
                }
            }
        }
        container
    })
}

fn spec() -> impl Strategy<Value = Value> {
    let init = prop_oneof![container(Role::Init), container(Role::Sidecar)];
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    let deadline = prop_oneof![3 => Just(None), 1 => (1..500_i64).prop_map(Some)];
    let (inits, mains) =
        (prop::collection::vec(init, 0..3), prop::collection::vec(container(Role::Main), 1..3));
    (policy, inits, mains, deadline).prop_map(|(policy, mut inits, mut mains, deadline)| {
        for (i, container) in inits.iter_mut().enumerate() {
            container["name"] = json!(format!("i{i}"));
        }
        for (i, container) in mains.iter_mut().enumerate() {
            container["name"] = json!(format!("m{i}"));
        }
        let mut spec = json!({
            "restartPolicy": policy, "terminationGracePeriodSeconds": 10,
            "initContainers": inits, "containers": mains
        });
        if let Some(deadline) = deadline {
            spec["activeDeadlineSeconds"] = json!(deadline);
        }
        spec
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        // A counterexample becomes a test with a name, not a seed in a file.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_a_life_keeps_its_promises(
        spec in spec(),
        steps in prop::collection::vec(any::<(u8, u8, u8)>(), 0..120),
    ) {
        let mut world = World::new(spec);
        world.turn(None);

        for step in steps {
            world.step(step);
        }
        world.finish();

        world.check_history();
        prop_assert!(world.running.is_empty());
        prop_assert!(world.life.phase().is_terminal());
    }
}
