//! A node's process is killed at each step of its pods' lives, from the watch's first word of a pod to its deletion, and started
//! again at once, as systemd does.
//!
//! Start at [`Step`]: how a step is seen from outside, in the journal, in the data directory, in the registry, by the API server's
//! watch. Nobody asks the node how its pods fared: guests leave marks outside, and every status that the API server had is on record.
//! Absent: failpoints, as in `crash`; a kill comes as soon after its step as a look can see it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use copepod_tests::cluster::shared;
use copepod_tests::host;
use copepod_tests::journal::records_with;
use copepod_tests::manifest::{With, container, image, probe};
use copepod_tests::node::{Node, is_ready};
use copepod_tests::registry::served::{Image, serve};
use copepod_tests::wait::{LONG, until_it_is};
use serde_json::{Value, json};

use super::running::{Joined, text};
use super::watched::{Told, Watched};

/// Between two looks: less than a step takes.
const LOOK: Duration = Duration::from_micros(200);

/// As issue 4 has it.
const KILLS: usize = 40;

/// Pods of most batches: with those of [`LARGER`] batches that have one more, 200 in all.
const BATCH: usize = 7;
const LARGER: usize = 4;

/// What of a pod's life has just come to pass when the node's process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The API server tells of a pod that is bound to the node.
    Watch,
    /// The pod is on disk.
    Admit,
    /// The registry was asked for a layer.
    Pull,
    /// A compiler runs.
    Compile,
    /// The pod has a folder in its domain.
    Volumes,
    /// A start is in the journal, and being sent.
    StartSent,
    /// The runner has said that it started, and the journal has it.
    StartAcknowledged,
    /// The API server has a status by which a container runs.
    StatusPatch,
    /// A guest runs a preStop hook.
    PreStop,
    /// A stop is in the journal, and being sent.
    Stop,
    /// The API server has a last phase.
    TerminalPatch,
    /// The API server has the pod no more.
    Delete,
}

impl Step {
    const ALL: [Self; 12] = [
        Self::Watch,
        Self::Admit,
        Self::Pull,
        Self::Compile,
        Self::Volumes,
        Self::StartSent,
        Self::StartAcknowledged,
        Self::StatusPatch,
        Self::PreStop,
        Self::Stop,
        Self::TerminalPatch,
        Self::Delete,
    ];

    /// Whether pods come to it by being made; else by being deleted.
    fn is_of_beginnings(self) -> bool {
        Self::ALL.iter().position(|it| *it == self) < Some(8)
    }
}

/// What pods are made by, and what their containers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A Deployment of probes that run until they are stopped, with a preStop hook and a ConfigMap.
    Lives,
    /// A Job whose pods end with their own index as exit code.
    Ends,
    /// A Deployment of hello-http.
    Serves,
}

/// Pods that were made together.
#[derive(Clone, Debug)]
struct Batch {
    name: String,
    namespace: String,
    kind: Kind,
    size: usize,
}

impl Batch {
    /// The n-th of all.
    fn new(n: usize) -> Self {
        let kind = [Kind::Lives, Kind::Ends, Kind::Lives, Kind::Serves][n % 4];
        let size = BATCH + usize::from(n < LARGER);
        Self { name: format!("b{n}"), namespace: format!("kills-{}", n % 3), kind, size }
    }

