//! `copepod check`: what this machine can do, what is lost where something is missing, and how to get it.
//!
//! Absent: the trying (`copepod-domain`). This decides without which of it no pod runs, and prints.

use std::io;
use std::path::Path;

use copepod_domain::check::{Check, check_host};
use serde_json::json;

use crate::args;
use crate::data_dir;
use crate::out::{Colour, Out};
use crate::serve;

/// Without these no pod of root's starts; without the others something is weaker, or some pods wait.
const ESSENTIAL: &[&str] = &["kernel", "seccomp", "network namespaces", "cgroups", "runner"];

/// The same for an ordinary user's pods.
const ESSENTIAL_FOR_A_USER: &[&str] = &["kernel", "seccomp", "user namespaces", "runner"];

/// Prints the table, or JSON; 1 where something essential is missing.
pub(crate) fn check(out: Out, data: &Path, args: &args::Check) -> io::Result<u8> {
    let temporary = std::env::temp_dir();
    let scratch = if data.is_dir() { data } else { &temporary };
    let mut checks = check_host(scratch);
    checks.push(runner());
    if args.json {
        let all: Vec<_> = checks
            .iter()
            .map(|it| {
                json!({"name": it.name, "ok": it.ok, "essential": is_essential(it), "found": it.found,
                    "lostWithoutIt": it.lost_without_it, "remedy": it.remedy})
            })
            .collect();
        out.line(&format!("{:#}", json!(all)))?;
    } else {
        out.write(render(&checks, |colour, text| out.paint(colour, text)).as_bytes())?;
    }
    Ok(u8::from(checks.iter().any(|it| !it.ok && is_essential(it))))
}

fn is_essential(check: &Check) -> bool {
    essential().contains(&check.name.as_str())
}

fn essential() -> &'static [&'static str] {
    if data_dir::is_root() { ESSENTIAL } else { ESSENTIAL_FOR_A_USER }
}

/// Whether the second program of the pair is there.
fn runner() -> Check {
    let variable = |name: &str| std::env::var(name).ok();
    let found = std::env::current_exe()
        .map_err(|error| error.to_string())
        .and_then(|program| serve::runner(&program, variable("COPEPOD_RUNNER")));
    Check {
        name: "runner".into(),
        ok: found.is_ok(),
        found: found.map_or_else(|why| why, |path| path.display().to_string()),
        lost_without_it: "every pod: it is the program that runs them".into(),
        remedy: "install copepod-runner beside copepod".into(),
    }
}

/// A line for what is there; three for what is not.
fn render(checks: &[Check], paint: impl Fn(Colour, &str) -> String) -> String {
    let width = checks.iter().map(|it| it.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let (mark, colour) = match (check.ok, is_essential(check)) {
            (true, _) => ("ok     ", Colour::Green),
            (false, false) => ("lost   ", Colour::Yellow),
            (false, true) => ("MISSING", Colour::Red),
        };
        text += &format!("{}  {:<width$}  {}\n", paint(colour, mark), check.name, check.found);
        if !check.ok {
            let indent = " ".repeat(mark.len() + 2 + width + 2);
            text += &format!("{indent}without it: {}\n", check.lost_without_it);
            text += &format!("{indent}remedy: {}\n", check.remedy);
        }
    }
    let missing = checks.iter().filter(|it| !it.ok && is_essential(it)).count();
    text += match missing {
        0 => "\npods run here\n",
        _ => "\npods do not run here until what is MISSING is there\n",
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, ok: bool) -> Check {
        Check {
            name: name.into(),
            ok,
            found: "v1".into(),
            lost_without_it: "something".into(),
            remedy: "get it".into(),
        }
    }

    #[test]
    fn what_is_missing_is_told_with_its_loss_and_remedy() {
        let checks = [check("kernel", true), check("nft", false), check("seccomp", false)];

        assert_eq!(
            render(&checks, |_, text| text.to_owned()),
            "ok       kernel   v1\n\
             lost     nft      v1\n                  without it: something\n                  remedy: get it\n\
             MISSING  seccomp  v1\n                  without it: something\n                  remedy: get it\n\
             \npods do not run here until what is MISSING is there\n"
        );
        assert!(render(&checks[..2], |_, text| text.to_owned()).ends_with("\npods run here\n"));
    }

    #[test]
    fn what_is_essential_is_asked_for_by_the_names_that_there_are() {
        let names: Vec<_> =
            check_host(&std::env::temp_dir()).into_iter().map(|it| it.name).collect();

        for name in essential().iter().filter(|name| **name != "runner") {
            assert!(names.iter().any(|it| it == name), "{name} is not among {names:?}");
        }
    }
}
