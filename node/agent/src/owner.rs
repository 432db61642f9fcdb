//! The one task that owns the pods: every change to a pod's life happens here, in turn.
//!
//! It wakes on one [`Wake`], or when the earliest of all pods has something due; lets each pod touched plan; puts the facts of all
//! of them into the journal, with one `fdatasync` where one of them needs it; and only then has [`Performer`] act. It never waits for a guest, a runner or a
//! registry: those answer with a `Wake`.
//!
//! Absent: how anything is done (`perform`), and what should be done (`copepod_node::life`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use copepod_node::ContainerName;
use copepod_node::life::{Action, Journaled, PodEvent, PodEventRecord};
use copepod_shim::protocol::{AttemptId, AttemptState, Event, PodReport};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::api::{Call, PodName, PodView, Reply, StopPods};
use crate::front::{Arrival, Ask, Board};
use crate::journal::{Journal, JournalError};
use crate::perform::Performer;
use crate::pod::{Entry, World};
use crate::remove;
use crate::runner::Heard;
use crate::store::{PodObjects, Store};
use crate::succession::Running;

/// How long an agent without pods and callers goes on: long enough for the next command of a script.
const LINGER: Duration = Duration::from_secs(2);

/// How long a watcher that does not read is left alone before it is told again.
const RETELL: Duration = Duration::from_millis(100);

/// What has come in is journaled together, up to so much: a turn stays short.
const MOST_TOGETHER: usize = 256;

/// What the owner wakes on; what is not a variant cannot happen.
#[derive(Debug)]
pub(crate) enum Wake {
    /// A client asks.
    Call(Asked),
    /// Something happened to a pod.
    Pod { uid: String, event: PodEvent },
    /// What a pod refers to is now this.
    Objects { uid: String, objects: PodObjects },
    /// What is done for a pod in the background met with trouble, for a Warning event.
    Warning { uid: String, reason: &'static str, message: String },
    /// A long pull or compile has come so far; none: it is over.
    Progress { uid: String, text: Option<String> },
    /// A runner tells something, or is gone.
    Runner { tree: String, life: u64, heard: Heard },
    /// A tree whose runner was gone is up again, or cannot be.
    Revived { tree: String, result: Result<Option<(bool, Vec<PodReport>)>, String> },
    /// What runs of these pods is asked for; those that are not here are left out.
    Running { pods: Vec<String>, answer: oneshot::Sender<Vec<Running>> },
    /// The front asks.
    Front(Ask),
    /// A pod that the front brought is on disk, or cannot be.
    Arrived(Box<Arrival>),
    /// Something is due.
    Tick,
}

/// A client's call and where its replies go.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) call: Call,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) replies: mpsc::Sender<Reply>,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) uid: String,
    pub(crate) journaled: Journaled,
}

/// The owner's state.
pub(crate) struct Owner {
    pub(crate) journal: Journal,
    pub(crate) store: Store,
    /// Addresses for pods.
    pub(crate) addresses: copepod_domain::AddressPool,
    pub(crate) performer: Arc<Performer>,
    pub(crate) pods: HashMap<String, Entry>,
    pub(crate) names: BTreeMap<PodName, String>,
    /// When pods want to plan again.
    pub(crate) due: BTreeSet<(Timestamp, String)>,
    pub(crate) watchers: Vec<Watcher>,
    /// What the front has not taken yet.
    pub(crate) board: Arc<Board>,
    /// Pods whose newest state a slow watcher has not been told.
    pub(crate) behind: BTreeSet<String>,
    pub(crate) stopping: Vec<Stopping>,
    pub(crate) inbox: mpsc::Receiver<Wake>,
}

/// A client that hears of pods.
pub(crate) struct Watcher {
    pub(crate) uids: BTreeSet<String>,
    pub(crate) replies: mpsc::Sender<Reply>,
}

/// A client that waits until pods are forgotten.
pub(crate) struct Stopping {
    pub(crate) uids: BTreeSet<String>,
    pub(crate) replies: mpsc::Sender<Reply>,
}

