//! The names of what is made on the host: each carries the data directory's id, so that two agents live side by side.
//!
//! Pure. Absent: making anything.

use std::fmt;
use std::str::FromStr;

/// A data directory's id: 8 hex digits, chosen at random when the directory is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DataId(u32);

impl DataId {
    /// The id with this value.
    pub fn new(value: u32) -> Self {
        Self(value)
    }

    /// Its value.
    pub fn value(self) -> u32 {
        self.0
    }

    /// What the names of all its links begin with.
    pub fn link_prefix(self) -> String {
        format!("cp{self}x")
    }

    /// The host's end of a domain's link: 15 characters at most, which is all that Linux takes.
    pub fn link(self, index: DomainIndex) -> String {
        format!("cp{self}x{:x}", index.0)
    }

    /// The nftables table, and the cgroup under which those of the domains lie.
    pub fn table(self) -> String {
        format!("copepod-{self}")
    }

    /// The nftables table of the machine's ports that lead to its pods.
    pub fn ports_table(self) -> String {
        format!("copepod-{self}-ports")
    }

    /// The metric of its routes to other nodes' blocks, by which they are told from those of another data directory; and so large that
    /// anybody's route to the same block counts for more.
    pub fn metric(self) -> u32 {
        (1 << 31) | (self.0 >> 1)
    }

    /// The first user of this data directory's range: 65,536 of them past 2,000,000,000, by the id, so that two directories on one
    /// machine almost never (1 in 32,768) share a range.
    pub fn first_uid(self) -> u32 {
        const FIRST: u32 = 2_000_000_000;
        FIRST + (self.0 % 32_768) * 65_536
    }
}

impl fmt::Display for DataId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for DataId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u32::from_str_radix(text, 16) {
            Ok(value) if digits => Ok(Self(value)),
            _ => Err(format!("{text:?} is not a data directory's id: 8 hex digits")),
        }
    }
}

/// A domain's number in its data directory: it gives the user and the link.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct DomainIndex(pub u16);

/// A domain's name, which is a directory's and a cgroup's too: lower-case letters, digits, `-`, `.` and `_`, at most 100 bytes,
/// with a letter or digit first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainId(String);

impl DomainId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its beginning, as far as Linux takes it for a host name: 64 bytes. Only a runner's own messages show it.
    pub fn host_name(&self) -> &str {
        self.0.get(..64).unwrap_or(&self.0)
    }
}

impl TryFrom<String> for DomainId {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
        let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if starts_well && name.len() <= 100 && name.bytes().all(allowed) {
            Ok(Self(name))
        } else {
            Err(format!("{name:?} cannot name a domain"))
        }
    }
}

impl FromStr for DomainId {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::try_from(name.to_owned())
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_link_name_fits_into_what_linux_takes() {
        assert_eq!(DataId::new(u32::MAX).link(DomainIndex(u16::MAX)).len(), 15);
    }

    #[test]
    fn every_user_of_every_range_is_a_valid_one() {
        let last = DataId::new(32_767).first_uid();

        assert!(last.checked_add(65_535).is_some_and(|uid| uid < u32::MAX));
    }

    #[test]
    fn a_domain_is_never_named_by_a_path() {
        for bad in ["", ".", "..", "a/b", "A", ".hidden", "-x", "a\0", &"x".repeat(101)] {
            assert!(bad.parse::<DomainId>().is_err(), "{bad:?}");
        }
        for good in ["default", "pod-1b2c", "a.b_c", "0"] {
            assert!(good.parse::<DomainId>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_domain_with_a_long_name_has_a_host_name_that_linux_takes() {
        let long: DomainId = format!("ns-{}.2", "x".repeat(63)).parse().expect("a name");
        let short: DomainId = "ns-default".parse().expect("a name");

        assert_eq!(long.host_name().len(), 64);
        assert_eq!(short.host_name(), "ns-default");
    }

    #[test]
    fn a_route_of_ours_counts_for_less_than_any_that_a_person_or_a_daemon_would_set() {
        for id in [0, 1, 0x00c0_ffee, u32::MAX] {
            assert!(DataId::new(id).metric() > 1_000_000_000);
        }
    }

    #[test]
    fn an_id_reads_back_as_it_was_written() {
        let id = DataId::new(0x00c0_ffee);

        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("c0ffee".parse::<DataId>().is_err());
        assert!("+0c0ffee".parse::<DataId>().is_err());
    }
}
