//! What a container is started with: arguments and environment, from the pod, what it refers to, and the image.
//!
//! Start at [`process`]. Absent: fetching ConfigMaps and Secrets ([`crate::objects`]), `fileKeyRef` (refused), and the
//! image's user, which means nothing to a guest.

pub(crate) mod refs;
mod services;
mod substitute;

use std::{borrow::Cow, collections::HashMap, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod};

pub use self::services::service_variables;
use self::substitute::substitute;
use crate::containers;
use crate::objects::{NodeFacts, Objects, config_map_bytes, secret_bytes, secret_entries};

/// Most bytes of a container's environment and arguments together: half of what Linux grants a process by default.
pub const MOST_BYTES: usize = 1 << 20;
/// What runtimes set where neither pod nor image does.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// argv; never empty.
    pub args: Vec<String>,
    /// The environment; names are unique.
    pub env: Vec<(String, String)>,
    /// The working directory, `/` where nobody says anything.
    pub working_dir: String,
}

/// What an image says about its process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `ENTRYPOINT`, replaced by the container's `command`.
    pub entrypoint: Vec<String>,
    /// `CMD`, replaced by the container's `args`.
    pub cmd: Vec<String>,
    /// `ENV`, each `NAME=value`; the pod's variables win.
    pub env: Vec<String>,
    /// `WORKDIR`.
    pub working_dir: Option<String>,
    /// argv[0] where neither pod nor image names one: the module's name.
    pub module: String,
}

/// What a process may refer to, beside its own pod.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// ConfigMaps and Secrets.
    pub objects: &'a dyn Objects,
    /// The node.
    pub node: &'a NodeFacts,
    /// `status.podIPs`.
    pub pod_ips: &'a [IpAddr],
    /// The variables of Services, which the pod's own override.
    pub services: &'a [(String, String)],
}

/// A container that cannot be started as its pod is configured: `CreateContainerConfigError`. Another try may go better,
/// as what is missing may come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct ConfigError {
    /// The field's path.
    pub field: String,
    /// What is missing or wrong.
    pub message: String,
}

impl ConfigError {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// Makes arguments and environment of the named container.
pub fn process(
    pod: &Pod,
    container: &str,
    image: &ImageConfig,
    context: &Context<'_>,
) -> Result<Process, ConfigError> {
    let (path, container) = find_container(pod, container)?;
    let container = &*container;
    let own = variables(pod, container, &path, context)?;

    let expand = |texts: &Option<Vec<String>>| -> Vec<String> {
        let expanded = texts.iter().flatten().map(|text| substitute(text, |name| own.get(name)));
        expanded.collect()
    };
    let (command, args) = (expand(&container.command), expand(&container.args));
    // A CMD without an ENTRYPOINT names the program itself; `args` never do.
    let named = !command.is_empty()
        || !image.entrypoint.is_empty()
        || (args.is_empty() && !image.cmd.is_empty());
    let mut argv = match (command.is_empty(), args.is_empty()) {
        (false, _) => [command, args].concat(),
        (true, false) => [image.entrypoint.clone(), args].concat(),
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
    };
    if !named {
        argv.insert(0, image.module.clone());
    }

    let mut env = Variables::default();
    env.set("PATH", PATH.to_owned());
    env.set("HOSTNAME", HostNames::of(pod, &context.node.cluster_domain).own);
    for variable in &image.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        env.set(name, value.to_owned());
    }
    own.list.into_iter().for_each(|(name, value)| env.set(&name, value));
    let given = |folder: &Option<String>| folder.clone().filter(|folder| !folder.is_empty());
    let working_dir = given(&container.working_dir).or_else(|| given(&image.working_dir));
    let working_dir = working_dir.unwrap_or_else(|| "/".to_owned());
    // Preview1 knows no working directory; Go's programs and our toolbox begin where this says.
    if working_dir != "/" && env.get("PWD").is_none() {
        env.set("PWD", working_dir.clone());
    }

    let process = Process { args: argv, env: env.list, working_dir };
    check_bounds(&process, &path)?;
    Ok(process)
}

/// What a pod is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostNames {
    /// What it calls itself: its host name.
    pub own: String,
    /// All names that lead to its own address, the longest first.
    pub all: Vec<String>,
}

/// Linux has no room for a longer host name.
const MAX_HOST_NAME: usize = 64;

