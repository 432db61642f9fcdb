//! Agents and runners of several generations side by side: upgrades, downgrades, and what is left of old programs.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use copepod_tests::http::Connection;
use copepod_tests::manifest::{With, container, image, pod, probe};
use copepod_tests::node::{Node, is_ready, status};
use copepod_tests::wait::until;
use copepod_tests::{host, http};
use serde_json::{Value, json};

/// A pod of a server, and a probe in which commands can be run.
fn server(name: &str) -> Value {
    pod(name, [container("hello", "hello-http"), probe(&["forever sleep 1000"])])
        .with("/spec/restartPolicy", json!("Always"))
}

/// The folder names in a folder of the data directory, but that of what is being written.
fn kept(node: &Node, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(node.data().join(folder)).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "tmp").collect()
}

/// The build that a process's program is of.
fn build(pid: u32) -> PathBuf {
    host::program(pid).parent().map(Path::to_owned).unwrap_or_default()
}

/// The node's one runner.
fn only_runner(node: &Node) -> u32 {
    let [runner] = node.runners()[..] else { panic!("{:?}: not one runner", node.runners()) };
    runner
}

/// Asks a pod without a pause, on a kept connection and on new ones, until it is told to end.
struct Load {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    asking: std::thread::JoinHandle<()>,
}

