//! After an upgrade: how long pods still run in runners of the build before, and how those leave that do not leave by themselves.
//!
//! The agent hands HTTP components over to its own build without anybody's noticing. A program runs on where it is, with the engine of
//! the older build and what is wrong with that. Where the node is given `--max-runner-age`, its pod is evicted after that time: by the
//! Eviction API, so that disruption budgets hold, and one pod of a controller at a time. A pod that nobody would make again is only told of.
//!
//! Absent: the handing over (`copepod_agent`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use copepod_agent::front::{Front, Outdated};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, EvictParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use tracing::{info, warn};

use crate::server::metrics::{Metrics, OUTDATED_PODS, OUTDATED_RUNNERS, PATCH_GAP};
use crate::trouble::explain;

/// How often it is looked what is left. Nothing looks where nothing is.
const LOOK: Duration = Duration::from_secs(10);

/// The reason of the events.
const REASON: &str = "RunnerOutdated";

/// What is done about outdated runners.
pub struct Outdating {
    /// The agent.
    pub front: Front,
    /// The API server.
    pub client: Client,
    /// The API server's name, for messages.
    pub server: http::Uri,
    /// Where the figures go.
    pub metrics: Arc<Metrics>,
    /// How long a runner of another build may go on beside the node's own; none: as long as its pods do.
    pub max_age: Option<Duration>,
}

impl Outdating {
    /// Looks until nothing of another build is left. Only a node's start adds to it.
    pub async fn run(self) {
        let mut evicted = BTreeMap::new();
        let mut told = BTreeSet::new();
        loop {
            let left = self.front.outdated().await;
            let now = Timestamp::now();
            self.count(&left, now);
            if left.runners == 0 {
                return;
            }
            let age = Duration::try_from(now.duration_since(left.since)).unwrap_or_default();
            if self.max_age.is_some_and(|most| age >= most) {
                let Plan { evict, unmanaged } = plan(&left.programs, &mut evicted);
                for pod in evict {
                    if self.evict(pod, left.since).await {
                        evicted.insert(pod.uid().unwrap_or_default(), controller(pod));
                    }
                }
                for pod in unmanaged {
                    let uid = pod.uid().unwrap_or_default();
                    if told.insert(uid.clone()) {
                        let message = format!(
                            "it runs in a runner of the build before the node's upgrade at {}, and no controller would make it \
                             again: delete it, and make it again",
                            left.since
                        );
                        self.front.warn(&uid, REASON, message).await;
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn count(&self, left: &Outdated, now: Timestamp) {
        let gap = if left.runners > 0 { now.duration_since(left.since).as_secs() } else { 0 };
        self.metrics.set(&OUTDATED_RUNNERS, &[], left.runners as f64);
        self.metrics.set(&OUTDATED_PODS, &[], left.pods as f64);
        self.metrics.set(&PATCH_GAP, &[], gap as f64);
    }

    /// Whether the API server has taken the eviction.
    async fn evict(&self, pod: &Pod, since: Timestamp) -> bool {
        let (name, uid) = (pod.name_any(), pod.uid());
        let api: Api<Pod> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let preconditions = Preconditions { uid: uid.clone(), resource_version: None };
        let delete_options =
            Some(DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() });
        let params = EvictParams { delete_options, ..EvictParams::default() };
        match api.evict(&name, &params).await {
            Ok(_) => {
                let message = format!(
                    "evicted: it runs in a runner of the build before the node's upgrade at {since} (--max-runner-age)"
                );
                info!(pod = name, message);
                self.front.warn(&uid.unwrap_or_default(), REASON, message).await;
                true
            }
            // A disruption budget has no room now.
            Err(kube::Error::Api(status)) if status.code == 429 => false,
            // It is gone, or another pod has its name.
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => false,
            Err(error) => {
                let why = explain(&error, &self.server);
                warn!(pod = name, why, "a pod of an outdated runner cannot be evicted");
                false
            }
        }
    }
}

/// Which pods are to be evicted now, and which nobody would make again.
#[derive(Debug, Default, PartialEq)]
struct Plan<'a> {
    evict: Vec<&'a Pod>,
    unmanaged: Vec<&'a Pod>,
}

/// One pod of each controller of which no pod is on its way out. `evicted` tells which are, by UID; those that are gone leave it.
fn plan<'a>(pods: &'a [Arc<Pod>], evicted: &mut BTreeMap<String, Option<String>>) -> Plan<'a> {
    let here: BTreeSet<String> = pods.iter().filter_map(|pod| pod.uid()).collect();
    evicted.retain(|uid, _| here.contains(uid));
    let mut busy: BTreeSet<String> = evicted.values().flatten().cloned().collect();
    let mut plan = Plan::default();
    for pod in pods {
        match controller(pod) {
            None => plan.unmanaged.push(pod),
            Some(controller) => plan.evict.extend(busy.insert(controller).then_some(&**pod)),
        }
    }
    plan
}

/// The UID of what makes the pod again.
fn controller(pod: &Pod) -> Option<String> {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.filter(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone()).next()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    fn pod(uid: &str, controller: Option<&str>) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        pod.metadata.owner_references = controller.map(|uid| {
            vec![OwnerReference {
                uid: uid.to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            }]
        });
        Arc::new(pod)
    }

    fn uids(pods: &[&Pod]) -> Vec<String> {
        pods.iter().filter_map(|pod| pod.uid()).collect()
    }

    #[test]
    fn of_each_controller_one_pod_is_evicted_at_a_time() {
        let pods = [pod("a1", Some("a")), pod("a2", Some("a")), pod("b1", Some("b"))];
        let mut evicted = BTreeMap::new();

        assert_eq!(uids(&plan(&pods, &mut evicted).evict), ["a1", "b1"]);

        evicted.insert("a1".to_owned(), Some("a".to_owned()));
        assert_eq!(uids(&plan(&pods, &mut evicted).evict), ["b1"]);

        // The first is gone.
        assert_eq!(uids(&plan(&pods[1..2], &mut evicted).evict), ["a2"]);
        assert!(evicted.is_empty());
    }

    #[test]
    fn a_pod_that_nobody_would_make_again_is_not_evicted() {
        let pods = [pod("bare", None)];

        let plan = plan(&pods, &mut BTreeMap::new());

        assert_eq!(plan.evict, Vec::<&Pod>::new());
        assert_eq!(uids(&plan.unmanaged), ["bare"]);
    }
}
