//! Which files a pod's volumes hold, and which of them each container sees where.
//!
//! Start at [`plan`] (once per pod), [`files_of`] (again when what a volume shows has changed) and [`mounts`] (once per start).
//! Absent: writing and mounting anything, following a link (the agent resolves beneath and without links), and the volumes
//! that `fields` refuses.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Volume,
};

use crate::{
    env::{ConfigError, Context, find_container, refs, substitute_all},
    objects::{ClaimedVolume, config_map_entries, secret_entries},
    quantity::Amount,
};

/// Most bytes that one source gives a volume; what an API server lets an object hold.
const MOST_BYTES: usize = 1 << 20;
/// Most files of one volume: beyond any that fits an API server's limit with sensible names.
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

/// A file of a volume that the agent writes.
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
pub fn plan(pod: &Pod, context: &Context<'_>) -> Result<Vec<PlannedVolume>, ConfigError> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let planned = volumes.enumerate().map(|(i, volume)| {
        let content = content(pod, volume, &format!("spec.volumes[{i}]"), context)?;
        Ok(PlannedVolume { name: volume.name.clone(), content })
    });
    planned.collect()
}

/// What is in the pod's volume number `index`; none where there is none. Errors as of [`plan`].
pub fn content_of(
    pod: &Pod,
    index: usize,
    context: &Context<'_>,
) -> Result<Option<Content>, ConfigError> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let path = format!("spec.volumes[{index}]");
    volumes.get(index).map(|volume| content(pod, volume, &path, context)).transpose()
}

/// The files of the pod's volume number `index`; none where it is of another kind. Errors as of [`plan`].
pub fn files_of(
    pod: &Pod,
    index: usize,
    context: &Context<'_>,
) -> Result<Vec<PlannedFile>, ConfigError> {
    match content_of(pod, index, context)? {
        Some(Content::Files { files, .. }) => Ok(files),
        None | Some(Content::EmptyDir { .. } | Content::HostPath { .. }) => Ok(Vec::new()),
    }
}

/// Of a volume's files those beneath one of its folders, by their paths in it.
pub fn part_of(files: Vec<PlannedFile>, folder: &str) -> Vec<PlannedFile> {
    let within = |file: PlannedFile| {
        let path = file.path.strip_prefix(folder)?.strip_prefix('/')?.to_owned();
        Some(PlannedFile { path, ..file })
    };
    files.into_iter().filter_map(within).collect()
}

/// Whether the agent alone writes the volume: all that [`Content::Files`] is planned for.
pub fn is_written_by_agent(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

fn content(
    pod: &Pod,
    volume: &Volume,
    path: &str,
    context: &Context<'_>,
) -> Result<Content, ConfigError> {
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
        let mut files = Files::new(source.default_mode);
        let map = Keys::of_config_map(&source.name, context);
        let map = map.shown(source.optional, source.items.as_deref());
        files.add_keys(map, &path)?;
        return Ok(Content::Files { files: files.done(&path)?, secret: false });
    }
    if let Some(source) = &volume.secret {
        let path = format!("{path}.secret");
        let mut files = Files::new(source.default_mode);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let secret = Keys::of_secret(name, "secretName", context);
        let secret = secret.shown(source.optional, source.items.as_deref());
        files.add_keys(secret, &path)?;
        return Ok(Content::Files { files: files.done(&path)?, secret: true });
    }
    if let Some(source) = &volume.downward_api {
        let path = format!("{path}.downwardAPI");
        let mut files = Files::new(source.default_mode);
        files.add_downward(source.items.as_deref(), &path, pod, context)?;
        return Ok(Content::Files { files: files.done(&path)?, secret: false });
    }
    if let Some(source) = &volume.projected {
        return projected(pod, source, &format!("{path}.projected"), context);
    }
    if let Some(host) = &volume.host_path {
        let kind = host.type_.as_deref().unwrap_or_default();
        return host_folder(&host.path, kind, format!("{path}.hostPath.path"));
    }
    if let Some(source) = &volume.persistent_volume_claim {
        let field = format!("{path}.persistentVolumeClaim.claimName");
        let name = &source.claim_name;
        return match context.objects.claim(name) {
            Some(ClaimedVolume::Folder { path, kind }) => host_folder(path, kind, field),
            Some(ClaimedVolume::Not(why)) => Err(ConfigError::new(field, why)),
            None => {
                Err(ConfigError::new(field, format!("persistentvolumeclaim {name:?} not found")))
            }
        };
    }
    Err(ConfigError::new(path, format!("write one of {SOURCES}")))
}

