//! What an address that a guest names means in the network of its runner: pure functions over the pod's own addresses.
//! Absent: sockets, ports that are held (a closure tells), names; an address is judged where it is used, never where it was looked up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use copepod_shim::destination;
use copepod_shim::protocol::PodSandbox;

/// The address in the runner's own loopback network from which [`crate::PodNet::dial`] connects. No guest can have it: a
/// pod's loopback address is another one, and guests bind nothing but their own.
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);
/// As [`OUTSIDE_V4`] for a pod that has IPv6 alone. The loopback of IPv6 guests is an IPv4 address, so `::1` is free.
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

/// What guests see as the source of a dial where the node's own address is not known: the dummy address of RFC 7600.
const DUMMY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// As [`DUMMY_V4`]: the discard-only prefix of RFC 6666.
const DUMMY_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0);

/// An address family, of a guest's socket or of the socket beneath it; the two differ where IPv6 is shown over IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family that an address is written in.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Its wildcard: `0.0.0.0` or `::`.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// Which of its pod's addresses a port is bound to, as the guest asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them: `0.0.0.0` or `[::]`.
    Wildcard,
    /// The pod IP, named.
    Pod,
    /// The loopback: `127.0.0.0/8` or `::1`.
    Loopback,
}

/// Where a bind goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What the guest asked for.
    pub scope: Scope,
    /// The address that the socket is bound to. Always one of the pod's own.
    pub ip: IpAddr,
}

/// Where a connection or a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The source address. Always one of the pod's own, and of the destination's family.
    pub source: IpAddr,
    /// The destination.
    pub to: SocketAddr,
    /// Whether the destination is an address of the pod itself.
    pub inside: bool,
}

/// Why nothing goes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No guest of this pod may reach it.
    #[error("the pod may not reach this address")]
    Denied,
    /// The pod has no address of that family, or the socket is bound to one from which nothing leads there.
    #[error("no route from the pod to this address")]
    Unreachable,
}

/// One pod's addresses and what it may reach.
#[derive(Debug)]
pub struct Rules {
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    loopback: Ipv4Addr,
    /// Canonical: no mapped address, so that one comparison sees every spelling.
    denied: Box<[IpAddr]>,
}

impl Rules {
    /// The rules of the pod of this sandbox.
    pub fn new(sandbox: &PodSandbox) -> Self {
        Self {
            ipv4: sandbox.ipv4,
            ipv6: sandbox.ipv6,
            loopback: sandbox.loopback,
            denied: sandbox.denied.iter().map(IpAddr::to_canonical).collect(),
        }
    }

