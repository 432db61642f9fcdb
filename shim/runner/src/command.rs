//! Running a program with a `main` to its end: a command component, or a preview1 module.
//!
//! Absent: stopping it, which is dropping the future ([`crate::pods`]).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use copepod_net::preview1::{self, Ports};
use copepod_shim::protocol::{ExitReason, Port};
use futures::FutureExt;

use crate::code::Code;
use crate::container::{Container, Mount};
use crate::exit::End;
use crate::guest::{GuestState, Preview1State, Stdio};

/// What an instance is there for.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// To be the container: with its arguments, and the ports that it declares.
    Main,
    /// To run beside it.
    Exec(Beside),
}

/// What an instance beside the container's own has of its own.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables beside the container's.
    pub env: Vec<(String, String)>,
}

impl Purpose {
    /// Its own arguments, where it has others than the container's.
    pub(crate) fn args(&self) -> Option<&Vec<String>> {
        match self {
            Self::Main => None,
            Self::Exec(beside) => Some(&beside.args),
        }
    }

    /// Variables beside the container's.
    pub(crate) fn more_env(&self) -> &[(String, String)] {
        match self {
            Self::Main => &[],
            Self::Exec(beside) => &beside.env,
        }
    }

    /// Whether a preview1 module is given sockets.
    fn has_ports(&self, container: &Container) -> bool {
        let is_main = matches!(self, Self::Main);
        is_main && container.code.accepts() && !declared_ports(container).is_empty()
    }

    /// The directories that a preview1 module sees. Servers are written that take 3 for their socket: where nothing is mounted the
    /// directory of last words does not come before it.
    pub(crate) fn directories<'a>(&self, container: &'a Container) -> &'a [Mount] {
        let mounts = container.mounts();
        let is_bare = mounts.iter().all(|mount| mount.last_words.is_some());
        if is_bare && self.has_ports(container) { &[] } else { mounts }
    }

    /// The variables that a preview1 module finds beside the container's, where that does not set them itself.
    pub(crate) fn variables(&self, container: &Container) -> Vec<(&'static str, String)> {
        if !self.has_ports(container) {
            return Vec::new();
        }
        let name = |port: &Port| match &*port.name {
            "" => port.port.to_string(),
            name => name.to_owned(),
        };
        let names: Vec<String> = declared_ports(container).into_iter().map(name).collect();
        let directories = self.directories(container).len();
        let is_free = |name: &str| !container.spec.env.iter().any(|(other, _)| other == name);
        let variables = preview1::listen_variables(directories, &names);
        variables.into_iter().filter(|(name, _)| is_free(name)).collect()
    }
}

/// The TCP ports that the container declares, of each number the first.
pub(crate) fn declared_ports(container: &Container) -> Vec<&Port> {
    let mut ports: Vec<&Port> = Vec::new();
    for port in container.spec.ports.iter().filter(|port| !port.udp) {
        if ports.iter().all(|other| other.port != port.port) {
            ports.push(port);
        }
    }
    ports
}

/// Runs `code` in the container's sandbox; `begun` is called once its instance is made, just before its first instruction. `stdio` is
/// asked once more where an instance has to be made a second time; `ports` are a preview1 module's.
/// Dropping the future ends the guest, also one that spins or waits in a host call.
pub async fn run(
    container: &Arc<Container>,
    code: &Code,
    stdio: impl Fn() -> Stdio + Send + Sync,
    purpose: Purpose,
    ports: Option<Ports>,
    begun: impl FnOnce() + Send,
) -> End {
    let running = AssertUnwindSafe(run_unguarded(container, code, stdio, purpose, ports, begun));
    // A defect in a host function ends this guest and no other.
    match running.catch_unwind().await {
        Ok(Ok(end)) => end,
        Ok(Err(error)) => End::of_error(&error, &container.ledger),
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            tracing::error!(container = %container.name, %text, "a host function panicked");
            End {
                code: 134,
                reason: ExitReason::Trapped,
                message: format!("a defect of the runner ended this instance: {text}"),
            }
        }
    }
}

async fn run_unguarded(
    container: &Arc<Container>,
    code: &Code,
    stdio: impl Fn() -> Stdio + Send + Sync,
    purpose: Purpose,
    ports: Option<Ports>,
    begun: impl FnOnce() + Send,
) -> wasmtime::Result<End> {
    match code {
        Code::Command { program, .. } => {
            let mut place = container.engines.command_place(program);
            let (mut store, command) = loop {
                let engine = place.pre().engine();
                let mut store = GuestState::store(container, engine, stdio(), purpose.clone());
                match container.metered(place.pre().instantiate_async(&mut store)).await {
                    Ok(command) => break (store, command),
                    Err(error) if place.makes_way(&error) => {}
                    Err(error) => return Err(error),
                }
            };
            begun();
            let result = container.metered(command.wasi_cli_run().call_run(&mut store)).await?;
            Ok(End::with(i32::from(result.is_err())))
        }
        Code::Preview1 { program, .. } => {
            let mut place = container.engines.module_place(program);
            let (mut store, instance) = loop {
                let engine = place.pre().module().engine();
                let mut store = Preview1State::store(container, engine, stdio(), &purpose)?;
                match container.metered(place.pre().instantiate_async(&mut store)).await {
                    Ok(instance) => break (store, instance),
                    Err(error) if place.makes_way(&error) => {}
                    Err(error) => return Err(error),
                }
            };
            if let Some(ports) = ports {
                store.data_mut().preview1().take_ports(ports);
            }
            let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
            begun();
            container.metered(start.call_async(&mut store, ())).await?;
            Ok(End::with(0))
        }
        Code::Http(_) => wasmtime::bail!("an HTTP component has no main to run"),
    }
}
