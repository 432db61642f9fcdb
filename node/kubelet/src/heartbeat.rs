//! Keeps the API server's picture of this node true: looks every ten seconds, writes what has changed, and all conditions every five
//! minutes.
//!
//! Start at [`Heartbeat::run`]. What is compared is the API server's own copy, so that what others made of the node (a controller
//! that took it for lost, an API server restored from a backup) is put right by the next look (kubelet.md N16–N18). A Node that
//! somebody deleted is not made again before a restart, as with a kubelet (N19). Absent: that the node lives at all
//! ([`crate::lease`]).

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, Node, NodeStatus, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::machine::{Machine, Usage};
use crate::node_object::{
    Known, NodeEvent, NodeState, changes, differing, events, pod_cidrs, schedulable, status,
};
use crate::own_node::OwnNode;
use crate::pace::about;
use crate::pressure::Pressures;
use crate::settings::NodeSettings;
use crate::trouble::explain;

/// A kubelet's `nodeStatusUpdateFrequency`.
const LOOK: Duration = Duration::from_secs(10);

/// A kubelet's `nodeStatusReportFrequency`.
const REPORT: Duration = Duration::from_secs(5 * 60);

/// A kubelet's `nodeStatusUpdateRetry`.
const TRIES: usize = 5;

/// Tells of this node.
pub struct Heartbeat {
    /// The way to the API server: for requests, with a time limit.
    pub client: Client,
    /// The API server, for messages.
    pub server: http::Uri,
    /// The settings.
    pub settings: Arc<NodeSettings>,
    /// The machine.
    pub machine: Machine,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// See [`Known::features`].
    pub features: &'static [&'static str],
    /// The blocks that pods' addresses come from here. None: none yet.
    pub pod_cidrs: Option<Vec<String>>,
    /// What the machine is short of, for whoever takes pods on; what is in it is where the first look goes on from.
    pub pressures: watch::Sender<Pressures>,
}

/// What is kept from look to look.
struct Beating {
    of: Heartbeat,
    /// The Node as an own patch left it: the watch may still have an older one.
    patched: Option<Arc<Node>>,
    /// What this API server does not keep.
    ignored: BTreeSet<&'static str>,
    report_at: Instant,
    unschedulable: Option<bool>,
    /// A failure was told, and has not passed.
    failing: bool,
}

impl Heartbeat {
    /// Goes on until the sender of `state` is gone.
    pub async fn run(self, mut node: OwnNode, mut state: watch::Receiver<NodeState>) {
        let mut beating = Beating {
            of: self,
            patched: None,
            ignored: BTreeSet::new(),
            // Nodes that were started together do not report together.
            report_at: Instant::now() + about(REPORT, 0.5),
            unschedulable: None,
            failing: false,
        };
        let mut started = false;
        loop {
            let there = node.borrow_and_update().clone();
            if let Some(there) = &there {
                // Whoever only waits for its podCIDR begins anew when it has one.
                if !started && beating.of.pod_cidrs.is_some() {
                    let event = NodeEvent {
                        warning: false,
                        reason: "Starting",
                        message: "Starting kubelet.".into(),
                    };
                    beating.tell(there, &[event]).await;
                }
                started = true;
                let now = state.borrow_and_update().clone();
                beating.look(there.clone(), &now).await;
            } else if started {
                beating.gone();
            }
            let seen = state.borrow_and_update().clone();
            let next = tokio::time::sleep(LOOK);
            tokio::pin!(next);
            loop {
                tokio::select! {
                    () = &mut next => break,
                    // The first one, or one that was made anew.
                    changed = node.changed(), if there.is_none() => {
                        if changed.is_err() {
                            return;
                        }
                        break;
                    }
                    changed = state.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        // Images wait for the next look.
                        if decides(&state.borrow_and_update()) != decides(&seen) {
                            break;
                        }
                    }
                }
            }
        }
    }
}

/// What the machine is short of by one more look at it.
///
/// # Errors
/// It cannot be read.
pub fn look(settings: &NodeSettings, before: Pressures) -> io::Result<Pressures> {
    let usage = Usage::now(&settings.data)?;
    Ok(before.look(&usage, &settings.thresholds, Timestamp::now()))
}

