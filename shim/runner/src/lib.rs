//! Runs the pods of one isolation domain, without privileges, credentials or a compiler.
//!
//! Start at [`server`], which speaks the protocol; then [`pods`], which holds what runs here; [`container`], what all
//! instances of one container share; [`guest`], the state of one instance; [`command`] and [`http`], which run them.
//!
//! Elsewhere: sockets and names (`copepod-net`); pulling, compiling, restarting, everything privileged (`node/`).
//! Invariant: what a guest does ends that guest at most; nothing here trusts a byte that came from one.

pub mod server;
pub mod pods;
pub mod command;
pub mod exec;
pub mod publish;
pub mod http;
pub mod container;
pub mod guest;
pub mod code;
pub mod engines;
mod load;
pub mod ledger;
pub mod cpu;
pub mod log;
pub mod exit;
pub mod records;
pub mod root;
pub mod arguments;
pub mod confine;
