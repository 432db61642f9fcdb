//! Each example of examples/ runs as its manifest says, and nothing of it stays.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use copepod_tests::manifest::{With, container, example, pod, probe};
use copepod_tests::node::Node;
use copepod_tests::wait::until;
use copepod_tests::world::Namespace;
use copepod_tests::{host, http};
use serde_json::{Value, json};

#[test]
fn a_command_component_s_log_is_shown_and_its_success_is_the_run_s() {
    let node = Node::new();
    node.load(&["probe"]);

    let ended =
        node.run_to_end(&[pod("greeter", [probe(&["print hello", "eprint aside", "exit 0"])])]);

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("hello"), "{}", ended.stdout);
    assert!(format!("{}{}", ended.stdout, ended.stderr).contains("aside"));
}

#[test]
fn the_run_ends_with_the_code_of_the_one_container_that_failed() {
    let node = Node::new();
    node.load(&["probe-p1"]);
    let mut failing = probe(&["print before", "exit 3"]);
    failing["image"] = copepod_tests::manifest::image("probe-p1").into();

    let ended = node.run_to_end(&[pod("failing", [failing])]);

    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stdout.contains("before"));
}

#[test]
fn a_namespace_s_name_may_be_as_long_as_kubernetes_allows() {
    let node = Node::new();
    node.load(&["probe"]);
    let namespace = "n".repeat(63);

    let ended = node.run_to_end(&[
        pod("far", [probe(&["print hello"])]).with("/metadata/namespace", namespace.into())
    ]);

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn a_batch_module_of_preview1_runs_to_its_end() {
    let node = Node::new();
    node.load(&["batch"]);

    let ended = node.run(&["run", &example("batch")]);

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("78498 primes below 1000000"), "{}", ended.stdout);
}

#[test]
fn the_probe_s_own_example_finds_everything_as_its_manifest_says() {
    let node = Node::new();
    node.load(&["probe"]);

    let ended = node.run(&["run", &example("probe")]);

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn an_http_component_answers_behind_its_pod_address() {
    let node = Node::new();
    node.start_example("hello-http", &["hello-http"]);
    node.wait_ready("hello-http");

    let mut connection =
        http::Connection::open(node.address("hello-http", 8080)).expect("it listens");

    for _ in 0..3 {
        let answer = connection.get("/").expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello from copepod\n"));
    }
}

#[test]
fn a_pod_of_two_shares_its_localhost_and_a_volume() {
    let node = Node::new();
    node.start_example("pod-of-two", &["pod-of-two-app", "pod-of-two-sidecar"]);
    node.wait_ready("pod-of-two");
    let address = node.address("pod-of-two", 8080);

    let page = http::get(address, "/").expect("an answer");
    let said = http::get(address, "/sidecar").expect("an answer");

    assert_eq!(page.text(), "this page was written by the sidecar\n");
    assert_eq!(said.text(), "the sidecar says: you are request 1\n");
    assert!(node.logs("pod-of-two", "sidecar").contains("answered request 1"));
    let outside = TcpStream::connect(node.address("pod-of-two", 9000));
    assert!(outside.is_err(), "the sidecar listens on the pod's localhost only");
}

#[test]
fn an_axum_server_listens_by_itself_and_a_slow_request_holds_up_nobody() {
    let node = Node::new();
    node.start_example("axum", &["axum"]);
    node.wait_ready("axum");
    let address = node.address("axum", 8080);

    a_slow_request_holds_up_nobody(address);
}

/// Of the axum example, for whichever target it is built.
pub(crate) fn a_slow_request_holds_up_nobody(address: SocketAddr) {
    let slow = std::thread::spawn(move || http::get(address, "/slow"));
    let quick = http::get(address, "/").expect("an answer");

    assert_eq!(quick.text(), "hello from axum in wasm\n");
    let slow = slow.join().expect("no panic").expect("an answer");
    assert_eq!(slow.text(), "slow, but not in the way\n");
}

#[test]
fn a_tcp_echo_sends_back_what_it_gets() {
    let node = Node::new();
    node.start_example("tcp-echo", &["tcp-echo"]);
    node.wait_ready("tcp-echo");
    let address = node.address("tcp-echo", 7000);
    let mut stream = until("the echo to listen", || TcpStream::connect(address).ok());

    let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    let mut writer = stream.try_clone().expect("a second handle");
    let payload = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&payload).expect("it is read");
        writer.shutdown(Shutdown::Write).expect("connected");
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("it comes back");

    writing.join().expect("no panic");
    assert!(got == sent, "{} bytes of {} came back", got.len(), sent.len());
}

