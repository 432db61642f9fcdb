//! This machine as a node tells of it: what it is, how much it has, and how much of that is left.
//!
//! [`Machine`] is read once, [`Usage`] as often as somebody looks. Absent: what a node makes of it ([`crate::node_object`]), and
//! pressure ([`crate::pressure`]).

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use copepod_domain::Blocks;

use crate::settings::is_reachable;

/// What does not change while the machine runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// `/etc/machine-id`, or what stands for it.
    pub machine_id: String,
    /// The firmware's UUID, where it has one; else the machine's id.
    pub system_uuid: String,
    /// Another one after each boot.
    pub boot_id: String,
    /// As `uname -r` has it.
    pub kernel: String,
    /// As `/etc/os-release` has it.
    pub os_image: String,
    /// As Go and so Kubernetes calls it: `amd64`, `arm64`.
    pub architecture: &'static str,
    /// Thousandths of cores.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the file system of the data directory.
    pub disk: u64,
}

/// What is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All bytes of memory.
    pub memory: u64,
    /// Bytes of memory that can still be had.
    pub memory_available: u64,
    /// Bytes of the data directory's file system that can still be had.
    pub disk_available: u64,
    /// All bytes of it.
    pub disk: u64,
    /// Files that it can still have; 0 of 0 where it does not count them.
    pub inodes_free: u64,
    /// All files that it can have.
    pub inodes: u64,
    /// Processes and threads that live.
    pub tasks: u64,
    /// The most that can.
    pub max_tasks: u64,
}

impl Machine {
    /// This machine.
    ///
    /// # Errors
    /// `/proc` or the data directory cannot be read.
    pub fn here(data: &Path) -> io::Result<Self> {
        let machine_id = first_of(&["/etc/machine-id", "/var/lib/dbus/machine-id"]);
        let boot_id = first_of(&["/proc/sys/kernel/random/boot_id"]);
        // In a container there may be none: then one that lasts as long as the boot is better than an empty one, which an API
        // server takes but tools trip over.
        let machine_id = if machine_id.is_empty() { boot_id.replace('-', "") } else { machine_id };
        let system_uuid = first_of(&["/sys/class/dmi/id/product_uuid"]);
        let system_uuid = if system_uuid.is_empty() { machine_id.clone() } else { system_uuid };
        let memory = memory_of(&fs::read_to_string("/proc/meminfo")?, "MemTotal")
            .ok_or_else(|| io::Error::other("/proc/meminfo tells no MemTotal"))?;
        let disk = rustix::fs::statvfs(data)?;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        Ok(Self {
            machine_id,
            system_uuid,
            boot_id,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            os_image: os_image(
                &fs::read_to_string("/etc/os-release")
                    .or_else(|_| fs::read_to_string("/usr/lib/os-release"))
                    .unwrap_or_default(),
            ),
            architecture: architecture(std::env::consts::ARCH),
            cpu_millis: cores * 1000,
            memory,
            disk: disk.f_blocks * disk.f_frsize,
        })
    }
}

impl Usage {
    /// Of this machine, now.
    ///
    /// # Errors
    /// `/proc` or the data directory cannot be read.
    pub fn now(data: &Path) -> io::Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let disk = rustix::fs::statvfs(data)?;
        let number =
            |file: &str| fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
        let limits = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
        Ok(Self {
            memory: memory_of(&meminfo, "MemTotal").unwrap_or_default(),
            memory_available: memory_of(&meminfo, "MemAvailable")
                .ok_or_else(|| io::Error::other("/proc/meminfo tells no MemAvailable"))?,
            // What others than root may have, as a kubelet counts.
            disk_available: disk.f_bavail * disk.f_frsize,
            disk: disk.f_blocks * disk.f_frsize,
            inodes_free: disk.f_favail,
            inodes: disk.f_files,
            tasks: tasks(&fs::read_to_string("/proc/loadavg")?).unwrap_or_default(),
            max_tasks: limits.into_iter().flatten().min().unwrap_or(u64::MAX),
        })
    }
}

/// The first of the files that tells something.
fn first_of(files: &[&str]) -> String {
    let read = |file: &&str| fs::read_to_string(file).ok().map(|text| text.trim().to_owned());
    files.iter().filter_map(read).find(|text| !text.is_empty()).unwrap_or_default()
}

