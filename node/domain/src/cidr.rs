//! A block of addresses, and the blocks that one node's pods have: at most one of each family.
//!
//! Pure. Absent: which of its addresses are free ([`crate::pool`]).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A block of addresses of one family; no bit of `base` beyond the prefix is set. IPv4 in the dress of IPv6 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The block, or none where `prefix` is no prefix or `base` has bits beyond it.
    pub fn new(base: IpAddr, prefix: u8) -> Option<Self> {
        let is_block = prefix <= width(base) && Self::around(base, prefix).base == base;
        (is_block && base.to_canonical() == base).then_some(Self { base, prefix })
    }

    /// The block around an address.
    pub fn around(address: IpAddr, prefix: u8) -> Self {
        let prefix = prefix.min(width(address));
        let base = match address {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() & !low_bits_v4(prefix)).into()),
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & !low_bits_v6(prefix)).into()),
        };
        Self { base, prefix }
    }

    /// The network address.
    pub fn base(self) -> IpAddr {
        self.base
    }

    /// The number of leading bits that all its addresses share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The last address, which for IPv4 is the broadcast address.
    pub fn last(self) -> IpAddr {
        match self.base {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() | low_bits_v4(self.prefix)).into()),
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() | low_bits_v6(self.prefix)).into()),
        }
    }

    /// The first address after the network's own: the node's, towards its pods.
    pub fn gateway(self) -> IpAddr {
        match self.base {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() | 1).into()),
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() | 1).into()),
        }
    }

    /// How many addresses lie behind the network's own; what does not fit is cut off.
    pub fn following(self) -> u32 {
        match self.base {
            IpAddr::V4(_) => low_bits_v4(self.prefix),
            IpAddr::V6(_) => u32::try_from(low_bits_v6(self.prefix)).unwrap_or(u32::MAX),
        }
    }

    /// The address that comes so far behind the network's own; none where it lies beyond the block.
    pub fn at(self, offset: u32) -> Option<IpAddr> {
        let inside = offset <= self.following();
        inside.then(|| match self.base {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() | offset).into()),
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() | u128::from(offset)).into()),
        })
    }

    /// How far behind the network's own an address comes; none where it lies elsewhere or too far behind.
    pub fn offset_of(self, address: IpAddr) -> Option<u32> {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(ip)) if self.contains(address) => {
                Some(ip.to_bits() - base.to_bits())
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) if self.contains(address) => {
                u32::try_from(ip.to_bits() - base.to_bits()).ok()
            }
            _ => None,
        }
    }

    /// Whether its addresses are of the family of this one.
    pub fn is_of_family_of(self, address: IpAddr) -> bool {
        self.base.is_ipv4() == address.is_ipv4()
    }

    /// Whether the address lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        self.is_of_family_of(address) && Self::around(address, self.prefix) == self
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base()) || other.contains(self.base())
    }
}

/// How many bits an address of this family has.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The bits beyond the prefix.
fn low_bits_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shr(prefix.into()).unwrap_or(0)
}

/// As [`low_bits_v4`].
fn low_bits_v6(prefix: u8) -> u128 {
    u128::MAX.checked_shr(prefix.into()).unwrap_or(0)
}

/// The blocks of one node's pods: one, or one of each family. Each pod has an address of each, those of the first one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    first: Cidr,
    second: Option<Cidr>,
}

impl Blocks {
    /// These blocks, if a node can have them.
    ///
    /// # Errors
    /// A sentence.
    pub fn new(blocks: &[Cidr]) -> Result<Self, String> {
        match *blocks {
            [first] => Ok(first.into()),
            [first, second] if !second.is_of_family_of(first.base()) => {
                Ok(Self { first, second: Some(second) })
            }
            [] => Err("no block of pod addresses".into()),
            _ => Err(format!(
                "{}: pods have at most one block of each family, IPv4 and IPv6",
                comma_separated(blocks.iter().copied())
            )),
        }
    }

    /// The one whose addresses come first.
    pub fn first(self) -> Cidr {
        self.first
    }

    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = Cidr> {
        [self.first].into_iter().chain(self.second)
    }

