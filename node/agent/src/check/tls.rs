//! TLS to a guest whose certificate nobody checks, as a kubelet's probes have it: a probe asks whether somebody answers, and sends no secret.
//!
//! That the server has the key of its certificate is checked all the same. Absent: TLS towards anybody else.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A handshake over a connection to a host, which may be an address in a URL's form.
///
/// `speaks` is what the peer is offered to speak (ALPN).
///
/// # Errors
/// The peer's, or it speaks no TLS.
pub(super) async fn over(
    stream: TcpStream,
    host: &str,
    speaks: &[u8],
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
    let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let connector = TlsConnector::from(config()?);
    connector.with_alpn(vec![speaks.to_vec()]).connect(name, stream).await
}

fn config() -> io::Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    Ok(CONFIG.get_or_init(|| Arc::new(builder.with_no_client_auth())).clone())
}

/// Takes every certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Get, get};
    use super::*;

    #[tokio::test]
    async fn a_certificate_that_nobody_vouches_for_is_as_good_as_any() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let made = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]);
        let made = made.expect("a certificate");
        let key = made.signing_key.serialize_der().try_into().expect("a key");
        let server =
            rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .expect("a server");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accepted");
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
            let mut stream = acceptor.accept(stream).await.expect("a handshake");
            let _ = stream.read(&mut [0; 2048]).await;
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            // A second caller speaks no TLS at all.
            let (mut plain, _) = listener.accept().await.expect("accepted");
            let _ = plain.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        });
        let asked = || {
            let (path, host) = ("/ready".to_owned(), "127.0.0.1".to_owned());
            let asked = Get { https: true, path, port, host, headers: Vec::new() };
            get(asked, move || TcpStream::connect(("127.0.0.1", port)))
        };

        assert_eq!(asked().await, Ok(None));
        let refused = asked().await.expect_err("no TLS");
        assert!(refused.starts_with("Get \"https://127.0.0.1:"), "{refused}");
    }
}
