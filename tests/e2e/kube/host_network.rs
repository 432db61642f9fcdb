//! Pods in the node's own network, where its administrator lets them in.
//!
//! Absent: ports below 1024, which take a right that no runner has.

use std::net::{Ipv4Addr, TcpListener};

use copepod_tests::http::get;
use copepod_tests::manifest::{With, container, pod};
use copepod_tests::node::{is_ready, status};
use serde_json::{Value, json};

use super::running::{Joined, address};

/// A server in the host's network on a port that is free.
fn server(name: &str) -> (Value, u16) {
    let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    let port = free.local_addr().expect("bound").port();
    let container =
        container("app", "hello-http").with("/ports", json!([{ "containerPort": port }]));
    (pod(name, [container]).with("/spec/hostNetwork", json!(true)), port)
}

#[test]
fn a_pod_of_the_host_s_network_answers_on_the_node_s_address_and_goes_on_without_the_agent() {
    let mut node = Joined::start("host-network", &["hello-http"]);
    let (refused, _) = server("refused");
    node.apply(&[refused]);
    let waits = node.wait("refused", "refused", |pod| {
        status(pod, "app")["state"]["waiting"]["reason"] == "UnsupportedPod"
    });
    let message = &status(&waits, "app")["state"]["waiting"]["message"];
    assert!(message.as_str().is_some_and(|it| it.contains("spec.hostNetwork")), "{message}");

    node.kill();
    node.begin(&["--allow-host-network", "true"]);
    let (pod, port) = server("on-host");
    node.apply(&[pod]);
    let ready = node.wait("on-host", "ready", is_ready);

    assert_eq!(ready["status"]["podIP"], ready["status"]["hostIP"]);
    assert_eq!(get(address(&ready, port), "/").expect("it answers").status, 200);
    node.kill();
    assert_eq!(get(address(&ready, port), "/").expect("it answers").status, 200);
    node.begin(&["--allow-host-network", "true"]);
    let after = node.wait("on-host", "ready", is_ready);
    assert_eq!(status(&after, "app")["restartCount"], 0);
    node.kubectl(&["delete", "pod", "on-host"]);
    assert!(get(address(&ready, port), "/").is_err(), "nobody listens any more");
}
