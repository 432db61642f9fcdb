//! `ports[].hostPort` without a cluster: a port of the machine leads to the pod, from outside and from the machine itself.
//!
//! Each node is on a machine of its own, as far as networks go. Absent: what a cluster adds (`kube/host_ports`).

use std::process::{Command, Output};

use copepod_tests::caller::{Caller, HERE, is_answered};
use copepod_tests::machines::{Machine, Machines};
use copepod_tests::manifest::{With, all, pod, probe};
use copepod_tests::node::{Ended, Node};
use copepod_tests::wait::until;
use serde_json::{Value, json};

/// An echo at this port of the machine, for TCP and for UDP.
fn echo(name: &str, host_port: u16) -> Value {
    let at = |protocol: &str| json!([{ "containerPort": 7000, "hostPort": host_port, "protocol": protocol }]);
    let named = |name: &str, script: &str| probe(&[script]).with("/name", json!(name));
    pod(
        name,
        [
            named("tcp", "listen 7000").with("/ports", at("TCP")),
            named("udp", "udp-listen 7000").with("/ports", at("UDP")),
        ],
    )
}

fn on(machine: &Machine) -> Node {
    let node = Node::new().in_network(&machine.network.file());
    node.load(&["probe"]);
    node
}

/// The tables of the packet filter of a machine.
fn tables(node: &Node, machine: &Machine) -> String {
    let mut nft = Command::new("nsenter");
    nft.arg(format!("--net={}", machine.network.file().display())).arg("--");
    let listed = nft.arg(&node.built().nft).args(["list", "ruleset"]).output();
    let Output { stdout, .. } = listed.expect("nsenter of util-linux");
    String::from_utf8_lossy(&stdout).into_owned()
}

#[test]
fn a_port_of_the_machine_leads_to_a_pod_from_outside_and_from_here_and_is_free_again_after_it() {
    let machines = Machines::enter();
    let (one, beyond) = (machines.machine(11), machines.machine(12));
    let node = on(&one);
    node.start(&[echo("first", 8000)]);
    node.wait_ready("first");
    let (outside, here) = (Caller::at(&beyond.network), Caller::at(&one.network));

    let from = [outside.tcp((one.address, 8000)), outside.udp((one.address, 8000))];

    let said = |container: &str| node.logs("first", container);
    until("the callers' own addresses", || {
        let has =
            |container: &str, caller: usize| said(container).contains(&from[caller].to_string());
        (has("tcp", 0) && has("udp", 1)).then_some(())
    });
    for address in [one.address, HERE] {
        here.tcp((address, 8000));
        here.udp((address, 8000));
    }

    // The agent is killed: what leads to the pod goes on, and is what the next agent declares.
    let before = tables(&node, &one);
    assert!(before.contains("-ports {"), "{before}");
    node.kill_agent();
    outside.tcp((one.address, 8000));
    node.ok(&["ps"]);
    until("the next agent", || node.agent());
    outside.tcp((one.address, 8000));
    assert_eq!(tables(&node, &one), before);

    let left = node.stop_all();
    assert_eq!(left, Vec::<String>::new());
    assert!(!outside.reaches((one.address, 8000)), "nothing leads to it any more");
    assert_eq!(tables(&node, &one), "");
}

#[test]
fn a_pod_that_calls_a_port_of_its_own_machine_reaches_whoever_has_it_and_nothing_else_of_the_loopback()
 {
    let machines = Machines::enter();
    let one = machines.machine(11);
    let node = on(&one);
    node.start(&[echo("first", 8000), pod("second", [probe(&["forever sleep 1000"])])]);
    node.wait_ready("first");
    node.wait_ready("second");
    let there = format!("{}:8000", one.address);

    for caller in ["first", "second"] {
        node.ok(&["exec", caller, "--", "probe", &format!("echo {there} hello")]);
        node.ok(&["exec", caller, "--", "probe", &format!("udp-echo {there} hello")]);
    }
    let loopback = node.run(&["exec", "second", "--", "probe", "echo 127.0.0.1:8000 hello"]);

    assert_ne!(loopback.code, Some(0), "its own loopback, on which nobody listens");
}

