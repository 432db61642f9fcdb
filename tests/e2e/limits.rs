//! A container is held to its limits, and its neighbours do not notice.

use copepod_tests::http;
use copepod_tests::manifest::{With, container, pod, probe};
use copepod_tests::node::{Node, status};
use serde_json::json;

/// A neighbour that answers requests, and was never started again.
fn with_a_neighbour(node: &Node) {
    node.load(&["probe", "hello-http"]);
    node.start(&[pod("neighbour", [container("hello", "hello-http")])]);
    node.wait_ready("neighbour");
}

fn the_neighbour_is_unharmed(node: &Node) {
    let address = node.address("neighbour", 8080);
    for _ in 0..20 {
        assert_eq!(http::get(address, "/").expect("an answer").status, 200);
    }
    let neighbour = node.pod("neighbour").expect("it is there");
    assert_eq!(status(&neighbour, "hello")["restartCount"], 0);
}

#[test]
fn a_guest_past_its_memory_limit_is_oom_killed_alone() {
    let node = Node::new();
    with_a_neighbour(&node);
    node.start(&[pod(
        "greedy",
        [probe(&["alloc-all"]).with("/resources/limits/memory", json!("16Mi"))],
    )]);

    let over = node.wait_over("greedy");

    let state = &status(&over, "probe")["state"]["terminated"];
    assert_eq!(
        (state["exitCode"].as_i64(), state["reason"].as_str()),
        (Some(137), Some("OOMKilled")),
        "{state}"
    );
    the_neighbour_is_unharmed(&node);
}

#[test]
fn a_guest_that_stays_below_its_memory_limit_keeps_what_it_took() {
    let node = Node::new();
    node.load(&["probe"]);

    let ended = node.run_to_end(&[pod(
        "modest",
        [probe(&["alloc 8", "alloc 8", "exit 0"]).with("/resources/limits/memory", json!("32Mi"))],
    )]);

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn guests_that_spin_leave_their_neighbours_answering() {
    let node = Node::new();
    with_a_neighbour(&node);
    let spinning = |name: &str, statement: &str| {
        pod(name, [probe(&[statement]).with("/resources/limits/cpu", json!("100m"))])
            .with("/spec/terminationGracePeriodSeconds", json!(0))
    };
    node.start(&[
        spinning("spin-a", "spin"),
        spinning("spin-b", "spin-host"),
        spinning("spin-c", "spin"),
    ]);
    for name in ["spin-a", "spin-b", "spin-c"] {
        node.wait_for(name, "running", |pod| status(pod, "probe")["state"]["running"].is_object());
    }

    the_neighbour_is_unharmed(&node);
}

#[test]
fn a_flood_of_log_lines_ends_and_its_files_stay_within_their_bound() {
    let node = Node::new();
    with_a_neighbour(&node);
    node.start(&[pod("loud", [probe(&["flood-line 2000000", "flood 2000000", "exit 0"])])]);

    let over = node.wait_over("loud");

    assert_eq!(over["status"]["phase"], "Succeeded");
    // containerLogMaxSize of 10 MiB times containerLogMaxFiles of 5, the defaults that the agent takes over.
    assert!(size(&node.data().join("logs")) <= 5 * 11 * 1024 * 1024);
    the_neighbour_is_unharmed(&node);
}

#[test]
fn sockets_and_open_files_are_counted_and_refused_beyond_their_number() {
    let node = Node::new();
    with_a_neighbour(&node);
    node.start(&[
        pod("sockets", [probe(&["many-sockets 100000", "print still here"])]),
        pod(
            "files",
            [probe(&[
                "write /scratch/one x",
                "open-files /scratch/one 200000",
                "print still here",
            ])
            .with("/volumeMounts", json!([{ "name": "scratch", "mountPath": "/scratch" }]))],
        )
        .with("/spec/volumes", json!([{ "name": "scratch", "emptyDir": {} }])),
    ]);

    for name in ["sockets", "files"] {
        let over = node.wait_over(name);
        // Refused by their number; or ended, by a trap at that number or for the memory that so many take.
        let state = &status(&over, "probe")["state"]["terminated"];
        let refused = node.logs(name, "probe").contains("FAILED: ");
        assert!(
            refused || state["exitCode"] == 134 || state["reason"] == "OOMKilled",
            "{name} took all it asked for: {state}"
        );
    }
    the_neighbour_is_unharmed(&node);
}

fn size(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}
