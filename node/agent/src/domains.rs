//! The isolation domains of this agent and the connections to their runners.
//!
//! ```text
//! Down ──start or adopt──▶ Up ──runner gone──▶ Down
//! ```
//! A domain starts with the first pod that joins it and is removed with the last that leaves. Its slot's lock is held over these
//! steps, so that of several pods that arrive at once one starts the runner and the others wait.
//!
//! Absent: what a dead runner means for its pods: the owner hears of it and decides.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use std::path::PathBuf;

use copepod_domain::{Adopted, Domain, DomainId, DomainSpec, Host, HostError, Limits, Network};
use copepod_shim::protocol::{Answer, Hello, PodReport, Request};
use tokio::sync::mpsc;

use crate::owner::Wake;
use crate::runner::{ConnectError, Heard, RequestError, Runner};

/// Most threads of a runner: its workers and those that files are read by, with room.
const MOST_THREADS: u32 = 1024;

/// A domain whose runner lives and is connected.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) domain: Domain,
    pub(crate) runner: Runner,
    /// Which life of the runner this is, as this agent counts them: news of an earlier one is stale.
    pub(crate) life: u64,
}

/// Why a domain is not up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DomainError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the runner of domain {id} started but cannot be spoken to")]
    Connect { id: String, source: ConnectError },
    #[error("the runner of domain {id} does not tell what it holds")]
    List { id: String, source: RequestError },
}

#[derive(Debug, Default)]
struct Slot {
    live: Option<Arc<Live>>,
    /// The pods that joined.
    pods: BTreeSet<String>,
}

/// All domains.
#[derive(Debug)]
pub(crate) struct Domains {
    host: Host,
    hello: Hello,
    /// The runner's program.
    program: PathBuf,
    /// The folder of this engine's compiled code.
    code: PathBuf,
    /// What all domains may use at most: what the node gives to pods.
    memory: u64,
    wake: mpsc::Sender<Wake>,
    slots: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Slot>>>>,
    lives: std::sync::atomic::AtomicU64,
}

impl Domains {
    pub(crate) fn new(
        host: Host,
        hello: Hello,
        program: PathBuf,
        code: PathBuf,
        memory: u64,
        wake: mpsc::Sender<Wake>,
    ) -> Self {
        let (slots, lives) = Default::default();
        Self { host, hello, program, code, memory, wake, slots, lives }
    }

    fn slot(&self, id: &str) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(id.to_owned()).or_default().clone()
    }

    /// The domain, started where it is down, with `pod` as one of its pods.
    pub(crate) async fn join(&self, id: &str, pod: &str) -> Result<Arc<Live>, DomainError> {
        let slot = self.slot(id);
        let mut slot = slot.lock().await;
        slot.pods.insert(pod.to_owned());
        self.up(id, &mut slot).await
    }

    /// The domain if it is up.
    pub(crate) async fn live(&self, id: &str) -> Option<Arc<Live>> {
        self.slot(id).lock().await.live.clone()
    }

    /// Takes `pod` out; with its last pod the domain goes.
    pub(crate) async fn leave(&self, id: &str, pod: &str) -> Result<(), DomainError> {
        let slot = self.slot(id);
        let mut slot = slot.lock().await;
        slot.pods.remove(pod);
        if slot.pods.is_empty() {
            slot.live = None;
            self.host.remove_domain(&domain_id(id)?).await?;
        }
        Ok(())
    }

    /// At the agent's start: connects to the runner of an earlier agent that lives, or starts a successor in the tree of one that
    /// died, and tells what it holds. `true`: it lived all the time.
    pub(crate) async fn resume(
        &self,
        id: &str,
        pods: impl IntoIterator<Item = String>,
    ) -> Result<(bool, Vec<PodReport>), DomainError> {
        let slot = self.slot(id);
        let mut slot = slot.lock().await;
        slot.pods.extend(pods);
        let adopted = match self.host.adopt_domain(&domain_id(id)?).await? {
            Adopted::Alive(domain) => self.connect(id, domain).await.ok(),
            Adopted::Dead => None,
        };
        let lived = adopted.is_some();
        let live = match adopted {
            Some(live) => {
                slot.live = Some(live.clone());
                live
            }
            // Dead, or alive and silent: then it is ended, as nobody can know what its guests do.
            None => self.up(id, &mut slot).await?,
        };
        Ok((lived, list(id, &live).await?))
    }

    /// After the connection of life `life` ended: reconnects if the runner lives, else starts a successor in the same tree.
    /// `None`: the news was stale, or no pod is left.
    pub(crate) async fn revive(
        &self,
        id: &str,
        life: u64,
    ) -> Result<Option<(bool, Vec<PodReport>)>, DomainError> {
        let slot = self.slot(id);
        let mut slot = slot.lock().await;
        if slot.pods.is_empty() || slot.live.as_ref().is_none_or(|live| live.life != life) {
            return Ok(None);
        }
        slot.live = None;
        drop(slot);
        self.resume(id, []).await.map(Some)
    }

    /// Removes domains of this data directory that no pod of `known` names: left by a crash between two steps.
    pub(crate) async fn remove_orphans(&self, known: &BTreeSet<String>) -> Result<(), DomainError> {
        for id in self.host.existing_domains()? {
            if !known.contains(id.as_str()) {
                self.host.remove_domain(&id).await?;
            }
        }
        Ok(())
    }

    async fn up(&self, id: &str, slot: &mut Slot) -> Result<Arc<Live>, DomainError> {
        if let Some(live) = &slot.live {
            return Ok(live.clone());
        }
        let domain = self.host.start_domain(self.spec(domain_id(id)?)).await?;
        let live = self.connect(id, domain).await?;
        slot.live = Some(live.clone());
        Ok(live)
    }

    fn spec(&self, id: DomainId) -> DomainSpec {
        let argument = |name: &str, value: &str| [name.to_owned(), value.to_owned()];
        let arguments =
            [argument("--build", &self.hello.build), argument("--engine", &self.hello.engine)];
        DomainSpec {
            id,
            program: self.program.clone(),
            arguments: arguments.concat(),
            code: self.code.clone(),
            limits: Limits { memory: Some(self.memory), threads: Some(MOST_THREADS) },
            network: Network::Own,
        }
    }

    async fn connect(&self, id: &str, domain: Domain) -> Result<Arc<Live>, DomainError> {
        let life = self.lives.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = id.to_owned();
        let wrap = move |heard: Heard| Wake::Runner { domain: name.clone(), life, heard };
        let runner =
            Runner::connect(domain.socket_path(), self.hello.clone(), self.wake.clone(), wrap)
                .await
                .map_err(|source| DomainError::Connect { id: id.to_owned(), source })?;
        Ok(Arc::new(Live { domain, runner, life }))
    }
}

async fn list(id: &str, live: &Live) -> Result<Vec<PodReport>, DomainError> {
    let error = |source| DomainError::List { id: id.to_owned(), source };
    match live.runner.ask(Request::List).await.map_err(error)? {
        Answer::List(pods) => Ok(pods),
        _ => Err(error(RequestError::Gone)),
    }
}

fn domain_id(id: &str) -> Result<DomainId, HostError> {
    DomainId::try_from(id.to_owned()).map_err(HostError::Invalid)
}
