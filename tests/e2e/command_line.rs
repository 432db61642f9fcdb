//! The command line itself: exit codes, what is printed for programs, and what tells about this machine and about files.
//!
//! Absent: refusals, which are among the bad input.

use std::io::Write;
use std::process::{Child, Stdio};

use copepod_tests::manifest::{With, all, image, pod, probe};
use copepod_tests::node::{Ended, Node, status};
use copepod_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// The probe's wasip1 build, which gives every exit code.
fn probe1(script: &[&str]) -> Value {
    probe(script).with("/image", json!(image("probe-p1")))
}

#[test]
fn a_run_s_exit_code_is_the_one_failure_s_or_1_for_several() {
    let node = Node::new();
    node.load(&["probe-p1"]);
    let table =
        [(&["exit 0", "exit 0"][..], 0), (&["exit 0", "exit 7"], 7), (&["exit 7", "exit 8"], 1)];

    for (scripts, code) in table {
        let pods: Vec<Value> = scripts
            .iter()
            .enumerate()
            .map(|(n, script)| pod(&format!("pod-{n}"), [probe1(&[script])]))
            .collect();

        let ended = node.run_to_end(&pods);

        assert_eq!(ended.code, Some(code), "{scripts:?}: {}", ended.stderr);
    }
}

/// `copepod run` in the foreground, whose pod `sleeper` runs.
fn run_of_a_sleeper(node: &Node) -> Child {
    node.load(&["probe-p1"]);
    let file =
        node.write("run.yaml", pod("sleeper", [probe1(&["forever sleep 1000"])]).to_string());
    let mut command = node.copepod(&["run", &file]);
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    node.wait_for("sleeper", "running", |pod| status(pod, "probe")["state"]["running"].is_object());
    run
}

#[test]
fn ctrl_c_stops_the_pods_of_a_run_and_ends_it_with_130() {
    let node = Node::new();
    let run = run_of_a_sleeper(&node);

    let pid = Pid::from_raw(run.id().cast_signed()).expect("a process");
    kill_process(pid, Signal::INT).expect("it runs");
    let ended: Ended = run.wait_with_output().expect("it ends").into();

    assert_eq!(ended.code, Some(130), "{}{}", ended.stdout, ended.stderr);
    until("the pod to be gone", || node.pods().is_empty().then_some(()));
}

#[test]
fn a_run_whose_pod_is_stopped_by_another_command_ends_with_143() {
    let node = Node::new();
    let run = run_of_a_sleeper(&node);

    node.ok(&["stop", "sleeper"]);
    let ended: Ended = run.wait_with_output().expect("it ends").into();

    assert_eq!(ended.code, Some(143), "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn a_manifest_is_read_from_standard_input() {
    let node = Node::new();
    node.load(&["probe"]);
    let mut command = node.copepod(&["run", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut run = command.spawn().expect("it starts");

    let manifest = all(&[pod("piped", [probe(&["print from a pipe"])])]);
    let mut input = run.stdin.take().expect("piped");
    input.write_all(manifest.as_bytes()).expect("it reads");
    drop(input);
    let ended: Ended = run.wait_with_output().expect("it ends").into();

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("from a pipe"), "{}", ended.stdout);
}

#[test]
fn with_json_every_line_of_a_run_and_of_a_refusal_is_an_object() {
    let node = Node::new();
    node.load(&["probe"]);
    let good = node.write("good.yaml", pod("good", [probe(&["print hello"])]).to_string());
    let bad = node.write("bad.yaml", "kind: Pod\nmetadata: [\n");

    for (file, code, words) in [(&good, 0, "hello"), (&bad, 2, "bad.yaml")] {
        let ended = node.run(&["--log-format", "json", "run", file]);

        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        let told = format!("{}{}", ended.stdout, ended.stderr);
        assert!(told.contains(words), "{told}");
        for line in told.lines() {
            let object = serde_json::from_str::<Value>(line);
            assert!(object.is_ok_and(|it| it.is_object()), "{line}");
        }
    }
}

#[test]
fn check_tells_of_everything_that_pods_need_and_what_is_lost_without_it() {
    let node = Node::new();

    let text = node.run(&["check"]).stdout;
    let list = node.run(&["check", "--json"]).stdout;

    let list: Value = serde_json::from_str(&list).expect("JSON");
    let lines = list.as_array().expect("a list");
    for name in
        ["kernel", "idmapped mounts", "landlock", "user namespaces", "cgroups", "open files", "nft"]
    {
        let of = |line: &&Value| {
            line["name"].as_str().is_some_and(|it| it.to_lowercase().contains(name))
        };
        let line = lines.iter().find(of).unwrap_or_else(|| panic!("no {name} in {list:#}"));
        let told = line["name"].as_str().unwrap_or_default();
        assert!(text.contains(told), "{told}: {text}");
        assert_ne!(line["found"], "", "{line}");
        for what in ["lostWithoutIt", "remedy"] {
            assert!(line["ok"] == true || line[what] != "", "{line}");
        }
    }
}

#[test]
fn completions_of_each_shell_know_the_commands() {
    let node = Node::new();

    for shell in ["bash", "zsh", "fish"] {
        let script = node.ok(&["completions", shell]);

        for word in ["run", "describe", "publish"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
}

#[test]
fn inspect_tells_the_kind_the_imports_and_the_needs_of_a_file_and_of_an_image() {
    let node = Node::new();
    node.load(&["hello-http"]);
    let file = node.built().guest("probe-p1");
    let file = file.to_str().expect("text");

    let command = node.ok(&["image", "inspect", file]);
    let http = node.ok(&["image", "inspect", &image("hello-http")]);
    let object = node.ok(&["image", "inspect", "--json", &image("hello-http")]);

    assert!(command.contains("wasi_snapshot_preview1"), "{command}");
    assert!(command.contains("Needs:"), "{command}");
    assert!(http.contains("HTTP component") && http.contains("wasi:http/"), "{http}");
    let object: Value = serde_json::from_str(&object).expect("JSON");
    assert!(object.to_string().contains("wasi:http/"), "{object}");
}
