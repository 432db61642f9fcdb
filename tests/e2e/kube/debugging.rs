//! What a person looks into a running pod with: `kubectl cp`, `exec`, `attach`, `run` and `debug`.
//!
//! Absent: the streams' protocols, which the node's own suites test.

use std::process::Command;

use copepod_tests::cluster::shared;
use copepod_tests::manifest::{With, container, image, pod};
use copepod_tests::node::Node as OurNode;
use serde_json::{Value, json};

use super::running::Joined;
use crate::toolbox::{at_terminal, fed, load_toolbox, shell, typed};

fn joined(name: &str) -> Joined<'static> {
    let ours = OurNode::new();
    ours.load(&["hello-http"]);
    load_toolbox(&ours);
    let node = Joined::start_in(shared(), ours, name, &[]);
    node.approve_serving();
    node
}

fn kubectl(node: &Joined<'_>, arguments: &[&str]) -> Command {
    let arguments = [&["--namespace", node.name.as_str()], arguments].concat();
    node.cluster.kubectl_command(node.cluster.admin(), &arguments)
}

#[test]
fn files_are_copied_into_and_out_of_a_container_that_brings_no_tar() {
    let node = joined("debug-cp");
    let mut app = container("app", "hello-http");
    app["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    node.apply(&[
        pod("web", [app]).with("/spec/volumes", json!([{ "name": "data", "emptyDir": {} }]))
    ]);
    node.wait_ready(1);
    let scratch = node.node.scratch();
    let (from, back) = (scratch.join("from"), scratch.join("back"));
    std::fs::create_dir_all(from.join("deep")).expect("made");
    let large: Vec<u8> =
        (0..3_000_000_u32).map(|it| it.to_le_bytes()[0] ^ it.to_le_bytes()[1]).collect();
    std::fs::write(from.join("large"), &large).expect("written");
    std::fs::write(from.join("deep/small"), "small").expect("written");

    // kubectl waits ten seconds for an answer, in which a busy machine may not have compiled the toolbox.
    node.kubectl(&["exec", "web", "--", "true"]);
    node.kubectl(&["cp", from.to_str().expect("text"), "web:/data/there"]);
    let listed = node.kubectl(&["exec", "web", "--", "find", "/data", "-type", "f"]);
    node.kubectl(&["cp", "web:/data/there", back.to_str().expect("text")]);

    assert_eq!(listed, "/data/there/deep/small\n/data/there/large\n");
    assert!(std::fs::read(back.join("large")).expect("copied") == large);
    assert_eq!(std::fs::read_to_string(back.join("deep/small")).expect("copied"), "small");
}

#[test]
fn a_shell_at_a_terminal_edits_lines_and_gives_its_exit_code() {
    let node = joined("debug-exec");
    node.apply(&[pod("web", [container("app", "hello-http")])]);
    node.wait_ready(1);

    // A letter too many is taken back.
    let steps = [("/ $ ", "ecx\x7fho $((40+2))\n"), ("42\r\n/ $ ", "exit 9\n")];
    let (code, seen) =
        typed(&mut at_terminal(&kubectl(&node, &["exec", "-it", "web", "--", "sh"])), &steps);
    // Ctrl-C ends what hangs.
    let hanging = ["exec", "-it", "web", "--", "sh", "-c", "echo waits; sleep 600000"];
    let (broken, shown) = typed(&mut at_terminal(&kubectl(&node, &hanging)), &[("waits", "\x03")]);

    assert_eq!(code, Some(9), "{seen}");
    assert!(seen.contains("42\r\n"), "{seen}");
    assert_eq!(broken, Some(130), "{shown}");
}

#[test]
fn a_pod_that_is_run_for_a_person_reads_what_they_type() {
    let node = joined("debug-run");
    let place = json!({ "spec": { "nodeSelector": { "kubernetes.io/hostname": node.name } } });
    let run = |name: &str, more: &[&str]| {
        let (overrides, image) =
            (format!("--overrides={place}"), format!("--image={}", image("toolbox")));
        let always =
            [&["run", name, "--rm", "--restart=Never", "--quiet", &overrides, &image], more];
        kubectl(&node, &always.concat())
    };

    let script = "read -r a; read -r b; echo $b $a; exit 3";
    let (code, output, error) =
        fed(&mut run("reader", &["-i", "--", "sh", "-c", script]), b"one\ntwo\n");

    assert_eq!(String::from_utf8_lossy(&output), "two one\n", "{error}");
    assert_eq!(code, Some(3), "{error}");
}

#[test]
fn attach_reaches_the_stdin_that_a_container_has_and_no_other() {
    let node = joined("debug-attach");
    let mut talker = shell("talker", "read -r line; echo \"got $line\"; read -r line");
    talker["stdin"] = json!(true);
    node.apply(&[pod("pair", [talker, container("web", "hello-http")])]);
    node.wait_ready(1);

    let none =
        node.cluster.kubectl(&["--namespace", &node.name, "attach", "-i", "pair", "-c", "web"]);
    let attach = &mut kubectl(&node, &["attach", "-i", "--quiet", "pair", "-c", "talker"]);
    let (code, output, error) = fed(attach, b"hello\nand over\n");

    assert!(none.stderr.contains("stdin"), "{}", none.stderr);
    assert_eq!(
        (code, String::from_utf8_lossy(&output).into_owned()),
        (Some(0), "got hello\n".to_owned()),
        "{error}"
    );
}

#[test]
fn an_ephemeral_container_comes_into_a_running_pod_and_shares_its_address() {
    let node = joined("debug-ephemeral");
    node.apply(&[pod("web", [container("app", "hello-http")])]);
    let before = node.wait_ready(1).remove(0);

    let toolbox = format!("--image={}", image("toolbox"));
    let script = "wget -q -O - http://localhost:8080/; exit 5";
    node.kubectl(&["debug", "web", &toolbox, "--container", "debugger", "--", "sh", "-c", script]);
    let ended = node
        .wait("web", "looked into", |pod| debugger(pod)["state"]["terminated"]["exitCode"] == 5);

    assert_eq!(node.kubectl(&["logs", "web", "--container", "debugger"]), "hello from copepod\n");
    assert_eq!(ended["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(ended["status"]["phase"], "Running");
    assert_eq!(ended["status"]["containerStatuses"][0]["restartCount"], 0);
    let told = node.kubectl(&["describe", "pod", "web"]);
    assert!(told.contains("spec.ephemeralContainers{debugger}: Container started"), "{told}");
    // And again, at a terminal, whose first prompt came before anybody looked.
    let again = ["debug", "-it", "web", &toolbox, "--container", "second", "--", "sh"];
    let steps = [("press", "\n"), ("/ $ ", "echo $((40+2))\n"), ("42\r\n/ $ ", "exit\n")];
    let (_, seen) = typed(&mut at_terminal(&kubectl(&node, &again)), &steps);
    assert!(seen.contains("42\r\n"), "{seen}");
    node.wait("web", "left by the second", |pod| {
        pod["status"]["ephemeralContainerStatuses"][1]["state"]["terminated"]["exitCode"] == 0
    });
}

fn debugger(pod: &Value) -> &Value {
    &pod["status"]["ephemeralContainerStatuses"][0]
}
