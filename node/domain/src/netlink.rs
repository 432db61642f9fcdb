//! Requests to the kernel's network configuration, answered within the call.
//!
//! The messages are `rtnetlink`'s; its connection is not used, because it lives in a tokio task: this one works before any thread
//! exists, needs no task per namespace, and sends a batch in one system call. Absent: what to ask (`network`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::cidr::Cidr;

/// Marks our routes and rules in the kernel's tables: a protocol number that nobody has registered ('C').
pub const PROTOCOL: u8 = 67;

/// The table that holds what is local to a namespace.
const TABLE_LOCAL: u8 = 255;

/// The most messages of one system call: their answers fit into a socket's buffer several times.
const BATCH: usize = 64;

/// A connection to the network configuration of one namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    message: Message,
    flags: u16,
}

impl Netlink {
    /// Connects to the calling thread's namespace.
    ///
    /// # Errors
    /// The socket's.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes the changes in order, each whether or not the ones before it succeeded; what came of each.
    ///
    /// # Errors
    /// The socket's own; the kernel's answers are in the list.
    pub fn try_each(&mut self, changes: &[Change]) -> io::Result<Vec<io::Result<()>>> {
        let mut results = Vec::with_capacity(changes.len());
        for batch in changes.chunks(BATCH) {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            for change in batch {
                self.sequence = self.sequence.wrapping_add(1);
                write(&mut bytes, change.message.clone(), change.flags | NLM_F_ACK, self.sequence);
            }
            self.socket.send(&bytes, 0)?;
            let mut answers: Vec<Option<io::Result<()>>> = batch.iter().map(|_| None).collect();
            while answers.iter().any(Option::is_none) {
                self.receive(|message| {
                    let number = message.header.sequence_number.wrapping_sub(first) as usize;
                    if let (NetlinkPayload::Error(error), Some(slot)) =
                        (message.payload, answers.get_mut(number))
                    {
                        let failed = error.code.map(|code| {
                            Err(io::Error::from_raw_os_error(code.get().saturating_abs()))
                        });
                        *slot = Some(failed.unwrap_or(Ok(())));
                    }
                })?;
            }
            results.extend(answers.into_iter().flatten());
        }
        Ok(results)
    }

