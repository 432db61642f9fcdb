//! A domain's control group: how much memory and how many threads its runner may have, and who is in it.
//!
//! One trait, two hierarchies: version 2, which current distributions mount, and version 1 (also "hybrid"), where each controller has
//! a tree of its own. Absent: CPU limits of containers; the runner keeps those itself, by a token bucket around every poll.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

/// What the kernel holds a domain to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most memory, kernel memory included; none: the machine's.
    pub memory: Option<u64>,
    /// Most threads; none: the kernel's own limit.
    pub threads: Option<u32>,
}

/// What a domain has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory now, in bytes.
    pub memory: u64,
    /// The most that it ever was; 0 where the kernel does not say.
    pub memory_peak: u64,
    /// How often the kernel killed in this group for lack of memory.
    pub oom_kills: u64,
    /// CPU time in nanoseconds; 0 where it is not counted.
    pub cpu_ns: u64,
}

/// The control groups of one data directory's domains, by name.
pub trait Cgroups: fmt::Debug + Send + Sync {
    /// Makes a group, or takes the one that is there, and sets its limits.
    ///
    /// # Errors
    /// The file system's.
    fn create(&self, name: &str, limits: Limits) -> io::Result<()>;
    /// Moves a process into a group.
    ///
    /// # Errors
    /// The file system's.
    fn add(&self, name: &str, process: Pid) -> io::Result<()>;
    /// Changes the most memory.
    ///
    /// # Errors
    /// The file system's.
    fn set_memory(&self, name: &str, bytes: Option<u64>) -> io::Result<()>;
    /// What the group has used.
    ///
    /// # Errors
    /// The file system's.
    fn usage(&self, name: &str) -> io::Result<Usage>;
    /// The processes of a group; none where there is no such group.
    ///
    /// # Errors
    /// The file system's.
    fn members(&self, name: &str) -> io::Result<Vec<Pid>>;
    /// Kills every process of a group.
    ///
    /// # Errors
    /// The file system's.
    fn kill(&self, name: &str) -> io::Result<()>;
    /// Removes an empty group; also one that is not there.
    ///
    /// # Errors
    /// `EBUSY` while a process is in it.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Removes what holds the groups, if it is empty.
    ///
    /// # Errors
    /// The file system's.
    fn remove_all(&self) -> io::Result<()>;
    /// The hierarchy in words, for `copepod check`.
    fn describe(&self) -> String;
    /// The directories that hold the groups, there or not.
    fn places(&self) -> Vec<PathBuf>;
}

/// The hierarchy of this machine, found in its mounts, with our groups beneath `parent`.
///
/// # Errors
/// None of the controllers `memory` and `pids` is there.
pub fn find(parent: &str) -> io::Result<Box<dyn Cgroups>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut controllers = BTreeMap::new();
    let mut unified = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(path), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        match kind {
            "cgroup2" => unified = unified.or_else(|| Some(PathBuf::from(path))),
            "cgroup" => {
                for controller in ["memory", "pids", "cpuacct"] {
                    if options.split(',').any(|option| option == controller) {
                        controllers.insert(controller, Path::new(path).join(parent));
                    }
                }
            }
            _ => {}
        }
    }
    if let Some(root) = unified {
        let offered = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if offered.split_whitespace().any(|controller| controller == "memory") {
            return Ok(Box::new(V2 { root: root.clone(), groups: root.join(parent) }));
        }
    }
    if controllers.contains_key("memory") && controllers.contains_key("pids") {
        return Ok(Box::new(V1 { controllers }));
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no cgroup hierarchy offers memory and pids"))
}

/// Version 2.
#[derive(Debug)]
pub struct V2 {
    root: PathBuf,
    groups: PathBuf,
}

impl V2 {
    /// The hierarchy mounted at `root`, with our groups in `parent` beneath it.
    pub fn new(root: &Path, parent: &str) -> Self {
        Self { root: root.to_owned(), groups: root.join(parent) }
    }
}

impl Cgroups for V2 {
    fn create(&self, name: &str, limits: Limits) -> io::Result<()> {
        // A controller is there for the children of a group once the group itself hands it on.
        make(&self.groups)?;
        for level in [&self.root, &self.groups] {
            set(&level.join("cgroup.subtree_control"), "+memory +pids")?;
        }
        let group = self.groups.join(name);
        make(&group)?;
        self.set_memory(name, limits.memory)?;
        let threads = limits.threads.map_or_else(|| "max".into(), |threads| threads.to_string());
        set(&group.join("pids.max"), &threads)?;
        // As a kubelet by default: no pod is swapped.
        set_if_there(&group.join("memory.swap.max"), "0")
    }