    /// The pod's own addresses, IPv4 first.
    pub fn pod_ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (v4, v6) = (self.ipv4.map(IpAddr::V4), self.ipv6.map(IpAddr::V6));
        v4.into_iter().chain(v6)
    }

    /// Whether the pod has an address of this family.
    pub fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4.is_some(),
            Family::V6 => self.ipv6.is_some(),
        }
    }

    /// The family of the socket beneath a guest's, before it is bound: on a pod without IPv6, an IPv6 socket of a guest is
    /// an IPv4 one that shows mapped addresses.
    pub fn beneath(&self, guest: Family) -> Family {
        if guest == Family::V6 && self.has(Family::V6) { Family::V6 } else { Family::V4 }
    }

    /// Whether a guest's socket takes this address at all. A mapped address is IPv4's business (WASI fixes `IPV6_V6ONLY`),
    /// but where mapped addresses are shown, they are taken back; those of `::/96` have had no meaning since 2006.
    pub fn is_of_family(&self, guest: Family, ip: IpAddr) -> bool {
        match (guest, ip) {
            (Family::V4, IpAddr::V4(_)) => true,
            (Family::V6, IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
                Some(_) => !self.has(Family::V6),
                None => !is_compatible(ip),
            },
            _ => false,
        }
    }

    /// Where a guest's bind to `asked` goes; `None`: not an address that this pod can bind.
    ///
    /// `::1` stands for the pod's one loopback address, which is IPv4, so a port of it is one for both spellings. Of a pod without
    /// IPv4 the loopback is the only IPv4 address, and so what `0.0.0.0` comes to.
    pub fn bind(&self, guest: Family, asked: IpAddr) -> Option<Place> {
        let asked = asked.to_canonical();
        if self.pod_ips().any(|own| own == asked) {
            return Some(Place { scope: Scope::Pod, ip: asked });
        }
        if is_loopback(asked) {
            return Some(Place { scope: Scope::Loopback, ip: self.loopback.into() });
        }
        if !asked.is_unspecified() {
            return None;
        }
        let ip = match self.beneath(guest) {
            Family::V4 => self.ipv4.unwrap_or(self.loopback).into(),
            Family::V6 => self.ipv6?.into(),
        };
        Some(Place { scope: Scope::Wildcard, ip })
    }

    /// Where a guest's packets to `asked` go. `wildcard` tells whether a port is held on the wildcard, and not on the
    /// loopback, by a socket of the given family beneath.
    pub fn route(
        &self,
        guest: Family,
        asked: SocketAddr,
        wildcard: impl Fn(Family, u16) -> bool,
    ) -> Result<Route, Refused> {
        let (ip, port) = (asked.ip().to_canonical(), asked.port());
        if let Some(own) = self.pod_ips().find(|own| *own == ip) {
            return Ok(Route { source: own, to: SocketAddr::new(own, port), inside: true });
        }
        if is_loopback(ip) {
            return Ok(self.route_to_loopback(guest, port, wildcard));
        }
        if !self.may_leave_for(ip) {
            return Err(Refused::Denied);
        }
        self.route_unjudged(asked)
    }

    /// The route out of the pod to an address that is none of its own and that somebody else than a guest vouches for.
    pub(crate) fn route_unjudged(&self, to: SocketAddr) -> Result<Route, Refused> {
        let ip = to.ip().to_canonical();
        let source = match Family::of(ip) {
            Family::V4 => self.ipv4.map(IpAddr::V4),
            Family::V6 => self.ipv6.map(IpAddr::V6),
        };
        let source = source.ok_or(Refused::Unreachable)?;
        Ok(Route { source, to: SocketAddr::new(ip, to.port()), inside: false })
    }

    fn route_to_loopback(
        &self,
        guest: Family,
        port: u16,
        wildcard: impl Fn(Family, u16) -> bool,
    ) -> Route {
        if let (Family::V6, Some(pod)) = (guest, self.ipv6)
            && wildcard(Family::V6, port)
        {
            // No loopback address is of this family, so the source is the pod's, too.
            return Route {
                source: pod.into(),
                to: SocketAddr::new(pod.into(), port),
                inside: true,
            };
        }
        let to = match self.ipv4 {
            Some(pod) if wildcard(Family::V4, port) => pod,
            _ => self.loopback,
        };
        Route { source: self.loopback.into(), to: SocketAddr::new(to.into(), port), inside: true }
    }

    /// The same route for a socket that is bound already: its source is where it is bound.
    pub fn from_bound(&self, bound: Place, route: Route) -> Result<Route, Refused> {
        let leads_there = Family::of(bound.ip) == Family::of(route.to.ip())
            && (route.inside || bound.scope != Scope::Loopback);
        if !leads_there {
            return Err(Refused::Unreachable);
        }
        Ok(Route { source: bound.ip, ..route })
    }

    /// What the guest sees of an address on the wire.
    pub fn shown(&self, guest: Family, actual: IpAddr) -> IpAddr {
        let actual = actual.to_canonical();
        let ip = if self.pod_ips().any(|own| own == actual) {
            actual
        } else if actual == IpAddr::V4(self.loopback) {
            return match guest {
                Family::V4 => Ipv4Addr::LOCALHOST.into(),
                Family::V6 => Ipv6Addr::LOCALHOST.into(),
            };
        } else if actual == IpAddr::V4(OUTSIDE_V4) {
            self.node_address(Family::V4).unwrap_or(DUMMY_V4.into())
        } else if actual == IpAddr::V6(OUTSIDE_V6) {
            self.node_address(Family::V6).unwrap_or(DUMMY_V6.into())
        } else {
            actual
        };
        match (guest, ip) {
            (Family::V6, IpAddr::V4(ip)) => ip.to_ipv6_mapped().into(),
            _ => ip,
        }
    }

    /// The node's own address, as probes of a kubelet come from: `denied` holds the node's addresses first.
    fn node_address(&self, family: Family) -> Option<IpAddr> {
        self.denied.iter().copied().find(|ip| Family::of(*ip) == family)
    }

    /// Whether the pod may send to an address that is not its own. What an IPv6 address carries of IPv4 through a
    /// translator or a tunnel is judged like the address itself.
    pub fn may_leave_for(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        if self.denied.contains(&ip) {
            return false;
        }
        let carried = match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => destination::carried_v4(ip),
        };
        destination::is_ordinary(ip) && carried.is_none_or(|v4| self.may_leave_for(IpAddr::V4(v4)))
    }
}

