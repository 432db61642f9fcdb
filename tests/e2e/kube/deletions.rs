//! Pods that are deleted at whatever moment of their lives, with and without grace, and others of their names that come at once.
//!
//! Chance decides, by a seed that a failure tells; `COPEPOD_SEED` repeats it as far as a machine repeats itself. Absent: a node's
//! process that dies meanwhile ([`super::kills`]).

// A failed test tells its seed.
#![allow(clippy::print_stderr)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::kube::Api;
use ::kube::api::{DeleteParams, ListParams, PostParams};
use copepod_tests::cluster::shared;
use copepod_tests::host;
use copepod_tests::manifest::{With, container, image, pod, probe};
use copepod_tests::node::{Node, is_ready, status};
use copepod_tests::wait::{LONG, until_it_is};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::api::{client, code, wait};
use super::running::{Joined, text};
use super::watched::{self, Watched};

/// As issue 4 has it.
const PODS: usize = 500;

/// Lives at a time.
const AT_A_TIME: usize = 40;

/// The longest that a pod is left alone: in this time most have begun, and some are over.
const LONGEST: u64 = 1500;

/// Numbers by chance: splitmix64.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let given = std::env::var("COPEPOD_SEED").ok().and_then(|it| it.parse().ok());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
        let seed = given.unwrap_or_else(|| now() as u64);
        eprintln!("COPEPOD_SEED={seed}");
        Self(seed)
    }

    /// One of so many.
    fn of(&mut self, many: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % many
    }
}

/// What is to become of one pod.
#[derive(Debug)]
struct Fate {
    pod: Value,
    left_alone: Duration,
    /// None: the pod's own.
    grace: Option<u32>,
    /// Another pod of its name.
    again: Option<Value>,
}

/// The pod's containers write here how often they ran.
fn with_marks(pod: Value, marks: &Path) -> Value {
    let volumes = json!([{ "name": "marks", "hostPath": { "path": marks } }]);
    pod.with("/spec/volumes", volumes).with(
        "/spec/containers/0/volumeMounts",
        json!([{ "name": "marks", "mountPath": "/marks" }]),
    )
}

/// Some pod.
fn any_pod(name: &str, node: &str, marks: &Path, chance: &mut Chance) -> Value {
    let probe = |script: &[&str]| probe(script).with("/image", json!(image("probe-p1")));
    let hook = |command: &[&str]| json!({ "exec": { "command": command } });
    let forever = || probe(&["forever sleep 1000"]);
    let made = match chance.of(8) {
        0 => pod(name, [forever()]),
        1 => {
            let (time, end) = (chance.of(800), chance.of(3));
            pod(name, [probe(&[&format!("sleep {time}"), &format!("exit {end}")])])
        }
        // What it needs never comes.
        2 => pod(name, [forever()])
            .with("/spec/volumes", json!([{ "name": "v", "configMap": { "name": "never" } }])),
        3 => pod(name, [forever().with("/image", json!("127.0.0.1:1/never:1"))]),
        4 => {
            let init = probe(&["sleep 500"]).with("/name", json!("init"));
            pod(name, [forever()]).with("/spec/initContainers", json!([init]))
        }
        5 => pod(name, [forever().with("/lifecycle/preStop", hook(&["probe", "sleep 300"]))]),
        // A hook that does not end in time.
        6 => {
            let endless = hook(&["probe", "forever sleep 1000"]);
            pod(name, [forever().with("/lifecycle/preStop", endless)])
                .with("/spec/terminationGracePeriodSeconds", json!(1))
        }
        _ => {
            let get = json!({ "httpGet": { "port": 8080, "path": "/" }, "periodSeconds": 1 });
            pod(name, [container("probe", "hello-http").with("/readinessProbe", get)])
        }
    };
    // Some come by the scheduler, some at once.
    let made = match chance.of(2) {
        0 => made.with("/spec/nodeName", json!(node)),
        _ => made.with("/spec/nodeSelector", json!({ "kubernetes.io/hostname": node })),
    };
    if made["spec"]["volumes"].is_null() { with_marks(made, marks) } else { made }
}

fn any_fate(n: usize, node: &str, marks: &Path, chance: &mut Chance) -> Fate {
    let name = format!("pod-{n}");
    let pod = any_pod(&name, node, marks, chance);
    let again = (chance.of(4) == 0).then(|| {
        let mark = format!("append /marks/{name} x");
        let runs = probe(&[&mark, "forever sleep 1000"]).with("/image", json!(image("probe-p1")));
        let pod = copepod_tests::manifest::pod(&name, [runs]).with("/spec/nodeName", json!(node));
        with_marks(pod, marks)
    });
    // Force; what kubectl makes of no grace; the pod's own.
    let grace = [Some(0), Some(1), None][chance.of(3) as usize];
    Fate {
        pod,
        left_alone: Duration::from_millis(if chance.of(5) == 0 { 0 } else { chance.of(LONGEST) }),
        grace,
        again,
    }
}

