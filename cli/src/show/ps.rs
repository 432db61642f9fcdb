//! `copepod ps`: one row per pod, with kubectl's rules for READY, STATUS and RESTARTS.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::age;
use crate::out::{harmless, table};

/// The table of `pods`; `wide` adds the images.
pub(crate) fn pods(pods: &[Pod], wide: bool, now: Timestamp) -> String {
    let mut header = vec!["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP"];
    if wide {
        header.extend(["UID", "IMAGES"]);
    }
    let mut rows: Vec<_> = pods.iter().map(|pod| row(pod, wide, now)).collect();
    rows.sort();
    table(&header, &rows)
}

fn row(pod: &Pod, wide: bool, now: Timestamp) -> Vec<String> {
    let text = |text: &Option<String>| text.as_deref().map_or("<none>".to_owned(), harmless);
    let summary = summary(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts > 0 => {
            format!("{} ({} ago)", summary.restarts, age::since(at, now))
        }
        _ => summary.restarts.to_string(),
    };
    let status = pod.status.as_ref();
    let mut row = vec![
        text(&pod.metadata.namespace),
        text(&pod.metadata.name),
        format!("{}/{}", summary.ready, summary.containers),
        harmless(&summary.status),
        restarts,
        age::since_time(pod.metadata.creation_timestamp.as_ref(), now),
        text(&status.and_then(|status| status.pod_ip.clone())),
    ];
    if wide {
        let images = pod.spec.iter().flat_map(|spec| &spec.containers);
        let images = images.filter_map(|container| container.image.clone());
        row.push(text(&pod.metadata.uid));
        row.push(images.collect::<Vec<_>>().join(","));
    }
    row
}

/// What a row says of a pod's containers.
struct Summary {
    ready: usize,
    containers: usize,
    status: String,
    restarts: i32,
    last_restart: Option<Timestamp>,
}

fn summary(pod: &Pod) -> Summary {
    let spec = pod.spec.as_ref();
    let init_specs = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let is_sidecar = |name: &str| {
        init_specs
            .iter()
            .any(|it| it.name == name && it.restart_policy.as_deref() == Some("Always"))
    };
    let sidecars = init_specs.iter().filter(|it| is_sidecar(&it.name)).count();
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.clone());
    let mut summary = Summary {
        ready: 0,
        containers: spec.map_or(0, |spec| spec.containers.len()) + sidecars,
        status: status
            .and_then(|status| status.reason.clone())
            .filter(|reason| !reason.is_empty())
            .or_else(|| phase.clone())
            .unwrap_or_else(|| "Pending".into()),
        restarts: 0,
        last_restart: None,
    };
    let init = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let main = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let initializing = add_init(&mut summary, init, init_specs.len(), is_sidecar);
    if !initializing {
        // From here on the restarts of init containers that are over are history.
        summary.restarts = 0;
        summary.last_restart = None;
        for sidecar in init.iter().filter(|it| is_sidecar(&it.name)) {
            add_restarts(&mut summary, sidecar);
        }
        add_main(&mut summary, main, is_ready(pod));
    }
    let is_over = matches!(phase.as_deref(), Some("Succeeded" | "Failed"));
    if pod.metadata.deletion_timestamp.is_some() && !is_over {
        summary.status = "Terminating".into();
    }
    summary
}

/// Counts the init containers; true while one of them is what the pod waits for.
fn add_init(
    summary: &mut Summary,
    statuses: &[ContainerStatus],
    count: usize,
    is_sidecar: impl Fn(&str) -> bool,
) -> bool {
    for (index, container) in statuses.iter().enumerate() {
        add_restarts(summary, container);
        let state = container.state.as_ref();
        let terminated = state.and_then(|state| state.terminated.as_ref());
        let waiting =
            state.and_then(|state| state.waiting.as_ref()).and_then(|it| it.reason.as_deref());
        if terminated.is_some_and(|it| it.exit_code == 0) {
            continue;
        }
        if is_sidecar(&container.name) && container.started == Some(true) {
            summary.ready += usize::from(container.ready);
            continue;
        }
        summary.status = match (terminated, waiting) {
            (Some(it), _) => match it.reason.as_deref() {
                None | Some("") => format!("Init:ExitCode:{}", it.exit_code),
                Some(reason) => format!("Init:{reason}"),
            },
            (None, Some(reason)) if !reason.is_empty() && reason != "PodInitializing" => {
                format!("Init:{reason}")
            }
            _ => format!("Init:{index}/{count}"),
        };
        return true;
    }
    false
}

fn add_main(summary: &mut Summary, statuses: &[ContainerStatus], pod_is_ready: bool) {
    let mut is_running = false;
    for container in statuses.iter().rev() {
        add_restarts(summary, container);
        let Some(state) = &container.state else { continue };
        if let Some(reason) = state.waiting.as_ref().and_then(|it| it.reason.clone())
            && !reason.is_empty()
        {
            summary.status = reason;
        } else if let Some(terminated) = &state.terminated {
            summary.status = match terminated.reason.as_deref() {
                None | Some("") => format!("ExitCode:{}", terminated.exit_code),
                Some(reason) => reason.to_owned(),
            };
        } else if state.running.is_some() && container.ready {
            is_running = true;
            summary.ready += 1;
        }
    }
    // One container is done, another goes on.
    if summary.status == "Completed" && is_running {
        summary.status = if pod_is_ready { "Running" } else { "NotReady" }.into();
    }
}

