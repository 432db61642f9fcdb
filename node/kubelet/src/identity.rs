//! Who this node is to the API server: its kubeconfig, read and judged before anything is asked with it.
//!
//! Start at [`of_settings`]. A certificate is looked at here (whose it is, from when to when), so that the usual mistakes are told by
//! name and not as a failed handshake. Absent: connections ([`crate::connection`]), what an API server's refusal means
//! ([`crate::trouble`]), and how a node comes to a certificate ([`crate::bootstrap`]).

use std::path::{Path, PathBuf};

use base64_of_kube::decode;
use jiff::Timestamp;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError};
use x509_parser::pem::Pem;

use crate::pki::{Pair, client_file};
use crate::settings::{NODE_GROUP, NODE_USER_PREFIX, NodeName, NodeSettings};

/// Why a kubeconfig is of no use to this node. Each is final until a person mends it.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It is not there: a bootstrap makes it.
    #[error(
        "there is no {0}: put this node's kubeconfig there, or give --bootstrap-kubeconfig with one that holds a bootstrap token"
    )]
    Missing(PathBuf),
    /// It cannot be read or understood.
    #[error("{file} is no kubeconfig that can be used")]
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// Why.
        source: KubeconfigError,
    },
    /// It does not say which of its contexts holds.
    #[error("{file} has no current-context: add a line current-context: NAME; it has {contexts}")]
    NoContext {
        /// The file.
        file: PathBuf,
        /// The contexts that it has.
        contexts: String,
    },
    /// It names nothing that an API server would take.
    #[error("{0} names no user: it needs a client certificate with its key, or a token")]
    NoUser(PathBuf),
    /// The certificate cannot be read.
    #[error("the client certificate of {file} cannot be read: {why}")]
    Certificate {
        /// The kubeconfig.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// The certificate is another node's.
    #[error(
        "{file} holds the certificate of {found}, and this node is {wanted}: give --node-name {other}, or the kubeconfig of {wanted}"
    )]
    OtherNode {
        /// The kubeconfig.
        file: PathBuf,
        /// The certificate's user.
        found: String,
        /// The node of the settings.
        wanted: NodeName,
        /// The certificate's node.
        other: String,
    },
    /// The certificate has passed.
    #[error(
        "the client certificate of {file} ended at {until}, and this machine's clock says {now}: renew it (or set the clock); with \
         --bootstrap-kubeconfig the node asks for a new one itself"
    )]
    Expired {
        /// The kubeconfig.
        file: PathBuf,
        /// When it ended.
        until: Timestamp,
        /// The clock.
        now: Timestamp,
    },
    /// The certificate is to come.
    #[error(
        "the client certificate of {file} begins at {from}, and this machine's clock says {now}: set the clock"
    )]
    NotYet {
        /// The kubeconfig.
        file: PathBuf,
        /// When it begins.
        from: Timestamp,
        /// The clock.
        now: Timestamp,
    },
}

impl IdentityError {
    /// A bootstrap would mend it.
    pub fn asks_for_bootstrap(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Expired { .. })
    }
}

/// A kubeconfig that fits this node.
#[derive(Clone, Debug)]
pub struct Identity {
    /// How the API server is reached.
    pub config: kube::Config,
    /// The client certificate. None: a token.
    pub certificate: Option<CertificateFacts>,
}

/// What a client certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Its common name: the user.
    pub user: String,
    /// Its organizations: the groups.
    pub groups: Vec<String>,
    /// From when it holds.
    pub from: Timestamp,
    /// Until when it holds.
    pub until: Timestamp,
}

