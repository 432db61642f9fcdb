//! Compiled code: one file per module and engine, made by a confined child and written by the agent alone.
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

use copepod_shim::kind::Inspection;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

use crate::compiler::{MAX_REPORT, Report};
use crate::digest::{Digest, Hash};
use crate::error::CompileError;
use crate::progress::{Progress, ProgressFn};
use crate::pull::Downloads;
use crate::sizes;
use crate::store::{Temp, read_json, sweep, touch, write_whole};

/// What one compilation may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// CPU time of all its threads: `compile.cpuSeconds`. A module of 70 MB takes about five minutes.
    pub cpu_seconds: u64,
    /// Address space: `compile.memoryBytes`.
    pub memory_bytes: u64,
    /// Time on the clock: `compile.wallSeconds`, for a machine that is busy with other things.
    pub wall: Duration,
    /// Threads: `compile.threads`. The machine's cores by default.
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
    /// The folder it lies in: what a domain bind-mounts.
    pub folder: PathBuf,
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

/// The compiled code of one engine.
pub(crate) struct CodeCache {
    root: PathBuf,
    folder: PathBuf,
    engine: String,
    compiler: PathBuf,
    limits: CompileLimits,
    quota: u64,
    turns: Downloads,
    counter: AtomicU64,
    /// Files whose checksum was found right since this agent started.
    verified: Mutex<HashSet<Digest>>,
    /// Modules that can never compile as things are: asked for again by each restart of a pod.
    hopeless: Mutex<HashMap<Digest, CompileError>>,
    /// One compilation at a time takes all cores; a second one would only make both slower and double the memory.
    seats: tokio::sync::Semaphore,
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
pub fn engine_hash() -> Result<String, String> {
    let in_words = |error: wasmtime::Error| format!("{error:#}");
    let engine = wasmtime::Engine::new(&copepod_shim::engine::config(None)).map_err(in_words)?;
    let code = engine.precompile_module(b"\0asm\x01\0\0\0").map_err(in_words)?;
    // 16 bytes name one of a handful of engines; the whole would make every path longer.
    Ok(Digest::of(&code).hex()[..32].to_owned())
}

fn cannot(doing: &str) -> impl Fn(io::Error) -> CompileError + '_ {
    move |source| CompileError::Io { doing: doing.to_owned(), source: Arc::new(source) }
}

impl CodeCache {
    pub(crate) fn open(
        root: &Path,
        compiler: PathBuf,
        limits: CompileLimits,
        quota: u64,
    ) -> io::Result<Self> {
        let engine = engine_hash().map_err(io::Error::other)?;
        let folder = root.join(&engine);
        // Runners of other users read it through their mount.
        let make =
            |path: &Path, mode| fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        make(root, 0o755)?;
        make(&folder, 0o755)?;
        let tmp = root.join("tmp");
        make(&tmp, 0o700)?;
        sweep(&tmp)?;
        Ok(Self {
            root: root.to_owned(),
            folder,
            engine,
            compiler,
            limits,
            quota,
            turns: Downloads::default(),
            counter: AtomicU64::new(0),
            verified: Mutex::default(),
            hopeless: Mutex::default(),
            seats: tokio::sync::Semaphore::new(1),
        })
    }

    pub(crate) fn engine(&self) -> &str {
        &self.engine
    }

    fn code_path(&self, wasm: &Digest) -> PathBuf {
        self.folder.join(format!("{}.cwasm", wasm.hex()))
    }

    fn label_path(&self, wasm: &Digest) -> PathBuf {
        self.folder.join(format!("{}.json", wasm.hex()))
    }

    /// The code of the module `wasm` that lies at `source`; `damaged` is called where its bytes are not those of its name.
    pub(crate) async fn code(
        &self,
        wasm: &Digest,
        source: &Path,
        damaged: impl FnOnce(),
        progress: ProgressFn<'_>,
    ) -> Result<Code, CompileError> {
        if let Some(code) = self.cached(wasm).await? {
            return Ok(code);
        }
        let _turn = self.turns.turn(wasm).await;
        if let Some(code) = self.cached(wasm).await? {
            return Ok(code);
        }
        let known = self.hopeless.lock().unwrap_or_else(PoisonError::into_inner).get(wasm).cloned();
        if let Some(error) = known {
            return Err(error);
        }
        // Only our own lives, so it is never closed.
        let _seat = self.seats.acquire().await;
        let result = self.compile(wasm, source, damaged, progress).await;
        if let Err(error) = &result
            && error.retry() == crate::Retry::WhenChanged
        {
            let mut hopeless = self.hopeless.lock().unwrap_or_else(PoisonError::into_inner);
            // A thousand broken images are an attack on this map and nothing else.
            if hopeless.len() >= 1_000 {
                hopeless.clear();
            }
            hopeless.insert(wasm.clone(), error.clone());
        }
        result
    }

