//! What a pod's status in the API lacks, as one strategic merge patch with the pod's UID; nothing where it lacks nothing.
//!
//! Compared is with the API's own copy and not with what was last sent, so that what others made of it (a node controller that took
//! us for dead) is put right. Fields and conditions of others stay as they are: a strategic merge leaves what it does not name.

use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
use serde_json::{Map, Value, json};

use super::seen::Seen;

/// Fields of the status that only the node writes; all that it has nothing to say about is left out of a patch.
const OURS: &[&str] = &[
    "phase",
    "reason",
    "message",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "observedGeneration",
];

/// The patch that makes the API's status ours; none where it is already.
pub fn patch(seen: &Seen, ours: &PodStatus) -> Option<Value> {
    let target = reported(seen, ours);
    let (target, there) = (to_object(&target), to_object(&seen.status));
    let mut status = Map::new();
    for field in OURS {
        match (target.get(*field), there.get(*field)) {
            (ours, theirs) if ours == theirs => {}
            (Some(value), _) => drop(status.insert((*field).to_owned(), value.clone())),
            // Set back: only a message that no longer holds is.
            (None, Some(_)) if matches!(*field, "reason" | "message") => {
                status.insert((*field).to_owned(), Value::Null);
            }
            (None, _) => {}
        }
    }
    let there = there.get("conditions").and_then(Value::as_array);
    let before = |kind: &Value| there.into_iter().flatten().find(|it| it["type"] == *kind);
    let conditions = target.get("conditions").and_then(Value::as_array).into_iter().flatten();
    let changed: Vec<_> = conditions
        .filter(|it| before(&it["type"]) != Some(it))
        .map(|it| without_leftovers(it.clone(), before(&it["type"])))
        .collect();
    if !changed.is_empty() {
        status.insert("conditions".into(), changed.into());
    }
    (!status.is_empty()).then(|| json!({ "metadata": { "uid": seen.uid }, "status": status }))
}

/// The condition with its gone fields set back: a merge would leave what it does not name.
fn without_leftovers(mut condition: Value, before: Option<&Value>) -> Value {
    for field in ["reason", "message"] {
        if condition.get(field).is_none() && before.is_some_and(|it| it.get(field).is_some()) {
            condition[field] = Value::Null;
        }
    }
    condition
}

/// Whether the write cannot wait for what may come with it: who routes requests or waits for an end wants to know at once.
pub fn is_urgent(seen: &Seen, ours: &PodStatus) -> bool {
    let target = reported(seen, ours);
    let is_final =
        |status: &PodStatus| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    is_ready(&target) != is_ready(&seen.status) || is_final(&target) != is_final(&seen.status)
}

/// Our status as the API is to have it: what was true before and still is keeps its time, and gates are minded.
pub fn reported(seen: &Seen, ours: &PodStatus) -> PodStatus {
    let mut target = ours.clone();
    // The API server reckons it, and the pod started once.
    target.start_time = seen.status.start_time.clone().or(target.start_time);
    target.observed_generation = seen.generation.or(target.observed_generation);
    if seen.is_terminal() {
        // A last phase is the last; also where our own memory of this pod was lost.
        target.phase.clone_from(&seen.status.phase);
    }
    let there = seen.status.conditions.as_deref().unwrap_or_default();
    let mut conditions = target.conditions.take().unwrap_or_default();
    // The scheduler's, who has said it.
    conditions.retain(|it| it.type_ != "PodScheduled" || !has(there, "PodScheduled"));
    for condition in &mut conditions {
        condition.observed_generation = target.observed_generation;
        if condition.type_ == "Ready" && condition.status == "True" {
            mind_gates(condition, seen, there);
        }
        let before = there.iter().find(|it| it.type_ == condition.type_);
        if let Some(before) = before.filter(|it| it.status == condition.status) {
            condition.last_transition_time.clone_from(&before.last_transition_time);
        }
    }
    target.conditions = Some(conditions);
    target
}

fn mind_gates(ready: &mut PodCondition, seen: &Seen, there: &[PodCondition]) {
    let closed: Vec<_> = (seen.gates.iter())
        .filter(|gate| !there.iter().any(|it| it.type_ == **gate && it.status == "True"))
        .map(|gate| match there.iter().find(|it| it.type_ == *gate) {
            Some(it) => format!(
                "the status of pod readiness gate \"{gate}\" is not \"True\", but {}",
                it.status
            ),
            None => {
                format!("corresponding condition of pod readiness gate \"{gate}\" does not exist.")
            }
        })
        .collect();
    if !closed.is_empty() {
        ready.status = "False".to_owned();
        ready.reason = Some("ReadinessGatesNotReady".to_owned());
        ready.message = Some(closed.join(", "));
    }
}

fn has(conditions: &[PodCondition], kind: &str) -> bool {
    conditions.iter().any(|it| it.type_ == kind)
}

fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True")
}

