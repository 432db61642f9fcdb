//! One container: names, image, ports, probes, hooks, resources, variables, mounts.
//!
//! Absent: that a probe's port is there (`life`).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, EnvVar, LifecycleHandler, PodSpec, Probe, ResourceFieldSelector,
        ResourceRequirements,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{LABEL, MOST_VOLUMES, Wrong};
use crate::{
    env::refs,
    name::{is_config_key, is_dns_label, is_dns_subdomain, is_port_name},
    quantity::Amount,
    volumes::{absolute, mount_path, relative},
};

/// Most ports of a container: each is a listener.
const MOST_PORTS: usize = 256;
/// Most bytes of an image's name, as the API server's own.
const LONGEST_IMAGE: usize = 1024;

pub(super) fn check(
    container: &Container,
    path: &str,
    init: bool,
    spec: &PodSpec,
    wrong: &mut Wrong,
) {
    if !is_dns_label(&container.name) {
        wrong.add(format!("{path}.name"), format!("{:?} is no name: {LABEL}", container.name));
    }
    check_image(container, path, wrong);
    check_ports(container, path, spec, wrong);
    check_env(container, path, spec, wrong);
    if let Some(resources) = &container.resources {
        check_resources(resources, &format!("{path}.resources"), wrong);
    }
    let plain_init = init && container.restart_policy.as_deref() != Some("Always");
    for (field, probe) in [
        ("startupProbe", &container.startup_probe),
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
    ] {
        if let Some(probe) = probe {
            let path = format!("{path}.{field}");
            if plain_init {
                wrong.add(
                    &*path,
                    "an init container has no probes; with restartPolicy: Always it may",
                );
            }
            check_probe(probe, &path, field, wrong);
        }
    }
    if let Some(lifecycle) = &container.lifecycle {
        let path = format!("{path}.lifecycle");
        if plain_init {
            wrong.add(&*path, "an init container has no hooks; with restartPolicy: Always it may");
        }
        for (field, hook) in
            [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)]
        {
            if let Some(hook) = hook {
                check_hook(hook, &format!("{path}.{field}"), spec, wrong);
            }
        }
    }
    if let Some(message_path) = container.termination_message_path.as_deref() {
        let field = format!("{path}.terminationMessagePath");
        match absolute(message_path) {
            Ok(root) if root == "/" => wrong.add(field, "write the path of a file"),
            result => wrong.check(&field, result),
        }
    }
    check_mounts(container, path, spec, wrong);
}

/// As the API server: an ephemeral container is there to look around, and asks for nothing of the node's.
pub(super) fn check_ephemeral(
    container: &Container,
    path: &str,
    spec: &PodSpec,
    wrong: &mut Wrong,
) {
    check(container, path, false, spec, wrong);
    let has_resources = container.resources.as_ref().is_some_and(|it| *it != Default::default());
    for (field, is_there) in [
        ("ports", container.ports.as_ref().is_some_and(|ports| !ports.is_empty())),
        ("startupProbe", container.startup_probe.is_some()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("lifecycle", container.lifecycle.is_some()),
        ("resources", has_resources),
        ("restartPolicyRules", container.restart_policy_rules.is_some()),
    ] {
        if is_there {
            wrong.add(format!("{path}.{field}"), "an ephemeral container has none; leave it out");
        }
    }
}

fn check_image(container: &Container, path: &str, wrong: &mut Wrong) {
    let field = format!("{path}.image");
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        wrong.add(field, "write the image to run");
    } else if image.len() > LONGEST_IMAGE {
        wrong.add(field, format!("an image's name has at most {LONGEST_IMAGE} bytes"));
    } else if image.bytes().any(|byte| byte <= b' ' || byte == 127) {
        wrong.add(field, "an image's name holds no spaces and no control characters");
    }
}

fn check_ports(container: &Container, path: &str, spec: &PodSpec, wrong: &mut Wrong) {
    let ports = container.ports.as_deref().unwrap_or_default();
    if ports.len() > MOST_PORTS {
        wrong.add(format!("{path}.ports"), format!("a container has at most {MOST_PORTS} ports"));
        return;
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        wrong.within(&format!("{path}.containerPort"), Some(port.container_port), 1..=65535);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let field = format!("{path}.name");
            if !is_port_name(name) {
                let message = format!(
                    "{name:?} is no port name; write at most 15 lower case letters, digits and '-', with a letter"
                );
                wrong.add(&*field, message);
            }
            wrong.unique(&field, name, &mut names);
        }
        check_host_port(port, &path, spec, wrong);
        // Several ports of the node may lead to one of the container.
        let host = (port.host_ip.as_deref(), port.host_port.filter(|port| *port > 0));
        if !numbers.insert((port.container_port, port.protocol.as_deref(), host)) {
            let message = format!("port {} is there twice", port.container_port);
            wrong.add(format!("{path}.containerPort"), message);
        }
    }
}

