//! A foreground run from acceptance to exit code: status, events and logs as they come, Ctrl-C, agents that die and come back.
//!
//! Start at [`follow`]. One loop owns the state and wakes on one [`Heard`]; a task per stream only reads. Absent: how lines look
//! ([`crate::log_lines`]) and what the exit code is ([`crate::exit`]).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use copepod_agent::api::{
    AcceptedPod, Call, LogPiece, LogPosition, LogsOf, PodName, PodView, Reply, StopPods,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::client::{Client, ClientError};
use crate::exit::{self, Outcome};
use crate::log_lines::Printer;
use crate::out::{Out, harmless};

/// After an answer that will be another one soon (a container without a log yet, an agent that just died).
const AGAIN: Duration = Duration::from_millis(200);

/// How long the last lines of a pod's logs are waited for after its end.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Between two lines about the same pull or compile.
const PROGRESS: Duration = Duration::from_secs(2);

/// Pieces of logs that are read ahead of a slow terminal.
const AHEAD: usize = 64;

/// A pod of this run.
pub(crate) struct Followed {
    uid: String,
    name: PodName,
    /// Its last status; at first what was asked for.
    pod: Pod,
    end: Option<Outcome>,
    was_seen: bool,
    events: HashSet<(String, String)>,
    exits: HashSet<(String, i32)>,
    progress: Option<(String, Instant)>,
    /// Tells the followers of its logs that no more will come.
    over: watch::Sender<bool>,
}

impl Followed {
    /// A pod that was just accepted.
    pub(crate) fn new(accepted: AcceptedPod, pod: Pod) -> Self {
        Self {
            uid: accepted.uid,
            name: accepted.pod,
            pod,
            end: None,
            was_seen: false,
            events: HashSet::new(),
            exits: HashSet::new(),
            progress: None,
            over: watch::Sender::new(false),
        }
    }

    /// The containers' names, init containers first.
    fn containers(&self) -> Vec<String> {
        let spec = self.pod.spec.iter();
        spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
            .map(|container| container.name.clone())
            .collect()
    }

    fn statuses(&self) -> impl Iterator<Item = &ContainerStatus> {
        let status = self.pod.status.iter();
        status.flat_map(|status| {
            let init = status.init_container_statuses.iter().flatten();
            init.chain(status.container_statuses.iter().flatten())
        })
    }
}

/// What the loop wakes on.
enum Heard {
    /// All pods that are there, as they are now.
    Pods(Vec<PodView>),
    /// Those that have changed.
    Changed(Vec<PodView>),
    /// A piece of the log of a pod's container.
    Log(usize, String, LogPiece),
    /// A log is at its end.
    LogEnded,
    /// All pods are gone, as asked, or why not.
    Stopped(Result<(), ClientError>),
    /// Nothing can be heard of the pods any more.
    Lost(ClientError),
}

/// What the run is about to end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// The pods' own end.
    Finish,
    /// This code, once the pods are stopped.
    Stop(u8),
}

struct Run {
    out: Out,
    client: Arc<Mutex<Client>>,
    pods: Vec<Followed>,
    printer: Printer,
    /// The logs that are followed, or were.
    logs: HashSet<(usize, String)>,
    open_logs: usize,
    heard: mpsc::Sender<Heard>,
    watching: AbortHandle,
    aim: Aim,
    /// The pods are gone, as was asked.
    is_stopped: bool,
    is_told_everything: bool,
}

/// Follows `pods` to their end, or until the user ends them; the exit code.
pub(crate) async fn follow(out: Out, client: Client, pods: Vec<Followed>, verbose: u8) -> u8 {
    let (heard, mut hearing) = mpsc::channel(AHEAD);
    let client = Arc::new(Mutex::new(client));
    let uids = pods.iter().map(|pod| pod.uid.clone()).collect();
    let watching = tokio::spawn(watch_pods(client.clone(), uids, heard.clone()));
    let names: Vec<_> = pods.iter().map(|pod| (pod.name.clone(), pod.containers())).collect();
    let printer = Printer::new(out, &names);
    let aim = Aim::Finish;
    let mut run = Run {
        out,
        client,
        pods,
        printer,
        logs: HashSet::new(),
        open_logs: 0,
        heard,
        watching: watching.abort_handle(),
        aim,
        is_stopped: false,
        is_told_everything: verbose > 0,
    };
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            out.error(&format!("cannot listen for signals: {error}"));
            return exit::NEVER;
        }
    };
    let code = loop {
        let next = tokio::select! {
            next = hearing.recv() => next.map(|heard| run.hear(heard)),
            code = signals.next() => Some(run.signalled(code)),
        };
        if let Some(Some(code)) = next {
            break code;
        }
        if let (Aim::Stop(code), true) = (run.aim, run.is_stopped) {
            run.drain(&mut hearing).await;
            break code;
        }
        if run.is_finished() {
            // Their logs are read to the end before they are forgotten.
            run.drain(&mut hearing).await;
            break run.forget().await;
        }
    };
    run.watching.abort();
    code
}

