//! The agent is killed after each record of a pod's life in turn, from the first to the last, and the next one finishes the life.
//!
//! The pod has an init container, a sidecar, hooks, a probe, an exit with a restart, and a stop. Every instance of a guest
//! leaves a mark outside, so that no agent is believed about how often one ran. Absent: failpoints; whoever kills only watches the
//! journal's file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use copepod_tests::journal::records_of;
use copepod_tests::manifest::{With, image, pod, probe};
use copepod_tests::node::{Node, is_ready, status};
use copepod_tests::{host, wait};
use serde_json::{Value, json};

/// Between two looks at the journal: less than its disk takes for one record.
const LOOK: Duration = Duration::from_micros(50);

/// A pod's life under an agent that dies once.
struct Life<'a> {
    node: &'a Node,
    name: String,
    /// Seen by the guests as `/shared`.
    shared: PathBuf,
}

impl<'a> Life<'a> {
    fn new(node: &'a Node, name: String) -> Self {
        let shared = node.scratch().join(&name);
        std::fs::create_dir(&shared).expect("a folder");
        Self { node, name, shared }
    }

    /// The pod: its main container runs until it finds `/shared/end`, which its first run takes away.
    fn pod(&self) -> Value {
        let container = |name: &str, script: &[&str]| {
            let mark = format!("append /shared/{name} x");
            let script: Vec<&str> = ["random", &mark].iter().chain(script).copied().collect();
            probe(&script)
                .with("/name", json!(name))
                .with("/image", json!(image("probe-p1")))
                .with("/volumeMounts", json!([{ "name": "shared", "mountPath": "/shared" }]))
        };
        let hook = |statement: &str| json!({ "exec": { "command": ["probe", statement] } });
        let main = container("main", &["wait-for /shared/end", "remove /shared/end", "exit 3"])
            .with("/lifecycle/postStart", hook("append /shared/post-start x"))
            .with("/lifecycle/preStop", hook("append /shared/pre-stop x"))
            .with("/readinessProbe", hook("exists /shared"))
            .with("/readinessProbe/periodSeconds", json!(1));
        let side = container("side", &["forever sleep 1000"])
            .with("/restartPolicy", json!("Always"))
            .with("/startupProbe", hook("exists /shared"))
            .with("/startupProbe/periodSeconds", json!(1));
        pod(&self.name, [main])
            .with("/spec/initContainers", json!([container("init", &["exit 0"]), side]))
            .with("/spec/restartPolicy", json!("Always"))
            .with("/spec/terminationGracePeriodSeconds", json!(10))
            .with(
                "/spec/volumes",
                json!([{ "name": "shared", "hostPath": { "path": self.shared } }]),
            )
    }

    /// How many instances of a container began.
    fn starts(&self, container: &str) -> usize {
        std::fs::read(self.shared.join(container)).unwrap_or_default().len()
    }

    /// From its manifest to its stop; `meanwhile` is called while its second run is up.
    fn run(&self, meanwhile: impl Fn(&Value)) {
        let node = self.node;
        node.start(&[self.pod()]);
        node.wait_ready(&self.name);
        std::fs::write(self.shared.join("end"), "").expect("a file");
        let again = node.wait_for(&self.name, "ready again after its exit", |pod| {
            !self.shared.join("end").exists()
                && is_ready(pod)
                && status(pod, "main")["restartCount"].as_u64() >= Some(1)
        });
        self.no_attempt_ran_twice();
        meanwhile(&again);
        node.ok(&["stop", &self.name]);
        assert!(node.pod(&self.name).is_none(), "a stopped pod is forgotten");
        self.nothing_is_left();
    }

    /// Each attempt has a log of its own, and in it each instance would leave its random number.
    fn no_attempt_ran_twice(&self) {
        let mut logs = Vec::new();
        files(&self.node.data().join("logs/pods"), &mut logs);
        assert!(logs.len() >= 4, "a log for each attempt: {logs:?}");
        for log in logs {
            let text = std::fs::read_to_string(&log).expect("a log is text");
            assert!(text.matches("= random:").count() <= 1, "{}: {text}", log.display());
        }
    }

    fn nothing_is_left(&self) {
        for folder in ["pods", "logs/pods", "domains"] {
            wait::until_it_is(
                &format!("{folder} to be empty"),
                || names(&self.node.data().join(folder)),
                Vec::is_empty,
                |names| names.join(" "),
            );
        }
    }
}

