//! Machines of a test's own on one link, as far as networks go: network namespaces around a switch, which is one too.
//!
//! Nothing of it is in the tests' own network, and all of it ends with the tests. Absent: anything that runs on a machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::world::Namespace;

/// The switch's address, of a block kept for documentation (RFC 5737). It is every machine's default gateway, and leads no further.
pub const SWITCH: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Its IPv6 address, of the block kept for documentation (RFC 3849).
pub const SWITCH_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// A switch and the machines at it.
pub struct Machines {
    switch: Namespace,
}

/// A machine at the switch.
pub struct Machine {
    /// Its network, in which its link to the switch is `eth0`.
    pub network: Namespace,
    /// Its address.
    pub address: IpAddr,
    /// Its IPv6 address.
    pub address_v6: IpAddr,
}

impl Machines {
    /// Makes a switch and moves the calling thread there, so that the programs that it starts are reached by all machines.
    ///
    /// # Panics
    /// Without root, `ip`, or `unshare` and `nsenter` of util-linux.
    pub fn enter() -> Self {
        let switch = Namespace::new();
        switch.ip(&["link", "set", "lo", "up"]);
        switch.ip(&["link", "add", "switch", "type", "bridge"]);
        switch.ip(&["address", "add", &format!("{SWITCH}/24"), "dev", "switch"]);
        // Nobody else has it: there is no need to wait until the kernel has asked around.
        let address = format!("{SWITCH_V6}/64");
        switch.ip(&["address", "add", &address, "dev", "switch", "nodad"]);
        switch.ip(&["link", "set", "switch", "up"]);
        switch.enter();
        Self { switch }
    }

    /// Another machine, whose address ends in this number.
    ///
    /// # Panics
    /// As [`Self::enter`].
    pub fn machine(&self, last: u8) -> Machine {
        let network = Namespace::new();
        let port = format!("port{last}");
        let switch = self.switch.holder();
        network.ip(&["link", "set", "lo", "up"]);
        let link = ["link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &switch];
        network.ip(&link);
        self.switch.ip(&["link", "set", &port, "master", "switch", "up"]);
        let address = IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
        let address_v6 = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()));
        network.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"]);
        network.ip(&["address", "add", &format!("{address_v6}/64"), "dev", "eth0", "nodad"]);
        network.ip(&["link", "set", "eth0", "up"]);
        network.ip(&["route", "add", "default", "via", &SWITCH.to_string()]);
        network.ip(&["-6", "route", "add", "default", "via", &SWITCH_V6.to_string()]);
        Machine { network, address, address_v6 }
    }

    /// Tells the switch, and so the tests and the API server, the way to a block of a machine's pods.
    ///
    /// # Panics
    /// Where it is no block.
    pub fn lead(&self, block: &str, to: &Machine) {
        let is_v6 = block.contains(':');
        let gateway = if is_v6 { to.address_v6 } else { to.address };
        let family = if is_v6 { "-6" } else { "-4" };
        self.switch.ip(&[family, "route", "add", block, "via", &gateway.to_string()]);
    }
}

impl Machine {
    /// What runs on the machine behind a link of its own: a network whose address is the block's last but one, and whose way out is the
    /// machine, as a network plugin makes it for a container. `block` is a /24.
    ///
    /// # Panics
    /// As [`Machines::enter`].
    pub fn container(&self, block: Ipv4Addr) -> (Namespace, Ipv4Addr) {
        let [a, b, c, _] = block.octets();
        let (gateway, address) = (Ipv4Addr::new(a, b, c, 1), Ipv4Addr::new(a, b, c, 254));
        let container = Namespace::new();
        container.ip(&["link", "set", "lo", "up"]);
        let holder = container.holder();
        self.network
            .ip(&["link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", &holder]);
        for (side, link, own) in [(&self.network, "pod0", gateway), (&container, "eth0", address)] {
            side.ip(&["address", "add", &format!("{own}/24"), "dev", link]);
            side.ip(&["link", "set", link, "up"]);
        }
        container.ip(&["route", "add", "default", "via", &gateway.to_string()]);
        let passing_on = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        let done = self.network.spawn(passing_on).join().expect("it does not panic");
        done.expect("root may have packets passed on");
        (container, address)
    }
}
