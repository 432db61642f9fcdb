//! End-to-end tests: the built programs, used as a person uses them, each test on a node of its own.
//!
//! In the order in which to read them. Those of [`kube`] share a real control plane, which is brought when one of them is run.

mod basic;
mod command_line;
mod programs;

mod images;
mod languages;

mod exits;
mod limits;
pub(crate) mod toolbox;
mod volumes;

mod host_ports;

mod crash;
mod upgrade;

mod registry;

mod user;

mod kube;

mod badinput;
mod hostile;
