//! From a pod in the API to a pod that is ready: ours beside kwok, which starts nothing, and a kubelet with containerd and runc.
//!
//! All three are nodes of one cluster, each with an API client of its own kind, and are asked in turn. Pods name their node
//! (`spec.nodeName`), so that no scheduler is measured, and have the volume with a token that every pod has by default.
//!
//! Beneath: [`ours`], [`kwok`] and [`kubelet`] are the nodes; [`client`] makes the pods. Absent: pulls, as all images are there.

mod client;
mod kubelet;
mod kwok;
mod ours;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use copepod_tests::cluster::Cluster;
use copepod_tests::cluster::settings::{Part as Program, Settings};
use serde_json::{Value, json};

use self::client::{Act, Pods};
use self::kubelet::Kubelet;
use self::kwok::Kwok;
use self::ours::Ours;
use super::peers::{self, free_port};
use super::{Report, api_pods};
use crate::cache::Cache;
use crate::command::step;
use crate::kube::{self, Set};
use crate::programs::Profile;
use crate::{debian, guests, programs};

/// Pods of a round of those that come one by one.
const ONE_BY_ONE: usize = 4;
/// Rounds of pods that come together.
const BURSTS: usize = 3;
/// Of the pods of a burst, the share that a kubelet gets: as many as it starts in a time that somebody waits.
const OF_A_KUBELET: usize = 20;
/// Namespaces of the pods that are left alone.
const NAMESPACES: usize = 200;
/// Pods of the crowded node, for each of a burst.
const CROWD: usize = 10;
/// Long enough for what a burst leaves to do: events, which are written at a measured rate.
const SETTLE: Duration = Duration::from_secs(5);
/// Over which the CPU time of what does nothing is taken.
const IDLE: Duration = Duration::from_secs(40);
/// Pods of the crowd that are asked in the end.
const ASKED: usize = 100;

/// What to try while one works on it; a benchmark has all of it.
#[derive(Args)]
pub(crate) struct Narrow {
    /// Pods of a burst; the crowd and the idle ones follow it.
    #[arg(long, hide = true, default_value_t = 1_000)]
    burst: usize,
    /// Only these parts.
    #[arg(long, hide = true, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Only these nodes.
    #[arg(long, hide = true, value_delimiter = ',')]
    nodes: Vec<Who>,
    /// The folder of our programs, where they are not to be built.
    #[arg(long, hide = true)]
    built: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One pod after the other.
    One,
    /// Pods that come together.
    Burst,
    /// Pods that are left alone.
    Idle,
    /// As many pods as one node is to hold.
    Crowd,
}

/// Whose nodes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Who {
    Ours,
    Kwok,
    Kubelet,
}