    fn guest(&self) -> &'static str {
        if self.kind == Kind::Serves { "hello-http" } else { "probe-p1" }
    }

    /// Its object, of an image of its own or the one that the node has.
    fn object(&self, marks: &Path, image: &str) -> Value {
        let at = |verb: &str| format!("{verb} /marks/$(POD_UID) x");
        let mark = |script: &[&str]| {
            let begin = at("append");
            let script: Vec<&str> =
                [begin.as_str(), "random"].iter().chain(script).copied().collect();
            let uid = json!({ "fieldRef": { "fieldPath": "metadata.uid" } });
            probe(&script)
                .with("/name", json!("main"))
                .with("/image", json!(image))
                .with("/env", json!([{ "name": "POD_UID", "valueFrom": uid }]))
                .with(
                    "/volumeMounts",
                    json!([
                        { "name": "marks", "mountPath": "/marks" },
                        { "name": "config", "mountPath": "/config" },
                    ]),
                )
        };
        let volumes = json!([
            { "name": "marks", "hostPath": { "path": marks } },
            { "name": "config", "configMap": { "name": "kube-root-ca.crt" } },
        ]);
        let labels = json!({ "batch": self.name });
        let deployment = |spec: Value| {
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": self.name },
                "spec": {
                    "replicas": self.size,
                    "selector": { "matchLabels": labels },
                    "template": { "metadata": { "labels": labels }, "spec": spec },
                },
            })
        };
        match self.kind {
            Kind::Lives => {
                let hook = json!({ "exec": { "command": ["probe", "append /marks/pre-stop x"] } });
                let main = mark(&["exists /config/ca.crt", "forever sleep 1000"])
                    .with("/lifecycle/preStop", hook);
                deployment(json!({ "volumes": volumes, "containers": [main] }))
            }
            Kind::Serves => {
                let get = json!({ "httpGet": { "port": 8080, "path": "/" }, "periodSeconds": 1 });
                let main = container("main", "hello-http")
                    .with("/image", json!(image))
                    .with("/readinessProbe", get);
                deployment(json!({ "containers": [main] }))
            }
            Kind::Ends => {
                let main = mark(&["sleep 300", "exit $(JOB_COMPLETION_INDEX)"]);
                let spec = json!({
                    "restartPolicy": "Never", "volumes": volumes, "containers": [main],
                });
                json!({
                    "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": self.name },
                    "spec": {
                        "completions": self.size, "parallelism": self.size,
                        "completionMode": "Indexed", "backoffLimitPerIndex": 0,
                        "template": { "metadata": { "labels": labels }, "spec": spec },
                    },
                })
            }
        }
    }

    fn resource(&self) -> String {
        let kind = if self.kind == Kind::Ends { "job" } else { "deployment" };
        format!("{kind}/{}", self.name)
    }
}

/// A node, its pods' marks, and all that was told of them.
struct Scene {
    node: Joined<'static>,
    watched: Watched,
    marks: PathBuf,
    registry: std::net::SocketAddr,
    /// How often the registry was asked for a layer.
    layers: Arc<AtomicUsize>,
    /// What the registry has, by name.
    images: Arc<Mutex<BTreeMap<String, Image>>>,
    flags: Vec<String>,
}

impl Scene {
    fn start() -> Self {
        let node = Node::new();
        node.load(&["hello-http", "probe-p1"]);
        let marks = node.scratch().join("marks");
        std::fs::create_dir(&marks).expect("a folder");
        let flags = ["--allow-host-path", text(&marks), "--max-pods", "250"].map(str::to_owned);
        let (layers, images) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let registry = {
            let (layers, images): (_, Arc<Mutex<BTreeMap<String, Image>>>) =
                (layers.clone(), Arc::clone(&images));
            serve(move |path| {
                layers.fetch_add(usize::from(path.contains("/blobs/")), Ordering::Relaxed);
                let images = images.lock().unwrap_or_else(PoisonError::into_inner);
                match path.strip_prefix("/v2/")?.split_once('/') {
                    Some((name, _)) => images.get(name)?.answer(path),
                    None => Some(("application/json", b"{}".to_vec())),
                }
            })
        };
        let cluster = shared();
        let given: Vec<&str> = flags.iter().map(String::as_str).collect();
        let node = Joined::start_in(cluster, node, "kills", &given);
        for n in 0..3 {
            cluster.namespace(&format!("kills-{n}"));
        }
        let watched = Watched::start(cluster, &node.name);
        Self { node, watched, marks, registry, layers, images, flags: flags.into() }
    }

    /// An image of a guest that nobody has had yet: its bytes have a section of this name, so that it is compiled too.
    fn new_image(&self, name: &str, guest: &str) -> String {
        let mut wasm = std::fs::read(self.node.node.built().guest(guest)).expect("a built guest");
        let length = u8::try_from(name.len()).expect("a short name");
        wasm.extend([0, length + 1, length]);
        wasm.extend(name.as_bytes());
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.insert(name.to_owned(), Image::of(&wasm));
        format!("{}/{name}:1", self.registry)
    }

