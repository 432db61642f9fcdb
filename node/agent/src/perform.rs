//! Does what the core planned, each action in a task of its own, and tells the owner what came of it.
//!
//! Nothing here decides about a pod's life. One pod's failure never holds up its neighbours, and every action has just one answer.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use copepod_image::{Code, CollectPolicy, CompileError, Compiler, Image};
use copepod_node::ContainerName;
use copepod_node::life::{Action, Handler, PodEvent, ProbeKind, ProbeResult, PullPolicy, Pulled};
use copepod_node::pull_secrets;
use copepod_shim::protocol::{Answer, AttemptId, Failure, Request, StopContainer};
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::api::{self, ContainerUse, Reply};
use crate::causes::with_causes;
use crate::check::{self, Get};
use crate::config::AgentConfig;
use crate::domains::{Domains, Live};
use crate::exec::Asked;
use crate::front::Probed;
use crate::generation::Programs;
use crate::node::NodeView;
use crate::owner::Wake;
use crate::pod::{Entry, ReadyImage, World};
use crate::ports::Ports;
use crate::runner::RequestError;
use crate::sandbox::{self, SetUpFailed};
use crate::store::Store;

/// As often as a kubelet looks at each of its pods, and so at volumes that it could not write.
const REFRESH_EVERY: Duration = Duration::from_secs(60);

/// So many pods' files are written at a time where an object of many has changed: the disk is busy, starts are not held up.
pub(crate) const REFRESHES: usize = 4;

/// As often as a kubelet looks for images to remove.
const COLLECT_EVERY: Duration = Duration::from_secs(300);

/// What acting needs beside the pod itself.
pub(crate) struct Performer {
    pub(crate) config: AgentConfig,
    pub(crate) programs: Programs,
    pub(crate) domains: Arc<Domains>,
    /// Ports of the machine that lead to pods.
    pub(crate) ports: Ports,
    pub(crate) images: Arc<copepod_image::Images>,
    pub(crate) node: NodeView,
    pub(crate) wake: mpsc::Sender<Wake>,
    pub(crate) clients: Arc<AtomicUsize>,
    /// Exits that may be acknowledged once what was observed of them is on disk.
    pub(crate) exits: Mutex<VecDeque<(String, AttemptId)>>,
    /// When the image store was last cleaned.
    pub(crate) collected: Mutex<Instant>,
    /// Since when agents have been of this generation.
    pub(crate) current_since: Timestamp,
    /// Whether something of another generation may be on disk. Only an agent's start adds to that.
    pub(crate) older_generations: tokio::sync::Mutex<bool>,
    /// Leave to write files of pods whose objects changed; [`REFRESHES`] at a time.
    pub(crate) refreshes: tokio::sync::Semaphore,
}

impl Performer {
    /// How many clients are connected.
    pub(crate) fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    pub(crate) fn hello(&self) -> Reply {
        let build = self.domains.own().build.clone();
        Reply::Agent { version: api::VERSION, build, pid: std::process::id() }
    }

    /// A tree's root directory on the host.
    pub(crate) fn root_of(&self, tree: &str) -> PathBuf {
        self.config.data.join("domains").join(tree).join("root")
    }

    fn tell(&self, uid: &str, event: PodEvent) -> impl Future<Output = ()> + use<> {
        let (wake, uid) = (self.wake.clone(), uid.to_owned());
        // The owner is gone only when the agent ends.
        async move { drop(wake.send(Wake::Pod { uid, event }).await) }
    }

    /// Begins an action that was decided at `decided`.
    pub(crate) fn perform(
        self: &Arc<Self>,
        world: &Arc<World>,
        action: Action,
        decided: Timestamp,
    ) {
        let (this, world) = (self.clone(), world.clone());
        tokio::spawn(async move {
            if let Some(event) = this.act(&world, action).await {
                if let PodEvent::Started { container, attempt, at } = &event {
                    // Read by `cargo xtask bench start`; the runner's clock and ours are one.
                    let since = |begin| at.duration_since(begin).as_micros();
                    tracing::debug!(
                        uid = world.uid,
                        %container,
                        attempt,
                        since_decided_us = since(decided),
                        since_accepted_us = since(world.stored.accepted),
                        "started"
                    );
                }
                this.tell(&world.uid, event).await;
            }
        });
    }

