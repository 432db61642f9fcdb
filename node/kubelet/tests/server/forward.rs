//! `/portForward`, over SPDY, over SPDY in a WebSocket, and over a WebSocket's channels; and SPDY's hostile clients.

use std::collections::BTreeMap;

use super::bench::{Bench, answering};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use futures::{SinkExt, StreamExt};
use http::StatusCode;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const FORWARD: &str = "/portForward/default/web";
const V1: &str = "portforward.k8s.io";
const DICTIONARY: &[u8] = include_bytes!("../../src/server/spdy/dictionary.bin");

/// A SPDY client that says what a test has it say.
pub(crate) struct Spdy<S> {
    stream: S,
    deflate: Compress,
    inflate: Decompress,
    streams: BTreeMap<u32, Seen>,
    pub(crate) pongs: Vec<u32>,
    /// The status of the server's GOAWAY.
    pub(crate) goodbye: Option<u32>,
}

/// What came on a stream.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) data: Vec<u8>,
    pub(crate) is_replied: bool,
    pub(crate) is_finished: bool,
    pub(crate) reset: Option<u32>,
}

pub(crate) async fn spdy(
    bench: &Bench,
    method: &str,
    path: &str,
    version: &str,
) -> Spdy<TokioIo<Upgraded>> {
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "SPDY/3.1"),
        ("x-stream-protocol-version", version),
    ];
    let answer = bench.upgrade(method, path, &headers).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.headers()["x-stream-protocol-version"], version);
    assert_eq!(answer.headers()["upgrade"], "SPDY/3.1");
    Spdy::new(TokioIo::new(hyper::upgrade::on(answer).await.expect("another protocol")))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Spdy<S> {
    pub(crate) fn new(stream: S) -> Self {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(DICTIONARY).expect("a dictionary");
        Self {
            stream,
            deflate,
            inflate: Decompress::new(true),
            streams: BTreeMap::new(),
            pongs: Vec::new(),
            goodbye: None,
        }
    }

    pub(crate) fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let length = |it: usize| u32::try_from(it).expect("short").to_be_bytes();
        let mut plain = length(headers.len()).to_vec();
        for (name, value) in headers {
            for text in [name, value] {
                plain.extend(length(text.len()));
                plain.extend(text.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(plain.len() + 1024);
        self.deflate.compress_vec(&plain, &mut block, FlushCompress::Sync).expect("compressed");
        block
    }

    pub(crate) async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let block = self.block(headers);
        self.control(1, 0, &[&id.to_be_bytes()[..], &[0; 6], &block].concat()).await;
    }

    pub(crate) async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) {
        let length = u32::from(flags) << 24 | u32::try_from(payload.len()).expect("short");
        let head = [&[0x80, 3], &kind.to_be_bytes()[..], &length.to_be_bytes()].concat();
        self.raw(&[&head, payload].concat()).await;
    }

    pub(crate) async fn data(&mut self, id: u32, data: &[u8], fin: bool) {
        let length = u32::from(fin) << 24 | u32::try_from(data.len()).expect("short");
        self.raw(&[&id.to_be_bytes()[..], &length.to_be_bytes(), data].concat()).await;
    }

    /// Nothing where the server has enough already.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// Reads a frame; false: the server has ended.
    pub(crate) async fn read(&mut self) -> bool {
        let mut head = [0; 8];
        if self.stream.read_exact(&mut head).await.is_err() {
            return false;
        }
        let word = u32::from_be_bytes(head[..4].try_into().expect("four"));
        let length =
            usize::try_from(u32::from_be_bytes(head[4..].try_into().expect("four")) & 0xff_ffff);
        let mut payload = vec![0; length.expect("fits")];
        if self.stream.read_exact(&mut payload).await.is_err() {
            return false;
        }
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four"));
        if word >> 31 == 0 {
            let stream = self.streams.entry(word).or_default();
            stream.data.extend(&payload);
            stream.is_finished |= head[4] & 1 != 0;
            return true;
        }
        assert_eq!(word >> 16, 0x8003);
        match word & 0xffff {
            2 => {
                let id = number(0);
                let mut plain = Vec::with_capacity(1024);
                let sync = FlushDecompress::Sync;
                let mut rest = &payload[4..];
                if let Err(error) = self.inflate.decompress_vec(rest, &mut plain, sync) {
                    assert!(error.needs_dictionary().is_some());
                    self.inflate.set_dictionary(DICTIONARY).expect("a dictionary");
                    rest = &rest[usize::try_from(self.inflate.total_in()).expect("fits")..];
                    self.inflate.decompress_vec(rest, &mut plain, sync).expect("a block");
                }
                assert_eq!(plain, [0; 4]);
                self.streams.entry(id).or_default().is_replied = true;
            }
            3 => self.streams.entry(number(0)).or_default().reset = Some(number(4)),
            6 => self.pongs.push(number(0)),
            7 => self.goodbye = Some(number(4)),
            other => panic!("frame {other}"),
        }
        true
    }

    /// Reads until a stream has come to this.
    pub(crate) async fn until(&mut self, id: u32, wanted: impl Fn(&Seen) -> bool) -> &Seen {
        while !self.streams.get(&id).is_some_and(&wanted) {
            assert!(self.read().await, "the server ended: {:?}", self.streams);
        }
        &self.streams[&id]
    }

    /// Reads until the server ends.
    pub(crate) async fn all(&mut self) -> &BTreeMap<u32, Seen> {
        while self.read().await {}
        &self.streams
    }

    async fn pair(&mut self, id: u32, port: &str) {
        let request = id.to_string();
        for (id, kind) in [(id, "error"), (id + 2, "data")] {
            let headers = [("streamtype", kind), ("port", port), ("requestid", &request)];
            self.open(id, &headers).await;
        }
        self.data(id, b"", true).await;
    }
}

