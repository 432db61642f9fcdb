//! How a guest's end reads to Kubernetes: code, reason and message.
//!
//! Absent: keeping it until the agent has it ([`crate::records`]).

use copepod_shim::protocol::ExitReason;
use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::ledger::{Ledger, OutOfMemory};

/// The most of a message that is kept: the kubelet's limit for a termination message.
pub const MAX_MESSAGE: usize = 4096;

/// Frames of a backtrace that are told.
const MAX_FRAMES: usize = 20;

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// As a shell counts it.
    pub code: i32,
    /// Why.
    pub reason: ExitReason,
    /// What to tell the user; empty where the code says all.
    pub message: String,
}

impl End {
    /// It ended by itself.
    pub fn with(code: i32) -> Self {
        Self { code, reason: ExitReason::Ended, message: String::new() }
    }

    /// It was asked to stop, and had no way to say goodbye.
    pub fn stopped() -> Self {
        Self::with(143)
    }

    /// Its grace period was over.
    pub fn killed() -> Self {
        Self {
            code: 137,
            reason: ExitReason::Killed,
            message: "still running at the end of its grace period".into(),
        }
    }

    /// What the error of a guest's call means. `ledger` knows whether memory was refused.
    pub fn of_error(error: &wasmtime::Error, ledger: &Ledger) -> Self {
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            return Self::with(exit.0);
        }
        if let Some(out_of_memory) = error.downcast_ref::<OutOfMemory>() {
            return Self {
                code: 137,
                reason: ExitReason::OutOfMemory,
                message: cut(out_of_memory.to_string()),
            };
        }
        if ledger.exceeded() && error.downcast_ref::<Trap>().is_none() {
            return Self { code: 137, reason: ExitReason::OutOfMemory, message: cut(tell(error)) };
        }
        Self { code: 134, reason: ExitReason::Trapped, message: cut(tell(error)) }
    }
}

/// The trap in one line, then the frames from the innermost outwards.
fn tell(error: &wasmtime::Error) -> String {
    let cause = error.downcast_ref::<Trap>().map_or_else(
        || {
            // Without the context that is the backtrace's own text.
            error
                .chain()
                .map(ToString::to_string)
                .filter(|text| !text.starts_with("error while executing at wasm backtrace"))
                .collect::<Vec<_>>()
                .join(": ")
        },
        ToString::to_string,
    );
    let mut text = format!("trap: {cause}");
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        for (index, frame) in backtrace.frames().iter().take(MAX_FRAMES).enumerate() {
            let name = frame
                .func_name()
                .map_or_else(|| format!("<function {}>", frame.func_index()), demangled);
            text.push_str(&format!("\n  {index}: {name}"));
        }
        let more = backtrace.frames().len().saturating_sub(MAX_FRAMES);
        if more > 0 {
            text.push_str(&format!("\n  and {more} more"));
        }
    }
    text
}

fn demangled(name: &str) -> String {
    // Without the hash, which tells a reader nothing.
    format!("{:#}", rustc_demangle::demangle(name))
}

/// Cut to [`MAX_MESSAGE`] at a character's boundary.
fn cut(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_passed_on_as_it_is() {
        let error = wasmtime::Error::from(I32Exit(42)).context("in main");

        assert_eq!(End::of_error(&error, &Ledger::new(1)), End::with(42));
    }

    #[test]
    fn a_refused_charge_is_out_of_memory_and_says_how_much() {
        let refused = OutOfMemory { limit: 10, used: 8, wanted: 5 };

        let end = End::of_error(&wasmtime::Error::from(refused), &Ledger::new(10));

        assert_eq!((end.code, end.reason), (137, ExitReason::OutOfMemory));
        assert!(end.message.contains("limit is 10 bytes"), "{}", end.message);
    }

    #[test]
    fn a_trap_is_134_with_its_text() {
        let error = wasmtime::Error::from(Trap::UnreachableCodeReached);

        let end = End::of_error(&error, &Ledger::new(10));

        assert_eq!((end.code, end.reason), (134, ExitReason::Trapped));
        assert!(end.message.contains("unreachable"), "{}", end.message);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let text = format!("x{}", "ä".repeat(MAX_MESSAGE));

        assert_eq!(cut(text).len(), MAX_MESSAGE - 1);
    }
}