impl Load {
    fn on(node: &Node, name: &str) -> Self {
        let address = node.address(name, 8080);
        let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let asking = {
            let (over, answered) = (over.clone(), answered.clone());
            std::thread::spawn(move || {
                let mut kept = Connection::open(address).expect("it listens");
                while !over.load(Ordering::Relaxed) {
                    let answer = kept.get("/").expect("an answer on a kept connection");
                    assert_eq!(answer.status, 200);
                    if answer.is_last() {
                        kept = Connection::open(address).expect("it listens");
                    }
                    let new = http::get(address, "/").expect("an answer on a new one");
                    assert_eq!(new.status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let load = Self { over, answered, asking };
        load.goes_on();
        load
    }

    fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        until("requests to be answered", || {
            (self.answered.load(Ordering::Relaxed) > before + 5).then_some(())
        });
    }

    fn end(self) {
        self.goes_on();
        self.over.store(true, Ordering::Relaxed);
        self.asking.join().expect("every request was answered");
    }
}

#[test]
fn an_upgraded_agent_goes_on_with_old_pods_and_starts_new_ones_in_a_runner_of_its_own() {
    let mut node = Node::new();
    node.load(&["hello-http", "probe"]);
    node.start(&[server("old")]);
    node.wait_ready("old");
    let old_runner = only_runner(&node);
    let load = Load::on(&node, "old");

    node.kill_agent();
    let built = node.built().copepod.clone();
    node.upgrade("next");
    node.start(&[server("new")]);
    node.wait_ready("new");

    load.goes_on();
    let new_runner =
        node.runners().into_iter().find(|&runner| runner != old_runner).expect("a second runner");
    assert_eq!(node.runners().len(), 2);
    assert_ne!(build(old_runner), build(new_runner));
    assert_ne!(host::user(old_runner), host::user(new_runner));
    assert_eq!((kept(&node, "bin").len(), kept(&node, "code").len()), (2, 2));
    for (from, to) in [("old", "new"), ("new", "old")] {
        let asked = format!("http-get {}", node.address(to, 8080));
        node.ok(&["exec", from, "--container", "probe", "--", "probe", &asked]);
    }
    let used = node.ok(&["stats"]);
    assert!(used.contains("old") && used.contains("new"), "{used}");

    // And back: for the agent of the older build the newer runner is the foreign one.
    let new_load = Load::on(&node, "new");
    node.kill_agent();
    node.go_on_with(built, None);
    for name in ["old", "new"] {
        let pod = node.wait_ready(name);
        for container in ["hello", "probe"] {
            assert_eq!(status(&pod, container)["restartCount"], 0, "{name}/{container}");
        }
    }
    load.end();
    new_load.end();

    // With the last pod of a generation go its programs and its code, unless they are the agent's own.
    node.ok(&["stop", "new", "--grace", "1"]);
    assert_eq!(node.runners(), [old_runner]);
    assert_eq!(
        kept(&node, "bin"),
        [build(old_runner).file_name().expect("a name").to_string_lossy()]
    );
    assert_eq!(kept(&node, "code").len(), 1);
    assert!(is_ready(&node.pod("old").expect("it is there")));
    assert_eq!(node.stop_all(), Vec::<String>::new());
}

#[test]
fn http_pods_leave_an_older_runner_for_a_new_one_and_no_request_fails() {
    let mut node = Node::new();
    node.load(&["hello-http"]);
    let names = ["one", "two"];
    let pods = names.map(|name| {
        pod(name, [container("hello", "hello-http")]).with("/spec/restartPolicy", json!("Always"))
    });
    node.start(&pods);
    let before = names.map(|name| node.wait_ready(name));
    let old_runner = only_runner(&node);
    let old_user = host::user(old_runner);
    let loads = names.map(|name| Load::on(&node, name));

    node.kill_agent();
    node.upgrade("next");
    node.ok(&["ps"]);

    let new_runner = until("the older runner to end", || {
        let runners = node.runners();
        (runners.len() == 1 && runners[0] != old_runner).then(|| runners[0])
    });
    assert_eq!(host::user(new_runner), old_user, "it is in the same tree");
    loads.iter().for_each(Load::goes_on);
    for (name, before) in names.iter().zip(before) {
        let [now, then] = [&node.wait_ready(name), &before].map(|pod| status(pod, "hello").clone());
        assert_eq!(now, then, "{name}: to Kubernetes nothing has happened");
    }
    until("the older build's programs and code to go", || {
        ((kept(&node, "bin").len(), kept(&node, "code").len()) == (1, 1)).then_some(())
    });

    // The next agent finds the heir, and the pods can be ended as ever.
    node.kill_agent();
    node.ok(&["ps"]);
    assert_eq!(only_runner(&node), new_runner);
    loads.into_iter().for_each(Load::end);
    node.ok(&["stop", "one", "--grace", "1"]);
    assert!(is_ready(&node.pod("two").expect("it is there")));
    assert_eq!(node.stop_all(), Vec::<String>::new());
}

#[test]
fn a_container_that_restarts_in_an_older_runner_runs_code_of_that_runner_s_own_compiler() {
    let mut node = Node::new();
    node.load(&["probe-p1"]);
    let crashing = probe(&["wait-for /shared/go", "exit 5"])
        .with("/image", json!(image("probe-p1")))
        .with("/readinessProbe/exec/command", json!(["probe", "file-is /shared/state good"]))
        .with("/readinessProbe/periodSeconds", json!(1))
        .with("/readinessProbe/failureThreshold", json!(1))
        .with("/volumeMounts", json!([{ "name": "shared", "mountPath": "/shared" }]));
    let folder = node.scratch().join("shared");
    std::fs::create_dir(&folder).expect("a folder");
    let says = |state: &str| std::fs::write(folder.join("state"), state).expect("a file");
    says("good");
    let volume = json!([{ "name": "shared", "hostPath": { "path": folder } }]);
    // Without a program that goes on, the tree would be handed over while the other one waits.
    let goes_on = probe(&["forever sleep 1000"])
        .with("/name", json!("goes-on"))
        .with("/image", json!(image("probe-p1")));
    node.start(&[pod("old", [crashing, goes_on])
        .with("/spec/restartPolicy", json!("Always"))
        .with("/spec/volumes", volume)]);
    node.wait_ready("old");
    let runner = only_runner(&node);
    let [engine] = &kept(&node, "code")[..] else { panic!("one engine") };
    let code = node.data().join("code").join(engine);

    node.kill_agent();
    node.upgrade("next");
    // What it needs to start again is not there any more, as after a long time beside many others.
    for file in std::fs::read_dir(&code).expect("a folder").flatten() {
        std::fs::remove_file(file.path()).expect("removed");
    }
    says("bad");
    node.wait_for("old", "probed in its runner", |pod| !is_ready(pod));
    says("good");
    node.wait_ready("old");
    std::fs::write(folder.join("go"), "").expect("a file");
    node.wait_for("old", "over", |pod| status(pod, "probe")["lastState"]["terminated"].is_object());
    std::fs::remove_file(folder.join("go")).expect("removed");

    let again = node.wait_for("old", "running again", |pod| {
        is_ready(pod) && status(pod, "probe")["state"]["running"].is_object()
    });
    assert_eq!(status(&again, "probe")["lastState"]["terminated"]["exitCode"], 5);
    assert_eq!(only_runner(&node), runner);
    let made = std::fs::read_dir(&code).expect("a folder").flatten().count();
    assert_eq!(made, 2, "the code and its label");
    let asked = ["exec", "old", "--container", "probe", "--", "probe", "cannot-write /etc/passwd"];
    node.ok(&asked);
}

#[test]
fn pods_whose_older_runner_is_killed_come_back_in_one_of_the_agent_s_generation() {
    let mut node = Node::new();
    node.load(&["hello-http", "probe"]);
    node.start(&[server("old")]);
    node.wait_ready("old");
    let old_runner = only_runner(&node);
    let old_build = build(old_runner);
    node.kill_agent();
    node.upgrade("next");
    node.ok(&["ps"]);

    host::kill(old_runner);

    let back = node.wait_for("old", "ready after a restart", |pod| {
        is_ready(pod) && status(pod, "hello")["restartCount"] == 1
    });
    assert_eq!(status(&back, "hello")["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(http::get(node.address("old", 8080), "/").expect("an answer").status, 200);
    let new_runner = only_runner(&node);
    assert_ne!(build(new_runner), old_build);
    until("the old generation to be gone", || {
        (!old_build.exists() && kept(&node, "code").len() == 1).then_some(())
    });

    // A runner that dies while no agent is there is succeeded in the same way, by whatever agent comes.
    node.kill_agent();
    host::kill(new_runner);
    node.upgrade("third");
    node.wait_for("old", "ready after another restart", |pod| {
        is_ready(pod) && status(pod, "hello")["restartCount"] == 2
    });
    assert_ne!(build(only_runner(&node)), build(new_runner));
    assert_eq!((kept(&node, "bin").len(), kept(&node, "code").len()), (1, 1));
}

#[test]
fn agents_of_two_generations_killed_in_turn_lose_and_restart_no_pod() {
    const TURNS: u64 = 6;
    let mut node = Node::new();
    node.load(&["hello-http", "probe"]);
    let built = node.built().copepod.clone();
    node.upgrade("next");
    let next = node.built().copepod.clone();

    for turn in 0..TURNS {
        match turn % 2 {
            0 => node.go_on_with(built.clone(), None),
            _ => node.go_on_with(next.clone(), Some("next")),
        }
        node.start(&[server(&format!("pod-{turn}"))]);
        // Somewhere between the journal's first line and the last container's start.
        std::thread::sleep(std::time::Duration::from_millis(turn * 40));
        node.kill_agent();
    }

    for turn in 0..TURNS {
        let name = format!("pod-{turn}");
        let pod = node.wait_ready(&name);
        for container in ["hello", "probe"] {
            assert_eq!(status(&pod, container)["restartCount"], 0, "{name}/{container}");
        }
        assert_eq!(http::get(node.address(&name, 8080), "/").expect("an answer").status, 200);
    }
    let builds: BTreeSet<_> = node.runners().into_iter().map(build).collect();
    assert!((1..=2).contains(&builds.len()), "runners of two generations: {builds:?}");
    assert_eq!(node.stop_all(), Vec::<String>::new());
}

#[test]
fn an_agent_that_does_not_speak_a_runner_s_protocol_says_so_and_leaves_its_pods_alone() {
    let node = Node::new();
    node.load(&["hello-http", "probe"]);
    node.start(&[server("old")]);
    node.wait_ready("old");
    let runner = only_runner(&node);
    let load = Load::on(&node, "old");
    node.kill_agent();
    // What a runner of a later version would say, in the place of the runner's own words.
    let socket = node.data().join("domains/ns-default/runner.sock");
    let aside = socket.with_extension("aside");
    std::fs::rename(&socket, &aside).expect("renamed");
    let later = UnixListener::bind(&socket).expect("a socket");
    let speaking = std::thread::spawn(move || {
        let (mut agent, _) = later.accept().expect("an agent");
        let hello =
            b"\xa3\x68versions\xa2\x66oldest\x09\x66newest\x09\x65build\x61x\x66engine\x61x";
        let length = u32::try_from(hello.len()).expect("it is short").to_le_bytes();
        agent.write_all(&[&length[..], hello].concat()).expect("the agent reads");
        let _ = agent.read_to_end(&mut Vec::new());
    });

    let ended = node.run(&["ps"]);

    speaking.join().expect("an agent came");
    assert_ne!(ended.code, Some(0));
    let program = build(runner).join("copepod");
    for words in ["speaks versions 9 to 9 of the protocol", program.to_str().expect("text")] {
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
    assert_eq!(only_runner(&node), runner);
    load.goes_on();
    std::fs::rename(&aside, &socket).expect("renamed");
    let pod = node.wait_ready("old");
    assert_eq!(status(&pod, "hello")["restartCount"], 0);
    load.end();
}
