//! Which files a pod's volumes hold, and which of them each container sees where.
//!
//! Start at [`plan`] (once per pod, and again when a ConfigMap or Secret changes) and [`mounts`] (once per start).
//! Absent: writing and mounting anything, following a link (the agent resolves beneath and without links), and the volumes
//! that `fields` refuses.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{KeyToPath, Pod, Volume};

use crate::{
    env::{ConfigError, find_container, substitute_all},
    objects::{Objects, config_map_entries, secret_entries},
    quantity::Amount,
};

/// Most bytes of one ConfigMap or Secret volume; what an API server lets an object hold.
const MOST_BYTES: usize = 1 << 20;
/// Most files of one such volume: beyond any that fits an API server's limit with sensible names.
const MOST_FILES: usize = 10_000;

/// A volume as it is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedVolume {
    /// Its name, unique in the pod: a DNS label.
    pub name: String,
    /// What is in it.
    pub content: Content,
}

/// What is in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// An empty folder, which lives as long as the pod.
    EmptyDir {
        /// In memory; else on the node's disk.
        memory: bool,
        /// Most bytes in it; none: no limit of its own.
        size_limit: Option<u64>,
    },
    /// These files, written whole by the agent and never by a guest.
    Files {
        /// In the order of their paths.
        files: Vec<PlannedFile>,
        /// They are kept in memory and not on disk.
        secret: bool,
    },
    /// A folder of the host.
    HostPath {
        /// Absolute, without `..`; any component may be a link, which the agent does not follow.
        path: String,
        /// Make it (0755) where it is missing.
        create: bool,
        /// It must be a folder; else (no type given) it is taken as it is.
        checked: bool,
    },
}

/// A file of a ConfigMap or Secret volume.
#[derive(Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Relative, without `.` or `..`.
    pub path: String,
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Its permission bits, at most 0777.
    pub mode: u32,
}

impl std::fmt::Debug for PlannedFile {
    /// Without the bytes, which may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes, {:o})", self.path, self.bytes.len(), self.mode)
    }
}

/// A volume in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMount {
    /// Where the guest sees it: absolute and normalised.
    pub path: String,
    /// The volume's name.
    pub volume: String,
    /// The folder or file in the volume: relative and normalised; none: the whole volume.
    pub sub_path: Option<String>,
    /// The guest may not write: the spec says so, or the agent alone writes this volume.
    pub read_only: bool,
}

/// The pod's volumes in spec order. An error (`FailedMount`) may pass, as what is missing may come.
pub fn plan(pod: &Pod, objects: &dyn Objects) -> Result<Vec<PlannedVolume>, ConfigError> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let planned = volumes.enumerate().map(|(i, volume)| {
        let path = format!("spec.volumes[{i}]");
        Ok(PlannedVolume { name: volume.name.clone(), content: content(volume, &path, objects)? })
    });
    planned.collect()
}

/// The files of the pod's volume number `index`; none where it is of another kind. Errors as of [`plan`].
pub fn files_of(
    pod: &Pod,
    index: usize,
    objects: &dyn Objects,
) -> Result<Vec<PlannedFile>, ConfigError> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let Some(volume) = volumes.get(index) else { return Ok(Vec::new()) };
    match content(volume, &format!("spec.volumes[{index}]"), objects)? {
        Content::Files { files, .. } => Ok(files),
        Content::EmptyDir { .. } | Content::HostPath { .. } => Ok(Vec::new()),
    }
}

