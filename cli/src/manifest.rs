//! From a manifest's text to the pods that it asks for: pure, and strict with lines.
//!
//! Start at [`read`]. Here: which kinds are run, which are left, names and namespaces, and where in the text a field stands.
//! Absent: reading files, and judging whether a pod can run here (the pod's core does, and [`ManifestPod::line_of`] finds the line).

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodTemplateSpec, ReplicationController, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

mod quantity;
pub(crate) mod tree;
mod typed;

pub(crate) use quantity::is_quantity;
pub(crate) use typed::closest;

use tree::{Node, Value};
use typed::Fault;

/// The largest manifest read. What reaches the agent fits a frame of 4 MiB; comments and base64 are on top of that.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

/// The most bytes that a ConfigMap or Secret may hold: Kubernetes' own limit.
const MAX_OBJECT_BYTES: usize = 1 << 20;

/// What one or more files ask for.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    /// The pods, in the order of the text.
    pub(crate) pods: Vec<ManifestPod>,
    /// The ConfigMaps.
    pub(crate) config_maps: Vec<ConfigMap>,
    /// The Secrets, `stringData` already in `data`.
    pub(crate) secrets: Vec<Secret>,
    /// What was left out or understood in another way than on a cluster, a sentence each.
    pub(crate) notes: Vec<String>,
}

/// A pod, and where its fields stand.
#[derive(Debug)]
pub(crate) struct ManifestPod {
    /// The pod, with name and namespace set.
    pub(crate) pod: Pod,
    /// The file that it comes from.
    file: String,
    /// The whole object that it comes from.
    object: Node,
    /// The path of the pod within that object: empty, or `spec.template` and the like.
    within: &'static [&'static str],
}

impl ManifestPod {
    /// Where `field` (as `spec.containers[0].image`) stands, or the nearest thing around it that is written.
    pub(crate) fn line_of(&self, field: &str) -> Place<'_> {
        Place { file: &self.file, line: line_in(&self.object, self.within, field) }
    }

    /// The field's path in the file: a template's fields lie deeper than the pod's.
    pub(crate) fn path_of(&self, field: &str) -> String {
        self.within.iter().copied().chain([field]).collect::<Vec<_>>().join(".")
    }
}

fn line_in(object: &Node, within: &[&str], field: &str) -> usize {
    let mut node = object;
    let mut line = node.line;
    for step in within.iter().map(|s| (*s).to_owned()).chain(steps(field)) {
        let next = match &node.value {
            Value::Map(entries) => {
                entries.iter().find(|(key, _)| key.text == step).map(|(key, node)| (key.line, node))
            }
            Value::List(elements) => step
                .parse::<usize>()
                .ok()
                .and_then(|index| elements.get(index))
                .map(|node| (node.line, node)),
            Value::Scalar(_) => None,
        };
        let Some((at, inner)) = next else { break };
        (line, node) = (at, inner);
    }
    line
}

/// `spec.containers[0].env["a.b"]` in its steps.
fn steps(field: &str) -> Vec<String> {
    let mut steps = Vec::new();
    let mut step = String::new();
    let mut brackets = 0;
    for c in field.chars() {
        match c {
            '.' if brackets == 0 => steps.push(std::mem::take(&mut step)),
            '[' => {
                brackets += 1;
                steps.push(std::mem::take(&mut step));
            }
            ']' => brackets -= 1,
            '"' if brackets > 0 => {}
            c => step.push(c),
        }
    }
    steps.push(step);
    steps.retain(|step| !step.is_empty());
    steps
}

/// A place in a manifest; shown as `file:line`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    /// The file's name as it was given.
    pub(crate) file: &'a str,
    /// The line, counted from 1.
    pub(crate) line: usize,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// The first thing that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{fault}", fault = At(.fault))]
pub(crate) struct BadManifest {
    file: String,
    fault: Fault,
}

struct At<'a>(&'a Fault);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.line.max(1), self.0)
    }
}

