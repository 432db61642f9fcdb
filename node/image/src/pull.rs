//! From a name to an image in the store: index, manifest, configuration, and which of the layers is the program.
//!
//! A layer's form is told by its bytes. Absent: reading tar files ([`crate::layers`]), and the module's own content, which
//! only the compile child reads.

use std::collections::HashMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use copepod_shim::kind;

use crate::credentials::Login;
use crate::digest::Digest;
use crate::guard::{Failure, Guard};
use crate::layers;
use crate::manifest::{self, BadManifest, ConfigFile, Descriptor, Document, Manifest};
use crate::progress::{Progress, ProgressFn};
use crate::reference::{Reference, Version};
use crate::registry::{Repository, Tokens};
use crate::root;
use crate::sizes;
use crate::store::{Record, Store};

/// A configuration of a megabyte describes no program.
const MAX_CONFIG: u64 = 1 << 20;
/// The most arguments or variables of a configuration: what Linux gives a program has the same order.
const MAX_STRINGS: usize = 4_096;
/// Their bytes in all: execve's own limit is 2 MiB, of which a quarter is usual.
const MAX_STRING_BYTES: usize = 512 << 10;

/// What pulls share: one download per digest at a time, whoever asked.
#[derive(Default)]
pub(crate) struct Downloads(Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>);

impl Downloads {
    /// The turn for `digest`. Who gets it looks whether the one before has brought the blob.
    pub(crate) async fn turn(&self, digest: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Locks that nobody holds or awaits are dropped here, so that the map stays as small as the work under way.
            all.retain(|_, lock| Arc::strong_count(lock) > 1);
            all.entry(digest.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

/// One pull with one login.
pub(crate) struct Pull<'a> {
    pub(crate) store: &'a Arc<Store>,
    pub(crate) guard: &'a Guard,
    pub(crate) tokens: &'a Tokens,
    pub(crate) downloads: &'a Downloads,
    pub(crate) reference: &'a Reference,
    pub(crate) login: Option<&'a Login>,
    pub(crate) progress: ProgressFn<'a>,
}

/// An image that is whole in the store.
pub(crate) struct Pulled {
    /// What the registry resolved the name to.
    pub(crate) resolved: Digest,
    pub(crate) record: Record,
}

impl From<BadManifest> for Failure {
    fn from(bad: BadManifest) -> Self {
        match bad {
            BadManifest::Malformed(text) => Self::Corrupt(text),
            BadManifest::Unusable(text) => Self::Unusable(text),
        }
    }
}

/// Runs what blocks on the disk away from the event loop.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(std::io::Error::other(error).into()),
    }
}

