//! What this machine can do, for `copepod check`: each line with what is lost without it, and what to do.
//!
//! Everything is tried, not read from a version number, and what is tried is undone. Absent: judging; a missing `nft` is a loss
//! like another, and the caller decides what it needs.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, Cgroups, NoGroups};
use crate::error::{HostError, Step};
use crate::mounts;
use crate::netlink::{Change, Netlink};
use crate::network;
use crate::nft::{self, Nft};
use crate::sys::{self, MountChange};
use crate::user;

/// One thing that a machine can have or lack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it is there.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What does not work without it.
    pub lost_without_it: String,
    /// How to get it.
    pub remedy: String,
}

/// Tries everything. `scratch` is a directory on the file system of the volumes, where mounts can be tried.
pub fn check_host(scratch: &Path) -> Vec<Check> {
    let root = rustix::process::geteuid().is_root();
    let check = |name: &str, found: Result<String, String>, lost: &str, remedy: &str| Check {
        name: name.into(),
        ok: found.is_ok(),
        found: found.unwrap_or_else(|why| why),
        lost_without_it: lost.into(),
        remedy: remedy.into(),
    };
    let mut checks = vec![
        check(
            "root",
            if root { Ok("yes".into()) } else { Err("no: an ordinary user's pods".into()) },
            "a user of its own for each isolation domain, cgroups, settings of the machine, pod addresses that the host reaches",
            "run as root; an ordinary user's pods run in a user namespace, with ports by --publish",
        ),
        check(
            "kernel",
            kernel(),
            "bind mounts by descriptor, idmapped mounts, pidfds",
            "use Linux 6.1 or newer",
        ),
        check(
            "landlock",
            sys::landlock_version()
                .map(|version| format!("version {version}"))
                .ok_or_else(|| "not there".into()),
            "the second fence around a runner's files, and (version 6) around signals and abstract sockets",
            "enable CONFIG_SECURITY_LANDLOCK and name landlock in the boot parameter lsm=",
        ),
        check(
            "seccomp",
            seccomp(),
            "the list of system calls that a runner may make; runners do not start without it",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    ];
    if root {
        checks.extend([
            check(
                "idmapped mounts",
                idmapped(scratch),
                "volumes of the host and persistent volumes in pods",
                "keep the data directory and volumes on ext4, xfs, btrfs or tmpfs, and use Linux 6.1 or newer",
            ),
            check(
                "user namespaces",
                sys::user_namespace(0, 0).map(|_| "yes".into()).map_err(|error| error.to_string()),
                "idmapped mounts, and running as an ordinary user",
                "set user.max_user_namespaces above 0",
            ),
            check(
                "network namespaces",
                network_namespaces(),
                "pods with an address of their own",
                "use a kernel with CONFIG_NET_NS and CONFIG_VETH (modprobe veth)",
            ),
            check(
                "ipv6",
                if network::ipv6_is_on() { Ok("on".into()) } else { Err("off".into()) },
                "pods with IPv6 addresses, as clusters of IPv6 and dual-stack ones give them",
                network::IPV6_REMEDY,
            ),
            check(
                "cgroups",
                cgroup::find("copepod-check")
                    .map(|groups| groups.describe())
                    .map_err(|e| e.to_string()),
                "limiting the memory of an isolation domain; nothing starts without it",
                "mount cgroup2 at /sys/fs/cgroup with the controllers memory and pids",
            ),
            check(
                "nft",
                match Nft::find(None) {
                    Some(nft) => nft
                        .version()
                        .map(|version| format!("{version} at {}", nft.program().display()))
                        .map_err(|error| {
                            format!("{} does not run: {error}", nft.program().display())
                        }),
                    None => Err("not found".into()),
                },
                "reaching the world beyond this machine, hostPort, and the second judge of every packet",
                nft::REMEDY,
            ),
        ]);
    } else {
        checks.extend([
            check(
                "user namespaces",
                sys::try_ground_of_a_user()
                    .map(|()| "yes, with mounts and networks".into())
                    .map_err(|error| error.to_string()),
                "running pods as an ordinary user",
                &user::remedy(&|file| fs::read_to_string(file).ok()),
            ),
            check(
                "cgroups",
                Err(NoGroups.describe()),
                "a limit of the kernel's on an isolation domain's memory and threads; a container's own limits are kept by its runner",
                "run as root",
            ),
        ]);
    }
    checks.extend([
        check(
            "open files",
            at_least(rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum, 65_536),
            "more than about that many sockets per isolation domain",
            "raise the hard limit: ulimit -Hn, or LimitNOFILE= of the unit",
        ),
        check(
            "memory maps",
            if root {
                at_least(number("/proc/sys/vm/max_map_count"), 1)
            } else {
                at_least(number("/proc/sys/vm/max_map_count"), 1_048_576)
            },
            "more than a fifth of that many wasm instances per isolation domain",
            "set vm.max_map_count to 1048576; an agent of root does so itself",
        ),
        check(
            "processes",
            at_least(number("/proc/sys/kernel/pid_max"), 32_768),
            "many isolation domains at once",
            "raise kernel.pid_max",
        ),
        check(
            "free memory",
            free_memory(),
            "compiling large modules (up to 4 GiB), and pods beyond it",
            "free memory, or add some",
        ),
    ]);
    checks
}

fn at_least(found: Option<u64>, wanted: u64) -> Result<String, String> {
    match found {
        None => Ok("unlimited".into()),
        Some(found) if found >= wanted => Ok(found.to_string()),
        Some(found) => Err(format!("{found}, {wanted} wanted")),
    }
}

fn number(path: &str) -> Option<u64> {
    Some(fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0))
}