    /// The one of the family of this address.
    pub fn of_family_of(self, address: IpAddr) -> Option<Cidr> {
        self.iter().find(|block| block.is_of_family_of(address))
    }

    /// Whether an address may be a pod's.
    pub fn has_for_pods(self, address: IpAddr) -> bool {
        self.iter().any(|block| block.contains(address) && block.gateway() != address)
    }
}

impl From<Cidr> for Blocks {
    fn from(first: Cidr) -> Self {
        Self { first, second: None }
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&comma_separated(self.iter()))
    }
}

impl FromStr for Blocks {
    type Err = String;

    /// Blocks with a comma between.
    fn from_str(text: &str) -> Result<Self, String> {
        let blocks: Result<Vec<Cidr>, String> =
            text.split(',').map(|block| block.trim().parse()).collect();
        Self::new(&blocks?)
    }
}

fn comma_separated(blocks: impl Iterator<Item = Cidr>) -> String {
    blocks.map(|block| block.to_string()).collect::<Vec<_>>().join(",")
}

/// The largest of these blocks, which have together the same addresses, in their order: IPv4 first.
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
        parsed.ok_or_else(|| {
            format!("{text:?} is not a block of addresses such as 10.64.0.0/18 or fd00:64::/112")
        })
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
    (0..256).map(move |step| {
        let base = RANGE + (id.wrapping_add(step) % 256) * (1 << 14);
        Cidr { base: IpAddr::V4(base.into()), prefix: 18 }
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
        assert!(block("fd00:1::/32").overlaps(block("fd00:1:2::/64")));
        assert!(!block("fd00:1::/64").overlaps(block("fd00:2::/64")));
        assert!(!block("::/0").overlaps(block("0.0.0.0/0")), "families never meet");
    }

    #[test]
    fn an_address_of_a_block_is_as_far_behind_its_base_as_it_was_asked_for() {
        for (text, offset, expected) in [
            ("10.64.0.0/18", 258, Some("10.64.1.2")),
            ("10.64.0.0/30", 3, Some("10.64.0.3")),
            ("10.64.0.0/30", 4, None),
            ("fd00:64::/64", 258, Some("fd00:64::102")),
            ("fd00:64::/126", 4, None),
            ("::/0", u32::MAX, Some("::ffff:ffff")),
        ] {
            let expected = expected.map(|it| it.parse().expect("an address"));

            assert_eq!(block(text).at(offset), expected, "{text}");
            if let Some(address) = expected {
                assert_eq!(block(text).offset_of(address), Some(offset), "{text}");
            }
        }
        assert_eq!(block("fd00:64::/64").last().to_string(), "fd00:64::ffff:ffff:ffff:ffff");
        assert_eq!(block("fd00:64::/64").gateway().to_string(), "fd00:64::1");
        assert_eq!(block("fd00::/8").offset_of("fdff::".parse().expect("an address")), None);
    }

    #[test]
    fn pods_have_a_block_of_each_family_at_most() {
        let both: Blocks = "fd00:64::/64, 10.64.0.0/18".parse().expect("blocks");

        assert_eq!(both.to_string(), "fd00:64::/64,10.64.0.0/18");
        assert_eq!(both.first(), block("fd00:64::/64"));
        assert_eq!(both.of_family_of(Ipv4Addr::LOCALHOST.into()), Some(block("10.64.0.0/18")));
        for bad in [
            "",
            "10.64.0.0/18,10.65.0.0/18",
            "fd00::/64,fd01::/64",
            "fd00::/64,10.0.0.0/8,fd01::/64",
        ] {
            assert!(bad.parse::<Blocks>().is_err(), "{bad}");
        }
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
        for bad in [
            "10.64.0.1/18",
            "10.64.0.0/33",
            "10.64.0.0",
            "x/8",
            "10.0.0.0/-1",
            "fd00::1/64",
            "fd00::/129",
            "::ffff:10.0.0.0/104",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        assert_eq!(Cidr::around(Ipv4Addr::new(10, 64, 1, 2).into(), 18), block("10.64.0.0/18"));
    }
}