impl HostNames {
    /// As a kubelet names it. A pod with a subdomain has a whole name in the domain of its Services, which the Service of that name answers
    /// for; with `setHostnameAsFQDN` it calls itself so.
    pub fn of(pod: &Pod, cluster_domain: &str) -> Self {
        let short = hostname(pod);
        let Some(spec) = &pod.spec else { return Self { own: short.clone(), all: vec![short] } };
        let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        let (None, Some(subdomain)) = (given(&spec.hostname_override), given(&spec.subdomain))
        else {
            return Self { own: short.clone(), all: vec![short] };
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let whole = format!("{short}.{subdomain}.{namespace}.svc.{cluster_domain}");
        let calls_itself_so = spec.set_hostname_as_fqdn == Some(true);
        let own = if calls_itself_so { whole.clone() } else { short.clone() };
        Self { own, all: vec![whole, short] }
    }

    /// What is wrong with the name that it calls itself; another one may be had by a change of the pod or of its namespace's name alone.
    pub fn trouble(&self) -> Option<String> {
        (self.own.len() > MAX_HOST_NAME).then(|| {
            format!(
                "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {} is too long ({MAX_HOST_NAME} characters is the max, \
                 {} characters requested)",
                self.own,
                self.own.len()
            )
        })
    }
}

/// The pod's short host name: `spec.hostnameOverride`, else `spec.hostname`, else its name, cut to the 63 bytes of a label.
fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let whole = spec.and_then(|spec| spec.hostname_override.as_ref());
    if let Some(name) = whole.filter(|name| !name.is_empty()) {
        return name.clone();
    }
    let given = spec.and_then(|spec| spec.hostname.as_deref()).filter(|name| !name.is_empty());
    let name = given.or(pod.metadata.name.as_deref()).unwrap_or_default();
    name[..name.floor_char_boundary(63)].trim_end_matches(['-', '.']).to_owned()
}

/// A probe's command with the variables whose values stand in the spec; others stay as written, as under a kubelet.
pub(crate) fn with_static_variables(command: &[String], env: &[EnvVar]) -> Vec<String> {
    let mut known = Variables::default();
    for variable in env.iter().filter(|variable| variable.value_from.is_none()) {
        let value = variable.value.as_deref().unwrap_or_default();
        let value = substitute(value, |name| known.get(name));
        known.set(&variable.name, value);
    }
    command.iter().map(|text| substitute(text, |name| known.get(name))).collect()
}

/// A text with all its variables; one that is not there is an error.
pub(crate) fn substitute_all(text: &str, env: &[(String, String)]) -> Result<String, String> {
    let missing = std::cell::RefCell::new(None);
    let result = substitute(text, |name| {
        let found = env.iter().find(|(known, _)| known == name);
        if found.is_none() {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        found.map(|(_, value)| value.as_str())
    });
    match missing.into_inner() {
        Some(name) => Err(format!("there is no variable {name:?}")),
        None => Ok(result),
    }
}

/// The container and its path.
pub(crate) fn find_container<'a>(
    pod: &'a Pod,
    name: &str,
) -> Result<(String, Cow<'a, Container>), ConfigError> {
    let found = containers::find(pod, name).ok_or_else(|| {
        ConfigError::new("spec.containers", format!("there is no container {name:?}"))
    })?;
    Ok((found.path(), found.container))
}