impl Run {
    /// Takes one thing in; a code where it ends the run.
    fn hear(&mut self, heard: Heard) -> Option<u8> {
        match heard {
            Heard::Pods(views) => {
                self.look_at(&views);
                self.miss(&views);
                None
            }
            Heard::Changed(views) => {
                self.look_at(&views);
                None
            }
            Heard::Log(pod, container, piece) => {
                match self.printer.print(pod, &container, &piece) {
                    Ok(()) => None,
                    Err(_) => self.stop(exit::PIPE, None),
                }
            }
            Heard::LogEnded => {
                self.open_logs -= 1;
                None
            }
            Heard::Stopped(Ok(())) => {
                self.is_stopped = true;
                for pod in &self.pods {
                    pod.over.send_replace(true);
                }
                None
            }
            Heard::Stopped(Err(error)) | Heard::Lost(error) => {
                self.out.error(&error.to_string());
                Some(match self.aim {
                    Aim::Stop(code) => code,
                    Aim::Finish => exit::NEVER,
                })
            }
        }
    }

    fn look_at(&mut self, views: &[PodView]) {
        let mut never = None;
        for view in views {
            let Ok(pod) = serde_json::from_str::<Pod>(&view.pod) else { continue };
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let Some(index) = self.pods.iter().position(|it| it.uid == uid) else { continue };
            let followed = &mut self.pods[index];
            followed.was_seen = true;
            followed.pod = pod;
            self.tell_events(index, view);
            self.tell_exits(index);
            self.tell_progress(index, view.progress.as_deref());
            self.follow_logs(index);
            let followed = &mut self.pods[index];
            if view.over && followed.end.is_none() {
                followed.end = Some(exit::outcome(&followed.pod));
                followed.over.send_replace(true);
            }
            let never_here = view.never.clone().or_else(|| waits_for_ever(&followed.pod));
            if let Some(why) = &never_here {
                let PodName { namespace, name } = &followed.name;
                never = Some(format!("{namespace}/{name} can never run here: {}", harmless(why)));
            }
        }
        if let Some(why) = never
            && self.aim == Aim::Finish
        {
            self.out.error(&why);
            self.stop(exit::NEVER, None);
        }
    }

    /// What was there and is not among all pods was forgotten by somebody else's `copepod stop`.
    fn miss(&mut self, all: &[PodView]) {
        let here: HashSet<_> = all
            .iter()
            .filter_map(|view| serde_json::from_str::<Pod>(&view.pod).ok()?.metadata.uid)
            .collect();
        for pod in self.pods.iter_mut().filter(|pod| pod.was_seen && !here.contains(&pod.uid)) {
            if pod.end.is_none() {
                pod.end = Some(exit::outcome(&pod.pod));
                pod.over.send_replace(true);
            }
        }
    }

    fn tell_events(&mut self, index: usize, view: &PodView) {
        let pod = &mut self.pods[index];
        for event in &view.events {
            let is_new = pod.events.insert((event.reason.clone(), event.message.clone()));
            if !is_new || (event.kind == "Normal" && !self.is_told_everything) {
                continue;
            }
            let PodName { namespace, name } = &pod.name;
            let text =
                harmless(&format!("{namespace}/{name}: {}: {}", event.reason, event.message));
            if event.kind == "Normal" { self.out.note(&text) } else { self.out.warn(&text) }
        }
    }

    /// Tells each run of a container that ended otherwise than well.
    fn tell_exits(&mut self, index: usize) {
        let pod = &self.pods[index];
        let mut told = Vec::new();
        for status in pod.statuses() {
            let states = [
                (&status.last_state, status.restart_count - 1),
                (&status.state, status.restart_count),
            ];
            for (state, attempt) in states {
                let ended = state.as_ref().and_then(|state| state.terminated.as_ref());
                let Some(ended) = ended.filter(|ended| ended.exit_code != 0) else { continue };
                let key = (status.name.clone(), attempt);
                if pod.exits.contains(&key) {
                    continue;
                }
                let PodName { namespace, name } = &pod.name;
                let reason = ended.reason.as_deref().unwrap_or("Error");
                let message = ended.message.as_deref().unwrap_or_default().trim_end();
                let colon = if message.is_empty() { "" } else { ": " };
                let (container, code) = (&status.name, ended.exit_code);
                let text = format!(
                    "{namespace}/{name}: {container} ended with exit code {code} ({reason}){colon}{message}"
                );
                told.push((key, harmless(&text)));
            }
        }
        // While the user waits for a stop, codes such as 143 are what was asked for.
        let is_asked_for = self.aim != Aim::Finish;
        for (key, text) in told {
            self.pods[index].exits.insert(key);
            if !is_asked_for {
                self.out.warn(&text);
            }
        }
    }

