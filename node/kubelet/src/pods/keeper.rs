//! The one task that knows every pod from both sides, and has the steps made that bring them together.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use copepod_agent::api::PodName;
use copepod_agent::front::{Front, NewEvent, PodNews};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, PodStatus, Service};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::{Semaphore, mpsc, watch};

use super::events::{Events, Subject};
use super::figures::Figures;
use super::patch;
use super::plan::{Local, Step, Tracked, pause};
use super::references::Objects;
use super::refused;
use super::roster::Roster;
use super::seen::{Form, Seen};
use super::told::Book;
use crate::admission::{self, Taken};
use crate::own_node::OwnNode;
use crate::pressure::Pressures;
use crate::server::metrics::Metrics;

/// Steps under way: what an API server gives one node's priority level at a time is of this order.
const MOST_STEPS: usize = 32;

/// What a keeper works with.
pub struct KeeperSettings {
    /// The way to the API server for requests, with a time limit.
    pub client: kube::Client,
    /// The way for watches, which may be silent for long.
    pub streams: kube::Client,
    /// The node's name.
    pub node: String,
    /// The node's own object, by which pods are admitted.
    pub own: OwnNode,
    /// What the machine is short of, by which they are too.
    pub short_of: watch::Receiver<Pressures>,
    /// The agent.
    pub front: Front,
    /// The list that the node's own API shows.
    pub book: Arc<Book>,
    /// The figures that it shows.
    pub metrics: Arc<Metrics>,
}

/// Keeps the API server's pods and the agent's the same.
pub struct Keeper {
    of: KeeperSettings,
    objects: Objects,
    events: Events,
    figures: Figures,
    /// What the pods here have of the node, and which pods are counted in it.
    taken: Taken,
    counted: HashMap<String, Arc<Pod>>,
    roster: Roster,
    /// When pods want to be looked at again.
    due: BTreeSet<(Instant, String)>,
    steps: Arc<Semaphore>,
    done: (mpsc::UnboundedSender<Done>, mpsc::UnboundedReceiver<Done>),
}

/// What came of a step.
struct Done {
    uid: String,
    outcome: Outcome,
}

enum Outcome {
    /// The agent has the pod.
    Taken,
    /// The node cannot run it.
    Refused { generation: Option<i64>, status: Box<PodStatus>, why: String },
    /// The API server's new copy, after this patch.
    Written(Box<Pod>, serde_json::Value),
    /// The agent goes by this form of the pod now.
    Updated(Form),
    /// The agent does not go on with this form of the pod; it runs as it was.
    Unfit(Form, String),
    /// Nothing else to know; the API server or the agent will tell.
    Made,
    /// The API server has no such pod any more, or another one of that name.
    Gone,
    /// It is to be tried again.
    Failed(String),
}

