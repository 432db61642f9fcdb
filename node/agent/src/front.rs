//! The agent's door for a program in the same process that brings it pods: the kubelet's side of a node (`copepod-kubelet`).
//!
//! Through a [`Front`] pods are taken on under the UID that an API server gave them, ended, and forgotten once the API server has
//! forgotten them; what they come to is put on a board, from which the newest of each pod is taken, whenever there is time. So a
//! slow API server holds up no pod, and costs one entry per pod. The same door leads to what only a cluster knows of the network:
//! the ways to other nodes' pods, which concern no pod of the owner's.
//!
//! Absent: how a pod looks in the API of a cluster (`copepod-kubelet`), and what the program's own socket offers ([`crate::api`]),
//! which a front may ask too, by [`Front::call`].

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use copepod_domain::{Cidr, HostError, Surroundings, WayChange};
use copepod_image::Listed;
use copepod_node::Refusal;
use copepod_node::annotations::NodeCeilings;
use copepod_node::containers::{self, List};
use copepod_node::life::{PodEvent, PodLife, ProbeKind};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::accept::{domain_of, is_on_host, loopback_of};
use crate::api::{Call, PodName, Reply};
use crate::causes::with_causes;
use crate::owner::{Asked, Owner, Wake};
use crate::perform::Performer;
use crate::pod::{Entry, World};
use crate::ports;
use crate::serve::Clients;
pub use crate::store::{PodObjects, PodToken};
use crate::store::{Store, Stored};

/// Replies under way to one call: as many as a client of the socket may have.
const REPLIES: usize = 16;

/// The way in for pods of a cluster. The agent goes on as long as one is held.
#[derive(Clone)]
pub struct Front {
    wake: mpsc::Sender<Wake>,
    board: Arc<Board>,
    performer: Arc<Performer>,
    _stays: Arc<Clients>,
}

/// A pod as it is now, and what happened to it since it was last taken from the board.
#[derive(Clone, Debug)]
pub struct PodNews {
    /// The pod as it was taken on, with its UID.
    pub pod: Arc<Pod>,
    /// Its status as of now; without what an API server and others add.
    pub status: PodStatus,
    /// Nothing of it runs, and nothing will run again; its volumes are gone.
    pub over: bool,
    /// What happened, oldest first.
    pub events: Vec<NewEvent>,
    /// What its probes came to, oldest first.
    pub probes: Vec<Probed>,
}

/// What one try of a probe came to. One that could not be made is none, as a kubelet counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Of which container.
    pub container: String,
    /// Which of its probes.
    pub kind: ProbeKind,
    /// Whether it passed.
    pub passed: bool,
    /// How long that took.
    pub took: Duration,
}

/// Something that happened to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// `Warning`; else `Normal`.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: String,
    /// The sentence.
    pub message: String,
    /// `spec.containers{name}`; none: it is about the whole pod.
    pub field_path: Option<String>,
    /// When.
    pub at: Timestamp,
}

impl NewEvent {
    /// A warning about a whole pod, now.
    pub fn warning(reason: &str, message: String) -> Self {
        let at = Timestamp::now();
        Self { warning: true, reason: reason.to_owned(), message, field_path: None, at }
    }
}

/// A pod that the agent holds.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its namespace and name.
    pub name: PodName,
    /// The pod as it was taken on.
    pub pod: Arc<Pod>,
    /// See [`PodNews::over`].
    pub over: bool,
}

/// What runners of other builds than the agent's own still serve.
#[derive(Clone, Debug)]
pub struct Outdated {
    /// Since when the agents here have been of this build.
    pub since: Timestamp,
    /// How many runners.
    pub runners: usize,
    /// How many pods are in them.
    pub pods: usize,
    /// The pods among them with a program, which goes on where it runs: with it stay its runner, and all that the runner serves.
    pub programs: Vec<Arc<Pod>>,
}

/// Where it is told whether a pod was taken on: all that is wrong with it where it was not.
type TakenOn = oneshot::Sender<Result<(), Vec<String>>>;

/// A pod that was put on disk, or could not be.
#[derive(Debug)]
pub(crate) struct Arrival {
    entry: Entry,
    put: io::Result<()>,
    answer: TakenOn,
}

