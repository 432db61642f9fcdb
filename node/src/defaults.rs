//! The defaults that an API server writes into a pod, for pods that never saw one. Applying them twice changes nothing.
//!
//! Absent: what admission plugins add (service account tokens, tolerations, limit ranges).

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, EphemeralContainer, HTTPGetAction, LifecycleHandler, Pod,
    Probe, ResourceRequirements, Volume,
};

/// Fills in what the pod leaves out.
pub fn apply(pod: &mut Pod) {
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    let Some(spec) = &mut pod.spec else { return };
    default(&mut spec.restart_policy, "Always");
    default(&mut spec.dns_policy, "ClusterFirst");
    default(&mut spec.scheduler_name, "default-scheduler");
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.security_context.get_or_insert_default();
    spec.init_containers.iter_mut().flatten().for_each(container);
    spec.containers.iter_mut().for_each(container);
    spec.ephemeral_containers.iter_mut().flatten().for_each(ephemeral);
    spec.volumes.iter_mut().flatten().for_each(volume);
}

fn default(field: &mut Option<String>, value: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(value.to_owned());
    }
}

const MESSAGE_PATH: &str = "/dev/termination-log";
const MESSAGE_POLICY: &str = "File";

fn container(container: &mut Container) {
    let image = container.image.as_deref().unwrap_or_default();
    default(&mut container.image_pull_policy, pull_policy(image));
    default(&mut container.termination_message_path, MESSAGE_PATH);
    default(&mut container.termination_message_policy, MESSAGE_POLICY);
    container.ports.iter_mut().flatten().for_each(port);
    for p in [
        &mut container.startup_probe,
        &mut container.liveness_probe,
        &mut container.readiness_probe,
    ] {
        p.iter_mut().for_each(probe);
    }
    if let Some(lifecycle) = &mut container.lifecycle {
        lifecycle.post_start.iter_mut().for_each(hook);
        lifecycle.pre_stop.iter_mut().for_each(hook);
    }
    container.env.iter_mut().flatten().for_each(variable);
    if let Some(resources) = &mut container.resources {
        request_what_is_the_limit(resources);
    }
}

fn ephemeral(container: &mut EphemeralContainer) {
    let image = container.image.as_deref().unwrap_or_default();
    default(&mut container.image_pull_policy, pull_policy(image));
    default(&mut container.termination_message_path, MESSAGE_PATH);
    default(&mut container.termination_message_policy, MESSAGE_POLICY);
    container.env.iter_mut().flatten().for_each(variable);
}

fn variable(variable: &mut EnvVar) {
    let source = variable.value_from.as_mut();
    if let Some(field) = source.and_then(|source| source.field_ref.as_mut()) {
        default(&mut field.api_version, "v1");
    }
}

fn pull_policy(image: &str) -> &'static str {
    if is_latest(image) { "Always" } else { "IfNotPresent" }
}

/// No tag, or `latest`, and no digest.
pub fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.rsplit_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn port(port: &mut ContainerPort) {
    default(&mut port.protocol, "TCP");
}

fn probe(probe: &mut Probe) {
    probe.timeout_seconds.get_or_insert(1);
    probe.period_seconds.get_or_insert(10);
    probe.success_threshold.get_or_insert(1);
    probe.failure_threshold.get_or_insert(3);
    probe.http_get.iter_mut().for_each(http);
}

fn hook(hook: &mut LifecycleHandler) {
    hook.http_get.iter_mut().for_each(http);
}

fn http(http: &mut HTTPGetAction) {
    default(&mut http.path, "/");
    default(&mut http.scheme, "HTTP");
}

/// A limit without a request is a request too.
fn request_what_is_the_limit(resources: &mut ResourceRequirements) {
    let Some(limits) = &resources.limits else { return };
    for (resource, limit) in limits {
        let requests = resources.requests.get_or_insert_default();
        requests.entry(resource.clone()).or_insert_with(|| limit.clone());
    }
}

fn volume(volume: &mut Volume) {
    // As Kubernetes: the mode of a file that names none, readable by all.
    const READABLE: i32 = 0o644;
    if let Some(source) = &mut volume.config_map {
        source.default_mode.get_or_insert(READABLE);
    }
    if let Some(source) = &mut volume.secret {
        source.default_mode.get_or_insert(READABLE);
    }
    if let Some(source) = &mut volume.host_path {
        source.type_.get_or_insert_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, latest) in [
            ("app", true),
            ("app:latest", true),
            ("app:1", false),
            ("registry:5000/app", true),
            ("registry:5000/app:v1", false),
            ("app:latest@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn applying_the_defaults_twice_changes_nothing() {
        let mut pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{
                "name": "c", "image": "i",
                "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}},
                "resources": {"limits": {"memory": "1Mi"}}
            }], "volumes": [{"name": "v", "configMap": {"name": "m"}}]}
        }))
        .unwrap();

        apply(&mut pod);
        let once = pod.clone();
        apply(&mut pod);

        assert_eq!(pod, once);
        let spec = once.spec.unwrap();
        let container = &spec.containers[0];
        assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
        assert_eq!(spec.termination_grace_period_seconds, Some(30));
        assert_eq!(container.image_pull_policy.as_deref(), Some("Always"));
        assert_eq!(container.ports.as_ref().unwrap()[0].protocol.as_deref(), Some("TCP"));
        let probe = container.liveness_probe.as_ref().unwrap();
        assert_eq!((probe.period_seconds, probe.failure_threshold), (Some(10), Some(3)));
        let resources = container.resources.as_ref().unwrap();
        assert_eq!(resources.requests, resources.limits);
    }
}
