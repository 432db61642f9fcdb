//! `/exec` and `/attach`: a client's streams, and what runs at their other end.
//!
//! [`Wanted`] says which streams; [`open`] makes a [`Session`] of them over a WebSocket or SPDY, which the rest does not tell apart.
//! With `tty` a terminal of this process is between the client and the guest ([`super::terminal`]); its sizes are read and thrown away.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use copepod_agent::api::{AttachTo, ExecIn};
use copepod_node::containers;
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, Pod};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::answer::{self, Answer};
use super::follower::{Begin, Follower, Run};
use super::logs::{attempt_of, now_ns};
use super::pods::{Pods, runs, status_of};
use super::route::{Query, Target};
use super::sink::Sink;
use super::spdy;
use super::terminal::Terminal;
use super::websocket::{self, Channels, Framing};
use super::{Session as GoesOn, forward};

/// How long a client may take to open its streams: the kubelet's `streamCreationTimeout`.
pub(crate) const CREATION: Duration = Duration::from_secs(30);
/// How long what a program wrote last may take to be read after its end.
const DRAIN: Duration = Duration::from_secs(30);
/// Bytes of output in memory at a time.
const PIECE: usize = 32 << 10;
/// Words of a command; the kernel's limit for processes is far above, and a request's head below.
const WORDS: usize = 4096;

/// The versions of the protocol, by what an end is told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// A `metav1.Status`: since v4.
    Json,
    /// A sentence, and nothing on success.
    Text,
}

/// Subprotocols over a WebSocket.
const OVER_WEBSOCKET: &[(&str, (Framing, Ends))] = &[
    ("v5.channel.k8s.io", (Framing { base64: false, half_close: true }, Ends::Json)),
    ("v4.channel.k8s.io", (Framing { base64: false, half_close: false }, Ends::Json)),
    ("v4.base64.channel.k8s.io", (Framing { base64: true, half_close: false }, Ends::Json)),
    ("channel.k8s.io", (Framing { base64: false, half_close: false }, Ends::Text)),
    ("base64.channel.k8s.io", (Framing { base64: true, half_close: false }, Ends::Text)),
    ("", (Framing { base64: false, half_close: false }, Ends::Text)),
];

/// Versions over SPDY: how an end is told, and whether a terminal's sizes have a stream.
const OVER_SPDY: &[(&str, (Ends, bool))] = &[
    ("v4.channel.k8s.io", (Ends::Json, true)),
    ("v3.channel.k8s.io", (Ends::Text, true)),
    ("v2.channel.k8s.io", (Ends::Text, false)),
    ("channel.k8s.io", (Ends::Text, false)),
];

/// Which streams a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    /// `None`: none at all, which is a mistake.
    fn of(query: &Query) -> Option<Self> {
        let flag = |key| query.first(key) == Some("1");
        let tty = flag("tty");
        let wanted = Self {
            stdin: flag("input"),
            stdout: flag("output"),
            stderr: flag("error") && !tty,
            tty,
        };
        (wanted.stdin || wanted.stdout || wanted.stderr).then_some(wanted)
    }
}

/// A client's streams.
struct Session {
    stdin: Option<mpsc::Receiver<Bytes>>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    status: Sink,
    ends: Ends,
    /// What has to live as long as the session.
    _held: Option<spdy::Streams>,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Exited { code: i32, message: Option<String> },
    Failed(String),
}

impl Session {
    /// Tells the client how it ended.
    async fn end(self, end: &End) {
        for sink in [&self.stdout, &self.stderr].into_iter().flatten() {
            sink.finish().await;
        }
        let text = told(end, self.ends);
        if !text.is_empty() {
            let _ = self.status.send(text.as_bytes()).await;
        }
        self.status.finish().await;
    }
}