/// The identity that the settings name; where the node has renewed its certificate itself, with the newer one.
///
/// # Errors
/// See [`IdentityError`].
pub async fn of_settings(
    settings: &NodeSettings,
    now: Timestamp,
) -> Result<Identity, IdentityError> {
    let (file, node) = (&settings.kubeconfig, &settings.node_name);
    let mut identity = read(file).await?;
    if let Some(certificate) = &identity.certificate {
        let renewed = Pair::read(&client_file(&settings.data)).ok().flatten();
        if let Some(pair) = renewed
            && let Ok(facts) = pair.facts()
            && facts.user == certificate.user
            && facts.until > certificate.until
        {
            identity = Identity { certificate: Some(facts), ..identity };
            identity.config.auth_info = with_pair(&pair);
        }
    }
    if let Some(certificate) = &identity.certificate {
        judge(file, certificate, node, now)?;
    }
    Ok(identity)
}

/// The user of a pair. The type keeps its secrets in another crate's; from text it takes them by itself.
fn with_pair(pair: &Pair) -> AuthInfo {
    let base64 = |text: &str| base64_of_kube::encode(text.as_bytes());
    let data = serde_json::json!({
        "client-certificate-data": base64(&pair.certificates),
        "client-key-data": base64(&pair.key),
    });
    serde_json::from_value(data).unwrap_or_default()
}

/// Reads and judges a kubeconfig.
///
/// # Errors
/// See [`IdentityError`].
pub async fn load(file: &Path, node: &NodeName, now: Timestamp) -> Result<Identity, IdentityError> {
    let identity = read(file).await?;
    if let Some(certificate) = &identity.certificate {
        judge(file, certificate, node, now)?;
    }
    Ok(identity)
}

/// Reads a kubeconfig, whoever it is of.
///
/// # Errors
/// See [`IdentityError`].
pub async fn read(file: &Path) -> Result<Identity, IdentityError> {
    let broken = |source| IdentityError::Kubeconfig { file: file.to_owned(), source };
    let parsed = match Kubeconfig::read_from(file) {
        Err(KubeconfigError::ReadConfig(error, _))
            if error.kind() == std::io::ErrorKind::NotFound =>
        {
            return Err(IdentityError::Missing(file.to_owned()));
        }
        parsed => parsed.map_err(broken)?,
    };
    if parsed.current_context.as_deref().unwrap_or_default().is_empty() {
        let names: Vec<_> = parsed.contexts.iter().map(|it| it.name.as_str()).collect();
        let contexts = if names.is_empty() { "no contexts".into() } else { names.join(", ") };
        return Err(IdentityError::NoContext { file: file.to_owned(), contexts });
    }
    let mut config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .map_err(broken)?;
    // The surroundings' proxy is for the outer world; an API server's stands in the kubeconfig, and is not offered yet.
    config.proxy_url = None;
    // A pair in one file: each of the two would be read with the other in it.
    if let (Some(certificate), Some(key)) =
        (&config.auth_info.client_certificate, &config.auth_info.client_key)
        && certificate == key
    {
        let why = |why: String| IdentityError::Certificate {
            file: file.to_owned(),
            why: format!("{key}: {why}"),
        };
        let pair = Pair::read(Path::new(key)).map_err(|error| why(error.to_string()))?;
        config.auth_info = with_pair(&pair.ok_or_else(|| why("there is no such file".into()))?);
    }
    let auth = &config.auth_info;
    let certificate = certificate_of(file, auth)?;
    let tells_who = certificate.is_some()
        || auth.token.is_some()
        || auth.token_file.is_some()
        || auth.exec.is_some();
    // Plain HTTP is how tests and proxies are reached, which ask for nobody.
    if !tells_who && config.cluster_url.scheme_str() == Some("https") {
        return Err(IdentityError::NoUser(file.to_owned()));
    }
    Ok(Identity { config, certificate })
}