fn to_object(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        // A status is always an object of text and numbers.
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: Value) -> Seen {
        let pod = json!({
            "metadata": { "namespace": "default", "name": "p", "uid": "u1", "resourceVersion": "7", "generation": 3 },
            "spec": { "containers": [], "readinessGates": [] },
            "status": status,
        });
        Seen::of(serde_json::from_value(pod).expect("a pod")).expect("whole")
    }

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).expect("a status")
    }

    fn ready(at: &str, up: &str) -> Value {
        json!({ "type": "Ready", "status": up, "lastTransitionTime": at, "observedGeneration": 3 })
    }

    const EARLIER: &str = "2026-01-01T00:00:00Z";
    const LATER: &str = "2026-01-01T00:10:00Z";

    #[test]
    fn what_the_api_has_already_is_not_written_again() {
        let same = json!({
            "phase": "Running", "podIP": "10.0.0.2", "podIPs": [{ "ip": "10.0.0.2" }], "observedGeneration": 3,
            "conditions": [ready(EARLIER, "True")],
        });

        assert_eq!(patch(&seen(same.clone()), &status(same)), None);
    }

    #[test]
    fn a_patch_names_the_uid_and_only_what_differs() {
        let there = json!({ "phase": "Pending", "podIP": "10.0.0.2", "observedGeneration": 3 });
        let ours = json!({ "phase": "Running", "podIP": "10.0.0.2" });

        let patch = patch(&seen(there), &status(ours));

        let wanted = json!({ "metadata": { "uid": "u1" }, "status": { "phase": "Running" } });
        assert_eq!(patch, Some(wanted));
    }

    #[test]
    fn a_condition_that_did_not_flip_keeps_its_time_and_conditions_of_others_stay_out() {
        let there = json!({ "phase": "Running", "observedGeneration": 3, "conditions": [
            ready(EARLIER, "True"),
            { "type": "example.com/Foreign", "status": "True" },
        ] });
        let ours = json!({ "phase": "Running", "conditions": [ready(LATER, "True")] });

        assert_eq!(patch(&seen(there), &status(ours)), None);
    }

    #[test]
    fn a_reason_that_no_longer_holds_is_set_back() {
        let mut unready = ready(EARLIER, "False");
        unready["reason"] = json!("ContainersNotReady");
        unready["message"] = json!("containers with unready status: [app]");
        let there = json!({ "phase": "Running", "observedGeneration": 3, "conditions": [unready] });
        let ours = json!({ "phase": "Running", "conditions": [ready(LATER, "True")] });

        let patch = patch(&seen(there), &status(ours)).expect("a patch");

        let mut wanted = ready(LATER, "True");
        wanted["reason"] = Value::Null;
        wanted["message"] = Value::Null;
        assert_eq!(patch["status"]["conditions"], json!([wanted]));
    }

    #[test]
    fn what_the_node_controller_wrote_over_ours_is_put_right() {
        let there = json!({ "phase": "Running", "observedGeneration": 3, "conditions": [ready(LATER, "False")] });
        let ours = json!({ "phase": "Running", "conditions": [ready(EARLIER, "True")] });

        let patch = patch(&seen(there), &status(ours)).expect("a patch");

        assert_eq!(patch["status"]["conditions"], json!([ready(EARLIER, "True")]));
    }

    #[test]
    fn a_readiness_gate_that_is_not_true_holds_the_pod_back() {
        let mut seen =
            seen(json!({ "conditions": [{ "type": "example.com/go", "status": "False" }] }));
        seen.gates = vec!["example.com/go".into(), "example.com/none".into()];
        let ours = status(json!({ "conditions": [ready(EARLIER, "True")] }));

        let reported = reported(&seen, &ours);

        let ready = &reported.conditions.expect("conditions")[0];
        assert_eq!(
            (ready.status.as_str(), ready.reason.as_deref()),
            ("False", Some("ReadinessGatesNotReady"))
        );
        let message = ready.message.as_deref().expect("why");
        assert!(message.contains("\"example.com/go\" is not \"True\", but False"), "{message}");
        assert!(message.contains("\"example.com/none\" does not exist"), "{message}");
    }

    #[test]
    fn a_last_phase_is_never_taken_back() {
        let there = json!({ "phase": "Failed", "observedGeneration": 3 });

        assert_eq!(patch(&seen(there), &status(json!({ "phase": "Running" }))), None);
    }

    #[test]
    fn becoming_ready_or_over_is_urgent_and_pulling_is_not() {
        let pending = seen(json!({ "phase": "Pending" }));

        assert!(!is_urgent(&pending, &status(json!({ "phase": "Pending", "podIP": "10.0.0.2" }))));
        assert!(is_urgent(
            &pending,
            &status(json!({ "phase": "Running", "conditions": [ready(LATER, "True")] }))
        ));
        assert!(is_urgent(&pending, &status(json!({ "phase": "Failed" }))));
    }
}