/// What the caller decides about a manifest.
pub(crate) struct Options<'a> {
    /// The namespace of objects that name none; with `forced`, the only one allowed.
    pub(crate) namespace: &'a str,
    /// The namespace was asked for by the user.
    pub(crate) forced: bool,
    /// Five characters that complete a `generateName`; new ones each time.
    pub(crate) suffix: &'a mut dyn FnMut() -> String,
}

/// Reads one file's text into `manifest`.
///
/// # Errors
/// The first thing that is wrong, in the order of the text.
pub(crate) fn read(
    file: &str,
    text: &str,
    options: &mut Options<'_>,
    manifest: &mut Manifest,
) -> Result<(), BadManifest> {
    let bad = |fault| BadManifest { file: file.to_owned(), fault };
    let documents = tree::documents(text)
        .map_err(|malformed| bad(Fault::new(malformed.line, "", malformed.message)))?;
    if documents.is_empty() {
        return Err(bad(Fault::new(1, "", "there is no object in this manifest")));
    }
    let mut reading = Reading { file, options, manifest, seen: BTreeMap::new() };
    for document in documents {
        reading.object(document, "").map_err(bad)?;
    }
    Ok(())
}

/// Where each kind's pod lies, and how it is called on this machine.
const TEMPLATE: &[&str] = &["spec", "template"];
const CRON_TEMPLATE: &[&str] = &["spec", "jobTemplate", "spec", "template"];

/// The kinds that are run or read, with the group and version that they are written in.
const KINDS: &[(&str, &str)] = &[
    ("Pod", "v1"),
    ("ConfigMap", "v1"),
    ("Secret", "v1"),
    ("List", "v1"),
    ("ReplicationController", "v1"),
    ("Deployment", "apps/v1"),
    ("ReplicaSet", "apps/v1"),
    ("StatefulSet", "apps/v1"),
    ("DaemonSet", "apps/v1"),
    ("Job", "batch/v1"),
    ("CronJob", "batch/v1"),
];

struct Reading<'a, 'o> {
    file: &'a str,
    options: &'a mut Options<'o>,
    manifest: &'a mut Manifest,
    /// The line of each object so far, by kind, namespace and name.
    seen: BTreeMap<(&'static str, String, String), usize>,
}

impl Reading<'_, '_> {
    fn object(&mut self, object: Node, list: &str) -> Result<(), Fault> {
        if !matches!(object.value, Value::Map(_)) {
            let found = object.describe();
            let message = format!("expected an object with apiVersion and kind, found {found}");
            return Err(Fault::new(object.line, list, message));
        }
        let kind = head(&object, "kind")?;
        let version = head(&object, "apiVersion")?;
        let Some((known, wanted)) = KINDS.iter().find(|(known, _)| *known == kind) else {
            return self.leave(&object, &kind, &version);
        };
        if version != *wanted {
            // Another project's resource may bear the same kind.
            let group = version.split_once('/').map_or("", |(group, _)| group);
            if !["", "apps", "batch", "extensions"].contains(&group) {
                return self.leave(&object, &kind, &version);
            }
            let line = object.get("apiVersion").map_or(object.line, |node| node.line);
            let message = format!("a {kind} is written in {wanted}, found {version}");
            return Err(Fault::new(line, "apiVersion", message));
        }
        match *known {
            "List" => {
                let items = object.get("items").map_or(&[][..], Node::elements);
                for (index, item) in items.iter().enumerate() {
                    self.object(item.clone(), &format!("items[{index}]"))?;
                }
                Ok(())
            }
            "Pod" => {
                let pod: Pod = typed::read(&object)?;
                self.pod("Pod", pod, object, &[])
            }
            "ConfigMap" => self.config_map(object),
            "Secret" => self.secret(object),
            "Deployment" => {
                let it: Deployment = typed::read(&object)?;
                let template = Some(it.spec.template);
                self.template("Deployment", it.metadata, template, object, TEMPLATE)
            }
            "ReplicaSet" => {
                let it: ReplicaSet = typed::read(&object)?;
                let template = it.spec.template;
                self.template("ReplicaSet", it.metadata, template, object, TEMPLATE)
            }
            "ReplicationController" => {
                let it: ReplicationController = typed::read(&object)?;
                let template = it.spec.and_then(|spec| spec.template);
                self.template("ReplicationController", it.metadata, template, object, TEMPLATE)
            }
            "DaemonSet" => {
                let it: DaemonSet = typed::read(&object)?;
                let template = Some(it.spec.template);
                self.template("DaemonSet", it.metadata, template, object, TEMPLATE)
            }
            "StatefulSet" => {
                let it: StatefulSet = typed::read(&object)?;
                if let Some(claims) = object.get("spec").and_then(|s| s.get("volumeClaimTemplates"))
                    && !claims.elements().is_empty()
                {
                    return Err(Fault::new(
                        claims.line,
                        "spec.volumeClaimTemplates",
                        "needs a cluster with storage; use a hostPath or emptyDir volume in the template here",
                    ));
                }
                let template = Some(it.spec.template);
                self.template("StatefulSet", it.metadata, template, object, TEMPLATE)
            }
            "Job" => {
                let it: Job = typed::read(&object)?;
                let template = it.spec.map(|spec| spec.template);
                self.job("Job", it.metadata, template, object, TEMPLATE)
            }
            _ => {
                let it: CronJob = typed::read(&object)?;
                let template = it.spec.job_template.spec.map(|job| job.template);
                self.job("CronJob", it.metadata, template, object, CRON_TEMPLATE)
            }
        }
    }

