//! How a pod looks that this node cannot run as its spec is: Pending, with the reason at every container.
//!
//! Not Failed: a ReplicaSet replaces a failed pod at once, for ever (kubernetes #72593). A DaemonSet does so with a growing pause, and
//! without it would wait for the pod's end for ever; so its pods fail.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateWaiting, ContainerStatus, Pod, PodCondition, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::seen::Seen;

/// The reason that a refused pod's containers wait for, and of its event.
pub const REASON: &str = "UnsupportedPod";

/// The status of a pod that is refused for `reasons`, each a sentence.
pub fn status(seen: &Seen, pod: &Pod, reasons: &[String], now: jiff::Timestamp) -> PodStatus {
    let message = reasons.join("; ");
    if seen.controller.as_deref() == Some("DaemonSet") {
        return failed(REASON, &format!("Pod was rejected: {message}"), now);
    }
    let waiting = |container: &Container| ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(REASON.to_owned()),
                message: Some(message.clone()),
            }),
            ..ContainerState::default()
        }),
        started: Some(false),
        ..ContainerStatus::default()
    };
    let spec = pod.spec.as_ref();
    let all = |list: Option<&Vec<Container>>| list.map(|it| it.iter().map(waiting).collect());
    PodStatus {
        phase: Some("Pending".to_owned()),
        start_time: Some(Time(now)),
        conditions: Some(not_ready(REASON, &message, now)),
        container_statuses: all(spec.map(|spec| &spec.containers)),
        init_container_statuses: all(spec.and_then(|spec| spec.init_containers.as_ref())),
        ..PodStatus::default()
    }
}

/// The status of a pod that ended without having begun.
pub fn failed(reason: &str, message: &str, now: jiff::Timestamp) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        start_time: Some(Time(now)),
        conditions: Some(not_ready("PodFailed", "", now)),
        ..PodStatus::default()
    }
}

fn not_ready(reason: &str, message: &str, now: jiff::Timestamp) -> Vec<PodCondition> {
    let condition = |kind: &str| PodCondition {
        type_: kind.to_owned(),
        status: "False".to_owned(),
        reason: Some(reason.to_owned()),
        message: (!message.is_empty()).then(|| message.to_owned()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"].map(condition).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(controller: Option<&str>) -> Pod {
        let owners: Vec<_> = controller
            .map(|kind| serde_json::json!({ "apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "o", "controller": true }))
            .into_iter()
            .collect();
        serde_json::from_value(serde_json::json!({
            "metadata": { "namespace": "default", "name": "p", "uid": "u", "ownerReferences": owners },
            "spec": { "containers": [{ "name": "app", "image": "i" }] },
        }))
        .expect("a pod")
    }

    fn refused(controller: Option<&str>) -> PodStatus {
        let pod = pod(controller);
        let seen = Seen::of(pod.clone()).expect("whole");
        let why = ["spec.hostPID: a wasm guest sees no processes; leave it out".to_owned()];
        status(&seen, &pod, &why, jiff::Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_refused_pod_stays_pending_and_every_container_says_why() {
        let status = refused(Some("ReplicaSet"));

        let container = &status.container_statuses.expect("one")[0];
        let waiting = container.state.as_ref().and_then(|it| it.waiting.as_ref()).expect("waits");
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        assert_eq!(waiting.reason.as_deref(), Some(REASON));
        assert!(waiting.message.as_deref().expect("why").contains("spec.hostPID"));
    }

    #[test]
    fn a_refused_pod_of_a_daemon_set_fails_so_that_its_controller_goes_on() {
        let status = refused(Some("DaemonSet"));

        assert_eq!(status.phase.as_deref(), Some("Failed"));
        assert!(status.message.expect("why").contains("spec.hostPID"));
    }
}
