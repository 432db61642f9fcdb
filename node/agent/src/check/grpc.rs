//! The health check of gRPC (`grpc.health.v1.Health/Check`), over HTTP/2.
//!
//! Its two messages are written by hand: a string, and a number. Absent: any other call.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{USER_AGENT, driven, tls};

/// The longest answer that is read: a number in a frame takes ten bytes.
const ANSWER: usize = 1 << 10;

/// The status of a service that serves.
const SERVING: u64 = 1;

/// gRPC's code for a call that the server does not know.
const UNIMPLEMENTED: &str = "12";

/// Asks whether a service at a host and port is healthy; the empty name asks of the server as a whole. Of TLS nobody checks the certificate.
///
/// # Errors
/// What to tell in the Unhealthy event, in the kubelet's words.
pub(crate) async fn health(
    stream: TcpStream,
    tls: bool,
    (host, port): (&str, u16),
    service: &str,
) -> Result<(), String> {
    let authority = format!("{host}:{port}");
    if !tls {
        return ask(stream, &format!("http://{authority}"), service).await;
    }
    match tls::over(stream, host, b"h2").await {
        Ok(stream) => ask(stream, &format!("https://{authority}"), service).await,
        Err(error) => Err(format!("error: health rpc failed: {error}")),
    }
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    server: &str,
    service: &str,
) -> Result<(), String> {
    let failed = |error: hyper::Error| format!("error: health rpc failed: {error}");
    let io = TokioIo::new(stream);
    // Dropped last of all, with whatever the connection has begun.
    let tasks = Tasks::default();
    let handshake = hyper::client::conn::http2::handshake(tasks.0.clone(), io);
    let (mut sender, connection) = handshake.await.map_err(failed)?;
    let request = Request::post(format!("{server}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(question(service)))
        .map_err(|error| format!("error: health rpc failed: {error}"))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let (head, body) = response.into_parts();
        if head.status != 200 {
            return Err(format!("error: health rpc failed: HTTP status {}", head.status));
        }
        let body = Limited::new(body, ANSWER).collect().await;
        let body = body.map_err(|error| format!("error: health rpc failed: {error}"))?;
        // An answer without a message has its trailers in the place of its head.
        let trailers = body.trailers().cloned().unwrap_or(head.headers);
        judge(&trailers, &body.to_bytes())
    };
    driven(connection, exchange).await
}

/// What a connection of HTTP/2 has run beside it: all of it ends with the probe, also where its peer reads nothing.
#[derive(Default)]
struct Tasks(Spawns);

#[derive(Clone, Default)]
struct Spawns(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Spawns {
    fn execute(&self, task: F) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.spawn(async move { drop(task.await) });
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        // They hold it too, so that it does not end by itself.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

/// A frame with `HealthCheckRequest { service: string = 1 }`.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        put_number(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put(message);
    frame.freeze()
}

fn put_number(to: &mut BytesMut, mut number: u64) {
    while number > 0x7f {
        to.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    to.put_u8(number as u8);
}

fn judge(trailers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => {}
        code => {
            let said = text("grpc-message").unwrap_or("no message");
            return Err(match code {
                Some(UNIMPLEMENTED) => format!(
                    "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {said}"
                ),
                Some(code) => format!("error: health rpc failed: code {code}: {said}"),
                None => "error: health rpc failed: the server's answer is not of gRPC".to_owned(),
            });
        }
    }
    match status(body) {
        Some(SERVING) => Ok(()),
        Some(other) => {
            let name = match other {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "an unknown status",
            };
            Err(format!("service unhealthy (responded with {name:?})"))
        }
        None => Err("error: health rpc failed: the answer is damaged".to_owned()),
    }
}

/// The field of `HealthCheckResponse { status: enum = 1 }` in a frame; left out it is 0.
fn status(mut frame: &[u8]) -> Option<u64> {
    if frame.remaining() < 5 || frame.get_u8() != 0 {
        return None;
    }
    let length = frame.get_u32() as usize;
    let mut message = frame.get(..length)?;
    let mut status = 0;
    while message.has_remaining() {
        // Only numbers are known of this message.
        let field = number(&mut message).filter(|tag| tag & 7 == 0)? >> 3;
        let value = number(&mut message)?;
        if field == 1 {
            status = value;
        }
    }
    Some(status)
}

fn number(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = from.has_remaining().then(|| from.get_u8())?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{HeaderValue, Response};
    use http_body_util::StreamBody;
    use hyper::body::{Frame, Incoming};
    use hyper::service::service_fn;
    use hyper_util::rt::TokioExecutor;

    use super::*;

    /// What a server that answers with this message and these trailers is told to be.
    async fn asked(
        service: &'static str,
        message: &'static [u8],
        trailers: &'static [(&'static str, &'static str)],
    ) -> Result<(), String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let serve = async move {
            let (stream, _) = listener.accept().await.expect("accepted");
            let answer = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let body = request.into_body().collect().await.expect("a body").to_bytes();
                assert_eq!(body, question(service));
                let given = trailers.iter().map(|(name, value)| {
                    let name = http::HeaderName::from_static(name);
                    (name, HeaderValue::from_static(value))
                });
                let frames: [Result<_, Infallible>; 2] = [
                    Ok(Frame::data(Bytes::from_static(message))),
                    Ok(Frame::trailers(given.collect())),
                ];
                let body = StreamBody::new(futures::stream::iter(frames));
                Ok::<_, Infallible>(Response::new(body))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
        };
        tokio::spawn(serve);
        let stream = TcpStream::connect(address).await.expect("connected");
        health(stream, false, ("127.0.0.1", 1), service).await
    }

    const OK: &[(&str, &str)] = &[("grpc-status", "0")];

    #[tokio::test]
    async fn only_a_service_that_serves_is_healthy() {
        assert_eq!(asked("", &[0, 0, 0, 0, 2, 8, 1], OK).await, Ok(()));
        assert_eq!(asked("shop.Cart", &[0, 0, 0, 0, 2, 8, 1], OK).await, Ok(()));
        for (message, status) in [
            (&[0, 0, 0, 0, 2, 8, 2][..], "NOT_SERVING"),
            (&[0, 0, 0, 0, 0][..], "UNKNOWN"),
            (&[0, 0, 0, 0, 2, 8, 3][..], "SERVICE_UNKNOWN"),
        ] {
            let told = format!("service unhealthy (responded with {status:?})");
            assert_eq!(asked("", message, OK).await, Err(told));
        }
    }

    #[tokio::test]
    async fn a_server_without_the_protocol_and_one_that_fails_are_told_apart() {
        let unimplemented = &[("grpc-status", "12"), ("grpc-message", "unknown service")];
        let told = asked("", &[], unimplemented).await.expect_err("no such call");
        assert!(told.contains("does not implement the grpc health protocol"), "{told}");
        assert!(told.ends_with("unknown service"), "{told}");
        let told = asked("", &[], &[("grpc-status", "14")]).await.expect_err("a failure");
        assert_eq!(told, "error: health rpc failed: code 14: no message");
        let told = asked("", &[], &[]).await.expect_err("no gRPC");
        assert!(told.contains("not of gRPC"), "{told}");
        for damaged in [&[0, 0, 0, 0, 9, 8][..], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 2, 0x0a, 1], &[0]]
        {
            let told = asked("", damaged, OK).await.expect_err("damaged");
            assert!(told.contains("damaged"), "{damaged:?}: {told}");
        }
    }

    #[test]
    fn a_long_name_s_length_takes_two_bytes() {
        let frame = question(&"x".repeat(200));

        assert_eq!(frame[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
        assert_eq!(frame.len(), 208);
    }
}
