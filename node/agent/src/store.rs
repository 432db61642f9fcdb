//! The pods that were accepted, on disk until they are forgotten: `<data>/pods/<uid>/pod.json`.
//!
//! Written before the pod is acted on, and again where what it refers to has changed; what happens to it afterwards is in the
//! journal. A pod that a cluster would bring again, and that may start more than once, outlives a power cut only a moment later: waiting for
//! the disk three times took longer than all else of its start. The files may hold Secrets and tokens, and are readable by the agent's user only.
//!
//! Absent: status, which is told by the core from the journal and by the runners.

use std::collections::{HashMap, HashSet};
use std::fs::Permissions;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use copepod_node::objects::{ClaimedVolume, Objects, WantedToken};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use rustix::fs::Advice;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::api::{Publish, RegistryCredentials};
use crate::journal::{write_whole, write_whole_for_now};

/// A pod as it was accepted, or as it was changed since.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// The pod, defaulted, with its UID; shared with its life.
    pub(crate) pod: Arc<Pod>,
    /// What it names, as of now.
    #[serde(flatten)]
    pub(crate) objects: Arc<CurrentObjects>,
    /// Its published ports.
    pub(crate) publish: Vec<Publish>,
    /// Credentials for its images.
    pub(crate) credentials: Vec<RegistryCredentials>,
    /// Its address out of the node's block. In the host's network it has the node's instead, and this one is only kept for it.
    pub(crate) ip: IpAddr,
    /// That of the other family, where the node has blocks of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) second_ip: Option<IpAddr>,
    /// The address that stands for its loopback in its domain.
    pub(crate) loopback: Ipv4Addr,
    /// The domain it runs in.
    pub(crate) domain: String,
    /// When it was accepted.
    pub(crate) accepted: jiff::Timestamp,
}

/// What a pod refers to beside itself; shared by pods that came together.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodObjects {
    /// The ConfigMaps that it names.
    pub config_maps: Vec<Arc<ConfigMap>>,
    /// The Secrets that it names.
    pub secrets: Vec<Arc<Secret>>,
    /// The tokens that its volumes show ([`copepod_node::objects::wanted_tokens`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<PodToken>,
    /// What its PersistentVolumeClaims have come to, by their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<(String, ClaimedVolume)>,
    /// The variables of Services, ready for its containers; one list for all pods that see the same.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub services: Arc<[(String, String)]>,
}

/// A token of the pod's service account.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodToken {
    /// For whom it is; none: for the API server.
    pub audience: Option<String>,
    /// How long it was asked to be valid.
    pub expiration_seconds: i64,
    /// The token itself.
    pub token: String,
}

fn is_empty(services: &Arc<[(String, String)]>) -> bool {
    services.is_empty()
}

impl std::fmt::Debug for PodObjects {
    /// Names alone, as the rest may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let config_maps: Vec<_> = self.config_maps.iter().map(|it| &it.metadata.name).collect();
        let secrets: Vec<_> = self.secrets.iter().map(|it| &it.metadata.name).collect();
        f.debug_struct("PodObjects")
            .field("config_maps", &config_maps)
            .field("secrets", &secrets)
            .field("tokens", &self.tokens)
            .field("claims", &self.claims)
            .field("services", &self.services.len())
            .finish()
    }
}

impl std::fmt::Debug for PodToken {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "for {:?}, {} s", self.audience, self.expiration_seconds)
    }
}

impl Objects for PodObjects {
    fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        named(&self.config_maps, |it| it.metadata.name.as_deref(), name)
    }

    fn secret(&self, name: &str) -> Option<&Secret> {
        named(&self.secrets, |it| it.metadata.name.as_deref(), name)
    }

    fn token(&self, wanted: WantedToken<'_>) -> Option<&str> {
        let is_wanted = |it: &&PodToken| {
            it.audience.as_deref() == wanted.audience
                && it.expiration_seconds == wanted.expiration_seconds
        };
        self.tokens.iter().find(is_wanted).map(|it| it.token.as_str())
    }

    fn claim(&self, name: &str) -> Option<&ClaimedVolume> {
        self.claims.iter().find(|(claim, _)| claim == name).map(|(_, volume)| volume)
    }
}

/// A pod's objects, in whose place others may come while those who act for the pod read these.
#[derive(Debug, Default)]
pub(crate) struct CurrentObjects(Mutex<Current>);