    fn leave(&mut self, object: &Node, kind: &str, version: &str) -> Result<(), Fault> {
        let known: Vec<_> = KINDS.iter().map(|(known, _)| *known).collect();
        let is_ours = KINDS.iter().any(|(_, ours)| *ours == version);
        // `Deploymnet` is a slip and no kind of somebody else's; `Service` resembles nothing that we run.
        if let Some(guess) = closest(kind, &known).filter(|_| is_ours) {
            let line = object.get("kind").map_or(object.line, |node| node.line);
            let message = format!("there is no kind {kind} in {version}; did you mean {guess}?");
            return Err(Fault::new(line, "kind", message));
        }
        let name = object
            .get("metadata")
            .and_then(|metadata| metadata.get("name"))
            .and_then(Node::text)
            .unwrap_or("without a name");
        let (file, line) = (self.file, object.line);
        let what = "left out, because it means nothing without a cluster";
        self.manifest.notes.push(format!("{file}:{line}: {kind} {name}: {what}"));
        Ok(())
    }

    fn job(
        &mut self,
        kind: &'static str,
        metadata: ObjectMeta,
        template: Option<PodTemplateSpec>,
        object: Node,
        within: &'static [&'static str],
    ) -> Result<(), Fault> {
        let policy = template.as_ref().and_then(|t| t.spec.as_ref()?.restart_policy.clone());
        if !matches!(policy.as_deref(), Some("Never" | "OnFailure")) {
            let path = format!("{}.spec.restartPolicy", within.join("."));
            let line = line_in(&object, within, "spec.restartPolicy");
            return Err(Fault::new(
                line,
                path,
                format!("has to be Never or OnFailure in a {kind}"),
            ));
        }
        self.template(kind, metadata, template, object, within)
    }

