//! Groups of processes that a benchmark makes: what is charged to them is read here, memory and CPU time alike.
//!
//! Both layouts of cgroups are known: a hierarchy for each controller, and the unified one. Absent: limits, as nothing that is
//! measured is held back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

/// Where the hierarchies are.
const ROOT: &str = "/sys/fs/cgroup";

/// A group in the hierarchies that account; removed with it, and whatever groups others have made beneath it.
pub(crate) struct Cgroup {
    name: String,
    /// The group in each hierarchy that it is in.
    folders: Vec<PathBuf>,
}

impl Cgroup {
    /// A group by which memory and CPU time are read.
    pub(crate) fn make(name: &str) -> Result<Self> {
        Self::make_in(name, [memory_root(), cpu_root()].into())
    }

    /// The same in every hierarchy of the machine: somebody makes groups for pods beneath it.
    pub(crate) fn make_for_pods(name: &str) -> Result<Self> {
        Self::make_in(name, roots())
    }

    fn make_in(name: &str, mut roots: Vec<PathBuf>) -> Result<Self> {
        roots.sort();
        roots.dedup();
        let name = format!("copepod-bench-{}-{name}", std::process::id());
        let folders = roots.iter().map(|root| root.join(&name)).collect();
        let group = Self { name, folders };
        for folder in &group.folders {
            fs::create_dir_all(folder.join(OWN))
                .with_context(|| format!("cannot make {}", folder.display()))?;
            // A new group of this controller has none, and no process could enter it.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let of_all = folder.parent().map(|root| fs::read_to_string(root.join(file)));
                if let Some(Ok(of_all)) = of_all
                    && folder.join(file).exists()
                {
                    fs::write(folder.join(file), of_all)?;
                }
            }
        }
        Ok(group)
    }

    /// Its path within a hierarchy.
    pub(crate) fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Bytes charged to it and all beneath it.
    pub(crate) fn memory(&self) -> Result<u64> {
        memory(&memory_root().join(&self.name))
    }

    /// CPU time of it and all beneath it, of what has ended too.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu(&cpu_root().join(&self.name))
    }

    /// A command that runs a program inside.
    pub(crate) fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{} exec \"$@\"", self.enter()), "sh"]).arg(program);
        command
    }

    /// A program that starts `program` inside; it lies beside it, so that it finds what lies there.
    pub(crate) fn starter(&self, program: &Path) -> Result<PathBuf> {
        let starter = program.with_file_name("copepod-in-a-cgroup");
        let script = format!("#!/bin/sh\n{} exec {} \"$@\"\n", self.enter(), program.display());
        fs::write(&starter, script)?;
        fs::set_permissions(&starter, fs::Permissions::from_mode(0o755))?;
        Ok(starter)
    }

    /// What a shell does to enter it. Only where there is accounting: other controllers would change what is measured.
    pub(crate) fn enter(&self) -> String {
        let mut roots = vec![memory_root(), cpu_root()];
        roots.dedup();
        let enter = |root: PathBuf| {
            format!("echo $$ > {}/{OWN}/cgroup.procs &&", root.join(&self.name).display())
        };
        roots.into_iter().map(enter).collect::<Vec<_>>().join(" ")
    }
}

/// Processes are in a group of their own beneath it, as a group of the unified hierarchy holds processes or groups and not both.
const OWN: &str = "own";

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that were killed just now leave a group a moment later.
        for _ in 0..100 {
            if self.folders.iter().all(|folder| remove(folder)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes a group and all beneath it; whether it is gone.
fn remove(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            remove(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}

/// Bytes charged to the topmost groups whose names hold `id`.
pub(crate) fn memory_of(id: &str) -> Result<u64> {
    over(&memory_root(), id, &memory)
}

/// CPU time of the topmost groups whose names hold `id`: none, where CPU time has a hierarchy of its own in which they are not.
pub(crate) fn cpu_of(id: &str) -> Result<Duration> {
    let nanos = |group: &Path| Ok(u64::try_from(cpu(group)?.as_nanos())?);
    Ok(Duration::from_nanos(over(&cpu_root(), id, &nanos)?))
}

/// The sum of `read` over the topmost groups whose names hold `id`.
fn over(folder: &Path, id: &str, read: &dyn Fn(&Path) -> Result<u64>) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_dir()) {
        sum += if entry.file_name().to_string_lossy().contains(id) {
            read(&entry.path())?
        } else {
            over(&entry.path(), id, read)?
        };
    }
    Ok(sum)
}

fn memory(group: &Path) -> Result<u64> {
    let files = ["memory.usage_in_bytes", "memory.current"].map(|name| group.join(name));
    let file = files.iter().find(|file| file.exists()).context("no memory controller")?;
    Ok(fs::read_to_string(file)?.trim().parse()?)
}

fn cpu(group: &Path) -> Result<Duration> {
    if let Ok(nanos) = fs::read_to_string(group.join("cpuacct.usage")) {
        return Ok(Duration::from_nanos(nanos.trim().parse()?));
    }
    let stat = fs::read_to_string(group.join("cpu.stat")).context("no accounting of CPU time")?;
    let micros = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
    Ok(Duration::from_micros(micros.context("cpu.stat lacks usage_usec")?.trim().parse()?))
}

/// A controller's own hierarchy where there is one, else the unified one.
fn root_of(controller: &str) -> PathBuf {
    let own = Path::new(ROOT).join(controller);
    if own.is_dir() { own } else { ROOT.into() }
}

fn memory_root() -> PathBuf {
    root_of("memory")
}

fn cpu_root() -> PathBuf {
    root_of("cpuacct")
}

/// All hierarchies that are mounted.
fn roots() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (at, kind) = (fields.next()?, fields.next()?);
            (at.starts_with(ROOT) && kind.starts_with("cgroup")).then(|| at.into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_of_either_layout() {
        let old = tempfile::tempdir().expect("a folder");
        fs::write(old.path().join("cpuacct.usage"), "1500000000\n").expect("written");
        let new = tempfile::tempdir().expect("a folder");
        let stat = "usage_usec 2500000\nuser_usec 1\n";
        fs::write(new.path().join("cpu.stat"), stat).expect("written");

        assert_eq!(cpu(old.path()).expect("read"), Duration::from_millis(1500));
        assert_eq!(cpu(new.path()).expect("read"), Duration::from_millis(2500));
    }

    #[test]
    fn the_topmost_groups_of_an_id_are_summed_and_no_others() {
        let root = tempfile::tempdir().expect("a folder");
        for (group, bytes) in
            [("a/x-1", "10"), ("a/x-1/x-1-inner", "4"), ("b", "100"), ("x-2", "7")]
        {
            let group = root.path().join(group);
            fs::create_dir_all(&group).expect("made");
            fs::write(group.join("memory.current"), bytes).expect("written");
        }

        assert_eq!(over(root.path(), "x-1", &memory).expect("read"), 10);
    }
}