    /// Makes all the changes; the first that fails is the error, but for those errors that say "it is so already".
    ///
    /// # Errors
    /// The kernel's first answer other than `EEXIST` for an addition, `ESRCH`, `ENODEV`, `ENOENT` or `EADDRNOTAVAIL` for a removal.
    pub fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        for (result, change) in self.try_each(changes)?.into_iter().zip(changes) {
            match result {
                Err(error) if !change.is_so_already(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn dump(&mut self, message: Message, mut each: impl FnMut(Message)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut bytes = Vec::new();
        write(&mut bytes, message, NLM_F_DUMP, sequence);
        self.socket.send(&bytes, 0)?;
        let mut over = None;
        while over.is_none() {
            self.receive(|message| match message.payload {
                _ if message.header.sequence_number != sequence => {}
                NetlinkPayload::InnerMessage(inner) => each(inner),
                NetlinkPayload::Error(error) => {
                    over = Some(match error.code {
                        Some(code) => {
                            Err(io::Error::from_raw_os_error(code.get().saturating_abs()))
                        }
                        None => Ok(()),
                    });
                }
                NetlinkPayload::Done(_) => over = Some(Ok(())),
                _ => {}
            })?;
        }
        over.unwrap_or(Ok(()))
    }

    fn receive(&self, mut each: impl FnMut(NetlinkMessage<Message>)) -> io::Result<()> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while let Some(head) = rest.first_chunk::<4>() {
            let length = u32::from_ne_bytes(*head) as usize;
            if length < 16 || length > rest.len() {
                break;
            }
            match NetlinkMessage::<Message>::deserialize(&rest[..length]) {
                Ok(message) => each(message),
                // A kind of route or address that the library does not know is none of ours.
                Err(error) => tracing::debug!(%error, "a netlink message was not understood"),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(())
    }

    /// The blocks that addresses and routes of this namespace occupy, but the default route.
    ///
    /// # Errors
    /// The kernel's.
    pub fn occupied(&mut self) -> io::Result<Vec<Cidr>> {
        let mut blocks = Vec::new();
        for family in FAMILIES {
            let mut addresses = AddressMessage::default();
            addresses.header.family = family;
            self.dump(Message::GetAddress(addresses), |message| {
                let Message::NewAddress(message) = message else { return };
                for attribute in &message.attributes {
                    if let AddressAttribute::Address(address) | AddressAttribute::Local(address) =
                        attribute
                    {
                        blocks.push(Cidr::around(*address, message.header.prefix_len));
                    }
                }
            })?;
        }
        self.routes(|route| {
            if route.block.prefix() > 0 {
                blocks.push(route.block);
            }
        })?;
        Ok(blocks)
    }

    /// Every route of every table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn routes(&mut self, mut each: impl FnMut(Route)) -> io::Result<()> {
        for family in FAMILIES {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            self.dump(Message::GetRoute(ask), |message| {
                // A kernel without IPv6 answers with all routes that it has.
                if let Message::NewRoute(message) = message
                    && message.header.address_family == family
                {
                    each(route(&message));
                }
            })?;
        }
        Ok(())
    }

    /// The link through which packets to an address leave; none where the address is this namespace's own.
    ///
    /// # Errors
    /// The kernel's, above all that there is no route.
    pub fn link_towards(&mut self, to: IpAddr) -> io::Result<Option<u32>> {
        Ok(match self.way_to(to)? {
            WayTo::Own => None,
            WayTo::Neighbour(link) | WayTo::Beyond(link) => Some(link),
        })
    }

    /// How packets to an address leave.
    ///
    /// # Errors
    /// The kernel's, above all that there is no route.
    pub fn way_to(&mut self, to: IpAddr) -> io::Result<WayTo> {
        let mut ask = RouteMessage::default();
        ask.header.address_family = family(to);
        ask.header.destination_prefix_length = Change::whole(to).1;
        ask.attributes.push(RouteAttribute::Destination(to.into()));
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut bytes = Vec::new();
        write(&mut bytes, Message::GetRoute(ask), 0, sequence);
        self.socket.send(&bytes, 0)?;
        let mut answer = None;
        while answer.is_none() {
            self.receive(|message| match message.payload {
                _ if message.header.sequence_number != sequence => {}
                NetlinkPayload::InnerMessage(Message::NewRoute(route)) => {
                    let (mut link, mut through) = (None, false);
                    for attribute in &route.attributes {
                        match attribute {
                            RouteAttribute::Oif(index) => link = Some(*index),
                            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => through = true,
                            _ => {}
                        }
                    }
                    let is_beyond = route.header.kind == RouteType::Unicast;
                    answer = Some(match link.filter(|_| is_beyond) {
                        // Of IPv6 the kernel tells such a route, of IPv4 an error.
                        None if route.header.kind == RouteType::Unreachable => {
                            Err(io::Error::from_raw_os_error(libc::ENETUNREACH))
                        }
                        None => Ok(WayTo::Own),
                        Some(link) if through => Ok(WayTo::Beyond(link)),
                        Some(link) => Ok(WayTo::Neighbour(link)),
                    });
                }
                NetlinkPayload::Error(error) => {
                    let code = error.code.map_or(libc::EIO, |code| code.get().saturating_abs());
                    answer = Some(Err(io::Error::from_raw_os_error(code)));
                }
                _ => {}
            })?;
        }
        answer.unwrap_or(Ok(WayTo::Own))
    }

    /// The routing rules that bear our protocol number and name a source: from where, and to where; none: to anywhere.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rules(&mut self) -> io::Result<Vec<(Cidr, Option<Cidr>)>> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            let mut ask = RuleMessage::default();
            ask.header.family = family;
            self.dump(Message::GetRule(ask), |message| {
                let Message::NewRule(message) = message else { return };
                if message.header.family != family {
                    return;
                }
                let (mut from, mut to, mut ours) = (None, None, false);
                for attribute in &message.attributes {
                    match attribute {
                        RuleAttribute::Source(base) => {
                            from = Some(Cidr::around(*base, message.header.src_len));
                        }
                        RuleAttribute::Destination(base) => {
                            to = Some(Cidr::around(*base, message.header.dst_len));
                        }
                        RuleAttribute::Protocol(protocol) => {
                            ours = *protocol == RouteProtocol::from(PROTOCOL);
                        }
                        _ => {}
                    }
                }
                rules.extend(from.filter(|_| ours).map(|from| (from, to)));
            })?;
        }
        Ok(rules)
    }

    /// The numbers and names of all links.
    ///
    /// # Errors
    /// The kernel's.
    pub fn links(&mut self) -> io::Result<Vec<(u32, String)>> {
        let mut links = Vec::new();
        self.dump(Message::GetLink(LinkMessage::default()), |message| {
            let Message::NewLink(message) = message else { return };
            for attribute in message.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    links.push((message.header.index, name));
                }
            }
        })?;
        Ok(links)
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

/// The families, each of which is asked about by itself.
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// A route as the kernel tells it.
fn route(message: &RouteMessage) -> Route {
    let any: IpAddr = match message.header.address_family {
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let prefix = message.header.destination_prefix_length;
    let mut route = Route {
        block: Cidr::around(any, prefix),
        kind: message.header.kind,
        ours: message.header.protocol == RouteProtocol::from(PROTOCOL),
        main: message.header.table == RouteHeader::RT_TABLE_MAIN,
        link: None,
        gateway: None,
        metric: 0,
    };
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(base) => {
                if let Some(base) = address(base) {
                    route.block = Cidr::around(base, prefix);
                }
            }
            RouteAttribute::Oif(index) => route.link = Some(*index),
            RouteAttribute::Gateway(gateway) => route.gateway = address(gateway),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            _ => {}
        }
    }
    route
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub block: Cidr,
    /// How.
    pub kind: RouteType,
    /// Whether it bears our protocol number.
    pub ours: bool,
    /// Whether it stands in the main table.
    pub main: bool,
    /// Through which link.
    pub link: Option<u32>,
    /// By which neighbour.
    pub gateway: Option<IpAddr>,
    /// How little it counts beside others to the same block.
    pub metric: u32,
}

