//! Pods that a real scheduler binds to a node of ours: they run, are told truly, and go, whatever happens to the node's process.
//!
//! Absent: what a pod's life is in itself, which the suites without a cluster test.

use copepod_tests::cluster::shared;
use copepod_tests::http::get;
use copepod_tests::manifest::{With, container, pod, probe};
use copepod_tests::node::{Node as OurNode, is_ready, status};
use copepod_tests::wait::{until, until_it_is};
use serde_json::{Value, json};

use super::running::{Joined, address};

fn deployment(name: &str, replicas: u32, container: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [container] },
            },
        },
    })
}

fn answers(pod: &Value) -> bool {
    get(address(pod, 8080), "/").is_ok_and(|response| response.status == 200)
}

fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a Value {
    let all = pod["status"]["conditions"].as_array();
    all.and_then(|all| all.iter().find(|it| it["type"] == kind)).unwrap_or(&Value::Null)
}

#[test]
fn a_deployment_s_pods_answer_by_their_addresses_and_go_when_it_is_scaled() {
    let node = Joined::start("pods-deployment", &["hello-http"]);
    node.apply(&[deployment("hello", 3, container("app", "hello-http"))]);

    let pods = node.wait_ready(3);

    for pod in &pods {
        assert!(answers(pod), "{}", pod["status"]);
        assert_eq!(pod["status"]["phase"], "Running");
        assert!(status(pod, "app")["imageID"].as_str().is_some_and(|id| id.contains("sha256:")));
        assert_eq!(pod["status"]["observedGeneration"], pod["metadata"]["generation"]);
    }
    node.kubectl(&["scale", "deployment/hello", "--replicas", "1"]);
    let one = node.wait_ready(1);
    assert!(answers(&one[0]));
    node.kubectl(&["delete", "deployment/hello"]);
    until_it_is("no pod", || node.pods(), Vec::is_empty, |pods| format!("{pods:?}"));
    assert_eq!(node.denials(), Vec::<String>::new());
}

#[test]
fn a_stateful_set_s_pods_come_one_after_the_other_under_their_names() {
    let node = Joined::start("pods-stateful", &["probe"]);
    node.approve_serving();
    let whole = |pod: &str| format!("{pod}.db.{}.svc.cluster.local", node.name);
    let mut set = deployment("db", 2, probe(&["print up", "sleep 600000"]));
    set["kind"] = json!("StatefulSet");
    set["spec"]["serviceName"] = json!("db");
    node.apply(&[set]);

    let pods = node.wait_ready(2);

    let names: Vec<_> = pods.iter().map(|pod| pod["metadata"]["name"].as_str()).collect();
    assert_eq!(names, [Some("db-0"), Some("db-1")]);
    for pod in &pods {
        assert_eq!(pod["spec"]["subdomain"], "db");
        let name = pod["metadata"]["name"].as_str().expect("a name");
        let address = pod["status"]["podIP"].as_str().expect("an address");
        let script = format!("resolve-is {} {address}", whole(name));
        let own = format!("env-is HOSTNAME {name}");
        let told = node.kubectl(&["exec", name, "--", "probe", &own, &script]);
        assert!(!told.contains("FAILED"), "{told}");
    }
    node.kubectl(&["delete", "pod", "db-0"]);
    let again = node.wait_ready(2);
    assert_ne!(again[0]["metadata"]["uid"], pods[0]["metadata"]["uid"]);
    assert_eq!(again[1]["metadata"]["uid"], pods[1]["metadata"]["uid"]);
}