    fn template(
        &mut self,
        kind: &'static str,
        metadata: ObjectMeta,
        template: Option<PodTemplateSpec>,
        object: Node,
        within: &'static [&'static str],
    ) -> Result<(), Fault> {
        let (owner, namespace) = self.name(kind, &metadata, &object)?;
        let template = template.unwrap_or_default();
        let mut of_pod = template.metadata.unwrap_or_default();
        of_pod.name =
            Some(if kind == "StatefulSet" { format!("{owner}-0") } else { owner.clone() });
        of_pod.namespace = Some(namespace);
        of_pod.generate_name = None;
        let pod = Pod { metadata: of_pod, spec: template.spec, status: None };
        let (file, line) = (self.file, object.line);
        let left = match kind {
            "Job" => "completions, parallelism and retries need a cluster",
            "CronJob" => "its schedule needs a cluster",
            "DaemonSet" => "there is one node",
            _ => "replicas and rollouts need a cluster",
        };
        self.manifest
            .notes
            .push(format!("{file}:{line}: {kind} {owner}: its pod runs once ({left})"));
        self.pod("Pod", pod, object, within)
    }

    fn pod(
        &mut self,
        kind: &'static str,
        mut pod: Pod,
        object: Node,
        within: &'static [&'static str],
    ) -> Result<(), Fault> {
        let (name, namespace) = self.name(kind, &pod.metadata, &object)?;
        pod.metadata.name = Some(name);
        pod.metadata.namespace = Some(namespace);
        // Facts about another life of the pod, as `kubectl get -o yaml` prints them.
        pod.metadata.uid = None;
        pod.metadata.resource_version = None;
        pod.metadata.creation_timestamp = None;
        pod.metadata.managed_fields = None;
        pod.metadata.generation = None;
        pod.status = None;
        let file = self.file.to_owned();
        let pod = ManifestPod { pod, file, object, within };
        if pod.pod.spec.as_ref().is_none_or(|spec| spec.containers.is_empty()) {
            let field = "spec.containers";
            let line = line_in(&pod.object, pod.within, field);
            return Err(Fault::new(line, pod.path_of(field), "a pod needs a container"));
        }
        self.manifest.pods.push(pod);
        Ok(())
    }

    fn config_map(&mut self, object: Node) -> Result<(), Fault> {
        let mut it: ConfigMap = typed::read(&object)?;
        let (name, namespace) = self.name("ConfigMap", &it.metadata, &object)?;
        (it.metadata.name, it.metadata.namespace) = (Some(name), Some(namespace));
        let texts = it.data.iter().flatten().map(|(key, text)| (key, text.len()));
        let blobs = it.binary_data.iter().flatten().map(|(key, blob)| (key, blob.0.len()));
        keys_fit(&object, &["data", "binaryData"], texts.chain(blobs))?;
        if let (Some(data), Some(binary)) = (&it.data, &it.binary_data)
            && let Some(key) = data.keys().find(|key| binary.contains_key(*key))
        {
            let line = entry_line(&object, "binaryData", key);
            let message = format!("{key} is in data already");
            return Err(Fault::new(line, "binaryData", message));
        }
        self.manifest.config_maps.push(it);
        Ok(())
    }

    fn secret(&mut self, mut object: Node) -> Result<(), Fault> {
        without_line_breaks(&mut object, "data");
        let mut it: Secret = typed::read(&object).map_err(|fault| {
            if !fault.path.starts_with("data") || fault.message.starts_with("expected") {
                return fault;
            }
            let message =
                format!("this is not base64 ({}); plain text goes into stringData", fault.message);
            Fault { message, ..fault }
        })?;
        let (name, namespace) = self.name("Secret", &it.metadata, &object)?;
        (it.metadata.name, it.metadata.namespace) = (Some(name), Some(namespace));
        let mut data = it.data.take().unwrap_or_default();
        for (key, text) in it.string_data.take().unwrap_or_default() {
            data.insert(key, k8s_openapi::ByteString(text.into_bytes()));
        }
        let sizes = data.iter().map(|(key, value)| (key, value.0.len()));
        keys_fit(&object, &["data", "stringData"], sizes)?;
        it.data = Some(data);
        self.manifest.secrets.push(it);
        Ok(())
    }

    /// Name and namespace of an object, both checked, and unique among its kind.
    fn name(
        &mut self,
        kind: &'static str,
        metadata: &ObjectMeta,
        object: &Node,
    ) -> Result<(String, String), Fault> {
        let written = object.get("metadata");
        let line = |key: &str| {
            written
                .and_then(|node| node.get(key).map(|node| node.line).or(Some(node.line)))
                .unwrap_or(object.line)
        };
        let name = match (&metadata.name, &metadata.generate_name) {
            (Some(name), _) if !name.is_empty() => name.clone(),
            (_, Some(prefix)) if !prefix.is_empty() => {
                format!("{prefix}{}", (self.options.suffix)())
            }
            _ => return Err(Fault::new(line("name"), "metadata.name", "is missing")),
        };
        if !is_subdomain(&name) {
            let message = format!(
                "{name:?} is no name: lower case letters, digits, - and . only, a letter or digit at both ends, at most 253"
            );
            return Err(Fault::new(line("name"), "metadata.name", message));
        }
        let namespace = match metadata.namespace.as_deref() {
            None | Some("") => self.options.namespace.to_owned(),
            Some(own) if self.options.forced && own != self.options.namespace => {
                let asked = self.options.namespace;
                let message = format!("is {own}, but -n {asked} was given");
                return Err(Fault::new(line("namespace"), "metadata.namespace", message));
            }
            Some(own) => own.to_owned(),
        };
        if !is_label(&namespace) {
            let message = format!(
                "{namespace:?} is no namespace: lower case letters, digits and - only, a letter or digit at both ends, at most 63"
            );
            return Err(Fault::new(line("namespace"), "metadata.namespace", message));
        }
        let key = (kind, namespace.clone(), name.clone());
        if let Some(first) = self.seen.insert(key, object.line) {
            let message = format!("{kind} {namespace}/{name} is already defined in line {first}");
            return Err(Fault::new(line("name"), "metadata.name", message));
        }
        Ok((name, namespace))
    }
}

