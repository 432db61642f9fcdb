//! The ports of its node that a pod asks for: `ports[].hostPort`.
//!
//! Start at [`of`]. A port of the node is one pod's: whoever admits pods asks [`HostPort::clashes`]. Absent: what a node does to lead
//! a port to its pod (`copepod-domain`, in `ports`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::Pod;

/// A transport with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// `TCP`, which is meant where a pod names none.
    Tcp,
    /// `UDP`.
    Udp,
    /// `SCTP`, which no pod of ours has, and others that are judged here may.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A port of the node that a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Of which address of the node; none: of all.
    pub ip: Option<IpAddr>,
    /// By which transport.
    pub protocol: Protocol,
    /// Its number on the node.
    pub port: u16,
    /// Where it leads: the container's own.
    pub container_port: u16,
    /// Where the pod asks for it, as a path.
    pub field: String,
}

impl HostPort {
    /// Whether no two pods of a node may have both.
    pub fn clashes(&self, other: &Self) -> bool {
        let address = self.ip == other.ip || self.ip.is_none() || other.ip.is_none();
        self.port == other.port && self.protocol == other.protocol && address
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => write!(f, "port {} of {ip} ({})", self.port, self.protocol),
            None => write!(f, "port {} ({})", self.port, self.protocol),
        }
    }
}

/// What the API has for all addresses of a node.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// All ports of the node that a pod asks for; those of init containers only where they run beside the others.
pub fn of(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let named = |list: &'static str| move |i: usize| format!("spec.{list}[{i}]");
    let sidecars = spec.init_containers.iter().flatten().enumerate();
    let sidecars = sidecars.filter(|(_, it)| it.restart_policy.as_deref() == Some("Always"));
    let sidecars = sidecars.map(|(i, it)| (named("initContainers")(i), it));
    let containers = spec.containers.iter().enumerate();
    let all = sidecars.chain(containers.map(|(i, it)| (named("containers")(i), it)));
    all.flat_map(|(path, container)| {
        container.ports.iter().flatten().enumerate().filter_map(move |(i, port)| {
            let number = |it: i32| u16::try_from(it).ok().filter(|port| *port > 0);
            Some(HostPort {
                ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()).filter(|ip| *ip != ANY),
                protocol: match port.protocol.as_deref() {
                    None | Some("" | "TCP") => Protocol::Tcp,
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    Some(_) => return None,
                },
                port: number(port.host_port?)?,
                container_port: number(port.container_port)?,
                field: format!("{path}.ports[{i}].hostPort"),
            })
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(spec: Value) -> Vec<HostPort> {
        of(&serde_json::from_value(json!({ "spec": spec })).expect("a pod"))
    }

    fn one(port: Value) -> HostPort {
        let mut all = asked(json!({ "containers": [{ "name": "c", "ports": [port] }] }));
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    #[test]
    fn a_pod_asks_for_the_ports_of_all_containers_that_run_together() {
        let ports =
            |host: u16| json!([{ "containerPort": 80 }, { "containerPort": 81, "hostPort": host }]);
        let spec = json!({
            "initContainers": [
                { "name": "first", "ports": ports(1) },
                { "name": "sidecar", "restartPolicy": "Always", "ports": ports(2) },
            ],
            "containers": [{ "name": "app", "ports": ports(3) }, { "name": "none" }],
        });

        let asked = asked(spec);

        let told: Vec<_> =
            asked.iter().map(|it| (it.port, it.container_port, it.field.as_str())).collect();
        let expected = [
            (2, 81, "spec.initContainers[1].ports[1].hostPort"),
            (3, 81, "spec.containers[0].ports[1].hostPort"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn all_addresses_are_meant_where_a_pod_names_none_or_the_unspecified_one() {
        let with = |ip: &str| one(json!({ "containerPort": 80, "hostPort": 80, "hostIP": ip }));

        assert_eq!(one(json!({ "containerPort": 80, "hostPort": 80 })).ip, None);
        assert_eq!((with("").ip, with("0.0.0.0").ip), (None, None));
        assert_eq!(with("192.0.2.1").ip, Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!(with("192.0.2.1").to_string(), "port 80 of 192.0.2.1 (TCP)");
    }

    #[test]
    fn two_pods_clash_over_one_number_of_one_protocol_on_one_address() {
        let first = one(json!({ "containerPort": 80, "hostPort": 80, "hostIP": "192.0.2.1" }));

        for (other, clashes) in [
            (json!({ "containerPort": 1, "hostPort": 80 }), true),
            (json!({ "containerPort": 1, "hostPort": 80, "hostIP": "192.0.2.1" }), true),
            (json!({ "containerPort": 1, "hostPort": 80, "hostIP": "192.0.2.2" }), false),
            (json!({ "containerPort": 1, "hostPort": 80, "protocol": "UDP" }), false),
            (json!({ "containerPort": 80, "hostPort": 81 }), false),
        ] {
            assert_eq!(first.clashes(&one(other.clone())), clashes, "{other}");
        }
    }
}
