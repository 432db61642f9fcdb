//! The ways to other nodes' pods, so that pods of two nodes talk by their own addresses, without NAT.
//!
//! Start at [`plan`], which decides from the cluster's nodes and what this machine knows; [`follow`] watches and acts. A route is set
//! only to a node that is a neighbour on a link, and never to a block to which somebody else, a network plugin say, has a route: what a
//! cluster's own routing does is its own. Who may write Node objects decides where packets to these blocks go.
//! Each family goes by itself: a node's IPv6 block lies behind its IPv6 address. Absent: setting routes (`copepod-domain`, in `ways`).

pub mod follow;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use copepod_domain::netlink::WayTo;
use copepod_domain::{Blocks, Cidr, Surroundings, Way, WayChange};
use k8s_openapi::api::core::v1::Node;

use crate::node_object::pod_cidrs;

/// How many nodes a sentence names.
const NAMED: usize = 5;

/// No block of a node's pods that anybody gives is larger: a whole /8 of IPv4, and of IPv6 what a provider has.
fn shortest_prefix(block: Cidr) -> u8 {
    if block.base().is_ipv4() { 8 } else { 32 }
}

/// Where no pod can be: "this network", loopback, link-local, multicast and what is reserved behind it. Of IPv6 with the first comes what
/// stands for IPv4, and with link-local addresses the site-local ones of old.
const NEVER: [(IpAddr, u8); 7] = [
    (IpAddr::V4(Ipv4Addr::new(0, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 3),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 9),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
];

/// Another node of the cluster, as far as ways to its pods go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The blocks of its pods.
    pub blocks: Vec<Cidr>,
    /// The addresses at which other nodes reach it: its first InternalIP of each family.
    pub addresses: Vec<IpAddr>,
}

impl Peer {
    /// What its object says. A block that is none says nothing.
    pub fn of(node: &Node) -> Self {
        let told = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let internal = told.filter(|it| it.type_ == "InternalIP");
        let mut addresses: Vec<IpAddr> = Vec::new();
        for ip in internal.filter_map(|it| it.address.parse::<IpAddr>().ok()) {
            if addresses.iter().all(|other| other.is_ipv4() != ip.is_ipv4()) {
                addresses.push(ip);
            }
        }
        let blocks = pod_cidrs(node).iter().filter_map(|block| block.parse().ok()).collect();
        Self { blocks, addresses }
    }

    /// Where the way to a block of its pods leads.
    fn gateway(&self, block: Cidr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| block.is_of_family_of(*ip))
    }
}

/// What to do, and what to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// From the ways that are there to those that should be.
    pub changes: Vec<WayChange>,
    /// The blocks that pods here reach under their own addresses: those of all nodes, whoever leads there.
    pub direct: BTreeSet<Cidr>,
    /// What stands in the way.
    pub remarks: BTreeSet<Remark>,
}

/// A reason why the node does not set a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remark {
    /// Why.
    pub why: Why,
    /// To which node.
    pub node: String,
    /// To which block.
    pub block: Cidr,
}

/// The reasons.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The node's block has addresses of this node's own: one of the two has to get another.
    OverlapsOwn,
    /// It has addresses of this other node's, which comes first by its name.
    Overlaps(String),
    /// Pods cannot have such addresses, or machines do.
    NoBlockOfPods,
    /// Somebody else's route leads to this block, and is left alone.
    Taken(Cidr),
    /// The node has no address of the block's family.
    NoAddress,
    /// The node's address is on no link of this machine.
    NotOnLink(IpAddr),
}