/// What of the state readiness is made of.
fn decides(state: &NodeState) -> (bool, bool, &[String]) {
    (state.agent_up, state.network_ready, &state.errors)
}

impl Beating {
    /// Looks at the machine and the API server's copy, and writes what differs.
    async fn look(&mut self, there: Arc<Node>, state: &NodeState) {
        let mut there = newer(there, self.patched.take());
        let before = *self.of.pressures.borrow();
        let pressures = match look(&self.of.settings, before) {
            Ok(pressures) => pressures,
            Err(error) => {
                warn!(%error, "the machine's usage cannot be read");
                before
            }
        };
        self.of.pressures.send_replace(pressures);
        let mut state = state.clone();
        state.errors.extend(self.of.other_block(&there));
        self.cordoned(&there).await;
        let nodes: Api<Node> = Api::all(self.of.client.clone());
        for attempt in 0..TRIES {
            let known = self.of.known(&state, pressures);
            let wanted = status(known, there.status.as_ref(), Timestamp::now());
            let empty = NodeStatus::default();
            let has = there.status.as_ref().unwrap_or(&empty);
            let whole = Instant::now() >= self.report_at;
            let Some(patch) = changes(has, &wanted, whole, &self.ignored) else {
                self.patched = Some(there);
                self.failing = false;
                return;
            };
            let sent: BTreeSet<_> = differing(has, &wanted).into_iter().collect();
            let patch = Patch::Strategic(json!({ "status": patch }));
            let name = self.of.settings.node_name.as_str();
            match nodes.patch_status(name, &PatchParams::default(), &patch).await {
                Ok(now) => {
                    let happened = events(&there, &wanted);
                    let kept = now.status.as_ref().unwrap_or(&empty);
                    let lost = differing(kept, &wanted).into_iter().filter(|it| sent.contains(it));
                    self.ignored.extend(lost.filter(|field| OPTIONAL.contains(field)));
                    self.report_at = Instant::now() + REPORT;
                    self.failing = false;
                    self.tell(&now, &happened).await;
                    self.patched = Some(Arc::new(now));
                    return;
                }
                Err(kube::Error::Api(status)) if status.is_not_found() => return self.gone(),
                Err(error) => {
                    debug!(%error, attempt, "the node's status is not written");
                    if attempt + 1 == TRIES && !std::mem::replace(&mut self.failing, true) {
                        warn!(
                            "the node's status cannot be written: {}",
                            explain(&error, &self.of.server)
                        );
                    }
                }
            }
            match nodes.get(name).await {
                Ok(now) => there = Arc::new(now),
                Err(error) => debug!(%error, "the node cannot be read"),
            }
        }
    }

    /// Tells once that the Node object was deleted.
    fn gone(&mut self) {
        if !std::mem::replace(&mut self.failing, true) {
            error!(
                node = self.of.settings.node_name.as_str(),
                "somebody deleted this node's object: its pods are being taken off it. Restart copepod node to register it again"
            );
        }
        self.patched = None;
    }

    /// Tells of a change of `unschedulable`.
    async fn cordoned(&mut self, node: &Node) {
        let now = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default();
        let before = self.unschedulable.replace(now);
        if before.is_some_and(|before| before != now) {
            self.tell(node, &[schedulable(self.of.settings.node_name.as_str(), now)]).await;
        }
    }

    /// Writes events, each as far as it can be.
    async fn tell(&self, node: &Node, happened: &[NodeEvent]) {
        let api: Api<Event> = Api::namespaced(self.of.client.clone(), "default");
        for (index, event) in happened.iter().enumerate() {
            let object = event_object(node, event, Timestamp::now(), index);
            if let Err(error) = api.create(&PostParams::default(), &object).await {
                debug!(%error, reason = event.reason, "an event of the node is lost");
            }
        }
    }
}

/// What older API servers do not know.
const OPTIONAL: [&str; 3] = ["declaredFeatures", "runtimeHandlers", "nodeInfo"];

/// The newer one of two states of an object.
fn newer(a: Arc<Node>, b: Option<Arc<Node>>) -> Arc<Node> {
    let version =
        |node: &Node| -> Option<u64> { node.metadata.resource_version.as_ref()?.parse().ok() };
    // One of another UID is another object, and only the watch tells of it.
    match b {
        Some(b) if a.metadata.uid == b.metadata.uid && version(&b) > version(&a) => b,
        _ => a,
    }
}

