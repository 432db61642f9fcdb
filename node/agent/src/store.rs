//! The pods that were accepted, on disk until they are forgotten: `<data>/pods/<uid>/pod.json`.
//!
//! Written once, before the pod is acted on; what happens to it afterwards is in the journal. The files may hold Secrets and are
//! readable by the agent's user only.
//!
//! Absent: status, which is told by the core from the journal and by the runners.

use std::fs::Permissions;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use copepod_node::objects::Objects;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde::{Deserialize, Serialize};

use crate::api::{Publish, RegistryCredentials};
use crate::journal::write_whole;

/// A pod as it was accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// The pod, defaulted, with its UID; shared with its life.
    pub(crate) pod: Arc<Pod>,
    /// What it names.
    #[serde(flatten)]
    pub(crate) objects: PodObjects,
    /// Its published ports.
    pub(crate) publish: Vec<Publish>,
    /// Credentials for its images.
    pub(crate) credentials: Vec<RegistryCredentials>,
    /// Its address.
    pub(crate) ip: IpAddr,
    /// The address that stands for its loopback in its domain.
    pub(crate) loopback: Ipv4Addr,
    /// The domain it runs in.
    pub(crate) domain: String,
    /// When it was accepted.
    pub(crate) accepted: jiff::Timestamp,
}

/// The ConfigMaps and Secrets that a pod names; shared by pods that came together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodObjects {
    /// The ConfigMaps.
    pub config_maps: Vec<Arc<ConfigMap>>,
    /// The Secrets.
    pub secrets: Vec<Arc<Secret>>,
}

impl Objects for PodObjects {
    fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        named(&self.config_maps, |it| it.metadata.name.as_deref(), name)
    }

    fn secret(&self, name: &str) -> Option<&Secret> {
        named(&self.secrets, |it| it.metadata.name.as_deref(), name)
    }
}

/// A pod names few objects, so that looking through them costs less than a map of them.
fn named<'a, T>(
    all: &'a [Arc<T>],
    name_of: impl Fn(&T) -> Option<&str>,
    name: &str,
) -> Option<&'a T> {
    all.iter().map(Arc::as_ref).find(|it| name_of(it) == Some(name))
}

/// A pod's file that cannot be read. Its guests are left alone, which is possible only while no agent acts.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// The file or folder.
    pub(crate) path: PathBuf,
    /// What is wrong with it.
    pub(crate) why: String,
}

/// The folder of all accepted pods.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    folder: PathBuf,
}

impl Store {
    /// Opens or makes `<data>/pods`.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let folder = data.join("pods");
        std::fs::create_dir_all(&folder)?;
        std::fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        Ok(Self { folder })
    }

    /// All pods, oldest first.
    pub(crate) fn load(&self) -> Result<Vec<Stored>, Unreadable> {
        let mut pods = Vec::new();
        let unreadable = |path: &Path, why: String| Unreadable { path: path.to_owned(), why };
        let entries = std::fs::read_dir(&self.folder)
            .map_err(|error| unreadable(&self.folder, error.to_string()))?;
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(&self.folder, error.to_string()))?;
            let path = entry.path().join("pod.json");
            match std::fs::read(&path) {
                Ok(bytes) => pods.push(
                    serde_json::from_slice(&bytes)
                        .map_err(|error| unreadable(&path, error.to_string()))?,
                ),
                // A crash came between the folder and its file: nothing was done for this pod.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable(&path, error.to_string())),
            }
        }
        pods.sort_by_key(|stored: &Stored| stored.accepted);
        Ok(pods)
    }

    /// Puts a pod on disk, so that it outlives a power cut.
    pub(crate) fn put(&self, uid: &str, stored: &Stored) -> io::Result<()> {
        let folder = self.folder.join(uid);
        std::fs::create_dir_all(&folder)?;
        let bytes = serde_json::to_vec(stored).map_err(io::Error::other)?;
        write_whole(&folder.join("pod.json"), &bytes)?;
        std::fs::File::open(&self.folder)?.sync_all()
    }

    /// Forgets a pod. Idempotent.
    pub(crate) fn remove(&self, uid: &str) -> io::Result<()> {
        match std::fs::remove_dir_all(self.folder.join(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
