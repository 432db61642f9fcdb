//! The network of domains: a block of addresses of each family for the data directory, one veth per domain, two routes per address.
//!
//! ```text
//! host: 10.64.0.1 on lo ── cp<id>x<n> ═══ eth0 ── in the domain: default via 169.254.0.1
//!       podIP via 169.254.0.2 dev cp<id>x<n>         local podIP dev lo
//! ```
//! Of IPv6 it is the same with `fe80::1` and `fe80::2`, which no link has as an address either: what a domain sends there reaches nobody.
//! The two neighbours are entered by hand, so nobody asks for them and no neighbour table grows with the pods. `rp_filter` drops what
//! leaves a domain with another's address: the first fence against spoofing, with or without nft. IPv6 has no such setting, and is
//! not had without nft. Absent: judging by port or policy.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rtnetlink::packet_route::route::RouteType;
use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::cidr::{Blocks, Cidr, candidates};
use crate::error::{HostError, Step};
use crate::mounts::on_a_thread;
use crate::names::{DataId, DomainIndex};
use crate::netlink::{Change, Netlink};
use crate::ways;

/// The host, as a domain's default route names it. Link-local, and on no wire: the neighbour entry is fixed.
fn host_side(family_of: IpAddr) -> IpAddr {
    match family_of {
        IpAddr::V4(_) => Ipv4Addr::new(169, 254, 0, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// The domain, as the host's routes name it.
fn domain_side(family_of: IpAddr) -> IpAddr {
    match family_of {
        IpAddr::V4(_) => Ipv4Addr::new(169, 254, 0, 2).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2).into(),
    }
}

/// The domain's end of the link.
const INSIDE: &str = "eth0";

/// Linux numbers a namespace's loopback first.
pub(crate) const LOOPBACK: u32 = 1;

/// Where our two routing rules stand: before the main table's (32766).
const RULE_PRIORITY: u32 = 21_900;

/// A data directory's claim, kept in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    block: Cidr,
    /// That of the other family, where pods have both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    second: Option<Cidr>,
    boot: String,
    namespace: String,
}

impl Claim {
    fn blocks(&self) -> Result<Blocks, HostError> {
        let all: Vec<Cidr> = [self.block].into_iter().chain(self.second).collect();
        Blocks::new(&all).map_err(HostError::Invalid)
    }
}

/// The machine's current boot.
pub(crate) fn boot_id() -> Result<String, HostError> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).step(|| format!("read {path}"))?.trim().to_owned())
}

/// In which network the domains' links end on our side.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// The host's, which is the calling thread's: shared with every other data directory.
    Host,
    /// One of this data directory's own, made by an ordinary user.
    Own(BorrowedFd<'a>),
}

impl Place<'_> {
    /// The network's name, as the kernel tells it.
    pub(crate) fn name(self) -> Result<String, HostError> {
        let link = match self {
            Self::Host => "/proc/thread-self/ns/net".to_owned(),
            Self::Own(network) => format!("/proc/self/fd/{}", network.as_raw_fd()),
        };
        let name = fs::read_link(link).step(|| "read the network namespace".into())?;
        Ok(name.to_string_lossy().into_owned())
    }

    /// Does what depends on the calling thread's network in this one.
    pub(crate) fn enter<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let Self::Own(network) = self else { return work() };
        let step = || "enter a network".to_owned();
        let network = network.try_clone_to_owned().step(step)?;
        on_a_thread(move || {
            let kind = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(network.as_fd(), kind).step(step)?;
            work()
        })
    }

    /// A connection to the network's configuration.
    pub(crate) fn netlink(self) -> Result<Netlink, HostError> {
        self.enter(|| Netlink::open().step(|| "ask the kernel for its network".into()))
    }

    /// What is in use of the address space that guests see.
    fn occupied(self, netlink: &mut Netlink) -> Result<Vec<Cidr>, HostError> {
        let step = || "read addresses and routes".to_owned();
        match self {
            Self::Host => netlink.occupied().step(step),
            // Nobody else is in it; but what lies beyond the host is not to be hidden behind pods.
            Self::Own(_) => Netlink::open().and_then(|mut hosts| hosts.occupied()).step(step),
        }
    }
}

