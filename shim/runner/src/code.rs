//! Compiled code of one module, linked and ready to be instantiated.
//!
//! Absent: compiling. Code comes from `/code`, which the agent alone writes.

use wasmtime::InstancePre;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::guest::{GuestState, Preview1State};
use crate::program::Program;

/// One module's code by the way that it is run.
pub enum Code {
    /// Of the pooling engine: an instance per request.
    Http(ProxyPre<GuestState>),
    /// An instance per container, of the on-demand engine until it has shown to end soon.
    Command {
        /// It.
        program: Program<CommandPre<GuestState>>,
        /// Whether it imports what a server needs.
        listens: bool,
    },
    /// As `Command`, for a preview1 module.
    Preview1 {
        /// It.
        program: Program<InstancePre<Preview1State>>,
        /// Whether it imports what accepts connections, and nothing that opens sockets of its own: then it is given some.
        accepts: bool,
        /// Whether it imports what opens sockets of its own.
        opens: bool,
        /// Whether it imports what waits for one of several things.
        polls: bool,
    },
}

impl Code {
    /// Whether it can serve on the sockets of its declared ports.
    pub fn accepts(&self) -> bool {
        matches!(self, Self::Preview1 { accepts: true, .. })
    }

    /// Whether it could listen on a port at all, by what it imports.
    pub fn can_listen(&self) -> bool {
        match self {
            Self::Http(_) => true,
            Self::Command { listens, .. } => *listens,
            Self::Preview1 { accepts, opens, .. } => *accepts || *opens,
        }
    }
}
