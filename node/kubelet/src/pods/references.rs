//! What pods refer to: ConfigMaps, Secrets and claims of volumes, asked of the API server one by one by name, as a node may read no list of
//! them; tokens of their service accounts, bound to the pod; and the Services that their containers are told of.
//!
//! Each object is asked once for all pods that name it, and again every minute while one of them is here, as a kubelet's cache does; one that
//! is missing sooner. What changed is handed to the agent, which writes the pods' files anew. An immutable object is asked once, and
//! a token anew at four fifths of its life.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use copepod_agent::front::{Front, PodObjects, PodToken};
use copepod_node::env::service_variables;
use copepod_node::objects::{ClaimedVolume, References, WantedToken, wanted_tokens};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
};
use kube::api::{Api, PostParams};
use kube::runtime::reflector::Store;

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
    /// A PersistentVolumeClaim, with the volume that it is bound to.
    Claim,
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
    Claim(ClaimedVolume),
}

impl Object {
    /// What changes with it.
    fn version(&self) -> Option<&str> {
        match self {
            Self::ConfigMap(it) => it.metadata.resource_version.as_deref(),
            Self::Secret(it) => it.metadata.resource_version.as_deref(),
            Self::Claim(ClaimedVolume::Folder { path, .. }) => Some(path),
            Self::Claim(ClaimedVolume::Not(why)) => Some(why),
        }
    }

    /// Whether it is there and yet of no use: it is asked for again as soon as one that is missing.
    fn is_wanting(&self) -> bool {
        matches!(self, Self::Claim(ClaimedVolume::Not(_)))
    }

    fn is_immutable(&self) -> bool {
        match self {
            Self::ConfigMap(it) => it.immutable == Some(true),
            Self::Secret(it) => it.immutable == Some(true),
            // A claim that is bound is so for good, and so is where its volume lies.
            Self::Claim(claim) => matches!(claim, ClaimedVolume::Folder { .. }),
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
    services: Store<Service>,
    slots: Arc<Mutex<HashMap<Key, Slot>>>,
    pods: Arc<Mutex<HashMap<String, Held>>>,
    tokens: Arc<Mutex<HashMap<String, Vec<Token>>>>,
}

/// A pod that is here, with what is looked at again and again, found once.
#[derive(Clone)]
struct Held {
    pod: Arc<Pod>,
    keys: Arc<[Key]>,
    wants_tokens: bool,
}

/// A token at hand.
#[derive(Clone)]
struct Token {
    token: PodToken,
    /// When another one is asked for.
    renew: Timestamp,
}

impl Objects {
    /// None yet; `services` are all of the cluster's.
    pub fn new(client: kube::Client, services: Store<Service>) -> Self {
        Self {
            client,
            services,
            slots: Arc::default(),
            pods: Arc::default(),
            tokens: Arc::default(),
        }
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
                Some(Object::Claim(it)) => objects.claims.push((key.name, it)),
                None => {}
            }
        }
        objects.tokens = self.tokens_of(pod).await?;
        // No container is begun without the variables of Services that were there before it.
        let _ = self.services.wait_until_ready().await;
        let services = self.services.state();
        objects.services = service_variables(pod, services.iter().map(|it| &**it)).into();
        Ok(objects)
    }

