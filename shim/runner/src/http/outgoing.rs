//! The client behind `wasi:http/outgoing-handler`: HTTP/1.1, with TLS or without, over connections that the pod's network dials
//! and judges.
//!
//! Connections are kept per container and used again. hyper-util's pooled client was not taken: `wasi:http` has a connect
//! timeout per request, which its connector cannot see. Absent: HTTP/2; the request's body (`upload`); whom TLS trusts (`tls`).

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use copepod_net::{DialError, lookup::LookupError};
use http::header::HeaderName;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, ForbiddenHeaderFilter, RequestOptions, WasiBody,
    WasiHttpHooks,
};

use crate::container::Container;
use crate::ledger::{Charge, Ledger};

use super::idle::{Idle, Put, keep_sweeping};
use super::notes::Notes;
use super::paced::PacedBody;
use super::tls::TlsError;
use super::upload::Upload;

/// How long an unused connection is kept: shorter than the 60 s or more after which common servers close theirs.
const KEEP_CONNECTION: Duration = Duration::from_secs(30);

/// Unused connections of one container.
const MOST_IDLE: usize = 16;

/// How long to connect, where the guest does not say: a lost SYN and the next two fit in.
const CONNECT: Duration = Duration::from_secs(30);

/// How long for the response to begin and to go on, where the guest does not say: what `wasmtime serve` gives.
const RESPONSE: Duration = Duration::from_secs(600);

/// How long a connection may need to get ready after its last response: its task may not have run yet.
const READY: Duration = Duration::from_millis(20);

/// What one connection buffers at most in each direction; also the longest head.
const BUFFER: usize = 64 << 10;

/// Chunks that a guest may write ahead of the peer.
const CHUNKS: usize = 1;

/// The longest such chunk.
const CHUNK: usize = 64 << 10;

/// What a connection is charged, in bytes: hyper's two buffers.
const CONNECTION_COST: u64 = 2 * BUFFER as u64;

/// What a body that a guest writes is charged while it is on its way, in bytes: the chunks that lie ahead of the peer, of which
/// `wasmtime-wasi-http` has one more than it is told.
pub(crate) const BODY_COST: u64 = ((CHUNKS + 1) * CHUNK) as u64;

/// A container's unused connections. Costs nothing until the first request.
#[derive(Debug)]
pub struct Pool {
    idle: Idle<Connection>,
    notes: Mutex<Notes>,
}

impl Default for Pool {
    fn default() -> Self {
        let notes = Mutex::new(Notes::new(Instant::now().into_std()));
        Self { idle: Idle::new(KEEP_CONNECTION, MOST_IDLE), notes }
    }
}

#[derive(Debug)]
struct Connection {
    to: Target,
    dialled: Dialled,
}

/// A connection that carries requests.
#[derive(Debug)]
struct Dialled {
    sender: SendRequest<Upload>,
    _held: Charge,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// A name, or an address without brackets.
    host: Box<str>,
    port: u16,
    /// Under TLS, to a server that proves to be `host`.
    secure: bool,
}

impl Target {
    fn of(authority: &Authority, secure: bool) -> Result<Self, Error> {
        if authority.as_str().contains('@') {
            return Err(Error::HttpRequestUriInvalid);
        }
        let host = authority.host();
        let bare = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or(Error::HttpRequestUriInvalid)?,
            None => host,
        };
        if bare.is_empty() || (bare.len() != host.len() && bare.parse::<IpAddr>().is_err()) {
            return Err(Error::HttpRequestUriInvalid);
        }
        let port = match authority.port_u16() {
            Some(0) => return Err(Error::HttpRequestUriInvalid),
            Some(port) => port,
            None if authority.as_str().len() == host.len() => {
                if secure {
                    443
                } else {
                    80
                }
            }
            // What follows the colon is no port.
            None => return Err(Error::HttpRequestUriInvalid),
        };
        Ok(Self { host: bare.to_ascii_lowercase().into(), port, secure })
    }
}

/// The hooks of one instance into `wasi:http`.
pub struct Outgoing {
    container: Arc<Container>,
}

