//! A runner that serves a real HTTP component: `examples/http-cases`, over real sockets.
//!
//! Absent: what needs a clock or a client that misbehaves (the crate's own tests of `http`, on a paused clock).

#[allow(dead_code, reason = "the other tests of the runner use the rest")]
mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use copepod_shim::kind::Kind;
use copepod_shim::protocol::{ExitReason, HttpSettings, Port, StartContainer, layout};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use support::{Agent, POD_IP, Runner, container, patiently, port};

/// An unlimited grace: a minute later the test has failed anyway.
const LATER_MS: i64 = 60_000;

const SETTINGS: HttpSettings =
    HttpSettings { reuse: 1, concurrency: 16, queue: 16, timeout_ms: 30_000 };

fn guest() -> &'static [u8] {
    static GUEST: OnceLock<Vec<u8>> = OnceLock::new();
    GUEST.get_or_init(|| support::guest("http-cases"))
}

/// A served container.
struct Served {
    runner: Runner,
    agent: Agent,
    port: u16,
}

async fn serve(settings: HttpSettings) -> Served {
    serve_with(|spec| spec.http = settings).await
}

async fn serve_with(change: impl FnOnce(&mut StartContainer)) -> Served {
    let runner = Runner::start();
    let code = runner.compile(guest());
    let mut agent = runner.connect_with_pod().await;
    let port = port();
    let mut spec = container("web", &code, Kind::HttpComponent);
    spec.ports = vec![Port { name: "http".into(), port, udp: false }];
    spec.http = SETTINGS;
    change(&mut spec);
    agent.start(&spec).await;
    Served { runner, agent, port }
}

struct Received {
    status: StatusCode,
    headers: HeaderMap,
    trailers: Option<HeaderMap>,
    body: Bytes,
}

impl Received {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

async fn receive(response: Response<hyper::body::Incoming>) -> Result<Received, hyper::Error> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned();
    let body = body.to_bytes();
    Ok(Received { status: parts.status, headers: parts.headers, trailers, body })
}

impl Served {
    async fn client(&self) -> http1::SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect((POD_IP, self.port)).await.expect("connected");
        let (client, connection) =
            http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        tokio::spawn(connection);
        client
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Received, hyper::Error> {
        let mut client = self.client().await;
        let response = patiently(client.send_request(request)).await?;
        patiently(receive(response)).await
    }

    async fn get(&self, path: &str) -> Received {
        self.send(get(path)).await.expect("a response")
    }

    async fn log_says(&self, part: &str) -> bool {
        // Lines are written soon, not at once.
        for _ in 0..500 {
            if self.runner.log("web").contains(part) {
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        false
    }

    fn url(&self, path: &str) -> String {
        format!("http://{POD_IP}:{}{path}", self.port)
    }
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "shop.example").body(Full::default()).expect("a request")
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[tokio::test]
async fn a_component_answers_with_a_length_where_its_body_is_short() {
    let served = serve(SETTINGS).await;

    let received = served.get("/hello").await;

    assert_eq!((received.status, received.text()), (StatusCode::OK, "hello\n"));
    assert_eq!(received.headers["content-length"], "6");
    assert_eq!(received.headers["content-type"], "text/plain");
}

#[tokio::test]
async fn the_guest_sees_the_authority_the_scheme_the_target_and_the_headers() {
    let served = serve(SETTINGS).await;

    let received = served.get("/about?a=b").await;

    let text = received.text();
    for line in [
        "method Method::Get",
        "scheme Some(Scheme::Http)",
        "authority shop.example",
        "target /about?a=b",
    ] {
        assert!(text.lines().any(|seen| seen == line), "{line} not in {text}");
    }
    assert!(!text.contains("header host"), "{text}");
}

#[tokio::test]
async fn http_2_by_prior_knowledge_is_served_on_the_same_port() {
    let served = serve(SETTINGS).await;
    let stream = TcpStream::connect((POD_IP, served.port)).await.expect("connected");
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    let request = Request::get("http://shop.example/about").body(Empty::<Bytes>::new());

    let response = client.send_request(request.expect("a request")).await.expect("a response");
    let received = receive(response).await.expect("a body");

    assert!(received.text().contains("authority shop.example\n"), "{}", received.text());
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let served = serve(SETTINGS).await;
    let sent: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    let request = Request::post("/echo").header("host", "a").body(Full::from(sent.clone()));

    let received = served.send(request.expect("a request")).await.expect("a response");

    assert!(received.body == sent, "{} of {} bytes", received.body.len(), sent.len());
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let served = serve(SETTINGS).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().expect("a value"));
    let body = Full::new(Bytes::from_static(b"body"))
        .with_trailers(std::future::ready(Some(Ok::<_, Infallible>(trailers))));
    let stream = TcpStream::connect((POD_IP, served.port)).await.expect("connected");
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);

