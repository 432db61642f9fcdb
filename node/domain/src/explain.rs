//! What a data directory has changed on this machine, or would: each thing by its name, and whether it is there now.
//!
//! Nothing is changed by looking. Only root sees all of it. Absent: undoing it ([`crate::host::Host::reset`]), and the pods'
//! own files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup;
use crate::cidr::{Blocks, Cidr};
use crate::error::{HostError, Step};
use crate::host::{Changed, changed_settings};
use crate::mounts;
use crate::names::DataId;
use crate::netlink::{Netlink, PROTOCOL};
use crate::network::{self, Place};
use crate::nft::Nft;
use crate::ways;

/// A thing that a data directory has on this machine while it has pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thing {
    /// What kind of thing.
    pub kind: Kind,
    /// Its name, as the machine's own programs show it.
    pub name: String,
    /// Whether it is there now.
    pub present: bool,
    /// What it is for.
    pub purpose: &'static str,
}

/// The kinds of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A folder or file.
    File,
    /// A mount.
    Mount,
    /// A link.
    Link,
    /// An address.
    Address,
    /// A route.
    Route,
    /// A routing rule.
    Rule,
    /// A table of nftables, or a part of one.
    Nftables,
    /// A setting beneath `/proc/sys`.
    Setting,
    /// A control group.
    Cgroup,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::File => "file",
            Self::Mount => "mount",
            Self::Link => "link",
            Self::Address => "address",
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Nftables => "nftables",
            Self::Setting => "setting",
            Self::Cgroup => "cgroup",
        })
    }
}

/// What is known of the machine's network that bears the data directory's marks.
#[derive(Debug, Default)]
struct Network {
    links: Vec<String>,
    /// Of the blocks, those in which the node has its own address.
    addresses: BTreeSet<Cidr>,
    claims: BTreeSet<Cidr>,
    /// How many pods have addresses of a block.
    pods: BTreeMap<Cidr, usize>,
    ways: Vec<String>,
    rules: Vec<String>,
}

/// All things of a data directory that is there or will be.
///
/// # Errors
/// The kernel does not tell.
pub fn explain(data: &Path, nft: Option<&Nft>) -> Result<Vec<Thing>, HostError> {
    let id = fs::read_to_string(data.join("id")).ok();
    let id = id.and_then(|id| id.trim().parse::<DataId>().ok());
    let blocks = network::kept_blocks(data, Place::Host);
    let network = look(id, blocks)?;
    let mut things = files(data, blocks);
    things.extend(of_network(id, blocks, network));
    things.extend(of_nft(id, nft)?);
    things.extend(settings(changed_settings()?));
    let name = id.map_or_else(|| format!("copepod-{NEW}"), DataId::table);
    let places = cgroup::find(&name).map(|groups| groups.places()).unwrap_or_default();
    things.extend(places.iter().map(|place| {
        let purpose = "beneath it a group for each runner: its memory and threads";
        thing(Kind::Cgroup, place.display().to_string(), id.is_some() && place.is_dir(), purpose)
    }));
    Ok(things)
}

/// Stands for the id, which a data directory gets when it is made.
const NEW: &str = "ID";

/// Stands for the pods' block of addresses, which is claimed at the start.
const BLOCK: &str = "PODCIDR";

fn thing(kind: Kind, name: String, present: bool, purpose: &'static str) -> Thing {
    Thing { kind, name, present, purpose }
}

fn files(data: &Path, blocks: Option<Blocks>) -> Vec<Thing> {
    let there = |path: PathBuf, purpose| {
        let present = path.exists();
        thing(Kind::File, path.display().to_string(), present, purpose)
    };
    let pinned = data.join("ns/mnt");
    let mounted = mounts::is_mount(&pinned).unwrap_or(false);
    let mut things = vec![
        there(data.to_owned(), "the data directory: pods, images, logs, credentials"),
        thing(
            Kind::Mount,
            pinned.display().to_string(),
            mounted,
            "keeps the mount namespace in which the pods' volumes are",
        ),
    ];
    for block in blocks.iter().flat_map(|blocks| blocks.iter()) {
        things.push(there(network::owner_file(block), "tells who has claimed the block"));
    }
    things.push(there("/run/copepod/changes.json".into(), "the settings below, as they were"));
    things
}