    async fn cached(&self, wasm: &Digest) -> Result<Option<Code>, CompileError> {
        let (code_path, label_path) = (self.code_path(wasm), self.label_path(wasm));
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
            self.verified.lock().unwrap_or_else(PoisonError::into_inner).contains(wasm);
        if !is_verified {
            let path = code_path.clone();
            let found = in_background(move || digest_of(&path)).await.map_err(&reading)?;
            if found != label.code {
                tracing::warn!(%wasm, "compiled code whose checksum is wrong is made anew");
                return Ok(None);
            }
            self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(wasm.clone());
        }
        touch(&label_path);
        Ok(Some(Code {
            path: code_path,
            folder: self.folder.clone(),
            wasm: wasm.clone(),
            bytes: label.bytes,
            inspection: label.inspection,
            compile_millis: label.compile_millis,
        }))
    }

    async fn compile(
        &self,
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
        let report = self.run_child(module, &temp).await?;
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
        let (code_path, label_path) = (self.code_path(wasm), self.label_path(wasm));
        let json =
            serde_json::to_vec(&label).map_err(|e| cannot("write the code's label")(e.into()))?;
        let tmp = self.root.join("tmp");
        // The label last: code without one is not there.
        let target = code_path.clone();
        in_background(move || temp.commit(&target)).await.map_err(cannot("keep the code file"))?;
        write_whole(&tmp, &self.counter, &label_path, &json)
            .map_err(cannot("write the code's label"))?;
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(wasm.clone());
        if let Err(error) = self.evict(wasm) {
            tracing::warn!(%error, "the code cache could not be brought below its quota");
        }
        Ok(Code {
            path: code_path,
            folder: self.folder.clone(),
            wasm: wasm.clone(),
            bytes,
            inspection,
            compile_millis,
        })
    }

    async fn run_child(&self, module: File, temp: &Temp) -> Result<Report, CompileError> {
        let limits = &self.limits;
        let output = temp.file().try_clone().map_err(cannot("make the code file"))?;
        let mut child = tokio::process::Command::new(&self.compiler)
            .arg("__compile")
            .args(["--cpu-seconds", &limits.cpu_seconds.to_string()])
            .args(["--memory-bytes", &limits.memory_bytes.to_string()])
            .args(["--threads", &limits.threads.max(1).to_string()])
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
                    "compiling needs more than {} minutes: raise `compile.wallSeconds` (now {}), or make the module smaller",
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
                "the compiler was killed, by the CPU limit or by a machine out of memory: raise `compile.cpuSeconds` (now {}), or give the machine more memory",
                limits.cpu_seconds
            )),
            _ if out_of_memory => CompileError::Limit(format!(
                "compiling needs more than {} of memory: raise `compile.memoryBytes` (now {}), or make the module smaller",
                sizes::shown(limits.memory_bytes),
                limits.memory_bytes
            )),
            (Some(signal), _) => CompileError::Crashed(format!("signal {signal}: {last}")),
            (None, code) => {
                CompileError::Crashed(format!("exit code {}: {last}", code.unwrap_or(-1)))
            }
        })
    }

    /// A runner could not load this code: it is looked at again, and made anew where its checksum is wrong.
    pub(crate) fn forget(&self, wasm: &Digest) -> io::Result<()> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).remove(wasm);
        self.hopeless.lock().unwrap_or_else(PoisonError::into_inner).remove(wasm);
        for path in [self.label_path(wasm), self.code_path(wasm)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the code used longest ago until the rest fits the quota. A running guest keeps the pages of a removed file.
    fn evict(&self, keep: &Digest) -> io::Result<()> {
        let mut total = 0;
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|it| it != "cwasm") {
                continue;
            }
            let bytes = fs::metadata(&path)?.len();
            total += bytes;
            let label = path.with_extension("json");
            let used =
                fs::metadata(&label).and_then(|it| it.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            all.push((used, bytes, path, label));
        }
        all.sort();
        for (used, bytes, path, label) in all {
            let fresh = SystemTime::now().duration_since(used).is_ok_and(|age| age < FRESH);
            if total <= self.quota {
                break;
            }
            if fresh || path == self.code_path(keep) {
                continue;
            }
            let _ = fs::remove_file(label);
            fs::remove_file(path)?;
            total -= bytes;
        }
        Ok(())
    }

    /// Removes the code of engines that are neither this one nor in `keep`; their hashes.
    pub(crate) fn remove_other_engines(&self, keep: &BTreeSet<String>) -> io::Result<Vec<String>> {
        let mut removed = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let is_engine = name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit());
            if is_engine && name != self.engine && !keep.contains(&name) {
                fs::remove_dir_all(entry.path())?;
                removed.push(name);
            }
        }
        Ok(removed)
    }
}

fn cpu_limit(limits: &CompileLimits) -> String {
    let time = match limits.cpu_seconds {
        seconds if seconds >= 60 => format!("{} CPU minutes", seconds / 60),
        seconds => format!("{seconds} CPU seconds"),
    };
    format!(
        "compiling needs more than {time}: raise `compile.cpuSeconds` (now {}), or make the module smaller",
        limits.cpu_seconds
    )
}

async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    digest_of_file(&mut File::open(path)?)
}

fn digest_of_file(file: &mut File) -> io::Result<Digest> {
    let mut hash = Hash::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finish()),
            count => hash.update(&buffer[..count]),
        }
    }
}
