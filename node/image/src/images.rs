//! Images as the agent and the command line use them: one object per data directory.
//!
//! Here: pull policies, who may use a cached image, names. Absent: how bytes come ([`crate::pull`]) and where they lie ([`crate::store`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use copepod_shim::kind::{self, Inspection, Kind};
use serde::Serialize;

use crate::code::{Code, CodeCache, CompileLimits, Compiler};
use crate::credentials::{Credentials, Login};
use crate::digest::Digest;
use crate::error::{CompileError, PullError, PushError, StoreError};
use crate::guard::{Failure, Guard, PullRules};
use crate::loose::Digests;
use crate::manifest::{Descriptor, Manifest, OCI_MANIFEST, WASM_CONFIG, WASM_LAYER};
use crate::progress::{Progress, ProgressFn};
use crate::pull::{Downloads, Pull, Pulled, blocking};
use crate::reference::{Reference, Version};
use crate::registry::{MAX_MANIFEST, Repository, Tokens};
use crate::store::{Collected, Named, Record, Store};

/// The settings of one data directory's images.
#[derive(Clone, Debug)]
pub struct ImagesConfig {
    /// What one compilation may use.
    pub compile: CompileLimits,
    /// Where pulls may go and how large they may be.
    pub pull: PullRules,
    /// The bytes above which [`Images::collect`] forgets the images used longest ago.
    pub store_quota_bytes: u64,
    /// The bytes above which compiled code used longest ago is removed.
    pub code_quota_bytes: u64,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            compile: CompileLimits::default(),
            pull: PullRules::default(),
            // A thousand images of 10 MB each, and their code at three times the size.
            store_quota_bytes: 10 << 30,
            code_quota_bytes: 30 << 30,
        }
    }
}

/// When an image is asked for at its registry: a container's `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// At each start; what is here already is not fetched again.
    Always,
    /// Only if it is not here.
    IfNotPresent,
    /// Never.
    Never,
}

/// An image that is whole on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name asked for.
    pub reference: Reference,
    /// `registry/repository@sha256:...` of what the name was resolved to: a container status's `imageID`.
    pub id: String,
    /// The manifest's digest: what [`CollectPolicy::keep`] takes.
    pub digest: Digest,
    /// The module.
    pub wasm: Digest,
    /// The module's size.
    pub wasm_bytes: u64,
    /// All of the image's bytes: what the Pulled event tells.
    pub bytes: u64,
    /// The module's file name: argv[0] where neither pod nor image gives one.
    pub program: String,
    /// The configuration's Entrypoint.
    pub entrypoint: Vec<String>,
    /// The configuration's Cmd.
    pub cmd: Vec<String>,
    /// The configuration's variables.
    pub env: Vec<(String, String)>,
    /// The configuration's working directory; empty where it has none.
    pub working_dir: String,
    /// The folder with the image's files, where it has more than the program; nobody may write to it.
    pub root: Option<PathBuf>,
    /// Whether the registry was asked and bytes or a new digest came: the event is then "Successfully pulled".
    pub pulled: bool,
}

/// An image in the list of `copepod image ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The whole name.
    pub name: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// All of its bytes; 0 where parts are missing.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
}

/// What `copepod image inspect` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspected {
    /// The whole name.
    pub name: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// The module.
    pub wasm: Digest,
    /// The module's size.
    pub wasm_bytes: u64,
    /// The configuration's Entrypoint.
    pub entrypoint: Vec<String>,
    /// The configuration's Cmd.
    pub cmd: Vec<String>,
    /// The configuration's variables.
    pub env: Vec<(String, String)>,
    /// The configuration's working directory.
    pub working_dir: String,
    /// The bytes of its files, where it has more than the program.
    pub root_bytes: Option<u64>,
    /// Kind, imports and exports.
    pub inspection: Inspection,
}

