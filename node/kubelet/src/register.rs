//! Makes this node's object, or mends the one that is there.
//!
//! Start at [`register`]. Absent: what stands in it ([`crate::node_object`]), and keeping it up to date ([`crate::heartbeat`]).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use tracing::{info, warn};

use crate::node_object::{Known, new_node, other_runtime, pod_cidrs, repair};
use crate::pace::Backoff;
use crate::trouble::explain;

/// Why a node cannot be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// It may work later.
    #[error("the node cannot be registered")]
    Api(#[from] kube::Error),
    /// Another program is this node.
    #[error(
        "a node {name} is there already, and {runtime} runs it: give this node another --node-name, or end the other one and \
         kubectl delete node {name}"
    )]
    Taken {
        /// The node.
        name: String,
        /// The other program.
        runtime: String,
    },
    /// The settings say another block of pod addresses than the cluster.
    #[error(
        "the cluster has given node {name} the podCIDR {found}, and --pod-cidr says {wanted}: leave --pod-cidr out, or kubectl \
         delete node {name} and start again"
    )]
    OtherBlock {
        /// The node.
        name: String,
        /// The cluster's.
        found: String,
        /// The settings'.
        wanted: String,
    },
}

/// Registers the node, once.
///
/// # Errors
/// See [`RegisterError`].
pub async fn try_register(nodes: &Api<Node>, known: Known<'_>) -> Result<Node, RegisterError> {
    let settings = known.settings;
    let name = settings.node_name.as_str();
    // The usual case of a restart costs one request more, that of a new node none; and no other order is without a gap.
    match nodes.create(&PostParams::default(), &new_node(known, Timestamp::now())).await {
        Ok(node) => return Ok(node),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => return Err(error.into()),
    }
    let there = nodes.get(name).await?;
    if let Some(runtime) = other_runtime(&there) {
        return Err(RegisterError::Taken { name: name.to_owned(), runtime: runtime.to_owned() });
    }
    let found = pod_cidrs(&there);
    if let Some(wanted) = settings.pod_cidrs
        && !found.is_empty()
        && found.join(",").parse() != Ok(wanted)
    {
        return Err(RegisterError::OtherBlock {
            name: name.to_owned(),
            found: found.join(","),
            wanted: wanted.to_string(),
        });
    }
    match repair(&there, settings, known.machine) {
        Some(patch) => {
            Ok(nodes.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?)
        }
        None => Ok(there),
    }
}

/// Registers the node, however long it takes until the API server answers.
///
/// # Errors
/// What no other try would mend.
pub async fn register(
    nodes: &Api<Node>,
    known: Known<'_>,
    server: &http::Uri,
) -> Result<Node, RegisterError> {
    // A kubelet's.
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(7));
    let mut told = String::new();
    loop {
        match try_register(nodes, known).await {
            Err(RegisterError::Api(error)) => {
                let why = explain(&error, server);
                if why != told {
                    warn!("the node is not registered yet: {why}");
                    told = why;
                }
                tokio::time::sleep(backoff.failed()).await;
            }
            Ok(node) => {
                info!(node = known.settings.node_name.as_str(), "registered");
                return Ok(node);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde_json::{Value, json};

    use super::*;
    use crate::fake::{self, Asked, refusal};
    use crate::machine::Machine;
    use crate::node_object::{NodeState, RUNTIME};
    use crate::pressure::Pressures;
    use crate::settings::{Given, NodeSettings};

    fn settings(pod_cidr: Option<&str>) -> NodeSettings {
        NodeSettings::parse("/data".into(), "n1", |key| {
            let text = match key.flag {
                "kubeconfig" => Some("/k"),
                "pod-cidr" => pod_cidr,
                _ => None,
            };
            text.map(|text| Given { by: key.flag.into(), texts: vec![text.into()] })
        })
        .expect("good settings")
    }

    /// What comes of registering where this node is there already, and what was asked for it.
    async fn registered(
        there: Option<Value>,
        pod_cidr: Option<&str>,
    ) -> (Result<Node, RegisterError>, Vec<Asked>) {
        let answer = move |asked: &Asked| match (asked.method.as_str(), &there) {
            ("POST", None) => (201, asked.body.clone()),
            ("POST", Some(_)) => refusal(409, "AlreadyExists"),
            (_, Some(there)) => (200, there.clone()),
            _ => refusal(404, "NotFound"),
        };
        let (client, log) = fake::api(answer);
        let (settings, state) = (settings(pod_cidr), NodeState::default());
        let addresses = [IpAddr::from([192, 0, 2, 1])];
        let known = Known {
            settings: &settings,
            machine: &Machine::default(),
            addresses: &addresses,
            state: &state,
            pressures: Pressures::default(),
            features: &[],
        };
        let result =
            register(&Api::all(client), known, &http::Uri::from_static("https://192.0.2.9")).await;
        (result, log.all())
    }

    fn lines(asked: &[Asked]) -> Vec<String> {
        asked.iter().map(|it| format!("{} {}", it.method, it.path)).collect()
    }

    fn there(runtime: &str, block: &str) -> Option<Value> {
        Some(json!({
            "metadata": { "name": "n1" },
            "spec": { "podCIDR": block },
            "status": { "nodeInfo": { "containerRuntimeVersion": format!("{runtime}://1") } },
        }))
    }

    #[tokio::test]
    async fn a_new_node_is_made_by_one_request_with_its_status() {
        let (result, asked) = registered(None, None).await;

        assert!(result.is_ok());
        assert_eq!(lines(&asked), ["POST /api/v1/nodes"]);
        assert_eq!(asked[0].body["metadata"]["name"], "n1");
        assert_eq!(asked[0].body["status"]["conditions"][3]["type"], "Ready");
    }

    #[tokio::test]
    async fn a_node_that_is_there_is_mended() {
        let (result, asked) = registered(there(RUNTIME, "10.1.0.0/24"), None).await;

        assert!(result.is_ok());
        assert_eq!(
            lines(&asked),
            ["POST /api/v1/nodes", "GET /api/v1/nodes/n1", "PATCH /api/v1/nodes/n1"]
        );
        assert_eq!(asked[2].body["metadata"]["labels"]["kubernetes.io/os"], "copepod");
        assert_eq!(asked[2].body["spec"], Value::Null);
    }

    #[tokio::test]
    async fn a_node_that_another_program_runs_is_left_alone() {
        let (result, asked) = registered(there("containerd", "10.1.0.0/24"), None).await;

        let error = result.expect_err("refused").to_string();
        assert!(error.contains("containerd://1 runs it"), "{error}");
        assert_eq!(asked.len(), 2);
    }

    #[tokio::test]
    async fn another_block_than_the_clusters_is_refused_with_both() {
        let (result, _) = registered(there(RUNTIME, "10.1.0.0/24"), Some("10.2.0.0/24")).await;

        let error = result.expect_err("refused").to_string();
        assert!(error.contains("10.1.0.0/24") && error.contains("10.2.0.0/24"), "{error}");
    }
}
