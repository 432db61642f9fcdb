//! What the tests stand on: authorities and certificates, the fakes, a client.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use copepod_agent::api::{
    AttachTo, ContainerUse, ExecIn, LogLine, LogPiece, LogPosition, LogsOf, PodName, Reply,
};
use copepod_kubelet::server::access::{ClientAuthorities, Reviews, User};
use copepod_kubelet::server::metrics::Metrics;
use copepod_kubelet::server::pods::{Pods, Told};
use copepod_kubelet::server::route::Attributes;
use copepod_kubelet::server::{Server, ServerSettings};
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("signed");
        let pem = certificate.pem();
        Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for this user of this group.
    pub(crate) fn client(
        &self,
        user: &str,
        group: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        self.sign(Vec::new(), ExtendedKeyUsagePurpose::ClientAuth, |params| {
            params.distinguished_name.push(DnType::CommonName, user);
            params.distinguished_name.push(DnType::OrganizationName, group);
            change(params);
        })
    }

    pub(crate) fn server(&self) -> Identity {
        self.sign(vec!["127.0.0.1".into()], ExtendedKeyUsagePurpose::ServerAuth, |_| {})
    }

    pub(crate) fn pem(&self) -> String {
        self.pem.clone()
    }

    fn sign(
        &self,
        names: Vec<String>,
        purpose: ExtendedKeyUsagePurpose,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.extended_key_usages = vec![purpose];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Identity { certificate: certificate.der().clone(), key }
    }
}

impl Identity {
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        let provider = rustls::crypto::ring::default_provider();
        let key = self.key.clone_key();
        let chain = vec![self.certificate.clone()];
        Arc::new(CertifiedKey::from_der(chain, key, &provider).expect("a key that fits"))
    }
}

/// Knows tokens, and who may do what.
#[derive(Default)]
pub(crate) struct FakeReviews {
    /// By token.
    pub(crate) users: Mutex<HashMap<String, User>>,
    /// User name, verb, subresource.
    pub(crate) rights: Mutex<BTreeSet<(String, String, String)>>,
    /// The API server does not answer.
    pub(crate) down: Mutex<bool>,
}

impl FakeReviews {
    pub(crate) fn token(&self, token: &str, name: &str) {
        let user = User { name: name.into(), ..User::default() };
        self.users.lock().expect("no panic").insert(token.into(), user);
    }

    pub(crate) fn allow(&self, name: &str, verb: &str, subresource: &str) {
        let right = (name.into(), verb.into(), subresource.into());
        self.rights.lock().expect("no panic").insert(right);
    }
}

impl Reviews for FakeReviews {
    fn token_review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, String>> {
        Box::pin(async move {
            if *self.down.lock().expect("no panic") {
                return Err("no API server".into());
            }
            Ok(self.users.lock().expect("no panic").get(token).cloned())
        })
    }

    fn subject_access_review<'a>(
        &'a self,
        user: &'a User,
        asked: Attributes,
    ) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async move {
            if *self.down.lock().expect("no panic") {
                return Err("no API server".into());
            }
            let right = (user.name.clone(), asked.verb.into(), asked.subresource.into());
            Ok(self.rights.lock().expect("no panic").contains(&right))
        })
    }
}

type Program = Box<
    dyn Fn(Vec<String>, [OwnedFd; 3]) -> BoxFuture<'static, Result<(i32, Option<String>), String>>
        + Send
        + Sync,
>;

/// Pods of a test.
#[derive(Default)]
pub(crate) struct FakePods {
    pub(crate) pods: Mutex<Vec<Arc<Pod>>>,
    /// Lines per attempt of the one container.
    pub(crate) lines: Mutex<HashMap<u32, Vec<LogLine>>>,
    /// What was asked of the log.
    pub(crate) asked: Mutex<Vec<LogsOf>>,
    /// More lines for a followed log; it ends when the sender is dropped.
    pub(crate) more: Mutex<Option<mpsc::Receiver<Reply>>>,
    pub(crate) program: Mutex<Option<Program>>,
    pub(crate) execs: Mutex<Vec<ExecIn>>,
    pub(crate) uses: Mutex<Vec<ContainerUse>>,
    /// Pod ports, and who answers there.
    pub(crate) ports: Mutex<HashMap<u16, SocketAddr>>,
    pub(crate) ill: Mutex<Option<String>>,
}