fn told(end: &End, ends: Ends) -> String {
    let (message, status) = match end {
        End::Exited { code: 0, .. } => {
            (String::new(), json!({"metadata": {}, "status": "Success"}))
        }
        End::Exited { code, message } => {
            let mut text =
                format!("command terminated with non-zero exit code: exit status {code}");
            if let Some(message) = message {
                text = format!("{text}: {message}");
            }
            let causes = json!([{"reason": "ExitCode", "message": code.to_string()}]);
            let status = json!({
                "metadata": {}, "status": "Failure", "message": text,
                "reason": "NonZeroExitCode", "details": {"causes": causes},
            });
            (text, status)
        }
        End::Failed(why) => {
            let text = format!("Internal error occurred: {why}");
            let status = json!({
                "metadata": {}, "status": "Failure", "message": text,
                "reason": "InternalError", "details": {"causes": [{"message": why}]}, "code": 500,
            });
            (text, status)
        }
    };
    match ends {
        Ends::Json => status.to_string(),
        Ends::Text => message,
    }
}

/// What a client asked to be done.
enum Work {
    Exec(ExecIn),
    /// What the container writes, by its log.
    Show(Run),
    /// The container's own streams.
    Attach(AttachTo),
}

/// Answers `/exec`.
pub(crate) fn exec(
    pods: &Arc<dyn Pods>,
    pod: &Pod,
    target: Target,
    query: &Query,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
) -> (Answer, Option<GoesOn>) {
    let bad = |text: String| (answer::text(StatusCode::BAD_REQUEST, text), None);
    let Some(wanted) = Wanted::of(query) else { return bad(NO_STREAM.into()) };
    let args: Vec<String> = query.all("command").map(str::to_owned).collect();
    if args.is_empty() {
        return bad("you must specify a command".into());
    }
    if args.len() > WORDS {
        return bad(format!("a command may have {WORDS} words"));
    }
    if let Err(answer) = running(pod, &target) {
        return (*answer, None);
    }
    let (container, tty) = (Some(target.container), wanted.tty);
    let exec = ExecIn { pod: target.pod, container, args, tty };
    open(pods, wanted, headers, upgrade, Work::Exec(exec))
}

/// Answers `/attach`.
pub(crate) fn attach(
    pods: &Arc<dyn Pods>,
    pod: &Pod,
    target: Target,
    query: &Query,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
) -> (Answer, Option<GoesOn>) {
    let bad = |text: &str| (answer::text(StatusCode::BAD_REQUEST, text), None);
    let Some(wanted) = Wanted::of(query) else { return bad(NO_STREAM) };
    let attempt = match running(pod, &target) {
        Ok(attempt) => attempt,
        Err(answer) => return (*answer, None),
    };
    let found = containers::find(pod, &target.container);
    let has = |flag: fn(&Container) -> Option<bool>| {
        found.as_ref().and_then(|found| flag(&found.container)).unwrap_or(false)
    };
    if wanted.tty && !has(|container| container.tty) {
        return bad("the container has no terminal: set tty: true in its spec, or leave --tty out");
    }
    if wanted.stdin && !has(|container| container.stdin) {
        return bad(
            "the container has no stdin: set stdin: true in its spec, or leave --stdin out",
        );
    }
    let work = if wanted.stdin || wanted.tty {
        Work::Attach(AttachTo { pod: target.pod, container: Some(target.container) })
    } else {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        Work::Show(Run { pod: target.pod, uid, container: target.container, attempt })
    };
    open(pods, wanted, headers, upgrade, work)
}

const NO_STREAM: &str = "you must specify at least 1 of stdin, stdout, stderr";

/// The attempt of the container that runs.
fn running(pod: &Pod, target: &Target) -> Result<u32, Box<Answer>> {
    let container = &target.container;
    let status = status_of(pod, container).filter(|status| runs(status));
    status.and_then(|status| attempt_of(status.container_id.as_deref())).ok_or_else(|| {
        let text = format!("container not found ({container:?}): no such container runs");
        Box::new(answer::text(StatusCode::NOT_FOUND, text))
    })
}

/// The handshake that the client asks for, and what comes after it.
fn open(
    pods: &Arc<dyn Pods>,
    wanted: Wanted,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    work: Work,
) -> (Answer, Option<GoesOn>) {
    let pods = pods.clone();
    let opened = if websocket::is_asked(headers) {
        over_websocket(pods, wanted, headers, upgrade, work)
    } else {
        over_spdy(pods, wanted, headers, upgrade, work)
    };
    match opened {
        Ok((answer, session)) => (answer, Some(session)),
        Err(answer) => (*answer, None),
    }
}

