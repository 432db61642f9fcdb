//! Who asks, and whether they may: x509 or TokenReview first, then SubjectAccessReviews, as a kubelet does it.
//!
//! Nobody is anonymous, and there is no other way in. What was decided is kept for a while, in caches that are bounded: a client
//! with rights to nothing cannot make them grow. Where the API server does not answer, what is not in a cache is refused.
//! Absent: what a request needs ([`super::route`]).

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use http::HeaderValue;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::route::Attributes;

/// How long a token's user is believed: the kubelet's `authentication.webhook.cacheTTL`.
const TOKEN_KNOWN: Duration = Duration::from_secs(120);
/// How long a token that is none is not asked about again.
const TOKEN_REFUSED: Duration = Duration::from_secs(10);
/// The kubelet's `authorization.webhook.cacheAuthorizedTTL`.
const ALLOWED: Duration = Duration::from_secs(300);
/// The kubelet's `authorization.webhook.cacheUnauthorizedTTL`.
const DENIED: Duration = Duration::from_secs(30);
/// Decisions kept of either kind: far more than a cluster has clients of one node.
const KEPT: usize = 4096;
/// Reviews of either kind under way at a time: strangers wait for each other, and neither the API server nor who is known for them.
const REVIEWS: usize = 16;
/// The longest token that is asked about; a ServiceAccount's has some 1.5 KiB.
const TOKEN_MAX: usize = 16 << 10;
/// How often the file of authorities is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// The name: a certificate's CN, or a token's.
    pub name: String,
    /// The UID, where a token has one.
    pub uid: String,
    /// A certificate's Os, or a token's.
    pub groups: Vec<String>,
    /// What a token says beyond that.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What the API server decides for us.
pub trait Reviews: Send + Sync + 'static {
    /// Whose token it is; `None`: nobody's. An error is that nobody could say.
    fn token_review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, String>>;

    /// Whether the user may do this with this node.
    fn subject_access_review<'a>(
        &'a self,
        user: &'a User,
        asked: Attributes,
    ) -> BoxFuture<'a, Result<bool, String>>;
}

/// The reviews of a real API server.
pub struct ClusterReviews {
    client: kube::Client,
    node: String,
}

impl ClusterReviews {
    /// Asks by this client, about the node of this name.
    pub fn new(client: kube::Client, node: impl Into<String>) -> Self {
        Self { client, node: node.into() }
    }
}

impl std::fmt::Debug for ClusterReviews {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ClusterReviews").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Reviews for ClusterReviews {
    fn token_review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, String>> {
        Box::pin(async move {
            // Without audiences the API server takes its own: a token for somebody else is refused by it.
            let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
            let review = TokenReview { spec, ..TokenReview::default() };
            let reviews: Api<TokenReview> = Api::all(self.client.clone());
            let answer =
                reviews.create(&PostParams::default(), &review).await.map_err(|error| {
                    format!("the API server cannot be asked about a token: {error}")
                })?;
            let status = answer.status.unwrap_or_default();
            if status.authenticated != Some(true) {
                return Ok(None);
            }
            let user = status.user.unwrap_or_default();
            Ok(user.username.map(|name| User {
                name,
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            }))
        })
    }

    fn subject_access_review<'a>(
        &'a self,
        user: &'a User,
        asked: Attributes,
    ) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async move {
            let attributes = ResourceAttributes {
                verb: Some(asked.verb.to_owned()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(asked.subresource.to_owned()),
                name: Some(self.node.clone()),
                ..ResourceAttributes::default()
            };
            let spec = SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: (!user.uid.is_empty()).then(|| user.uid.clone()),
                groups: Some(user.groups.clone()),
                extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
            let answer =
                reviews.create(&PostParams::default(), &review).await.map_err(|error| {
                    format!("the API server cannot be asked what {:?} may: {error}", user.name)
                })?;
            Ok(answer.status.is_some_and(|it| it.allowed && it.denied != Some(true)))
        })
    }
}

/// Whose client certificates are believed: the cluster's client CA.
pub struct ClientAuthorities {
    file: Option<PathBuf>,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    looked: Option<Instant>,
    stamp: Option<(SystemTime, u64)>,
}

