//! What runs here: pods, the attempts of their containers, and each attempt's way from start to recorded exit.
//!
//! ```text
//! (start) ──▶ Running ──ends, or is stopped──▶ Exited, recorded ──acknowledged──▶ Exited
//! ```
//! What runs beside them, and who is attached to them, is `beside`. Absent: restarts, probes and hooks, which are the agent's; sockets and
//! framing ([`crate::server`]).

mod beside;

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use copepod_net::preview1::Ports;
use copepod_net::{Door, PodNet};
use copepod_shim::protocol::{
    Answer, AttemptId, AttemptState, ContainerReport, ContainerStats, Event, Exit, Failure,
    PodReport, PodSandbox, Retire, StartContainer, StopContainer,
};
use copepod_shim::wire::MAX_DESCRIPTORS;
use futures::FutureExt;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::code::Code;
use crate::command::{self, Purpose};
use crate::container::Container;
use crate::cpu::TICK;
use crate::engines::{EngineId, Engines};
use crate::exit::End;
use crate::guest::Stdio;
use crate::http;
use crate::http::tls::Trust;
use crate::last_words;
use crate::publish;
use crate::records::Records;
use crate::root::Root;

/// The most containers of one runner, so that the list of them fits into a frame: some 26,000 would, without what they said last.
const MAX_CONTAINERS: usize = 20_000;

/// Events that wait for one agent; one that is further behind is disconnected and lists anew.
const MAX_EVENTS: usize = 1_024;

/// The most threads that poll guests. More than the cores gain nothing; each idle one costs some 30 KiB.
const MAX_THREADS: usize = 8;

/// The most threads that wait for files on the guests' behalf, beyond which the next operation waits its turn.
const MAX_BLOCKING: usize = 128;

/// The port that an HTTP component serves when its container declares none.
const DEFAULT_HTTP_PORT: u16 = 8080;

/// How long a preview1 module may take until it asks for connections, before its pod gets a warning.
const DEAF: Duration = Duration::from_secs(10);

/// Everything that this runner holds.
pub struct Pods {
    root: Root,
    /// The way out of the pods' network, where it has none of its own.
    door: Option<Arc<Door>>,
    engines: Arc<Engines>,
    trust: Arc<Trust>,
    records: Arc<Records>,
    runtime: OnceLock<Handle>,
    pods: Mutex<HashMap<String, Pod>>,
    listeners: Mutex<Vec<mpsc::Sender<Event>>>,
    /// When a guest last ran on the agents' thread.
    first_slice: Mutex<Option<Instant>>,
    /// Where all that runs here is served by another runner ([`Pods::retire`]).
    retirement: watch::Sender<Retirement>,
}

/// ```text
/// Working ──retire──▶ Leaving ──all is over──▶ Gone
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retirement {
    Working,
    /// Another runner serves what runs here; what was accepted before comes to its end.
    Leaving,
    Gone,
}

struct Pod {
    sandbox: PodSandbox,
    net: Arc<PodNet>,
    /// Starts of one pod follow one another, so that two of one attempt are one.
    starting: Arc<tokio::sync::Mutex<()>>,
    attempts: HashMap<String, Attempt>,
    /// The ports of the host that are served for it.
    published: Vec<publish::Published>,
}

impl Pod {
    /// Its containers that run.
    fn running(&self) -> impl Iterator<Item = &Arc<Container>> {
        self.attempts.values().filter_map(|attempt| match attempt {
            Attempt::Running(running) => Some(&running.container),
            Attempt::Exited { .. } => None,
        })
    }
}

enum Attempt {
    Running(Arc<Running>),
    Exited { number: u32, exit: Exit },
}

/// An attempt that has not ended.
struct Running {
    container: Arc<Container>,
    started_us: AtomicI64,
    stop: watch::Sender<Option<Stopping>>,
    over: watch::Sender<bool>,
    /// Its end is being recorded. Changed while the pods are locked.
    ending: AtomicBool,
}

/// How an attempt is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stopping {
    /// Unix milliseconds by which it is over.
    by_ms: i64,
    /// Another runner accepts on its listeners from now on.
    handed_over: bool,
}

