//! `fieldRef` and `resourceFieldRef`: what a pod may know of itself and of its node, in variables and in downward API volumes.

use std::{collections::BTreeMap, fmt::Write};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use super::Context;
use crate::{objects::comma_separated, quantity::Amount};

/// All paths that a variable may refer to.
pub(crate) const FIELDS: &str = "metadata.name, metadata.namespace, metadata.uid, metadata.labels['<key>'], \
     metadata.annotations['<key>'], spec.nodeName, spec.serviceAccountName, status.hostIP, status.hostIPs, \
     status.podIP, status.podIPs";

/// All paths that a file of a volume may refer to.
pub(crate) const VOLUME_FIELDS: &str = "metadata.name, metadata.namespace, metadata.uid, metadata.labels, metadata.annotations, \
     metadata.labels['<key>'], metadata.annotations['<key>']";

/// The value under a path for a file of a volume, or what is wrong with the path: what may change while the pod lives, and its name.
pub(crate) fn volume_field(pod: &Pod, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    let text = |value: Option<&String>| Ok(value.cloned().unwrap_or_default());
    match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => Ok(lines(meta.labels.as_ref())),
        "metadata.annotations" => Ok(lines(meta.annotations.as_ref())),
        _ => subscripted(pod, path).ok_or_else(|| {
            format!("{path:?} is no field for a file; those that are: {VOLUME_FIELDS}")
        }),
    }
}

/// The path is one that a file of a volume may refer to.
pub(crate) fn is_volume_field(path: &str) -> bool {
    volume_field(&Pod::default(), path).is_ok()
}

/// A map as lines of `key="value"`, in the keys' order.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value)));
    lines.collect::<Vec<_>>().join("\n")
}

/// A text as Go's `%q` writes it, which is how a kubelet does.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        let escape = match c {
            '"' | '\\' => c,
            '\x07' => 'a',
            '\x08' => 'b',
            '\x0c' => 'f',
            '\n' => 'n',
            '\r' => 'r',
            '\t' => 't',
            '\x0b' => 'v',
            // Writing to a String cannot fail.
            _ if c.is_ascii_control() => {
                let _ = write!(quoted, "\\x{:02x}", u32::from(c));
                continue;
            }
            _ if c != ' ' && (c.is_control() || c.is_whitespace() || is_format(c)) => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
                continue;
            }
            _ => {
                quoted.push(c);
                continue;
            }
        };
        quoted.push('\\');
        quoted.push(escape);
    }
    quoted.push('"');
    quoted
}

/// Characters that print as nothing, those of Unicode's class Cf that people meet.
fn is_format(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The value of `metadata.labels['<key>']` or `metadata.annotations['<key>']`, empty where there is no such key; none: another path.
fn subscripted(pod: &Pod, path: &str) -> Option<String> {
    let meta = &pod.metadata;
    let value = if let Some(key) = subscript(path, "metadata.labels") {
        meta.labels.as_ref().and_then(|labels| labels.get(key))
    } else {
        let key = subscript(path, "metadata.annotations")?;
        meta.annotations.as_ref().and_then(|annotations| annotations.get(key))
    };
    Some(value.cloned().unwrap_or_default())
}

/// The value under a path for a variable, or what is wrong with the path.
pub(super) fn field(pod: &Pod, path: &str, context: &Context<'_>) -> Result<String, String> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref());
    let text = |value: Option<&String>| Ok(value.cloned().unwrap_or_default());
    let first = |ips: &[std::net::IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "spec.nodeName" => Ok(context.node.name.clone()),
        "spec.serviceAccountName" => {
            let name = spec.and_then(|spec| spec.service_account_name.clone());
            Ok(name.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned()))
        }
        "status.hostIP" => Ok(first(&context.node.ips)),
        "status.hostIPs" => Ok(comma_separated(&context.node.ips).into_owned()),
        "status.podIP" => Ok(first(context.pod_ips)),
        "status.podIPs" => Ok(comma_separated(context.pod_ips).into_owned()),
        _ => subscripted(pod, path).ok_or_else(|| {
            format!("{path:?} is no field for a variable; those that are: {FIELDS}")
        }),
    }
}

/// The path is one that a variable may refer to.
pub(crate) fn is_field(path: &str) -> bool {
    matches!(
        path,
        "metadata.name"
            | "metadata.namespace"
            | "metadata.uid"
            | "spec.nodeName"
            | "spec.serviceAccountName"
            | "status.hostIP"
            | "status.hostIPs"
            | "status.podIP"
            | "status.podIPs"
    ) || subscript(path, "metadata.labels").is_some()
        || subscript(path, "metadata.annotations").is_some()
}

fn subscript<'a>(path: &'a str, map: &str) -> Option<&'a str> {
    path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']").filter(|key| !key.is_empty())
}

/// A container's limit or request in units of the divisor, rounded up; without a limit, what the node has. `own` is the one that is
/// meant where none is named.
pub(crate) fn resource(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    context: &Context<'_>,
) -> Result<String, String> {
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        None => own.ok_or("write containerName, as a volume is of no container's own")?,
        Some(name) => {
            let spec = pod.spec.as_ref().ok_or("the pod has no spec")?;
            let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
            containers
                .find(|container| container.name == name)
                .ok_or_else(|| format!("there is no container {name:?}"))?
        }
    };
    let node = &context.node.allocatable;
    let (limit, name, default) = match selector.resource.as_str() {
        "limits.cpu" => (true, "cpu", node.cpu),
        "limits.memory" => (true, "memory", node.memory),
        "limits.ephemeral-storage" => (true, "ephemeral-storage", node.ephemeral_storage),
        "requests.cpu" => (false, "cpu", Amount::default()),
        "requests.memory" => (false, "memory", Amount::default()),
        "requests.ephemeral-storage" => (false, "ephemeral-storage", Amount::default()),
        other => {
            return Err(format!(
                "{other:?} is no resource to refer to; write limits. or requests. and cpu, memory or ephemeral-storage"
            ));
        }
    };
    let resources = container.resources.as_ref();
    let amounts =
        resources.and_then(|r| if limit { r.limits.as_ref() } else { r.requests.as_ref() });
    let amount = match amounts.and_then(|amounts| amounts.get(name)) {
        Some(quantity) => Amount::parse(quantity).map_err(|error| error.to_string())?,
        None => default,
    };
    let divisor = match &selector.divisor {
        Some(quantity) => Amount::parse(quantity).map_err(|error| error.to_string())?,
        None => Amount::default(),
    };
    Ok(amount.div_ceil(divisor).to_string())
}