/// Variables in the order of their first setting; a later value replaces an earlier one.
#[derive(Debug, Default)]
struct Variables {
    list: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        match self.index.get(name) {
            Some(&i) => self.list[i].1 = value,
            None => {
                self.index.insert(name.to_owned(), self.list.len());
                self.list.push((name.to_owned(), value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|&i| self.list[i].1.as_str())
    }
}

/// The pod's own variables: Services', then `envFrom`, then `env`; later ones win and see earlier ones.
fn variables(
    pod: &Pod,
    container: &Container,
    path: &str,
    context: &Context<'_>,
) -> Result<Variables, ConfigError> {
    let mut variables = Variables::default();
    for (name, value) in context.services {
        variables.set(name, value.clone());
    }
    for (i, source) in container.env_from.iter().flatten().enumerate() {
        let path = format!("{path}.envFrom[{i}]");
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            let path = format!("{path}.configMapRef");
            let found = context.objects.config_map(&reference.name);
            let optional = reference.optional == Some(true);
            if let Some(map) = required(found, optional, "ConfigMap", &reference.name, &path)? {
                for (key, value) in map.data.iter().flatten() {
                    variables.set(&format!("{prefix}{key}"), value.clone());
                }
            }
        }
        if let Some(reference) = &source.secret_ref {
            let path = format!("{path}.secretRef");
            let found = context.objects.secret(&reference.name);
            let optional = reference.optional == Some(true);
            if let Some(secret) = required(found, optional, "Secret", &reference.name, &path)? {
                for (key, value) in secret_entries(secret) {
                    variables.set(&format!("{prefix}{key}"), text(value, key, &path)?);
                }
            }
        }
    }
    for (i, variable) in container.env.iter().flatten().enumerate() {
        let path = format!("{path}.env[{i}]");
        let value = match &variable.value_from {
            None => {
                let value = variable.value.as_deref().unwrap_or_default();
                Some(substitute(value, |name| variables.get(name)))
            }
            Some(source) => {
                let path = format!("{path}.valueFrom");
                value_from(source, pod, container, &path, context)?
            }
        };
        if let Some(value) = value {
            variables.set(&variable.name, value);
        }
    }
    Ok(variables)
}

/// `None` where an optional key is missing: then there is no variable.
fn value_from(
    source: &EnvVarSource,
    pod: &Pod,
    container: &Container,
    path: &str,
    context: &Context<'_>,
) -> Result<Option<String>, ConfigError> {
    if let Some(reference) = &source.config_map_key_ref {
        let path = format!("{path}.configMapKeyRef");
        let optional = reference.optional == Some(true);
        let (kind, name, key) = ("ConfigMap", &reference.name, &reference.key);
        let found = required(context.objects.config_map(name), optional, kind, name, &path)?;
        let Some(map) = found else { return Ok(None) };
        let bytes = required_key(config_map_bytes(map, key), optional, kind, name, key, &path)?;
        return bytes.map(|bytes| text(bytes, key, &path)).transpose();
    }
    if let Some(reference) = &source.secret_key_ref {
        let path = format!("{path}.secretKeyRef");
        let optional = reference.optional == Some(true);
        let (kind, name, key) = ("Secret", &reference.name, &reference.key);
        let found = required(context.objects.secret(name), optional, kind, name, &path)?;
        let Some(secret) = found else { return Ok(None) };
        let bytes = required_key(secret_bytes(secret, key), optional, kind, name, key, &path)?;
        return bytes.map(|bytes| text(bytes, key, &path)).transpose();
    }
    if let Some(field) = &source.field_ref {
        let path = format!("{path}.fieldRef.fieldPath");
        return refs::field(pod, &field.field_path, context)
            .map(Some)
            .map_err(|message| ConfigError::new(path, message));
    }
    if let Some(resource) = &source.resource_field_ref {
        let path = format!("{path}.resourceFieldRef");
        return refs::resource(pod, Some(container), resource, context)
            .map(Some)
            .map_err(|message| ConfigError::new(path, message));
    }
    Err(ConfigError::new(
        path,
        "write one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef",
    ))
}

fn required<'a, T>(
    found: Option<&'a T>,
    optional: bool,
    kind: &str,
    name: &str,
    path: &str,
) -> Result<Option<&'a T>, ConfigError> {
    match found {
        None if !optional => Err(ConfigError::new(
            format!("{path}.name"),
            format!("there is no {kind} {name:?} in the pod's namespace"),
        )),
        found => Ok(found),
    }
}

fn required_key<'a>(
    found: Option<&'a [u8]>,
    optional: bool,
    kind: &str,
    name: &str,
    key: &str,
    path: &str,
) -> Result<Option<&'a [u8]>, ConfigError> {
    match found {
        None if !optional => Err(ConfigError::new(
            format!("{path}.key"),
            format!("the {kind} {name:?} has no key {key:?}"),
        )),
        found => Ok(found),
    }
}

fn text(bytes: &[u8], key: &str, path: &str) -> Result<String, ConfigError> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    text.map(str::to_owned).ok_or_else(|| {
        let message = format!("the value of {key:?} is no text; mount it as a file instead");
        ConfigError::new(path, message)
    })
}

fn check_bounds(process: &Process, path: &str) -> Result<(), ConfigError> {
    let env = process.env.iter().map(|(name, value)| name.len() + value.len() + 2);
    let bytes: usize = env.chain(process.args.iter().map(|arg| arg.len() + 1)).sum();
    if bytes > MOST_BYTES {
        let message = format!("environment and arguments take {bytes} bytes; at most {MOST_BYTES}");
        return Err(ConfigError::new(format!("{path}.env"), message));
    }
    let named = |text: &str| text.contains('\0');
    if process.args.iter().any(|arg| named(arg)) {
        return Err(ConfigError::new(format!("{path}.args"), "an argument holds a NUL character"));
    }
    if process.env.iter().any(|(name, value)| named(name) || named(value)) {
        return Err(ConfigError::new(format!("{path}.env"), "a variable holds a NUL character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