    /// Does an action. `None`: its answer comes by another way, an exit or the loss of the sandbox.
    async fn act(&self, world: &Arc<World>, action: Action) -> Option<PodEvent> {
        match action {
            Action::SetUp => Some(match sandbox::set_up(self, world).await {
                Ok(ips) => PodEvent::SetUp { ips },
                Err(failed) => {
                    PodEvent::SetUpFailed { reason: failed.reason.into(), message: failed.message }
                }
            }),
            Action::Pull { container, image, policy } => {
                self.pull(world, container, &image, policy).await
            }
            Action::Start { container, attempt } => self.start(world, container, attempt).await,
            Action::Probe { container, attempt, probe, handler, timeout } => {
                let asked = Instant::now();
                let result = self.probe(world, &container, attempt, &handler, timeout).await;
                self.count(world, &container, probe, &result, asked.elapsed());
                Some(PodEvent::ProbeDone { container, attempt, probe, result })
            }
            Action::Hook { container, attempt, hook, handler, deadline } => {
                let left = deadline.map(|deadline| {
                    Duration::try_from(deadline.duration_since(Timestamp::now()))
                        .unwrap_or_default()
                });
                let limit = left.unwrap_or(copepod_node::life::LONGEST);
                let result = match self.probe(world, &container, attempt, &handler, limit).await {
                    ProbeResult::Passed | ProbeResult::PassedWithWarning(_) => Ok(()),
                    ProbeResult::Failed(message) | ProbeResult::Errored(message) => Err(message),
                };
                Some(PodEvent::HookDone { container, attempt, hook, result })
            }
            Action::Stop { container, attempt, deadline } => {
                self.stop(world, container, attempt, deadline).await
            }
            Action::TearDown => {
                world.going_on.cancelled.send_replace(true);
                if let Err(failed) = sandbox::tear_down(self, world).await {
                    tracing::error!(
                        uid = world.uid,
                        failed.message,
                        "cannot give back all of a pod"
                    );
                }
                self.remove_unused_generations().await;
                Some(PodEvent::TornDown)
            }
        }
    }

    /// Writes what changed of a pod's objects, into its volumes and onto the disk; where that fails, again and again, until newer ones
    /// come.
    pub(crate) fn refresh(self: &Arc<Self>, world: &Arc<World>, store: &Store) {
        let (this, world, store) = (self.clone(), world.clone(), store.clone());
        tokio::spawn(async move {
            let (_, revision) = world.stored.objects.with_revision();
            while let Err(failed) = this.refresh_once(&world, &store).await {
                let SetUpFailed { reason, message } = failed;
                let uid = world.uid.clone();
                let _ = this.wake.send(Wake::Warning { uid, reason, message }).await;
                tokio::time::sleep(REFRESH_EVERY).await;
                if world.is_over() || world.stored.objects.with_revision().1 != revision {
                    break;
                }
            }
        });
    }

    async fn refresh_once(
        self: &Arc<Self>,
        world: &Arc<World>,
        store: &Store,
    ) -> Result<(), SetUpFailed> {
        let failed = |error: &dyn std::fmt::Display| SetUpFailed {
            reason: "FailedMount",
            message: error.to_string(),
        };
        let _leave = self.refreshes.acquire().await.map_err(|error| failed(&error))?;
        let live = self.domains.live_of(&world.uid).await;
        let home = live.map(|live| (live.domain.root().to_owned(), live.domain.uid()));
        let (this, world, store) = (self.clone(), world.clone(), store.clone());
        tokio::task::spawn_blocking(move || sandbox::refresh(&this, &world, &store, home))
            .await
            .unwrap_or_else(|error| Err(failed(&error)))
    }

    pub(crate) async fn live(&self, world: &World) -> Result<Arc<Live>, RequestError> {
        self.domains.live_of(&world.uid).await.ok_or(RequestError::Gone)
    }

    async fn ask(&self, world: &World, request: Request) -> Result<Answer, RequestError> {
        self.live(world).await?.runner.ask(request).await
    }

    async fn pull(
        &self,
        world: &Arc<World>,
        container: ContainerName,
        image: &str,
        policy: PullPolicy,
    ) -> Option<PodEvent> {
        let mut cancelled = world.going_on.cancelled.subscribe();
        let ready = tokio::select! {
            ready = self.ready_image(world, image, policy) => ready,
            // Torn down meanwhile: nobody waits for the answer.
            _ = cancelled.wait_for(|it| *it) => return None,
        };
        let _ = self.wake.send(Wake::Progress { uid: world.uid.clone(), text: None }).await;
        Some(match ready {
            Ok((ready, pulled)) => {
                let image_id = ready.image.id.clone();
                world.set_image(container.as_ref(), ready);
                PodEvent::ImageReady { container, image_id, pulled }
            }
            Err(failed) => PodEvent::ImageFailed {
                container,
                reason: failed.reason,
                message: failed.message,
                retry: failed.retry,
            },
        })
    }

