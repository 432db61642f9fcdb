//! What a person finds in every container: a shell and small programs, and the container's own streams.
//!
//! Absent: the programs themselves, which are tested beside their code (`toolbox/`).

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use copepod_tests::manifest::{With, container, pod, probe};
use copepod_tests::node::Node;
use copepod_tests::wait::until;
use serde_json::{Value, json};

/// A command's output, with this on its stdin. One that does not end within a minute is killed.
pub(crate) fn fed(command: &mut Command, input: &[u8]) -> (Option<i32>, Vec<u8>, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let (input, pid) = (input.to_vec(), child.id());
    let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let killing = std::thread::spawn(move || {
        if is_over.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
            copepod_tests::host::kill(pid);
        }
    });
    let output = child.wait_with_output().expect("it ends");
    drop(over);
    for thread in [writing, killing] {
        thread.join().expect("no panic");
    }
    (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The command at a terminal of its own, which `script` makes.
pub(crate) fn at_terminal(command: &Command) -> Command {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let quoted =
        |word: &OsStr| format!("'{}'", word.to_str().expect("text").replace('\'', r"'\''"));
    let line: Vec<String> = words.map(quoted).collect();
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line.join(" "), "/dev/null"]).env("TERM", "dumb");
    for (name, value) in command.get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    script
}

/// What is seen of a command at a terminal of its own, and its code, where a person types each of these after they have seen what is before it.
/// Where nothing comes for a minute the command is killed.
pub(crate) fn typed(command: &mut Command, steps: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let (mut stdin, mut stdout) =
        (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let (shows, shown) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut piece = [0; 1024];
        while let Ok(length @ 1..) = stdout.read(&mut piece) {
            let _ = shows.send(piece[..length].to_vec());
        }
    });
    let (mut seen, mut looked_at) = (String::new(), 0);
    let mut steps = steps.iter().peekable();
    while let Ok(piece) = shown.recv_timeout(Duration::from_secs(60)) {
        seen.push_str(&String::from_utf8_lossy(&piece));
        while let Some((awaited, keys)) = steps.peek()
            && let Some(at) = seen[looked_at..].find(awaited)
        {
            looked_at += at + awaited.len();
            // Where it has ended meanwhile, what it showed tells.
            let _ = stdin.write_all(keys.as_bytes());
            steps.next();
        }
    }
    let ended = child.try_wait().expect("it can be asked").is_some();
    if !ended && steps.peek().is_some() {
        copepod_tests::host::kill(child.id());
    }
    let code = child.wait().expect("it ends").code();
    reading.join().expect("no panic");
    (code, seen)
}

/// The toolbox as an image of its own.
pub(crate) fn load_toolbox(node: &Node) {
    node.load_file(
        &node.built().copepod.with_file_name("copepod-toolbox.wasm"),
        &copepod_tests::manifest::image("toolbox"),
    );
}

/// A container that runs the toolbox's shell with this script.
pub(crate) fn shell(name: &str, script: &str) -> Value {
    let mut container = container(name, "toolbox");
    container["command"] = json!(["sh", "-c", script]);
    container
}