#[test]
fn a_udp_echo_sends_back_each_datagram() {
    let node = Node::new();
    node.start_example("udp-echo", &["udp-echo"]);
    node.wait_ready("udp-echo");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a valid time");
    socket.connect(node.address("udp-echo", 7000)).expect("a route");

    let mut buffer = [0; 64];
    let echoed = until("an echo", || {
        // Refused while it does not listen yet; lost now and then.
        socket.send(b"a datagram").ok()?;
        socket.recv(&mut buffer).ok()
    });

    assert_eq!(&buffer[..echoed], b"a datagram");
}

#[test]
fn a_wasm_file_runs_without_any_manifest_and_is_published_on_the_host() {
    let node = Node::new();
    let guest = node.built().guest("hello-http");
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|it| it.local_addr())
        .expect("a free port");

    node.ok(&[
        "run",
        guest.to_str().expect("text"),
        "--detach",
        "--publish",
        &format!("{}:8080", free.port()),
    ]);

    let answer = until("an answer on the host's port", || http::get(free, "/").ok());
    assert_eq!(answer.text(), "hello from copepod\n");
}

#[test]
fn two_data_directories_live_side_by_side() {
    let (one, other) = (Node::new(), Node::new());
    one.start_example("hello-http", &["hello-http"]);
    other.start_example("hello-http", &["hello-http"]);
    one.wait_ready("hello-http");
    other.wait_ready("hello-http");
    let (here, there) = (one.address("hello-http", 8080), other.address("hello-http", 8080));

    assert_ne!(here.ip(), there.ip());
    let neighbour = other.agent();
    one.kill_agent();
    one.wait_ready("hello-http");
    assert_eq!(other.agent(), neighbour, "an agent died of its neighbour's end");
    assert_eq!(one.stop_all(), Vec::<String>::new());

    // The stopped one is not asked: its address is no pod's any more, and is routed to the outside.
    assert_eq!(http::get(there, "/").expect("the other still answers").status, 200);
}

/// The pods of a manifest, on a machine whose pods have addresses of these blocks; each pod's addresses.
fn with_blocks(node: &Node, blocks: &str, pods: &[Value]) -> Vec<Vec<IpAddr>> {
    let file = node.write("pods.yaml", copepod_tests::manifest::all(pods));
    let mut run = node.copepod(&["run", "--detach", &file]);
    let ended = run.env("COPEPOD_POD_CIDR", blocks).output().expect("it starts");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let addresses = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().expect("a name");
        let there = node.wait_ready(name);
        let all = there["status"]["podIPs"].as_array().expect("addresses").clone();
        let ip = |it: &Value| it["ip"].as_str().and_then(|ip| ip.parse().ok()).expect("an address");
        all.iter().map(ip).collect()
    };
    pods.iter().map(addresses).collect()
}

