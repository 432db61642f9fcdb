//! The isolation domains of this agent and the connections to their runners.
//!
//! ```text
//! Down ──start or adopt──▶ Up ──runner gone──▶ Down
//!                          Up ──an heir takes over──▶ Up, of the agent's own generation
//! ```
//! A domain has a tree for each generation of runners that has pods in it (`homes`). A tree starts with the first pod that joins it
//! and is removed with the last that leaves. Its slot's lock is held over these steps, so that of several pods that arrive at once
//! one starts the runner and the others wait.
//!
//! Absent: what a dead runner means for its pods: the owner hears of it and decides.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use copepod_domain::{
    Adopted, Domain, DomainId, DomainSpec, Heir, Host, HostError, Limits, Network,
};
use copepod_shim::protocol::{Answer, Hello, PodReport, Request, Retire, VERSIONS, layout};
use tokio::sync::mpsc;

use crate::accept::IN_HOST_NETWORK;
use crate::causes::with_causes;
use crate::generation::{Generation, Programs, build_of};
use crate::homes::Homes;
use crate::owner::Wake;
use crate::runner::{Alone, ConnectError, Connection, Heard, RequestError, Runner};

/// Most threads of a runner: its workers and those that files are read by, with room.
const MOST_THREADS: u32 = 1024;

/// How long a runner that lives is asked for a connection before its guests are given up: it refuses agents while it has not noticed
/// the end of many others.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two such questions.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the kernel may take to end a runner that was killed.
const DEATH: Duration = Duration::from_secs(30);

/// A tree whose runner lives and is connected.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) domain: Domain,
    pub(crate) runner: Runner,
    /// What its code is compiled by.
    pub(crate) generation: Generation,
    /// Which life of the runner this is, as this agent counts them: news of an earlier one is stale.
    pub(crate) life: u64,
    /// Held while an image's files are looked for in the tree, and mounted.
    pub(crate) images: tokio::sync::Mutex<()>,
}

/// Why a tree is not up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DomainError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the runner of {tree} started but cannot be spoken to")]
    Connect { tree: String, source: ConnectError },
    /// Its guests go on: who speaks with it can be started.
    #[error(
        "the runner of {tree} speaks versions {oldest} to {newest} of the protocol and this agent {} to {}; its pods go on: \
         look after them, or stop them, with {}, which is of the runner's own build",
        VERSIONS.oldest, VERSIONS.newest, program.display()
    )]
    OtherProtocol { tree: String, oldest: u32, newest: u32, program: PathBuf },
    #[error("the runner of {tree} does not tell what it holds")]
    List { tree: String, source: RequestError },
    #[error("the runner of {tree} does not leave what it serves to another one")]
    Retire { tree: String, source: RequestError },
}

/// A tree with two runners: one of another generation that serves, and one of the agent's own that is being given what it serves.
pub(crate) struct Succession {
    tree: String,
    pub(crate) old: Arc<Live>,
    heir: Heir,
    /// To the heir.
    pub(crate) connection: Connection,
    life: u64,
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<Live>>>>;

#[derive(Debug, Default)]
struct State {
    homes: Homes,
    slots: HashMap<String, Slot>,
}

impl State {
    fn slot(&mut self, tree: &str) -> Slot {
        self.slots.entry(tree.to_owned()).or_default().clone()
    }
}

/// All domains.
#[derive(Debug)]
pub(crate) struct Domains {
    host: Host,
    programs: Programs,
    /// The agent's own generation: every runner that it starts is of it.
    own: Generation,
    /// The folder of the own engine's compiled code.
    code: PathBuf,
    /// What all domains may use at most: what the node gives to pods.
    memory: u64,
    wake: mpsc::Sender<Wake>,
    state: Mutex<State>,
    lives: std::sync::atomic::AtomicU64,
}

impl Domains {
    pub(crate) fn new(
        host: Host,
        programs: Programs,
        own: Generation,
        code: PathBuf,
        memory: u64,
        wake: mpsc::Sender<Wake>,
    ) -> Self {
        let (state, lives) = Default::default();
        Self { host, programs, own, code, memory, wake, state, lives }
    }

    /// What the data directory owns on this machine.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation of runners that are started from now on.
    pub(crate) fn own(&self) -> &Generation {
        &self.own
    }

