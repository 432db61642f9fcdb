//! What a pod refers to: ConfigMaps, Secrets, tokens of its service account, and the node it is on.
//!
//! Absent: fetching, requesting and watching them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccountTokenProjection,
};
use serde::{Deserialize, Serialize};

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
    /// What the PersistentVolumeClaim of that name has come to.
    fn claim(&self, name: &str) -> Option<&ClaimedVolume>;
}

/// What is behind a PersistentVolumeClaim, as far as a node without drivers can have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClaimedVolume {
    /// A folder of this machine: a PersistentVolume of kind hostPath or local.
    Folder {
        /// Absolute.
        path: String,
        /// A hostPath's type; empty where it has none.
        kind: String,
    },
    /// Nothing that could be mounted, and why; it may pass.
    Not(String),
}

impl ClaimedVolume {
    /// What a claim has come to, with its volume where there is one of the name that the claim gives.
    pub fn of(claim: &PersistentVolumeClaim, volume: Option<&PersistentVolume>) -> Self {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let Some(volume) = volume.filter(|_| phase == Some("Bound")) else {
            return Self::Not(format!(
                "persistentvolumeclaim {name:?} is not bound to a volume yet"
            ));
        };
        let called = volume.metadata.name.as_deref().unwrap_or_default();
        let Some(spec) = &volume.spec else {
            return Self::Not(format!("persistentvolume {called:?} has no spec"));
        };
        let holder = spec.claim_ref.as_ref().and_then(|holder| holder.uid.as_deref());
        if holder != claim.metadata.uid.as_deref() {
            return Self::Not(format!("persistentvolume {called:?} belongs to another claim"));
        }
        if spec.volume_mode.as_deref() == Some("Block") {
            return Self::Not(format!(
                "persistentvolume {called:?} is a block device, which no guest can have"
            ));
        }
        if let Some(source) = &spec.host_path {
            let kind = source.type_.clone().unwrap_or_default();
            return Self::Folder { path: source.path.clone(), kind };
        }
        if let Some(source) = &spec.local {
            return Self::Folder { path: source.path.clone(), kind: "Directory".to_owned() };
        }
        Self::Not(format!(
            "persistentvolume {called:?} needs a driver, and this node has none; use one of kind hostPath or local"
        ))
    }
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

/// What in a pod only a cluster can give.
pub fn needs_a_cluster(pod: &Pod) -> Vec<Refusal> {
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
    let volumes = spec.into_iter().flat_map(|spec| spec.volumes.iter().flatten()).enumerate();
    let claims = volumes.filter(|(_, volume)| volume.persistent_volume_claim.is_some());
    let claims = claims.map(|(i, _)| {
        let message =
            "a claim is bound by a cluster, and there is none here; use hostPath or emptyDir";
        Refusal::new(format!("spec.volumes[{i}].persistentVolumeClaim"), message)
    });
    let gates = spec.filter(|spec| spec.readiness_gates.iter().flatten().next().is_some());
    let gates = gates.map(|_| {
        let message = "nobody sets conditions without a cluster; leave it out";
        Refusal::new("spec.readinessGates", message)
    });
    let ephemeral = spec.filter(|spec| spec.ephemeral_containers.iter().flatten().next().is_some());
    let ephemeral = ephemeral.map(|_| {
        let message =
            "they are added to a pod that runs, by a cluster; leave it out, and use `copepod exec`";
        Refusal::new("spec.ephemeralContainers", message)
    });
    let others = claims.chain(gates).chain(ephemeral);
    automount.into_iter().chain(sources).chain(others).collect()
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

/// The names of all objects of its namespace that a pod refers to, optional ones too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References<'a> {
    /// Of ConfigMaps.
    pub config_maps: BTreeSet<&'a str>,
    /// Of Secrets, pull secrets among them.
    pub secrets: BTreeSet<&'a str>,
    /// Of PersistentVolumeClaims.
    pub claims: BTreeSet<&'a str>,
}

impl<'a> References<'a> {
    /// What `pod` refers to in variables, volumes and pull secrets.
    pub fn of(pod: &'a Pod) -> Self {
        let mut found = Self::default();
        let Some(spec) = &pod.spec else { return found };
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let ephemeral = ephemeral.map(|container| (&container.env_from, &container.env));
        let others = spec.init_containers.iter().flatten().chain(&spec.containers);
        let others = others.map(|container| (&container.env_from, &container.env));
        for (env_from, env) in others.chain(ephemeral) {
            for source in env_from.iter().flatten() {
                found.config_maps.extend(source.config_map_ref.iter().map(|it| it.name.as_str()));
                found.secrets.extend(source.secret_ref.iter().map(|it| it.name.as_str()));
            }
            for source in env.iter().flatten().filter_map(|it| it.value_from.as_ref()) {
                let config_map = source.config_map_key_ref.iter();
                found.config_maps.extend(config_map.map(|it| it.name.as_str()));
                found.secrets.extend(source.secret_key_ref.iter().map(|it| it.name.as_str()));
            }
        }
        for volume in spec.volumes.iter().flatten() {
            found.config_maps.extend(volume.config_map.iter().map(|it| it.name.as_str()));
            let secret = volume.secret.iter().filter_map(|it| it.secret_name.as_deref());
            found.secrets.extend(secret);
            let claim = volume.persistent_volume_claim.iter();
            found.claims.extend(claim.map(|it| it.claim_name.as_str()));
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
    pub(crate) claims: BTreeMap<String, ClaimedVolume>,
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
    fn claim(&self, name: &str) -> Option<&ClaimedVolume> {
        self.claims.get(name)
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
    /// What the names of Services end in: `cluster.local`.
    pub cluster_domain: String,
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

        let refused = needs_a_cluster(&pod);

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
        assert_eq!(needs_a_cluster(&Pod::default()), []);
    }

    #[test]
    fn without_a_cluster_a_claim_and_a_gate_are_refused_too() {
        let pod = serde_json::from_value(serde_json::json!({"spec": {
            "containers": [], "readinessGates": [{"conditionType": "example.com/open"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}],
        }}));

        let refused = needs_a_cluster(&pod.expect("a pod"));

        let fields: Vec<_> = refused.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(fields, ["spec.volumes[0].persistentVolumeClaim", "spec.readinessGates"]);
    }

    #[test]
    fn a_claim_comes_to_a_folder_only_where_it_is_bound_to_one_of_its_own() {
        use serde_json::json;

        let claim = |phase: &str| {
            let claim = json!({"metadata": {"name": "data", "uid": "c1"},
                "spec": {"volumeName": "pv"}, "status": {"phase": phase}});
            serde_json::from_value::<PersistentVolumeClaim>(claim).expect("a claim")
        };
        let volume = |uid: &str, source: serde_json::Value| {
            let mut volume = json!({"metadata": {"name": "pv"}, "spec": source});
            volume["spec"]["claimRef"] = json!({"uid": uid});
            serde_json::from_value::<PersistentVolume>(volume).expect("a volume")
        };
        let folder = |path: &str, kind: &str| ClaimedVolume::Folder {
            path: path.to_owned(),
            kind: kind.to_owned(),
        };
        let host =
            volume("c1", json!({"hostPath": {"path": "/srv/a", "type": "DirectoryOrCreate"}}));
        let local = volume("c1", json!({"local": {"path": "/srv/b"}}));
        let bound = claim("Bound");

        assert_eq!(ClaimedVolume::of(&bound, Some(&host)), folder("/srv/a", "DirectoryOrCreate"));
        assert_eq!(ClaimedVolume::of(&bound, Some(&local)), folder("/srv/b", "Directory"));
        for (claim, volume, why) in [
            (claim("Pending"), None, "not bound to a volume yet"),
            (claim("Lost"), Some(host), "not bound to a volume yet"),
            (
                claim("Bound"),
                Some(volume("c2", json!({"local": {"path": "/srv/b"}}))),
                "another claim",
            ),
            (
                claim("Bound"),
                Some(volume("c1", json!({"csi": {"driver": "d", "volumeHandle": "h"}}))),
                "needs a driver",
            ),
            (
                claim("Bound"),
                Some(volume("c1", json!({"local": {"path": "/dev/sdb"}, "volumeMode": "Block"}))),
                "block device",
            ),
        ] {
            let found = ClaimedVolume::of(&claim, volume.as_ref());
            assert!(matches!(&found, ClaimedVolume::Not(said) if said.contains(why)), "{found:?}");
        }
    }
}
