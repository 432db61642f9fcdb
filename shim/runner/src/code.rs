//! Compiled code of one module, linked and ready to be instantiated.
//!
//! Absent: compiling. Code comes from `/code`, which the agent alone writes.

use wasmtime::{Engine, InstancePre};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::guest::{GuestState, Preview1State};

/// One module's code by the way that it is run.
pub enum Code {
    /// Of the pooling engine: an instance per request.
    Http(ProxyPre<GuestState>),
    /// Of the on-demand engine: an instance per container.
    Command(CommandPre<GuestState>),
    /// As `Command`, for a preview1 module.
    Preview1(InstancePre<Preview1State>),
}

impl Code {
    /// The engine that the code was loaded into; stores for it are of this engine and no other.
    pub fn engine(&self) -> &Engine {
        match self {
            Self::Http(pre) => pre.engine(),
            Self::Command(pre) => pre.engine(),
            Self::Preview1(pre) => pre.module().engine(),
        }
    }
}