impl Pull<'_> {
    pub(crate) async fn run(&self) -> Result<Pulled, Failure> {
        (self.progress)(Progress::Resolving);
        let registry = Repository::new(self.guard, self.tokens, self.reference, self.login, false)?;
        let expected = match self.reference.version() {
            Version::Digest(digest) => Some(digest),
            Version::Tag(_) => None,
        };
        // The tag is resolved once; from here on only digests are asked for.
        let first = registry.manifest(self.reference.version_text(), expected).await?;
        let resolved = first.digest.clone();
        let mut outer = None;
        let (bytes, manifest) = match manifest::parse(&first.bytes, first.content_type.as_deref())?
        {
            Document::Manifest(manifest) => (first.bytes, manifest),
            Document::Index(index) => {
                let child = index.choose()?.digest.clone();
                let inner = registry.manifest(child.as_str(), Some(&child)).await?;
                outer = Some(first.bytes);
                match manifest::parse(&inner.bytes, inner.content_type.as_deref())? {
                    Document::Manifest(manifest) => (inner.bytes, manifest),
                    Document::Index(_) => {
                        return Err(Failure::Unusable("its index leads to another index".into()));
                    }
                }
            }
        };
        let digest = Digest::of(&bytes);
        let _turn = self.downloads.turn(&digest).await;
        let store = self.store.clone();
        let wanted = digest.clone();
        // Held until the record stands, so that no collection takes the blobs from under us.
        let _busy = blocking(move || Ok(store.busy()?)).await?;
        if let Some(outer) = outer {
            self.store.put(&outer)?;
        }
        if let Some(record) = self.store.record(&wanted)? {
            return Ok(Pulled { resolved, record });
        }
        let record = self.fetch(&registry, &manifest, digest, bytes.len() as u64).await?;
        self.store.put(&bytes)?;
        self.store.write_record(&record)?;
        Ok(Pulled { resolved, record })
    }

    async fn fetch(
        &self,
        registry: &Repository<'_>,
        manifest: &Manifest,
        digest: Digest,
        manifest_bytes: u64,
    ) -> Result<Record, Failure> {
        refuse_known(manifest)?;
        let what = "the image's configuration";
        let config_bytes = registry
            .small_blob(&manifest.config.digest, manifest.config.size, MAX_CONFIG, what)
            .await?;
        let is_container = [manifest::OCI_CONFIG, manifest::DOCKER_CONFIG]
            .contains(&manifest.config.media_type.as_str());
        // An artifact's configuration may be of any kind; only a container's says how to run it.
        let config = if is_container || manifest.config.media_type == manifest::WASM_CONFIG {
            manifest::parse_config(&config_bytes)?
        } else {
            ConfigFile::default()
        };
        let by_type: Vec<&Descriptor> =
            manifest.layers.iter().filter(|layer| names_wasm(&layer.media_type)).collect();
        let wanted: Vec<&Descriptor> = match by_type.as_slice() {
            [] => {
                if is_container {
                    refuse_linux(manifest, &config)?;
                }
                manifest.layers.iter().collect()
            }
            [one] => vec![*one],
            several => return Err(several_programs(several.len())),
        };
        let rules = &self.guard.rules;
        let mut total = 0u64;
        for layer in &wanted {
            if layer.size > rules.max_layer_bytes {
                return Err(Failure::Unusable(format!(
                    "layer {} has {}, more than the limit of {} (COPEPOD_MAX_LAYER_BYTES)",
                    layer.digest,
                    sizes::shown(layer.size),
                    sizes::shown(rules.max_layer_bytes)
                )));
            }
            total = total.saturating_add(layer.size);
        }
        if total > rules.max_image_bytes {
            return Err(Failure::Unusable(format!(
                "its layers have {} together, more than the limit of {} (COPEPOD_MAX_IMAGE_BYTES)",
                sizes::shown(total),
                sizes::shown(rules.max_image_bytes)
            )));
        }
        self.store.put(&config_bytes)?;
        let mut done = 0;
        (self.progress)(Progress::Pulling { done, total });
        for layer in &wanted {
            self.layer(registry, layer, done, total).await?;
            done += layer.size;
            (self.progress)(Progress::Pulling { done, total });
        }
        let strings = Strings::of(&config)?;
        let mut blobs = vec![digest.clone(), manifest.config.digest.clone()];
        blobs.extend(wanted.iter().map(|layer| layer.digest.clone()));
        let mut bytes = manifest_bytes + manifest.config.size + total;
        let program = self.program(&digest, manifest, &wanted, &config, &strings).await?;
        if !blobs.contains(&program.digest) {
            blobs.push(program.digest.clone());
            bytes += program.bytes;
        }
        bytes += program.root_bytes.unwrap_or(0);
        blobs.sort();
        blobs.dedup();
        Ok(Record {
            manifest: digest,
            blobs,
            wasm: program.digest,
            wasm_bytes: program.bytes,
            bytes,
            program: program.name,
            entrypoint: strings.entrypoint,
            cmd: strings.cmd,
            env: strings.env,
            working_dir: strings.working_dir,
            root_bytes: program.root_bytes,
        })
    }

    async fn layer(
        &self,
        registry: &Repository<'_>,
        layer: &Descriptor,
        before: u64,
        total: u64,
    ) -> Result<(), Failure> {
        let _turn = self.downloads.turn(&layer.digest).await;
        match self.store.blob_bytes(&layer.digest)? {
            Some(size) if size == layer.size => return Ok(()),
            Some(size) => {
                return Err(Failure::Corrupt(format!(
                    "layer {} has {size} bytes, and {} in its manifest",
                    layer.digest, layer.size
                )));
            }
            None => {}
        }
        let temp = self.store.temp()?;
        let mut done = before;
        let mut told = before;
        registry
            .blob(&layer.digest, layer.size, &temp, &mut |came| {
                match came {
                    Some(bytes) => done += bytes,
                    None => done = before,
                }
                // A message per 1 MiB is enough to see it move.
                if done >= told + (1 << 20) || done < told {
                    told = done;
                    (self.progress)(Progress::Pulling { done, total });
                }
            })
            .await?;
        let store = self.store.clone();
        let digest = layer.digest.clone();
        blocking(move || Ok(store.commit_blob(temp, &digest)?)).await
    }

    async fn program(
        &self,
        digest: &Digest,
        manifest: &Manifest,
        layers: &[&Descriptor],
        config: &ConfigFile,
        strings: &Strings,
    ) -> Result<Program, Failure> {
        let mut modules = Vec::new();
        let mut archives = Vec::new();
        let mut refusal = None;
        for layer in layers {
            match form_of(self.store, &layer.digest)? {
                Form::Wasm => modules.push(*layer),
                Form::Archive => archives.push(layer.digest.clone()),
                Form::Other(why) => refusal = Some(why),
            }
        }
        let default_name = || {
            let last = self.reference.repository().rsplit('/').next().unwrap_or("program");
            if last.ends_with(".wasm") { last.to_owned() } else { format!("{last}.wasm") }
        };
        match (modules.as_slice(), archives.is_empty(), refusal) {
            ([module], _, _) => Ok(Program {
                digest: module.digest.clone(),
                bytes: module.size,
                name: title(module).unwrap_or_else(default_name),
                root_bytes: None,
            }),
            ([_, _, ..], _, _) => Err(several_programs(modules.len())),
            ([], _, Some(why)) => Err(Failure::Unusable(why)),
            ([], true, None) => {
                Err(Failure::Unusable("the image has no layer, so there is nothing to run".into()))
            }
            ([], false, None) => {
                (self.progress)(Progress::Unpacking);
                let path = entry_path(manifest, strings)?;
                let (store, rules) = (self.store.clone(), self.guard.rules.clone());
                let diff_ids =
                    config.rootfs.as_ref().map(|it| it.diff_ids.clone()).unwrap_or_default();
                let manifest = digest.clone();
                blocking(move || {
                    let found = root::compose(&store, &archives, &diff_ids, &path, &rules)?;
                    let root_bytes = match found.root {
                        Some((folder, bytes)) => {
                            store.commit_root(folder, &manifest)?;
                            Some(bytes)
                        }
                        None => None,
                    };
                    let root::Unpacked { digest, bytes, name, .. } = found;
                    Ok(Program { digest, bytes, name, root_bytes })
                })
                .await
            }
        }
    }
}

