//! One repository of one registry, spoken to with one login: manifests and blobs, both ways.
//!
//! Here: tokens, retries, digests. Absent: where we may go at all ([`crate::guard`]), and what the bytes mean ([`crate::pull`]).

use std::collections::HashMap;
use std::io::{Seek as _, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use reqwest::{Method, Request, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use crate::credentials::Login;
use crate::digest::{Digest, Hash};
use crate::guard::{Failure, Follow, Guard, Origin, authorize, request, shown};
use crate::manifest;
use crate::reference::Reference;
use crate::sizes;
use crate::store::Temp;

/// The distribution specification's own cap for a manifest.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// A token of a megabyte is none; real ones have 5 KiB.
const MAX_TOKEN_ANSWER: u64 = 256 << 10;
/// How much of an error's text is read; it is only shown.
const MAX_ERROR: u64 = 64 << 10;
/// A registry that asks for a longer pause is not waited for: the pod's own back-off comes later.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Tokens that are still good, one set per login: no pod's token is ever used for another login's pull.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<HashMap<TokenKey, (Arc<str>, Instant)>>);

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    login: Option<Digest>,
    registry: Origin,
    repository: String,
    push: bool,
}

/// More tokens than pulls can be under way; above it the old ones are dropped.
const MAX_TOKENS: usize = 1_000;

impl Tokens {
    fn get(&self, key: &TokenKey) -> Option<Arc<str>> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens
            .get(key)
            .filter(|(_, until)| *until > Instant::now())
            .map(|(header, _)| header.clone())
    }

    fn put(&self, key: TokenKey, header: Arc<str>, good_for: Duration) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            let now = Instant::now();
            tokens.retain(|_, (_, until)| *until > now);
            if tokens.len() >= MAX_TOKENS {
                tokens.clear();
            }
        }
        tokens.insert(key, (header, Instant::now() + good_for));
    }

    fn forget(&self, key: &TokenKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// A manifest or index as it came.
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) content_type: Option<String>,
}

/// A repository, and who we are to it.
pub(crate) struct Repository<'a> {
    guard: &'a Guard,
    tokens: &'a Tokens,
    base: Url,
    origin: Origin,
    name: &'a str,
    registry: &'a str,
    login: Option<&'a Login>,
    key: TokenKey,
}

