//! The agent's own figures, `/metrics` and `/metrics/probes`, in Prometheus's text format and under the kubelet's names.
//!
//! Whoever sees something happen says it here: [`Metrics::add`], [`Metrics::set`], [`Metrics::observe`]. A figure that nobody has
//! told is not shown. Absent: what pods use ([`super::usage`]).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A figure: its name, what it is, and how it counts.
#[derive(Debug)]
pub struct Metric {
    /// Prometheus's name.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// How it counts.
    pub kind: Kind,
    /// Where it is shown.
    pub page: Page,
}

/// How a figure counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is what it is.
    Gauge,
    /// Observations by the upper bounds of these buckets, ascending.
    Histogram(&'static [f64]),
}

/// The page that shows a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/metrics`
    Own,
    /// `/metrics/probes`
    Probes,
}

/// Prometheus's own.
const SHORT: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A kubelet's for starts: round numbers, so that both of us can be asked which share of pods starts within some.
const STARTUP: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0,
    300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];

const fn metric(name: &'static str, kind: Kind, help: &'static str) -> Metric {
    Metric { name, help, kind, page: Page::Own }
}

/// `path` (the first word of it), `method`.
pub const HTTP_REQUESTS: Metric = metric(
    "kubelet_http_requests_total",
    Kind::Counter,
    "Number of the http requests received since the server started",
);
/// No labels.
pub const RUNNING_PODS: Metric =
    metric("kubelet_running_pods", Kind::Gauge, "Number of pods that have a running container");
/// `container_state`.
pub const RUNNING_CONTAINERS: Metric =
    metric("kubelet_running_containers", Kind::Gauge, "Number of containers by their state");
/// `node`.
pub const NODE_NAME: Metric =
    metric("kubelet_node_name", Kind::Gauge, "The node's name. The count is always 1.");
/// `container_type`.
pub const STARTED_CONTAINERS: Metric = metric(
    "kubelet_started_containers_total",
    Kind::Counter,
    "Cumulative number of containers started",
);
/// No labels.
pub const STARTED_PODS: Metric =
    metric("kubelet_started_pods_total", Kind::Counter, "Cumulative number of pods started");
/// No labels.
pub const POD_START: Metric = metric(
    "kubelet_pod_start_duration_seconds",
    Kind::Histogram(STARTUP),
    "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
);
/// No labels.
pub const POD_START_TOTAL: Metric = metric(
    "kubelet_pod_start_total_duration_seconds",
    Kind::Histogram(STARTUP),
    "Duration in seconds to start a pod since creation, including time to pull images and run init containers",
);
/// No labels.
pub const POD_START_SLI: Metric = metric(
    "kubelet_pod_start_sli_duration_seconds",
    Kind::Histogram(STARTUP),
    "Duration in seconds to start a pod, excluding time to pull images and run init containers, since its creation",
);
/// No labels.
pub const POD_STATUS_SYNC: Metric = metric(
    "kubelet_pod_status_sync_duration_seconds",
    Kind::Histogram(&[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0]),
    "Duration in seconds from detection of a change to pod status until the API is updated for that pod",
);
/// `code`, `method`, `host`.
pub const API_REQUESTS: Metric = metric(
    "rest_client_requests_total",
    Kind::Counter,
    "Number of HTTP requests, partitioned by status code, method, and host",
);
/// No labels.
pub const OUTDATED_RUNNERS: Metric = metric(
    "copepod_outdated_runners",
    Kind::Gauge,
    "Number of runners of another build than the node's own",
);
/// No labels.
pub const OUTDATED_PODS: Metric = metric(
    "copepod_outdated_pods",
    Kind::Gauge,
    "Number of pods in runners of another build than the node's own",
);
/// No labels.
pub const PATCH_GAP: Metric = metric(
    "copepod_patch_gap_seconds",
    Kind::Gauge,
    "Seconds since the node is of this build while pods run in runners of another one; 0 where none does",
);
/// `probe_type`, `result`, `container`, `pod`, `namespace`, `pod_uid`.
pub const PROBES: Metric = Metric {
    name: "prober_probe_total",
    help: "Cumulative number of a liveness, readiness or startup probe for a container by result",
    kind: Kind::Counter,
    page: Page::Probes,
};
/// `probe_type`, `container`, `pod`, `namespace`.
pub const PROBE_DURATION: Metric = Metric {
    name: "prober_probe_duration_seconds",
    help: "Duration in seconds for a probe response",
    kind: Kind::Histogram(SHORT),
    page: Page::Probes,
};

/// A figure's labels: names and values.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

/// All figures as they are now.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<&'static str, Family>>);

#[derive(Debug)]
struct Family {
    metric: &'static Metric,
    series: BTreeMap<Vec<(&'static str, String)>, Series>,
}

#[derive(Debug)]
enum Series {
    Number(f64),
    Buckets { counts: Vec<u64>, sum: f64, all: u64 },
}

impl Metrics {
    /// Counts so many more.
    pub fn add(&self, metric: &'static Metric, labels: Labels<'_>, more: f64) {
        self.change(metric, labels, |series| match series {
            Series::Number(number) => *number += more,
            Series::Buckets { .. } => {}
        });
    }

