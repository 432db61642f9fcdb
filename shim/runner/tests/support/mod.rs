//! A built runner in a folder of its own, the agent's side of its protocol, and guests as text.
//!
//! Absent: confinement; the runner is started `--unconfined`, by whoever runs the tests.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use copepod_shim::kind::Kind;
use copepod_shim::protocol::{
    Answer, AttemptId, Dns, Event, ExecContainer, Exit, Failure, FromRunner, GuestMount, Hello,
    HttpSettings, Limits, PodReport, PodSandbox, Request, StartContainer, StopContainer, ToRunner,
    VERSIONS,
};
use copepod_shim::wire::{self, FrameReceiver, FrameSender};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::UnixStream;

/// The UID of the tests' pod.
pub(crate) const POD: &str = "11111111-2222-3333-4444-555555555555";

/// The address of the tests' pod.
pub(crate) const POD_IP: &str = "127.77.0.1";

/// After this long a test has failed; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A runner and its folder; killed when dropped.
pub(crate) struct Runner {
    child: Child,
    folder: TempDir,
}

impl Runner {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("code").join(ENGINE)).expect("made");
        let child = spawn(folder.path(), SOCKET, &[]);
        Self { child, folder }
    }

    /// A second runner in the same folder, to take over from this one.
    pub(crate) fn start_heir(&self) -> Heir {
        let socket = "runner.2.sock";
        Heir { child: spawn(self.root(), socket, &["--heir"]), socket: self.root().join(socket) }
    }

    /// As if it had crashed: a successor in the same folder.
    pub(crate) fn crash_and_start_again(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
        let _ = std::fs::remove_file(self.folder.path().join("runner.sock"));
        self.child = spawn(self.folder.path(), SOCKET, &[]);
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Compiles a guest into the runner's `/code`; its digest.
    pub(crate) fn compile(&self, guest: &[u8]) -> String {
        let digest = hex(&Sha256::digest(guest));
        let mut compiler = Command::new(compiler())
            .arg(self.code(&digest))
            .stdin(Stdio::piped())
            .spawn()
            .expect("the compiler starts");
        let mut stdin = compiler.stdin.take().expect("piped");
        std::io::Write::write_all(&mut stdin, guest).expect("written");
        drop(stdin);
        assert!(compiler.wait().expect("ended").success(), "the guest does not compile");
        digest
    }

    /// Where compiled code of this digest lies.
    pub(crate) fn code(&self, digest: &str) -> PathBuf {
        self.root().join("code").join(ENGINE).join(format!("{digest}.cwasm"))
    }

    pub(crate) async fn connect(&self) -> Agent {
        connect(&self.root().join(SOCKET)).await
    }

    /// With the tests' pod in it.
    pub(crate) async fn connect_with_pod(&self) -> Agent {
        let mut agent = self.connect().await;
        let created = agent.ask(Request::CreatePod(sandbox(POD))).await;
        assert_eq!(created, Ok(Answer::Done));
        agent
    }

    pub(crate) fn log(&self, container: &str) -> String {
        let path = self.root().join(format!("logs/{POD}/{container}/0.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// What the records of the log say, without their times.
    pub(crate) fn lines(&self, container: &str) -> Vec<String> {
        self.log(container)
            .lines()
            .map(|line| line.split_once(' ').expect("a time and more").1.to_owned())
            .collect()
    }

    /// Its memory that is no file's.
    pub(crate) fn anonymous_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it is there");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("the kernel's line");
        kib.parse::<u64>().expect("a number") << 10
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("asked").is_none()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A second runner in another one's folder.
pub(crate) struct Heir {
    child: Child,
    socket: PathBuf,
}

impl Heir {
    pub(crate) async fn connect(&self) -> Agent {
        connect(&self.socket).await
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("asked").is_none()
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn connect(socket: &Path) -> Agent {
    let stream = patiently(async {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    let (sender, mut receiver) = wire::split(stream);
    let hello = Hello { versions: VERSIONS, build: "test".into(), engine: "test".into() };
    sender.send(&hello, &[]).await.expect("sent");
    let (hello, _) = receiver.receive::<Hello>().await.expect("received");
    Agent { sender, receiver, next: 0, events: Vec::new(), hello }
}

/// The runners' engine.
const ENGINE: &str = "e";

const SOCKET: &str = "runner.sock";

fn spawn(folder: &Path, socket: &str, more: &[&str]) -> Child {
    // Another build of the runner can be tried by the same tests.
    let program = std::env::var_os("COPEPOD_RUNNER")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_copepod-runner").into());
    Command::new(program)
        .args(["--unconfined", "--build", "b", "--engine", ENGINE, "--root"])
        .arg(folder)
        .arg("--socket")
        .arg(folder.join(socket))
        .args(more)
        .spawn()
        .expect("the runner starts")
}

/// The program that compiles guests: of the environment, or built once.
fn compiler() -> &'static Path {
    static COMPILER: OnceLock<PathBuf> = OnceLock::new();
    COMPILER.get_or_init(|| {
        if let Some(path) = std::env::var_os("COPEPOD_COMPILE_FOR_TESTS") {
            return path.into();
        }
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "compile-for-tests", "--manifest-path"])
            .arg(manifest)
            .status()
            .expect("cargo starts");
        assert!(built.success(), "the compiler for tests is not built");
        Path::new(env!("CARGO_BIN_EXE_copepod-runner")).with_file_name("compile-for-tests")
    })
}

/// An example of this repository as wasm: of the environment, or built with the compiler in the cache.
pub(crate) fn guest(example: &str) -> Vec<u8> {
    let path = match std::env::var_os("COPEPOD_GUESTS") {
        Some(folder) => PathBuf::from(folder).join(format!("{example}.wasm")),
        None => build_guest(example),
    };
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn build_guest(example: &str) -> PathBuf {
    let home = std::env::var_os("HOME").expect("a home");
    let rustc = Path::new(&home).join(".cache/copepod/guest-rust/bin/rustc");
    assert!(rustc.exists(), "no compiler for guests: run cargo xtask guests");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/Cargo.toml");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--target", "wasm32-wasip2"])
        .args(["--package", example, "--manifest-path"])
        .arg(manifest)
        .env("RUSTC", rustc)
        .env("CARGO_TARGET_DIR", &target)
        .status()
        .expect("cargo starts");
    assert!(built.success(), "the guest is not built");
    let folder = target.join("wasm32-wasip2/release");
    // A library's file has underscores.
    let [program, library] = [example.to_owned(), example.replace('-', "_")];
    let mut files = [program, library].map(|name| folder.join(format!("{name}.wasm"))).into_iter();
    files.find(|file| file.exists()).expect("built")
}

/// A port that no other test of this process uses.
pub(crate) fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below the range of ports that the kernel hands out.
    let base = 20_000 + (std::process::id() % 200) as u16 * 50;
    base + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A connected agent.
pub(crate) struct Agent {
    pub(crate) sender: FrameSender,
    pub(crate) receiver: FrameReceiver,
    next: u64,
    events: Vec<Event>,
    pub(crate) hello: Hello,
}

impl Agent {
    pub(crate) async fn ask(&mut self, request: Request) -> Result<Answer, Failure> {
        self.ask_with(request, &[]).await.0
    }

    pub(crate) async fn ask_with(
        &mut self,
        request: Request,
        descriptors: &[OwnedFd],
    ) -> (Result<Answer, Failure>, Vec<OwnedFd>) {
        let id = self.send(request, descriptors).await;
        self.reply(id).await
    }

    pub(crate) async fn send(&mut self, request: Request, descriptors: &[OwnedFd]) -> u64 {
        self.next += 1;
        let id = self.next;
        self.sender.send(&ToRunner { id, request }, descriptors).await.expect("sent");
        id
    }

    pub(crate) async fn reply(&mut self, wanted: u64) -> (Result<Answer, Failure>, Vec<OwnedFd>) {
        let (id, result, descriptors) = self.any_reply().await;
        assert_eq!(id, wanted);
        (result, descriptors)
    }

    /// The next reply, to whichever request.
    pub(crate) async fn any_reply(&mut self) -> (u64, Result<Answer, Failure>, Vec<OwnedFd>) {
        loop {
            match patiently(self.receiver.receive::<FromRunner>()).await.expect("received") {
                (FromRunner::Reply { id, result }, descriptors) => {
                    return (id, result, descriptors);
                }
                (FromRunner::Event(event), _) => self.events.push(event),
            }
        }
    }

    /// Starts attempt 0 of a container.
    pub(crate) async fn start(&mut self, spec: &StartContainer) -> i64 {
        match self.ask(Request::Start(Box::new(spec.clone()))).await {
            Ok(Answer::Started { at_us }) => at_us,
            other => panic!("not started: {other:?}"),
        }
    }

    pub(crate) async fn stop(&mut self, container: &str, deadline_ms: i64) {
        let stop = StopContainer { id: attempt(container, 0), deadline_ms };
        assert_eq!(self.ask(Request::Stop(stop)).await, Ok(Answer::Done));
    }

    /// The exit of attempt 0 of this container, waited for.
    pub(crate) async fn exit(&mut self, container: &str) -> Exit {
        let wanted = attempt(container, 0);
        loop {
            let found = self.events.iter().find_map(|event| match event {
                Event::Exited { id, exit } if *id == wanted => Some(exit.clone()),
                _ => None,
            });
            if let Some(exit) = found {
                return exit;
            }
            match patiently(self.receiver.receive::<FromRunner>()).await.expect("received").0 {
                FromRunner::Event(event) => self.events.push(event),
                reply => panic!("an answer to nothing: {reply:?}"),
            }
        }
    }

    pub(crate) async fn run(&mut self, spec: &StartContainer) -> Exit {
        self.start(spec).await;
        self.exit(&spec.id.container).await
    }

    pub(crate) async fn list(&mut self) -> Vec<PodReport> {
        match self.ask(Request::List).await {
            Ok(Answer::List(pods)) => pods,
            other => panic!("no list: {other:?}"),
        }
    }

    /// Runs `exec` with these streams; its code and message.
    pub(crate) async fn exec(
        &mut self,
        request: ExecContainer,
        descriptors: &[OwnedFd],
    ) -> (i32, Option<String>) {
        match self.ask_with(Request::Exec(request), descriptors).await.0 {
            Ok(Answer::Exited { code, message }) => (code, message),
            other => panic!("not run: {other:?}"),
        }
    }
}

pub(crate) async fn patiently<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("the runner did nothing for a minute")
}

pub(crate) fn attempt(container: &str, attempt: u32) -> AttemptId {
    AttemptId { pod: POD.into(), container: container.into(), attempt }
}

pub(crate) fn sandbox(pod: &str) -> PodSandbox {
    PodSandbox {
        pod: pod.into(),
        name: "pod".into(),
        namespace: "default".into(),
        ipv4: Some(POD_IP.parse().expect("an address")),
        ipv6: None,
        loopback: [127, 78, 0, 1].into(),
        hostname: "pod".into(),
        hosts: Vec::new(),
        dns: Dns::default(),
        denied: Vec::new(),
        max_sockets: 100,
    }
}

/// Attempt 0 of a container with roomy limits.
pub(crate) fn container(name: &str, code: &str, kind: Kind) -> StartContainer {
    StartContainer {
        id: attempt(name, 0),
        code: code.into(),
        kind,
        args: vec![name.into()],
        env: Vec::new(),
        mounts: Vec::new(),
        ports: Vec::new(),
        limits: Limits {
            memory: 64 << 20,
            cpu_millis: None,
            cpu_weight: 2,
            log_bytes_per_second: 1 << 30,
            log_file_bytes: 10 << 20,
            log_files: 5,
            handles: 1000,
        },
        http: HttpSettings { reuse: 1, concurrency: 10, queue: 10, timeout_ms: 10_000 },
        log: format!("/logs/{POD}/{name}/0.log"),
        termination_log: String::new(),
        termination_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        cwd: String::new(),
        since_us: None,
    }
}

pub(crate) fn mount(guest: &str, source: &str, read_only: bool) -> GuestMount {
    GuestMount { guest: guest.into(), source: source.into(), read_only, size_limit: None }
}

/// A preview1 module: the functions that the guests here use, one page of memory, and `body` as `_start`.
pub(crate) fn module(body: &str) -> Vec<u8> {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write"
                (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read"
                (func $fd_read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff"
                (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "path_open"
                (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (memory (export "memory") 1)
            ;; Writes the bytes at an address to a descriptor; the number of the error.
            (func $write (param $fd i32) (param $at i32) (param $length i32) (result i32)
                (i32.store (i32.const 0) (local.get $at))
                (i32.store (i32.const 4) (local.get $length))
                (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
            ;; Sleeps for an hour.
            (func $sleep
                (i32.store (i32.const 1040) (i32.const 1))
                (i64.store (i32.const 1048) (i64.const 3600000000000))
                (drop (call $poll_oneoff
                    (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 3072))))
            {body})"#
    )
    .into_bytes()
}

/// A module that prints a text and ends with a code.
pub(crate) fn printer(text: &str, code: i32) -> Vec<u8> {
    let bytes: String = text.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    module(&format!(
        r#"(data (i32.const 4096) "{bytes}")
           (func (export "_start")
             (drop (call $write (i32.const 1) (i32.const 4096) (i32.const {})))
             (call $proc_exit (i32.const {code})))"#,
        text.len()
    ))
}

/// A command component around core functions; `run` gives 0 for success.
pub(crate) fn command(core: &str) -> Vec<u8> {
    format!(
        r#"(component
            (core module $m {core})
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance $cli (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $cli)))"#
    )
    .into_bytes()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