/// What leads from the ways that are there to those that lead to the pods of `nodes`, which are all but this one; `own` are this
/// node's pods. Of a family that these have not, no block is of use to them.
pub fn plan(own: Blocks, nodes: &BTreeMap<String, Peer>, seen: &Surroundings) -> Plan {
    let mut plan = Plan::default();
    let mut accepted: Vec<(Cidr, &str)> = Vec::new();
    let mut wanted: BTreeMap<Cidr, Way> = BTreeMap::new();
    let machines: BTreeSet<IpAddr> =
        nodes.values().flat_map(|peer| peer.addresses.iter().copied()).collect();
    for (name, peer) in nodes {
        let of_use = |block: &&Cidr| own.of_family_of(block.base()).is_some();
        for &block in peer.blocks.iter().filter(of_use) {
            let why = match block_of_pods(block, own, &machines, &accepted, name) {
                Err(why) => Some(why),
                Ok(()) => {
                    accepted.push((block, name));
                    plan.direct.insert(block);
                    match way(block, peer, seen) {
                        Ok(way) => {
                            wanted.extend(way.map(|way| (block, way)));
                            None
                        }
                        Err(why) => Some(why),
                    }
                }
            };
            plan.remarks.extend(why.map(|why| Remark { why, node: name.clone(), block }));
        }
    }
    let set = wanted.values().filter(|way| !seen.ours.contains(way));
    plan.changes.extend(set.map(|&way| WayChange::Set(way)));
    for &way in &seen.ours {
        // One that is about to be replaced goes with that.
        let goes = match wanted.get(&way.block) {
            None => true,
            Some(right) => *right != way && seen.ours.contains(right),
        };
        if goes {
            plan.changes.push(WayChange::Remove(way));
        }
    }
    plan
}

/// Whether pods of the node of this name may have such addresses.
fn block_of_pods(
    block: Cidr,
    own: Blocks,
    machines: &BTreeSet<IpAddr>,
    accepted: &[(Cidr, &str)],
    name: &str,
) -> Result<(), Why> {
    let never = NEVER.map(|(base, prefix)| Cidr::around(base, prefix));
    if block.prefix() < shortest_prefix(block)
        || never.iter().any(|it| it.overlaps(block))
        || machines.range(block.base()..=block.last()).next().is_some()
    {
        return Err(Why::NoBlockOfPods);
    }
    if own.iter().any(|own| own.overlaps(block)) {
        return Err(Why::OverlapsOwn);
    }
    match accepted.iter().find(|(other, of)| other.overlaps(block) && *of != name) {
        Some((_, other)) => Err(Why::Overlaps((*other).to_owned())),
        None => Ok(()),
    }
}

/// The way to a node's block; none is needed to one that is on this machine.
fn way(block: Cidr, peer: &Peer, seen: &Surroundings) -> Result<Option<Way>, Why> {
    let gateway = peer.gateway(block);
    let reach = gateway.and_then(|address| seen.reach.get(&address));
    if reach == Some(&WayTo::Own) {
        return Ok(None);
    }
    if let Some(theirs) = seen.others.iter().find(|theirs| theirs.overlaps(block)) {
        return Err(Why::Taken(*theirs));
    }
    match (gateway, reach) {
        (Some(gateway), Some(&WayTo::Neighbour(link))) => Ok(Some(Way { block, gateway, link })),
        (Some(gateway), _) => Err(Why::NotOnLink(gateway)),
        (None, _) => Err(Why::NoAddress),
    }
}