/// What a front asks of the owner.
#[derive(Debug)]
pub(crate) enum Ask {
    TakeOn { pod: Box<Pod>, objects: PodObjects, answer: TakenOn },
    Update { pod: Box<Pod>, answer: oneshot::Sender<Result<(), Vec<String>>> },
    End { uid: String, grace: Duration },
    Forget { uid: String },
    Known { answer: oneshot::Sender<HashMap<String, Known>> },
    World { name: PodName, answer: oneshot::Sender<Option<Arc<World>>> },
}

/// The newest of each pod of which a front has not taken the news yet.
#[derive(Debug, Default)]
pub(crate) struct Board {
    news: Mutex<HashMap<String, PodNews>>,
    fresh: Notify,
}

impl Board {
    /// Puts a pod's state in the place of an older one; what happened is added to what nobody has taken.
    fn put(&self, uid: &str, mut newest: PodNews) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(older) = news.remove(uid) {
            let events = std::mem::replace(&mut newest.events, older.events);
            newest.events.extend(events);
            let probes = std::mem::replace(&mut newest.probes, older.probes);
            newest.probes.extend(probes);
        }
        news.insert(uid.to_owned(), newest);
        self.fresh.notify_one();
    }

    async fn take(&self) -> HashMap<String, PodNews> {
        loop {
            let fresh = self.fresh.notified();
            {
                let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
                if !news.is_empty() {
                    return std::mem::take(&mut *news);
                }
            }
            fresh.await;
        }
    }
}

/// How long a pod may be on disk for now only. Many that come together are synced together.
const SYNC_WITHIN: Duration = Duration::from_secs(1);

impl Front {
    pub(crate) fn new(owner: &Owner, clients: Clients) -> Self {
        Self {
            wake: owner.performer.wake.clone(),
            board: owner.board.clone(),
            performer: owner.performer.clone(),
            _stays: Arc::new(clients),
        }
    }

    /// Waits until something has happened, and takes the news of all pods; to be called by one task.
    pub async fn news(&self) -> HashMap<String, PodNews> {
        self.board.take().await
    }

    /// Takes a pod on under its UID, with what it refers to as far as it is known. One that is here already is left as it is.
    ///
    /// # Errors
    /// All that is wrong with the pod, each a sentence that names the field; nothing was done then.
    pub async fn take_on(&self, pod: Pod, objects: PodObjects) -> Result<(), Vec<String>> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::TakeOn { pod: Box::new(pod), objects, answer }).await;
        answered.await.unwrap_or_else(|_| Err(vec!["the agent is ending".into()]))
    }

    /// Goes on with a pod by another version of its spec and of its labels and annotations ([`PodLife::update`]). What the pod has
    /// from this node alone stays.
    ///
    /// # Errors
    /// All that is wrong with it, each a sentence that names the field; the pod goes on as it was.
    pub async fn update(&self, pod: Pod) -> Result<(), Vec<String>> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::Update { pod: Box::new(pod), answer }).await;
        answered.await.unwrap_or_else(|_| Err(vec!["the agent is ending".into()]))
    }

    /// Ends a pod within `grace` from now; a later call may shorten that and never lengthens it. It stays known.
    pub async fn end(&self, uid: &str, grace: Duration) {
        self.ask(Ask::End { uid: uid.to_owned(), grace }).await;
    }

    /// Forgets a pod that its API server has forgotten; what still runs of it is ended at once.
    pub async fn forget(&self, uid: &str) {
        self.ask(Ask::Forget { uid: uid.to_owned() }).await;
    }

    /// Another set of the objects that a pod refers to, tokens among them: files follow, and what waited for one goes on.
    pub async fn replace_objects(&self, uid: &str, objects: PodObjects) {
        let _ = self.wake.send(Wake::Objects { uid: uid.to_owned(), objects }).await;
    }

    /// All pods that the agent holds, by UID.
    pub async fn known(&self) -> HashMap<String, Known> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::Known { answer }).await;
        answered.await.unwrap_or_default()
    }

    /// What runners of other builds than the agent's own still serve.
    pub async fn outdated(&self) -> Outdated {
        crate::succession::outdated(&self.performer).await
    }

    /// Tells a Warning event of a pod.
    pub async fn warn(&self, uid: &str, reason: &'static str, message: String) {
        let _ = self.wake.send(Wake::Warning { uid: uid.to_owned(), reason, message }).await;
    }

    /// The images that are on this node's disk.
    ///
    /// # Errors
    /// The disk's, as a sentence.
    pub async fn images(&self) -> Result<Vec<Listed>, String> {
        let images = self.performer.images.clone();
        match tokio::task::spawn_blocking(move || images.list()).await {
            Ok(listed) => listed.map_err(|error| with_causes(&error)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Asks as a client of the agent's socket does; the replies end with the call.
    pub async fn call(&self, call: Call, descriptors: Vec<OwnedFd>) -> mpsc::Receiver<Reply> {
        let (replies, replied) = mpsc::channel(REPLIES);
        let _ = self.wake.send(Wake::Call(Asked { call, descriptors, replies })).await;
        replied
    }

    /// A connection to a port of a pod, from inside its own network.
    ///
    /// # Errors
    /// `NotFound` where there is no such pod; else why nobody answers.
    pub async fn dial(&self, pod: &PodName, port: u16) -> io::Result<TcpStream> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::World { name: pod.clone(), answer }).await;
        let world = answered.await.ok().flatten().ok_or(io::ErrorKind::NotFound)?;
        self.performer.dial(&world, port).await
    }

    /// What leads where on this machine now, and how these addresses are reached.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn surroundings(&self, nodes: Vec<IpAddr>) -> Result<Surroundings, HostError> {
        self.performer.domains.host().surroundings(nodes).await
    }

    /// Changes the ways to other nodes' pods; those changes that failed, with the reason. The ways go with what else the data directory
    /// has on this machine.
    ///
    /// # Errors
    /// Nothing could be changed.
    pub async fn change_ways(
        &self,
        changes: Vec<WayChange>,
    ) -> Result<Vec<(WayChange, io::Error)>, HostError> {
        self.performer.domains.host().change_ways(changes).await
    }

    /// Has pods reach these blocks, beside the configured ones, under their own addresses, and no others.
    ///
    /// # Errors
    /// The packet filter's.
    pub async fn set_direct(&self, blocks: Vec<Cidr>) -> Result<(), HostError> {
        self.performer.domains.host().set_direct(blocks).await
    }

    async fn ask(&self, ask: Ask) {
        // The owner is gone only when the agent ends.
        let _ = self.wake.send(Wake::Front(ask)).await;
    }
}