fn certificate_of(file: &Path, auth: &AuthInfo) -> Result<Option<CertificateFacts>, IdentityError> {
    let bad = |why: String| IdentityError::Certificate { file: file.to_owned(), why };
    let pem = match (&auth.client_certificate_data, &auth.client_certificate) {
        (Some(data), _) => {
            decode(data).ok_or_else(|| bad("client-certificate-data is no base64".into()))?
        }
        (None, Some(path)) => {
            std::fs::read(path).map_err(|error| bad(format!("{path}: {error}")))?
        }
        (None, None) => return Ok(None),
    };
    if auth.client_key_data.is_none() && auth.client_key.is_none() {
        return Err(bad("its key is missing; add client-key or client-key-data".into()));
    }
    CertificateFacts::of_pem(&pem).map(Some).map_err(bad)
}

impl CertificateFacts {
    /// Of the first certificate of a PEM text.
    ///
    /// # Errors
    /// What is wrong with it, in a clause.
    pub fn of_pem(pem: &[u8]) -> Result<Self, String> {
        let first = Pem::iter_from_buffer(pem)
            .filter_map(Result::ok)
            .find(|block| block.label == "CERTIFICATE")
            .ok_or("it holds no PEM block of a CERTIFICATE")?;
        let certificate = first.parse_x509().map_err(|error| format!("it is damaged ({error})"))?;
        let subject = certificate.subject();
        let text =
            |it: &x509_parser::x509::AttributeTypeAndValue<'_>| it.as_str().ok().map(str::to_owned);
        let at = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp()).unwrap_or(Timestamp::MAX)
        };
        let validity = certificate.validity();
        Ok(Self {
            user: subject.iter_common_name().find_map(text).unwrap_or_default(),
            groups: subject.iter_organization().filter_map(text).collect(),
            from: at(validity.not_before),
            until: at(validity.not_after),
        })
    }
}

/// Whether the certificate is this node's, now. One that is no node's at all is taken: then RBAC has to allow what a node does.
fn judge(
    file: &Path,
    certificate: &CertificateFacts,
    node: &NodeName,
    now: Timestamp,
) -> Result<(), IdentityError> {
    let file = file.to_owned();
    if let Some(other) = certificate.user.strip_prefix(NODE_USER_PREFIX)
        && other != node.as_str()
    {
        let (found, other) = (certificate.user.clone(), other.to_owned());
        return Err(IdentityError::OtherNode { file, found, wanted: node.clone(), other });
    }
    if certificate.user.starts_with(NODE_USER_PREFIX)
        && !certificate.groups.iter().any(|group| group == NODE_GROUP)
    {
        let why = format!(
            "its user is a node's, but its organization is not {NODE_GROUP}; make it anew with O={NODE_GROUP}"
        );
        return Err(IdentityError::Certificate { file, why });
    }
    if now >= certificate.until {
        return Err(IdentityError::Expired { file, until: certificate.until, now });
    }
    if now < certificate.from {
        return Err(IdentityError::NotYet { file, from: certificate.from, now });
    }
    Ok(())
}

/// Base64 as a kubeconfig has it, with line breaks where somebody folded it.
mod base64_of_kube {
    use base64::Engine;

    pub(super) fn encode(bytes: &[u8]) -> String {
        base64::engine::general_purpose::STANDARD.encode(bytes)
    }

    pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
        let joined: String = text.split_whitespace().collect();
        base64::engine::general_purpose::STANDARD.decode(joined).ok()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use jiff::ToSpan;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    /// A certificate and its key, both PEM.
    pub(crate) fn certified(
        user: &str,
        group: &str,
        from: (i32, u8),
        until: (i32, u8),
    ) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.not_before = rcgen::date_time_ymd(from.0, from.1, 1);
        params.not_after = rcgen::date_time_ymd(until.0, until.1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    /// What loading a kubeconfig gives whose user's fields are `user`, with `cert.pem` and `key.pem` beside it.
    fn loaded(
        head: &str,
        user: &str,
        now: &str,
        pair: Option<(String, String)>,
    ) -> Result<Identity, IdentityError> {
        let folder = tempfile::tempdir().expect("a folder");
        if let Some((certificate, key)) = pair {
            std::fs::write(folder.path().join("cert.pem"), certificate).expect("written");
            std::fs::write(folder.path().join("key.pem"), key).expect("written");
        }
        let text = format!(
            "apiVersion: v1\nkind: Config\n{head}\nclusters:\n- name: c\n  cluster: {{server: 'https://192.0.2.1:6443'}}\n\
             contexts:\n- name: there\n  context: {{cluster: c, user: u}}\nusers:\n- name: u\n  user: {{{user}}}\n"
        );
        let file = folder.path().join("kubeconfig");
        std::fs::write(&file, text).expect("written");
        let node: NodeName = "n1".parse().expect("a name");
        futures::executor::block_on(load(&file, &node, at(now)))
    }

    const HERE: &str = "current-context: there";
    const FILES: &str = "client-certificate: cert.pem, client-key: key.pem";

    fn node_pair() -> Option<(String, String)> {
        Some(certified("system:node:n1", "system:nodes", (2026, 1), (2027, 1)))
    }

    #[test]
    fn a_node_s_certificate_beside_its_kubeconfig_is_found_and_read() {
        let identity = loaded(HERE, FILES, "2026-06-01T00:00:00Z", node_pair()).expect("good");

        let certificate = identity.certificate.expect("one");
        assert_eq!(certificate.user, "system:node:n1");
        assert_eq!(certificate.groups, ["system:nodes"]);
        assert_eq!(certificate.until, at("2027-01-01T00:00:00Z"));
    }

    #[test]
    fn a_token_is_enough() {
        let identity = loaded(HERE, "token: abc", "2026-06-01T00:00:00Z", None).expect("good");

        assert_eq!(identity.certificate, None);
    }

    #[test]
    fn every_usual_mistake_is_told_with_what_to_do() {
        let other = || Some(certified("system:node:n2", "system:nodes", (2026, 1), (2027, 1)));
        let groupless = || Some(certified("system:node:n1", "nodes", (2026, 1), (2027, 1)));
        let now = "2026-06-01T00:00:00Z";
        let table = [
            (loaded("", FILES, now, node_pair()), "current-context: NAME; it has there"),
            (loaded("current-context: here", FILES, now, node_pair()), "is no kubeconfig"),
            (loaded(HERE, "", now, None), "names no user"),
            (loaded(HERE, FILES, now, None), "cert.pem: No such file"),
            (loaded(HERE, "client-certificate: cert.pem", now, node_pair()), "its key is missing"),
            (loaded(HERE, "client-certificate-data: '?', client-key: k", now, None), "no base64"),
            (
                loaded(HERE, FILES, now, Some(("x".into(), "y".into()))),
                "no PEM block of a CERTIFICATE",
            ),
            (loaded(HERE, FILES, now, other()), "give --node-name n2, or the kubeconfig of n1"),
            (loaded(HERE, FILES, now, groupless()), "organization is not system:nodes"),
            (
                loaded(HERE, FILES, "2028-01-01T00:00:00Z", node_pair()),
                "clock says 2028-01-01T00:00:00Z: renew it",
            ),
            (
                loaded(HERE, FILES, "2025-01-01T00:00:00Z", node_pair()),
                "clock says 2025-01-01T00:00:00Z: set the clock",
            ),
        ];
        for (result, expected) in table {
            let error = result.expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_missing_or_has_passed_is_mended_by_a_bootstrap_and_nothing_else_is() {
        let node: NodeName = "n1".parse().expect("a name");
        let missing =
            futures::executor::block_on(load(Path::new("/nowhere/k"), &node, Timestamp::now()));
        let past = Timestamp::now().checked_add(24_000_i64.hours()).expect("a time").to_string();
        let expired = loaded(HERE, FILES, &past, node_pair());
        let nobody = loaded(HERE, "", "2026-06-01T00:00:00Z", None);

        assert!(missing.expect_err("missing").asks_for_bootstrap());
        assert!(expired.expect_err("expired").asks_for_bootstrap());
        assert!(!nobody.expect_err("nobody").asks_for_bootstrap());
    }
}
