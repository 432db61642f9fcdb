//! Machines of a test's own on one link, as far as networks go: network namespaces around a switch, which is one too.
//!
//! Nothing of it is in the tests' own network, and all of it ends with the tests. Absent: anything that runs on a machine.

use std::net::{IpAddr, Ipv4Addr};

use crate::world::Namespace;

/// The switch's address, of a block kept for documentation (RFC 5737). It is every machine's default gateway, and leads no further.
pub const SWITCH: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

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
        network.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"]);
        network.ip(&["link", "set", "eth0", "up"]);
        network.ip(&["route", "add", "default", "via", &SWITCH.to_string()]);
        Machine { network, address }
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