    fn add(&self, name: &str, process: Pid) -> io::Result<()> {
        set(&self.groups.join(name).join("cgroup.procs"), &process.as_raw_nonzero().to_string())
    }

    fn set_memory(&self, name: &str, bytes: Option<u64>) -> io::Result<()> {
        let bytes = bytes.map_or_else(|| "max".into(), |bytes| bytes.to_string());
        set(&self.groups.join(name).join("memory.max"), &bytes)
    }

    fn usage(&self, name: &str) -> io::Result<Usage> {
        let group = self.groups.join(name);
        let events = fs::read_to_string(group.join("memory.events"))?;
        let cpu = fs::read_to_string(group.join("cpu.stat")).unwrap_or_default();
        Ok(Usage {
            memory: number(&group.join("memory.current"))?,
            memory_peak: number(&group.join("memory.peak")).unwrap_or(0),
            oom_kills: keyed(&events, "oom_kill").unwrap_or(0),
            cpu_ns: keyed(&cpu, "usage_usec").unwrap_or(0).saturating_mul(1000),
        })
    }

    fn members(&self, name: &str) -> io::Result<Vec<Pid>> {
        processes(&self.groups.join(name))
    }

    fn kill(&self, name: &str) -> io::Result<()> {
        match set(&self.groups.join(name).join("cgroup.kill"), "1") {
            // Kernels before 5.14 have no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                kill_each(&self.members(name)?)
            }
            other => other,
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        remove(&self.groups.join(name))
    }

    fn remove_all(&self) -> io::Result<()> {
        remove(&self.groups)
    }

    fn describe(&self) -> String {
        format!("version 2 at {}", self.root.display())
    }

    fn places(&self) -> Vec<PathBuf> {
        vec![self.groups.clone()]
    }
}

/// Version 1: our directory in each controller's tree.
#[derive(Debug)]
pub struct V1 {
    controllers: BTreeMap<&'static str, PathBuf>,
}

impl V1 {
    fn group(&self, controller: &str, name: &str) -> io::Result<PathBuf> {
        let groups = self.controllers.get(controller).ok_or(io::ErrorKind::NotFound)?;
        Ok(groups.join(name))
    }
}

impl Cgroups for V1 {
    fn create(&self, name: &str, limits: Limits) -> io::Result<()> {
        for groups in self.controllers.values() {
            make(groups)?;
            make(&groups.join(name))?;
        }
        self.set_memory(name, limits.memory)?;
        let threads = limits.threads.map_or_else(|| "max".into(), |threads| threads.to_string());
        set(&self.group("pids", name)?.join("pids.max"), &threads)
    }

    fn add(&self, name: &str, process: Pid) -> io::Result<()> {
        for groups in self.controllers.values() {
            let list = groups.join(name).join("cgroup.procs");
            set(&list, &process.as_raw_nonzero().to_string())?;
        }
        Ok(())
    }

    fn set_memory(&self, name: &str, bytes: Option<u64>) -> io::Result<()> {
        let bytes = bytes.map_or_else(|| "-1".into(), |bytes| bytes.to_string());
        let group = self.group("memory", name)?;
        let memory = group.join("memory.limit_in_bytes");
        let with_swap = group.join("memory.memsw.limit_in_bytes");
        // Memory with swap may never be the lower of the two: the order depends on the direction, so one of the two orders works.
        set(&memory, &bytes)
            .and_then(|()| set_if_there(&with_swap, &bytes))
            .or_else(|_| set_if_there(&with_swap, &bytes).and_then(|()| set(&memory, &bytes)))
    }

    fn usage(&self, name: &str) -> io::Result<Usage> {
        let memory = self.group("memory", name)?;
        let control = fs::read_to_string(memory.join("memory.oom_control"))?;
        let cpu =
            self.group("cpuacct", name).and_then(|group| number(&group.join("cpuacct.usage")));
        Ok(Usage {
            memory: number(&memory.join("memory.usage_in_bytes"))?,
            memory_peak: number(&memory.join("memory.max_usage_in_bytes"))?,
            oom_kills: keyed(&control, "oom_kill").unwrap_or(0),
            cpu_ns: cpu.unwrap_or(0),
        })
    }

    fn members(&self, name: &str) -> io::Result<Vec<Pid>> {
        processes(&self.group("pids", name)?)
    }