impl Outgoing {
    /// For an instance of `container`, whose connections it uses.
    pub fn new(container: &Arc<Container>) -> Self {
        Self { container: container.clone() }
    }
}

impl WasiHttpHooks for Outgoing {
    // The default makes a closure on the heap for each header that it judges.
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        Arc::new(|name| DEFAULT_FORBIDDEN_HEADERS.contains(name))
    }

    fn default_scheme(&mut self) -> Option<Scheme> {
        Some(Scheme::HTTP)
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        CHUNKS
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }

    fn p2_error_from_hyper(&mut self, error: &hyper::Error) -> ErrorCode {
        code_of(error)
    }

    fn p2_error_from_connect(&mut self, error: &std::io::Error) -> ErrorCode {
        ErrorCode::InternalError(Some(error.to_string()))
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Sending {
        let container = self.container.clone();
        Box::new(async move {
            let response = send(container, request, options).await?;
            // The connection drives itself: it outlives the response, to be used again.
            let nothing: Box<dyn Future<Output = Result<(), Error>> + Send> =
                Box::new(std::future::ready(Ok(())));
            Ok((response, nothing))
        })
    }
}

type Sending = Box<
    dyn Future<
            Output = Result<
                (Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>),
                Error,
            >,
        > + Send,
>;

async fn send(
    container: Arc<Container>,
    request: Request<WasiBody>,
    options: Option<RequestOptions>,
) -> Result<Response<WasiBody>, Error> {
    let (to, request) = judge(request)?;
    let mut request = Upload::of(request, &container.ledger).await?;
    let connect = options.as_ref().and_then(|options| options.connect_timeout);
    let first_byte = options.as_ref().and_then(|options| options.first_byte_timeout);
    let between_bytes = options.as_ref().and_then(|options| options.between_bytes_timeout);

    loop {
        let kept = take(&container.outgoing, &to).await;
        let fresh = kept.is_none();
        let mut dialled = match kept {
            Some(dialled) => dialled,
            None => tokio::time::timeout(connect.unwrap_or(CONNECT), dial(&container, &to))
                .await
                .map_err(|_| Error::ConnectionTimeout)??,
        };
        let sent = dialled.sender.try_send_request(request);
        let answered = tokio::time::timeout(first_byte.unwrap_or(RESPONSE), sent)
            .await
            .map_err(|_| Error::ConnectionReadTimeout)?;
        match answered {
            Ok(response) => {
                let limit = between_bytes.unwrap_or(RESPONSE);
                return Ok(response.map(|body| {
                    let body = PacedBody::new(body, limit);
                    let kept = Some((container, Connection { to, dialled }));
                    FromServer { body, kept }.boxed_unsync()
                }));
            }
            Err(mut failed) => match failed.take_message() {
                // The server had closed the connection before anything of the request was sent on it.
                Some(unsent) if !fresh => request = unsent,
                _ => return Err(error_of(failed.into_error())),
            },
        }
    }
}

/// Sees to it that the request line names a path and nothing else, and says where the request goes.
fn judge<B>(mut request: Request<B>) -> Result<(Target, Request<B>), Error> {
    if request.method() == Method::CONNECT {
        return Err(Error::HttpRequestMethodInvalid);
    }
    let secure = request.uri().scheme() == Some(&Scheme::HTTPS);
    let authority = request.uri().authority().ok_or(Error::HttpRequestUriInvalid)?;
    let to = Target::of(authority, secure)?;
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let path = match path.as_bytes().first() {
        Some(b'/') => request.uri().path_and_query().cloned(),
        Some(b'?') => PathAndQuery::try_from(format!("/{path}")).ok(),
        None => Some(PathAndQuery::from_static("/")),
        // An absolute form here would address another host than the one that was judged.
        Some(_) => None,
    };
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path.ok_or(Error::HttpRequestUriInvalid)?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Error::HttpRequestUriInvalid)?;
    Ok((to, request))
}

