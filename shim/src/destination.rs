//! Which addresses a guest may ever send to, whatever its pod: unicast that routers forward.
//!
//! Asked twice: by the runner for every packet (`copepod-net`), and by the broker of an ordinary user's pods, which does not take
//! the runner's word. Absent: the pod's own addresses, and the node's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether this is an address beyond the machine. What an IPv6 address carries of IPv4 is not looked at: see [`carried_v4`].
pub fn is_ordinary(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_ordinary_v4(ip),
        IpAddr::V6(ip) => is_ordinary_v6(ip),
    }
}

/// As [`is_ordinary`], and the same of what the address carries.
pub fn is_ordinary_throughout(ip: IpAddr) -> bool {
    let carried = match ip.to_canonical() {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => carried_v4(ip),
    };
    is_ordinary(ip) && carried.is_none_or(is_ordinary_v4)
}

/// Not "this network" (0/8), loopback, link-local (169.254/16), multicast, or 240/4, which is reserved and ends in the broadcast
/// address.
fn is_ordinary_v4(ip: Ipv4Addr) -> bool {
    let [first, ..] = ip.octets();
    first != 0 && first < 224 && !ip.is_loopback() && !ip.is_link_local()
}

/// As [`is_ordinary_v4`]: not `::/96` (unspecified, loopback, compatible), `64:ff9b:1::/48` (translation of a local
/// prefix whose length nobody tells), `fe80::/10`, `fec0::/10` (site-local), `ff00::/8`.
fn is_ordinary_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let is_local_translation = s[..3] == [0x64, 0xff9b, 1];
    let is_link_or_site_local = s[0] & 0xff80 == 0xfe80;
    !is_low(ip) && !is_local_translation && !is_link_or_site_local && !ip.is_multicast()
}

/// The IPv4 address inside `64:ff9b::/96` (NAT64), `::ffff:0:0:0/96` (stateless translation) or `2002::/16` (6to4).
pub fn carried_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => of(high, low),
        [0x2002, high, low, ..] => of(high, low),
        _ => None,
    }
}

/// Whether it lies in `::/96`.
pub fn is_low(ip: Ipv6Addr) -> bool {
    ip.segments()[..6] == [0; 6]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spelling_of_the_machine_s_own_or_a_link_s_addresses_is_ordinary() {
        for text in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "0.0.0.0",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_ordinary_throughout(text.parse().expect("an address")), "{text}");
        }
        for text in ["192.0.2.7", "10.1.2.3", "2001:db8::1", "64:ff9b::c000:207"] {
            assert!(is_ordinary_throughout(text.parse().expect("an address")), "{text}");
        }
    }
}