    async fn ready_image(
        &self,
        world: &World,
        image: &str,
        policy: PullPolicy,
    ) -> Result<(ReadyImage, Option<Pulled>), ImageFailed> {
        let (wake, uid) = (self.wake.clone(), world.uid.clone());
        let progress = move |progress: copepod_image::Progress| {
            // News of progress may be lost: the next one comes.
            let text = Some(progress.to_string());
            let _ = wake.try_send(Wake::Progress { uid: uid.clone(), text });
        };
        let policy = match policy {
            PullPolicy::Always => copepod_image::PullPolicy::Always,
            PullPolicy::IfNotPresent => copepod_image::PullPolicy::IfNotPresent,
            PullPolicy::Never => copepod_image::PullPolicy::Never,
        };
        let credentials = credentials(world);
        let started = Instant::now();
        let image =
            self.images.resolve(image, policy, &credentials, &progress).await.map_err(|error| {
                ImageFailed {
                    reason: error.reason().to_owned(),
                    message: with_causes(&error),
                    // Without a cluster nobody brings the image while the pod waits.
                    retry: error.retry() == copepod_image::Retry::Later
                        && policy != copepod_image::PullPolicy::Never,
                }
            })?;
        let took = started.elapsed();
        let pulled = image.pulled.then_some(Pulled { took, waited: took, bytes: image.bytes });
        let compiler = self.compiler_for(world).await;
        let code =
            self.images.code(&image, &compiler, &progress).await.map_err(|error| ImageFailed {
                reason: "ErrImagePull".to_owned(),
                message: with_causes(&error),
                retry: error.retry() == copepod_image::Retry::Later,
            })?;
        Ok((ReadyImage { image, code }, pulled))
    }

    /// The image of a container that was sent to its runner once. After a restart of the agent it is known by name only; it is here,
    /// as the attempt was journaled.
    pub(crate) async fn image_of(
        &self,
        world: &World,
        container: &str,
    ) -> Result<Arc<ReadyImage>, ImageFailed> {
        if let Some(ready) = world.image(container) {
            return Ok(ready);
        }
        let name = world.container(container).and_then(|it| it.image.clone()).unwrap_or_default();
        let (ready, _) = self.ready_image(world, &name, PullPolicy::IfNotPresent).await?;
        Ok(world.set_image(container, ready))
    }

    /// What compiles for the runner that the pod is in; before its set-up, for the one that it will be in.
    async fn compiler_for(&self, world: &World) -> Compiler {
        match self.domains.live_of(&world.uid).await {
            Some(live) => live.generation.compiler.clone(),
            None => self.domains.own().compiler.clone(),
        }
    }

    /// An image's code for the agent's own engine.
    pub(crate) async fn own_code(&self, image: &Image) -> Result<Code, CompileError> {
        self.images.code(image, &self.domains.own().compiler, &|_| ()).await
    }

    /// The image with code for the compiler's engine, where what is at hand is another engine's, or damaged and forgotten.
    async fn compiled_again(
        &self,
        world: &World,
        container: &ContainerName,
        image: &Image,
        compiler: &Compiler,
    ) -> Result<Arc<ReadyImage>, CompileError> {
        let code = self.images.code(image, compiler, &|_| ()).await?;
        Ok(world.set_image(container.as_ref(), ReadyImage { image: image.clone(), code }))
    }

