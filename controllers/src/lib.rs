//! What copepod does for a cluster as a whole: clients of its API with rights of their own, each a pure judgement and a thin shell.
//!
//! Here: [`approver`], for nodes' serving certificates. Elsewhere: anything that one node does for itself (`copepod-kubelet`).
//! Invariant: nothing here has more rights than its own work takes; `deploy/` grants them one by one.

pub mod approver;

use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig};

/// A client by this kubeconfig; without one by `KUBECONFIG`, `~/.kube/config`, or, in a pod, its service account.
///
/// # Errors
/// There is none, or it is of no use.
pub async fn client(kubeconfig: Option<&Path>) -> Result<kube::Client, kube::Error> {
    let config = match kubeconfig {
        Some(file) => {
            let read = Kubeconfig::read_from(file)?;
            kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.map_err(kube::Error::InferConfig)?,
    };
    kube::Client::try_from(config)
}
