//! Getting in: what a registry asks for when it refuses, the token that a login server gives for it, and how long that is good.
//!
//! A login is only ever sent where [`Guard::may_log_in_at`](crate::guard::Guard::may_log_in_at) allows. Absent: which login holds
//! for an image ([`crate::credentials`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::time::Instant;

use super::session::Session;
use crate::credentials::Login;
use crate::digest::Digest;
use crate::guard::{Failure, Follow, Origin, authorize, request, shown};

/// A token of a megabyte is none; real ones have 5 KiB.
const MAX_TOKEN_ANSWER: u64 = 256 << 10;
/// A Basic login is good until it is refused; this is how long it is not asked for again.
const LOGIN_GOOD_FOR: Duration = Duration::from_secs(3600);

/// Tokens that are still good, one set per login: no pod's token is ever used for another login's pull.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<HashMap<TokenKey, (Arc<str>, Instant)>>);

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) login: Option<Digest>,
    pub(super) registry: Origin,
    pub(super) repository: String,
    pub(super) push: bool,
}

/// More tokens than pulls can be under way; above it the old ones are dropped.
const MAX_TOKENS: usize = 1_000;

impl Tokens {
    pub(super) fn get(&self, key: &TokenKey) -> Option<Arc<str>> {
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

    pub(super) fn forget(&self, key: &TokenKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl Session<'_> {
    /// Does what a 401's challenge asks for, and keeps the token.
    pub(super) async fn authenticate(&self, response: &Response) -> Result<(), Failure> {
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
                        self.tokens.put(self.key.clone(), login.header().into(), LOGIN_GOOD_FOR);
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
        let response = self.ask_login_server(&url, &server).await?;
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

    /// Sends the request for a token, with the login where it may go there; again where the server cannot answer now.
    async fn ask_login_server(&self, url: &Url, server: &Origin) -> Result<Response, Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut request = request(Method::GET, url.clone());
            if let Some(login @ Login::Basic { .. }) = self.login {
                if !self.guard.may_log_in_at(self.home.origin(), server) {
                    return Err(Failure::Blocked(format!(
                        "registry {} wants its login to be sent to {}, another host: where that is right, add the pair to COPEPOD_LOGIN_HOSTS",
                        self.registry,
                        shown(url)
                    )));
                }
                authorize(&mut request, &login.header())?;
            }
            let failure = match self.guard.send(&self.home, request, Follow::Nothing).await {
                Ok(response)
                    if response.status() == StatusCode::TOO_MANY_REQUESTS
                        || response.status().is_server_error() =>
                {
                    Failure::Unavailable(format!("{} answers {}", shown(url), response.status()))
                }
                other => return other,
            };
            match failure {
                Failure::Unavailable(_) if attempt < self.guard.rules.attempts => {
                    tokio::time::sleep(self.pause(attempt, None)).await;
                }
                failure => return Err(failure),
            }
        }
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
