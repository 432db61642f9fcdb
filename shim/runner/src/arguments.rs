//! The runner's few arguments.
//!
//! Absent: a parser crate. Nobody but the agent and tests starts this program, and every crate here is part of what guests
//! can attack.

use std::ffi::OsString;
use std::path::PathBuf;

use copepod_shim::engine::Salt;

/// What the runner was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Where it runs.
    pub place: Place,
    /// Hex sha256 of this program; computed where it is not given.
    pub build: Option<String>,
    /// The compatibility hash of the agent's engine.
    pub engine: String,
    /// What its compiler was given, too.
    pub engine_salt: Option<Salt>,
    /// It takes over from another runner in the same tree, which goes on until it has.
    pub is_heir: bool,
}

/// Where a runner runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// As the agent says on standard input.
    Confined,
    /// As whoever started it, without any fence: for tests.
    Unconfined {
        /// What it takes for `/`.
        root: PathBuf,
        /// Where it listens.
        socket: PathBuf,
    },
}

/// The arguments are not understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}; usage: copepod-runner [--build HASH] [--engine HASH] [--engine-salt SALT] [--heir] [--unconfined --root DIR --socket PATH]"
)]
pub struct Misused(String);

impl Arguments {
    /// Reads arguments, without the program's name.
    ///
    /// # Errors
    /// Something is unknown or missing.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Misused> {
        let mut arguments = arguments.into_iter();
        let (mut build, mut engine, mut engine_salt) = (None, String::new(), None);
        let (mut unconfined, mut root, mut socket) = (false, None, None);
        let mut is_heir = false;
        while let Some(argument) = arguments.next() {
            let name = argument.to_string_lossy().into_owned();
            let mut value =
                || arguments.next().ok_or_else(|| Misused(format!("{name} needs a value")));
            match name.as_str() {
                "--unconfined" => unconfined = true,
                "--heir" => is_heir = true,
                "--build" => build = Some(value()?.to_string_lossy().into_owned()),
                "--engine" => engine = value()?.to_string_lossy().into_owned(),
                "--engine-salt" => {
                    engine_salt = Some(value()?.to_string_lossy().parse().map_err(Misused)?);
                }
                "--root" => root = Some(PathBuf::from(value()?)),
                "--socket" => socket = Some(PathBuf::from(value()?)),
                _ => return Err(Misused(format!("{name} is unknown"))),
            }
        }
        let place = match (unconfined, root, socket) {
            (true, Some(root), Some(socket)) => Place::Unconfined { root, socket },
            (true, ..) => return Err(Misused("--unconfined needs --root and --socket".into())),
            (false, None, None) => Place::Confined,
            (false, ..) => return Err(Misused("--root and --socket need --unconfined".into())),
        };
        Ok(Self { place, build, engine, engine_salt, is_heir })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments, Misused> {
        Arguments::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn without_arguments_the_runner_confines_itself() {
        let arguments = parse(&["--engine", "e"]).expect("understood");

        let (place, engine) = (Place::Confined, "e".into());
        let expected = Arguments { place, build: None, engine, engine_salt: None, is_heir: false };
        assert_eq!(arguments, expected);
    }

    #[test]
    fn a_root_without_unconfined_is_refused_and_not_ignored() {
        assert!(parse(&["--root", "/tmp", "--socket", "s"]).is_err());
        assert!(parse(&["--unconfined"]).is_err());
        assert!(parse(&["--fast"]).is_err());
        assert!(parse(&["--build"]).is_err());
        assert!(parse(&["--engine-salt", "a b"]).is_err());
    }
}
