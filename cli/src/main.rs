//! `copepod`: WebAssembly pods on one machine.
//!
//! Start at [`args`], every command; then [`run`], which turns a [`manifest`] into running pods by way of [`client`], and
//! [`follow`], which stays with them; [`commands`] look at pods, [`images`] at images; [`show`] makes text of what they find.
//!
//! Here: the command line, manifests with their lines, what a person reads. Elsewhere: everything that makes a pod run
//! (`copepod-agent`, which this program also is when it is started as `__agent`); a node of a cluster (`copepod-kubelet`, which
//! [`node`] sets up).
//! Invariant: only [`out`] prints; what comes from guests and registries is made harmless before a terminal sees it, but logs.

mod args;
mod check;
mod client;
mod commands;
mod controllers;
mod data_dir;
mod docker_config;
mod exit;
mod follow;
mod images;
mod log_lines;
mod manifest;
mod needs;
mod node;
mod out;
mod publish;
mod pull_settings;
mod references;
mod run;
mod serve;
mod show;
mod streams;
mod wasm_pod;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command, Global};
use crate::client::Client;
use crate::commands::Failed;
use crate::data_dir::{Surroundings, data_dir};
use crate::out::{Format, Out};

fn main() -> ExitCode {
    // Before anything else: the compile child confines itself, and has arguments of its own.
    if std::env::args_os().nth(1).is_some_and(|first| first == "__compile") {
        return copepod_image::compile_child_main();
    }
    let cli = Cli::parse();
    let out = Out::new(cli.global.log_format);
    let data = data_dir(cli.global.data_dir.as_deref(), &Surroundings::here());
    let is_agent =
        matches!(cli.command, Command::Agent | Command::Node(_) | Command::Controllers(_));
    log(&cli.global, is_agent);
    if matches!(cli.command, Command::Broker) {
        return ExitCode::from(serve::broker(out));
    }
    if let Command::Node(args) = &cli.command {
        return ExitCode::from(node::node(out, cli.global.data_dir.as_deref(), args));
    }
    if matches!(cli.command, Command::Agent) {
        // Enters namespaces, which has to happen before there is a second thread.
        return ExitCode::from(serve::agent(out, data));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let code = match runtime {
        Ok(runtime) => runtime.block_on(command(out, data, cli)),
        Err(error) => {
            out.error(&format!("cannot begin: {error}"));
            exit::NEVER
        }
    };
    // Not by return: a task that reads stdin or waits for the agent must not hold the program up.
    std::process::exit(code.into())
}

/// What goes wrong inside is told on stderr: warnings, or more with `-v`. The agent's stderr is its log.
fn log(global: &Global, is_agent: bool) {
    let level = match (global.verbose, is_agent) {
        (0, false) => "warn",
        (0, true) | (1, false) => "info",
        _ => "debug",
    };
    // They log what they return, and what is returned is told.
    let level = format!("{level},rustls_platform_verifier=off,kube_client::client::builder=off");
    let filter = EnvFilter::try_from_env("COPEPOD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match global.log_format {
        Format::Json => log.json().init(),
        Format::Text => log.with_ansi(false).with_target(is_agent).init(),
    }
}

async fn command(out: Out, data: PathBuf, cli: Cli) -> u8 {
    let mut client = Client::new(data.clone());
    let done = match cli.command {
        Command::Run(args) => return run::run(out, &data, args, cli.global.verbose).await,
        Command::Ps(args) => commands::ps(out, &mut client, &args).await,
        Command::Describe(args) => commands::describe(out, &mut client, &args).await,
        Command::Logs(args) => commands::logs(out, client, args).await,
        Command::Exec(args) => commands::exec(out, &mut client, args).await,
        Command::Attach(args) => commands::attach(out, &mut client, args).await,
        Command::Stop(args) => commands::stop(out, &mut client, &args).await,
        Command::Stats(args) => commands::stats(out, &mut client, &args).await,
        Command::Check(args) => check::check(out, &data, &args).map_err(Failed::from),
        Command::Image(image) => images::image(out, &data, image).await.map_err(Failed::from),
        Command::Controllers(args) => return controllers::controllers(out, &args).await,
        Command::Completions { shell } => completions(out, shell).map_err(Failed::from),
        // They are taken in `main`.
        Command::Node(_) | Command::Agent | Command::Broker | Command::Compile => {
            Ok(exit::BAD_INPUT)
        }
    };
    done.unwrap_or_else(|failed| commands::tell(out, &failed))
}

fn completions(out: Out, shell: clap_complete::Shell) -> io::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "copepod", &mut script);
    out.write(&script)?;
    Ok(0)
}