fn check_host_port(port: &ContainerPort, path: &str, spec: &PodSpec, wrong: &mut Wrong) {
    let field = format!("{path}.hostPort");
    let number = port.host_port.filter(|port| *port != 0);
    wrong.within(&field, number, 1..=65535);
    if let Some(number) = number.filter(|number| *number != port.container_port)
        && spec.host_network == Some(true)
    {
        let message = format!(
            "{number} is not the containerPort; in the host's network a port is the host's and no other"
        );
        wrong.add(field, message);
    }
    if let Some(ip) = port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
        wrong.check(&format!("{path}.hostIP"), ip.parse::<std::net::IpAddr>());
    }
}

fn check_env(container: &Container, path: &str, spec: &PodSpec, wrong: &mut Wrong) {
    for (i, variable) in container.env.iter().flatten().enumerate() {
        check_variable(variable, &format!("{path}.env[{i}]"), spec, wrong);
    }
    for (i, source) in container.env_from.iter().flatten().enumerate() {
        let path = format!("{path}.envFrom[{i}]");
        let names = [
            source.config_map_ref.as_ref().map(|r| ("configMapRef", &r.name)),
            source.secret_ref.as_ref().map(|r| ("secretRef", &r.name)),
        ];
        if names.iter().flatten().count() != 1 {
            wrong.add(&*path, "write exactly one of configMapRef, secretRef");
        }
        for (field, name) in names.into_iter().flatten() {
            object_name(name, &format!("{path}.{field}.name"), wrong);
        }
        if source.prefix.as_deref().is_some_and(|prefix| !is_variable_part(prefix)) {
            wrong.add(
                format!("{path}.prefix"),
                "it holds '=' or characters that are not printable ASCII",
            );
        }
    }
}

fn check_variable(variable: &EnvVar, path: &str, spec: &PodSpec, wrong: &mut Wrong) {
    if variable.name.is_empty() || !is_variable_part(&variable.name) {
        let message = "a variable's name is printable ASCII without '=', and not empty";
        wrong.add(format!("{path}.name"), message);
    }
    let Some(source) = &variable.value_from else { return };
    let path = format!("{path}.valueFrom");
    if variable.value.as_deref().is_some_and(|value| !value.is_empty()) {
        wrong.add(&*path, "write either value or valueFrom");
    }
    let mut count = usize::from(source.file_key_ref.is_some());
    for (field, reference) in [
        ("configMapKeyRef", source.config_map_key_ref.as_ref().map(|r| (&r.name, &r.key))),
        ("secretKeyRef", source.secret_key_ref.as_ref().map(|r| (&r.name, &r.key))),
    ] {
        let Some((name, key)) = reference else { continue };
        count += 1;
        object_name(name, &format!("{path}.{field}.name"), wrong);
        if !is_config_key(key) {
            wrong.add(format!("{path}.{field}.key"), format!("{key:?} can be no key"));
        }
    }
    if let Some(field) = &source.field_ref {
        count += 1;
        if !refs::is_field(&field.field_path) {
            let message = format!(
                "{:?} is no field for a variable; those that are: {}",
                field.field_path,
                refs::FIELDS
            );
            wrong.add(format!("{path}.fieldRef.fieldPath"), message);
        }
    }
    if let Some(resource) = &source.resource_field_ref {
        count += 1;
        check_resource_field(resource, &format!("{path}.resourceFieldRef"), spec, wrong);
    }
    if count != 1 {
        let message =
            "write exactly one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef";
        wrong.add(path, message);
    }
}

/// A resource that a variable or a file of a volume refers to.
pub(super) fn check_resource_field(
    resource: &ResourceFieldSelector,
    path: &str,
    spec: &PodSpec,
    wrong: &mut Wrong,
) {
    let (kind, name) = resource.resource.split_once('.').unwrap_or_default();
    if !matches!(kind, "limits" | "requests")
        || !matches!(name, "cpu" | "memory" | "ephemeral-storage")
    {
        let message = "write limits. or requests. and cpu, memory or ephemeral-storage";
        wrong.add(format!("{path}.resource"), message);
    }
    if let Some(divisor) = &resource.divisor {
        wrong.check(&format!("{path}.divisor"), Amount::parse(divisor));
    }
    let known = |wanted: &str| {
        let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
        all.any(|container| container.name == wanted)
    };
    if let Some(name) = resource.container_name.as_deref().filter(|n| !n.is_empty() && !known(n)) {
        wrong.add(format!("{path}.containerName"), format!("there is no container {name:?}"));
    }
}

/// As the API server since 1.34: printable ASCII without `=`.
fn is_variable_part(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=')
}