    async fn start(
        &self,
        world: &Arc<World>,
        container: ContainerName,
        attempt: u32,
    ) -> Option<PodEvent> {
        let failed = |reason: &str, message: String, retry| {
            Some(PodEvent::StartFailed {
                container: container.clone(),
                attempt,
                reason: reason.to_owned(),
                message,
                retry,
            })
        };
        let mut ready = match self.image_of(world, container.as_ref()).await {
            Ok(ready) => ready,
            Err(error) => return failed(&error.reason, error.message, error.retry),
        };
        let mut is_damaged = false;
        for last in [false, true] {
            let Ok(live) = self.live(world).await else {
                return failed("RunContainerError", RequestError::Gone.to_string(), true);
            };
            let compiler = &live.generation.compiler;
            // A runner that died may have been succeeded by one of another generation.
            if is_damaged || ready.code.engine != compiler.engine {
                match self.compiled_again(world, &container, &ready.image, compiler).await {
                    Ok(again) => ready = again,
                    Err(error) => {
                        let retry = error.retry() == copepod_image::Retry::Later;
                        return failed("CreateContainerError", with_causes(&error), retry);
                    }
                }
            }
            let mut start = match sandbox::start_request(
                self,
                world,
                container.as_ref(),
                attempt,
                &ready,
            )
            .await
            {
                Ok(start) => start,
                Err(error) => return failed(error.reason, error.message, true),
            };
            let other = match self.other_program(world, &live, &start, &ready).await {
                Ok(other) => other,
                Err(error) => {
                    // A volume's file may be another one soon; without a cluster a person waits for the end.
                    let retry = error.retry() == copepod_image::Retry::Later
                        || self.config.cluster.is_some();
                    return failed("CreateContainerError", with_causes(&error), retry);
                }
            };
            if let Some(code) = &other {
                start.code = code.wasm.hex().to_owned();
                start.kind = code.inspection.kind;
            }
            match live.runner.ask(Request::Start(Box::new(start))).await {
                Ok(Answer::Started { at_us }) => {
                    let at =
                        Timestamp::from_microsecond(at_us).unwrap_or_else(|_| Timestamp::now());
                    return Some(PodEvent::Started { container, attempt, at });
                }
                Ok(_) => {
                    return failed(
                        "RunContainerError",
                        "the runner's answer is not understood".into(),
                        true,
                    );
                }
                Err(RequestError::Failed(Failure::BadCode(why))) if !last => {
                    tracing::warn!(
                        why,
                        "compiled code is damaged or of another engine: compiling again"
                    );
                    if let Err(error) =
                        self.images.forget_code(other.as_ref().unwrap_or(&ready.code))
                    {
                        tracing::warn!(%error, "damaged code cannot be removed");
                    }
                    is_damaged = true;
                }
                Err(RequestError::Failed(Failure::Refused { reason, message })) => {
                    return failed(&reason, message, false);
                }
                Err(RequestError::Failed(failure)) => {
                    return failed("RunContainerError", failure.to_string(), true);
                }
                // The owner hears of the runner's end, and of all its pods'.
                Err(RequestError::Gone | RequestError::Silent) => {
                    live.domain.kill();
                    return None;
                }
            }
        }
        failed("CreateContainerError", "the compiled code cannot be loaded, twice".into(), true)
    }

    /// A runner that lives and does not answer is ended, so that its pods can go on in a successor.
    async fn give_up_on(&self, world: &World) {
        if let Some(live) = self.domains.live_of(&world.uid).await {
            live.domain.kill();
        }
    }

    async fn stop(
        &self,
        world: &World,
        container: ContainerName,
        attempt: u32,
        deadline: Timestamp,
    ) -> Option<PodEvent> {
        let id = AttemptId { pod: world.uid.clone(), container: container.to_string(), attempt };
        let stop = StopContainer { id, deadline_ms: deadline.as_millisecond() };
        match self.ask(world, Request::Stop(stop)).await {
            Err(RequestError::Failed(Failure::NotFound)) => {
                Some(PodEvent::Lost { container, attempt })
            }
            Err(RequestError::Silent) => {
                self.give_up_on(world).await;
                None
            }
            _ => None,
        }
    }

    async fn probe(
        &self,
        world: &Arc<World>,
        container: &ContainerName,
        attempt: u32,
        handler: &Handler,
        limit: Duration,
    ) -> ProbeResult {
        let tried = async {
            match handler {
                Handler::Exec { command } => {
                    self.probe_exec(world, container, attempt, command, limit).await
                }
                Handler::Http { https, port, path, headers } => {
                    let get = Get {
                        https: *https,
                        path: path.clone(),
                        port: *port,
                        host: check::host_of(world.ip()),
                        headers: headers.clone(),
                    };
                    match check::get(get, || self.dial(world, *port)).await {
                        Ok(None) => ProbeResult::Passed,
                        Ok(Some(note)) => ProbeResult::PassedWithWarning(note),
                        Err(message) => ProbeResult::Failed(message),
                    }
                }
                Handler::Grpc { tls, port, service } => {
                    let host = check::host_of(world.ip());
                    let answered = match self.dial(world, *port).await {
                        Ok(stream) => check::health(stream, *tls, (&host, *port), service).await,
                        Err(error) => {
                            Err(format!("failed to connect service {host}:{port}: {error}"))
                        }
                    };
                    answered.map_or_else(ProbeResult::Failed, |()| ProbeResult::Passed)
                }
                Handler::Tcp { port } => match self.dial(world, *port).await {
                    Ok(_) => ProbeResult::Passed,
                    Err(error) => ProbeResult::Failed(format!(
                        "dial tcp {}: connect: {error}",
                        SocketAddr::new(world.ip(), *port)
                    )),
                },
                Handler::Sleep(time) => {
                    tokio::time::sleep(*time).await;
                    ProbeResult::Passed
                }
            }
        };
        tokio::time::timeout(limit, tried).await.unwrap_or_else(|_| {
            ProbeResult::Failed(format!("no answer within {} s", limit.as_secs_f64()))
        })
    }