impl Route {
    /// Whether it is a data directory's claim of a block: see [`Change::add_unreachable`]. (Of IPv6 even such a route has a link.)
    pub fn is_claim(&self) -> bool {
        self.ours && self.main && self.kind == RouteType::Unreachable
    }
}

/// How packets to an address leave this namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayTo {
    /// They do not: the address is one of its own, or is nowhere.
    Own,
    /// Through this link, at whose other end it is.
    Neighbour(u32),
    /// Through this link, by somebody there.
    Beyond(u32),
}

fn write(bytes: &mut Vec<u8>, message: Message, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..start + message.buffer_len()]);
}

const ADD: u16 = NLM_F_CREATE | NLM_F_EXCL;

impl Change {
    pub(crate) fn is_so_already(&self, error: &io::Error) -> bool {
        let code = error.raw_os_error();
        if self.flags & NLM_F_CREATE != 0 {
            code == Some(libc::EEXIST)
        } else {
            let gone = [libc::ESRCH, libc::ENODEV, libc::ENOENT, libc::EADDRNOTAVAIL];
            code.is_some_and(|code| gone.contains(&code))
        }
    }

    /// A pair of virtual links: `name` here, `peer` in another namespace.
    pub fn add_veth(
        name: &str,
        hardware: [u8; 6],
        mtu: u32,
        peer: &str,
        peer_hardware: [u8; 6],
        peer_namespace: BorrowedFd<'_>,
    ) -> Self {
        let mut other = LinkMessage::default();
        other.attributes = vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::Address(peer_hardware.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::NetNsFd(peer_namespace.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(hardware.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
            ]),
        ];
        Self { message: Message::NewLink(message), flags: ADD }
    }

    /// Switches a link on.
    pub fn set_up(link: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        Self { message: Message::SetLink(message), flags: 0 }
    }

    /// Removes a link, and its peer and routes with it.
    pub fn remove_link(name: &str) -> Self {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        Self { message: Message::DelLink(message), flags: 0 }
    }

