//! The one set of engine settings under which code is compiled and run.
//!
//! Both sides build their [`wasmtime::Config`] here, so a setting that changes compiled code cannot differ between them. The
//! proposals are the smallest set that runs WASI 0.1 and 0.2 programs of real toolchains: no threads, no GC, no exceptions, no
//! 64-bit memories, no stack switching (reliability.md 0.2: a tight set removes 15 of 41 known engine bugs).

use wasmtime::{Config, WasmFeatures};

/// Stack that a guest's own frames may use: 512 KiB, wasmtime's default.
pub const MAX_WASM_STACK: usize = 512 << 10;

/// The proposals that guests may use.
pub const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::CALL_INDIRECT_OVERLONG)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::BULK_MEMORY_OPT)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::COMPONENT_MODEL);

/// The settings that compiling and running share.
pub fn config() -> Config {
    let mut config = Config::new();
    config
        .wasm_features(WasmFeatures::all().difference(FEATURES), false)
        .wasm_features(FEATURES, true)
        .epoch_interruption(true)
        .consume_fuel(false)
        .max_wasm_stack(MAX_WASM_STACK)
        .generate_address_map(true)
        .native_unwind_info(true)
        .memory_reservation(4 << 30)
        .memory_guard_size(32 << 20)
        .concurrency_support(false);
    config
}
