//! The project's own tasks: `cargo xtask build | guests | kube | test | demo | bench | install | uninstall`.
//!
//! Here: set-up on a fresh machine into [`cache`], then one module per task. What is set up by whom: [`programs`] are ours,
//! [`guests`] are the examples, [`kube`] builds Kubernetes, [`debian`] and [`pypi`] unpack other people's programs. Deliberately absent: anything installed on the
//! machine (but by `install`), and anything that looks outside the checkout and the cache.

// A task talks to the person who runs it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod cache;
mod command;
mod debian;
mod demo;
mod go;
mod guests;
mod install;
mod kube;
mod programs;
mod pypi;
mod test;

use std::process::ExitCode;

use clap::Parser;

use crate::cache::Cache;
use crate::programs::Profile;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tasks.")]
enum Task {
    /// Build `copepod`, `copepod-runner` and the toolbox side by side.
    Build {
        /// Optimised.
        #[arg(long)]
        release: bool,
    },
    /// Build the guests in examples/, of every language.
    Guests,
    /// Build Kubernetes' own programs, for tests against a real control plane. Needs Go.
    Kube {
        #[command(subcommand)]
        ask: Option<kube::Ask>,
    },
    /// The whole story once: a pod of two from a registry, asked while its agent is killed. Needs root.
    Demo {
        /// On a node of a real Kubernetes: Deployments, scaling, kubectl, an upgrade under load. Needs Go.
        #[arg(long)]
        kube: bool,
    },
    /// Everything that must hold: format, lints, unit tests, end-to-end tests. Needs root for the last.
    Test {
        /// Only this: fmt, clippy, unit, e2e, or a part of an end-to-end test's name.
        only: Option<String>,
        /// Also the tests that take minutes.
        #[arg(long)]
        long: bool,
    },
    /// Figures of ours beside those of peers, taken in turn in one run. Needs root.
    Bench {
        /// What to measure.
        what: bench::What,
        /// How often each is taken; never less than five times.
        #[arg(long, default_value_t = bench::ROUNDS)]
        rounds: usize,
        #[command(flatten)]
        narrow: bench::Narrow,
    },
    /// Time a command, again and again.
    #[command(hide = true)]
    Time {
        /// How often.
        count: usize,
        /// The program and its arguments.
        #[arg(last = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// Print where a program of a Debian package is: on the PATH, or unpacked into the cache.
    Debian {
        /// The package.
        package: String,
        /// The program.
        program: String,
    },
    /// Put an optimised `copepod`, `copepod-runner` and the toolbox into PREFIX/bin.
    Install {
        /// Where to.
        #[arg(long, default_value = "/usr/local")]
        prefix: std::path::PathBuf,
    },
    /// Take them out again.
    Uninstall {
        /// Where from.
        #[arg(long, default_value = "/usr/local")]
        prefix: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    match perform(Task::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> anyhow::Result<ExitCode> {
    let cache = Cache::open()?;
    match task {
        Task::Build { release } => {
            let built = programs::build(&cache, Profile::of(release))?;
            println!("{}", built.copepod.display());
            println!("{}", built.runner.display());
            println!("{}", built.toolbox.display());
        }
        Task::Guests => println!("{}", guests::build_all(&cache)?.display()),
        Task::Kube { ask } => kube::run(&cache, ask.as_ref())?,
        Task::Demo { kube } => demo::run(&cache, kube)?,
        Task::Test { only, long } => return test::run(&cache, only.as_deref(), long),
        Task::Bench { what, rounds, narrow } => bench::run_one(&cache, what, rounds, &narrow)?,
        Task::Time { count, command } => bench::print_times(count, &command)?,
        Task::Debian { package, program } => {
            println!("{}", debian::program(&cache, &package, &program)?.display());
        }
        Task::Install { prefix } => install::install(&cache, &prefix)?,
        Task::Uninstall { prefix } => install::uninstall(&prefix)?,
    }
    Ok(ExitCode::SUCCESS)
}