/// What a collection keeps.
#[derive(Clone, Debug)]
pub struct CollectPolicy {
    /// Images that pods use: their manifests' digests, or what their names were resolved to.
    pub keep: BTreeSet<Digest>,
    /// Nothing younger goes: the kubelet's two minutes.
    pub min_age: Duration,
}

impl Default for CollectPolicy {
    fn default() -> Self {
        Self { keep: BTreeSet::new(), min_age: Duration::from_secs(120) }
    }
}

/// The images of one data directory, and their code. Cheap to clone.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) store: Arc<Store>,
    pub(crate) code: CodeCache,
    pub(crate) digests: Digests,
    pub(crate) guard: Guard,
    tokens: Tokens,
    downloads: Downloads,
    quota: u64,
}

impl Images {
    /// Opens (or makes) the store at `dir` and the code cache at `code_dir`, and clears what interrupted pulls left.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(dir: &Path, code_dir: &Path, config: ImagesConfig) -> Result<Self, StoreError> {
        let opening = |path: &Path| {
            let doing = format!("cannot open {}", path.display());
            move |source| StoreError::Io { doing, source }
        };
        let store = Store::open(dir).map_err(opening(dir))?;
        let code = CodeCache::open(code_dir, config.compile, config.code_quota_bytes)
            .map_err(opening(code_dir))?;
        let guard = Guard::new(config.pull);
        Ok(Self(Arc::new(Inner {
            store: Arc::new(store),
            code,
            digests: Digests::default(),
            guard,
            tokens: Tokens::default(),
            downloads: Downloads::default(),
            quota: config.store_quota_bytes,
        })))
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    /// The folder of an engine's code, made where it is not there: what a domain bind-mounts.
    ///
    /// # Errors
    /// The disk's.
    pub fn code_folder(&self, engine: &str) -> Result<PathBuf, StoreError> {
        self.0.code.folder(engine).map_err(|source| StoreError::Io {
            doing: "cannot make a folder of compiled code".into(),
            source,
        })
    }

