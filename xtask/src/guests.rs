//! The guests: examples/, built by Rust for wasm, which the script `guest-rust` brings, by Go, and by Zig, which compiles C and C++ too.
//!
//! Absent: packing them into images, which `copepod image` does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::cache::{Cache, checkout};
use crate::command::{cargo, run, step};
use crate::go::Go;
use crate::pypi;

const PREVIEW1: &str = "wasm32-wasip1";
const PREVIEW2: &str = "wasm32-wasip2";

/// A guest: its package, its target, the name of cargo's output, the name it has afterwards.
struct Guest(&'static str, &'static str, &'static str, &'static str);

const GUESTS: [Guest; 12] = [
    Guest("hello-http", PREVIEW2, "hello_http", "hello-http"),
    Guest("http-cases", PREVIEW2, "http_cases", "http-cases"),
    Guest("axum-server", PREVIEW2, "axum-server", "axum"),
    Guest("pod-of-two-app", PREVIEW2, "pod_of_two_app", "pod-of-two-app"),
    Guest("pod-of-two-sidecar", PREVIEW2, "pod-of-two-sidecar", "pod-of-two-sidecar"),
    Guest("tcp-echo", PREVIEW2, "tcp-echo", "tcp-echo"),
    Guest("udp-echo", PREVIEW2, "udp-echo", "udp-echo"),
    Guest("axum-server", PREVIEW1, "axum-server", "axum-p1"),
    Guest("wasmedge-sockets", PREVIEW1, "wasmedge-sockets", "wasmedge-sockets"),
    Guest("batch", PREVIEW1, "batch", "batch"),
    Guest("probe", PREVIEW2, "probe", "probe"),
    Guest("probe", PREVIEW1, "probe", "probe-p1"),
];

/// The C, C++ and Zig compiler, from PyPI.
const ZIG: &str = "ziglang==0.17.1";

/// A guest that Zig builds: its command, its source in examples/, its name.
struct ZigGuest(&'static str, &'static str, &'static str);

const ZIG_GUESTS: [ZigGuest; 3] = [
    ZigGuest("cc", "c-echo/main.c", "c-echo"),
    ZigGuest("c++", "cpp-hello/main.cpp", "cpp-hello"),
    ZigGuest("build-exe", "zig-hello/main.zig", "zig-hello"),
];

/// Modules of Go: their folder in examples/, which is their name too.
const GO_GUESTS: [&str; 1] = ["go-http"];

/// Builds what changed; the folder of `<name>.wasm` files.
pub(crate) fn build(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.guests();
    let stamp = folder.join("made-of");
    let sources = digest(&checkout().join("examples"))?;
    let names = GUESTS.iter().map(|guest| guest.3);
    let mut names = names.chain(ZIG_GUESTS.iter().map(|guest| guest.2)).chain(GO_GUESTS);
    let have = |name: &str| folder.join(name).with_extension("wasm").exists();
    if fs::read_to_string(&stamp).is_ok_and(|made_of| made_of == sources) && names.all(have) {
        return Ok(folder);
    }
    bring_compiler(cache)?;
    for target in [PREVIEW1, PREVIEW2] {
        step(&format!("building the guests for {target}"), || compile(cache, target))?;
    }
    fs::create_dir_all(&folder)?;
    for Guest(_, target, made, name) in &GUESTS {
        let made =
            cache.guests_target().join(target).join("release").join(made).with_extension("wasm");
        let to = folder.join(name).with_extension("wasm");
        fs::copy(&made, &to).with_context(|| format!("{} was not built", made.display()))?;
    }
    step("building the guest in Go", || {
        GO_GUESTS.iter().try_for_each(|name| compile_go(name, &folder))
    })?;
    let zig = pypi::program(cache, ZIG, "ziglang/zig")?;
    step("building the guests in C, C++ and Zig", || {
        ZIG_GUESTS.iter().try_for_each(|guest| compile_zig(cache, &zig, guest, &folder))
    })?;
    fs::write(stamp, sources)?;
    Ok(folder)
}

fn compile_go(name: &str, folder: &Path) -> Result<()> {
    let module = checkout().join("examples").join(name);
    let mut go = Go::find(&module, "A guest is", "")?.command(&module);
    go.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(folder.join(name).with_extension("wasm"))
        .env("GOOS", "wasip1")
        .env("GOARCH", "wasm")
        // Its module is not one of whoever calls.
        .env("GOWORK", "off")
        .env_remove("GOFLAGS");
    run(&mut go)
}

fn compile_zig(cache: &Cache, zig: &Path, guest: &ZigGuest, folder: &Path) -> Result<()> {
    let ZigGuest(how, source, name) = guest;
    let source = checkout().join("examples").join(source);
    let to = folder.join(name).with_extension("wasm");
    let mut command = Command::new(zig);
    command.arg(how).arg(source);
    match *how {
        "build-exe" => command
            .args(["-target", "wasm32-wasi", "-O", "ReleaseSmall"])
            .arg(format!("-femit-bin={}", to.display())),
        // Zig's C++ has no exceptions for wasm; C has none anyway.
        _ => command.args(["--target=wasm32-wasi", "-O2", "-s", "-fno-exceptions", "-o"]).arg(&to),
    };
    command.env("ZIG_GLOBAL_CACHE_DIR", cache.peers().join("zig"));
    command.env("ZIG_LOCAL_CACHE_DIR", cache.peers().join("zig"));
    run(&mut command)
}

/// Rust for both wasm targets: does nothing where it is installed.
fn bring_compiler(cache: &Cache) -> Result<()> {
    step("Rust for wasm32-wasip1 and wasm32-wasip2", || {
        run(Command::new("bash")
            .arg(checkout().join("xtask/guest-rust"))
            .arg("install")
            .env("GUEST_RUST_DIR", cache.guest_rust()))
    })
}

fn compile(cache: &Cache, target: &str) -> Result<()> {
    let mut command = cargo(&cache.guests_target());
    command
        // From here, so that the flags of examples/.cargo/config.toml are seen.
        .current_dir(checkout().join("examples"))
        .env("RUSTC", cache.guest_rust().join("bin/rustc"))
        .args(["build", "--locked", "--release", "--target", target]);
    for variable in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(variable);
    }
    for Guest(package, ..) in GUESTS.iter().filter(|guest| guest.1 == target) {
        command.args(["--package", package]);
    }
    run(&mut command)
}

/// One hash of all names and contents beneath `folder`.
fn digest(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content = fs::read(&file)?;
        hash.update(file.strip_prefix(folder)?.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(content.len().to_le_bytes());
        hash.update(content);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            // Where someone called cargo by hand.
            if entry.file_name() != "target" {
                collect(&entry.path(), files)?;
            }
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}