impl Told for FakePods {
    fn all(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().expect("no panic").clone()
    }

    fn healthy(&self) -> Result<(), String> {
        self.ill.lock().expect("no panic").clone().map_or(Ok(()), Err)
    }
}

impl Pods for FakePods {
    fn logs(&self, logs: LogsOf) -> BoxFuture<'_, mpsc::Receiver<Reply>> {
        self.asked.lock().expect("no panic").push(logs.clone());
        let attempt = logs.after.expect("a run is named").attempt;
        let after = logs.after.filter(|after| after.time_ns > 0).map_or(i64::MIN, |it| it.time_ns);
        let lines = self.lines.lock().expect("no panic").get(&attempt).cloned().unwrap_or_default();
        let mut lines: Vec<_> = lines.into_iter().filter(|line| line.time_ns > after).collect();
        if let Some(tail) = logs.tail {
            lines.drain(..lines.len().saturating_sub(usize::try_from(tail).expect("fits")));
        }
        let more = if logs.follow { self.more.lock().expect("no panic").take() } else { None };
        let (replies, replied) = mpsc::channel(1);
        tokio::spawn(async move {
            if !lines.is_empty() {
                let _ = replies.send(piece(attempt, lines)).await;
            }
            if let Some(mut more) = more {
                while let Some(reply) = more.recv().await {
                    if replies.send(reply).await.is_err() {
                        return;
                    }
                }
            }
            let _ = replies.send(Reply::Done).await;
        });
        Box::pin(async move { replied })
    }

    fn exec(
        &self,
        exec: ExecIn,
        streams: [OwnedFd; 3],
    ) -> BoxFuture<'_, Result<(i32, Option<String>), String>> {
        let program = self.program.lock().expect("no panic");
        let args = exec.args.clone();
        self.execs.lock().expect("no panic").push(exec);
        match &*program {
            Some(program) => program(args, streams),
            None => Box::pin(async { Err("no program".into()) }),
        }
    }

    fn attach(
        &self,
        attach: AttachTo,
        streams: [OwnedFd; 3],
    ) -> BoxFuture<'_, Result<Option<i32>, String>> {
        // It is whoever a test says.
        let running = self.exec(
            ExecIn { pod: attach.pod, container: attach.container, args: Vec::new(), tty: false },
            streams,
        );
        Box::pin(async move { running.await.map(|(code, _)| Some(code)) })
    }

    fn uses(&self) -> BoxFuture<'_, Vec<ContainerUse>> {
        let uses = self.uses.lock().expect("no panic").clone();
        Box::pin(async move { uses })
    }

    fn dial<'a>(&'a self, _: &'a PodName, port: u16) -> BoxFuture<'a, io::Result<TcpStream>> {
        let address = self.ports.lock().expect("no panic").get(&port).copied();
        Box::pin(async move {
            match address {
                Some(address) => TcpStream::connect(address).await,
                None => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }
}

pub(crate) fn piece(attempt: u32, lines: Vec<LogLine>) -> Reply {
    let time_ns = lines.last().map_or(0, |line| line.time_ns);
    Reply::Log(LogPiece { lines, position: LogPosition { attempt, time_ns, lines: 1 } })
}

pub(crate) fn line(second: i64, text: &str) -> LogLine {
    LogLine { time_ns: second * 1_000_000_000, stderr: false, text: text.into(), partial: false }
}

/// Pod `default/web` with one container, `app`, whose second run is in this state.
pub(crate) fn pod(state: serde_json::Value, last: serde_json::Value) -> Arc<Pod> {
    let pod = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u-1"},
        "spec": {"containers": [{"name": "app"}]},
        "status": {"startTime": "2026-01-01T00:00:00Z", "containerStatuses": [{
            "name": "app", "image": "registry/app:1", "imageID": "", "ready": true,
            "restartCount": 1, "containerID": "copepod://u-1/app/1",
            "state": state, "lastState": last,
        }]},
    });
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

pub(crate) fn running() -> Arc<Pod> {
    let last = json!({"terminated": {"exitCode": 1, "containerID": "copepod://u-1/app/0"}});
    pod(json!({"running": {"startedAt": "2026-01-01T00:00:01Z"}}), last)
}

/// A server with its fakes, and a client of all rights.
pub(crate) struct Bench {
    pub(crate) address: SocketAddr,
    pub(crate) pods: Arc<FakePods>,
    pub(crate) reviews: Arc<FakeReviews>,
    pub(crate) cluster: Authority,
    pub(crate) serving: watch::Sender<Arc<CertifiedKey>>,
    pub(crate) data: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
}

/// The file of client authorities in [`Bench::data`].
pub(crate) const AUTHORITIES: &str = "client-ca.crt";

impl Bench {
    pub(crate) async fn new() -> Self {
        let cluster = Authority::new("cluster");
        let data = tempfile::tempdir().expect("a folder");
        let file = data.path().join(AUTHORITIES);
        std::fs::write(&file, cluster.pem()).expect("written");
        let (pods, reviews) = (Arc::new(FakePods::default()), Arc::new(FakeReviews::default()));
        pods.pods.lock().expect("no panic").push(running());
        reviews.token("admin", "admin");
        for verb in ["get", "create"] {
            for subresource in ["proxy", "pods", "metrics", "stats", "healthz", "configz", "log"] {
                reviews.allow("admin", verb, subresource);
            }
        }
        let (serving, newest) = watch::channel(cluster.server().certified());
        let settings = ServerSettings {
            listen: "127.0.0.1:0".parse().expect("an address"),
            serving: newest,
            authorities: ClientAuthorities::file(&file).expect("authorities"),
            reviews: reviews.clone(),
            pods: pods.clone(),
            node: "worker".into(),
            config: json!({"maxPods": 110}),
            metrics: Arc::new(Metrics::default()),
            data: data.path().to_owned(),
        };
        let server = Server::bind(settings).await.expect("listening");
        let address = server.address().expect("an address");
        let server = tokio::spawn(server.run());
        Self { address, pods, reviews, cluster, serving, data, server }
    }

    /// A connection as this client.
    pub(crate) async fn connect(&self, identity: Option<&Identity>) -> Client {
        let stream = self.tls(identity).await.expect("a handshake");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("connected");
        tokio::spawn(connection.with_upgrades());
        Client { sender }
    }

    pub(crate) async fn tls(
        &self,
        identity: Option<&Identity>,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.cluster.certificate.clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match identity {
            Some(it) => config
                .with_client_auth_cert(vec![it.certificate.clone()], it.key.clone_key())
                .expect("a client's certificate"),
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = "127.0.0.1".try_into().expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// GET, with all rights.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        self.connect(None).await.send("GET", path, Some("admin")).await
    }

    /// Asks for another protocol, with all rights.
    pub(crate) async fn upgrade(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Response<Incoming> {
        let mut client = self.connect(None).await;
        let mut request = request(method, path, Some("admin"));
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().expect("a name");
            request.headers_mut().append(name, value.parse().expect("a value"));
        }
        client.sender.send_request(request).await.expect("answered")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub(crate) struct Client {
    pub(crate) sender: hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
}

impl Client {
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        token: Option<&str>,
    ) -> (StatusCode, String) {
        let (status, _, text) = self.whole(method, path, token).await;
        (status, text)
    }

    pub(crate) async fn whole(
        &mut self,
        method: &str,
        path: &str,
        token: Option<&str>,
    ) -> (StatusCode, HeaderMap, String) {
        let answer =
            self.sender.send_request(request(method, path, token)).await.expect("answered");
        let (head, body) = answer.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        (head.status, head.headers, String::from_utf8_lossy(&body).into_owned())
    }
}

pub(crate) fn request(method: &str, path: &str, token: Option<&str>) -> Request<Empty<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", "worker:10250");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request.body(Empty::new()).expect("a request")
}

/// A listener that answers each connection by this.
pub(crate) async fn answering<F>(answer: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listening");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    address
}
