//! Pods of an ordinary user, who has no root, no range of further users and nothing installed: the same programs, run as `nobody`.
//!
//! What root's pods do is tested elsewhere; here is a walk through all of it, and what is different. Absent: pod addresses seen from
//! the host, which has no way to them here; ports are published instead.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use copepod_tests::http;
use copepod_tests::manifest::{With, all, container, image, pod, probe};
use copepod_tests::node::{Node, ORDINARY_USER, status};
use copepod_tests::registry::Registry;
use copepod_tests::registry::served::{Image, archive, serve};
use copepod_tests::wait::until;
use copepod_tests::world::{BEYOND, World};
use serde_json::{Value, json};

/// Starts pods with one port published; where the host reaches it.
fn start_published(node: &Node, objects: &[Value], port: u16) -> SocketAddr {
    let manifest = node.write("published.yaml", all(objects));
    published(node, &manifest, port)
}

fn published(node: &Node, file: &str, port: u16) -> SocketAddr {
    let started = node.run(&["run", file, "--detach", "--publish", &format!("0:{port}")]);
    assert_eq!(started.code, Some(0), "{}{}", started.stdout, started.stderr);
    let told = started.stderr.lines().find_map(|line| line.split(" -> ").next()?.parse().ok());
    told.unwrap_or_else(|| panic!("no address in: {}", started.stderr))
}

fn text_of(address: SocketAddr, path: &str) -> String {
    until("an answer", || http::get(address, path).ok()).text()
}

#[test]
fn a_run_shows_the_log_and_ends_with_the_exit_code() {
    let node = Node::of_an_ordinary_user();
    node.load(&["probe-p1"]);
    let script = |script: &[&str]| probe(script).with("/image", json!(image("probe-p1")));

    let well = node.run_to_end(&[pod("well", [script(&["print hello", "exit 0"])])]);
    let badly = node.run_to_end(&[pod("badly", [script(&["exit 3"])])]);

    assert_eq!(well.code, Some(0), "{}", well.stderr);
    assert!(well.stdout.contains("hello"), "{}", well.stdout);
    assert_eq!(badly.code, Some(3), "{}", badly.stderr);
}

#[test]
fn a_wasm_file_is_published_on_the_host_and_nothing_of_it_stays() {
    let node = Node::of_an_ordinary_user();
    let guest = node.built().guest("hello-http");

    let address = published(&node, guest.to_str().expect("text"), 8080);
    assert_eq!(text_of(address, "/"), "hello from copepod\n");
    assert!(node.broker().is_some(), "the broker is at work");
    let left = node.stop_all();

    assert_eq!(left, Vec::<String>::new());
    assert!(!node.data().join("broker.sock").exists());
    let domains = std::fs::read_dir(node.data().join("domains")).expect("the data directory");
    assert_eq!(domains.count(), 0);
}

#[test]
fn an_image_is_pulled_from_a_registry_of_this_machine() {
    let node = Node::of_an_ordinary_user();
    let registry = Registry::start(&node.built().registry).expect("it starts");
    let reference = format!("localhost:{}/batch:1", registry.address().port());
    node.load_file(&node.built().guest("batch"), &reference);
    node.ok(&["image", "push", &reference]);
    node.ok(&["image", "rm", &reference]);

    let ended = node.run_to_end(&[pod("batch", [json!({ "name": "batch", "image": reference })])]);

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("primes below"), "{}", ended.stdout);
}

#[test]
fn a_pod_of_two_shares_its_localhost_and_a_volume_and_its_probe_passes() {
    let node = Node::of_an_ordinary_user();
    node.load(&["pod-of-two-app", "pod-of-two-sidecar"]);
    let example = std::fs::read(copepod_tests::manifest::example("pod-of-two")).expect("read");
    let manifest = node.write("pod.yaml", example);

    let address = published(&node, &manifest, 8080);
    node.wait_ready("pod-of-two");

    assert_eq!(text_of(address, "/"), "this page was written by the sidecar\n");
    assert_eq!(text_of(address, "/sidecar"), "the sidecar says: you are request 1\n");
}

