//! The GET of a probe or hook.
//!
//! The rules are the kubelet's (kubelet.md B2, D3): a status of 200 to 399 passes, a redirect to the same host is followed at most ten
//! times, 10 KiB of a body are read, the connection is not reused.

use std::future::Future;
use std::io;

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{USER_AGENT, driven, tls};

/// As much of a body as the kubelet keeps for a message.
const BODY: usize = 10 << 10;

/// As many redirects as the kubelet follows.
const REDIRECTS: usize = 10;

/// One GET of a probe or hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Get {
    /// Over TLS, whose certificate nobody checks.
    pub(crate) https: bool,
    /// Path and query, beginning with `/`.
    pub(crate) path: String,
    /// The port, for the `Host` header.
    pub(crate) port: u16,
    /// The pod's address or the spec's `host`, for the `Host` header only: the connection always goes to the pod.
    pub(crate) host: String,
    /// Headers of the spec; a `Host` among them wins.
    pub(crate) headers: Vec<(String, String)>,
}

/// Does the GET over connections that `dial` makes, one a redirect. `Ok` is a pass, with a note for a Warning event where a redirect
/// leads away; `Err` is what to tell in the Unhealthy event.
pub(crate) async fn get<D, F>(mut get: Get, dial: D) -> Result<Option<String>, String>
where
    D: Fn() -> F,
    F: Future<Output = io::Result<TcpStream>>,
{
    for _ in 0..=REDIRECTS {
        let scheme = if get.https { "https" } else { "http" };
        let failed = |error: String| {
            format!("Get \"{scheme}://{}:{}{}\": {error}", get.host, get.port, get.path)
        };
        let stream = dial().await.map_err(|error| failed(format!("dial tcp: {error}")))?;
        let answered = match get.https {
            true => match tls::over(stream, &get.host, b"http/1.1").await {
                Ok(stream) => one(&get, stream).await,
                Err(error) => Err(error.to_string()),
            },
            false => one(&get, stream).await,
        };
        let (status, location, body) = answered.map_err(failed)?;
        match (status, location) {
            (300..=399, Some(location)) => {
                let target: Uri =
                    location.parse().map_err(|_| format!("a redirect to {location:?}"))?;
                let elsewhere = target.scheme_str().is_some_and(|other| other != scheme)
                    || target.host().is_some_and(|host| host != get.host)
                    || target.port_u16().is_some_and(|port| port != get.port);
                if elsewhere {
                    return Ok(Some(format!(
                        "Probe terminated redirects, Response body: {}",
                        String::from_utf8_lossy(&body)
                    )));
                }
                let Some(path) = target.path_and_query() else { return Ok(None) };
                get.path = path.to_string();
            }
            (200..=399, _) => return Ok(None),
            (status, _) => return Err(format!("HTTP probe failed with statuscode: {status}")),
        }
    }
    Err(format!("stopped after {REDIRECTS} redirects"))
}

async fn one(
    get: &Get,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<(u16, Option<String>, Bytes), String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let mut request = Request::get(&get.path)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close");
    for (name, value) in &get.headers {
        request = request.header(name, value);
    }
    if !get.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header(header::HOST, format!("{}:{}", get.host, get.port));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let location = response
            .headers()
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        // A longer body is cut by ending the connection, which the guest has to bear.
        let body = Limited::new(response.into_body(), BODY)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        Ok::<_, String>((status, location, body))
    };
    driven(connection, exchange).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers each connection with the next of `answers`.
    async fn server(answers: &'static [&'static str]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let mut buffer = [0; 2048];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    async fn probe(answers: &'static [&'static str]) -> Result<Option<String>, String> {
        let port = server(answers).await;
        let (path, host) = ("/ready".into(), "127.0.0.1".into());
        let asked = Get { https: false, path, port, host, headers: vec![] };
        get(asked, || TcpStream::connect(("127.0.0.1", port))).await
    }

    #[tokio::test]
    async fn a_status_from_200_to_399_passes_and_others_fail_with_the_kubelets_words() {
        assert_eq!(probe(&["HTTP/1.1 204 No Content\r\n\r\n"]).await, Ok(None));
        assert_eq!(probe(&["HTTP/1.1 399 Odd\r\ncontent-length: 0\r\n\r\n"]).await, Ok(None));
        assert_eq!(
            probe(&["HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"]).await,
            Err("HTTP probe failed with statuscode: 500".into())
        );
    }

    #[tokio::test]
    async fn a_redirect_on_the_same_host_is_followed_and_one_elsewhere_passes_with_a_note() {
        let same = &[
            "HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n",
        ];
        assert_eq!(probe(same).await, Err("HTTP probe failed with statuscode: 404".into()));

        let away = &[
            "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n",
        ];
        assert!(
            matches!(probe(away).await, Ok(Some(note)) if note.contains("terminated redirects"))
        );
    }

    #[tokio::test]
    async fn a_server_that_leaves_without_an_answer_fails_the_probe() {
        assert!(probe(&[""]).await.is_err());
    }
}
