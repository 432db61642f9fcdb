//! What is part of the shell, as it changes the shell itself.

use std::io::Write as _;

use super::shell::{Flow, Shell, Variable};
use crate::places;
use crate::streams::Input;
use crate::tools;

type Builtin = fn(&mut Shell, &[String]) -> Result<Flow, String>;

const BUILTINS: &[(&str, Builtin)] = &[
    (".", source),
    (":", nothing),
    ("break", leave_loop),
    ("cd", cd),
    ("command", command),
    ("continue", go_on),
    ("eval", eval),
    ("exec", exec),
    ("exit", exit),
    ("export", export),
    ("help", help),
    ("local", local),
    ("pwd", pwd),
    ("read", read),
    ("readonly", read_only),
    ("return", give_back),
    ("set", set),
    ("shift", shift),
    ("source", source),
    ("trap", trap),
    ("type", kind),
    ("unset", unset),
    ("wait", wait),
];

pub(super) fn builtin(name: &str) -> Option<Builtin> {
    BUILTINS.iter().find(|(known, _)| *known == name).map(|(_, builtin)| *builtin)
}

fn done(shell: &mut Shell) -> Result<Flow, String> {
    shell.status = 0;
    Ok(Flow::Next)
}

fn say(shell: &mut Shell, line: &str) -> Result<(), String> {
    writeln!(shell.streams.output, "{line}").map_err(|error| error.to_string())
}

fn nothing(shell: &mut Shell, _: &[String]) -> Result<Flow, String> {
    done(shell)
}

fn number(args: &[String], default: usize) -> Result<usize, String> {
    args.first().map_or(Ok(default), |text| {
        text.parse().map_err(|_| format!("{text:?} is no whole number"))
    })
}

fn leave_loop(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    shell.status = 0;
    Ok(Flow::Break(number(args, 1)?.max(1)))
}

fn go_on(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    shell.status = 0;
    Ok(Flow::Continue(number(args, 1)?.max(1)))
}

fn code(shell: &mut Shell, args: &[String]) -> Result<(), String> {
    // As POSIX has it, of a larger number the lowest eight bits count.
    shell.status = (number(args, usize::from(shell.status))? & 0xff) as u8;
    Ok(())
}

fn exit(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    code(shell, args)?;
    Ok(Flow::Exit)
}

fn give_back(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    code(shell, args)?;
    Ok(Flow::Return)
}

fn cd(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    let home = shell.get("HOME").unwrap_or("/").to_owned();
    let back = shell.get("OLDPWD").unwrap_or("/").to_owned();
    let to = match args.first().map(String::as_str) {
        None => &home,
        Some("-") => &back,
        Some(to) => to,
    };
    let path = places::joined(&shell.folder, to);
    if !tools::is_folder(&path) {
        shell.complain(&format!("cd: {to}: no such folder"));
        shell.status = 1;
        return Ok(Flow::Next);
    }
    let before = std::mem::replace(&mut shell.folder, path).display().to_string();
    shell.set("OLDPWD", before)?;
    let now = shell.folder.display().to_string();
    shell.set("PWD", now)?;
    done(shell)
}

fn pwd(shell: &mut Shell, _: &[String]) -> Result<Flow, String> {
    let folder = shell.folder.display().to_string();
    say(shell, &folder)?;
    done(shell)
}

fn eval(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    shell.status = 0;
    Ok(super::run_text(shell, &args.join(" ")))
}

fn source(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    let [file, ..] = args else { return Err("a file is missing".into()) };
    let path = places::joined(&shell.folder, file);
    let read = places::open(&path).and_then(|mut input| input.rest());
    let script = read.map_err(|error| format!("{file}: {error}"))?;
    shell.status = 0;
    let flow = super::run_text(shell, &String::from_utf8_lossy(&script));
    Ok(if flow == Flow::Return { Flow::Next } else { flow })
}

/// A program in the shell's place: the shell ends with it.
fn exec(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    let [name, args @ ..] = args else { return done(shell) };
    shell.at_exit = None;
    shell.run(name, args);
    Ok(Flow::Exit)
}

fn command(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    match args {
        [flag, names @ ..] if flag == "-v" || flag == "-V" => {
            shell.status = 0;
            for name in names {
                let is_known = shell.has_function(name)
                    || builtin(name).is_some()
                    || tools::program(name).is_some();
                if is_known {
                    say(shell, name)?;
                } else {
                    shell.status = 127;
                }
            }
            Ok(Flow::Next)
        }
        [name, args @ ..] => Ok(shell.run(name, args)),
        [] => done(shell),
    }
}

fn kind(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    shell.status = 0;
    for name in args {
        let what = match () {
            () if shell.has_function(name) => "a function",
            () if builtin(name).is_some() => "part of the shell",
            () if tools::program(name).is_some() => "a program of the toolbox",
            () => {
                shell.complain(&format!("type: {name}: not found"));
                shell.status = 127;
                continue;
            }
        };
        say(shell, &format!("{name} is {what}"))?;
    }
    Ok(Flow::Next)
}

fn help(shell: &mut Shell, _: &[String]) -> Result<Flow, String> {
    let builtins: Vec<&str> = BUILTINS.iter().map(|(name, _)| *name).collect();
    let programs: Vec<&str> = tools::names().collect();
    say(shell, &format!("Part of the shell: {}", builtins.join(" ")))?;
    say(shell, &format!("Programs: {}", programs.join(" ")))?;
    done(shell)
}