    /// Removes the code of all engines but those in `keep`; their hashes.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove_other_engines(&self, keep: &BTreeSet<String>) -> Result<Vec<String>, StoreError> {
        self.0.code.remove_other_engines(keep).map_err(|source| StoreError::Io {
            doing: "cannot remove compiled code of other engines".into(),
            source,
        })
    }

    /// The image that `name` stands for, pulled where `policy` says so.
    ///
    /// # Errors
    /// Each with the kubelet's reason, and whether a retry can help.
    pub async fn resolve(
        &self,
        name: &str,
        policy: PullPolicy,
        credentials: &Credentials,
        progress: ProgressFn<'_>,
    ) -> Result<Image, PullError> {
        let reference = Reference::parse(name)?;
        let inner = &*self.0;
        let in_store = |source: io::Error| PullError::Store {
            image: name.to_owned(),
            source: Arc::new(source),
        };
        let logins = credentials.for_reference(&reference);
        if policy != PullPolicy::Always
            && let Some((named, record)) = inner.cached(&reference).map_err(in_store)?
        {
            if named.open
                || logins.iter().any(|it| named.logins.contains(&it.mark(inner.store.salt())))
            {
                return Ok(inner.image(reference, &named.resolved, record, false));
            }
            // It was pulled with a login that this pod does not show. The registry decides, as it did the first time.
            if policy == PullPolicy::Never {
                return Err(PullError::NotAllowed { image: name.to_owned() });
            }
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NotPresent { image: name.to_owned() });
        }
        let mut last = None;
        // As the kubelet does: each login that fits, in turn; without any, none.
        let turns: Vec<Option<&Login>> =
            if logins.is_empty() { vec![None] } else { logins.into_iter().map(Some).collect() };
        for login in turns {
            let pull = Pull {
                store: &inner.store,
                guard: &inner.guard,
                tokens: &inner.tokens,
                downloads: &inner.downloads,
                reference: &reference,
                login,
                progress,
            };
            match pull.run().await {
                Ok(Pulled { resolved, record }) => {
                    let was = inner.store.named(&reference).map_err(in_store)?;
                    let pulled = was.as_ref().is_none_or(|it| it.manifest != record.manifest);
                    let named = inner.name(&reference, &resolved, &record, login, was.as_ref());
                    // Unchanged at most starts under `Always`: no pod waits for a disk then.
                    if was.as_ref() != Some(&named) {
                        inner.store.write_named(&named).map_err(in_store)?;
                    }
                    return Ok(inner.image(reference, &resolved, record, pulled));
                }
                // Only a refusal makes another login worth a try.
                Err(failure @ (Failure::Denied(_) | Failure::NotFound(_))) => last = Some(failure),
                Err(failure) => return Err(pull_error(&reference, failure)),
            }
        }
        let failure = last.unwrap_or_else(|| Failure::Denied("no login was tried".into()));
        Err(match failure {
            Failure::Denied(why) if credentials.is_with_helper(reference.registry()) => pull_error(
                &reference,
                Failure::Denied(format!(
                    "{why}; its login is kept by a Docker credential helper, which copepod does not run: use `copepod image login {}`",
                    reference.registry()
                )),
            ),
            failure => pull_error(&reference, failure),
        })
    }

    /// The image's module as code for the compiler's engine: compiled once, by a confined child.
    ///
    /// # Errors
    /// The module cannot run or compile (final), or the disk failed.
    pub async fn code(
        &self,
        image: &Image,
        compiler: &Compiler,
        progress: ProgressFn<'_>,
    ) -> Result<Code, CompileError> {
        let store = &self.0.store;
        let damaged = || {
            if let Err(error) = store.remove_blob(&image.wasm) {
                tracing::warn!(%error, wasm = %image.wasm, "a damaged module could not be removed");
            }
        };
        let source = store.blob_path(&image.wasm);
        self.0.code.code(compiler, &image.wasm, &source, damaged, progress).await
    }

    /// A runner could not load this code: it is removed, and compiled anew when next asked for.
    ///
    /// # Errors
    /// The disk's.
    pub fn forget_code(&self, code: &Code) -> Result<(), StoreError> {
        self.0
            .code
            .forget(code)
            .map_err(|source| StoreError::Io { doing: "cannot remove damaged code".into(), source })
    }

    /// Puts a wasm file into the store under a name, as a wasm OCI artifact.
    ///
    /// # Errors
    /// It cannot be read, or not be run; the name is wrong.
    pub fn load(&self, file: &Path, name: &str) -> Result<Image, StoreError> {
        let reference = tagged(name)?;
        let reading =
            |source| StoreError::Io { doing: format!("cannot read {}", file.display()), source };
        let limit = self.0.guard.rules.max_layer_bytes;
        let mut wasm = Vec::new();
        File::open(file)
            .map_err(reading)?
            .take(limit + 1)
            .read_to_end(&mut wasm)
            .map_err(reading)?;
        if wasm.len() as u64 > limit {
            return Err(reading(io::Error::other(format!(
                "it has more than {} (COPEPOD_MAX_LAYER_BYTES)",
                crate::sizes::shown(limit)
            ))));
        }
        let inspection = kind::inspect(&wasm).map_err(|source| StoreError::NotRunnable {
            file: file.display().to_string(),
            source,
        })?;
        let program = file
            .file_name()
            .and_then(|it| it.to_str())
            .filter(|it| it.is_ascii() && it.len() <= 128)
            .unwrap_or("program.wasm")
            .to_owned();
        self.0.load(&reference, &wasm, &inspection, program).map_err(|source| StoreError::Io {
            doing: format!("cannot store {}", file.display()),
            source,
        })
    }

    /// Gives an image a second name.
    ///
    /// # Errors
    /// There is no such image; the name is wrong.
    pub fn tag(&self, name: &str, new_name: &str) -> Result<(), StoreError> {
        let new = tagged(new_name)?;
        let (named, _) = self.present(name)?;
        let named = Named { reference: new.to_string(), ..named };
        self.0
            .store
            .write_named(&named)
            .map_err(|source| StoreError::Io { doing: format!("cannot name {new}"), source })
    }

    /// Forgets a name. The bytes go at the next collection, once nothing else leads to them.
    ///
    /// # Errors
    /// There is no such name.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let reference = Reference::parse(name)?;
        let removed = self.0.store.remove_named(&reference.to_string()).map_err(|source| {
            StoreError::Io { doing: format!("cannot remove {reference}"), source }
        })?;
        if removed { Ok(()) } else { Err(StoreError::NotPresent { image: name.to_owned() }) }
    }

    /// All names, the one used longest ago first.
    ///
    /// # Errors
    /// The disk's.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let listing = |source| StoreError::Io { doing: "cannot list images".into(), source };
        let store = &self.0.store;
        let mut all = Vec::new();
        for (named, used) in store.names().map_err(listing)? {
            let bytes = store.record(&named.manifest).map_err(listing)?.map_or(0, |it| it.bytes);
            all.push(Listed { name: named.reference, digest: named.manifest, bytes, used });
        }
        Ok(all)
    }

    /// What an image in the store is.
    ///
    /// # Errors
    /// There is no such image, or its module cannot run.
    pub fn inspect(&self, name: &str) -> Result<Inspected, StoreError> {
        let (named, record) = self.present(name)?;
        let wasm =
            self.0.store.read_blob(&record.wasm, self.0.guard.rules.max_image_bytes).map_err(
                |source| StoreError::Io { doing: format!("cannot read {name}"), source },
            )?;
        let inspection = kind::inspect(&wasm)
            .map_err(|source| StoreError::NotRunnable { file: record.program.clone(), source })?;
        Ok(Inspected {
            name: named.reference,
            digest: record.manifest,
            wasm: record.wasm,
            wasm_bytes: record.wasm_bytes,
            entrypoint: record.entrypoint,
            cmd: record.cmd,
            env: record.env,
            working_dir: record.working_dir,
            root_bytes: record.root_bytes,
            inspection,
        })
    }

    /// Sends an image of the store to the registry that its name says; the manifest's digest.
    ///
    /// # Errors
    /// There is no such image, or the registry does not take it.
    pub async fn push(
        &self,
        name: &str,
        credentials: &Credentials,
        progress: ProgressFn<'_>,
    ) -> Result<Digest, PushError> {
        let wrong = |why: String| PushError::Name { image: name.to_owned(), why };
        let reference = Reference::parse(name).map_err(|e| wrong(e.to_string()))?;
        let Version::Tag(tag) = reference.version() else {
            return Err(wrong("a push needs a tag, the digest comes of it".into()));
        };
        let in_store = |source: io::Error| PushError::Store {
            image: name.to_owned(),
            source: Arc::new(source),
        };
        let (_, record) = self
            .0
            .cached(&reference)
            .map_err(in_store)?
            .ok_or_else(|| PushError::NotPresent { image: name.to_owned() })?;
        let login = credentials.for_reference(&reference).into_iter().next();
        self.0.push(&reference, tag, &record, login, progress).await.map_err(|failure| {
            match failure {
                Failure::Store(source) => PushError::Store { image: name.to_owned(), source },
                failure => PushError::Refused {
                    image: name.to_owned(),
                    registry: reference.registry().to_owned(),
                    why: failure.to_string(),
                },
            }
        })?;
        Ok(record.manifest)
    }

    /// Whether `registry` takes this login: `copepod image login` asks before it writes the configuration.
    ///
    /// # Errors
    /// The registry does not take it, or cannot be asked.
    pub async fn check_login(
        &self,
        registry: &str,
        user: &str,
        password: &str,
    ) -> Result<(), PushError> {
        let wrong = |why: String| PushError::Name { image: registry.to_owned(), why };
        let reference =
            Reference::parse(&format!("{registry}/login")).map_err(|e| wrong(e.to_string()))?;
        let credentials = Credentials::anonymous().with_login(registry, user, password);
        let login = credentials.for_reference(&reference).into_iter().next();
        let refused = |failure: Failure| PushError::Refused {
            image: registry.to_owned(),
            registry: registry.to_owned(),
            why: failure.to_string(),
        };
        let repository = Repository::new(&self.0.guard, &self.0.tokens, &reference, login, false)
            .map_err(refused)?;
        repository.ping().await.map_err(refused)
    }

    /// Removes what nothing needs: blobs without a name, then the names used longest ago above the quota. `None` where a pull is
    /// under way; ask again later.
    ///
    /// # Errors
    /// The disk's.
    pub async fn collect(&self, policy: &CollectPolicy) -> Result<Option<Collected>, StoreError> {
        let (images, policy) = (self.clone(), policy.clone());
        let collected = blocking(move || {
            let inner = &*images.0;
            Ok(inner.store.collect(&policy.keep, inner.quota, policy.min_age)?)
        })
        .await;
        collected.map_err(|failure| StoreError::Io {
            doing: "cannot collect unused images".into(),
            source: match failure {
                Failure::Store(source) => io::Error::new(source.kind(), source),
                other => io::Error::other(other.to_string()),
            },
        })
    }

    fn present(&self, name: &str) -> Result<(Named, Record), StoreError> {
        let reference = Reference::parse(name)?;
        self.0
            .cached(&reference)
            .map_err(|source| StoreError::Io { doing: format!("cannot read {name}"), source })?
            .ok_or_else(|| StoreError::NotPresent { image: name.to_owned() })
    }
}