/// Takes the data directory's blocks of addresses: those it has in this boot, else the wanted ones, else a free one of IPv4.
///
/// The claim of a block is a route, "this block is unreachable", of which the kernel takes only one: of two agents that want the same
/// block, one goes on to the next.
pub(crate) fn claim(
    netlink: &mut Netlink,
    data: &Path,
    id: DataId,
    wanted: Option<Blocks>,
    place: Place<'_>,
) -> Result<Blocks, HostError> {
    let file = data.join("network.json");
    let namespace = place.name()?;
    let boot = boot_id()?;
    let kept: Option<Claim> =
        fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let ours_already = |netlink: &mut Netlink, blocks: Blocks| -> Result<bool, HostError> {
        let mut there = BTreeSet::new();
        netlink
            .routes(|route| there.extend(route.is_claim().then_some(route.block)))
            .step(|| "read the routes".into())?;
        Ok(blocks.iter().all(|block| there.contains(&block)))
    };
    if let Some(kept) = &kept
        && kept.boot == boot
        && kept.namespace == namespace
        && ours_already(netlink, kept.blocks()?)?
    {
        let blocks = kept.blocks()?;
        let is_wanted = |block: Cidr| wanted.is_none_or(|all| all.iter().any(|it| it == block));
        if !blocks.iter().all(is_wanted) {
            return Err(HostError::Invalid(format!(
                "this data directory's pods have addresses of {blocks}; stop them, or leave out the other block"
            )));
        }
        // Runners that live have no other family; they may be of a version that knew IPv4 only.
        if let Some(wanted) = wanted.filter(|wanted| *wanted != blocks) {
            tracing::warn!(
                "pods have addresses of {blocks} and not of all of {wanted}, until this machine restarts or the data directory is reset"
            );
        }
        set_up(netlink, blocks)?;
        return Ok(blocks);
    }

    let is_shared = matches!(place, Place::Host);
    if is_shared {
        release_orphans(netlink, &namespace)?;
    }
    let occupied = place.occupied(netlink)?;
    let preferred = kept.map(|kept| kept.blocks()).transpose()?;
    let choices: Vec<Blocks> = match wanted {
        Some(wanted) => vec![wanted],
        None => preferred.into_iter().chain(candidates(id.value()).map(Blocks::from)).collect(),
    };
    let is_free = |block: Cidr| !occupied.iter().any(|other| other.overlaps(block));
    for blocks in choices {
        if !blocks.iter().all(is_free) || !take(netlink, blocks)? {
            continue;
        }
        set_up(netlink, blocks)?;
        if is_shared {
            for block in blocks.iter() {
                let (data, namespace) = (data.to_owned(), namespace.clone());
                let owner = Owner { data, namespace, id: Some(id.to_string()) };
                write_json(&owner_file(block), &owner)?;
            }
        }
        let (block, second) = (blocks.first(), blocks.iter().nth(1));
        write_json(&file, &Claim { block, second, boot, namespace })?;
        return Ok(blocks);
    }
    match wanted {
        Some(wanted) => {
            let block = wanted.iter().find(|block| !is_free(*block)).unwrap_or(wanted.first());
            Err(HostError::Invalid(format!(
                "an address or route of this machine lies in {block}; choose another block of pod addresses"
            )))
        }
        None => Err(HostError::Exhausted("block of pod addresses in 10.64.0.0/10")),
    }
}

/// Claims all of the blocks, or none where somebody else has one of them.
fn take(netlink: &mut Netlink, blocks: Blocks) -> Result<bool, HostError> {
    let step = || format!("claim {blocks}");
    let claims: Vec<Change> = blocks.iter().map(Change::add_unreachable).collect();
    let results = netlink.try_each(&claims).step(step)?;
    if results.iter().all(Result::is_ok) {
        return Ok(true);
    }
    let done = blocks.iter().zip(&results).filter(|(_, result)| result.is_ok());
    let undo: Vec<Change> = done.map(|(block, _)| Change::remove_unreachable(block)).collect();
    netlink.apply(&undo).step(step)?;
    let is_taken = |error: &io::Error| error.raw_os_error() == Some(libc::EEXIST);
    match results.into_iter().filter_map(Result::err).find(|error| !is_taken(error)) {
        Some(error) => Err(error).step(step),
        None => Ok(false),
    }
}

