//! `copepod describe`: all that is known of one pod, laid out as `kubectl describe pod`.
//!
//! Absent: the values of Secrets, which never leave the agent.

use std::collections::BTreeMap;
use std::fmt::Display;

use copepod_agent::api::PodEventView;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStatus, EnvVar, Pod, PodSpec, PodStatus, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::age::{moment, since};
use crate::out::harmless;

/// The pod, its containers, conditions, volumes and events; `progress` and `never` as the agent tells them.
pub(crate) fn pod(
    pod: &Pod,
    events: &[PodEventView],
    progress: Option<&str>,
    never: Option<&str>,
    now: Timestamp,
) -> String {
    let mut page = Page::default();
    let metadata = &pod.metadata;
    let empty = (PodSpec::default(), PodStatus::default());
    let spec = pod.spec.as_ref().unwrap_or(&empty.0);
    let status = pod.status.as_ref().unwrap_or(&empty.1);
    page.optional(0, "Name", metadata.name.as_deref());
    page.optional(0, "Namespace", metadata.namespace.as_deref());
    page.optional(0, "UID", metadata.uid.as_deref());
    page.optional(0, "Runtime Class", spec.runtime_class_name.as_deref());
    page.optional(0, "Start Time", status.start_time.as_ref().map(moment).as_deref());
    page.pairs(0, "Labels", "=", metadata.labels.as_ref());
    page.pairs(0, "Annotations", ": ", metadata.annotations.as_ref());
    let phase = status.phase.as_deref().unwrap_or("Pending");
    if metadata.deletion_timestamp.is_some() && !matches!(phase, "Succeeded" | "Failed") {
        page.field(0, "Status", "Terminating");
    } else {
        page.field(0, "Status", phase);
    }
    page.optional(0, "Reason", status.reason.as_deref());
    page.optional(0, "Message", status.message.as_deref());
    page.optional(0, "Never runs", never);
    page.optional(0, "Progress", progress);
    page.field(0, "IP", status.pod_ip.as_deref().unwrap_or(""));
    page.line(0, "IPs:");
    let ips = status.pod_ips.as_deref().unwrap_or_default();
    if ips.is_empty() {
        page.line(1, "<none>");
    }
    for ip in ips {
        page.line(1, &format!("IP:  {}", ip.ip));
    }
    let init = spec.init_containers.as_deref().unwrap_or_default();
    if !init.is_empty() {
        page.line(0, "Init Containers:");
        let statuses = status.init_container_statuses.as_deref().unwrap_or_default();
        init.iter().for_each(|container| page.container(container, statuses));
    }
    page.line(0, "Containers:");
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    spec.containers.iter().for_each(|container| page.container(container, statuses));
    page.conditions(status);
    page.volumes(spec.volumes.as_deref().unwrap_or_default());
    page.events(events, now);
    page.text
}

