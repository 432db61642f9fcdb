//! Registries that lie. Each is a server of a few lines on loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use copepod_tests::manifest::{With, pod, probe};
use copepod_tests::node::Ended;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Canary;

/// What a registry answers to a path: a content type and a body, or 404.
type Answers = dyn Fn(&str) -> Option<(&'static str, Vec<u8>)> + Send + Sync;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";

fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

/// An image as a registry should serve it.
struct Image {
    config: Vec<u8>,
    layer: Vec<u8>,
    manifest: Value,
}

impl Image {
    fn of(layer: &[u8]) -> Self {
        let config = br#"{"created":"2026-01-01T00:00:00Z","architecture":"wasm","os":"wasip1","layerDigests":[]}"#.to_vec();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": digest(&config), "size": config.len() },
            "layers": [{ "mediaType": LAYER, "digest": digest(layer), "size": layer.len() }],
        });
        Self { config, layer: layer.to_vec(), manifest }
    }

    fn answer(&self, path: &str) -> Option<(&'static str, Vec<u8>)> {
        if path.contains("/manifests/") {
            Some((MANIFEST, self.manifest.to_string().into_bytes()))
        } else if path.ends_with(&digest(&self.config)) {
            Some(("application/octet-stream", self.config.clone()))
        } else if path.ends_with(self.manifest["layers"][0]["digest"].as_str()?) {
            Some(("application/octet-stream", self.layer.clone()))
        } else {
            (path == "/v2/").then(|| ("application/json", b"{}".to_vec()))
        }
    }
}

/// Serves until the test program ends.
fn serve(
    answers: impl Fn(&str) -> Option<(&'static str, Vec<u8>)> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let answers: Arc<Answers> = Arc::new(answers);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answers = answers.clone();
            // A client that hangs up has seen enough.
            std::thread::spawn(move || answer(&stream, &*answers).ok());
        }
    });
    address
}

fn answer(mut stream: &TcpStream, answers: &Answers) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, kind, body) = match answers(path) {
        Some((kind, body)) => ("200 OK", kind, body),
        None => ("404 Not Found", "text/plain", Vec::new()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )?;
    if method != "HEAD" {
        stream.write_all(&body)?;
    }
    Ok(())
}

/// Pulls from there; how that ended.
fn pull(canary: &Canary, from: SocketAddr) -> Ended {
    canary.node.run(&["image", "pull", &format!("{from}/hostile:1")])
}

#[test]
fn an_honest_registry_of_this_kind_serves() {
    let canary = Canary::new();
    let wasm = std::fs::read(canary.node.built().guest("batch")).expect("a built guest");
    let image = Image::of(&wasm);
    let from = serve(move |path| image.answer(path));

    let ended = canary.node.run_to_end(&[pod(
        "batch",
        [probe(&["100"]).with("/image", json!(format!("{from}/hostile:1")))],
    )]);

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("25 primes below 100"), "{}", ended.stdout);
}

#[test]
fn r02_a_layer_with_another_digest_is_refused_and_not_kept() {
    let canary = Canary::new();
    let wasm = std::fs::read(canary.node.built().guest("batch")).expect("a built guest");
    let mut image = Image::of(&wasm);
    let middle = image.layer.len() / 2;
    image.layer[middle] ^= 1;
    let from = serve(move |path| image.answer(path));

    let ended = pull(&canary, from);

    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains("digest"), "{}", ended.stderr);
    assert!(!canary.node.ok(&["image", "ls"]).contains("hostile"));
    canary.is_well();
}

#[test]
fn r03_a_layer_of_another_length_is_refused() {
    let canary = Canary::new();
    let wasm = std::fs::read(canary.node.built().guest("batch")).expect("a built guest");

    for length in [wasm.len() - 1, wasm.len() + 100_000] {
        let mut image = Image::of(&wasm);
        image.layer.resize(length, 0);
        let from = serve(move |path| image.answer(path));
        assert_ne!(pull(&canary, from).code, Some(0), "{length} bytes");
    }

    canary.is_well();
}

#[test]
fn r06_a_manifest_of_100_mb_is_not_read_to_its_end() {
    let canary = Canary::new();
    let from = serve(|path| {
        let large = || {
            [br#"{"schemaVersion":2,"annotations":{"a":""#.as_slice(), &vec![b'x'; 100_000_000]]
                .concat()
        };
        if path.contains("/manifests/") {
            Some((MANIFEST, large()))
        } else {
            Some(("application/json", b"{}".to_vec()))
        }
    });

    let ended = pull(&canary, from);

    assert_ne!(ended.code, Some(0));
    canary.is_well();
}

#[test]
fn r21_a_layer_of_native_code_is_refused_as_what_it_is() {
    let canary = Canary::new();
    let image = Image::of(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
    let from = serve(move |path| image.answer(path));

    let ended = canary.node.run_to_end(&[pod(
        "native",
        [probe(&[]).with("/image", json!(format!("{from}/hostile:1")))],
    )]);

    assert_eq!(ended.code, Some(125), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("Linux"), "{}", ended.stderr);
    canary.is_well();
}
