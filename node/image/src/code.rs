//! Compiled code: one file per module and engine, made by a confined child and written by the agent alone.
//!
//! Several engines have code here while runners of several generations live. Each is compiled for by a child of its own generation's
//! program, as an engine loads only what its own version compiled.
//!
//! ```text
//! code/<engine hash>/<wasm sha256>.cwasm   mode 0644, root's: runners see the folder by a read-only bind mount
//! code/<engine hash>/<wasm sha256>.json    what the module is, and the sha256 of the compiled file; its mtime is the last use
//! code/tmp/                                being written
//! ```
//!
//! A compiled file is native code. Its checksum is checked once in an agent's life, at its first use, and again after a runner
//! could not load it: hashing 20 MB at every start would take longer than the start itself.
//!
//! Absent: code from anywhere else. It is never taken from a registry or a volume.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use copepod_shim::engine::Salt;
use copepod_shim::kind::Inspection;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

use crate::compiler::{MAX_REPORT, Report};
use crate::digest::{Digest, copy_hashed};
use crate::error::CompileError;
use crate::progress::{Progress, ProgressFn};
use crate::pull::Downloads;
use crate::sizes;
use crate::store::{Temp, read_json, sweep, touch, write_whole};

/// What compiles for one engine: a program of the engine's own generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// Run as `<program> __compile`.
    pub program: PathBuf,
    /// The engine's hash: what [`engine_hash`] is in that program.
    pub engine: String,
    /// What its engine is salted with.
    pub salt: Option<Salt>,
}

impl Compiler {
    /// This program's own engine, with `program` as another file of the same build.
    ///
    /// # Errors
    /// The engine's settings do not fit this machine.
    pub fn of_this_build(program: PathBuf, salt: Option<Salt>) -> Result<Self, String> {
        let engine = engine_hash(salt.as_ref())?;
        Ok(Self { program, engine, salt })
    }
}

/// What one compilation may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// CPU time of all its threads: COPEPOD_COMPILE_CPU_SECONDS. A module of 70 MB takes about five minutes.
    pub cpu_seconds: u64,
    /// Address space: COPEPOD_COMPILE_MEMORY.
    pub memory_bytes: u64,
    /// Time on the clock: COPEPOD_COMPILE_WALL_SECONDS, for a machine that is busy with other things.
    pub wall: Duration,
    /// Threads. The machine's cores by default.
    pub threads: usize,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            cpu_seconds: 600,
            memory_bytes: 4 << 30,
            wall: Duration::from_secs(1800),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Code ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// The compiled file.
    pub path: PathBuf,
    /// The engine that can load it.
    pub engine: String,
    /// The module that it was made from.
    pub wasm: Digest,
    /// The compiled file's size.
    pub bytes: u64,
    /// What the module is, imports and exports.
    pub inspection: Inspection,
    /// CPU time that compiling took when it was made.
    pub compile_millis: u64,
}

/// The file beside the code.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Label {
    code: Digest,
    bytes: u64,
    inspection: Inspection,
    compile_millis: u64,
}

/// The compiled code of all engines, and what compiling is limited by.
pub(crate) struct CodeCache {
    root: PathBuf,
    limits: CompileLimits,
    quota: u64,
    counter: AtomicU64,
    /// One compilation at a time takes all cores; a second one would only make both slower and double the memory.
    seats: tokio::sync::Semaphore,
    engines: Mutex<HashMap<String, Arc<Known>>>,
}

/// What is known of one engine's code.
#[derive(Default)]
struct Known {
    turns: Downloads,
    /// Files whose checksum was found right since this agent started.
    verified: Mutex<HashSet<Digest>>,
    /// Modules that can never compile as things are: asked for again by each restart of a pod.
    hopeless: Mutex<HashMap<Digest, CompileError>>,
}

/// Files used within this time are not evicted: a start may be on its way to them.
const FRESH: Duration = Duration::from_secs(120);

/// The hash of all that decides whether compiled code can be loaded: engine settings, CPU features, wasmtime's version.
///
/// wasmtime writes these into each compiled file and compares them at loading; its own hash of them belongs to the half of
/// the crate that runs code, which is not in this program. So the code of an empty module is hashed.
///
/// # Errors
/// The engine's settings do not fit this machine.
pub fn engine_hash(salt: Option<&Salt>) -> Result<String, String> {
    let in_words = |error: wasmtime::Error| format!("{error:#}");
    let mut config = copepod_shim::engine::config(salt);
    // An agent asks before it enters its namespaces, which only a process of one thread can: no thread is to be started here.
    config.parallel_compilation(false);
    let engine = wasmtime::Engine::new(&config).map_err(in_words)?;
    let code = engine.precompile_module(b"\0asm\x01\0\0\0").map_err(in_words)?;
    // 16 bytes name one of a handful of engines; the whole would make every path longer.
    Ok(Digest::of(&code).hex()[..32].to_owned())
}

