//! A node of a Kubernetes cluster: this machine as the cluster sees it.
//!
//! Start at [`run`], from the start of `copepod node` to its end; [`settings`] is what it is told. Then who it is to the API server:
//! [`identity`] and [`connection`], with [`trouble`] for what goes wrong on the way; [`bootstrap`], [`csr`], [`pki`] and [`rotation`]
//! are how it comes to certificates, and to newer ones. The node itself: [`machine`] and [`pressure`]
//! look, [`images`] lists, [`node_object`] decides what to tell, [`register`], [`own_node`], [`heartbeat`] and [`lease`] tell it; [`joined`] is kept.
//! [`routes`] leads to other nodes' pods, and [`outdated`] has pods leave runners of an older build.
//! [`admission`] judges the pods that are bound to it, and [`pods`] brings them to the agent and their status back. [`server`] is the
//! kubelet's HTTPS API.
//!
//! Elsewhere: running pods (`copepod-agent`, by its `front`), what a pod comes to (`copepod-node`).
//! Invariant: no pod waits for the API server but to be taken on; guests go on while it is away. And [`settings`], [`pressure`], [`node_object`], [`admission`], [`routes`] (but for what follows) and [`trouble`] take values and return values.

pub mod admission;
pub mod bootstrap;
pub mod connection;
pub mod csr;
#[cfg(test)]
mod fake;
pub mod heartbeat;
pub mod identity;
pub mod images;
pub mod joined;
pub mod lease;
pub mod machine;
pub mod node_object;
pub mod outdated;
pub mod own_node;
pub mod pace;
pub mod pki;
pub mod pods;
pub mod pressure;
pub mod register;
pub mod rotation;
pub mod routes;
pub mod run;
pub mod server;
pub mod settings;
pub mod trouble;

pub use run::{NodeError, reset, run};
pub use settings::{NodeName, NodeSettings};
