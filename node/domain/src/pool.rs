//! Which addresses of the node's block are free.
//!
//! Pure. Absent: keeping the answer over a restart; the agent's journal does, and repeats it by [`AddressPool::take_this`].

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::cidr::Cidr;

/// The addresses of a block that pods may have: all but the network's, the gateway's and the broadcast address.
///
/// An address given back is taken again as late as possible, so that a late packet does not find another pod under it.
#[derive(Clone, Debug)]
pub struct AddressPool {
    block: Cidr,
    taken: BTreeSet<u32>,
    next: u32,
}

impl AddressPool {
    /// All of the block is free.
    pub fn new(block: Cidr) -> Self {
        Self { block, taken: BTreeSet::new(), next: 0 }
    }

    fn first(&self) -> u32 {
        self.block.base().to_bits().saturating_add(2)
    }

    fn size(&self) -> u32 {
        self.block.last().to_bits().saturating_sub(self.first())
    }

    /// A free address, or none.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let (first, size) = (self.first(), self.size());
        if self.taken.len() >= usize::try_from(size).unwrap_or(usize::MAX) {
            return None;
        }
        // One turn at most: there is a free address.
        let found = (0..size)
            .map(|step| (self.next + step) % size)
            .find(|offset| !self.taken.contains(&(first + offset)))?;
        self.next = (found + 1) % size;
        self.taken.insert(first + found);
        Some((first + found).into())
    }

    /// Takes this very address; false where it is not a pod's or already taken.
    pub fn take_this(&mut self, address: Ipv4Addr) -> bool {
        let (first, size) = (self.first(), self.size());
        let Some(offset) = address.to_bits().checked_sub(first).filter(|&offset| offset < size)
        else {
            return false;
        };
        let free = self.taken.insert(address.to_bits());
        if free && size > 0 {
            // A pool that is filled from the journal goes on behind its newest address.
            self.next = self.next.max((offset + 1) % size);
        }
        free
    }

    /// Gives an address back; one that was not taken stays as it is.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address.to_bits());
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.taken.len()
    }

    /// The block.
    pub fn block(&self) -> Cidr {
        self.block
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(text: &str) -> AddressPool {
        AddressPool::new(text.parse().expect("a block"))
    }

    #[test]
    fn network_gateway_and_broadcast_are_never_handed_out() {
        let mut pool = pool("10.64.0.0/29");

        let all: Vec<_> = std::iter::from_fn(|| pool.take()).map(|a| a.octets()[3]).collect();

        assert_eq!(all, [2, 3, 4, 5, 6]);
        for never in ["10.64.0.0", "10.64.0.1", "10.64.0.7", "10.64.0.8", "9.255.255.255"] {
            assert!(!pool.take_this(never.parse().expect("an address")), "{never}");
        }
    }

    #[test]
    fn a_block_without_room_for_a_pod_has_no_address() {
        for tiny in ["10.64.0.0/32", "10.64.0.0/31", "255.255.255.255/32"] {
            assert_eq!(pool(tiny).take(), None, "{tiny}");
        }
        assert!(pool("10.64.0.0/30").take().is_some());
    }

    #[test]
    fn an_address_given_back_is_the_last_to_be_taken_again() {
        let mut pool = pool("10.64.0.0/29");
        let first = pool.take().expect("free");

        pool.give_back(first);
        let order: Vec<_> = std::iter::from_fn(|| pool.take()).collect();

        assert_eq!(order.last(), Some(&first));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take,
        TakeThis(u8),
        GiveBack(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Take),
            1 => any::<u8>().prop_map(Step::TakeThis),
            2 => any::<u8>().prop_map(Step::GiveBack),
        ]
    }

    proptest! {
        #[test]
        fn no_address_has_two_owners_and_none_is_lost(
            prefix in 25_u8..=32,
            steps in prop::collection::vec(step(), 0..400),
        ) {
            let block = Cidr::around([10, 64, 0, 0].into(), prefix);
            let mut pool = AddressPool::new(block);
            let mut owned = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Take => match pool.take() {
                        Some(address) => prop_assert!(owned.insert(address)),
                        None => {
                            let room = (1_usize << (32 - prefix)).saturating_sub(3);
                            prop_assert_eq!(owned.len(), room);
                        }
                    },
                    Step::TakeThis(last) => {
                        let address = Ipv4Addr::new(10, 64, 0, last);
                        if pool.take_this(address) {
                            prop_assert!(owned.insert(address));
                        }
                    }
                    Step::GiveBack(last) => {
                        let address = Ipv4Addr::new(10, 64, 0, last);
                        pool.give_back(address);
                        owned.remove(&address);
                    }
                }
                prop_assert_eq!(pool.taken(), owned.len());
                prop_assert!(owned.iter().all(|a| block.contains(*a) && *a != block.gateway()
                    && *a != block.base() && *a != block.last()));
            }
        }
    }
}