impl Running {
    fn id(&self) -> &AttemptId {
        &self.container.spec.id
    }

    fn stop_by(&self, by_ms: i64) {
        self.stop.send_if_modified(|stopping| {
            let nearer = stopping.is_none_or(|earlier| by_ms < earlier.by_ms);
            if nearer {
                let handed_over = stopping.is_some_and(|earlier| earlier.handed_over);
                *stopping = Some(Stopping { by_ms, handed_over });
            }
            nearer
        });
    }

    fn leave_by(&self, by_ms: i64) {
        self.stop.send_replace(Some(Stopping { by_ms, handed_over: true }));
    }

    /// An HTTP component that goes on, as far as anybody knows.
    fn can_be_handed_over(&self) -> bool {
        matches!(&*self.container.code, Code::Http(_))
            && self.stop.borrow().is_none()
            && !self.ending.load(Ordering::Relaxed)
    }

    async fn over(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }
}

/// An attempt whose start is to be told once: with its first instruction, or with the sign that there will be none so soon.
struct Beginning<'a> {
    running: &'a Running,
    told: Mutex<Option<oneshot::Sender<i64>>>,
}

impl Beginning<'_> {
    fn tell(&self) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(told) = told {
            let at_us = self.running.container.spec.since_us.unwrap_or_else(now_us);
            self.running.started_us.store(at_us, Ordering::Relaxed);
            let _ = told.send(at_us);
        }
    }
}

/// What a runner is told once.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Whose code it loads.
    pub engine: EngineId,
    /// It begins beside another runner in the same tree, to take over what that one serves.
    pub is_heir: bool,
}

impl Pods {
    /// No pods; the records of an earlier runner in this root are kept until acknowledged.
    ///
    /// # Errors
    /// This machine cannot run the engine, or the records cannot be read.
    pub fn new(
        root: Root,
        settings: Settings,
        door: Option<Arc<Door>>,
    ) -> anyhow::Result<Arc<Self>> {
        let records = Records::open(&root.path(copepod_shim::protocol::layout::EXITS))?;
        // Beside a runner that lives, what speaks for nobody here is that one's.
        if !settings.is_heir {
            let recorded: HashSet<_> = records.all().into_iter().map(|(id, _)| id.pod).collect();
            last_words::sweep(&root, |pod| recorded.contains(pod));
        }
        Ok(Arc::new(Self {
            engines: Engines::new(&root, settings.engine)?,
            trust: Trust::new(&root),
            root,
            door,
            records,
            runtime: OnceLock::new(),
            pods: Mutex::default(),
            listeners: Mutex::default(),
            first_slice: Mutex::default(),
            retirement: watch::Sender::new(Retirement::Working),
        }))
    }

    /// Hears of every exit from now on.
    pub fn listen(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(MAX_EVENTS);
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    fn tell(&self, event: &Event) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        // A listener that cannot keep up is dropped: its connection ends, and the agent asks for the list.
        listeners.retain(|listener| listener.try_send(event.clone()).is_ok());
    }

    /// The threads that poll guests: apart from the one that speaks to agents, so that no guest delays an answer, and made
    /// with the first container.
    fn runtime(&self) -> Result<Handle, Failure> {
        if let Some(handle) = self.runtime.get() {
            return Ok(handle.clone());
        }
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.clamp(1, MAX_THREADS))
            .max_blocking_threads(MAX_BLOCKING)
            .thread_name("guests")
            .enable_all()
            .build()
            .map_err(|error| {
                Failure::Busy(format!("no threads for guests can be started: {error}"))
            })?;
        // Lives as long as the process: guests run until their pods are removed. A second one, made at the same moment, is
        // ended here.
        let handle = runtime.handle().clone();
        match self.runtime.set(handle.clone()) {
            Ok(()) => std::mem::forget(runtime),
            Err(_) => runtime.shutdown_background(),
        }
        Ok(self.runtime.get().cloned().unwrap_or(handle))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a pod's sandbox, unless it is there.
    ///
    /// # Errors
    /// [`Failure::Busy`] where another sandbox of the same UID is there.
    pub fn create(&self, sandbox: PodSandbox) -> Result<Answer, Failure> {
        // The pod's sockets are polled by the guests' threads.
        let runtime = self.runtime()?;
        let _entered = runtime.enter();
        self.works()?;
        let mut pods = self.lock();
        if let Some(pod) = pods.get(&sandbox.pod) {
            return if pod.sandbox == sandbox {
                Ok(Answer::Done)
            } else {
                Err(Failure::Busy(format!("pod {} exists with another sandbox", sandbox.pod)))
            };
        }
        let net = PodNet::behind(self.door.clone(), &sandbox);
        let pod = Pod {
            net,
            starting: Arc::default(),
            attempts: HashMap::new(),
            published: Vec::new(),
            sandbox: sandbox.clone(),
        };
        pods.insert(sandbox.pod, pod);
        Ok(Answer::Done)
    }

