//! What the node, its pods and their containers use: `/metrics/resource` and `/stats/summary`.
//!
//! metrics-server leaves a whole pod out where one of its running containers is missing, uses nothing, or uses less than before. So
//! what runs is always listed, at no time with 0, and never with less than was told of the same run. Absent: the agent's own figures
//! ([`super::metrics`]), and what nobody counts yet (networks, volumes, logs).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use copepod_agent::api::PodName;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::metrics::escape;
use super::pods::{Pods, runs, statuses};

/// The least CPU time that is told of a container: a run that was started took some, whatever was counted.
const LEAST_CPU_NS: u64 = 1_000;
/// The least memory that is told of a container: one page of wasm.
const LEAST_MEMORY: u64 = 64 << 10;
/// A rate is taken over at least this much time.
const RATE_NS: i128 = 1_000_000_000;
/// A jiffy of `/proc/stat`: USER_HZ is 100 wherever Linux runs.
const JIFFY_NS: u64 = 10_000_000;

/// CPU and memory at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) cpu_ns: u64,
    /// Thousand-millionths of a core, of late.
    pub(crate) nano_cores: u64,
    pub(crate) memory: u64,
}

impl Use {
    fn and(self, other: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_add(other.cpu_ns),
            nano_cores: self.nano_cores.saturating_add(other.nano_cores),
            memory: self.memory.saturating_add(other.memory),
        }
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct ContainerUse {
    pub(crate) name: String,
    pub(crate) started: Timestamp,
    pub(crate) now: Use,
}

#[derive(Debug, PartialEq)]
pub(crate) struct PodUse {
    pub(crate) name: PodName,
    pub(crate) uid: String,
    pub(crate) started: Option<Timestamp>,
    pub(crate) containers: Vec<ContainerUse>,
}

impl PodUse {
    fn total(&self) -> Use {
        self.containers.iter().fold(Use::default(), |sum, one| sum.and(one.now))
    }
}

/// The machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeUse {
    pub(crate) now: Use,
    pub(crate) available: u64,
    pub(crate) booted: Option<Timestamp>,
}

/// All of it at one time.
#[derive(Debug, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) at: Timestamp,
    pub(crate) node: NodeUse,
    pub(crate) pods: Vec<PodUse>,
}

/// What was told before.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    told: Mutex<HashMap<Key, Told>>,
}

/// A run of a container, by pod UID, name, and the container's id; all empty: the node.
type Key = (String, String, String);

#[derive(Clone, Copy, Debug)]
struct Told {
    now: Use,
    /// Where the rate in `now` was taken from: its time and the CPU time then.
    since: (Timestamp, u64),
}

impl Usage {
    /// Asks, and makes of the answer what may be told.
    pub(crate) async fn take(&self, pods: &dyn Pods) -> Snapshot {
        let measured = pods.uses().await;
        let measured =
            measured.into_iter().map(|it| ((it.pod, it.container), (it.cpu_ns, it.memory)));
        self.snapshot(&pods.all(), &measured.collect(), machine(), Timestamp::now())
    }

    fn snapshot(
        &self,
        pods: &[Arc<Pod>],
        measured: &HashMap<(PodName, String), (u64, u64)>,
        (node_cpu, memory): (u64, Memory),
        at: Timestamp,
    ) -> Snapshot {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = HashMap::new();
        let booted = boot_time();
        let mut tell = |key: Key, started: Timestamp, measured: Option<(u64, u64)>| {
            let before = told.get(&key).copied();
            let next = next(before, started, measured, at);
            fresh.insert(key, next);
            next.now
        };
        let node_key = (String::new(), String::new(), String::new());
        let used = memory.total.saturating_sub(memory.available);
        let now = tell(node_key, booted.unwrap_or(at), Some((node_cpu, used)));
        let node = NodeUse { now, available: memory.available, booted };
        let mut uses = Vec::new();
        for pod in pods {
            let metadata = &pod.metadata;
            let name = PodName::of(pod);
            let uid = metadata.uid.clone().unwrap_or_default();
            let containers: Vec<_> = statuses(pod)
                .filter(|status| runs(status))
                .map(|status| {
                    let started = status.state.as_ref().and_then(|state| state.running.as_ref());
                    let started =
                        started.and_then(|it| it.started_at.as_ref()).map_or(at, |it| it.0);
                    let id = status.container_id.clone().unwrap_or_default();
                    let measured = measured.get(&(name.clone(), status.name.clone())).copied();
                    let now = tell((uid.clone(), status.name.clone(), id), started, measured);
                    ContainerUse { name: status.name.clone(), started, now }
                })
                .collect();
            if !containers.is_empty() {
                let started = pod.status.as_ref().and_then(|it| it.start_time.as_ref());
                uses.push(PodUse { name, uid, started: started.map(|it| it.0), containers });
            }
        }
        // What does not run any more is forgotten.
        *told = fresh;
        Snapshot { at, node, pods: uses }
    }
}