    fn tell_progress(&mut self, index: usize, progress: Option<&str>) {
        let pod = &mut self.pods[index];
        let Some(text) = progress else {
            pod.progress = None;
            return;
        };
        let is_due =
            pod.progress.as_ref().is_none_or(|(last, at)| last != text && at.elapsed() >= PROGRESS);
        if is_due {
            let PodName { namespace, name } = &pod.name;
            self.out.note(&harmless(&format!("{namespace}/{name}: {text}")));
            pod.progress = Some((text.to_owned(), Instant::now()));
        }
    }

    /// Begins to read the logs of containers that have run at all.
    fn follow_logs(&mut self, index: usize) {
        let pod = &self.pods[index];
        let has_run = |status: &&ContainerStatus| {
            let ran = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
                state.as_ref().is_some_and(|it| it.running.is_some() || it.terminated.is_some())
            };
            status.restart_count > 0 || ran(&status.state) || ran(&status.last_state)
        };
        let names: Vec<_> = pod.statuses().filter(has_run).map(|it| it.name.clone()).collect();
        for container in names {
            if !self.logs.insert((index, container.clone())) {
                continue;
            }
            self.open_logs += 1;
            let reader = LogReading {
                client: self.client.clone(),
                pod: self.pods[index].name.clone(),
                index,
                container,
                over: self.pods[index].over.subscribe(),
                heard: self.heard.clone(),
            };
            tokio::spawn(reader.read());
        }
    }

    fn signalled(&mut self, code: u8) -> Option<u8> {
        match self.aim {
            Aim::Finish => {
                let hint =
                    if code == exit::INTERRUPTED { "; Ctrl-C again stops at once" } else { "" };
                self.out.note(&format!("stopping{hint}"));
                self.stop(code, None)
            }
            Aim::Stop(_) => {
                self.out.note("stopping at once");
                self.stop(code, Some(0))
            }
        }
    }

    /// Asks for the pods' end, which is heard of; then the run ends with `code`.
    fn stop(&mut self, code: u8, grace: Option<u32>) -> Option<u8> {
        if let Aim::Stop(_) = self.aim
            && grace.is_none()
        {
            return None;
        }
        if self.aim == Aim::Finish {
            self.aim = Aim::Stop(code);
        }
        // What becomes of the pods is no news any more; and an agent that is watched does not leave.
        self.watching.abort();
        let pods = self.pods.iter().map(|pod| pod.name.clone()).collect();
        let stop = StopPods { pods, all: false, grace };
        let (client, heard) = (self.client.clone(), self.heard.clone());
        tokio::spawn(async move {
            let result = stop_pods(&client, stop).await;
            let _ = heard.send(Heard::Stopped(result)).await;
        });
        None
    }

    fn is_finished(&self) -> bool {
        self.aim == Aim::Finish && self.pods.iter().all(|pod| pod.end.is_some())
    }

    /// Hears what the logs still have, for as long as something comes.
    async fn drain(&mut self, hearing: &mut mpsc::Receiver<Heard>) {
        while self.open_logs > 0 {
            match tokio::time::timeout(LAST_LINES, hearing.recv()).await {
                Ok(Some(heard)) => {
                    let _ = self.hear(heard);
                }
                Ok(None) | Err(_) => break,
            }
        }
    }

    /// Forgets the pods, which are over, and says how they ended.
    async fn forget(&mut self) -> u8 {
        self.watching.abort();
        let here = self.pods.iter().filter(|pod| pod.end != Some(Outcome::Stopped));
        let pods: Vec<_> = here.map(|pod| pod.name.clone()).collect();
        if !pods.is_empty() {
            let stop = StopPods { pods, all: false, grace: None };
            if let Err(error) = stop_pods(&self.client, stop).await {
                tracing::debug!(%error, "the pods are over and could not be forgotten");
            }
        }
        let ends: Vec<_> = self.pods.iter().filter_map(|pod| pod.end.clone()).collect();
        if ends.contains(&Outcome::Stopped) {
            self.out.note("stopped from elsewhere");
        }
        exit::code(&ends)
    }
}