fn event_object(node: &Node, event: &NodeEvent, now: Timestamp, index: usize) -> Event {
    let name = node.metadata.name.clone().unwrap_or_default();
    let source = EventSource { component: Some("kubelet".into()), host: Some(name.clone()) };
    Event {
        metadata: ObjectMeta {
            // As client-go names them: unique by the time.
            name: Some(format!("{name}.{:x}", now.as_nanosecond() + index as i128)),
            namespace: Some("default".into()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(name.clone()),
            uid: node.metadata.uid.clone(),
            ..ObjectReference::default()
        },
        reason: Some(event.reason.into()),
        message: Some(event.message.clone()),
        type_: Some(if event.warning { "Warning" } else { "Normal" }.into()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(name),
        source: Some(source),
        ..Event::default()
    }
}

impl Heartbeat {
    fn known<'a>(&'a self, state: &'a NodeState, pressures: Pressures) -> Known<'a> {
        Known {
            settings: &self.settings,
            machine: &self.machine,
            addresses: &self.addresses,
            state,
            pressures,
            features: self.features,
        }
    }

    /// What is wrong where the cluster says other pod addresses than those that the pods here have.
    fn other_block(&self, node: &Node) -> Option<String> {
        let ours = self.pod_cidrs.as_ref()?;
        let theirs = pod_cidrs(node);
        (!theirs.is_empty() && &theirs != ours).then(|| {
            format!(
                "the cluster has given this node the podCIDR {}, and its pods have addresses of {}: drain the node, stop copepod \
                 node, remove {} and start it again",
                theirs.join(","),
                ours.join(","),
                self.settings.data.join("node.json").display()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::fake::{self, Asked, Log, refusal};
    use crate::settings::Given;

    fn node(uid: &str, version: &str) -> Arc<Node> {
        Arc::new(Node {
            metadata: ObjectMeta {
                name: Some("n1".into()),
                uid: Some(uid.into()),
                resource_version: Some(version.into()),
                ..ObjectMeta::default()
            },
            ..Node::default()
        })
    }

    #[test]
    fn an_own_patch_counts_until_the_watch_has_caught_up() {
        let version = |node: Arc<Node>| node.metadata.resource_version.clone().unwrap_or_default();

        assert_eq!(version(newer(node("a", "9"), Some(node("a", "10")))), "10");
        assert_eq!(version(newer(node("a", "11"), Some(node("a", "10")))), "11");
        assert_eq!(version(newer(node("b", "9"), Some(node("a", "10")))), "9");
        assert_eq!(version(newer(node("a", "9"), None)), "9");
    }

    #[test]
    fn an_event_names_the_node_by_its_uid() {
        let event = NodeEvent { warning: true, reason: "Rebooted", message: "m".into() };

        let object = event_object(&node("u", "1"), &event, Timestamp::UNIX_EPOCH, 1);

        assert_eq!(object.metadata.name.as_deref(), Some("n1.1"));
        assert_eq!(object.involved_object.uid.as_deref(), Some("u"));
        assert_eq!(object.type_.as_deref(), Some("Warning"));
    }

    /// A heartbeat that writes to an API server which answers so.
    fn beating(answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static) -> (Beating, Log) {
        let (client, log) = fake::api(answer);
        let given = |key: crate::settings::Key| {
            (key.flag == "kubeconfig")
                .then(|| Given { by: String::new(), texts: vec!["/k".into()] })
        };
        let data = std::env::temp_dir();
        let of = Heartbeat {
            client,
            server: http::Uri::from_static("https://192.0.2.9"),
            settings: Arc::new(NodeSettings::parse(data, "n1", given).expect("good settings")),
            machine: Machine::default(),
            addresses: vec![IpAddr::from([192, 0, 2, 1])],
            features: &["SomeFeature"],
            pod_cidrs: Some(vec!["10.1.0.0/24".into()]),
            pressures: watch::channel(Pressures::default()).0,
        };
        let beating = Beating {
            of,
            patched: None,
            ignored: BTreeSet::new(),
            report_at: Instant::now() + REPORT,
            unschedulable: None,
            failing: false,
        };
        (beating, log)
    }

    fn well() -> NodeState {
        NodeState { agent_up: true, network_ready: true, ..NodeState::default() }
    }

    /// What an API server answers that keeps all but the features which it does not know.
    fn older(asked: &Asked) -> (u16, Value) {
        let mut status = asked.body["status"].clone();
        if let Some(status) = status.as_object_mut() {
            status.remove("declaredFeatures");
            let addresses = status.get_mut("addresses").and_then(Value::as_array_mut);
            if let Some(addresses) = addresses {
                addresses.retain(|it| it.get("$patch").is_none());
            }
        }
        let metadata = json!({ "name": "n1", "uid": "u", "resourceVersion": "2" });
        (200, json!({ "metadata": metadata, "status": status }))
    }

    #[tokio::test]
    async fn a_node_is_written_when_it_changes_and_left_alone_when_it_does_not() {
        let (mut beating, log) = beating(older);

        beating.look(node("u", "1"), &well()).await;
        let first = log.lines();
        beating.look(node("u", "1"), &well()).await;

        assert_eq!(first[0], "PATCH /api/v1/nodes/n1/status");
        let events: Vec<_> = log.all().iter().skip(1).map(|it| it.body["reason"].clone()).collect();
        let expected = [
            "NodeHasSufficientMemory",
            "NodeHasNoDiskPressure",
            "NodeHasSufficientPID",
            "NodeReady",
        ];
        assert_eq!(events, expected);
        // Also the features that this API server does not keep.
        assert_eq!(log.lines(), first);
    }

    #[tokio::test]
    async fn a_node_that_was_taken_for_lost_is_written_by_the_next_look() {
        let (mut beating, log) = beating(older);
        beating.look(node("u", "1"), &well()).await;
        let before = log.lines().len();
        let mut lost = beating.patched.as_deref().cloned().expect("patched");
        lost.metadata.resource_version = Some("3".into());
        for it in lost.status.iter_mut().filter_map(|it| it.conditions.as_mut()).flatten() {
            it.status = "Unknown".into();
        }

        beating.look(Arc::new(lost), &well()).await;

        let patch = &log.all()[before];
        assert_eq!(patch.body["status"]["conditions"][3]["status"], "True");
    }

    #[tokio::test]
    async fn a_heartbeat_that_is_due_is_written_though_nothing_has_changed() {
        let (mut beating, log) = beating(older);
        beating.look(node("u", "1"), &well()).await;
        let before = log.lines().len();

        beating.report_at = Instant::now();
        beating.look(node("u", "1"), &well()).await;

        let all = log.all();
        assert_eq!(all.len(), before + 1);
        assert!(all[before].body["status"]["conditions"].is_array());
    }

    #[tokio::test]
    async fn a_refused_write_is_tried_five_times_from_the_newest_state() {
        let (mut beating, log) = beating(|asked| match asked.method.as_str() {
            "GET" => (200, json!({ "metadata": { "name": "n1", "uid": "u" } })),
            _ => refusal(409, "Conflict"),
        });

        beating.look(node("u", "1"), &well()).await;

        let patches = log.lines().iter().filter(|it| it.starts_with("PATCH")).count();
        let reads = log.lines().iter().filter(|it| it.starts_with("GET")).count();
        assert_eq!((patches, reads), (5, 5));
    }

    #[tokio::test]
    async fn a_deleted_node_is_not_made_again() {
        let (mut beating, log) = beating(|_| refusal(404, "NotFound"));

        beating.look(node("u", "1"), &well()).await;

        assert_eq!(log.lines(), ["PATCH /api/v1/nodes/n1/status"]);
    }

    #[tokio::test]
    async fn another_block_of_pod_addresses_keeps_the_node_from_being_ready() {
        let (mut beating, log) = beating(older);
        let mut moved = node("u", "1").as_ref().clone();
        moved.spec.get_or_insert_default().pod_cidr = Some("10.2.0.0/24".into());

        beating.look(Arc::new(moved), &well()).await;

        let ready = log.all()[0].body["status"]["conditions"][3].clone();
        assert_eq!(ready["status"], "False");
        let message = ready["message"].as_str().unwrap_or_default();
        assert!(
            message.contains("podCIDR 10.2.0.0/24") && message.contains("drain the node"),
            "{message}"
        );
    }
}
