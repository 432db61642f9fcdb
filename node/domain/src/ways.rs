//! The ways from this machine to other nodes' pods: routes to their blocks, and leave to go there under the pods' own addresses.
//!
//! A route of ours bears our protocol number and the data directory's metric, so that it is found again after a crash, told from
//! another data directory's, and of less weight than anybody else's route to the same block. Absent: which ways there should be
//! (`copepod-kubelet`, in `routes`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use crate::cidr::{Blocks, Cidr};
use crate::error::{HostError, Step};
use crate::host::{Host, Inner, blocking, forward_on};
use crate::netlink::{Change, Netlink, Route, WayTo};
use crate::network;

/// A way to another node's pods: their block lies behind a neighbour on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The pods' addresses.
    pub block: Cidr,
    /// The node's own address, of the family of its pods'.
    pub gateway: IpAddr,
    /// The link's number.
    pub link: u32,
}

/// A change of this data directory's ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayChange {
    /// This is the way to the block, in the place of another one of ours.
    Set(Way),
    /// It is not any more.
    Remove(Way),
}

/// What this machine knows of ways to other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// This data directory's ways.
    pub ours: BTreeSet<Way>,
    /// Blocks to which the main table has somebody else's routes, or which somebody here has claimed; without the default route.
    pub others: BTreeSet<Cidr>,
    /// How each address that was asked about is reached; nothing for one to which no route leads.
    pub reach: BTreeMap<IpAddr, WayTo>,
}

impl Host {
    /// What leads where now, and how these addresses are reached.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn surroundings(&self, nodes: Vec<IpAddr>) -> Result<Surroundings, HostError> {
        let inner = self.inner.clone();
        blocking(move || inner.surroundings(&nodes)).await
    }

    /// Makes changes, each whether or not the ones before it succeeded; those that failed, with the reason. Packets that come by a way's
    /// link are passed on from then on.
    ///
    /// # Errors
    /// Nothing could be changed.
    pub async fn change_ways(
        &self,
        changes: Vec<WayChange>,
    ) -> Result<Vec<(WayChange, io::Error)>, HostError> {
        let inner = self.inner.clone();
        blocking(move || inner.change_ways(&changes)).await
    }

    /// Has pods reach these blocks, beside the configured ones, under their own addresses, and no others. No packet is lost meanwhile.
    ///
    /// # Errors
    /// A step that failed.
    pub async fn set_direct(&self, blocks: Vec<Cidr>) -> Result<(), HostError> {
        let inner = self.inner.clone();
        blocking(move || inner.set_direct(&blocks)).await
    }
}

impl Inner {
    fn surroundings(&self, nodes: &[IpAddr]) -> Result<Surroundings, HostError> {
        let mut seen = Surroundings::default();
        let metric = self.id.metric();
        let mut netlink = self.netlink();
        let each = |route: Route| match of(&route, metric) {
            Some(way) => drop(seen.ours.insert(way)),
            None if is_of_others(&route, self.blocks) => drop(seen.others.insert(route.block)),
            None => {}
        };
        netlink.routes(each).step(|| "read the routes".into())?;
        for &node in nodes {
            // The kernel's answer for one that cannot be reached is an error.
            if let Ok(way) = netlink.way_to(node) {
                seen.reach.insert(node, way);
            }
        }
        Ok(seen)
    }

    fn change_ways(&self, changes: &[WayChange]) -> Result<Vec<(WayChange, io::Error)>, HostError> {
        let metric = self.id.metric();
        let mut netlink = self.netlink();
        // Once for each link and family.
        let through: BTreeMap<(u32, bool), IpAddr> = changes
            .iter()
            .filter_map(|change| match change {
                WayChange::Set(way) => Some(((way.link, way.gateway.is_ipv4()), way.gateway)),
                WayChange::Remove(_) => None,
            })
            .collect();
        if !through.is_empty() {
            let links = netlink.links().step(|| "list the links".into())?;
            for ((link, _), gateway) in through {
                if let Some((_, name)) = links.iter().find(|(number, _)| *number == link) {
                    forward_on(name, gateway)?;
                }
            }
        }
        let asked: Vec<Change> = changes
            .iter()
            .map(|change| match *change {
                WayChange::Set(Way { block, gateway, link }) => {
                    Change::set_route_to_block(block, gateway, link, metric)
                }
                WayChange::Remove(Way { block, gateway, link }) => {
                    Change::remove_route_to_block(block, gateway, link, metric)
                }
            })
            .collect();
        let results = netlink.try_each(&asked).step(|| "set routes to other nodes".into())?;
        let failed = changes.iter().zip(&asked).zip(results).filter_map(|((change, asked), it)| {
            let error = it.err().filter(|error| !asked.is_so_already(error))?;
            Some((*change, error))
        });
        Ok(failed.collect())
    }

