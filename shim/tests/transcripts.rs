//! The protocol's messages as released versions sent them: what they mean must not change.
//!
//! `transcripts/<version>.txt` holds one message a line: what it is, its name, and its frame in hex. A file of a released version is
//! never changed. Before a new version is released, its own is written, and committed, by
//!
//! ```text
//! COPEPOD_RECORD=1 cargo test -p copepod-shim --test transcripts the_newest
//! ```
//!
//! Absent: connections, and what a message makes either side do.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ciborium::Value;
use copepod_shim::kind::Kind;
use copepod_shim::protocol::{
    Answer, AttemptId, AttemptState, ContainerReport, ContainerStats, Dns, Event, ExecContainer,
    Exit, ExitReason, Failure, FromRunner, GuestMount, Hello, HostEntry, HttpSettings, Limits,
    PodReport, PodSandbox, Port, Request, Retire, StartContainer, StopContainer, ToRunner,
    VERSIONS, Versions,
};
use serde::de::DeserializeOwned;

/// A frame's content, by who sends it.
#[derive(Clone, Debug, PartialEq)]
enum Message {
    Hello(Hello),
    ToRunner(ToRunner),
    FromRunner(FromRunner),
}

impl Message {
    fn kind(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::ToRunner(_) => "to-runner",
            Self::FromRunner(_) => "from-runner",
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Hello(it) => ciborium::into_writer(it, &mut bytes),
            Self::ToRunner(it) => ciborium::into_writer(it, &mut bytes),
            Self::FromRunner(it) => ciborium::into_writer(it, &mut bytes),
        }
        .expect("a vector takes every byte");
        bytes
    }

    fn decode(kind: &str, frame: &[u8]) -> Self {
        match kind {
            "hello" => Self::Hello(cbor(frame)),
            "to-runner" => Self::ToRunner(cbor(frame)),
            "from-runner" => Self::FromRunner(cbor(frame)),
            other => panic!("{other:?} is no kind of message"),
        }
    }
}

fn cbor<T: DeserializeOwned>(frame: &[u8]) -> T {
    ciborium::from_reader(frame).expect("a message of a released version is understood")
}

fn attempt() -> AttemptId {
    AttemptId { pod: "b6c1".into(), container: "app".into(), attempt: 3 }
}

fn exit(code: i32, reason: ExitReason) -> Exit {
    Exit {
        code,
        reason,
        message: "unreachable executed".into(),
        started_us: 1_790_000_000_000_000,
        finished_us: 1_790_000_000_500_000,
    }
}

fn sandbox() -> PodSandbox {
    PodSandbox {
        pod: "b6c1".into(),
        name: "web".into(),
        namespace: "shop".into(),
        ipv4: Some(Ipv4Addr::new(10, 64, 0, 2)),
        ipv6: Some("fd00::2".parse().expect("an address")),
        loopback: Ipv4Addr::new(127, 128, 0, 2),
        hostname: "web".into(),
        hosts: vec![HostEntry { ip: IpAddr::from([10, 64, 0, 2]), names: vec!["web".into()] }],
        dns: Dns {
            servers: vec![IpAddr::from([10, 96, 0, 10])],
            search: vec!["shop.svc.cluster.local".into()],
            ndots: 5,
        },
        denied: vec![IpAddr::from([10, 64, 0, 1])],
        max_sockets: 4096,
    }
}

fn start() -> StartContainer {
    StartContainer {
        id: attempt(),
        code: "c0de".repeat(16),
        kind: Kind::HttpComponent,
        args: vec!["app".into(), "--verbose".into()],
        env: vec![("GREETING".into(), "hi".into())],
        mounts: vec![GuestMount {
            guest: "/data".into(),
            source: "/rw/b6c1/data".into(),
            read_only: true,
            size_limit: Some(1 << 20),
        }],
        ports: vec![Port { name: "http".into(), port: 8080, udp: false }],
        limits: Limits {
            memory: 64 << 20,
            cpu_millis: Some(250),
            cpu_weight: 2,
            log_bytes_per_second: 1 << 20,
            log_file_bytes: 10 << 20,
            log_files: 5,
            handles: 10_000,
        },
        http: HttpSettings { reuse: 1, concurrency: 16, queue: 64, timeout_ms: 60_000 },
        log: "/logs/b6c1/app/3.log".into(),
        termination_log: "/rw/b6c1/.termination/app/message".into(),
        termination_path: "/dev/termination-log".into(),
        stdin: false,
        stdin_once: false,
        tty: false,
        cwd: String::new(),
        since_us: Some(1_790_000_000_000_001),
    }
}

fn exec() -> ExecContainer {
    ExecContainer {
        id: attempt(),
        code: "c0de".repeat(16),
        kind: Kind::CommandComponent,
        args: vec!["app".into(), "check".into()],
        timeout_ms: Some(1_000),
        tty: false,
        of_toolbox: false,
    }
}

