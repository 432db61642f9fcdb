//! The API server is away, or the node's process is: guests neither notice nor wait, and all that happened is told afterwards.
//!
//! Absent: a process that is killed in the middle of a step ([`super::kills`]).

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use copepod_tests::cluster::settings::{Part, Settings};
use copepod_tests::cluster::{Cluster, assets, shared};
use copepod_tests::http::{Connection, get};
use copepod_tests::manifest::{With, container, image, pod, probe};
use copepod_tests::node::{Node, is_ready, status};
use copepod_tests::wait::until;
use serde_json::{Value, json};

use super::running::{Joined, address, text};
use super::watched::Watched;

/// Who asks pods for pages all the time, on kept connections and on new ones, and bears no failure.
struct Load {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    asking: Option<JoinHandle<Result<(), String>>>,
}

impl Load {
    fn on(addresses: Vec<SocketAddr>) -> Self {
        let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (is_over, count) = (over.clone(), answered.clone());
        let asking = std::thread::spawn(move || {
            let failed = |error: std::io::Error| error.to_string();
            let kept = addresses.iter().map(|it| Connection::open(*it).map_err(failed));
            let mut kept = kept.collect::<Result<Vec<_>, _>>()?;
            while !is_over.load(Ordering::Relaxed) {
                for (kept, address) in kept.iter_mut().zip(&addresses) {
                    for (is_kept, answer) in [(true, kept.get("/")), (false, get(*address, "/"))] {
                        let answer = answer.map_err(failed)?;
                        if is_kept && answer.is_last() {
                            *kept = Connection::open(*address).map_err(failed)?;
                        }
                        match answer.status {
                            200 => count.fetch_add(1, Ordering::Relaxed),
                            other => return Err(format!("status {other}")),
                        };
                    }
                }
            }
            Ok(())
        });
        Self { over, answered, asking: Some(asking) }
    }

    /// Waits until some more requests were answered.
    fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        until("requests to be answered", || {
            let ended = self.asking.as_ref().is_none_or(JoinHandle::is_finished);
            (ended || self.answered.load(Ordering::Relaxed) > before + 20).then_some(())
        });
    }

    /// That no request has failed.
    fn assert_well(mut self) {
        self.over.store(true, Ordering::Relaxed);
        let asking = self.asking.take().expect("it is ended once");
        assert_eq!(asking.join().expect("it only asks"), Ok(()));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Two pods of hello-http.
fn hello() -> Value {
    let labels = json!({ "app": "hello" });
    let get = json!({ "httpGet": { "port": 8080, "path": "/" }, "periodSeconds": 1 });
    let app = container("app", "hello-http")
        .with("/readinessProbe", get.clone())
        .with("/livenessProbe", get);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "hello" },
        "spec": {
            "replicas": 2, "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": { "containers": [app] } },
        },
    })
}

/// What tells a pod from any other, and an attempt from the next.
fn identities(pods: &[Value]) -> Vec<String> {
    let identity = |pod: &Value| {
        let app = status(pod, "app");
        format!("{} {} {}", pod["metadata"]["uid"], app["containerID"], app["restartCount"])
    };
    let mut all: Vec<String> = pods.iter().map(identity).collect();
    all.sort();
    all
}

/// Waits until the agent of a node that was started anew answers. Before, a command would start one of its own.
fn wait_for_the_agent(node: &Node) {
    let socket = node.data().join("agent.sock");
    until("the agent to be up", || UnixStream::connect(&socket).ok());
}

fn runs_of(shared: &Path, name: &str) -> usize {
    std::fs::read(shared.join(name)).unwrap_or_default().len()
}

