//! Isolation domains as the host sees them: namespaces, cgroup, mounts, addresses, and the runner process in the middle.
//!
//! Start at [`host`], everything that one data directory owns on this machine; then [`domain`], one runner and its fences.
//! Below them: [`network`] (veth, routes, the claim of addresses) and [`ways`] (to other nodes' pods) over [`netlink`]; [`nft`], the second judge; [`published`], sockets that it holds to accepting; [`mounts`]; [`tree`],
//! the domain's directory; [`cgroup`]. For an ordinary user: `user`, the ground under all of it, and [`broker`], the way out. Pure: [`names`], [`cidr`], [`pool`]. Beside them: [`check`], what this machine can do, and [`explain`], what was changed on it.
//!
//! Elsewhere: what runs in a runner and how it gives up its privileges (`copepod-runner`); pods, volumes and the journal (`copepod-agent`).
//! Invariant: whatever is made on the host carries the data directory's id, and [`host::Host::reset`] finds and undoes it.

mod authorities;
pub mod broker;
pub mod cgroup;
pub mod check;
pub mod cidr;
mod conntrack;
pub mod domain;
mod error;
pub mod explain;
pub mod host;
pub mod mounts;
pub mod names;
pub mod netlink;
pub mod network;
pub mod nft;
pub mod pool;
pub mod ports;
pub mod published;
mod sys;
pub mod tree;
mod user;
pub mod ways;

pub use check::{Check, check_host};
pub use cidr::{Blocks, Cidr};
pub use domain::{Adopted, Domain, DomainSpec, Heir, Limits, Network};
pub use error::HostError;
pub use host::{Host, HostConfig};
pub use mounts::{BindMount, Layers, Source};
pub use names::{DataId, DomainId};
pub use pool::{AddressPool, Slot};
pub use ports::{NoPorts, PodPort, Protocol};
pub use ways::{Surroundings, Way, WayChange};
