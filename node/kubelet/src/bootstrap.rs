//! How a node that has only a token comes to its own identity: it asks for a certificate, and writes itself a kubeconfig.
//!
//! Absent: what the cluster must allow for that (`docs/join.md`), and renewing the certificate ([`crate::rotation`]).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{Kubeconfig, KubeconfigError};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::connection::{Connection, Use};
use crate::csr::{self, CsrError, Purpose};
use crate::identity::{self, IdentityError};
use crate::pace::Backoff;
use crate::pki::{client_file, folder};
use crate::run::PATIENCE;
use crate::settings::NodeSettings;
use crate::trouble::explain;
use copepod_agent::write_whole;

/// Why a node comes to no identity.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The bootstrap kubeconfig is of no use.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It cannot be read a second time.
    #[error("{0} cannot be read")]
    Kubeconfig(PathBuf, #[source] KubeconfigError),
    /// The credentials do not work together.
    #[error("{0}")]
    Credentials(String),
    /// The cluster gives no certificate.
    #[error("the node gets no client certificate")]
    Csr(#[source] CsrError),
    /// The disk says no.
    #[error("{0} cannot be written")]
    Write(PathBuf, #[source] io::Error),
}

/// Obtains a client certificate with the bootstrap kubeconfig, and writes the node's own kubeconfig.
///
/// # Errors
/// See [`BootstrapError`]. An API server that does not answer is waited for.
pub async fn bootstrap(settings: &NodeSettings, with: &Path) -> Result<(), BootstrapError> {
    let identity = identity::read(with).await?;
    let parsed = Kubeconfig::read_from(with)
        .map_err(|error| BootstrapError::Kubeconfig(with.to_owned(), error))?;
    let connection = Connection::new(identity.config);
    let server = connection.server();
    let client = connection
        .client(Use::Requests(PATIENCE))
        .map_err(|error| BootstrapError::Credentials(explain(&error, &server)))?;
    info!(node = settings.node_name.as_str(), "asking the cluster for a client certificate");
    let folder = folder(&settings.data);
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut told = String::new();
    let pair = loop {
        match csr::obtain(&client, &settings.node_name, &Purpose::Client, &folder).await {
            Ok(pair) => break pair,
            Err(CsrError::Api(error)) => {
                let why = explain(&error, &server);
                if why != told {
                    warn!("the node cannot ask for its certificate yet: {why}");
                    told = why;
                }
                tokio::time::sleep(backoff.failed()).await;
            }
            Err(error) => return Err(BootstrapError::Csr(error)),
        }
    };
    let file = client_file(&settings.data);
    pair.write(&file).map_err(|error| BootstrapError::Write(file.clone(), error))?;
    let own = own_kubeconfig(&parsed, &file);
    let text = format!("{own:#}\n");
    let written = settings.kubeconfig.parent().map_or(Ok(()), std::fs::create_dir_all);
    written
        .and_then(|()| write_whole(&settings.kubeconfig, text.as_bytes(), 0o600))
        .map_err(|error| BootstrapError::Write(settings.kubeconfig.clone(), error))?;
    info!(kubeconfig = %settings.kubeconfig.display(), "the node has its client certificate");
    Ok(())
}

/// A kubeconfig for the same API server, with the certificate of a file that holds its key too. JSON is YAML.
fn own_kubeconfig(bootstrap: &Kubeconfig, pair: &Path) -> Value {
    let current = bootstrap.current_context.as_deref().unwrap_or_default();
    let context = bootstrap.contexts.iter().find(|it| it.name == current);
    let cluster = context.and_then(|it| it.context.as_ref()).map(|it| it.cluster.clone());
    let cluster = bootstrap.clusters.iter().find(|it| Some(&it.name) == cluster.as_ref());
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "cluster", "cluster": cluster.and_then(|it| it.cluster.as_ref()) }],
        "users": [{ "name": "node", "user": { "client-certificate": pair, "client-key": pair } }],
        "contexts": [{ "name": "node", "context": { "cluster": "cluster", "user": "node" } }],
        "current-context": "node",
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pki::self_signed;

    #[test]
    fn the_kubeconfig_that_a_node_writes_itself_is_one_that_it_reads() {
        let folder = tempfile::tempdir().expect("a folder");
        let bootstrap = folder.path().join("bootstrap");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: b\nclusters:\n- name: c\n  cluster:\n    server: \
                    https://192.0.2.1:6443\n    tls-server-name: api\ncontexts:\n- name: b\n  context: {cluster: c, user: t}\n\
                    users:\n- name: t\n  user: {token: secret}\n";
        std::fs::write(&bootstrap, text).expect("written");
        let now = jiff::Timestamp::now();
        let pair = self_signed("system:node:n1", &BTreeSet::new(), now).expect("a pair");
        let file = client_file(folder.path());
        pair.write(&file).expect("written");
        let parsed = Kubeconfig::read_from(&bootstrap).expect("read");

        let own = own_kubeconfig(&parsed, &file).to_string();

        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, &own).expect("written");
        let node = "n1".parse().expect("a name");
        let loaded =
            futures::executor::block_on(identity::load(&kubeconfig, &node, now)).expect("good");
        assert_eq!(loaded.config.cluster_url.to_string(), "https://192.0.2.1:6443/");
        assert_eq!(loaded.config.tls_server_name.as_deref(), Some("api"));
        assert_eq!(loaded.certificate.map(|it| it.user).as_deref(), Some("system:node:n1"));
        assert!(!own.contains("secret"), "the token stays where it was");
    }
}
