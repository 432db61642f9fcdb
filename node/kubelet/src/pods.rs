//! The pods bound to this node: from the API server to the agent, and what they come to, back.
//!
//! Start at [`Keeper`], the one task that knows both sides of every pod, in its [`roster`]; [`plan`] says what is to be done next about one, [`patch`]
//! what its status in the API lacks. Each step is a task of its own, and a pod has one at a time, so that what is written of it is
//! written in order. [`references`] brings what pods refer to, [`events`] takes what happened to them to the API, [`told`]
//! is the list that the node's own API shows, and [`figures`] is what it counts.
//!
//! Here: whose pods are whose. Elsewhere: running them (`copepod-agent`), the node itself (`crate::register`).
//! Invariant: a pod of the agent's is forgotten only because the API server said, by a watch event or in a complete list, that it is
//! gone; never because of a list that failed, is old or is empty by mistake.

pub mod events;
pub mod figures;
pub mod keeper;
pub mod patch;
pub mod plan;
pub mod references;
pub mod refused;
pub mod roster;
pub mod seen;
pub mod told;

pub use keeper::{Keeper, KeeperSettings};
pub use told::Book;
