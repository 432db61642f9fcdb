//! What the API server tells of a node's pods, every state of each in its order, written down while a test runs; and what such a row
//! of states may not say.
//!
//! Start at [`Watched`]; [`untruths`] judges one pod's row. Absent: what a pod should come to, which each test knows.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::kube::Api;
use ::kube::api::{ListParams, WatchEvent, WatchParams};
use copepod_tests::cluster::Cluster;
use copepod_tests::node::is_ready;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::api::{Beside, client};

/// Between two tries to reach an API server that is away.
const PAUSE: Duration = Duration::from_millis(50);

/// One state of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// The pod is gone from the API, and this was its last state.
    pub(crate) deleted: bool,
    pub(crate) pod: Arc<Value>,
}

/// All that was told so far.
#[derive(Debug, Default)]
struct Record {
    told: Vec<Told>,
    /// Where states in between may be missing, and why.
    gaps: Vec<String>,
}

/// The record of a node's pods, until this is dropped.
pub(crate) struct Watched {
    record: Arc<Mutex<Record>>,
    _beside: Beside,
}

impl Watched {
    /// Begins with the pods of `node` that are there.
    pub(crate) fn start(cluster: &Cluster, node: &str) -> Self {
        let record: Arc<Mutex<Record>> = Arc::default();
        let pods: Api<Pod> = Api::all(client(cluster.admin()));
        let work = follow(pods, format!("spec.nodeName={node}"), record.clone());
        Self { record, _beside: Beside::start(work) }
    }

    /// All states of all pods, in the order in which they were told.
    pub(crate) fn told(&self) -> Vec<Told> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).told.clone()
    }

    /// Why states may be missing: an API server that was started anew knows none that were before.
    pub(crate) fn gaps(&self) -> Vec<String> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).gaps.clone()
    }

    /// The states of each pod, by its UID.
    pub(crate) fn by_pod(&self) -> BTreeMap<String, Vec<Told>> {
        let mut pods: BTreeMap<String, Vec<Told>> = BTreeMap::new();
        for told in self.told() {
            pods.entry(uid(&told.pod)).or_default().push(told);
        }
        pods
    }

    /// What the record says that cannot be so, of any pod.
    pub(crate) fn untruths(&self) -> Vec<String> {
        let of = |(uid, told): (String, Vec<Told>)| {
            let name = told[0].pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            untruths(&told).into_iter().map(move |it| format!("{name} ({uid}): {it}"))
        };
        self.by_pod().into_iter().flat_map(of).collect()
    }
}

/// A pod's UID.
pub(crate) fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

