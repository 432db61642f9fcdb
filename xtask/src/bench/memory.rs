//! What one more idle pod costs, in bytes of memory cgroups, everything included: agent, runners, kernel memory.
//!
//! The marginal cost is taken between a small and a large number of pods, so that what is paid once drops out. Absent: RSS,
//! which counts shared pages again and again.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use copepod_tests::built::Built;
use copepod_tests::manifest::{With, container, pod, probe};
use copepod_tests::node::{Node, is_ready};
use serde_json::{Value, json};

use super::Report;
use super::cgroup::{self, Cgroup};
use super::http::cpu_seconds;
use super::peers::{self, Running, await_answer, free_port};
use crate::cache::Cache;
use crate::command::step;
use crate::programs::Profile;
use crate::{debian, guests, programs};

/// Pods at the first and at the second reading.
const FEW: usize = 100;
const MANY: usize = 2_000;
/// Pods of the crowded node: what issue 3 asks for, nearly all that an address block of ours has.
const CROWD: usize = 10_000;
/// Namespaces, and so domains with a runner each, where there is not one.
const NAMESPACES: usize = 200;
/// Pods of one command.
const BATCH: usize = 100;
/// `wasmtime serve` processes.
const PEERS: usize = 20;
/// Long enough for start-up's leftovers to be freed.
const SETTLE: Duration = Duration::from_secs(3);
/// Over which the CPU time of what does nothing is taken.
const IDLE: Duration = Duration::from_secs(20);

pub(crate) fn measure(cache: &Cache) -> Result<Report> {
    let mut report = Report::default();
    let built = programs::build(cache, Profile::Release)?;
    let guests = guests::build(cache)?;
    let nft = debian::program(cache, "nftables", "nft")?;
    let wasmtime = peers::wasmtime(cache)?;
    report.notes.push(peers::version(&wasmtime, "--version"));
    let hello = guests.join("hello-http.wasm");
    let built = Built { copepod: built.copepod, guests, registry: "docker-registry".into(), nft };

    for (namespaces, place) in [(1, "1 namespace"), (NAMESPACES, "200 namespaces")] {
        for kind in [Kind::IdleHttp, Kind::LiveComponent, Kind::LivePreview1] {
            let name = format!("copepod: {}, {place}", kind.name());
            step(&name, || marginal(&mut report, &built, &name, kind, namespaces))?;
        }
    }
    step(&format!("{CROWD} idle HTTP pods"), || crowd(&mut report, &built))?;
    step(&format!("{PEERS} times wasmtime serve"), || serve(&mut report, &wasmtime, &hello))?;
    report
        .notes
        .push(format!("marginal: between {FEW} and {MANY} pods; each HTTP pod was asked once"));
    Ok(report)
}

/// What a pod does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Waits for requests: no instance.
    IdleHttp,
    /// An instance of a component that sleeps.
    LiveComponent,
    /// An instance of a preview1 module that sleeps.
    LivePreview1,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::IdleHttp => "idle HTTP pod",
            Self::LiveComponent => "live component",
            Self::LivePreview1 => "live preview1 module",
        }
    }

    fn pod(self, n: usize, namespaces: usize) -> Value {
        let sleeping = |guest: &str| {
            probe(&["forever sleep 100000000"])
                .with("/image", json!(copepod_tests::manifest::image(guest)))
        };
        let container = match self {
            Self::IdleHttp => container("hello", "hello-http"),
            Self::LiveComponent => sleeping("probe"),
            Self::LivePreview1 => sleeping("probe-p1"),
        };
        pod(&format!("pod-{n}"), [container])
            .with("/metadata/namespace", json!(format!("ns-{}", n % namespaces)))
    }
}

/// A node whose agent, runners and kernel memory are in cgroups that can be read.
struct Weighed {
    node: Node,
    agent: Cgroup,
    pods: usize,
}

impl Weighed {
    fn new(built: &Built) -> Result<Self> {
        let agent = Cgroup::make("agent")?;
        // The node's commands, and so its agent, run in the group; its runners' groups carry its id.
        let starter = agent.starter(&built.copepod)?;
        let node = Node::of(Built { copepod: starter, ..built.clone() });
        node.load(&["hello-http", "probe", "probe-p1"]);
        Ok(Self { node, agent, pods: 0 })
    }

