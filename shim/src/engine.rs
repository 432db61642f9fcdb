//! The one set of engine settings under which code is compiled and run.
//!
//! Both sides build their [`wasmtime::Config`] here, so a setting that changes compiled code cannot differ between them. The
//! proposals are the smallest set that runs WASI 0.1 and 0.2 programs of real toolchains: no threads, no GC, no exceptions, no
//! 64-bit memories, no stack switching (reliability.md 0.2: a tight set removes 15 of 41 known engine bugs).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wasmtime::{Config, ModuleVersionStrategy, WasmFeatures};

/// The engine's version, to its patch: what wasmtime itself writes into code is its major version only, and a patch may mend the
/// compiler, after which nothing that was compiled before is to be run.
const WASMTIME: &str = "48.0.8";

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
    // Python's components, and LLVM's generic set (lime1).
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::COMPONENT_MODEL);

/// Makes of an engine another one, whose code no other loads, although nothing else differs: so that an upgrade of the engine can be
/// tried with one build. 1 to 64 letters, digits and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Salt(String);

impl FromStr for Salt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is no engine salt: 1 to 64 letters, digits and `-`"))
        }
    }
}

impl TryFrom<String> for Salt {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Salt> for String {
    fn from(salt: Salt) -> Self {
        salt.0
    }
}

impl fmt::Display for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The settings that compiling and running share; `salt` is to be the same on both sides.
pub fn config(salt: Option<&Salt>) -> Config {
    let version = match salt {
        None => WASMTIME.to_owned(),
        Some(salt) => format!("{WASMTIME}+{salt}"),
    };
    let mut config = Config::new();
    config
        .module_version(ModuleVersionStrategy::Custom(version))
        .expect("it has at most 75 bytes, and 255 are allowed");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_in_compiled_code_is_that_of_the_engine_that_is_built_in() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock");

        let lock = std::fs::read_to_string(lock).expect("the workspace has one");

        assert!(
            lock.contains(&format!("name = \"wasmtime\"\nversion = \"{WASMTIME}\"\n")),
            "wasmtime was upgraded: write its version into WASMTIME"
        );
    }

    #[test]
    fn a_salt_is_what_can_stand_on_a_command_line() {
        assert_eq!("next-1".parse::<Salt>().map(|salt| salt.to_string()), Ok("next-1".into()));
        for bad in ["", "a b", "a/b", "--\n", &"x".repeat(65)] {
            assert!(bad.parse::<Salt>().is_err(), "{bad:?}");
        }
    }
}
