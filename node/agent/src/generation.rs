//! Generations: the programs of each build that runs here, as they are executed.
//!
//! ```text
//! <data>/bin/<build hash>/copepod-runner, copepod   copies, so that an upgrade of the installed ones does not change what runs
//!                         generation.json           the engine that both were built with
//! <data>/current.json                               which of them the agents are of, and since when
//! ```
//! A runner, the compiler of its code and that code are of one generation. An agent starts runners of its own only, and goes on with
//! those of others while they live: so long their programs and their code stay.
//!
//! Absent: which pod is in a runner of which generation (`homes`), and the code itself (`copepod-image`).

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use copepod_image::{Compiler, is_engine_hash};
use copepod_shim::engine::Salt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::AgentConfig;
use crate::journal::write_whole;

const RUNNER: &str = "copepod-runner";
const COMPILER: &str = "copepod";
const LABEL: &str = "generation.json";
const CURRENT: &str = "current.json";

/// One generation: programs that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Generation {
    /// Hex sha256 over both programs, and over the engine's salt where there is one.
    pub(crate) build: String,
    /// The runner's program.
    pub(crate) runner: PathBuf,
    /// What compiles for that runner.
    pub(crate) compiler: Compiler,
}

/// What the programs alone do not tell: their engine, which depends on the machine too.
#[derive(Serialize, Deserialize)]
struct Label {
    engine: String,
    #[serde(default)]
    salt: Option<Salt>,
}

/// Which generation the agents of a data directory are of.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Current {
    build: String,
    /// When the first of them started, in Unix seconds.
    since: i64,
}

/// The programs of all generations in a data directory.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    folder: PathBuf,
}

impl Programs {
    pub(crate) fn of(data: &Path) -> Self {
        Self { folder: data.join("bin") }
    }

    fn generation(&self, build: &str, label: Label) -> Generation {
        let folder = self.folder.join(build);
        let Label { engine, salt } = label;
        Generation {
            build: build.to_owned(),
            runner: folder.join(RUNNER),
            compiler: Compiler { program: folder.join(COMPILER), engine, salt },
        }
    }

    /// The agent's own generation, put in place; `engine` is its engine's hash. A crash at any step leaves what the next call
    /// completes.
    pub(crate) fn install(&self, config: &AgentConfig, engine: String) -> io::Result<Generation> {
        let salt = config.engine_salt.clone();
        let mut hash = Sha256::new();
        let mut read = Vec::new();
        for program in [&config.runner, &config.compiler] {
            let bytes = std::fs::read(program).map_err(|error| at(program, error))?;
            hash.update(&bytes);
            read.push(bytes);
        }
        if let Some(salt) = &salt {
            hash.update(salt.to_string());
        }
        let build = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let folder = self.folder.join(&build);
        std::fs::create_dir_all(&folder).map_err(|error| at(&folder, error))?;
        for (name, bytes) in [RUNNER, COMPILER].into_iter().zip(read) {
            let path = folder.join(name);
            if !path.exists() {
                write_whole(&path, &bytes, 0o666).map_err(|error| at(&path, error))?;
            }
            std::fs::set_permissions(&path, Permissions::from_mode(0o755))
                .map_err(|error| at(&path, error))?;
        }
        let label = Label { engine, salt };
        let path = folder.join(LABEL);
        let bytes = serde_json::to_vec(&label).map_err(io::Error::other)?;
        if !std::fs::read(&path).is_ok_and(|there| there == bytes) {
            write_whole(&path, &bytes, 0o666).map_err(|error| at(&path, error))?;
        }
        Ok(self.generation(&build, label))
    }

    /// Since when agents have been of this generation, in Unix seconds: since `now`, where the last one was of another.
    pub(crate) fn current_since(&self, own: &Generation, now: i64) -> io::Result<i64> {
        let path = self.folder.with_file_name(CURRENT);
        let kept = std::fs::read(&path).ok();
        let kept = kept.and_then(|bytes| serde_json::from_slice::<Current>(&bytes).ok());
        if let Some(kept) = kept.filter(|kept| kept.build == own.build) {
            return Ok(kept.since);
        }
        let current = Current { build: own.build.clone(), since: now };
        let bytes = serde_json::to_vec(&current).map_err(io::Error::other)?;
        write_whole(&path, &bytes, 0o666).map_err(|error| at(&path, error))?;
        Ok(now)
    }

    /// The generation of a runner that lives, by the program that it was started from.
    pub(crate) fn of_runner(&self, program: &Path) -> io::Result<Generation> {
        let build = build_of(program)
            .ok_or_else(|| at(program, io::Error::other("no generation's program lies there")))?;
        Ok(self.generation(build, self.label(build)?))
    }

