//! Which addresses of the node's blocks are free.
//!
//! Pure. Absent: keeping the answer over a restart; the agent's journal does, and repeats it by [`AddressPool::take_this`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cidr::Blocks;

/// The most pods, whatever the blocks' size: as many as there are loopback addresses to tell them apart by, in 127.128.0.0/10.
const MOST: u32 = 1 << 22;

/// The addresses of blocks that pods may have: all but the network's, the gateway's and the last, which is IPv4's broadcast address. A
/// pod's addresses are as far from the beginning in each block as in the others: to know one is to know all.
///
/// What is given back is taken again as late as possible, so that a late packet does not find another pod under it.
#[derive(Clone, Debug)]
pub struct AddressPool {
    blocks: Blocks,
    taken: BTreeSet<u32>,
    next: u32,
}

/// A pod's place in each of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// How many addresses come before it in each block.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// The first that is neither the network's nor the gateway's.
const FIRST: u32 = 2;

impl AddressPool {
    /// All of the blocks is free.
    pub fn new(blocks: Blocks) -> Self {
        Self { blocks, taken: BTreeSet::new(), next: 0 }
    }

    fn size(&self) -> u32 {
        let smallest = self.blocks.iter().map(|block| block.following()).min().unwrap_or(0);
        smallest.min(MOST).saturating_sub(FIRST)
    }

    /// A free slot, or none.
    pub fn take(&mut self) -> Option<Slot> {
        let size = self.size();
        if self.taken.len() >= usize::try_from(size).unwrap_or(usize::MAX) {
            return None;
        }
        // One turn at most: there is a free one.
        let found = (0..size)
            .map(|step| (self.next + step) % size)
            .find(|offset| !self.taken.contains(&(FIRST + offset)))?;
        self.next = (found + 1) % size;
        self.taken.insert(FIRST + found);
        Some(Slot(FIRST + found))
    }

    /// Takes the slot of this very address; none where it is not a pod's or already taken.
    pub fn take_this(&mut self, address: IpAddr) -> Option<Slot> {
        let size = self.size();
        let slot = self.slot_of(address)?;
        let offset = slot.0.checked_sub(FIRST).filter(|&offset| offset < size)?;
        let free = self.taken.insert(slot.0);
        if free {
            // A pool that is filled from the journal goes on behind its newest address.
            self.next = self.next.max((offset + 1) % size);
        }
        free.then_some(slot)
    }

    /// Gives the slot of this address back; one that was not taken stays as it is.
    pub fn give_back(&mut self, address: IpAddr) {
        if let Some(Slot(number)) = self.slot_of(address) {
            self.taken.remove(&number);
        }
    }

    /// The addresses of a slot, the first block's first.
    pub fn addresses(&self, slot: Slot) -> Vec<IpAddr> {
        self.blocks.iter().filter_map(|block| block.at(slot.0)).collect()
    }

    fn slot_of(&self, address: IpAddr) -> Option<Slot> {
        self.blocks.of_family_of(address)?.offset_of(address).map(Slot)
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.taken.len()
    }

    /// The blocks.
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::cidr::Cidr;

    fn pool(text: &str) -> AddressPool {
        AddressPool::new(text.parse().expect("blocks"))
    }

    #[test]
    fn network_gateway_and_broadcast_are_never_handed_out() {
        for blocks in ["10.64.0.0/29", "fd00:64::/125", "fd00:64::/64,10.64.0.0/29"] {
            let mut pool = pool(blocks);

            let all: Vec<_> = std::iter::from_fn(|| pool.take()).map(Slot::number).collect();

            assert_eq!(all, [2, 3, 4, 5, 6], "{blocks}");
        }
        let mut pool = pool("10.64.0.0/29");
        for never in
            ["10.64.0.0", "10.64.0.1", "10.64.0.7", "10.64.0.8", "9.255.255.255", "fd00::2"]
        {
            assert_eq!(pool.take_this(never.parse().expect("an address")), None, "{never}");
        }
    }

    #[test]
    fn a_pod_has_an_address_of_each_block_in_the_blocks_order() {
        let mut pool = pool("fd00:64::/64,10.64.0.0/18");

        let slot = pool.take().expect("free");

        let expected = ["fd00:64::2", "10.64.0.2"].map(|it| it.parse().expect("an address"));
        assert_eq!(pool.addresses(slot), expected);
        assert_eq!(pool.take_this(expected[1]), None, "it is one slot");
        pool.give_back(expected[1]);
        assert_eq!(pool.take_this(expected[0]), Some(slot));
    }

    #[test]
    fn a_block_without_room_for_a_pod_has_no_address() {
        for tiny in
            ["10.64.0.0/32", "10.64.0.0/31", "255.255.255.255/32", "fd00::/128", "fd00::/127"]
        {
            assert_eq!(pool(tiny).take(), None, "{tiny}");
        }
        assert!(pool("10.64.0.0/30").take().is_some());
    }

    #[test]
    fn an_address_given_back_is_the_last_to_be_taken_again() {
        let mut pool = pool("10.64.0.0/29");
        let first = pool.take().expect("free");

        pool.give_back(pool.addresses(first)[0]);
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
            let block = Cidr::around(Ipv4Addr::new(10, 64, 0, 0).into(), prefix);
            let mut pool = AddressPool::new(block.into());
            let mut owned = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Take => match pool.take() {
                        Some(slot) => prop_assert!(owned.insert(pool.addresses(slot)[0])),
                        None => {
                            let room = (1_usize << (32 - prefix)).saturating_sub(3);
                            prop_assert_eq!(owned.len(), room);
                        }
                    },
                    Step::TakeThis(last) => {
                        let address = Ipv4Addr::new(10, 64, 0, last).into();
                        if pool.take_this(address).is_some() {
                            prop_assert!(owned.insert(address));
                        }
                    }
                    Step::GiveBack(last) => {
                        let address = Ipv4Addr::new(10, 64, 0, last).into();
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
