//! What the agent and a pod's runner share, and nothing that only one of them needs.
//!
//! Start at [`protocol`], the messages between the two; then [`wire`], their framing and descriptor passing;
//! [`kind`], what a wasm file is, read from its bytes; [`engine`], the one set of engine settings under which code
//! is compiled and run; [`seen`], the file that a guest's name for a
//! program stands for; [`stage`], the talk at a runner's birth; [`filters`], what a confined process leaves itself;
//! [`broker`], what an ordinary user's runners ask for sockets of the host's side; [`destination`], which addresses a
//! guest may send to at all.
//!
//! Elsewhere: running guests (`copepod-runner`), their network (`copepod-net`), everything privileged (`node/`).
//! Invariant: the feature `compile` and the feature `run` are never on in one program.

pub mod broker;
pub mod destination;
pub mod engine;
pub mod filters;
pub mod kind;
pub mod protocol;
pub mod seen;
pub mod stage;
pub mod wire;
