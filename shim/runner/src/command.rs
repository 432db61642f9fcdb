//! Running a program with a `main` to its end: a command component, or a preview1 module.
//!
//! Absent: stopping it, which is dropping the future ([`crate::pods`]).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use copepod_shim::protocol::ExitReason;
use futures::FutureExt;

use crate::code::Code;
use crate::container::Container;
use crate::exit::End;
use crate::guest::{GuestState, Preview1State, Stdio};

/// Runs `code` in the container's sandbox; `begun` is called once its instance is made, just before its first instruction. `stdio` is
/// asked once more where an instance has to be made a second time.
/// Dropping the future ends the guest, also one that spins or waits in a host call.
pub async fn run(
    container: &Arc<Container>,
    code: &Code,
    stdio: impl Fn() -> Stdio + Send + Sync,
    args: Option<Vec<String>>,
    begun: impl FnOnce() + Send,
) -> End {
    let running = AssertUnwindSafe(run_unguarded(container, code, stdio, args, begun));
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
    args: Option<Vec<String>>,
    begun: impl FnOnce() + Send,
) -> wasmtime::Result<End> {
    match code {
        Code::Command(program) => {
            let mut place = container.engines.command_place(program);
            let (mut store, command) = loop {
                let engine = place.pre().engine();
                let mut store = GuestState::store(container, engine, stdio(), args.clone());
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
        Code::Preview1(program) => {
            let mut place = container.engines.module_place(program);
            let (mut store, instance) = loop {
                let engine = place.pre().module().engine();
                let mut store = Preview1State::store(container, engine, stdio(), args.clone())?;
                match container.metered(place.pre().instantiate_async(&mut store)).await {
                    Ok(instance) => break (store, instance),
                    Err(error) if place.makes_way(&error) => {}
                    Err(error) => return Err(error),
                }
            };
            let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
            begun();
            container.metered(start.call_async(&mut store, ())).await?;
            Ok(End::with(0))
        }
        Code::Http(_) => wasmtime::bail!("an HTTP component has no main to run"),
    }
}
