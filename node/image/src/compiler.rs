//! `copepod __compile`: one module in, native code out, in a process that can do nothing else.
//!
//! Standard input is the module's file, standard output the file for the code, standard error a pipe for the report: one line
//! of JSON, the last one. Absent: any path, any network, any second module.

mod confine;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use copepod_shim::kind::{self, Inspection, NotRunnable};
use serde::{Deserialize, Serialize};

/// The longest report: 10,000 names of up to some hundred bytes.
pub(crate) const MAX_REPORT: u64 = 8 << 20;

/// The largest module that is read: above any layer limit that makes sense with 4 GiB for compiling.
const MAX_WASM: u64 = 1 << 30;

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The code is written.
    Done {
        /// What the module is.
        inspection: Inspection,
        /// CPU time used.
        cpu_millis: u64,
    },
    /// Its bytes cannot run.
    NotRunnable(NotRunnable),
    /// The compiler refuses it.
    Invalid(String),
    /// Something else went wrong.
    Failed(String),
}

/// What the parent asks for.
pub(crate) struct Limits {
    pub(crate) cpu_seconds: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) threads: usize,
}

/// The whole life of the compile child. Its arguments stand after `__compile`.
pub fn compile_child_main() -> ExitCode {
    let report = match arguments().and_then(|limits| confine::enter(&limits).map(|()| limits)) {
        Ok(limits) => compile(&limits),
        Err(message) => Report::Failed(message),
    };
    let Ok(mut line) = serde_json::to_vec(&report) else { return ExitCode::FAILURE };
    line.push(b'\n');
    match std::io::stderr().write_all(&line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn arguments() -> Result<Limits, String> {
    let mut limits = Limits { cpu_seconds: 600, memory_bytes: 4 << 30, threads: 1 };
    let mut arguments = std::env::args().skip_while(|it| it != "__compile").skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .and_then(|it| it.parse::<u64>().ok())
            .ok_or_else(|| format!("{name} takes a number"))?;
        match name.as_str() {
            "--cpu-seconds" => limits.cpu_seconds = value,
            "--memory-bytes" => limits.memory_bytes = value,
            "--threads" => limits.threads = usize::try_from(value).unwrap_or(1).clamp(1, 256),
            _ => return Err(format!("{name} is no option of __compile")),
        }
    }
    Ok(limits)
}

fn compile(limits: &Limits) -> Report {
    match try_compile(limits) {
        Ok(report) | Err(report) => report,
    }
}

fn try_compile(limits: &Limits) -> Result<Report, Report> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| Report::Failed(format!("{what}: {error}"))
    };
    let input =
        std::io::stdin().as_fd().try_clone_to_owned().map_err(failed("cannot read the module"))?;
    let input = File::from(input);
    let size = input.metadata().map_err(failed("cannot read the module"))?.len();
    let mut wasm = Vec::with_capacity(usize::try_from(size.min(MAX_WASM)).unwrap_or(0));
    input.take(MAX_WASM).read_to_end(&mut wasm).map_err(failed("cannot read the module"))?;
    let inspection = kind::inspect(&wasm).map_err(Report::NotRunnable)?;
    let mut config = copepod_shim::engine::config();
    config.parallel_compilation(limits.threads > 1);
    let engine = wasmtime::Engine::new(&config).map_err(|e| Report::Failed(format!("{e:#}")))?;
    let invalid = |error: wasmtime::Error| {
        let text: String =
            format!("{error:#}").chars().filter(|c| !c.is_control()).take(1_000).collect();
        Report::Invalid(text)
    };
    let code = match inspection.kind {
        kind::Kind::Preview1Command => engine.precompile_module(&wasm),
        kind::Kind::HttpComponent | kind::Kind::CommandComponent => {
            engine.precompile_component(&wasm)
        }
    }
    .map_err(invalid)?;
    let output =
        std::io::stdout().as_fd().try_clone_to_owned().map_err(failed("cannot write the code"))?;
    File::from(output).write_all(&code).map_err(failed("cannot write the code"))?;
    Ok(Report::Done { inspection, cpu_millis: confine::cpu_millis() })
}