/// The pod's life, and that of its successor's as far as that it is made.
async fn live(pods: &Api<Pod>, fate: Fate) {
    let Fate { pod, left_alone, grace, again } = fate;
    let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
    let made = |pod: Value| serde_json::from_value::<Pod>(pod).expect("a pod");
    pods.create(&PostParams::default(), &made(pod)).await.expect("it is made");
    tokio::time::sleep(left_alone).await;
    let params = DeleteParams { grace_period_seconds: grace, ..DeleteParams::default() };
    pods.delete(&name, &params).await.expect("its deletion is taken");
    let Some(again) = again.map(made) else { return };
    let begin = Instant::now();
    loop {
        let answer = pods.create(&PostParams::default(), &again).await;
        if answer.is_ok() {
            return;
        }
        // Its name is another's until that one is gone.
        assert_eq!(code(answer), Some(409), "{name}");
        assert!(begin.elapsed() < LONG, "{name} is not gone");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn pods_deleted_at_any_moment_are_never_stuck_and_leave_nothing_and_their_names_are_free_at_once() {
    let mut chance = Chance::new();
    let node = Node::new();
    node.load(&["hello-http", "probe-p1"]);
    let marks = node.scratch().join("marks");
    std::fs::create_dir(&marks).expect("a folder");
    let flags = ["--allow-host-path", text(&marks), "--max-pods", "250"];
    let node = Joined::start_in(shared(), node, "deletions", &flags);
    let data = node.node.data();
    // Of the test's own namespace: pods that other tests leave to the scheduler may be here too, and routes are told of a whole range.
    let own = format!("ns-{}", node.name);
    let left = || -> Vec<String> {
        let all = host::leftovers(&node.node.mark()).into_iter();
        all.filter(|it| it.contains(&own)).collect()
    };
    // The first pod makes what all of them share.
    node.apply(&[pod("first", [container("probe", "hello-http")])]);
    node.wait("first", "ready", is_ready);
    node.kubectl(&["delete", "pod", "first"]);
    let folders = ["pods", "logs/pods", "domains"].map(|it| data.join(it));
    let is_empty = || folders.iter().flat_map(|it| names(it)).collect::<Vec<_>>();
    until_it_is("nothing of the first pod", is_empty, Vec::is_empty, |left| left.join(" "));
    let before = left();
    let watched = Watched::start(node.cluster, &node.name);
    let pods: Api<Pod> = Api::namespaced(client(node.cluster.admin()), &node.name);

    let fates: Vec<Fate> =
        (0..PODS).map(|n| any_fate(n, &node.name, &marks, &mut chance)).collect();
    let again: BTreeSet<String> = (fates.iter())
        .filter(|fate| fate.again.is_some())
        .filter_map(|fate| fate.pod["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    let lives = futures::stream::iter(fates);
    wait(lives.for_each_concurrent(AT_A_TIME, |fate| live(&pods, fate)));

    let list = || wait(pods.list(&ListParams::default())).expect("a list").items;
    let as_value = |pod: &Pod| serde_json::to_value(pod).expect("JSON");
    let is_second = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_null() && is_ready(pod);
    let stay = until_it_is(
        "the second pods of their names alone to be there",
        || list().iter().map(as_value).collect::<Vec<_>>(),
        |pods| pods.len() == again.len() && pods.iter().all(is_second),
        |pods| {
            let odd = pods.iter().filter(|it| !is_second(it));
            let odd = odd.map(|it| format!("{} {}", it["metadata"], it["status"]));
            format!("{}\n{}", odd.collect::<Vec<_>>().join("\n"), node.log())
        },
    );
    for pod in &stay {
        let name = pod["metadata"]["name"].as_str().expect("a name");
        let runs = std::fs::read(marks.join(name)).unwrap_or_default().len();
        assert!(again.contains(name), "{name}");
        assert_eq!((runs, &status(pod, "probe")["restartCount"]), (1, &json!(0)), "{name}");
    }
    // The node's own API knows the same pods, and none of those that had their names before.
    node.approve_serving();
    let uids = |pods: &[Value]| pods.iter().map(watched::uid).collect::<BTreeSet<_>>();
    let own = format!("/api/v1/nodes/{}/proxy/pods", node.name);
    until_it_is(
        "the node's own list to be the API server's",
        || node.cluster.kubectl(&["get", "--raw", &own]),
        |told| {
            let list: Value = serde_json::from_str(&told.stdout).unwrap_or_default();
            list["items"].as_array().is_some_and(|own| uids(own) == uids(&stay))
        },
        |told| format!("{}{}\n{:?}", told.stdout, told.stderr, uids(&stay)),
    );
    assert_eq!(watched.gaps(), Vec::<String>::new());
    assert_eq!(watched.untruths(), Vec::<String>::new());
    // A pod that had some grace is gone only after its end was told. One that was being bound may be deleted without any by the API
    // server, which saw no node in it yet.
    let is_over =
        |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let grace = |it: &watched::Told| it.pod["metadata"]["deletionGracePeriodSeconds"].as_u64();
    let (told, untold): (Vec<_>, Vec<_>) = (watched.by_pod().into_values())
        .filter(|row| row.iter().any(|it| grace(it) > Some(0)))
        .filter_map(|mut row| row.pop().filter(|it| it.deleted))
        .partition(|it| is_over(&it.pod));
    assert!(untold.is_empty(), "{untold:?}");
    assert!(told.len() > PODS / 4, "{} pods had some grace", told.len());

    let all = DeleteParams::default();
    wait(pods.delete_collection(&all, &ListParams::default())).expect("their deletion is taken");
    until_it_is("no pod", list, Vec::is_empty, |pods| format!("{pods:?}\n{}", node.log()));
    until_it_is("nothing on disk", is_empty, Vec::is_empty, |left| {
        format!("{}\n{}", left.join(" "), node.log())
    });
    until_it_is(
        "nothing on the machine",
        left,
        |now| *now == before,
        |now| format!("{now:#?}, and before {before:#?}"),
    );
    assert_eq!(node.denials(), Vec::<String>::new());
}