fn over_websocket(
    pods: Arc<dyn Pods>,
    wanted: Wanted,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    work: Work,
) -> Result<(Answer, GoesOn), Box<Answer>> {
    let (name, (framing, ends)) = websocket::negotiate(headers, OVER_WEBSOCKET)?;
    let answer = websocket::accept(headers, name)?;
    let goes_on = async move {
        let Ok(connection) = upgrade.await else { return };
        let mut channels = Channels::new(framing);
        let stdin = wanted.stdin.then(|| channels.input(0));
        let output = |wanted: bool, number| wanted.then(|| Sink::Channel(channels.output(number)));
        let (stdout, stderr) = (output(wanted.stdout, 1), output(wanted.stderr, 2));
        let status = Sink::Channel(channels.output(3));
        let session = Session { stdin, stdout, stderr, status, ends, _held: None };
        let working = async {
            // An empty message tells the client that it is connected.
            let first = session.stdout.as_ref().or(session.stderr.as_ref());
            let first = first.unwrap_or(&session.status).clone();
            if first.send(&[]).await.is_ok() {
                drop(first);
                run(pods, wanted, work, session).await;
            }
        };
        tokio::join!(channels.drive(TokioIo::new(connection)), working);
    };
    Ok((answer, Box::pin(goes_on)))
}

fn over_spdy(
    pods: Arc<dyn Pods>,
    wanted: Wanted,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    work: Work,
) -> Result<(Answer, GoesOn), Box<Answer>> {
    let (name, (ends, sizes)) = forward::spdy_handshake(headers, OVER_SPDY)?;
    let mut answer = answer::switching("SPDY/3.1");
    answer.headers_mut().insert(forward::PROTOCOL, HeaderValue::from_static(name));
    let goes_on = async move {
        let Ok(connection) = upgrade.await else { return };
        let (streams, driving) = spdy::open(TokioIo::new(connection));
        let working = async {
            let opened = opened(streams, wanted, ends, sizes);
            if let Ok(Some(session)) = tokio::time::timeout(CREATION, opened).await {
                run(pods, wanted, work, session).await;
            }
        };
        let (driven, ()) = tokio::join!(driving, working);
        if let Err(error) = driven {
            tracing::debug!(%error, "a client's SPDY connection ended");
        }
    };
    Ok((answer, Box::pin(goes_on)))
}

/// Waits for the streams that the client asked for; `None`: it left.
async fn opened(
    mut streams: spdy::Streams,
    wanted: Wanted,
    ends: Ends,
    sizes: bool,
) -> Option<Session> {
    let (mut stdin, mut stdout, mut stderr, mut status, mut resize) =
        (None, None, None, None, None);
    loop {
        let is_complete = status.is_some()
            && stdin.is_some() >= wanted.stdin
            && stdout.is_some() >= wanted.stdout
            && stderr.is_some() >= wanted.stderr
            && resize.is_some() >= (wanted.tty && sizes);
        if is_complete {
            break;
        }
        let stream = streams.next().await?;
        let output = Sink::Spdy(stream.output.clone());
        match stream.header("streamtype") {
            Some("stdin") if wanted.stdin => stdin = Some(stream.input),
            Some("stdout") if wanted.stdout => stdout = Some(output),
            Some("stderr") if wanted.stderr => stderr = Some(output),
            Some("error") => status = Some(output),
            // Its bytes are thrown away, as nobody takes them.
            Some("resize") => resize = Some(()),
            _ => stream.output.reset().await,
        }
    }
    Some(Session { stdin, stdout, stderr, status: status?, ends, _held: Some(streams) })
}

