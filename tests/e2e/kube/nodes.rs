//! Several nodes, each on a machine of its own as far as networks go: their pods talk by their own addresses, without NAT.
//!
//! These have a control plane of their own, which the machines reach. Absent: what a node does with Node objects that make no sense,
//! which the plan's own tests tell.

// A failed test tells what its nodes said.
#![allow(clippy::print_stderr)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use copepod_tests::cluster::identity::Identity;
use copepod_tests::cluster::settings::Settings;
use copepod_tests::cluster::{Cluster, assets, shared};
use copepod_tests::machines::{Machine, Machines, SWITCH};
use copepod_tests::manifest::{pod, probe};
use copepod_tests::node::Node as OurNode;
use copepod_tests::wait::{until, until_it_is};
use serde_json::{Value, json};

use super::running::{Running, address, text};

/// A port of pods.
const PORT: u16 = 7000;

/// The block of the Linux machine's pods.
const LINUX_BLOCK: Ipv4Addr = Ipv4Addr::new(10, 244, 77, 0);

/// A node of ours on a machine of its own. Its pods are in the namespace `default`.
pub(super) struct Member<'a> {
    cluster: &'a Cluster,
    name: &'static str,
    pub(super) machine: &'a Machine,
    pub(super) node: OurNode,
    running: Option<Child>,
}

impl<'a> Member<'a> {
    pub(super) fn join(cluster: &'a Cluster, name: &'static str, machine: &'a Machine) -> Self {
        let node = OurNode::new().in_network(&machine.network.file());
        node.load(&["probe"]);
        allow(cluster, name);
        let mut member = Self { cluster, name, machine, node, running: None };
        member.begin();
        member
    }

    pub(super) fn begin(&mut self) {
        let kubeconfig = self.cluster.kubeconfig(&Identity::node(self.name)).expect("a kubeconfig");
        let log = self.node.scratch().join("node.log");
        let log = std::fs::File::options().create(true).append(true).open(&log).expect("a log");
        let mut command = self.node.copepod(&["node", "--node-name", self.name]);
        command.args(["--kubeconfig", text(&kubeconfig)]).stdout(Stdio::null()).stderr(log);
        self.running = Some(command.spawn().expect("the built program starts"));
        // A command that finds no agent would start one.
        let socket = self.node.data().join("agent.sock");
        until_it_is(
            "the node's agent to answer",
            || UnixStream::connect(&socket).is_ok(),
            |answers| *answers,
            |_| self.log(),
        );
        let ready = |node: &Value| {
            let all = node["status"]["conditions"].as_array();
            all.is_some_and(|all| {
                all.iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
            })
        };
        let told = |node: &Value| format!("{}\n{}", node["status"], self.log());
        until_it_is("the node to be ready", || self.get("node", self.name), ready, told);
    }

