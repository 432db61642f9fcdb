//! A registry of a few lines, in the test's own process: it answers what the test says, and the test sees each request.
//!
//! Start at [`serve`]. Absent: pushing, and everything that an honest registry checks.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The media type of an image's manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an index of manifests.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What is answered to a path: a content type and a body, or 404.
type Answers = dyn Fn(&str) -> Option<(&'static str, Vec<u8>)> + Send + Sync;

/// What names these bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

/// An image as a registry should serve it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The configuration's bytes.
    pub config: Vec<u8>,
    /// The one layer's bytes.
    pub layer: Vec<u8>,
    /// The manifest.
    pub manifest: Value,
}

impl Image {
    /// Of a wasm module.
    pub fn of(layer: &[u8]) -> Self {
        let config = json!({
            "created": "2026-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip1", "layerDigests": [],
        });
        Self::new(
            (config, "application/vnd.wasm.config.v0+json"),
            (layer.to_vec(), "application/wasm"),
        )
    }

    /// Of a program for Linux on amd64, as every builder makes them. Its layer is an archive without a file.
    pub fn linux() -> Self {
        // An empty tar has two empty blocks; gzip's form of it, with one stored piece.
        let tar = [0; 1024];
        let config = json!({
            "created": "2026-01-01T00:00:00Z", "architecture": "amd64", "os": "linux",
            "config": { "Cmd": ["/bin/sh"] }, "rootfs": { "type": "layers", "diff_ids": [digest(&tar)] },
        });
        let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1, 0, 4, 0xff, 0xfb];
        // CRC-32 of 1,024 zeroes, and their number.
        let tail = [0x2e, 0xaf, 0xb5, 0xef, 0, 4, 0, 0];
        Self::new(
            (config, "application/vnd.oci.image.config.v1+json"),
            ([&head[..], &tar, &tail].concat(), "application/vnd.oci.image.layer.v1.tar+gzip"),
        )
    }

    fn new(config: (Value, &str), layer: (Vec<u8>, &str)) -> Self {
        let (config, config_kind) = (config.0.to_string().into_bytes(), config.1);
        let (layer, layer_kind) = layer;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": config_kind, "digest": digest(&config), "size": config.len() },
            "layers": [{ "mediaType": layer_kind, "digest": digest(&layer), "size": layer.len() }],
        });
        Self { config, layer, manifest }
    }

    /// What a registry with this image alone answers, whatever the image is called.
    pub fn answer(&self, path: &str) -> Option<(&'static str, Vec<u8>)> {
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

    /// The same where the name leads to an index, in which the image is for this operating system and architecture.
    pub fn answer_by_index(
        &self,
        path: &str,
        system: &str,
        architecture: &str,
    ) -> Option<(&'static str, Vec<u8>)> {
        let manifest = self.manifest.to_string();
        if !path.contains("/manifests/") || path.ends_with(&digest(manifest.as_bytes())) {
            return self.answer(path);
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [{
                "mediaType": MANIFEST, "digest": digest(manifest.as_bytes()), "size": manifest.len(),
                "platform": { "os": system, "architecture": architecture },
            }],
        });
        Some((INDEX, index.to_string().into_bytes()))
    }
}

/// Serves on loopback until the test program ends.
///
/// # Panics
/// Where no port is free.
pub fn serve(
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