#[test]
fn a_claim_s_folder_is_shared_by_the_pods_that_name_it_and_only_where_the_node_allows_it() {
    let ours = OurNode::new();
    ours.load(&["probe"]);
    let allowed = ours.scratch().join("volumes");
    std::fs::create_dir_all(allowed.join("data")).expect("a folder");
    let name = "pods-claims";
    let more = ["--allow-host-path", allowed.to_str().expect("text")];
    let node = Joined::start_in(shared(), ours, name, &more);
    let volume = |volume: &str, source: Value| {
        let mut made = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": volume },
            "spec": {
                "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteMany"], "storageClassName": "",
                "claimRef": { "namespace": name, "name": volume },
            },
        });
        made["spec"]
            .as_object_mut()
            .expect("a map")
            .extend(source.as_object().expect("a map").clone());
        made
    };
    let claim = |claim: &str| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": claim },
            "spec": {
                "accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": claim,
                "resources": { "requests": { "storage": "1Gi" } },
            },
        })
    };
    let user = |pod_name: &str, claim: &str, read_only: bool, script: &[&str]| {
        let mut container = probe(script);
        container["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
        let source = json!({ "claimName": claim, "readOnly": read_only });
        pod(pod_name, [container])
            .with("/spec/volumes", json!([{ "name": "data", "persistentVolumeClaim": source }]))
    };
    let inside = json!({ "hostPath": { "path": allowed.join("data") } });
    let outside = json!({ "hostPath": { "path": "/etc" } });
    node.apply(&[
        volume("claims-inside", inside),
        volume("claims-outside", outside),
        claim("claims-inside"),
        claim("claims-outside"),
        user("writer", "claims-inside", false, &["write /data/said hello", "end-if-failed"]),
        user("outside", "claims-outside", false, &["list /data"]),
    ]);

    let writer = node.wait("writer", "over", is_over);
    assert_eq!(writer["status"]["phase"], "Succeeded", "{}", writer["status"]);
    let reads = ["file-is /data/said hello", "cannot-write /data/said", "end-if-failed"];
    node.apply(&[user("reader", "claims-inside", true, &reads)]);
    let reader = node.wait("reader", "over", is_over);
    assert_eq!(reader["status"]["phase"], "Succeeded", "{}", reader["status"]);
    let kept = std::fs::read_to_string(allowed.join("data/said"));
    assert_eq!(kept.expect("it was written"), "hello");
    until("a warning", || {
        let told = node.kubectl(&["get", "events", "--field-selector", "reason=FailedMount"]);
        told.contains("--allow-host-path").then_some(())
    });
    node.kubectl(&["delete", "pods", "--all", "--wait=false"]);
    node.cluster.ok(&["delete", "pv", "claims-inside", "claims-outside", "--wait=false"]);
}

#[test]
fn a_pod_with_a_readiness_gate_is_ready_once_somebody_has_opened_it() {
    let node = Joined::start("pods-gated", &["hello-http"]);
    let gates = json!([{ "conditionType": "example.com/open" }]);
    node.apply(&[pod("gated", [container("app", "hello-http")])
        .with("/spec/readinessGates", gates)
        .with("/spec/restartPolicy", "Always".into())]);

    let waits = node.wait("gated", "running behind its gate", |pod| {
        condition(pod, "Ready")["reason"] == "ReadinessGatesNotReady"
    });
    assert_eq!(condition(&waits, "ContainersReady")["status"], "True");
    let open =
        json!({ "status": { "conditions": [{ "type": "example.com/open", "status": "True" }] } });
    node.kubectl(&["patch", "pod", "gated", "--subresource=status", "--patch", &open.to_string()]);

    let ready = node.wait("gated", "ready", is_ready);
    assert_eq!(condition(&ready, "example.com/open")["status"], "True");
}

#[test]
fn kubectl_reads_logs_and_runs_programs_in_a_pod() {
    let node = Joined::start("pods-kubectl", &["probe"]);
    let script = ["print first-line", "sleep 600000"];
    node.apply(&[pod("talker", [probe(&script)])]);
    node.wait("talker", "running", |pod| pod["status"]["phase"] == "Running");

    node.approve_serving();

    let logs = until_it_is(
        "the log",
        || node.cluster.kubectl(&["--namespace", &node.name, "logs", "talker"]),
        |told| told.stdout.contains("first-line"),
        |told| format!("{}{}\n{}", told.stdout, told.stderr, node.log()),
    );
    assert!(logs.stdout.contains("first-line"));
    let told = node.kubectl(&["exec", "talker", "--", "probe", "print from-exec"]);
    assert!(told.contains("from-exec"), "{told}");
    let exit = ["--namespace", &node.name, "exec", "talker", "--", "probe", "exit 7"];
    // A component ends with 0 or 1.
    assert_eq!(node.cluster.kubectl(&exit).code, Some(1));
    assert_eq!(node.denials(), Vec::<String>::new());
}

/// A page of the kubelet's API, as the API server hands it through.
fn page(node: &Joined, path: &str) -> String {
    let path = format!("/api/v1/nodes/{}/proxy/{path}", node.name);
    node.cluster.kubectl(&["get", "--raw", &path]).stdout
}

