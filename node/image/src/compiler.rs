//! `copepod __compile`: one module in, native code out, in a process that can do nothing else.
//!
//! Standard input is the module's file, standard output the file for the code, standard error a pipe for the report: one line
//! of JSON, the last one. Absent: any path, any network, any second module.

mod confine;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use copepod_shim::engine::{self, Salt};
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

/// What the parent allows.
pub(crate) struct Limits {
    pub(crate) cpu_seconds: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) threads: usize,
}

/// What the parent asks for.
struct Asked {
    limits: Limits,
    /// The runner's, that the code is for.
    salt: Option<Salt>,
}

/// The whole life of the compile child. Its arguments stand after `__compile`.
pub fn compile_child_main() -> ExitCode {
    let arguments = std::env::args().skip_while(|it| it != "__compile").skip(1);
    let report = match asked(arguments).and_then(|it| confine::enter(&it.limits).map(|()| it)) {
        Ok(asked) => compile(&asked),
        Err(message) => Report::Failed(message),
    };
    let Ok(mut line) = serde_json::to_vec(&report) else { return ExitCode::FAILURE };
    line.push(b'\n');
    match std::io::stderr().write_all(&line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn asked(mut arguments: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut limits = Limits { cpu_seconds: 600, memory_bytes: 4 << 30, threads: 1 };
    let mut salt = None;
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} takes a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} takes a number"));
        match name.as_str() {
            "--cpu-seconds" => limits.cpu_seconds = number()?,
            "--memory-bytes" => limits.memory_bytes = number()?,
            "--threads" => limits.threads = usize::try_from(number()?).unwrap_or(1).clamp(1, 256),
            "--engine-salt" => salt = Some(value.parse()?),
            _ => return Err(format!("{name} is no option of __compile")),
        }
    }
    Ok(Asked { limits, salt })
}

fn compile(asked: &Asked) -> Report {
    match try_compile(asked) {
        Ok(report) | Err(report) => report,
    }
}

fn try_compile(asked: &Asked) -> Result<Report, Report> {
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
    let mut config = engine::config(asked.salt.as_ref());
    config.parallel_compilation(asked.limits.threads > 1);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_by(arguments: &[&str]) -> Result<Asked, String> {
        asked(arguments.iter().map(|&it| it.to_owned()))
    }

    #[test]
    fn an_older_agent_s_arguments_and_the_salt_of_a_newer_one_are_understood() {
        let old = asked_by(&["--cpu-seconds", "7", "--threads", "900"]).expect("understood");
        let new = asked_by(&["--engine-salt", "next"]).expect("understood");

        assert_eq!((old.limits.cpu_seconds, old.limits.threads, old.salt), (7, 256, None));
        assert_eq!(new.salt.map(|salt| salt.to_string()), Some("next".into()));
    }

    #[test]
    fn what_is_not_understood_is_refused_and_not_compiled_otherwise() {
        for bad in [&["--threads"][..], &["--threads", "x"], &["--fast", "1"]] {
            assert!(asked_by(bad).is_err(), "{bad:?}");
        }
    }
}
