//! Who holds which port of a pod: the one place where two containers' binds meet.
//! Absent: the sockets' lives; an entry goes when its holder drops it or its container is closed, whichever is first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use crate::listening::Listening;
use crate::rules::{Family, Place, Scope};

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the pod, asked for by a container.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The protocol.
    pub proto: Proto,
    /// The port, never 0.
    pub port: u16,
    /// Where it is bound.
    pub place: Place,
    /// The family of the guest's socket.
    pub guest: Family,
    /// The container.
    pub container: Arc<str>,
}

impl Claim {
    /// As on Linux with `IPV6_V6ONLY`: the wildcard stands against every address of its family, and one address on the
    /// wire is held once.
    fn stands_against(&self, other: &Self) -> bool {
        let wildcard = self.place.scope == Scope::Wildcard || other.place.scope == Scope::Wildcard;
        self.place.ip == other.place.ip || (wildcard && self.guest == other.guest)
    }
}

/// Names an entry; no two entries of a table ever share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId(u64);

struct Entry {
    id: EntryId,
    claim: Claim,
    listener: Weak<Listening>,
}

/// The held ports of one pod. Empty, it owns no memory.
#[derive(Default)]
pub struct Table {
    ports: BTreeMap<(Proto, u16), Vec<Entry>>,
    next: u64,
}

impl Table {
    /// Holds the port, or tells which container holds one that stands against it.
    pub fn hold(&mut self, claim: Claim) -> Result<EntryId, Arc<str>> {
        let entries = self.ports.entry((claim.proto, claim.port)).or_default();
        if let Some(other) = entries.iter().find(|e| e.claim.stands_against(&claim)) {
            return Err(Arc::clone(&other.claim.container));
        }
        let id = EntryId(self.next);
        self.next += 1;
        entries.push(Entry { id, claim, listener: Weak::new() });
        Ok(id)
    }

    /// The entry's socket listens now: what [`Table::take_container`] gives back for closing.
    pub fn listens(&mut self, proto: Proto, port: u16, id: EntryId, listener: &Arc<Listening>) {
        let entries = self.ports.get_mut(&(proto, port)).into_iter().flatten();
        for entry in entries.filter(|e| e.id == id) {
            entry.listener = Arc::downgrade(listener);
        }
    }

    /// Lets the port go; nothing where the entry has gone already.
    pub fn release(&mut self, proto: Proto, port: u16, id: EntryId) {
        if let Some(entries) = self.ports.get_mut(&(proto, port)) {
            entries.retain(|e| e.id != id);
            if entries.is_empty() {
                self.ports.remove(&(proto, port));
            }
        }
    }

    /// Whether what is asked for on the loopback is to go to the pod's address of this family: the port is held on the
    /// wildcard there, and nobody holds it on the loopback itself.
    pub fn answers_for_loopback(&self, proto: Proto, family: Family, port: u16) -> bool {
        let Some(entries) = self.ports.get(&(proto, port)) else { return false };
        let on_loopback = |e: &Entry| e.claim.place.scope == Scope::Loopback;
        let on_wildcard = |e: &Entry| {
            e.claim.place.scope == Scope::Wildcard && Family::of(e.claim.place.ip) == family
        };
        entries.iter().any(on_wildcard) && !entries.iter().any(on_loopback)
    }

    /// The container's listeners.
    pub fn listeners<'a>(
        &'a self,
        container: &'a str,
    ) -> impl Iterator<Item = Arc<Listening>> + 'a {
        let entries = self.ports.values().flatten();
        entries.filter(|e| *e.claim.container == *container).filter_map(|e| e.listener.upgrade())
    }

    /// From now on the container's listeners are others' as well: the ports stay held, and closing them stops nothing.
    pub fn share(&mut self, container: &str) {
        let entries = self.ports.values_mut().flatten();
        for entry in entries.filter(|entry| *entry.claim.container == *container) {
            entry.listener = Weak::new();
        }
    }

    /// Takes out every entry of the container, or of all where `container` is `None`; what comes back listens still.
    pub fn take_container(&mut self, container: Option<&str>) -> Vec<Arc<Listening>> {
        let mut listeners = Vec::new();
        self.ports.retain(|_, entries| {
            entries.retain(|e| {
                let goes = container.is_none_or(|c| *e.claim.container == *c);
                if goes {
                    listeners.extend(e.listener.upgrade());
                }
                !goes
            });
            !entries.is_empty()
        });
        listeners
    }

    /// The addresses and ports held, for tests and for telling a user.
    pub fn held(&self) -> impl Iterator<Item = (Proto, u16, IpAddr, &str)> {
        self.ports
            .values()
            .flatten()
            .map(|e| (e.claim.proto, e.claim.port, e.claim.place.ip, &*e.claim.container))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 64, 0, 5));
    const POD_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, 5));
    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 64, 0, 5));

    fn claim(port: u16, guest: Family, scope: Scope, ip: IpAddr, container: &str) -> Claim {
        let place = Place { scope, ip };
        Claim { proto: Proto::Tcp, port, place, guest, container: container.into() }
    }

    #[test]
    fn the_holder_in_the_way_is_named() {
        let mut table = Table::default();
        table.hold(claim(80, Family::V4, Scope::Loopback, LOOPBACK, "web")).expect("free");

        let held = table.hold(claim(80, Family::V4, Scope::Wildcard, POD, "api"));

        assert_eq!(held.expect_err("it is held").as_ref(), "web");
    }

    #[test]
    fn two_families_and_two_protocols_do_not_meet() {
        let mut table = Table::default();
        let v4 = claim(80, Family::V4, Scope::Wildcard, POD, "web");
        let udp = Claim { proto: Proto::Udp, ..v4.clone() };

        table.hold(v4).expect("free");

        assert!(table.hold(claim(80, Family::V6, Scope::Wildcard, POD_V6, "web")).is_ok());
        assert!(table.hold(udp).is_ok());
        // Without IPv6 both wildcards are one address.
        assert!(table.hold(claim(80, Family::V6, Scope::Wildcard, POD, "web")).is_err());
    }

    #[test]
    fn an_entry_is_let_go_once_and_by_its_own_holder() {
        let mut table = Table::default();
        let wildcard = claim(80, Family::V4, Scope::Wildcard, POD, "web");
        let first = table.hold(wildcard.clone()).expect("free");
        table.take_container(Some("web"));
        table.hold(wildcard.clone()).expect("free again");

        table.release(Proto::Tcp, 80, first);

        assert!(table.hold(wildcard).is_err());
        assert_eq!(table.held().collect::<Vec<_>>(), [(Proto::Tcp, 80, POD, "web")]);
    }

    #[test]
    fn the_loopback_goes_to_the_wildcard_unless_somebody_is_on_the_loopback() {
        let mut table = Table::default();
        table.hold(claim(80, Family::V4, Scope::Wildcard, POD, "web")).expect("free");
        table.hold(claim(81, Family::V4, Scope::Pod, POD, "web")).expect("free");
        table.hold(claim(82, Family::V6, Scope::Wildcard, POD_V6, "web")).expect("free");
        table.hold(claim(82, Family::V4, Scope::Loopback, LOOPBACK, "web")).expect("free");

        let answers = |family, port| table.answers_for_loopback(Proto::Tcp, family, port);

        assert!(answers(Family::V4, 80));
        assert!(!answers(Family::V6, 80));
        assert!(!answers(Family::V4, 81));
        assert!(!answers(Family::V6, 82));
        assert!(!answers(Family::V4, 83));
    }
}