/// 6.1 is the oldest kernel with all that is used: `mount_setattr`, `openat2`, pidfds, Landlock with file renames across directories.
fn kernel() -> Result<String, String> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 1) => Ok(release),
        _ => Err(release),
    }
}

fn seccomp() -> Result<String, String> {
    let path = "/proc/sys/kernel/seccomp/actions_avail";
    let actions = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let actions = actions.trim();
    if actions.split(' ').any(|action| action == "errno") {
        Ok(actions.into())
    } else {
        Err(actions.into())
    }
}

fn free_memory() -> Result<String, String> {
    let text = fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .ok_or("the kernel does not say")?;
    let found = format!("{} MiB", kib >> 10);
    if kib >= 512 << 10 { Ok(found) } else { Err(found) }
}

fn idmapped(scratch: &Path) -> Result<String, String> {
    let tried = || -> Result<(), HostError> {
        let owners =
            sys::user_namespace(0, 2_000_000_000).step(|| "make a map of owners".into())?;
        let directory = mounts::open_path(scratch)?;
        let copy = mounts::copy_of(directory.as_fd()).step(|| "copy a mount".into())?;
        let change = MountChange {
            set: libc::MOUNT_ATTR_IDMAP,
            propagation: 0,
            owners: Some(owners.as_fd()),
        };
        sys::change_mount(&copy, change, false).step(|| "map the owners of its files".into())
    };
    let place = format!("on {}", scratch.display());
    tried().map(|()| place.clone()).map_err(|error| format!("not {place}: {}", with_cause(&error)))
}

fn network_namespaces() -> Result<String, String> {
    let tried = mounts::on_a_thread(|| {
        let step = || "make a network namespace with a pair of links".to_owned();
        sys::unshare(UnshareFlags::NEWNET).step(step)?;
        let own = fs::File::open("/proc/thread-self/ns/net").step(step)?;
        // Both ends lie in the new namespace, which ends with this thread, and they with it.
        let mut netlink = Netlink::open().step(step)?;
        let pair = Change::add_veth(
            "try0",
            [2, 0, 0, 0, 0, 1],
            1500,
            "try1",
            [2, 0, 0, 0, 0, 2],
            own.as_fd(),
        );
        netlink.apply(&[pair]).step(step)
    });
    tried.map(|()| "yes".into()).map_err(|error| with_cause(&error))
}

fn with_cause(error: &HostError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_says_what_was_found_what_is_lost_and_what_to_do() {
        let scratch = tempfile::tempdir().expect("a directory");

        let checks = check_host(scratch.path());

        assert!(checks.len() >= 12);
        for check in &checks {
            for text in [&check.name, &check.found, &check.lost_without_it, &check.remedy] {
                assert!(!text.is_empty(), "{check:?}");
            }
        }
        let names: std::collections::BTreeSet<_> = checks.iter().map(|check| &check.name).collect();
        assert_eq!(names.len(), checks.len(), "no name twice");
    }

    #[test]
    fn a_limit_below_what_is_wanted_says_both_numbers() {
        assert_eq!(at_least(Some(10), 20), Err("10, 20 wanted".into()));
        assert_eq!(at_least(None, 20), Ok("unlimited".into()));
    }
}
