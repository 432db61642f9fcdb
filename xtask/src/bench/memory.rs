//! What one more idle pod costs, in bytes of memory cgroups, everything included: agent, runners, kernel memory.
//!
//! The marginal cost is taken between a small and a large number of pods, so that what is paid once drops out. Absent: RSS,
//! which counts shared pages again and again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use copepod_tests::built::Built;
use copepod_tests::manifest::{With, container, pod, probe};
use copepod_tests::node::{Node, is_ready};
use serde_json::{Value, json};

use super::Report;
use super::peers::{self, Running, await_answer, free_port};
use crate::cache::Cache;
use crate::command::step;
use crate::programs::Profile;
use crate::{debian, guests, programs};

/// Pods at the first and at the second reading.
const FEW: usize = 100;
const MANY: usize = 1_000;
/// `wasmtime serve` processes.
const PEERS: usize = 20;
/// Long enough for start-up's leftovers to be freed.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) fn measure(cache: &Cache) -> Result<Report> {
    let mut report = Report::default();
    let built = programs::build(cache, Profile::Release)?;
    let guests = guests::build(cache)?;
    let nft = debian::program(cache, "nftables", "nft")?;
    let wasmtime = peers::wasmtime(cache)?;
    report.notes.push(peers::version(&wasmtime, "--version"));
    let hello = guests.join("hello-http.wasm");
    let built = Built { copepod: built.copepod, guests, registry: "docker-registry".into(), nft };

    let idle_http = |n: usize, namespaces: usize| -> Value {
        pod(&format!("pod-{n}"), [container("hello", "hello-http")])
            .with("/metadata/namespace", json!(format!("ns-{}", n % namespaces)))
    };
    let live = |n: usize, guest: &str| -> Value {
        let waiting = probe(&["forever sleep 100000000"])
            .with("/image", json!(copepod_tests::manifest::image(guest)));
        pod(&format!("pod-{n}"), [waiting])
    };
    marginal(&mut report, &built, "copepod: idle HTTP pod, 1 namespace", |n| idle_http(n, 1))?;
    marginal(&mut report, &built, "copepod: idle HTTP pod, 200 namespaces", |n| idle_http(n, 200))?;
    marginal(&mut report, &built, "copepod: live component", |n| live(n, "probe"))?;
    marginal(&mut report, &built, "copepod: live preview1 module", |n| live(n, "probe-p1"))?;

    step(&format!("{PEERS} times wasmtime serve"), || {
        let group = Cgroup::make("serve")?;
        let mut servers = Vec::new();
        for _ in 0..PEERS {
            let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, free_port()?));
            let mut command = group.inside(&wasmtime);
            servers.push(Running::start(
                command
                    .args(["serve", "-S", "cli=y", "--addr"])
                    .arg(address.to_string())
                    .arg(&hello),
            )?);
            await_answer(address)?;
        }
        std::thread::sleep(SETTLE);
        report.sample(
            "wasmtime serve, one process per app",
            "KiB",
            group.usage()? as f64 / PEERS as f64 / 1024.0,
        );
        Ok(())
    })?;
    report
        .notes
        .push(format!("marginal: between {FEW} and {MANY} pods; each HTTP pod was asked once"));
    Ok(report)
}

/// The cost of one more pod.
fn marginal(
    report: &mut Report,
    built: &Built,
    name: &str,
    pod: impl Fn(usize) -> Value,
) -> Result<()> {
    step(name, || {
        let group = Cgroup::make("agent")?;
        // The node's commands, and so its agent, run in the group; its runners' groups carry its id.
        let starter = group.starter(&built.copepod)?;
        let node = Node::of(Built { copepod: starter, ..built.clone() });
        node.load(&["hello-http", "probe", "probe-p1"]);
        let mut readings = Vec::new();
        let mut running = 0;
        for wanted in [FEW, MANY] {
            for from in (running..wanted).step_by(FEW) {
                let pods: Vec<Value> = (from..(from + FEW).min(wanted)).map(&pod).collect();
                node.start(&pods);
            }
            running = wanted;
            wait_all_ready(&node, wanted)?;
            std::thread::sleep(SETTLE);
            let id = node.mark().id.context("the node has an id")?;
            readings.push(group.usage()? + usage_of_groups(&memory_root(), &id)?);
        }
        let [few, many] = readings[..] else { anyhow::bail!("two readings") };
        report.sample(name, "KiB", (many as f64 - few as f64) / (MANY - FEW) as f64 / 1024.0);
        report.sample(&format!("{name}: everything at {FEW} pods"), "KiB", few as f64 / 1024.0);
        let left = node.stop_all();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    })
}

fn wait_all_ready(node: &Node, wanted: usize) -> Result<()> {
    for _ in 0..600 {
        if node.pods().iter().filter(|pod| is_ready(pod)).count() >= wanted {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    anyhow::bail!("not all of {wanted} pods became ready")
}

/// Where memory is accounted: the v1 hierarchy where there is one, else the unified one.
fn memory_root() -> PathBuf {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.is_dir() { v1.to_owned() } else { "/sys/fs/cgroup".into() }
}

/// Bytes charged to a group and all beneath it.
fn usage(group: &Path) -> Result<u64> {
    let files = ["memory.usage_in_bytes", "memory.current"].map(|name| group.join(name));
    let file = files.iter().find(|file| file.exists()).context("no memory controller")?;
    Ok(fs::read_to_string(file)?.trim().parse()?)
}

/// The sum over the topmost groups whose names hold `id`.
fn usage_of_groups(folder: &Path, id: &str) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_dir()) {
        sum += if entry.file_name().to_string_lossy().contains(id) {
            usage(&entry.path())?
        } else {
            usage_of_groups(&entry.path(), id)?
        };
    }
    Ok(sum)
}

/// A memory cgroup of this benchmark's, removed with it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(name: &str) -> Result<Self> {
        let group = memory_root().join(format!("copepod-bench-{}-{name}", std::process::id()));
        fs::create_dir_all(&group).with_context(|| format!("cannot make {}", group.display()))?;
        Ok(Self(group))
    }

    fn usage(&self) -> Result<u64> {
        usage(&self.0)
    }

    /// A command that runs a program inside.
    fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(&self.0)
            .arg(program);
        command
    }

    /// A program that starts `program` inside; it lies beside it, so that it finds what lies there.
    fn starter(&self, program: &Path) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let starter = program.with_file_name("copepod-in-a-cgroup");
        let (group, program) = (self.0.display(), program.display());
        fs::write(
            &starter,
            format!("#!/bin/sh\necho $$ > {group}/cgroup.procs && exec {program} \"$@\"\n"),
        )?;
        fs::set_permissions(&starter, fs::Permissions::from_mode(0o755))?;
        Ok(starter)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that were killed just now leave the group a moment later.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