impl Narrow {
    fn has(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    fn wants(&self, who: Who) -> bool {
        self.nodes.is_empty() || self.nodes.contains(&who)
    }
}

/// A node that is measured: its name is its namespace's too.
trait Node {
    /// What it is called here.
    fn name(&self) -> &'static str;
    /// The containers of a pod of its.
    fn containers(&self) -> Value;
    /// CPU time of all that the node is, so far.
    fn cpu(&self) -> Result<Duration>;
    /// How many pods it gets where others get so many.
    fn share(&self, burst: usize) -> usize {
        burst
    }
}

pub(crate) fn measure(cache: &Cache, rounds: usize, narrow: &Narrow) -> Result<Report> {
    let mut report = Report::default();
    let program = api_pods(cache)?;
    let control_plane = kube::bring(cache, Set::ControlPlane)?;
    std::fs::create_dir_all(cache.peers())?;
    let folder = tempfile::tempdir_in(cache.peers())?;
    let settings = Settings {
        // A node's share is as large as one of ours can be.
        pod_cidrs: vec![("10.240.0.0/13".to_owned(), 18)],
        // What the tests write down of every request, is no part of a cluster's work.
        flags: ["--audit-policy-file=", "--audit-log-path="]
            .map(|flag| (Program::ApiServer, flag.to_owned()))
            .into(),
        ..Settings::default()
    };
    let cluster = step("starting a control plane", || Cluster::start(&control_plane, &settings))?;
    report.notes.push(peers::version(&control_plane.join("kube-apiserver"), "--version"));
    let copepod = match &narrow.built {
        Some(folder) => folder.join("copepod"),
        None => programs::build(cache, Profile::Release)?.copepod,
    };
    let built =
        ours::programs(copepod, guests::build(cache)?, debian::program(cache, "nftables", "nft")?);
    let pods = Pods { program, cluster: &cluster, folder: folder.path() };

    {
        let mut nodes: Vec<Box<dyn Node + '_>> = Vec::new();
        if narrow.wants(Who::Ours) {
            nodes.push(Box::new(step("starting a node of ours", || {
                Ours::start(&built, &cluster, "ours", free_port()?)
            })?));
        }
        if narrow.wants(Who::Kwok) {
            nodes.push(Box::new(step("starting kwok", || {
                Kwok::start(cache, &cluster, folder.path())
            })?));
        }
        if narrow.wants(Who::Kubelet) && (narrow.has(Part::One) || narrow.has(Part::Burst)) {
            let kubelet = step("starting a kubelet", || {
                Kubelet::start(cache, &control_plane, &cluster, folder.path())
            })?;
            report.notes.extend(kubelet.versions());
            nodes.push(Box::new(kubelet));
        }
        for node in &nodes {
            cluster.namespace(node.name());
        }
        // What is done once, such as making a domain, and reading programs from disk, is not what a pod costs.
        step("a pod of each", || nodes.iter().try_for_each(|node| pods.warm(&**node)))?;
        if narrow.has(Part::One) {
            for round in 1..=rounds {
                step(&format!("one by one: round {round} of {rounds}"), || {
                    nodes.iter().try_for_each(|node| one_by_one(&mut report, &pods, &**node))
                })?;
            }
        }
        if narrow.has(Part::Burst) {
            for round in 1..=BURSTS {
                step(&format!("together: round {round} of {BURSTS}"), || {
                    nodes.iter().try_for_each(|node| {
                        together(&mut report, &pods, &**node, node.share(narrow.burst))
                    })
                })?;
            }
        }
    }
    if narrow.has(Part::Idle) && narrow.wants(Who::Ours) {
        let node = Ours::start(&built, &cluster, "idle", free_port()?)?;
        step("pods that are left alone", || idle(&mut report, &pods, &node, narrow.burst))?;
    }
    if narrow.has(Part::Crowd) && narrow.wants(Who::Ours) {
        let node = Ours::start(&built, &cluster, "crowd", free_port()?)?;
        step("a crowd", || crowd(&mut report, &pods, &node, narrow.burst * CROWD))?;
    }
    cluster.check()?;
    report.notes.push(format!(
        "spec.nodeName is set; the default token volume is there; {} creators; no audit log",
        client::CREATORS
    ));
    Ok(report)
}

/// Pods of a node, each once the one before is ready.
fn one_by_one(report: &mut Report, pods: &Pods<'_>, node: &dyn Node) -> Result<()> {
    let made = pods.of(node, node.name(), ONE_BY_ONE)?;
    let times = made.act(Act::OneByOne)?;
    for (times, of) in [
        (&times.answered_to_ready_ms, "one by one, made until ready"),
        (&times.asked_to_ready_ms, "one by one, asked for until ready"),
    ] {
        for time in times {
            report.sample(&format!("{}: {of}", node.name()), "ms", *time);
        }
    }
    made.delete()
}

/// Pods of a node that come as fast as the API server takes them.
fn together(report: &mut Report, pods: &Pods<'_>, node: &dyn Node, count: usize) -> Result<()> {
    let made = pods.of(node, node.name(), count)?;
    let before = node.cpu()?;
    let times = made.act(Act::Together)?;
    let of = |what: &str| format!("{}: {count} together, {what}", node.name());
    report.sample(&of("until ready"), "pods/s", count as f64 / times.all_ready_s);
    report.sample(&of("until made"), "pods/s", count as f64 / times.all_made_s);
    std::thread::sleep(SETTLE);
    let spent = node.cpu()?.saturating_sub(before).as_secs_f64() * 1e3;
    report.sample(&of("the node's"), "CPU ms/pod", spent / count as f64);
    made.delete()
}

/// What the agent and its runners use while nobody asks anything of their pods.
fn idle(report: &mut Report, pods: &Pods<'_>, node: &Ours, count: usize) -> Result<()> {
    let namespaces: Vec<String> = (0..NAMESPACES.min(count)).map(|n| format!("idle-{n}")).collect();
    pods.namespaces(&namespaces)?;
    pods.spread(node, &namespaces, count)?.act(Act::Together)?;
    // The last events are written, and the caches of what pods refer to have been filled.
    std::thread::sleep(SETTLE * 2);
    let before = node.cpu()?;
    std::thread::sleep(IDLE);
    let spent = node.cpu()?.saturating_sub(before).as_secs_f64() / IDLE.as_secs_f64();
    let of = format!("ours: {count} pods in {} namespaces, nobody asking", namespaces.len());
    report.sample(&of, "% of a core", spent * 100.0);
    report.sample(&format!("{of}, everything"), "MiB", node.memory()? as f64 / 1024.0 / 1024.0);
    Ok(())
}

/// As many pods as one node is to hold, some of which are asked.
fn crowd(report: &mut Report, pods: &Pods<'_>, node: &Ours, count: usize) -> Result<()> {
    pods.namespaces(&["crowd".to_owned()])?;
    let empty = node.memory()?;
    let made = pods.of(node, "crowd", count)?;
    let times = made.act(Act::Together)?;
    std::thread::sleep(SETTLE);
    let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    let of = |what: &str| format!("ours: {count} pods on one node, {what}");
    report.sample(&of("until ready"), "pods/s", count as f64 / times.all_ready_s);
    report.sample(&of("everything"), "MiB", mib(node.memory()?));
    report.sample(&of("everything before the first"), "MiB", mib(empty));
    let addresses = made.addresses()?;
    ensure!(addresses.len() == count, "{} of {count} have an address", addresses.len());
    for ip in addresses.iter().step_by(count.div_ceil(ASKED)) {
        let address = format!("{ip}:8080").parse().context("an address")?;
        let answer = copepod_tests::http::get(address, "/")?;
        ensure!(answer.status == 200, "{address} answered {}", answer.status);
    }
    let before = node.cpu()?;
    std::thread::sleep(IDLE);
    let spent = node.cpu()?.saturating_sub(before).as_secs_f64() / IDLE.as_secs_f64();
    report.sample(&of("nobody asking"), "% of a core", spent * 100.0);
    Ok(())
}

/// A pod of a node's containers, to be watched as one of this batch.
fn pod(name: &str, namespace: &str, node: &dyn Node, batch: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": { "bench": batch } },
        "spec": { "nodeName": node.name(), "containers": node.containers() },
    })
}

/// Waits until the cluster takes a node for ready.
fn await_ready(cluster: &Cluster, name: &str) -> Result<()> {
    let begin = std::time::Instant::now();
    let ready = |node: &Value| copepod_tests::node::is_ready(node);
    loop {
        let told = cluster.kubectl(&["get", "node", name, "--output", "json"]).stdout;
        let node: Value = serde_json::from_str(&told).unwrap_or_default();
        let is_tainted = node["spec"]["taints"]
            .as_array()
            .is_some_and(|all| all.iter().any(|it| it["key"] == "node.kubernetes.io/not-ready"));
        if ready(&node) && !is_tainted {
            return Ok(());
        }
        ensure!(begin.elapsed().as_secs() < 120, "node {name} does not get ready: {told}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