    /// It is now this.
    pub fn set(&self, metric: &'static Metric, labels: Labels<'_>, now: f64) {
        self.change(metric, labels, |series| match series {
            Series::Number(number) => *number = now,
            Series::Buckets { .. } => {}
        });
    }

    /// It took this long.
    pub fn observe(&self, metric: &'static Metric, labels: Labels<'_>, took: Duration) {
        let took = took.as_secs_f64();
        self.change(metric, labels, |series| {
            if let (Series::Buckets { counts, sum, all }, Kind::Histogram(bounds)) =
                (series, metric.kind)
            {
                for (count, bound) in counts.iter_mut().zip(bounds) {
                    *count += u64::from(took <= *bound);
                }
                *sum += took;
                *all += 1;
            }
        });
    }

    /// Forgets all series with all of these labels, such as a pod's that is gone.
    pub fn forget(&self, metric: &Metric, of: Labels<'_>) {
        if let Some(family) = self.lock().get_mut(metric.name) {
            family.series.retain(|labels, _| {
                let has = |(name, value): &(&str, &str)| {
                    labels.iter().any(|(its, is)| its == name && is == value)
                };
                !of.iter().all(has)
            });
        }
    }

    /// A page's text.
    pub(crate) fn show(&self, page: Page) -> String {
        let mut text = String::new();
        for family in self.lock().values().filter(|family| family.metric.page == page) {
            family.show(&mut text);
        }
        text
    }

    fn change(
        &self,
        metric: &'static Metric,
        labels: Labels<'_>,
        change: impl FnOnce(&mut Series),
    ) {
        let mut families = self.lock();
        let family = families
            .entry(metric.name)
            .or_insert_with(|| Family { metric, series: BTreeMap::new() });
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        change(family.series.entry(labels).or_insert_with(|| match metric.kind {
            Kind::Counter | Kind::Gauge => Series::Number(0.0),
            Kind::Histogram(bounds) => {
                Series::Buckets { counts: vec![0; bounds.len()], sum: 0.0, all: 0 }
            }
        }));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Family>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Family {
    fn show(&self, text: &mut String) {
        let Metric { name, help, kind, .. } = self.metric;
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        // A string takes every byte.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {word}");
        for (labels, series) in &self.series {
            let _ = match (series, kind) {
                (Series::Buckets { counts, sum, all }, Kind::Histogram(bounds)) => {
                    for (count, bound) in counts.iter().zip(*bounds) {
                        let labels = shown(labels, Some(&bound.to_string()));
                        let _ = writeln!(text, "{name}_bucket{labels} {count}");
                    }
                    let _ = writeln!(text, "{name}_bucket{} {all}", shown(labels, Some("+Inf")));
                    let labels = shown(labels, None);
                    writeln!(text, "{name}_sum{labels} {sum}\n{name}_count{labels} {all}")
                }
                (Series::Number(number), _) => {
                    writeln!(text, "{name}{} {number}", shown(labels, None))
                }
                _ => Ok(()),
            };
        }
    }
}

fn shown(labels: &[(&'static str, String)], le: Option<&str>) -> String {
    let labels = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value)));
    let all: Vec<_> = labels.chain(le.map(|le| format!("le=\"{le}\""))).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

/// A label's value as the text format wants it.
pub(crate) fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_as_prometheus_reads_them() {
        let metrics = Metrics::default();

        metrics.add(&STARTED_CONTAINERS, &[("container_type", "container")], 2.0);
        metrics.add(&STARTED_CONTAINERS, &[("container_type", "container")], 1.0);
        metrics.set(&RUNNING_PODS, &[], 7.0);
        metrics.set(&RUNNING_PODS, &[], 6.0);
        metrics.observe(&PROBE_DURATION, &[("pod", "a\"b")], Duration::from_millis(20));
        metrics.observe(&PROBE_DURATION, &[("pod", "a\"b")], Duration::from_secs(100));

        let own = metrics.show(Page::Own);
        assert!(own.contains("# TYPE kubelet_running_pods gauge\nkubelet_running_pods 6\n"));
        let started = "kubelet_started_containers_total{container_type=\"container\"} 3\n";
        assert!(own.contains(started), "{own}");
        let probes = metrics.show(Page::Probes);
        for line in [
            r#"prober_probe_duration_seconds_bucket{pod="a\"b",le="0.01"} 0"#,
            r#"prober_probe_duration_seconds_bucket{pod="a\"b",le="0.025"} 1"#,
            r#"prober_probe_duration_seconds_bucket{pod="a\"b",le="10"} 1"#,
            r#"prober_probe_duration_seconds_bucket{pod="a\"b",le="+Inf"} 2"#,
            r#"prober_probe_duration_seconds_sum{pod="a\"b"} 100.02"#,
            r#"prober_probe_duration_seconds_count{pod="a\"b"} 2"#,
        ] {
            assert!(probes.lines().any(|it| it == line), "{line}\n{probes}");
        }
        assert!(!own.contains("prober"));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let metrics = Metrics::default();
        metrics.add(&PROBES, &[("pod_uid", "u1"), ("result", "successful")], 1.0);
        metrics.add(&PROBES, &[("pod_uid", "u2"), ("result", "successful")], 1.0);

        metrics.forget(&PROBES, &[("pod_uid", "u1")]);

        let text = metrics.show(Page::Probes);
        assert!(!text.contains("u1") && text.contains("u2"));
    }
}