#[test]
fn probes_are_counted_by_their_results_as_long_as_there_is_the_pod() {
    let node = Joined::start("pods-probed", &["hello-http"]);
    let probed = |path: &str| json!({ "httpGet": { "path": path, "port": 8080 }, "periodSeconds": 1, "failureThreshold": 1000 });
    let app = container("app", "hello-http").with("/readinessProbe", probed("/")).with(
        "/livenessProbe",
        json!({ "tcpSocket": { "port": 9 }, "periodSeconds": 1, "failureThreshold": 1000 }),
    );
    node.apply(&[pod("probed", [app]), pod("silent", [container("app", "hello-http")])]);
    node.wait("probed", "ready", is_ready);
    node.wait("silent", "ready", is_ready);
    node.approve_serving();
    let uid = node.get("pod", "probed")["metadata"]["uid"].as_str().expect("a UID").to_owned();

    let count = |kind: &str, result: &str| -> Option<u32> {
        let page = page(&node, "metrics/probes");
        let of = format!(
            "container=\"app\",namespace=\"{}\",pod=\"probed\",probe_type=\"{kind}\",pod_uid=\"{uid}\",result=\"{result}\"",
            node.name
        );
        let line =
            page.lines().find_map(|it| it.strip_prefix(&format!("prober_probe_total{{{of}}} ")));
        line.and_then(|number| number.parse().ok())
    };
    until("several probes that passed", || count("Readiness", "successful").filter(|it| *it > 2));
    until("several probes that failed", || count("Liveness", "failed").filter(|it| *it > 2));

    let shown = page(&node, "metrics/probes");
    let took = format!(
        "prober_probe_duration_seconds_count{{container=\"app\",namespace=\"{}\",pod=\"probed\",probe_type=\"Readiness\"}}",
        node.name
    );
    assert!(shown.contains(&took) && !shown.contains("silent"), "{shown}");
    node.kubectl(&["delete", "pod", "probed"]);
    until("nothing to be told of it", || {
        (!page(&node, "metrics/probes").contains(&uid)).then_some(())
    });
}

#[test]
fn a_job_s_pod_completes_with_its_configuration_and_its_token() {
    let node = Joined::start("pods-job", &["probe"]);
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    let script = [
        "env-is GREETING hello".to_owned(),
        "file-is /config/greeting hello".to_owned(),
        format!("file-is {token}/namespace pods-job"),
        format!("list-is {token} ca.crt,namespace,token"),
    ];
    let script: Vec<&str> = script.iter().map(String::as_str).collect();
    let from = json!({ "configMapKeyRef": { "name": "greetings", "key": "greeting" } });
    let container = probe(&script)
        .with("/env", json!([{ "name": "GREETING", "valueFrom": from }]))
        .with("/volumeMounts", json!([{ "name": "config", "mountPath": "/config" }]));
    node.apply(&[
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "greetings" }, "data": { "greeting": "hello" } }),
        json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "once" },
            "spec": { "backoffLimit": 0, "template": { "spec": {
                "restartPolicy": "Never", "containers": [container],
                "volumes": [{ "name": "config", "configMap": { "name": "greetings" } }],
            } } },
        }),
    ]);

    let job = until_it_is(
        "the job to be over",
        || node.get("job", "once"),
        |job| {
            job["status"]["conditions"].as_array().is_some_and(|all| {
                all.iter().any(|it| {
                    matches!(it["type"].as_str(), Some("Complete" | "Failed"))
                        && it["status"] == "True"
                })
            })
        },
        |job| {
            format!(
                "{}\n{:?}\n{}",
                job["status"],
                node.pods().iter().map(|it| it["status"].to_string()).collect::<Vec<_>>(),
                node.log()
            )
        },
    );

    assert_eq!(
        job["status"]["succeeded"],
        1,
        "{:?}",
        node.pods().first().map(|it| it["status"].to_string())
    );
    assert_eq!(node.denials(), Vec::<String>::new());
}

#[test]
fn a_pod_goes_on_while_the_node_s_process_is_killed_and_is_deleted_by_the_next() {
    let mut node = Joined::start("pods-killed", &["hello-http"]);
    node.apply(&[deployment("hello", 2, container("app", "hello-http"))]);
    let before = node.wait_ready(2);

    node.kill();
    assert!(before.iter().all(answers), "guests need no agent");
    node.begin(&[]);

    let identity = |pods: &[Value]| {
        let mut all: Vec<_> = (pods.iter())
            .map(|pod| {
                (
                    pod["metadata"]["uid"].clone(),
                    status(pod, "app")["containerID"].clone(),
                    status(pod, "app")["restartCount"].clone(),
                )
            })
            .map(|it| format!("{it:?}"))
            .collect();
        all.sort();
        all
    };
    let after = node.wait_ready(2);
    assert_eq!(identity(&after), identity(&before));
    assert!(after.iter().all(answers));
    node.kill();
    node.kubectl(&["delete", "deployment/hello", "--wait=false"]);
    node.kubectl(&["delete", "pods", "--all", "--wait=false"]);
    node.begin(&[]);
    until_it_is(
        "no pod",
        || node.pods(),
        Vec::is_empty,
        |pods| {
            format!(
                "{:?}\n{}",
                pods.iter().map(|it| it["status"].to_string()).collect::<Vec<_>>(),
                node.log()
            )
        },
    );
}