    /// The tokens that the pod's volumes show, those that are due asked for anew.
    async fn tokens_of(&self, pod: &Pod) -> Result<Vec<PodToken>, kube::Error> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let now = Timestamp::now();
        let held = self.tokens().get(&uid).cloned().unwrap_or_default();
        let mut tokens = Vec::new();
        for wanted in wanted_tokens(pod) {
            let at_hand = held.iter().find(|it| is_for(&it.token, wanted) && it.renew > now);
            tokens.push(match at_hand {
                Some(token) => token.clone(),
                None => self.request(pod, wanted).await?,
            });
        }
        let given = tokens.iter().map(|it| it.token.clone()).collect();
        if !tokens.is_empty() {
            self.tokens().insert(uid, tokens);
        }
        Ok(given)
    }

    async fn request(&self, pod: &Pod, wanted: WantedToken<'_>) -> Result<Token, kube::Error> {
        let meta = &pod.metadata;
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: wanted.audience.map(|audience| vec![audience.to_owned()]),
                expiration_seconds: Some(wanted.expiration_seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: meta.name.clone(),
                    uid: meta.uid.clone(),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let name = account.unwrap_or("default");
        let given = api.create_token_request(name, &PostParams::default(), &request).await?;
        let status = given.status.unwrap_or_default();
        let now = Timestamp::now();
        Ok(Token {
            // One without an end is asked for again at once.
            renew: renewal(now, status.expiration_timestamp.map_or(now, |end| end.0)),
            token: PodToken {
                audience: wanted.audience.map(str::to_owned),
                expiration_seconds: wanted.expiration_seconds,
                token: status.token.unwrap_or_default(),
            },
        })
    }

    /// A pod is here, and what it refers to is kept up to date.
    pub fn hold(&self, uid: &str, pod: &Arc<Pod>) {
        let mut pods = self.pods();
        if !pods.get(uid).is_some_and(|held| Arc::ptr_eq(&held.pod, pod)) {
            let wants_tokens = !wanted_tokens(pod).is_empty();
            let held = Held { pod: pod.clone(), keys: keys(pod).into(), wants_tokens };
            pods.insert(uid.to_owned(), held);
        }
    }

    /// A pod is here no more.
    pub fn release(&self, uid: &str) {
        self.pods().remove(uid);
        self.tokens().remove(uid);
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<Token>>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token of the pod is due, or none is at hand: of a pod that an earlier agent took on. All of a pod are asked for together.
    fn is_token_due(&self, uid: &str, held: &Held, now: Timestamp) -> bool {
        let is_due = |tokens: &Vec<Token>| tokens.iter().any(|it| it.renew <= now);
        held.wants_tokens && self.tokens().get(uid).is_none_or(is_due)
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, HashMap<String, Held>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps everything that pods refer to up to date, for ever.
    pub async fn refresh(self, front: Front) {
        loop {
            tokio::time::sleep(MISSING).await;
            let pods: Vec<(String, Held)> =
                self.pods().iter().map(|(uid, held)| (uid.clone(), held.clone())).collect();
            let wanted: BTreeSet<&Key> = pods.iter().flat_map(|(_, held)| &*held.keys).collect();
            self.slots
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|key, _| wanted.contains(key));
            let mut changed = BTreeSet::new();
            for key in wanted {
                match self.look_again(key).await {
                    Ok(false) => {}
                    Ok(true) => drop(changed.insert(key)),
                    // Files stay as they are, and the next look comes.
                    Err(error) => tracing::debug!(%error, key.name, "an object cannot be read"),
                }
            }
            let now = Timestamp::now();
            for (uid, held) in &pods {
                let touched = held.keys.iter().any(|it| changed.contains(it));
                if !touched && !self.is_token_due(uid, held, now) {
                    continue;
                }
                match self.of(&held.pod).await {
                    Ok(objects) => front.replace_objects(uid, objects).await,
                    Err(error) => {
                        tracing::debug!(%error, uid, "what a pod refers to cannot be read")
                    }
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
            Some(object) if object.is_wanting() => MISSING,
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
            Kind::Claim => self.claimed(&key.namespace, &key.name).await?.map(Object::Claim),
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

impl Objects {
    /// What a claim has come to; none: there is no such claim.
    async fn claimed(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ClaimedVolume>, kube::Error> {
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
        let Some(claim) = claims.get_opt(name).await? else { return Ok(None) };
        let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        let volume = match bound.filter(|bound| !bound.is_empty()) {
            Some(bound) => Api::<PersistentVolume>::all(self.client.clone()).get_opt(bound).await?,
            None => None,
        };
        Ok(Some(ClaimedVolume::of(&claim, volume.as_ref())))
    }
}

fn is_for(token: &PodToken, wanted: WantedToken<'_>) -> bool {
    token.audience.as_deref() == wanted.audience
        && token.expiration_seconds == wanted.expiration_seconds
}

/// When a token of this end is asked for anew: at four fifths of its life, and after a day at the latest, as a kubelet does.
fn renewal(now: Timestamp, end: Timestamp) -> Timestamp {
    let life = Duration::try_from(end.duration_since(now)).unwrap_or_default();
    now + (life * 4 / 5).min(Duration::from_secs(24 * 3600))
}

fn keys(pod: &Pod) -> Vec<Key> {
    let found = References::of(pod);
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let key = |kind, name: &str| Key { kind, namespace: namespace.clone(), name: name.to_owned() };
    let config_maps = found.config_maps.into_iter().map(|name| key(Kind::ConfigMap, name));
    let secrets = found.secrets.into_iter().map(|name| key(Kind::Secret, name));
    let claims = found.claims.into_iter().map(|name| key(Kind::Claim, name));
    config_maps.chain(secrets).chain(claims).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_at_four_fifths_of_its_life_and_within_a_day() {
        let now = Timestamp::UNIX_EPOCH;
        let at = |seconds: u64| now + Duration::from_secs(seconds);

        assert_eq!(renewal(now, at(3600)), at(2880));
        assert_eq!(renewal(now, at(30 * 24 * 3600)), at(24 * 3600));
        assert_eq!(renewal(at(100), at(50)), at(100), "one that is over already");
    }
}
