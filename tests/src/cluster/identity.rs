//! Who asks the API server, and the kubeconfig that says so.
//!
//! Absent: service accounts, whose tokens the cluster itself makes.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::authority::Certified;

/// A user with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// As Kubernetes names the user.
    pub user: String,
    /// The groups, two at most.
    pub groups: Vec<String>,
    /// Whether the certificate's time is over.
    pub expired: bool,
    /// Whether another authority signed it than the one that the cluster believes.
    pub foreign: bool,
}

impl Identity {
    /// This user of these groups.
    pub fn user(name: &str, groups: &[&str]) -> Self {
        Self {
            user: name.to_owned(),
            groups: groups.iter().map(|it| (*it).to_owned()).collect(),
            expired: false,
            foreign: false,
        }
    }

    /// Who may do everything.
    pub fn admin() -> Self {
        Self::user("admin", &["system:masters"])
    }

    /// The agent of the node of this name.
    pub fn node(name: &str) -> Self {
        Self::user(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// The same with a certificate whose time is over.
    #[must_use]
    pub fn expired(self) -> Self {
        Self { expired: true, ..self }
    }

    /// The same with a certificate of an authority that the cluster does not know.
    #[must_use]
    pub fn foreign(self) -> Self {
        Self { foreign: true, ..self }
    }
}

/// A kubeconfig that holds all that it needs; JSON, which every YAML reader takes.
pub(super) fn kubeconfig(server: &str, authority: &str, user: &Value) -> Value {
    let cluster = json!({ "server": server, "certificate-authority-data": BASE64_STANDARD.encode(authority) });
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": cluster }],
        "users": [{ "name": "test", "user": user }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        "current-context": "test",
    })
}

/// A user of a kubeconfig, by certificate.
pub(super) fn by_certificate(certified: &Certified) -> Value {
    json!({
        "client-certificate-data": BASE64_STANDARD.encode(&certified.certificate),
        "client-key-data": BASE64_STANDARD.encode(&certified.key),
    })
}