#[test]
fn a_detached_pod_is_listed_described_read_entered_measured_and_stopped() {
    let node = Node::of_an_ordinary_user();
    node.load(&["probe"]);
    node.start(&[pod("open", [probe(&["print it runs", "forever sleep 1000"])])]);
    node.wait_ready("open");
    let mut following = node
        .copepod(&["logs", "--follow", "open"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    let out = following.stdout.take().expect("it is piped");
    BufReader::new(out).read_line(&mut line).expect("a line");

    assert!(line.contains("it runs"), "{line}");
    assert!(node.ok(&["ps"]).contains("open"));
    assert!(node.ok(&["describe", "open"]).contains("Running"));
    assert!(node.ok(&["stats"]).contains("probe"));
    let inside =
        node.run(&["exec", "open", "--", "probe", "print inside", "cannot-read /etc/passwd"]);
    assert_eq!(inside.code, Some(0), "{}{}", inside.stdout, inside.stderr);
    node.ok(&["stop", "open", "--grace", "1"]);

    following.wait().expect("it ends with the pod");
    assert_eq!(node.pod("open"), None);
}

#[test]
fn requests_are_answered_while_the_agent_is_killed_and_the_next_one_takes_its_pods_over() {
    let node = Node::of_an_ordinary_user();
    node.load(&["hello-http"]);
    let address =
        start_published(&node, &[pod("server", [container("hello", "hello-http")])], 8080);
    node.wait_ready("server");
    let runners = node.runners();
    let broker = node.broker();
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = {
        let (over, answered) = (over.clone(), answered.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(http::get(address, "/").expect("an answer").status, 200);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    };

    for _ in 0..3 {
        let before = answered.load(Ordering::Relaxed);
        node.kill_agent();
        until("requests to be answered without an agent", || {
            (answered.load(Ordering::Relaxed) > before + 5).then_some(())
        });
        let pod = node.wait_ready("server");
        assert_eq!(status(&pod, "hello")["restartCount"], 0);
    }
    over.store(true, Ordering::Relaxed);
    load.join().expect("every request was answered");

    assert_eq!((node.runners(), node.broker()), (runners, broker));
    // The next agent can give the old domain something new: a pod, with volumes and an address.
    node.load(&["probe"]);
    let later = probe(&["file-is /config/a b", "write /small/x y"]).with(
        "/volumeMounts",
        json!([{ "name": "config", "mountPath": "/config" }, { "name": "small", "mountPath": "/small" }]),
    );
    let volumes = json!([
        { "name": "config", "configMap": { "name": "c" } },
        { "name": "small", "emptyDir": { "sizeLimit": "1Mi" } },
    ]);
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" }, "data": { "a": "b" } });
    let ended = node.run_to_end(&[map, pod("later", [later]).with("/spec/volumes", volumes)]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(node.stop_all(), Vec::<String>::new());
}

#[test]
fn a_runner_killed_with_its_agent_gets_a_successor() {
    let node = Node::of_an_ordinary_user();
    node.load(&["hello-http"]);
    let server = pod("server", [container("hello", "hello-http")])
        .with("/spec/restartPolicy", json!("Always"));
    node.start(&[server]);
    node.wait_ready("server");

    node.kill_agent();
    node.runners().into_iter().for_each(copepod_tests::host::kill);

    node.wait_for("server", "ready after a restart", |pod| {
        copepod_tests::node::is_ready(pod) && status(pod, "hello")["restartCount"] == 1
    });
    assert_eq!(node.stop_all(), Vec::<String>::new());
}

#[test]
fn a_runner_has_no_privilege_and_namespaces_of_its_own() {
    let node = Node::of_an_ordinary_user();
    node.load(&["hello-http"]);
    node.start(&[pod("server", [container("hello", "hello-http")])]);
    node.wait_ready("server");
    let [runner] = node.runners()[..] else { panic!("one domain, one runner") };
    let agent = node.agent().expect("an agent runs");

    let status = std::fs::read_to_string(format!("/proc/{runner}/status")).expect("it lives");
    for line in [
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Groups:\t ",
    ] {
        assert!(status.lines().any(|it| it == line), "no {line:?} in {status}");
    }
    for kind in ["user", "mnt", "net", "ipc", "uts"] {
        let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("it lives");
        assert_ne!(of(runner), of(agent), "{kind}");
    }
    let mut root: Vec<String> = std::fs::read_dir(format!("/proc/{runner}/root"))
        .expect("root may look")
        .map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned())
        .collect();
    root.sort();
    assert_eq!(root, ["code", "logs", "mnt", "ro", "rw", "state"]);
}

#[test]
fn pods_whose_broker_and_agent_were_killed_are_started_anew_and_not_twice() {
    let node = Node::of_an_ordinary_user();
    node.load(&["hello-http"]);
    let server = pod("server", [container("hello", "hello-http")])
        .with("/spec/restartPolicy", json!("Always"));
    node.start(&[server]);
    node.wait_ready("server");
    let before = node.runners();

    copepod_tests::host::kill(node.broker().expect("a broker runs"));
    node.kill_agent();

    node.wait_for("server", "ready after a restart", |pod| {
        copepod_tests::node::is_ready(pod) && status(pod, "hello")["restartCount"] == 1
    });
    let now = node.runners();
    assert!(now.len() == 1 && now != before, "{before:?} {now:?}");
    assert_eq!(node.stop_all(), Vec::<String>::new());
}

#[test]
fn volumes_are_what_they_are_for_root() {
    let node = Node::of_an_ordinary_user();
    node.load(&["probe"]);
    let host = node.scratch().join("host");
    std::fs::create_dir(&host).expect("a folder");
    std::fs::write(host.join("there"), "from the host").expect("a file");
    node.give(&host);
    let script = probe(&[
        "file-is /config/greeting hello",
        "cannot-write /config/greeting",
        "file-is /secret/password s3cret",
        "cannot-remove /secret/password",
        "write /scratch/note x",
        "fill /small/fits 500000",
        "cannot-fill /small/too-much 4000000",
        "file-is /ro/there from the host",
        "cannot-write /ro/there",
        "write /rw/new from the guest",
    ]);
    let volume = |name: &str| json!({ "name": name, "mountPath": format!("/{name}") });
    let script = script.with(
        "/volumeMounts",
        json!([
            volume("config"), volume("secret"), volume("scratch"), volume("small"),
            { "name": "host", "mountPath": "/ro", "readOnly": true }, { "name": "host", "mountPath": "/rw" },
        ]),
    );
    let volumes = json!([
        { "name": "config", "configMap": { "name": "greetings" } },
        { "name": "secret", "secret": { "secretName": "login" } },
        { "name": "scratch", "emptyDir": {} },
        { "name": "small", "emptyDir": { "sizeLimit": "1Mi" } },
        { "name": "host", "hostPath": { "path": host } },
    ]);

    let ended = node.run_to_end(&[
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "greetings" },
            "data": { "greeting": "hello" } }),
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "login" },
            "stringData": { "password": "s3cret" } }),
        pod("reader", [script]).with("/spec/volumes", volumes),
    ]);

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(std::fs::read_to_string(host.join("new")).expect("written"), "from the guest");
    let owner = std::os::unix::fs::MetadataExt::uid(&host.join("new").metadata().expect("there"));
    assert_eq!(owner, ORDINARY_USER);
}

