//! Pods in typical states, for the tests of what shows them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// The moment at which the samples are looked at.
pub(crate) fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().expect("a moment")
}

/// A container's status; `state` as in JSON.
pub(crate) fn status(name: &str, ready: bool, restarts: i32, state: Value) -> Value {
    json!({"name": name, "image": "x", "imageID": "", "ready": ready, "restartCount": restarts, "state": state})
}

/// `terminated`, two minutes ago.
pub(crate) fn terminated(reason: &str, code: i32) -> Value {
    json!({"terminated": {"reason": reason, "exitCode": code,
        "startedAt": "2026-11-22T11:50:00Z", "finishedAt": "2026-11-22T11:58:00Z"}})
}

/// A pod of two containers `app` and `side`, with these parts of its status.
pub(crate) fn pod(status: Value) -> Pod {
    pod_of(
        json!({"containers": [{"name": "app", "image": "x"}, {"name": "side", "image": "y"}]}),
        status,
    )
}

/// A pod of this spec and status, made an hour ago.
pub(crate) fn pod_of(spec: Value, status: Value) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "creationTimestamp": "2026-11-22T11:00:00Z"},
        "spec": spec, "status": status,
    }))
    .expect("a pod")
}
