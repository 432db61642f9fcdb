//! Which program a command is: the container's own, a wasm file that the container sees, or one of the toolbox.
//!
//! A container's own name for itself comes first, so that no file and no tool takes its place; then what it brings; then what we ship.
//! Whatever is none of these is an argument to the container's own module. Absent: the toolbox's programs (`toolbox/`).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use copepod_image::{Code, CompileError, Compiler, Image, Images};
use copepod_shim::kind::Kind;
use copepod_shim::protocol::{Answer, AttemptId, Failure, GuestMount, Request, StartContainer};
use copepod_shim::seen;
use k8s_openapi::api::core::v1::Container;

use crate::causes::with_causes;
use crate::domains::Live;
use crate::perform::Performer;
use crate::pod::{ReadyImage, World};
use crate::runner::RequestError;

/// The programs of the toolbox, in order; a test compares them with what it has.
const TOOLS: &[&str] = &[
    "[", "basename", "cat", "cp", "cut", "date", "dd", "dirname", "du", "echo", "env", "false",
    "find", "grep", "head", "hostname", "ln", "ls", "mkdir", "mv", "nslookup", "printenv",
    "printf", "ps", "pwd", "readlink", "rm", "rmdir", "seq", "sh", "sleep", "sort", "stat", "sync",
    "tail", "tar", "tee", "test", "touch", "tr", "true", "uname", "uniq", "wc", "wget",
];

/// After a node's start, before its toolbox is compiled: what its pods need comes first.
const TOOLBOX_AFTER: Duration = Duration::from_secs(30);

/// Has the toolbox compiled before anybody waits for it: `kubectl cp` gives up after ten seconds.
pub(crate) async fn bring_toolbox(images: Images, compiler: Compiler, toolbox: Option<PathBuf>) {
    tokio::time::sleep(TOOLBOX_AFTER).await;
    let Some(Ok(file)) = toolbox.map(File::open) else { return };
    if let Err(error) = images.code_of_file(file, &compiler, &|_| ()).await {
        tracing::warn!(error = with_causes(&error), "the toolbox cannot be compiled");
    }
}

/// Whether the toolbox has a program of this name, or at this path where programs are looked for.
fn is_tool(name: &str) -> bool {
    let name = match name.rsplit_once('/') {
        Some(("/bin" | "/usr/bin", name)) => name,
        Some(_) => return false,
        None => name,
    };
    TOOLS.binary_search(&name).is_ok()
}

/// Whether a name is the container's own for its image's program.
fn is_own(name: &str, container: &Container, image: &Image) -> bool {
    let command = container.command.iter().flatten().next();
    command.is_some_and(|own| own == name && !may_be_a_file(container, image))
        || is_image_s(name, image)
        || image.program.strip_suffix(".wasm") == Some(name)
}

fn is_image_s(name: &str, image: &Image) -> bool {
    name == image.program || image.entrypoint.first().is_some_and(|it| it == name)
}

/// Whether a container's command may name another wasm file than its image's program: then it is not known without a look what it runs.
pub(crate) fn may_be_a_file(container: &Container, image: &Image) -> bool {
    let command = container.command.iter().flatten().next();
    let other = command.filter(|name| !is_image_s(name, image));
    other.is_some_and(|name| name.contains('/') || image.root.is_some())
}

/// What a command runs, as its runner is told of it.
pub(crate) struct Program {
    /// Hex sha256 of the wasm.
    pub(crate) code: String,
    pub(crate) kind: Kind,
    pub(crate) of_toolbox: bool,
}

impl Program {
    fn new(code: &Code, of_toolbox: bool) -> Self {
        Self { code: code.wasm.hex().to_owned(), kind: code.inspection.kind, of_toolbox }
    }
}

/// The file that a container which is about to start names as its program, where that is another than its image's. `root` is its runner's root
/// on the host.
pub(crate) fn file_to_start(
    root: &Path,
    mounts: &[GuestMount],
    (cwd, env): (&str, &[(String, String)]),
    (name, container, image): (&str, &Container, &Image),
) -> Option<File> {
    // What the image names is its program already.
    if !may_be_a_file(container, image) {
        return None;
    }
    let folder = |mount: &'_ GuestMount| root.join(mount.source.trim_start_matches('/'));
    let folders: Vec<_> = mounts
        .iter()
        .map(|mount| seen::Folder { guest: &mount.guest, source: folder(mount) })
        .collect();
    seen::open(&folders, cwd, env, name)
}