#[test]
fn a_pod_serves_at_its_addresses_of_both_families_and_of_ipv6_alone() {
    for (blocks, families) in [("10.199.20.0/24,fd00:c0de:20::/64", 2), ("fd00:c0de:21::/64", 1)] {
        // What is in it goes with it.
        let network = Namespace::new();
        network.ip(&["link", "set", "lo", "up"]);
        let node = Node::new().in_network(&network.file());
        node.load(&["hello-http", "probe"]);
        let web = container("app", "hello-http")
            .with("/readinessProbe", json!({ "httpGet": { "path": "/", "port": 8080 } }));
        let pods = [
            pod("web", [web]),
            pod("ear", [probe(&["listen [::]:7000"])]),
            pod("udp-ear", [probe(&["udp-listen [::]:7000"])]),
        ];
        let addresses = with_blocks(&node, blocks, &pods);

        let v6 = |of: usize| *addresses[of].last().expect("an address");
        assert!(addresses.iter().all(|all| all.len() == families), "{addresses:?}");
        assert!(v6(0).is_ipv6() && (families == 1) != addresses[0][0].is_ipv4());
        let all = addresses[0].clone();
        let answers = network.spawn(move || {
            let status = |ip: &IpAddr| {
                http::get(SocketAddr::new(*ip, 8080), "/").expect("it answers").status
            };
            all.iter().map(status).collect::<Vec<_>>()
        });
        assert_eq!(answers.join().expect("it does not panic"), vec![200; families]);
        let to = |of: usize, port| SocketAddr::new(v6(of), port);
        let ended = node.run_to_end(&[pod(
            "caller",
            [probe(&[
                &format!("http-get {}", to(0, 8080)),
                &format!("echo {} hello", to(1, 7000)),
                &format!("udp-echo {} hello", to(2, 7000)),
                "resolve-is localhost 127.0.0.1,::1",
                "bind [::]:9 ok",
                "bind 0.0.0.0:9 ok",
                "bind [::1]:10 ok",
                "bind 127.0.0.1:11 ok",
                "connect [::1]:12 refused",
                "connect [fe80::1]:80 denied",
                "connect [ff02::1]:80 failed",
            ])],
        )]);
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        let heard = node.logs("ear", "probe");
        assert!(heard.contains("= connection from [fd00:c0de:"), "{heard}");
        node.stop_all();
        let left = network.ip(&["-6", "route", "show", "table", "all", "protocol", "67"]);
        assert_eq!(left, "", "nothing is left");
    }
}

#[test]
fn an_agent_whose_last_pod_ended_by_itself_goes_and_leaves_nothing_on_the_machine() {
    let node = Node::new();
    node.load(&["batch"]);
    assert_eq!(node.run(&["run", &example("batch")]).code, Some(0));
    let mark = node.mark();

    until("the agent to go", || node.agent().is_none().then_some(()));

    assert_eq!(host::leftovers(&mark), Vec::<String>::new());
}

#[test]
fn a_node_whose_last_pod_is_stopped_leaves_nothing_on_the_machine() {
    let node = Node::new();
    node.start_example("pod-of-two", &["pod-of-two-app", "pod-of-two-sidecar"]);
    node.wait_ready("pod-of-two");
    assert!(node.agent().is_some() && !node.runners().is_empty());

    let left = node.stop_all();

    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_grpc_probe_makes_a_pod_ready_by_its_health_and_tells_why_it_is_not() {
    let node = Node::new();
    node.load(&["http-cases"]);
    let served = |name: &str, service: &str| {
        let mut server = container("server", "http-cases");
        server["ports"] = json!([{ "containerPort": 8080 }]);
        server["readinessProbe"] =
            json!({ "grpc": { "port": 8080, "service": service }, "periodSeconds": 1 });
        pod(name, [server]).with("/spec/restartPolicy", "Always".into())
    };
    node.start(&[served("well", "shop.Cart"), served("ill", "sick")]);

    node.wait_ready("well");
    let told = until("a warning", || {
        Some(node.ok(&["describe", "ill"])).filter(|text| text.contains("Unhealthy"))
    });

    assert!(told.contains(r#"service unhealthy (responded with "NOT_SERVING")"#), "{told}");
}

#[test]
fn a_pod_with_a_subdomain_finds_itself_by_its_whole_name() {
    let node = Node::new();
    node.load(&["probe"]);
    let whole = "db-0.db.shop.svc.cluster.local";
    let named = |name: &str, fqdn: bool, script: &[&str]| {
        pod(name, [probe(script)])
            .with("/metadata/namespace", "shop".into())
            .with("/spec/hostname", "db-0".into())
            .with("/spec/subdomain", "db".into())
            .with("/spec/setHostnameAsFQDN", fqdn.into())
    };
    let own = format!("env-is HOSTNAME {whole}");
    let resolve = format!("resolve {whole}");

    let plain = node.run_to_end(&[named(
        "plain",
        false,
        &["env-is HOSTNAME db-0", &resolve, "resolve db-0", "end-if-failed"],
    )]);
    let whole = node.run_to_end(&[named("whole", true, &[&own, &resolve, "end-if-failed"])]);

    assert_eq!(plain.code, Some(0), "{}{}", plain.stdout, plain.stderr);
    assert_eq!(whole.code, Some(0), "{}{}", whole.stdout, whole.stderr);
}