/// What is told of a run next.
fn next(
    before: Option<Told>,
    started: Timestamp,
    measured: Option<(u64, u64)>,
    at: Timestamp,
) -> Told {
    let known = before.map_or((0, 0), |told| (told.now.cpu_ns, told.now.memory));
    let (cpu_ns, memory) = measured.unwrap_or(known);
    let cpu_ns = cpu_ns.max(known.0).max(LEAST_CPU_NS);
    let memory = memory.max(LEAST_MEMORY);
    // A first rate is over the run's whole life.
    let (since, cpu_then) = before.map_or((started, 0), |told| told.since);
    let time = at.as_nanosecond() - since.as_nanosecond();
    if time < RATE_NS {
        let nano_cores = before.map_or(0, |told| told.now.nano_cores);
        return Told { now: Use { cpu_ns, nano_cores, memory }, since: (since, cpu_then) };
    }
    let nano_cores = i128::from(cpu_ns - cpu_then.min(cpu_ns)) * RATE_NS / time;
    let nano_cores = u64::try_from(nano_cores).unwrap_or(u64::MAX);
    Told { now: Use { cpu_ns, nano_cores, memory }, since: (at, cpu_ns) }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Memory {
    total: u64,
    available: u64,
}

/// The machine's CPU time in nanoseconds, and its memory.
fn machine() -> (u64, Memory) {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    (busy_ns(&read("/proc/stat")), memory(&read("/proc/meminfo")))
}

fn busy_ns(stat: &str) -> u64 {
    let numbers = stat.lines().next().and_then(|line| line.strip_prefix("cpu "));
    let numbers = numbers.into_iter().flat_map(str::split_whitespace);
    let numbers: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal: all but waiting.
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|&index| numbers.get(index));
    busy.sum::<u64>().saturating_mul(JIFFY_NS)
}

fn memory(meminfo: &str) -> Memory {
    let of = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap_or_default().saturating_mul(1024)
    };
    Memory { total: of("MemTotal"), available: of("MemAvailable") }
}

fn boot_time() -> Option<Timestamp> {
    let uptime = rustix::system::sysinfo().uptime;
    let seconds = Timestamp::now().as_second().checked_sub(uptime)?;
    Timestamp::from_second(seconds).ok()
}

/// `/metrics/resource`, in Prometheus's text format.
pub(crate) fn resource_metrics(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let at = snapshot.at.as_millisecond();
    let seconds = |ns: u64| format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    let each =
        || snapshot.pods.iter().flat_map(|pod| pod.containers.iter().map(move |it| (pod, it)));
    let of = |pod: &PodUse, container: &ContainerUse| {
        let (namespace, name) = (escape(&pod.name.namespace), escape(&pod.name.name));
        let container = escape(&container.name);
        format!("{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{name}\"}}")
    };
    let of_pod = |pod: &PodUse| {
        let (namespace, name) = (escape(&pod.name.namespace), escape(&pod.name.name));
        format!("{{namespace=\"{namespace}\",pod=\"{name}\"}}")
    };
    let mut family = |name: &str, kind: &str, help: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            // A string takes every byte.
            let _ = writeln!(text, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
            for line in lines {
                let _ = writeln!(text, "{name}{line}");
            }
        }
    };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        each()
            .map(|(pod, it)| format!("{} {} {at}", of(pod, it), seconds(it.now.cpu_ns)))
            .collect(),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        each().map(|(pod, it)| format!("{} {} {at}", of(pod, it), it.now.memory)).collect(),
    );
    family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        each()
            .map(|(pod, it)| {
                let ms = it.started.as_millisecond();
                format!("{} {}.{:03}", of(pod, it), ms.div_euclid(1000), ms.rem_euclid(1000))
            })
            .collect(),
    );
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        vec![format!(" {} {at}", seconds(snapshot.node.now.cpu_ns))],
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        vec![format!(" {} {at}", snapshot.node.now.memory)],
    );
    let pods = || snapshot.pods.iter();
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        pods().map(|pod| format!("{} {} {at}", of_pod(pod), seconds(pod.total().cpu_ns))).collect(),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        pods().map(|pod| format!("{} {} {at}", of_pod(pod), pod.total().memory)).collect(),
    );
    family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
        vec![" 0".to_owned()],
    );
    text
}