/// Does the work, and tells the client how it ended; or stops where the client is gone.
async fn run(pods: Arc<dyn Pods>, wanted: Wanted, work: Work, mut session: Session) {
    let status = session.status.clone();
    let working = async {
        let end = match work {
            Work::Exec(exec) => {
                let begin = |streams| pods.exec(exec, streams);
                exec_end(join(&mut session, wanted.tty, begin).await)
            }
            Work::Show(run) => show(pods, run, &session).await,
            Work::Attach(attach) => {
                let begin = |streams| pods.attach(attach, streams);
                attach_end(join(&mut session, wanted.tty, begin).await)
            }
        };
        session.end(&end).await;
    };
    tokio::select! {
        () = working => {}
        () = status.gone() => {}
    }
}

/// How a program ended whose streams were a client's.
enum Ran<T> {
    Ended(T),
    /// By Ctrl-C, at a terminal.
    Interrupted,
    NoStreams(io::Error),
}

/// Joins a client's streams to those of what `begin` starts, until that ends. Where the client is gone its pipes break, which ends a
/// program that reads or writes, and any that is at a terminal.
async fn join<T, F: Future<Output = T>>(
    session: &mut Session,
    tty: bool,
    begin: impl FnOnce([OwnedFd; 3]) -> F,
) -> Ran<T> {
    let opened = Pipes::new(session, tty).and_then(|pipes| {
        let terminal = tty.then(Terminal::open).transpose()?;
        Ok((pipes, terminal))
    });
    let (Pipes { theirs, stdin, stdout, stderr }, terminal) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ran::NoStreams(error),
    };
    let running = begin(theirs);
    let (typed, sinks) = (session.stdin.take(), (session.stdout.as_ref(), session.stderr.as_ref()));
    let ((typed, stdin), to_terminal) = match terminal {
        Some(terminal) => ((None, None), Some((terminal, typed, stdin))),
        None => ((typed, stdin), None),
    };
    let feeding = feed(typed, stdin);
    let carrying = async {
        if let Some((terminal, typed, stdin)) = to_terminal {
            return terminal.carry((typed, sinks.0), (stdin, stdout)).await;
        }
        tokio::join!(carry(stdout, sinks.0), carry(stderr, sinks.1));
        false
    };
    tokio::pin!(running, feeding, carrying);
    let (mut is_fed, mut is_carried) = (false, false);
    let end = loop {
        tokio::select! {
            end = &mut running => break end,
            () = &mut feeding, if !is_fed => is_fed = true,
            interrupted = &mut carrying, if !is_carried => {
                if interrupted {
                    return Ran::Interrupted;
                }
                is_carried = true;
            }
        }
    };
    if !is_carried && tokio::time::timeout(DRAIN, carrying).await.is_err() {
        tracing::debug!("a command's last output was not taken");
    }
    Ran::Ended(end)
}

fn exec_end(ran: Ran<Result<(i32, Option<String>), String>>) -> End {
    match ran {
        Ran::Ended(Ok((code, message))) => End::Exited { code, message },
        Ran::Ended(Err(why)) => End::Failed(format!("error executing command in container: {why}")),
        // As a shell counts SIGINT.
        Ran::Interrupted => End::Exited { code: 130, message: None },
        Ran::NoStreams(error) => End::Failed(format!("no streams for the command: {error}")),
    }
}

/// As a kubelet tells it: what became of the container is in its status.
fn attach_end(ran: Ran<Result<Option<i32>, String>>) -> End {
    match ran {
        Ran::Ended(Ok(_)) | Ran::Interrupted => End::Exited { code: 0, message: None },
        Ran::Ended(Err(why)) => End::Failed(format!("error attaching to container: {why}")),
        Ran::NoStreams(error) => End::Failed(format!("no streams to attach: {error}")),
    }
}