impl Owner {
    /// Runs until no pod is left that could run and nobody has called for [`LINGER`].
    ///
    /// # Errors
    /// Only what the agent cannot go on after: its journal's disk failed.
    pub(crate) async fn run(mut self) -> Result<(), JournalError> {
        let everything: Vec<String> = self.pods.keys().cloned().collect();
        self.plan(everything.into_iter().collect())?;
        loop {
            let first = match self.longest_sleep() {
                Some(sleep) => match tokio::time::timeout(sleep, self.inbox.recv()).await {
                    Ok(wake) => wake,
                    Err(_) if self.is_idle() && self.performer.clients() == 0 => return Ok(()),
                    Err(_) => Some(Wake::Tick),
                },
                None => self.inbox.recv().await,
            };
            let mut touched = BTreeSet::new();
            for wake in together(first, &mut self.inbox) {
                self.take(wake, &mut touched);
            }
            let now = Timestamp::now();
            while let Some((at, uid)) = self.due.first().cloned().filter(|(at, _)| *at <= now) {
                self.due.remove(&(at, uid.clone()));
                touched.insert(uid);
            }
            self.plan(touched)?;
            self.watchers.retain(|watcher| !watcher.replies.is_closed());
            self.performer.collect_if_due(self.pods.values());
            for uid in self.behind.clone() {
                self.tell(&uid);
            }
        }
    }

    fn longest_sleep(&self) -> Option<Duration> {
        let due = self.due.first().map(|(at, _)| until(*at));
        let retell = (!self.behind.is_empty()).then_some(RETELL);
        let linger = self.is_idle().then_some(LINGER);
        [due, retell, linger].into_iter().flatten().min()
    }

    fn is_idle(&self) -> bool {
        self.pods.values().all(|entry| entry.life.is_over())
    }

    fn take(&mut self, wake: Wake, touched: &mut BTreeSet<String>) {
        match wake {
            Wake::Call(asked) => self.answer(asked, touched),
            Wake::Front(ask) => self.ask(ask, touched),
            Wake::Running { pods, answer } => {
                let entries = pods.iter().filter_map(|uid| self.pods.get(uid));
                let running = entries.map(|entry| (entry.world.clone(), entry.life.alive()));
                // Who asked may have given up.
                let _ = answer.send(running.collect());
            }
            Wake::Arrived(arrival) => self.arrive(*arrival, touched),
            Wake::Pod { uid, event } => self.observe(&uid, event, touched),
            Wake::Objects { uid, objects } => self.replace_objects(&uid, objects, touched),
            Wake::Warning { uid, reason, message } => {
                self.warn(&uid, reason.to_owned(), message, touched);
            }
            Wake::Progress { uid, text } => {
                if let Some(entry) = self.pods.get_mut(&uid) {
                    entry.progress = text;
                    touched.insert(uid);
                }
            }
            Wake::Runner { tree, life, heard } => match heard {
                Heard::Event(event) => self.hear(&tree, event, touched),
                Heard::Gone => self.performer.revive(tree, life),
            },
            Wake::Revived { result: Ok(None), .. } | Wake::Tick => {}
            Wake::Revived { tree, result: Ok(Some((lived, reports))) } => {
                self.reconcile(&tree, lived, reports, touched);
            }
            Wake::Revived { tree, result: Err(message) } => {
                tracing::error!(tree, message, "a runner is gone and no other starts");
                self.reconcile(&tree, false, Vec::new(), touched);
            }
        }
    }

    pub(crate) fn observe(&mut self, uid: &str, event: PodEvent, touched: &mut BTreeSet<String>) {
        if let Some(entry) = self.pods.get_mut(uid) {
            // The set-up may have begun with the version before.
            if entry.world.was_changed() && matches!(event, PodEvent::SetUp { .. }) {
                self.performer.refresh(&entry.world, &self.store);
            }
            entry.life.observe(event, Timestamp::now());
            touched.insert(uid.to_owned());
        }
    }

