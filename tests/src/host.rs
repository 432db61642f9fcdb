//! What a node has on this machine, found from outside: processes, interfaces, routes, mounts, cgroups, nftables.
//!
//! Everything of a node carries its data directory's path or its id, so a node is told from its neighbours. Absent: asking
//! the node itself, which would not know what it forgot.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What identifies a node on this machine.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Its data directory.
    pub data: PathBuf,
    /// Its id, which is in the names of all that it makes; none where it never came so far.
    pub id: Option<String>,
    /// Where its range of pod addresses begins; none where it never came so far.
    pub block: Option<Ipv4Addr>,
    /// The program that lists the machine's nftables.
    pub nft: PathBuf,
}

/// How many leading bits the addresses of one data directory have in common.
const CIDR_BITS: u32 = 18;

impl Mark {
    /// Reads a node's id and range from its data directory, while its agent runs.
    pub fn of(data: &Path, nft: &Path) -> Self {
        let id = fs::read_to_string(data.join("id")).ok().map(|id| id.trim().to_owned());
        let block = || {
            let network: Value =
                serde_json::from_slice(&fs::read(data.join("network.json")).ok()?).ok()?;
            network["block"].as_str()?.split_once('/')?.0.parse().ok()
        };
        Self {
            data: data.to_owned(),
            id: id.filter(|id| id.len() >= 8),
            block: block(),
            nft: nft.to_owned(),
        }
    }

    fn named(&self, name: &str) -> bool {
        self.id.as_deref().is_some_and(|id| name.contains(id))
    }

    fn in_cidr(&self, address: Ipv4Addr) -> bool {
        self.block
            .is_some_and(|block| (block.to_bits() ^ address.to_bits()) >> (32 - CIDR_BITS) == 0)
    }
}

/// One line for each thing of the node that is still there, sorted by kind.
pub fn leftovers(mark: &Mark) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(processes(mark).into_iter().map(|(pid, what)| format!("process {pid}: {what}")));
    found.extend(interfaces(mark).into_iter().map(|name| format!("interface {name}")));
    found.extend(routes(mark).into_iter().map(|route| format!("route {route}")));
    found.extend(mounts(mark).into_iter().map(|at| format!("mount {at}")));
    found.extend(cgroups(mark).into_iter().map(|at| format!("cgroup {}", at.display())));
    found.extend(tables(mark).into_iter().map(|name| format!("nftables table {name}")));
    found
}

/// Ends and removes all that [`leftovers`] finds: after a test that failed.
pub fn sweep(mark: &Mark) {
    for _ in 0..50 {
        let processes = processes(mark);
        if processes.is_empty() {
            break;
        }
        for (pid, _) in processes {
            kill(pid);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // The deepest first.
    for at in mounts(mark).iter().rev() {
        let _ = Command::new("umount").arg("--lazy").arg(at).output();
    }
    for at in cgroups(mark).iter().rev() {
        let _ = fs::remove_dir(at);
    }
    if let Some(block) = mark.block {
        // What holds the range while no pod does.
        let range = format!("{block}/{CIDR_BITS}");
        let _ = Command::new("ip").args(["route", "delete", "unreachable", &range]).output();
    }
    for name in interfaces(mark) {
        let _ = Command::new("ip").args(["link", "delete", &name]).output();
    }
    for name in tables(mark) {
        let table: Vec<&str> = name.split(' ').collect();
        let _ = nft(mark, &[["delete", "table"].as_slice(), &table].concat());
    }
}

/// Kills one process, by `SIGKILL`.
pub fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The program that a process runs; empty where there is no such process.
pub fn program(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default()
}

/// The user that a process runs as.
pub fn user(pid: u32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}")).ok().map(|process| process.uid())
}

/// The node's processes and their command lines: those that run a program of its data directory, or name it.
pub fn processes(mark: &Mark) -> Vec<(u32, String)> {
    let data = mark.data.to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let folder = entry.path();
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = fs::read_link(folder.join("exe")).unwrap_or_default();
        // A zombie has neither; whoever started it reaps it.
        if line.contains(&*data) || program.to_string_lossy().contains(&*data) {
            found.push((pid, line.trim().to_owned()));
        }
    }
    found
}

fn interfaces(mark: &Mark) -> Vec<String> {
    names(Path::new("/sys/class/net")).into_iter().filter(|name| mark.named(name)).collect()
}

fn routes(mark: &Mark) -> Vec<String> {
    let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let mut columns = line.split_whitespace();
        let (Some(interface), Some(to)) = (columns.next(), columns.next()) else { continue };
        // The kernel prints the address as the integer that it is in memory.
        let Ok(to) = u32::from_str_radix(to, 16) else { continue };
        let to = Ipv4Addr::from(to.to_ne_bytes());
        if mark.named(interface) || mark.in_cidr(to) {
            found.push(format!("{to} by {interface}"));
        }
    }
    found
}

fn mounts(mark: &Mark) -> Vec<String> {
    let data = mark.data.to_string_lossy();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let place = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    table.lines().filter_map(place).filter(|at| at.starts_with(&*data) || mark.named(at)).collect()
}

fn cgroups(mark: &Mark) -> Vec<PathBuf> {
    let mut found = Vec::new();
    find_cgroups(Path::new("/sys/fs/cgroup"), mark, &mut found);
    found
}

fn find_cgroups(folder: &Path, mark: &Mark, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            // All beneath a node's own group is the node's.
            if path.components().any(|part| mark.named(&part.as_os_str().to_string_lossy())) {
                found.push(path.clone());
            }
            find_cgroups(&path, mark, found);
        }
    }
}

fn tables(mark: &Mark) -> Vec<String> {
    let listed = nft(mark, &["list", "tables"]).unwrap_or_default();
    listed
        .lines()
        .filter_map(|line| line.strip_prefix("table "))
        .filter(|name| mark.named(name))
        .map(str::to_owned)
        .collect()
}

fn nft(mark: &Mark, arguments: &[&str]) -> Option<String> {
    let output = Command::new(&mark.nft).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_belongs_to_a_node_by_its_eighteen_leading_bits() {
        let mark = Mark {
            data: "/none".into(),
            id: None,
            block: Some(Ipv4Addr::new(10, 64, 64, 9)),
            nft: "/none".into(),
        };

        assert!(mark.in_cidr(Ipv4Addr::new(10, 64, 127, 1)));
        assert!(!mark.in_cidr(Ipv4Addr::new(10, 64, 128, 1)));
        assert!(!mark.in_cidr(Ipv4Addr::new(10, 64, 63, 1)));
    }

    #[test]
    fn a_process_is_found_by_the_data_directory_on_its_command_line_and_is_gone_after_the_sweep() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mark =
            Mark { data: folder.path().join("data"), id: None, block: None, nft: "/none".into() };
        let mut child = Command::new("sh")
            .args(["-c", "read line", mark.data.to_str().expect("a temporary path is text")])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("a shell");

        // Its command line appears a moment after it has begun.
        let found = crate::wait::until("the process", || {
            Some(processes(&mark)).filter(|found| !found.is_empty())
        });
        assert_eq!(found.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), [child.id()]);
        sweep(&mark);

        child.wait().expect("it was killed");
        assert_eq!(leftovers(&mark), Vec::<String>::new());
    }
}
