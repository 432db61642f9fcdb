//! Manifests, indexes and configurations: JSON from strangers, parsed into what we use of it.
//!
//! Absent: fetching, and what the layers' bytes turn out to be. Depth is bounded by serde_json (128), size by whoever read the bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub(crate) const WASM_LAYER: &str = "application/wasm";
/// Everything that we can read, for the Accept header.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// Docker's own limit is 127 layers.
const MAX_LAYERS: usize = 128;
/// The largest index in use has a few dozen platforms.
const MAX_CHILDREN: usize = 1_000;

/// A manifest or an index that we refuse, in words for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadManifest {
    /// Not what a registry may send: maybe damaged on the way, or an attack.
    #[error("{0}")]
    Malformed(String),
    /// Right, and of no use here.
    #[error("{0}")]
    Unusable(String),
}

/// What a manifest URL answered with.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    #[serde(rename = "mediaType", default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    #[serde(rename = "schemaVersion")]
    pub(crate) schema_version: u32,
    #[serde(rename = "mediaType", default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    #[serde(rename = "artifactType", default, skip_serializing_if = "String::is_empty")]
    pub(crate) artifact_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    manifests: Vec<Descriptor>,
}

/// The fields that tell a manifest from an index, whatever its media type says (CVE-2021-41190).
#[derive(Deserialize)]
struct Shape {
    #[serde(rename = "mediaType", default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default, rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

fn malformed(error: &serde_json::Error) -> BadManifest {
    let text: String = error.to_string().chars().take(200).collect();
    BadManifest::Malformed(format!("the registry's manifest is malformed: {text}"))
}

/// Parses what came with the media type `content_type`.
pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, BadManifest> {
    let shape: Shape = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
    let wrong = |text: &str| {
        Err(BadManifest::Malformed(format!("the registry's manifest is malformed: {text}")))
    };
    if shape.fs_layers.is_some() {
        return Err(BadManifest::Unusable(
            "this is a Docker image of schema 1, a form that registries gave up in 2024: push it again".into(),
        ));
    }
    if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        return wrong("it is a manifest and an index at once");
    }
    let known = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];
    let header = content_type
        .map(|text| text.split(';').next().unwrap_or_default().trim())
        .filter(|text| known.contains(text));
    let inner = shape.media_type.as_deref();
    if let (Some(header), Some(inner)) = (header, inner)
        && header != inner
    {
        return wrong("its mediaType differs from the Content-Type it came with");
    }
    let is_index = shape.manifests.is_some();
    if let Some(named) = inner.or(header) {
        let named_index = match named {
            OCI_INDEX | DOCKER_INDEX => true,
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            other => {
                let other: String = other.chars().take(100).collect();
                return Err(BadManifest::Unusable(format!(
                    "its media type {other:?} is not an image's"
                )));
            }
        };
        if named_index != is_index {
            return wrong("its content is not of the media type that it names");
        }
    }
    if is_index {
        let index: Index = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
        if index.schema_version != 2 {
            return wrong("its schemaVersion is not 2");
        }
        if index.manifests.len() > MAX_CHILDREN {
            return Err(BadManifest::Unusable(format!(
                "its index names {} manifests, more than {MAX_CHILDREN}",
                index.manifests.len()
            )));
        }
        return Ok(Document::Index(index));
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
    if manifest.schema_version != 2 {
        return wrong("its schemaVersion is not 2");
    }
    if manifest.layers.len() > MAX_LAYERS {
        return Err(BadManifest::Unusable(format!(
            "it has {} layers, more than {MAX_LAYERS}",
            manifest.layers.len()
        )));
    }
    Ok(Document::Manifest(manifest))
}

impl Index {
    /// The one child that can run here: WebAssembly for WASI, the newer WASI first; never a Linux image.
    pub(crate) fn choose(&self) -> Result<&Descriptor, BadManifest> {
        let rank =
            |platform: &Platform| match (platform.architecture.as_str(), platform.os.as_str()) {
                ("wasm" | "wasm32", "wasip2") => Some(0),
                ("wasm" | "wasm32", "wasip1") => Some(1),
                ("wasm" | "wasm32", "wasi") => Some(2),
                _ => None,
            };
        let ranked =
            self.manifests.iter().filter_map(|it| Some((rank(it.platform.as_ref()?)?, it)));
        if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
            return Ok(best);
        }
        // An artifact tool may write an index of one that names no platform.
        let mut unnamed = self.manifests.iter().filter(|it| it.platform.is_none());
        if let (Some(only), None, 1) = (unnamed.next(), unnamed.next(), self.manifests.len()) {
            return Ok(only);
        }
        let mut platforms: Vec<String> = Vec::new();
        for it in self.manifests.iter().filter_map(|it| it.platform.as_ref()) {
            let name: String = format!("{}/{}", it.os, it.architecture).chars().take(40).collect();
            if it.os != "unknown" && !platforms.contains(&name) && platforms.len() < 8 {
                platforms.push(name);
            }
        }
        Err(not_for_us(&platforms.join(", ")))
    }
}

