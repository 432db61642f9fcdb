//! Against a real control plane of Kubernetes, shared by all tests here but those that kill it: each has names of its own.
//!
//! Beneath: [`api`], a client; [`control_plane`], what the tests' cluster is itself; [`join`], machines that become nodes;
//! [`pods`], what runs on them, and [`changes`] of it, by way of [`running`], a node of a test's own; [`nodes`], how pods of several nodes
//! reach each other.

pub(crate) mod api;
mod changes;
mod control_plane;
mod host_network;
mod join;
mod nodes;
mod pods;
mod running;