    /// Starts pods until there are so many, waits until each is ready, and asks each that serves.
    fn grow(&mut self, to: usize, kind: Kind, namespaces: usize) -> Result<()> {
        for from in (self.pods..to).step_by(BATCH) {
            let batch = from..(from + BATCH).min(to);
            let pods: Vec<Value> = batch.map(|n| kind.pod(n, namespaces)).collect();
            self.node.start(&pods);
        }
        let pods = self.all_ready(to)?;
        if kind == Kind::IdleHttp {
            for pod in &pods[..] {
                let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
                let address = format!("{ip}:8080").parse().context("a pod without an address")?;
                let answer = copepod_tests::http::get(address, "/")?;
                ensure!(answer.status == 200, "a pod answered {}", answer.status);
            }
        }
        self.pods = to;
        Ok(())
    }

    fn all_ready(&self, wanted: usize) -> Result<Vec<Value>> {
        for _ in 0..300 {
            let pods = self.node.pods();
            if pods.iter().filter(|pod| is_ready(pod)).count() >= wanted {
                return Ok(pods);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        bail!("not all of {wanted} pods became ready")
    }

    /// Bytes charged to the agent's group and its runners'.
    fn bytes(&self) -> Result<u64> {
        std::thread::sleep(SETTLE);
        let id = self.node.mark().id.context("the node has an id")?;
        Ok(self.agent.memory()? + cgroup::memory_of(&id)?)
    }

    /// Per cent of a core that the agent and its runners use while nobody asks anything of them.
    fn idle_cpu(&self) -> Result<f64> {
        let mut pids = self.node.runners();
        pids.extend(self.node.agent());
        let before = cpu_seconds(&pids);
        std::thread::sleep(IDLE);
        Ok((cpu_seconds(&pids) - before) / IDLE.as_secs_f64() * 100.0)
    }

    fn end(self) -> Result<()> {
        let left = self.node.stop_all();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    }
}

/// The cost of one more pod.
fn marginal(
    report: &mut Report,
    built: &Built,
    name: &str,
    kind: Kind,
    namespaces: usize,
) -> Result<()> {
    let mut weighed = Weighed::new(built)?;
    let mut readings = Vec::new();
    for pods in [FEW.max(namespaces), MANY] {
        weighed.grow(pods, kind, namespaces)?;
        readings.push((pods, weighed.bytes()?));
    }
    let [(few, light), (many, heavy)] = readings[..] else { bail!("two readings") };
    let kib = |bytes: f64| bytes / 1024.0;
    report.sample(name, "KiB/pod", kib(heavy as f64 - light as f64) / (many - few) as f64);
    report.sample(&format!("{name}: everything at {few} pods"), "KiB", kib(light as f64));
    if namespaces > 1 {
        let of = format!("{name}: {MANY} pods, nobody asking");
        report.sample(&of, "% of a core", weighed.idle_cpu()?);
    }
    weighed.end()
}

/// As many pods as one node is to hold, each asked once.
fn crowd(report: &mut Report, built: &Built) -> Result<()> {
    let mut weighed = Weighed::new(built)?;
    weighed.grow(CROWD, Kind::IdleHttp, 1)?;
    let name = format!("copepod: {CROWD} idle HTTP pods");
    report.sample(&format!("{name}, everything"), "MiB", weighed.bytes()? as f64 / 1024.0 / 1024.0);
    let descriptors: usize = weighed.node.runners().iter().map(|pid| descriptors(*pid)).sum();
    report.sample(&format!("{name}, the runner's descriptors"), "open", descriptors as f64);
    report.sample(&format!("{name}, nobody asking"), "% of a core", weighed.idle_cpu()?);
    weighed.end()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The peer: a process for each application.
fn serve(report: &mut Report, wasmtime: &Path, hello: &Path) -> Result<()> {
    let group = Cgroup::make("serve")?;
    let mut servers = Vec::new();
    for _ in 0..PEERS {
        let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, free_port()?));
        let mut command = group.inside(wasmtime);
        command.args(["serve", "-S", "cli=y", "--addr"]).arg(address.to_string()).arg(hello);
        servers.push(Running::start(&mut command)?);
        await_answer(address)?;
    }
    std::thread::sleep(SETTLE);
    let each = group.memory()? as f64 / PEERS as f64 / 1024.0;
    report.sample("wasmtime serve, one process per app", "KiB/app", each);
    Ok(())
}