fn add_restarts(summary: &mut Summary, container: &ContainerStatus) {
    summary.restarts += container.restart_count;
    let last = container.last_state.as_ref().and_then(|it| it.terminated.as_ref());
    let finished = last.and_then(|it| it.finished_at.as_ref()).map(|time| time.0);
    summary.last_restart = summary.last_restart.max(finished);
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::samples::{now, pod, pod_of, status, terminated};
    use super::*;

    fn running() -> Value {
        json!({"running": {"startedAt": "2026-11-22T11:50:00Z"}})
    }

    fn waiting(reason: &str) -> Value {
        json!({"waiting": {"reason": reason}})
    }

    #[test]
    fn a_row_reads_as_kubectl_would_print_it() {
        let both = |app: Value, side: Value| json!({"phase": "Running", "podIP": "10.64.0.5", "containerStatuses": [app, side]});
        let mut restarted = status("app", true, 3, running());
        restarted["lastState"] = terminated("Error", 1);
        let mut ready = both(
            status("app", true, 0, running()),
            status("side", false, 0, terminated("Completed", 0)),
        );
        ready["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        let table = [
            (json!({"phase": "Pending"}), "0/2 Pending 0 60m <none>"),
            (
                json!({"phase": "Pending", "containerStatuses": [
                    status("app", false, 0, waiting("ContainerCreating")), status("side", false, 0, waiting("ContainerCreating"))]}),
                "0/2 ContainerCreating 0 60m <none>",
            ),
            (
                both(status("app", true, 0, running()), status("side", true, 0, running())),
                "2/2 Running 0 60m 10.64.0.5",
            ),
            (
                both(restarted, status("side", true, 0, running())),
                "2/2 Running 3 (2m ago) 60m 10.64.0.5",
            ),
            (
                both(
                    status("app", false, 7, waiting("CrashLoopBackOff")),
                    status("side", true, 0, running()),
                ),
                "1/2 CrashLoopBackOff 7 60m 10.64.0.5",
            ),
            (
                both(
                    status("app", false, 0, terminated("", 3)),
                    status("side", true, 0, running()),
                ),
                "1/2 ExitCode:3 0 60m 10.64.0.5",
            ),
            (
                both(
                    status("app", false, 0, terminated("OOMKilled", 137)),
                    status("side", true, 0, running()),
                ),
                "1/2 OOMKilled 0 60m 10.64.0.5",
            ),
            (
                both(
                    status("app", true, 0, running()),
                    status("side", false, 0, terminated("Completed", 0)),
                ),
                "1/2 NotReady 0 60m 10.64.0.5",
            ),
            (ready, "1/2 Running 0 60m 10.64.0.5"),
            (
                json!({"phase": "Succeeded", "containerStatuses": [
                    status("app", false, 0, terminated("Completed", 0)), status("side", false, 0, terminated("Completed", 0))]}),
                "0/2 Completed 0 60m <none>",
            ),
            (json!({"phase": "Failed", "reason": "Evicted"}), "0/2 Evicted 0 60m <none>"),
        ];
        for (status, expected) in table {
            let row = row(&pod(status.clone()), false, now());
            assert_eq!(row[2..].join(" "), expected, "{status}");
        }
    }

    #[test]
    fn init_containers_are_what_a_pod_waits_for_until_they_are_done() {
        let spec = json!({
            "initContainers": [{"name": "one"}, {"name": "side", "restartPolicy": "Always"}, {"name": "two"}],
            "containers": [{"name": "app"}],
        });
        let with = |init: Value| {
            pod_of(spec.clone(), json!({"phase": "Pending", "initContainerStatuses": init}))
        };
        let mut side = status("side", true, 1, running());
        side["started"] = json!(true);
        let done = status("one", true, 2, terminated("Completed", 0));
        let table = [
            (with(json!([status("one", false, 0, running())])), "0/2", "Init:0/3"),
            (with(json!([status("one", false, 0, waiting("PodInitializing"))])), "0/2", "Init:0/3"),
            (
                with(json!([status("one", false, 4, waiting("CrashLoopBackOff"))])),
                "0/2",
                "Init:CrashLoopBackOff",
            ),
            (with(json!([status("one", false, 0, terminated("Error", 1))])), "0/2", "Init:Error"),
            (with(json!([status("one", false, 0, terminated("", 9))])), "0/2", "Init:ExitCode:9"),
            (
                with(json!([done.clone(), side.clone(), status("two", false, 0, running())])),
                "1/2",
                "Init:2/3",
            ),
            (
                with(json!([done, side, status("two", true, 0, terminated("Completed", 0))])),
                "1/2",
                "Pending",
            ),
        ];
        for (pod, ready, expected) in table {
            let row = row(&pod, false, now());
            assert_eq!((row[2].as_str(), row[3].as_str()), (ready, expected));
        }
    }

    #[test]
    fn a_pod_that_is_told_to_go_is_terminating_until_it_is_over() {
        let mut running = pod(json!({"phase": "Running"}));
        running.metadata.deletion_timestamp = running.metadata.creation_timestamp.clone();
        let mut over = running.clone();
        over.status.as_mut().expect("a status").phase = Some("Succeeded".into());

        assert_eq!(summary(&running).status, "Terminating");
        assert_eq!(summary(&over).status, "Succeeded");
    }

    #[test]
    fn the_whole_table() {
        let first = pod(json!({"phase": "Running", "podIP": "10.64.0.5", "containerStatuses": [
            status("app", true, 0, running()), status("side", true, 0, running())]}));
        let mut second = pod(json!({"phase": "Pending"}));
        second.metadata.name = Some("a-longer-name".into());
        second.metadata.namespace = Some("shop".into());

        assert_eq!(
            pods(&[second, first], false, now()),
            "NAMESPACE   NAME            READY   STATUS    RESTARTS   AGE   IP\n\
             default     web             2/2     Running   0          60m   10.64.0.5\n\
             shop        a-longer-name   0/2     Pending   0          60m   <none>\n"
        );
    }
}
