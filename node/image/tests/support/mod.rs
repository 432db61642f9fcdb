//! A registry that answers as a test wants, honest or hostile, on a loopback port; and images to put there.
//!
//! Absent: judgement. It records what it was asked and sends what it was told to.

#![allow(dead_code, unreachable_pub)] // Each test file uses its part, and is a crate of its own.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use copepod_image::{
    Compiler, Credentials, Digest, Image, Images, ImagesConfig, PullError, PullPolicy,
};
use futures::StreamExt as _;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub query: String,
    pub authorization: Option<String>,
    pub body: Vec<u8>,
}

/// An answer's body.
pub enum Body {
    Whole(Vec<u8>),
    /// No length, no end.
    Endless,
    /// One byte in 100 ms, for as long as the client wants.
    Dripping,
    /// The bytes, and then the connection breaks although more was announced.
    Broken(Vec<u8>, u64),
    /// The bytes in small pieces with pauses: a pull that can be interrupted.
    Slowly(Vec<u8>),
}

pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
}

impl Answer {
    pub fn ok(media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::status(200).with("content-type", media_type).body(Body::Whole(body.into()))
    }

    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Body::Whole(Vec::new()) }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

type Sent = BoxBody<Bytes, std::io::Error>;

fn sent(body: Body) -> Sent {
    let frames = |chunks: stream::BoxStream<'static, Result<Bytes, std::io::Error>>| {
        BodyExt::boxed(StreamBody::new(Shared(Mutex::new(chunks)).map(|it| it.map(Frame::data))))
    };
    match body {
        Body::Whole(bytes) => {
            Full::new(Bytes::from(bytes)).map_err(|never: Infallible| match never {}).boxed()
        }
        Body::Endless => {
            frames(stream::repeat_with(|| Ok(Bytes::from(vec![b' '; 64 << 10]))).boxed())
        }
        Body::Dripping => frames(
            stream::repeat(())
                .then(|()| async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Ok(Bytes::from_static(b" "))
                })
                .boxed(),
        ),
        Body::Broken(bytes, _) => frames(
            stream::iter([Some(bytes), None])
                .then(|bytes| async {
                    match bytes {
                        Some(bytes) => Ok(Bytes::from(bytes)),
                        None => {
                            // A server that breaks off at once would take what it has not sent yet with it.
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            Err(std::io::Error::other("broken by the test"))
                        }
                    }
                })
                .boxed(),
        ),
        Body::Slowly(bytes) => {
            let pieces: Vec<Bytes> = bytes.chunks(16 << 10).map(Bytes::copy_from_slice).collect();
            frames(
                stream::iter(pieces)
                    .then(|piece| async {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        Ok(piece)
                    })
                    .boxed(),
            )
        }
    }
}

/// A stream that is only ever polled through `&mut`: so it may be shared.
struct Shared(Mutex<stream::BoxStream<'static, Result<Bytes, std::io::Error>>>);

impl futures::Stream for Shared {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.get_mut().expect("no panic holds it").poll_next_unpin(context)
    }
}

/// A server of the test's own; gone with the value.
pub struct Registry {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    pub async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, answer) = (asked.clone(), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer) = (log.clone(), answer.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (log, answer) = (log.clone(), answer.clone());
                        async move {
                            let asked = read(request).await;
                            log.lock().expect("no panic holds it").push(asked.clone());
                            Ok::<_, Infallible>(respond(answer(&asked)))
                        }
                    });
                    // A broken body ends the connection with an error, as it should.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, asked, task }
    }

    /// An honest registry of these files.
    pub async fn honest(content: Content) -> Self {
        Self::start(move |asked| content.answer(asked)).await
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic holds it").clone()
    }

    pub fn count(&self, part: &str) -> usize {
        self.asked().iter().filter(|it| it.path.contains(part)).count()
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }
}

async fn read(request: Request<Incoming>) -> Asked {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|it| it.to_bytes().to_vec()).unwrap_or_default();
    Asked {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        authorization: parts
            .headers
            .get("authorization")
            .and_then(|it| it.to_str().ok())
            .map(str::to_owned),
        body,
    }
}

fn respond(answer: Answer) -> Response<Sent> {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(*name, value);
    }
    if let Body::Broken(_, length) = &answer.body {
        response = response.header("content-length", *length);
    }
    response.body(sent(answer.body)).expect("the test's headers are right")
}