/// Whether a word can be a variable's name.
fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// Marks variables, which may be given a value at the same time.
fn mark(
    shell: &mut Shell,
    args: &[String],
    mut with: impl FnMut(&mut Variable),
) -> Result<Flow, String> {
    for arg in args {
        let (name, value) =
            arg.split_once('=').map_or((arg.as_str(), None), |(name, value)| (name, Some(value)));
        if !is_name(name) {
            return Err(format!("{name:?} is no variable's name"));
        }
        if let Some(value) = value {
            shell.set(name, value)?;
        }
        with(shell.variables.entry(name.to_owned()).or_default());
    }
    done(shell)
}

fn export(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    let args = args.strip_prefix(&["-p".to_owned()][..]).unwrap_or(args);
    if args.is_empty() {
        for (name, value) in shell.environment() {
            say(shell, &format!("export {name}='{}'", value.replace('\'', r"'\''")))?;
        }
        return done(shell);
    }
    mark(shell, args, |variable| variable.exported = true)
}

fn read_only(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    mark(shell, args, |variable| variable.read_only = true)
}

fn local(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    for arg in args {
        let name = arg.split_once('=').map_or(arg.as_str(), |(name, _)| name);
        let before = shell.variables.get(name).cloned();
        let Some(aside) = shell.locals.last_mut() else {
            return Err("only a function has variables of its own".into());
        };
        aside.push((name.to_owned(), before));
        if !arg.contains('=') {
            shell.variables.remove(name);
        }
    }
    mark(shell, args, |_| ())
}

fn unset(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    let (functions, names) = match args {
        [flag, names @ ..] if flag == "-f" => (true, names),
        [flag, names @ ..] if flag == "-v" => (false, names),
        names => (false, names),
    };
    for name in names {
        if functions {
            shell.forget_function(name);
        } else if shell.variables.get(name).is_some_and(|variable| variable.read_only) {
            return Err(format!("{name}: is read only"));
        } else {
            shell.variables.remove(name);
        }
    }
    done(shell)
}

fn set(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    if args.is_empty() {
        let all: Vec<String> = shell
            .variables
            .iter()
            .filter_map(|(name, it)| {
                Some(format!("{name}='{}'", it.value.as_ref()?.replace('\'', r"'\''")))
            })
            .collect();
        all.iter().try_for_each(|line| say(shell, line))?;
        return done(shell);
    }
    let mut args = args;
    while let Some((first, rest)) = args.split_first() {
        let (on, flags) = match first.split_at_checked(1) {
            Some(("-", flags)) => (true, flags),
            Some(("+", flags)) => (false, flags),
            _ => break,
        };
        args = rest;
        if flags == "-" {
            shell.positional = args.to_vec();
            return done(shell);
        }
        for flag in flags.chars() {
            if flag == 'o' {
                let Some((name, rest)) = args.split_first() else {
                    return Err("-o needs a name".into());
                };
                args = rest;
                shell.options.set_named(name, on)?;
            } else {
                shell.options.set(flag, on)?;
            }
        }
    }
    if !args.is_empty() {
        shell.positional = args.to_vec();
    }
    done(shell)
}

fn shift(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    let count = number(args, 1)?;
    if count > shell.positional.len() {
        return Err(format!("there are {} left", shell.positional.len()));
    }
    shell.positional.drain(..count);
    done(shell)
}

fn read(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    let (mut raw, mut args) = (false, args);
    while let Some((flag, rest)) = args.split_first() {
        match flag.as_str() {
            "-r" => raw = true,
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
            _ => break,
        }
        args = rest;
    }
    let reply = ["REPLY".to_owned()];
    let names = if args.is_empty() { &reply[..] } else { args };
    let mut text = String::new();
    let is_whole = loop {
        let line = match &mut shell.streams.input {
            Input::Null => Vec::new(),
            input => input.line().map_err(|error| error.to_string())?,
        };
        let is_whole = line.ends_with(b"\n");
        text.push_str(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        if raw || !is_whole || !text.ends_with('\\') {
            break is_whole;
        }
        text.pop();
    };
    if !raw {
        // A backslash is before what stands for itself.
        let mut plain = String::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            plain.extend(if letter == '\\' { letters.next() } else { Some(letter) });
        }
        text = plain;
    }
    let ifs = shell.get("IFS").unwrap_or(" \t\n").to_owned();
    let blanks: Vec<char> = ifs.chars().filter(|it| it.is_ascii_whitespace()).collect();
    let mut rest = text.trim_matches(&blanks[..]);
    for (at, name) in names.iter().enumerate() {
        let is_last = at + 1 == names.len();
        let end = if is_last { None } else { rest.find(|letter| ifs.contains(letter)) };
        let (value, after) = match end {
            Some(end) => {
                let (value, after) = rest.split_at(end);
                let after = after.trim_start_matches(&blanks[..]);
                let ended_by_other = after.len() == rest.len() - end;
                let skip =
                    if ended_by_other { after.chars().next().map_or(0, char::len_utf8) } else { 0 };
                (value, &after[skip..])
            }
            None => (rest, ""),
        };
        let value = value.to_owned();
        rest = after;
        shell.set(name, value)?;
    }
    shell.status = u8::from(!is_whole);
    Ok(Flow::Next)
}

/// Only the end of the shell can be waited for: a guest gets no signals.
fn trap(shell: &mut Shell, args: &[String]) -> Result<Flow, String> {
    let (action, signals) = match args {
        [] => return done(shell),
        [flag, rest @ ..] if flag == "--" || flag == "-" => (None, rest),
        [action, rest @ ..] => (Some(action), rest),
    };
    if signals.iter().any(|signal| matches!(signal.as_str(), "EXIT" | "0")) {
        shell.at_exit = action.filter(|action| !action.is_empty()).cloned();
    }
    done(shell)
}

/// Nothing runs beside the shell.
fn wait(shell: &mut Shell, _: &[String]) -> Result<Flow, String> {
    done(shell)
}
