//! An agent's start: what an earlier one left is read, its runners are asked, and only then does anything happen.
//!
//! The order matters (reliability.md 6): pods and journal first, runners second, strays last; a list that cannot be read ends the
//! start, so that nothing is ever killed because of an empty or a damaged one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use copepod_domain::{AddressPool, Host, HostConfig, HostError};
use copepod_image::{CompileLimits, Images, ImagesConfig, StoreError};
use copepod_node::life::{EndReason, Journaled, PodEvent, PodLife};
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::argv;
use crate::causes::with_causes;
use crate::config::AgentConfig;
use crate::domains::{DomainError, Domains};
use crate::front::Front;
use crate::generation::{Generation, Programs};
use crate::journal::{Journal, JournalError};
use crate::node::NodeView;
use crate::owner::{Line, Owner};
use crate::perform::{Performer, REFRESHES};
use crate::pod::{Entry, World};
use crate::ports::Ports;
use crate::remove;
use crate::serve::{self, Clients};
use crate::store::Store;
use crate::succession;

/// News on its way to the owner: beyond it, runners and clients wait.
const INBOX: usize = 1024;

/// Why an agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another agent owns the data directory.
    #[error("another agent is at work in {0}")]
    Taken(PathBuf),
    /// The data directory cannot be used.
    #[error("the data directory {path} cannot be used")]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A pod's file is damaged. Its guests are left alone, which is possible only while no agent acts.
    #[error("{path} is damaged ({why}): restore it, or remove its folder to give the pod up")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The host cannot do what pods need.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The image store cannot be opened.
    #[error(transparent)]
    Images(#[from] StoreError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A runner lives that only an agent of another version can speak with.
    #[error("{0}")]
    OtherProtocol(String),
    /// What was left over of domains cannot be removed.
    #[error("a domain of an earlier agent cannot be removed: {0}")]
    Leftover(String),
    /// The compiler does not work on this machine.
    #[error("no code can be compiled here: {0}")]
    Engine(String),
}

/// Runs the agent of a data directory until nothing is left for it to do. To be called before the process has a second thread, as
/// it enters the directory's mount namespace. `ready` is called once clients are served, with
/// the door for pods of a cluster; the agent goes on while it is held.
///
/// # Errors
/// See [`AgentError`]; the guests of an earlier agent go on in every case.
pub fn run_agent(config: AgentConfig, ready: impl FnOnce(Front) + Send) -> Result<(), AgentError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| AgentError::Data { path, source }
    };
    let data = config.data.clone();
    std::fs::create_dir_all(&data).map_err(at(&data))?;
    // Held until the process ends, however it ends.
    let _lock = lock(&data)?;
    let programs = Programs::of(&data);
    let engine =
        copepod_image::engine_hash(config.engine_salt.as_ref()).map_err(AgentError::Engine)?;
    let own = programs.install(&config, engine).map_err(at(&data.join("bin")))?;
    let arguments = ["__broker", "--data-dir"].map(str::to_owned);
    let arguments = arguments.into_iter().chain([data.to_string_lossy().into_owned()]).collect();
    let broker = Some((own.compiler.program.clone(), arguments));
    let mut host = HostConfig { pod_cidrs: config.pod_cidrs, broker, ..HostConfig::new(&data) };
    if let Some(node) = &config.cluster {
        host.denied_node_ports.clone_from(&node.denied_ports);
        host.masquerade = node.masquerade;
        host.masquerade_exceptions.clone_from(&node.masquerade_exceptions);
        host.direct.clone_from(&node.direct);
    }
    let host = Host::enter(host)?;
    for warning in host.warnings() {
        tracing::warn!(warning);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(at(&data))?;
    runtime.block_on(run(config, host, programs, own, ready))
}

/// When this machine was started.
fn booted() -> io::Result<SystemTime> {
    let path = "/proc/stat";
    let stat = std::fs::read_to_string(path)?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    let seconds = line.and_then(|line| line.trim().parse().ok());
    seconds.map(|it| UNIX_EPOCH + Duration::from_secs(it)).ok_or(io::ErrorKind::InvalidData.into())
}