/// An unused connection that is still good.
async fn take(pool: &Pool, to: &Target) -> Option<Dialled> {
    while let Some(Connection { mut dialled, .. }) =
        pool.idle.take_fitting(|connection| connection.to == *to)
    {
        if let Ok(Ok(())) = tokio::time::timeout(READY, dialled.sender.ready()).await {
            return Some(dialled);
        }
    }
    None
}

async fn dial(container: &Container, to: &Target) -> Result<Dialled, Error> {
    let ledger = &container.ledger;
    let held = ledger.reserve(CONNECTION_COST).or_else(|| {
        // Those that nobody uses now give way to one that somebody wants.
        container.outgoing.idle.clear();
        ledger.reserve(CONNECTION_COST)
    });
    let _held = held.ok_or_else(|| no_memory(ledger))?;
    Ok(Dialled { sender: connect(container, to).await?, _held })
}

/// What a guest is told for whose request there is no room.
pub(crate) fn no_memory(ledger: &Ledger) -> Error {
    let (used, limit) = (ledger.used(), ledger.limit());
    let why = format!(
        "no memory is left for the request: {used} of the container's {limit} bytes are in use"
    );
    Error::InternalError(Some(why))
}

async fn connect(container: &Container, to: &Target) -> Result<SendRequest<Upload>, Error> {
    let stream = match container.net.connect(&to.host, to.port).await {
        Err(DialError::SocketLimit) => {
            // Those that nobody uses now give way to one that somebody wants.
            container.outgoing.idle.clear();
            tokio::task::yield_now().await;
            container.net.connect(&to.host, to.port).await
        }
        connected => connected,
    };
    let stream = stream.map_err(|error| error_of_dial(&error))?;
    // Fails only on a connection that is already gone, which the first write will tell.
    let _ = stream.tcp().set_nodelay(true);
    if !to.secure {
        return speak(stream).await;
    }
    match container.trust.connect(&to.host, stream).await {
        Ok(stream) => speak(stream).await,
        Err(error) => {
            tell(container, to, &error);
            Err(error.code())
        }
    }
}

/// The guest gets a code, which says little: the container's log says what is wrong with the server's certificate.
fn tell(container: &Container, to: &Target, error: &TlsError) {
    let mut notes = container.outgoing.notes.lock().unwrap_or_else(PoisonError::into_inner);
    let note = notes.note(Instant::now().into_std());
    drop(notes);
    note.write(&container.log, &format!("no TLS to {}:{}: {error}", to.host, to.port));
}

/// Has a connected stream carry requests.
async fn speak<S>(stream: S) -> Result<SendRequest<Upload>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(error_of)?;
    // Ends when the sender is dropped, which the pool and the guest's store do.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an outgoing connection broke");
        }
    });
    Ok(sender)
}

/// A response's body; at its end the connection is kept for another request.
struct FromServer {
    body: PacedBody<Incoming>,
    kept: Option<(Arc<Container>, Connection)>,
}

impl FromServer {
    fn keep(&mut self) {
        let Some((container, connection)) = self.kept.take() else { return };
        if connection.dialled.sender.is_closed() {
            return;
        }
        if container.outgoing.idle.put(connection, Instant::now().into_std()) == Put::Sweep {
            let container = Arc::downgrade(&container);
            tokio::spawn(keep_sweeping(KEEP_CONNECTION / 3, move || {
                container.upgrade().is_some_and(|container| {
                    container.outgoing.idle.sweep(Instant::now().into_std())
                })
            }));
        }
    }
}