impl Owner {
    /// Tells the front of a pod, where there is one.
    pub(crate) fn post(&mut self, uid: &str) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let events = std::mem::take(&mut entry.fresh);
        if self.performer.config.cluster.is_none() {
            return;
        }
        let news = PodNews {
            pod: entry.world.stored.pod.clone(),
            status: entry.life.status(&entry.world.host_ips),
            over: entry.life.is_over(),
            events,
            probes: entry.world.going_on.take_probed(),
        };
        self.board.put(uid, news);
    }

    pub(crate) fn ask(&mut self, ask: Ask, touched: &mut BTreeSet<String>) {
        match ask {
            Ask::TakeOn { pod, objects, answer } => match self.newcomer(*pod, objects) {
                Ok(Some(entry)) => self.put(entry, answer),
                Ok(None) => drop(answer.send(Ok(()))),
                Err(reasons) => drop(answer.send(Err(reasons))),
            },
            Ask::Update { pod, answer } => {
                let _ = answer.send(self.update(*pod, touched));
            }
            Ask::End { uid, grace } => {
                self.observe(&uid, PodEvent::DeleteAsked { grace: Some(grace) }, touched);
            }
            Ask::Forget { uid } => {
                if let Some(entry) = self.pods.get_mut(&uid) {
                    entry.forget = true;
                    let grace = Some(Duration::ZERO);
                    self.observe(&uid, PodEvent::DeleteAsked { grace }, touched);
                }
            }
            Ask::Known { answer } => {
                let known = |entry: &Entry| Known {
                    name: entry.world.name(),
                    pod: entry.world.stored.pod.clone(),
                    over: entry.life.is_over(),
                };
                let all = self.pods.iter().map(|(uid, entry)| (uid.clone(), known(entry)));
                let _ = answer.send(all.collect());
            }
            Ask::World { name, answer } => {
                let _ = answer.send(self.find(&name).map(|entry| entry.world.clone()));
            }
        }
    }

    fn update(&mut self, pod: Pod, touched: &mut BTreeSet<String>) -> Result<(), Vec<String>> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let Some(entry) = self.pods.get_mut(&uid) else { return Ok(()) };
        entry.life.update(pod, &NodeCeilings::default(), Timestamp::now()).map_err(sentences)?;
        entry.world = Arc::new(entry.world.with_pod(entry.life.pod().clone()));
        // Onto the disk in the background. Where a crash comes before, whoever brought this version finds that it is not here.
        self.performer.refresh(&entry.world, &self.store);
        touched.insert(uid);
        Ok(())
    }

    /// A pod that may be taken on, with an address; none where it is here already.
    fn newcomer(&mut self, pod: Pod, objects: PodObjects) -> Result<Option<Entry>, Vec<String>> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if uid.is_empty() || self.pods.contains_key(&uid) {
            return Ok(None);
        }
        if let Some(node) = &self.performer.config.cluster {
            let mut refused = refused_host_paths(&pod, &node.host_paths);
            if is_on_host(&pod) && !node.host_network {
                refused.push(
                    "spec.hostNetwork: this node lets no pod into its own network (--allow-host-network); leave it out, or ask the \
                     node's administrator"
                        .to_owned(),
                );
            }
            refused.extend(ports::refused(self.performer.domains.host(), &pod, &node.denied_ports));
            if !refused.is_empty() {
                return Err(refused);
            }
        }
        let now = Timestamp::now();
        let life = PodLife::admit(pod, &NodeCeilings::default(), now).map_err(sentences)?;
        let slot = self.addresses.take().ok_or_else(|| {
            vec![format!("all {} pod addresses are taken", self.addresses.blocks())]
        })?;
        let (ip, second_ip) = self.addresses_of(slot);
        let stored = Stored {
            domain: domain_of(life.pod(), &uid),
            pod: life.pod().clone(),
            objects: Arc::new(objects.into()),
            publish: Vec::new(),
            credentials: Vec::new(),
            ip,
            second_ip,
            loopback: loopback_of(slot),
            accepted: now,
        };
        let host_ips = self.performer.node.facts.ips.clone();
        let data = &self.performer.config.data;
        let world = World::new(data, uid, stored, host_ips, Vec::new());
        Ok(Some(Entry::new(life, world)))
    }

    /// Puts a pod on disk in a thread of its own. One that may run only once waits for the disk some times, so that it does after a power
    /// cut, too; such pods that come together do so together. Any other outlives one a moment later: until then its cluster would bring it
    /// again.
    fn put(&self, entry: Entry, answer: TakenOn) {
        let (wake, store) = (self.performer.wake.clone(), self.store.clone());
        tokio::task::spawn_blocking(move || {
            let World { uid, stored, .. } = &*entry.world;
            let put = if starts_again(&stored.pod) {
                store.put_for_now(uid, stored).map(|due| {
                    if due {
                        tokio::spawn(sync_soon(store));
                    }
                })
            } else {
                store.put(uid, stored)
            };
            // The owner is gone only when the agent ends.
            let _ = wake.blocking_send(Wake::Arrived(Box::new(Arrival { entry, put, answer })));
        });
    }

    pub(crate) fn arrive(&mut self, arrival: Arrival, touched: &mut BTreeSet<String>) {
        let Arrival { entry, put, answer } = arrival;
        let uid = entry.world.uid.clone();
        // Asked for twice at once, it came by the other.
        if self.pods.contains_key(&uid) {
            self.addresses.give_back(entry.world.stored.ip);
            let _ = answer.send(Ok(()));
            return;
        }
        if let Err(error) = put {
            self.addresses.give_back(entry.world.stored.ip);
            let _ = self.store.remove(&uid);
            let why = format!("the node's data directory cannot be written: {error}");
            let _ = answer.send(Err(vec![why]));
            return;
        }
        // Another pod of this name may still be ending here: the name is the newest one's.
        self.names.insert(entry.world.name(), uid.clone());
        self.pods.insert(uid.clone(), entry);
        touched.insert(uid);
        let _ = answer.send(Ok(()));
    }
}