async fn follow(pods: Api<Pod>, selector: String, record: Arc<Mutex<Record>>) {
    let lock = || record.lock().unwrap_or_else(PoisonError::into_inner);
    let put = |deleted: bool, pod: Pod| {
        let version = pod.metadata.resource_version.clone();
        let pod = Arc::new(serde_json::to_value(pod).expect("a pod is JSON"));
        lock().told.push(Told { deleted, pod });
        version
    };
    let (listing, watching) =
        (ListParams::default().fields(&selector), WatchParams::default().fields(&selector));
    let mut version = None;
    loop {
        let from = match version.take() {
            Some(from) => from,
            None => match pods.list(&listing).await {
                Ok(list) => {
                    let there: BTreeSet<_> =
                        list.items.iter().filter_map(|it| it.metadata.uid.clone()).collect();
                    list.items.into_iter().for_each(|pod| drop(put(false, pod)));
                    lock().end_others(&there);
                    list.metadata.resource_version.unwrap_or_default()
                }
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
        };
        let mut newest = Some(from.clone());
        // Where it ends it goes on from the last version, so that nothing is missed.
        if let Ok(events) = pods.watch(&watching, &from).await {
            let mut events = pin!(events);
            while let Some(Ok(event)) = events.next().await {
                let told = match event {
                    WatchEvent::Added(pod) | WatchEvent::Modified(pod) => put(false, pod),
                    WatchEvent::Deleted(pod) => put(true, pod),
                    WatchEvent::Bookmark(mark) => Some(mark.metadata.resource_version),
                    WatchEvent::Error(status) => {
                        lock().gaps.push(status.message);
                        newest = None;
                        break;
                    }
                };
                newest = told.or(newest);
            }
        }
        version = newest;
        tokio::time::sleep(PAUSE).await;
    }
}

impl Record {
    /// Of all pods but these nothing is left.
    fn end_others(&mut self, there: &BTreeSet<String>) {
        let last: BTreeMap<String, Told> =
            self.told.iter().map(|it| (uid(&it.pod), it.clone())).collect();
        let gone = last.into_iter().filter(|(uid, it)| !it.deleted && !there.contains(uid));
        self.told.extend(gone.map(|(_, it)| Told { deleted: true, ..it }));
    }
}

/// What one pod's states in a row say that cannot be so, whatever happened to the pod: a phase, an attempt or an end taken back, an
/// attempt that becomes another one, a pod that turns unready by itself.
pub(crate) fn untruths(row: &[Told]) -> Vec<String> {
    let mut found = Vec::new();
    for pair in row.windows(2) {
        let (before, after) = (&pair[0].pod, &pair[1].pod);
        let changed = |pointer: &str| {
            let (was, is) = (before.pointer(pointer), after.pointer(pointer));
            was.filter(|was| Some(*was) != is)
                .map(|was| format!("{pointer} was {was} and is {}", is.unwrap_or(&Value::Null)))
        };
        found.extend(changed("/status/podIP"));
        found.extend(changed("/status/startTime"));
        let phase = |pod: &Value| pod["status"]["phase"].as_str().unwrap_or("Pending").to_owned();
        let rank = |phase: &str| ["Pending", "Running"].iter().position(|it| *it == phase);
        let (was, is) = (phase(before), phase(after));
        if was != is && rank(&was).is_none_or(|was| rank(&is).is_some_and(|is| is < was)) {
            found.push(format!("the phase was {was} and is {is}"));
        }
        let mut restarted = false;
        for (name, was) in containers(before) {
            match containers(after).into_iter().find(|(it, _)| *it == name) {
                Some((_, is)) => {
                    restarted |= was["restartCount"] != is["restartCount"];
                    found.extend(
                        of_container(was, is).into_iter().map(|it| format!("{name}: {it}")),
                    );
                }
                None => found.push(format!("the status of {name} is gone")),
            }
        }
        let ends = !after["metadata"]["deletionTimestamp"].is_null()
            || matches!(is.as_str(), "Succeeded" | "Failed");
        if is_ready(before) && !is_ready(after) && !ends && !restarted {
            found.push(format!("unready by itself: {}", after["status"]["conditions"]));
        }
    }
    found
}

fn containers(pod: &Value) -> Vec<(&str, &Value)> {
    let lists = ["initContainerStatuses", "containerStatuses"].map(|it| &pod["status"][it]);
    let all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.map(|it| (it["name"].as_str().unwrap_or_default(), it)).collect()
}

fn of_container(was: &Value, is: &Value) -> Vec<String> {
    let (attempt, now) = (was["restartCount"].as_u64(), is["restartCount"].as_u64());
    if attempt > now {
        return vec![format!("attempt {attempt:?} became {now:?}")];
    }
    if attempt < now {
        return Vec::new();
    }
    let (state, next) = (&was["state"], &is["state"]);
    let (running, terminated) = (&state["running"], &state["terminated"]);
    let mut found = Vec::new();
    // A container that ended waits for its next attempt, and tells its end as its last state.
    let told_later = [&next["terminated"], &is["lastState"]["terminated"]];
    if !terminated.is_null() && !told_later.contains(&terminated) {
        found.push(format!("its end was {terminated} and is {next}"));
    }
    if !running.is_null() {
        let since = [&next["running"]["startedAt"], &next["terminated"]["startedAt"]];
        if !since.contains(&&running["startedAt"]) {
            found.push(format!("it ran, {running}, and is {next}"));
        }
    }
    let id = |it: &Value| it["containerID"].as_str().unwrap_or_default().to_owned();
    if !id(was).is_empty() && id(was) != id(is) && next["waiting"].is_null() {
        found.push(format!("it was {} and is {}", id(was), id(is)));
    }
    found
}

#[test]
fn a_row_of_states_that_is_true_passes_and_each_untruth_is_found() {
    let running = json!({ "running": { "startedAt": "2026-01-01T00:00:01Z" } });
    let over = |code: u32| json!({ "terminated": { "startedAt": "2026-01-01T00:00:01Z", "exitCode": code } });
    let pod = |phase: &str, state: &Value, ready: &str| {
        let container =
            json!({ "name": "c", "containerID": "copepod://1", "restartCount": 0, "state": state });
        let status = json!({
            "phase": phase, "podIP": "10.0.0.1", "containerStatuses": [container],
            "conditions": [{ "type": "Ready", "status": ready }],
        });
        Told { deleted: false, pod: Arc::new(json!({ "metadata": {}, "status": status })) }
    };
    let is_found = |row: &[Told], word: &str| {
        let found = untruths(row);
        assert!(found.iter().any(|it| it.contains(word)), "no {word:?} in {found:?}");
    };
    let begin = pod("Running", &running, "True");

    let row =
        [pod("Pending", &json!({}), "False"), begin.clone(), pod("Failed", &over(3), "False")];
    assert_eq!(untruths(&row), Vec::<String>::new());
    is_found(&[begin.clone(), pod("Pending", &running, "True")], "the phase was Running");
    is_found(&[pod("Failed", &over(3), "False"), begin.clone()], "the phase was Failed");
    is_found(
        &[pod("Running", &over(3), "False"), pod("Running", &over(0), "False")],
        "its end was",
    );
    is_found(&[begin.clone(), pod("Running", &json!({ "waiting": {} }), "True")], "it ran");
    is_found(&[begin.clone(), pod("Running", &running, "False")], "unready by itself");
    let mut other = Value::clone(&begin.pod);
    other["status"]["containerStatuses"][0]["containerID"] = json!("copepod://2");
    other["status"]["podIP"] = json!("10.0.0.2");
    let other = Told { deleted: false, pod: Arc::new(other) };
    is_found(&[begin.clone(), other.clone()], "it was copepod://1");
    is_found(&[begin, other], "/status/podIP");
}