#[test]
fn guests_and_probes_go_on_while_the_api_server_is_away_and_all_is_told_when_it_is_back() {
    let programs = assets().expect("they are brought");
    // Pods' addresses are not those of the shared cluster, whose nodes are on this machine too.
    let cidr = ("10.245.0.0/16".to_owned(), 24);
    let settings = Settings { pod_cidrs: vec![cidr], ..Settings::default() };
    let cluster = Cluster::start(&programs, &settings).expect("it starts");
    let node = Node::new();
    node.load(&["hello-http", "probe-p1"]);
    let shared = node.scratch().join("shared");
    std::fs::create_dir(&shared).expect("a folder");
    let flags = ["--allow-host-path", text(&shared)];
    let mut node = Joined::start_in(&cluster, node, "away", &flags);
    let watched = Watched::start(&cluster, &node.name);
    let marking = |name: &str, script: &[&str]| {
        let mark = format!("append /shared/{name} x");
        let script: Vec<&str> = [mark.as_str()].iter().chain(script).copied().collect();
        let container = probe(&script)
            .with("/image", json!(image("probe-p1")))
            .with("/volumeMounts", json!([{ "name": "shared", "mountPath": "/shared" }]));
        let volumes = json!([{ "name": "shared", "hostPath": { "path": shared } }]);
        pod(name, [container]).with("/spec/volumes", volumes)
    };
    let liveness = json!({
        "exec": { "command": ["probe", "missing /shared/sick"] },
        "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 1,
    });
    node.apply(&[
        hello(),
        // It is well again by being started again.
        marking("lively", &["remove /shared/sick", "forever sleep 1000"])
            .with("/spec/restartPolicy", json!("Always"))
            .with("/spec/containers/0/livenessProbe", liveness),
        marking("ends", &["wait-for /shared/go", "exit 5"]),
    ]);
    node.wait_ready(4);
    let of_hello = |node: &Joined<'_>| -> Vec<Value> {
        let pods = node.pods().into_iter();
        pods.filter(|pod| pod["metadata"]["labels"]["app"] == "hello").collect()
    };
    let before = of_hello(&node);
    let load = Load::on(before.iter().map(|pod| address(pod, 8080)).collect());
    let exit = |pod: &Value| status(pod, "probe")["state"]["terminated"]["exitCode"].clone();
    let restarts = |pod: &Value| status(pod, "probe")["restartCount"].clone();

    cluster.kill(Part::ApiServer);
    load.goes_on();
    std::fs::write(shared.join("sick"), "").expect("a file");
    node.node.wait_for("lively", "started again by its probe", |pod| restarts(pod) == 1);
    std::fs::write(shared.join("go"), "").expect("a file");
    node.node.wait_for("ends", "over", |pod| exit(pod) == 5);
    load.goes_on();

    node.kill();
    load.goes_on();
    node.launch(&flags);
    wait_for_the_agent(&node.node);
    load.goes_on();
    node.node.wait_for("ends", "over as before", |pod| exit(pod) == 5);
    node.node.wait_for("lively", "as before", |pod| restarts(pod) == 1 && is_ready(pod));

    cluster.start_part(Part::ApiServer).expect("it starts again");
    until("the API server to answer", || {
        (cluster.kubectl(&["get", "--raw", "/readyz"]).code == Some(0)).then_some(())
    });
    let lively = node
        .wait("lively", "told as restarted and ready", |pod| restarts(pod) == 1 && is_ready(pod));
    let last = &status(&lively, "probe")["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 143, "{lively}");
    let ended = node.wait("ends", "told as failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(exit(&ended), 5, "{ended}");
    assert_eq!((runs_of(&shared, "lively"), runs_of(&shared, "ends")), (2, 1));
    let after = of_hello(&node);
    assert_eq!(identities(&after), identities(&before));
    node.apply(&[marking("later", &["exit 0"])]);
    node.wait("later", "over", |pod| pod["status"]["phase"] == "Succeeded");
    load.goes_on();
    load.assert_well();
    assert_eq!(watched.untruths(), Vec::<String>::new());
    assert!(watched.told().iter().all(|it| !it.deleted), "no pod is gone");
    assert_eq!(node.denials(), Vec::<String>::new());
}

#[test]
fn a_node_stopped_and_started_as_by_systemctl_restarts_no_guest_and_fails_no_request() {
    let node = Node::new();
    node.load(&["hello-http"]);
    let mut node = Joined::start_in(shared(), node, "systemctl", &[]);
    let watched = Watched::start(node.cluster, &node.name);
    node.apply(&[hello()]);
    let before = node.wait_ready(2);
    let load = Load::on(before.iter().map(|pod| address(pod, 8080)).collect());

    for _ in 0..3 {
        load.goes_on();
        node.terminate();
        load.goes_on();
        node.begin(&[]);
        wait_for_the_agent(&node.node);
    }

    load.goes_on();
    load.assert_well();
    assert_eq!(identities(&node.wait_ready(2)), identities(&before));
    assert_eq!(watched.untruths(), Vec::<String>::new());
    assert_eq!(node.denials(), Vec::<String>::new());
}