    /// What starts, set-ups and volumes of a pod see of its objects from now on. Where they differ from what they saw so far, a pod
    /// that waits for one goes on at once, and files of volumes are written again in the background.
    pub(crate) fn replace_objects(
        &mut self,
        uid: &str,
        objects: PodObjects,
        touched: &mut BTreeSet<String>,
    ) {
        let Some(entry) = self.pods.get(uid) else { return };
        if !entry.world.stored.objects.replace(objects) || entry.life.is_over() {
            return;
        }
        self.performer.refresh(&entry.world, &self.store);
        self.observe(uid, PodEvent::ObjectsChanged, touched);
    }

    /// A Warning event of a pod.
    fn warn(&mut self, uid: &str, reason: String, message: String, touched: &mut BTreeSet<String>) {
        if let Some(entry) = self.pods.get_mut(uid) {
            let event = PodEventRecord { warning: true, reason, message, field_path: None };
            entry.record_event(event, Timestamp::now());
            touched.insert(uid.to_owned());
        }
    }

    fn hear(&mut self, tree: &str, event: Event, touched: &mut BTreeSet<String>) {
        match event {
            Event::Exited { id, exit } => {
                if let (Some(entry), Ok(container)) =
                    (self.pods.get(&id.pod), ContainerName::try_from(id.container.as_str()))
                {
                    let root = self.performer.root_of(tree);
                    let exit = entry.world.exit_record(&root, &id, exit);
                    let event = PodEvent::Exited { container, attempt: id.attempt, exit };
                    self.observe(&id.pod, event, touched);
                }
                // Whether the pod is known or not: once the facts are on disk, the record may go.
                self.performer.acknowledge_later(tree.to_owned(), id);
            }
            Event::Warning { id, reason, message } => {
                self.warn(&id.pod, reason, message, touched);
            }
            Event::Unknown => {}
        }
    }

    /// Tells the pods of a tree what its runner holds: after the agent's start, and after the runner's death.
    ///
    /// `lived`: the runner is the one that the attempts were sent to, so an attempt that it does not know never reached it. Otherwise
    /// what it does not know died with its predecessor.
    pub(crate) fn reconcile(
        &mut self,
        tree: &str,
        lived: bool,
        reports: Vec<PodReport>,
        touched: &mut BTreeSet<String>,
    ) {
        let mut seen: HashMap<String, BTreeSet<(String, u32)>> = HashMap::new();
        for report in reports {
            let known = seen.entry(report.pod.clone()).or_default();
            for container in report.containers {
                known.insert((container.container.clone(), container.attempt));
                let id = AttemptId {
                    pod: report.pod.clone(),
                    container: container.container,
                    attempt: container.attempt,
                };
                match container.state {
                    AttemptState::Exited(exit) => {
                        self.hear(tree, Event::Exited { id, exit }, touched);
                    }
                    AttemptState::Running { since_us } => {
                        let (Ok(name), Ok(at)) = (
                            ContainerName::try_from(id.container.as_str()),
                            Timestamp::from_microsecond(since_us),
                        ) else {
                            continue;
                        };
                        let event = PodEvent::Started { container: name, attempt: id.attempt, at };
                        self.observe(&id.pod, event, touched);
                    }
                }
            }
            if !self.pods.contains_key(&report.pod) {
                self.performer.remove_stray(tree.to_owned(), report.pod);
            }
        }
        for uid in self.performer.domains.pods_in(tree) {
            let Some(entry) = self.pods.get_mut(&uid) else { continue };
            let known = seen.remove(&uid).unwrap_or_default();
            let now = Timestamp::now();
            if lived {
                for (container, attempt) in entry.life.unconfirmed() {
                    if !known.contains(&(container.to_string(), attempt)) {
                        entry.life.observe(PodEvent::NotSeen { container, attempt }, now);
                    }
                }
            } else {
                entry.life.observe(PodEvent::SandboxLost, now);
            }
            touched.insert(uid);
        }
    }