/// Files of an honest registry: paths below `/v2/`.
#[derive(Clone, Default)]
pub struct Content {
    files: HashMap<String, (String, Vec<u8>)>,
}

impl Content {
    /// An image of these layers as `test/app:v1`, and by its digest.
    pub fn image(config: (&str, &str), layers: &[(&str, Vec<u8>)]) -> Self {
        let mut content = Self::default();
        let manifest = content.add_manifest(config, layers);
        content.put("test/app/manifests/v1", OCI_MANIFEST, manifest);
        content
    }

    pub fn add_manifest(&mut self, config: (&str, &str), layers: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut descriptor = |media_type: &str, bytes: &[u8]| {
            let digest = Digest::of(bytes);
            self.put(
                &format!("test/app/blobs/{digest}"),
                "application/octet-stream",
                bytes.to_vec(),
            );
            serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
        };
        let config = descriptor(config.0, config.1.as_bytes());
        let layers: Vec<_> =
            layers.iter().map(|(media_type, bytes)| descriptor(media_type, bytes)).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(&manifest);
        self.put(&format!("test/app/manifests/{digest}"), OCI_MANIFEST, manifest.clone());
        manifest
    }

    pub fn put(&mut self, path: &str, media_type: &str, bytes: Vec<u8>) {
        self.files.insert(format!("/v2/{path}"), (media_type.to_owned(), bytes));
    }

    pub fn answer(&self, asked: &Asked) -> Answer {
        match self.files.get(&asked.path) {
            Some((media_type, bytes)) => Answer::ok(media_type, bytes.clone()),
            None => Answer::ok(
                "application/json",
                r#"{"errors":[{"code":"NOT_FOUND","message":"no such thing"}]}"#,
            )
            .but(404),
        }
    }
}

impl Answer {
    fn but(mut self, status: u16) -> Self {
        self.status = status;
        self
    }
}

/// A wasm artifact with `wasm` in it.
pub fn artifact(wasm: &[u8]) -> Content {
    Content::image(
        (WASM_CONFIG, r#"{"architecture":"wasm","os":"wasip1"}"#),
        &[("application/wasm", wasm.to_vec())],
    )
}

/// A program that starts and ends, made different by `note`.
pub fn program(note: &str) -> Vec<u8> {
    wat::parse_str(format!(r#"(module (func (export "_start")) (@custom "note" "{note}"))"#))
        .expect("a module")
}

/// An image store of the test's own.
pub struct Fixture {
    pub images: Images,
    pub folder: tempfile::TempDir,
}

pub fn config() -> ImagesConfig {
    let mut config = ImagesConfig::default();
    config.pull.backoff = Duration::from_millis(1);
    config.pull.attempts = 3;
    // The rule is the same at any size; a test has no 30 seconds.
    config.pull.progress_window = Duration::from_millis(800);
    config.pull.progress_bytes = 1 << 10;
    config
}

/// The compile child of this build, for an engine with this salt.
pub fn compiler(salt: Option<&str>) -> Compiler {
    let salt = salt.map(|it| it.parse().expect("a salt"));
    Compiler::of_this_build(env!("CARGO_BIN_EXE_copepod-compiler").into(), salt)
        .expect("this machine can run the engine")
}

pub fn open(folder: &Path, config: ImagesConfig) -> Images {
    Images::open(&folder.join("images"), &folder.join("code"), config).expect("a store")
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(config())
    }

    pub fn with(config: ImagesConfig) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { images: open(folder.path(), config), folder }
    }

    pub async fn pull(&self, name: &str) -> Result<Image, PullError> {
        self.images
            .resolve(name, PullPolicy::IfNotPresent, &Credentials::anonymous(), &|_| {})
            .await
    }

    /// Files being written, and blobs: (unfinished, whole).
    pub fn files(&self) -> (usize, usize) {
        let count = |folder: &str| {
            std::fs::read_dir(self.folder.path().join("images").join(folder))
                .expect("a folder")
                .count()
        };
        (count("tmp"), count("blobs/sha256"))
    }
}

/// The refusal of a pull, after which nothing half-made may be left.
pub async fn refusal(fixture: &Fixture, name: &str) -> PullError {
    let error = fixture.pull(name).await.expect_err("refused");
    assert_eq!(fixture.files().0, 0, "nothing unfinished is left after {error}");
    assert!(error.to_string().len() < 800, "a message stays readable: {error}");
    error
}
