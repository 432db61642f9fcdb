//! Asking one repository of a registry with one login: requests, tokens attached, again where it cannot answer now, and its
//! refusals in words.
//!
//! Absent: what is asked for ([`super`]), and how a token is got ([`super::tokens`]).

use std::io::{Seek as _, SeekFrom};
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Request, Response, StatusCode, Url};
use serde::Deserialize;

use super::tokens::{TokenKey, Tokens};
use crate::credentials::Login;
use crate::guard::{Failure, Follow, Guard, Home, Origin, authorize, request, shown};
use crate::reference::Reference;
use crate::trust::CA_FOLDERS;

/// How much of an error's text is read; it is only shown.
const MAX_ERROR: u64 = 64 << 10;
/// A registry that asks for a longer pause is not waited for: the pod's own back-off comes later.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// A repository, and who we are to it.
pub(super) struct Session<'a> {
    pub(super) guard: &'a Guard,
    pub(super) tokens: &'a Tokens,
    pub(super) home: Home,
    /// The repository's name.
    pub(super) name: &'a str,
    /// The registry, as images name it.
    pub(super) registry: &'a str,
    pub(super) login: Option<&'a Login>,
    pub(super) key: TokenKey,
}

/// One request, which can be built again for another attempt.
pub(super) enum Ask<'a> {
    /// What lies there, in one of these media types.
    Get { accept: Option<&'static str> },
    /// Whether it is there.
    Head,
    /// A place for an upload.
    Post,
    /// This, of this media type.
    Put(&'static str, Payload<'a>),
}

/// What a request carries.
pub(super) enum Payload<'a> {
    Bytes(Vec<u8>),
    File(&'a std::fs::File, u64),
}

impl<'a> Session<'a> {
    pub(super) fn new(
        guard: &'a Guard,
        tokens: &'a Tokens,
        reference: &'a Reference,
        login: Option<&'a Login>,
        push: bool,
    ) -> Result<Self, Failure> {
        let home = guard.home(reference.api_host())?;
        let key = TokenKey {
            login: login.map(|it| it.mark(b"")),
            registry: home.origin().clone(),
            repository: reference.repository().to_owned(),
            push,
        };
        let (name, registry) = (reference.repository(), reference.registry());
        Ok(Self { guard, tokens, home, name, registry, login, key })
    }

    /// The address of something of the repository.
    pub(super) fn url(&self, rest: &str) -> Result<Url, Failure> {
        self.home
            .url()
            .join(&format!("/v2/{}/{rest}", self.name))
            .map_err(|_| Failure::Blocked(format!("{rest:?} makes no address")))
    }

    /// What lies at an address, whole.
    pub(super) async fn get(
        &self,
        url: &Url,
        accept: Option<&'static str>,
    ) -> Result<Response, Failure> {
        self.ask(url, &Ask::Get { accept }, &[StatusCode::OK]).await
    }

    /// Sends one request; its answer where the status is among `good`, otherwise what the registry says, in words.
    pub(super) async fn ask(
        &self,
        url: &Url,
        ask: &Ask<'_>,
        good: &[StatusCode],
    ) -> Result<Response, Failure> {
        let response = self.answer(url, ask).await?;
        self.expect(response, good).await
    }

    /// Sends one request, with the token that it needs, again where the registry cannot answer now.
    pub(super) async fn answer(&self, url: &Url, ask: &Ask<'_>) -> Result<Response, Failure> {
        let mut attempt = 0;
        let mut fresh = false;
        loop {
            attempt += 1;
            let mut request = ask.build(url)?;
            // An upload's address may be at another host: then it carries its own signature.
            if Origin::of(url).as_ref() == Some(self.home.origin()) {
                if let Some(header) = self.tokens.get(&self.key) {
                    authorize(&mut request, &header)?;
                } else if let Some(login @ Login::Bearer(_)) = self.login {
                    authorize(&mut request, &login.header())?;
                }
            }
            let response = match self.guard.send(&self.home, request, ask.follow()).await {
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

    pub(super) fn pause(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let own = self.guard.rules.backoff.saturating_mul(1 << attempt.saturating_sub(1).min(8));
        own.max(asked.unwrap_or_default()).min(MAX_PAUSE)
    }

    /// `response`, if its status is among `good`; otherwise what the registry says, in words.
    async fn expect(&self, response: Response, good: &[StatusCode]) -> Result<Response, Failure> {
        let status = response.status();
        if good.contains(&status) {
            return Ok(response);
        }
        let asked = shown(response.url());
        let bytes = self.guard.read(response, MAX_ERROR, "an error").await.unwrap_or_default();
        let said = said(&bytes);
        let who = if self.login.is_some() { "with the login given" } else { "without a login" };
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Denied(format!(
                "registry {} refuses access to {} {who} ({status}{said})",
                self.registry, self.name
            )),
            // In the words of Go's server, and of nginx.
            StatusCode::BAD_REQUEST
                if self.home.url().scheme() == "http"
                    && String::from_utf8_lossy(&bytes).contains("HTTPS") =>
            {
                Failure::Blocked(format!(
                    "{asked} speaks TLS, and a registry on loopback is asked by plain HTTP unless it has a folder of authorities: put \
                     its authority's certificate at {}/{}/ca.crt",
                    CA_FOLDERS[0], self.registry
                ))
            }
            StatusCode::NOT_FOUND => Failure::NotFound(format!("not found at {asked}{said}")),
            _ => Failure::Unavailable(format!("{asked} answers {status}{said}")),
        })
    }
}

impl Ask<'_> {
    /// Uploads are not carried on to wherever a registry points.
    fn follow(&self) -> Follow {
        match self {
            Self::Get { .. } | Self::Head => Follow::Redirects,
            Self::Post | Self::Put(..) => Follow::Nothing,
        }
    }

    fn build(&self, url: &Url) -> Result<Request, Failure> {
        let method = match self {
            Self::Get { .. } => Method::GET,
            Self::Head => Method::HEAD,
            Self::Post => Method::POST,
            Self::Put(..) => Method::PUT,
        };
        let mut request = request(method, url.clone());
        match self {
            Self::Get { accept: None } | Self::Head => {}
            Self::Get { accept: Some(accept) } => {
                request.headers_mut().insert(ACCEPT, HeaderValue::from_static(accept));
            }
            Self::Post => *request.body_mut() = Some(Vec::new().into()),
            Self::Put(media_type, payload) => {
                request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
                match payload {
                    Payload::Bytes(bytes) => *request.body_mut() = Some(bytes.clone().into()),
                    Payload::File(file, size) => {
                        let mut file = file.try_clone()?;
                        file.seek(SeekFrom::Start(0))?;
                        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(*size));
                        *request.body_mut() = Some(tokio::fs::File::from_std(file).into());
                    }
                }
            }
        }
        Ok(request)
    }
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