/// Runs `life`, and kills the agent `later` than `n` records of its pod are on disk; how many there were. `None`: the life was over
/// before.
fn killed_after(
    n: usize,
    later: Duration,
    node: &Node,
    and: impl Fn() + Sync,
    life: impl FnOnce(),
) -> Option<usize> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let (mut agent, mut pod) = (None, None);
            while !over.load(Ordering::Relaxed) {
                pod = pod.or_else(|| names(&node.data().join("pods")).pop());
                let found = pod.as_ref().map_or(0, |uid| records_of(&node.data(), uid));
                // Looked for before there is a record: while all processes are gone through, a life is far ahead.
                agent = agent.filter(|pid| is_there(*pid)).or_else(|| node.agent());
                if let Some(agent) = agent.filter(|_| found >= n) {
                    std::thread::sleep(later);
                    host::kill(agent);
                    and();
                    return Some(found);
                }
                std::thread::sleep(LOOK);
            }
            None
        });
        // Also where the life fails, or the scope would wait for ever.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life));
        over.store(true, Ordering::Relaxed);
        let killed = killer.join().expect("it only watches and kills");
        if let Err(panic) = done {
            let after = killed.map_or("never".to_owned(), |found| format!("after record {found}"));
            panic!("the agent was killed {after}: {}", said(&*panic));
        }
        killed
    })
}

fn is_there(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no words")
}

#[test]
fn an_agent_killed_after_any_record_of_a_pod_s_life_costs_no_restart_and_no_exit_code() {
    let node = Node::new();
    node.load(&["probe-p1"]);
    let (mut n, mut steps) = (1, BTreeSet::new());

    loop {
        let life = Life::new(&node, format!("after-{n}"));
        let killed = killed_after(
            n,
            Duration::ZERO,
            &node,
            || (),
            || {
                life.run(|again| {
                    let main = status(again, "main");
                    assert_eq!(main["restartCount"], 1, "{main}");
                    assert_eq!(main["lastState"]["terminated"]["exitCode"], 3, "{main}");
                    for (container, starts) in [("init", 1), ("side", 1), ("main", 2)] {
                        assert_eq!(life.starts(container), starts, "{container}");
                    }
                    for side in again["status"]["initContainerStatuses"].as_array().expect("two") {
                        assert_eq!(side["restartCount"], 0, "{side}");
                    }
                });
                for hook in ["post-start", "pre-stop"] {
                    assert!(life.starts(hook) >= 1, "the {hook} hook did not run");
                }
            },
        );
        let Some(found) = killed else { break };
        steps.insert(found);
        n += 1;
    }

    // Records that come together are one step, and on a busy machine the killer comes a little late.
    assert!(steps.len() >= n / 2, "of {n} records killed after {steps:?} only");
}

#[test]
fn a_runner_killed_with_the_agent_at_any_step_of_a_pod_s_life_is_replaced_and_the_life_goes_on() {
    let node = Node::new();
    node.load(&["probe-p1"]);
    let (mut n, mut steps) = (2, Vec::new());

    loop {
        let life = Life::new(&node, format!("both-after-{n}"));
        let kill_runners = || node.runners().into_iter().for_each(host::kill);
        let killed = killed_after(n, Duration::ZERO, &node, kill_runners, || {
            life.run(|again| {
                let attempts = status(again, "main")["restartCount"].as_u64().unwrap_or(0) + 1;
                assert!(life.starts("main") as u64 <= attempts, "more runs than attempts");
            });
        });
        let Some(found) = killed else { break };
        steps.push(found);
        n = found + 4;
    }

    assert!(steps.len() >= 4, "killed after {steps:?} only");
}

#[test]
fn an_agent_killed_while_it_forgets_a_pod_leaves_nothing_of_it() {
    let node = Node::new();
    node.load(&["probe-p1"]);
    let sleeping = |name: &str| {
        let script = ["forever sleep 1000"];
        pod(name, [probe(&script).with("/image", json!(image("probe-p1")))])
    };
    // How many records the whole life of such a pod has.
    node.start(&[sleeping("first")]);
    node.wait_ready("first");
    let uid = names(&node.data().join("pods")).remove(0);
    node.ok(&["stop", "first"]);
    let all = records_of(&node.data(), &uid);
    assert!(all >= 6, "{all} records");

    for half_milliseconds in 0..12 {
        let life = Life::new(&node, format!("forgotten-{half_milliseconds}"));
        let later = Duration::from_micros(500 * half_milliseconds);
        killed_after(
            all,
            later,
            &node,
            || (),
            || {
                node.start(&[sleeping(&life.name)]);
                node.wait_ready(&life.name);
                node.ok(&["stop", &life.name]);
            },
        );
        // The next command's agent finishes what the last one began.
        node.ok(&["ps"]);
        life.nothing_is_left();
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