struct Program {
    digest: Digest,
    bytes: u64,
    name: String,
    root_bytes: Option<u64>,
}

/// The media types that say "one wasm file", old and new.
fn names_wasm(media_type: &str) -> bool {
    media_type == manifest::WASM_LAYER || media_type.ends_with("+wasm")
}

fn several_programs(count: usize) -> Failure {
    Failure::Unusable(format!(
        "it holds {count} wasm layers, and a container runs one: push one module per image"
    ))
}

/// Forms that we know and cannot run yet.
fn refuse_known(manifest: &Manifest) -> Result<(), Failure> {
    let types = [manifest.artifact_type.as_str(), manifest.config.media_type.as_str()];
    let layers = manifest.layers.iter().map(|layer| layer.media_type.as_str());
    for media_type in types.into_iter().chain(layers) {
        if media_type.starts_with("application/vnd.fermyon.spin") {
            return Err(Failure::Unusable(
                "this is a Spin application, which is not supported: push its component's .wasm by itself".into(),
            ));
        }
        if media_type.contains("foreign") || media_type.contains("nondistributable") {
            return Err(Failure::Unusable(
                "it has a layer that lies outside the registry, and such layers are never fetched"
                    .into(),
            ));
        }
    }
    Ok(())
}

/// Says before any layer is fetched that this is a Linux image, if nothing in it points to wasm.
fn refuse_linux(manifest: &Manifest, config: &ConfigFile) -> Result<(), Failure> {
    let os = config.os.as_deref().unwrap_or_default();
    let arch = config.architecture.as_deref().unwrap_or_default();
    let program = config.config.as_ref().and_then(|run| {
        let from = run.entrypoint.as_ref().filter(|it| !it.is_empty()).or(run.cmd.as_ref());
        from.and_then(|it| it.first())
    });
    let is_wasm_file = program.is_some_and(|it| file_of(it).ends_with(".wasm"));
    if arch.starts_with("wasm") || os.starts_with("wasi") || is_wasm_file || is_compat(manifest) {
        return Ok(());
    }
    let platform: String = format!("{os}/{arch}").chars().take(40).collect();
    Err(manifest::not_for_us(if platform == "/" { "" } else { &platform }).into())
}

fn is_compat(manifest: &Manifest) -> bool {
    manifest
        .annotations
        .get("module.wasm.image/variant")
        .is_some_and(|it| it == "compat" || it == "compat-smart")
}

