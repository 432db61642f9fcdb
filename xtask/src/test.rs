//! `cargo xtask test`: format, lints, unit tests of both feature groups, and the end-to-end tests over the built programs.
//!
//! The last line is `N passed, N failed`, with `, N skipped` where something was. Absent: the tests themselves.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use copepod_tests::cluster::ASSETS;

use crate::cache::{Cache, checkout};
use crate::command::{cargo, missing, output, step};
use crate::kube::Set;
use crate::programs::Profile;
use crate::{debian, guests, kube, programs};

/// The packages that are built by themselves, without a compiler's features.
const RUNNER_GROUP: [&str; 2] = ["copepod-net", "copepod-runner"];
/// The end-to-end tests' package.
const END_TO_END: &str = "copepod-tests";

/// The end-to-end tests of this module run against a control plane of Kubernetes.
const CLUSTER: &str = "kube::";

/// What came of the tests so far.
#[derive(Default)]
struct Tally {
    passed: u64,
    skipped: u64,
    failed: Vec<String>,
}

/// Runs all tests, or `only` these; the `long` ones too, which are ignored otherwise.
pub(crate) fn run(cache: &Cache, only: Option<&str>, long: bool) -> Result<ExitCode> {
    let begin = Instant::now();
    let mut tally = Tally::default();
    if let Err(error) = tally.all(cache, only, long) {
        eprintln!("error: {error:#}");
        tally.failed.push(format!("set-up: {error:#}"));
    }
    for failed in &tally.failed {
        println!("failed: {failed}");
    }
    println!("{:.0} s", begin.elapsed().as_secs_f64());
    println!("{}", tally.summary());
    Ok(if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `cargo test` for the end-to-end tests, with all that they need built and named in the environment.
fn end_to_end_tests(cache: &Cache) -> Result<Command> {
    let programs = programs::build(cache, Profile::Dev)?;
    let guests = guests::build_all(cache)?;
    let nft = debian::program(cache, "nftables", "nft")?;
    let registry = debian::program(cache, "docker-registry", "docker-registry")?;
    let mut command = cargo(&cache.target());
    command
        .args(["test", "--locked", "--package", END_TO_END, "--no-fail-fast"])
        .env("COPEPOD_BIN", programs.copepod)
        .env("COPEPOD_RUNNER", programs.runner)
        .env("COPEPOD_GUESTS", guests)
        .env("COPEPOD_REGISTRY", registry)
        .env("COPEPOD_NFT", nft);
    Ok(command)
}

/// Whether a test that needs a control plane has `filter` in its name.
fn need_a_cluster(cache: &Cache, filter: &str) -> Result<bool> {
    let mut command = cargo(&cache.target());
    command.args(["test", "--locked", "--package", END_TO_END, "--", "--list", filter]);
    // Where it builds them, cargo says so.
    let listed = output(command.stderr(Stdio::inherit()))?;
    Ok(listed.lines().any(|line| line.starts_with(CLUSTER)))
}

fn default_group() -> Vec<String> {
    let excluded =
        RUNNER_GROUP.iter().flat_map(|package| ["--exclude".to_owned(), (*package).to_owned()]);
    ["--workspace".to_owned()].into_iter().chain(excluded).collect()
}

fn runner_group() -> Vec<String> {
    RUNNER_GROUP
        .iter()
        .flat_map(|package| ["--package".to_owned(), (*package).to_owned()])
        .collect()
}

impl Tally {
    fn all(&mut self, cache: &Cache, only: Option<&str>, long: bool) -> Result<()> {
        let ignored = long.then_some("--include-ignored");
        let asked = |name: &str| only.is_none_or(|only| only == name);
        let target = cache.target();
        if asked("fmt") {
            let guests = checkout().join("examples/Cargo.toml");
            self.check("rustfmt", cargo(&target).args(["fmt", "--all", "--check"]))?;
            self.check(
                "rustfmt of the guests",
                cargo(&target).args(["fmt", "--all", "--check", "--manifest-path"]).arg(guests),
            )?;
        }
        if asked("clippy") {
            let lints = ["--all-targets", "--locked", "--", "--deny", "warnings"];
            self.check("clippy", cargo(&target).arg("clippy").args(default_group()).args(lints))?;
            self.check(
                "clippy of the runner",
                cargo(&target).arg("clippy").args(runner_group()).args(lints),
            )?;
        }
        if asked("unit") {
            // Those of the agent's side start runners, and those of the runner's side serve guests.
            let programs = programs::build(cache, Profile::Dev)?;
            let guests = guests::build_all(cache)?;
            let nft = debian::program(cache, "nftables", "nft")?;
            let all = ["--locked", "--no-fail-fast"];
            let unit = |group: Vec<String>| {
                let mut command = cargo(&target);
                command.arg("test").args(group).args(all);
                command.env("COPEPOD_RUNNER", &programs.runner);
                command.env("COPEPOD_COMPILE_FOR_TESTS", &programs.compiler_of_tests);
                command.env("COPEPOD_GUESTS", &guests).env("COPEPOD_NFT", &nft);
                command
            };
            let mut group = default_group();
            group.extend(["--exclude".to_owned(), END_TO_END.to_owned()]);
            self.tests("unit tests", unit(group).arg("--").args(ignored))?;
            // Those that need guests are ignored where nobody brings them.
            let mut runner = unit(runner_group());
            runner.args(["--", "--include-ignored"]);
            self.tests("unit tests of the runner", &mut runner)?;
        }
        let end_to_end = match only {
            None | Some("e2e") => Some(""),
            Some("fmt" | "clippy" | "unit") => None,
            Some(filter) => Some(filter),
        };
        if let Some(filter) = end_to_end {
            let mut command = end_to_end_tests(cache)?;
            if need_a_cluster(cache, filter)? {
                command.env(ASSETS, kube::bring(cache, Set::ControlPlane)?);
            }
            // Each test has a data directory, namespaces and processes of its own: two at a time on two cores.
            command.args(["--", "--test-threads", "2", filter]).args(ignored);
            self.tests("end-to-end tests", &mut command)?;
        }
        Ok(())
    }

    /// A command that holds or does not: one test.
    fn check(&mut self, name: &str, command: &mut Command) -> Result<()> {
        step(name, || {
            let status =
                command.stdin(Stdio::null()).status().map_err(|error| missing(command, error))?;
            if status.success() {
                self.passed += 1;
            } else {
                self.failed.push(name.to_owned());
            }
            Ok(())
        })
    }

    /// A `cargo test`: what its programs' summaries say.
    fn tests(&mut self, name: &str, command: &mut Command) -> Result<()> {
        step(name, || {
            let mut child = command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|error| missing(command, error))?;
            let failed_before = self.failed.len();
            let out = child.stdout.take().context("the test's output is piped")?;
            for line in BufReader::new(out).split(b'\n') {
                let line = line?;
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                self.read(name, &line);
            }
            // A program that did not build, or died without a summary, has no line of its own.
            let status = child.wait()?;
            if !status.success() && self.failed.len() == failed_before {
                self.failed.push(format!(
                    "{name}: {status} without a failed test: it did not build, or died"
                ));
            }
            Ok(())
        })
    }

    /// One line of what a test program prints.
    fn read(&mut self, group: &str, line: &str) {
        if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failed.push(format!("{group}: {name}"));
        } else if let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        {
            for count in counts.split("; ") {
                match count.split_once(' ') {
                    Some((n, "passed")) => self.passed += n.parse().unwrap_or(0),
                    Some((n, "ignored")) => self.skipped += n.parse().unwrap_or(0),
                    _ => {}
                }
            }
        }
    }

    fn summary(&self) -> String {
        let mut line = format!("{} passed, {} failed", self.passed, self.failed.len());
        if self.skipped > 0 {
            line.push_str(&format!(", {} skipped", self.skipped));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_adds_up_what_the_test_programs_say_and_names_what_failed() {
        let mut tally = Tally::default();

        for line in [
            "running 3 tests",
            "test wire::tests::a_frame_too_long_is_refused ... ok",
            "test pod::tests::a_pod_stops ... FAILED",
            "test slow ... ignored",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.00s",
        ] {
            tally.read("unit tests", line);
        }

        assert_eq!(tally.summary(), "5 passed, 1 failed, 1 skipped");
        assert_eq!(tally.failed, ["unit tests: pod::tests::a_pod_stops"]);
    }

    #[test]
    fn a_run_without_skipped_tests_does_not_mention_them() {
        let tally = Tally { passed: 2, skipped: 0, failed: Vec::new() };

        assert_eq!(tally.summary(), "2 passed, 0 failed");
    }
}
