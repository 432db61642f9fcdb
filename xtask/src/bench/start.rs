//! How long until the first instruction of a fresh, cached program: ours as a component, the peers' as a static binary.
//!
//! Ours is told by the runner, in the same clock as the sender's; a peer's is the time of the whole command, which also ends
//! the container. That favours ours by the end, and the peer by nothing; the aims' factors are far larger. Absent: pulls.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::peers::{self, Containerd, IMAGE, Running};
use super::{Report, own_programs};
use crate::cache::Cache;
use crate::command::{output, step};
use crate::programs::Profile;
use crate::{debian, guests, programs};

/// Starts per round: of a peer, and of ours, which takes no time.
const PEER_STARTS: usize = 5;
const OUR_STARTS: usize = 200;

pub(crate) fn measure(cache: &Cache, rounds: usize) -> Result<Report> {
    let mut report = Report::default();
    let own = own_programs(cache)?;
    let built = programs::build(cache, Profile::Release)?;
    let guests = guests::build(cache)?;
    std::fs::create_dir_all(cache.peers())?;
    let folder = tempfile::tempdir_in(cache.peers())?;
    let bundle = peers::bundle(cache, folder.path())?;
    let crun = debian::program(cache, "crun", "crun")?;
    let runc = debian::program(cache, "runc", "runc")?;
    report.notes.push(peers::version(&crun, "--version"));
    report.notes.push(peers::version(&runc, "--version"));
    let containerd =
        step("starting containerd", || Containerd::start(cache, folder.path(), &bundle))?;
    report.notes.push(output(containerd.ctr().arg("--version"))?.trim().to_owned());

    let code = compile(&own.compile, &guests.join("probe.wasm"), folder.path())?;
    let socket = folder.path().join("runner.sock");
    let _runner = start_runner(&built.runner, folder.path(), &socket)?;

    for round in 1..=rounds {
        step(&format!("round {round} of {rounds}"), || {
            let times = output(
                Command::new(&own.start_instances)
                    .arg(&socket)
                    .arg(&code)
                    .arg(OUR_STARTS.to_string()),
            )?;
            for time in serde_json::from_str::<Vec<i64>>(&times)? {
                report.sample(
                    "copepod: message to the runner, until the first instruction",
                    "µs",
                    time as f64,
                );
            }
            for n in 0..PEER_STARTS {
                let id = format!("bench-{}-{round}-{n}", std::process::id());
                // Hybrid cgroups are refused by Debian 12's crun; without any it is faster, which is its gain.
                timed(
                    &mut report,
                    "crun run",
                    Command::new(&crun)
                        .args(["--cgroup-manager=disabled", "run", "--bundle"])
                        .arg(&bundle)
                        .arg(&id),
                );
                timed(
                    &mut report,
                    "runc run",
                    Command::new(&runc).args(["run", "--bundle"]).arg(&bundle).arg(&id),
                );
                timed(
                    &mut report,
                    "ctr run",
                    containerd.ctr().args(["run", "--rm", IMAGE, &id, "/bin/true"]),
                );
            }
            Ok(())
        })?;
    }
    Ok(report)
}

/// Compiled code under the name that a runner looks for, in the folder where it looks; that name.
fn compile(compiler: &Path, wasm: &Path, root: &Path) -> Result<String> {
    let bytes = std::fs::read(wasm)?;
    let name: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = root.join("code");
    std::fs::create_dir_all(&folder)?;
    let status = Command::new(compiler)
        .arg(folder.join(&name).with_extension("cwasm"))
        .stdin(std::fs::File::open(wasm)?)
        .status()
        .context("cannot start the compiler")?;
    anyhow::ensure!(status.success(), "the guest does not compile");
    Ok(name)
}

/// A runner without its fences, which cost nothing at a container's start.
fn start_runner(program: &Path, root: &Path, socket: &Path) -> Result<Running> {
    let runner = Running::start(
        Command::new(program)
            .args(["--unconfined", "--root"])
            .arg(root)
            .arg("--socket")
            .arg(socket),
    )?;
    let begin = Instant::now();
    while !socket.exists() {
        anyhow::ensure!(begin.elapsed().as_secs() < 30, "the runner does not listen");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(runner)
}

/// Runs a peer's command and takes its time, or notes once that it does not run here.
fn timed(report: &mut Report, name: &str, command: &mut Command) {
    let begin = Instant::now();
    let result = output(command);
    let took = begin.elapsed();
    match result {
        Ok(_) => report.sample(name, "µs", took.as_secs_f64() * 1e6),
        Err(error) => {
            let note = format!("{name} does not run here: {error:#}");
            let known = |it: &String| it.starts_with(&format!("{name} does not"));
            if !report.notes.iter().any(known) {
                report.notes.push(note);
            }
        }
    }
}
