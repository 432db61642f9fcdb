//! ConfigMaps, Secrets and keys that a pod names and its manifest does not hold, and tokens that nobody gives: pure.
//!
//! On a cluster they may come later; here nothing brings them, so that the pod would wait for ever. Absent: whatever is
//! marked optional, and pull secrets, without which a public image still comes.

use std::collections::{BTreeMap, BTreeSet};

use copepod_node::Refusal;
use copepod_node::objects::needs_a_cluster;
use k8s_openapi::api::core::v1::{ConfigMap, Container, KeyToPath, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The keys of each object of one kind, by namespace and name.
type Objects = BTreeMap<(String, String), BTreeSet<String>>;

/// What the manifest holds.
pub(crate) struct Held {
    config_maps: Objects,
    secrets: Objects,
}

impl Held {
    /// The names and keys of these objects.
    pub(crate) fn new(config_maps: &[ConfigMap], secrets: &[Secret]) -> Self {
        let name = |metadata: &ObjectMeta| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            (text(&metadata.namespace), text(&metadata.name))
        };
        let config_maps = config_maps.iter().map(|it| {
            let texts = it.data.iter().flatten().map(|(key, _)| key.clone());
            let blobs = it.binary_data.iter().flatten().map(|(key, _)| key.clone());
            (name(&it.metadata), texts.chain(blobs).collect())
        });
        let secrets = secrets.iter().map(|it| {
            (name(&it.metadata), it.data.iter().flatten().map(|(key, _)| key.clone()).collect())
        });
        Self { config_maps: config_maps.collect(), secrets: secrets.collect() }
    }

    /// What `pod` will wait for in vain, by the field that names it.
    pub(crate) fn missing(&self, pod: &Pod) -> Vec<Refusal> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let mut looking = Looking { held: self, namespace, missing: Vec::new() };
        let Some(spec) = &pod.spec else { return Vec::new() };
        let init = spec.init_containers.iter().flatten();
        let all = init.enumerate().map(|(index, it)| (format!("spec.initContainers[{index}]"), it));
        let main = spec.containers.iter().enumerate();
        let main = main.map(|(index, it)| (format!("spec.containers[{index}]"), it));
        for (path, container) in all.chain(main) {
            looking.container(&path, container);
        }
        for (index, volume) in spec.volumes.iter().flatten().enumerate() {
            let path = format!("spec.volumes[{index}]");
            if let Some(it) = &volume.config_map {
                let path = format!("{path}.configMap");
                looking.items(&path, Kind::ConfigMap, &it.name, it.optional, it.items.as_deref());
            }
            if let Some(it) = &volume.secret {
                let path = format!("{path}.secret");
                let name = it.secret_name.as_deref().unwrap_or_default();
                looking.items(&path, Kind::Secret, name, it.optional, it.items.as_deref());
            }
            let sources = volume.projected.iter().flat_map(|it| it.sources.iter().flatten());
            for (index, source) in sources.enumerate() {
                let path = format!("{path}.projected.sources[{index}]");
                if let Some(it) = &source.config_map {
                    let path = format!("{path}.configMap");
                    let items = it.items.as_deref();
                    looking.items(&path, Kind::ConfigMap, &it.name, it.optional, items);
                }
                if let Some(it) = &source.secret {
                    let path = format!("{path}.secret");
                    looking.items(&path, Kind::Secret, &it.name, it.optional, it.items.as_deref());
                }
            }
        }
        looking.missing.extend(needs_a_cluster(pod));
        looking.missing
    }
}

#[derive(Clone, Copy)]
enum Kind {
    ConfigMap,
    Secret,
}

struct Looking<'a> {
    held: &'a Held,
    namespace: String,
    missing: Vec<Refusal>,
}