    fn kill(&self, name: &str) -> io::Result<()> {
        kill_each(&self.members(name)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.controllers.values().try_for_each(|groups| remove(&groups.join(name)))
    }

    fn remove_all(&self) -> io::Result<()> {
        self.controllers.values().try_for_each(|groups| remove(groups))
    }

    fn describe(&self) -> String {
        let names: Vec<_> = self.controllers.keys().copied().collect();
        format!("version 1 ({})", names.join(", "))
    }

    fn places(&self) -> Vec<PathBuf> {
        self.controllers.values().cloned().collect()
    }
}

/// No hierarchy that this user may change: nothing is limited or counted here, and a group is a name only.
#[derive(Debug)]
pub(crate) struct NoGroups;

impl Cgroups for NoGroups {
    fn create(&self, _: &str, _: Limits) -> io::Result<()> {
        Ok(())
    }

    fn add(&self, _: &str, _: Pid) -> io::Result<()> {
        Ok(())
    }

    fn set_memory(&self, _: &str, _: Option<u64>) -> io::Result<()> {
        Ok(())
    }

    fn usage(&self, _: &str) -> io::Result<Usage> {
        // What containers use is in their runner's own ledger.
        Ok(Usage::default())
    }

    fn members(&self, _: &str) -> io::Result<Vec<Pid>> {
        Ok(Vec::new())
    }

    fn kill(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn describe(&self) -> String {
        "none: an ordinary user may make none".into()
    }

    fn places(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// Only while they are verifiably in the group: a number alone could be someone else's by now.
fn kill_each(processes: &[Pid]) -> io::Result<()> {
    for &process in processes {
        match rustix::process::kill_process(process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn processes(group: &Path) -> io::Result<Vec<Pid>> {
    match fs::read_to_string(group.join("cgroup.procs")) {
        Ok(list) => {
            Ok(list.lines().filter_map(|l| l.parse().ok().and_then(Pid::from_raw)).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn remove(group: &Path) -> io::Result<()> {
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The file is the kernel's: it is never created.
fn set(file: &Path, value: &str) -> io::Result<()> {
    use io::Write as _;
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

fn set_if_there(file: &Path, value: &str) -> io::Result<()> {
    match set(file, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn number(file: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A written file tree: what a kernel would show in a version 2 hierarchy.
    fn written(group: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(path, text).expect("written");
        };
        put("cgroup.subtree_control", "");
        put("copepod-x/cgroup.subtree_control", "");
        for (file, text) in [
            ("cgroup.procs", ""),
            ("cgroup.kill", ""),
            ("memory.max", "max\n"),
            ("memory.swap.max", "max\n"),
            ("memory.current", "4096\n"),
            ("memory.peak", "8192\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 17\nuser_usec 10\n"),
        ] {
            put(&format!("copepod-x/{group}/{file}"), text);
        }
        root
    }

    fn read(root: &tempfile::TempDir, path: &str) -> String {
        fs::read_to_string(root.path().join("copepod-x").join(path)).expect("there")
    }

    #[test]
    fn version_2_hands_the_controllers_down_and_sets_the_limits() {
        let root = written("d");
        let groups = V2::new(root.path(), "copepod-x");

        groups
            .create("d", Limits { memory: Some(1 << 30), threads: Some(64) })
            .expect("the files are there");
        groups.add("d", rustix::process::getpid()).expect("written");

        assert_eq!(read(&root, "cgroup.subtree_control"), "+memory +pids");
        assert_eq!(read(&root, "d/memory.max").trim_end_matches("x\n"), "1073741824");
        assert_eq!(read(&root, "d/pids.max").get(..2), Some("64"));
        assert_eq!(read(&root, "d/cgroup.procs"), std::process::id().to_string());
    }

    #[test]
    fn version_2_tells_what_was_used_and_kills_by_the_kernels_own_switch() {
        let root = written("d");
        let groups = V2::new(root.path(), "copepod-x");

        let usage = groups.usage("d").expect("read");
        groups.kill("d").expect("written");

        let expected = Usage { memory: 4096, memory_peak: 8192, oom_kills: 1, cpu_ns: 17_000 };
        assert_eq!(usage, expected);
        assert_eq!(read(&root, "d/cgroup.kill"), "1");
    }

    #[test]
    fn a_limit_that_the_kernel_does_not_offer_is_an_error_and_not_a_new_file() {
        let root = written("d");
        let file = root.path().join("copepod-x/d/memory.max");
        fs::remove_file(&file).expect("removed");

        let error =
            V2::new(root.path(), "copepod-x").set_memory("d", Some(1)).expect_err("missing");

        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!file.exists());
    }

    #[test]
    fn a_group_that_is_not_there_has_no_members_and_is_removed_already() {
        let root = written("d");
        let groups = V2::new(root.path(), "copepod-x");

        assert_eq!(groups.members("gone").expect("none"), Vec::<Pid>::new());
        groups.remove("gone").expect("nothing to do");
    }
}