    /// Lets pods plan, journals what they decided, and has it done.
    fn plan(&mut self, touched: BTreeSet<String>) -> Result<(), JournalError> {
        let now = Timestamp::now();
        let mut lines = Vec::new();
        let mut actions: Vec<(Arc<World>, Vec<Action>)> = Vec::new();
        let mut changed = Vec::new();
        for uid in touched {
            let Some(entry) = self.pods.get_mut(&uid) else { continue };
            if let Some(at) = entry.due.take() {
                self.due.remove(&(at, uid.clone()));
            }
            let planned = entry.life.plan(now);
            lines.extend(
                entry
                    .life
                    .take_facts()
                    .into_iter()
                    .map(|journaled| Line { uid: uid.clone(), journaled }),
            );
            for event in entry.life.take_events() {
                entry.record_event(event, now);
            }
            entry.due = entry.life.next_wake();
            if let Some(at) = entry.due {
                self.due.insert((at, uid.clone()));
            }
            if entry.life.is_over() {
                entry.world.going_on.over.store(true, Ordering::Relaxed);
            }
            actions.push((entry.world.clone(), planned));
            changed.push(uid);
        }
        self.journal.append(&lines)?;
        if lines.iter().any(|line| line.journaled.fact.outlives_the_machine()) {
            self.journal.sync()?;
        }
        self.performer.acknowledge_now();
        for (world, planned) in actions {
            for action in planned {
                self.performer.perform(&world, action, now);
            }
        }
        for uid in changed {
            // First, so that whoever follows a pod hears of its end before it is forgotten.
            self.tell(&uid);
            self.post(&uid);
            self.forget_if_done(&uid);
        }
        if self.journal.is_long() {
            self.shorten_journal()?;
        }
        Ok(())
    }

    /// Leaves of each pod's history what it comes to, and nothing of the pods that are gone.
    pub(crate) fn shorten_journal(&mut self) -> Result<(), JournalError> {
        self.journal.replace(self.pods.iter_mut().flat_map(|(uid, entry)| {
            let line = move |journaled| Line { uid: uid.clone(), journaled };
            entry.life.so_far().into_iter().map(line)
        }))
    }

    /// A pod that is over and was asked to go is taken off the disk.
    fn forget_if_done(&mut self, uid: &str) {
        let done = self.pods.get(uid).is_some_and(|entry| entry.forget && entry.life.is_over());
        if !done {
            return;
        }
        if let Some(entry) = self.pods.remove(uid) {
            if let Some(at) = entry.due {
                self.due.remove(&(at, uid.to_owned()));
            }
            let name = entry.world.name();
            if self.names.get(&name).is_some_and(|newest| newest == uid) {
                self.names.remove(&name);
            }
            // The logs first: while the pod's own folder is there, the next agent forgets it again.
            let _ = remove::tree(&entry.world.logs);
            *entry.world.going_on.kept.lock().unwrap_or_else(PoisonError::into_inner) = None;
            if let Err(error) = self.store.remove(uid) {
                tracing::error!(uid, %error, "cannot delete a stopped pod's folder");
            }
            self.addresses.give_back(entry.world.stored.ip);
        }
        for stopping in &mut self.stopping {
            stopping.uids.remove(uid);
        }
        self.stopping.retain(|stopping| {
            let waits = !stopping.uids.is_empty();
            if !waits {
                let _ = stopping.replies.try_send(Reply::Done);
            }
            waits
        });
    }