/// A program's three streams, and our ends of them.
struct Pipes {
    theirs: [OwnedFd; 3],
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Pipes {
    fn new(session: &Session, tty: bool) -> io::Result<Self> {
        let nothing = || -> io::Result<OwnedFd> {
            let mut options = std::fs::OpenOptions::new();
            Ok(options.read(true).write(true).open("/dev/null")?.into())
        };
        let (their_stdin, stdin) = if session.stdin.is_some() {
            let (reading, writing) = pipe_with(PipeFlags::CLOEXEC)?;
            (reading, Some(pipe::Sender::from_owned_fd(writing)?))
        } else {
            (nothing()?, None)
        };
        let output = |wanted: bool| -> io::Result<(OwnedFd, Option<pipe::Receiver>)> {
            if !wanted {
                return Ok((nothing()?, None));
            }
            let (reading, writing) = pipe_with(PipeFlags::CLOEXEC)?;
            Ok((writing, Some(pipe::Receiver::from_owned_fd(reading)?)))
        };
        // By one output at least it is seen that the client is gone.
        let (their_stdout, stdout) = output(session.stdout.is_some() || session.stderr.is_none())?;
        let (their_stderr, stderr) = if tty {
            // A terminal has one output.
            (their_stdout.try_clone()?, None)
        } else {
            output(session.stderr.is_some())?
        };
        Ok(Self { theirs: [their_stdin, their_stdout, their_stderr], stdin, stdout, stderr })
    }
}

/// From the client to a program's stdin, which ends with the client's.
async fn feed(input: Option<mpsc::Receiver<Bytes>>, stdin: Option<pipe::Sender>) {
    let (Some(mut input), Some(mut stdin)) = (input, stdin) else { return };
    while let Some(bytes) = input.recv().await {
        if stdin.write_all(&bytes).await.is_err() {
            // The program reads no more; the client may go on, and is not held up.
            break;
        }
    }
}

/// From a program's output to the client, or to nobody.
async fn carry(output: Option<pipe::Receiver>, sink: Option<&Sink>) {
    let Some(mut output) = output else { return };
    let mut buffer = vec![0; PIECE];
    while let Ok(length @ 1..) = output.read(&mut buffer).await {
        if let Some(sink) = sink
            && sink.send(&buffer[..length]).await.is_err()
        {
            break;
        }
    }
}

/// Shows what a container writes from now on, until its run is over.
async fn show(pods: Arc<dyn Pods>, run: Run, session: &Session) -> End {
    let mut follower = Follower::new(pods, run, Begin::Time(now_ns()), true).await;
    loop {
        let lines = match follower.next().await {
            Ok(Some(lines)) => lines,
            Ok(None) => return End::Exited { code: 0, message: None },
            Err(why) => return End::Failed(format!("error attaching to container: {why}")),
        };
        for mut line in lines {
            let sink = match (line.stderr, &session.stderr) {
                (true, stderr) => stderr.as_ref(),
                (false, _) => session.stdout.as_ref(),
            };
            if !line.partial {
                line.text.push(b'\n');
            }
            if let Some(sink) = sink
                && sink.send(&line.text).await.is_err()
            {
                return End::Exited { code: 0, message: None };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(query: &str) -> Option<Wanted> {
        Wanted::of(&Query::parse(query).expect("a query"))
    }

    #[test]
    fn only_a_1_asks_for_a_stream_and_a_terminal_has_no_stderr() {
        let all = Wanted { stdin: true, stdout: true, stderr: true, tty: false };

        assert_eq!(wanted("input=1&output=1&error=1"), Some(all));
        let tty = Some(Wanted { stderr: false, tty: true, ..all });
        assert_eq!(wanted("input=1&output=1&error=1&tty=1"), tty);
        for none in ["", "output=true", "error=1&tty=1", "stdout=1"] {
            assert_eq!(wanted(none), None, "{none}");
        }
    }

    #[test]
    fn an_end_is_told_as_the_kubelet_tells_it() {
        let exited = |code| End::Exited { code, message: None };

        assert_eq!(told(&exited(0), Ends::Text), "");
        assert_eq!(told(&exited(0), Ends::Json), r#"{"metadata":{},"status":"Success"}"#);
        let text = told(&exited(3), Ends::Text);
        assert_eq!(text, "command terminated with non-zero exit code: exit status 3");
        let status: serde_json::Value =
            serde_json::from_str(&told(&exited(3), Ends::Json)).expect("JSON");
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));
        let status: serde_json::Value =
            serde_json::from_str(&told(&End::Failed("gone".into()), Ends::Json)).expect("JSON");
        assert_eq!(status["reason"], "InternalError");
        assert_eq!(status["message"], "Internal error occurred: gone");
    }
}
