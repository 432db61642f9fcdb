//! How containers end, and what their pod's status then says.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use copepod_tests::manifest::{With, container, image, pod, probe};
use copepod_tests::node::{Node, status};
use copepod_tests::wait::until;
use serde_json::{Value, json};

/// The probe's wasip1 build, which gives every exit code.
fn probe1(script: &[&str]) -> Value {
    probe(script).with("/image", json!(image("probe-p1")))
}

#[test]
fn each_kind_of_end_has_its_exit_code_and_reason() {
    let node = Node::new();
    node.load(&["probe-p1"]);
    // statement, exit code, reason
    let table = [
        ("exit 0", 0, "Completed"),
        ("exit 7", 7, "Error"),
        ("trap", 134, "Error"),
        ("recurse", 134, "Error"),
        ("panic", 134, "Error"),
        ("alloc-all", 137, "OOMKilled"),
    ];

    for (n, (statement, code, reason)) in table.into_iter().enumerate() {
        let name = format!("case-{n}");
        node.start(&[pod(&name, [probe1(&[statement])])]);
        let over = node.wait_over(&name);
        let state = &status(&over, "probe")["state"]["terminated"];
        assert_eq!(state["exitCode"], code, "{statement}: {state}");
        assert_eq!(state["reason"], reason, "{statement}: {state}");
        assert_eq!(
            over["status"]["phase"],
            if code == 0 { "Succeeded" } else { "Failed" },
            "{statement}"
        );
    }
}

#[test]
fn a_trap_leaves_its_backtrace_as_the_termination_message() {
    let node = Node::new();
    node.load(&["probe"]);
    node.start(&[pod("trapping", [probe(&["trap"])])]);

    let over = node.wait_over("trapping");

    let message = status(&over, "probe")["state"]["terminated"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(message.contains("unreachable"), "{message}");
    assert!(message.contains("load::run"), "{message}");
}

#[test]
fn last_words_in_the_termination_file_are_the_message() {
    let node = Node::new();
    node.load(&["probe"]);
    let script = ["write /dev/termination-log the disk was full", "trap"];
    let wordy = probe(&script[..1]).with("/terminationMessagePath", json!("/dev/termination-log"));
    node.start(&[pod("wordy", [wordy])]);

    let over = node.wait_over("wordy");

    assert_eq!(status(&over, "probe")["state"]["terminated"]["message"], "the disk was full");
}

#[test]
fn a_run_that_says_nothing_is_not_quoted_with_the_last_words_of_the_run_before() {
    let node = Node::new();
    node.load(&["probe-p1"]);
    let script = [
        "cannot-read /shared/first",
        "end-if-failed",
        "append /shared/first x",
        "write /dev/termination-log said once",
        "exit 7",
    ];
    let shared = json!([{ "name": "shared", "mountPath": "/shared" }]);
    let again = pod("again", [probe1(&script).with("/volumeMounts", shared)])
        .with("/spec/restartPolicy", json!("OnFailure"))
        .with("/spec/volumes", json!([{ "name": "shared", "emptyDir": {} }]));
    node.start(&[again]);

    let again = node.wait_for("again", "ended twice", |pod| {
        let code = status(pod, "probe")["lastState"]["terminated"]["exitCode"].as_i64();
        code.is_some_and(|code| code != 7)
    });

    let second = &status(&again, "probe")["lastState"]["terminated"];
    assert_eq!(second["message"].as_str().unwrap_or_default(), "", "{second}");
}

#[test]
fn a_guest_that_floods_its_termination_file_is_quoted_by_its_end_and_makes_nothing_beside_it() {
    let node = Node::new();
    node.load(&["probe"]);
    let script = [
        "fill /dev/termination-log 50000000",
        "append /dev/termination-log the end",
        "cannot-write /dev/other",
        "cannot-mkdir /dev/folder",
        "cannot-remove /dev/termination-log",
        "cannot-rename /dev/termination-log /dev/other",
    ];
    node.start(&[pod("wordy", [probe(&script)])]);

    let over = node.wait_over("wordy");

    let state = &status(&over, "probe")["state"]["terminated"];
    assert_eq!(state["exitCode"], 0, "{}", node.logs("wordy", "probe"));
    assert!(state["message"].as_str().is_some_and(|message| message.ends_with("xthe end")));
}

#[test]
fn a_container_that_fails_is_started_again_as_its_policy_says_and_its_old_log_stays_readable() {
    let node = Node::new();
    node.load(&["probe"]);
    let again = pod(
        "again",
        [probe(&["print a run", "cannot-read /shared/first", "append /shared/first x", "exit 1"])
            .with("/volumeMounts", json!([{ "name": "shared", "mountPath": "/shared" }]))],
    )
    .with("/spec/restartPolicy", json!("OnFailure"))
    .with("/spec/volumes", json!([{ "name": "shared", "emptyDir": {} }]));
    node.start(&[again]);

    let restarted = node.wait_for("again", "started again", |pod| {
        status(pod, "probe")["restartCount"].as_u64() >= Some(1)
    });

    assert_eq!(status(&restarted, "probe")["lastState"]["terminated"]["exitCode"], 1);
    let before = node.ok(&["logs", "again", "--previous"]);
    assert!(before.contains("a run"), "{before}");
}

#[test]
fn init_containers_run_in_order_before_the_others() {
    let node = Node::new();
    node.load(&["probe"]);
    let mount = json!([{ "name": "shared", "mountPath": "/shared" }]);
    let step = |name: &str, script: &[&str]| {
        probe(script).with("/name", json!(name)).with("/volumeMounts", mount.clone())
    };
    let ordered = pod("ordered", [step("main", &["file-is /shared/steps one two"])])
        .with(
            "/spec/initContainers",
            json!([
                step("first", &["write /shared/steps one"]),
                step("second", &["append /shared/steps  two"])
            ]),
        )
        .with("/spec/volumes", json!([{ "name": "shared", "emptyDir": {} }]));

    let ended = node.run_to_end(&[ordered]);

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn a_stop_ends_a_guest_that_spins_one_that_sleeps_and_one_that_waits_for_the_network() {
    let node = Node::new();
    node.load(&["probe"]);
    let names = ["spinning", "sleeping", "listening"];
    for (name, statement) in names.iter().zip(["spin", "sleep 100000000", "listen 7000"]) {
        node.start(&[
            pod(name, [probe(&[statement])]).with("/spec/terminationGracePeriodSeconds", json!(1))
        ]);
        node.wait_for(name, "running", |pod| status(pod, "probe")["state"]["running"].is_object());
    }

    for name in names {
        node.ok(&["stop", name]);
    }

    for name in names {
        until("the pod to be gone", || node.pod(name).is_none().then_some(()));
    }
}

#[test]
fn a_server_without_a_shutdown_notice_answers_who_is_connected_before_it_is_stopped() {
    let node = Node::new();
    node.start_example("axum", &["axum"]);
    node.wait_ready("axum");
    let to = node.address("axum", 8080);
    let request = b"GET /slow HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let open: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(to).expect("connected");
            stream.write_all(request).expect("sent");
            stream
        })
        .collect();

    node.ok(&["stop", "axum"]);

    for mut stream in open {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("a whole answer");
        assert!(answer.ends_with("slow, but not in the way\n"), "{answer:?}");
    }
}