    /// Starts an attempt, unless it was started before. `sockets`: those on which it listens in a runner that hands it over.
    ///
    /// # Errors
    /// Why it cannot be started; nothing is left of it then.
    pub async fn start(
        self: &Arc<Self>,
        spec: StartContainer,
        sockets: Vec<OwnedFd>,
    ) -> Result<Answer, Failure> {
        self.works()?;
        let id = spec.id.clone();
        let since_us = spec.since_us;
        let starting = self.lock().get(&id.pod).ok_or(Failure::NotFound)?.starting.clone();
        let _turn = starting.lock().await;
        if let Some(started) = self.already(&id)? {
            return Ok(Answer::Started { at_us: started });
        }
        let runtime = self.runtime()?;
        let code = self.engines.code(&spec.code, spec.kind)?;
        let net = {
            let pods = self.lock();
            let count: usize = pods.values().map(|pod| pod.attempts.len()).sum();
            if count >= MAX_CONTAINERS {
                return Err(Failure::Busy(format!("{MAX_CONTAINERS} containers are here")));
            }
            pods.get(&id.pod).ok_or(Failure::NotFound)?.net.clone()
        };
        let container = {
            let _entered = runtime.enter();
            let (engines, trust) = (self.engines.clone(), self.trust.clone());
            Container::new(spec, code, engines, net, trust, &self.root)
        };
        check_directories(&container)?;
        let (stop, stopped) = watch::channel(None);
        let running = Arc::new(Running {
            container: container.clone(),
            started_us: AtomicI64::new(since_us.unwrap_or_else(now_us)),
            stop,
            over: watch::channel(false).0,
            ending: AtomicBool::new(false),
        });
        let (server, ports) = {
            let _entered = runtime.enter();
            match &*container.code {
                Code::Http(_) => (Some(open_server(&container, sockets)?), None),
                Code::Preview1 { accepts: true, polls, .. } => {
                    (None, Some(bind_ports(&container, *polls)?))
                }
                _ => (None, None),
            }
        };
        {
            let mut pods = self.lock();
            let Some(pod) = pods.get_mut(&id.pod) else {
                container.net.close_container(&container.name);
                return Err(Failure::NotFound);
            };
            pod.attempts.insert(id.container.clone(), Attempt::Running(running.clone()));
        }
        let (told, started) = oneshot::channel();
        let pods = self.clone();
        let living = async move {
            let beginning = Beginning { running: &running, told: Mutex::new(Some(told)) };
            let end = match server {
                Some(server) => {
                    beginning.tell();
                    serve(&server, stopped).await
                }
                None => {
                    let asked = ports.as_ref().map(Ports::asked);
                    let running = run(&container, ports, stopped, || beginning.tell());
                    let mut program = pin!(pods.judging_ports(&container, asked, running));
                    match futures::poll!(program.as_mut()) {
                        Poll::Ready(end) => end,
                        Poll::Pending => {
                            // A module whose start function spins has no first instruction of its main, and the agent
                            // is not to wait for it.
                            beginning.tell();
                            program.await
                        }
                    }
                }
            };
            beginning.tell();
            // What holds the store and the sockets is gone here.
            drop(container);
            pods.finish(&running, end).await;
        };
        self.begin(&runtime, living);
        let at_us = started.await.map_err(|_| Failure::Busy("the runner is ending".into()))?;
        Ok(Answer::Started { at_us })
    }