impl Keeper {
    /// A keeper of the pods bound to a node. To be called within a runtime.
    pub fn new(of: KeeperSettings) -> Self {
        let (services, writer) = reflector::store();
        tokio::spawn(watch_services(of.streams.clone(), writer));
        Self {
            objects: Objects::new(of.client.clone(), services),
            events: Events::start(of.client.clone(), of.node.clone()),
            figures: Figures::new(of.metrics.clone()),
            of,
            taken: Taken::default(),
            counted: HashMap::new(),
            roster: Roster::default(),
            due: BTreeSet::new(),
            steps: Arc::new(Semaphore::new(MOST_STEPS)),
            done: mpsc::unbounded_channel(),
        }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        for (uid, known) in self.of.front.known().await {
            self.objects.hold(&uid, &known.pod);
            self.count(&uid, &known.pod, known.over);
            let local = Local::Here { over: known.over };
            let given = Some(Form::of(&known.pod));
            self.roster.pods.insert(uid, Tracked { local, given, ..Tracked::new() });
        }
        tokio::spawn(self.objects.clone().refresh(self.of.front.clone()));
        // Pods are judged by the node's object: none is looked at before it is there.
        let _ = self.of.own.wait_for(Option::is_some).await;
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.of.node));
        let pods = Api::<Pod>::all(self.of.streams.clone());
        let mut watch = pin!(watcher(pods, config).default_backoff());
        let front = self.of.front.clone();
        loop {
            let next = self.due.first().map(|(at, _)| *at);
            let mut touched = HashSet::new();
            tokio::select! {
                event = watch.next() => match event {
                    Some(Ok(event)) => self.roster.hear(event, &mut touched),
                    // Pods go on as they are; the watcher tries again, slower each time.
                    Some(Err(error)) => tracing::warn!(%error, "the pods cannot be watched"),
                    None => return,
                },
                news = front.news() => {
                    for (uid, news) in news {
                        self.take(uid.clone(), news);
                        touched.insert(uid);
                    }
                }
                Some(done) = self.done.1.recv() => {
                    touched.insert(done.uid.clone());
                    self.finish(done);
                }
                () = sleep_until(next) => {}
            }
            let now = Instant::now();
            while let Some((at, uid)) = self.due.first().cloned().filter(|(at, _)| *at <= now) {
                self.due.remove(&(at, uid.clone()));
                touched.insert(uid);
            }
            for uid in touched {
                self.advance(uid, now);
            }
        }
    }

    /// Takes what the agent tells of a pod.
    fn take(&mut self, uid: String, news: PodNews) {
        self.objects.hold(&uid, &news.pod);
        self.count(&uid, &news.pod, news.over);
        let tracked = self.roster.pods.entry(uid.clone()).or_default();
        let now = Instant::now();
        let before = tracked.status.as_ref();
        self.figures.news(&uid, before, &news.status, &news.events, now);
        self.figures.probed(&uid, &PodName::of(&news.pod), &news.probes, news.over);
        let was_same = before == Some(&news.status);
        tracked.local = Local::Here { over: news.over };
        tracked.given = Some(Form::of(&news.pod));
        if !was_same {
            tracked.changed = Some(now);
            tracked.status = Some(news.status);
        }
        let name = PodName::of(&news.pod);
        if let Some(status) = &tracked.status {
            self.of.book.put(name.clone(), &uid, news.pod.clone(), status.clone());
        }
        let subject = subject_of(name, uid);
        for event in news.events {
            self.events.tell(&subject, event);
        }
    }

    fn finish(&mut self, done: Done) {
        let Done { uid, outcome } = done;
        let Some(tracked) = self.roster.pods.get_mut(&uid) else { return };
        tracked.busy = false;
        if let Outcome::Failed(why) = outcome {
            tracked.failures += 1;
            tracked.not_before = Some(Instant::now() + pause(tracked.failures));
            // Mostly what a pod refers to is refused once, as the API server's authorizer learns of the pod after us (kubelet.md C9).
            match tracked.failures {
                1 => tracing::debug!(uid, why, "a pod's step failed, and is tried again"),
                failures => tracing::warn!(uid, why, failures, "a pod's step failed again"),
            }
            return;
        }
        tracked.failures = 0;
        tracked.not_before = None;
        match outcome {
            Outcome::Taken => {
                if tracked.local == Local::Unknown || matches!(tracked.local, Local::Refused { .. })
                {
                    tracked.local = Local::Here { over: false };
                    tracked.status = None;
                }
                if let Some(seen) = &mut tracked.seen {
                    seen.pod = None;
                }
            }
            Outcome::Refused { generation, status, why } => {
                tracked.local = Local::Refused { generation };
                tracked.status = Some(*status);
                if let Some(seen) = &tracked.seen {
                    let event = NewEvent::warning(refused::REASON, why);
                    self.events.tell(&subject_of(seen.name.clone(), uid.clone()), event);
                }
                self.uncount(&uid);
            }
            Outcome::Updated(form) => tracked.given = Some(form),
            Outcome::Unfit(form, why) => {
                tracked.unfit = Some(form);
                if let Some(seen) = &tracked.seen {
                    let event = NewEvent::warning(refused::REASON, why);
                    self.events.tell(&subject_of(seen.name.clone(), uid.clone()), event);
                }
            }
            Outcome::Written(pod, patch) => {
                let version = Seen::version_of(&pod);
                if let (Some(changed), Some(status)) = (tracked.changed, &pod.status) {
                    self.figures.written(&uid, status, changed, Instant::now());
                }
                tracked.written = Some((patch, version));
                self.roster.answered(*pod);
            }
            Outcome::Gone => self.roster.is_gone(&uid),
            Outcome::Made | Outcome::Failed(_) => {}
        }
    }

    /// Counts a pod into what is taken of the node, for as long as it is not over.
    fn count(&mut self, uid: &str, pod: &Arc<Pod>, over: bool) {
        match (self.counted.contains_key(uid), over) {
            (false, false) => {
                self.taken.add(pod);
                self.counted.insert(uid.to_owned(), pod.clone());
            }
            (true, true) => self.uncount(uid),
            _ => {}
        }
    }

    fn uncount(&mut self, uid: &str) {
        if let Some(pod) = self.counted.remove(uid) {
            self.taken.remove(&pod);
        }
    }

    /// Judges a pod that is to be taken on; whether the node has no place for it, which ends it (kubelet.md P5).
    fn reject(&mut self, uid: &str) -> bool {
        let node = self.of.own.borrow().clone();
        let Some(tracked) = self.roster.pods.get_mut(uid) else { return false };
        let (Some(seen), Some(node)) = (&tracked.seen, node) else { return false };
        let Some(pod) = seen.pod.clone().filter(|_| !self.counted.contains_key(uid)) else {
            return false;
        };
        let pressures = *self.of.short_of.borrow();
        let Err(rejection) = admission::admit(&pod, &node, &self.taken, &pressures) else {
            self.count(uid, &pod, false);
            return false;
        };
        let now = jiff::Timestamp::now();
        let event = NewEvent::warning(&rejection.reason, rejection.message.clone());
        self.events.tell(&subject_of(seen.name.clone(), uid.to_owned()), event);
        tracked.local = Local::Refused { generation: seen.generation };
        tracked.status = Some(refused::failed(&rejection.reason, &rejection.status_message(), now));
        true
    }

    fn drop_pod(&mut self, uid: &str) {
        self.roster.pods.remove(uid);
        self.objects.release(uid);
        self.figures.release(uid);
        self.of.book.remove(uid);
        self.uncount(uid);
    }

    /// Makes a pod's next step.
    fn advance(&mut self, uid: String, now: Instant) {
        let Some(step) = self.roster.pods.get(&uid).map(|pod| pod.next(self.roster.listed, now))
        else {
            return;
        };
        if step == Step::TakeOn && self.reject(&uid) {
            self.advance(uid, now);
            return;
        }
        let Some(tracked) = self.roster.pods.get_mut(&uid) else { return };
        match &step {
            Step::Rest => return,
            Step::Wait(at) => {
                self.due.insert((*at, uid));
                return;
            }
            Step::Drop => {
                self.drop_pod(&uid);
                return;
            }
            Step::End(grace) => tracked.ending = Some(*grace),
            // After it the agent tells nothing more of the pod.
            Step::Forget => {
                tracked.local = Local::Unknown;
                tracked.status = None;
            }
            Step::TakeOn => {
                if let Some(pod) = tracked.seen.as_ref().and_then(|seen| seen.pod.as_ref()) {
                    self.figures.took_on(&uid, pod, now);
                }
            }
            Step::Update | Step::Write(_) | Step::Fail | Step::Delete => {}
        }
        tracked.busy = true;
        let seen = tracked.seen.clone();
        let work = Work {
            client: self.of.client.clone(),
            front: self.of.front.clone(),
            objects: self.objects.clone(),
        };
        let (done, steps) = (self.done.0.clone(), self.steps.clone());
        tokio::spawn(async move {
            let _turn = steps.acquire().await;
            let outcome = match (step, seen) {
                (Step::Forget, _) => {
                    work.front.forget(&uid).await;
                    Outcome::Made
                }
                (step, Some(seen)) => work.make(step, &seen).await,
                (_, None) => Outcome::Made,
            };
            let _ = done.send(Done { uid, outcome });
        });
    }
}

