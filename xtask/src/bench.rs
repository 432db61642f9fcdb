//! `cargo xtask bench start|http|memory|pods`: figures of ours beside those of peers, taken in turn in one run.
//!
//! Here: rounds, series of samples, the report. What is measured stands in [`start`], [`http`], [`memory`] and [`pods`]; [`peers`]
//! brings the others' programs, and [`cgroup`] reads what programs cost. Absent: judgement. Where an aim is missed, docs/benchmarks.md says why.

mod cgroup;
mod http;
mod link;
mod memory;
mod peers;
mod pods;
mod start;

use std::path::PathBuf;
use std::process::Command;

pub(crate) use pods::Narrow;
pub(crate) use start::print_times;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::command::{cargo, output, run, step};

/// What to measure.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Until the first instruction of a fresh, cached component.
    Start,
    /// CPU per request and requests per second of a hello.
    Http,
    /// What an idle pod costs, everything included.
    Memory,
    /// From a pod in a cluster's API to a pod that is ready, and what a node costs. Needs Go.
    Pods,
}

/// How often each of the interleaved measurements is taken, at least.
pub(crate) const ROUNDS: usize = 5;

pub(crate) fn run_one(cache: &Cache, what: What, rounds: usize, narrow: &Narrow) -> Result<()> {
    anyhow::ensure!(
        copepod_tests::node::is_root(),
        "the benchmarks need root: pods and peers get namespaces and cgroups of their own"
    );
    let rounds = rounds.max(ROUNDS);
    let before = load_average();
    let (name, mut report) = match what {
        What::Start => ("start", start::measure(cache, rounds)?),
        What::Http => ("http", http::measure(cache, rounds)?),
        What::Memory => ("memory", memory::measure(cache)?),
        What::Pods => ("pods", pods::measure(cache, rounds, narrow)?),
    };
    report.notes.push(format!("load average before: {before}, after: {}", load_average()));
    report.print(name);
    let file = report.write(cache, name, rounds)?;
    println!("{}", file.display());
    Ok(())
}

/// Samples of one thing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    /// Whose, and what.
    pub(crate) of: String,
    /// What a sample counts.
    pub(crate) unit: &'static str,
    /// In the order in which they were taken.
    pub(crate) samples: Vec<f64>,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
}

impl Series {
    pub(crate) fn new(of: impl Into<String>, unit: &'static str) -> Self {
        Self { of: of.into(), unit, samples: Vec::new(), more_is_better: false }
    }

    /// The median; none of nothing.
    fn median(&self) -> Option<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().checked_sub(1)? / 2).copied()
    }

    /// The best sample: interference only ever makes one worse.
    fn best(&self) -> Option<f64> {
        let better = if self.more_is_better { f64::max } else { f64::min };
        self.samples.iter().copied().reduce(better)
    }
}

/// What a benchmark found.
#[derive(Default)]
pub(crate) struct Report {
    /// One per peer and figure, ours among them.
    pub(crate) series: Vec<Series>,
    /// Versions, settings, and what could not be measured.
    pub(crate) notes: Vec<String>,
}

impl Report {
    /// Adds a sample to the series of that name, which is made with its first sample.
    pub(crate) fn sample(&mut self, of: &str, unit: &'static str, value: f64) {
        match self.series.iter_mut().find(|it| it.of == of && it.unit == unit) {
            Some(series) => series.samples.push(value),
            None => {
                let more_is_better = unit.ends_with("/s");
                self.series.push(Series {
                    samples: vec![value],
                    more_is_better,
                    ..Series::new(of, unit)
                });
            }
        }
    }

    fn print(&self, name: &str) {
        println!("\n{name}: {:<44} {:>12} {:>12}  {:>7}", "", "p50", "best", "samples");
        for series in &self.series {
            let shown = |value: Option<f64>| value.map_or("-".to_owned(), |it| format!("{it:.1}"));
            println!(
                "  {:<50} {:>12} {:>12}  {:>7}",
                format!("{} [{}]", series.of, series.unit),
                shown(series.median()),
                shown(series.best()),
                series.samples.len()
            );
        }
        self.notes.iter().for_each(|note| println!("  {note}"));
    }

    fn write(&self, cache: &Cache, name: &str, rounds: usize) -> Result<PathBuf> {
        let folder = cache.target().join("bench");
        std::fs::create_dir_all(&folder)?;
        let file = folder.join(name).with_extension("json");
        let series = self.series.iter().map(|it| {
            json!({ "of": it.of, "unit": it.unit, "p50": it.median(), "best": it.best(), "samples": it.samples })
        });
        let report = json!({
            "name": name,
            "rounds": rounds,
            "machine": machine(),
            "commit": commit(),
            "series": series.collect::<Value>(),
            "notes": self.notes,
        });
        std::fs::write(&file, format!("{report:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }
}

/// The benchmarks' own programs, optimised.
pub(crate) struct Own {
    pub(crate) plain_hyper: PathBuf,
    pub(crate) start_instances: PathBuf,
    pub(crate) compile: PathBuf,
}

pub(crate) fn own_programs(cache: &Cache) -> Result<Own> {
    let target = cache.target();
    step("building the benchmarks' own programs", || {
        for package in ["copepod-bench", "compile-for-tests"] {
            run(cargo(&target).args(["build", "--locked", "--release", "--package", package]))?;
        }
        Ok(())
    })?;
    let folder = target.join("release");
    Ok(Own {
        plain_hyper: folder.join("plain-hyper"),
        start_instances: folder.join("start-instances"),
        compile: folder.join("compile-for-tests"),
    })
}

/// The program that makes pods, alone.
pub(crate) fn api_pods(cache: &Cache) -> Result<PathBuf> {
    let target = cache.target();
    let arguments = ["build", "--locked", "--release", "--package", "copepod-bench"];
    step("building the program that makes pods", || run(cargo(&target).args(arguments)))?;
    Ok(target.join("release/api-pods"))
}

/// The load averages, as the kernel prints them.
fn load_average() -> String {
    let line = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    line.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn machine() -> Value {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let field = |name: &str| {
        cpus.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(": "))
            .map(|(_, value)| value.to_owned())
    };
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": field("model name"),
        "cores": std::thread::available_parallelism().map(usize::from).unwrap_or(0),
        "memory": read("/proc/meminfo").lines().next().unwrap_or_default(),
    })
}

fn commit() -> String {
    let mut git = Command::new("git");
    git.current_dir(crate::cache::checkout()).args(["describe", "--always", "--dirty"]);
    output(&mut git).map(|it| it.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_sample_and_the_best_depends_on_what_is_better() {
        let mut report = Report::default();
        for value in [3.0, 1.0, 2.0] {
            report.sample("ours", "µs", value);
            report.sample("ours", "requests/s", value);
        }

        let [times, rates] = &report.series[..] else { panic!("two series") };

        assert_eq!((times.median(), times.best()), (Some(2.0), Some(1.0)));
        assert_eq!((rates.median(), rates.best()), (Some(2.0), Some(3.0)));
    }

    #[test]
    fn a_series_without_samples_has_no_figures() {
        let series = Series::new("nobody", "µs");

        assert_eq!((series.median(), series.best()), (None, None));
    }
}
