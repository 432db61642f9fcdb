//! Compiles guests for the runner's own tests: `compile-for-tests OUT.cwasm < guest.wat-or-wasm`.
//!
//! Absent: every limit that the real compile child has.

use std::io::{Error, Read, Result};

use wasmtime::Engine;

fn main() -> Result<()> {
    let out = std::env::args_os().nth(1).ok_or_else(|| Error::other("where to?"))?;
    let mut guest = Vec::new();
    std::io::stdin().read_to_end(&mut guest)?;
    let wasm = wat::parse_bytes(&guest).map_err(Error::other)?;
    let engine = Engine::new(&copepod_shim::engine::config(None)).map_err(Error::other)?;
    // Byte 6 of the header tells a component from a module.
    let code = if wasm.get(6) == Some(&1) {
        engine.precompile_component(&wasm)
    } else {
        engine.precompile_module(&wasm)
    };
    std::fs::write(out, code.map_err(Error::other)?)
}