#[test]
fn a_port_of_one_address_is_free_on_the_others() {
    let machines = Machines::enter();
    let (one, beyond) = (machines.machine(11), machines.machine(12));
    let node = on(&one);
    let at = |name: &str, ip: &str| {
        let ports = json!([{ "containerPort": 7000, "hostPort": 8000, "hostIP": ip }]);
        pod(name, [probe(&["listen 7000"]).with("/ports", ports)])
    };

    node.start(&[at("loopback", "127.0.0.1"), at("outside", &one.address.to_string())]);
    node.wait_ready("loopback");
    node.wait_ready("outside");

    let (outside, here) = (Caller::at(&beyond.network), Caller::at(&one.network));
    here.tcp((HERE, 8000));
    until("a caller", || node.logs("loopback", "probe").contains("connection from").then_some(()));
    let from = outside.tcp((one.address, 8000));
    let seen = until("a caller", || {
        Some(node.logs("outside", "probe")).filter(|said| said.contains("connection from"))
    });
    assert!(seen.contains(&from.to_string()), "{seen}");
    assert_eq!(node.logs("loopback", "probe").matches("connection from").count(), 1);
}

#[test]
fn a_caller_over_udp_that_keeps_its_socket_is_led_to_whoever_has_the_port_now() {
    let machines = Machines::enter();
    let (one, beyond) = (machines.machine(11), machines.machine(12));
    let node = on(&one);
    node.start(&[pod("other", [probe(&["forever sleep 1000"])])]);
    node.wait_ready("other");
    let socket = Caller::at(&beyond.network).udp_socket((one.address, 8000));

    // The kernel remembers each that was refused, and would go on so while it calls.
    assert!(!is_answered(&socket), "nobody has the port yet");
    for name in ["first", "second"] {
        node.start(&[echo(name, 8000)]);
        node.wait_ready(name);
        until(name, || is_answered(&socket).then_some(()));
        let from = socket.local_addr().expect("bound").to_string();
        until("the caller", || node.logs(name, "udp").contains(&from).then_some(()));
        node.ok(&["stop", name, "--grace", "0"]);
        assert!(!is_answered(&socket), "{name} has the port no more");
    }
}

#[test]
fn a_port_that_somebody_has_is_refused_by_the_field_and_by_whose_it_is() {
    let machines = Machines::enter();
    let one = machines.machine(11);
    let node = on(&one);
    let run = |object: Value, more: &[&str]| -> Ended {
        let file = node.write("refused.yaml", all(&[object]));
        node.run(&[&["run", "--detach", &file], more].concat())
    };
    node.start(&[echo("first", 8000)]);

    let second = run(echo("second", 8000), &[]);
    let published = run(pod("third", [probe(&["listen 7000"])]), &["--publish", "8000:7000"]);

    let whose = "port 8000 (TCP) is pod default/first's; take another, or stop that pod";
    assert_eq!(second.code, Some(125), "{}", second.stderr);
    let field = format!("pod \"second\": spec.containers[0].ports[0].hostPort: {whose}");
    assert!(second.stderr.contains(&field), "{}", second.stderr);
    assert!(second.stderr.contains("port 8000 (UDP) is pod default/first's"), "{}", second.stderr);
    assert_eq!(published.code, Some(125), "{}", published.stderr);
    let field = "--publish 127.0.0.1:8000: port 8000 of 127.0.0.1 (TCP) is pod default/first's";
    assert!(published.stderr.contains(field), "{}", published.stderr);
    // Free again, it is the next one's.
    node.ok(&["stop", "first", "--grace", "0"]);
    assert_eq!(run(echo("second", 8000), &[]).code, Some(0));
}

#[test]
fn where_no_port_can_lead_to_a_pod_it_is_refused_with_what_to_do() {
    let node = Node::new();
    node.load(&["probe"]);
    let file = node.write("without.yaml", all(&[echo("first", 8000)]));
    let mut without = node.copepod(&["run", "--detach", &file]);
    let without: Ended = without.env("COPEPOD_NFT", "/none").output().expect("it starts").into();
    let user = Node::of_an_ordinary_user();
    user.load(&["probe"]);
    let of_user =
        user.run(&["run", "--detach", &user.write("user.yaml", all(&[echo("first", 8000)]))]);

    for (ended, remedy) in
        [(without, "apt install nftables"), (of_user, "publish with `copepod run --publish`")]
    {
        assert_eq!(ended.code, Some(125), "{}", ended.stderr);
        assert!(
            ended.stderr.contains("spec.containers[0].ports[0].hostPort: "),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.contains(remedy), "{}", ended.stderr);
    }
}