    /// Keeps a probe's result for a cluster's figures.
    fn count(
        &self,
        world: &World,
        container: &ContainerName,
        kind: ProbeKind,
        result: &ProbeResult,
        took: Duration,
    ) {
        let passed = match result {
            ProbeResult::Passed | ProbeResult::PassedWithWarning(_) => true,
            ProbeResult::Failed(_) => false,
            ProbeResult::Errored(_) => return,
        };
        if self.config.cluster.is_some() {
            let container = container.to_string();
            world.going_on.put_probed(Probed { container, kind, passed, took });
        }
    }

    /// A connection to a port of the pod, as its clients make them.
    pub(crate) async fn dial(&self, world: &World, port: u16) -> io::Result<TcpStream> {
        let live = self.live(world).await.map_err(io::Error::other)?;
        let request = Request::Dial { pod: world.uid.clone(), port };
        let (_, descriptors) =
            live.runner.ask_with(request, &[]).await.map_err(io::Error::other)?;
        let socket = descriptors.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
        let stream = std::net::TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }

    async fn probe_exec(
        &self,
        world: &World,
        container: &ContainerName,
        attempt: u32,
        command: &[String],
        limit: Duration,
    ) -> ProbeResult {
        let (output, theirs) = match rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) {
            Ok(pipe) => pipe,
            Err(error) => return ProbeResult::Errored(error.to_string()),
        };
        let streams = || -> io::Result<[OwnedFd; 3]> {
            Ok([std::fs::File::open("/dev/null")?.into(), theirs.try_clone()?, theirs.try_clone()?])
        };
        let streams = match streams() {
            Ok(streams) => streams,
            Err(error) => return ProbeResult::Errored(error.to_string()),
        };
        drop(theirs);
        let reading = tokio::task::spawn_blocking(move || {
            use std::io::Read;
            let mut text = Vec::new();
            // As much as the kubelet keeps; what comes after it finds the pipe closed.
            let _ = std::fs::File::from(output).take(10 << 10).read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let timeout = u64::try_from(limit.as_millis()).ok();
        let asked = Asked { args: command.to_vec(), timeout_ms: timeout, tty: false };
        let outcome = self.exec_in(world, container.as_ref(), attempt, asked, &streams).await;
        drop(streams);
        match outcome {
            Ok((0, _)) => ProbeResult::Passed,
            Ok((code, message)) => {
                let output = reading.await.unwrap_or_default();
                let text = message.unwrap_or(output);
                ProbeResult::Failed(if text.is_empty() {
                    format!("command {command:?} exited with {code}")
                } else {
                    text
                })
            }
            Err(error) => ProbeResult::Errored(error.to_string()),
        }
    }

    /// `copepod stats`.
    pub(crate) fn stats(self: &Arc<Self>, worlds: Vec<Arc<World>>, replies: mpsc::Sender<Reply>) {
        let this = self.clone();
        tokio::spawn(async move {
            let mut uses = Vec::new();
            let trees: BTreeSet<String> =
                worlds.iter().filter_map(|world| this.domains.tree_of(&world.uid)).collect();
            for tree in trees {
                let Some(live) = this.domains.live(&tree).await else { continue };
                let Ok(Answer::Stats(stats)) = live.runner.ask(Request::Stats).await else {
                    continue;
                };
                for stat in stats {
                    let Some(world) = worlds.iter().find(|world| world.uid == stat.id.pod) else {
                        continue;
                    };
                    uses.push(ContainerUse {
                        pod: world.name(),
                        container: stat.id.container,
                        cpu_ns: stat.cpu_ns,
                        memory: stat.memory,
                        requests: stat.requests,
                        instances: stat.instances,
                    });
                }
            }
            let _ = replies.send(Reply::Stats(uses)).await;
        });
    }

    /// An exit whose facts will be on disk after the owner's turn.
    pub(crate) fn acknowledge_later(&self, tree: String, id: AttemptId) {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner).push_back((tree, id));
    }