    /// The pod's tree in the domain, started where it is down.
    pub(crate) async fn join(&self, domain: &str, pod: &str) -> Result<Arc<Live>, DomainError> {
        let (tree, slot) = {
            let mut state = self.state();
            let tree = state.homes.place(domain, pod);
            let slot = state.slot(&tree);
            (tree, slot)
        };
        let mut slot = slot.lock().await;
        self.up(&tree, &mut slot).await
    }

    /// A tree, if it is up.
    pub(crate) async fn live(&self, tree: &str) -> Option<Arc<Live>> {
        let slot = self.state().slots.get(tree).cloned()?;
        let live = slot.lock().await;
        live.clone()
    }

    /// The tree that the pod is in, if it is up.
    pub(crate) async fn live_of(&self, pod: &str) -> Option<Arc<Live>> {
        let tree = self.tree_of(pod)?;
        self.live(&tree).await
    }

    /// The tree that the pod is in; none before its set-up and after its end.
    pub(crate) fn tree_of(&self, pod: &str) -> Option<String> {
        self.state().homes.tree_of(pod).map(str::to_owned)
    }

    /// The pods in a tree.
    pub(crate) fn pods_in(&self, tree: &str) -> Vec<String> {
        self.state().homes.pods_in(tree)
    }

    /// Takes a pod out of its tree; with its last pod the tree goes.
    pub(crate) async fn leave(&self, pod: &str) -> Result<(), DomainError> {
        let Some(tree) = self.tree_of(pod) else { return Ok(()) };
        let slot = self.state().slot(&tree);
        let mut slot = slot.lock().await;
        let is_empty = {
            let mut state = self.state();
            state.homes.leave(pod);
            state.homes.is_empty(&tree)
        };
        if is_empty {
            *slot = None;
            self.host.remove_domain(&domain_id(&tree)?).await?;
            let mut state = self.state();
            state.homes.forget(&tree);
            if state.homes.is_empty(&tree) {
                state.slots.remove(&tree);
            }
        }
        Ok(())
    }

    /// The trees with pods whose runner is of another generation than the agent's own.
    pub(crate) fn outdated(&self) -> Vec<String> {
        self.state().homes.outdated()
    }

    /// Starts a runner of the agent's own generation beside a tree's runner of another one. `None`: there is nothing to take over.
    pub(crate) async fn start_heir(&self, tree: &str) -> Result<Option<Succession>, DomainError> {
        let Some(old) = self.live(tree).await.filter(|live| live.generation != self.own) else {
            return Ok(None);
        };
        let mut spec = self.spec(domain_id(tree)?);
        spec.arguments.push("--heir".to_owned());
        let heir = old.domain.start_heir(spec).await?;
        let (connection, life) = self.connection(tree, heir.domain(), &self.own).await?;
        Ok(Some(Succession { tree: tree.to_owned(), old, heir, connection, life }))
    }

    /// Has an heir that serves all that `hand_over` tells of take its ancestor's place. The error: it did not come to that, and the
    /// ancestor goes on.
    pub(crate) async fn succeed(
        &self,
        succession: Succession,
        alone: Alone,
        hand_over: Retire,
    ) -> Result<(), DomainError> {
        let Succession { tree, old, heir, connection, life } = succession;
        let failed = |source| DomainError::Retire { tree: tree.clone(), source };
        let slot = self.state().slot(&tree);
        let mut slot = slot.lock().await;
        if slot.as_ref().is_none_or(|live| live.life != old.life) {
            return Err(failed(RequestError::Gone));
        }
        // First: whichever of the two the next agent would find on record, it would find the pods there.
        heir.take_over().await?;
        let retired = alone.runner().ask(Request::Retire(hand_over.clone()), &[]).await;
        if let Err(error @ (RequestError::Failed(_) | RequestError::Silent)) = retired {
            heir.step_back().await?;
            end_gently(heir, &connection, hand_over).await;
            return Err(failed(error));
        }
        let domain = heir.into_domain().await;
        let (runner, generation) = (old.runner.clone(), self.own.clone());
        let images = tokio::sync::Mutex::default();
        *slot = Some(Arc::new(Live { domain, runner, generation, life, images }));
        alone.succeeded_by(connection);
        self.state().homes.set_current(&tree, true);
        Ok(())
    }