/// What a request carries, so that it can be built again for another attempt.
enum Payload<'a> {
    None,
    Bytes(&'static str, Vec<u8>),
    File(&'a std::fs::File, u64),
}

impl<'a> Repository<'a> {
    pub(crate) fn new(
        guard: &'a Guard,
        tokens: &'a Tokens,
        reference: &'a Reference,
        login: Option<&'a Login>,
        push: bool,
    ) -> Result<Self, Failure> {
        let base = guard.base(reference.api_host())?;
        let origin =
            Origin::of(&base).ok_or_else(|| Failure::Blocked("the registry has no host".into()))?;
        let key = TokenKey {
            login: login.map(|it| it.mark(b"")),
            registry: origin.clone(),
            repository: reference.repository().to_owned(),
            push,
        };
        Ok(Self {
            guard,
            tokens,
            base,
            origin,
            name: reference.repository(),
            registry: reference.registry(),
            login,
            key,
        })
    }

    fn url(&self, rest: &str) -> Result<Url, Failure> {
        self.base
            .join(&format!("/v2/{}/{rest}", self.name))
            .map_err(|_| Failure::Blocked(format!("{rest:?} makes no address")))
    }

    /// Whether the registry takes this login at all.
    pub(crate) async fn ping(&self) -> Result<(), Failure> {
        let url = self.base.join("/v2/").map_err(|_| Failure::Blocked("no address".into()))?;
        let response = self
            .ask(Method::GET, &url, &HeaderMap::new(), &Payload::None, Follow::Redirects)
            .await?;
        self.expect(response, &[StatusCode::OK]).await.map(|_| ())
    }

    /// Fetches a manifest or index by tag or digest; a digest is checked.
    pub(crate) async fn manifest(
        &self,
        version: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, Failure> {
        let url = self.url(&format!("manifests/{version}"))?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let response =
            self.ask(Method::GET, &url, &headers, &Payload::None, Follow::Redirects).await?;
        let response = self.expect(response, &[StatusCode::OK]).await?;
        let text = |name: &str| {
            response.headers().get(name).and_then(|it| it.to_str().ok()).map(str::to_owned)
        };
        let content_type = text("content-type");
        let announced = text("docker-content-digest");
        let bytes = self.guard.read(response, MAX_MANIFEST, "the image's manifest").await?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(Failure::Corrupt(format!(
                "the manifest that the registry sent has digest {digest}, and {expected} was asked for"
            )));
        }
        if let Some(announced) = announced.filter(|it| it.starts_with("sha256:"))
            && announced != digest.as_str()
        {
            let announced: String = announced.chars().take(80).collect();
            return Err(Failure::Corrupt(format!(
                "the registry announced a manifest of digest {announced:?} and sent one of {digest}"
            )));
        }
        Ok(Fetched { bytes, digest, content_type })
    }

    /// Fetches a small blob into memory.
    pub(crate) async fn small_blob(
        &self,
        digest: &Digest,
        size: u64,
        cap: u64,
        what: &str,
    ) -> Result<Vec<u8>, Failure> {
        if size > cap {
            return Err(Failure::Unusable(format!(
                "{what} is said to have {}, more than {}",
                sizes::shown(size),
                sizes::shown(cap)
            )));
        }
        let response = self.blob_response(digest).await?;
        let bytes =
            self.guard.read(response, size.max(1), what).await.map_err(
                |failure| match failure {
                    Failure::Unusable(_) => Failure::Corrupt(format!(
                        "{what} is longer than the {size} bytes in its manifest"
                    )),
                    other => other,
                },
            )?;
        check_blob(what, digest, size, &Digest::of(&bytes), bytes.len() as u64)?;
        Ok(bytes)
    }

    /// Streams a blob into `temp`. Its bytes are those of `digest` when this returns `Ok`. `came` hears of each piece, and of
    /// `None` where an attempt begins anew.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        temp: &Temp,
        came: &mut (dyn FnMut(Option<u64>) + Send),
    ) -> Result<(), Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            came(None);
            match self.blob_once(digest, size, temp, came).await {
                // A broken line, not a wrong answer: those are not asked for twice.
                Err(Failure::Unavailable(why)) if attempt < self.guard.rules.attempts => {
                    tracing::info!(registry = self.registry, %digest, attempt, why, "a download is begun again");
                    tokio::time::sleep(self.pause(attempt, None)).await;
                }
                other => return other,
            }
        }
    }

    async fn blob_once(
        &self,
        digest: &Digest,
        size: u64,
        temp: &Temp,
        came: &mut (dyn FnMut(Option<u64>) + Send),
    ) -> Result<(), Failure> {
        let response = self.blob_response(digest).await?;
        if let Some(length) = response.content_length()
            && length != size
        {
            return Err(Failure::Corrupt(format!(
                "layer {digest} has {length} bytes, and {size} in its manifest"
            )));
        }
        temp.file().set_len(0)?;
        temp.file().seek(SeekFrom::Start(0))?;
        let mut file = tokio::fs::File::from_std(temp.file().try_clone()?);
        let mut body = self.guard.body(response);
        let mut hash = Hash::default();
        let mut length = 0u64;
        while let Some(chunk) = body.next().await? {
            length += chunk.len() as u64;
            if length > size {
                return Err(Failure::Corrupt(format!(
                    "layer {digest} is longer than the {size} bytes in its manifest"
                )));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await?;
            came(Some(chunk.len() as u64));
        }
        file.flush().await?;
        check_blob("layer", digest, size, &hash.finish(), length)
    }

    async fn blob_response(&self, digest: &Digest) -> Result<Response, Failure> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let response = self
            .ask(Method::GET, &url, &HeaderMap::new(), &Payload::None, Follow::Redirects)
            .await?;
        self.expect(response, &[StatusCode::OK]).await
    }

    /// Uploads a blob, unless the registry has it.
    pub(crate) async fn push_blob(
        &self,
        digest: &Digest,
        file: &std::fs::File,
        size: u64,
    ) -> Result<(), Failure> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let here = self
            .ask(Method::HEAD, &url, &HeaderMap::new(), &Payload::None, Follow::Redirects)
            .await?;
        if here.status() == StatusCode::OK {
            return Ok(());
        }
        let url = self.url("blobs/uploads/")?;
        let begun = self
            .ask(
                Method::POST,
                &url,
                &HeaderMap::new(),
                &Payload::Bytes("application/octet-stream", Vec::new()),
                Follow::Nothing,
            )
            .await?;
        let begun = self.expect(begun, &[StatusCode::ACCEPTED]).await?;
        let mut target = begun
            .headers()
            .get(LOCATION)
            .and_then(|it| it.to_str().ok())
            .and_then(|it| url.join(it).ok())
            .ok_or_else(|| Failure::Corrupt("the registry names no place to upload to".into()))?;
        target.query_pairs_mut().append_pair("digest", digest.as_str());
        let done = self
            .ask(
                Method::PUT,
                &target,
                &HeaderMap::new(),
                &Payload::File(file, size),
                Follow::Nothing,
            )
            .await?;
        self.expect(done, &[StatusCode::CREATED, StatusCode::NO_CONTENT]).await.map(|_| ())
    }

    /// Puts a manifest under a tag.
    pub(crate) async fn push_manifest(
        &self,
        tag: &str,
        media_type: &'static str,
        bytes: Vec<u8>,
    ) -> Result<(), Failure> {
        let url = self.url(&format!("manifests/{tag}"))?;
        let done = self
            .ask(
                Method::PUT,
                &url,
                &HeaderMap::new(),
                &Payload::Bytes(media_type, bytes),
                Follow::Nothing,
            )
            .await?;
        self.expect(done, &[StatusCode::CREATED, StatusCode::OK]).await.map(|_| ())
    }

    /// Sends one request, with the token that it needs, again where the registry cannot answer now.
    async fn ask(
        &self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        payload: &Payload<'_>,
        follow: Follow,
    ) -> Result<Response, Failure> {
        let mut attempt = 0;
        let mut fresh = false;
        loop {
            attempt += 1;
            let mut request = build(&method, url, headers, payload)?;
            // An upload's address may be at another host: then it carries its own signature.
            if Origin::of(url).as_ref() == Some(&self.origin) {
                if let Some(header) = self.tokens.get(&self.key) {
                    authorize(&mut request, &header)?;
                } else if let Some(login @ Login::Bearer(_)) = self.login {
                    authorize(&mut request, &login.header())?;
                }
            }
            let response = match self.guard.send(&self.origin, request, follow).await {
                Ok(response) => response,
                Err(Failure::Unavailable(why)) if attempt < self.guard.rules.attempts => {
                    tracing::info!(
                        registry = self.registry,
                        attempt,
                        why,
                        "a registry is asked again"
                    );
                    tokio::time::sleep(self.pause(attempt, None)).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && !fresh {
                // Once: a registry that takes its own new token for none is not argued with.
                fresh = true;
                attempt -= 1;
                self.tokens.forget(&self.key);
                self.authenticate(&response).await?;
                continue;
            }
            let overloaded = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            if !overloaded {
                return Ok(response);
            }
            let asked = retry_after(&response);
            if attempt >= self.guard.rules.attempts || asked.is_some_and(|pause| pause > MAX_PAUSE)
            {
                let shown = shown(url);
                let wait = match asked {
                    Some(pause) => format!(", and asks to be left alone for {} s", pause.as_secs()),
                    None => String::new(),
                };
                return Err(Failure::Unavailable(format!("{shown} answers {status}{wait}")));
            }
            tokio::time::sleep(self.pause(attempt, asked)).await;
        }
    }

    fn pause(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let own = self.guard.rules.backoff.saturating_mul(1 << attempt.saturating_sub(1).min(8));
        own.max(asked.unwrap_or_default()).min(MAX_PAUSE)
    }

    /// Does what a 401's challenge asks for, and keeps the token.
    async fn authenticate(&self, response: &Response) -> Result<(), Failure> {
        let offers: Vec<Challenge> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|it| it.to_str().ok())
            .flat_map(challenges)
            .collect();
        for offer in &offers {
            match offer {
                Challenge::Bearer { realm, service } => {
                    return self.fetch_token(realm, service.as_deref()).await;
                }
                Challenge::Basic => {
                    if let Some(login @ Login::Basic { .. }) = self.login {
                        // Good until refused.
                        self.tokens.put(
                            self.key.clone(),
                            login.header().into(),
                            Duration::from_secs(3600),
                        );
                        return Ok(());
                    }
                }
            }
        }
        Err(Failure::Denied(match (offers.is_empty(), self.login) {
            (true, _) => {
                format!("registry {} refuses access and names no way to log in", self.registry)
            }
            (false, None) => {
                format!("registry {} asks for a login, and there is none", self.registry)
            }
            (false, Some(_)) => {
                format!("registry {} does not take this kind of login", self.registry)
            }
        }))
    }

    async fn fetch_token(&self, realm: &str, service: Option<&str>) -> Result<(), Failure> {
        let mut url = Url::parse(realm).map_err(|_| {
            Failure::Blocked(format!(
                "registry {} names a login server that is no address",
                self.registry
            ))
        })?;
        let server = Origin::of(&url).ok_or_else(|| {
            Failure::Blocked(format!(
                "registry {} names a login server without a host",
                self.registry
            ))
        })?;
        let actions = if self.key.push { "pull,push" } else { "pull" };
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &format!("repository:{}:{actions}", self.name));
        }
        let mut attempt = 0;
        let response = loop {
            attempt += 1;
            let mut request = request(Method::GET, url.clone());
            if let Some(login @ Login::Basic { .. }) = self.login {
                if !self.guard.may_log_in_at(&self.origin, &server) {
                    return Err(Failure::Blocked(format!(
                        "registry {} wants its login to be sent to {}, another host: where that is right, add the pair to `loginHosts`",
                        self.registry,
                        shown(&url)
                    )));
                }
                authorize(&mut request, &login.header())?;
            }
            let failure = match self.guard.send(&self.origin, request, Follow::Nothing).await {
                Ok(response)
                    if response.status() == StatusCode::TOO_MANY_REQUESTS
                        || response.status().is_server_error() =>
                {
                    Failure::Unavailable(format!("{} answers {}", shown(&url), response.status()))
                }
                Ok(response) => break response,
                Err(failure) => failure,
            };
            match failure {
                Failure::Unavailable(_) if attempt < self.guard.rules.attempts => {
                    tokio::time::sleep(self.pause(attempt, None)).await;
                }
                failure => return Err(failure),
            }
        };
        let status = response.status();
        if status != StatusCode::OK {
            return Err(match status.is_redirection() {
                true => Failure::Blocked(format!(
                    "the login server {} redirects, and logins are not carried on",
                    shown(&url)
                )),
                false => Failure::Denied(format!(
                    "the login server {} refuses {} with {status}",
                    shown(&url),
                    if self.login.is_some() { "the login" } else { "a pull without a login" }
                )),
            });
        }
        let bytes =
            self.guard.read(response, MAX_TOKEN_ANSWER, "the login server's answer").await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|_| {
            Failure::Corrupt(format!("the login server {} sends no token", shown(&url)))
        })?;
        let token =
            answer.token.or(answer.access_token).filter(|it| !it.is_empty()).ok_or_else(|| {
                Failure::Corrupt(format!("the login server {} sends no token", shown(&url)))
            })?;
        // The specification's default is 60 s. A fifth is left for the way; no claim is believed beyond an hour.
        let seconds =
            answer.expires_in.and_then(|it| it.as_f64()).filter(|it| *it >= 1.0).unwrap_or(60.0);
        let good_for = Duration::from_secs_f64(seconds.min(3600.0) * 0.8);
        self.tokens.put(self.key.clone(), format!("Bearer {token}").into(), good_for);
        Ok(())
    }

    /// `response`, if its status is among `good`; otherwise what the registry says, in words.
    async fn expect(&self, response: Response, good: &[StatusCode]) -> Result<Response, Failure> {
        let status = response.status();
        if good.contains(&status) {
            return Ok(response);
        }
        let asked = shown(response.url());
        let said = match self.guard.read(response, MAX_ERROR, "an error").await {
            Ok(bytes) => said(&bytes),
            Err(_) => String::new(),
        };
        let who = if self.login.is_some() { "with the login given" } else { "without a login" };
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Denied(format!(
                "registry {} refuses access to {} {who} ({status}{said})",
                self.registry, self.name
            )),
            StatusCode::NOT_FOUND => Failure::NotFound(format!("not found at {asked}{said}")),
            _ => Failure::Unavailable(format!("{asked} answers {status}{said}")),
        })
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// Any number, or nonsense.
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