    /// Ends its process as a crash would.
    pub(super) fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.kill();
            let _ = running.wait();
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.node.scratch().join("node.log")).unwrap_or_default()
    }

    pub(super) fn get(&self, kind: &str, name: &str) -> Value {
        let told = self.cluster.kubectl(&["get", kind, name, "--output", "json"]);
        serde_json::from_str(&told.stdout).unwrap_or_default()
    }

    fn block(&self) -> String {
        self.get("node", self.name)["spec"]["podCIDR"].as_str().expect("a podCIDR").to_owned()
    }

    /// The podCIDR of the other family.
    fn second_block(&self) -> String {
        let node = self.get("node", self.name);
        node["spec"]["podCIDRs"][1].as_str().expect("two podCIDRs").to_owned()
    }

    /// Runs a pod on the node that does this; it, once it is as `phase` says.
    fn run(&self, name: &str, script: &[&str], phase: &str) -> Value {
        let mut object = pod(name, [probe(script)]);
        object["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": self.name });
        object["spec"]["tolerations"] =
            json!([{ "key": "node.kubernetes.io/disk-pressure", "operator": "Exists" }]);
        self.cluster.apply(&[object]);
        until_it_is(
            &format!("pod {name} to be {phase}"),
            || self.get("pod", name),
            |pod| pod["status"]["phase"] == phase,
            |pod| format!("{}\n{}\n{}", pod["status"], self.said(name), self.log()),
        )
    }

    /// A pod that sends back what it gets, and its address.
    fn echo(&self, name: &str) -> SocketAddr {
        let pod = self.run(name, &[&format!("listen {PORT}")], "Running");
        until("it listens", || self.said(name).contains("listening on").then_some(()));
        address(&pod, PORT)
    }

    /// The same at its second address, which is of IPv6.
    fn echo_v6(&self, name: &str) -> SocketAddr {
        let pod = self.run(name, &[&format!("listen [::]:{PORT}")], "Running");
        until("it listens", || self.said(name).contains("listening on").then_some(()));
        (second_ip(&pod), PORT).into()
    }

    /// What a pod's container wrote.
    fn said(&self, pod: &str) -> String {
        self.node.run(&["logs", pod, "--container", "probe"]).stdout
    }

    /// Who has connected to an echo, in order, once there were so many; its log follows a moment behind.
    fn callers(&self, echo: &str, count: usize) -> Vec<IpAddr> {
        let look = || {
            let said = self.said(echo);
            let lines = said.lines().filter_map(|line| line.strip_prefix("= connection from "));
            let from = |text: &str| text.parse::<SocketAddr>().expect("an address").ip();
            lines.map(from).collect::<Vec<_>>()
        };
        until_it_is("callers", look, |all| all.len() >= count, |all| format!("{all:?}"))
    }

    /// The routes of the machine that bear a node's mark.
    fn routes(&self) -> String {
        let of = |family| {
            let show = [family, "route", "show", "protocol", "67", "type", "unicast"];
            self.machine.network.ip(&show)
        };
        // Ways to other nodes' pods have two neighbours of the machine's; its own pods are behind links of a node's.
        let own = |line: &&str| line.contains("dev eth0");
        let all = of("-4") + &of("-6");
        all.lines().filter(own).map(|line| format!("{line}\n")).collect()
    }

    fn has_way(&self, block: &str, by: &Machine) -> bool {
        let gateway = if block.contains(':') { by.address_v6 } else { by.address };
        let way = format!("{block} via {gateway} dev eth0 ");
        self.routes().lines().any(|route| route.starts_with(&way))
    }
}

fn second_ip(pod: &Value) -> IpAddr {
    let ip = pod["status"]["podIPs"][1]["ip"].as_str().expect("two addresses");
    ip.parse().expect("an address")
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}\n{}", self.name, self.log(), self.routes());
        }
        self.kill();
    }
}

/// Lets a node see the others, as docs/join.md says.
fn allow(cluster: &Cluster, node: &str) {
    let (name, user) = (format!("copepod:node-proxier:{node}"), format!("system:node:{node}"));
    let role = ["--clusterrole", "system:node-proxier", "--user", &user];
    cluster.ok(&[["create", "clusterrolebinding", &name].as_slice(), &role].concat());
}

/// A node of the cluster whose pods are ordinary processes, as its network plugin tells of it.
fn linux_node(machine: &Machine) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "linux" },
        "spec": { "podCIDR": format!("{LINUX_BLOCK}/24"), "podCIDRs": [format!("{LINUX_BLOCK}/24")] },
        "status": { "addresses": [{ "type": "InternalIP", "address": machine.address.to_string() }] },
    })
}

