//! Clusters of both families and of IPv6 alone: a pod has an address of each, and is the same pod at all of them.
//!
//! Each has a control plane of its own and a machine with a network of its own. Absent: pods of several nodes ([`super::nodes`]).

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Stdio;

use copepod_tests::cluster::settings::Settings;
use copepod_tests::cluster::{Cluster, assets};
use copepod_tests::http::get;
use copepod_tests::machines::{Machine, Machines, SWITCH, SWITCH_V6};
use copepod_tests::manifest::{With, container, pod, probe};
use copepod_tests::node::{Node as OurNode, is_ready};
use copepod_tests::wait::until;
use serde_json::{Value, json};

use super::running::Joined;

/// The port of the Deployment's pod.
const PORT: u16 = 8080;

/// A Deployment of one pod that serves HTTP and is ready once its probe has been answered.
fn deployment() -> Value {
    let app = container("app", "hello-http")
        .with("/ports", json!([{ "containerPort": PORT }]))
        .with(
            "/readinessProbe",
            json!({ "httpGet": { "path": "/", "port": PORT }, "periodSeconds": 1 }),
        )
        .with("/livenessProbe", json!({ "tcpSocket": { "port": PORT }, "periodSeconds": 1 }));
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": {
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [app] },
            },
        },
    })
}

fn ips(of: &Value) -> Vec<IpAddr> {
    let all = of.as_array().into_iter().flatten();
    all.map(|it| it["ip"].as_str().and_then(|ip| ip.parse().ok()).expect("an address")).collect()
}

/// A node in such a cluster, and the ways from the tests to its pods.
fn with_node(
    settings: &Settings,
    name: &str,
    node_ips: impl Fn(&Machine) -> String,
    test: impl FnOnce(&Joined<'_>, &Machine),
) {
    let programs = assets().expect("the programs of a control plane");
    let machines = Machines::enter();
    let cluster = Cluster::start(&programs, settings).expect("a control plane");
    let machine = machines.machine(11);
    let node = OurNode::new().in_network(&machine.network.file());
    node.load(&["hello-http", "probe"]);
    let node_ips = node_ips(&machine);
    let joined = Joined::start_in(&cluster, node, name, &["--node-ip", &node_ips]);
    let told = joined.get("node", name);
    for block in told["spec"]["podCIDRs"].as_array().into_iter().flatten() {
        machines.lead(block.as_str().expect("a block"), &machine);
    }
    joined.approve_serving();

    test(&joined, &machine);

    assert_eq!(joined.denials(), Vec::<String>::new());
}

/// What holds of a pod whatever its families: it answers at each address, to probes, by port-forward and by exec, and knows its addresses.
fn is_the_same_pod_at_each_address(node: &Joined<'_>, expected: usize, host_ips: &[IpAddr]) {
    node.apply(&[deployment()]);
    let web = node.wait_ready(1).remove(0);
    let name = web["metadata"]["name"].as_str().expect("a name").to_owned();

    let all = ips(&web["status"]["podIPs"]);
    assert_eq!(all.len(), expected, "{}", web["status"]);
    assert_eq!(web["status"]["podIP"], all[0].to_string());
    assert_eq!(ips(&web["status"]["hostIPs"]), host_ips);
    let told = node.kubectl(&["get", "pod", &name, "--output", "jsonpath={.status.podIPs[*].ip}"]);
    assert_eq!(told, all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" "));
    for ip in &all {
        let answer = get(SocketAddr::new(*ip, PORT), "/").expect("it answers");
        assert_eq!(answer.status, 200, "{ip}");
    }

    let forward = ["--namespace", &node.name, "port-forward", &name, &format!(":{PORT}")];
    let mut command = node.cluster.kubectl_command(node.cluster.admin(), &forward);
    let mut kubectl = command.stdout(Stdio::piped()).spawn().expect("kubectl starts");
    let out = kubectl.stdout.take().expect("it is piped");
    // Kept until the end, as kubectl writes a line for each connection.
    let mut lines = BufReader::new(out).lines();
    let line = lines.next().expect("it says where").expect("text");
    let at = line.split_whitespace().nth(2).and_then(|at| at.parse().ok()).expect("an address");
    let answer = get(at, "/");
    let _ = kubectl.kill();
    let _ = kubectl.wait();
    drop(lines);
    assert_eq!(answer.expect("it answers").status, 200, "{line}");

    let env = |name: &str, field: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": field } } });
    let fields = [env("POD_IPS", "status.podIPs"), env("HOST_IPS", "status.hostIPs")];
    let told = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let calls = all.iter().map(|ip| format!("http-get {}", SocketAddr::new(*ip, PORT)));
    let script: Vec<String> = calls
        .chain([format!("env-is HOST_IPS {}", told(host_ips)), "sleep 600000".to_owned()])
        .collect();
    let script: Vec<&str> = script.iter().map(String::as_str).collect();
    node.apply(&[pod("caller", [probe(&script).with("/env", json!(fields))])]);
    let caller = node.wait("caller", "ready", is_ready);
    let own = told(&ips(&caller["status"]["podIPs"]));
    let exec = |statement: &str| node.kubectl(&["exec", "caller", "--", "probe", statement]);
    exec(&format!("env-is POD_IPS {own}"));
    // What leaves the cluster bears the node's address of its family.
    for &own in host_ips {
        let switch = if own.is_ipv4() { SWITCH } else { SWITCH_V6 };
        let listener = TcpListener::bind((switch, 0)).expect("bound");
        let at = listener.local_addr().expect("bound");
        exec(&format!("connect {at} ok"));
        assert_eq!(listener.accept().expect("connected").1.ip(), own, "masqueraded");
    }
    let mut names: Vec<String> = own.split(',').map(str::to_owned).collect();
    names.sort();
    exec(&format!("resolve-is caller {}", names.join(",")));
}

