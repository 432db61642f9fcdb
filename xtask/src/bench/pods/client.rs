//! Pods of a batch: made, waited for and deleted by a program of the benchmarks' own, which is optimised and keeps its connections.
//!
//! Absent: what is measured with them.

use std::cell::Cell;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use copepod_tests::cluster::Cluster;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Node, pod};
use crate::command::output;

/// As many requests as `api-pods` has under way.
pub(super) const CREATORS: usize = 32;

/// Seconds that a pod has to end in. The peer's processes do not mind being asked, and are killed after them.
const GRACE: &str = "1";

/// Where pods are made.
pub(super) struct Pods<'a> {
    pub(super) program: PathBuf,
    pub(super) cluster: &'a Cluster,
    pub(super) folder: &'a Path,
}

/// What is done with a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Each once the one before is ready.
    OneByOne,
    /// All as fast as the API server takes them.
    Together,
}

/// What came of it.
#[derive(Deserialize)]
pub(super) struct Times {
    pub(super) answered_to_ready_ms: Vec<f64>,
    pub(super) asked_to_ready_ms: Vec<f64>,
    pub(super) all_made_s: f64,
    pub(super) all_ready_s: f64,
}

/// Some pods.
pub(super) struct Batch<'a> {
    pods: &'a Pods<'a>,
    label: String,
    file: PathBuf,
}

thread_local! {
    static BATCHES: Cell<u32> = const { Cell::new(0) };
}

impl Pods<'_> {
    /// Makes a pod of a node, and deletes it.
    pub(super) fn warm(&self, node: &dyn Node) -> Result<()> {
        let one = self.of(node, node.name(), 1)?;
        one.act(Act::OneByOne)?;
        one.delete()
    }

    /// So many pods of a node in a namespace; none is made yet.
    pub(super) fn of(&self, node: &dyn Node, namespace: &str, count: usize) -> Result<Batch<'_>> {
        self.spread(node, &[namespace.to_owned()], count)
    }

    /// The same in several namespaces, in turn.
    pub(super) fn spread(
        &self,
        node: &dyn Node,
        namespaces: &[String],
        count: usize,
    ) -> Result<Batch<'_>> {
        let number = BATCHES.replace(BATCHES.get() + 1);
        let label = format!("{}-{number}", node.name());
        let in_turn = namespaces.iter().cycle().take(count);
        let pods: Vec<Value> = in_turn
            .enumerate()
            .map(|(n, namespace)| pod(&format!("{label}-{n}"), namespace, node, &label))
            .collect();
        let file = self.folder.join(format!("{label}.json"));
        std::fs::write(&file, serde_json::to_vec(&pods)?)?;
        Ok(Batch { pods: self, label, file })
    }

    /// Makes namespaces, and waits until pods can be made in them.
    pub(super) fn namespaces(&self, names: &[String]) -> Result<()> {
        let of = |name: &String| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        self.cluster.apply(&names.iter().map(of).collect::<Vec<_>>());
        let begin = Instant::now();
        let have = |told: &str| {
            let found: Vec<&str> = told.split_whitespace().collect();
            names.iter().all(|name| found.contains(&name.as_str()))
        };
        for kind in ["serviceaccount", "configmap"] {
            let of_all = "jsonpath={.items[*].metadata.namespace}";
            while !have(&self.cluster.ok(&["get", kind, "--all-namespaces", "--output", of_all])) {
                ensure!(begin.elapsed().as_secs() < 120, "a namespace lacks its {kind}");
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        Ok(())
    }
}

impl Batch<'_> {
    /// Makes them, and waits until all are ready.
    pub(super) fn act(&self, act: Act) -> Result<Times> {
        let act = match act {
            Act::OneByOne => "one-by-one",
            Act::Together => "together",
        };
        Ok(serde_json::from_str(&self.run(&[act])?)?)
    }

    /// Deletes them, and waits until they are gone.
    pub(super) fn delete(&self) -> Result<()> {
        self.run(&["delete", GRACE]).map(drop)
    }

    /// Their addresses.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>> {
        let label = format!("bench={}", self.label);
        let of_all = "jsonpath={.items[*].status.podIP}";
        let told = ["get", "pods", "--all-namespaces", "--selector", &label, "--output", of_all];
        let told = self.pods.cluster.ok(&told);
        told.split_whitespace().map(|ip| ip.parse().context("an address")).collect()
    }

    fn run(&self, act: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.pods.program);
        command.arg(self.pods.cluster.admin()).arg(&self.file).args(act);
        // An error is to be read by its words.
        command.env("RUST_BACKTRACE", "0");
        output(&mut command)
    }
}