    fn set_direct(&self, blocks: &[Cidr]) -> Result<(), HostError> {
        if self.user.is_some() {
            return Ok(());
        }
        let mut rules = self.rules();
        rules.exceptions = self.exceptions.iter().chain(blocks).copied().collect();
        if let Some(nft) = &self.nft {
            // Where somebody has flushed all tables, ours comes back whole.
            nft.set_exceptions(&rules).or_else(|_| nft.load(&rules))?;
        }
        for block in &self.confined {
            network::confine(&mut self.netlink(), *block, Some(rules.exceptions.as_slice()))?;
        }
        Ok(())
    }
}

/// The way that a route of the data directory with this metric is.
pub(crate) fn of(route: &Route, metric: u32) -> Option<Way> {
    let (link, gateway) = (route.link?, route.gateway?);
    let ours = route.ours && route.main && route.metric == metric;
    ours.then_some(Way { block: route.block, gateway, link })
}

/// Whether a route keeps its block for somebody else than the data directory with these blocks and other data directories' ways and pods.
fn is_of_others(route: &Route, own: Blocks) -> bool {
    let is_claim = route.is_claim() && own.iter().all(|block| route.block != block);
    route.main && route.block.prefix() > 0 && (is_claim || !route.ours)
}

/// Removes the ways of the data directory with this metric.
pub(crate) fn remove_all(netlink: &mut Netlink, metric: u32) -> Result<(), HostError> {
    let mut ours = Vec::new();
    let each = |route: Route| ours.extend(of(&route, metric));
    netlink.routes(each).step(|| "read the routes".into())?;
    let removals: Vec<Change> = ours
        .into_iter()
        .map(|Way { block, gateway, link }| {
            Change::remove_route_to_block(block, gateway, link, metric)
        })
        .collect();
    netlink.apply(&removals).step(|| "remove the routes to other nodes".into())
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::RouteType;

    use super::*;

    const METRIC: u32 = 1 << 31;

    fn block(text: &str) -> Cidr {
        text.parse().expect("a block")
    }

    fn route(to: &str) -> Route {
        Route {
            block: block(to),
            kind: RouteType::Unicast,
            ours: true,
            main: true,
            link: Some(3),
            gateway: Some(IpAddr::from([192, 0, 2, 2])),
            metric: METRIC,
        }
    }

    #[test]
    fn a_route_is_this_data_directory_s_by_its_protocol_and_its_metric() {
        let there = route("10.244.2.0/24");

        assert_eq!(of(&there, METRIC).map(|way| way.block), Some(there.block));
        assert_eq!(of(&there, METRIC + 1), None, "another directory's");
        assert_eq!(of(&Route { ours: false, ..there }, METRIC), None, "somebody's");
        assert_eq!(of(&Route { gateway: None, ..there }, METRIC), None, "a pod's");
    }

    #[test]
    fn what_others_route_or_claim_is_theirs_and_a_default_route_is_no_claim() {
        let own: Blocks = "10.244.1.0/24,fd00:1::/64".parse().expect("blocks");
        let claim = |to: &str| {
            let kind = RouteType::Unreachable;
            Route { kind, link: None, gateway: None, metric: 0, ..route(to) }
        };

        assert!(is_of_others(&Route { ours: false, ..route("10.244.2.0/24") }, own));
        assert!(is_of_others(&claim("10.244.2.0/24"), own), "another data directory's pods");
        assert!(is_of_others(&Route { link: Some(1), ..claim("fd00:2::/64") }, own));
        for free in [
            claim("10.244.1.0/24"),
            // Of IPv6 the kernel tells the loopback's link.
            Route { link: Some(1), ..claim("fd00:1::/64") },
            route("10.244.2.0/24"),
            Route { ours: false, ..route("0.0.0.0/0") },
            Route { ours: false, main: false, ..route("10.244.2.0/24") },
        ] {
            assert!(!is_of_others(&free, own), "{free:?}");
        }
    }
}
