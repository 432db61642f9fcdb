//! The agent: owns the pods of one data directory and drives their runners.
//!
//! Start at [`run_agent`], which sets up and recovers; then `owner`, the loop that lets each pod's core decide; `perform`, which
//! acts; `sandbox`, what a pod needs on the host before its first container; `argv`, which program a command is. [`api`] is how `copepod` talks to it, and [`front`] how a node's kubelet side does.
//!
//! Here: what acts. Elsewhere: what decides about a pod's life (`copepod-node`), the host's namespaces, mounts and addresses
//! (`copepod-domain`), images and code (`copepod-image`), guests (`copepod-runner`).
//! Invariant: a start is in the journal before it is sent; no guest code is ever in this process.

mod accept;
pub mod api;
mod argv;
mod causes;
mod check;
mod config;
mod domains;
mod exec;
mod files;
mod follow;
pub mod front;
mod generation;
mod homes;
mod journal;
mod logs;
mod node;
mod owner;
mod perform;
mod pod;
mod ports;
mod recover;
mod remove;
mod root;
mod runner;
mod sandbox;
mod serve;
mod store;
mod succession;

pub use causes::with_causes;
pub use config::{AgentConfig, ClusterNode};
pub use journal::write_whole;
pub use recover::{AgentError, run_agent};
pub use store::{PodObjects, PodToken};
