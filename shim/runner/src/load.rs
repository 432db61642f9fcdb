//! Mapping compiled code into the process: the one place where bytes of a file become instructions.

#![allow(unsafe_code)]

use std::path::Path;

use wasmtime::component::Component;
use wasmtime::{Engine, Module};

/// Maps a component's compiled code.
///
/// # Errors
/// No such file, or it was compiled by another engine or with other settings.
pub(crate) fn component(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the files in `/code` are written by the agent's compile child alone, renamed into place once whole, never
    // changed afterwards, and mounted read-only in the runner's tree, so they are what this engine's version serialised.
    unsafe { Component::deserialize_file(engine, path) }
}

/// Maps a core module's compiled code.
///
/// # Errors
/// As [`component`].
pub(crate) fn module(engine: &Engine, path: &Path) -> wasmtime::Result<Module> {
    // SAFETY: as above.
    unsafe { Module::deserialize_file(engine, path) }
}