impl Body for FromServer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        match &polled {
            Poll::Ready(None) => this.keep(),
            Poll::Ready(Some(Ok(_))) if this.body.is_end_stream() => this.keep(),
            Poll::Ready(Some(Err(_))) => this.kept = None,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled.map_err(|error| match error {
            Error::Hyper(error) => error_of(error),
            error => error,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for FromServer {
    fn drop(&mut self) {
        // A response without a body is never asked for a frame.
        if self.body.is_end_stream() && tokio::runtime::Handle::try_current().is_ok() {
            self.keep();
        }
    }
}

fn error_of_dial(error: &DialError) -> Error {
    match error {
        DialError::Name { source: LookupError::TimedOut, .. } => Error::DnsTimeout,
        DialError::Name { source, .. } => {
            let rcode = match source {
                LookupError::ServersFailed => "SERVFAIL",
                LookupError::Invalid | LookupError::NotFound | LookupError::TimedOut => "NXDOMAIN",
            };
            Error::DnsError { rcode: Some(rcode.to_owned()), info_code: None }
        }
        DialError::Denied(_) => Error::DestinationIpProhibited,
        DialError::Unreachable(_) => Error::DestinationIpUnroutable,
        DialError::Refused(_) => Error::ConnectionRefused,
        DialError::TimedOut(_) => Error::ConnectionTimeout,
        DialError::SocketLimit => Error::ConnectionLimitReached,
        DialError::Io { to, source } => {
            Error::InternalError(Some(format!("cannot connect to {to}: {source}")))
        }
    }
}

/// What went wrong on a connection, as `wasi:http` says it.
fn error_of(error: hyper::Error) -> Error {
    code_of(&error).into()
}

fn code_of(error: &hyper::Error) -> ErrorCode {
    // Our own bodies fail with their own errors, which hyper hands through.
    let cause = std::error::Error::source(error);
    if let Some(code) = cause.and_then(|cause| cause.downcast_ref::<ErrorCode>()) {
        return code.clone();
    }
    if error.is_timeout() {
        ErrorCode::HttpResponseTimeout
    } else if error.is_parse_too_large() {
        ErrorCode::HttpResponseHeaderSectionSize(None)
    } else if error.is_incomplete_message() {
        ErrorCode::HttpResponseIncomplete
    } else if error.is_canceled()
        || error.is_closed()
        || error.is_body_write_aborted()
        || cause.is_some_and(|cause| cause.is::<std::io::Error>())
    {
        ErrorCode::ConnectionTerminated
    } else {
        ErrorCode::HttpProtocolError
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(authority: &str) -> Option<(String, u16)> {
        let authority = Authority::try_from(authority).expect("an authority");
        Target::of(&authority, false).ok().map(|target| (target.host.into(), target.port))
    }

    fn judged(uri: &str) -> Result<(Target, Request<()>), Error> {
        judge(Request::get(uri).body(()).expect("a request"))
    }

    #[test]
    fn a_target_is_a_host_without_case_and_a_port() {
        assert_eq!(target("Shop.example"), Some(("shop.example".into(), 80)));
        assert_eq!(target("shop.example:8080"), Some(("shop.example".into(), 8080)));
        assert_eq!(target("[2001:db8::1]:81"), Some(("2001:db8::1".into(), 81)));
    }

    #[test]
    fn a_target_with_a_user_or_an_impossible_port_is_refused() {
        for authority in ["user@shop.example", "shop.example:0", "shop.example:99999", "[x]:80"] {
            assert_eq!(target(authority), None, "{authority}");
        }
    }

    #[test]
    fn only_path_and_query_reach_the_request_line() {
        let (to, request) = judged("http://shop.example:81/a?b=c").expect("judged");

        assert_eq!((&*to.host, to.port), ("shop.example", 81));
        assert_eq!(request.uri().to_string(), "/a?b=c");
    }

    #[test]
    fn a_query_without_a_path_is_asked_of_the_root() {
        assert_eq!(judged("http://a?b").expect("judged").1.uri().to_string(), "/?b");
        assert_eq!(judged("http://a").expect("judged").1.uri().to_string(), "/");
    }

    #[test]
    fn a_connection_without_tls_is_never_the_one_of_an_https_request() {
        let (plain, _) = judged("http://shop.example:443/").expect("judged");
        let (secure, _) = judged("https://shop.example/").expect("judged");

        assert_eq!((secure.port, secure.secure), (443, true));
        assert_ne!(plain, secure);
    }

    #[test]
    fn a_tunnel_is_refused() {
        let connect = Request::builder().method("CONNECT").uri("http://shop.example/");

        let refused = judge(connect.body(()).expect("a request"));

        assert!(matches!(refused, Err(Error::HttpRequestMethodInvalid)));
    }
}