/// Who has claimed a block, for the others on this machine; kept where a reboot forgets it, like the claim itself.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    data: PathBuf,
    namespace: String,
    /// The data directory's id; none where an older version wrote it.
    #[serde(default)]
    id: Option<String>,
}

const OWNERS: &str = "/run/copepod/blocks";

/// The networks in which data directories that are still there have claimed blocks.
pub(crate) fn networks_with_claims() -> BTreeSet<String> {
    let files = fs::read_dir(OWNERS).into_iter().flatten().flatten();
    let owners = files.filter_map(|entry| {
        let bytes = fs::read(entry.path()).ok()?;
        serde_json::from_slice::<Owner>(&bytes).ok()
    });
    owners.filter(|owner| owner.data.exists()).map(|owner| owner.namespace).collect()
}

/// A claim as its data directory keeps it: the blocks, while it is this boot's and this network's.
pub(crate) fn kept_blocks(data: &Path, place: Place<'_>) -> Option<Blocks> {
    let bytes = fs::read(data.join("network.json")).ok()?;
    let claim: Claim = serde_json::from_slice(&bytes).ok()?;
    let holds = claim.boot == boot_id().ok()? && claim.namespace == place.name().ok()?;
    claim.blocks().ok().filter(|_| holds)
}

pub(crate) fn owner_file(block: Cidr) -> PathBuf {
    Path::new(OWNERS).join(block.to_string().replace('/', "-"))
}

fn write_json(file: &Path, value: &impl Serialize) -> Result<(), HostError> {
    let step = || format!("write {}", file.display());
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).step(step)?;
    }
    serde_json::to_vec(value)
        .map_err(io::Error::from)
        .and_then(|bytes| fs::write(file, bytes))
        .step(step)
}

/// Releases the blocks of data directories that were deleted without a reset: there are only 256.
fn release_orphans(netlink: &mut Netlink, namespace: &str) -> Result<(), HostError> {
    for entry in fs::read_dir(OWNERS).into_iter().flatten().flatten() {
        let owner = fs::read(entry.path()).ok();
        let owner: Option<Owner> = owner.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let block = entry.file_name().to_string_lossy().replace('-', "/").parse();
        if let (Some(owner), Ok(block)) = (owner, block)
            && owner.namespace == namespace
            && matches!(owner.data.try_exists(), Ok(false))
        {
            tracing::info!(%block, data = %owner.data.display(), "a deleted data directory's block is free again");
            confine(netlink, block, None)?;
            if let Some(id) = owner.id.and_then(|id| id.parse::<DataId>().ok()) {
                ways::remove_all(netlink, id.metric())?;
            }
            release(netlink, block)?;
        }
    }
    Ok(())
}

fn set_up(netlink: &mut Netlink, blocks: Blocks) -> Result<(), HostError> {
    let addresses: Vec<Change> =
        blocks.iter().map(|block| Change::add_address(block.gateway(), LOOPBACK)).collect();
    netlink.apply(&addresses).step(|| format!("add the node's own addresses in {blocks}"))
}

/// Gives the block up again.
pub(crate) fn release(netlink: &mut Netlink, block: Cidr) -> Result<(), HostError> {
    netlink
        .apply(&[
            Change::remove_address(block.gateway(), LOOPBACK),
            Change::remove_unreachable(block),
        ])
        .step(|| format!("give {block} up"))?;
    match fs::remove_file(owner_file(block)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).step(|| format!("forget who has {block}"))
        }
        _ => Ok(()),
    }
}

