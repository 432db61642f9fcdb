//! What pods refer to: ConfigMaps and Secrets, asked of the API server one by one by name, as a node may read no list of them.
//!
//! Each is asked once for all pods that name it, and again every minute while one of them is here, as a kubelet's cache does; one that
//! is missing sooner. What changed is handed to the agent, which writes the pods' files anew. An immutable object is asked once.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use copepod_agent::front::{Front, PodObjects};
use copepod_node::objects::References;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::Api;

/// How old what is known of an object may be: a kubelet's sync period.
const REFRESH: Duration = Duration::from_secs(60);

/// How old it may be where a pod is taken on: its maker may have changed the object just before.
const FRESH: Duration = Duration::from_secs(1);

/// How soon an object that is missing is asked for again.
const MISSING: Duration = Duration::from_secs(2);

/// The authorities that every namespace has one copy of, and that nobody changes together with a pod.
const ROOT_CA: &str = "kube-root-ca.crt";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    ConfigMap,
    Secret,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    kind: Kind,
    namespace: String,
    name: String,
}

#[derive(Clone, Debug)]
enum Object {
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
}

impl Object {
    fn version(&self) -> Option<&str> {
        match self {
            Self::ConfigMap(it) => it.metadata.resource_version.as_deref(),
            Self::Secret(it) => it.metadata.resource_version.as_deref(),
        }
    }

    fn is_immutable(&self) -> bool {
        match self {
            Self::ConfigMap(it) => it.immutable == Some(true),
            Self::Secret(it) => it.immutable == Some(true),
        }
    }
}

/// What is known of an object; one asks at a time, the others wait for its answer.
type Slot = Arc<tokio::sync::Mutex<Option<Known>>>;

#[derive(Clone, Debug)]
struct Known {
    object: Option<Object>,
    asked: Instant,
}

/// The objects that this node's pods refer to.
#[derive(Clone)]
pub struct Objects {
    client: kube::Client,
    slots: Arc<Mutex<HashMap<Key, Slot>>>,
    pods: Arc<Mutex<HashMap<String, Arc<Pod>>>>,
}

impl Objects {
    /// None yet.
    pub fn new(client: kube::Client) -> Self {
        Self { client, slots: Arc::default(), pods: Arc::default() }
    }

    /// All that `pod` refers to and that is there, as of now.
    ///
    /// # Errors
    /// The API server's, but of an object that is not there: that is left out.
    pub async fn of(&self, pod: &Pod) -> Result<PodObjects, kube::Error> {
        let mut objects = PodObjects::default();
        for key in keys(pod) {
            let age = if key.name == ROOT_CA { REFRESH } else { FRESH };
            match self.get(&key, age).await? {
                Some(Object::ConfigMap(it)) => objects.config_maps.push(it),
                Some(Object::Secret(it)) => objects.secrets.push(it),
                None => {}
            }
        }
        Ok(objects)
    }

    /// A pod is here, and what it refers to is kept up to date.
    pub fn hold(&self, uid: &str, pod: &Arc<Pod>) {
        self.pods().insert(uid.to_owned(), pod.clone());
    }

    /// A pod is here no more.
    pub fn release(&self, uid: &str) {
        self.pods().remove(uid);
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps everything that pods refer to up to date, for ever.
    pub async fn refresh(self, front: Front) {
        loop {
            tokio::time::sleep(MISSING).await;
            let pods: Vec<(String, Arc<Pod>)> =
                self.pods().iter().map(|(uid, pod)| (uid.clone(), pod.clone())).collect();
            let wanted: BTreeSet<Key> = pods.iter().flat_map(|(_, pod)| keys(pod)).collect();
            self.slots
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|key, _| wanted.contains(key));
            let mut changed = BTreeSet::new();
            for key in &wanted {
                match self.look_again(key).await {
                    Ok(false) => {}
                    Ok(true) => drop(changed.insert(key)),
                    // Files stay as they are, and the next look comes.
                    Err(error) => tracing::debug!(%error, key.name, "an object cannot be read"),
                }
            }
            if changed.is_empty() {
                continue;
            }
            for (uid, pod) in &pods {
                if keys(pod).iter().any(|key| changed.contains(key))
                    && let Ok(objects) = self.of(pod).await
                {
                    front.replace_objects(uid, objects).await;
                }
            }
        }
    }

    /// Asks for an object where it is due; whether it is another one than before.
    async fn look_again(&self, key: &Key) -> Result<bool, kube::Error> {
        let slot = self.slot(key);
        let before = slot.lock().await.clone();
        let Some(before) = before else {
            // Of a pod that an earlier agent took on: the agent has what it was then.
            return Ok(self.get(key, REFRESH).await?.is_some());
        };
        let due = match &before.object {
            Some(object) if object.is_immutable() => return Ok(false),
            Some(_) => REFRESH,
            None => MISSING,
        };
        if before.asked.elapsed() < due {
            return Ok(false);
        }
        let now = self.get(key, Duration::ZERO).await?;
        let version =
            |object: &Option<Object>| object.as_ref().and_then(Object::version).map(str::to_owned);
        Ok(version(&now) != version(&before.object))
    }

    fn slot(&self, key: &Key) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(key.clone()).or_default().clone()
    }

    async fn get(&self, key: &Key, age: Duration) -> Result<Option<Object>, kube::Error> {
        let slot = self.slot(key);
        let mut known = slot.lock().await;
        if let Some(known) =
            known.as_ref().filter(|it| it.object.is_some() && it.asked.elapsed() < age)
        {
            return Ok(known.object.clone());
        }
        let asked = Instant::now();
        let object = match key.kind {
            Kind::ConfigMap => Api::<ConfigMap>::namespaced(self.client.clone(), &key.namespace)
                .get_opt(&key.name)
                .await?
                .map(|it| Object::ConfigMap(Arc::new(it))),
            Kind::Secret => Api::<Secret>::namespaced(self.client.clone(), &key.namespace)
                .get_opt(&key.name)
                .await?
                .map(|it| Object::Secret(Arc::new(it))),
        };
        // The same as before is the one that is shared already.
        let same = known
            .as_ref()
            .and_then(|it| it.object.clone())
            .filter(|before| object.as_ref().is_some_and(|now| now.version() == before.version()));
        let object = same.or(object);
        *known = Some(Known { object: object.clone(), asked });
        Ok(object)
    }
}

fn keys(pod: &Pod) -> Vec<Key> {
    let found = References::of(pod);
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let key = |kind, name: &str| Key { kind, namespace: namespace.clone(), name: name.to_owned() };
    let config_maps = found.config_maps.into_iter().map(|name| key(Kind::ConfigMap, name));
    let secrets = found.secrets.into_iter().map(|name| key(Kind::Secret, name));
    config_maps.chain(secrets).collect()
}
