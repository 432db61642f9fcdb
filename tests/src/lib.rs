//! What the end-to-end tests and the demo share: a node of one's own on this machine, and ways to look at it from outside.
//!
//! Start at [`node`], a private data directory with the commands that work on it; [`manifest`] writes its pods. From outside
//! look [`http`], which is a client, and [`caller`], one of echoes, [`registry`], a server for images, [`world`], a network beyond the machine, [`machines`], several machines on one link, [`host`], which
//! finds what a node left behind, and [`journal`], which counts what an agent has written. A control plane of Kubernetes is
//! [`cluster`].
//! Absent: anything of the product's own code. What is tested is the built programs, through what a user sees of them.

pub mod built;
pub mod caller;
pub mod cluster;
pub mod host;
pub mod http;
pub mod journal;
pub mod machines;
pub mod manifest;
pub mod node;
pub mod registry;
pub mod wait;
pub mod world;