    /// The trees of an earlier agent, by the pods that were set up in them: each has its folder there, made before anything else of
    /// it and removed after it.
    pub(crate) fn found_on_disk(&self) -> Result<HashMap<String, String>, (PathBuf, io::Error)> {
        let mut found = HashMap::new();
        let trees = self.host.existing_domains().map_err(|error| {
            (self.host.data().join("domains"), io::Error::other(with_causes(&error)))
        })?;
        for tree in trees {
            let folder = pods_folder(self.host.data(), tree.as_str());
            let entries = match std::fs::read_dir(&folder) {
                // Its making was cut short: nothing is in it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(|error| (folder.clone(), error))?,
            };
            for entry in entries {
                let name = entry.map_err(|error| (folder.clone(), error))?.file_name();
                found.extend(name.into_string().ok().map(|pod| (pod, tree.to_string())));
            }
        }
        Ok(found)
    }

    /// At the agent's start: connects to the runner of an earlier agent that lives, of whatever generation, or starts a successor
    /// in the tree of one that died, and tells what it holds. `true`: it lived all the time.
    pub(crate) async fn resume(
        &self,
        tree: &str,
        pods: &[String],
    ) -> Result<(bool, Vec<PodReport>), DomainError> {
        let slot = {
            let mut state = self.state();
            pods.iter().for_each(|pod| state.homes.add(tree, pod));
            state.slot(tree)
        };
        let mut slot = slot.lock().await;
        self.resume_in(tree, &mut slot).await
    }

    /// After the connection of life `life` ended: reconnects if the runner lives, else starts a successor in the same tree.
    /// `None`: the news was stale, or no pod is left.
    pub(crate) async fn revive(
        &self,
        tree: &str,
        life: u64,
    ) -> Result<Option<(bool, Vec<PodReport>)>, DomainError> {
        let Some(slot) = self.state().slots.get(tree).cloned() else { return Ok(None) };
        let mut slot = slot.lock().await;
        let is_stale = slot.as_ref().is_none_or(|live| live.life != life);
        if is_stale || self.state().homes.is_empty(tree) {
            return Ok(None);
        }
        *slot = None;
        self.resume_in(tree, &mut slot).await.map(Some)
    }

    async fn resume_in(
        &self,
        tree: &str,
        slot: &mut Option<Arc<Live>>,
    ) -> Result<(bool, Vec<PodReport>), DomainError> {
        let adopted = self.adopt(tree).await?;
        let lived = adopted.is_some();
        let live = match adopted {
            Some(live) => {
                let is_current = live.generation == self.own;
                self.state().homes.set_current(tree, is_current);
                slot.insert(live).clone()
            }
            None => self.up(tree, slot).await?,
        };
        Ok((lived, list(tree, &live).await?))
    }

    /// The runner of an earlier agent, if it lives and speaks.
    async fn adopt(&self, tree: &str) -> Result<Option<Arc<Live>>, DomainError> {
        let Adopted::Alive(domain) = self.host.adopt_domain(&domain_id(tree)?).await? else {
            return Ok(None);
        };
        let why = match self.programs.of_runner(domain.program()) {
            Ok(generation) => match self.connect_patiently(tree, &domain, &generation).await {
                Ok(live) => return Ok(Some(live)),
                // Nothing is wrong with it, and another agent can look after it.
                Err(error @ DomainError::OtherProtocol { .. }) => return Err(error),
                Err(error) => with_causes(&error),
            },
            Err(error) => error.to_string(),
        };
        // Alive and silent, or without the compiler that its next start needs: its pods go on in a successor.
        tracing::warn!(tree, why, "a runner cannot be gone on with, and is ended");
        domain.kill();
        let _ = tokio::time::timeout(DEATH, domain.ended()).await;
        Ok(None)
    }

    async fn connect_patiently(
        &self,
        tree: &str,
        domain: &Domain,
        generation: &Generation,
    ) -> Result<Arc<Live>, DomainError> {
        let begin = Instant::now();
        loop {
            let result = self.connect(tree, domain.clone(), generation.clone()).await;
            let is_refused =
                matches!(&result, Err(DomainError::Connect { source: ConnectError::Wire(_), .. }));
            if !is_refused || begin.elapsed() > PATIENCE {
                return result;
            }
            // One that is about to die is refused by its kernel already.
            if tokio::time::timeout(PAUSE, domain.ended()).await.is_ok() {
                return result;
            }
        }
    }

    /// Removes trees of this data directory that are not in `known`: left by a crash between two steps.
    pub(crate) async fn remove_orphans(&self, known: &BTreeSet<String>) -> Result<(), DomainError> {
        for id in self.host.existing_domains()? {
            if !known.contains(id.as_str()) {
                self.host.remove_domain(&id).await?;
            }
        }
        Ok(())
    }