#[test]
fn exec_runs_another_instance_in_the_container_s_sandbox_and_gives_its_exit_code() {
    let node = Node::new();
    node.load(&["probe"]);
    let open = pod(
        "open",
        [probe(&["write /scratch/note here", "forever sleep 1000"])
            .with("/env", json!([{ "name": "GREETING", "value": "hi" }]))
            .with("/volumeMounts", json!([{ "name": "scratch", "mountPath": "/scratch" }]))],
    )
    .with("/spec/volumes", json!([{ "name": "scratch", "emptyDir": {} }]));
    node.start(&[open]);
    until("the note", || node.logs("open", "probe").contains("ok: write").then_some(()));

    let holds = node.run(&[
        "exec",
        "open",
        "--",
        "probe",
        "env-is GREETING hi",
        "file-is /scratch/note here",
    ]);
    let fails = node.run(&["exec", "open", "--", "probe", "file-is /scratch/note elsewhere"]);

    assert_eq!(holds.code, Some(0), "{}{}", holds.stdout, holds.stderr);
    assert!(holds.stdout.contains("ok: env-is"), "{}", holds.stdout);
    assert_eq!(fails.code, Some(1), "{}{}", fails.stdout, fails.stderr);
}

#[test]
fn an_http_component_drains_when_it_is_stopped_and_ends_with_0() {
    let node = Node::new();
    node.load(&["hello-http", "probe"]);
    node.start(&[pod("server", [container("hello", "hello-http")])]);
    node.wait_ready("server");

    let watching = node.copepod(&["stop", "server"]).output().expect("it starts");

    assert!(watching.status.success());
    until("the pod to be gone", || node.pod("server").is_none().then_some(()));
}
