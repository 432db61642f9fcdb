//! What clients have of a container that runs: another instance beside it, its own streams, the programs that it sees.
//!
//! Absent: which program an exec is, which the agent finds.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use copepod_shim::protocol::{Answer, AttemptId, ExecContainer, ExitReason, Failure};

use super::{Attempt, Pod, Pods, Running, sleep_for};
use crate::code::Code;
use crate::command::{self, Beside, Purpose};
use crate::exec::Streams;
use crate::exit::End;

impl Pods {
    /// Runs another instance in a container's sandbox, to its end.
    ///
    /// # Errors
    /// No such container, or the code cannot be run.
    pub async fn exec(
        &self,
        request: ExecContainer,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Answer, Failure> {
        let running = self.running(&request.id)?;
        let code = self.engines.code(&request.code, request.kind)?;
        if matches!(*code, Code::Http(_)) {
            return Err(Failure::Refused {
                reason: "ExecFailed".into(),
                message: "an HTTP component has no main that exec could run".into(),
            });
        }
        let runtime = self.runtime()?;
        let timeout = request.timeout_ms.map(Duration::from_millis);
        let env = if request.of_toolbox { self.processes_of(&request.id.pod) } else { Vec::new() };
        let task = runtime.spawn(async move {
            let streams = Streams::new(descriptors, request.tty)?;
            let hangup = async {
                match request.tty {
                    true => drop(streams.abandoned().await),
                    false => std::future::pending().await,
                }
            };
            let container = running.container.clone();
            let purpose = Purpose::Exec(Beside { args: request.args, env });
            let program = command::run(&container, &code, || streams.stdio(), purpose, None, || ());
            let killed =
                |code, why: &str| End { code, reason: ExitReason::Killed, message: why.to_owned() };
            let end = tokio::select! {
                end = program => end,
                () = sleep_for(timeout) => killed(137, "its time was over"),
                () = running.over() => killed(137, "its container ended"),
                // As a shell counts SIGHUP.
                () = hangup => killed(129, "its terminal was closed"),
            };
            streams.finish().await;
            Ok::<_, Failure>(end)
        });
        let end = task.await.map_err(ending)??;
        let message = (!end.message.is_empty()).then_some(end.message);
        Ok(Answer::Exited { code: end.code, message })
    }

    /// Gives a client a running container's own streams, until either ends.
    ///
    /// # Errors
    /// No such container, or the descriptors cannot be used.
    pub async fn attach(
        &self,
        id: &AttemptId,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Answer, Failure> {
        let running = self.running(id)?;
        let runtime = self.runtime()?;
        let task = runtime.spawn(async move {
            let container = &running.container;
            let (input, client) = Streams::of_client(descriptors)?;
            let client = Arc::new(client);
            container.log.clients().add(client.clone())?;
            let stdin = container.stdin.as_ref().filter(|_| input.is_some());
            let feeding = async {
                if let (Some(stdin), Some(input)) = (stdin, input) {
                    stdin.feed(input).await;
                }
                // What it reads goes on.
                std::future::pending::<()>().await;
            };
            let left = tokio::select! {
                () = feeding => Ok(false),
                let_go = client.abandoned() => match let_go {
                    true => Err(Failure::Busy("the client did not keep up with what the container writes".into())),
                    false => Ok(false),
                },
                () = running.over() => Ok(true),
            };
            // Also where it went before its input's end was read.
            if let Some(stdin) = stdin {
                stdin.left();
            }
            container.log.clients().remove(&client);
            client.finish().await;
            left
        });
        if !task.await.map_err(ending)?? {
            return Ok(Answer::Done);
        }
        let pods = self.lock();
        let attempt = pods.get(&id.pod).and_then(|pod| pod.attempts.get(&id.container));
        Ok(match attempt {
            Some(Attempt::Exited { number, exit }) if *number == id.attempt => {
                Answer::Exited { code: exit.code, message: None }
            }
            _ => Answer::Done,
        })
    }

    /// Opens the file that a running container sees by this name.
    ///
    /// # Errors
    /// [`Failure::NotFound`]: no such container, or no such file.
    pub async fn open_program(&self, id: &AttemptId, name: &str) -> Result<OwnedFd, Failure> {
        let container = self.running(id)?.container.clone();
        let name = name.to_owned();
        // Files may be slow, and this thread is everybody's.
        let opening = self.runtime()?.spawn_blocking(move || container.open_program(&name));
        opening.await.ok().flatten().ok_or(Failure::NotFound)
    }

    fn running(&self, id: &AttemptId) -> Result<Arc<Running>, Failure> {
        let pods = self.lock();
        let pod = pods.get(&id.pod).ok_or(Failure::NotFound)?;
        match pod.attempts.get(&id.container) {
            Some(Attempt::Running(running)) if running.id() == id => Ok(running.clone()),
            _ => Err(Failure::NotFound),
        }
    }

    /// What runs in a pod, as the toolbox's `ps` reads it.
    fn processes_of(&self, pod: &str) -> Vec<(String, String)> {
        let pods = self.lock();
        let running = pods.get(pod).into_iter().flat_map(Pod::running);
        let mut lines: Vec<String> = running
            .map(|container| {
                let millis = container.cpu.used_ns() / 1_000_000;
                let memory = container.ledger.used();
                let command = container.spec.args.join(" ").replace(['\n', '\t'], " ");
                format!("{}\t{millis}\t{memory}\t{command}\n", container.name)
            })
            .collect();
        lines.sort();
        vec![("COPEPOD_PROCESSES".to_owned(), lines.concat())]
    }
}

fn ending(_: tokio::task::JoinError) -> Failure {
    Failure::Busy("the runner is ending".into())
}