/// Why a pod waits for what somebody would have to bring while it waits: in the foreground nobody does.
fn waits_for_ever(pod: &Pod) -> Option<String> {
    // An image could still be loaded, a spec corrected; `copepod run -d` leaves the time for it.
    const REASONS: [&str; 2] = ["ErrImageNeverPull", "CreateContainerConfigError"];
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten()).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|reason| REASONS.contains(reason))?;
        let message = waiting.message.as_deref().unwrap_or_default();
        Some(format!("container {}: {reason}: {message}", container.name))
    })
}

/// Stops pods; where the agent goes away over it, the next one is asked to.
async fn stop_pods(client: &Mutex<Client>, stop: StopPods) -> Result<(), ClientError> {
    let call = Call::Stop(stop);
    loop {
        // The lock is for the start of an agent only; the pods' end is waited for without it.
        let connection = client.lock().await.connect().await;
        let answer = match connection {
            Ok(mut connection) => connection.ask(&call).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(_) => return Ok(()),
            Err(error) if error.is_broken() => tokio::time::sleep(AGAIN).await,
            // Gone already: what was to be reached.
            Err(ClientError::Failed(why)) => {
                tracing::debug!(why, "nothing to stop");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Passes on the pods' states, from whichever agent there is.
async fn watch_pods(client: Arc<Mutex<Client>>, uids: Vec<String>, heard: mpsc::Sender<Heard>) {
    let call = Call::Watch { uids };
    loop {
        // An agent tells first of all of them, then of each that changes.
        let mut told: fn(Vec<PodView>) -> Heard = Heard::Pods;
        let connection = client.lock().await.connect().await;
        let error = match connection {
            Ok(mut connection) => match connection.call(&call, &[]).await {
                Ok(()) => loop {
                    match connection.next().await {
                        Ok(Reply::Pods(pods)) => {
                            if heard.send(told(pods)).await.is_err() {
                                return;
                            }
                            told = Heard::Changed;
                        }
                        Ok(_) => {}
                        Err(error) => break error,
                    }
                },
                Err(error) => error,
            },
            Err(error) => error,
        };
        if error.is_broken() {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        let _ = heard.send(Heard::Lost(error)).await;
        return;
    }
}

/// One container's log, read to its end over all agents.
struct LogReading {
    client: Arc<Mutex<Client>>,
    pod: PodName,
    index: usize,
    container: String,
    over: watch::Receiver<bool>,
    heard: mpsc::Sender<Heard>,
}

impl LogReading {
    async fn read(mut self) {
        // From the first attempt on: one that crashed before we looked is part of this run.
        let mut after = Some(LogPosition { attempt: 0, time_ns: 0, lines: 0 });
        loop {
            let was_over = *self.over.borrow();
            match self.read_once(&mut after).await {
                Ok(()) => break,
                Err(error) if error.is_broken() => tokio::time::sleep(AGAIN).await,
                Err(error) if was_over => {
                    tracing::debug!(%error, "no more of a log");
                    break;
                }
                // No log yet: it comes with the first line.
                Err(error) => {
                    tracing::debug!(%error, "a log cannot be read yet");
                    let _ = tokio::time::timeout(AGAIN, self.over.changed()).await;
                }
            }
        }
        let _ = self.heard.send(Heard::LogEnded).await;
    }

    async fn read_once(&self, after: &mut Option<LogPosition>) -> Result<(), ClientError> {
        let mut connection = self.client.lock().await.connect().await?;
        let call = Call::Logs(LogsOf {
            pod: self.pod.clone(),
            container: Some(self.container.clone()),
            previous: false,
            follow: true,
            tail: None,
            since: None,
            after: *after,
        });
        connection.call(&call, &[]).await?;
        loop {
            match connection.next().await? {
                Reply::Log(piece) => {
                    let position = piece.position;
                    let heard = Heard::Log(self.index, self.container.clone(), piece);
                    if self.heard.send(heard).await.is_err() {
                        return Ok(());
                    }
                    *after = Some(position);
                }
                Reply::Done => return Ok(()),
                _ => {}
            }
        }
    }
}

/// The signals that end a run.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The exit code of the next signal.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => exit::INTERRUPTED,
            _ = self.terminate.recv() => exit::TERMINATED,
            _ = self.hang_up.recv() => exit::TERMINATED,
        }
    }
}

#[cfg(test)]
mod tests;
