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
    /// The bytes of the one layer, or of each.
    pub layers: Vec<Vec<u8>>,
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
            (vec![layer.to_vec()], "application/wasm"),
        )
    }

    /// An ordinary container image of these layers, lowest first, each a tar archive ([`archive`]).
    pub fn container(entrypoint: &[&str], layers: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "created": "2026-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip1",
            "config": { "Entrypoint": entrypoint }, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        Self::new(
            (config, "application/vnd.oci.image.config.v1+json"),
            (layers.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
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
            (
                vec![[&head[..], &tar, &tail].concat()],
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ),
        )
    }

    fn new(config: (Value, &str), layers: (Vec<Vec<u8>>, &str)) -> Self {
        let (config, config_kind) = (config.0.to_string().into_bytes(), config.1);
        let (layers, kind) = layers;
        let described = layers.iter().map(
            |layer| json!({ "mediaType": kind, "digest": digest(layer), "size": layer.len() }),
        );
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": config_kind, "digest": digest(&config), "size": config.len() },
            "layers": described.collect::<Vec<_>>(),
        });
        Self { config, layers, manifest }
    }

    /// What a registry with this image alone answers, whatever the image is called.
    pub fn answer(&self, path: &str) -> Option<(&'static str, Vec<u8>)> {
        if path.contains("/manifests/") {
            Some((MANIFEST, self.manifest.to_string().into_bytes()))
        } else if path.ends_with(&digest(&self.config)) {
            Some(("application/octet-stream", self.config.clone()))
        } else if let Some(layer) = self.layer_at(path) {
            Some(("application/octet-stream", layer.clone()))
        } else {
            (path == "/v2/").then(|| ("application/json", b"{}".to_vec()))
        }
    }

    /// By what the manifest says, which a test may have made untrue.
    fn layer_at(&self, path: &str) -> Option<&Vec<u8>> {
        let described = self.manifest["layers"].as_array()?.iter();
        let is_it = |it: &&Value| it["digest"].as_str().is_some_and(|hex| path.ends_with(hex));
        described.zip(&self.layers).find(|(it, _)| is_it(it)).map(|(_, layer)| layer)
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

/// A layer: files with their bytes, and links (`path -> target`, with no bytes).
///
/// # Panics
/// Where a path is too long for an old header.
pub fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        if let Some((path, target)) = path.split_once(" -> ") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            archive.append_link(&mut header, path, target).expect("a short path");
        } else {
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, path, *bytes).expect("a short path");
        }
    }
    archive.into_inner().expect("a vector takes every byte")
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
