//! What a pod refers to: ConfigMaps, Secrets, and the node it is on.
//!
//! Absent: fetching and watching them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};

use crate::quantity::Amount;

/// The ConfigMaps and Secrets of the pod's namespace, as far as they are known.
pub trait Objects {
    /// The ConfigMap of that name.
    fn config_map(&self, name: &str) -> Option<&ConfigMap>;
    /// The Secret of that name.
    fn secret(&self, name: &str) -> Option<&Secret>;
}

/// The names of all ConfigMaps and Secrets of its namespace that a pod refers to, optional ones too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References<'a> {
    /// Of ConfigMaps.
    pub config_maps: BTreeSet<&'a str>,
    /// Of Secrets, pull secrets among them.
    pub secrets: BTreeSet<&'a str>,
}

impl<'a> References<'a> {
    /// What `pod` refers to in variables, volumes and pull secrets.
    pub fn of(pod: &'a Pod) -> Self {
        let mut found = Self::default();
        let Some(spec) = &pod.spec else { return found };
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            for source in container.env_from.iter().flatten() {
                found.config_maps.extend(source.config_map_ref.iter().map(|it| it.name.as_str()));
                found.secrets.extend(source.secret_ref.iter().map(|it| it.name.as_str()));
            }
            for source in container.env.iter().flatten().filter_map(|it| it.value_from.as_ref()) {
                let config_map = source.config_map_key_ref.iter();
                found.config_maps.extend(config_map.map(|it| it.name.as_str()));
                found.secrets.extend(source.secret_key_ref.iter().map(|it| it.name.as_str()));
            }
        }
        for volume in spec.volumes.iter().flatten() {
            found.config_maps.extend(volume.config_map.iter().map(|it| it.name.as_str()));
            let secret = volume.secret.iter().filter_map(|it| it.secret_name.as_deref());
            found.secrets.extend(secret);
            let sources = volume.projected.iter().flat_map(|it| it.sources.iter().flatten());
            for source in sources {
                found.config_maps.extend(source.config_map.iter().map(|it| it.name.as_str()));
                found.secrets.extend(source.secret.iter().map(|it| it.name.as_str()));
            }
        }
        let pull = spec.image_pull_secrets.iter().flatten();
        found.secrets.extend(pull.map(|it| it.name.as_str()));
        found
    }
}

/// Objects in memory, by name.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownObjects {
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    pub(crate) secrets: BTreeMap<String, Secret>,
}

#[cfg(test)]
impl Objects for KnownObjects {
    fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        self.config_maps.get(name)
    }
    fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name)
    }
}

/// The node, as far as a pod may ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// `spec.nodeName`.
    pub name: String,
    /// `status.hostIPs`, the node's family first.
    pub ips: Vec<IpAddr>,
    /// What a container without a limit may use, which is what it is told its limit is.
    pub allocatable: Allocatable,
}

/// What a node has for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocatable {
    /// CPU cores.
    pub cpu: Amount,
    /// Bytes of memory.
    pub memory: Amount,
    /// Bytes of local storage.
    pub ephemeral_storage: Amount,
}

/// The bytes under a ConfigMap's key: of `data`, else of `binaryData`.
pub(crate) fn config_map_bytes<'a>(map: &'a ConfigMap, key: &str) -> Option<&'a [u8]> {
    let text = map.data.as_ref().and_then(|data| data.get(key)).map(String::as_bytes);
    text.or_else(|| map.binary_data.as_ref()?.get(key).map(|bytes| bytes.0.as_slice()))
}

/// All keys and bytes of a ConfigMap, in the keys' order.
pub(crate) fn config_map_entries(map: &ConfigMap) -> BTreeMap<&str, &[u8]> {
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (&**key, value.0.as_slice()));
    let text = map.data.iter().flatten().map(|(key, value)| (&**key, value.as_bytes()));
    binary.chain(text).collect()
}

/// All keys and bytes of a Secret, in the keys' order; `stringData`, which no API server stores, wins as it would there.
pub(crate) fn secret_entries(secret: &Secret) -> BTreeMap<&str, &[u8]> {
    let data = secret.data.iter().flatten().map(|(key, value)| (&**key, value.0.as_slice()));
    let text = secret.string_data.iter().flatten().map(|(key, value)| (&**key, value.as_bytes()));
    data.chain(text).collect()
}

/// The bytes under a Secret's key.
pub(crate) fn secret_bytes<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    let text = secret.string_data.as_ref().and_then(|data| data.get(key)).map(String::as_bytes);
    text.or_else(|| secret.data.as_ref()?.get(key).map(|bytes| bytes.0.as_slice()))
}

/// Addresses as a list with commas.
pub(crate) fn comma_separated(ips: &[IpAddr]) -> Cow<'static, str> {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_refers_to_what_its_variables_volumes_and_pull_secrets_name() {
        let pod: Pod = serde_json::from_value(serde_json::json!({ "spec": {
            "imagePullSecrets": [{ "name": "pull" }],
            "initContainers": [{ "name": "first", "envFrom": [{ "configMapRef": { "name": "all" } }, { "secretRef": { "name": "every" } }] }],
            "containers": [{ "name": "app", "env": [
                { "name": "PLAIN", "value": "no reference" },
                { "name": "A", "valueFrom": { "configMapKeyRef": { "name": "one", "key": "k" } } },
                { "name": "B", "valueFrom": { "secretKeyRef": { "name": "hidden", "key": "k", "optional": true } } },
            ] }],
            "volumes": [
                { "name": "scratch", "emptyDir": {} },
                { "name": "files", "configMap": { "name": "files" } },
                { "name": "keys", "secret": { "secretName": "keys" } },
                { "name": "both", "projected": { "sources": [{ "configMap": { "name": "part" } }, { "secret": { "name": "piece" } }] } },
            ],
        } }))
        .expect("a pod");

        let found = References::of(&pod);

        assert_eq!(Vec::from_iter(found.config_maps), ["all", "files", "one", "part"]);
        assert_eq!(Vec::from_iter(found.secrets), ["every", "hidden", "keys", "piece", "pull"]);
    }
}