/// The remarks in sentences, one for all nodes of a kind, each with what to do.
pub fn sentences(remarks: &BTreeSet<Remark>, own: Blocks) -> Vec<String> {
    let of = |is: fn(&Why) -> bool| {
        let these: Vec<_> = remarks.iter().filter(|remark| is(&remark.why)).collect();
        let named = these.iter().take(NAMED).map(|Remark { why, node, block }| match why {
            Why::Overlaps(other) => format!("{node} ({block}, as {other})"),
            Why::Taken(theirs) => format!("{node} ({block}, by the route to {theirs})"),
            Why::NotOnLink(address) => format!("{node} ({block} at {address})"),
            _ => format!("{node} ({block})"),
        });
        let mut list = named.collect::<Vec<_>>().join(", ");
        if these.len() > NAMED {
            list += &format!(" and {} more", these.len() - NAMED);
        }
        (!these.is_empty()).then_some(list)
    };
    let all = [
        of(|why| matches!(why, Why::OverlapsOwn)).map(|list| {
            format!(
                "no route is set to nodes whose podCIDR has addresses of this node's own {own}: {list}; give one of the two another \
                 podCIDR"
            )
        }),
        of(|why| matches!(why, Why::Overlaps(_))).map(|list| {
            format!(
                "no route is set to nodes whose podCIDR has addresses of another node's: {list}; give one of the two another podCIDR"
            )
        }),
        of(|why| matches!(why, Why::NoBlockOfPods)).map(|list| {
            format!(
                "no route is set to nodes whose podCIDR cannot be of pods alone, as it is larger than a /8 (IPv6: /32), holds a node's own address, or \
                 is loopback, link-local or multicast: {list}; look who wrote these Node objects"
            )
        }),
        of(|why| matches!(why, Why::Taken(_))).map(|list| {
            format!(
                "somebody else's routes lead to pods of these nodes, and are left alone: {list}; where they do not lead there, remove them"
            )
        }),
        of(|why| matches!(why, Why::NoAddress)).map(|list| {
            format!("no route is set to nodes without an InternalIP of their podCIDR's family: {list}")
        }),
        of(|why| matches!(why, Why::NotOnLink(_))).map(|list| {
            format!(
                "no route is set to nodes that are on no link of this machine: {list}; the network between has to know the way to their \
                 podCIDRs, as by a cloud's route controller, BGP or static routes"
            )
        }),
    ];
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const OWN: &str = "10.244.1.0/24";

    fn block(text: &str) -> Cidr {
        text.parse().expect("a block")
    }

    fn own() -> Blocks {
        OWN.parse().expect("blocks")
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn address_v6(last: u8) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into()
    }

    fn nodes(all: &[(&str, &str, u8)]) -> BTreeMap<String, Peer> {
        let peer = |(name, of, last): &(&str, &str, u8)| {
            let peer = Peer { blocks: vec![block(of)], addresses: vec![address(*last)] };
            ((*name).to_owned(), peer)
        };
        all.iter().map(peer).collect()
    }

    fn way(to: &str, last: u8) -> Way {
        Way { block: block(to), gateway: address(last), link: 2 }
    }

    /// A machine on one link with all of these nodes.
    fn on_link(all: &[u8]) -> Surroundings {
        let reach = all.iter().map(|last| (address(*last), WayTo::Neighbour(2))).collect();
        Surroundings { reach, ..Surroundings::default() }
    }

    fn reasons(plan: &Plan) -> Vec<(&str, &Why)> {
        plan.remarks.iter().map(|it| (it.node.as_str(), &it.why)).collect()
    }

    #[test]
    fn each_neighbour_s_block_is_routed_by_its_address_and_reached_without_nat() {
        let nodes = nodes(&[("a", "10.244.2.0/24", 2), ("b", "10.244.3.0/24", 3)]);

        let plan = plan(own(), &nodes, &on_link(&[2, 3]));

        let ways = [way("10.244.2.0/24", 2), way("10.244.3.0/24", 3)];
        assert_eq!(plan.changes, ways.map(WayChange::Set));
        assert_eq!(plan.direct, ways.map(|way| way.block).into());
        assert!(plan.remarks.is_empty());
    }

    #[test]
    fn a_route_that_is_right_stays_and_one_to_a_node_that_is_gone_goes() {
        let nodes = nodes(&[("a", "10.244.2.0/24", 2)]);
        let ours = BTreeSet::from([way("10.244.2.0/24", 2), way("10.244.3.0/24", 3)]);
        let seen = Surroundings { ours, ..on_link(&[2]) };

        let plan = plan(own(), &nodes, &seen);

        assert_eq!(plan.changes, [WayChange::Remove(way("10.244.3.0/24", 3))]);
    }

    #[test]
    fn a_node_with_another_address_has_its_route_replaced_and_not_removed_first() {
        let nodes = nodes(&[("a", "10.244.2.0/24", 4)]);
        let ours = BTreeSet::from([way("10.244.2.0/24", 2)]);

        let plan = plan(own(), &nodes, &Surroundings { ours, ..on_link(&[4]) });

        assert_eq!(plan.changes, [WayChange::Set(way("10.244.2.0/24", 4))]);
    }

    #[test]
    fn where_somebody_else_has_a_route_none_is_set_and_an_own_one_goes() {
        let nodes = nodes(&[("a", "10.244.2.0/24", 2)]);
        let ours = BTreeSet::from([way("10.244.2.0/24", 2)]);
        for theirs in ["10.244.2.0/24", "10.244.2.128/26", "10.244.0.0/16"] {
            let others = BTreeSet::from([block(theirs)]);
            let seen = Surroundings { others, ours: ours.clone(), ..on_link(&[2]) };

            let plan = plan(own(), &nodes, &seen);

            assert_eq!(plan.changes, [WayChange::Remove(way("10.244.2.0/24", 2))], "{theirs}");
            assert_eq!(reasons(&plan), [("a", &Why::Taken(block(theirs)))]);
            assert!(plan.direct.contains(&block("10.244.2.0/24")), "it is still the cluster's");
        }
    }

    #[test]
    fn a_node_on_the_same_machine_needs_no_route() {
        let nodes = nodes(&[("a", "10.244.2.0/24", 2)]);
        let seen = Surroundings {
            reach: BTreeMap::from([(address(2), WayTo::Own)]),
            // What the other data directory has claimed.
            others: BTreeSet::from([block("10.244.2.0/24")]),
            ..Surroundings::default()
        };

        let plan = plan(own(), &nodes, &seen);

        assert!(plan.changes.is_empty() && plan.remarks.is_empty(), "{plan:?}");
        assert_eq!(plan.direct, [block("10.244.2.0/24")].into());
    }

    #[test]
    fn a_node_beyond_the_link_or_out_of_reach_is_the_cluster_s_own_routing_s() {
        let nodes = nodes(&[("a", "10.244.2.0/24", 2), ("b", "10.244.3.0/24", 3)]);
        let reach = BTreeMap::from([(address(2), WayTo::Beyond(2))]);

        let plan = plan(own(), &nodes, &Surroundings { reach, ..Surroundings::default() });

        assert!(plan.changes.is_empty());
        let expected = [("a", &Why::NotOnLink(address(2))), ("b", &Why::NotOnLink(address(3)))];
        assert_eq!(reasons(&plan), expected);
        assert_eq!(plan.direct.len(), 2);
    }

    #[test]
    fn blocks_that_no_route_may_take_are_told_by_the_node_s_name() {
        let nodes = nodes(&[
            ("a", "10.244.0.0/16", 2),
            ("b", "10.244.1.128/25", 3),
            ("c", "10.245.3.0/24", 4),
            ("d", "10.245.3.0/25", 5),
            ("e", "128.0.0.0/1", 6),
            ("f", "192.0.2.0/24", 7),
            ("g", "127.0.0.0/24", 8),
        ]);

        let plan = plan(own(), &nodes, &on_link(&[2, 3, 4, 5, 6, 7, 8]));

        assert_eq!(plan.changes, [WayChange::Set(way("10.245.3.0/24", 4))]);
        assert_eq!(plan.direct, [block("10.245.3.0/24")].into());
        let expected = [
            ("a", &Why::OverlapsOwn),
            ("b", &Why::OverlapsOwn),
            ("d", &Why::Overlaps("c".into())),
            ("e", &Why::NoBlockOfPods),
            ("f", &Why::NoBlockOfPods),
            ("g", &Why::NoBlockOfPods),
        ];
        assert_eq!(reasons(&plan), expected);
    }

    #[test]
    fn of_a_node_its_blocks_and_its_first_internal_address_of_each_family_count() {
        let node: Node = serde_json::from_value(json!({
            "spec": { "podCIDR": "fd00:1::/64", "podCIDRs": ["fd00:1::/64", "10.244.2.0/24"] },
            "status": { "addresses": [
                { "type": "ExternalIP", "address": "203.0.113.1" },
                { "type": "InternalIP", "address": "fd00::2" },
                { "type": "InternalIP", "address": "192.0.2.2" },
                { "type": "InternalIP", "address": "192.0.2.3" },
            ] },
        }))
        .expect("a node");

        let peer = Peer::of(&node);

        let blocks = ["fd00:1::/64", "10.244.2.0/24"].map(block).to_vec();
        let addresses = vec!["fd00::2".parse().expect("an address"), address(2)];
        assert_eq!(peer, Peer { blocks, addresses });
        assert_eq!(Peer::of(&Node::default()), Peer::default());
    }

    #[test]
    fn each_family_has_its_own_way_and_one_that_pods_here_have_not_has_none() {
        let peer = Peer {
            blocks: ["10.244.2.0/24", "fd00:244:2::/64"].map(block).to_vec(),
            addresses: vec![address(2), address_v6(2)],
        };
        let nodes = BTreeMap::from([("a".to_owned(), peer)]);
        let reach = [(address(2), WayTo::Neighbour(2)), (address_v6(2), WayTo::Neighbour(2))];
        let seen = Surroundings { reach: reach.into(), ..Surroundings::default() };
        let v6 = Way { block: block("fd00:244:2::/64"), gateway: address_v6(2), link: 2 };

        let both = plan("10.244.1.0/24,fd00:244:1::/64".parse().expect("blocks"), &nodes, &seen);
        let v4_only = plan(own(), &nodes, &seen);

        assert_eq!(both.changes, [way("10.244.2.0/24", 2), v6].map(WayChange::Set));
        assert_eq!(both.direct.len(), 2);
        assert_eq!(v4_only.changes, [WayChange::Set(way("10.244.2.0/24", 2))]);
        assert!(v4_only.remarks.is_empty(), "{v4_only:?}");
    }

    #[test]
    fn no_ipv6_block_of_machines_groups_or_links_is_routed() {
        let own = "fd00:244:1::/64".parse().expect("blocks");
        for bad in ["fe80::/64", "ff02::/64", "::/64", "64:ff9b::/96", "fd00::/16", "2001:db8::/64"]
        {
            let peer = Peer { blocks: vec![block(bad)], addresses: vec![address_v6(2)] };
            let nodes = BTreeMap::from([("a".to_owned(), peer)]);
            let reach = BTreeMap::from([(address_v6(2), WayTo::Neighbour(2))]);

            let plan = plan(own, &nodes, &Surroundings { reach, ..Surroundings::default() });

            assert_eq!(reasons(&plan), [("a", &Why::NoBlockOfPods)], "{bad}");
        }
    }

    #[test]
    fn a_node_without_an_address_is_named_and_one_without_a_block_is_not() {
        let mut nodes = nodes(&[("a", "10.244.2.0/24", 2), ("b", "10.244.3.0/24", 3)]);
        nodes.get_mut("a").expect("there").addresses.clear();
        nodes.get_mut("b").expect("there").blocks.clear();

        let plan = plan(own(), &nodes, &on_link(&[3]));

        assert_eq!(reasons(&plan), [("a", &Why::NoAddress)]);
        assert!(plan.changes.is_empty());
    }

    #[test]
    fn a_thousand_nodes_in_another_subnet_are_one_sentence_with_what_to_do() {
        let remark = |n: u16| Remark {
            why: Why::NotOnLink(address(9)),
            node: format!("node-{n:04}"),
            block: block("10.244.2.0/24"),
        };
        let remarks = (0..1000).map(remark).collect();

        let told = sentences(&remarks, own());

        assert_eq!(told.len(), 1);
        assert!(told[0].contains("node-0000 (10.244.2.0/24 at 192.0.2.9), node-0001"), "{told:?}");
        assert!(told[0].contains("node-0004") && !told[0].contains("node-0005"), "{told:?}");
        assert!(told[0].contains("and 995 more; the network between has to know"), "{told:?}");
    }

    fn some_block() -> impl Strategy<Value = Cidr> {
        let base = prop_oneof![
            (0u32..1 << 16).prop_map(|low| 0x0af4_0000 | low),
            (0u32..8).prop_map(|low| 0xc000_0200 | low),
            any::<u32>(),
        ];
        let v4 = (base, 0u8..=32)
            .prop_map(|(base, prefix)| Cidr::around(IpAddr::V4(base.into()), prefix));
        let base = prop_oneof![
            (0u128..1 << 16).prop_map(|low| (0xfd << 120) | low),
            (0u128..8).prop_map(|low| (0x2001_0db8 << 96) | low),
            any::<u128>(),
        ];
        let v6 = (base, 0u8..=128)
            .prop_map(|(base, prefix)| Cidr::around(IpAddr::V6(base.into()), prefix));
        prop_oneof![v4, v6]
    }

    fn some_own() -> impl Strategy<Value = Blocks> {
        (some_block(), some_block()).prop_map(|(first, second)| {
            Blocks::new(&[first, second]).unwrap_or(Blocks::from(first))
        })
    }

    fn some_address() -> impl Strategy<Value = IpAddr> {
        (any::<bool>(), 1u8..8)
            .prop_map(|(v4, last)| if v4 { address(last) } else { address_v6(last) })
    }

    fn some_nodes() -> impl Strategy<Value = BTreeMap<String, Peer>> {
        let addresses = prop::collection::vec(some_address(), 0..3);
        let peer = (prop::collection::vec(some_block(), 0..3), addresses)
            .prop_map(|(blocks, addresses)| Peer { blocks, addresses });
        prop::collection::btree_map("[a-f]", peer, 0..6)
    }

    fn some_surroundings() -> impl Strategy<Value = Surroundings> {
        let reach = prop_oneof![
            Just(WayTo::Own),
            (1u32..4).prop_map(WayTo::Neighbour),
            (1u32..4).prop_map(WayTo::Beyond)
        ];
        let ours = (some_block(), 1u8..8, 1u32..4).prop_map(|(block, last, link)| Way {
            block,
            gateway: if block.base().is_ipv4() { address(last) } else { address_v6(last) },
            link,
        });
        (
            prop::collection::btree_set(ours, 0..6),
            prop::collection::btree_set(some_block(), 0..3),
            prop::collection::btree_map(some_address(), reach, 0..8),
        )
            .prop_map(|(ours, others, reach)| {
                // Of two routes of one metric to one block, the kernel keeps one.
                let by_block: BTreeMap<Cidr, Way> =
                    ours.into_iter().map(|way| (way.block, way)).collect();
                Surroundings { ours: by_block.into_values().collect(), others, reach }
            })
    }

    /// What is there once the changes are made, as the kernel makes them.
    fn after(changes: &[WayChange], seen: &Surroundings) -> BTreeSet<Way> {
        let mut ours = seen.ours.clone();
        for change in changes {
            match change {
                WayChange::Set(way) => {
                    ours.retain(|it| it.block != way.block);
                    ours.insert(*way);
                }
                WayChange::Remove(way) => assert!(ours.remove(way), "{way:?} is not there"),
            }
        }
        ours
    }

    proptest! {
        #[test]
        fn a_second_look_at_what_was_done_finds_nothing_to_do(
            own in some_own(), nodes in some_nodes(), seen in some_surroundings()
        ) {
            let first = plan(own, &nodes, &seen);
            let ours = after(&first.changes, &seen);

            let second = plan(own, &nodes, &Surroundings { ours, ..seen });

            prop_assert_eq!(&second.changes, &[]);
            prop_assert_eq!(second.remarks, first.remarks);
        }

        #[test]
        fn no_way_leads_over_own_pods_others_routes_or_anything_but_a_neighbour(
            own in some_own(), nodes in some_nodes(), seen in some_surroundings()
        ) {
            let done = plan(own, &nodes, &seen);

            for way in after(&done.changes, &seen) {
                prop_assert!(own.iter().all(|own| !own.overlaps(way.block)));
                prop_assert!(way.block.is_of_family_of(way.gateway));
                prop_assert!(seen.others.iter().all(|it| !it.overlaps(way.block)));
                prop_assert_eq!(seen.reach.get(&way.gateway), Some(&WayTo::Neighbour(way.link)));
                prop_assert!(!nodes.values().any(|it| it.addresses.iter().any(|it| way.block.contains(*it))));
                prop_assert!(done.direct.contains(&way.block));
            }
            let is_fine = |block: &Cidr| {
                own.iter().all(|own| !own.overlaps(*block)) && block.prefix() >= shortest_prefix(*block)
            };
            prop_assert!(done.direct.iter().all(is_fine));
        }

        #[test]
        fn a_block_is_reached_or_there_is_a_reason(
            own in some_own(), nodes in some_nodes(), seen in some_surroundings()
        ) {
            let done = plan(own, &nodes, &seen);
            let ways = after(&done.changes, &seen);

            for (name, peer) in &nodes {
                let of_use = |block: &&Cidr| own.of_family_of(block.base()).is_some();
                for block in peer.blocks.iter().filter(of_use) {
                    let has_way = ways.iter().any(|way| way.block == *block);
                    let has_reason = done.remarks.iter().any(|it| it.node == *name && it.block == *block);
                    let here = peer.gateway(*block).and_then(|it| seen.reach.get(&it)) == Some(&WayTo::Own);
                    prop_assert!(has_way || has_reason || here, "{name} {block}");
                }
            }
        }
    }
}