/// What a step needs.
struct Work {
    client: kube::Client,
    front: Front,
    objects: Objects,
}

impl Work {
    async fn make(&self, step: Step, seen: &Seen) -> Outcome {
        match step {
            Step::TakeOn => self.take_on(seen).await,
            Step::Update => self.update(seen).await,
            Step::End(grace) => {
                self.front.end(&seen.uid, grace).await;
                Outcome::Made
            }
            Step::Write(patch) => self.write(seen, patch).await,
            Step::Fail => {
                let now = jiff::Timestamp::now();
                let text = "Pod was deleted before it ran on this node";
                match patch::patch(seen, &refused::failed("Terminated", text, now)) {
                    Some(patch) => self.write(seen, patch).await,
                    None => Outcome::Made,
                }
            }
            Step::Delete => self.delete(seen).await,
            Step::Forget | Step::Drop | Step::Wait(_) | Step::Rest => Outcome::Made,
        }
    }

    async fn take_on(&self, seen: &Seen) -> Outcome {
        let pod = match self.pod(seen).await {
            Ok(pod) => pod,
            Err(outcome) => return outcome,
        };
        let objects = match self.objects.of(&pod).await {
            Ok(objects) => objects,
            Err(error) => return failed(&error),
        };
        match self.front.take_on(Pod::clone(&pod), objects).await {
            Ok(()) => Outcome::Taken,
            Err(reasons) => {
                let status = refused::status(seen, &pod, &reasons, jiff::Timestamp::now());
                let why = reasons.join("; ");
                Outcome::Refused { generation: seen.generation, status: Box::new(status), why }
            }
        }
    }