#[test]
fn a_pod_s_end_is_told_before_the_pod_is_gone() {
    let node = Joined::start("pods-end", &["probe"]);
    node.apply(&[
        pod("fails", [probe(&["exit 3"])]),
        pod("stays", [probe(&["sleep 600000"])])
            .with("/spec/terminationGracePeriodSeconds", json!(2)),
    ]);

    let failed = node.wait("fails", "over", is_over);
    assert_eq!(failed["status"]["phase"], "Failed");
    assert_eq!(status(&failed, "probe")["state"]["terminated"]["exitCode"], 1);
    assert_eq!(condition(&failed, "Ready")["reason"], "PodFailed");
    node.wait("stays", "running", |pod| pod["status"]["phase"] == "Running");
    node.kubectl(&["delete", "pod", "stays"]);
    assert!(node.get("pod", "stays").is_null());
    // By force the object goes first, and the node follows.
    node.apply(&[pod("forced", [probe(&["sleep 600000"])])]);
    node.wait("forced", "running", |pod| pod["status"]["phase"] == "Running");
    node.kubectl(&["delete", "pod", "forced", "--force", "--grace-period", "0"]);
    until("the agent to forget it", || node.node.pod("forced").is_none().then_some(()));
}

#[test]
fn a_pod_that_the_node_cannot_run_waits_with_the_field_s_name_and_is_not_replaced() {
    let node = Joined::start("pods-refused", &["hello-http"]);
    let mut refused = deployment("refused", 2, container("app", "hello-http"));
    refused["spec"]["template"]["spec"]["hostPID"] = json!(true);
    node.apply(&[refused]);

    let pods = until_it_is(
        "two pods that wait",
        || node.pods(),
        |pods| {
            pods.len() == 2
                && pods.iter().all(|pod| !status(pod, "app")["state"]["waiting"].is_null())
        },
        |pods| format!("{pods:?}\n{}", node.log()),
    );

    for pod in &pods {
        let waiting = &status(pod, "app")["state"]["waiting"];
        assert_eq!(pod["status"]["phase"], "Pending");
        assert_eq!(waiting["reason"], "UnsupportedPod");
        assert!(
            waiting["message"].as_str().is_some_and(|why| why.contains("spec.hostPID")),
            "{waiting}"
        );
    }
    let events = until("the event", || {
        let told = node.kubectl(&["get", "events", "--field-selector", "reason=UnsupportedPod"]);
        told.contains("spec.hostPID").then_some(told)
    });
    assert!(events.contains("Warning"));
    node.kubectl(&["delete", "deployment/refused"]);
    until_it_is("no pod", || node.pods(), Vec::is_empty, |pods| format!("{pods:?}"));
}

#[test]
fn what_a_pod_refers_to_may_come_after_it() {
    let node = Joined::start("pods-config", &["probe"]);
    let map = |name: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "mode": "on" } });
    let volume = |name: &str, optional: bool| json!({ "name": name, "configMap": { "name": name, "optional": optional } });
    let container = probe(&["file-is /needed/mode on", "print started", "wait-for /wanted/mode"])
        .with("/volumeMounts", json!([{ "name": "needed", "mountPath": "/needed" }, { "name": "wanted", "mountPath": "/wanted" }]));
    node.apply(&[pod("reader", [container])
        .with("/spec/volumes", json!([volume("needed", false), volume("wanted", true)]))]);

    until("the event that tells what is missing", || {
        let told = node.kubectl(&["get", "events", "--field-selector", "reason=FailedMount"]);
        told.contains("needed").then_some(())
    });
    assert_eq!(node.get("pod", "reader")["status"]["phase"], "Pending");
    node.apply(&[map("needed")]);
    node.wait("reader", "running", |pod| pod["status"]["phase"] == "Running");
    node.apply(&[map("wanted")]);

    let over = node.wait("reader", "over", is_over);
    assert_eq!(over["status"]["phase"], "Succeeded", "{}", over["status"]);
}

#[test]
fn a_node_that_is_reset_leaves_nothing_on_the_machine() {
    let mut node = Joined::start("pods-reset", &["hello-http"]);
    node.apply(&[deployment("hello", 1, container("app", "hello-http"))]);
    let pods = node.wait_ready(1);
    let busy = node.node.run(&["node", "reset"]);
    assert!(busy.stderr.contains("another agent is at work"), "{}", busy.stderr);
    assert!(answers(&pods[0]));

    node.kill();
    node.node.ok(&["node", "reset"]);

    let left = copepod_tests::host::leftovers(&node.node.mark());
    assert_eq!(left, Vec::<String>::new());
    assert!(!node.node.data().join("node.json").exists());
}