fn lock(data: &Path) -> Result<File, AgentError> {
    let path = data.join("agent.lock");
    let file =
        File::create(&path).map_err(|source| AgentError::Data { path: path.clone(), source })?;
    let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&file, operation).map_err(|_| AgentError::Taken(data.to_owned()))?;
    Ok(file)
}

async fn run(
    config: AgentConfig,
    host: Host,
    programs: Programs,
    own: Generation,
    ready: impl FnOnce(Front),
) -> Result<(), AgentError> {
    let data = config.data.clone();
    let images = Images::open(
        &data.join("images"),
        &data.join("code"),
        ImagesConfig {
            compile: CompileLimits {
                cpu_seconds: config.compile_cpu_seconds,
                memory_bytes: config.compile_memory,
                wall: Duration::from_secs(config.compile_wall_seconds),
                ..CompileLimits::default()
            },
            pull: config.pull.clone(),
            ..ImagesConfig::default()
        },
    )?;
    let store_error = |source| AgentError::Data { path: data.join("pods"), source };
    let store = Store::open(&data).map_err(store_error)?;
    let booted = config.cluster.is_some().then(booted).transpose();
    let booted = booted.map_err(|source| AgentError::Data { path: "/proc/stat".into(), source })?;
    let stored = store
        .load(booted)
        .map_err(|found| AgentError::Damaged { path: found.path, why: found.why })?;
    let (journal, lines) = Journal::open::<Line>(&data.join("journal"))?;
    let mut history: HashMap<String, Vec<Journaled>> = HashMap::new();
    for line in lines {
        history.entry(line.uid).or_default().push(line.journaled);
    }

    if config.cluster.is_some() {
        tokio::spawn(argv::bring_toolbox(
            images.clone(),
            own.compiler.clone(),
            config.toolbox.clone(),
        ));
    }
    let (wake, inbox) = mpsc::channel(INBOX);
    let clients = Arc::default();
    let node = NodeView::of_this_machine(&config, &host);
    let code = images.code_folder(&own.compiler.engine)?;
    let started = Timestamp::now();
    let since = programs
        .current_since(&own, started.as_second())
        .map_err(|source| AgentError::Data { path: data.join("bin"), source })?;
    let addresses = AddressPool::new(host.pod_cidrs());
    let memory = node.memory;
    let domains = Domains::new(host.clone(), programs.clone(), own, code, memory, wake.clone());
    let domains = Arc::new(domains);
    let performer = Arc::new(Performer {
        config,
        programs,
        domains: domains.clone(),
        ports: Ports::new(host.clone()),
        images: Arc::new(images),
        node,
        wake: wake.clone(),
        clients: Arc::clone(&clients),
        exits: Mutex::default(),
        collected: Mutex::new(Instant::now()),
        current_since: Timestamp::from_second(since).unwrap_or(started),
        older_generations: tokio::sync::Mutex::new(true),
        refreshes: tokio::sync::Semaphore::new(REFRESHES),
    });
    let mut owner = Owner {
        journal,
        store,
        addresses,
        performer,
        pods: HashMap::new(),
        names: BTreeMap::new(),
        due: BTreeSet::new(),
        watchers: Vec::new(),
        board: Arc::default(),
        behind: BTreeSet::new(),
        stopping: Vec::new(),
        inbox,
    };
    let now = Timestamp::now();
    let mut found =
        domains.found_on_disk().map_err(|(path, source)| AgentError::Data { path, source })?;
    let mut alive: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // Those whose set-up had not begun, or whose tree is gone.
    let mut homeless = Vec::new();
    for mut stored in stored {
        let uid = stored.pod.metadata.uid.clone().unwrap_or_default();
        owner.addresses.take_this(stored.ip);
        let facts = history.remove(&uid).unwrap_or_default();
        // Taken out, so that the one pod is not copied for its defaults, and then shared.
        let life = match PodLife::recover(std::mem::take(&mut stored.pod), &facts, now) {
            Ok(life) => {
                stored.pod = life.pod().clone();
                life
            }
            Err(refusals) => {
                let why = refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                return Err(AgentError::Damaged { path: data.join("pods").join(uid), why });
            }
        };
        let host_ips = owner.performer.node.facts.ips.clone();
        let world = World::new(&data, uid.clone(), stored, host_ips, Vec::new());
        if life.is_over() {
            world.going_on.over.store(true, Ordering::Relaxed);
        } else {
            match found.remove(&uid) {
                Some(tree) => alive.entry(tree).or_default().push(uid.clone()),
                None => homeless.push(uid.clone()),
            }
        }
        owner.names.insert(world.name(), uid.clone());
        let mut entry = Entry::new(life, world);
        // Whoever asked for its end has also asked for it to be forgotten; but an API server forgets later.
        entry.forget = owner.performer.config.cluster.is_none()
            && entry.life.end_reason() == Some(EndReason::Deleted);
        owner.pods.insert(uid, entry);
    }
    remove_strays(&data, &owner);
    owner.shorten_journal()?;
    let mut touched = BTreeSet::new();
    for (tree, pods) in &alive {
        match domains.resume(tree, pods).await {
            Ok((lived, reports)) => owner.reconcile(tree, lived, reports, &mut touched),
            Err(error @ DomainError::OtherProtocol { .. }) => {
                return Err(AgentError::OtherProtocol(error.to_string()));
            }
            Err(error) => {
                tracing::error!(tree, error = with_causes(&error), "a runner cannot be resumed");
                owner.reconcile(tree, false, Vec::new(), &mut touched);
            }
        }
    }
    for uid in homeless {
        owner.observe(&uid, PodEvent::SandboxLost, &mut touched);
    }
    lead_ports(&owner, &alive).await;
    let in_use: BTreeSet<String> = alive.into_keys().collect();
    domains
        .remove_orphans(&in_use)
        .await
        .map_err(|error: DomainError| AgentError::Leftover(with_causes(&error)))?;
    owner.performer.remove_unused_generations().await;

    let listener = serve::bind(&data)
        .map_err(|source| AgentError::Data { path: data.join("agent.sock"), source })?;
    let front = Front::new(&owner, Clients::count(&clients));
    tokio::spawn(succession::run(owner.performer.clone()));
    tokio::spawn(serve::serve(listener, wake, clients));
    ready(front);
    owner.run().await?;
    let _ = std::fs::remove_file(data.join("agent.sock"));
    // No pod is left that could run: nothing of this agent stays on the host but its data directory.
    host.reset().await?;
    Ok(())
}