fn content(volume: &Volume, path: &str, objects: &dyn Objects) -> Result<Content, ConfigError> {
    if let Some(empty) = &volume.empty_dir {
        let limit = empty.size_limit.as_ref().map(Amount::parse).transpose();
        let limit = limit
            .map_err(|e| ConfigError::new(format!("{path}.emptyDir.sizeLimit"), e.to_string()))?;
        return Ok(Content::EmptyDir {
            memory: empty.medium.as_deref() == Some("Memory"),
            // As a kubelet: a limit of zero is none.
            size_limit: limit.map(Amount::ceil).filter(|&limit| limit != 0),
        });
    }
    if let Some(source) = &volume.config_map {
        let path = format!("{path}.configMap");
        let found = objects.config_map(&source.name);
        let optional = source.optional == Some(true);
        let missing = || missing("ConfigMap", &source.name, &format!("{path}.name"));
        let entries = match found {
            Some(map) => config_map_entries(map),
            None if optional => BTreeMap::new(),
            None => return Err(missing()),
        };
        let items = (found.is_some()).then_some(source.items.as_deref()).flatten();
        let files = files(&entries, items, source.default_mode, optional, &path)?;
        return Ok(Content::Files { files, secret: false });
    }
    if let Some(source) = &volume.secret {
        let path = format!("{path}.secret");
        let name = source.secret_name.as_deref().unwrap_or_default();
        let found = objects.secret(name);
        let optional = source.optional == Some(true);
        let entries = match found {
            Some(secret) => secret_entries(secret),
            None if optional => BTreeMap::new(),
            None => return Err(missing("Secret", name, &format!("{path}.secretName"))),
        };
        let items = (found.is_some()).then_some(source.items.as_deref()).flatten();
        let files = files(&entries, items, source.default_mode, optional, &path)?;
        return Ok(Content::Files { files, secret: true });
    }
    if let Some(host) = &volume.host_path {
        let path_field = format!("{path}.hostPath.path");
        let path = host_path(&host.path).map_err(|m| ConfigError::new(path_field, m))?;
        let kind = host.type_.as_deref().unwrap_or_default();
        return Ok(Content::HostPath {
            path,
            create: kind == "DirectoryOrCreate",
            checked: !kind.is_empty(),
        });
    }
    Err(ConfigError::new(path, "write one of emptyDir, configMap, secret, hostPath"))
}

fn missing(kind: &str, name: &str, field: &str) -> ConfigError {
    ConfigError::new(field, format!("there is no {kind} {name:?} in the pod's namespace"))
}

/// All keys under their names, or those of `items` under their paths.
fn files(
    entries: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: bool,
    path: &str,
) -> Result<Vec<PlannedFile>, ConfigError> {
    let default_mode = mode(default_mode.unwrap_or(0o644));
    let mut files: BTreeMap<String, PlannedFile> = BTreeMap::new();
    let mut bytes_left = MOST_BYTES;
    let mut add = |name: String, bytes: &[u8], mode: u32, field: &str| {
        bytes_left = bytes_left.checked_sub(bytes.len()).ok_or_else(|| {
            ConfigError::new(path, format!("it holds more than {MOST_BYTES} bytes"))
        })?;
        let file = PlannedFile { path: name.clone(), bytes: bytes.to_owned(), mode };
        if files.insert(name.clone(), file).is_some() {
            return Err(ConfigError::new(field, format!("{name:?} is there twice")));
        }
        if files.len() > MOST_FILES {
            return Err(ConfigError::new(path, format!("it holds more than {MOST_FILES} files")));
        }
        Ok(())
    };
    match items.filter(|items| !items.is_empty()) {
        None => {
            for (key, bytes) in entries {
                add(
                    item_path(key).map_err(|m| ConfigError::new(path, m))?,
                    bytes,
                    default_mode,
                    path,
                )?;
            }
        }
        Some(items) => {
            for (i, item) in items.iter().enumerate() {
                let field = format!("{path}.items[{i}]");
                let name = item_path(&item.path)
                    .map_err(|m| ConfigError::new(format!("{field}.path"), m))?;
                match entries.get(item.key.as_str()) {
                    Some(bytes) => {
                        add(name, bytes, item.mode.map_or(default_mode, mode), &field)?;
                    }
                    None if optional => {}
                    None => {
                        let message = format!("there is no key {:?}", item.key);
                        return Err(ConfigError::new(format!("{field}.key"), message));
                    }
                }
            }
        }
    }
    // A file cannot be a folder too.
    for name in files.keys() {
        let parents = name.match_indices('/').map(|(i, _)| &name[..i]);
        if let Some(parent) = parents.into_iter().find(|parent| files.contains_key(*parent)) {
            let message = format!("{parent:?} is a file, so {name:?} cannot be beneath it");
            return Err(ConfigError::new(format!("{path}.items"), message));
        }
    }
    Ok(files.into_values().collect())
}