    /// All that has come to a step so far, by whatever name tells one from another.
    fn reached(&self, step: Step) -> BTreeSet<String> {
        let data = self.node.node.data();
        let numbered = |count: usize| (0..count).map(|n| n.to_string()).collect();
        let facts = |name: &str| numbered(records_with(&data, name));
        let told = |is: fn(&Told) -> bool| {
            let all = self.watched.told();
            all.iter().filter(|it| is(it)).map(|it| super::watched::uid(&it.pod)).collect()
        };
        match step {
            Step::Watch => told(|_| true),
            Step::Admit => names(&data.join("pods")),
            Step::Pull => numbered(self.layers.load(Ordering::Relaxed)),
            Step::Compile => {
                let all = host::processes(&self.node.node.mark()).into_iter();
                let compilers = all.filter(|(_, line)| line.contains("__compile"));
                compilers.map(|(pid, _)| pid.to_string()).collect()
            }
            Step::Volumes => {
                let trees = names(&data.join("domains")).into_iter();
                trees.flat_map(|it| names(&data.join("domains").join(it).join("root/rw"))).collect()
            }
            Step::StartSent => facts("AttemptSent"),
            Step::StartAcknowledged => facts("Started"),
            Step::StatusPatch => told(|it| !main(&it.pod)["state"]["running"].is_null()),
            Step::PreStop => numbered(self.length_of("pre-stop")),
            Step::Stop => facts("StopSent"),
            Step::TerminalPatch => told(|it| is_over(&it.pod)),
            Step::Delete => told(|it| it.deleted),
        }
    }

    /// How often a mark was made.
    fn length_of(&self, mark: &str) -> usize {
        std::fs::read(self.marks.join(mark)).unwrap_or_default().len()
    }

    /// Waits until the node's process, begun after its log was this long, knows its cluster.
    fn wait_up(&self, log: usize) {
        until_it_is(
            "the node to be up",
            || self.node.log(),
            |told| told.get(log..).is_some_and(|new| new.contains("registered")),
            Clone::clone,
        );
    }

    /// Has `act` begin something, kills the node's process as soon as `step` is reached anew, and starts it again.
    fn kill_at(&mut self, step: Step, act: impl FnOnce(&Self)) {
        let before = self.reached(step);
        act(self);
        let begin = Instant::now();
        while self.reached(step).is_subset(&before) {
            if begin.elapsed() > LONG {
                let last = self.watched.by_pod().into_values().filter_map(|mut row| row.pop());
                let last = last
                    .filter(|it| !it.deleted)
                    .map(|it| format!("{} {}", it.pod["metadata"], it.pod["status"]));
                let last: Vec<String> = last.collect();
                panic!("nothing came to {step:?}\n{}\n{}", last.join("\n"), self.node.log());
            }
            std::thread::sleep(LOOK);
        }
        let log = self.node.log().len();
        self.node.kill();
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.node.launch(&flags);
        self.wait_up(log);
    }

    fn make(&self, batch: &Batch, step: Step) {
        let image = match step {
            Step::Pull | Step::Compile => self.new_image(&batch.name, batch.guest()),
            _ => image(batch.guest()),
        };
        self.node.apply_in(&batch.namespace, &[batch.object(&self.marks, &image)]);
    }

    fn delete(&self, batch: &Batch) {
        let delete = ["--namespace", &batch.namespace, "delete", &batch.resource(), "--wait=false"];
        self.node.cluster.ok(&delete);
    }

    /// Waits until each pod of these batches is as it should be: ready, over, or, of those that were deleted, gone.
    fn wait_settled(&self, made: &[(Batch, bool)]) {
        let unsettled = || -> Vec<String> {
            let pods = self.watched.by_pod();
            let mut wrong = Vec::new();
            for (batch, deleted) in made {
                let of_batch: Vec<&Told> = pods
                    .values()
                    .filter_map(|row| row.last())
                    .filter(|it| it.pod["metadata"]["labels"]["batch"] == batch.name.as_str())
                    .collect();
                let fine = of_batch.iter().filter(|it| match (deleted, batch.kind) {
                    (true, _) => it.deleted,
                    (false, Kind::Ends) => is_over(&it.pod),
                    (false, _) => is_ready(&it.pod),
                });
                let fine = fine.count();
                if fine != batch.size || of_batch.len() != batch.size {
                    let statuses = of_batch.iter().map(|it| it.pod["status"].to_string());
                    let statuses: Vec<String> = statuses.collect();
                    wrong.push(format!(
                        "{fine} of {} pods of {batch:?}, deleted: {deleted}\n{}",
                        of_batch.len(),
                        statuses.join("\n")
                    ));
                }
            }
            wrong
        };
        until_it_is("all pods to be settled", unsettled, Vec::is_empty, |wrong| {
            format!("{}\n{}", wrong.join("\n"), self.node.log())
        });
    }

