//! The node's programs are replaced while pods run: what serves HTTP goes on in the new build, and programs leave by eviction where
//! the node is told so.
//!
//! Absent: two builds without a cluster (`crate::upgrade`).

use copepod_tests::host;
use copepod_tests::http::get;
use copepod_tests::manifest::{With, container, image, pod, probe};
use copepod_tests::wait::{until, until_it_is};
use serde_json::{Value, json};

use super::running::{Joined, address};

/// A Deployment of two programs that do nothing for long.
fn sleepers() -> Value {
    let container = probe(&["forever sleep 1000"]).with("/image", json!(image("probe")));
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "sleepers" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "app": "sleepers" } },
            "template": {
                "metadata": { "labels": { "app": "sleepers" } },
                "spec": { "containers": [container], "terminationGracePeriodSeconds": 1 },
            },
        },
    })
}

/// A figure of the node's `/metrics`, as the API server passes it on.
fn figure(node: &Joined<'_>, name: &str) -> Option<f64> {
    let path = format!("/api/v1/nodes/{}/proxy/metrics", node.name);
    let told = node.cluster.kubectl(&["get", "--raw", &path]).stdout;
    let line = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

fn uids(node: &Joined<'_>) -> Vec<String> {
    let pods = node.pods();
    pods.iter().filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned)).collect()
}

#[test]
fn after_an_upgrade_servers_leave_the_old_build_unnoticed_and_programs_by_eviction() {
    let mut node = Joined::start("upgrades", &["hello-http", "probe"]);
    node.apply(&[sleepers()]);
    node.apply(&[pod("server", [container("app", "hello-http")])]);
    let before = node.wait_ready(3);
    node.approve_serving();
    let server = node.get("pod", "server");
    let old: Vec<u32> = node.node.runners();
    assert_eq!(old.len(), 1);

    // Without an age, programs keep their runner, and the server with it: a tree changes hands as a whole.
    node.kill();
    node.node.upgrade("next");
    node.begin(&[]);
    until("the figures to tell of the older build", || {
        (figure(&node, "copepod_outdated_runners") == Some(1.0)).then_some(())
    });
    assert_eq!(figure(&node, "copepod_outdated_pods"), Some(3.0));
    until("the gap to grow", || (figure(&node, "copepod_patch_gap_seconds")? >= 1.0).then_some(()));
    let uid = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let mut expected: Vec<_> = before.iter().map(uid).collect();
    expected.sort();
    let mut here = uids(&node);
    here.sort();
    assert_eq!(here, expected);

    node.kill();
    node.begin(&["--max-runner-age", "1s"]);

    until("the older build's runner to end", || {
        let runners = node.node.runners();
        (!runners.is_empty() && !runners.contains(&old[0])).then_some(())
    });
    node.wait_ready(3);
    let now = node.get("pod", "server");
    assert_eq!(now["metadata"]["uid"], server["metadata"]["uid"]);
    assert_eq!(now["status"]["containerStatuses"], server["status"]["containerStatuses"]);
    assert_eq!(get(address(&now, 8080), "/").expect("it answers").status, 200);
    for sleeper in node.pods().iter().filter(|pod| pod["metadata"]["name"] != "server") {
        assert!(!expected.contains(&uid(sleeper)), "{}", sleeper["metadata"]["name"]);
    }
    let builds: Vec<_> = node.node.runners().into_iter().map(host::program).collect();
    assert!(builds.windows(2).all(|two| two[0] == two[1]), "{builds:?}");
    until("the figures to tell that the gap is closed", || {
        let closed =
            ["copepod_outdated_runners", "copepod_outdated_pods", "copepod_patch_gap_seconds"];
        closed.iter().all(|name| figure(&node, name) == Some(0.0)).then_some(())
    });
    let events = node.kubectl(&["get", "events", "--output", "json"]);
    assert!(events.contains("(--max-runner-age)"), "{events}");
    assert_eq!(node.denials(), Vec::<String>::new());
}

#[test]
fn a_pod_that_no_controller_would_make_again_is_told_of_and_not_evicted() {
    let mut node = Joined::start("upgrades-bare", &["probe"]);
    node.apply(&[pod("bare", [probe(&["forever sleep 1000"])])]);
    let before = node.wait_ready(1);

    node.kill();
    node.node.upgrade("next");
    node.begin(&["--max-runner-age", "1s"]);

    let events = || node.kubectl(&["get", "events", "--output", "json"]);
    until_it_is("the event", events, |all| all.contains("RunnerOutdated"), |_| node.log());
    assert!(events().contains("delete it, and make it again"));
    let after = node.wait_ready(1);
    assert_eq!(after[0]["metadata"]["uid"], before[0]["metadata"]["uid"]);
    assert_eq!(after[0]["status"]["containerStatuses"], before[0]["status"]["containerStatuses"]);
}
