//! Runs the pods of one isolation domain, without privileges, credentials or a compiler.
//!
//! Start at [`server`], which speaks the protocol; then [`pods`], which holds what runs here; [`container`], what all
//! instances of one container share; [`guest`], the state of one instance; [`command`] and [`http`], which run them.
//!
//! Elsewhere: sockets and names (`copepod-net`); pulling, compiling, restarting, everything privileged (`node/`).
//! Invariant: what a guest does ends that guest at most; nothing here trusts a byte that came from one.

pub mod arguments;
pub mod attach;
mod code;
pub mod command;
pub mod confine;
pub mod container;
pub mod cpu;
pub mod engines;
pub mod exec;
pub mod exit;
pub mod guest;
pub mod http;
pub mod last_words;
pub mod ledger;
mod load;
pub mod log;
pub mod pods;
pub mod program;
pub mod publish;
pub mod records;
pub mod root;
pub mod server;
