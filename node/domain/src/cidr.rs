//! A block of IPv4 addresses.
//!
//! Pure. Absent: IPv6 blocks; a pod's IPv6 address is given by whoever configures one.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A block of IPv4 addresses; no bit of `base` beyond the prefix is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

impl Cidr {
    /// The block, or none where `prefix` is no prefix or `base` has bits beyond it.
    pub fn new(base: Ipv4Addr, prefix: u8) -> Option<Self> {
        let block = Self { base: base.to_bits(), prefix };
        (prefix <= 32 && block.base & !block.mask() == 0).then_some(block)
    }

    /// The block around an address.
    pub fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let block = Self { base: address.to_bits(), prefix: prefix.min(32) };
        Self { base: block.base & block.mask(), ..block }
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// The network address.
    pub fn base(self) -> Ipv4Addr {
        self.base.into()
    }

    /// The number of leading bits that all its addresses share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The last address, which is the broadcast address.
    pub fn last(self) -> Ipv4Addr {
        (self.base | !self.mask()).into()
    }

    /// The first address after the network's own: the node's, towards its pods.
    pub fn gateway(self) -> Ipv4Addr {
        (self.base | 1).into()
    }

    /// Whether the address lies in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.base
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base()) || other.contains(self.base())
    }
}

/// The largest of these blocks, which have together the same addresses, in their order.
pub fn largest(blocks: impl IntoIterator<Item = Cidr>) -> Vec<Cidr> {
    let mut all: Vec<Cidr> = blocks.into_iter().collect();
    // Of two blocks that share an address one holds the other: it has the same base or an earlier one, and the shorter prefix.
    all.sort();
    let mut kept: Vec<Cidr> = Vec::with_capacity(all.len());
    for block in all {
        if !kept.last().is_some_and(|last| last.overlaps(block)) {
            kept.push(block);
        }
    }
    kept
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(base, prefix)| Self::new(base.parse().ok()?, prefix.parse().ok()?));
        parsed.ok_or_else(|| format!("{text:?} is not an IPv4 block such as 10.64.0.0/18"))
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(block: Cidr) -> Self {
        block.to_string()
    }
}

/// The blocks of which a data directory without a configured one takes a free one: the /18 of 10.64.0.0/10, beginning with the
/// one that `id` points at, so that two directories rarely ask for the same.
pub fn candidates(id: u32) -> impl Iterator<Item = Cidr> {
    const RANGE: u32 = Ipv4Addr::new(10, 64, 0, 0).to_bits();
    (0..256).map(move |step| Cidr {
        base: RANGE + (id.wrapping_add(step) % 256) * (1 << 14),
        prefix: 18,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Cidr {
        text.parse().expect("a block")
    }

    #[test]
    fn blocks_overlap_where_one_holds_the_other() {
        assert!(block("10.64.0.0/18").overlaps(block("10.0.0.0/8")));
        assert!(block("0.0.0.0/0").overlaps(block("10.64.64.0/18")));
        assert!(!block("10.64.0.0/18").overlaps(block("10.64.64.0/18")));
    }

    #[test]
    fn of_blocks_within_each_other_the_largest_are_left() {
        let all = ["10.1.2.0/24", "10.0.0.0/8", "192.0.2.0/24", "10.0.0.0/16", "192.0.2.0/24"];

        let left = largest(all.map(block));

        assert_eq!(left, [block("10.0.0.0/8"), block("192.0.2.0/24")]);
    }

    #[test]
    fn every_candidate_is_a_block_of_its_own_within_the_range() {
        let all: Vec<_> = candidates(200).collect();

        assert_eq!((all.len(), all[0].to_string()), (256, "10.114.0.0/18".to_owned()));
        for (n, one) in all.iter().enumerate() {
            assert!(block("10.64.0.0/10").overlaps(*one));
            assert!(all[..n].iter().all(|other| !other.overlaps(*one)));
        }
    }

    #[test]
    fn a_block_with_bits_beyond_its_prefix_is_refused() {
        for bad in ["10.64.0.1/18", "10.64.0.0/33", "10.64.0.0", "x/8", "10.0.0.0/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        assert_eq!(Cidr::around([10, 64, 1, 2].into(), 18), block("10.64.0.0/18"));
    }
}