    let request = Request::post("http://a/trailers").body(body).expect("a request");
    let response = patiently(client.send_request(request)).await.expect("a response");
    let received = receive(response).await.expect("a body");

    assert_eq!(received.text(), "with trailers\n");
    assert_eq!(received.trailers.expect("trailers")["x-seen"], "1");
}

#[tokio::test]
async fn every_request_has_a_fresh_instance_unless_reuse_is_asked_for() {
    let fresh = serve(SETTINGS).await;
    let reused = serve(HttpSettings { reuse: 3, ..SETTINGS }).await;
    let mut counts = (String::new(), String::new());

    for _ in 0..4 {
        counts.0.push_str(fresh.get("/count").await.text());
        counts.1.push_str(reused.get("/count").await.text());
    }

    assert_eq!(counts.0, "1\n1\n1\n1\n");
    assert_eq!(counts.1, "1\n2\n3\n1\n");
}

#[tokio::test]
async fn a_trap_is_500_with_a_backtrace_in_the_log_and_the_next_request_is_served() {
    let served = serve(SETTINGS).await;

    let trapped = served.get("/trap").await;

    assert_eq!(trapped.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(
        served.log_says("a request ended its instance: trap: wasm trap: wasm `unreachable`").await
    );
    assert!(served.log_says("  0: ").await, "a frame");
    assert_eq!(served.get("/hello").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_a_trap_cut_off_does_not_look_complete() {
    let served = serve(SETTINGS).await;

    let received = served.send(get("/trap-late")).await;

    assert!(received.map_or(true, |received| received.status == 500));
}

#[tokio::test]
async fn five_traps_in_a_row_end_the_container() {
    let mut served = serve(SETTINGS).await;
    for _ in 0..5 {
        let _ = served.send(get("/trap")).await;
    }

    let exit = served.agent.exit("web").await;

    assert_eq!((exit.code, exit.reason), (134, ExitReason::Trapped));
    assert!(exit.message.contains("5 fresh instances in a row"), "{}", exit.message);
}

#[tokio::test]
async fn a_guest_that_sets_no_response_is_500_and_the_log_says_why() {
    let served = serve(SETTINGS).await;

    assert_eq!(served.get("/never").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(served.log_says("without a response").await);
    assert_eq!(served.get("/error").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(served.log_says("ConfigurationError").await);
    assert_eq!(served.get("/exit?code=3").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(served.log_says("exited with code").await);
}

#[tokio::test]
async fn a_spinning_guest_is_ended_in_time_and_its_neighbours_are_served() {
    let served = serve(HttpSettings { timeout_ms: 1_000, ..SETTINGS }).await;
    let mut spinning = served.client().await;
    let spinning = tokio::spawn(spinning.send_request(get("/spin")));

    for _ in 0..10 {
        assert_eq!(served.get("/hello").await.status, StatusCode::OK);
    }

    let ended = patiently(spinning).await.expect("joined").expect("a response");
    assert_eq!(ended.status(), StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn memory_past_the_limit_ends_the_container() {
    let mut served = serve(SETTINGS).await;

    let _ = served.send(get("/alloc?mib=100")).await;

    let exit = served.agent.exit("web").await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OutOfMemory));
}

#[tokio::test]
async fn a_body_left_unfinished_ends_with_its_instance() {
    let served = serve(HttpSettings { reuse: 100, ..SETTINGS }).await;

    assert_eq!(served.get("/unfinished").await.text(), "unfinished\n");
    assert_eq!(served.get("/count").await.text(), "1\n");
    assert_eq!(served.get("/short").await.status, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn a_large_response_arrives_whole() {
    let served = serve(SETTINGS).await;

    let received = served.get("/stream?kib=4096").await;

    assert_eq!(received.body.len(), 4 << 20);
}

#[tokio::test]
async fn requests_in_work_are_finished_before_a_stopped_container_ends() {
    let mut served = serve(SETTINGS).await;
    let mut slow = served.client().await;
    let slow = tokio::spawn(slow.send_request(get("/slow?ms=1500")));
    let late = served.get("/late?ms=1500").await;
    assert_eq!(late.text(), "early\n");

    served.agent.stop("web", now_ms() + LATER_MS).await;

    let answered = patiently(slow).await.expect("joined").expect("a response");
    assert_eq!(answered.headers()["connection"], "close");
    assert_eq!(receive(answered).await.expect("a body").text(), "slow\n");
    let exit = served.agent.exit("web").await;
    assert_eq!((exit.code, exit.reason), (0, ExitReason::Ended));
    assert!(served.log_says("late work is done").await);
    assert!(TcpStream::connect((POD_IP, served.port)).await.is_err());
}

#[tokio::test]
async fn at_the_deadline_a_stopped_container_is_killed() {
    let mut served = serve(SETTINGS).await;
    let mut spinning = served.client().await;
    let spinning = tokio::spawn(spinning.send_request(get("/spin")));
    served.get("/hello").await;

    served.agent.stop("web", now_ms() + 500).await;

    let exit = served.agent.exit("web").await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::Killed));
    assert!(patiently(spinning).await.expect("joined").is_err());
}

/// A server outside of every pod, at an address that the tests' pod may reach; it counts its connections.
async fn outside() -> (u16, Arc<AtomicU32>) {
    outside_under(None).await
}

async fn outside_under(tls: Option<TlsAcceptor>) -> (u16, Arc<AtomicU32>) {
    let listener = TcpListener::bind((POD_IP, 0)).await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let connections = Arc::new(AtomicU32::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let service = service_fn(async |request: Request<hyper::body::Incoming>| {
                if request.uri().path() == "/never" {
                    std::future::pending::<()>().await;
                }
                let host = request.headers()["host"].to_str().unwrap_or_default().to_owned();
                let target = request.uri().to_string();
                let length = request.into_body().collect().await?.to_bytes().len();
                let text = format!("{host} {target} {length}\n");
                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(text))))
            });
            let connection = hyper::server::conn::http1::Builder::new();
            let tls = tls.clone();
            tokio::spawn(async move {
                let _ = match tls {
                    None => connection.serve_connection(TokioIo::new(stream), service).await,
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => {
                            connection.serve_connection(TokioIo::new(stream), service).await
                        }
                        Err(_) => return,
                    },
                };
            });
        }
    });
    (port, connections)
}