    /// Has the guests' threads run it, its first slice possibly here: waking a sleeping thread takes longer than making an
    /// instance (100 µs to 400 µs against 46 µs, measured). Only now and then, so that guests never have most of this thread.
    fn begin(&self, runtime: &Handle, living: impl Future<Output = ()> + Send + 'static) {
        let now = Instant::now();
        let rested = {
            let mut last = self.first_slice.lock().unwrap_or_else(PoisonError::into_inner);
            let rested = last.is_none_or(|last| now.saturating_duration_since(last) >= 4 * TICK);
            if rested {
                *last = Some(now);
            }
            rested
        };
        let mut living = Box::pin(living);
        if rested {
            let _entered = runtime.enter();
            // Whatever it registers now it registers anew in its own task, which polls it at once.
            let mut context = Context::from_waker(Waker::noop());
            if living.as_mut().poll(&mut context).is_ready() {
                return;
            }
        }
        runtime.spawn(living);
    }

    /// When this attempt was started, if it was; an error where another attempt of the container is in the way.
    fn already(&self, id: &AttemptId) -> Result<Option<i64>, Failure> {
        let pods = self.lock();
        let pod = pods.get(&id.pod).ok_or(Failure::NotFound)?;
        let in_the_way = |other: u32| {
            Failure::Busy(format!(
                "attempt {other} of container {} is here, so attempt {} cannot start",
                id.container, id.attempt
            ))
        };
        match pod.attempts.get(&id.container) {
            Some(Attempt::Running(running)) if running.id().attempt == id.attempt => {
                Ok(Some(running.started_us.load(Ordering::Relaxed)))
            }
            Some(Attempt::Running(running)) => Err(in_the_way(running.id().attempt)),
            Some(Attempt::Exited { number, exit }) if *number == id.attempt => {
                Ok(Some(exit.started_us))
            }
            Some(Attempt::Exited { number, .. }) if *number > id.attempt => {
                Err(in_the_way(*number))
            }
            _ => Ok(self.records.get(id).map(|exit| exit.started_us)),
        }
    }

    /// Has a program run, and warns where it declares ports that it cannot serve, or does not serve after a while. `asked` tells whether a
    /// preview1 module has asked for connections on the sockets that it is given.
    async fn judging_ports(
        &self,
        container: &Container,
        asked: Option<Arc<AtomicBool>>,
        program: impl Future<Output = End>,
    ) -> End {
        let Some(port) = command::declared_ports(container).first().map(|first| first.port) else {
            return program.await;
        };
        let warn = |message: String| {
            let (id, reason) = (container.spec.id.clone(), "PortNotServed".to_owned());
            self.tell(&Event::Warning { id, reason, message });
        };
        if !container.code.can_listen() {
            warn(format!(
                "port {port} is declared, and nothing in this module can listen: it imports neither wasi:sockets nor sock_accept; build it \
                 for wasm32-wasip2, or as a wasi:http component"
            ));
        }
        let Some(asked) = asked else { return program.await };
        let mut program = pin!(program);
        let ended = tokio::time::timeout(DEAF, &mut program).await;
        if !asked.load(Ordering::Relaxed) {
            warn(format!(
                "port {port} is declared, and the program has not asked for connections: a preview1 module serves on the descriptors that \
                 it is given (the variable COPEPOD_LISTEN_FDS names them), in Go by net.FileListener(os.NewFile(fd, name)), as net.Listen \
                 is a network within the program there"
            ));
        }
        match ended {
            Ok(end) => end,
            Err(_) => program.await,
        }
    }

