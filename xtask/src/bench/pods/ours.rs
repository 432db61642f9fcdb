//! A node of ours: the agent in a group of its own, with its runners' groups beside it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use copepod_tests::built::Built;
use copepod_tests::cluster::Cluster;
use copepod_tests::cluster::identity::Identity;
use copepod_tests::node::Node as OurNode;
use serde_json::{Value, json};

use super::{Node, await_ready};
use crate::bench::cgroup::{self, Cgroup};
use crate::bench::peers::Running;

/// The guest that its pods run: it serves HTTP.
const GUEST: &str = "hello-http";

/// More than a crowd, and no more than addresses.
const MOST_PODS: &str = "16000";

/// `copepod node`, until this is dropped. In this order: the process, what it has made, its group.
pub(super) struct Ours {
    _process: Running,
    node: OurNode,
    group: Cgroup,
    name: &'static str,
}

/// The programs of a node.
pub(super) fn programs(copepod: PathBuf, guests: PathBuf, nft: PathBuf) -> Built {
    Built { copepod, guests, registry: "docker-registry".into(), nft }
}

impl Ours {
    pub(super) fn start(
        built: &Built,
        cluster: &Cluster,
        name: &'static str,
        port: u16,
    ) -> Result<Self> {
        let group = Cgroup::make(name)?;
        let starter = group.starter(&built.copepod)?;
        let node = OurNode::of(Built { copepod: starter, ..built.clone() });
        node.load(&[GUEST]);
        let kubeconfig = cluster.kubeconfig(&Identity::node(name))?;
        let mut command = node.copepod(&["node", "--node-name", name, "--max-pods", MOST_PODS]);
        command.arg("--kubeconfig").arg(kubeconfig).args(["--port", &port.to_string()]);
        let process = Running::logged(&mut command, &node.scratch().join("node.log"))?;
        let this = Self { _process: process, node, group, name };
        await_ready(cluster, name)?;
        Ok(this)
    }

    fn id(&self) -> Result<String> {
        self.node.mark().id.context("the node has an id")
    }

    /// Bytes charged to the agent's group and to its runners'.
    pub(super) fn memory(&self) -> Result<u64> {
        Ok(self.group.memory()? + cgroup::memory_of(&self.id()?)?)
    }
}

impl Node for Ours {
    fn name(&self) -> &'static str {
        self.name
    }

    fn containers(&self) -> Value {
        json!([{ "name": "hello", "image": copepod_tests::manifest::image(GUEST) }])
    }

    fn cpu(&self) -> Result<Duration> {
        Ok(self.group.cpu()? + cgroup::cpu_of(&self.id()?)?)
    }
}
