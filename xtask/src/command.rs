//! Running other programs: with progress, and with a word about what brings one that is missing.
//!
//! Absent: shells. Every command is a program and its arguments.

use std::io::ErrorKind;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Says what begins, runs it, says how long it took.
pub(crate) fn step<T>(what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {what}");
    let begin = Instant::now();
    let result = act().with_context(|| what.to_owned())?;
    eprintln!("    {:.1} s: {what}", begin.elapsed().as_secs_f64());
    Ok(result)
}

/// `cargo`, in the checkout, building into `target`.
pub(crate) fn cargo(target: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::cache::checkout()).env("CARGO_TARGET_DIR", target);
    // What cargo told this task about its own package must not reach the build scripts of others.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs it to its end with its output shown; an error where it failed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().map_err(|error| missing(command, error))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs it to its end; its output, or an error with the last of what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().map_err(|error| missing(command, error))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        let lines: Vec<&str> = said.trim_end().lines().collect();
        bail!(
            "{} ended with {status}: {}",
            shown(command),
            lines[lines.len().saturating_sub(5)..].join("\n")
        );
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// What to tell where a program could not be started.
pub(crate) fn missing(command: &Command, error: std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy().into_owned();
    if error.kind() != ErrorKind::NotFound {
        return anyhow::Error::new(error).context(format!("cannot start {program}"));
    }
    let bring = match program.as_str() {
        "apt-get" | "apt-cache" | "dpkg" | "dpkg-deb" => {
            "this task unpacks Debian packages: run it on Debian or a system made from it"
                .to_owned()
        }
        "bash" => "bring it with: apt-get install bash".to_owned(),
        "npm" | "node" => "bring it with: apt-get install nodejs npm".to_owned(),
        "python3" | "pip" => "bring it with: apt-get install python3-pip".to_owned(),
        other => format!("bring it to the PATH first ({other} is not there)"),
    };
    anyhow::anyhow!("{program} is missing: {bring}")
}

fn shown(command: &Command) -> String {
    let arguments: Vec<_> =
        command.get_args().map(|it| it.to_string_lossy().into_owned()).collect();
    let mut line = format!("{} {}", command.get_program().to_string_lossy(), arguments.join(" "));
    if line.len() > 200 {
        line.truncate((0..=200).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0));
        line.push_str("...");
    }
    line
}