    fn address(address: IpAddr, link: u32) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = Self::whole(address).1;
        message.header.scope = AddressScope::Universe;
        message.header.index = link;
        message.attributes =
            vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        message
    }

    /// Gives a link an address.
    pub fn add_address(address: IpAddr, link: u32) -> Self {
        Self { message: Message::NewAddress(Self::address(address, link)), flags: ADD }
    }

    /// Takes it away.
    pub fn remove_address(address: IpAddr, link: u32) -> Self {
        Self { message: Message::DelAddress(Self::address(address, link)), flags: 0 }
    }

    /// Who answers to an address on a link, for ever and without asking.
    pub fn add_neighbour(address: IpAddr, hardware: [u8; 6], link: u32) -> Self {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = link;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(match address {
                IpAddr::V4(address) => NeighbourAddress::Inet(address),
                IpAddr::V6(address) => NeighbourAddress::Inet6(address),
            }),
            NeighbourAttribute::LinkLayerAddress(hardware.to_vec()),
        ];
        Self { message: Message::NewNeighbour(message), flags: NLM_F_CREATE | NLM_F_REPLACE }
    }

    fn route(to: Option<(IpAddr, u8)>, any: IpAddr) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(any);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::from(PROTOCOL);
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        if let Some((address, prefix)) = to {
            message.header.destination_prefix_length = prefix;
            message.attributes.push(RouteAttribute::Destination(address.into()));
        }
        message
    }

    fn whole(address: IpAddr) -> (IpAddr, u8) {
        (address, if address.is_ipv4() { 32 } else { 128 })
    }

    /// Everything else goes through a link to this neighbour.
    pub fn add_default_route(gateway: IpAddr, link: u32) -> Self {
        let mut message = Self::route(None, gateway);
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        message.attributes.push(RouteAttribute::Oif(link));
        Self { message: Message::NewRoute(message), flags: ADD }
    }

    fn route_via(address: IpAddr, via: IpAddr, link: u32, source: Option<IpAddr>) -> RouteMessage {
        let mut message = Self::route(Some(Self::whole(address)), address);
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(via.into()));
        message.attributes.push(RouteAttribute::Oif(link));
        message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
        message
    }

    /// One address lies behind this neighbour on this link; packets of the host's own to it come from `source`.
    pub fn add_route_via(address: IpAddr, via: IpAddr, link: u32, source: Option<IpAddr>) -> Self {
        let message = Self::route_via(address, via, link, source);
        Self { message: Message::NewRoute(message), flags: ADD }
    }

    /// It does no longer.
    pub fn remove_route_via(address: IpAddr, via: IpAddr, link: u32) -> Self {
        let message = Self::route_via(address, via, link, None);
        Self { message: Message::DelRoute(message), flags: 0 }
    }

    fn route_to_block(block: Cidr, gateway: IpAddr, link: u32, metric: u32) -> RouteMessage {
        let base = block.base();
        let mut message = Self::route(Some((base, block.prefix())), base);
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        message.attributes.push(RouteAttribute::Oif(link));
        message.attributes.push(RouteAttribute::Priority(metric));
        message
    }

    /// A block lies behind this neighbour; in the place of a route of this metric to it, and of no other.
    pub fn set_route_to_block(block: Cidr, gateway: IpAddr, link: u32, metric: u32) -> Self {
        let message = Self::route_to_block(block, gateway, link, metric);
        Self { message: Message::NewRoute(message), flags: NLM_F_CREATE | NLM_F_REPLACE }
    }

    /// It does no longer.
    pub fn remove_route_to_block(block: Cidr, gateway: IpAddr, link: u32, metric: u32) -> Self {
        let message = Self::route_to_block(block, gateway, link, metric);
        Self { message: Message::DelRoute(message), flags: 0 }
    }

    fn local(address: IpAddr, link: u32) -> RouteMessage {
        let mut message = Self::route(Some(Self::whole(address)), address);
        message.header.table = TABLE_LOCAL;
        message.header.kind = RouteType::Local;
        message.header.scope = RouteScope::Host;
        message.attributes.push(RouteAttribute::Oif(link));
        message
    }

    /// An address is this namespace's own, without being any link's.
    pub fn add_local(address: IpAddr, loopback: u32) -> Self {
        Self { message: Message::NewRoute(Self::local(address, loopback)), flags: ADD }
    }

    /// It is not any more.
    pub fn remove_local(address: IpAddr, loopback: u32) -> Self {
        Self { message: Message::DelRoute(Self::local(address, loopback)), flags: 0 }
    }

    fn unreachable(block: Cidr) -> RouteMessage {
        let base = block.base();
        let mut message = Self::route(Some((base, block.prefix())), base);
        message.header.kind = RouteType::Unreachable;
        message
    }

    /// What has no longer route in this block is nowhere. The kernel takes one such route per block: it is a claim, too.
    pub fn add_unreachable(block: Cidr) -> Self {
        Self { message: Message::NewRoute(Self::unreachable(block)), flags: ADD }
    }

    /// Gives the block up.
    pub fn remove_unreachable(block: Cidr) -> Self {
        Self { message: Message::DelRoute(Self::unreachable(block)), flags: 0 }
    }

    fn rule(from: Cidr, to: Option<Cidr>, priority: u32) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(from.base());
        message.header.src_len = from.prefix();
        message.attributes = vec![
            RuleAttribute::Source(from.base()),
            RuleAttribute::Priority(priority),
            RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
        ];
        if let Some(to) = to {
            message.header.dst_len = to.prefix();
            message.header.action = RuleAction::ToTable;
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message.attributes.push(RuleAttribute::Destination(to.base()));
        } else {
            message.header.action = RuleAction::Unreachable;
        }
        message
    }

    /// Packets from a block: to `to` as the main table says; without `to`: nowhere.
    pub fn add_rule(from: Cidr, to: Option<Cidr>, priority: u32) -> Self {
        Self { message: Message::NewRule(Self::rule(from, to, priority)), flags: ADD }
    }

    /// The rule goes.
    pub fn remove_rule(from: Cidr, to: Option<Cidr>, priority: u32) -> Self {
        Self { message: Message::DelRule(Self::rule(from, to, priority)), flags: 0 }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