    /// Whether a pod ran once, never or, wrongly, twice, by its own marks, and whether the API server was told the same.
    fn wrongs_of(&self, row: &[Told]) -> Vec<String> {
        let last = &row[row.len() - 1];
        let (pod, uid) = (&last.pod, super::watched::uid(&last.pod));
        let state = &main(pod)["state"];
        let began = row.iter().any(|it| {
            let state = &main(&it.pod)["state"];
            !state["running"].is_null() || !state["terminated"]["startedAt"].is_null()
        });
        let labels = &pod["metadata"]["labels"];
        let index = labels["batch.kubernetes.io/job-completion-index"].as_str();
        let leaves_marks = pod["spec"]["volumes"].to_string().contains("\"marks\"");
        let expected = match index {
            Some(index) => index.parse().expect("a number"),
            None if leaves_marks => 143,
            // A server that was drained.
            None => 0,
        };
        let mut wrong = Vec::new();
        if main(pod)["restartCount"].as_u64().unwrap_or(0) != 0 {
            wrong.push(format!("restarted: {}", main(pod)));
        }
        let marks = self.length_of(&uid);
        if leaves_marks && marks != usize::from(began) {
            wrong.push(format!("ran {marks} times, and was told to have begun: {began}"));
        }
        if began && (last.deleted || is_over(pod)) {
            let told = &state["terminated"]["exitCode"];
            if *told != json!(expected) {
                wrong.push(format!("ended with {expected} and was told as {}", main(pod)));
            }
        }
        if last.deleted && !is_over(pod) {
            wrong.push(format!("deleted before its last phase was told: {}", pod["status"]));
        }
        wrong
    }

    fn assert_true_so_far(&self) {
        let mut wrong = self.watched.untruths();
        wrong.extend(self.watched.gaps());
        for (uid, row) in self.watched.by_pod() {
            let name = row[0].pod["metadata"]["name"].as_str().unwrap_or_default();
            wrong
                .extend(self.wrongs_of(&row).into_iter().map(|it| format!("{name} ({uid}): {it}")));
        }
        assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), self.node.log());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for n in 0..3 {
            let namespace = format!("kills-{n}");
            self.node.cluster.kubectl(&["delete", "namespace", &namespace, "--wait=false"]);
        }
    }
}

/// The status of the one container.
fn main(pod: &Value) -> &Value {
    copepod_tests::node::status(pod, "main")
}

fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Each attempt has a log of its own, and in it each instance of a probe leaves a random number.
fn logs_of_two_runs(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(logs_of_two_runs(&path));
        } else if std::fs::read_to_string(&path).is_ok_and(|it| it.matches("= random:").count() > 1)
        {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn a_node_killed_at_each_step_of_its_pods_lives_loses_no_pod_runs_none_twice_and_tells_no_untruth()
{
    let mut scene = Scene::start();
    // What was made, and whether it was deleted.
    let mut made: Vec<(Batch, bool)> = Vec::new();

    for step in Step::ALL.iter().cycle().take(KILLS).copied() {
        if step.is_of_beginnings() {
            let batch = Batch::new(made.len());
            scene.kill_at(step, |scene| scene.make(&batch, step));
            made.push((batch, false));
        } else {
            let oldest = made.iter_mut().find(|(it, deleted)| it.kind == Kind::Lives && !deleted);
            let (batch, deleted) = oldest.expect("more are made than deleted");
            let batch = batch.clone();
            // Only what runs has hooks and is stopped.
            scene.wait_settled(&[(batch.clone(), false)]);
            *deleted = true;
            scene.kill_at(step, |scene| scene.delete(&batch));
        }
    }

    assert_eq!(made.iter().map(|(batch, _)| batch.size).sum::<usize>(), 200);
    scene.wait_settled(&made);
    scene.assert_true_so_far();
    assert_eq!(logs_of_two_runs(&scene.node.node.data().join("logs/pods")), Vec::<String>::new());

    for (batch, deleted) in made.iter_mut().filter(|(_, deleted)| !deleted) {
        scene.delete(batch);
        *deleted = true;
    }
    scene.wait_settled(&made);
    scene.assert_true_so_far();
    let data = scene.node.node.data();
    for folder in ["pods", "logs/pods", "domains"] {
        until_it_is(
            &format!("{folder} to be empty"),
            || names(&data.join(folder)),
            BTreeSet::is_empty,
            |names| format!("{names:?}\n{}", scene.node.log()),
        );
    }
    assert_eq!(scene.node.denials(), Vec::<String>::new());
}