    /// The owner's turn is on disk: runners may forget the exits seen in it.
    pub(crate) fn acknowledge_now(self: &Arc<Self>) {
        let exits = std::mem::take(&mut *self.exits.lock().unwrap_or_else(PoisonError::into_inner));
        if exits.is_empty() {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            for (tree, id) in exits {
                if let Some(live) = this.domains.live(&tree).await {
                    // One that is not heard is told again, with the next list.
                    let _ = live.runner.ask(Request::Acknowledge(id)).await;
                }
            }
        });
    }

    /// A runner's connection ended.
    pub(crate) fn revive(self: &Arc<Self>, tree: String, life: u64) {
        let this = self.clone();
        tokio::spawn(async move {
            let result = this.domains.revive(&tree, life).await.map_err(|e| with_causes(&e));
            let _ = this.wake.send(Wake::Revived { tree, result }).await;
            this.remove_unused_generations().await;
        });
    }

    /// A runner holds a pod that nobody knows: a crash came between the pod's end and its runner's.
    pub(crate) fn remove_stray(self: &Arc<Self>, tree: String, pod: String) {
        let this = self.clone();
        tokio::spawn(async move {
            if let Some(live) = this.domains.live(&tree).await {
                let _ = live.runner.ask(Request::RemovePod { pod }).await;
            }
        });
    }

    /// Removes programs and code of generations of which no runner is left.
    pub(crate) async fn remove_unused_generations(&self) {
        let mut older = self.older_generations.lock().await;
        if !*older {
            return;
        }
        let (programs, images, domains) =
            (self.programs.clone(), self.images.clone(), self.domains.clone());
        let removed = tokio::task::spawn_blocking(move || {
            let builds = domains.builds_in_use().map_err(|error| with_causes(&error))?;
            let engines = programs.engines(&builds).map_err(|error| with_causes(&error))?;
            let code =
                images.remove_other_engines(&engines).map_err(|error| with_causes(&error))?;
            // Last, as it tells which code belongs to which build.
            let gone = programs.remove_others(&builds).map_err(|error| with_causes(&error))?;
            Ok::<_, String>((builds.len() > 1, gone, code))
        });
        match removed.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok((left, builds, engines)) => {
                *older = left;
                if !builds.is_empty() || !engines.is_empty() {
                    tracing::info!(?builds, ?engines, "removed generations that nothing runs");
                }
            }
            Err(error) => tracing::warn!(error, "programs that nothing runs cannot be removed"),
        }
    }

    /// Removes images beyond their quota, at most every [`COLLECT_EVERY`]: a store is only filled by what wakes the owner.
    pub(crate) fn collect_if_due<'a>(&self, pods: impl Iterator<Item = &'a Entry>) {
        let mut last = self.collected.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < COLLECT_EVERY {
            return;
        }
        *last = Instant::now();
        let images = self.images.clone();
        let keep = pods.flat_map(Entry::images_in_use).collect();
        let policy = CollectPolicy { keep, ..CollectPolicy::default() };
        tokio::spawn(async move {
            match images.collect(&policy).await {
                Ok(Some(collected)) => tracing::info!(?collected, "removed unused images"),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(error = with_causes(&error), "cannot clean the image store")
                }
            }
        });
    }
}

/// Why an image, or its code, is not there.
pub(crate) struct ImageFailed {
    pub(crate) reason: String,
    pub(crate) message: String,
    retry: bool,
}

/// What the client's `docker login` left, and the logins of the pod's pull secrets.
fn credentials(world: &World) -> copepod_image::Credentials {
    let objects = world.stored.objects.get();
    let (logins, wrong) = pull_secrets::logins(&world.stored.pod, &*objects);
    for why in wrong {
        // As under a kubelet the pull is tried all the same: the image may be public.
        tracing::warn!(uid = world.uid, why);
    }
    let given = world.stored.credentials.iter();
    let all = given.fold(copepod_image::Credentials::anonymous(), |all, one| {
        all.with_login(&one.registry, &one.username, &one.password)
    });
    logins.iter().fold(all, |all, one| all.with_login(&one.registry, &one.username, &one.password))
}
