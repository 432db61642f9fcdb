//! The pure core of a pod's life: values in, decisions out.
//!
//! Start at [`life`], which holds one pod and says by [`life::PodLife::plan`] what to do next; [`status`] reports it as
//! Kubernetes does. [`fields`] is the table of every pod field, [`defaults`] and [`validate`] are what an API server does to
//! a pod before a node sees it; [`mod@env`], [`volumes`], [`resolve`] and [`pull_secrets`] turn references into values;
//! [`host_ports`] is what it wants of its node's ports; [`containers`] are all of a pod's, whichever list they are in.
//!
//! Here: the life of a pod and its containers, their status, the table of fields.
//! Elsewhere: doing what `plan` says (`agent`), pulling (`image`), the network (`domain`), running wasm (`shim`).
//! Invariant: no I/O, no clock and no randomness; time comes in as `now`.

pub mod annotations;
pub mod containers;
pub mod defaults;
pub mod env;
pub mod fields;
pub mod host_ports;
pub mod life;
pub mod name;
pub mod objects;
pub mod pull_secrets;
pub mod quantity;
pub mod refusal;
pub mod resolve;
pub mod status;
pub mod validate;
pub mod volumes;

pub use name::ContainerName;
pub use refusal::Refusal;
