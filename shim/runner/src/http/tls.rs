//! TLS for outgoing `https` requests, by the authorities that the node trusts.
//!
//! The agent lays the node's bundle of certificates into the runner's tree. It is read with the first `https` request of any guest
//! and kept from then on: a runner whose guests send none holds nothing. Sessions are not resumed, so that no state of one pod
//! is seen on the connections of another. Absent: client certificates, and authorities of a pod's own.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use copepod_shim::protocol::layout;
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::Error;

use crate::root::Root;

/// Whom this runner's guests trust.
pub struct Trust {
    bundle: PathBuf,
    connector: OnceCell<TlsConnector>,
}

/// Why there is no TLS to a server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The node's administrator has to give it some.
    #[error(
        "the node has no certificates of authorities to trust: install its package ca-certificates, \
         or set SSL_CERT_FILE for the agent"
    )]
    NoAuthorities(#[source] io::Error),
    /// No name that a certificate could bear.
    #[error("{0} is no name that a server could prove")]
    Name(String),
    /// The handshake failed.
    #[error("{0}")]
    Handshake(#[source] io::Error),
}

impl TlsError {
    /// As `wasi:http` says it.
    pub(crate) fn code(&self) -> Error {
        let io = match self {
            Self::NoAuthorities(_) => return Error::InternalError(Some(self.to_string())),
            Self::Name(_) => return Error::HttpRequestUriInvalid,
            Self::Handshake(io) => io,
        };
        match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                Error::TlsCertificateError
            }
            Some(rustls::Error::AlertReceived(alert)) => Error::TlsAlertReceived {
                alert_id: Some(u8::from(*alert)),
                alert_message: Some(format!("{alert:?}")),
            },
            Some(_) => Error::TlsProtocolError,
            None => Error::ConnectionTerminated,
        }
    }
}

impl Trust {
    /// Whom the bundle in this root will name, once it is asked for.
    pub fn new(root: &Root) -> Arc<Self> {
        let bundle = root.path(layout::AUTHORITIES);
        Arc::new(Self { bundle, connector: OnceCell::new() })
    }

    /// A connection on `stream` to the server that proves to be `host`.
    pub(crate) async fn connect<S>(&self, host: &str, stream: S) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name =
            ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name(host.to_owned()))?;
        let connector = self.connector().await.map_err(TlsError::NoAuthorities)?;
        connector.connect(name, stream).await.map_err(TlsError::Handshake)
    }

    async fn connector(&self) -> io::Result<&TlsConnector> {
        // A bundle that is not there yet is looked for again by the next request.
        let read = || async {
            let bundle = self.bundle.clone();
            tokio::task::spawn_blocking(move || connector(&bundle))
                .await
                .map_err(io::Error::other)?
        };
        self.connector.get_or_try_init(read).await
    }
}

fn connector(bundle: &std::path::Path) -> io::Result<TlsConnector> {
    let pem = std::fs::read(bundle)?;
    let mut roots = RootCertStore::empty();
    // One certificate that cannot be read does not take the others with it.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    if roots.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it holds no certificate"));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}