impl Looking<'_> {
    fn container(&mut self, path: &str, container: &Container) {
        for (index, from) in container.env_from.iter().flatten().enumerate() {
            let path = format!("{path}.envFrom[{index}]");
            if let Some(it) = &from.config_map_ref {
                let path = format!("{path}.configMapRef");
                self.items(&path, Kind::ConfigMap, &it.name, it.optional, None);
            }
            if let Some(it) = &from.secret_ref {
                self.items(&format!("{path}.secretRef"), Kind::Secret, &it.name, it.optional, None);
            }
        }
        for (index, variable) in container.env.iter().flatten().enumerate() {
            let Some(from) = &variable.value_from else { continue };
            let path = format!("{path}.env[{index}].valueFrom");
            if let Some(it) = &from.config_map_key_ref {
                let path = format!("{path}.configMapKeyRef");
                self.key(&path, Kind::ConfigMap, &it.name, it.optional, &it.key);
            }
            if let Some(it) = &from.secret_key_ref {
                let path = format!("{path}.secretKeyRef");
                self.key(&path, Kind::Secret, &it.name, it.optional, &it.key);
            }
        }
    }

    fn items(
        &mut self,
        path: &str,
        kind: Kind,
        name: &str,
        optional: Option<bool>,
        items: Option<&[KeyToPath]>,
    ) {
        let Some(keys) = self.object(path, kind, name, optional) else { return };
        let absent = items.unwrap_or_default().iter().enumerate();
        let absent = absent.filter(|(_, item)| !keys.contains(&item.key));
        let refusals: Vec<_> = absent
            .map(|(index, item)| {
                no_key(format!("{path}.items[{index}].key"), kind, name, &item.key)
            })
            .collect();
        self.missing.extend(refusals);
    }

    fn key(&mut self, path: &str, kind: Kind, name: &str, optional: Option<bool>, key: &str) {
        let Some(keys) = self.object(path, kind, name, optional) else { return };
        if !keys.contains(key) {
            self.missing.push(no_key(format!("{path}.key"), kind, name, key));
        }
    }

    /// The keys of an object that has to be there; none where it may be absent, or is.
    fn object(
        &mut self,
        path: &str,
        kind: Kind,
        name: &str,
        optional: Option<bool>,
    ) -> Option<&BTreeSet<String>> {
        if optional == Some(true) {
            return None;
        }
        let (objects, word) = match kind {
            Kind::ConfigMap => (&self.held.config_maps, "ConfigMap"),
            Kind::Secret => (&self.held.secrets, "Secret"),
        };
        let found = objects.get(&(self.namespace.clone(), name.to_owned()));
        if found.is_none() {
            let namespace = &self.namespace;
            let message = format!(
                "there is no {word} {name:?} of namespace {namespace} in this manifest; without a cluster it has to be there"
            );
            self.missing.push(Refusal::new(format!("{path}.name"), message));
        }
        found
    }
}

fn no_key(field: String, kind: Kind, name: &str, key: &str) -> Refusal {
    let word = match kind {
        Kind::ConfigMap => "ConfigMap",
        Kind::Secret => "Secret",
    };
    Refusal::new(field, format!("the {word} {name:?} has no key {key:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn missing(container: Value, volumes: Value) -> Vec<String> {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "default"}, "data": {"k": "v"}});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "default"}, "data": {"k": ""}});
        let mut container = container;
        container["name"] = json!("app");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "default"},
            "spec": {"containers": [container], "volumes": volumes}});
        let held = Held::new(
            &[serde_json::from_value(map).expect("a ConfigMap")],
            &[serde_json::from_value(secret).expect("a Secret")],
        );
        let pod = serde_json::from_value(pod).expect("a pod");
        held.missing(&pod).iter().map(ToString::to_string).collect()
    }

    fn variable(source: Value) -> Value {
        json!({"env": [{"name": "A", "valueFrom": source}]})
    }

    #[test]
    fn what_is_there_or_optional_is_not_missed() {
        let none: Vec<String> = Vec::new();
        let env = |name: &str, key: &str, optional: bool| {
            variable(json!({"configMapKeyRef": {"name": name, "key": key, "optional": optional}}))
        };
        assert_eq!(missing(env("c", "k", false), json!([])), none);
        assert_eq!(missing(env("c", "x", true), json!([])), none);
        assert_eq!(missing(env("x", "x", true), json!([])), none);
        let volumes = json!([
            {"name": "a", "secret": {"secretName": "s", "items": [{"key": "k", "path": "p"}]}},
            {"name": "b", "configMap": {"name": "x", "optional": true}},
            {"name": "c", "emptyDir": {}},
        ]);
        assert_eq!(missing(json!({"envFrom": [{"secretRef": {"name": "s"}}]}), volumes), none);
    }

    #[test]
    fn what_is_not_there_is_named_with_its_field() {
        let table = [
            (
                variable(json!({"configMapKeyRef": {"name": "c", "key": "x"}})),
                json!([]),
                "spec.containers[0].env[0].valueFrom.configMapKeyRef.key: the ConfigMap \"c\" has no key \"x\"",
            ),
            (
                variable(json!({"secretKeyRef": {"name": "x", "key": "k"}})),
                json!([]),
                "spec.containers[0].env[0].valueFrom.secretKeyRef.name: there is no Secret \"x\" of namespace default",
            ),
            (
                json!({"envFrom": [{"configMapRef": {"name": "x"}}]}),
                json!([]),
                "spec.containers[0].envFrom[0].configMapRef.name: there is no ConfigMap \"x\"",
            ),
            (
                json!({}),
                json!([{"name": "v", "configMap": {"name": "c", "items": [{"key": "k", "path": "p"}, {"key": "x", "path": "q"}]}}]),
                "spec.volumes[0].configMap.items[1].key: the ConfigMap \"c\" has no key \"x\"",
            ),
            (
                json!({}),
                json!([{"name": "v", "projected": {"sources": [{"secret": {"name": "x"}}]}}]),
                "spec.volumes[0].projected.sources[0].secret.name: there is no Secret \"x\"",
            ),
            (
                json!({}),
                json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]),
                "spec.volumes[0].projected.sources[0].serviceAccountToken: a token needs a cluster's API server",
            ),
        ];
        for (container, volumes, expected) in table {
            let missing = missing(container, volumes);
            assert_eq!(missing.len(), 1, "{missing:?}");
            assert!(missing[0].starts_with(expected), "{missing:?}");
        }
    }
}