#[test]
fn pods_of_two_nodes_talk_by_their_own_addresses_also_while_an_agent_is_dead() {
    let machines = Machines::enter();
    let settings = Settings { address: SWITCH, ..Settings::dual_stack() };
    let programs = assets().expect("the programs of a control plane");
    let cluster = Cluster::start(&programs, &settings).expect("a control plane");
    let (one, two) = (machines.machine(11), machines.machine(12));
    let mut left = Member::join(&cluster, "left", &one);
    let mut right = Member::join(&cluster, "right", &two);
    until("a way each", || {
        (left.has_way(&right.block(), &two) && right.has_way(&left.block(), &one)).then_some(())
    });
    until("a way each of IPv6", || {
        let both =
            left.has_way(&right.second_block(), &two) && right.has_way(&left.second_block(), &one);
        both.then_some(())
    });
    let (at_left, at_right) = (left.echo("echo-left"), right.echo("echo-right"));

    let caller = right.run(
        "caller",
        &[&format!("echo {at_left} over-there"), &format!("repeat 5 echo {at_left} again")],
        "Succeeded",
    );

    assert_eq!(left.callers("echo-left", 6), [address(&caller, 0).ip(); 6], "no NAT");

    let by_v6 = left.echo_v6("echo-v6");
    let caller_v6 = right.run(
        "caller-v6",
        &[&format!("echo {by_v6} over-there"), &format!("repeat 5 echo {by_v6} again")],
        "Succeeded",
    );
    assert_eq!(left.callers("echo-v6", 6), [second_ip(&caller_v6); 6], "no NAT");

    // What goes on while an agent is dead, and after.
    let talk = |from: &Member, pod: &str, to: SocketAddr| {
        from.node.ok(&["exec", pod, "--", "probe", &format!("echo {to} still-there")])
    };
    left.kill();
    talk(&right, "echo-right", at_left);
    talk(&right, "echo-right", by_v6);
    assert!(left.has_way(&right.block(), &two));
    left.begin();
    right.kill();
    talk(&left, "echo-left", at_right);
    right.begin();
    talk(&right, "echo-right", at_left);
    assert_eq!(left.callers("echo-left", 8)[6..], [at_right.ip(); 2], "no NAT after a crash");
    assert_eq!(right.callers("echo-right", 1), [at_left.ip()]);

    // What the node changed is told, and goes, and what is not its own stays.
    let told = left.node.ok(&["node", "--explain"]);
    let way = format!("{} via {} dev eth0 proto 67 metric ", right.block(), two.address);
    let is_way = |line: &str| line.starts_with("present  route ") && line.contains(&way);
    assert!(told.lines().any(is_way), "{told}");
    let v6 = format!("route     {} via {} dev eth0 proto 67", right.second_block(), two.address_v6);
    assert!(told.contains(&v6), "{v6}: {told}");
    for present in ["present  address ", "present  link ", "present  nftables  table inet copepod-"]
    {
        assert!(told.lines().any(|line| line.starts_with(present)), "{present}: {told}");
    }
    let foreign = ["10.99.0.0/24", "via", "192.0.2.12", "protocol", "67", "metric", "2147483649"];
    one.network.ip(&[["route", "add"].as_slice(), &foreign].concat());
    left.kill();
    left.node.ok(&["node", "reset"]);
    let routes = left.routes();
    assert!(routes.starts_with("10.99.0.0/24 ") && routes.lines().count() == 1, "{routes}");
    let told = left.node.ok(&["node", "--explain"]);
    let left_over: Vec<&str> = told
        .lines()
        .filter(|line| line.starts_with("present ") && !line.starts_with("present  file "))
        .filter(|line| !line.starts_with("present  setting "))
        .collect();
    assert_eq!(left_over, Vec::<&str>::new(), "but settings that others live by");
    for node in ["system:node:left", "system:node:right"] {
        let denials = cluster.denials(node);
        assert!(denials.iter().all(|it| it.resource() != "nodes"), "{denials:?}");
    }
}