#[tokio::test]
async fn outgoing_requests_use_a_connection_again() {
    let served = serve(SETTINGS).await;
    let (port, connections) = outside().await;

    for _ in 0..3 {
        let received = served.get(&format!("/out?url=http://{POD_IP}:{port}/a?b=c")).await;
        assert_eq!(received.text(), format!("{POD_IP}:{port} /a?b=c 0\n"));
    }
    let posted = served.get(&format!("/post?url=http://{POD_IP}:{port}/p")).await;

    assert_eq!(posted.text(), format!("{POD_IP}:{port} /p 262144\n"));
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_guest_reaches_its_own_pod_by_address_and_by_localhost() {
    let served = serve(SETTINGS).await;

    let by_address = served.get(&format!("/out?url={}", served.url("/hello"))).await;
    let by_name = served.get(&format!("/out?url=http://localhost:{}/hello", served.port)).await;

    assert_eq!((by_address.text(), by_name.text()), ("hello\n", "hello\n"));
}

#[tokio::test]
async fn what_cannot_be_reached_is_told_by_its_error_code() {
    let served = serve(SETTINGS).await;
    let (port, _) = outside().await;

    for (url, code) in [
        (format!("http://{POD_IP}:1/"), "ErrorCode::ConnectionRefused"),
        ("http://169.254.169.254/".to_owned(), "ErrorCode::DestinationIpProhibited"),
        ("http://no.such.name/".to_owned(), "ErrorCode::DnsError"),
        (format!("https://{POD_IP}:{port}/"), "the node has no certificates of authorities"),
        (format!("http://user@{POD_IP}:{port}/"), "ErrorCode::HttpRequestUriInvalid"),
        (format!("http://{POD_IP}:{port}/never&wait=200"), "ErrorCode::ConnectionReadTimeout"),
    ] {
        let received = served.get(&format!("/out?url={url}")).await;

        assert_eq!(received.status, StatusCode::BAD_GATEWAY, "{url}");
        assert!(received.text().contains(code), "{url}: {}", received.text());
    }
}

#[tokio::test]
async fn a_guest_may_finish_its_empty_body_after_the_response_has_come() {
    let served = serve(SETTINGS).await;
    let (port, _) = outside().await;

    let received = served.get(&format!("/out-late?url=http://{POD_IP}:{port}/")).await;

    assert_eq!(received.text(), "Ok(()) Ok(())\n");
}

/// An authority of the tests' own, and what it vouches for.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server under TLS that proves to be `name`, as [`outside`] otherwise.
    async fn vouches_for(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (u16, Arc<AtomicU32>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a certificate");
        outside_under(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    /// Has the guests of this runner trust it.
    fn is_trusted_by(&self, runner: &Runner) {
        let bundle = runner.root().join(layout::AUTHORITIES.trim_start_matches('/'));
        std::fs::create_dir_all(bundle.parent().expect("a folder")).expect("made");
        std::fs::write(bundle, &self.pem).expect("written");
    }
}

#[tokio::test]
async fn https_goes_to_a_server_whose_certificate_is_vouched_for_and_uses_its_connection_again() {
    let served = serve(SETTINGS).await;
    let authority = Authority::new("ours");
    authority.is_trusted_by(&served.runner);
    let (port, connections) = authority.vouches_for(POD_IP, |_| {}).await;

    for _ in 0..3 {
        let received = served.get(&format!("/out?url=https://{POD_IP}:{port}/a?b=c")).await;

        assert_eq!(received.text(), format!("{POD_IP}:{port} /a?b=c 0\n"));
    }

    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_server_that_does_not_prove_who_it_is_gets_no_request_and_the_log_says_why() {
    let served = serve(SETTINGS).await;
    let authority = Authority::new("ours");
    authority.is_trusted_by(&served.runner);
    let long_ago = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    };

    for ((port, _), why) in [
        (authority.vouches_for("shop.example", |_| {}).await, "not valid for name"),
        (authority.vouches_for(POD_IP, long_ago).await, "certificate expired"),
        (Authority::new("another").vouches_for(POD_IP, |_| {}).await, "UnknownIssuer"),
    ] {
        let received = served.get(&format!("/out?url=https://{POD_IP}:{port}/")).await;

        assert_eq!(received.status, StatusCode::BAD_GATEWAY, "{why}");
        assert!(received.text().contains("ErrorCode::TlsCertificateError"), "{}", received.text());
        assert!(served.log_says(&format!("no TLS to {POD_IP}:{port}: ")).await, "{why}");
        assert!(served.log_says(why).await, "{why}: {}", served.runner.log("web"));
    }
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_told_by_its_error_code() {
    let served = serve(SETTINGS).await;
    Authority::new("ours").is_trusted_by(&served.runner);
    let (port, _) = outside().await;

    let received = served.get(&format!("/out?url=https://{POD_IP}:{port}/")).await;

    assert!(received.text().contains("ErrorCode::TlsProtocolError"), "{}", received.text());
}

#[tokio::test]
async fn a_guest_that_calls_itself_for_ever_is_bounded_by_its_concurrency() {
    // W46 of reliability.md: the chain ends at the gate.
    let settings = HttpSettings { concurrency: 3, queue: 0, ..SETTINGS };
    let served = serve(settings).await;
    let mut url = served.url("/hello");
    for _ in 0..6 {
        url = served.url(&format!("/out?url={url}"));
    }

    let received = served.get(&format!("/out?url={url}")).await;

    assert_eq!(received.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(served.get("/hello").await.status, StatusCode::OK);
}
