//! Programs of other languages and their toolchains, served as their authors expect.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use copepod_tests::http;
use copepod_tests::manifest::{With, container, image, pod, probe};
use copepod_tests::node::{self, Node};
use copepod_tests::wait::until;
use serde_json::{Value, json};

use crate::basic::a_slow_request_holds_up_nobody;

/// A pod that is started again, with one container that declares a TCP port.
fn server(name: &str, guest: &str, port: u16) -> Value {
    let mut server = container("server", guest);
    server["ports"] = json!([{ "name": "main", "containerPort": port }]);
    server["resources"]["limits"]["memory"] = "128Mi".into();
    pod(name, [server]).with("/spec/restartPolicy", "Always".into())
}

/// A program with an interpreter in it is compiled for a minute or two on a busy machine.
const COMPILED: Duration = Duration::from_secs(400);

fn waits_for(node: &Node, name: &str, port: u16) -> SocketAddr {
    let begin = Instant::now();
    while !node.pod(name).is_some_and(|pod| node::is_ready(&pod)) {
        assert!(begin.elapsed() < COMPILED, "{name}: {:?}", node.pod(name));
        std::thread::sleep(Duration::from_millis(100));
    }
    let address = node.address(name, port);
    until("the server to listen", || TcpStream::connect(address).ok());
    address
}

/// Sends this many bytes while it reads, and gives back what came.
fn echoed(address: SocketAddr, sent: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let mut writer = stream.try_clone().expect("a second handle");
    let mut got = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(sent).expect("it is read");
            writer.shutdown(Shutdown::Write).expect("connected");
        });
        stream.read_to_end(&mut got).expect("it comes back");
    });
    got
}

#[test]
fn a_go_server_answers_many_callers_at_once_on_the_socket_that_it_is_given() {
    let node = Node::new();
    node.start_example("go-http", &["go-http"]);
    let address = waits_for(&node, "go-http", 8080);

    std::thread::scope(|scope| {
        let slow = scope.spawn(move || http::get(address, "/slow"));
        for _ in 0..16 {
            scope.spawn(move || {
                let mut connection = http::Connection::open(address).expect("it listens");
                for number in 0..50 {
                    let answer = connection.get(&format!("/{number}")).expect("an answer");
                    let text = answer.text();
                    assert!(text.starts_with("hello from go"), "{text}");
                    assert!(text.ends_with(&format!(" on wasip1 /{number}\n")), "{text}");
                }
            });
        }
        let slow = slow.join().expect("no panic").expect("an answer");
        assert_eq!(slow.text(), "slow, but not in the way\n");
    });
    let status = node.pod("go-http").expect("it is there");
    assert_eq!(node::status(&status, "server")["restartCount"], 0);
    assert!(!node.ok(&["describe", "go-http"]).contains("PortNotServed"));
}

#[test]
fn a_command_beside_a_server_does_not_want_its_ports() {
    let node = Node::new();
    node.start_example("go-http", &["go-http"]);
    waits_for(&node, "go-http", 8080);

    let said = node.ok(&["exec", "go-http", "--", "go-http", "shows", "its", "arguments"]);

    assert!(said.contains("args shows its arguments"), "{said}");
}

#[test]
fn an_axum_server_of_preview1_finds_its_socket_behind_its_volumes() {
    let node = Node::new();
    node.load(&["axum-p1"]);
    let server = server("axum", "axum-p1", 8080)
        .with("/spec/volumes", json!([{ "name": "data", "emptyDir": {} }]))
        .with("/spec/containers/0/volumeMounts", json!([{ "name": "data", "mountPath": "/data" }]));
    node.start(&[server]);
    let address = waits_for(&node, "axum", 8080);

    a_slow_request_holds_up_nobody(address);
}

#[test]
fn a_server_in_c_polls_a_hundred_callers() {
    let node = Node::new();
    node.start_example("c-echo", &["c-echo"]);
    let address = waits_for(&node, "c-echo", 7000);
    let sent: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();

    // All are there before the first one speaks.
    let idle: Vec<_> = (0..50).map(|_| TcpStream::connect(address).expect("it listens")).collect();
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| assert!(echoed(address, &sent) == sent));
        }
    });

    for mut stream in idle {
        stream.write_all(b"x").expect("it is read");
        let mut got = [0];
        stream.read_exact(&mut got).expect("it comes back");
        assert_eq!(&got, b"x");
    }
}

#[test]
fn nobody_is_let_in_before_a_program_asks_for_connections() {
    let node = Node::new();
    node.load(&["go-http"]);
    let mut fake = server("fake", "go-http", 8080);
    fake["spec"]["containers"][0]["args"] = json!(["fake"]);
    node.start(&[fake]);
    let told = until("a warning", || {
        Some(node.ok(&["describe", "fake"])).filter(|text| text.contains("PortNotServed"))
    });
    assert!(told.contains("net.FileListener"), "{told}");
    assert!(TcpStream::connect(node.address("fake", 8080)).is_err());
}