/// A bench whose pod echoes on port 80 until it is told that no more comes.
async fn echoing() -> Bench {
    let bench = Bench::new().await;
    let echo = answering(|mut stream| async move {
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    bench.pods.ports.lock().expect("no panic").insert(80, echo);
    bench
}

#[tokio::test]
async fn connections_are_forwarded_side_by_side_and_each_side_s_end_is_the_other_s() {
    let bench = echoing().await;
    let mut client = spdy(&bench, "POST", FORWARD, V1).await;

    client.pair(1, "80").await;
    client.pair(5, "80").await;
    client.data(3, b"one", false).await;
    client.data(7, b"two", false).await;
    assert!(client.until(3, |it| it.data == b"one").await.is_replied);
    client.until(7, |it| it.data == b"two").await;
    client.data(3, b"", true).await;

    client.until(3, |it| it.is_finished).await;
    client.until(1, |it| it.is_finished && it.data.is_empty()).await;
    client.data(7, b" goes on", false).await;
    let seen = client.until(7, |it| it.data == b"two goes on").await;
    assert!(!seen.is_finished);
    client.control(6, 0, &9u32.to_be_bytes()).await;
    while client.pongs.is_empty() {
        assert!(client.read().await);
    }
    assert_eq!(client.pongs, [9]);
}

#[tokio::test]
async fn much_is_forwarded_unchanged_in_frames_of_any_size() {
    let bench = echoing().await;
    let mut client = spdy(&bench, "POST", FORWARD, V1).await;
    client.pair(1, "80").await;

    let mut sent = Vec::new();
    for size in [1, 70_000, 16_384, 0, 5] {
        let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        client.data(3, &data, false).await;
        sent.extend(data);
        let length = sent.len();
        client.until(3, |it| it.data.len() == length).await;
    }

    assert!(client.until(3, |_| true).await.data == sent);
}

#[tokio::test]
async fn a_port_where_nobody_answers_is_told_on_the_error_stream_and_others_go_on() {
    let bench = echoing().await;
    let mut client = spdy(&bench, "POST", FORWARD, V1).await;

    client.pair(1, "81").await;
    let seen = client.until(1, |it| it.reset.is_some()).await;
    let text = String::from_utf8_lossy(&seen.data).into_owned();
    assert!(text.starts_with("error forwarding port 81 to pod web_default, uid u-1: "), "{text}");
    client.until(3, |it| it.reset.is_some()).await;

    client.pair(5, "80").await;
    client.data(7, b"still", false).await;
    client.until(7, |it| it.data == b"still").await;
}

#[tokio::test]
async fn a_connection_that_the_client_breaks_off_is_broken_off_at_the_pod() {
    let bench = Bench::new().await;
    let (ended, mut end) = tokio::sync::mpsc::channel(1);
    let silent = answering(move |mut stream| {
        let ended = ended.clone();
        async move {
            let _ = stream.write_all(b"welcome").await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            ended.send(rest).await.expect("awaited");
        }
    })
    .await;
    bench.pods.ports.lock().expect("no panic").insert(80, silent);
    let mut client = spdy(&bench, "POST", FORWARD, V1).await;
    client.pair(1, "80").await;
    client.data(3, b"x", false).await;
    client.until(3, |it| it.data == b"welcome").await;

    client.control(3, 0, &[3u32.to_be_bytes(), 5u32.to_be_bytes()].concat()).await;

    assert!(end.recv().await.is_some());
    client.until(1, |it| it.is_finished).await;
}

#[tokio::test]
async fn spdy_runs_inside_a_websocket() {
    let bench = echoing().await;
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io"),
    ];
    let answer = bench.upgrade("GET", FORWARD, &headers).await;
    assert_eq!(answer.headers()["sec-websocket-protocol"], "SPDY/3.1+portforward.k8s.io");
    let upgraded = TokioIo::new(hyper::upgrade::on(answer).await.expect("another protocol"));
    let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
    let (inner, ours) = tokio::io::duplex(1024);
    let (mut reader, mut writer) = tokio::io::split(inner);
    tokio::spawn(async move {
        let mut buffer = [0; 1024];
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(data))) => {
                        writer.write_all(&data).await.expect("read");
                    }
                    _ => break,
                },
                length = reader.read(&mut buffer) => match length {
                    Ok(length @ 1..) => {
                        let message = Message::binary(buffer[..length].to_vec());
                        socket.send(message).await.expect("sent");
                    }
                    _ => break,
                },
            }
        }
    });
    let mut client = Spdy::new(ours);

    client.pair(1, "80").await;
    client.data(3, b"through", false).await;
    client.until(3, |it| it.data == b"through").await;
    client.data(3, b"", true).await;
    client.until(3, |it| it.is_finished).await;
}