/// runwasi's `file#export` names a function too, which we do not use: the kind is read from the module.
fn file_of(argument: &str) -> &str {
    argument.split('#').next().unwrap_or_default()
}

fn entry_path(manifest: &Manifest, strings: &Strings) -> Result<String, Failure> {
    let argument = strings.entrypoint.first().or(strings.cmd.first()).map(|it| file_of(it));
    let path = match argument {
        Some(file) if file.ends_with(".wasm") => file,
        _ if is_compat(manifest) => "plugin.wasm",
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            return Err(Failure::Unusable(format!(
                "its entrypoint is {other:?}, not a .wasm file; copepod runs WebAssembly, no shell and no Linux program"
            )));
        }
        None => {
            return Err(Failure::Unusable(
                "its configuration names no entrypoint, so nobody knows which file to run: set ENTRYPOINT [\"/app.wasm\"]".into(),
            ));
        }
    };
    let joined = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{}/{path}", strings.working_dir)
    };
    layers::normal(&joined).ok_or_else(|| {
        Failure::Unusable(format!(
            "its entrypoint {:?} leads out of the image",
            path.chars().take(80).collect::<String>()
        ))
    })
}

fn title(layer: &Descriptor) -> Option<String> {
    let title = layer.annotations.get("org.opencontainers.image.title")?;
    let name = title.rsplit('/').next()?;
    let plain = name.len() <= 128 && name.bytes().all(|b| b.is_ascii_graphic());
    (plain && name.ends_with(".wasm")).then(|| name.to_owned())
}

/// A configuration's strings, capped and checked: data, of which nothing is executed on the host.
#[derive(Default)]
struct Strings {
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<(String, String)>,
    working_dir: String,
}

impl Strings {
    fn of(config: &ConfigFile) -> Result<Self, Failure> {
        let Some(run) = config.config.clone() else { return Ok(Self::default()) };
        let entrypoint = run.entrypoint.unwrap_or_default();
        let cmd = run.cmd.unwrap_or_default();
        let variables = run.env.unwrap_or_default();
        let working_dir = run.working_dir.unwrap_or_default();
        let all = || entrypoint.iter().chain(&cmd).chain(&variables).chain([&working_dir]);
        if all().count() > MAX_STRINGS || all().map(String::len).sum::<usize>() > MAX_STRING_BYTES {
            return Err(Failure::Unusable(format!(
                "its arguments and variables are more than {MAX_STRINGS} or have more than {}",
                sizes::shown(MAX_STRING_BYTES as u64)
            )));
        }
        if all().any(|it| it.contains('\0')) {
            return Err(Failure::Corrupt(
                "an argument or variable in its configuration holds a zero byte".into(),
            ));
        }
        let env = variables
            .into_iter()
            .filter_map(|it| {
                it.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
            })
            .filter(|(name, _)| !name.is_empty())
            .collect();
        Ok(Self { entrypoint, cmd, env, working_dir })
    }
}

/// What a layer's first bytes say it is.
enum Form {
    Wasm,
    Archive,
    Other(String),
}

fn form_of(store: &Store, digest: &Digest) -> Result<Form, Failure> {
    let mut file = std::fs::File::open(store.blob_path(digest))?;
    let mut head = Vec::new();
    std::io::Read::by_ref(&mut file).take(4096).read_to_end(&mut head)?;
    let is_tar = head.get(257..262).is_some_and(|magic| magic == b"ustar");
    if head.starts_with(&[0x1f, 0x8b]) || is_tar {
        return Ok(Form::Archive);
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Ok(Form::Other(
            "its layers are compressed with zstd, which is not supported: use gzip".into(),
        ));
    }
    Ok(match refusal_by_ends(&head, &mut file)? {
        None => Form::Wasm,
        Some(refusal) => Form::Other(refusal.to_string()),
    })
}

/// What is wrong with a file by its first and last bytes alone: not wasm, ELF, precompiled. The rest is the compile child's to read.
pub(crate) fn refusal_by_ends(
    head: &[u8],
    file: &mut std::fs::File,
) -> Result<Option<kind::NotRunnable>, Failure> {
    if head.starts_with(b"\0asm") {
        return Ok(None);
    }
    let mut ends = head.to_vec();
    let length = file.metadata()?.len();
    if length > head.len() as u64 {
        file.seek(SeekFrom::Start(length.saturating_sub(4096).max(head.len() as u64)))?;
        file.take(4096).read_to_end(&mut ends)?;
    }
    Ok(kind::inspect(&ends).err())
}