/// The refusal of an image that is built for other platforms.
pub(crate) fn not_for_us(platforms: &str) -> BadManifest {
    let what = match platforms {
        "" => "this image names no platform that runs here".to_owned(),
        linux if linux.split(", ").all(|it| it.starts_with("linux/")) => {
            format!("this is a Linux image ({linux})")
        }
        other => format!("this image is built for {other}"),
    };
    BadManifest::Unusable(format!(
        "{what}; copepod runs WebAssembly: build it for wasm32-wasip2 or wasm32-wasip1 and push the .wasm as an OCI artifact (`copepod image push`), or build the image for platform wasi/wasm with a .wasm file as its entrypoint"
    ))
}

/// What we use of a container image's configuration. Everything in it is data: nothing selects engine options.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    pub(crate) architecture: Option<String>,
    #[serde(default)]
    pub(crate) os: Option<String>,
    #[serde(default)]
    pub(crate) config: Option<RunConfig>,
    #[serde(default)]
    pub(crate) rootfs: Option<RootFs>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RunConfig {
    #[serde(rename = "Entrypoint", default)]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(rename = "Cmd", default)]
    pub(crate) cmd: Option<Vec<String>>,
    #[serde(rename = "Env", default)]
    pub(crate) env: Option<Vec<String>>,
    #[serde(rename = "WorkingDir", default)]
    pub(crate) working_dir: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Vec<Digest>,
}

/// Parses a configuration blob.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ConfigFile, BadManifest> {
    // Artifact tools use an empty blob, or `{}`, where there is nothing to say.
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(ConfigFile::default());
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let text: String = error.to_string().chars().take(200).collect();
        BadManifest::Malformed(format!("the image's configuration is malformed: {text}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(platform: &str) -> String {
        let digest = Digest::of(platform.as_bytes());
        let platform = match platform.split_once('/') {
            Some((os, arch)) => format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#),
            None => String::new(),
        };
        format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":1{platform}}}"#)
    }

    fn index(platforms: &[&str]) -> String {
        let children: Vec<String> = platforms.iter().map(|it| descriptor(it)).collect();
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#,
            children.join(",")
        )
    }

    fn chosen(platforms: &[&str]) -> Result<Digest, BadManifest> {
        match parse(index(platforms).as_bytes(), None)? {
            Document::Index(index) => index.choose().map(|it| it.digest.clone()),
            Document::Manifest(_) => panic!("an index"),
        }
    }

    #[test]
    fn of_an_index_the_newest_wasi_is_chosen_and_never_linux() {
        assert_eq!(
            chosen(&["linux/amd64", "wasi/wasm", "wasip2/wasm", "wasip1/wasm"]),
            Ok(Digest::of(b"wasip2/wasm"))
        );
        assert_eq!(chosen(&["nothing"]), Ok(Digest::of(b"nothing")));
        let refusal = chosen(&["linux/amd64", "linux/arm64", "unknown/unknown"])
            .expect_err("linux")
            .to_string();
        assert!(refusal.starts_with(
            "this is a Linux image (linux/amd64, linux/arm64); copepod runs WebAssembly"
        ));
    }

    #[test]
    fn a_document_that_is_two_things_or_another_than_it_says_is_refused_r09() {
        let one = descriptor("nothing");
        let both = format!(r#"{{"schemaVersion":2,"manifests":[],"config":{one},"layers":[]}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{one},"layers":[]}}"#);
        let lying = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","config":{one},"layers":[]}}"#
        );

        assert!(matches!(parse(both.as_bytes(), None), Err(BadManifest::Malformed(_))));
        assert!(matches!(
            parse(manifest.as_bytes(), Some(OCI_INDEX)),
            Err(BadManifest::Malformed(_))
        ));
        assert!(matches!(parse(lying.as_bytes(), None), Err(BadManifest::Malformed(_))));
        assert!(matches!(
            parse(index(&[]).as_bytes(), Some(OCI_MANIFEST)),
            Err(BadManifest::Malformed(_))
        ));
        assert!(parse(manifest.as_bytes(), Some("application/octet-stream")).is_ok());
    }

    #[test]
    fn depth_counts_and_malformed_digests_are_errors_and_never_a_panic_r06_r07_r08_r10() {
        let deep = "[".repeat(100_000);
        let many = index(&vec!["linux/amd64"; 10_000]);
        let one = descriptor("nothing");
        let layers = vec![one.as_str(); 100_000].join(",");
        let layered = format!(r#"{{"schemaVersion":2,"config":{one},"layers":[{layers}]}}"#);
        let digest = Digest::of(b"nothing").to_string();
        let negative = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#,
            one.replace("\"size\":1", "\"size\":-1")
        );

        assert!(matches!(parse(deep.as_bytes(), None), Err(BadManifest::Malformed(_))));
        assert!(matches!(parse_config(deep.as_bytes()), Err(BadManifest::Malformed(_))));
        assert!(matches!(parse(many.as_bytes(), None), Err(BadManifest::Unusable(_))));
        assert!(matches!(parse(layered.as_bytes(), None), Err(BadManifest::Unusable(_))));
        assert!(matches!(parse(negative.as_bytes(), None), Err(BadManifest::Malformed(_))));
        for wrong in ["", "sha256:", "sha256:../../x", "md5:00", "null", &"9".repeat(1 << 20)] {
            let text = format!(
                r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#,
                one.replace(&digest, wrong)
            );
            let error =
                parse(text.as_bytes(), None).expect_err(&wrong[..wrong.len().min(20)]).to_string();
            assert!(error.len() < 400, "{}", error.len());
        }
    }
}