/// `/stats/summary`; `data` is the folder whose file system is the node's.
pub(crate) fn summary(snapshot: &Snapshot, node: &str, data: Option<&Path>) -> Value {
    let at = snapshot.at.to_string();
    let cpu = |now: Use| {
        json!({
            "time": at, "usageNanoCores": now.nano_cores, "usageCoreNanoSeconds": now.cpu_ns,
        })
    };
    let memory =
        |now: Use| json!({"time": at, "usageBytes": now.memory, "workingSetBytes": now.memory});
    let pods = snapshot.pods.iter().map(|pod| {
        let containers = pod.containers.iter().map(|container| {
            json!({
                "name": container.name,
                "startTime": container.started.to_string(),
                "cpu": cpu(container.now),
                "memory": memory(container.now),
            })
        });
        json!({
            "podRef": {
                "name": pod.name.name, "namespace": pod.name.namespace, "uid": pod.uid,
            },
            "startTime": pod.started.map(|started| started.to_string()),
            "containers": containers.collect::<Vec<_>>(),
            "cpu": cpu(pod.total()),
            "memory": memory(pod.total()),
        })
    });
    let mut of_node = json!({
        "nodeName": node,
        "startTime": snapshot.node.booted.map(|booted| booted.to_string()),
        "cpu": cpu(snapshot.node.now),
        "memory": memory(snapshot.node.now),
    });
    of_node["memory"]["availableBytes"] = snapshot.node.available.into();
    if let Some(fs) = data.and_then(|data| rustix::fs::statvfs(data).ok()) {
        let fs = json!({
            "time": at,
            "availableBytes": fs.f_bavail * fs.f_frsize,
            "capacityBytes": fs.f_blocks * fs.f_frsize,
            "usedBytes": fs.f_blocks.saturating_sub(fs.f_bfree) * fs.f_frsize,
            "inodes": fs.f_files,
            "inodesFree": fs.f_ffree,
            "inodesUsed": fs.f_files.saturating_sub(fs.f_ffree),
        });
        // Images, logs and volumes are in the one data directory.
        of_node["runtime"] = json!({ "imageFs": fs, "containerFs": fs });
        of_node["fs"] = fs;
    }
    json!({ "node": of_node, "pods": pods.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn pod(attempt: u32) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c"}, {"name": "over"}]},
            "status": {"startTime": "1970-01-01T00:00:09Z", "containerStatuses": [
                {
                    "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                    "containerID": format!("copepod://u/c/{attempt}"),
                    "state": {"running": {"startedAt": "1970-01-01T00:00:10Z"}},
                },
                {
                    "name": "over", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": 0}},
                },
            ]},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn measured(cpu_ns: u64, memory: u64) -> HashMap<(PodName, String), (u64, u64)> {
        let name = PodName { namespace: "n".into(), name: "p".into() };
        HashMap::from([((name, "c".to_owned()), (cpu_ns, memory))])
    }

    const MACHINE: (u64, Memory) =
        (5_000_000_000, Memory { total: 300 << 20, available: 100 << 20 });

    fn container(snapshot: &Snapshot) -> Use {
        let [pod] = &snapshot.pods[..] else { panic!("{snapshot:?}") };
        let [container] = &pod.containers[..] else { panic!("{snapshot:?}") };
        container.now
    }

    #[test]
    fn a_container_that_runs_is_never_told_with_nothing_nor_left_out() {
        let usage = Usage::default();

        let idle = usage.snapshot(&[pod(0)], &measured(0, 0), MACHINE, at(20));
        assert_eq!(container(&idle).cpu_ns, LEAST_CPU_NS);
        assert_eq!(container(&idle).memory, LEAST_MEMORY);
        let missing = usage.snapshot(&[pod(0)], &HashMap::new(), MACHINE, at(21));
        assert_eq!(container(&missing).cpu_ns, LEAST_CPU_NS);

        usage.snapshot(&[pod(0)], &measured(7_000, 1 << 20), MACHINE, at(22));
        let missing = usage.snapshot(&[pod(0)], &HashMap::new(), MACHINE, at(23));
        assert_eq!((container(&missing).cpu_ns, container(&missing).memory), (7_000, 1 << 20));
    }

    #[test]
    fn cpu_time_of_one_run_never_falls_and_of_the_next_begins_anew() {
        let usage = Usage::default();
        usage.snapshot(&[pod(0)], &measured(9_000, 1), MACHINE, at(20));

        let less = usage.snapshot(&[pod(0)], &measured(8_000, 1), MACHINE, at(21));
        assert_eq!(container(&less).cpu_ns, 9_000);
        let restarted = usage.snapshot(&[pod(1)], &measured(2_000, 1), MACHINE, at(22));
        assert_eq!(container(&restarted).cpu_ns, 2_000);
        assert_eq!(usage.told.lock().expect("no panic").len(), 2);
    }

    #[test]
    fn a_rate_is_of_the_time_since_the_last_one_and_first_of_the_whole_life() {
        let usage = Usage::default();

        let first = usage.snapshot(&[pod(0)], &measured(5_000_000_000, 1), MACHINE, at(20));
        assert_eq!(container(&first).nano_cores, 500_000_000);
        let then = usage.snapshot(&[pod(0)], &measured(5_000_000_000, 1), MACHINE, at(20));
        assert_eq!(container(&then).nano_cores, 500_000_000);
        let next = usage.snapshot(&[pod(0)], &measured(9_000_000_000, 1), MACHINE, at(24));
        assert_eq!(container(&next).nano_cores, 1_000_000_000);
    }

    #[test]
    fn resource_metrics_are_in_the_kubelet_s_names_and_carry_milliseconds() {
        let usage = Usage::default();
        let used = measured(1_500_000_000, 2 << 20);

        let text = resource_metrics(&usage.snapshot(&[pod(0)], &used, MACHINE, at(20)));

        let of = r#"{container="c",namespace="n",pod="p"}"#;
        for line in [
            format!("container_cpu_usage_seconds_total{of} 1.500000000 20000"),
            format!("container_memory_working_set_bytes{of} 2097152 20000"),
            format!("container_start_time_seconds{of} 10.000"),
            "node_cpu_usage_seconds_total 5.000000000 20000".to_owned(),
            format!("node_memory_working_set_bytes {} 20000", 200 << 20),
            r#"pod_cpu_usage_seconds_total{namespace="n",pod="p"} 1.500000000 20000"#.to_owned(),
            r#"pod_memory_working_set_bytes{namespace="n",pod="p"} 2097152 20000"#.to_owned(),
            "resource_scrape_error 0".to_owned(),
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_summary_has_the_node_and_every_pod_that_runs() {
        let usage = Usage::default();
        let used = measured(1_500_000_000, 2 << 20);
        let snapshot = usage.snapshot(&[pod(0)], &used, MACHINE, at(20));

        let all = summary(&snapshot, "worker", Some(Path::new("/")));
        let short = summary(&snapshot, "worker", None);

        assert_eq!(all["node"]["nodeName"], "worker");
        assert!(all["node"]["fs"]["capacityBytes"].as_u64() > Some(0));
        assert_eq!(short["node"].get("fs"), None);
        let pod = &short["pods"][0];
        assert_eq!(pod["podRef"], json!({"name": "p", "namespace": "n", "uid": "u"}));
        assert_eq!(pod["containers"][0]["startTime"], "1970-01-01T00:00:10Z");
        assert_eq!(pod["containers"][0]["cpu"]["usageCoreNanoSeconds"], 1_500_000_000u64);
        assert_eq!(pod["memory"]["workingSetBytes"], 2 << 20);
    }

    #[test]
    fn the_machine_s_figures_are_read_from_proc() {
        let stat = "cpu  100 20 30 4000 500 6 7 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n";
        let meminfo = "MemTotal:       2048 kB\nMemFree:  10 kB\nMemAvailable:   1024 kB\n";

        assert_eq!(busy_ns(stat), (100 + 20 + 30 + 6 + 7 + 8) * JIFFY_NS);
        assert_eq!(memory(meminfo), Memory { total: 2 << 20, available: 1 << 20 });
        assert_eq!(busy_ns(""), 0);
        let (cpu, memory) = machine();
        assert!(cpu > 0 && memory.total > memory.available);
    }
}