/// Gives up what a start that failed has claimed.
pub(crate) fn forget_claim(data: &Path) -> Result<(), HostError> {
    let file = data.join("network.json");
    let kept: Option<Claim> =
        fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(claim) = kept else { return Ok(()) };
    let mut netlink = Netlink::open().step(|| "ask the kernel for its network".into())?;
    for block in claim.blocks()?.iter() {
        confine(&mut netlink, block, None)?;
        release(&mut netlink, block)?;
    }
    fs::remove_file(&file).step(|| format!("delete {}", file.display()))
}

/// Lets pods reach the world by their addresses of this block; or, with blocks, only each other, the node, and those of these that are
/// of its family.
pub(crate) fn confine(
    netlink: &mut Netlink,
    block: Cidr,
    to: Option<&[Cidr]>,
) -> Result<(), HostError> {
    let step = || format!("set the routing rules of {block}");
    let here = netlink.rules().step(step)?;
    let here = here.into_iter().filter(|(from, _)| *from == block).map(|(_, to)| to);
    let to: Option<Vec<Cidr>> =
        to.map(|to| to.iter().copied().filter(|to| to.is_of_family_of(block.base())).collect());
    let (add, remove) = rules(block, to.as_deref(), &here.collect());
    let priority = |to: Option<Cidr>| RULE_PRIORITY + u32::from(to.is_none());
    let added = add.into_iter().map(|to| Change::add_rule(block, to, priority(to)));
    let removed = remove.into_iter().map(|to| Change::remove_rule(block, to, priority(to)));
    netlink.apply(&added.chain(removed).collect::<Vec<_>>()).step(step)
}

/// The rules to add and to remove, each by where it leads; none: anywhere. What is allowed comes before what forbids the rest.
fn rules(
    block: Cidr,
    to: Option<&[Cidr]>,
    here: &BTreeSet<Option<Cidr>>,
) -> (Vec<Option<Cidr>>, Vec<Option<Cidr>>) {
    let blocks = to.map(|to| [block].into_iter().chain(to.iter().copied()).map(Some));
    let wanted: BTreeSet<_> = blocks.into_iter().flatten().collect();
    let closing = to.map(|_| None);
    let add = wanted.iter().copied().chain(closing).filter(|it| !here.contains(it)).collect();
    let is_wanted = |it: &Option<Cidr>| wanted.contains(it) || closing == Some(*it);
    // First the one that forbids: what is still allowed never leads nowhere.
    (add, here.iter().copied().filter(|it| !is_wanted(it)).collect())
}

/// The link of the default route of this address's family: its name and the longest packet that it takes.
pub(crate) fn uplink(
    netlink: &mut Netlink,
    family_of: IpAddr,
) -> Result<Option<(String, u32)>, HostError> {
    let step = || "find the default route".to_owned();
    let mut through = None;
    netlink
        .routes(|route| {
            let leads_out = route.main && route.kind == RouteType::Unicast;
            if leads_out && route.block.prefix() == 0 && route.block.is_of_family_of(family_of) {
                through = through.or(route.link);
            }
        })
        .step(step)?;
    let Some(through) = through else { return Ok(None) };
    let links = netlink.links().step(step)?;
    let Some((_, name)) = links.into_iter().find(|(index, _)| *index == through) else {
        return Ok(None);
    };
    let mtu = fs::read_to_string(format!("/sys/class/net/{name}/mtu"));
    let mtu = mtu.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1500);
    Ok(Some((name, mtu)))
}

/// A domain's link, ready for addresses.
#[derive(Debug)]
pub(crate) struct Link {
    index: u32,
    blocks: Blocks,
    inside: Netlink,
}

/// Locally administered, unicast: one per end of each link.
fn hardware(index: DomainIndex, id: DataId, inside: bool) -> [u8; 6] {
    let [a, b, c, _] = id.value().to_be_bytes();
    let [high, low] = index.0.to_be_bytes();
    [if inside { 0x0a } else { 0x0e }, a ^ c, b, high, low, u8::from(inside)]
}