#[derive(Clone, Debug, Default)]
struct Current {
    objects: Arc<PodObjects>,
    revision: u64,
}

impl CurrentObjects {
    /// The objects as of now, for one step: the next step asks again.
    pub(crate) fn get(&self) -> Arc<PodObjects> {
        self.with_revision().0
    }

    /// The objects, and how often they have changed since the agent's start.
    pub(crate) fn with_revision(&self) -> (Arc<PodObjects>, u64) {
        let Current { objects, revision } =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (objects, revision)
    }

    /// Counts as a change of what is on disk, where something beside the objects has changed.
    pub(crate) fn touch(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).revision += 1;
    }

    /// Puts others in their place, and says whether they differ in anything.
    pub(crate) fn replace(&self, objects: PodObjects) -> bool {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *current.objects != objects;
        current.revision += u64::from(changed);
        // Also where nothing changed: these are shared with whoever brought them.
        current.objects = Arc::new(objects);
        changed
    }
}

impl From<PodObjects> for CurrentObjects {
    fn from(objects: PodObjects) -> Self {
        Self(Mutex::new(Current { objects: Arc::new(objects), revision: 0 }))
    }
}

/// What many pods name, read from a file of each: one copy for all of them.
#[derive(Default)]
struct Shared {
    /// By namespace and name.
    config_maps: HashMap<(Option<String>, Option<String>), Arc<ConfigMap>>,
    secrets: HashMap<(Option<String>, Option<String>), Arc<Secret>>,
    services: HashSet<Arc<[(String, String)]>>,
}

impl Shared {
    fn share(&mut self, objects: &CurrentObjects) {
        let mut current = objects.0.lock().unwrap_or_else(PoisonError::into_inner);
        let objects = Arc::make_mut(&mut current.objects);
        for map in &mut objects.config_maps {
            let meta = &map.metadata;
            let key = (meta.namespace.clone(), meta.name.clone());
            share(self.config_maps.entry(key).or_insert_with(|| map.clone()), map);
        }
        for secret in &mut objects.secrets {
            let meta = &secret.metadata;
            let key = (meta.namespace.clone(), meta.name.clone());
            share(self.secrets.entry(key).or_insert_with(|| secret.clone()), secret);
        }
        if let Some(known) = self.services.get(&objects.services) {
            objects.services = known.clone();
        } else {
            self.services.insert(objects.services.clone());
        }
    }
}

/// Puts the known one in the place of an equal one. Where they differ, one of two pods saw an older object.
fn share<T: PartialEq>(known: &Arc<T>, own: &mut Arc<T>) {
    if known == own {
        *own = known.clone();
    }
}

impl Serialize for CurrentObjects {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CurrentObjects {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PodObjects::deserialize(deserializer).map(Self::from)
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
    /// Pods that were put for now.
    for_now: Arc<Mutex<Vec<String>>>,
}

impl Store {
    /// Opens or makes `<data>/pods`.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let folder = data.join("pods");
        std::fs::create_dir_all(&folder)?;
        std::fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        Ok(Self { folder, for_now: Arc::default() })
    }

    /// All pods, oldest first. A file of before `booted` that is not whole is one of a power cut, whose pod comes again, and is passed
    /// over; without a time, and of a file of later, it is an error.
    pub(crate) fn load(&self, booted: Option<SystemTime>) -> Result<Vec<Stored>, Unreadable> {
        let mut pods: Vec<Stored> = Vec::new();
        let mut shared = Shared::default();
        let unreadable = |path: &Path, why: String| Unreadable { path: path.to_owned(), why };
        let entries = std::fs::read_dir(&self.folder)
            .map_err(|error| unreadable(&self.folder, error.to_string()))?;
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(&self.folder, error.to_string()))?;
            let path = entry.path().join(FILE);
            match std::fs::read(&path) {
                Ok(bytes) => match serde_json::from_slice::<Stored>(&bytes) {
                    Ok(stored) => {
                        shared.share(&stored.objects);
                        pods.push(stored);
                    }
                    Err(error) => {
                        let written = std::fs::metadata(&path).and_then(|it| it.modified()).ok();
                        if written.zip(booted).is_none_or(|(written, booted)| written >= booted) {
                            return Err(unreadable(&path, error.to_string()));
                        }
                        tracing::warn!(path = %path.display(), "a pod that came right before a power cut is forgotten");
                    }
                },
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
        write_unread(&folder, &bytes)?;
        std::fs::File::open(&self.folder)?.sync_all()
    }

