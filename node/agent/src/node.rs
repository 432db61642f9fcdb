//! What this machine has for pods, and what it tells them of itself.

use std::net::IpAddr;

use copepod_node::objects::{Allocatable, NodeFacts};
use copepod_node::quantity::Amount;
use copepod_node::resolve::Resolver;

use copepod_domain::Host;

use crate::config::AgentConfig;

/// Memory that is left to the machine itself, where nobody says how much pods may have: as much as a kubelet and its runtime take.
const RESERVED: u64 = 512 << 20;

/// The machine as its pods see it.
#[derive(Debug)]
pub(crate) struct NodeView {
    /// What `fieldRef` and `resourceFieldRef` may ask.
    pub(crate) facts: NodeFacts,
    /// Bytes of memory that a container without a limit may use.
    pub(crate) memory: u64,
    /// How guests resolve names, where their pod says nothing else.
    pub(crate) resolver: Resolver,
    /// The node's own addresses, which no guest reaches.
    pub(crate) denied: Vec<IpAddr>,
}

impl NodeView {
    pub(crate) fn of_this_machine(config: &AgentConfig, host: &Host) -> Self {
        let total = rustix::system::sysinfo().totalram as u64;
        let memory = config.allocatable_memory.unwrap_or(total.saturating_sub(RESERVED));
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let millis = config.allocatable_cpu_millis.unwrap_or(cores * 1000);
        let (name, ips, cluster_domain) = match &config.cluster {
            Some(node) => (node.name.clone(), node.ips.clone(), node.domain.clone()),
            None => {
                let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
                (name, host.gateways(), "cluster.local".to_owned())
            }
        };
        let (found, search) = resolv_conf();
        let servers = config.name_servers.clone().unwrap_or(found);
        let allocatable = Allocatable {
            cpu: Amount::millis(millis.into()),
            memory: Amount::units(memory),
            ephemeral_storage: Amount::units(0),
        };
        let facts = NodeFacts { name, ips, allocatable, cluster_domain };
        // As `/etc/resolv.conf` without an `ndots`.
        let resolver = Resolver { servers, search, ndots: 1 };
        Self { facts, memory, resolver, denied: host.gateways() }
    }
}

/// Where systemd's resolver keeps the servers that it asks itself, while `/etc/resolv.conf` names its own loopback address only.
const BEHIND_SYSTEMD: &str = "/run/systemd/resolve/resolv.conf";

/// Name servers and search domains of the host, but servers on its loopback, which no pod reaches.
fn resolv_conf() -> (Vec<IpAddr>, Vec<String>) {
    let read = |file: &str| parse(&std::fs::read_to_string(file).unwrap_or_default());
    let (servers, search) = read("/etc/resolv.conf");
    // As kubeadm has a kubelet do.
    if servers.is_empty() { read(BEHIND_SYSTEMD) } else { (servers, search) }
}

fn parse(text: &str) -> (Vec<IpAddr>, Vec<String>) {
    let (mut servers, mut search) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(
                words
                    .next()
                    .and_then(|word| word.parse().ok())
                    .filter(|server: &IpAddr| !server.is_loopback()),
            ),
            Some("search") => search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    (servers, search)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_server_on_the_host_s_loopback_is_passed_over() {
        let text =
            "# systemd\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch a.example b.example\n";

        let (servers, search) = parse(text);

        assert_eq!(servers, ["192.0.2.1".parse::<IpAddr>().expect("an address")]);
        assert_eq!(search, ["a.example", "b.example"]);
    }
}
