//! Who we are to which registry: Docker's configuration file and pull secrets, parsed once.
//!
//! Absent: credential helpers. They are programs of the host, which the agent never runs; a host whose login
//! is in one is told so.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use crate::digest::{Digest, Hash};
use crate::reference::Reference;

/// A set of logins. The default set is empty: every pull is anonymous.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    entries: Vec<Entry>,
    /// Hosts whose login is kept by a helper program, for the message when it would be needed.
    helpers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// Host and perhaps port; a label may be `*`.
    host: String,
    /// Path under which the login holds, empty for all.
    path: String,
    login: Login,
}

/// One login. Its text never shows it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    /// User name and password.
    Basic { user: String, password: String },
    /// A token that the registry takes as it is.
    Bearer(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(..)",
            Self::Bearer(_) => "Bearer(..)",
        })
    }
}

impl Login {
    /// A name for this login that does not give it away: what a cached image remembers of who may use it.
    pub(crate) fn mark(&self, salt: &[u8]) -> Digest {
        let mut hash = Hash::default();
        let (kind, user, secret) = match self {
            Self::Basic { user, password } => (b'b', user.as_str(), password),
            Self::Bearer(token) => (b't', "", token),
        };
        for part in [salt, &[kind], user.as_bytes(), secret.as_bytes()] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finish()
    }

    pub(crate) fn header(&self) -> String {
        match self {
            Self::Basic { user, password } => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
            }
            Self::Bearer(token) => format!("Bearer {token}"),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It is there and cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Not JSON of the expected shape.
    #[error("{what} is not a Docker configuration: {message}")]
    Malformed {
        /// The file or secret.
        what: String,
        /// What is wrong in it, without its content.
        message: String,
    },
}

/// The largest configuration that is read: a Secret's own limit, 1 MiB.
const MAX_CONFIG: u64 = 1 << 20;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
struct DockerAuth {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "registrytoken")]
    registry_token: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<String>,
}

impl Credentials {
    /// No login at all.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Reads Docker's configuration file; a file that is not there is an empty set.
    ///
    /// # Errors
    /// It is there, and cannot be read or understood.
    pub fn from_docker_config(path: &Path) -> Result<Self, CredentialsError> {
        let shown = path.display().to_string();
        let read = |path: &Path| -> io::Result<Vec<u8>> {
            use io::Read as _;
            let mut bytes = Vec::new();
            std::fs::File::open(path)?.take(MAX_CONFIG + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read(path) {
            Ok(bytes) => Self::from_docker_config_json(&shown, &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(CredentialsError::Read { path: shown, source }),
        }
    }

    /// Parses the JSON of `~/.docker/config.json` or of a `kubernetes.io/dockerconfigjson` secret. `what` names it in messages.
    ///
    /// # Errors
    /// It cannot be understood.
    pub fn from_docker_config_json(what: &str, json: &[u8]) -> Result<Self, CredentialsError> {
        let malformed =
            |message: String| CredentialsError::Malformed { what: what.to_owned(), message };
        if json.len() as u64 > MAX_CONFIG {
            return Err(malformed("it has more than 1 MiB".into()));
        }
        // serde_json's own text may quote a value; its place is enough.
        let config: DockerConfig = serde_json::from_slice(json)
            .map_err(|e| malformed(format!("line {}, column {}", e.line(), e.column())))?;
        let mut credentials =
            Self { helpers: config.helpers.into_keys().collect(), ..Self::default() };
        for (key, auth) in config.auths {
            credentials.add(key, auth, config.store.is_some()).map_err(malformed)?;
        }
        Ok(credentials)
    }

    /// Parses the JSON of a `kubernetes.io/dockercfg` secret, the older form without `auths`.
    ///
    /// # Errors
    /// It cannot be understood.
    pub fn from_dockercfg_json(what: &str, json: &[u8]) -> Result<Self, CredentialsError> {
        let malformed =
            |message: String| CredentialsError::Malformed { what: what.to_owned(), message };
        let auths: BTreeMap<String, DockerAuth> = serde_json::from_slice(json)
            .map_err(|e| malformed(format!("line {}, column {}", e.line(), e.column())))?;
        let mut credentials = Self::default();
        for (key, auth) in auths {
            credentials.add(key, auth, false).map_err(malformed)?;
        }
        Ok(credentials)
    }

    /// This set with one user's login at `host` before all others.
    pub fn with_login(mut self, host: &str, user: &str, password: &str) -> Self {
        let login = Login::Basic { user: user.to_owned(), password: password.to_owned() };
        let (host, path) = split_key(host);
        self.entries.insert(0, Entry { host, path, login });
        self
    }

    /// Both sets; this one's logins are tried first.
    pub fn and(mut self, other: Self) -> Self {
        self.entries.extend(other.entries);
        self.helpers.extend(other.helpers);
        self
    }

    fn add(&mut self, key: String, auth: DockerAuth, has_store: bool) -> Result<(), String> {
        let (host, path) = split_key(&key);
        let login = if let Some(token) = auth.registry_token.filter(|it| !it.is_empty()) {
            Login::Bearer(token)
        } else if let Some(encoded) = auth.auth.filter(|it| !it.is_empty()) {
            let bytes = STANDARD
                .decode(encoded.trim())
                .or_else(|_| STANDARD_NO_PAD.decode(encoded.trim()))
                .map_err(|_| format!("the auth of {key:?} is not base64"))?;
            let text =
                String::from_utf8(bytes).map_err(|_| format!("the auth of {key:?} is not text"))?;
            let (user, password) = text
                .split_once(':')
                .ok_or_else(|| format!("the auth of {key:?} is not user:password"))?;
            if password.is_empty() && auth.identity_token.is_some() {
                self.helpers.push(host);
                return Ok(());
            }
            Login::Basic { user: user.to_owned(), password: password.trim_matches('\0').to_owned() }
        } else if let (Some(user), Some(password)) = (auth.username, auth.password) {
            Login::Basic { user, password }
        } else {
            // An empty entry beside `credsStore` is Docker's note that the helper has the login.
            if has_store || auth.identity_token.is_some() {
                self.helpers.push(host);
            }
            return Ok(());
        };
        self.entries.push(Entry { host, path, login });
        Ok(())
    }

    /// The logins that hold for `reference`, the most particular first.
    pub(crate) fn for_reference(&self, reference: &Reference) -> Vec<&Login> {
        let mut found: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| host_matches(&entry.host, reference.registry()))
            .filter(|entry| path_matches(&entry.path, reference.repository()))
            .collect();
        found.sort_by_key(|entry| std::cmp::Reverse(entry.path.len()));
        found.into_iter().map(|entry| &entry.login).collect()
    }

    /// Whether a helper program is said to hold the login for `registry`.
    pub(crate) fn is_with_helper(&self, registry: &str) -> bool {
        self.helpers.iter().any(|host| host_matches(&split_key(host).0, registry))
    }
}

/// A configuration's key as host and path: `https://index.docker.io/v1/` is `docker.io`.
fn split_key(key: &str) -> (String, String) {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = path.trim_end_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    (host.to_ascii_lowercase(), path.to_owned())
}

fn host_matches(pattern: &str, registry: &str) -> bool {
    if !pattern.contains('*') {
        return pattern == registry;
    }
    // As in the kubelet, a star stands for one label or a part of one, never for a dot.
    let mut labels = registry.split('.');
    pattern
        .split('.')
        .all(|pattern| labels.next().is_some_and(|label| label_matches(pattern, label)))
        && labels.next().is_none()
}

fn label_matches(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((head, tail)) => label.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|n| rest.is_char_boundary(n) && label_matches(tail, &rest[n..]))
        }),
    }
}