    /// The builds that runners on record are of, and the agent's own. A runner's record goes with its tree, or when a successor's
    /// takes its place: so no build is missing whose runner lives.
    pub(crate) fn builds_in_use(&self) -> Result<BTreeSet<String>, HostError> {
        let programs = self.host.runner_programs()?;
        let mut builds: BTreeSet<String> =
            programs.iter().filter_map(|program| build_of(program)).map(str::to_owned).collect();
        builds.insert(self.own.build.clone());
        Ok(builds)
    }

    async fn up(&self, tree: &str, slot: &mut Option<Arc<Live>>) -> Result<Arc<Live>, DomainError> {
        if let Some(live) = slot {
            return Ok(live.clone());
        }
        let domain = self.host.start_domain(self.spec(domain_id(tree)?)).await?;
        let live = self.connect(tree, domain, self.own.clone()).await?;
        self.state().homes.set_current(tree, true);
        Ok(slot.insert(live).clone())
    }

    fn spec(&self, id: DomainId) -> DomainSpec {
        let on_host = id.as_str().starts_with(IN_HOST_NETWORK);
        let argument = |name: &str, value: &str| [name.to_owned(), value.to_owned()];
        let compiler = &self.own.compiler;
        let mut arguments =
            [argument("--build", &self.own.build), argument("--engine", &compiler.engine)].concat();
        arguments.extend(
            compiler.salt.iter().flat_map(|salt| argument("--engine-salt", &salt.to_string())),
        );
        DomainSpec {
            id,
            program: self.own.runner.clone(),
            arguments,
            code: self.code.clone(),
            limits: Limits { memory: Some(self.memory), threads: Some(MOST_THREADS) },
            network: if on_host { Network::Host } else { Network::Own },
        }
    }

    async fn connect(
        &self,
        tree: &str,
        domain: Domain,
        generation: Generation,
    ) -> Result<Arc<Live>, DomainError> {
        let (connection, life) = self.connection(tree, &domain, &generation).await?;
        let (runner, images) = (Runner::new(connection), tokio::sync::Mutex::default());
        Ok(Arc::new(Live { domain, runner, generation, life, images }))
    }

    async fn connection(
        &self,
        tree: &str,
        domain: &Domain,
        generation: &Generation,
    ) -> Result<(Connection, u64), DomainError> {
        let life = self.lives.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = tree.to_owned();
        let wrap = move |heard: Heard| Wake::Runner { tree: name.clone(), life, heard };
        let hello = Hello {
            versions: VERSIONS,
            build: self.own.build.clone(),
            engine: self.own.compiler.engine.clone(),
        };
        let connected = Connection::connect(domain, hello, self.wake.clone(), wrap).await;
        let connection = connected.map_err(|source| {
            let tree = tree.to_owned();
            match source {
                ConnectError::Version { oldest, newest } => {
                    let program = generation.compiler.program.clone();
                    DomainError::OtherProtocol { tree, oldest, newest, program }
                }
                source => DomainError::Connect { tree, source },
            }
        })?;
        Ok((connection, life))
    }
}

impl Succession {
    /// It does not come to it: the heir gives up what it serves already, which is what `hand_over` tells of.
    pub(crate) async fn call_off(self, hand_over: Retire) {
        end_gently(self.heir, &self.connection, hand_over).await;
    }
}

/// An heir whose ancestor goes on lets go of the listeners as gently as that one would have.
async fn end_gently(heir: Heir, connection: &Connection, hand_over: Retire) {
    if connection.ask(Request::Retire(hand_over), &[]).await.is_ok() {
        heir.let_go();
    }
}

/// Where in a tree the pods' folders are that tell which pods were set up in it: root's, so that no runner can change them.
fn pods_folder(data: &Path, tree: &str) -> PathBuf {
    data.join("domains").join(tree).join("root").join(layout::RW.trim_start_matches('/'))
}

async fn list(tree: &str, live: &Live) -> Result<Vec<PodReport>, DomainError> {
    let error = |source| DomainError::List { tree: tree.to_owned(), source };
    match live.runner.ask(Request::List).await.map_err(error)? {
        Answer::List(pods) => Ok(pods),
        _ => Err(error(RequestError::Gone)),
    }
}

fn domain_id(tree: &str) -> Result<DomainId, HostError> {
    DomainId::try_from(tree.to_owned()).map_err(HostError::Invalid)
}
