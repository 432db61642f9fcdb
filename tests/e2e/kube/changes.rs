//! Pods that somebody changes while they run: their image, their labels, their deadline.
//!
//! Absent: what a node cannot go on with, which `copepod_kubelet`'s plan and the core's tests tell.

use copepod_tests::http::get;
use copepod_tests::manifest::{With, container, image, pod, probe};
use copepod_tests::node::status;
use copepod_tests::wait::until;
use serde_json::json;

use super::running::{Joined, address};

#[test]
fn another_image_takes_the_old_one_s_place_also_where_the_node_s_process_died_between() {
    let mut node = Joined::start("changes-image", &["hello-http", "probe"]);
    let server = container("app", "hello-http");
    let never = pod("changed", [server]).with("/spec/restartPolicy", json!("Never"));
    node.apply(&[never]);
    node.wait("changed", "ready", copepod_tests::node::is_ready);

    node.kill();
    // Nobody sees it now.
    let other = format!("app={}", image("probe"));
    node.kubectl(&["set", "image", "pod/changed", &other]);
    node.begin(&[]);

    // The probe without a script ends at once: the second run, and the last by the pod's policy.
    let over = node.wait("changed", "over", |pod| pod["status"]["phase"] == "Succeeded");
    let app = status(&over, "app");
    assert_eq!(app["restartCount"], 1, "{app}");
    assert_eq!(app["image"], image("probe").as_str());
    assert_eq!(app["state"]["terminated"]["exitCode"], 0, "{app}");
    let events = node.kubectl(&["get", "events", "--output", "json"]);
    assert!(events.contains("Container app definition changed, will be restarted"), "{events}");
}

#[test]
fn an_image_of_a_wrong_name_is_forgotten_once_it_is_put_right() {
    let node = Joined::start("changes-wrong", &["hello-http"]);
    let wrong = container("app", "no-such-guest").with("/imagePullPolicy", json!("Never"));
    node.apply(&[pod("wrong", [wrong])]);
    node.wait("wrong", "waiting for its image", |pod| {
        status(pod, "app")["state"]["waiting"]["reason"] == "ErrImageNeverPull"
    });

    node.kubectl(&["set", "image", "pod/wrong", &format!("app={}", image("hello-http"))]);

    let ready = node.wait("wrong", "ready", copepod_tests::node::is_ready);
    assert_eq!(status(&ready, "app")["restartCount"], 0);
    assert_eq!(get(address(&ready, 8080), "/").expect("it answers").status, 200);
    assert_eq!(ready["status"]["observedGeneration"], ready["metadata"]["generation"]);
}

#[test]
fn labels_that_change_are_in_the_files_that_show_them() {
    let node = Joined::start("changes-labels", &["probe"]);
    let volume = json!([{ "name": "about", "downwardAPI": { "items": [
        { "path": "tier", "fieldRef": { "fieldPath": "metadata.labels['tier']" } },
    ] } }]);
    let mount = json!([{ "name": "about", "mountPath": "/about" }]);
    let sleeps = probe(&["forever sleep 1000"]).with("/volumeMounts", mount);
    let about = pod("about", [sleeps])
        .with("/spec/volumes", volume)
        .with("/metadata/labels", json!({ "tier": "silver" }));
    node.apply(&[about]);
    node.wait("about", "running", |pod| pod["status"]["phase"] == "Running");
    node.approve_serving();
    let shows = |tier: &str| {
        let statement = format!("file-is /about/tier {tier}");
        let asked = ["--namespace", &node.name, "exec", "about", "--", "probe", &statement];
        until(&format!("the file to say {tier}"), || {
            (node.cluster.kubectl(&asked).code == Some(0)).then_some(())
        });
    };
    shows("silver");

    node.kubectl(&["label", "pod/about", "tier=gold", "--overwrite"]);

    shows("gold");
    let pod = node.get("pod", "about");
    assert_eq!(status(&pod, "probe")["restartCount"], 0);
}

#[test]
fn a_deadline_that_is_set_on_a_running_pod_ends_it() {
    let node = Joined::start("changes-deadline", &["hello-http"]);
    node.apply(&[pod("bounded", [container("app", "hello-http")])]);
    node.wait("bounded", "ready", copepod_tests::node::is_ready);

    let patch = r#"{"spec":{"activeDeadlineSeconds":1}}"#;
    node.kubectl(&["patch", "pod/bounded", "--patch", patch]);

    let over = node.wait("bounded", "over", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(over["status"]["reason"], "DeadlineExceeded");
    assert_eq!(node.denials(), Vec::<String>::new());
}
