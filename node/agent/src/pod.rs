//! One pod as the agent holds it: its life, which only the owner touches, and its world, which those who act for it share.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use copepod_node::annotations::{self, NodeCeilings, PodOptions};
use copepod_node::containers;
use copepod_node::life::{ExitReason, ExitRecord, PodEventRecord, PodLife};
use copepod_shim::protocol::{self, AttemptId};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use crate::accept::is_on_host;
use crate::api::{PodEventView, PodName, PodView};
use crate::front::{NewEvent, Probed};
use crate::logs;
use crate::store::Stored;

/// As many events of a pod are kept: `kubectl describe` shows an hour's worth, which is seldom more than twenty.
const MOST_EVENTS: usize = 100;

/// The longest termination message, as in Kubernetes.
const TERMINATION_MESSAGE: u64 = 4096;

/// A pod in the owner's hands.
#[derive(Debug)]
pub(crate) struct Entry {
    /// What decides.
    pub(crate) life: PodLife,
    /// What acting for it needs.
    pub(crate) world: std::sync::Arc<World>,
    /// When `life` wants to plan next, as it stands in the owner's list.
    pub(crate) due: Option<Timestamp>,
    /// It was asked to go: with its end it is forgotten.
    pub(crate) forget: bool,
    /// Of a long pull or compile.
    pub(crate) progress: Option<String>,
    /// Events that the front has not been told.
    pub(crate) fresh: Vec<NewEvent>,
    events: Vec<PodEventView>,
}

impl Entry {
    pub(crate) fn new(life: PodLife, world: World) -> Self {
        Self {
            life,
            world: std::sync::Arc::new(world),
            due: None,
            forget: false,
            progress: None,
            fresh: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Adds an event, or counts it where the same has happened before.
    pub(crate) fn record_event(&mut self, event: PodEventRecord, now: Timestamp) {
        let PodEventRecord { warning, reason, message, field_path } = event;
        self.fresh.push(NewEvent {
            warning,
            reason: reason.clone(),
            message: message.clone(),
            field_path,
            at: now,
        });
        let kind = if warning { "Warning" } else { "Normal" };
        let last = now.as_second();
        let same = self.events.iter().position(|event| {
            event.reason == reason && event.message == message && event.kind == kind
        });
        if let Some(index) = same {
            let mut event = self.events.remove(index);
            event.count += 1;
            event.last = last;
            self.events.push(event);
            return;
        }
        if self.events.len() == MOST_EVENTS {
            self.events.remove(0);
        }
        self.events.push(PodEventView { kind: kind.into(), reason, message, last, count: 1 });
    }

    /// The images that it needs, by all that is known of them: after a restart of the agent by what its journal says.
    pub(crate) fn images_in_use(&self) -> Vec<copepod_image::Digest> {
        let digest = |id: &str| id.rsplit_once('@')?.1.parse().ok();
        let journaled = self.life.image_ids().filter_map(digest);
        journaled.chain(self.world.image_digests()).collect()
    }

    /// The pod for a client, with its status as of now.
    pub(crate) fn view(&self) -> PodView {
        let mut pod = Pod::clone(&self.world.stored.pod);
        pod.status = Some(self.life.status(&self.world.host_ips));
        PodView {
            pod: serde_json::to_string(&pod).unwrap_or_else(|_| "{}".to_owned()),
            events: self.events.clone(),
            over: self.life.is_over(),
            never: self.life.can_never_run().map(|(container, reason, message)| {
                format!("container {container}: {reason}: {message}")
            }),
            progress: self.progress.clone(),
        }
    }
}

/// What acting for a pod needs: its spec, its folders, and what has been found out on the way.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) uid: String,
    pub(crate) stored: Stored,
    /// `status.hostIPs`.
    pub(crate) host_ips: Vec<std::net::IpAddr>,
    /// Where its containers' logs are: `<data>/logs/pods/<namespace>_<name>_<uid>`.
    pub(crate) logs: PathBuf,
    /// What its annotations ask for.
    pub(crate) options: PodOptions,
    /// Which version of the pod this is, since the agent's start.
    version: u64,
    /// What goes on from one version of the pod's spec to the next.
    pub(crate) going_on: std::sync::Arc<GoingOn>,
}

/// What has been found out and done for a pod, whichever version of its spec it has.
#[derive(Debug)]
pub(crate) struct GoingOn {
    /// The newest version of the pod.
    newest: AtomicU64,
    /// Each container's image and code, once they are here.
    pub(crate) images: Mutex<HashMap<String, std::sync::Arc<ReadyImage>>>,
    /// Published listeners until the runner has them.
    pub(crate) listeners: Mutex<Vec<(std::net::TcpListener, u16)>>,
    /// What its probes came to, until a front is told.
    probed: Mutex<Vec<Probed>>,
    /// Set by the owner once nothing of it will run again.
    pub(crate) over: std::sync::atomic::AtomicBool,
    /// Ends pulls and compiles of it.
    pub(crate) cancelled: tokio::sync::watch::Sender<bool>,
    /// Held while files of its volumes are written or removed, so that none is written behind the removal and older ones never
    /// come over newer ones.
    pub(crate) files: Mutex<()>,
    /// Which revision of its objects is on disk; none: the pod is forgotten, and nothing of it is put there any more.
    pub(crate) kept: Mutex<Option<u64>>,
}

impl GoingOn {
    /// Keeps what a probe came to for [`Self::take_probed`].
    pub(crate) fn put_probed(&self, probed: Probed) {
        self.probed.lock().unwrap_or_else(PoisonError::into_inner).push(probed);
    }