fn host_folder(path: &str, kind: &str, field: String) -> Result<Content, ConfigError> {
    let path = host_path(path).map_err(|m| ConfigError::new(field, m))?;
    Ok(Content::HostPath { path, create: kind == "DirectoryOrCreate", checked: !kind.is_empty() })
}

/// Whether a volume is a folder of the machine: all that [`Content::HostPath`] is planned for.
pub fn is_of_the_machine(volume: &Volume) -> bool {
    volume.host_path.is_some() || volume.persistent_volume_claim.is_some()
}

/// Whether nobody may write to a volume, wherever it is mounted.
pub fn is_read_only(volume: &Volume) -> bool {
    let claim = volume.persistent_volume_claim.as_ref();
    is_written_by_agent(volume) || claim.is_some_and(|claim| claim.read_only == Some(true))
}

/// The kinds of volumes that there are.
pub(crate) const SOURCES: &str =
    "emptyDir, configMap, secret, downwardAPI, projected, hostPath, persistentVolumeClaim";

/// Several sources in one folder; of two files under one path the later source's is there, as under a kubelet.
fn projected(
    pod: &Pod,
    volume: &ProjectedVolumeSource,
    path: &str,
    context: &Context<'_>,
) -> Result<Content, ConfigError> {
    let mut files = Files::new(volume.default_mode);
    let mut is_secret = false;
    for (i, source) in volume.sources.iter().flatten().enumerate() {
        let path = format!("{path}.sources[{i}]");
        files.begin_source();
        if let Some(source) = &source.config_map {
            let map = Keys::of_config_map(&source.name, context);
            let map = map.shown(source.optional, source.items.as_deref());
            files.add_keys(map, &format!("{path}.configMap"))?;
        }
        if let Some(source) = &source.secret {
            is_secret = true;
            let secret = Keys::of_secret(&source.name, "name", context);
            let secret = secret.shown(source.optional, source.items.as_deref());
            files.add_keys(secret, &format!("{path}.secret"))?;
        }
        if let Some(source) = &source.downward_api {
            let path = format!("{path}.downwardAPI");
            files.add_downward(source.items.as_deref(), &path, pod, context)?;
        }
        if let Some(source) = &source.service_account_token {
            is_secret = true;
            let path = format!("{path}.serviceAccountToken");
            let token = context.objects.token(source.into()).ok_or_else(|| {
                ConfigError::new(&*path, "there is no token of the pod's service account yet")
            })?;
            let name =
                item_path(&source.path).map_err(|m| ConfigError::new(format!("{path}.path"), m))?;
            files.add(name, token.as_bytes(), None, &path)?;
        }
    }
    Ok(Content::Files { files: files.done(path)?, secret: is_secret })
}

/// A ConfigMap or Secret of which a volume shows keys.
struct Keys<'a> {
    /// Its entries; none: it is not there.
    object: Option<BTreeMap<&'a str, &'a [u8]>>,
    kind: &'static str,
    name: &'a str,
    /// The field that names it.
    name_field: &'static str,
    optional: Option<bool>,
    items: Option<&'a [KeyToPath]>,
}

impl<'a> Keys<'a> {
    fn of_config_map(name: &'a str, context: &Context<'a>) -> Self {
        let object = context.objects.config_map(name).map(config_map_entries);
        Self { object, kind: "ConfigMap", name, name_field: "name", optional: None, items: None }
    }

    fn of_secret(name: &'a str, name_field: &'static str, context: &Context<'a>) -> Self {
        let object = context.objects.secret(name).map(secret_entries);
        Self { object, kind: "Secret", name, name_field, optional: None, items: None }
    }

    /// Of it these items, or all keys; where it is optional it need not be there.
    fn shown(self, optional: Option<bool>, items: Option<&'a [KeyToPath]>) -> Self {
        Self { optional, items, ..self }
    }
}

/// The files of a volume, as they come together.
struct Files {
    default_mode: u32,
    bytes_left: usize,
    files: BTreeMap<String, PlannedFile>,
    /// The paths of the present source, each of which may come once.
    of_source: BTreeSet<String>,
}