    fn label(&self, build: &str) -> io::Result<Label> {
        let path = self.folder.join(build).join(LABEL);
        let bytes = std::fs::read(&path).map_err(|error| at(&path, error))?;
        let label: Label =
            serde_json::from_slice(&bytes).map_err(|error| at(&path, error.into()))?;
        // It becomes a folder's name.
        if !is_engine_hash(&label.engine) {
            return Err(at(&path, io::Error::other(format!("{:?} is no engine", label.engine))));
        }
        Ok(label)
    }

    /// The engines of `builds`.
    pub(crate) fn engines(&self, builds: &BTreeSet<String>) -> io::Result<BTreeSet<String>> {
        builds.iter().map(|build| Ok(self.label(build)?.engine)).collect()
    }

    /// Removes the programs of all builds but those in `keep`; what was removed.
    pub(crate) fn remove_others(&self, keep: &BTreeSet<String>) -> io::Result<Vec<String>> {
        let mut removed = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(|error| at(&self.folder, error))? {
            let path = entry.map_err(|error| at(&self.folder, error))?.path();
            let Some(build) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if is_build_hash(build) && !keep.contains(build) {
                std::fs::remove_dir_all(&path).map_err(|error| at(&path, error))?;
                removed.push(build.to_owned());
            }
        }
        Ok(removed)
    }
}

/// The build that a program belongs to: the name of the folder that it lies in.
pub(crate) fn build_of(program: &Path) -> Option<&str> {
    let folder = program.parent()?.file_name()?.to_str()?;
    is_build_hash(folder).then_some(folder)
}

fn is_build_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        programs: Programs,
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, bytes) in [("runner", "one"), ("compiler", "two")] {
            std::fs::write(folder.path().join(name), bytes).expect("written");
        }
        let programs = Programs::of(&folder.path().join("data"));
        Fixture { folder, programs }
    }

    impl Fixture {
        fn install(&self, salt: Option<&str>) -> Generation {
            let at = |name: &str| self.folder.path().join(name);
            let mut config = AgentConfig::new(at("data"), at("runner"), at("compiler"));
            config.engine_salt = salt.map(|it| it.parse().expect("a salt"));
            let engine = if salt.is_some() { "5" } else { "0" }.repeat(32);
            self.programs.install(&config, engine).expect("installed")
        }
    }

    #[test]
    fn a_generation_is_found_again_by_its_runner_s_program() {
        let fixture = fixture();

        let own = fixture.install(None);

        assert_eq!(fixture.programs.of_runner(&own.runner).expect("there"), own);
        assert_eq!(std::fs::read(&own.runner).expect("there"), b"one");
        assert_eq!(std::fs::read(&own.compiler.program).expect("there"), b"two");
        assert_eq!(fixture.install(None), own);
    }

    #[test]
    fn another_program_makes_another_build_and_so_does_a_salt() {
        let fixture = fixture();
        let first = fixture.install(None);

        std::fs::write(fixture.folder.path().join("compiler"), "two!").expect("written");
        let second = fixture.install(None);
        let salted = fixture.install(Some("next"));

        assert_ne!(first.build, second.build);
        assert_ne!(second.build, salted.build);
        assert_eq!(fixture.programs.of_runner(&salted.runner).expect("there"), salted);
    }

    #[test]
    fn a_generation_is_the_current_one_since_an_agent_of_another_was_the_last() {
        let fixture = fixture();
        let [first, second] = [fixture.install(None), fixture.install(Some("next"))];
        let since = |own, now| fixture.programs.current_since(own, now).expect("known");

        assert_eq!([since(&first, 10), since(&first, 20)], [10, 10]);
        assert_eq!([since(&second, 30), since(&second, 40)], [30, 30]);
        assert_eq!(since(&first, 50), 50, "a downgrade counts anew");
    }

    #[test]
    fn a_program_that_lies_elsewhere_is_of_no_generation() {
        let fixture = fixture();
        let own = fixture.install(None);
        let outside = Path::new("/usr/bin/copepod-runner");
        let unlabelled = fixture.programs.folder.join("0".repeat(64)).join(RUNNER);

        assert!(fixture.programs.of_runner(outside).is_err());
        assert!(fixture.programs.of_runner(&unlabelled).is_err());
        let label = own.runner.with_file_name(LABEL);
        std::fs::write(label, r#"{"engine":"../../etc"}"#).expect("written");
        assert!(fixture.programs.of_runner(&own.runner).is_err());
    }

    #[test]
    fn programs_that_no_runner_is_of_go_and_the_others_stay() {
        let fixture = fixture();
        let [old, own] = [fixture.install(None), fixture.install(Some("next"))];
        let all = [old.build.clone(), own.build.clone()].into();
        assert_eq!(fixture.programs.remove_others(&all).expect("read"), Vec::<String>::new());
        assert_eq!(fixture.programs.engines(&all).expect("read").len(), 2);

        let removed = fixture.programs.remove_others(&[own.build.clone()].into()).expect("removed");

        assert_eq!(removed, [old.build]);
        assert!(!old.runner.exists() && own.runner.exists());
    }
}
