//! What a wasm file is, read from its bytes and never from a media type or a file name.
//!
//! Absent: validation, which compiling does. This reads section headers, imports and exports, of bytes that nobody has checked.

use serde::{Deserialize, Serialize};
use wasmparser::{ComponentExternalKind, Encoding, ExternalKind, Parser, Payload, TypeRef};

/// How a container's module is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A component that exports `wasi:http/incoming-handler`: the runner serves its ports and calls it per request.
    HttpComponent,
    /// A component that exports `wasi:cli/run`.
    CommandComponent,
    /// A core module with a preview1 `_start`.
    Preview1Command,
}

/// A wasm file's kind and what it asks of its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// How it is run.
    pub kind: Kind,
    /// Imports in the file's order: `wasi:cli/stdout@0.2.3`, or `wasi_snapshot_preview1.fd_write`.
    pub imports: Vec<String>,
    /// Exports in the file's order.
    pub exports: Vec<String>,
}

/// Why a file cannot be a container's module. Final: the same bytes will be refused again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NotRunnable {
    /// It starts with the bytes of an ELF program.
    #[error(
        "this is a Linux program (ELF), not WebAssembly: compile it for wasm32-wasip2 or wasm32-wasip1"
    )]
    Elf,
    /// It does not start with `\0asm`.
    #[error("this is not WebAssembly: its first bytes are {0}, where a wasm file has 00 61 73 6d")]
    NotWasm(String),
    /// A module of compiled code.
    #[error(
        "this is precompiled native code (a wasmtime .cwasm), which is never taken from outside: push the .wasm itself"
    )]
    Precompiled,
    /// It ends early, or a section is damaged.
    #[error("the wasm file is damaged at byte {offset}: {message}")]
    Damaged {
        /// Where, from the file's start.
        offset: usize,
        /// What is wrong there.
        message: String,
    },
    /// A component without an entry point that we know.
    #[error(
        "this component exports neither wasi:http/incoming-handler (a server) nor wasi:cli/run (a command), so there is nothing to start; it exports {0}"
    )]
    NoEntryComponent(String),
    /// A component for WASI 0.3's handler only.
    #[error(
        "this component exports wasi:http/handler of WASI 0.3, which is not supported yet: build it for WASI 0.2 (wasi:http/incoming-handler)"
    )]
    Preview3Handler,
    /// A module without `_start`.
    #[error(
        "this module exports no _start function, so there is nothing to start: build a command (a program with main), not a library; it exports {0}"
    )]
    NoEntryModule(String),
    /// A module that needs what only threads or fork give.
    #[error(
        "this module imports {0} (WASIX), which needs threads and fork: build it for plain wasm32-wasip1"
    )]
    Wasix(String),
    /// It has more imports or exports than any real program.
    #[error("this file has more than {MAX_NAMES} imports and exports")]
    TooMany,
}

/// The most imports and exports that [`inspect`] keeps: ten times the largest seen (a C# component's 700).
pub const MAX_NAMES: usize = 10_000;