/// `kind` or `apiVersion`.
fn head(object: &Node, key: &str) -> Result<String, Fault> {
    let Some(node) = object.get(key).filter(|node| !node.is_null()) else {
        let known: Vec<_> = object.entries().iter().map(|(key, _)| key.text.as_str()).collect();
        let hint = match closest(key, &known) {
            Some(slip) => format!("is missing; is {slip} a slip?"),
            None => "is missing".to_owned(),
        };
        return Err(Fault::new(object.line, key, hint));
    };
    match node.text() {
        Some(text) => Ok(text.to_owned()),
        None => {
            let message = format!("expected a string, found {}", node.describe());
            Err(Fault::new(node.line, key, message))
        }
    }
}

/// Base64 in a block scalar has line breaks, which Kubernetes skips.
fn without_line_breaks(object: &mut Node, field: &str) {
    let Value::Map(entries) = &mut object.value else { return };
    let Some((_, data)) = entries.iter_mut().find(|(key, _)| key.text == field) else { return };
    let Value::Map(values) = &mut data.value else { return };
    for (_, value) in values {
        if let Value::Scalar(scalar) = &mut value.value {
            scalar.text.retain(|c| c != '\n' && c != '\r');
        }
    }
}

fn entry_line(object: &Node, field: &str, key: &str) -> usize {
    let found = object.get(field).and_then(|node| {
        node.entries().iter().find(|(k, _)| k.text == key).map(|(key, _)| key.line)
    });
    found.unwrap_or(object.line)
}

/// Keys are file names, and all values together are at most what Kubernetes stores.
fn keys_fit<'k>(
    object: &Node,
    fields: &[&str],
    entries: impl Iterator<Item = (&'k String, usize)>,
) -> Result<(), Fault> {
    let mut total = 0;
    for (key, size) in entries {
        total += size;
        let good = !key.is_empty()
            && key.len() <= 253
            && key != "."
            && !key.starts_with("..")
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !good {
            let lines = fields.iter().map(|field| entry_line(object, field, key));
            let line = lines.max().unwrap_or(object.line);
            let message = format!("{key:?} is no key: letters, digits, -, _ and . only");
            return Err(Fault::new(line, fields[0], message));
        }
    }
    if total > MAX_OBJECT_BYTES {
        let message = format!("{total} bytes, where at most {MAX_OBJECT_BYTES} are allowed");
        return Err(Fault::new(object.line, fields[0], message));
    }
    Ok(())
}

/// An RFC 1123 label.
pub(crate) fn is_label(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.len() <= 63
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// An RFC 1123 subdomain: labels joined by dots (each may be longer than 63 here, as Kubernetes has it).
pub(crate) fn is_subdomain(text: &str) -> bool {
    let part = |part: &str| {
        let bytes = part.as_bytes();
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

#[cfg(test)]
mod tests;