fn report() -> PodReport {
    let container =
        |name: &str, state| ContainerReport { container: name.into(), attempt: 3, state };
    PodReport {
        pod: "b6c1".into(),
        containers: vec![
            container("app", AttemptState::Running { since_us: 1_790_000_000_000_000 }),
            container("job", AttemptState::Exited(exit(0, ExitReason::Ended))),
            container("spin", AttemptState::Exited(exit(137, ExitReason::Killed))),
        ],
    }
}

fn stats() -> ContainerStats {
    ContainerStats {
        id: attempt(),
        cpu_ns: 12_345_678_901,
        memory: 1 << 20,
        memory_peak: 2 << 20,
        requests: 7,
        instances: 1,
    }
}

/// Every message that either side sends, with a value in every field that has one.
fn messages() -> Vec<(&'static str, Message)> {
    let pod = || "b6c1".to_owned();
    let hello = Hello {
        versions: Versions { oldest: 1, newest: 1 },
        build: "b01d".repeat(16),
        engine: "e4e1".repeat(8),
    };
    let mut all = vec![("hello", Message::Hello(hello))];
    let requests = [
        ("create-pod", Request::CreatePod(sandbox())),
        ("start", Request::Start(Box::new(start()))),
        (
            "start-preview1",
            Request::Start(Box::new(StartContainer { kind: Kind::Preview1Command, ..start() })),
        ),
        (
            "start-at-a-terminal",
            Request::Start(Box::new(StartContainer {
                stdin: true,
                stdin_once: true,
                tty: true,
                cwd: "/data".into(),
                ..start()
            })),
        ),
        ("stop", Request::Stop(StopContainer { id: attempt(), deadline_ms: 1_790_000_030_000 })),
        ("remove-pod", Request::RemovePod { pod: pod() }),
        ("list", Request::List),
        ("acknowledge", Request::Acknowledge(attempt())),
        ("exec", Request::Exec(exec())),
        (
            "exec-of-the-toolbox",
            Request::Exec(ExecContainer { tty: true, of_toolbox: true, ..exec() }),
        ),
        ("attach", Request::Attach(attempt())),
        ("open-program", Request::OpenProgram { id: attempt(), name: "/bin/app".into() }),
        ("dial", Request::Dial { pod: pod(), port: 8080 }),
        ("publish", Request::Publish { pod: pod(), port: 8080 }),
        ("stats", Request::Stats),
        ("hand-over", Request::HandOver(attempt())),
        ("hand-over-published", Request::HandOverPublished { pod: pod() }),
        (
            "retire",
            Request::Retire(Retire { attempts: vec![attempt()], deadline_ms: 1_790_000_030_000 }),
        ),
        ("exit", Request::Exit),
    ];
    all.extend(
        requests.map(|(name, request)| (name, Message::ToRunner(ToRunner { id: 41, request }))),
    );
    let text = || "why not".to_owned();
    let results = [
        ("done", Ok(Answer::Done)),
        ("started", Ok(Answer::Started { at_us: 1_790_000_000_000_000 })),
        ("pods", Ok(Answer::List(vec![report()]))),
        ("exited", Ok(Answer::Exited { code: 3, message: Some(text()) })),
        ("descriptor", Ok(Answer::Descriptor)),
        ("used", Ok(Answer::Stats(vec![stats()]))),
        ("handed-over", Ok(Answer::HandedOver { since_us: 1_790_000_000_000_001 })),
        ("published", Ok(Answer::Published(vec![8080, 8081]))),
        ("unsupported", Err(Failure::Unsupported)),
        ("not-found", Err(Failure::NotFound)),
        ("busy", Err(Failure::Busy(text()))),
        ("bad-code", Err(Failure::BadCode(text()))),
        (
            "refused",
            Err(Failure::Refused { reason: "CreateContainerError".into(), message: text() }),
        ),
        ("unreachable", Err(Failure::Unreachable(text()))),
    ];
    all.extend(
        results.map(|(name, result)| {
            (name, Message::FromRunner(FromRunner::Reply { id: 41, result }))
        }),
    );
    let exited = |exit| Event::Exited { id: attempt(), exit };
    let warning = Event::Warning { id: attempt(), reason: "LogsDropped".into(), message: text() };
    let events = [
        ("event-trapped", exited(exit(134, ExitReason::Trapped))),
        ("event-out-of-memory", exited(exit(137, ExitReason::OutOfMemory))),
        ("event-warning", warning),
    ];
    all.extend(events.map(|(name, event)| (name, Message::FromRunner(FromRunner::Event(event)))));
    all
}

/// A number for each variant. Where this does not compile, a variant is new: count it here, and add a message with it above.
fn request_number(request: &Request) -> Option<usize> {
    Some(match request {
        Request::CreatePod(_) => 0,
        Request::Start(_) => 1,
        Request::Stop(_) => 2,
        Request::RemovePod { .. } => 3,
        Request::List => 4,
        Request::Acknowledge(_) => 5,
        Request::Exec(_) => 6,
        Request::Dial { .. } => 7,
        Request::Publish { .. } => 8,
        Request::Stats => 9,
        Request::Exit => 10,
        Request::HandOver(_) => 11,
        Request::HandOverPublished { .. } => 12,
        Request::Retire(_) => 13,
        Request::Attach(_) => 14,
        Request::OpenProgram { .. } => 15,
        // It stands for what is not understood, and is never sent.
        Request::Unknown => return None,
    })
}