#[test]
fn an_http_component_s_container_has_a_shell_and_programs_that_see_what_it_sees() {
    let node = Node::new();
    node.load(&["hello-http"]);
    let mut app = container("app", "hello-http");
    app["env"] = json!([{ "name": "GREETING", "value": "hi" }]);
    app["volumeMounts"] = json!([
        { "name": "data", "mountPath": "/data/deep" },
        { "name": "words", "mountPath": "/etc/words" },
    ]);
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "words" }, "data": { "one": "1" } });
    let pod = pod("web", [app]).with(
        "/spec/volumes",
        json!([{ "name": "data", "emptyDir": {} }, { "name": "words", "configMap": { "name": "words" } }]),
    );
    node.start(&[map, pod]);
    node.wait_ready("web");
    let sh = |script: &str| node.ok(&["exec", "web", "--", "sh", "-c", script]);

    assert_eq!(sh("echo $GREETING $((6*7)) $(cat /etc/words/one)"), "hi 42 1\n");
    assert_eq!(sh("ls / /data"), "/:\ndata\ndev\netc\n\n/data:\ndeep\n");
    assert_eq!(
        sh("cd /data/deep; for i in 1 2 3; do echo $i > f$i; done; cat *; rm f2; ls"),
        "1\n2\n3\nf1\nf3\n"
    );
    assert_eq!(sh("ls | sort -r | head -n 1; pwd"), "etc\n/\n");
    assert_eq!(sh("wget -q -O - http://localhost:8080/"), "hello from copepod\n");
    assert!(node.ok(&["exec", "web", "--", "nslookup", "localhost"]).contains("127.0.0.1"));
    assert!(node.ok(&["exec", "web", "--", "env"]).contains("HOSTNAME=web\n"));
    let processes = node.ok(&["exec", "web", "--", "ps"]);
    assert!(processes.contains("app ") && processes.contains("hello-http.wasm"), "{processes}");
    let refused = node.run(&["exec", "web", "--", "sh", "-c", "echo x > /etc/words/two"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{}", refused.stderr);
    assert_eq!(node.run(&["exec", "web", "--", "sh", "-c", "exit 7"]).code, Some(7));
    let none = node.run(&["exec", "web", "--", "curl", "x"]);
    assert!(
        none.stderr.contains("has no program \"curl\"") && none.stderr.contains("wget"),
        "{}",
        none.stderr
    );
}

#[test]
fn probes_and_hooks_run_the_toolbox_s_programs() {
    let node = Node::new();
    node.load(&["hello-http"]);
    let mut app = container("app", "hello-http");
    app["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    app["readinessProbe"] =
        json!({ "exec": { "command": ["cat", "/data/ready"] }, "periodSeconds": 1 });
    app["lifecycle"] = json!({ "postStart": { "exec": { "command": ["/bin/sh", "-c", "echo started > /data/hook"] } } });
    let pod = pod("web", [app]).with("/spec/volumes", json!([{ "name": "data", "emptyDir": {} }]));
    node.start(&[pod]);
    node.wait_for("web", "running", |pod| pod["status"]["phase"] == "Running");
    until("the hook's file", || {
        (node.run(&["exec", "web", "--", "cat", "/data/hook"]).stdout == "started\n").then_some(())
    });
    until("an event of the probe", || {
        node.ok(&["describe", "web"]).contains("cat: /data/ready: ").then_some(())
    });

    node.ok(&["exec", "web", "--", "touch", "/data/ready"]);

    node.wait_ready("web");
}

#[test]
fn a_command_that_names_a_wasm_file_of_the_container_runs_that_file() {
    let node = Node::new();
    node.load(&["probe", "hello-http"]);
    let tools = node.scratch().join("tools");
    std::fs::create_dir_all(&tools).expect("made");
    std::fs::copy(node.built().guest("probe-p1"), tools.join("own.wasm")).expect("copied");
    std::fs::write(tools.join("broken.wasm"), b"\0asm\x01\0\0\0 no more").expect("written");
    let volume = json!([{ "name": "tools", "hostPath": { "path": tools } }]);
    let mounted = |mut container: Value| {
        container["volumeMounts"] =
            json!([{ "name": "tools", "mountPath": "/tools", "readOnly": true }]);
        container
    };
    node.start(&[
        pod("web", [mounted(container("app", "hello-http"))]).with("/spec/volumes", volume.clone())
    ]);
    node.wait_ready("web");

    let ran = node.run(&["exec", "web", "--", "/tools/own.wasm", "print from the file", "exit 5"]);
    let broken = node.run(&["exec", "web", "--", "/tools/broken.wasm"]);

    assert_eq!((ran.code, ran.stdout.contains("from the file")), (Some(5), true), "{}", ran.stderr);
    assert!(broken.stderr.contains("/tools/broken.wasm cannot be run"), "{}", broken.stderr);
    // And the container's own program, in the place of its image's; its working directory is where a name begins.
    let mut main = mounted(probe(&["env-is PWD /tools", "exit 6"]));
    (main["command"], main["workingDir"]) = (json!(["./own.wasm"]), json!("/tools"));
    let ended = node.run_to_end(&[pod("main", [main]).with("/spec/volumes", volume.clone())]);
    assert_eq!(ended.code, Some(6), "{}{}", ended.stdout, ended.stderr);
    let mut main = mounted(probe(&[]));
    main["command"] = json!(["/tools/broken.wasm"]);
    let ended = node.run_to_end(&[pod("broken", [main]).with("/spec/volumes", volume)]);
    assert_eq!(ended.code, Some(125), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("CreateContainerError"), "{}", ended.stderr);
}

#[test]
fn a_client_writes_to_a_container_s_stdin_and_sees_what_it_writes() {
    let node = Node::new();
    load_toolbox(&node);
    let mut main = shell("main", "while read line; do echo \"got $line\"; done; echo over; exit 4");
    (main["stdin"], main["stdinOnce"]) = (json!(true), json!(true));
    let mut open = shell("open", "while read line; do echo \"kept $line\"; done");
    open["stdin"] = json!(true);
    node.start(&[pod("talker", [main, open])]);
    node.wait_ready("talker");
    let attach =
        |container: &str| node.copepod(&["attach", "-i", "talker", "--container", container]);

    // The input of the second goes on after its first client.
    for word in ["a", "b"] {
        let mut client =
            attach("open").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
        let mut input = client.stdin.take().expect("a pipe");
        writeln!(input, "{word}").expect("written");
        let mut answer = vec![0; 7];
        client.stdout.take().expect("a pipe").read_exact(&mut answer).expect("an answer");
        assert_eq!(String::from_utf8_lossy(&answer), format!("kept {word}\n"));
        drop(input);
        client.kill().expect("it runs still");
        client.wait().expect("it ended");
    }
    // Who only looks closes nothing.
    let mut watching = node.copepod(&["attach", "talker", "--container", "main"]);
    let mut watching = watching.stdout(Stdio::null()).spawn().expect("started");
    std::thread::sleep(Duration::from_millis(300));
    watching.kill().expect("it runs still");
    watching.wait().expect("it ended");
    let (code, output, error) = fed(&mut attach("main"), b"one\ntwo\n");

    assert_eq!(
        (code, String::from_utf8_lossy(&output).into_owned()),
        (Some(4), "got one\ngot two\nover\n".to_owned()),
        "{error}"
    );
    assert_eq!(node.logs("talker", "main"), "got one\ngot two\nover\n");
    assert_eq!(node.logs("talker", "open"), "kept a\nkept b\n");
}

#[test]
fn exec_at_a_terminal_shows_prompts_and_ends_with_its_client() {
    let node = Node::new();
    node.load(&["hello-http"]);
    node.start(&[pod("web", [container("app", "hello-http")])]);
    node.wait_ready("web");
    let shell = &mut at_terminal(&node.copepod(&["exec", "-it", "web", "--", "sh"]));
    let (code, output, error) = fed(shell, b"echo $((40+2))\nexit 9\n");

    let output = String::from_utf8_lossy(&output).into_owned();
    assert!(output.contains("/ $ ") && output.contains("42\r\n"), "{output}{error}");
    assert_eq!(code, Some(9), "{output}");
    // The client goes while the program waits: it ends. (A window that closes ends its client by SIGHUP, which a run of these tests in the
    // background may have others ignore.)
    let mut left = node.copepod(&["exec", "-t", "web", "--", "sleep", "600000"]);
    let mut left = left.stdout(Stdio::null()).spawn().expect("started");
    // An idle HTTP component has none of its own.
    let instances = |count: &str| {
        until(&format!("{count} instances"), || {
            let told = node.ok(&["top"]);
            let last = told.lines().last().and_then(|line| line.split_whitespace().last());
            (last == Some(count)).then_some(())
        });
    };
    instances("1");
    left.kill().expect("it runs");
    left.wait().expect("it ended");
    instances("0");
}
