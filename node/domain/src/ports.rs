//! Ports of this machine that lead to pods (`hostPort`): an nftables table of their own beside the second judge's.
//!
//! The table is always declared whole, from all ports that there are: so whoever sets a pod up, takes one down, or finds them after a
//! crash, ends in the same table. Packets go by it in the kernel, whether an agent lives or not. Who calls from outside is seen under
//! their own address.
//!
//! The machine itself reaches a port by its loopback too, without `route_localnet`, which would open the loopback to what comes from
//! a pod's link: what it sends from 127.0.0.1 gets the node's own address before anybody routes it, and the answer gets 127.0.0.1
//! back behind the second judge. Absent: who may have which port (`copepod-node`, in `host_ports`), SCTP, and the pods' own limits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr};

use rtnetlink::packet_route::route::RouteType;

use crate::cidr::{Blocks, Cidr};
use crate::conntrack;
use crate::error::{HostError, Step};
use crate::host::{Host, Inner, blocking, forward_on};
use crate::names::DataId;
use crate::nft;

/// A transport whose ports can be led to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of this machine and the pod that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// Of which of the machine's addresses; none: of all that are of the pod's family.
    pub host: Option<IpAddr>,
    /// By which transport.
    pub protocol: Protocol,
    /// Its number on this machine.
    pub port: u16,
    /// The pod's address.
    pub pod: IpAddr,
    /// The pod's port.
    pub pod_port: u16,
}

/// Why no port of this machine can lead to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPorts {
    /// The packet filter is root's.
    OrdinaryUser,
    /// There is no `nft` program.
    NoNft,
}

impl NoPorts {
    /// The reason, and how to have them all the same.
    pub fn sentence(self) -> String {
        match self {
            Self::OrdinaryUser => {
                "only root may lead a port of the machine to a pod; leave it out, and publish with `copepod run --publish`".into()
            }
            Self::NoNft => {
                format!("nft, which leads a port of the machine to a pod, was not found; {}", nft::REMEDY)
            }
        }
    }
}

impl Host {
    /// Why ports of this machine cannot be led to pods, if so.
    pub fn no_ports(&self) -> Option<NoPorts> {
        match (&self.inner.user, &self.inner.nft) {
            (Some(_), _) => Some(NoPorts::OrdinaryUser),
            (None, None) => Some(NoPorts::NoNft),
            (None, Some(_)) => None,
        }
    }

    /// Leads these ports of the machine to pods, and no others; what is connected stays so. Packets that come for one of them are
    /// passed on from then on, by whatever link.
    ///
    /// # Errors
    /// [`Host::no_ports`]; a step that failed, with the ports as they were.
    pub async fn set_ports(&self, ports: Vec<PodPort>) -> Result<(), HostError> {
        let inner = self.inner.clone();
        blocking(move || inner.set_ports(&ports)).await
    }

    /// Has those who call these ports over UDP be led anew with their next datagram: to be done where [`Host::set_ports`] has led one
    /// to somebody else.
    ///
    /// # Errors
    /// The kernel's; who pauses for two minutes is led anew all the same.
    pub async fn forget_udp_callers(&self, ports: BTreeSet<u16>) -> Result<(), HostError> {
        let step = || "forget flows over UDP".into();
        blocking(move || conntrack::forget_udp(&ports).step(step)).await
    }
}

impl Inner {
    fn set_ports(&self, ports: &[PodPort]) -> Result<(), HostError> {
        let Some(nft) = &self.nft else {
            return match ports {
                [] => Ok(()),
                _ => Err(HostError::Unsupported {
                    what: "leading a port of this machine to a pod".into(),
                    remedy: nft::REMEDY.into(),
                }),
            };
        };
        self.pass_on(ports)?;
        let hidden = &self.confined;
        let table = Table { id: self.id, blocks: self.blocks, hidden, ports };
        nft.run(&["-f", "-"], &table.text())
            .step(|| format!("set the table {}", self.id.ports_table()))
    }

