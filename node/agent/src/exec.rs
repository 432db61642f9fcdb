//! What runs beside a container's own program, and who is attached to that: for clients, probes and hooks.
//!
//! Absent: which program it is ([`crate::argv`]); terminals, which the client's side has.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use copepod_node::ContainerName;
use copepod_shim::protocol::{Answer, AttemptId, ExecContainer, Failure, Request};
use tokio::sync::mpsc;

use crate::api::{AttachTo, ExecIn, PodName, Reply};
use crate::causes::with_causes;
use crate::perform::{ImageFailed, Performer};
use crate::pod::World;
use crate::runner::RequestError;

/// What is to run beside a container's own program.
pub(crate) struct Asked {
    pub(crate) args: Vec<String>,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) tty: bool,
}

/// The container that a client means, and its attempt.
fn running_in<'a>(
    world: &World,
    running: &'a [(ContainerName, u32)],
    pod: &PodName,
    wanted: Option<String>,
) -> Result<(&'a str, u32), String> {
    let wanted = wanted.or_else(|| world.first_container());
    let found = running.iter().find(|(name, _)| wanted.as_deref() == Some(name.as_ref()));
    let (name, attempt) = found.ok_or_else(|| {
        let wanted = wanted.clone().unwrap_or_default();
        format!("container {wanted:?} of pod {:?} does not run", pod.name)
    })?;
    Ok((name.as_ref(), *attempt))
}

impl Performer {
    /// Runs another program in a container's sandbox, to its end.
    pub(crate) async fn exec_in(
        &self,
        world: &World,
        container: &str,
        attempt: u32,
        asked: Asked,
        streams: &[OwnedFd],
    ) -> Result<(i32, Option<String>), RequestError> {
        let ready = self.image_of(world, container).await.map_err(|failed| {
            let ImageFailed { reason, message, .. } = failed;
            RequestError::Failed(Failure::Refused { reason, message })
        })?;
        let live = self.live(world).await?;
        let id = AttemptId { pod: world.uid.clone(), container: container.to_owned(), attempt };
        let program = self.program_of(world, &live, &id, &ready, &asked.args).await?;
        let exec = ExecContainer {
            id,
            code: program.code,
            kind: program.kind,
            args: asked.args,
            timeout_ms: asked.timeout_ms,
            tty: asked.tty,
            of_toolbox: program.of_toolbox,
        };
        match live.runner.ask_with(Request::Exec(exec), streams).await? {
            (Answer::Exited { code, message }, _) => Ok((code, message)),
            _ => Err(RequestError::Gone),
        }
    }

    /// `copepod exec`.
    pub(crate) fn exec(
        self: &Arc<Self>,
        world: &Arc<World>,
        running: Vec<(ContainerName, u32)>,
        exec: ExecIn,
        descriptors: Vec<OwnedFd>,
        replies: mpsc::Sender<Reply>,
    ) {
        let (this, world) = (self.clone(), world.clone());
        tokio::spawn(async move {
            let reply = match running_in(&world, &running, &exec.pod, exec.container) {
                Err(why) => Reply::Failed(why),
                Ok((name, attempt)) => {
                    let asked = Asked { args: exec.args, timeout_ms: None, tty: exec.tty };
                    match this.exec_in(&world, name, attempt, asked, &descriptors).await {
                        Ok((code, message)) => Reply::Exited { code, message },
                        Err(error) => Reply::Failed(with_causes(&error)),
                    }
                }
            };
            let _ = replies.send(reply).await;
        });
    }

    /// `copepod attach`.
    pub(crate) fn attach(
        self: &Arc<Self>,
        world: &Arc<World>,
        running: Vec<(ContainerName, u32)>,
        attach: AttachTo,
        descriptors: Vec<OwnedFd>,
        replies: mpsc::Sender<Reply>,
    ) {
        let (this, world) = (self.clone(), world.clone());
        tokio::spawn(async move {
            let attached = async {
                let (name, attempt) = running_in(&world, &running, &attach.pod, attach.container)?;
                let (pod, container) = (world.uid.clone(), name.to_owned());
                let id = AttemptId { pod, container, attempt };
                let live = this.live(&world).await.map_err(|error| with_causes(&error))?;
                let asked = live.runner.ask_with(Request::Attach(id), &descriptors).await;
                drop(descriptors);
                asked.map_err(|error| with_causes(&error))
            };
            let reply = match attached.await {
                Ok((Answer::Exited { code, message }, _)) => Reply::Exited { code, message },
                Ok(_) => Reply::Done,
                Err(why) => Reply::Failed(why),
            };
            let _ = replies.send(reply).await;
        });
    }
}