fn is_compatible(ip: Ipv6Addr) -> bool {
    destination::is_low(ip) && !ip.is_unspecified() && !ip.is_loopback()
}

/// `ip` is canonical.
fn is_loopback(ip: IpAddr) -> bool {
    ip.is_loopback()
}

#[cfg(test)]
mod tests {
    use copepod_shim::protocol::Dns;
    use proptest::prelude::*;

    use super::*;

    const POD_V4: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 5);
    const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, 5);
    const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 5);
    const NODE_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
    const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10);

    fn rules(v4: bool, v6: bool) -> Rules {
        Rules::new(&PodSandbox {
            pod: String::new(),
            name: String::new(),
            namespace: String::new(),
            ipv4: v4.then_some(POD_V4),
            ipv6: v6.then_some(POD_V6),
            loopback: LOOPBACK,
            hostname: String::new(),
            hosts: Vec::new(),
            dns: Dns::default(),
            denied: vec![NODE_V4.to_ipv6_mapped().into(), NODE_V6.into()],
            max_sockets: 1,
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn nobody(_: Family, _: u16) -> bool {
        false
    }

    /// What no packet of a guest may ever go to, written down once more and otherwise than the judge has it.
    fn is_forbidden(ip: IpAddr) -> bool {
        let in_v4 = |ip: Ipv4Addr, net: Ipv4Addr, length: u32| {
            u32::from(ip) >> (32 - length) == u32::from(net) >> (32 - length)
        };
        let in_v6 = |ip: Ipv6Addr, net: &str, length: u32| {
            let net: Ipv6Addr = net.parse().expect("an address");
            u128::from(ip) >> (128 - length) == u128::from(net) >> (128 - length)
        };
        match ip {
            IpAddr::V4(ip) => {
                ip == NODE_V4
                    || in_v4(ip, Ipv4Addr::new(0, 0, 0, 0), 8)
                    || in_v4(ip, Ipv4Addr::new(127, 0, 0, 0), 8)
                    || in_v4(ip, Ipv4Addr::new(169, 254, 0, 0), 16)
                    || in_v4(ip, Ipv4Addr::new(224, 0, 0, 0), 3)
            }
            IpAddr::V6(ip) => {
                let low = (u128::from(ip) as u32).into();
                let next_to_top = ((u128::from(ip) >> 80) as u32).into();
                ip == NODE_V6
                    || in_v6(ip, "::", 96)
                    || in_v6(ip, "fe80::", 10)
                    || in_v6(ip, "fec0::", 10)
                    || in_v6(ip, "ff00::", 8)
                    || (in_v6(ip, "::ffff:0:0", 96) && is_forbidden(IpAddr::V4(low)))
                    || (in_v6(ip, "::ffff:0:0:0", 96) && is_forbidden(IpAddr::V4(low)))
                    || (in_v6(ip, "64:ff9b::", 96) && is_forbidden(IpAddr::V4(low)))
                    || in_v6(ip, "64:ff9b:1::", 48)
                    || (in_v6(ip, "2002::", 16) && is_forbidden(IpAddr::V4(next_to_top)))
            }
        }
    }

    fn any_v4() -> impl Strategy<Value = Ipv4Addr> {
        let near = |ip: Ipv4Addr| {
            any::<u8>().prop_map(move |low| {
                let [a, b, c, _] = ip.octets();
                Ipv4Addr::new(a, b, c, low)
            })
        };
        prop_oneof![
            any::<Ipv4Addr>(),
            Just(NODE_V4),
            Just(POD_V4),
            Just(LOOPBACK),
            near(Ipv4Addr::LOCALHOST),
            near(Ipv4Addr::new(169, 254, 169, 254)),
            near(Ipv4Addr::UNSPECIFIED),
            near(Ipv4Addr::BROADCAST),
            near(NODE_V4),
        ]
    }

    /// Any address, and any IPv4 address in every spelling that IPv6 has for it.
    fn any_ip() -> impl Strategy<Value = IpAddr> {
        let inside = |prefix: &'static str, shift: u32| {
            let prefix: Ipv6Addr = prefix.parse().expect("an address");
            any_v4().prop_map(move |v4| {
                let carried = u128::from(u32::from(v4)) << shift;
                IpAddr::V6(Ipv6Addr::from(u128::from(prefix) | carried))
            })
        };
        let under = |prefix: &'static str, length: u32| {
            let prefix: Ipv6Addr = prefix.parse().expect("an address");
            any::<u128>().prop_map(move |low| {
                IpAddr::V6(Ipv6Addr::from(u128::from(prefix) | (low >> length)))
            })
        };
        prop_oneof![
            any_v4().prop_map(IpAddr::V4),
            any::<Ipv6Addr>().prop_map(IpAddr::V6),
            Just(IpAddr::V6(NODE_V6)),
            Just(IpAddr::V6(POD_V6)),
            Just(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            inside("::", 0),
            inside("::ffff:0:0", 0),
            inside("::ffff:0:0:0", 0),
            inside("64:ff9b::", 0),
            inside("2002::", 80),
            under("fe80::", 10),
            under("fec0::", 10),
            under("ff00::", 8),
            under("64:ff9b:1::", 48),
        ]
    }

    fn any_family() -> impl Strategy<Value = Family> {
        prop_oneof![Just(Family::V4), Just(Family::V6)]
    }

    proptest! {
        #[test]
        fn no_destination_outside_the_allowed_set_ever_passes(
            (v4, v6) in any::<(bool, bool)>(),
            guest in any_family(),
            asked in any_ip(),
            port in any::<u16>(),
            (held_v4, held_v6) in any::<(bool, bool)>(),
        ) {
            let rules = rules(v4, v6);
            let held = |family, _| if family == Family::V4 { held_v4 } else { held_v6 };

            let route = rules.route(guest, SocketAddr::new(asked, port), held);

            if let Ok(route) = route {
                let own: Vec<IpAddr> = rules.pod_ips().chain([LOOPBACK.into()]).collect();
                prop_assert!(own.contains(&route.source), "{route:?}");
                prop_assert_eq!(Family::of(route.source), Family::of(route.to.ip()));
                prop_assert_eq!(route.to.port(), port);
                prop_assert_eq!(route.inside, own.contains(&route.to.ip()));
                if !route.inside {
                    prop_assert!(!is_forbidden(route.to.ip()) && !is_forbidden(asked), "{route:?}");
                    prop_assert_eq!(route.to.ip(), asked.to_canonical());
                    prop_assert!(route.source != IpAddr::V4(LOOPBACK), "{route:?}");
                }
            }
        }

        #[test]
        fn nothing_is_ever_bound_but_an_address_of_the_pods_own(
            (v4, v6) in any::<(bool, bool)>(),
            guest in any_family(),
            asked in any_ip(),
        ) {
            let rules = rules(v4, v6);

            if let Some(place) = rules.bind(guest, asked) {
                let is_pods = rules.pod_ips().any(|own| own == place.ip);
                let is_loopback = place.ip == IpAddr::V4(LOOPBACK);
                let is_all_of_ipv4 = !v4 && place.scope == Scope::Wildcard;
                prop_assert_eq!(place.scope == Scope::Loopback || is_all_of_ipv4 && is_loopback, is_loopback);
                prop_assert!(is_pods || is_loopback);
            }
        }

        #[test]
        fn no_address_of_the_machinery_is_ever_shown(guest in any_family(), actual in any_ip()) {
            let shown = rules(true, true).shown(guest, actual).to_canonical();

            prop_assert_ne!(shown, IpAddr::V4(LOOPBACK));
            prop_assert_ne!(shown, IpAddr::V4(OUTSIDE_V4));
        }
    }

    #[test]
    fn a_bind_goes_to_the_pods_own_addresses() {
        let (v4_only, v6_only, dual) = (rules(true, false), rules(false, true), rules(true, true));
        let place = |scope, ip: IpAddr| Some(Place { scope, ip });
        let on_pod = place(Scope::Wildcard, POD_V4.into());
        let on_loopback = place(Scope::Loopback, LOOPBACK.into());
        let cases = [
            (&v4_only, Family::V4, "0.0.0.0", on_pod),
            (&v4_only, Family::V6, "::", on_pod),
            (&dual, Family::V6, "::", place(Scope::Wildcard, POD_V6.into())),
            (&v6_only, Family::V6, "::", place(Scope::Wildcard, POD_V6.into())),
            (&v6_only, Family::V4, "0.0.0.0", place(Scope::Wildcard, LOOPBACK.into())),
            (&v6_only, Family::V4, "10.64.0.5", None),
            (&dual, Family::V4, "127.0.0.1", on_loopback),
            (&dual, Family::V4, "127.250.0.9", on_loopback),
            (&dual, Family::V6, "::1", on_loopback),
            (&dual, Family::V4, "10.64.0.5", place(Scope::Pod, POD_V4.into())),
            (&dual, Family::V6, "fd64::5", place(Scope::Pod, POD_V6.into())),
            (&v4_only, Family::V6, "fd64::5", None),
            (&dual, Family::V4, "10.64.0.6", None),
            (&dual, Family::V4, "192.168.1.10", None),
            (&dual, Family::V4, "255.255.255.255", None),
        ];

        for (rules, guest, asked, expected) in cases {
            assert_eq!(rules.bind(guest, ip(asked)), expected, "{asked}");
        }
    }

    #[test]
    fn the_loopback_leads_to_the_pod_ip_where_the_port_is_held_on_the_wildcard() {
        let rules = rules(true, true);
        let held = |_, port| port == 80;
        let to = |guest, asked: &str| {
            let asked = asked.parse().expect("an address with a port");
            let route = rules.route(guest, asked, held).expect("its own");
            assert!(route.inside);
            (route.source, route.to)
        };

        let (loopback, v4, v6) = (IpAddr::V4(LOOPBACK), IpAddr::V4(POD_V4), IpAddr::V6(POD_V6));
        assert_eq!(to(Family::V4, "127.0.0.1:80"), (loopback, SocketAddr::new(v4, 80)));
        assert_eq!(to(Family::V4, "127.0.0.1:81"), (loopback, SocketAddr::new(loopback, 81)));
        assert_eq!(to(Family::V4, "127.9.9.9:81"), (loopback, SocketAddr::new(loopback, 81)));
        assert_eq!(to(Family::V6, "[::1]:80"), (v6, SocketAddr::new(v6, 80)));
        assert_eq!(to(Family::V6, "[::1]:81"), (loopback, SocketAddr::new(loopback, 81)));
        assert_eq!(to(Family::V4, "10.64.0.5:81"), (v4, SocketAddr::new(v4, 81)));
    }

    #[test]
    fn the_pods_own_address_is_its_own_where_it_lies_in_a_denied_range() {
        let pod = Ipv4Addr::new(127, 5, 0, 1);
        let rules =
            Rules { ipv4: Some(pod), denied: [IpAddr::V4(pod)].into(), ..rules(true, false) };
        let asked = SocketAddr::new(pod.into(), 80);

        let route = rules.route(Family::V4, asked, nobody).expect("its own");

        assert_eq!((route.source, route.to), (pod.into(), asked));
    }

    #[test]
    fn a_pod_without_a_family_has_no_route_in_it() {
        let asked = SocketAddr::new(ip("2001:db8::1"), 443);

        let refused = rules(true, false).route(Family::V6, asked, nobody);

        assert_eq!(refused, Err(Refused::Unreachable));
    }

    #[test]
    fn a_zone_or_flow_of_an_address_goes_no_further() {
        let asked =
            std::net::SocketAddrV6::new("2001:db8::1".parse().expect("an address"), 1, 7, 9);

        let route = rules(true, true).route(Family::V6, asked.into(), nobody).expect("allowed");

        assert_eq!(route.to, SocketAddr::new(ip("2001:db8::1"), 1));
    }
}
