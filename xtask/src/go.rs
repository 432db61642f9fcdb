//! The Go of this machine, where it is new enough for a module.
//!
//! Absent: bringing one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A Go that is new enough.
pub(crate) struct Go(PathBuf);

impl Go {
    /// The one on the PATH, else the one where Go's own instructions put it. `what` is built by it, for the message where there is none, and
    /// `otherwise` ends that.
    pub(crate) fn find(module: &Path, what: &str, otherwise: &str) -> Result<Self> {
        let candidates = [PathBuf::from("go"), PathBuf::from("/usr/local/go/bin/go")];
        let file = module.join("go.mod");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let needed = required_go(&text);
        let mut found = "there is none".to_owned();
        for program in candidates {
            // Asked there, a Go since 1.21 that may do so gets itself the version that the module needs.
            match Command::new(&program).current_dir(module).args(["env", "GOVERSION"]).output() {
                Ok(answer) if answer.status.success() => {
                    let version = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
                    if at_least(&version, needed) {
                        return Ok(Self(program));
                    }
                    found = format!("{} is {version}", program.display());
                }
                Ok(answer) => {
                    let said = String::from_utf8_lossy(&answer.stderr);
                    found = format!("{} says: {}", program.display(), said.trim());
                }
                Err(_) => {}
            }
        }
        bail!(
            "{what} built by Go {needed} or later, and {found}. Unpack a later one from https://go.dev/dl/ to /usr/local/go, or put it \
             on the PATH.{otherwise}"
        )
    }

    /// It, to be run in a module.
    pub(crate) fn command(&self, module: &Path) -> Command {
        let mut command = Command::new(&self.0);
        command.current_dir(module);
        command
    }
}

/// The least Go that a go.mod asks for.
pub(crate) fn required_go(module_file: &str) -> &str {
    module_file.lines().find_map(|line| line.strip_prefix("go ")).unwrap_or_default().trim()
}

/// Whether `version`, such as `go1.26.8`, is `needed`, such as `1.26.0`, or later.
pub(crate) fn at_least(version: &str, needed: &str) -> bool {
    let parts = |version: &str| -> Vec<u32> {
        version
            .trim_start_matches("go")
            .split(|it: char| !it.is_ascii_digit())
            .map_while(|part| part.parse().ok())
            .collect()
    };
    parts(version) >= parts(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_is_new_enough_by_its_numbers_and_not_by_its_letters() {
        for (version, enough) in [
            ("go1.26.8", true),
            ("go1.26.0", true),
            ("go1.100", true),
            ("go1.26rc1", false),
            ("go1.19.8", false),
            ("", false),
        ] {
            assert_eq!(at_least(version, "1.26.0"), enough, "{version}");
        }
    }
}