/// The text so far. Labels are padded so that the values of a level stand in one column.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, depth: usize, text: &str) {
        for line in harmless(text).lines() {
            self.text.push_str(&"  ".repeat(depth));
            self.text.push_str(line.trim_end());
            self.text.push('\n');
        }
    }

    fn field(&mut self, depth: usize, label: &str, value: impl Display) {
        // kubectl's columns: values stand at 18 for the pod, at 20 for whatever lies deeper.
        let width = if depth == 0 { 18 } else { 20 - 2 * depth };
        let label = format!("{label}:  ");
        let value = harmless(&value.to_string());
        let mut lines = value.lines();
        let first = lines.next().unwrap_or_default();
        self.line(depth, &format!("{label:<width$}{first}"));
        for line in lines {
            self.line(depth, &format!("{:<width$}{line}", ""));
        }
    }

    fn optional(&mut self, depth: usize, label: &str, value: Option<&str>) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            self.field(depth, label, value);
        }
    }

    fn pairs(
        &mut self,
        depth: usize,
        label: &str,
        between: &str,
        pairs: Option<&BTreeMap<String, String>>,
    ) {
        let lines: Vec<_> = pairs
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}{between}{value}"))
            .collect();
        let text = if lines.is_empty() { "<none>".to_owned() } else { lines.join("\n") };
        self.field(depth, label, text);
    }

    fn container(&mut self, container: &Container, statuses: &[ContainerStatus]) {
        let status = statuses.iter().find(|status| status.name == container.name);
        self.line(1, &format!("{}:", container.name));
        self.optional(2, "Image", container.image.as_deref());
        self.optional(2, "Image ID", status.map(|status| status.image_id.as_str()));
        let ports: Vec<_> = container
            .ports
            .iter()
            .flatten()
            .map(|port| {
                let protocol = port.protocol.as_deref().unwrap_or("TCP");
                format!("{}/{protocol}", port.container_port)
            })
            .collect();
        let ports = if ports.is_empty() { "<none>".to_owned() } else { ports.join(", ") };
        self.field(2, "Ports", ports);
        self.words("Command", container.command.as_deref());
        self.words("Args", container.args.as_deref());
        if let Some(status) = status {
            self.state("State", status.state.as_ref());
            let ended = status.last_state.as_ref().filter(|state| state.terminated.is_some());
            if ended.is_some() {
                self.state("Last State", ended);
            }
            self.field(2, "Ready", if status.ready { "True" } else { "False" });
            self.field(2, "Restart Count", status.restart_count);
        } else {
            self.field(2, "State", "Waiting");
        }
        let resources = container.resources.as_ref();
        self.quantities("Limits", resources.and_then(|it| it.limits.as_ref()));
        self.quantities("Requests", resources.and_then(|it| it.requests.as_ref()));
        self.environment(container);
        self.mounts(container);
    }

    fn words(&mut self, label: &str, words: Option<&[String]>) {
        let words = words.unwrap_or_default();
        if !words.is_empty() {
            self.line(2, &format!("{label}:"));
            words.iter().for_each(|word| self.line(3, word));
        }
    }

    fn state(&mut self, label: &str, state: Option<&ContainerState>) {
        let Some(state) = state else { return self.field(2, label, "Waiting") };
        if let Some(running) = &state.running {
            self.field(2, label, "Running");
            self.optional(3, "Started", running.started_at.as_ref().map(moment).as_deref());
        } else if let Some(ended) = &state.terminated {
            self.field(2, label, "Terminated");
            self.optional(3, "Reason", ended.reason.as_deref());
            self.optional(3, "Message", ended.message.as_deref());
            self.field(3, "Exit Code", ended.exit_code);
            self.optional(3, "Started", ended.started_at.as_ref().map(moment).as_deref());
            self.optional(3, "Finished", ended.finished_at.as_ref().map(moment).as_deref());
        } else {
            self.field(2, label, "Waiting");
            let waiting = state.waiting.as_ref();
            self.optional(3, "Reason", waiting.and_then(|it| it.reason.as_deref()));
            self.optional(3, "Message", waiting.and_then(|it| it.message.as_deref()));
        }
    }

    fn quantities(&mut self, label: &str, quantities: Option<&BTreeMap<String, Quantity>>) {
        let Some(quantities) = quantities.filter(|it| !it.is_empty()) else { return };
        self.line(2, &format!("{label}:"));
        for (name, quantity) in quantities {
            self.field(3, name, &quantity.0);
        }
    }

    fn environment(&mut self, container: &Container) {
        let sources: Vec<_> = container
            .env_from
            .iter()
            .flatten()
            .filter_map(|source| {
                let config = source.config_map_ref.as_ref().map(|it| ("ConfigMap", &it.name));
                config.or(source.secret_ref.as_ref().map(|it| ("Secret", &it.name)))
            })
            .collect();
        if !sources.is_empty() {
            self.line(2, "Environment Variables from:");
            for (kind, name) in sources {
                self.line(3, &format!("{name}  {kind}"));
            }
        }
        let variables = container.env.as_deref().unwrap_or_default();
        if variables.is_empty() {
            return self.field(2, "Environment", "<none>");
        }
        self.line(2, "Environment:");
        for variable in variables {
            self.field(3, &variable.name, source(variable));
        }
    }

    fn mounts(&mut self, container: &Container) {
        let mounts = container.volume_mounts.as_deref().unwrap_or_default();
        if mounts.is_empty() {
            return self.field(2, "Mounts", "<none>");
        }
        self.line(2, "Mounts:");
        for mount in mounts {
            let access = if mount.read_only == Some(true) { "ro" } else { "rw" };
            let sub = mount.sub_path.as_deref().filter(|path| !path.is_empty());
            let sub = sub.map_or(String::new(), |path| format!(",path={path:?}"));
            self.line(3, &format!("{} from {} ({access}{sub})", mount.mount_path, mount.name));
        }
    }

    fn conditions(&mut self, status: &PodStatus) {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        if conditions.is_empty() {
            return;
        }
        self.line(0, "Conditions:");
        let width = conditions.iter().map(|it| it.type_.len()).max().unwrap_or(0).max(4) + 2;
        self.line(1, &format!("{:<width$}Status", "Type"));
        for condition in conditions {
            let why = [&condition.reason, &condition.message];
            let why: Vec<_> =
                why.into_iter().flatten().filter(|it| !it.is_empty()).cloned().collect();
            let status = &condition.status;
            let line = format!("{:<width$}{status:<8}{}", condition.type_, why.join(": "));
            self.line(1, line.trim_end());
        }
    }

    fn volumes(&mut self, volumes: &[Volume]) {
        if volumes.is_empty() {
            return self.field(0, "Volumes", "<none>");
        }
        self.line(0, "Volumes:");
        for volume in volumes {
            self.line(1, &format!("{}:", volume.name));
            let (kind, detail) = kind_of(volume);
            self.field(2, "Type", kind);
            if let Some((label, value)) = detail {
                self.field(2, label, value);
            }
        }
    }

    fn events(&mut self, events: &[PodEventView], now: Timestamp) {
        if events.is_empty() {
            return self.field(0, "Events", "<none>");
        }
        self.line(0, "Events:");
        let header = ["Type", "Reason", "Age", "Message"].map(str::to_owned);
        let rule = header.clone().map(|name| "-".repeat(name.len()));
        let rows = events.iter().map(|event| {
            let last = Timestamp::from_second(event.last).unwrap_or(now);
            let age = match event.count {
                0 | 1 => since(last, now),
                times => format!("{} (x{times})", since(last, now)),
            };
            // One line each: what follows a line break of a message is in the log.
            let message = harmless(&event.message).replace('\n', " ");
            [event.kind.clone(), event.reason.clone(), age, message]
        });
        let rows: Vec<_> = [header, rule].into_iter().chain(rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
        let widths = [0, 1, 2].map(|column| width(column).unwrap_or(0) + 2);
        for [kind, reason, age, message] in &rows {
            let [a, b, c] = widths;
            self.line(1, &format!("{kind:<a$}{reason:<b$}{age:<c$}{message}"));
        }
    }
}

