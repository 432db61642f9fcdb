//! What the tests' control plane is: real, as strict to nodes as a cluster of one's own, and gone without a trace.
//!
//! Absent: nodes; what runs here stays unscheduled.

use std::collections::BTreeMap;
use std::path::Path;

use ::kube::Api;
use ::kube::api::{ListParams, PostParams};
use copepod_tests::cluster::identity::Identity;
use copepod_tests::cluster::settings::{Part, Settings};
use copepod_tests::cluster::{Cluster, assets, shared};
use copepod_tests::wait::{until, until_it_is};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::json;

use super::api::{client, code, wait};

fn node(name: &str) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(name.to_owned());
    node
}

/// The cluster's own process ids that are still processes of its.
fn alive(pids: &[u32], folder: &Path) -> Vec<u32> {
    let names_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*folder.to_string_lossy())
    };
    pids.iter().copied().filter(names_it).collect()
}

#[test]
fn the_cluster_answers_its_admin_by_the_api_and_by_kubectl() {
    let cluster = shared();

    let version = wait(client(cluster.admin()).apiserver_version()).expect("an answer");
    let told: serde_json::Value =
        serde_json::from_str(&cluster.ok(&["version", "--output", "json"])).expect("JSON");

    assert!(version.git_version.starts_with("v1."), "{version:?}");
    assert_eq!(told["serverVersion"]["gitVersion"], version.git_version);
    assert_eq!(told["clientVersion"]["gitVersion"], version.git_version);
}

#[test]
fn a_node_s_agent_makes_its_own_node_but_no_other_and_the_audit_log_tells() {
    let cluster = shared();
    let kubeconfig = cluster.kubeconfig(&Identity::node("strict-1")).expect("a kubeconfig");
    let nodes: Api<Node> = Api::all(client(&kubeconfig));
    let user = "system:node:strict-1";

    let own = wait(nodes.create(&PostParams::default(), &node("strict-1")));
    let foreign = wait(nodes.create(&PostParams::default(), &node("strict-2")));

    assert_eq!(own.expect("its own node").metadata.name.as_deref(), Some("strict-1"));
    assert_eq!(code(foreign), Some(403));
    let denials = until("the refusal in the audit log", || {
        Some(cluster.denials(user)).filter(|denials| !denials.is_empty())
    });
    let told: Vec<_> = denials.iter().map(|it| (it.user(), it.verb(), it.resource())).collect();
    assert_eq!(told, [(user, "create", "nodes".to_owned())]);
}

#[test]
fn a_new_node_gets_a_range_of_pod_addresses() {
    let cluster = shared();
    let nodes: Api<Node> = Api::all(client(cluster.admin()));

    wait(nodes.create(&PostParams::default(), &node("ranged"))).expect("a node");

    let range = until("a range", || wait(nodes.get("ranged")).expect("it is there").spec?.pod_cidr);
    assert!(range.starts_with("10.244.") && range.ends_with("/24"), "{range}");
}

#[test]
fn a_deployment_of_two_makes_two_pods_that_wait_for_a_node() {
    let cluster = shared();
    cluster.namespace("two");
    let labels = json!({ "app": "two" });
    cluster.apply(&[json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "two", "namespace": "two" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    // Other tests have nodes.
                    "nodeSelector": { "no-node": "has-this" },
                    "containers": [{ "name": "two", "image": "localhost:5000/two:1" }],
                },
            },
        },
    })]);
    let pods: Api<Pod> = Api::namespaced(client(cluster.admin()), "two");

    let conditions =
        |pod: &Pod| pod.status.clone().and_then(|it| it.conditions).unwrap_or_default();
    let waits = |pod: &Pod| {
        let waits = |reason: Option<&str>| reason == Some("Unschedulable");
        conditions(pod).iter().any(|it| waits(it.reason.as_deref()))
    };
    let found = until_it_is(
        "two pods that the scheduler has looked at",
        || wait(pods.list(&ListParams::default())).expect("a list").items,
        |pods| pods.iter().filter(|pod| waits(pod)).count() == 2,
        |pods| format!("{pods:?}"),
    );

    assert_eq!(found.len(), 2);
    for pod in found {
        assert_eq!(pod.status.and_then(|it| it.phase).as_deref(), Some("Pending"));
    }
}