#[test]
fn a_program_that_cannot_listen_and_declares_a_port_is_told_at_once() {
    let node = Node::new();
    node.load(&["probe", "probe-p1"]);
    for guest in ["probe", "probe-p1"] {
        let mut waits = probe(&["sleep 60000"]);
        waits["image"] = image(guest).into();
        waits["ports"] = json!([{ "containerPort": 8080 }]);
        node.start(&[pod(guest, [waits])]);
    }

    let told = until("a warning", || {
        Some(node.ok(&["describe", "probe-p1"])).filter(|text| text.contains("PortNotServed"))
    });

    assert!(
        told.contains("port 8080 is declared, and nothing in this module can listen"),
        "{told}"
    );
    // It has sockets of its own, used or not.
    assert!(!node.ok(&["describe", "probe"]).contains("PortNotServed"));
}

#[test]
fn two_containers_of_a_pod_cannot_be_given_one_port() {
    let node = Node::new();
    node.load(&["go-http", "hello-http"]);
    let mut second = container("second", "go-http");
    second["ports"] = json!([{ "containerPort": 8080 }]);
    let both = pod("both", [container("first", "hello-http"), second]);
    node.start(&[both.with("/spec/restartPolicy", "Always".into())]);

    let told = until("a refusal", || {
        Some(node.ok(&["describe", "both"])).filter(|text| text.contains("CreateContainerError"))
    });

    assert!(told.contains("port 8080 is held by container"), "{told}");
}

#[test]
fn a_module_with_wasmedge_s_sockets_serves_connects_and_looks_up_names() {
    let node = Node::new();
    node.load(&["wasmedge-sockets", "udp-echo"]);
    node.start(&[
        server("echo", "wasmedge-sockets", 7000),
        pod("datagrams", [container("server", "udp-echo")]),
    ]);
    let address = waits_for(&node, "echo", 7000);
    let sent: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();

    assert!(echoed(address, &sent) == sent);
    until("its log", || node.logs("echo", "server").contains("100000 bytes").then_some(()));
    node.wait_ready("datagrams");
    let datagrams = node.address("datagrams", 7000);
    let exec = |args: &[&str]| {
        let program = ["exec", "echo", "--", "wasmedge-sockets"];
        node.ok(&[&program[..], args].concat())
    };
    let said = exec(&["tcp", &address.to_string(), "hello"]);
    assert!(said.contains(&format!("{address} answered: hello")), "{said}");
    let said = exec(&["tcp", "localhost:7000", "hello"]);
    assert!(said.contains("127.0.0.1:7000 answered: hello"), "{said}");
    let said = exec(&["udp", &datagrams.to_string(), "hello"]);
    assert!(said.contains(&format!("{datagrams} answered: hello")), "{said}");
    let said = exec(&["names", "localhost"]);
    assert!(said.contains("localhost is 127.0.0.1"), "{said}");
    let refused = node.run(&["exec", "echo", "--", "wasmedge-sockets", "tcp", "127.0.0.1:9", "x"]);
    assert_ne!(refused.code, Some(0), "{}", refused.stdout);
}

#[test]
fn components_of_javascript_and_python_answer_many_requests() {
    let node = Node::new();
    for (name, greeting) in
        [("js-http", "hello from JavaScript"), ("python-http", "hello from Python")]
    {
        node.start_example(name, &[name]);
        let address = waits_for(&node, name, 8080);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(move || {
                    let mut connection = http::Connection::open(address).expect("it listens");
                    for number in 0..10 {
                        let path = format!("/{number}");
                        let answer = connection.get(&path).expect("an answer");
                        assert_eq!(answer.status, 200, "{}", answer.text());
                        let text = answer.text();
                        assert!(
                            text.starts_with(greeting) && text.ends_with(&format!(" {path}\n")),
                            "{text}"
                        );
                    }
                });
            }
        });
        let status = node.pod(name).expect("it is there");
        assert_eq!(node::status(&status, "server")["restartCount"], 0);
    }
}

#[test]
fn commands_of_go_c_plus_plus_and_zig_read_files_and_end_with_their_codes() {
    let node = Node::new();
    node.load(&["go-http", "cpp-hello", "zig-hello"]);
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "text" },
        "data": { "lines": "pear\napple\nfig\n" },
    });
    let run = |name: &str, args: &[&str]| {
        let mut command = container("command", name);
        command["args"] = json!(args);
        command["resources"]["limits"]["memory"] = "128Mi".into();
        command["volumeMounts"] = json!([{ "name": "text", "mountPath": "/text" }]);
        let pod = pod(name, [command])
            .with("/spec/volumes", json!([{ "name": "text", "configMap": { "name": "text" } }]));
        node.run_to_end(&[config.clone(), pod])
    };

    let go = run("go-http", &["cat", "/text/lines"]);
    assert_eq!(go.code, Some(0), "{}", go.stderr);
    assert!(go.stdout.contains("apple"), "{}", go.stdout);
    let go = run("go-http", &["exit", "255"]);
    assert_eq!(go.code, Some(255), "{}", go.stderr);
    let cpp = run("cpp-hello", &["/text/lines"]);
    assert_eq!(cpp.code, Some(3), "{}", cpp.stderr);
    let order: Vec<_> =
        ["apple", "fig", "pear"].iter().map(|fruit| cpp.stdout.find(fruit)).collect();
    assert!(order.is_sorted() && order[0].is_some(), "{}", cpp.stdout);
    let zig = run("zig-hello", &["one", "42"]);
    assert_eq!(zig.code, Some(42), "{}", zig.stderr);
    assert!(zig.stdout.contains("arg one"), "{}", zig.stdout);
}