fn path_matches(prefix: &str, repository: &str) -> bool {
    prefix.is_empty()
        || repository
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(json: &str, image: &str) -> Vec<String> {
        let credentials =
            Credentials::from_docker_config_json("test", json.as_bytes()).expect("parses");
        let reference = Reference::parse(image).expect("image");
        credentials
            .for_reference(&reference)
            .into_iter()
            .map(|login| match login {
                Login::Basic { user, .. } => user.clone(),
                Login::Bearer(_) => "bearer".into(),
            })
            .collect()
    }

    #[test]
    fn a_login_holds_for_its_host_and_path_and_the_most_particular_comes_first() {
        let json = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "ghcr.io": {"username": "host", "password": "pw"},
            "ghcr.io/team": {"username": "team", "password": "pw"},
            "*.example.com": {"username": "star", "password": "pw"},
            "localhost:5000": {"registrytoken": "t"}
        }}"#;

        assert_eq!(users(json, "busybox"), ["hub"]);
        assert_eq!(users(json, "ghcr.io/team/app"), ["team", "host"]);
        assert_eq!(users(json, "ghcr.io/teamwork/app"), ["host"]);
        assert_eq!(users(json, "a.example.com/x/y"), ["star"]);
        assert_eq!(users(json, "a.b.example.com/x/y"), Vec::<String>::new());
        assert_eq!(users(json, "localhost:5000/x"), ["bearer"]);
        assert_eq!(users(json, "localhost:5001/x"), Vec::<String>::new());
    }

    #[test]
    fn a_wrong_configuration_is_refused_without_showing_a_secret() {
        for json in [
            r#"{"auths": {"a.b": {"auth": 5}}}"#,
            r#"{"auths": {"a.b": {"auth": "!hunter2"}}}"#,
            "[",
            "5",
        ] {
            let error = Credentials::from_docker_config_json("secret x", json.as_bytes())
                .expect_err(json)
                .to_string();
            assert!(error.contains("secret x") && !error.contains("hunter2"), "{error}");
        }
        let login = Credentials::anonymous().with_login("a.b", "me", "hunter2");
        assert!(!format!("{login:?}").contains("hunter2"));
    }

    #[test]
    fn a_login_in_a_helper_program_is_known_to_be_there() {
        let json =
            br#"{"auths": {"a.b": {}}, "credsStore": "desktop", "credHelpers": {"c.d": "x"}}"#;

        let credentials = Credentials::from_docker_config_json("test", json).expect("parses");

        assert!(credentials.is_with_helper("a.b") && credentials.is_with_helper("c.d"));
        assert!(!credentials.is_with_helper("e.f"));
    }
}
