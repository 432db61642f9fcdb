//! A node of a Kubernetes cluster: what a kubelet is to the API server, over the agent that runs the pods.
//!
//! Start at [`pods`], which brings the API server's pods to the agent and their status back.
//!
//! Here: the node's place in a cluster. Elsewhere: running pods (`copepod-agent`), their lives (`copepod-node`).
//! Invariant: no pod waits for the API server but to be taken on; guests go on while it is away.

pub mod pods;
