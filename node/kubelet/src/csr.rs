//! Asks the cluster for a certificate: a key, a CertificateSigningRequest, and patience until somebody has approved it.
//!
//! Start at [`obtain`]. The key waits on disk beside the request's name, so that a node that starts again goes on with the request
//! that a person may be looking at (kubelet.md C1, C3, C4). Absent: when to ask ([`crate::rotation`], [`crate::bootstrap`]).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::pace::Backoff;
use crate::pki::{Pair, private_folder, subject};
use crate::settings::NodeName;
use copepod_agent::write_whole;

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be known to the API server.
    Client,
    /// To be known by these names and addresses.
    Serving(BTreeSet<String>),
}

impl Purpose {
    fn signer(&self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving(_) => "kubernetes.io/kubelet-serving",
        }
    }

    fn usage(&self) -> &'static str {
        match self {
            Self::Client => "client auth",
            Self::Serving(_) => "server auth",
        }
    }

    fn names(&self) -> BTreeSet<String> {
        match self {
            Self::Client => BTreeSet::new(),
            Self::Serving(names) => names.clone(),
        }
    }

    fn file(&self, folder: &Path) -> PathBuf {
        folder.join(match self {
            Self::Client => "client.request",
            Self::Serving(_) => "serving.request",
        })
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// It may work later.
    #[error("the request for a certificate is not answered")]
    Api(#[from] kube::Error),
    /// Somebody said no, or the signer could not.
    #[error("the request {name} was {verdict}{why}")]
    Refused {
        /// The request.
        name: String,
        /// `denied`, or `not signed`.
        verdict: &'static str,
        /// What they said.
        why: String,
    },
    /// What came back is of no use.
    #[error("the certificate of the request {name} cannot be used: {why}")]
    Useless {
        /// The request.
        name: String,
        /// Why.
        why: String,
    },
    /// No key can be made or kept.
    #[error("no key can be made and kept in {folder}")]
    Key {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A request under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    /// The request's name, which the API server gave it.
    name: String,
    /// Its UID, as a name may be given again.
    uid: String,
    /// What it asks for.
    names: BTreeSet<String>,
    /// The key.
    key: String,
}

/// Obtains a certificate for this node, however long its approval takes. `folder` is where the key waits.
///
/// # Errors
/// See [`CsrError`]. After an error of the API server another call goes on with the same request.
pub async fn obtain(
    client: &Client,
    node: &NodeName,
    purpose: &Purpose,
    folder: &Path,
) -> Result<Pair, CsrError> {
    // A request is looked at often at first, when an approver is at work, and seldom later, when a person is.
    let pace = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
    obtain_at(pace, client, node, purpose, folder).await
}

async fn obtain_at(
    mut pace: Backoff,
    client: &Client,
    node: &NodeName,
    purpose: &Purpose,
    folder: &Path,
) -> Result<Pair, CsrError> {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let file = purpose.file(folder);
    let key_error = |source| CsrError::Key { folder: folder.to_owned(), source };
    let mut pending = kept(&file, purpose);
    let mut told = false;
    loop {
        let asked = match pending.take() {
            Some(asked) => asked,
            None => {
                let asked = ask(&requests, node, purpose, folder).await?;
                let text = serde_json::to_vec(&asked).map_err(|error| key_error(error.into()))?;
                private_folder(folder).map_err(key_error)?;
                write_whole(&file, &text, 0o600).map_err(key_error)?;
                told = false;
                asked
            }
        };
        let there = requests.get_opt(&asked.name).await?;
        let there = there.filter(|it| it.metadata.uid.as_deref() == Some(asked.uid.as_str()));
        // Controllers remove requests that nobody has answered for a day.
        let Some(there) = there else { continue };
        match verdict(there.status.as_ref()) {
            Verdict::Waiting => {}
            Verdict::Refused(verdict, why) => {
                let _ = std::fs::remove_file(&file);
                return Err(CsrError::Refused { name: asked.name, verdict, why });
            }
            Verdict::Signed(certificates) => {
                let pair = Pair { certificates, key: asked.key };
                let usable = usable(&pair, node, Timestamp::now());
                let _ = std::fs::remove_file(&file);
                usable.map_err(|why| CsrError::Useless { name: asked.name, why })?;
                return Ok(pair);
            }
        }
        let wait = pace.failed();
        if !told && wait >= Duration::from_secs(2) {
            let signer = purpose.signer();
            info!(
                "the request {name} ({signer}) waits for its approval: kubectl certificate approve {name}",
                name = asked.name
            );
            told = true;
        }
        pending = Some(asked);
        tokio::time::sleep(wait).await;
    }
}

/// The request that an earlier process left, where it asked for the same.
fn kept(file: &Path, purpose: &Purpose) -> Option<Pending> {
    let text = std::fs::read(file).ok()?;
    match serde_json::from_slice::<Pending>(&text) {
        Ok(pending) => Some(pending).filter(|it| it.names == purpose.names()),
        Err(error) => {
            warn!(%error, file = %file.display(), "a request that was under way cannot be read; there will be another one");
            None
        }
    }
}

async fn ask(
    requests: &Api<CertificateSigningRequest>,
    node: &NodeName,
    purpose: &Purpose,
    folder: &Path,
) -> Result<Pending, CsrError> {
    let made = |error: rcgen::Error| CsrError::Key {
        folder: folder.to_owned(),
        source: io::Error::other(error),
    };
    let key = KeyPair::generate().map_err(made)?;
    let request = subject(&node.user(), &purpose.names())
        .and_then(|params| params.serialize_request(&key)?.pem())
        .map_err(made)?;
    let object = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("node-csr-".into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: purpose.signer().into(),
            usages: Some(vec!["digital signature".into(), purpose.usage().into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let there = requests.create(&PostParams::default(), &object).await?;
    Ok(Pending {
        name: there.metadata.name.unwrap_or_default(),
        uid: there.metadata.uid.unwrap_or_default(),
        names: purpose.names(),
        key: key.serialize_pem(),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Waiting,
    Refused(&'static str, String),
    Signed(String),
}

fn verdict(status: Option<&CertificateSigningRequestStatus>) -> Verdict {
    let Some(status) = status else { return Verdict::Waiting };
    for condition in status.conditions.iter().flatten() {
        let verdict = match condition.type_.as_str() {
            "Denied" => "denied",
            "Failed" => "not signed",
            _ => continue,
        };
        let said = [&condition.reason, &condition.message]
            .into_iter()
            .flatten()
            .filter(|it| !it.is_empty());
        let said: Vec<_> = said.map(String::as_str).collect();
        let why = if said.is_empty() { String::new() } else { format!(": {}", said.join(", ")) };
        return Verdict::Refused(verdict, why);
    }
    match &status.certificate {
        Some(bytes) if !bytes.0.is_empty() => {
            Verdict::Signed(String::from_utf8_lossy(&bytes.0).into_owned())
        }
        _ => Verdict::Waiting,
    }
}

/// Whether what a signer gave can be used, now.
fn usable(pair: &Pair, node: &NodeName, now: Timestamp) -> Result<(), String> {
    let facts = pair.facts()?;
    if facts.user != node.user() {
        return Err(format!("it is of {}, not of {}", facts.user, node.user()));
    }
    if now < facts.from || now >= facts.until {
        return Err(format!(
            "it holds from {} to {}, and this machine's clock says {now}: set the clock",
            facts.from, facts.until
        ));
    }
    pair.certified_key().map(drop)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition;

    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer;

    use rcgen::CertificateSigningRequestParams;
    use serde_json::{Value, json};

    use super::*;
    use crate::fake::{self, Asked};

    fn node() -> NodeName {
        "n1".parse().expect("a name")
    }

    fn names() -> BTreeSet<String> {
        ["192.0.2.1", "n1"].map(str::to_owned).into()
    }

    #[test]
    fn a_client_s_request_is_of_the_node_s_user_and_group_and_names_nothing_else() {
        let key = KeyPair::generate().expect("a key");
        let params = subject(&node().user(), &Purpose::Client.names()).expect("a subject");
        let der = params.serialize_request(&key).expect("a request");

        let (_, request) = X509CertificationRequest::from_der(der.der()).expect("it is one");

        let info = &request.certification_request_info;
        assert_eq!(info.subject.to_string(), "O=system:nodes, CN=system:node:n1");
        assert_eq!(request.requested_extensions().map(Iterator::count).unwrap_or_default(), 0);
    }

    #[test]
    fn a_request_is_waited_for_until_somebody_has_decided() {
        let condition = |type_: &str, message: &str| CertificateSigningRequestCondition {
            type_: type_.into(),
            message: Some(message.into()),
            status: "True".into(),
            ..CertificateSigningRequestCondition::default()
        };
        let status =
            |conditions: Vec<_>, certificate: Option<&str>| CertificateSigningRequestStatus {
                conditions: Some(conditions),
                certificate: certificate.map(|text| ByteString(text.as_bytes().to_vec())),
            };
        let table = [
            (None, Verdict::Waiting),
            (Some(status(vec![], None)), Verdict::Waiting),
            (Some(status(vec![condition("Approved", "")], None)), Verdict::Waiting),
            (
                Some(status(vec![condition("Approved", "")], Some("PEM"))),
                Verdict::Signed("PEM".into()),
            ),
            (
                Some(status(vec![condition("Denied", "no")], None)),
                Verdict::Refused("denied", ": no".into()),
            ),
            (
                Some(status(vec![condition("Approved", ""), condition("Failed", "")], None)),
                Verdict::Refused("not signed", String::new()),
            ),
        ];
        for (status, expected) in table {
            assert_eq!(verdict(status.as_ref()), expected);
        }
    }

    #[test]
    fn a_certificate_of_somebody_else_or_of_another_time_is_not_used() {
        let now: Timestamp = "2026-06-15T00:00:00Z".parse().expect("a time");
        let pair = crate::pki::self_signed("system:node:n1", &names(), now).expect("a pair");
        let later = "2028-01-01T00:00:00Z".parse().expect("a time");

        assert_eq!(usable(&pair, &node(), now), Ok(()));
        let other = usable(&pair, &"n2".parse().expect("a name"), now).expect_err("refused");
        assert!(other.contains("not of system:node:n2"), "{other}");
        assert!(usable(&pair, &node(), later).expect_err("refused").contains("set the clock"));
    }

    #[test]
    fn a_request_under_way_is_gone_on_with_only_for_the_same_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = Purpose::Serving(names()).file(folder.path());
        let pending =
            Pending { name: "csr".into(), uid: "u".into(), names: names(), key: "k".into() };
        std::fs::write(&file, serde_json::to_vec(&pending).expect("JSON")).expect("written");

        assert_eq!(kept(&file, &Purpose::Serving(names())), Some(pending));
        assert_eq!(kept(&file, &Purpose::Serving(BTreeSet::new())), None);
        std::fs::write(&file, "{").expect("written");
        assert_eq!(kept(&file, &Purpose::Serving(names())), None);
    }

    /// A signer that signs what it is asked at its second look.
    fn signer() -> impl Fn(&Asked) -> (u16, Value) {
        let authority = KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = rcgen::Issuer::new(params, authority);
        let asked_for = std::sync::Mutex::new((0, String::new()));
        move |asked| {
            let mut held = asked_for.lock().expect("nobody panicked");
            let metadata = json!({ "name": "node-csr-1", "uid": "u" });
            if asked.method == "POST" {
                let text = asked.body["spec"]["request"].as_str().expect("a request");
                let bytes: ByteString = serde_json::from_value(text.into()).expect("base64");
                held.1 = String::from_utf8(bytes.0).expect("PEM");
                return (201, json!({ "metadata": metadata, "spec": asked.body["spec"] }));
            }
            held.0 += 1;
            let spec = json!({ "request": "", "signerName": "s" });
            if held.0 < 2 {
                return (200, json!({ "metadata": metadata, "spec": spec }));
            }
            let request = CertificateSigningRequestParams::from_pem(&held.1).expect("a request");
            let pem = request.signed_by(&issuer).expect("signed").pem();
            let certificate = serde_json::to_value(ByteString(pem.into_bytes())).expect("base64");
            (
                200,
                json!({ "metadata": metadata, "spec": spec, "status": { "certificate": certificate } }),
            )
        }
    }

    #[tokio::test]
    async fn a_certificate_is_asked_for_once_and_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let (client, log) = fake::api(signer());
        let purpose = Purpose::Serving(names());

        let at_once = Backoff::new(Duration::ZERO, Duration::ZERO);
        let obtained = obtain_at(at_once, &client, &node(), &purpose, folder.path()).await;

        let pair = obtained.expect("signed");

        assert_eq!(pair.names(), names());
        assert!(pair.certified_key().is_ok());
        let posts: Vec<_> = log.all().into_iter().filter(|it| it.method == "POST").collect();
        assert_eq!(posts.len(), 1);
        assert_eq!(posts[0].body["spec"]["signerName"], "kubernetes.io/kubelet-serving");
        assert_eq!(posts[0].body["spec"]["usages"], json!(["digital signature", "server auth"]));
        assert!(!purpose.file(folder.path()).exists(), "the key waits no more");
    }
}