    /// Puts a pod where the next agent finds it, unless the machine loses its power: that is [`Store::sync`]'s, which the caller has done
    /// soon where `true` comes back.
    pub(crate) fn put_for_now(&self, uid: &str, stored: &Stored) -> io::Result<bool> {
        let folder = self.folder.join(uid);
        std::fs::create_dir_all(&folder)?;
        let bytes = serde_json::to_vec(stored).map_err(io::Error::other)?;
        write_whole_for_now(&folder.join(FILE), &bytes, 0o666)?;
        let mut for_now = self.for_now.lock().unwrap_or_else(PoisonError::into_inner);
        for_now.push(uid.to_owned());
        Ok(for_now.len() == 1)
    }

    /// Has all that was put for now outlive a power cut. It waits for the disk.
    pub(crate) fn sync(&self) {
        let uids = {
            let mut for_now = self.for_now.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *for_now)
        };
        let sync = |path: &Path| std::fs::File::open(path)?.sync_all();
        let folders = uids.iter().map(|uid| self.folder.join(uid));
        let each = |folder: PathBuf| {
            sync(&folder.join(FILE))?;
            drop_pages(&folder.join(FILE));
            sync(&folder)
        };
        let failed = folders.map(each).chain([sync(&self.folder)]).filter_map(Result::err);
        // One that is gone by now needs no syncing.
        for error in failed.filter(|error| error.kind() != io::ErrorKind::NotFound) {
            tracing::warn!(%error, "pods would not outlive a power cut");
        }
    }

    /// Puts a pod that is on disk there again, with its objects of `revision`. Not where others have come since: that is for whoever
    /// brought them, and `false` comes back.
    pub(crate) fn put_revision(
        &self,
        uid: &str,
        stored: &Stored,
        revision: u64,
    ) -> io::Result<bool> {
        let bytes = serde_json::to_vec(stored).map_err(io::Error::other)?;
        let is_this = stored.objects.with_revision().1 == revision;
        if is_this {
            write_unread(&self.folder.join(uid), &bytes)?;
        }
        Ok(is_this)
    }

    /// Forgets a pod. Idempotent.
    pub(crate) fn remove(&self, uid: &str) -> io::Result<()> {
        match std::fs::remove_dir_all(self.folder.join(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// A pod's file in its folder.
const FILE: &str = "pod.json";

/// Writes a pod's file into its folder.
fn write_unread(folder: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = folder.join(FILE);
    write_whole(&file, bytes, 0o666)?;
    drop_pages(&file);
    Ok(())
}

/// The next to read it is another agent, if any: its page would be 4 of some 60 KiB that an idle pod costs. Advice only.
fn drop_pages(file: &Path) {
    if let Ok(file) = std::fs::File::open(file) {
        let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn stored(objects: serde_json::Value) -> serde_json::Value {
        let mut stored = json!({
            "pod": { "metadata": { "name": "p", "uid": "u-1" } },
            "publish": [], "credentials": [], "ip": "10.64.0.5", "loopback": "127.128.0.5",
            "domain": "ns-default", "accepted": "2026-01-01T00:00:00Z",
        });
        for (key, value) in objects.as_object().into_iter().flatten() {
            stored[key] = value.clone();
        }
        stored
    }

    fn without_objects() -> Stored {
        let empty = stored(json!({ "config_maps": [], "secrets": [] }));
        serde_json::from_value(empty).expect("it is read")
    }

    fn objects() -> PodObjects {
        let secret = json!({ "metadata": { "name": "s" }, "stringData": { "key": "hunter2" } });
        let map = json!({ "metadata": { "name": "m" }, "data": { "key": "hunter2" } });
        let token =
            PodToken { audience: None, expiration_seconds: 3607, token: "hunter2".to_owned() };
        PodObjects {
            config_maps: vec![serde_json::from_value(map).expect("a ConfigMap")],
            secrets: vec![serde_json::from_value(secret).expect("a Secret")],
            tokens: vec![token],
            services: [("DB_SERVICE_HOST".to_owned(), "hunter2".to_owned())].into(),
            claims: vec![("data".into(), ClaimedVolume::Not("it is not bound".into()))],
        }
    }

    #[test]
    fn a_pod_that_an_older_agent_wrote_is_read_as_one_without_tokens_and_services() {
        let maps = json!([{ "metadata": { "name": "m" } }]);
        let old = stored(json!({ "config_maps": maps, "secrets": [] }));

        let read: Stored = serde_json::from_value(old).expect("it is read");

        let objects = read.objects.get();
        assert!(objects.config_map("m").is_some());
        assert!(objects.tokens.is_empty() && objects.services.is_empty());
    }

    #[test]
    fn what_was_put_in_the_place_of_a_pods_objects_is_what_is_stored() {
        let empty = stored(json!({ "config_maps": [], "secrets": [] }));
        let stored: Stored = serde_json::from_value(empty).expect("it is read");

        assert!(stored.objects.replace(objects()));
        assert!(!stored.objects.replace(objects()), "the same again is no change");
        let text = serde_json::to_string(&stored).expect("it is JSON");
        let read: Stored = serde_json::from_str(&text).expect("and comes back");

        assert!(*read.objects.get() == objects());
        let wanted = WantedToken { audience: None, expiration_seconds: 3607 };
        assert_eq!(read.objects.get().token(wanted), Some("hunter2"));
    }

    #[test]
    fn pods_that_name_the_same_objects_share_them_also_after_a_restart() {
        let data = tempfile::tempdir().expect("a folder");
        let store = Store::open(data.path()).expect("opened");
        for uid in ["u-1", "u-2"] {
            let stored = without_objects();
            stored.objects.replace(objects());
            store.put(uid, &stored).expect("on disk");
        }

        let pods = store.load(None).expect("read");

        let [one, two] = [pods[0].objects.get(), pods[1].objects.get()];
        assert!(Arc::ptr_eq(&one.config_maps[0], &two.config_maps[0]));
        assert!(Arc::ptr_eq(&one.secrets[0], &two.secrets[0]));
        assert!(Arc::ptr_eq(&one.services, &two.services));
    }

    #[test]
    fn of_pods_put_for_now_the_first_asks_for_a_sync_which_is_of_all() {
        let data = tempfile::tempdir().expect("a folder");
        let (store, stored) = (Store::open(data.path()).expect("opened"), without_objects());
        let put = |uid| store.put_for_now(uid, &stored).expect("written");

        assert_eq!([put("u-1"), put("u-2")], [true, false]);
        assert_eq!(store.load(None).expect("read").len(), 2);
        store.remove("u-2").expect("removed");
        store.sync();

        assert!(put("u-3"));
    }

    #[test]
    fn a_file_that_a_power_cut_left_empty_is_passed_over_and_any_other_is_an_error() {
        let data = tempfile::tempdir().expect("a folder");
        let (store, stored) = (Store::open(data.path()).expect("opened"), without_objects());
        store.put_for_now("u-1", &stored).expect("written");
        store.put_for_now("u-2", &stored).expect("written");
        let file = data.path().join("pods/u-2").join(FILE);
        std::fs::write(&file, "").expect("written");
        let now = SystemTime::now();
        let [earlier, later] = [now - Duration::from_secs(60), now + Duration::from_secs(60)];

        assert_eq!(store.load(Some(later)).expect("the machine was started anew").len(), 1);
        assert_eq!(store.load(Some(earlier)).expect_err("it was not").path, file);
        assert_eq!(store.load(None).expect_err("nobody brings it again").path, file);
    }

    #[test]
    fn objects_in_whose_place_others_have_come_are_not_put_on_disk() {
        let data = tempfile::tempdir().expect("a folder");
        let (store, stored) = (Store::open(data.path()).expect("opened"), without_objects());
        store.put("u-1", &stored).expect("on disk");
        let on_disk = || store.load(None).expect("read")[0].objects.get().tokens.len();
        stored.objects.replace(objects());

        assert!(!store.put_revision("u-1", &stored, 0).expect("left alone"));
        assert_eq!(on_disk(), 0);
        assert!(store.put_revision("u-1", &stored, 1).expect("written"));

        assert_eq!(on_disk(), 1);
        store.remove("u-1").expect("removed");
        assert!(store.put_revision("u-1", &stored, 1).is_err(), "no pod comes back");
    }

    #[test]
    fn no_content_of_an_object_is_in_a_debug_print() {
        let printed = format!("{:?}", CurrentObjects::from(objects()));

        assert!(printed.contains("\"s\"") && printed.contains("3607"), "{printed}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}
