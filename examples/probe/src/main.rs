//! A probe: runs a script of assertions about what a container sees and may do, and tells what it found.
//!
//! Start at [`run`]; the statements stand in [`files`], [`identity`], [`load`] and [`net`], each with its own list.
//!
//! Every argument is one statement, a verb and its words; the last word takes the rest of the argument:
//!
//! ```text
//! args: ["env-is GREETING hello world", "cannot-write /etc/passwd", "connect 10.64.0.9:80 refused", "exit 3"]
//! ```
//!
//! Each statement prints `ok: <statement>` or `FAILED: <statement>: <what was found>`; those that report print lines of
//! their own first. The probe goes on after a failure and ends with [`FAILED`]; `exit N` ends it with N where nothing failed.
//! Absent: sockets in the wasip1 build, whose std has none; their statements then find `Unsupported`.

mod files;
mod identity;
mod load;
mod net;

use std::process::exit;

/// The exit code of a script in which an assertion failed. A component has two codes only, 0 and 1: there it shows as 1,
/// as does every other `exit N`.
const FAILED: i32 = 99;

/// What a statement found: `Ok` where it holds, else what is so instead.
type Finding = Result<(), String>;

fn main() {
    let mut failed = 0;
    for statement in std::env::args().skip(1) {
        failed += u32::from(!told(&statement, failed));
    }
    exit(if failed == 0 { 0 } else { FAILED });
}

/// Runs one statement and prints what came of it.
fn told(statement: &str, failed: u32) -> bool {
    let finding = run(statement, failed);
    match &finding {
        Ok(()) => println!("ok: {statement}"),
        Err(found) => println!("FAILED: {statement}: {found}"),
    }
    finding.is_ok()
}

fn run(statement: &str, failed: u32) -> Finding {
    let (verb, rest) = statement.split_once(' ').unwrap_or((statement, ""));
    match verb {
        // Ends the script.
        "exit" if failed > 0 => exit(FAILED),
        "exit" => exit(number(rest)?),
        "end-if-failed" if failed > 0 => exit(FAILED),
        "end-if-failed" => Ok(()),
        // The statement after the number, so many times; it stops at the first failure.
        "repeat" => {
            let (count, statement) = two(rest)?;
            (0..number::<u64>(count)?).try_for_each(|_| run(statement, failed))
        }
        // The statement again and again, until it fails.
        "forever" => loop {
            run(rest, failed)?;
        },
        _ => files::run(verb, rest)
            .or_else(|| identity::run(verb, rest))
            .or_else(|| load::run(verb, rest))
            .or_else(|| net::run(verb, rest))
            .unwrap_or_else(|| Err("no such statement".to_owned())),
    }
}

/// Splits off the first word.
fn two(words: &str) -> Result<(&str, &str), String> {
    words.split_once(' ').ok_or_else(|| "a word is missing".to_owned())
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} is not a number"))
}

/// Holds where the two are equal.
fn equal(found: &str, wanted: &str) -> Finding {
    if found == wanted { Ok(()) } else { Err(format!("found {found:?}")) }
}

/// Holds where the operation is refused by its host, whichever error says so.
fn refused<T>(result: std::io::Result<T>) -> Finding {
    match result {
        Err(error) => {
            println!("= {:?}: {error}", error.kind());
            Ok(())
        }
        Ok(_) => Err("it was allowed".to_owned()),
    }
}

fn text(error: std::io::Error) -> String {
    format!("{:?}: {error}", error.kind())
}
