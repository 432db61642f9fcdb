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
    Command(Program<CommandPre<GuestState>>),
    /// As `Command`, for a preview1 module.
    Preview1(Program<InstancePre<Preview1State>>),
}