impl Performer {
    /// What a command in a running container runs.
    pub(crate) async fn program_of(
        &self,
        world: &World,
        live: &Live,
        id: &AttemptId,
        ready: &ReadyImage,
        args: &[String],
    ) -> Result<Program, RequestError> {
        let own = || Program::new(&ready.code, false);
        let (Some(name), Some(container)) = (args.first(), world.container(&id.container)) else {
            return Ok(own());
        };
        if is_own(name, &container, &ready.image) && !is_http(ready) {
            return Ok(own());
        }
        let is_tool = is_tool(name);
        // A name without a folder is a file only where the image has some, or a volume is where programs are looked for.
        if name.contains('/') || ready.image.root.is_some() || is_tool {
            let asked = Request::OpenProgram { id: id.clone(), name: name.clone() };
            match live.runner.ask_with(asked, &[]).await {
                Ok((Answer::Descriptor, descriptors)) => {
                    if let Some(file) = descriptors.into_iter().next() {
                        let code = self.code_of_file(live, File::from(file)).await;
                        let code = code.map_err(cannot_run(name))?;
                        return Ok(Program::new(&code, false));
                    }
                }
                // One of an older build opens none.
                Ok(_) | Err(RequestError::Failed(Failure::NotFound | Failure::Unsupported)) => {}
                Err(error) => return Err(error),
            }
        }
        if is_tool {
            return match self.config.toolbox.as_deref().map(File::open) {
                Some(Ok(file)) => {
                    let code = self.code_of_file(live, file).await;
                    let code = code.map_err(cannot_run("the toolbox"))?;
                    Ok(Program::new(&code, true))
                }
                _ if !is_http(ready) => Ok(own()),
                _ => Err(refused(format!(
                    "{name} is a program of the toolbox, and there is no copepod-toolbox.wasm beside copepod: `cargo xtask build` makes it"
                ))),
            };
        }
        if is_http(ready) {
            return Err(refused(format!(
                "the container has no program {name:?}: it is an HTTP component, which has no main of its own to run; the toolbox has {}",
                TOOLS.join(", ")
            )));
        }
        Ok(own())
    }

    /// The code of the program that a container's command names, where that is a file of its own and not its image's.
    pub(crate) async fn other_program(
        &self,
        world: &World,
        live: &Live,
        start: &StartContainer,
        ready: &ReadyImage,
    ) -> Result<Option<Code>, CompileError> {
        let (Some(name), Some(container)) =
            (start.args.first(), world.container(&start.id.container))
        else {
            return Ok(None);
        };
        let own = (name.as_str(), &*container, &ready.image);
        let process = (start.cwd.as_str(), &start.env[..]);
        match file_to_start(live.domain.root(), &start.mounts, process, own) {
            Some(file) => self.code_of_file(live, file).await.map(Some),
            None => Ok(None),
        }
    }

    /// A file's code for a pod's runner. A compilation goes on where nobody waits for it any more, as the next probe wants it too.
    async fn code_of_file(&self, live: &Live, file: File) -> Result<Code, CompileError> {
        let (images, compiler) = (self.images.clone(), live.generation.compiler.clone());
        let compiling =
            tokio::spawn(async move { images.code_of_file(file, &compiler, &|_| ()).await });
        compiling.await.unwrap_or_else(|error| {
            let source = Arc::new(io::Error::other(error));
            Err(CompileError::Io { doing: "compile the program's file".into(), source })
        })
    }
}

fn cannot_run(name: &str) -> impl Fn(CompileError) -> RequestError + '_ {
    move |error| refused(format!("{name} cannot be run: {}", with_causes(&error)))
}

fn is_http(ready: &ReadyImage) -> bool {
    ready.code.inspection.kind == Kind::HttpComponent
}

fn refused(message: String) -> RequestError {
    RequestError::Failed(Failure::Refused { reason: "ExecFailed".into(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_are_those_that_the_toolbox_has() {
        let has: Vec<&str> = copepod_toolbox::tools::names().collect();

        assert_eq!(TOOLS, has);
    }

    #[test]
    fn a_tool_goes_by_its_name_and_by_the_paths_that_scripts_write() {
        assert!(is_tool("sh") && is_tool("/bin/sh") && is_tool("/usr/bin/env") && is_tool("["));
        assert!(!is_tool("./sh") && !is_tool("/data/sh") && !is_tool("app") && !is_tool("/bin/"));
    }
}