    /// From the end of an attempt to everybody's knowing it: its ports and lines first, then the record, then the event.
    async fn finish(&self, running: &Running, end: End) {
        let is_handed_over = {
            let _pods = self.lock();
            let is_handed_over = self.works().is_err();
            running.ending.store(!is_handed_over, Ordering::Relaxed);
            is_handed_over
        };
        let container = &running.container;
        container.net.close_container(&container.name);
        if !end.message.is_empty() {
            container.log.note(&end.message);
        }
        container.log.flushed().await;
        if is_handed_over {
            // It goes on elsewhere, under the same name.
            running.over.send_replace(true);
            return;
        }
        container.collect_last_words();
        let exit = Exit {
            code: end.code,
            reason: end.reason,
            message: end.message,
            started_us: running.started_us.load(Ordering::Relaxed),
            finished_us: now_us(),
        };
        let id = running.id().clone();
        self.records.record(id.clone(), exit.clone()).await;
        let is_here = {
            let mut pods = self.lock();
            let attempts = pods.get_mut(&id.pod).map(|pod| &mut pod.attempts);
            attempts.is_some_and(|attempts| {
                let exited = Attempt::Exited { number: id.attempt, exit: exit.clone() };
                attempts.insert(id.container.clone(), exited);
                true
            })
        };
        if is_here {
            self.tell(&Event::Exited { id, exit });
        }
        running.over.send_replace(true);
    }

    /// Asks an attempt to stop by its deadline.
    ///
    /// # Errors
    /// [`Failure::NotFound`]; an attempt that is over is no error.
    pub fn stop(&self, stop: &StopContainer) -> Result<Answer, Failure> {
        let pods = self.lock();
        let pod = pods.get(&stop.id.pod).ok_or(Failure::NotFound)?;
        match pod.attempts.get(&stop.id.container) {
            Some(Attempt::Running(running)) if running.id() == &stop.id => {
                running.stop_by(stop.deadline_ms);
                Ok(Answer::Done)
            }
            Some(Attempt::Exited { number, .. }) if *number >= stop.id.attempt => Ok(Answer::Done),
            _ if self.records.get(&stop.id).is_some() => Ok(Answer::Done),
            _ => Err(Failure::NotFound),
        }
    }

    /// Ends everything of a pod and forgets it.
    pub async fn remove(&self, pod: &str) -> Answer {
        let removed = self.lock().remove(pod);
        if let Some(removed) = removed {
            drop(removed.published);
            // A start that is under way finds no pod any more; one that got through is stopped here.
            let _turn = removed.starting.lock().await;
            let running: Vec<_> = removed
                .attempts
                .into_values()
                .filter_map(|attempt| match attempt {
                    Attempt::Running(running) => Some(running),
                    Attempt::Exited { .. } => None,
                })
                .collect();
            for running in &running {
                running.stop_by(i64::MIN);
            }
            for running in &running {
                running.over().await;
            }
            removed.net.close_all();
        }
        last_words::remove(&self.root, pod);
        self.records.forget(pod);
        Answer::Done
    }

    /// The agent has this exit.
    pub fn acknowledge(&self, id: &AttemptId) -> Answer {
        self.records.acknowledge(id);
        Answer::Done
    }

    /// All pods, and the exits of pods that an earlier runner held.
    pub fn list(&self) -> Vec<PodReport> {
        let mut reports: HashMap<String, Vec<ContainerReport>> = HashMap::new();
        {
            let pods = self.lock();
            for (uid, pod) in &*pods {
                let containers = pod.attempts.iter().map(|(container, attempt)| {
                    let (attempt, state) = match attempt {
                        Attempt::Running(running) => {
                            let since_us = running.started_us.load(Ordering::Relaxed);
                            (running.id().attempt, AttemptState::Running { since_us })
                        }
                        Attempt::Exited { number, exit } => {
                            (*number, AttemptState::Exited(exit.clone()))
                        }
                    };
                    ContainerReport { container: container.clone(), attempt, state }
                });
                reports.insert(uid.clone(), containers.collect());
            }
        }
        for (id, exit) in self.records.all() {
            let containers = reports.entry(id.pod).or_default();
            let known = containers
                .iter()
                .any(|report| report.container == id.container && report.attempt == id.attempt);
            if !known {
                containers.push(ContainerReport {
                    container: id.container,
                    attempt: id.attempt,
                    state: AttemptState::Exited(exit),
                });
            }
        }
        reports.into_iter().map(|(pod, containers)| PodReport { pod, containers }).collect()
    }