    /// Has packets be passed on that come by links with an address to which a port belongs.
    fn pass_on(&self, ports: &[PodPort]) -> Result<(), HostError> {
        let of_all = ports.iter().any(|it| it.host.is_none());
        let wanted: BTreeSet<IpAddr> = ports.iter().filter_map(|it| it.host).collect();
        if ports.is_empty() {
            return Ok(());
        }
        // Of each link, an address of either family by which calls come.
        let mut through: BTreeMap<(u32, bool), IpAddr> = BTreeMap::new();
        let mut netlink = self.netlink();
        netlink
            .routes(|route| {
                // An address is a route of the table of local addresses.
                let address = route.block.base();
                let whole = if address.is_ipv4() { 32 } else { 128 };
                let is_address = route.kind == RouteType::Local && route.block.prefix() == whole;
                let is_wanted = of_all || wanted.contains(&address);
                let is_led = ports.iter().any(|it| it.pod.is_ipv4() == address.is_ipv4());
                if let Some(link) = route.link
                    && is_address
                    && is_wanted
                    && is_led
                    && !address.is_loopback()
                {
                    through.insert((link, address.is_ipv4()), address);
                }
            })
            .step(|| "read the machine's addresses".into())?;
        let links = netlink.links().step(|| "list the links".into())?;
        for ((link, _), address) in through {
            let name = links.iter().find(|(number, name)| *number == link && name != "lo");
            if let Some((_, name)) = name {
                forward_on(name, address)?;
            }
        }
        Ok(())
    }

    /// Removes the table; also one that is not there.
    pub(crate) fn remove_ports(&self) -> Result<(), HostError> {
        self.set_ports(&[])
    }
}

/// The kernel's words for an address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Family {
    /// The protocol's name in a header's field.
    name: &'static str,
    /// Its name where packets are told apart by it.
    protocol: &'static str,
    /// The type of its addresses.
    address: &'static str,
    /// Addresses that no packet from outside may have.
    loopback: &'static str,
}

const IPV4: Family =
    Family { name: "ip", protocol: "ipv4", address: "ipv4_addr", loopback: "127.0.0.0/8" };
const IPV6: Family =
    Family { name: "ip6", protocol: "ipv6", address: "ipv6_addr", loopback: "::1" };

/// What the table says.
#[derive(Debug)]
struct Table<'a> {
    id: DataId,
    /// The pods' addresses.
    blocks: Blocks,
    /// Of these, pods cannot answer the world: it is hidden from them behind the node's own address.
    hidden: &'a [Cidr],
    ports: &'a [PodPort],
}