#[tokio::test]
async fn ports_are_forwarded_by_a_websocket_s_channels() {
    let bench = echoing().await;
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "v4.channel.k8s.io"),
    ];
    let answer = bench.upgrade("GET", &format!("{FORWARD}?port=80,81"), &headers).await;
    let upgraded = TokioIo::new(hyper::upgrade::on(answer).await.expect("another protocol"));
    let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;

    socket.send(Message::binary(b"\x00hello".to_vec())).await.expect("sent");
    let mut channels: [Vec<u8>; 4] = Default::default();
    while channels[0].len() < 7 || channels[3].len() < 10 {
        match socket.next().await {
            Some(Ok(Message::Binary(data))) => channels[usize::from(data[0])].extend(&data[1..]),
            other => panic!("{other:?} after {channels:?}"),
        }
    }

    assert_eq!(channels[0], b"\x50\x00hello");
    assert_eq!(channels[1], b"\x50\x00");
    assert_eq!(channels[2], b"\x51\x00");
    assert!(channels[3].starts_with(b"\x51\x00error forwarding port 81"));
}

#[tokio::test]
async fn streams_that_make_no_sense_are_broken_off() {
    let bench = echoing().await;
    let mut client = spdy(&bench, "POST", FORWARD, V1).await;

    let wrong: [&[(&str, &str)]; 5] = [
        &[],
        &[("streamtype", "data")],
        &[("streamtype", "data"), ("port", "0")],
        &[("streamtype", "data"), ("port", "http")],
        &[("streamtype", "chat"), ("port", "80")],
    ];
    for (id, headers) in (1..).step_by(2).zip(wrong) {
        client.open(id, headers).await;
        client.until(id, |it| it.reset.is_some()).await;
    }
    client.open(21, &[("streamtype", "data"), ("port", "80"), ("requestid", "x")]).await;
    client.open(23, &[("streamtype", "data"), ("port", "80"), ("requestid", "x")]).await;
    client.until(23, |it| it.reset.is_some()).await;
    client.open(25, &[("streamtype", "error"), ("port", "80"), ("requestid", "x")]).await;
    client.data(21, b"and yet", false).await;
    client.until(21, |it| it.data == b"and yet").await;
}

