//! What a pod refers to: ConfigMaps, Secrets, and the node it is on.
//!
//! Absent: fetching and watching them.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use crate::quantity::Amount;

/// The ConfigMaps and Secrets of the pod's namespace, as far as they are known.
pub trait Objects {
    /// The ConfigMap of that name.
    fn config_map(&self, name: &str) -> Option<&ConfigMap>;
    /// The Secret of that name.
    fn secret(&self, name: &str) -> Option<&Secret>;
}

/// Objects in memory, by name.
#[derive(Clone, Debug, Default)]
pub struct KnownObjects {
    /// ConfigMaps.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// Secrets.
    pub secrets: BTreeMap<String, Secret>,
}

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