impl Link {
    /// Makes the link of a new domain, whose processes live in the namespace.
    pub(crate) fn make(
        netlink: &mut Netlink,
        id: DataId,
        index: DomainIndex,
        blocks: Blocks,
        mtu: u32,
        place: Place<'_>,
        namespace: BorrowedFd<'_>,
    ) -> Result<Self, HostError> {
        let name = id.link(index);
        let step = || format!("make the link {name}");
        let (outer, inner) = (hardware(index, id, false), hardware(index, id, true));
        // A link of this name is of a domain that is no more.
        netlink.apply(&[Change::remove_link(&name)]).step(step)?;
        let add = Change::add_veth(&name, outer, mtu, INSIDE, inner, namespace);
        netlink.apply(&[add]).step(step)?;
        let settings_of = name.clone();
        let number = place.enter(move || {
            set_our_end(&settings_of, blocks)?;
            link_number(&settings_of).step(|| format!("find the link {settings_of}"))
        })?;
        let neighbour =
            |block: Cidr| Change::add_neighbour(domain_side(block.base()), inner, number);
        let up = [Change::set_up(number)].into_iter().chain(blocks.iter().map(neighbour));
        netlink.apply(&up.collect::<Vec<_>>()).step(step)?;
        let inside = Self::make_inside(namespace, outer, blocks)?;
        Ok(Self { index: number, blocks, inside })
    }

    fn make_inside(
        namespace: BorrowedFd<'_>,
        host: [u8; 6],
        blocks: Blocks,
    ) -> Result<Netlink, HostError> {
        let step = || "set the domain's network up".to_owned();
        Place::Own(namespace).enter(move || {
            // The files under /proc/sys/net are those of the thread that opens them.
            let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
            fs::write(path, "0").step(|| format!("write {path}"))?;
            write_if_there("/proc/sys/net/ipv6/ip_nonlocal_bind", "1")?;
            if has_ipv6(blocks) {
                // A machine may have new namespaces begin without it.
                write_ipv6("lo", "disable_ipv6", "0")?;
            }
            set_ipv6(INSIDE, blocks)?;
            let mut inside = Netlink::open().step(step)?;
            let number = link_number(INSIDE).step(step)?;
            let mut changes = vec![Change::set_up(LOOPBACK), Change::set_up(number)];
            for side in blocks.iter().map(|block| host_side(block.base())) {
                changes.push(Change::add_neighbour(side, host, number));
                changes.push(Change::add_default_route(side, number));
            }
            inside.apply(&changes).step(step)?;
            Ok(inside)
        })
    }

    /// Finds the link of a domain that is there already.
    pub(crate) fn find(
        id: DataId,
        index: DomainIndex,
        blocks: Blocks,
        place: Place<'_>,
        namespace: BorrowedFd<'_>,
    ) -> Result<Self, HostError> {
        let name = id.link(index);
        let number =
            place.enter(move || link_number(&name).step(|| format!("find the link {name}")))?;
        let inside = Place::Own(namespace).netlink()?;
        Ok(Self { index: number, blocks, inside })
    }

    /// Makes the addresses the domain's: inside they are local, and the host routes them there.
    pub(crate) fn add(
        &mut self,
        host: &mut Netlink,
        addresses: &[IpAddr],
    ) -> Result<(), HostError> {
        let step = || format!("give the domain the addresses {addresses:?}");
        let route = |&address: &IpAddr| {
            let source = self.blocks.of_family_of(address).map(Cidr::gateway);
            Change::add_route_via(address, domain_side(address), self.index, source)
        };
        let routes: Vec<Change> = addresses.iter().map(route).collect();
        let local = |&address: &IpAddr| Change::add_local(address, LOOPBACK);
        self.inside.apply(&addresses.iter().map(local).collect::<Vec<_>>()).step(step)?;
        host.apply(&routes).step(step)
    }

    /// They are the domain's no longer: packets to them find nothing.
    pub(crate) fn remove(
        &mut self,
        host: &mut Netlink,
        addresses: &[IpAddr],
    ) -> Result<(), HostError> {
        let step = || format!("take the addresses {addresses:?} from the domain");
        let route =
            |&address: &IpAddr| Change::remove_route_via(address, domain_side(address), self.index);
        host.apply(&addresses.iter().map(route).collect::<Vec<_>>()).step(step)?;
        let local = |&address: &IpAddr| Change::remove_local(address, LOOPBACK);
        self.inside.apply(&addresses.iter().map(local).collect::<Vec<_>>()).step(step)
    }
}