impl Files {
    fn new(default_mode: Option<i32>) -> Self {
        Self {
            default_mode: mode(default_mode.unwrap_or(0o644)),
            bytes_left: MOST_BYTES,
            files: BTreeMap::new(),
            of_source: BTreeSet::new(),
        }
    }

    fn begin_source(&mut self) {
        self.bytes_left = MOST_BYTES;
        self.of_source.clear();
    }

    fn add(
        &mut self,
        name: String,
        bytes: &[u8],
        file_mode: Option<i32>,
        field: &str,
    ) -> Result<(), ConfigError> {
        self.bytes_left = self.bytes_left.checked_sub(bytes.len()).ok_or_else(|| {
            ConfigError::new(field, format!("it holds more than {MOST_BYTES} bytes"))
        })?;
        if !self.of_source.insert(name.clone()) {
            return Err(ConfigError::new(field, format!("{name:?} is there twice")));
        }
        let mode = file_mode.map_or(self.default_mode, mode);
        let file = PlannedFile { path: name.clone(), bytes: bytes.to_owned(), mode };
        self.files.insert(name, file);
        if self.files.len() > MOST_FILES {
            return Err(ConfigError::new(field, format!("it holds more than {MOST_FILES} files")));
        }
        Ok(())
    }

    /// All keys under their names, or those of the items under their paths.
    fn add_keys(&mut self, from: Keys<'_>, path: &str) -> Result<(), ConfigError> {
        let optional = from.optional == Some(true);
        let Some(entries) = from.object else {
            if optional {
                return Ok(());
            }
            let message =
                format!("there is no {} {:?} in the pod's namespace", from.kind, from.name);
            return Err(ConfigError::new(format!("{path}.{}", from.name_field), message));
        };
        let Some(items) = from.items.filter(|items| !items.is_empty()) else {
            for (key, bytes) in entries {
                let name = item_path(key).map_err(|m| ConfigError::new(path, m))?;
                self.add(name, bytes, None, path)?;
            }
            return Ok(());
        };
        for (i, item) in items.iter().enumerate() {
            let field = format!("{path}.items[{i}]");
            let name =
                item_path(&item.path).map_err(|m| ConfigError::new(format!("{field}.path"), m))?;
            match entries.get(item.key.as_str()) {
                Some(bytes) => self.add(name, bytes, item.mode, &field)?,
                None if optional => {}
                None => {
                    let message = format!("there is no key {:?}", item.key);
                    return Err(ConfigError::new(format!("{field}.key"), message));
                }
            }
        }
        Ok(())
    }

    /// What the pod may know of itself and of its node.
    fn add_downward(
        &mut self,
        items: Option<&[DownwardAPIVolumeFile]>,
        path: &str,
        pod: &Pod,
        context: &Context<'_>,
    ) -> Result<(), ConfigError> {
        for (i, item) in items.into_iter().flatten().enumerate() {
            let field = format!("{path}.items[{i}]");
            let name =
                item_path(&item.path).map_err(|m| ConfigError::new(format!("{field}.path"), m))?;
            let value = if let Some(reference) = &item.field_ref {
                let field = format!("{field}.fieldRef.fieldPath");
                refs::volume_field(pod, &reference.field_path)
                    .map_err(|m| ConfigError::new(field, m))?
            } else if let Some(resource) = &item.resource_field_ref {
                refs::resource(pod, None, resource, context)
                    .map_err(|m| ConfigError::new(format!("{field}.resourceFieldRef"), m))?
            } else {
                return Err(ConfigError::new(field, "write either fieldRef or resourceFieldRef"));
            };
            self.add(name, value.as_bytes(), item.mode, &field)?;
        }
        Ok(())
    }

    /// All of them. A file cannot be a folder too.
    fn done(self, path: &str) -> Result<Vec<PlannedFile>, ConfigError> {
        for name in self.files.keys() {
            let parents = name.match_indices('/').map(|(i, _)| &name[..i]);
            if let Some(parent) =
                parents.into_iter().find(|parent| self.files.contains_key(*parent))
            {
                let message = format!("{parent:?} is a file, so {name:?} cannot be beneath it");
                return Err(ConfigError::new(format!("{path}.items"), message));
            }
        }
        Ok(self.files.into_values().collect())
    }
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
        mounts.push(PlannedMount {
            path: at,
            volume: mount.name.clone(),
            sub_path: sub_path.filter(|sub_path| !sub_path.is_empty()),
            read_only: is_read_only(volume) || mount.read_only == Some(true),
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
