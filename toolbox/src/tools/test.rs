//! `test`, which is also `[`.

use std::io;
use std::time::SystemTime;

use crate::call::{Call, usage};
use crate::places::{self, Found};

pub(super) fn test(call: &mut Call<'_>) -> io::Result<u8> {
    let mut args: Vec<&str> = call.args.iter().map(String::as_str).collect();
    if call.name.ends_with('[') && args.pop() != Some("]") {
        return Err(usage("] is missing"));
    }
    Ok(u8::from(!holds(call, &args)?))
}

/// POSIX's rules by the number of arguments, and `-a`, `-o` and parentheses beyond.
fn holds(call: &Call<'_>, args: &[&str]) -> io::Result<bool> {
    match *args {
        [] => Ok(false),
        [one] => Ok(!one.is_empty()),
        ["!", ref rest @ ..] if rest.len() < 4 => Ok(!holds(call, rest)?),
        [operator, operand] => unary(call, operator, operand),
        ["(", one, ")"] => Ok(!one.is_empty()),
        [left, operator, right] if is_binary(operator) => binary(call, left, operator, right),
        _ => {
            // The loosest operator that stands outside parentheses.
            for wanted in ["-o", "-a"] {
                let mut depth = 0;
                for (at, arg) in args.iter().enumerate() {
                    match *arg {
                        "(" => depth += 1,
                        ")" => depth -= 1,
                        it if it == wanted && depth == 0 && at > 0 => {
                            let left = holds(call, &args[..at])?;
                            let right = holds(call, &args[at + 1..])?;
                            return Ok(if wanted == "-o" { left || right } else { left && right });
                        }
                        _ => {}
                    }
                }
            }
            match args {
                ["!", rest @ ..] => Ok(!holds(call, rest)?),
                ["(", inner @ .., ")"] => holds(call, inner),
                _ => Err(usage(format!("this is no condition: {}", args.join(" ")))),
            }
        }
    }
}

fn unary(call: &Call<'_>, operator: &str, operand: &str) -> io::Result<bool> {
    let found = |follow| places::found(&call.path(operand), follow).ok();
    let kind = |is: fn(&Found) -> bool| Ok(found(true).is_some_and(|it| is(&it)));
    let none = |_: &Found| false;
    match operator {
        "-n" => Ok(!operand.is_empty()),
        "-z" => Ok(operand.is_empty()),
        // Who may do what the host decides, when it is tried.
        "-e" | "-r" | "-w" | "-x" => kind(|_| true),
        "-f" => kind(|it| matches!(it, Found::Real(metadata) if metadata.is_file())),
        "-d" => kind(Found::is_dir),
        "-s" => kind(|it| !it.is_empty()),
        "-L" | "-h" => Ok(found(false)
            .is_some_and(|it| matches!(it, Found::Real(metadata) if metadata.is_symlink()))),
        "-b" | "-c" | "-p" | "-S" | "-g" | "-u" | "-k" => kind(none),
        "-t" => {
            use std::io::IsTerminal as _;
            Ok(match operand {
                "0" => io::stdin().is_terminal(),
                "1" => io::stdout().is_terminal(),
                "2" => io::stderr().is_terminal(),
                _ => false,
            })
        }
        _ => Err(usage(format!("unknown operator {operator}"))),
    }
}

fn is_binary(operator: &str) -> bool {
    matches!(
        operator,
        "=" | "=="
            | "!="
            | "<"
            | ">"
            | "-eq"
            | "-ne"
            | "-lt"
            | "-le"
            | "-gt"
            | "-ge"
            | "-nt"
            | "-ot"
            | "-ef"
            | "-a"
            | "-o"
    )
}

fn binary(call: &Call<'_>, left: &str, operator: &str, right: &str) -> io::Result<bool> {
    let numbers = || -> io::Result<(i64, i64)> {
        let number = |text: &str| {
            text.trim().parse().map_err(|_| usage(format!("{text:?} is no whole number")))
        };
        Ok((number(left)?, number(right)?))
    };
    let changed = |path: &str| -> Option<SystemTime> {
        std::fs::metadata(call.path(path)).ok()?.modified().ok()
    };
    Ok(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        ">" => left > right,
        "-eq" => numbers().map(|(left, right)| left == right)?,
        "-ne" => numbers().map(|(left, right)| left != right)?,
        "-lt" => numbers().map(|(left, right)| left < right)?,
        "-le" => numbers().map(|(left, right)| left <= right)?,
        "-gt" => numbers().map(|(left, right)| left > right)?,
        "-ge" => numbers().map(|(left, right)| left >= right)?,
        "-nt" => changed(left) > changed(right),
        "-ot" => changed(left) < changed(right),
        "-ef" => call.path(left) == call.path(right),
        "-a" => !left.is_empty() && !right.is_empty(),
        _ => !left.is_empty() || !right.is_empty(),
    })
}
