//! The guests: examples/, built by Rust for wasm, which the script `guest-rust` brings, and by the tools of other languages
//! ([`compiled`], [`interpreted`]).
//!
//! Absent: packing them into images, which `copepod image` does.

mod compiled;
mod interpreted;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::cache::{Cache, checkout};
use crate::command::{cargo, run, step};

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

/// The toolbox, which is shipped beside `copepod`: a guest of the main workspace. Nothing is built anew where nothing changed.
pub(crate) fn toolbox(cache: &Cache, to: &Path) -> Result<()> {
    bring_compiler(cache)?;
    let made = cache.guests_target().join(PREVIEW2).join("release/copepod-toolbox.wasm");
    step("building the toolbox", || {
        let mut command = cargo_for_guests(cache, checkout());
        command
            .args(["build", "--locked", "--release", "--target", PREVIEW2])
            .args(["--package", "copepod-toolbox", "--bin", "copepod-toolbox"])
            // Its bytes are read at each node's first exec; names of functions stay for backtraces.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
            .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
        run(&mut command)
    })?;
    let bytes = fs::read(&made).with_context(|| format!("{} was not built", made.display()))?;
    // One that is the same keeps its time, by which an agent knows it.
    if !fs::read(to).is_ok_and(|there| there == bytes) {
        fs::write(to, bytes)?;
    }
    Ok(())
}

/// Builds what changed of the guests in Rust; the folder of `<name>.wasm` files.
pub(crate) fn build(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.guests();
    let stamp = folder.join("made-of");
    let sources = digest(&checkout().join("examples"))?;
    let mut names = GUESTS.iter().map(|guest| guest.3);
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
    fs::write(stamp, sources)?;
    Ok(folder)
}

/// The same, and the guests of other languages, whose tools are asked for only here.
pub(crate) fn build_all(cache: &Cache) -> Result<PathBuf> {
    let folder = build(cache)?;
    compiled::build(cache, &folder)?;
    interpreted::build(cache, &folder)?;
    Ok(folder)
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
    // From here, so that the flags of examples/.cargo/config.toml are seen.
    let mut command = cargo_for_guests(cache, &checkout().join("examples"));
    command.args(["build", "--locked", "--release", "--target", target]);
    for Guest(package, ..) in GUESTS.iter().filter(|guest| guest.1 == target) {
        command.args(["--package", package]);
    }
    run(&mut command)
}

/// Cargo with the compiler for guests, in a folder.
fn cargo_for_guests(cache: &Cache, folder: &Path) -> Command {
    let mut command = cargo(&cache.guests_target());
    command.current_dir(folder).env("RUSTC", cache.guest_rust().join("bin/rustc"));
    for variable in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(variable);
    }
    command
}

/// Has a guest of another language built, unless what lies there was made of the same source in the same way.
fn unless_made(
    folder: &Path,
    name: &str,
    how: &str,
    build: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<()> {
    let source = checkout().join("examples").join(name);
    let (to, stamp) =
        (folder.join(name).with_extension("wasm"), folder.join(format!("{name}.made-of")));
    let made_of = format!("{how} {}", digest(&source)?);
    if to.exists() && fs::read_to_string(&stamp).is_ok_and(|before| before == made_of) {
        return Ok(());
    }
    step(&format!("building {name}"), || build(&source, &to))?;
    Ok(fs::write(stamp, made_of)?)
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