/// Permission bits; what is beyond them is refused by `validate`.
fn mode(mode: i32) -> u32 {
    mode.unsigned_abs() & 0o777
}

/// A path in a volume as `items` and keys may name it: relative, no `..` anywhere, normalised.
pub(crate) fn item_path(path: &str) -> Result<String, String> {
    let relative = relative(path)?;
    if relative.is_empty() {
        return Err("write a file's name".to_owned());
    }
    // The API server's rule: `..data` and the like belong to the writer of the volume.
    if relative.starts_with("..") {
        return Err(format!("{path:?} begins with '..'; write another name"));
    }
    Ok(relative)
}

/// A relative path without `.` and empty components. `..` and NUL are refused, absolute paths too.
pub(crate) fn relative(path: &str) -> Result<String, String> {
    if path.starts_with('/') {
        return Err(format!("{path:?} is absolute; write a path relative to the volume"));
    }
    normal(path)
}

/// An absolute path, normalised; `/` stays `/`.
pub(crate) fn absolute(path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err(format!("{path:?} is relative; begin it with /"));
    }
    Ok(format!("/{}", normal(path)?))
}

fn normal(path: &str) -> Result<String, String> {
    if path.len() > 4096 {
        return Err("a path has at most 4096 bytes".to_owned());
    }
    if path.bytes().any(|byte| byte < b' ' || byte == 127) {
        return Err(format!("{path:?} holds a control character"));
    }
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(format!("{path:?} holds '..'; write the path that you mean"));
    }
    if parts.iter().any(|part| part.len() > 255) {
        return Err(format!("{path:?} has a component of more than 255 bytes"));
    }
    Ok(parts.join("/"))
}

/// A path on the host: absolute, without `..`.
pub(crate) fn host_path(path: &str) -> Result<String, String> {
    absolute(path)
}

/// What the named container mounts, outer before inner; `env` is its environment, for `subPathExpr`.
pub fn mounts(
    pod: &Pod,
    container: &str,
    env: &[(String, String)],
) -> Result<Vec<PlannedMount>, ConfigError> {
    let (path, container) = find_container(pod, container)?;
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut seen = BTreeSet::new();
    let mut mounts = Vec::new();
    for (i, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        let volume = volumes.iter().find(|volume| volume.name == mount.name).ok_or_else(|| {
            let message = format!("the pod has no volume {:?}", mount.name);
            ConfigError::new(format!("{path}.name"), message)
        })?;
        let at = mount_path(&mount.mount_path)
            .map_err(|m| ConfigError::new(format!("{path}.mountPath"), m))?;
        if !seen.insert(at.clone()) {
            let message = format!("something is mounted at {at:?} already");
            return Err(ConfigError::new(format!("{path}.mountPath"), message));
        }
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (_, Some(expression)) if !expression.is_empty() => {
                let field = format!("{path}.subPathExpr");
                let expanded = substitute_all(expression, env)
                    .map_err(|m| ConfigError::new(field.clone(), m))?;
                // As upstream: a backtick is not to reach anything that may be a shell.
                if expanded.contains('`') {
                    return Err(ConfigError::new(field, "a path holds no backtick"));
                }
                Some(relative(&expanded).map_err(|m| ConfigError::new(field, m))?)
            }
            (Some(sub_path), _) => {
                let field = format!("{path}.subPath");
                Some(relative(sub_path).map_err(|m| ConfigError::new(field, m))?)
            }
            (None, _) => None,
        };
        let written_by_agent = volume.config_map.is_some() || volume.secret.is_some();
        mounts.push(PlannedMount {
            path: at,
            volume: mount.name.clone(),
            sub_path: sub_path.filter(|sub_path| !sub_path.is_empty()),
            read_only: written_by_agent || mount.read_only == Some(true),
        });
    }
    // A path sorts before what is beneath it, component by component.
    mounts.sort_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
    Ok(mounts)
}

/// Where a volume may be mounted: absolute, not the root itself, no colon (which separates paths in lists of them).
pub(crate) fn mount_path(path: &str) -> Result<String, String> {
    let path = absolute(path)?;
    if path == "/" {
        return Err("a volume cannot be the root; write a folder below it".to_owned());
    }
    if path.contains(':') {
        return Err(format!("{path:?} holds a colon"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
