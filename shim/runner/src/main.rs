//! `copepod-runner`: started by the agent, one for each domain.
//!
//! Absent: everything but the order of the start; confinement comes before any thread.

use copepod_net::Door;
use copepod_runner::arguments::{Arguments, Place};
use copepod_runner::engines::EngineId;
use copepod_runner::pods::{Pods, Settings};
use copepod_runner::root::Root;
use copepod_runner::{confine, server};
use copepod_shim::protocol::{Hello, VERSIONS};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == confine::attempt::ARGUMENT) {
        return confine::attempt::serve();
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse(std::env::args_os().skip(1))?;
    // The agent's: root, or whoever started this for a test. Read before the runner becomes somebody else.
    let mut agent_uids = vec![0, rustix::process::geteuid().as_raw()];
    agent_uids.dedup();
    let build = match arguments.build {
        Some(build) => build,
        None => own_hash()?,
    };
    let (listener, root, outside) = match arguments.place {
        Place::Confined => {
            let confined = confine::enter()?;
            (confined.listener, Root::new("/"), confined.outside)
        }
        Place::Unconfined { root, socket } => (UnixListener::bind(socket)?, Root::new(root), None),
    };
    let outside = outside.map(|(outside, broker)| Arc::new(Door::new(outside, broker)));
    let hello = Hello { versions: VERSIONS, build, engine: arguments.engine.clone() };
    let engine = EngineId { hash: arguments.engine, salt: arguments.engine_salt };
    let settings = Settings { engine, is_heir: arguments.is_heir };
    // This thread speaks to agents and nothing else; guests get threads of their own with the first pod.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pods = Pods::new(root, settings, outside)?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        server::serve(listener, pods, hello, agent_uids).await;
        Ok(())
    })
}

fn own_hash() -> anyhow::Result<String> {
    let mut program = std::fs::File::open("/proc/self/exe")?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match program.read(&mut buffer)? {
            0 => break,
            got => hash.update(&buffer[..got]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