/// Settings of a link's end on our side, of the calling thread's network.
fn set_our_end(name: &str, blocks: Blocks) -> Result<(), HostError> {
    for (key, value) in [
        // Of the kernel's two values for a link and for all links the stricter holds.
        ("ipv4/conf/{}/rp_filter", "1"),
        ("ipv4/conf/{}/forwarding", "1"),
        ("ipv4/conf/{}/accept_redirects", "0"),
        ("ipv4/conf/{}/send_redirects", "0"),
        ("ipv4/conf/{}/accept_source_route", "0"),
        ("ipv4/conf/{}/accept_local", "0"),
        ("ipv4/conf/{}/route_localnet", "0"),
    ] {
        let path = format!("/proc/sys/net/{}", key.replace("{}", name));
        fs::write(&path, value).step(|| format!("write {path}"))?;
    }
    set_ipv6(name, blocks)?;
    if has_ipv6(blocks) {
        // Of a kernel that does not know it, the switch for all links is on.
        write_if_there(&format!("/proc/sys/net/ipv6/conf/{name}/force_forwarding"), "1")?;
    }
    Ok(())
}

/// Whether the calling thread's network has IPv6.
pub(crate) fn ipv6_is_on() -> bool {
    let off = fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    off.is_ok_and(|off| off.trim() == "0")
}

/// How to get it, for messages.
pub(crate) const IPV6_REMEDY: &str = "sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.lo.disable_ipv6=0 (a kernel that was \
     started with ipv6.disable=1 has to be started without)";

pub(crate) fn has_ipv6(blocks: Blocks) -> bool {
    blocks.iter().any(|block| block.base().is_ipv6())
}

/// IPv6 on one end of a link, before it is up. Where pods have no IPv6 it is off, and where they have, without an address that the kernel
/// would give it: in both cases there is no link-local address over which a runner could reach a daemon of the host.
fn set_ipv6(link: &str, blocks: Blocks) -> Result<(), HostError> {
    if !has_ipv6(blocks) {
        return write_if_there(&format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1");
    }
    for (key, value) in [
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("accept_redirects", "0"),
        ("accept_source_route", "0"),
        ("disable_ipv6", "0"),
    ] {
        write_ipv6(link, key, value)?;
    }
    Ok(())
}

fn write_ipv6(link: &str, key: &str, value: &str) -> Result<(), HostError> {
    let path = format!("/proc/sys/net/ipv6/conf/{link}/{key}");
    fs::write(&path, value).step(|| format!("write {path}"))
}

fn link_number(name: &str) -> io::Result<u32> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    Ok(netdevice::name_to_index(&any, name)?)
}

/// Sets a switch of a family that this kernel may not have.
fn write_if_there(path: &str, value: &str) -> Result<(), HostError> {
    match fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.step(|| format!("write {path}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Cidr {
        text.parse().expect("a block")
    }

    #[test]
    fn confined_pods_are_let_to_each_other_and_to_known_blocks_before_the_rest_is_forbidden() {
        let (own, other) = (block("10.244.1.0/24"), block("10.244.2.0/24"));

        let (add, remove) = rules(own, Some(&[other]), &BTreeSet::new());

        assert_eq!(add, [Some(own), Some(other), None]);
        assert_eq!(remove, []);
    }

    #[test]
    fn only_the_rules_that_differ_are_changed_and_those_that_allow_go_last() {
        let (own, old, new) =
            (block("10.244.1.0/24"), block("10.244.2.0/24"), block("10.244.3.0/24"));
        let here = BTreeSet::from([None, Some(own), Some(old)]);

        assert_eq!(rules(own, Some(&[new]), &here), (vec![Some(new)], vec![Some(old)]));
        assert_eq!(rules(own, None, &here), (vec![], vec![None, Some(own), Some(old)]));
        assert_eq!(rules(own, Some(&[old]), &here), (vec![], vec![]));
    }
}