fn build(
    method: &Method,
    url: &Url,
    headers: &HeaderMap,
    payload: &Payload<'_>,
) -> Result<Request, Failure> {
    let mut request = request(method.clone(), url.clone());
    request.headers_mut().extend(headers.clone());
    match payload {
        Payload::None => {}
        Payload::Bytes(media_type, bytes) => {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
            *request.body_mut() = Some(bytes.clone().into());
        }
        Payload::File(file, size) => {
            let mut file = file.try_clone()?;
            file.seek(SeekFrom::Start(0))?;
            request
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(*size));
            *request.body_mut() = Some(tokio::fs::File::from_std(file).into());
        }
    }
    Ok(request)
}

fn check_blob(
    what: &str,
    digest: &Digest,
    size: u64,
    found: &Digest,
    length: u64,
) -> Result<(), Failure> {
    if length != size {
        return Err(Failure::Corrupt(format!(
            "{what} {digest} has {length} bytes, and {size} in its manifest"
        )));
    }
    if found != digest {
        return Err(Failure::Corrupt(format!(
            "{what} {digest} came with other bytes: their digest is {found}"
        )));
    }
    Ok(())
}

fn retry_after(response: &Response) -> Option<Duration> {
    // The other form, a date, is not used by registries; without a number our own pause holds.
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse::<u64>().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The first error of the specification's error list, as one short line.
fn said(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    match serde_json::from_slice::<Errors>(bytes) {
        Ok(Errors { errors }) if !errors.is_empty() => {
            let text = format!(": {} {}", errors[0].code, errors[0].message);
            // Control characters would reach terminals and logs.
            text.chars().filter(|c| !c.is_control()).take(200).collect()
        }
        _ => String::new(),
    }
}

/// One way to log in that a registry offers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    Bearer { realm: String, service: Option<String> },
    Basic,
}

