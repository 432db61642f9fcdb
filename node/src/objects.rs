//! What a pod refers to: ConfigMaps, Secrets, tokens of its service account, and the node it is on.
//!
//! Absent: fetching, requesting and watching them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccountTokenProjection};

use crate::{quantity::Amount, refusal::Refusal};

/// The API server's default of a token's `expirationSeconds`.
const TOKEN_SECONDS: i64 = 3600;

/// The ConfigMaps and Secrets of the pod's namespace and the tokens of its service account, as far as they are known.
pub trait Objects {
    /// The ConfigMap of that name.
    fn config_map(&self, name: &str) -> Option<&ConfigMap>;
    /// The Secret of that name.
    fn secret(&self, name: &str) -> Option<&Secret>;
    /// The token that a TokenRequest for this pod gave.
    fn token(&self, wanted: WantedToken<'_>) -> Option<&str>;
}

/// A token that a pod's volume shows: the `spec` of its TokenRequest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WantedToken<'a> {
    /// For whom it is; none: for the API server.
    pub audience: Option<&'a str>,
    /// How long it is to be valid.
    pub expiration_seconds: i64,
}

impl<'a> From<&'a ServiceAccountTokenProjection> for WantedToken<'a> {
    fn from(source: &'a ServiceAccountTokenProjection) -> Self {
        Self {
            audience: source.audience.as_deref().filter(|audience| !audience.is_empty()),
            expiration_seconds: source.expiration_seconds.unwrap_or(TOKEN_SECONDS),
        }
    }
}

/// All tokens that a pod's volumes show, each once.
pub fn wanted_tokens(pod: &Pod) -> BTreeSet<WantedToken<'_>> {
    token_sources(pod).map(|(_, source)| source.into()).collect()
}

/// What in a pod asks for a token, where no API server is there to give one.
pub fn tokens_without_cluster(pod: &Pod) -> Vec<Refusal> {
    let spec = pod.spec.as_ref();
    let wants_one = spec.and_then(|spec| spec.automount_service_account_token) == Some(true);
    let automount = wants_one.then(|| {
        let message = "a token needs a cluster's API server, and there is none here; leave it out";
        Refusal::new("spec.automountServiceAccountToken", message)
    });
    let sources = token_sources(pod).map(|(path, _)| {
        let message = "a token needs a cluster's API server, and there is none here; remove the source, or project a \
             Secret with what the program is to present";
        Refusal::new(path, message)
    });
    automount.into_iter().chain(sources).collect()
}

fn token_sources(pod: &Pod) -> impl Iterator<Item = (String, &ServiceAccountTokenProjection)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).enumerate();
    volumes.flat_map(|(i, volume)| {
        let sources = volume.projected.iter().flat_map(|it| it.sources.iter().flatten());
        sources.enumerate().filter_map(move |(j, source)| {
            let path = format!("spec.volumes[{i}].projected.sources[{j}].serviceAccountToken");
            Some((path, source.service_account_token.as_ref()?))
        })
    })
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
    /// By audience and seconds.
    pub(crate) tokens: BTreeMap<(Option<String>, i64), String>,
}

#[cfg(test)]
impl Objects for KnownObjects {
    fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        self.config_maps.get(name)
    }
    fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name)
    }
    fn token(&self, wanted: WantedToken<'_>) -> Option<&str> {
        let audience = wanted.audience.map(str::to_owned);
        self.tokens.get(&(audience, wanted.expiration_seconds)).map(String::as_str)
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
    fn pod_with_tokens() -> Pod {
        let token = |mut source: serde_json::Value| {
            source["path"] = serde_json::json!("token");
            serde_json::json!({ "serviceAccountToken": source })
        };
        serde_json::from_value(serde_json::json!({ "spec": { "containers": [], "volumes": [
            { "name": "scratch", "emptyDir": {} },
            { "name": "api", "projected": { "sources": [
                token(serde_json::json!({ "expirationSeconds": 3607 })),
                { "configMap": { "name": "kube-root-ca.crt" } },
                token(serde_json::json!({ "audience": "vault" })),
            ] } },
            { "name": "again", "projected": { "sources": [
                token(serde_json::json!({ "audience": "vault", "expirationSeconds": 3600 })),
                token(serde_json::json!({ "audience": "", "expirationSeconds": 3607 })),
            ] } },
        ] } }))
        .expect("a pod")
    }

    #[test]
    fn a_pod_wants_each_token_once_whatever_shows_it() {
        let pod = pod_with_tokens();

        let wanted = wanted_tokens(&pod);

        let api = WantedToken { audience: None, expiration_seconds: 3607 };
        let vault = WantedToken { audience: Some("vault"), expiration_seconds: 3600 };
        assert_eq!(Vec::from_iter(wanted), [api, vault]);
    }

    #[test]
    fn without_a_cluster_whatever_asks_for_a_token_is_refused_with_what_to_write_instead() {
        let mut pod = pod_with_tokens();
        if let Some(spec) = &mut pod.spec {
            spec.automount_service_account_token = Some(true);
        }

        let refused = tokens_without_cluster(&pod);

        let fields: Vec<_> = refused.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.automountServiceAccountToken",
                "spec.volumes[1].projected.sources[0].serviceAccountToken",
                "spec.volumes[1].projected.sources[2].serviceAccountToken",
                "spec.volumes[2].projected.sources[0].serviceAccountToken",
                "spec.volumes[2].projected.sources[1].serviceAccountToken",
            ]
        );
        assert!(refused.iter().all(|it| it.message.contains("API server")));
        assert_eq!(tokens_without_cluster(&Pod::default()), []);
    }
}