#[test]
fn a_pod_of_a_dual_stack_cluster_is_the_same_at_both_addresses() {
    let settings = Settings { address: SWITCH, ..Settings::dual_stack() };
    let both = |machine: &Machine| format!("{},{}", machine.address, machine.address_v6);
    with_node(&settings, "dual", both, |node, machine| {
        let there = node.get("node", "dual");
        let internal: Vec<&str> = there["status"]["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|it| it["type"] == "InternalIP")
            .filter_map(|it| it["address"].as_str())
            .collect();
        assert_eq!(internal, [machine.address.to_string(), machine.address_v6.to_string()]);

        is_the_same_pod_at_each_address(node, 2, &[machine.address, machine.address_v6]);

        // Both loopbacks, and UDP by both.
        let script = ["udp-listen [::]:5000"];
        node.apply(&[pod("ear", [probe(&script)])]);
        let ear = node.wait("ear", "ready", is_ready);
        until("it listens", || {
            let told = node.kubectl(&["logs", "ear"]);
            told.contains("listening on").then_some(())
        });
        let to = SocketAddr::new(ips(&ear["status"]["podIPs"])[1], 5000);
        node.kubectl(&["exec", "caller", "--", "probe", &format!("udp-echo {to} hello")]);
        for own in machine.network.ip(&["-o", "address", "show", "dev", "lo"]).lines() {
            let Some(gateway) = own.split_whitespace().nth(3).and_then(|it| it.split('/').next())
            else {
                continue;
            };
            let Ok(ip) = gateway.parse::<IpAddr>() else { continue };
            let to = SocketAddr::new(ip, 10250);
            let wanted = if ip.is_loopback() { "refused" } else { "denied" };
            let statement = format!("connect {to} {wanted}");
            node.kubectl(&["exec", "caller", "--", "probe", &statement]);
        }
    });
}

#[test]
fn a_pod_of_a_cluster_of_ipv6_alone_is_reached_probed_and_told_of_by_it() {
    let settings = Settings { address: SWITCH_V6, ..Settings::ipv6() };
    let own = |machine: &Machine| machine.address_v6.to_string();
    with_node(&settings, "six", own, |node, machine| {
        is_the_same_pod_at_each_address(node, 1, &[machine.address_v6]);

        let exec = |statement: &str| node.kubectl(&["exec", "caller", "--", "probe", statement]);
        exec("bind 0.0.0.0:9000 ok");
        exec("connect 198.51.100.1:80 unreachable");
        exec("connect [fe80::1]:80 denied");
        exec(&format!("connect {} refused", SocketAddr::new(SWITCH_V6, 9)));
    });
}
