//! `ports[].hostPort` of a cluster's pods: what the node's own machine and others reach, through every fault.
//!
//! Absent: what holds without a cluster too (`host_ports` above).

use std::process::Command;

use copepod_tests::caller::{Caller, HERE};
use copepod_tests::cluster::settings::Settings;
use copepod_tests::cluster::{Cluster, assets};
use copepod_tests::machines::{Machines, SWITCH};
use copepod_tests::manifest::{With, pod, probe};
use copepod_tests::node::status;
use copepod_tests::wait::{until, until_it_is};
use serde_json::{Value, json};

use super::nodes::Member;

/// The port of the node.
const PORT: u16 = 8000;

/// An echo at [`PORT`] of the node, for TCP and for UDP, bound to it by name, past the scheduler.
fn echo(name: &str, node: &str) -> Value {
    let at =
        |protocol: &str| json!([{ "containerPort": 7000, "hostPort": PORT, "protocol": protocol }]);
    let named = |name: &str, script: &str| probe(&[script]).with("/name", json!(name));
    pod(
        name,
        [
            named("tcp", "listen 7000").with("/ports", at("TCP")),
            named("udp", "udp-listen 7000").with("/ports", at("UDP")),
        ],
    )
    .with("/spec/nodeName", json!(node))
}

/// The table of the node's ports; empty where there is none.
fn table(member: &Member) -> String {
    let mark = member.node.mark();
    let name = format!("copepod-{}-ports", mark.id.as_deref().unwrap_or_default());
    let network = format!("--net={}", member.machine.network.file().display());
    let mut nft = Command::new("nsenter");
    nft.args([&network, "--"]).arg(&mark.nft).args(["list", "table", "inet", &name]);
    String::from_utf8_lossy(&nft.output().expect("nsenter of util-linux").stdout).into_owned()
}

#[test]
fn a_node_s_port_leads_to_its_pod_also_while_the_agent_is_dead_and_to_nobody_after_it() {
    let machines = Machines::enter();
    let settings = Settings { address: SWITCH, ..Settings::default() };
    let programs = assets().expect("the programs of a control plane");
    let cluster = Cluster::start(&programs, &settings).expect("a control plane");
    let (one, beyond) = (machines.machine(11), machines.machine(12));
    let mut member = Member::join(&cluster, "ported", &one);
    let wait = |member: &Member, name: &str, phase: &str| {
        let get = || member.get("pod", name);
        until_it_is(phase, get, |pod| pod["status"]["phase"] == phase, |pod| pod.to_string())
    };
    cluster.apply(&[echo("first", "ported")]);
    wait(&member, "first", "Running");
    let (outside, here) = (Caller::at(&beyond.network), Caller::at(&one.network));

    // From another machine the caller's own address is seen; from the node itself its loopback serves too.
    let from = [outside.tcp((one.address, PORT)), outside.udp((one.address, PORT))];
    let said =
        |container: &str| member.node.run(&["logs", "first", "--container", container]).stdout;
    until("the callers' own addresses", || {
        let has =
            |container: &str, caller: usize| said(container).contains(&from[caller].to_string());
        (has("tcp", 0) && has("udp", 1)).then_some(())
    });
    for address in [one.address, HERE] {
        here.tcp((address, PORT));
        here.udp((address, PORT));
    }

    // What somebody has, or is the node's own, is no other pod's.
    let kubelet = json!([{ "containerPort": 7000, "hostPort": 10250 }]);
    let kubelet = pod("kubelet", [probe(&["listen 7000"]).with("/ports", kubelet)]);
    cluster.apply(&[echo("second", "ported"), kubelet.with("/spec/nodeName", json!("ported"))]);
    let second = wait(&member, "second", "Failed");
    assert_eq!(second["status"]["reason"], "NodePorts");
    let why = "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    assert_eq!(second["status"]["message"], why);
    let waits =
        |pod: &Value| status(pod, "probe")["state"]["waiting"]["reason"] == "UnsupportedPod";
    let get = || member.get("pod", "kubelet");
    let refused = until_it_is("refused", get, waits, |pod| pod.to_string());
    let why = status(&refused, "probe")["state"]["waiting"]["message"].to_string();
    assert!(
        why.contains(
            "spec.containers[0].ports[0].hostPort: 10250 is the port of the node's own API"
        ),
        "{why}"
    );

    // The agent is killed: the kernel goes on, and the next agent declares the same.
    let before = table(&member);
    assert!(before.contains("map any-ip"), "{before}");
    member.kill();
    outside.tcp((one.address, PORT));
    outside.udp((one.address, PORT));
    member.begin();
    outside.tcp((one.address, PORT));
    assert_eq!(table(&member), before);
    let told = member.node.ok(&["node", "--explain"]);
    let is_there = |line: &str| line.starts_with("present  nftables ") && line.contains("-ports");
    assert!(told.lines().any(is_there), "{told}");

    // Deleted while the agent is dead, a pod has no port with the next one; and the port is the next pod's.
    member.kill();
    cluster.ok(&["delete", "pod", "first", "--wait=false"]);
    member.begin();
    until("the port to be free", || table(&member).is_empty().then_some(()));
    assert!(!outside.reaches((one.address, PORT)));
    cluster.apply(&[echo("third", "ported")]);
    wait(&member, "third", "Running");
    outside.tcp((one.address, PORT));
    outside.udp((one.address, PORT));

    member.kill();
    member.node.ok(&["node", "reset"]);
    assert_eq!(table(&member), "");
    assert!(!outside.reaches((one.address, PORT)));
}