fn look(id: Option<DataId>, blocks: Option<Blocks>) -> Result<Network, HostError> {
    let mut found = Network::default();
    let (Some(id), Some(blocks)) = (id, blocks) else { return Ok(found) };
    let step = || "read the network's configuration".to_owned();
    let mut netlink = Netlink::open().step(step)?;
    let links = netlink.links().step(step)?;
    let name = |number: u32| {
        let found = links.iter().find(|(other, _)| *other == number);
        found.map_or_else(|| number.to_string(), |(_, name)| name.clone())
    };
    let prefix = id.link_prefix();
    found.links = links.iter().map(|(_, name)| name.clone()).collect();
    found.links.retain(|name| name.starts_with(&prefix));
    netlink
        .routes(|route| {
            let own = blocks.iter().find(|block| block.overlaps(route.block));
            if let Some(way) = ways::of(&route, id.metric()) {
                let (block, gateway, link) = (way.block, way.gateway, name(way.link));
                let metric = route.metric;
                found.ways.push(format!(
                    "{block} via {gateway} dev {link} proto {PROTOCOL} metric {metric}"
                ));
            } else if route.is_claim() {
                found.claims.extend(own.filter(|block| *block == route.block));
            } else if route.ours
                && route.main
                && let Some(own) = own
            {
                *found.pods.entry(own).or_default() += 1;
            }
            // An address is a route of the table of local addresses.
            let is_gateway = |own: &Cidr| {
                !route.main
                    && route.block.base() == own.gateway()
                    && own.offset_of(route.block.last()) == Some(1)
            };
            found.addresses.extend(own.filter(is_gateway));
        })
        .step(step)?;
    let rules = netlink.rules().step(step)?;
    let is_own = |from: Cidr| blocks.iter().any(|block| block == from);
    for (block, to) in rules.into_iter().filter(|(from, _)| is_own(*from)) {
        found.rules.push(match to {
            Some(to) => format!("from {block} to {to} lookup main proto {PROTOCOL}"),
            None => format!("from {block} unreachable proto {PROTOCOL}"),
        });
    }
    Ok(found)
}

fn of_network(id: Option<DataId>, blocks: Option<Blocks>, found: Network) -> Vec<Thing> {
    let links = id.map_or_else(|| format!("cp{NEW}x"), DataId::link_prefix);
    let metric = id.map_or_else(|| NEW.to_owned(), |id| id.metric().to_string());
    let mut things = Vec::new();
    // All that are there; or what they will be like.
    let mut each = |kind, there: Vec<String>, like: String, purpose| {
        if there.is_empty() {
            things.push(thing(kind, like, false, purpose));
        }
        things.extend(there.into_iter().map(|name| thing(kind, name, true, purpose)));
    };
    each(Kind::Link, found.links, format!("{links}*"), "a veth for each runner, and its settings");
    let at = |present: bool, name: String| if present { vec![name] } else { Vec::new() };
    let blocks: Vec<Option<Cidr>> = match blocks {
        Some(blocks) => blocks.iter().map(Some).collect(),
        None => vec![None],
    };
    let name = |block: Option<Cidr>| block.map_or_else(|| BLOCK.to_owned(), |it| it.to_string());
    for &block in &blocks {
        let own = name(block);
        let whole = if block.is_some_and(|block| block.base().is_ipv6()) { 128 } else { 32 };
        let gateway = block
            .map_or_else(|| format!("{BLOCK}'s first"), |it| format!("{}/{whole}", it.gateway()));
        let has = |these: &BTreeSet<Cidr>| block.is_some_and(|block| these.contains(&block));
        let address = format!("{gateway} dev lo");
        each(
            Kind::Address,
            at(has(&found.addresses), address.clone()),
            address,
            "the node's own address, as pods see it",
        );
        let claim = format!("unreachable {own} proto {PROTOCOL}");
        each(
            Kind::Route,
            at(has(&found.claims), claim.clone()),
            claim,
            "claims the block, so that nobody else takes it",
        );
        let count = block.and_then(|block| found.pods.get(&block)).copied().unwrap_or(0);
        let pods = format!("{count} addresses of {own} dev {links}* proto {PROTOCOL}");
        each(
            Kind::Route,
            at(count > 0, pods),
            format!("POD/{whole} dev {links}* proto {PROTOCOL}"),
            "the way to each pod",
        );
    }
    each(
        Kind::Route,
        found.ways,
        format!("NODE'S {BLOCK} via NODE proto {PROTOCOL} metric {metric}"),
        "the way to another node's pods (--routes auto)",
    );
    let own = name(blocks.first().copied().flatten());
    each(
        Kind::Rule,
        found.rules,
        format!("from {own} unreachable proto {PROTOCOL}"),
        "where pods have no way to the world: keeps them to each other and the cluster",
    );
    things
}