#[test]
fn a_folder_that_the_user_may_not_read_is_not_shown_and_the_pod_says_so() {
    let node = Node::of_an_ordinary_user();
    node.load(&["probe"]);
    let closed = node.scratch().join("closed");
    std::fs::create_dir(&closed).expect("a folder");
    let only_root = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&closed, only_root).expect("one's own folder");
    let curious = probe(&["exit 0"])
        .with("/volumeMounts", json!([{ "name": "closed", "mountPath": "/closed" }]));
    let volumes = json!([{ "name": "closed", "hostPath": { "path": closed } }]);

    node.start(&[pod("curious", [curious]).with("/spec/volumes", volumes)]);

    let told = until("the pod's event", || {
        Some(node.ok(&["describe", "curious"])).filter(|text| text.contains("FailedMount"))
    });
    assert!(told.contains("Permission denied"), "{told}");
}

#[test]
fn a_guest_past_its_memory_limit_is_oom_killed_alone() {
    let node = Node::of_an_ordinary_user();
    node.load(&["probe", "hello-http"]);
    let address =
        start_published(&node, &[pod("neighbour", [container("hello", "hello-http")])], 8080);
    let greedy = probe(&["alloc-all"]).with("/resources/limits/memory", json!("16Mi"));
    node.start(&[pod("greedy", [greedy])]);

    let over = node.wait_over("greedy");

    let state = &status(&over, "probe")["state"]["terminated"];
    assert_eq!((&state["exitCode"], &state["reason"]), (&json!(137), &json!("OOMKilled")));
    assert_eq!(text_of(address, "/"), "hello from copepod\n");
    let neighbour = node.pod("neighbour").expect("it is there");
    assert_eq!(status(&neighbour, "hello")["restartCount"], 0);
}

