//! What surrounds a program: variables, time, the host's name, the other containers.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::call::{Call, Variables, usage};
use crate::places;

/// Where the runner puts what runs in the pod, for `ps`: a line each, with tabs between its parts.
const PROCESSES: &str = "COPEPOD_PROCESSES";

pub(super) fn yes(_: &mut Call<'_>) -> io::Result<u8> {
    Ok(0)
}

pub(super) fn no(_: &mut Call<'_>) -> io::Result<u8> {
    Ok(1)
}

pub(super) fn pwd(call: &mut Call<'_>) -> io::Result<u8> {
    call.say(call.folder.display().to_string())?;
    Ok(0)
}

/// The variables, but for the one that was made for `ps`.
fn shown(variables: &Variables) -> impl Iterator<Item = (&String, &String)> {
    variables.iter().filter(|(name, _)| *name != PROCESSES)
}

pub(super) fn env(call: &mut Call<'_>) -> io::Result<u8> {
    let mut variables = call.variables.clone();
    let mut args = call.args;
    loop {
        match args {
            [flag, rest @ ..] if flag == "-i" || flag == "-" => {
                variables.clear();
                args = rest;
            }
            [flag, name, rest @ ..] if flag == "-u" => {
                variables.remove(name);
                args = rest;
            }
            [one, rest @ ..] if one.contains('=') => {
                if let Some((name, value)) = one.split_once('=') {
                    variables.insert(name.to_owned(), value.to_owned());
                }
                args = rest;
            }
            [flag, ..] if flag.starts_with('-') => {
                return Err(usage(format!("unknown option {flag}")));
            }
            _ => break,
        }
    }
    let Some((name, args)) = args.split_first() else {
        for (name, value) in shown(&variables) {
            call.say(format!("{name}={value}"))?;
        }
        return Ok(0);
    };
    let Some(program) = super::program(name) else {
        call.complain(name, &"not found");
        return Ok(127);
    };
    let streams = call.streams.clone();
    let mut inner = Call { name, args, variables: &variables, folder: call.folder, streams };
    Ok(super::run(program, &mut inner))
}

pub(super) fn printenv(call: &mut Call<'_>) -> io::Result<u8> {
    if call.args.is_empty() {
        for (name, value) in shown(call.variables) {
            call.say(format!("{name}={value}"))?;
        }
        return Ok(0);
    }
    let mut code = 0;
    for name in call.args {
        match call.variables.get(name) {
            Some(value) => call.say(value)?,
            None => code = 1,
        }
    }
    Ok(code)
}

pub(super) fn hostname(call: &mut Call<'_>) -> io::Result<u8> {
    match call.variables.get("HOSTNAME") {
        Some(name) => call.say(name)?,
        None => return Err(io::Error::other("HOSTNAME is not set, and WASI has no other way")),
    }
    Ok(0)
}

pub(super) fn uname(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("asnrvm")?;
    let node = call.variables.get("HOSTNAME").map_or("localhost", String::as_str);
    let version = env!("CARGO_PKG_VERSION");
    let all = [
        ('s', "wasi"),
        ('n', node),
        ('r', version),
        ('v', "copepod"),
        ('m', std::env::consts::ARCH),
    ];
    let wanted = |flag| options.has('a') || options.has(flag);
    let mut shown: Vec<&str> =
        all.iter().filter(|(flag, _)| wanted(*flag)).map(|(_, text)| *text).collect();
    if shown.is_empty() {
        shown.push(all[0].1);
    }
    call.say(shown.join(" "))?;
    Ok(0)
}

pub(super) fn date(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("uId:")?;
    let time = match options.value('d') {
        Some(at) => {
            let seconds = at.strip_prefix('@').and_then(|it| it.parse().ok());
            let seconds = seconds.ok_or_else(|| usage("-d takes @SECONDS"))?;
            Timestamp::from_second(seconds).map_err(|error| usage(error.to_string()))?
        }
        None => Timestamp::now(),
    };
    // A guest has no time zones but this.
    let time = time.to_zoned(TimeZone::UTC);
    let format = match options.rest.first() {
        Some(format) => {
            format.strip_prefix('+').ok_or_else(|| usage("a format begins with +"))?.to_owned()
        }
        None if options.has('I') => "%Y-%m-%d".to_owned(),
        None => "%a %b %e %H:%M:%S UTC %Y".to_owned(),
    };
    let text = jiff::fmt::strtime::format(&format, &time);
    call.say(text.map_err(|error| usage(format!("format {format:?}: {error}")))?)?;
    Ok(0)
}

pub(super) fn sleep(call: &mut Call<'_>) -> io::Result<u8> {
    if call.args.is_empty() {
        return Err(usage("say how long: sleep SECONDS"));
    }
    let mut all = Duration::ZERO;
    for text in call.args {
        if matches!(text.as_str(), "infinity" | "inf") {
            all = Duration::from_secs(u64::MAX >> 16);
            break;
        }
        let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
            Some(at) => text.split_at(at),
            None => (text.as_str(), "s"),
        };
        let factor = match unit {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(usage(format!("{text}: the units are s, m, h and d"))),
        };
        let seconds: f64 = number.parse().map_err(|_| usage(format!("{text} is no time")))?;
        let time = Duration::try_from_secs_f64(seconds * factor);
        all = all.saturating_add(time.map_err(|error| usage(format!("{text}: {error}")))?);
    }
    std::thread::sleep(all);
    Ok(0)
}

/// What runs in the pod: each container is one program, and none has a number.
pub(super) fn ps(call: &mut Call<'_>) -> io::Result<u8> {
    let Some(processes) = call.variables.get(PROCESSES) else {
        return Err(io::Error::other("only what `exec` runs is told of the pod's containers"));
    };
    call.say(format_args!("{:<20} {:>9} {:>10} COMMAND", "CONTAINER", "TIME", "MEMORY"))?;
    for line in processes.lines() {
        let mut parts = line.splitn(4, '\t');
        let mut part = || parts.next().unwrap_or_default();
        let (container, millis, bytes, command) = (part(), part(), part(), part());
        let seconds = millis.parse::<u64>().unwrap_or_default() / 1000;
        let time = format!("{}:{:02}", seconds / 60, seconds % 60);
        let memory = format!("{} KiB", bytes.parse::<u64>().unwrap_or_default() >> 10);
        call.say(format_args!("{container:<20} {time:>9} {memory:>10} {command}"))?;
    }
    Ok(0)
}

/// Whether a folder is there, for `cd`.
pub(crate) fn is_folder(path: &std::path::Path) -> bool {
    places::found(path, true).is_ok_and(|found| found.is_dir())
}
