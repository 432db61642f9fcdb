//! A POSIX shell without processes.
//!
//! A command is a function, something built in, or one of the other programs, and runs inside the shell. The programs of a pipeline run one
//! after the other, each on what the one before left; a subshell is a copy of the shell's state. [`shell`] runs what `brush-parser` has parsed, [`expand`] makes
//! words of it, [`builtins`] are what changes the shell itself.
//!
//! Absent: everything that takes a second process or a signal (`&`, `kill`, process substitution), and running wasm files: that is the host's, by
//! `exec`. What is absent is refused, never passed over.

mod arithmetic;
mod builtins;
mod expand;
mod shell;

use std::io::{self, IsTerminal, Write};

use brush_parser::{Parser, ParserOptions, ast};

use crate::call::{Call, usage};
use crate::streams::Input;
use shell::{Flow, Shell};

/// The program `sh`: `sh [-euxf] [-c SCRIPT [NAME [ARG...]] | FILE [ARG...]]`, else what it reads.
///
/// # Errors
/// A call that cannot be, or a script that cannot be read.
pub fn main(call: &mut Call<'_>) -> io::Result<u8> {
    let mut args = call.args;
    let mut shell = Shell::new(call);
    let mut is_script = false;
    while let Some((first, rest)) = args.split_first() {
        let Some(flags) = first.strip_prefix('-').filter(|flags| !flags.is_empty()) else { break };
        args = rest;
        if flags == "-" {
            break;
        }
        for flag in flags.chars() {
            match flag {
                'c' => is_script = true,
                // A login shell, an interactive one, one that reads its input: as it does anyway.
                'l' | 'i' | 's' => {}
                'o' => {
                    let Some((name, rest)) = args.split_first() else {
                        return Err(usage("-o needs a name"));
                    };
                    args = rest;
                    shell.options.set_named(name, true).map_err(usage)?;
                }
                flag => shell.options.set(flag, true).map_err(usage)?,
            }
        }
    }
    if is_script {
        let Some((script, rest)) = args.split_first() else {
            return Err(usage("-c needs a script"));
        };
        if let Some((name, rest)) = rest.split_first() {
            shell.name.clone_from(name);
            shell.positional = rest.to_vec();
        }
        run_text(&mut shell, script);
    } else if let Some((file, rest)) = args.split_first() {
        shell.name.clone_from(file);
        shell.positional = rest.to_vec();
        let script = call.open(file)?.rest()?;
        run_text(&mut shell, &String::from_utf8_lossy(&script));
    } else {
        let is_terminal = matches!(call.streams.input, Input::Process) && io::stdin().is_terminal();
        run_lines(&mut shell, call, is_terminal)?;
    }
    Ok(shell.end())
}

fn options() -> ParserOptions {
    ParserOptions {
        sh_mode: true,
        posix_mode: true,
        enable_extended_globbing: false,
        ..ParserOptions::default()
    }
}

/// What a text is as a program; `None`: it goes on after its end.
fn parse(text: &str) -> Result<Option<ast::Program>, String> {
    use brush_parser::ParseError;
    match Parser::new(text.as_bytes(), &options()).parse_program() {
        Ok(program) => Ok(Some(program)),
        Err(ParseError::ParsingAtEndOfInput) => Ok(None),
        Err(ParseError::Tokenizing { inner, .. }) if inner.is_incomplete() => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn run_text(shell: &mut Shell, text: &str) -> Flow {
    match parse(text) {
        Ok(Some(program)) => shell.program(&program),
        Ok(None) => shell.syntax("the script ends too early"),
        Err(why) => shell.syntax(&why),
    }
}

/// Runs each command as soon as it is whole, so that what it reads is what comes after it.
fn run_lines(shell: &mut Shell, call: &mut Call<'_>, is_terminal: bool) -> io::Result<()> {
    let mut text = String::new();
    loop {
        if is_terminal {
            let prompt = if text.is_empty() {
                format!("{} $ ", shell.folder.display())
            } else {
                "> ".to_owned()
            };
            call.streams.error.write_all(prompt.as_bytes())?;
            call.streams.error.flush()?;
        }
        let line = call.streams.input.line()?;
        let is_end = line.is_empty();
        text.push_str(&String::from_utf8_lossy(&line));
        let goes_on = text.ends_with("\\\n");
        let parsed = if goes_on && !is_end { Ok(None) } else { parse(&text) };
        let flow = match parsed {
            Ok(None) if !is_end => continue,
            Ok(None) => shell.syntax("the script ends too early"),
            Ok(Some(program)) => shell.program(&program),
            Err(why) => shell.syntax(&why),
        };
        text.clear();
        if is_end {
            if is_terminal {
                call.streams.error.write_all(b"\n")?;
            }
            return Ok(());
        }
        // A person who mistyped goes on.
        if flow == Flow::Exit && !(is_terminal && std::mem::take(&mut shell.is_mistake)) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
