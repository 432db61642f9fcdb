//! `/exec` and `/attach`, over WebSockets and over SPDY.

use std::os::fd::OwnedFd;
use std::pin::Pin;

use super::bench::{Bench, line, piece, pod};
use super::forward::spdy;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::{SinkExt, StreamExt};
use http::StatusCode;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

const EXEC: &str = "/exec/default/web/app?command=run&command=a+b";

async fn open(bench: &Bench, path: &str, protocol: Option<&str>) -> Socket {
    let mut headers = vec![
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    headers.extend(protocol.map(|protocol| ("sec-websocket-protocol", protocol)));
    let answer = bench.upgrade("GET", path, &headers).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let chosen =
        answer.headers().get("sec-websocket-protocol").map(|it| it.to_str().expect("text"));
    assert_eq!(chosen, protocol);
    let upgraded = hyper::upgrade::on(answer).await.expect("another protocol");
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

/// What comes on each channel until the server closes, but empty messages; and how many of those came.
async fn all(socket: &mut Socket, base64: bool) -> ([Vec<u8>; 4], usize) {
    let (mut channels, mut empty) = <([Vec<u8>; 4], usize)>::default();
    while let Some(Ok(message)) = socket.next().await {
        let (channel, data) = match message {
            Message::Binary(data) if !base64 => (data[0], data[1..].to_vec()),
            Message::Text(text) if base64 => {
                (text.as_bytes()[0] - b'0', BASE64.decode(&text.as_bytes()[1..]).expect("base64"))
            }
            Message::Close(_) => continue,
            other => panic!("{other:?}"),
        };
        empty += usize::from(data.is_empty());
        channels[usize::from(channel)].extend(data);
    }
    (channels, empty)
}

fn is_by(bench: &Bench, program: fn(Io) -> Pin<Box<dyn Future<Output = i32> + Send>>) {
    *bench.pods.program.lock().expect("no panic") = Some(Box::new(move |args, streams| {
        let io = Io::new(args, streams);
        Box::pin(async move { Ok((program(io).await, None)) })
    }));
}

/// A program's side.
struct Io {
    args: Vec<String>,
    stdin: Option<pipe::Receiver>,
    stdout: Option<pipe::Sender>,
    stderr: Option<pipe::Sender>,
}

impl Io {
    fn new(args: Vec<String>, [stdin, stdout, stderr]: [OwnedFd; 3]) -> Self {
        // Without a pipe it is /dev/null.
        let stdin = pipe::Receiver::from_owned_fd(stdin).ok();
        let sender = |it| pipe::Sender::from_owned_fd(it).ok();
        Self { args, stdin, stdout: sender(stdout), stderr: sender(stderr) }
    }

    async fn out(&mut self, text: &[u8]) {
        self.stdout.as_mut().expect("asked for").write_all(text).await.expect("read");
    }
}

#[tokio::test]
async fn a_command_s_streams_and_its_end_are_carried_in_every_version_of_the_protocol() {
    for (protocol, base64, is_json) in [
        (Some("v5.channel.k8s.io"), false, true),
        (Some("v4.channel.k8s.io"), false, true),
        (Some("v4.base64.channel.k8s.io"), true, true),
        (Some("channel.k8s.io"), false, false),
        (Some("base64.channel.k8s.io"), true, false),
        (None, false, false),
    ] {
        let bench = Bench::new().await;
        is_by(&bench, |mut io| {
            Box::pin(async move {
                let args = format!("{:?}\n", io.args);
                io.out(args.as_bytes()).await;
                let mut word = [0; 3];
                io.stdin.as_mut().expect("asked for").read_exact(&mut word).await.expect("fed");
                io.out(&word).await;
                io.stderr.as_mut().expect("asked for").write_all(b"oops").await.expect("read");
                3
            })
        });
        let mut socket = open(&bench, &format!("{EXEC}&input=1&output=1&error=1"), protocol).await;

        let resize = br#"{"Width":80,"Height":25}"#;
        for (channel, data) in [(4u8, &resize[..]), (9, b"nothing"), (0, b"abc")] {
            let message = if base64 {
                Message::text(format!("{}{}", char::from(b'0' + channel), BASE64.encode(data)))
            } else {
                Message::binary([&[channel], data].concat())
            };
            socket.send(message).await.expect("sent");
        }
        let ([stdin, stdout, stderr, status], empty) = all(&mut socket, base64).await;

        assert_eq!(stdin, b"");
        assert_eq!(String::from_utf8_lossy(&stdout), "[\"run\", \"a b\"]\nabc", "{protocol:?}");
        assert_eq!(stderr, b"oops");
        assert_eq!(empty, 1, "one empty message tells that it is connected");
        if is_json {
            let status: Value = serde_json::from_slice(&status).expect("JSON");
            assert_eq!(status["status"], "Failure");
            assert_eq!(status["reason"], "NonZeroExitCode");
            assert_eq!(status["details"]["causes"][0]["message"], "3");
        } else {
            let text = String::from_utf8_lossy(&status);
            assert_eq!(text, "command terminated with non-zero exit code: exit status 3");
        }
        let execs = bench.pods.execs.lock().expect("no panic");
        assert_eq!(execs[0].container.as_deref(), Some("app"));
    }
}

#[tokio::test]
async fn a_command_that_ends_well_says_success_and_only_wanted_streams_are_carried() {
    let bench = Bench::new().await;
    is_by(&bench, |mut io| {
        Box::pin(async move {
            assert!(io.stdin.is_none() && io.stderr.is_none());
            io.out(b"done").await;
            0
        })
    });

    let mut socket = open(&bench, &format!("{EXEC}&output=1"), Some("v4.channel.k8s.io")).await;
    let ([_, stdout, _, status], _) = all(&mut socket, false).await;

    assert_eq!(stdout, b"done");
    assert_eq!(status, br#"{"metadata":{},"status":"Success"}"#);
}

#[tokio::test]
async fn the_end_of_a_client_s_stdin_is_the_end_of_the_command_s() {
    let bench = Bench::new().await;
    is_by(&bench, |mut io| {
        Box::pin(async move {
            let mut all = Vec::new();
            let mut stdin = io.stdin.take().expect("asked for");
            stdin.read_to_end(&mut all).await.expect("an end");
            let counted = format!("{} bytes", all.len());
            io.out(counted.as_bytes()).await;
            0
        })
    });
    let mut socket =
        open(&bench, &format!("{EXEC}&input=1&output=1"), Some("v5.channel.k8s.io")).await;

    for _ in 0..100 {
        let message = [&[0], &[7; 5000][..]].concat();
        socket.send(Message::binary(message)).await.expect("sent");
    }
    socket.send(Message::binary(vec![255, 0])).await.expect("sent");

    let ([_, stdout, ..], _) = all(&mut socket, false).await;
    assert_eq!(stdout, b"500000 bytes");
}

#[tokio::test]
async fn all_that_a_command_wrote_arrives_however_much_it_is() {
    let bench = Bench::new().await;
    is_by(&bench, |mut io| {
        Box::pin(async move {
            for number in 0..50_000 {
                io.out(format!("{number}\n").as_bytes()).await;
            }
            0
        })
    });

    let mut socket = open(&bench, &format!("{EXEC}&output=1"), Some("v4.channel.k8s.io")).await;
    let ([_, stdout, ..], _) = all(&mut socket, false).await;

    let expected: String = (0..50_000).map(|number| format!("{number}\n")).collect();
    assert!(stdout == expected.as_bytes());
}

#[tokio::test]
async fn both_outputs_of_a_terminal_are_one() {
    let bench = Bench::new().await;
    is_by(&bench, |mut io| {
        Box::pin(async move {
            io.out(b"out ").await;
            io.stderr.as_mut().expect("the same").write_all(b"err").await.expect("read");
            0
        })
    });

    let path = format!("{EXEC}&output=1&error=1&tty=1");
    let mut socket = open(&bench, &path, Some("v4.channel.k8s.io")).await;
    let ([_, stdout, stderr, _], _) = all(&mut socket, false).await;

    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out err"[..], &b""[..]));
}

#[tokio::test]
async fn a_client_that_leaves_breaks_the_command_s_pipes() {
    for is_polite in [true, false] {
        let bench = Bench::new().await;
        let (ended, mut end) = mpsc::channel(1);
        let ended: mpsc::Sender<bool> = ended;
        *bench.pods.program.lock().expect("no panic") = Some(Box::new(move |args, streams| {
            let (mut io, ended) = (Io::new(args, streams), ended.clone());
            Box::pin(async move {
                // In a task of its own, as a runner's guest is.
                tokio::spawn(async move {
                    let mut rest = Vec::new();
                    let mut stdin = io.stdin.take().expect("asked for");
                    stdin.read_to_end(&mut rest).await.expect("an end");
                    let mut stdout = io.stdout.take().expect("asked for");
                    while stdout.write_all(b"x").await.is_ok() {}
                    ended.send(true).await.expect("awaited");
                });
                std::future::pending().await
            })
        }));
        let path = format!("{EXEC}&input=1&output=1");
        let mut socket = open(&bench, &path, Some("v4.channel.k8s.io")).await;
        socket.send(Message::binary(vec![0, 1])).await.expect("sent");

        if is_polite {
            socket.close(None).await.expect("closed");
        }
        drop(socket);

        assert_eq!(end.recv().await, Some(true));
    }
}

#[tokio::test]
async fn a_message_beyond_measure_ends_the_session() {
    let bench = Bench::new().await;
    is_by(&bench, |_| Box::pin(std::future::pending()));
    let path = format!("{EXEC}&input=1&output=1");
    let mut socket = open(&bench, &path, Some("v4.channel.k8s.io")).await;

    let _ = socket.send(Message::binary(vec![0; 2 << 20])).await;

    while let Some(Ok(message)) = socket.next().await {
        assert!(message.is_close() || message.len() <= 1, "{message:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_run_is_said_on_the_error_channel() {
    let bench = Bench::new().await;

    let mut socket = open(&bench, &format!("{EXEC}&output=1"), Some("v4.channel.k8s.io")).await;
    let ([.., status], _) = all(&mut socket, false).await;

    let status: Value = serde_json::from_slice(&status).expect("JSON");
    assert_eq!(status["reason"], "InternalError");
    let text = status["message"].as_str().expect("text");
    assert!(text.ends_with("error executing command in container: no program"), "{text}");
}

#[tokio::test]
async fn a_handshake_that_is_none_is_refused() {
    let bench = Bench::new().await;
    let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let version = ("sec-websocket-version", "13");
    let upgrade = [("connection", "Upgrade"), ("upgrade", "websocket")];

    for (more, status) in [
        (vec![], 400),
        (vec![key], 400),
        (vec![version], 400),
        (vec![version, ("sec-websocket-key", "short")], 400),
        (vec![("sec-websocket-version", "8"), key], 400),
        (vec![version, key, ("sec-websocket-protocol", "chat")], 403),
    ] {
        let headers = [&upgrade[..], &more[..]].concat();
        let answer = bench.upgrade("GET", &format!("{EXEC}&output=1"), &headers).await;
        assert_eq!(answer.status().as_u16(), status, "{more:?}");
    }
}

#[tokio::test]
async fn attach_shows_what_is_written_from_now_on_until_the_run_is_over() {
    let bench = Bench::new().await;
    bench.pods.lines.lock().expect("no panic").insert(1, vec![line(1, "of long ago")]);
    let (more, comes) = mpsc::channel(1);
    *bench.pods.more.lock().expect("no panic") = Some(comes);
    let path = "/attach/default/web/app?output=1&error=1";
    let mut socket = open(&bench, path, Some("v4.channel.k8s.io")).await;

    while bench.pods.asked.lock().expect("no panic").is_empty() {
        tokio::task::yield_now().await;
    }

    let far = 4_000_000_000;
    let mut said = line(far, "bad");
    said.stderr = true;
    let said = vec![line(far, "good"), said];
    // In the log before anybody is told of them: whoever sees first that the run is over finds them there.
    bench.pods.lines.lock().expect("no panic").insert(1, said.clone());
    more.send(piece(1, said)).await.expect("followed");
    drop(more);
    let over = pod(
        json!({"terminated": {"exitCode": 0, "containerID": "copepod://u-1/app/1"}}),
        json!({}),
    );
    *bench.pods.pods.lock().expect("no panic") = vec![over];

    let ([_, stdout, stderr, status], _) = all(&mut socket, false).await;
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"good\n"[..], &b"bad\n"[..]));
    assert_eq!(status, br#"{"metadata":{},"status":"Success"}"#);
}

#[tokio::test]
async fn a_command_runs_over_spdy_too() {
    for (version, is_json) in [("v4.channel.k8s.io", true), ("v2.channel.k8s.io", false)] {
        let bench = Bench::new().await;
        is_by(&bench, |mut io| {
            Box::pin(async move {
                let mut all = Vec::new();
                let mut stdin = io.stdin.take().expect("asked for");
                stdin.read_to_end(&mut all).await.expect("an end");
                io.out(&all).await;
                io.stderr.as_mut().expect("asked for").write_all(b"oops").await.expect("read");
                5
            })
        });
        let path = format!("{EXEC}&input=1&output=1&error=1");
        let mut client = spdy(&bench, "POST", &path, version).await;

        for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
            client.open(id, &[("streamtype", kind)]).await;
        }
        client.data(3, b"hello", false).await;
        client.data(3, b"", true).await;
        let streams = client.all().await;

        assert_eq!(streams[&5].data, b"hello");
        assert_eq!(streams[&7].data, b"oops");
        let status = String::from_utf8_lossy(&streams[&1].data).into_owned();
        if is_json {
            let status: Value = serde_json::from_str(&status).expect("JSON");
            assert_eq!(status["details"]["causes"][0]["message"], "5");
        } else {
            assert_eq!(status, "command terminated with non-zero exit code: exit status 5");
        }
        for id in [1, 5, 7] {
            assert!(streams[&id].is_replied && streams[&id].is_finished, "{id}");
        }
    }
}