    /// What each running container uses.
    pub fn stats(&self) -> Vec<ContainerStats> {
        let pods = self.lock();
        pods.values()
            .flat_map(Pod::running)
            .map(|container| ContainerStats {
                id: container.spec.id.clone(),
                cpu_ns: container.cpu.used_ns(),
                memory: container.ledger.used(),
                memory_peak: container.ledger.peak(),
                requests: container.requests.load(Ordering::Relaxed),
                instances: container.instances.load(Ordering::Relaxed),
            })
            .collect()
    }

    /// Connects to a port of a pod, as from outside it.
    ///
    /// # Errors
    /// No such pod, or nobody answers there.
    pub async fn dial(&self, pod: &str, port: u16) -> Result<OwnedFd, Failure> {
        let net = self.lock().get(pod).ok_or(Failure::NotFound)?.net.clone();
        let unreachable = |error: std::io::Error| Failure::Unreachable(error.to_string());
        let stream = net.dial(port).await.map_err(unreachable)?;
        Ok(stream.into_std().map_err(unreachable)?.into())
    }

    /// Serves a port of the host for a pod, until the pod is removed.
    ///
    /// # Errors
    /// No such pod, or the descriptor is no listening TCP socket.
    pub fn publish(
        &self,
        pod: &str,
        port: u16,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Answer, Failure> {
        let refused = |error: std::io::Error| Failure::Refused {
            reason: "PublishFailed".into(),
            message: format!("the socket cannot be served: {error}"),
        };
        let runtime = self.runtime()?;
        let _entered = runtime.enter();
        let socket = descriptors.pop().ok_or_else(|| refused(ErrorKind::NotFound.into()))?;
        let listener = publish::listener(socket).map_err(refused)?;
        let mut pods = self.lock();
        let pod = pods.get_mut(pod).ok_or(Failure::NotFound)?;
        let published = publish::Published::serve(&runtime, listener, pod.net.clone(), port);
        pod.published.push(published.map_err(refused)?);
        Ok(Answer::Done)
    }

    /// The sockets on which an attempt listens, for a runner that goes on with it.
    ///
    /// # Errors
    /// [`Failure::NotFound`]; [`Failure::Busy`] where it cannot be handed over.
    pub fn hand_over(&self, id: &AttemptId) -> Result<(Answer, Vec<OwnedFd>), Failure> {
        let pods = self.lock();
        let pod = pods.get(&id.pod).ok_or(Failure::NotFound)?;
        let running = match pod.attempts.get(&id.container) {
            Some(Attempt::Running(running)) if running.id() == id => running,
            _ => return Err(Failure::NotFound),
        };
        if !running.can_be_handed_over() {
            return Err(Failure::Busy(format!(
                "container {} is no HTTP component that goes on",
                id.container
            )));
        }
        let sockets = pod.net.listening_sockets(&id.container).map_err(no_descriptor)?;
        let since_us = running.started_us.load(Ordering::Relaxed);
        fitting(sockets).map(|sockets| (Answer::HandedOver { since_us }, sockets))
    }

    /// The ports of the host that are served for a pod, with their sockets.
    ///
    /// # Errors
    /// [`Failure::NotFound`]; [`Failure::Busy`] where they are too many for a frame.
    pub fn hand_over_published(&self, pod: &str) -> Result<(Answer, Vec<OwnedFd>), Failure> {
        let pods = self.lock();
        let published = &pods.get(pod).ok_or(Failure::NotFound)?.published;
        let ports = published.iter().map(|published| published.port).collect();
        let sockets: std::io::Result<Vec<_>> =
            published.iter().map(|published| published.socket.try_clone()).collect();
        fitting(sockets.map_err(no_descriptor)?).map(|sockets| (Answer::Published(ports), sockets))
    }

    /// Leaves all that runs here to another runner, which serves it already.
    ///
    /// # Errors
    /// [`Failure::Busy`] where not all that runs here, and nothing else, is in the list: then nothing has changed.
    pub fn retire(self: &Arc<Self>, retire: &Retire) -> Result<Answer, Failure> {
        let runtime = self.runtime()?;
        let mut leaving = Vec::new();
        {
            let mut pods = self.lock();
            let running = |attempt: &Attempt| match attempt {
                Attempt::Running(running) => Some(running.clone()),
                Attempt::Exited { .. } => None,
            };
            let here: Vec<_> =
                pods.values().flat_map(|pod| pod.attempts.values()).filter_map(running).collect();
            let asked: HashSet<&AttemptId> = retire.attempts.iter().collect();
            let as_asked = here.iter().all(|it| it.can_be_handed_over() && asked.contains(it.id()));
            if !as_asked || here.len() != asked.len() {
                return Err(Failure::Busy("something else runs here than was handed over".into()));
            }
            if !self.records.all().is_empty() {
                return Err(Failure::Busy("an exit is not acknowledged yet".into()));
            }
            // Before anything can end: its end is nobody's news any more.
            self.retirement.send_replace(Retirement::Leaving);
            for running in &here {
                running.container.net.share_listeners(&running.container.name);
                running.leave_by(retire.deadline_ms);
            }
            for pod in pods.values_mut() {
                leaving.append(&mut pod.published);
            }
            leaving.iter().for_each(publish::Published::leave);
            let pods = self.clone();
            let deadline = until(retire.deadline_ms).unwrap_or_default();
            runtime.spawn(async move {
                let all = async {
                    for running in here {
                        running.over().await;
                    }
                    for published in &mut leaving {
                        published.over().await;
                    }
                };
                let _ = tokio::time::timeout(deadline, all).await;
                pods.retirement.send_replace(Retirement::Gone);
            });
        }
        Ok(Answer::Done)
    }

    /// Resolves once this runner has retired and nothing of it is left.
    pub async fn gone(&self) {
        let gone = |it: &Retirement| *it == Retirement::Gone;
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.retirement.subscribe().wait_for(gone).await;
    }

    /// Nothing new is taken on by a runner that has retired.
    fn works(&self) -> Result<(), Failure> {
        match *self.retirement.borrow() {
            Retirement::Working => Ok(()),
            _ => Err(Failure::Busy("this runner has left its pods to another one".into())),
        }
    }

    /// Whether the runner may end.
    ///
    /// # Errors
    /// [`Failure::Busy`] while it holds a pod.
    pub fn may_end(&self) -> Result<Answer, Failure> {
        match self.lock().len() {
            0 => Ok(Answer::Done),
            pods => Err(Failure::Busy(format!("{pods} pods are here"))),
        }
    }
}

fn no_descriptor(error: std::io::Error) -> Failure {
    Failure::Busy(format!("a socket cannot be handed over: {error}"))
}

/// As many as a frame takes.
fn fitting(sockets: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, Failure> {
    if sockets.len() > MAX_DESCRIPTORS {
        let why = format!("{} sockets are more than can be handed over", sockets.len());
        return Err(Failure::Busy(why));
    }
    Ok(sockets)
}

/// Refuses what could never be opened, before anything runs.
fn check_directories(container: &Container) -> Result<(), Failure> {
    let refused =
        |message: String| Failure::Refused { reason: "CreateContainerError".into(), message };
    for mount in container.mounts().iter().filter(|mount| mount.last_words.is_none()) {
        let is_directory = std::fs::metadata(&mount.source).map(|metadata| metadata.is_dir());
        let problem = match is_directory {
            Ok(true) => continue,
            Ok(false) => "it is not a directory".to_owned(),
            Err(error) => error.to_string(),
        };
        return Err(refused(format!("what is mounted at {} is missing: {problem}", mount.guest)));
    }
    Ok(())
}

/// Serves it on its ports: on `sockets`, where another runner has handed it over.
fn open_server(container: &Arc<Container>, sockets: Vec<OwnedFd>) -> Result<http::Server, Failure> {
    let mut ports: Vec<u16> =
        container.spec.ports.iter().filter(|port| !port.udp).map(|port| port.port).collect();
    if ports.is_empty() {
        ports.push(DEFAULT_HTTP_PORT);
    }
    let refused = |message: String| {
        container.net.close_container(&container.name);
        Failure::Refused { reason: "CreateContainerError".into(), message }
    };
    let mut listeners = Vec::new();
    if sockets.is_empty() {
        for port in ports {
            let opened = container.net.listen(&container.name, port);
            listeners.extend(
                opened
                    .map_err(|error| refused(format!("port {port} cannot be served: {error}")))?,
            );
        }
    } else {
        for socket in sockets {
            let listener = container.net.go_on_listening(&container.name, socket);
            listeners.push(listener.map_err(|error| refused(error.to_string()))?);
        }
    }
    Ok(http::serve(container.clone(), listeners, &container.spec.http))
}

/// The sockets of a preview1 module's declared ports.
fn bind_ports(container: &Container, nonblocking: bool) -> Result<Ports, Failure> {
    let ports = command::declared_ports(container).into_iter().map(|port| port.port);
    let bound = Ports::bind(&container.net_ctx(), ports, nonblocking);
    bound.map_err(|error| Failure::Refused {
        reason: "CreateContainerError".into(),
        message: format!("the container's ports cannot be opened: {error}"),
    })
}

/// Serves until it ends by itself or is drained.
async fn serve(server: &http::Server, mut stopped: watch::Receiver<Option<Stopping>>) -> End {
    let done = AssertUnwindSafe(server.done()).catch_unwind();
    let mut done = std::pin::pin!(done);
    loop {
        tokio::select! {
            end = &mut done => return end.unwrap_or_else(|_| End::with(134)),
            Ok(()) = stopped.changed() => {
                let Some(Stopping { by_ms, handed_over }) = *stopped.borrow_and_update() else {
                    continue;
                };
                match until(by_ms) {
                    Some(wait) if handed_over => server.leave(Instant::now() + wait),
                    Some(wait) => server.drain(Instant::now() + wait),
                    None => server.stop(),
                }
            }
        }
    }
}

/// Runs a program until it ends by itself or is stopped.
async fn run(
    container: &Arc<Container>,
    ports: Option<Ports>,
    mut stopped: watch::Receiver<Option<Stopping>>,
    begun: impl FnOnce() + Send,
) -> End {
    let stdio = || Stdio::of_container(container);
    let program = command::run(container, &container.code, stdio, Purpose::Main, ports, begun);
    tokio::select! {
        end = program => end,
        end = stop(container, &mut stopped) => end,
    }
}

/// Resolves once the program is to be dropped: WASI has no signal that could ask it to end by itself. From the stop on nobody new is
/// let in, and who was is answered; without callers it is over at once, and at the deadline in any case.
async fn stop(container: &Container, stopped: &mut watch::Receiver<Option<Stopping>>) -> End {
    // Where nobody can stop it any more, it is not stopped.
    let Ok(()) = stopped.wait_for(Option::is_some).await.map(drop) else {
        return std::future::pending().await;
    };
    let mut answered = std::pin::pin!(container.net.see_callers_off(&container.name));
    loop {
        let stopping = *stopped.borrow_and_update();
        let Some(left) = stopping.and_then(|it| until(it.by_ms)) else { return End::killed() };
        tokio::select! {
            biased;
            () = &mut answered => return End::stopped(),
            () = tokio::time::sleep(left) => return End::killed(),
            // The deadline has come nearer.
            Ok(()) = stopped.changed() => {}
        }
    }
}

/// How long until this Unix time in milliseconds; none: it is past.
fn until(deadline_ms: i64) -> Option<Duration> {
    let left = deadline_ms.saturating_sub(Timestamp::now().as_millisecond());
    let left = u64::try_from(left).ok().filter(|&left| left > 0).map(Duration::from_millis);
    // A deadline further away than any clock counts is none that is missed.
    left.map(|left| left.min(Duration::from_secs(365 * 24 * 3600)))
}

async fn sleep_for(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}