    fn tell(&mut self, uid: &str) {
        self.behind.remove(uid);
        let Some(entry) = self.pods.get(uid) else { return };
        if !self.watchers.iter().any(|watcher| watcher.uids.contains(uid)) {
            return;
        }
        let view = entry.view();
        let mut behind = false;
        self.watchers.retain(|watcher| {
            if !watcher.uids.contains(uid) {
                return !watcher.replies.is_closed();
            }
            match watcher.replies.try_send(Reply::Pods(vec![view.clone()])) {
                Ok(()) => true,
                // It misses what comes in between, never the state at the end.
                Err(mpsc::error::TrySendError::Full(_)) => {
                    behind = true;
                    true
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
        if behind {
            self.behind.insert(uid.to_owned());
        }
    }

    fn answer(&mut self, asked: Asked, touched: &mut BTreeSet<String>) {
        let Asked { call, descriptors, replies } = asked;
        match call {
            Call::Hello { .. } => drop(replies.try_send(self.performer.hello())),
            Call::Run(run) => {
                let reply = self.accept(*run, touched);
                let _ = replies.try_send(reply);
            }
            Call::List => {
                let _ = replies.try_send(Reply::Pods(self.views()));
            }
            Call::Get(name) => {
                let reply = match self.find(&name) {
                    Some(entry) => Reply::Pods(vec![entry.view()]),
                    None => not_found(&name),
                };
                let _ = replies.try_send(reply);
            }
            Call::Watch { uids } => {
                let views: Vec<PodView> =
                    uids.iter().filter_map(|uid| self.pods.get(uid)).map(Entry::view).collect();
                let _ = replies.try_send(Reply::Pods(views));
                self.watchers.push(Watcher { uids: uids.into_iter().collect(), replies });
            }
            Call::Logs(logs) => match self.find(&logs.pod) {
                Some(entry) => self.performer.logs(&entry.world, logs, replies),
                None => drop(replies.try_send(not_found(&logs.pod))),
            },
            Call::Exec(exec) => match self.find(&exec.pod) {
                Some(entry) => {
                    let running = entry.life.alive();
                    self.performer.exec(&entry.world, running, exec, descriptors, replies);
                }
                None => drop(replies.try_send(not_found(&exec.pod))),
            },
            Call::Attach(attach) => match self.find(&attach.pod) {
                Some(entry) => {
                    let running = entry.life.alive();
                    self.performer.attach(&entry.world, running, attach, descriptors, replies);
                }
                None => drop(replies.try_send(not_found(&attach.pod))),
            },
            Call::Stop(stop) => self.stop(stop, replies, touched),
            Call::Stats => self.performer.stats(self.worlds(), replies),
        }
    }

    fn stop(
        &mut self,
        stop: StopPods,
        replies: mpsc::Sender<Reply>,
        touched: &mut BTreeSet<String>,
    ) {
        let names = if stop.all { self.names.keys().cloned().collect() } else { stop.pods };
        let mut uids = BTreeSet::new();
        for name in &names {
            let Some(uid) = self.names.get(name) else {
                let _ = replies.try_send(not_found(name));
                return;
            };
            uids.insert(uid.clone());
        }
        let grace = stop.grace.map(|seconds| Duration::from_secs(seconds.into()));
        for uid in &uids {
            if let Some(entry) = self.pods.get_mut(uid) {
                entry.forget = true;
            }
            self.observe(uid, PodEvent::DeleteAsked { grace }, touched);
        }
        if uids.is_empty() {
            let _ = replies.try_send(Reply::Done);
        } else {
            self.stopping.push(Stopping { uids, replies });
        }
    }

    pub(crate) fn find(&self, name: &PodName) -> Option<&Entry> {
        self.names.get(name).and_then(|uid| self.pods.get(uid))
    }

    fn views(&self) -> Vec<PodView> {
        self.names.values().filter_map(|uid| self.pods.get(uid)).map(Entry::view).collect()
    }

    fn worlds(&self) -> Vec<Arc<World>> {
        self.pods.values().map(|entry| entry.world.clone()).collect()
    }
}

/// `first` and what has come in behind it; what is beyond a turn's measure stays where it is.
fn together<T>(first: Option<T>, inbox: &mut mpsc::Receiver<T>) -> Vec<T> {
    let behind = std::iter::from_fn(|| inbox.try_recv().ok());
    first.into_iter().chain(behind).take(MOST_TOGETHER).collect()
}

fn not_found(name: &PodName) -> Reply {
    Reply::Failed(format!(
        "no pod {:?} in namespace {:?} here; `copepod ps` lists those that are",
        name.name, name.namespace
    ))
}

fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_of_news_each_turn_takes_its_measure_and_none_is_lost() {
        let (sender, mut inbox) = mpsc::channel(1000);
        (0..600).for_each(|n| sender.try_send(n).expect("there is room"));
        let mut turns = Vec::new();

        while let Ok(first) = inbox.try_recv() {
            turns.push(together(Some(first), &mut inbox));
        }

        assert_eq!(turns.iter().map(Vec::len).collect::<Vec<_>>(), [256, 256, 88]);
        assert_eq!(turns.concat(), (0..600).collect::<Vec<_>>());
    }
}