/// Reads what `wasm` is.
///
/// # Errors
/// One sentence for the user: what the file is, and what to build instead.
pub fn inspect(wasm: &[u8]) -> Result<Inspection, NotRunnable> {
    if wasm.starts_with(b"\x7fELF") {
        // wasmtime's compiled code is an ELF file of its own machine type's own, with a section that says so.
        return Err(
            if contains(&wasm[..wasm.len().min(4096)], b".wasmtime")
                || contains(&wasm[wasm.len().saturating_sub(4096)..], b".wasmtime")
            {
                NotRunnable::Precompiled
            } else {
                NotRunnable::Elf
            },
        );
    }
    if !wasm.starts_with(b"\0asm") {
        let first: Vec<String> = wasm.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        return Err(NotRunnable::NotWasm(if first.is_empty() {
            "missing (the file is empty)".into()
        } else {
            first.join(" ")
        }));
    }
    let names = Names::read(wasm)?;
    names.judge()
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[derive(Default)]
struct Names {
    component: bool,
    imports: Vec<String>,
    exports: Vec<String>,
    has_start: bool,
}

impl Names {
    fn read(wasm: &[u8]) -> Result<Self, NotRunnable> {
        let damaged = |error: wasmparser::BinaryReaderError| NotRunnable::Damaged {
            offset: error.offset(),
            message: error.message().to_owned(),
        };
        let mut names = Self::default();
        // Only the outermost level's names count; what is nested is the component's own affair.
        let mut depth = 0usize;
        for payload in Parser::new(0).parse_all(wasm) {
            match payload.map_err(damaged)? {
                Payload::Version { encoding, .. } if depth == 0 => {
                    names.component = encoding == Encoding::Component;
                }
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ImportSection(imports) if depth == 0 => {
                    for import in imports.into_imports() {
                        let import = import.map_err(damaged)?;
                        let name = format!("{}.{}", import.module, import.name);
                        names.imports.push(match import.ty {
                            TypeRef::Memory(memory) if memory.shared => {
                                format!("{name} (shared memory)")
                            }
                            _ => name,
                        });
                        names.check_count()?;
                    }
                }
                Payload::ExportSection(exports) if depth == 0 => {
                    for export in exports {
                        let export = export.map_err(damaged)?;
                        names.has_start |=
                            export.name == "_start" && export.kind == ExternalKind::Func;
                        names.exports.push(export.name.to_owned());
                        names.check_count()?;
                    }
                }
                Payload::ComponentImportSection(imports) if depth == 0 => {
                    for import in imports {
                        names.imports.push(import.map_err(damaged)?.name.name.to_owned());
                        names.check_count()?;
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 0 => {
                    for export in exports {
                        let export = export.map_err(damaged)?;
                        if export.kind == ComponentExternalKind::Instance
                            || export.kind == ComponentExternalKind::Func
                        {
                            names.exports.push(export.name.name.to_owned());
                            names.check_count()?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(names)
    }

    fn check_count(&self) -> Result<(), NotRunnable> {
        let count = self.imports.len() + self.exports.len();
        if count > MAX_NAMES { Err(NotRunnable::TooMany) } else { Ok(()) }
    }

    fn judge(self) -> Result<Inspection, NotRunnable> {
        let exports = |prefix: &str| self.exports.iter().any(|name| name.starts_with(prefix));
        let shown = || {
            let some: Vec<&str> = self.exports.iter().take(5).map(String::as_str).collect();
            if some.is_empty() { "nothing".to_owned() } else { some.join(", ") }
        };
        let kind = if self.component {
            if exports("wasi:http/incoming-handler@0.2.") {
                Kind::HttpComponent
            } else if exports("wasi:cli/run@0.2.") {
                Kind::CommandComponent
            } else if exports("wasi:http/handler@0.3.") {
                return Err(NotRunnable::Preview3Handler);
            } else {
                return Err(NotRunnable::NoEntryComponent(shown()));
            }
        } else if let Some(wasix) = self.imports.iter().find(|name| name.starts_with("wasix_")) {
            return Err(NotRunnable::Wasix(wasix.clone()));
        } else if self.has_start {
            Kind::Preview1Command
        } else {
            return Err(NotRunnable::NoEntryModule(shown()));
        };
        Ok(Inspection { kind, imports: self.imports, exports: self.exports })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wasm(text: &str) -> Vec<u8> {
        wat::parse_str(text).expect("the test's own text is right")
    }

    #[test]
    fn a_module_with_start_is_a_preview1_command_and_its_imports_are_named() {
        let module = wasm(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))) (func (export "_start")))"#,
        );

        let inspection = inspect(&module).expect("runnable");

        assert_eq!(inspection.kind, Kind::Preview1Command);
        assert_eq!(inspection.imports, ["wasi_snapshot_preview1.proc_exit"]);
    }

    #[test]
    fn a_library_without_start_is_told_to_be_built_as_a_command() {
        let refusal = inspect(&wasm(r#"(module (func (export "add")))"#)).expect_err("no entry");

        assert_eq!(refusal, NotRunnable::NoEntryModule("add".into()));
        assert!(refusal.to_string().contains("a program with main"));
    }

    #[test]
    fn a_component_is_told_by_what_its_outermost_level_exports() {
        let http = wasm(
            r#"(component (component $c (instance (export "wasi:cli/run@0.2.3"))) (instance $i) (export "wasi:http/incoming-handler@0.2.3" (instance $i)))"#,
        );
        let command =
            wasm(r#"(component (instance $i) (export "wasi:cli/run@0.2.0" (instance $i)))"#);
        let neither = wasm(r#"(component (instance $i) (export "my:lib/api" (instance $i)))"#);

        assert_eq!(inspect(&http).map(|it| it.kind), Ok(Kind::HttpComponent));
        assert_eq!(inspect(&command).map(|it| it.kind), Ok(Kind::CommandComponent));
        assert_eq!(inspect(&neither), Err(NotRunnable::NoEntryComponent("my:lib/api".into())));
    }

    #[test]
    fn a_linux_program_an_empty_file_and_text_are_each_told_what_they_are() {
        assert_eq!(inspect(b"\x7fELF\x02\x01\x01"), Err(NotRunnable::Elf));
        assert!(inspect(b"").expect_err("empty").to_string().contains("empty"));
        assert!(inspect(b"#!/bin/sh").expect_err("text").to_string().contains("23 21 2f 62"));
    }

    #[test]
    fn a_file_cut_off_anywhere_is_damaged_and_never_a_panic() {
        let module = wasm(r#"(module (func (export "_start") (nop) (nop)))"#);

        for length in 8..module.len() {
            // A cut between two sections leaves a smaller, valid file: one without an entry point.
            match inspect(&module[..length]) {
                Err(NotRunnable::Damaged { .. } | NotRunnable::NoEntryModule(_)) => {}
                Ok(_) => assert!(length > 20, "the export section is there"),
                other => panic!("{length}: {other:?}"),
            }
        }
    }
}