#[test]
fn pods_of_one_domain_and_of_two_reach_each_other_by_their_addresses() {
    let node = Node::of_an_ordinary_user();
    node.load(&["tcp-echo", "udp-echo", "probe"]);
    let of = |namespace: &str, pod: Value| pod.with("/metadata/namespace", json!(namespace));
    node.start(&[
        of("one", pod("tcp", [container("echo", "tcp-echo")])),
        of("one", pod("udp", [container("echo", "udp-echo")])),
    ]);
    let (tcp, udp) = (node.wait_ready("tcp"), node.wait_ready("udp"));
    let ip = |pod: &Value| pod["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let script =
        [format!("echo {}:7000 by tcp", ip(&tcp)), format!("udp-echo {}:7000 by udp", ip(&udp))];
    let script: Vec<&str> = script.iter().map(String::as_str).collect();

    for namespace in ["one", "two"] {
        let asking = of(namespace, pod(&format!("from-{namespace}"), [probe(&script)]));
        let ended = node.run_to_end(&[asking]);
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    }
}

#[test]
fn guests_reach_the_world_through_the_broker_and_never_the_host_s_own_addresses() {
    let world = World::new();
    world.beyond(|| echo_tcp(&TcpListener::bind((BEYOND, 7000)).expect("a free port")));
    world.beyond(|| echo_udp(&UdpSocket::bind((BEYOND, 7000)).expect("a free port")));
    world.beyond(|| answer_names(&UdpSocket::bind((BEYOND, 53)).expect("a free port")));
    world.live_on_the_machine();
    let canaries = [("127.0.0.1", 7001), ("0.0.0.0", 7002)]
        .map(|canary| TcpListener::bind(canary).expect("a free port"));
    let node = Node::of_an_ordinary_user();
    node.load(&["probe"]);
    let script = [
        format!("echo {BEYOND}:7000 by tcp"),
        format!("udp-echo {BEYOND}:7000 by udp"),
        format!("udp-wait {BEYOND}:7000 by udp once more"),
        "resolve-is beyond.example 198.51.100.1".to_owned(),
        "echo beyond.example:7000 by name".to_owned(),
        format!("connect {BEYOND}:7999 refused"),
        // The pod's own loopback, not the host's.
        "connect 127.0.0.1:7001 refused".to_owned(),
        "udp-cannot-send 169.254.169.254:80".to_owned(),
        "connect 169.254.169.254:80 failed".to_owned(),
        // The machine's own address, on which a canary listens.
        "connect 198.51.100.2:7002 failed".to_owned(),
        "connect [::1]:7001 failed".to_owned(),
    ];
    let script: Vec<&str> = script.iter().map(String::as_str).collect();
    let manifest = node.write("asking.yaml", pod("asking", [probe(&script)]).to_string());

    let ended = node
        .copepod(&["run", &manifest])
        .env("COPEPOD_NAME_SERVERS", BEYOND.to_string())
        .output()
        .expect("it starts");

    let said = String::from_utf8_lossy(&ended.stdout);
    assert_eq!(ended.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    for canary in canaries {
        canary.set_nonblocking(true).expect("set");
        assert!(canary.accept().is_err(), "nobody came to {:?}", canary.local_addr());
    }
}

fn echo_tcp(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let mut said = Vec::new();
        let (mut from, mut to) = (&stream, &stream);
        if from.read_to_end(&mut said).is_ok() {
            let _ = to.write_all(&said);
        }
    }
}

fn echo_udp(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&buffer[..length], peer);
    }
}