/// Parses a `WWW-Authenticate` header (RFC 9110, 11.6.1). What is neither Bearer nor Basic is left out.
fn challenges(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let scheme_end = rest.find([' ', ',']).unwrap_or(rest.len());
        let (scheme, after) = rest.split_at(scheme_end);
        rest = after.trim_start();
        let mut parameters: HashMap<String, String> = HashMap::new();
        while let Some((name, value, after)) = parameter(rest) {
            parameters.insert(name, value);
            rest = after;
        }
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = parameters.remove("realm")
        {
            found.push(Challenge::Bearer { realm, service: parameters.remove("service") });
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    found
}

/// One `name=value` or `name="value"` at the start of `text`, and what follows it.
fn parameter(text: &str) -> Option<(String, String, &str)> {
    let text = text.trim_start_matches([' ', ',']);
    let (name, rest) = text.split_once('=')?;
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    {
        return None;
    }
    let name = name.to_ascii_lowercase();
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find([',', ' ']).unwrap_or(rest.len());
        return Some((name, rest[..end].to_owned(), &rest[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((name, value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) }
    }

    #[test]
    fn a_challenge_is_parsed_in_each_form_that_registries_send() {
        let table = [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer("https://auth.docker.io/token", Some("registry.docker.io"))],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            (r#"bearer Realm=https://a/t"#, vec![bearer("https://a/t", None)]),
            (
                r#"Negotiate, Basic realm="x", Bearer realm="https://a", service="s""#,
                vec![Challenge::Basic, bearer("https://a", Some("s"))],
            ),
            (r#"Bearer realm="a \"quoted\" one""#, vec![bearer(r#"a "quoted" one"#, None)]),
        ];

        for (header, expected) in table {
            assert_eq!(challenges(header), expected, "{header}");
        }
    }

    #[test]
    fn a_malformed_challenge_ends_and_offers_nothing() {
        for header in [
            "",
            " , ,",
            "Bearer",
            "Bearer realm",
            "Bearer realm=\"open",
            "=",
            "\"\"\"",
            "Bearer =x",
            "a=b=c,,=\"\\",
        ] {
            assert!(
                challenges(header)
                    .iter()
                    .all(|it| matches!(it, Challenge::Bearer { realm, .. } if realm.is_empty())),
                "{header}"
            );
        }
    }
}
