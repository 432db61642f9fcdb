//! Guests of Go, and of Zig, which compiles C and C++ too.
//!
//! Absent: bringing Go; it is what builds Kubernetes for the tests as well.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::unless_made;
use crate::cache::Cache;
use crate::command::run;
use crate::go::Go;
use crate::pypi;

/// The C, C++ and Zig compiler, from PyPI.
const ZIG: &str = "ziglang==0.17.1";

/// What Zig builds: a folder of examples/, which is the guest's name too; the file in it; Zig's command.
const ZIG_GUESTS: [(&str, &str, &str); 3] = [
    ("c-echo", "main.c", "cc"),
    ("cpp-hello", "main.cpp", "c++"),
    ("zig-hello", "main.zig", "build-exe"),
];

/// Modules of Go in examples/.
const GO_GUESTS: [&str; 1] = ["go-http"];

/// Builds what changed.
pub(super) fn build(cache: &Cache, folder: &Path) -> Result<()> {
    for name in GO_GUESTS {
        unless_made(folder, name, "go", compile_go)?;
    }
    let zig = pypi::program(cache, ZIG, "ziglang/zig")?;
    for (name, file, how) in ZIG_GUESTS {
        unless_made(folder, name, &format!("{ZIG} {how}"), |source, to| {
            compile_zig(cache, &zig, how, &source.join(file), to)
        })?;
    }
    Ok(())
}

fn compile_go(module: &Path, to: &Path) -> Result<()> {
    let mut go = Go::find(module, "A guest is", "")?.command(module);
    go.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(to)
        .env("GOOS", "wasip1")
        .env("GOARCH", "wasm")
        // Its module is not one of whoever calls.
        .env("GOWORK", "off")
        .env_remove("GOFLAGS");
    run(&mut go)
}

fn compile_zig(cache: &Cache, zig: &Path, how: &str, source: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new(zig);
    command.arg(how).arg(source);
    match how {
        "build-exe" => command
            .args(["-target", "wasm32-wasi", "-O", "ReleaseSmall"])
            .arg(format!("-femit-bin={}", to.display())),
        // Zig's C++ has no exceptions for wasm; C has none anyway.
        _ => command.args(["--target=wasm32-wasi", "-O2", "-s", "-fno-exceptions", "-o"]).arg(to),
    };
    command.env("ZIG_GLOBAL_CACHE_DIR", cache.peers().join("zig"));
    command.env("ZIG_LOCAL_CACHE_DIR", cache.peers().join("zig"));
    run(&mut command)
}