pub(super) fn object_name(name: &str, field: &str, wrong: &mut Wrong) {
    if !is_dns_subdomain(name) {
        wrong.add(field, format!("{name:?} is no object's name: {}", super::SUBDOMAIN));
    }
}

fn check_resources(resources: &ResourceRequirements, path: &str, wrong: &mut Wrong) {
    let mut read = |list: &str, amounts: &Option<BTreeMap<String, Quantity>>| {
        let mut parsed = BTreeMap::new();
        for (resource, quantity) in amounts.iter().flatten() {
            let field = format!("{path}.{list}[{resource}]");
            match Amount::parse(quantity) {
                Ok(amount) => {
                    // A thousandth of a byte is a slip of the pen (`m` for `M`); a thousandth of a core is the least.
                    if resource != "cpu" && !amount.is_whole() {
                        let message =
                            format!("{:?} is no whole number of bytes; M or Mi?", quantity.0);
                        wrong.add(field, message);
                    } else if resource == "cpu" && amount != Amount::millis(amount.ceil_millis()) {
                        wrong.add(field, format!("{:?} is finer than 1m", quantity.0));
                    } else {
                        parsed.insert(resource.clone(), amount);
                    }
                }
                Err(error) => wrong.add(field, error.to_string()),
            }
        }
        parsed
    };
    let limits = read("limits", &resources.limits);
    let requests = read("requests", &resources.requests);
    for (resource, request) in requests {
        if limits.get(&resource).is_some_and(|limit| request > *limit) {
            let field = format!("{path}.requests[{resource}]");
            wrong.add(field, format!("it is more than limits[{resource}]"));
        }
    }
}

fn check_probe(probe: &Probe, path: &str, kind: &str, wrong: &mut Wrong) {
    let field = |name: &str| format!("{path}.{name}");
    wrong.within(&field("initialDelaySeconds"), probe.initial_delay_seconds, 0..=i32::MAX);
    wrong.within(&field("timeoutSeconds"), probe.timeout_seconds, 1..=i32::MAX);
    wrong.within(&field("periodSeconds"), probe.period_seconds, 1..=i32::MAX);
    wrong.within(&field("failureThreshold"), probe.failure_threshold, 1..=i32::MAX);
    let successes = if kind == "readinessProbe" { i32::MAX } else { 1 };
    wrong.within(&field("successThreshold"), probe.success_threshold, 1..=successes);
    wrong.within(
        &field("terminationGracePeriodSeconds"),
        probe.termination_grace_period_seconds,
        1..=i64::MAX,
    );
    if kind == "readinessProbe" && probe.termination_grace_period_seconds.is_some() {
        let message = "a readiness probe ends nothing; leave it out";
        wrong.add(field("terminationGracePeriodSeconds"), message);
    }
    if probe.exec.as_ref().is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
        wrong.add(field("exec.command"), "write the command and its arguments");
    }
}

fn check_hook(hook: &LifecycleHandler, path: &str, spec: &PodSpec, wrong: &mut Wrong) {
    if hook.exec.as_ref().is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
        wrong.add(format!("{path}.exec.command"), "write the command and its arguments");
    }
    if let Some(sleep) = &hook.sleep {
        let grace = spec.termination_grace_period_seconds.unwrap_or(30).max(0);
        wrong.within(&format!("{path}.sleep.seconds"), Some(sleep.seconds), 0..=grace);
    }
}

fn check_mounts(container: &Container, path: &str, spec: &PodSpec, wrong: &mut Wrong) {
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    if mounts.len() > MOST_VOLUMES {
        let message = format!("a container has at most {MOST_VOLUMES} mounts");
        wrong.add(format!("{path}.volumeMounts"), message);
        return;
    }
    let volumes: BTreeSet<_> = spec.volumes.iter().flatten().map(|volume| &volume.name).collect();
    let mut seen = BTreeSet::new();
    for (i, mount) in mounts.iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        if !volumes.contains(&mount.name) {
            let message = format!("the pod has no volume {:?}; add it to spec.volumes", mount.name);
            wrong.add(format!("{path}.name"), message);
        }
        match mount_path(&mount.mount_path) {
            Ok(at) => {
                let message = format!("something is mounted at {at:?} already");
                if !seen.insert(at) {
                    wrong.add(format!("{path}.mountPath"), message);
                }
            }
            Err(message) => wrong.add(format!("{path}.mountPath"), message),
        }
        if let Some(sub_path) = &mount.sub_path {
            wrong.check(&format!("{path}.subPath"), relative(sub_path));
        }
        if let Some(expression) = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
            let field = format!("{path}.subPathExpr");
            if mount.sub_path.as_deref().is_some_and(|sub_path| !sub_path.is_empty()) {
                wrong.add(&*field, "write either subPath or subPathExpr");
            }
            wrong.check(&field, relative(expression));
        }
    }
}