fn cannot(doing: &str) -> impl Fn(io::Error) -> CompileError + '_ {
    move |source| CompileError::Io { doing: doing.to_owned(), source: Arc::new(source) }
}

/// An engine's hash, as [`engine_hash`] gives it.
pub fn is_engine_hash(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl CodeCache {
    pub(crate) fn open(root: &Path, limits: CompileLimits, quota: u64) -> io::Result<Self> {
        // Runners of other users read it through their mount.
        make_folder(root, 0o755)?;
        let tmp = root.join("tmp");
        make_folder(&tmp, 0o700)?;
        sweep(&tmp)?;
        Ok(Self {
            root: root.to_owned(),
            limits,
            quota,
            counter: AtomicU64::new(0),
            seats: tokio::sync::Semaphore::new(1),
            engines: Mutex::default(),
        })
    }

    /// The folder of an engine's code, made where it is not there: what a domain bind-mounts.
    pub(crate) fn folder(&self, engine: &str) -> io::Result<PathBuf> {
        let folder = self.root.join(engine);
        make_folder(&folder, 0o755)?;
        Ok(folder)
    }

    fn known(&self, engine: &str) -> Arc<Known> {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.entry(engine.to_owned()).or_default().clone()
    }

    fn code_path(&self, engine: &str, wasm: &Digest) -> PathBuf {
        self.root.join(engine).join(format!("{}.cwasm", wasm.hex()))
    }

    fn label_path(&self, engine: &str, wasm: &Digest) -> PathBuf {
        self.root.join(engine).join(format!("{}.json", wasm.hex()))
    }

    /// The code of the module `wasm` that lies at `source`; `damaged` is called where its bytes are not those of its name.
    pub(crate) async fn code(
        &self,
        compiler: &Compiler,
        wasm: &Digest,
        source: &Path,
        damaged: impl FnOnce(),
        progress: ProgressFn<'_>,
    ) -> Result<Code, CompileError> {
        let known = self.known(&compiler.engine);
        if let Some(code) = self.cached(compiler, &known, wasm).await? {
            return Ok(code);
        }
        let _turn = known.turns.turn(wasm).await;
        if let Some(code) = self.cached(compiler, &known, wasm).await? {
            return Ok(code);
        }
        let refused =
            known.hopeless.lock().unwrap_or_else(PoisonError::into_inner).get(wasm).cloned();
        if let Some(error) = refused {
            return Err(error);
        }
        // Only our own lives, so it is never closed.
        let _seat = self.seats.acquire().await;
        let result = self.compile(compiler, &known, wasm, source, damaged, progress).await;
        if let Err(error) = &result
            && error.retry() == crate::Retry::WhenChanged
        {
            let mut hopeless = known.hopeless.lock().unwrap_or_else(PoisonError::into_inner);
            // A thousand broken images are an attack on this map and nothing else.
            if hopeless.len() >= 1_000 {
                hopeless.clear();
            }
            hopeless.insert(wasm.clone(), error.clone());
        }
        result
    }

    /// Code that is there already.
    pub(crate) async fn existing(
        &self,
        compiler: &Compiler,
        wasm: &Digest,
    ) -> Result<Option<Code>, CompileError> {
        self.cached(compiler, &self.known(&compiler.engine), wasm).await
    }

    async fn cached(
        &self,
        compiler: &Compiler,
        known: &Known,
        wasm: &Digest,
    ) -> Result<Option<Code>, CompileError> {
        let code_path = self.code_path(&compiler.engine, wasm);
        let label_path = self.label_path(&compiler.engine, wasm);
        let reading = cannot("read the code cache");
        let Some(label) = read_json::<Label>(&label_path).map_err(&reading)? else {
            return Ok(None);
        };
        match fs::metadata(&code_path) {
            Ok(found) if found.len() == label.bytes => {}
            Ok(_) => {
                tracing::warn!(%wasm, "compiled code of a wrong size is made anew");
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(reading(error)),
        }
        let is_verified =
            known.verified.lock().unwrap_or_else(PoisonError::into_inner).contains(wasm);
        if !is_verified {
            let path = code_path.clone();
            let found = in_background(move || digest_of(&path)).await.map_err(&reading)?;
            if found != label.code {
                tracing::warn!(%wasm, "compiled code whose checksum is wrong is made anew");
                return Ok(None);
            }
            known.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(wasm.clone());
        }
        touch(&label_path);
        Ok(Some(Code {
            path: code_path,
            engine: compiler.engine.clone(),
            wasm: wasm.clone(),
            bytes: label.bytes,
            inspection: label.inspection,
            compile_millis: label.compile_millis,
        }))
    }

    async fn compile(
        &self,
        compiler: &Compiler,
        known: &Known,
        wasm: &Digest,
        source: &Path,
        damaged: impl FnOnce(),
        progress: ProgressFn<'_>,
    ) -> Result<Code, CompileError> {
        let module = File::open(source).map_err(cannot("open the module"))?;
        let wasm_bytes = module.metadata().map_err(cannot("open the module"))?.len();
        let path = source.to_owned();
        let found =
            in_background(move || digest_of(&path)).await.map_err(cannot("read the module"))?;
        if found != *wasm {
            damaged();
            return Err(CompileError::Damaged {
                digest: wasm.to_string(),
                found: found.to_string(),
            });
        }
        progress(Progress::Compiling { wasm_bytes });
        let temp = Temp::create(&self.root.join("tmp"), &self.counter)
            .map_err(cannot("make the code file"))?;
        let report = self.run_child(compiler, module, &temp).await?;
        let (inspection, compile_millis) = match report {
            Report::Done { inspection, cpu_millis } => (inspection, cpu_millis),
            Report::NotRunnable(refusal) => return Err(CompileError::NotRunnable(refusal)),
            Report::Invalid(message) => return Err(CompileError::Invalid(message)),
            Report::Failed(message) => return Err(CompileError::Crashed(message)),
        };
        let mut written = temp.file().try_clone().map_err(cannot("read the code file"))?;
        let (code, bytes) = in_background(move || {
            let mut magic = [0; 4];
            written.seek(SeekFrom::Start(0))?;
            written.read_exact(&mut magic)?;
            if &magic != b"\x7fELF" {
                return Err(io::Error::other("the compiler wrote no code"));
            }
            written.seek(SeekFrom::Start(0))?;
            written.set_permissions(fs::Permissions::from_mode(0o644))?;
            let digest = digest_of_file(&mut written)?;
            Ok((digest, written.metadata()?.len()))
        })
        .await
        .map_err(cannot("read the code file"))?;
        let label = Label { code, bytes, inspection: inspection.clone(), compile_millis };
        self.folder(&compiler.engine).map_err(cannot("make the engine's folder"))?;
        let code_path = self.code_path(&compiler.engine, wasm);
        let label_path = self.label_path(&compiler.engine, wasm);
        let json =
            serde_json::to_vec(&label).map_err(|e| cannot("write the code's label")(e.into()))?;
        let tmp = self.root.join("tmp");
        // The label last: code without one is not there.
        let target = code_path.clone();
        in_background(move || temp.commit(&target)).await.map_err(cannot("keep the code file"))?;
        write_whole(&tmp, &self.counter, &label_path, &json)
            .map_err(cannot("write the code's label"))?;
        known.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(wasm.clone());
        if let Err(error) = self.evict(&code_path) {
            tracing::warn!(%error, "the code cache could not be brought below its quota");
        }
        Ok(Code {
            path: code_path,
            engine: compiler.engine.clone(),
            wasm: wasm.clone(),
            bytes,
            inspection,
            compile_millis,
        })
    }

    async fn run_child(
        &self,
        compiler: &Compiler,
        module: File,
        temp: &Temp,
    ) -> Result<Report, CompileError> {
        let limits = &self.limits;
        let output = temp.file().try_clone().map_err(cannot("make the code file"))?;
        let salt = compiler.salt.iter().flat_map(|salt| ["--engine-salt".into(), salt.to_string()]);
        let mut child = tokio::process::Command::new(&compiler.program)
            .arg("__compile")
            .args(["--cpu-seconds", &limits.cpu_seconds.to_string()])
            .args(["--memory-bytes", &limits.memory_bytes.to_string()])
            .args(["--threads", &limits.threads.max(1).to_string()])
            .args(salt)
            .env_clear()
            .env("RAYON_NUM_THREADS", limits.threads.max(1).to_string())
            .current_dir("/")
            .stdin(Stdio::from(module))
            .stdout(Stdio::from(output))
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot("start the compiler"))?;
        let Some(mut pipe) = child.stderr.take() else {
            return Err(cannot("start the compiler")(io::Error::other("it has no pipe")));
        };
        let mut said = Vec::new();
        let watched = tokio::time::timeout(limits.wall, async {
            (&mut pipe).take(MAX_REPORT).read_to_end(&mut said).await?;
            // What is beyond the cap is not waited for: the child gets EPIPE.
            drop(pipe);
            child.wait().await
        })
        .await;
        let status = match watched {
            Ok(status) => status.map_err(cannot("wait for the compiler"))?,
            Err(_) => {
                child.kill().await.map_err(cannot("end the compiler"))?;
                return Err(CompileError::Limit(format!(
                    "compiling needs more than {} minutes: raise COPEPOD_COMPILE_WALL_SECONDS (now {}), or make the module smaller",
                    limits.wall.as_secs().div_ceil(60),
                    limits.wall.as_secs()
                )));
            }
        };
        let text = String::from_utf8_lossy(&said);
        if let Some(report) =
            text.lines().rev().find_map(|line| serde_json::from_str::<Report>(line).ok())
            && status.success()
        {
            return Ok(report);
        }
        let says = |words: &[&str]| words.iter().any(|it| text.contains(it));
        let out_of_memory = says(&[
            "memory allocation of",
            "out of memory",
            "Cannot allocate memory",
            "Resource temporarily unavailable",
        ]);
        let last: String = text
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty() && !line.starts_with("note:"))
            .unwrap_or("it said nothing")
            .chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect();
        Err(match (status.signal(), status.code()) {
            (Some(libc::SIGXCPU), _) => CompileError::Limit(cpu_limit(limits)),
            (Some(libc::SIGKILL), _) => CompileError::Limit(format!(
                "the compiler was killed, by the CPU limit or by a machine out of memory: raise COPEPOD_COMPILE_CPU_SECONDS (now {}), or give the machine more memory",
                limits.cpu_seconds
            )),
            _ if out_of_memory => CompileError::Limit(format!(
                "compiling needs more than {} of memory: raise COPEPOD_COMPILE_MEMORY (now {}), or make the module smaller",
                sizes::shown(limits.memory_bytes),
                limits.memory_bytes
            )),
            (Some(signal), _) => CompileError::Crashed(format!("signal {signal}: {last}")),
            (None, code) => {
                CompileError::Crashed(format!("exit code {}: {last}", code.unwrap_or(-1)))
            }
        })
    }

    /// A runner could not load this code: it goes, and is made anew when it is next asked for.
    pub(crate) fn forget(&self, code: &Code) -> io::Result<()> {
        let known = self.known(&code.engine);
        known.verified.lock().unwrap_or_else(PoisonError::into_inner).remove(&code.wasm);
        known.hopeless.lock().unwrap_or_else(PoisonError::into_inner).remove(&code.wasm);
        for path in
            [self.label_path(&code.engine, &code.wasm), self.code_path(&code.engine, &code.wasm)]
        {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the code used longest ago, of whatever engine, until the rest fits the quota. A running guest keeps the pages of a
    /// removed file.
    fn evict(&self, keep: &Path) -> io::Result<()> {
        let mut total = 0;
        let mut all = Vec::new();
        for engine in self.engines_on_disk()? {
            for entry in fs::read_dir(self.root.join(engine))? {
                let path = entry?.path();
                if path.extension().is_none_or(|it| it != "cwasm") {
                    continue;
                }
                let bytes = fs::metadata(&path)?.len();
                total += bytes;
                let label = path.with_extension("json");
                let used = fs::metadata(&label)
                    .and_then(|it| it.modified())
                    .unwrap_or(SystemTime::UNIX_EPOCH);
                all.push((used, bytes, path, label));
            }
        }
        all.sort();
        for (used, bytes, path, label) in all {
            let fresh = SystemTime::now().duration_since(used).is_ok_and(|age| age < FRESH);
            if total <= self.quota {
                break;
            }
            if fresh || path == keep {
                continue;
            }
            let _ = fs::remove_file(label);
            fs::remove_file(path)?;
            total -= bytes;
        }
        Ok(())
    }

    /// Removes the code of engines that are not in `keep`; their hashes.
    pub(crate) fn remove_other_engines(&self, keep: &BTreeSet<String>) -> io::Result<Vec<String>> {
        let mut others = self.engines_on_disk()?;
        others.retain(|engine| !keep.contains(engine));
        for engine in &others {
            fs::remove_dir_all(self.root.join(engine))?;
            self.engines.lock().unwrap_or_else(PoisonError::into_inner).remove(engine);
        }
        Ok(others)
    }

    fn engines_on_disk(&self) -> io::Result<Vec<String>> {
        let mut engines = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            engines.extend(entry?.file_name().into_string().ok().filter(|it| is_engine_hash(it)));
        }
        Ok(engines)
    }
}

fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

fn cpu_limit(limits: &CompileLimits) -> String {
    let time = match limits.cpu_seconds {
        seconds if seconds >= 60 => format!("{} CPU minutes", seconds / 60),
        seconds => format!("{seconds} CPU seconds"),
    };
    format!(
        "compiling needs more than {time}: raise COPEPOD_COMPILE_CPU_SECONDS (now {}), or make the module smaller",
        limits.cpu_seconds
    )
}

pub(crate) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    digest_of_file(&mut File::open(path)?)
}

fn digest_of_file(file: &mut File) -> io::Result<Digest> {
    Ok(copy_hashed(file, &mut io::sink())?.0)
}