impl Table<'_> {
    /// The table in `nft`'s language, as one transaction: every packet meets what was there before or this. Without ports there is none.
    fn text(&self) -> String {
        let table = self.id.ports_table();
        let mut text = format!("add table inet {table}\ndelete table inet {table}\n");
        if self.ports.is_empty() {
            return text;
        }
        let (mut maps, mut leads, mut from_loopback) = <(String, String, String)>::default();
        for family in [IPV4, IPV6] {
            self.lead(family, &mut maps, &mut leads);
        }
        let (mut back, mut to_loopback) = <(String, String)>::default();
        let links = format!("\"{}*\"", self.id.link_prefix());
        for block in self.blocks.iter() {
            let gateway = block.gateway();
            let family = if gateway.is_ipv4() { IPV4 } else { IPV6 };
            let name = family.name;
            let whose = match self.hidden.contains(&block) {
                true => format!("meta nfproto {} ", family.protocol),
                false => format!("{name} saddr {block} "),
            };
            let _ = writeln!(
                back,
                "    oifname {links} {whose}ct status dnat snat {name} to {gateway}"
            );
            if family == IPV4 {
                for wanted in self.of_loopback() {
                    let _ = writeln!(from_loopback, "    {wanted} ip saddr set {gateway}");
                }
                let _ = writeln!(
                    to_loopback,
                    "    ct direction reply ct original ip saddr {gateway} ct original ip daddr {} ip daddr set 127.0.0.1",
                    IPV4.loopback
                );
            }
        }
        let (four, six) = (IPV4.loopback, IPV6.loopback);
        // A pod that calls a port of its own node gets the answer from the node: in the same domain it would come by another way.
        let _ = write!(
            text,
            "table inet {table} {{\n{maps}  \
             chain ports {{\n{leads}  }}\n  \
             chain from-beyond {{\n    type nat hook prerouting priority dstnat; policy accept;\n    \
             ip daddr {four} return\n    ip6 daddr {six} return\n    fib daddr type local jump ports\n  }}\n  \
             chain from-here {{\n    type nat hook output priority -100; policy accept;\n    \
             fib daddr type local jump ports\n  }}\n  \
             chain back {{\n    type nat hook postrouting priority srcnat; policy accept;\n{back}  }}\n  \
             chain from-loopback {{\n    type filter hook output priority raw; policy accept;\n{from_loopback}  }}\n  \
             chain to-loopback {{\n    type filter hook input priority 150; policy accept;\n{to_loopback}  }}\n}}\n"
        );
        text
    }

    /// The maps of a family, and the rules that follow them: a port of one address before the same of all.
    fn lead(&self, family: Family, maps: &mut String, leads: &mut String) {
        let Family { name, address, .. } = family;
        let of_family = |ip: IpAddr| ip.is_ipv4() == (family == IPV4);
        let (mut at, mut any) = (BTreeMap::new(), BTreeMap::new());
        for it in self.ports.iter().filter(|it| of_family(it.pod)) {
            let to = format!("{} . {}", it.pod, it.pod_port);
            match it.host {
                None => drop(any.insert(format!("{} . {}", it.protocol, it.port), to)),
                Some(host) if host.is_unspecified() && of_family(host) => {
                    any.insert(format!("{} . {}", it.protocol, it.port), to);
                }
                Some(host) if of_family(host) => {
                    at.insert(format!("{host} . {} . {}", it.protocol, it.port), to);
                }
                Some(_) => {}
            }
        }
        let listed = |all: &BTreeMap<String, String>| {
            all.iter().map(|(of, to)| format!("{of} : {to}")).collect::<Vec<_>>().join(", ")
        };
        for (map, kind, key, all) in [
            ("at", format!("{address} . "), format!("{name} daddr . "), at),
            ("any", String::new(), String::new(), any),
        ] {
            if all.is_empty() {
                continue;
            }
            let (map, elements) = (format!("{map}-{name}"), listed(&all));
            let _ = write!(
                maps,
                "  map {map} {{\n    type {kind}inet_proto . inet_service : {address} . inet_service\n    \
                 elements = {{ {elements} }}\n  }}\n"
            );
            let _ = writeln!(leads, "    dnat {name} to {key}meta l4proto . th dport map @{map}");
        }
    }

    /// What the machine sends from its loopback address to ports that lead to pods. Of IPv6 there is none: as under a kubelet, `::1`
    /// leads to no pod.
    fn of_loopback(&self) -> Vec<String> {
        let mut ports = BTreeSet::new();
        for it in self.ports.iter().filter(|it| it.pod.is_ipv4()) {
            let to = match it.host {
                None => IPV4.loopback.to_owned(),
                Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => IPV4.loopback.to_owned(),
                Some(IpAddr::V4(host)) if host.is_loopback() => host.to_string(),
                Some(_) => continue,
            };
            ports.insert(format!(
                "ip saddr 127.0.0.1 ip daddr {to} {} dport {}",
                it.protocol, it.port
            ));
        }
        ports.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host: Option<&str>, port: u16, pod: &str) -> PodPort {
        let address = |text: &str| text.parse().expect("an address");
        let host = host.map(address);
        PodPort { host, protocol: Protocol::Tcp, port, pod: address(pod), pod_port: 80 }
    }

    fn text(ports: &[PodPort]) -> String {
        let blocks = ["10.64.64.0/18", "fd00::/64"].map(|it| it.parse().expect("a block"));
        let blocks = Blocks::new(&blocks).expect("one of each family");
        Table { id: DataId::new(0x00c0_ffee), blocks, hidden: &[], ports }.text()
    }

    #[test]
    fn who_calls_from_a_pod_s_address_is_seen_as_the_gateway_of_that_family() {
        let text = text(&[port(None, 8080, "10.64.64.5"), port(None, 8080, "fd00::5")]);

        for rule in [
            "ip saddr 10.64.64.0/18 ct status dnat snat ip to 10.64.64.1",
            "ip6 saddr fd00::/64 ct status dnat snat ip6 to fd00::1",
        ] {
            assert!(text.contains(rule), "{rule}: {text}");
        }
        assert_eq!(text.matches("ip daddr set 127.0.0.1").count(), 1, "{text}");
    }

    #[test]
    fn without_ports_there_is_no_table() {
        let expected =
            "add table inet copepod-00c0ffee-ports\ndelete table inet copepod-00c0ffee-ports\n";

        assert_eq!(text(&[]), expected);
    }

    #[test]
    fn a_port_of_one_address_comes_before_the_same_of_all() {
        let text =
            text(&[port(None, 8080, "10.64.64.5"), port(Some("192.0.2.1"), 81, "10.64.64.6")]);

        assert!(text.contains("elements = { tcp . 8080 : 10.64.64.5 . 80 }"), "{text}");
        assert!(text.contains("elements = { 192.0.2.1 . tcp . 81 : 10.64.64.6 . 80 }"), "{text}");
        let (at, any) = (text.find("map @at-ip"), text.find("map @any-ip"));
        assert!(at.is_some() && at < any, "{text}");
        assert!(!text.contains("dnat ip6 to"), "no pod has such an address: {text}");
    }

    #[test]
    fn only_what_is_addressed_to_the_machine_is_led_to_a_pod_and_never_from_outside_to_its_loopback()
     {
        let text = text(&[port(None, 8080, "10.64.64.5")]);

        for (chain, rules) in [
            (
                "from-beyond",
                "ip daddr 127.0.0.0/8 return\n    ip6 daddr ::1 return\n    fib daddr type local jump ports\n  }",
            ),
            ("from-here", "fib daddr type local jump ports\n  }"),
        ] {
            let (_, of_chain) = text.split_once(&format!("chain {chain} {{")).expect("the chain");
            let (_, of_chain) = of_chain.split_once("policy accept;\n    ").expect("its hook");
            assert!(of_chain.starts_with(rules), "{text}");
        }
    }

    #[test]
    fn from_its_loopback_the_machine_reaches_a_port_of_all_addresses_or_of_the_loopback() {
        let sets = |host: Option<&str>| {
            let text = text(&[port(host, 8080, "10.64.64.5")]);
            text.lines().find(|it| it.contains("ip saddr set")).map(|it| it.trim().to_owned())
        };

        let all = "ip saddr 127.0.0.1 ip daddr 127.0.0.0/8 tcp dport 8080 ip saddr set 10.64.64.1";
        let one = "ip saddr 127.0.0.1 ip daddr 127.0.0.1 tcp dport 8080 ip saddr set 10.64.64.1";
        assert_eq!(sets(None).as_deref(), Some(all));
        assert_eq!(sets(Some("127.0.0.1")).as_deref(), Some(one));
        assert_eq!(sets(Some("192.0.2.1")), None);
    }

    #[test]
    fn a_pod_of_another_family_than_the_machine_s_address_is_not_led_to() {
        let six = port(None, 8080, "fd00::5");
        let text = text(&[six, PodPort { port: 81, ..port(Some("192.0.2.1"), 81, "fd00::6") }]);

        assert!(text.contains("elements = { tcp . 8080 : fd00::5 . 80 }"), "{text}");
        assert!(text.contains("dnat ip6 to meta l4proto . th dport map @any-ip6"), "{text}");
        assert!(!text.contains("fd00::6") && !text.contains("dnat ip to"), "{text}");
    }
}
