//! The peer that starts nothing: kwok answers for a node that is not there, by its own stages for pods that get ready at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use copepod_tests::cluster::Cluster;
use serde_json::{Value, json};

use super::{Node, await_ready};
use crate::bench::cgroup::Cgroup;
use crate::bench::peers::Running;
use crate::cache::Cache;
use crate::kube::{self, Set};

/// The stages, as they lie in kwok's module.
const STAGES: [&str; 4] = [
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-delete.yaml",
];

/// Pods that it works on at a time, where its default is 4: as many as we do.
const PARALLEL: u32 = 32;

const NAME: &str = "kwok";

/// kwok, until this is dropped.
pub(super) struct Kwok {
    _process: Running,
    group: Cgroup,
}

impl Kwok {
    pub(super) fn start(cache: &Cache, cluster: &Cluster, folder: &Path) -> Result<Self> {
        let program = kube::bring(cache, Set::Kwok)?.join("kwok");
        let stages = kube::sources(Set::Kwok)?.join("kustomize/stage");
        let options = folder.join("kwok.json");
        std::fs::write(
            &options,
            json!({
                "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
                "kind": "KwokConfiguration",
                "options": {
                    "manageNodesWithAnnotationSelector": "kwok.x-k8s.io/node=fake",
                    "nodeLeaseDurationSeconds": 40,
                    "podPlayStageParallelism": PARALLEL,
                    // What is not named in a file is none, and not its default.
                    "nodePlayStageParallelism": 4,
                    "nodeLeaseParallelism": 4,
                    "podsOnNodeSyncParallelism": 1,
                },
            })
            .to_string(),
        )?;
        let group = Cgroup::make(NAME)?;
        let mut command = group.inside(&program);
        command.arg("--kubeconfig").arg(cluster.admin()).arg("--config").arg(&options);
        let files: Vec<PathBuf> = STAGES.iter().map(|stage| stages.join(stage)).collect();
        command.args(files.iter().flat_map(|file| ["--config".as_ref(), file.as_os_str()]));
        // Its own settings of a person's are not a benchmark's.
        command.env("HOME", folder);
        let process = Running::logged(&mut command, &folder.join("kwok.log"))?;
        cluster.apply(&[json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": NAME,
                "annotations": { "kwok.x-k8s.io/node": "fake" },
                "labels": { "kubernetes.io/hostname": NAME, "type": "kwok" },
            },
        })]);
        await_ready(cluster, NAME)?;
        Ok(Self { _process: process, group })
    }
}

impl Node for Kwok {
    fn name(&self) -> &'static str {
        NAME
    }

    fn containers(&self) -> Value {
        json!([{ "name": "nothing", "image": "bench.invalid/nothing:1" }])
    }

    fn cpu(&self) -> Result<Duration> {
        self.group.cpu()
    }
}