#[test]
fn a_user_has_the_groups_of_the_certificate() {
    let cluster = shared();
    let someone = Identity::user("someone", &["writers", "readers"]);
    let kubeconfig = cluster.kubeconfig(&someone).expect("a kubeconfig");

    let ended = cluster.kubectl_as(&kubeconfig, &["auth", "whoami", "--output", "json"]);

    let told: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let user = &told["status"]["userInfo"];
    assert_eq!(user["username"], "someone");
    assert_eq!(user["groups"], json!(["writers", "readers", "system:authenticated"]));
}

#[test]
fn a_certificate_whose_time_is_over_or_of_another_authority_is_nobody_s() {
    let cluster = shared();

    for who in [Identity::admin().expired(), Identity::admin().foreign()] {
        let kubeconfig = cluster.kubeconfig(&who).expect("a kubeconfig");
        let nodes: Api<Node> = Api::all(client(&kubeconfig));

        let answer = wait(nodes.list(&ListParams::default()));

        assert_eq!(code(answer), Some(401), "{who:?}");
    }
}

#[test]
fn a_bootstrap_token_gets_a_node_s_agent_a_certificate() {
    let cluster = shared();
    let kubeconfig = cluster.bootstrap_kubeconfig().expect("a kubeconfig");
    let requests: Api<CertificateSigningRequest> = Api::all(client(&kubeconfig));
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, "system:node:newcomer");
    let request = params.serialize_request(&key).expect("signed").pem().expect("PEM");
    let request = serde_json::from_value(json!({
        "metadata": { "name": "newcomer" },
        "spec": {
            "request": k8s_openapi::ByteString(request.into_bytes()),
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
            "usages": ["digital signature", "client auth"],
        },
    }));

    wait(requests.create(&PostParams::default(), &request.expect("a request"))).expect("made");

    let certificate = until("a certificate", || {
        wait(requests.get("newcomer")).expect("it is there").status?.certificate
    });
    assert!(certificate.0.starts_with(b"-----BEGIN CERTIFICATE-----"));
}

#[test]
fn a_killed_api_server_comes_back_with_all_it_knew_and_nothing_stays_of_a_dropped_cluster() {
    let programs = assets().expect("they are brought");
    let cluster = Cluster::start(&programs, &Settings::default()).expect("it starts");
    let maps: Api<ConfigMap> = Api::namespaced(client(cluster.admin()), "default");
    let map = ConfigMap {
        data: Some(BTreeMap::from([("key".to_owned(), "value".to_owned())])),
        ..serde_json::from_value(json!({ "metadata": { "name": "kept" } })).expect("a ConfigMap")
    };
    wait(maps.create(&PostParams::default(), &map)).expect("made");

    cluster.kill(Part::ApiServer);
    assert!(wait(maps.get("kept")).is_err(), "nobody answers");
    cluster.start_part(Part::ApiServer).expect("it starts again");
    let kept = until("the ConfigMap", || wait(maps.get("kept")).ok());
    assert_eq!(kept.data, map.data);

    let (pids, folder) = (cluster.pids(), cluster.folder().to_owned());
    assert_eq!(alive(&pids, &folder).len(), 4);
    drop(cluster);
    assert_eq!(alive(&pids, &folder), Vec::<u32>::new());
    assert!(!folder.exists(), "{}", folder.display());
}

#[test]
fn a_part_that_dies_at_its_start_is_told_with_its_last_words() {
    let programs = assets().expect("they are brought");
    let settings = Settings {
        flags: vec![(Part::ApiServer, "--no-such-flag".to_owned())],
        ..Settings::default()
    };

    let error = Cluster::start(&programs, &settings).err().expect("it cannot start");

    let told = format!("{error:#}");
    assert!(told.contains("kube-apiserver ended with exit status: 1"), "{told}");
    assert!(told.contains("unknown flag: --no-such-flag"), "{told}");
}