fn of_nft(id: Option<DataId>, nft: Option<&Nft>) -> Result<Vec<Thing>, HostError> {
    let table = id.map_or_else(|| format!("copepod-{NEW}"), DataId::table);
    let parts = match (id, nft) {
        (Some(_), Some(nft)) => nft.parts(&table).step(|| "list the nftables".into())?,
        _ => None,
    };
    let purpose = "judges what pods send, and masquerades what leaves the cluster";
    let mut things =
        vec![thing(Kind::Nftables, format!("table inet {table}"), parts.is_some(), purpose)];
    let is_there = |part: &str| parts.iter().flatten().any(|there| there == part);
    let mut usual = vec!["chain forward", "chain input", "chain output", "chain out", "set direct"];
    // One set for each family that pods have, IPv4 where nothing is known yet.
    usual.retain(|part| *part != "set direct" || is_there(part) || !is_there("set direct6"));
    usual.extend(["set direct6"].iter().filter(|part| is_there(part)));
    things.extend(usual.into_iter().map(|part| {
        let present = parts.iter().flatten().any(|there| there == part);
        let purpose = match part {
            "chain forward" => "no address but a pod's own, none that is link-local or loopback",
            "chain input" => "the same towards this machine, and never the kubelet's port",
            "chain output" => "published sockets accept and never connect",
            "chain out" => "masquerade (--masquerade auto)",
            _ => "blocks that pods reach under their own addresses",
        };
        thing(Kind::Nftables, format!("{part} of {table}"), present, purpose)
    }));
    let table = id.map_or_else(|| format!("copepod-{NEW}-ports"), DataId::ports_table);
    let present = match (id, nft) {
        (Some(_), Some(nft)) => nft.parts(&table).step(|| "list the nftables".into())?.is_some(),
        _ => false,
    };
    let purpose = "leads ports of this machine to pods that ask for them (hostPort)";
    things.push(thing(Kind::Nftables, format!("table inet {table}"), present, purpose));
    Ok(things)
}

fn settings(changed: Vec<Changed>) -> Vec<Thing> {
    let usual = ["/proc/sys/vm/max_map_count", "/proc/sys/net/ipv4/conf/UPLINK/forwarding"];
    // `force_forwarding` of one link among them.
    let purpose = |path: &str| match path.rsplit_once('/').map_or(path, |(_, name)| name) {
        name if name.ends_with("forwarding") => "packets to and from pods are passed on",
        "accept_ra" => "a machine that passes packets on goes on learning its default route",
        _ => "more instances in one runner",
    };
    let like = |path: &&str| {
        let is_this = |changed: &Changed| purpose(&changed.path.to_string_lossy()) == purpose(path);
        !changed.iter().any(is_this)
    };
    let absent = usual.iter().filter(|path| like(path));
    let absent: Vec<Thing> =
        absent.map(|path| thing(Kind::Setting, (*path).to_owned(), false, purpose(path))).collect();
    let mut things: Vec<Thing> = changed
        .iter()
        .map(|changed| {
            let path = changed.path.display().to_string();
            let name = format!("{path} = {} (was {})", changed.after, changed.before);
            let now = fs::read_to_string(&changed.path).unwrap_or_default();
            thing(Kind::Setting, name, now.trim() == changed.after, purpose(&path))
        })
        .collect();
    things.extend(absent);
    things
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks() -> Blocks {
        "10.244.1.0/24,fd00:1::/64".parse().expect("blocks")
    }

    fn names(things: &[Thing], present: bool) -> Vec<&str> {
        let these = things.iter().filter(|thing| thing.present == present);
        these.map(|thing| thing.name.as_str()).collect()
    }

    #[test]
    fn what_will_be_made_is_told_by_the_names_that_it_will_have() {
        let things = of_network(Some(DataId::new(0x00c0_ffee)), Some(blocks()), Network::default());

        assert_eq!(names(&things, true), Vec::<&str>::new());
        for expected in [
            "cp00c0ffeex*",
            "10.244.1.1/32 dev lo",
            "unreachable 10.244.1.0/24 proto 67",
            "POD/32 dev cp00c0ffeex* proto 67",
            "fd00:1::1/128 dev lo",
            "unreachable fd00:1::/64 proto 67",
            "POD/128 dev cp00c0ffeex* proto 67",
            "NODE'S PODCIDR via NODE proto 67 metric 2153807863",
            "from 10.244.1.0/24 unreachable proto 67",
        ] {
            assert!(names(&things, false).contains(&expected), "{expected}: {things:?}");
        }
    }

    #[test]
    fn what_is_there_is_told_by_the_names_that_it_has() {
        let way = "10.244.2.0/24 via 192.0.2.2 dev eth0 proto 67 metric 2147483648";
        let found = Network {
            links: vec!["cp00c0ffeex0".into(), "cp00c0ffeex1".into()],
            claims: blocks().iter().collect(),
            pods: [(blocks().first(), 3)].into(),
            ways: vec![way.into()],
            ..Network::default()
        };

        let things = of_network(Some(DataId::new(0x00c0_ffee)), Some(blocks()), found);

        let there = [
            "cp00c0ffeex0",
            "cp00c0ffeex1",
            "unreachable 10.244.1.0/24 proto 67",
            "3 addresses of 10.244.1.0/24 dev cp00c0ffeex* proto 67",
            "unreachable fd00:1::/64 proto 67",
            way,
        ];
        assert_eq!(names(&things, true), there);
    }

    #[test]
    fn of_a_data_directory_that_is_not_made_yet_nothing_is_there() {
        let nowhere = Path::new("/nowhere/copepod");

        let things = files(nowhere, None);
        let nft = of_nft(None, None).expect("nobody is asked");

        assert!(!things[0].present && !things[1].present);
        assert!(nft.iter().all(|thing| !thing.present && thing.name.contains("copepod-ID")));
    }
}