/// Leads to the pods that are set up what they ask for of the machine's ports, and nothing else to anybody.
async fn lead_ports(owner: &Owner, alive: &BTreeMap<String, Vec<String>>) {
    if owner.pods.is_empty() {
        // Whoever forgot the last of them has first closed its ports.
        return;
    }
    let set_up = alive.values().flatten().filter_map(|uid| owner.pods.get(uid));
    let set_up = set_up.map(|it| (it.world.uid.as_str(), &*it.world.stored.pod, it.world.ips()));
    if let Err(error) = owner.performer.ports.resume(set_up).await {
        // They stay as an earlier agent left them until a pod comes or goes.
        tracing::error!(error = with_causes(&error), "ports of this machine cannot be led to pods");
    }
}

/// Removes what is left of pods that were forgotten, or were never whole on disk, when an agent died: their folders and logs.
fn remove_strays(data: &Path, owner: &Owner) {
    let known: BTreeSet<PathBuf> = owner
        .pods
        .iter()
        .flat_map(|(uid, entry)| [data.join("pods").join(uid), entry.world.logs.clone()])
        .collect();
    for folder in ["pods", "logs/pods"] {
        let entries = std::fs::read_dir(data.join(folder)).into_iter().flatten().flatten();
        for stray in entries.map(|entry| entry.path()).filter(|path| !known.contains(path)) {
            if let Err(error) = remove::tree(&stray) {
                tracing::warn!(path = %stray.display(), %error, "a pod that is gone is left over");
            }
        }
    }
}
