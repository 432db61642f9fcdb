//! One call of a program: its arguments, variables, folder and streams.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::places;
use crate::streams::{Input, Streams};

/// Variables of the environment.
pub type Variables = BTreeMap<String, String>;

/// What a program works on.
#[derive(Debug)]
pub struct Call<'a> {
    /// The name that it was called by.
    pub name: &'a str,
    /// The arguments after the name.
    pub args: &'a [String],
    /// The environment.
    pub variables: &'a Variables,
    /// The folder that relative paths begin in.
    pub folder: &'a Path,
    /// Where it reads and writes.
    pub streams: Streams,
}

/// Options that were asked for, and what is no option.
#[derive(Debug, Default)]
pub struct Options {
    flags: Vec<(char, Option<String>)>,
    /// The operands.
    pub rest: Vec<String>,
}

impl Options {
    /// Whether a flag was given.
    pub fn has(&self, flag: char) -> bool {
        self.flags.iter().any(|(it, _)| *it == flag)
    }

    /// The last value of an option.
    pub fn value(&self, flag: char) -> Option<&str> {
        self.flags.iter().rev().find(|(it, _)| *it == flag)?.1.as_deref()
    }

    /// All values of an option.
    pub fn values(&self, flag: char) -> impl Iterator<Item = &str> {
        self.flags
            .iter()
            .filter(move |(it, _)| *it == flag)
            .filter_map(|(_, value)| value.as_deref())
    }
}

/// Parses POSIX options: `known` has each flag's letter, with a `:` behind those that take a value. `--` ends them, and `-` is none.
///
/// # Errors
/// An option that is not known, or without its value.
pub fn parse(args: &[String], known: &str) -> io::Result<Options> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(flags) = arg.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            options.rest.push(arg.clone());
            continue;
        };
        if flags == "-" {
            options.rest.extend(args.cloned());
            break;
        }
        let mut flags = flags.chars();
        while let Some(flag) = flags.next() {
            let at = known.find(flag).filter(|_| flag != ':');
            let Some(at) = at else { return Err(usage(format!("unknown option {arg}"))) };
            if known[at + flag.len_utf8()..].starts_with(':') {
                let own: String = flags.by_ref().collect();
                let value = if own.is_empty() { args.next().cloned() } else { Some(own) };
                let value = value.ok_or_else(|| usage(format!("-{flag} needs a value")))?;
                options.flags.push((flag, Some(value)));
            } else {
                options.flags.push((flag, None));
            }
        }
    }
    Ok(options)
}

/// A call that cannot be: what to write instead, and nothing was done.
pub(crate) fn usage(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}

impl Call<'_> {
    /// Where a path leads.
    pub fn path(&self, path: &str) -> PathBuf {
        places::joined(self.folder, path)
    }

    /// The call's own options ([`parse`]).
    ///
    /// # Errors
    /// As there.
    pub fn options(&self, known: &str) -> io::Result<Options> {
        parse(self.args, known)
    }

    /// Says what went wrong with one operand; the exit code for it.
    pub fn complain(&mut self, what: &str, error: &dyn std::fmt::Display) -> u8 {
        let text = format!("{}: {what}: {error}\n", self.name);
        let _ = self.streams.error.write_all(text.as_bytes());
        1
    }

    /// Writes a line.
    ///
    /// # Errors
    /// The stream's.
    pub fn say(&mut self, line: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.streams.output, "{line}")
    }

    /// Opens a file to read; `-` is the call's own input.
    ///
    /// # Errors
    /// The file's.
    pub fn open(&self, path: &str) -> io::Result<Input> {
        if matches!(path, "-" | "/dev/stdin") {
            return Ok(self.streams.input.clone());
        }
        places::open(&self.path(path))
    }

    /// Gives each of the files, or the call's input where there is none, to `each`; what cannot be read is told, and the code is 1 then.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn each_input(
        &mut self,
        files: &[String],
        mut each: impl FnMut(&mut Self, &str, &mut Input) -> io::Result<()>,
    ) -> io::Result<u8> {
        let own = ["-".to_owned()];
        let files = if files.is_empty() { &own[..] } else { files };
        let mut code = 0;
        for file in files {
            match self.open(file) {
                Ok(mut input) => each(self, file, &mut input)?,
                Err(error) => code = self.complain(file, &error),
            }
        }
        Ok(code)
    }

    /// Copies all that is left of an input.
    ///
    /// # Errors
    /// Either's.
    pub fn copy(&mut self, input: &mut Input) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = input.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            self.streams.output.write_all(&buffer[..length])?;
        }
    }
}
