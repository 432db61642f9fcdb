//! Against a real control plane of Kubernetes, shared by all tests here but those that kill it: each has names of its own.
//!
//! Beneath: [`api`], a client; [`control_plane`], what the tests' cluster is itself; [`join`], machines that become nodes;
//! [`pods`], what runs on them, and [`changes`] of it, by way of [`running`], a node of a test's own; [`nodes`], how pods of several nodes
//! reach each other, and [`families`], by which addresses; [`debugging`], how a person looks into them; [`host_ports`], how everybody reaches a node's ports. Then faults, judged by all that was told of the pods ([`watched`]): the node's process is killed ([`kills`]), pods are
//! deleted at whatever moment ([`deletions`]), the API server is away ([`away`]), the machine runs short of something ([`pressure`]),
//! pods come that are another system's ([`linux`]), strangers ask ([`authorization`]), and the programs are replaced ([`upgrades`]).

pub(crate) mod api;
mod changes;
mod control_plane;
mod debugging;
mod host_network;
mod host_ports;
mod join;
mod nodes;
mod pods;
mod running;

mod authorization;
mod away;
mod deletions;
mod families;
mod kills;
mod linux;
mod pressure;
mod upgrades;
mod watched;