impl ClientAuthorities {
    /// These certificates and no others. None: no client certificate is believed.
    ///
    /// # Errors
    /// A certificate that cannot be an authority's.
    pub fn fixed(certificates: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        let loaded = Loaded { verifier: verifier(certificates)?, ..Loaded::default() };
        Ok(Self { file: None, loaded: Mutex::new(loaded) })
    }

    /// Those of a PEM file, which is read again when it changes. A file that cannot be read leaves what was read before.
    ///
    /// # Errors
    /// The file cannot be read now.
    pub fn file(path: impl Into<PathBuf>) -> Result<Self, String> {
        let path = path.into();
        let stamp = stamp(&path);
        let verifier = verifier(read(&path)?)?;
        let loaded = Loaded { verifier, looked: Some(Instant::now()), stamp };
        Ok(Self { file: Some(path), loaded: Mutex::new(loaded) })
    }

    fn verifier(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        let mut loaded = lock(&self.loaded);
        let due = loaded.looked.is_none_or(|looked| looked.elapsed() >= LOOK);
        if let (Some(path), true) = (&self.file, due) {
            loaded.looked = Some(Instant::now());
            let now = stamp(path);
            if now.is_some() && now != loaded.stamp {
                match read(path).and_then(verifier) {
                    Ok(verifier) => (loaded.verifier, loaded.stamp) = (verifier, now),
                    Err(error) => tracing::warn!(error, "the client authorities stay as they were"),
                }
            }
        }
        loaded.verifier.clone()
    }

    /// Whose certificate it is, where an authority of ours vouches for it now.
    fn user(&self, chain: &[CertificateDer<'_>]) -> Option<User> {
        let (leaf, rest) = chain.split_first()?;
        let verified = self.verifier()?.verify_client_cert(leaf, rest, UnixTime::now());
        if let Err(error) = verified {
            tracing::debug!(%error, "a client certificate is not believed");
            return None;
        }
        subject(leaf)
    }
}

impl std::fmt::Debug for ClientAuthorities {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ClientAuthorities").field("file", &self.file).finish_non_exhaustive()
    }
}

fn stamp(path: &std::path::Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: &dyn std::fmt::Display| {
        format!("the client authorities in {} cannot be read: {error}", path.display())
    };
    CertificateDer::pem_file_iter(path)
        .map_err(|error| failed(&error))?
        .collect::<Result<_, _>>()
        .map_err(|error| failed(&error))
}

