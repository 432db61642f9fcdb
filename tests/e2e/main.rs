//! End-to-end tests: the built programs, used as a person uses them, each test on a node of its own.
//!
//! In the order in which to read them. Absent: a cluster.

mod basic;
mod command_line;
mod programs;

mod exits;
mod limits;
mod volumes;

mod crash;
mod upgrade;

mod registry;

mod user;

mod badinput;
mod hostile;
