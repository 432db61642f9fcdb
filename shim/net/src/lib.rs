//! The pod network as the containers of one pod see it: one address, a loopback of their own, the same ports inside and out.
//!
//! Start at [`podnet`], the object that all containers of a pod share; [`rules`] decides which address a guest's address
//! means and [`table`] who holds which port. Behind `wasi:sockets` stand [`tcp`], [`udp`] and [`lookup`], joined to a
//! component by [`linker`] and to a module by [`preview1`]; [`door`] is the way out where the network itself has none.
//!
//! Here: address rewriting, the judge of destinations, sockets, names, the socket quota.
//! Elsewhere: addresses and routes of the network namespace (`copepod-domain`), HTTP (`copepod-runner`).
//! Invariant: no packet leaves for an address that [`rules`] did not let pass, and none from an address that is not the pod's.

pub mod rules;
pub mod table;

pub mod podnet;

pub mod tcp;
pub mod udp;

mod calls;
mod listening;
mod stream;

pub mod door;

mod options;
mod os;
mod wasi;

pub mod lookup;

mod dns;

pub mod linker;

pub mod preview1;

pub use door::Door;
pub use linker::{NetCtx, NetView, add_to_linker};
pub use lookup::LookupError;
pub use podnet::{DialError, Listener, PodNet, PodStream};