impl Inner {
    fn cached(&self, reference: &Reference) -> io::Result<Option<(Named, Record)>> {
        let Some(named) = self.store.named(reference)? else { return Ok(None) };
        Ok(self.store.record(&named.manifest)?.map(|record| (named, record)))
    }

    /// What the name's file says after a pull: who pulled it may use it, besides those who could before.
    fn name(
        &self,
        reference: &Reference,
        resolved: &Digest,
        record: &Record,
        login: Option<&Login>,
        was: Option<&Named>,
    ) -> Named {
        let before = was.filter(|it| it.manifest == record.manifest);
        let (mut logins, mut open) =
            before.map(|it| (it.logins.clone(), it.open)).unwrap_or_default();
        match login {
            None => open = true,
            Some(login) => {
                // Rotated passwords pile up otherwise; the rest is asked again, which only costs one request.
                if logins.len() >= 100 {
                    logins.clear();
                }
                logins.insert(login.mark(self.store.salt()));
            }
        }
        Named {
            reference: reference.to_string(),
            resolved: resolved.clone(),
            manifest: record.manifest.clone(),
            logins,
            open,
        }
    }

    fn load(
        &self,
        reference: &Reference,
        wasm: &[u8],
        inspection: &Inspection,
        program: String,
    ) -> io::Result<Image> {
        let _busy = self.store.busy()?;
        let wasm_bytes = wasm.len() as u64;
        let wasm = self.store.put(wasm)?;
        let os = if inspection.kind == Kind::Preview1Command { "wasip1" } else { "wasip2" };
        let mut config =
            serde_json::json!({"architecture": "wasm", "os": os, "layerDigests": [&wasm]});
        if inspection.kind != Kind::Preview1Command {
            config["component"] =
                serde_json::json!({"imports": inspection.imports, "exports": inspection.exports});
        }
        let config = serde_json::to_vec(&config)?;
        let descriptor = |media_type: &str, digest: &Digest, size: u64| Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.clone(),
            size,
            platform: None,
            annotations: Default::default(),
        };
        let config_digest = self.store.put(&config)?;
        let mut layer = descriptor(WASM_LAYER, &wasm, wasm_bytes);
        layer.annotations.insert("org.opencontainers.image.title".into(), program.clone());
        let manifest = serde_json::to_vec(&Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.into(),
            artifact_type: String::new(),
            config: descriptor(WASM_CONFIG, &config_digest, config.len() as u64),
            layers: vec![layer],
            annotations: Default::default(),
        })?;
        let digest = self.store.put(&manifest)?;
        let record = Record {
            manifest: digest.clone(),
            blobs: vec![digest.clone(), config_digest, wasm.clone()],
            wasm,
            wasm_bytes,
            bytes: wasm_bytes + (config.len() + manifest.len()) as u64,
            program,
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: Vec::new(),
            working_dir: String::new(),
            root_bytes: None,
        };
        self.store.write_record(&record)?;
        self.store.write_named(&Named {
            reference: reference.to_string(),
            resolved: digest.clone(),
            manifest: digest.clone(),
            logins: BTreeSet::new(),
            open: true,
        })?;
        Ok(self.image(reference.clone(), &digest, record, false))
    }

    fn image(
        &self,
        reference: Reference,
        resolved: &Digest,
        record: Record,
        pulled: bool,
    ) -> Image {
        Image {
            id: reference.at(resolved),
            reference,
            root: record.root_bytes.map(|_| self.store.root_path(&record.manifest)),
            digest: record.manifest,
            wasm: record.wasm,
            wasm_bytes: record.wasm_bytes,
            bytes: record.bytes,
            program: record.program,
            entrypoint: record.entrypoint,
            cmd: record.cmd,
            env: record.env,
            working_dir: record.working_dir,
            pulled,
        }
    }

    async fn push(
        &self,
        reference: &Reference,
        tag: &str,
        record: &Record,
        login: Option<&Login>,
        progress: ProgressFn<'_>,
    ) -> Result<(), Failure> {
        let bytes = self.store.read_blob(&record.manifest, MAX_MANIFEST)?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|e| Failure::Corrupt(format!("the stored manifest is damaged: {e}")))?;
        let media_type = match manifest.media_type.as_str() {
            crate::manifest::DOCKER_MANIFEST => crate::manifest::DOCKER_MANIFEST,
            _ => OCI_MANIFEST,
        };
        let registry = Repository::new(&self.guard, &self.tokens, reference, login, true)?;
        let blobs = manifest.layers.iter().chain([&manifest.config]);
        let total = blobs.clone().map(|it| it.size).sum();
        let mut done = 0;
        for blob in blobs {
            progress(Progress::Pulling { done, total });
            let file = File::open(self.store.blob_path(&blob.digest))?;
            registry.push_blob(&blob.digest, &file, blob.size).await?;
            done += blob.size;
        }
        progress(Progress::Pulling { done, total });
        registry.push_manifest(tag, media_type, bytes).await
    }
}

/// A name that a tag can be given to.
fn tagged(name: &str) -> Result<Reference, StoreError> {
    let reference = Reference::parse(name)?;
    match reference.version() {
        Version::Tag(_) => Ok(reference),
        Version::Digest(_) => Err(StoreError::Io {
            doing: format!("cannot give the name {name:?}"),
            source: io::Error::other(
                "a name with a digest belongs to the bytes of that digest only",
            ),
        }),
    }
}

fn pull_error(reference: &Reference, failure: Failure) -> PullError {
    let image = reference.given().to_owned();
    match failure {
        Failure::Unavailable(why) => {
            PullError::Unavailable { image, registry: reference.registry().to_owned(), why }
        }
        Failure::Blocked(why) => PullError::Blocked { image, why },
        Failure::Denied(why) | Failure::NotFound(why) => PullError::Denied { image, why },
        Failure::Corrupt(why) => PullError::Corrupt { image, why },
        Failure::Unusable(why) => PullError::Unusable { image, why },
        Failure::Store(source) => PullError::Store { image, source },
    }
}
