//! How a machine becomes a node: by a certificate, by a bootstrap token, and not by somebody else's; and what `deploy/` does.
//!
//! Absent: pods on it.

use std::path::{Path, PathBuf};

use ::kube::Api;
use copepod_tests::cluster::identity::Identity;
use copepod_tests::cluster::{Cluster, shared};
use copepod_tests::node::{Ended, Node as OurNode};
use copepod_tests::wait::until;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node};
use serde_json::{Value, json};

use super::api::{client, wait};
use super::running::{Running, approve_serving, text};

/// A file of `deploy/`.
fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

/// The Node object, once it is as `condition` says.
fn told(cluster: &Cluster, name: &str, what: &str, condition: impl Fn(&Node) -> bool) -> Node {
    let nodes: Api<Node> = Api::all(client(cluster.admin()));
    until(&format!("node {name} to be {what}"), || {
        wait(nodes.get_opt(name)).ok().flatten().filter(&condition)
    })
}

fn has_block(node: &Node) -> bool {
    node.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some())
}

fn kept(node: &OurNode) -> Option<Value> {
    let text = std::fs::read(node.data().join("node.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

#[test]
fn a_machine_joins_by_a_node_s_certificate_and_lives_by_its_lease() {
    let (cluster, node) = (shared(), OurNode::new());
    let kubeconfig = cluster.kubeconfig(&Identity::node("join-1")).expect("a kubeconfig");

    let _running = Running::start(
        &node,
        &["--kubeconfig", text(&kubeconfig), "--node-name", "join-1", "--node-labels", "tier=edge"],
    );

    let there = told(cluster, "join-1", "given addresses for pods", has_block);
    let labels = there.metadata.labels.clone().unwrap_or_default();
    assert_eq!(labels.get("kubernetes.io/os").map(String::as_str), Some("copepod"));
    assert_eq!(labels.get("tier").map(String::as_str), Some("edge"));
    let info = there.status.and_then(|it| it.node_info).expect("it tells of itself");
    assert!(
        info.kubelet_version.starts_with("v1.")
            && info.container_runtime_version.starts_with("copepod://")
    );
    let kept = until("what the node keeps", || kept(&node));
    assert_eq!(kept["uid"].as_str(), there.metadata.uid.as_deref());
    let leases: Api<Lease> = Api::namespaced(client(cluster.admin()), "kube-node-lease");
    let lease = until("the node's lease", || wait(leases.get_opt("join-1")).ok().flatten());
    let owners = lease.metadata.owner_references.unwrap_or_default();
    assert_eq!(owners.first().map(|it| it.uid.as_str()), there.metadata.uid.as_deref());
    let renewed = until("a renewal", || {
        let now = wait(leases.get_opt("join-1")).ok().flatten()?.spec?.renew_time;
        (now != lease.spec.as_ref()?.renew_time).then_some(now)
    });
    assert!(renewed.is_some());
    let events: Api<Event> = Api::namespaced(client(cluster.admin()), "default");
    until("the event of its start", || {
        let all = wait(events.list(&Default::default())).ok()?;
        all.items.into_iter().find(|it| {
            it.reason.as_deref() == Some("Starting") && it.involved_object.uid == there.metadata.uid
        })
    });
    let denials = cluster.denials("system:node:join-1");
    assert!(denials.is_empty(), "{denials:?}");
}

#[test]
fn a_machine_joins_by_a_bootstrap_token_and_gets_certificates_of_its_own() {
    let (cluster, node) = (shared(), OurNode::new());
    let bootstrap = cluster.bootstrap_kubeconfig().expect("a kubeconfig");

    let _running = Running::start(
        &node,
        &["--bootstrap-kubeconfig", text(&bootstrap), "--node-name", "join-2"],
    );

    told(cluster, "join-2", "given addresses for pods", has_block);
    assert!(node.data().join("pki/client.pem").is_file());
    let own = std::fs::read_to_string(node.data().join("kubeconfig")).expect("its own kubeconfig");
    assert!(!own.contains("token"), "{own}");
    approve_serving(cluster, &node, "join-2");
}

#[test]
fn the_approver_lets_a_node_have_its_own_serving_certificate_and_no_other_s() {
    let (cluster, node) = (shared(), OurNode::new());
    let rights = deploy("approver.yaml");
    cluster.ok(&["apply", "--filename", text(&rights)]);
    let account = ["--namespace", "copepod-system", "create", "token", "approver"];
    let kubeconfig = cluster.kubeconfig_with_token(cluster.ok(&account).trim()).expect("a file");
    // Somebody who holds a node's client certificate wants to be taken for the API server.
    let other = cluster.kubeconfig(&Identity::node("join-6")).expect("a kubeconfig");
    let foreign = cluster.signing_request("system:node:join-6", &["kubernetes.default"]);
    let asked = cluster.apply_as(&other, &[foreign]);
    assert_eq!(asked.code, Some(0), "{}{}", asked.stdout, asked.stderr);

    let log = node.scratch().join("approver.log");
    let mut approver =
        node.copepod(&["controllers", "approver", "--kubeconfig", text(&kubeconfig)]);
    approver.stderr(std::fs::File::create(&log).expect("a log"));
    let _approver = Killed(approver.spawn().expect("it starts"));
    let bootstrap = cluster.bootstrap_kubeconfig().expect("a kubeconfig");
    let _running = Running::start(
        &node,
        &["--bootstrap-kubeconfig", text(&bootstrap), "--node-name", "join-5"],
    );

    until("the serving certificate", || {
        node.data().join("pki/serving.pem").is_file().then_some(())
    });
    let said = until("the foreign request to be told of", || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        said.contains("left for a person").then_some(said)
    });
    assert!(said.contains("there is no node \"join-6\""), "{said}");
    let foreign = cluster.ok(&["get", "csr", "foreign", "--output", "json"]);
    let foreign: Value = serde_json::from_str(&foreign).expect("JSON");
    assert!(foreign["status"]["conditions"].is_null(), "{foreign}");
    let denials = cluster.denials("system:serviceaccount:copepod-system:approver");
    assert!(denials.is_empty(), "{denials:?}");
}

/// A process that ends with its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_usual_mistakes_end_a_node_s_start_with_what_to_do() {
    let (cluster, node) = (shared(), OurNode::new());
    let file = |of: &Identity| {
        let path = cluster.kubeconfig(of).expect("a kubeconfig");
        text(&path).to_owned()
    };
    let own = file(&Identity::node("join-3"));
    let expired = file(&Identity::node("join-3").expired());
    let table: [(&[&str], &str); 5] = [
        (&["--kubeconfig", "/nowhere/kubeconfig"], "there is no /nowhere/kubeconfig"),
        (&["--kubeconfig", &own, "--node-name", "join-4"], "give --node-name join-3"),
        (&["--kubeconfig", &expired, "--node-name", "join-3"], "clock says"),
        (
            &["--kubeconfig", &own, "--node-name", "join-3", "--node-ip", "127.0.0.1"],
            "--node-ip: 127.0.0.1",
        ),
        (&["--kubeconfig", &own, "--node-name", "Join_3"], "--node-name: \"Join_3\""),
    ];
    for (arguments, expected) in table {
        let ended: Ended =
            node.copepod(&["node"]).args(arguments).output().expect("it starts").into();
        assert_ne!(ended.code, Some(0), "{arguments:?}");
        assert!(ended.stderr.contains(expected), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn a_node_whose_certificate_another_authority_signed_says_so_and_waits() {
    let (cluster, node) = (shared(), OurNode::new());
    let foreign = cluster.kubeconfig(&Identity::node("join-5").foreign()).expect("a kubeconfig");

    let running = Running::start(&node, &["--kubeconfig", text(&foreign), "--node-name", "join-5"]);

    until("the reason in its log", || {
        running.log().contains("does not know this node").then_some(())
    });
}

#[test]
fn what_deploy_holds_is_taken_and_does_what_it_says() {
    let cluster = shared();
    for file in [
        "rbac-bootstrap.yaml",
        "rbac-node-proxier.yaml",
        "runtimeclasses.yaml",
        "policy.yaml",
        "service-account.yaml",
    ] {
        cluster.ok(&["apply", "--filename", text(&deploy(file))]);
    }
    cluster.namespace("deploy");
    let pod = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["containers"] = json!([{ "name": "c", "image": "example.com/x:1" }]);
        spec["runtimeClassName"] = "copepod".into();
        let metadata = json!({ "name": name, "namespace": "deploy" });
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
    };

    // A policy is in force some moments after it was made.
    until("the policy to refuse", || {
        let refused =
            cluster.apply_as(cluster.admin(), &[pod("refused", json!({ "hostPID": true }))]);
        let said = refused.stderr.contains("spec.hostPID: a guest never sees the host's processes");
        if refused.code == Some(0) {
            // By force, as it may have been bound to another test's node, which is gone.
            let delete = ["--namespace", "deploy", "delete", "pod", "refused", "--force"];
            cluster.ok(&[&delete[..], &["--grace-period", "0"]].concat());
        }
        said.then_some(())
    });
    cluster.apply(&[pod("taken", json!({}))]);

    let taken = cluster.ok(&["--namespace", "deploy", "get", "pod", "taken", "--output", "json"]);
    let taken: Value = serde_json::from_str(&taken).expect("JSON");
    assert_eq!(taken["spec"]["nodeSelector"]["copepod.dev/node"], "true");
}