#[test]
fn a_guest_and_an_ordinary_process_of_another_node_s_pod_talk_until_that_node_is_deleted() {
    let machines = Machines::enter();
    let settings = Settings { address: SWITCH, ..Settings::default() };
    let programs = assets().expect("the programs of a control plane");
    let cluster = Cluster::start(&programs, &settings).expect("a control plane");
    let (one, linux) = (machines.machine(11), machines.machine(13));
    let (process, linux_pod) = linux.container(LINUX_BLOCK);
    let ours = Member::join(&cluster, "ours", &one);
    cluster.apply(&[linux_node(&linux)]);
    // As the other node's network plugin does for each Node.
    linux.network.ip(&["route", "add", &ours.block(), "via", &one.address.to_string()]);
    let block = format!("{LINUX_BLOCK}/24");
    until("a way to the Linux node's pods", || ours.has_way(&block, &linux).then_some(()));

    let listener = process.spawn(move || TcpListener::bind((linux_pod, PORT)).expect("bound"));
    let listener = listener.join().expect("it does not panic");
    let caller = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().expect("a caller");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("its words");
        stream.write_all(said.as_bytes()).expect("an answer");
        from.ip()
    });
    let guest = ours.run("guest", &[&format!("echo {linux_pod}:{PORT} hello")], "Succeeded");
    assert_eq!(caller.join().expect("it does not panic"), address(&guest, 0).ip(), "no NAT");

    let echo = ours.echo("echo");
    let answer = process.spawn(move || {
        let mut stream = TcpStream::connect(echo).expect("the guest is reached");
        stream.write_all(b"hello").expect("sent");
        stream.shutdown(Shutdown::Write).expect("ended");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    });
    assert_eq!(answer.join().expect("it does not panic"), "hello");
    assert_eq!(ours.callers("echo", 1), [IpAddr::V4(linux_pod)], "no NAT");

    cluster.ok(&["delete", "node", "linux"]);
    until("the way to go", || (!ours.has_way(&block, &linux)).then_some(()));
}

#[test]
fn without_the_right_to_see_nodes_a_node_says_who_may_give_it_and_takes_it_when_it_comes() {
    let (cluster, node) = (shared(), OurNode::new());
    let kubeconfig = cluster.kubeconfig(&Identity::node("nodes-right")).expect("a kubeconfig");
    let arguments = ["--kubeconfig", text(&kubeconfig), "--node-name", "nodes-right"];
    let command = "kubectl create clusterrolebinding copepod:node-proxier:nodes-right --clusterrole system:node-proxier --user \
                   system:node:nodes-right";

    let running = Running::start(&node, &arguments);

    until("the missing right", || running.log().contains(command).then_some(()));
    assert_eq!(cluster.denials("system:node:nodes-right").len(), 0, "it asks whether it may");
    allow(cluster, "nodes-right");
    until("it to follow the nodes", || {
        running.log().contains("ways to other nodes' pods follow").then_some(())
    });
    let seen = until("a list of nodes", || {
        let all = cluster.audit();
        all.into_iter().find(|it| {
            let others = "fieldSelector=metadata.name%21%3Dnodes-right";
            it.user() == "system:node:nodes-right"
                && it.verb() == "list"
                && it.0["requestURI"].as_str().is_some_and(|uri| uri.contains(others))
        })
    });
    assert_eq!(seen.code(), 200);
    assert_eq!(cluster.denials("system:node:nodes-right").len(), 0);
    assert_eq!(running.log().matches(command).count(), 1, "it is said once");
    drop(running);
    cluster.kubectl(&["delete", "node", "nodes-right", "--wait=false"]);
}

#[test]
fn with_routes_off_a_node_asks_nobody_about_other_nodes() {
    let (cluster, node) = (shared(), OurNode::new());
    let kubeconfig = cluster.kubeconfig(&Identity::node("nodes-off")).expect("a kubeconfig");
    let arguments = ["--kubeconfig", text(&kubeconfig), "--node-name", "nodes-off"];

    let running = Running::start(&node, &[&arguments[..], &["--routes", "off"]].concat());

    until("it to say so", || {
        running.log().contains("other nodes' pods are the network's").then_some(())
    });
    assert!(!running.log().contains("may not list and watch nodes"));
    let asked = cluster.audit().into_iter().filter(|it| it.user() == "system:node:nodes-off");
    assert_eq!(asked.filter(|it| it.resource() == "selfsubjectaccessreviews").count(), 0);
    drop(running);
    cluster.kubectl(&["delete", "node", "nodes-off", "--wait=false"]);
}
