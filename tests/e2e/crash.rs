//! The agent and the runners are killed as a crash would, at awkward times.

mod steps;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use copepod_tests::http::Connection;
use copepod_tests::manifest::{With, container, image, pod, probe};
use copepod_tests::node::{Node, is_ready, status};
use copepod_tests::{host, http};
use serde_json::json;

#[test]
fn requests_are_answered_while_the_agent_is_killed_and_comes_back() {
    let node = Node::new();
    node.start_example("pod-of-two", &["pod-of-two-app", "pod-of-two-sidecar"]);
    node.wait_ready("pod-of-two");
    let address = node.address("pod-of-two", 8080);
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = {
        let (over, answered) = (over.clone(), answered.clone());
        std::thread::spawn(move || {
            let mut kept = Connection::open(address).expect("it listens");
            while !over.load(Ordering::Relaxed) {
                assert_eq!(kept.get("/").expect("an answer on a kept connection").status, 200);
                assert_eq!(http::get(address, "/").expect("an answer on a new one").status, 200);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    };

    for _ in 0..5 {
        let before = answered.load(Ordering::Relaxed);
        node.kill_agent();
        copepod_tests::wait::until("requests to be answered without an agent", || {
            (answered.load(Ordering::Relaxed) > before + 5).then_some(())
        });
        // The next command starts an agent again.
        let pod = node.wait_ready("pod-of-two");
        for name in ["app", "sidecar"] {
            assert_eq!(status(&pod, name)["restartCount"], 0, "{name}");
        }
    }
    over.store(true, Ordering::Relaxed);
    load.join().expect("every request was answered");
}

#[test]
fn an_exit_code_given_while_the_agent_is_down_is_reported_by_the_next_one() {
    let node = Node::new();
    node.load(&["probe-p1"]);
    let later = probe(&["wait-for /shared/go", "exit 5"])
        .with("/image", json!(image("probe-p1")))
        .with("/volumeMounts", json!([{ "name": "shared", "mountPath": "/shared" }]));
    let folder = node.scratch().join("shared");
    std::fs::create_dir(&folder).expect("a folder");
    node.start(&[pod("later", [later])
        .with("/spec/volumes", json!([{ "name": "shared", "hostPath": { "path": folder } }]))]);
    node.wait_for("later", "running", |pod| status(pod, "probe")["state"]["running"].is_object());

    node.kill_agent();
    std::fs::write(folder.join("go"), "").expect("a file");
    std::thread::sleep(std::time::Duration::from_millis(500));

    let over = node.wait_over("later");
    assert_eq!(status(&over, "probe")["state"]["terminated"]["exitCode"], 5);
    assert_eq!(status(&over, "probe")["restartCount"], 0);
}

#[test]
fn a_killed_runner_costs_only_its_own_domain_s_pods_a_restart() {
    let node = Node::new();
    node.load(&["hello-http"]);
    let served = |name: &str, namespace: &str| {
        pod(name, [container("hello", "hello-http")])
            .with("/metadata/namespace", json!(namespace))
            .with("/spec/restartPolicy", json!("Always"))
    };
    node.start(&[served("here", "one")]);
    node.wait_ready("here");
    let [first] = node.runners()[..] else { panic!("one domain, one runner") };
    node.start(&[served("there", "two")]);
    node.wait_ready("there");

    host::kill(first);

    let here = node.wait_for("here", "ready after a restart", |pod| {
        is_ready(pod) && status(pod, "hello")["restartCount"] == 1
    });
    assert_eq!(status(&here, "hello")["lastState"]["terminated"]["exitCode"], 137);
    let there = node.pod("there").expect("it is there");
    assert_eq!(status(&there, "hello")["restartCount"], 0);
    assert_eq!(http::get(node.address("here", 8080), "/").expect("an answer").status, 200);
}

#[test]
fn a_runner_killed_while_the_agent_is_down_is_noticed_by_the_next_agent() {
    let node = Node::new();
    node.load(&["hello-http"]);
    node.start(&[pod("server", [container("hello", "hello-http")])
        .with("/spec/restartPolicy", json!("Always"))]);
    node.wait_ready("server");

    node.kill_agent();
    for runner in node.runners() {
        host::kill(runner);
    }

    node.wait_for("server", "ready after a restart", |pod| {
        is_ready(pod) && status(pod, "hello")["restartCount"] == 1
    });
}

#[test]
fn agents_killed_at_random_under_many_pods_restart_no_guest_and_lose_none() {
    /// Pods, and kills: issue 3 asks for 50 of each.
    const PODS: usize = 50;
    const KILLS: usize = 50;
    let node = Node::new();
    node.load(&["probe"]);
    let pods: Vec<_> = (0..PODS)
        .map(|n| pod(&format!("pod-{n}"), [probe(&["random", "forever sleep 1000"])]))
        .collect();
    node.start(&pods);
    for n in 0..PODS {
        node.wait_ready(&format!("pod-{n}"));
    }
    // What each instance printed at its start tells it from any other.
    let told = |n: usize| node.logs(&format!("pod-{n}"), "probe");
    let before: Vec<String> = (0..PODS).map(told).collect();

    // A fixed sequence, so that a failure can be repeated: Knuth's 64-bit congruence.
    let mut seed = 0x0c0b_e90d_u64;
    for _ in 0..KILLS {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        node.ok(&["ps"]);
        std::thread::sleep(std::time::Duration::from_millis(seed >> 58));
        node.kill_agent();
    }

    for (n, before) in before.iter().enumerate() {
        let name = format!("pod-{n}");
        let pod = node.wait_ready(&name);
        assert_eq!(status(&pod, "probe")["restartCount"], 0, "{name}");
        assert_eq!(&told(n), before, "{name}");
    }
}

#[test]
fn a_published_port_is_open_again_after_agent_and_runner_were_killed() {
    let node = Node::new();
    node.load(&["hello-http"]);
    let file = node.write(
        "published.yaml",
        pod("server", [container("hello", "hello-http")])
            .with("/spec/restartPolicy", json!("Always"))
            .to_string(),
    );
    // Any free port: it is the same one afterwards.
    let said = node.run(&["run", "--detach", "--publish", "0:8080", &file]);
    let address = said.stderr.split(" -> ").next().and_then(|it| it.parse().ok());
    let address: std::net::SocketAddr = address.unwrap_or_else(|| panic!("{said:?}"));
    node.wait_ready("server");
    assert_eq!(http::get(address, "/").expect("an answer").status, 200);

    node.kill_agent();
    node.runners().into_iter().for_each(host::kill);

    node.wait_for("server", "ready after a restart", |pod| {
        is_ready(pod) && status(pod, "hello")["restartCount"] == 1
    });
    assert_eq!(http::get(address, "/").expect("an answer").status, 200);
}