/// What a variable is set to, or where its value comes from.
fn source(variable: &EnvVar) -> String {
    let Some(from) = &variable.value_from else {
        return variable.value.clone().unwrap_or_default();
    };
    if let Some(key) = &from.config_map_key_ref {
        format!("<the key {:?} of config map {:?}>", key.key, key.name)
    } else if let Some(key) = &from.secret_key_ref {
        format!("<the key {:?} of secret {:?}>", key.key, key.name)
    } else if let Some(field) = &from.field_ref {
        format!("({})", field.field_path)
    } else if let Some(field) = &from.resource_field_ref {
        format!("({})", field.resource)
    } else {
        "<unknown>".into()
    }
}

/// A volume's type and the one thing to know about it.
fn kind_of(volume: &Volume) -> (&'static str, Option<(&'static str, String)>) {
    if let Some(it) = &volume.empty_dir {
        let limit = it.size_limit.as_ref().map(|limit| ("Size Limit", limit.0.clone()));
        let in_memory = it.medium.as_deref() == Some("Memory");
        (if in_memory { "EmptyDir in memory" } else { "EmptyDir" }, limit)
    } else if let Some(it) = &volume.config_map {
        ("ConfigMap", Some(("Name", it.name.clone())))
    } else if let Some(it) = &volume.secret {
        ("Secret", it.secret_name.clone().map(|name| ("Name", name)))
    } else if let Some(it) = &volume.host_path {
        ("HostPath", Some(("Path", it.path.clone())))
    } else if volume.projected.is_some() {
        ("Projected", None)
    } else if volume.downward_api.is_some() {
        ("DownwardAPI", None)
    } else {
        ("<unknown>", None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::samples::{now, pod_of, status, terminated};
    use super::*;

    #[test]
    fn a_pod_that_crashes_is_described_with_all_that_explains_it() {
        let mut app = status(
            "app",
            false,
            4,
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}),
        );
        app["lastState"] = terminated("Error", 134);
        app["lastState"]["terminated"]["message"] =
            json!("wasm trap: unreachable\n\u{1b}[31m  0: main");
        app["imageID"] = json!("reg/app@sha256:1");
        let mut pod = pod_of(
            json!({
                "initContainers": [{"name": "setup", "image": "reg/setup:1"}],
                "containers": [{
                    "name": "app", "image": "reg/app:1", "args": ["serve", "-v"], "ports": [{"containerPort": 8080}],
                    "resources": {"limits": {"memory": "64Mi"}},
                    "env": [{"name": "A", "value": "1"}, {"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": true}],
                }],
                "volumes": [{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "cfg", "configMap": {"name": "c"}}],
            }),
            json!({
                "phase": "Running", "podIP": "10.64.0.5", "podIPs": [{"ip": "10.64.0.5"}], "startTime": "2026-11-22T11:00:01Z",
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
                "initContainerStatuses": [status("setup", true, 0, terminated("Completed", 0))],
                "containerStatuses": [app],
            }),
        );
        pod.metadata.labels =
            Some([("app".into(), "web".into()), ("tier".into(), "x".into())].into());
        let event = |kind: &str, reason: &str, message: &str, count| PodEventView {
            kind: kind.into(),
            reason: reason.into(),
            message: message.into(),
            last: now().as_second() - 30,
            count,
        };
        let events = [
            event("Normal", "Pulled", "Image is here", 1),
            event("Warning", "BackOff", "Back-off\nagain", 3),
        ];

        let text = super::pod(&pod, &events, None, None, now());

        assert_eq!(text, include_str!("describe.golden"));
    }
}
