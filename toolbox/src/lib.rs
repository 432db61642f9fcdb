//! A shell and small programs for containers that bring none: what `exec`, hooks and probes run by names like `sh`, `cat` and `tar`.
//!
//! Start at [`tools`], the list of programs; a program is given a [`Call`] and writes to its [`Streams`]. [`sh`] runs the others inside
//! itself, as a guest can start no process. [`places`] is what of the container's files can be seen.
//!
//! Here: what `kubectl cp`, probes and a person who looks around need, with the options that they use. Names and options are those of POSIX,
//! and of BusyBox where POSIX has none. Absent: job control, users, modes and owners, as a guest has none of them.

pub mod call;
pub mod places;
pub mod sh;
pub mod streams;
pub mod tools;

pub use call::{Call, Variables};
pub use streams::{Input, Output, Streams};