/// As [`request_number`].
fn from_runner_number(message: &FromRunner) -> Option<usize> {
    Some(match message {
        FromRunner::Reply { result: Ok(answer), .. } => match answer {
            Answer::Done => 0,
            Answer::Started { .. } => 1,
            Answer::List(_) => 2,
            Answer::Exited { .. } => 3,
            Answer::Descriptor => 4,
            Answer::Stats(_) => 5,
            Answer::HandedOver { .. } => 14,
            Answer::Published(_) => 15,
        },
        FromRunner::Reply { result: Err(failure), .. } => match failure {
            Failure::Unsupported => 6,
            Failure::NotFound => 7,
            Failure::Busy(_) => 8,
            Failure::BadCode(_) => 9,
            Failure::Refused { .. } => 10,
            Failure::Unreachable(_) => 11,
        },
        FromRunner::Event(Event::Exited { .. }) => 12,
        FromRunner::Event(Event::Warning { .. }) => 13,
        FromRunner::Event(Event::Unknown) => return None,
    })
}

/// A transcript's messages: kind, name, frame.
struct Transcript {
    version: u32,
    lines: Vec<(String, String, Vec<u8>)>,
}

fn path(version: u32) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    folder.join(version.to_string()).with_extension("txt")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).expect("ASCII"));
    digits.map(|two| u8::from_str_radix(two, 16).expect("hex digits")).collect()
}

fn record(version: u32) {
    let path = path(version);
    let lines = messages()
        .into_iter()
        .map(|(name, message)| format!("{} {name} {}\n", message.kind(), hex(&message.encode())));
    assert!(!path.exists(), "{} is there: it is not changed once released", path.display());
    std::fs::write(path, lines.collect::<String>()).expect("it can be written");
}

/// The transcripts of all versions that are still spoken.
fn transcripts() -> Vec<Transcript> {
    let read = |version| {
        let text = std::fs::read_to_string(path(version)).expect("each version has a transcript");
        let lines = text.lines().map(|line| {
            let [kind, name, frame] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line:?}: a line has three words");
            };
            (kind.to_owned(), name.to_owned(), from_hex(frame))
        });
        Transcript { version, lines: lines.collect() }
    };
    (VERSIONS.oldest..=VERSIONS.newest).map(read).collect()
}

#[test]
fn what_a_released_version_said_means_the_same_today() {
    let today = messages();
    for Transcript { version, lines } in transcripts() {
        for (kind, name, frame) in lines {
            let meant = today.iter().find(|(it, _)| *it == name).map(|(_, message)| message);

            let heard = Message::decode(&kind, &frame);

            assert_eq!(Some(&heard), meant, "version {version}, {name}");
        }
    }
}

#[test]
fn a_released_version_finds_in_what_is_said_today_every_field_that_it_knows() {
    let today = messages();
    for Transcript { version, lines } in transcripts() {
        for (_, name, frame) in lines {
            let known: Value = cbor(&frame);
            let (_, message) = today.iter().find(|(it, _)| *it == name).expect("it is still sent");

            let said: Value = cbor(&message.encode());

            assert!(holds(&said, &known), "version {version}, {name}: {said:?}");
        }
    }
}

/// Whether `said` has all that `known` has; a map may have more.
fn holds(said: &Value, known: &Value) -> bool {
    match (said, known) {
        (Value::Map(said), Value::Map(known)) => known.iter().all(|(key, known)| {
            said.iter().any(|(other, said)| other == key && holds(said, known))
        }),
        (Value::Array(said), Value::Array(known)) => {
            said.len() == known.len()
                && said.iter().zip(known).all(|(said, known)| holds(said, known))
        }
        _ => said == known,
    }
}

#[test]
fn the_newest_transcript_holds_every_message() {
    if std::env::var_os("COPEPOD_RECORD").is_some() {
        record(VERSIONS.newest);
    }
    let newest = transcripts().pop().expect("one at least");

    let recorded: BTreeSet<String> = newest.lines.into_iter().map(|(_, name, _)| name).collect();

    let sent: BTreeSet<String> = messages().iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(recorded, sent);
}

#[test]
fn there_is_a_message_with_every_variant() {
    let (mut requests, mut others) = (BTreeSet::new(), BTreeSet::new());
    for (_, message) in messages() {
        match message {
            Message::Hello(_) => {}
            Message::ToRunner(it) => requests.extend(request_number(&it.request)),
            Message::FromRunner(it) => others.extend(from_runner_number(&it)),
        }
    }

    assert_eq!(requests, (0..=15).collect());
    assert_eq!(others, (0..=15).collect());
}