    /// What the pod's probes came to since the last call.
    pub(crate) fn take_probed(&self) -> Vec<Probed> {
        std::mem::take(&mut *self.probed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An image whose code can be loaded.
#[derive(Debug)]
pub(crate) struct ReadyImage {
    pub(crate) image: copepod_image::Image,
    pub(crate) code: copepod_image::Code,
}

impl World {
    pub(crate) fn new(
        data: &std::path::Path,
        uid: String,
        stored: Stored,
        host_ips: Vec<std::net::IpAddr>,
        listeners: Vec<(std::net::TcpListener, u16)>,
    ) -> Self {
        let meta = &stored.pod.metadata;
        let folder = format!(
            "{}_{}_{uid}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        );
        Self {
            logs: data.join("logs/pods").join(folder),
            uid,
            options: annotations::parse(&stored.pod, &NodeCeilings::default()).unwrap_or_default(),
            stored,
            host_ips,
            version: 0,
            going_on: std::sync::Arc::new(GoingOn {
                newest: 0.into(),
                images: Mutex::default(),
                listeners: Mutex::new(listeners),
                probed: Mutex::default(),
                over: false.into(),
                cancelled: tokio::sync::watch::Sender::new(false),
                files: Mutex::default(),
                kept: Mutex::new(Some(0)),
            }),
        }
    }

    /// The same with another version of the pod's spec. Who acts by the older one ends what it has begun.
    pub(crate) fn with_pod(&self, pod: std::sync::Arc<Pod>) -> Self {
        let stored = Stored { pod, ..self.stored.clone() };
        // What is on disk is the older one's.
        stored.objects.touch();
        let version = self.version + 1;
        self.going_on.newest.store(version, Ordering::Relaxed);
        Self {
            version,
            uid: self.uid.clone(),
            options: annotations::parse(&stored.pod, &NodeCeilings::default()).unwrap_or_default(),
            stored,
            host_ips: self.host_ips.clone(),
            logs: self.logs.clone(),
            going_on: self.going_on.clone(),
        }
    }

    pub(crate) fn name(&self) -> PodName {
        PodName::of(&self.stored.pod)
    }

    /// The pod's volumes, in the spec's order.
    pub(crate) fn volumes(&self) -> &[Volume] {
        let spec = self.stored.pod.spec.as_ref();
        spec.and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
    }

    /// The spec of a container, whichever list it is in.
    pub(crate) fn container(&self, name: &str) -> Option<Cow<'_, Container>> {
        containers::find(&self.stored.pod, name).map(|found| found.container)
    }

    /// All containers' names, init containers first.
    pub(crate) fn container_names(&self) -> Vec<String> {
        containers::all(&self.stored.pod).map(|listed| listed.container.name.clone()).collect()
    }

    /// The container meant where none is named: the first of the app's.
    pub(crate) fn first_container(&self) -> Option<String> {
        self.stored.pod.spec.as_ref()?.containers.first().map(|container| container.name.clone())
    }

    /// The container meant by `logs` where none is named: the only one of the app's.
    pub(crate) fn only_container(&self) -> Option<String> {
        match self.stored.pod.spec.as_ref()?.containers.as_slice() {
            [container] => Some(container.name.clone()),
            _ => None,
        }
    }

    /// The pod's addresses, one of each family: its own, or the node's where it lives in the host's network.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        if is_on_host(&self.stored.pod) && !self.host_ips.is_empty() {
            return self.host_ips.clone();
        }
        [self.stored.ip].into_iter().chain(self.stored.second_ip).collect()
    }

    /// The first of them.
    pub(crate) fn ip(&self) -> IpAddr {
        match self.host_ips.first() {
            Some(node) if is_on_host(&self.stored.pod) => *node,
            _ => self.stored.ip,
        }
    }

    /// There is no newer version of the pod.
    pub(crate) fn is_newest(&self) -> bool {
        self.going_on.newest.load(Ordering::Relaxed) == self.version
    }

    /// The pod has been changed since the agent's start.
    pub(crate) fn was_changed(&self) -> bool {
        self.version > 0
    }

    /// Whether nothing of it will run again, as those who act for it may know.
    pub(crate) fn is_over(&self) -> bool {
        self.going_on.over.load(Ordering::Relaxed)
    }

    pub(crate) fn image(&self, container: &str) -> Option<std::sync::Arc<ReadyImage>> {
        self.going_on.images.lock().unwrap_or_else(PoisonError::into_inner).get(container).cloned()
    }

    /// The manifests of its containers' images, as far as they are known.
    pub(crate) fn image_digests(&self) -> Vec<copepod_image::Digest> {
        let images = self.going_on.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.values().map(|ready| ready.image.digest.clone()).collect()
    }

    pub(crate) fn set_image(
        &self,
        container: &str,
        image: ReadyImage,
    ) -> std::sync::Arc<ReadyImage> {
        let image = std::sync::Arc::new(image);
        self.put_image(container, image.clone());
        image
    }

    pub(crate) fn put_image(&self, container: &str, image: std::sync::Arc<ReadyImage>) {
        let mut images = self.going_on.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.insert(container.to_owned(), image);
    }

    /// Where in the runner's root the last words of one attempt of a container are.
    pub(crate) fn termination_log(&self, container: &str, attempt: u32) -> String {
        format!("{}/{}/{container}/{attempt}", protocol::layout::WORDS, self.uid)
    }

    /// A runner's report of an exit, with the message that the container's policy asks for; `root` is the root of its tree.
    pub(crate) fn exit_record(
        &self,
        root: &std::path::Path,
        id: &AttemptId,
        exit: protocol::Exit,
    ) -> ExitRecord {
        let time = |us| Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH);
        let last_words = self.termination_log(&id.container, id.attempt);
        let mut message = read_beneath(root, &last_words).unwrap_or_default();
        if message.is_empty() {
            message = exit.message;
        }
        let falls_back = self.container(&id.container).is_some_and(|container| {
            container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
        });
        if message.is_empty() && falls_back && exit.code != 0 {
            let folder = self.logs.join(&id.container);
            message = logs::last_words(&folder, id.attempt).unwrap_or_default();
        }
        // Also of what a runner tells: it is to be journaled.
        message.truncate(message.floor_char_boundary(TERMINATION_MESSAGE as usize));
        ExitRecord {
            code: exit.code,
            reason: match exit.reason {
                protocol::ExitReason::OutOfMemory => ExitReason::OutOfMemory,
                _ => ExitReason::Ended,
            },
            message,
            started_at: (exit.started_us > 0).then(|| time(exit.started_us)),
            finished_at: time(exit.finished_us),
        }
    }
}

/// The beginning of a file that a runner wrote, opened beneath `root` without following a link.
fn read_beneath(root: &std::path::Path, path: &str) -> Option<String> {
    use std::io::Read;

    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = path.trim_start_matches('/');
    let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve).ok()?;
    let file = std::fs::File::from(file);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(TERMINATION_MESSAGE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