/// Whether all of the pod's containers start again, whatever came of them before.
fn starts_again(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let always = |policy: Option<&str>| policy.is_none_or(|policy| policy == "Always");
    let own = containers::all(pod).filter(|it| it.list == List::App);
    always(spec.and_then(|spec| spec.restart_policy.as_deref()))
        && own.into_iter().all(|it| always(it.container.restart_policy.as_deref()))
}

async fn sync_soon(store: Store) {
    tokio::time::sleep(SYNC_WITHIN).await;
    let _ = tokio::task::spawn_blocking(move || store.sync()).await;
}

fn sentences(refusals: Vec<Refusal>) -> Vec<String> {
    refusals.iter().map(ToString::to_string).collect()
}

/// What a pod wants to mount of the machine and may not: anything not beneath `allowed`.
fn refused_host_paths(pod: &Pod, allowed: &[PathBuf]) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).enumerate();
    let wanted =
        volumes.filter_map(|(i, volume)| Some((i, Path::new(&volume.host_path.as_ref()?.path))));
    let refused = wanted.filter_map(|(i, path)| {
        Some(format!("spec.volumes[{i}].hostPath.path: {}", refused_host_path(path, allowed)?))
    });
    refused.collect()
}

/// Why a pod may not mount a folder of the machine, where it may not.
pub(crate) fn refused_host_path(path: &Path, allowed: &[PathBuf]) -> Option<String> {
    let is_plain = path.components().all(|it| it != Component::ParentDir);
    let is_allowed = is_plain && allowed.iter().any(|it| path.starts_with(it));
    (!is_allowed).then(|| {
        format!(
            "{} is not beneath a folder that this node lets pods into (--allow-host-path); use another volume, or ask the node's \
             administrator",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probed() -> Probed {
        let (container, kind) = ("app".to_owned(), ProbeKind::Liveness);
        Probed { container, kind, passed: true, took: Duration::ZERO }
    }

    fn news(phase: &str, events: &[&str]) -> PodNews {
        let event = |reason: &&str| NewEvent {
            warning: false,
            reason: (*reason).to_owned(),
            message: String::new(),
            field_path: None,
            at: Timestamp::UNIX_EPOCH,
        };
        PodNews {
            pod: Arc::default(),
            status: PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() },
            over: false,
            events: events.iter().map(event).collect(),
            probes: events.iter().map(|_| probed()).collect(),
        }
    }

    #[tokio::test]
    async fn of_a_pods_states_the_newest_is_taken_and_of_its_events_and_probes_all() {
        let board = Board::default();
        board.put("a", news("Pending", &["Pulling", "Pulled"]));
        board.put("b", news("Pending", &[]));
        board.put("a", news("Running", &["Started"]));

        let taken = board.take().await;

        let reasons: Vec<_> = taken["a"].events.iter().map(|it| it.reason.as_str()).collect();
        assert_eq!(taken["a"].status.phase.as_deref(), Some("Running"));
        assert_eq!(reasons, ["Pulling", "Pulled", "Started"]);
        assert_eq!(taken["a"].probes.len(), 3);
        assert_eq!(taken.len(), 2);
    }

    #[tokio::test]
    async fn who_waits_for_news_is_woken_by_the_first() {
        let board = Arc::new(Board::default());
        let waiting = tokio::spawn({
            let board = board.clone();
            async move { board.take().await.len() }
        });
        tokio::task::yield_now().await;

        board.put("a", news("Pending", &[]));

        assert_eq!(waiting.await.expect("ended"), 1);
    }

    #[test]
    fn a_pod_mounts_of_the_machine_only_what_lies_beneath_an_allowed_folder() {
        let pod = |path: &str| -> Pod {
            let volumes = serde_json::json!([{ "name": "v", "hostPath": { "path": path } }]);
            serde_json::from_value(
                serde_json::json!({ "spec": { "containers": [], "volumes": volumes } }),
            )
            .expect("a pod")
        };
        let allowed = [PathBuf::from("/srv/data")];

        for taken in ["/srv/data", "/srv/data/a"] {
            assert!(refused_host_paths(&pod(taken), &allowed).is_empty(), "{taken}");
        }
        for refused in ["/", "/srv", "/srv/database", "/srv/data/../../etc", "etc"] {
            let why = refused_host_paths(&pod(refused), &allowed);
            assert!(why[0].starts_with("spec.volumes[0].hostPath.path: "), "{why:?}");
        }
        assert_eq!(refused_host_paths(&pod("/srv/data"), &[]).len(), 1, "none by default");
    }
}