#[tokio::test]
async fn a_breach_of_the_protocol_ends_the_connection() {
    let head = |kind: u16, length: u32| {
        [&[0x80, 3], &kind.to_be_bytes()[..], &length.to_be_bytes()].concat()
    };
    let table = [
        ("another version", [&[0x80, 2, 0, 6, 0, 0, 0, 4][..], &[0; 4]].concat()),
        ("a frame of 16 MiB", head(1, 0xff_ffff)),
        ("a SYN_STREAM without its fields", [&head(1, 4)[..], &[0; 4]].concat()),
        ("headers that are not compressed", [&head(1, 20)[..], &[0, 0, 0, 1], &[7; 16]].concat()),
        ("a reply to nothing", [&head(2, 4)[..], &[0, 0, 0, 2]].concat()),
        ("HTTP", b"GET /pods HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in table {
        let bench = Bench::new().await;
        let mut client = spdy(&bench, "POST", FORWARD, V1).await;

        client.raw(&bytes).await;
        if what == "HTTP" {
            // It reads as a long frame of a stream that is not there, in the middle of which the client ends.
            client.stream.shutdown().await.expect("shut");
        }

        client.all().await;
        assert_eq!(client.goodbye, Some(1), "{what}");
    }
}

#[tokio::test]
async fn ids_of_a_server_and_ids_again_are_breaches() {
    for ids in [&[2][..], &[1, 1], &[5, 3]] {
        let bench = echoing().await;
        let mut client = spdy(&bench, "POST", FORWARD, V1).await;

        for &id in ids {
            let request = id.to_string();
            let headers = [("streamtype", "error"), ("port", "80"), ("requestid", &request[..])];
            client.open(id, &headers).await;
        }

        client.all().await;
        assert_eq!(client.goodbye, Some(1), "{ids:?}");
    }
}

#[tokio::test]
async fn headers_that_swell_beyond_measure_end_the_connection() {
    let bench = echoing().await;
    let mut client = spdy(&bench, "POST", FORWARD, V1).await;

    let bomb = "a".repeat(1 << 20);
    client.open(1, &[("port", &bomb)]).await;

    client.all().await;
    assert_eq!(client.goodbye, Some(1));
}

#[tokio::test]
async fn more_streams_than_are_allowed_are_refused_and_the_others_go_on() {
    let bench = echoing().await;
    let mut client = spdy(&bench, "POST", FORWARD, V1).await;

    for id in (1..=1023).step_by(2) {
        let request = id.to_string();
        client.open(id, &[("streamtype", "error"), ("port", "80"), ("requestid", &request)]).await;
        client.until(id, |it| it.is_replied).await;
    }
    client.open(1025, &[("streamtype", "data"), ("port", "80"), ("requestid", "1")]).await;
    assert_eq!(client.until(1025, |it| it.reset.is_some()).await.reset, Some(3));
    client.control(6, 0, &1u32.to_be_bytes()).await;
    while client.pongs.is_empty() {
        assert!(client.read().await);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_either() {
    let bench = Bench::new().await;
    let flood =
        answering(|mut stream| async move { while stream.write_all(&[0; 65536]).await.is_ok() {} })
            .await;
    bench.pods.ports.lock().expect("no panic").insert(80, flood);
    let mut client = spdy(&bench, "POST", FORWARD, V1).await;
    client.pair(1, "80").await;

    // However late it reads, all is there, in order, and what it breaks off stops.
    client.until(3, |it| it.data.len() > 10 << 20).await;
    client.control(3, 0, &[3u32.to_be_bytes(), 5u32.to_be_bytes()].concat()).await;
    client.until(1, |it| it.is_finished).await;
}