/// A line of `/proc/meminfo`, in bytes.
fn memory_of(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The tasks that live, from `/proc/loadavg`: `0.1 0.2 0.3 1/234 5678`.
fn tasks(text: &str) -> Option<u64> {
    text.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// `PRETTY_NAME` of `/etc/os-release`.
fn os_image(text: &str) -> String {
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches(['"', '\'']).to_owned())
}

/// Go's name of an architecture, from Rust's.
fn architecture(rust: &'static str) -> &'static str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "loongarch64" => "loong64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Why no address can be the node's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAddress {
    /// A given one is not this machine's.
    #[error("--node-ip {0}: no interface of this machine has this address")]
    NotHere(IpAddr),
    /// None is given, and none found.
    #[error("this machine has no address that others could reach: give one with --node-ip")]
    None,
}

/// The node's addresses: those given, else the one from which the API server is reached, else that of the default route; and where
/// pods have addresses of another family too, that of this family's default route, if there is one.
///
/// # Errors
/// See [`NoAddress`].
pub fn addresses(
    given: &[IpAddr],
    server: Option<SocketAddr>,
    pods: Option<Blocks>,
) -> Result<Vec<IpAddr>, NoAddress> {
    if let Some(&bad) = given.iter().find(|ip| UdpSocket::bind((**ip, 0)).is_err()) {
        return Err(NoAddress::NotHere(bad));
    }
    if !given.is_empty() {
        return Ok(given.to_owned());
    }
    let elsewhere = || ELSEWHERE.into_iter().find_map(source_towards);
    let mut found: Vec<IpAddr> =
        server.and_then(source_towards).or_else(elsewhere).into_iter().collect();
    for block in pods.iter().flat_map(|blocks| blocks.iter()) {
        let is_of_family = |ip: IpAddr| block.is_of_family_of(ip);
        if !found.iter().copied().any(is_of_family) {
            let towards = ELSEWHERE.into_iter().find(|peer| is_of_family(peer.ip()));
            found.extend(towards.and_then(source_towards));
        }
    }
    if found.is_empty() { Err(NoAddress::None) } else { Ok(found) }
}

/// What does not go together of the node's addresses and its pods', each in a sentence with what to do.
pub fn at_odds(addresses: &[IpAddr], pods: Blocks) -> Vec<String> {
    let name = |ip: IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let lacking =
        pods.iter().filter(|block| !addresses.iter().any(|ip| block.is_of_family_of(*ip)));
    let lacking = lacking.map(|block| {
        let family = name(block.base());
        format!(
            "the cluster gives this node {family} addresses for pods ({block}), and the node itself has none: other nodes set no routes              to them; give the machine an {family} address, and name both with --node-ip"
        )
    });
    let idle = addresses.iter().filter(|ip| pods.of_family_of(**ip).is_none());
    let idle = idle.map(|ip| {
        let family = name(*ip);
        format!(
            "the node has the {family} address {ip}, and the cluster gives it no {family} addresses for pods, only {pods}: pods do not              reach {family}; have the cluster give both (--cluster-cidr of kube-controller-manager), or leave the address out of --node-ip"
        )
    });
    lacking.chain(idle).collect()
}

/// Addresses that belong to nobody (RFC 5737, RFC 3849): the default routes lead there.
const ELSEWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// The address that this machine would send from. Nothing is sent.
fn source_towards(peer: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(is_reachable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_tells_what_it_is_and_what_is_left() {
        let data = tempfile::tempdir().expect("a folder");

        let machine = Machine::here(data.path()).expect("read");
        let usage = Usage::now(data.path()).expect("read");

        for text in [&machine.machine_id, &machine.system_uuid, &machine.boot_id, &machine.kernel] {
            assert!(!text.is_empty(), "{machine:?}");
        }
        assert!(machine.cpu_millis >= 1000 && machine.disk > 0);
        assert!(usage.memory_available <= usage.memory && usage.tasks <= usage.max_tasks);
    }

    #[test]
    fn proc_and_os_release_are_read_as_they_are_written() {
        let meminfo = "MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:    8192 kB\n";
        assert_eq!(memory_of(meminfo, "MemTotal"), Some(16 << 20));
        assert_eq!(memory_of(meminfo, "MemAvailable"), Some(8 << 20));
        assert_eq!(memory_of(meminfo, "Mem"), None);
        assert_eq!(tasks("0.1 0.2 0.3 1/234 5678\n"), Some(234));
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian 13\"\n"), "Debian 13");
        assert_eq!(os_image(""), "Linux");
        assert_eq!((architecture("x86_64"), architecture("aarch64")), ("amd64", "arm64"));
    }

    #[test]
    fn an_address_that_is_another_machine_s_is_refused() {
        let other: IpAddr = "192.0.2.77".parse().expect("an address");

        assert_eq!(addresses(&[other], None, None), Err(NoAddress::NotHere(other)));
    }

    #[test]
    fn addresses_of_a_family_that_pods_have_not_and_the_other_way_round_are_told() {
        let both = ["192.0.2.2", "2001:db8::2"].map(|ip| ip.parse().expect("an address"));
        let blocks = |text: &str| text.parse::<Blocks>().expect("blocks");

        assert_eq!(at_odds(&both, blocks("10.1.0.0/24,fd00:1::/64")), Vec::<String>::new());
        let lacking = at_odds(&both[..1], blocks("10.1.0.0/24,fd00:1::/64"));
        assert!(
            lacking.len() == 1 && lacking[0].contains("name both with --node-ip"),
            "{lacking:?}"
        );
        let idle = at_odds(&both, blocks("10.1.0.0/24"));
        assert!(idle.len() == 1 && idle[0].contains("the IPv6 address 2001:db8::2"), "{idle:?}");
    }

    #[test]
    fn a_loopback_api_server_makes_no_loopback_node() {
        let server = "127.0.0.1:6443".parse().expect("an address");

        let found = addresses(&[], Some(server), None).unwrap_or_default();

        assert!(found.iter().all(is_reachable), "{found:?}");
    }
}
