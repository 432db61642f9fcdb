//! A machine that runs short of something: its node says so, and fails the pods that come all the same.
//!
//! Absent: really running short, which would hit everybody else here; the thresholds are moved instead.

use copepod_tests::cluster::shared;
use copepod_tests::manifest::{With, container, pod};
use copepod_tests::node::{Node, is_ready};
use copepod_tests::wait::until_it_is;
use serde_json::{Value, json};

use super::running::Joined;

/// The status of a node's condition.
fn condition(node: &Value, kind: &str) -> Value {
    let all = node["status"]["conditions"].as_array().into_iter().flatten();
    all.filter(|it| it["type"] == kind).map(|it| it["status"].clone()).next().unwrap_or_default()
}

#[test]
fn a_node_short_of_something_says_so_takes_no_pod_and_is_well_again_later() {
    let node = Node::new();
    node.load(&["hello-http"]);
    let none =
        ["--eviction-hard", "memory.available<100%,nodefs.available<100%,pid.available<100%"];
    let mut node = Joined::start_in(shared(), node, "pressure", &none);
    let has = |node: &Joined<'_>, status: &str| {
        until_it_is(
            &format!("each condition to be {status}"),
            || node.get("node", &node.name),
            |it| {
                let all = ["MemoryPressure", "DiskPressure", "PIDPressure"];
                all.iter().all(|kind| condition(it, kind) == status)
            },
            |it| format!("{}\n{}", it["status"], node.log()),
        );
    };
    let hello = |name: &str| {
        pod(name, [container("app", "hello-http")]).with("/spec/nodeName", json!("pressure"))
    };

    has(&node, "True");
    node.apply(&[hello("early")]);
    let failed = node.wait("early", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(failed["status"]["reason"], "Evicted", "{}", failed["status"]);
    let message = failed["status"]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("The node had condition: [MemoryPressure DiskPressure PIDPressure]"),
        "{message}"
    );

    node.kill();
    node.begin(&[]);
    has(&node, "False");
    node.apply(&[hello("later")]);
    node.wait("later", "ready", is_ready);
    assert_eq!(node.get("pod", "early")["status"]["reason"], "Evicted");
    assert_eq!(node.denials(), Vec::<String>::new());
}
