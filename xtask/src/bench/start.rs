//! How long until the first instruction of a fresh, cached program: ours as a component, the peers' as a static binary.
//!
//! Ours is told by the runner, in the same clock as the sender's; a peer's is the time of the whole command, which also ends
//! the container. That favours ours by the end, and the peer by nothing; the aims' factors are far larger. Absent: pulls.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use copepod_tests::built::Built;
use copepod_tests::manifest::{pod, probe};
use copepod_tests::node::Node;
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
/// Milliseconds between two of our starts: a runner gives a start its first slice of time at once where the last such was some
/// milliseconds ago, and else wakes another thread for it.
const OUR_PAUSES: [(&str, &str); 2] = [
    ("6", "copepod: message to the runner, until the first instruction"),
    ("0", "copepod: the same, one start upon the other"),
];
/// Whole pods of ours per round: each takes two commands.
const OUR_PODS: usize = 20;

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

    let (nft, registry) = (debian::program(cache, "nftables", "nft")?, "docker-registry".into());
    let node = Node::of(Built { copepod: built.copepod, guests: guests.clone(), registry, nft })
        .with_log("copepod_agent=debug");
    step("starting a node", || {
        node.load(&["probe"]);
        // The domain stands while it lives, as on a node with pods.
        node.start(&[pod("keeper", [probe(&["forever sleep 1000000"])])]);
        node.wait_ready("keeper");
        Ok(())
    })?;

    let code = compile(&own.compile, &guests.join("probe.wasm"), folder.path())?;
    let socket = folder.path().join("runner.sock");
    let _runner = start_runner(&built.runner, folder.path(), &socket)?;

    for round in 1..=rounds {
        step(&format!("round {round} of {rounds}"), || {
            for (pause_ms, of) in OUR_PAUSES {
                let mut starts = Command::new(&own.start_instances);
                starts.arg(&socket).arg(&code).arg(OUR_STARTS.to_string()).arg(pause_ms);
                for time in serde_json::from_str::<Vec<i64>>(&output(&mut starts)?)? {
                    report.sample(of, "µs", time as f64);
                }
            }
            our_pods(&mut report, &node)?;
            let id = format!("bench-{}", std::process::id());
            let oci = |program: &Path| {
                let mut command = without_hybrid_cgroups();
                command.arg(program).args(["run", "--bundle"]).arg(&bundle).arg(&id);
                command
            };
            let mut ctr = without_hybrid_cgroups();
            let ctr_itself = containerd.ctr();
            ctr.arg(ctr_itself.get_program()).args(ctr_itself.get_args());
            ctr.args(["run", "--rm", IMAGE, &id, "/bin/true"]);
            peer(&mut report, "crun run", &mut oci(&crun));
            peer(&mut report, "runc run", &mut oci(&runc));
            peer(&mut report, "ctr run", &mut ctr);
            Ok(())
        })?;
    }
    Ok(report)
}

/// Pods of one container each, one after the other, as the agent's log tells of their starts.
fn our_pods(report: &mut Report, node: &Node) -> Result<()> {
    let log = node.data().join("agent.log");
    let read = || std::fs::read_to_string(&log).with_context(|| format!("no {}", log.display()));
    let before = read()?.len();
    let names: Vec<String> = (0..OUR_PODS).map(|n| format!("pod-{n}")).collect();
    for name in &names {
        node.start(&[pod(name, [probe(&["exit 0"])])]);
        node.wait_over(name);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    node.ok(&[&["stop"], &names[..]].concat());
    let told = read()?.split_off(before);
    for (field, of) in [
        ("since_decided_us=", "copepod: the agent's decision, until the first instruction"),
        ("since_accepted_us=", "copepod: a pod accepted, until the first instruction"),
    ] {
        let found: Vec<f64> = told.lines().filter_map(|line| number_after(line, field)).collect();
        ensure!(found.len() == OUR_PODS, "the log tells of {} starts: {told}", found.len());
        found.into_iter().for_each(|time| report.sample(of, "µs", time));
    }
    Ok(())
}

/// The number that follows a mark in a line of the log.
fn number_after(line: &str, mark: &str) -> Option<f64> {
    line.split_once(mark)?.1.split_whitespace().next()?.parse().ok()
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
    ensure!(status.success(), "the guest does not compile");
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
        ensure!(begin.elapsed().as_secs() < 30, "the runner does not listen");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(runner)
}

/// Runs a command so many times, one after the other, and prints a JSON list of the seconds that each took.
pub(crate) fn print_times(count: usize, command: &[OsString]) -> Result<()> {
    let [program, arguments @ ..] = command else { bail!("what is to be timed is missing") };
    let mut times = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        output(Command::new(program).args(arguments))?;
        times.push(begin.elapsed().as_secs_f64());
    }
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}

/// This task's own timing loop, in a mount namespace without the unified hierarchy of a hybrid machine: Debian 12's crun
/// refuses to run beside it. The command to time is to be added.
fn without_hybrid_cgroups() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command.arg("! test -d /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec \"$@\"");
    command.arg("sh").arg(std::env::current_exe().unwrap_or_else(|_| "xtask".into()));
    command.args(["time", &PEER_STARTS.to_string(), "--"]);
    command
}

/// Takes a peer's times, or notes once that it does not run here.
fn peer(report: &mut Report, name: &str, command: &mut Command) {
    match output(command).and_then(|times| Ok(serde_json::from_str::<Vec<f64>>(&times)?)) {
        Ok(times) => times.iter().for_each(|time| report.sample(name, "µs", time * 1e6)),
        Err(error) => {
            let note = format!("{name} does not run here: {error:#}");
            if !report.notes.contains(&note) {
                report.notes.push(note);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_after_its_mark_and_up_to_the_next_space() {
        let line =
            "DEBUG copepod_agent: started attempt=0 since_decided_us=512 since_accepted_us=900";

        assert_eq!(number_after(line, "since_decided_us="), Some(512.0));
        assert_eq!(number_after(line, "since_accepted_us="), Some(900.0));
        assert_eq!(number_after(line, "absent="), None);
    }
}
