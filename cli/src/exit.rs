//! What exit code the program ends with: pure rules over the pods' last statuses.
//!
//! Absent: finding out the statuses ([`crate::run`]).

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// The manifest or the command line is wrong.
pub(crate) const BAD_INPUT: u8 = 2;
/// It can never run here: a refused field, no rights, no wasm. docker's code for the same.
pub(crate) const NEVER: u8 = 125;
/// Ended by Ctrl-C: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;
/// Ended by SIGTERM: 128 + 15.
pub(crate) const TERMINATED: u8 = 143;
/// Whoever read our output is gone: 128 + SIGPIPE.
pub(crate) const PIPE: u8 = 141;

/// How a pod ended, as far as the exit code goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Phase `Succeeded`.
    Succeeded,
    /// Phase `Failed`: the exit codes other than 0 of its containers.
    Failed(Vec<i32>),
    /// Somebody stopped it before it was over.
    Stopped,
}

/// How `pod` ended by its last status.
pub(crate) fn outcome(pod: &Pod) -> Outcome {
    let status = pod.status.as_ref();
    match status.and_then(|status| status.phase.as_deref()) {
        Some("Succeeded") => Outcome::Succeeded,
        Some("Failed") => Outcome::Failed(failures(pod)),
        _ => Outcome::Stopped,
    }
}

fn failures(pod: &Pod) -> Vec<i32> {
    let Some(status) = &pod.status else { return Vec::new() };
    // A sidecar is told to go when the others are done; how it goes says nothing about the pod.
    let is_sidecar = |name: &str| {
        pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).any(|container| {
            container.name == name && container.restart_policy.as_deref() == Some("Always")
        })
    };
    let init = status.init_container_statuses.iter().flatten();
    init.filter(|container| !is_sidecar(&container.name))
        .chain(status.container_statuses.iter().flatten())
        .filter_map(exit_code)
        .filter(|code| *code != 0)
        .collect()
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
}

/// The exit code of a foreground run whose pods ended so: 0 all succeeded; one container failed: its code; several: 1.
pub(crate) fn code(outcomes: &[Outcome]) -> u8 {
    let stopped = outcomes.contains(&Outcome::Stopped);
    let failed: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Failed(codes) => Some(codes),
            _ => None,
        })
        .collect();
    match failed.as_slice() {
        [] if stopped => TERMINATED,
        [] => 0,
        [codes] => match codes.as_slice() {
            [code] => passed_on(*code),
            _ => 1,
        },
        _ => 1,
    }
}

/// A guest's code as ours. A parent process sees 8 bits; a failure never turns into success by losing the others.
pub(crate) fn passed_on(code: i32) -> u8 {
    match u8::try_from(code) {
        Ok(code) => code,
        Err(_) => match code.to_le_bytes()[0] {
            0 => 1,
            low => low,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str, init: &[(&str, i32, bool)], containers: &[(&str, i32)]) -> Pod {
        let status = |name: &str, code: i32| {
            serde_json::json!({"name": name, "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code}}})
        };
        serde_json::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
            "spec": {
                "containers": [],
                "initContainers": init.iter().map(|(name, _, sidecar)| {
                    serde_json::json!({"name": name, "restartPolicy": sidecar.then_some("Always")})
                }).collect::<Vec<_>>(),
            },
            "status": {
                "phase": phase,
                "initContainerStatuses": init.iter().map(|(n, c, _)| status(n, *c)).collect::<Vec<_>>(),
                "containerStatuses": containers.iter().map(|(n, c)| status(n, *c)).collect::<Vec<_>>(),
            },
        }))
        .expect("a pod")
    }

    #[test]
    fn a_pod_s_outcome_is_read_from_its_last_status() {
        let table = [
            (pod("Succeeded", &[], &[("a", 0)]), Outcome::Succeeded),
            (pod("Failed", &[], &[("a", 3), ("b", 0)]), Outcome::Failed(vec![3])),
            (pod("Failed", &[("i", 4, false)], &[]), Outcome::Failed(vec![4])),
            (pod("Failed", &[("side", 143, true)], &[("a", 7)]), Outcome::Failed(vec![7])),
            (pod("Running", &[], &[]), Outcome::Stopped),
            (Pod::default(), Outcome::Stopped),
        ];
        for (pod, expected) in table {
            assert_eq!(outcome(&pod), expected, "{pod:?}");
        }
    }

    #[test]
    fn the_exit_code_follows_from_the_outcomes() {
        use Outcome::{Failed, Stopped, Succeeded};
        let table = [
            (vec![Succeeded, Succeeded], 0),
            (vec![], 0),
            (vec![Succeeded, Failed(vec![3])], 3),
            (vec![Failed(vec![3, 4])], 1),
            (vec![Failed(vec![3]), Failed(vec![3])], 1),
            // DeadlineExceeded, Evicted: the pod failed, no container did.
            (vec![Failed(vec![])], 1),
            (vec![Failed(vec![256])], 1),
            (vec![Failed(vec![-1])], 255),
            (vec![Succeeded, Stopped], 143),
            (vec![Stopped, Failed(vec![5])], 5),
        ];
        for (outcomes, expected) in table {
            assert_eq!(code(&outcomes), expected, "{outcomes:?}");
        }
    }
}