    async fn update(&self, seen: &Seen) -> Outcome {
        let pod = match self.pod(seen).await {
            Ok(pod) => pod,
            // Only by the watch is a pod that runs given up.
            Err(Outcome::Gone) => return Outcome::Failed("the pod is there no more".into()),
            Err(outcome) => return outcome,
        };
        let form = Form::of(&pod);
        match self.front.update(Pod::clone(&pod)).await {
            Ok(()) => {
                // An ephemeral container may refer to what nothing of the pod did before. Where it cannot be had now, it is asked for again.
                if pod.spec.as_ref().is_some_and(|spec| spec.ephemeral_containers.is_some())
                    && let Ok(objects) = self.objects.of(&pod).await
                {
                    self.front.replace_objects(&seen.uid, objects).await;
                }
                Outcome::Updated(form)
            }
            Err(reasons) => {
                let why = format!("the pod goes on as it was: {}", reasons.join("; "));
                Outcome::Unfit(form, why)
            }
        }
    }

    /// The pod itself.
    async fn pod(&self, seen: &Seen) -> Result<Arc<Pod>, Outcome> {
        if let Some(pod) = &seen.pod {
            return Ok(pod.clone());
        }
        match self.pods(seen).get_opt(&seen.name.name).await {
            Ok(Some(mut pod)) if pod.metadata.uid.as_deref() == Some(&seen.uid) => {
                (pod.status, pod.metadata.managed_fields) = (None, None);
                Ok(Arc::new(pod))
            }
            Ok(_) => Err(Outcome::Gone),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn write(&self, seen: &Seen, patch: serde_json::Value) -> Outcome {
        let name = &seen.name.name;
        let patched = self
            .pods(seen)
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch))
            .await;
        match patched {
            Ok(pod) => Outcome::Written(Box::new(pod), patch),
            // Also where it says that the pod is gone: the watch tells so too, and only by it is a pod that runs given up.
            Err(error) => failed(&error),
        }
    }

    async fn delete(&self, seen: &Seen) -> Outcome {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(seen.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match self.pods(seen).delete(&seen.name.name, &params).await {
            // With finalizers of others it may stay; no more is to be done about it then.
            Ok(_) => Outcome::Gone,
            Err(error) if is_gone(&error) => Outcome::Gone,
            Err(error) => failed(&error),
        }
    }

    fn pods(&self, seen: &Seen) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &seen.name.namespace)
    }
}

/// Keeps the cluster's Services at hand, for ever.
async fn watch_services(client: kube::Client, writer: Writer<Service>) {
    let services = watcher(Api::<Service>::all(client), watcher::Config::default());
    let mut kept = pin!(services.default_backoff().reflect(writer));
    while let Some(event) = kept.next().await {
        if let Err(error) = event {
            tracing::warn!(%error, "the Services cannot be watched");
        }
    }
}

fn failed(error: &kube::Error) -> Outcome {
    Outcome::Failed(copepod_agent::with_causes(error))
}

/// There is no such pod, or its name is another pod's by now.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

fn subject_of(name: PodName, uid: String) -> Subject {
    Subject { kind: "Pod", namespace: name.namespace, name: name.name, uid }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