/// A name server to which every name is one of [`BEYOND`].
fn answer_names(socket: &UdpSocket) {
    let mut buffer = [0; 512];
    let std::net::IpAddr::V4(address) = BEYOND else { return };
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        // The question comes back as it is, marked as answered once; then its name by reference, A, IN, 30 s, four bytes.
        let mut answer = buffer[..length].to_vec();
        answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
        answer.extend(address.octets());
        let _ = socket.send_to(&answer, peer);
    }
}

#[test]
fn a_machine_without_user_namespaces_says_which_setting_forbids_them() {
    let node = Node::of_an_ordinary_user();
    let guest = node.built().guest("batch");
    // A user namespace with a setting of its own, in which there is an ordinary user too.
    let mut holder = Command::new("unshare")
        .args(["--user", "sh", "-c", "echo there; read -r end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare of util-linux");
    let mut out = BufReader::new(holder.stdout.take().expect("it is piped"));
    out.read_line(&mut String::new()).expect("its words are text");
    for map in ["uid_map", "gid_map"] {
        let map = format!("/proc/{}/{map}", holder.id());
        std::fs::write(map, "0 0 65536").expect("root's to map");
    }
    let command = format!(
        "echo 0 > /proc/sys/user/max_user_namespaces && \
         exec setpriv --reuid={ORDINARY_USER} --regid={ORDINARY_USER} --clear-groups \"$@\""
    );

    let ended = Command::new("nsenter")
        .arg(format!("--user=/proc/{}/ns/user", holder.id()))
        .args(["sh", "-c", &command, "sh"])
        .arg(&node.built().copepod)
        .args(["run".as_ref(), guest.as_os_str()])
        .current_dir("/")
        .env("HOME", node.scratch().join("home"))
        .env_remove("COPEPOD_RUNNER")
        .env_remove("XDG_DATA_HOME")
        .output()
        .expect("nsenter of util-linux");
    drop(holder.stdin.take());
    holder.wait().expect("its input ended");

    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(125), "{said}");
    assert!(said.contains("user.max_user_namespaces=0"), "{said}");
}

#[test]
fn check_tells_an_ordinary_user_that_pods_run_and_what_is_lost() {
    let node = Node::of_an_ordinary_user();

    let ended = node.run(&["check"]);

    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert!(ended.stdout.contains("pods run here"), "{}", ended.stdout);
    for lost in ["root", "cgroups"] {
        assert!(ended.stdout.contains(&format!("lost     {lost}")), "{}", ended.stdout);
    }
}

#[test]
fn an_ordinary_user_s_container_has_a_shell_and_writes_to_its_image_s_files() {
    let node = Node::of_an_ordinary_user();
    let program = std::fs::read(node.built().guest("probe")).expect("it is built");
    let layer = archive(&[("main.wasm", &program), ("etc/motd", b"hello")]);
    let image = Image::container(&["/main.wasm"], &[layer]);
    let name = format!("{}/files:1", serve(move |path| image.answer(path)));
    let script = ["file-is /etc/motd hello", "write /etc/motd mine", "sleep 600000"];
    node.start(&[pod("files", [json!({ "name": "app", "image": name, "args": script })])]);
    node.wait_ready("files");
    until("what it wrote", || {
        let said = node.logs("files", "app");
        assert!(!said.contains("FAILED"), "{said}");
        said.contains("ok: write").then_some(())
    });

    let said = node.ok(&[
        "exec",
        "files",
        "--",
        "sh",
        "-c",
        "cat /etc/motd; echo more >> /etc/motd; wc -c /etc/motd",
    ]);

    assert_eq!(said, "mine9 /etc/motd\n");
}