fn verifier(
    certificates: Vec<CertificateDer<'static>>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    if certificates.is_empty() {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate)
            .map_err(|error| format!("a client authority's certificate is refused: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| format!("the client authorities are refused: {error}"))?;
    Ok(Some(verifier))
}

/// A certificate's user, as Kubernetes reads it: the CN is the name, each O a group.
fn subject(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|it| it.as_str().ok().map(str::to_owned));
    (!name.is_empty()).then(|| User { name, groups: groups.collect(), ..User::default() })
}

/// The two questions, and what was answered lately.
pub(crate) struct Access {
    authorities: ClientAuthorities,
    reviews: Arc<dyn Reviews>,
    tokens: Mutex<Cache<[u8; 32], Option<User>>>,
    rights: Mutex<Cache<(User, Attributes), bool>>,
    strangers: Semaphore,
    asking: Semaphore,
}

impl Access {
    pub(crate) fn new(authorities: ClientAuthorities, reviews: Arc<dyn Reviews>) -> Self {
        Self {
            authorities,
            reviews,
            tokens: Mutex::new(Cache::new(KEPT)),
            rights: Mutex::new(Cache::new(KEPT)),
            strangers: Semaphore::new(REVIEWS),
            asking: Semaphore::new(REVIEWS),
        }
    }

    /// Who asks, by the certificates of the connection, else by the request's bearer token. `None`: 401.
    pub(crate) async fn user(
        &self,
        certificates: &[CertificateDer<'_>],
        authorization: Option<&HeaderValue>,
    ) -> Option<User> {
        let user = match self.authorities.user(certificates) {
            Some(user) => user,
            None => self.bearer(token(authorization?)?).await?,
        };
        Some(authenticated(user))
    }

    async fn bearer(&self, token: &str) -> Option<User> {
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = lock(&self.tokens).get(&key) {
            return known;
        }
        let _turn = self.strangers.acquire().await.ok()?;
        // Another request with this token may have been answered meanwhile.
        if let Some(known) = lock(&self.tokens).get(&key) {
            return known;
        }
        match self.reviews.token_review(token).await {
            Ok(user) => {
                let keep = if user.is_some() { TOKEN_KNOWN } else { TOKEN_REFUSED };
                lock(&self.tokens).put(key, user.clone(), keep);
                user
            }
            Err(error) => {
                tracing::warn!(error, "a bearer token is refused, as nobody can say whose it is");
                None
            }
        }
    }

    /// Whether one of the attributes is allowed.
    ///
    /// # Errors
    /// Nobody could say.
    pub(crate) async fn may(&self, user: &User, asked: &[Attributes]) -> Result<bool, String> {
        for &attributes in asked {
            let key = (user.clone(), attributes);
            let known = lock(&self.rights).get(&key);
            let allowed = match known {
                Some(known) => known,
                None => {
                    let _turn = self.asking.acquire().await.map_err(|error| error.to_string())?;
                    let allowed = self.reviews.subject_access_review(user, attributes).await?;
                    lock(&self.rights).put(key, allowed, if allowed { ALLOWED } else { DENIED });
                    allowed
                }
            };
            if allowed {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The token of an `Authorization` header.
fn token(header: &HeaderValue) -> Option<&str> {
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let is_one = scheme.eq_ignore_ascii_case("bearer")
        && !token.is_empty()
        && token.len() <= TOKEN_MAX
        && !token.contains(' ');
    is_one.then_some(token)
}

/// Whoever is known belongs to this group, by a certificate too.
fn authenticated(mut user: User) -> User {
    const GROUP: &str = "system:authenticated";
    let is_anonymous = user.name == "system:anonymous"
        || user.groups.iter().any(|group| group == GROUP || group == "system:unauthenticated");
    if !is_anonymous {
        user.groups.push(GROUP.to_owned());
    }
    user
}

/// Answers with an end, so many and no more.
struct Cache<K, V> {
    entries: HashMap<K, (V, Instant)>,
    most: usize,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    fn new(most: usize) -> Self {
        Self { entries: HashMap::new(), most }
    }

    fn get(&self, key: &K) -> Option<V> {
        let (value, until) = self.entries.get(key)?;
        (Instant::now() < *until).then(|| value.clone())
    }

    fn put(&mut self, key: K, value: V, keep: Duration) {
        let now = Instant::now();
        if self.entries.len() >= self.most && !self.entries.contains_key(&key) {
            self.entries.retain(|_, (_, until)| now < *until);
            if self.entries.len() >= self.most {
                // So many clients at once are an attack: asking again is cheap beside remembering which of them came first.
                self.entries.clear();
            }
        }
        self.entries.insert(key, (value, now + keep));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows one token, allows one thing, and counts.
    #[derive(Default)]
    struct Counted {
        asked: Mutex<Vec<String>>,
        down: Mutex<bool>,
    }

    impl Counted {
        fn note(&self, what: String) -> Result<(), String> {
            lock(&self.asked).push(what);
            if *lock(&self.down) { Err("no API server".into()) } else { Ok(()) }
        }

        fn asked(&self) -> Vec<String> {
            std::mem::take(&mut lock(&self.asked))
        }
    }

    impl Reviews for Counted {
        fn token_review<'a>(
            &'a self,
            token: &'a str,
        ) -> BoxFuture<'a, Result<Option<User>, String>> {
            Box::pin(async move {
                self.note(token.to_owned())?;
                let user = User { name: "prober".into(), ..User::default() };
                Ok((token == "good").then_some(user))
            })
        }

        fn subject_access_review<'a>(
            &'a self,
            _: &'a User,
            asked: Attributes,
        ) -> BoxFuture<'a, Result<bool, String>> {
            Box::pin(async move {
                self.note(format!("{} {}", asked.verb, asked.subresource))?;
                Ok(asked.subresource == "proxy")
            })
        }
    }

    fn access() -> (Arc<Counted>, Access) {
        let reviews = Arc::new(Counted::default());
        let none = ClientAuthorities::fixed(Vec::new()).expect("nobody");
        (reviews.clone(), Access::new(none, reviews))
    }

    fn bearer(token: &str) -> HeaderValue {
        HeaderValue::from_str(&format!("Bearer {token}")).expect("a header")
    }

    const PODS: Attributes = Attributes { verb: "get", subresource: "pods" };
    const PROXY: Attributes = Attributes { verb: "get", subresource: "proxy" };

    #[tokio::test(start_paused = true)]
    async fn a_token_is_asked_about_once_in_two_minutes_and_a_bad_one_once_in_ten_seconds() {
        let (reviews, access) = access();

        for _ in 0..3 {
            let user = access.user(&[], Some(&bearer("good"))).await.expect("known");
            assert_eq!(
                (user.name.as_str(), user.groups),
                ("prober", vec!["system:authenticated".into()])
            );
            assert_eq!(access.user(&[], Some(&bearer("bad"))).await, None);
        }
        assert_eq!(reviews.asked(), ["good", "bad"]);
        tokio::time::advance(TOKEN_REFUSED).await;
        access.user(&[], Some(&bearer("good"))).await.expect("known");
        assert_eq!(access.user(&[], Some(&bearer("bad"))).await, None);
        assert_eq!(reviews.asked(), ["bad"]);
        tokio::time::advance(TOKEN_KNOWN).await;
        access.user(&[], Some(&bearer("good"))).await.expect("known");
        assert_eq!(reviews.asked(), ["good"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_attribute_that_is_allowed_suffices_and_answers_are_kept() {
        let (reviews, access) = access();
        let user = User::default();

        assert_eq!(access.may(&user, &[PODS, PROXY]).await, Ok(true));
        assert_eq!(access.may(&user, &[PODS, PROXY]).await, Ok(true));
        assert_eq!(reviews.asked(), ["get pods", "get proxy"]);
        tokio::time::advance(DENIED).await;
        assert_eq!(access.may(&user, &[PODS]).await, Ok(false));
        assert_eq!(access.may(&user, &[PROXY]).await, Ok(true));
        assert_eq!(reviews.asked(), ["get pods"]);
        assert_eq!(access.may(&user, &[]).await, Ok(false));
        let other = User { name: "other".into(), ..User::default() };
        assert_eq!(access.may(&other, &[PROXY]).await, Ok(true));
        assert_eq!(reviews.asked(), ["get proxy"]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_api_server_only_what_was_allowed_before_is_allowed() {
        let (reviews, access) = access();
        access.user(&[], Some(&bearer("good"))).await.expect("known");
        assert_eq!(access.may(&User::default(), &[PROXY]).await, Ok(true));
        *lock(&reviews.down) = true;

        access.user(&[], Some(&bearer("good"))).await.expect("still known");
        assert_eq!(access.may(&User::default(), &[PROXY]).await, Ok(true));
        assert_eq!(access.user(&[], Some(&bearer("other"))).await, None);
        assert!(access.may(&User::default(), &[PODS]).await.is_err());
        tokio::time::advance(ALLOWED).await;
        assert_eq!(access.user(&[], Some(&bearer("good"))).await, None);
        assert!(access.may(&User::default(), &[PROXY]).await.is_err());
    }

    #[test]
    fn only_a_bearer_token_is_a_token() {
        let of =
            |text: &str| token(&HeaderValue::from_str(text).expect("a header")).map(str::to_owned);

        assert_eq!(of("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(of("bearer  abc ").as_deref(), Some("abc"));
        for other in ["Basic abc", "Bearer", "Bearer ", "Bearer a b", "abc", ""] {
            assert_eq!(of(other), None, "{other:?}");
        }
        assert_eq!(of(&format!("Bearer {}", "x".repeat(TOKEN_MAX + 1))), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cache_holds_no_more_than_it_may() {
        let mut cache = Cache::new(3);

        for key in 0..100 {
            cache.put(key, key, DENIED);
            assert!(cache.entries.len() <= 3);
            assert_eq!(cache.get(&key), Some(key));
        }
        tokio::time::advance(DENIED).await;
        assert_eq!(cache.get(&99), None);
    }
}
