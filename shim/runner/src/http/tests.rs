//! The server with closures for guests, over connections without sockets, on a paused clock.
//!
//! Absent: wasm, which `component_tests` serves over real sockets.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use copepod_shim::protocol::{ExitReason, HttpSettings};
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use wasmtime_wasi_http::{Error, WasiBody};

use crate::exit::End;
use crate::ledger::Ledger;

use super::paced::STANDSTILL;
use super::respond::{Fault, Guests, Head, KEEP_INSTANCE, RequestBody};
use super::server::{BUFFER, CONNECTION_COST, Serving};

type Handler = Box<
    dyn Fn(Request<RequestBody>, oneshot::Sender<Head>) -> BoxFuture<'static, Result<(), Fault>>
        + Send
        + Sync,
>;

/// A component whose handler is a closure.
struct Fake {
    handler: Handler,
    seen: Arc<Seen>,
    ledger: Arc<Ledger>,
}

/// What tests look at.
#[derive(Default)]
struct Seen {
    instantiated: AtomicU32,
    dropped: AtomicU32,
    told: Mutex<Vec<String>>,
}

impl Seen {
    fn instantiated(&self) -> u32 {
        self.instantiated.load(Ordering::Relaxed)
    }

    fn alive(&self) -> u32 {
        self.instantiated() - self.dropped.load(Ordering::Relaxed)
    }

    fn told(&self, part: &str) -> bool {
        self.told.lock().expect("unpoisoned").iter().any(|line| line.contains(part))
    }
}

struct FakeInstance(Arc<Seen>);

impl Drop for FakeInstance {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl Guests for Fake {
    type Instance = FakeInstance;

    async fn instantiate(&self) -> Result<FakeInstance, Fault> {
        self.seen.instantiated.fetch_add(1, Ordering::Relaxed);
        Ok(FakeInstance(self.seen.clone()))
    }

    async fn handle(
        &self,
        _: &mut FakeInstance,
        request: Request<RequestBody>,
        head: oneshot::Sender<Head>,
    ) -> Result<(), Fault> {
        (self.handler)(request, head).await
    }

    fn metered<F: Future + Send>(&self, future: F) -> impl Future<Output = F::Output> + Send {
        future
    }

    fn answered(&self) {}

    fn tell(&self, line: &str) {
        self.seen.told.lock().expect("unpoisoned").push(line.to_owned());
    }

    fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

const SETTINGS: HttpSettings =
    HttpSettings { reuse: 1, concurrency: 8, queue: 8, timeout_ms: 10_000 };

fn serving<F, R>(settings: HttpSettings, handler: F) -> (Serving<Fake>, Arc<Seen>)
where
    F: Fn(Request<RequestBody>, oneshot::Sender<Head>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), Fault>> + Send + 'static,
{
    serving_within(Ledger::new(u64::MAX), settings, handler)
}

/// With so much memory.
fn serving_within<F, R>(
    ledger: Arc<Ledger>,
    settings: HttpSettings,
    handler: F,
) -> (Serving<Fake>, Arc<Seen>)
where
    F: Fn(Request<RequestBody>, oneshot::Sender<Head>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), Fault>> + Send + 'static,
{
    let seen = Arc::new(Seen::default());
    let handler: Handler = Box::new(move |request, head| Box::pin(handler(request, head)));
    let fake = Fake { handler, seen: seen.clone(), ledger };
    (Serving::start(fake, Vec::new(), &settings), seen)
}

fn whole(text: &'static str) -> Head {
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    Ok(Response::new(body.map_err(|never: Infallible| match never {}).boxed_unsync()))
}

/// A response whose body goes on while its sender lives; one chunk may lie ahead of the reader.
fn streamed() -> (mpsc::Sender<Bytes>, Head) {
    let (sender, receiver) = mpsc::channel(1);
    let frames = futures::stream::unfold(receiver, |mut receiver| async {
        let chunk: Bytes = receiver.recv().await?;
        Some((Ok::<_, Error>(Frame::data(chunk)), receiver))
    });
    let body: WasiBody = StreamBody::new(frames).boxed_unsync();
    (sender, Ok(Response::new(body)))
}

fn trap() -> Result<(), Fault> {
    Err(Fault::Trap("unreachable".to_owned()))
}

type Client = http1::SendRequest<Empty<Bytes>>;

async fn client(stream: DuplexStream) -> Client {
    let (client, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    client
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::get(path).header("host", "shop.example").body(Empty::new()).expect("a request")
}

struct Received {
    status: StatusCode,
    headers: HeaderMap,
    body: Result<Bytes, hyper::Error>,
}

impl Received {
    fn text(&self) -> &str {
        let body = self.body.as_ref().expect("a whole body");
        std::str::from_utf8(body).expect("text")
    }
}

async fn receive(response: Response<hyper::body::Incoming>) -> Received {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes);
    Received { status: parts.status, headers: parts.headers, body }
}

async fn get(serving: &Serving<Fake>, path: &str) -> Received {
    let mut client = client(serving.connect(64 << 10)).await;
    receive(client.send_request(request(path)).await.expect("a response")).await
}

/// What comes back for these bytes, until the server closes.
async fn raw(serving: &Serving<Fake>, bytes: &str) -> String {
    let mut stream = serving.connect(64 << 10);
    stream.write_all(bytes.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    answer
}

/// Lets every task go as far as it comes without time passing.
async fn settle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_response_comes_with_its_length() {
    let (serving, seen) = serving(SETTINGS, async |_, head| {
        let _ = head.send(whole("hello"));
        Ok(())
    });

    let received = get(&serving, "/").await;

    assert_eq!((received.status, received.text()), (StatusCode::OK, "hello"));
    assert_eq!(received.headers["content-length"], "5");
    assert_eq!((seen.instantiated(), seen.alive(), serving.in_work()), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn by_default_every_request_has_an_instance_of_its_own() {
    let (serving, seen) = serving(SETTINGS, async |_, head| {
        let _ = head.send(whole("hello"));
        Ok(())
    });

    for _ in 0..3 {
        get(&serving, "/").await;
    }

    assert_eq!(seen.instantiated(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_reused_instance_serves_so_many_requests_and_goes() {
    let settings = HttpSettings { reuse: 3, ..SETTINGS };
    let (serving, seen) = serving(settings, async |_, head| {
        let _ = head.send(whole("hello"));
        Ok(())
    });

    for _ in 0..7 {
        get(&serving, "/").await;
    }

    assert_eq!((seen.instantiated(), seen.alive()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_waits_too_long_goes() {
    let settings = HttpSettings { reuse: 3, ..SETTINGS };
    let (serving, seen) = serving(settings, async |_, head| {
        let _ = head.send(whole("hello"));
        Ok(())
    });
    get(&serving, "/").await;
    assert_eq!(serving.idle_instances(), 1);

    tokio::time::sleep(2 * KEEP_INSTANCE).await;

    assert_eq!((serving.idle_instances(), seen.alive()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_request_was_given_up_is_never_used_again() {
    let settings = HttpSettings { reuse: 100, ..SETTINGS };
    let (serving, seen) = serving(settings, async |_, _| std::future::pending().await);

    let received = get(&serving, "/").await;

    assert_eq!(received.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!((seen.alive(), serving.idle_instances(), serving.in_work()), (0, 0, 0));
    assert!(seen.told("no response within 10000 ms"));
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_concurrency_wait_and_beyond_the_queue_are_refused() {
    let settings = HttpSettings { concurrency: 1, queue: 1, ..SETTINGS };
    let open = Arc::new(Notify::new());
    let gate = open.clone();
    let (serving, _) = serving(settings, move |_, head| {
        let gate = gate.clone();
        async move {
            gate.notified().await;
            let _ = head.send(whole("done"));
            Ok(())
        }
    });
    let mut first = client(serving.connect(4096)).await;
    let mut second = client(serving.connect(4096)).await;
    let first = tokio::spawn(first.send_request(request("/1")));
    settle().await;
    let second = tokio::spawn(second.send_request(request("/2")));
    settle().await;

    let third = get(&serving, "/3").await;

    assert_eq!(third.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(third.headers["retry-after"], "1");
    assert!(!second.is_finished());
    open.notify_one();
    assert_eq!(first.await.expect("joined").expect("a response").status(), StatusCode::OK);
    settle().await;
    open.notify_one();
    assert_eq!(second.await.expect("joined").expect("a response").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_longer_than_a_response_may_take_is_refused() {
    let settings = HttpSettings { concurrency: 1, timeout_ms: 1000, ..SETTINGS };
    let (serving, _) = serving(settings, async |_, head: oneshot::Sender<Head>| {
        let (_sender, streamed) = streamed();
        let _ = head.send(streamed);
        std::future::pending().await
    });
    let mut first = client(serving.connect(4096)).await;
    let _streaming = first.send_request(request("/")).await.expect("a head");

    let waited = get(&serving, "/").await;

    assert_eq!(waited.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn a_guest_whose_client_goes_away_is_dropped_and_its_place_is_free() {
    let (serving, seen) = serving(SETTINGS, async |_, _| std::future::pending().await);
    let mut client = client(serving.connect(4096)).await;
    let waiting = tokio::spawn(client.send_request(request("/")));
    settle().await;
    assert_eq!((seen.alive(), serving.in_work()), (1, 1));

    drop(client);
    waiting.abort();
    settle().await;

    assert_eq!((seen.alive(), serving.in_work()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_response_is_passed_on_while_the_guest_writes_it() {
    let (serving, _) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        let (sender, streamed) = streamed();
        let _ = head.send(streamed);
        for chunk in ["one ", "two ", "three"] {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = sender.send(Bytes::from_static(chunk.as_bytes())).await;
        }
        Ok(())
    });
    let mut client = client(serving.connect(4096)).await;
    let mut response = client.send_request(request("/")).await.expect("a head");
    let start = Instant::now();

    let mut seconds = Vec::new();
    while let Some(frame) = response.body_mut().frame().await {
        assert!(frame.expect("a frame").is_data());
        seconds.push(start.elapsed().as_secs());
    }

    assert_eq!(seconds, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_its_guest_back() {
    let written = Arc::new(AtomicU32::new(0));
    let counted = written.clone();
    let (serving, _) = serving(SETTINGS, move |_, head| {
        let counted = counted.clone();
        async move {
            let (sender, streamed) = streamed();
            let _ = head.send(streamed);
            let chunk = Bytes::from(vec![0; 16 << 10]);
            while sender.send(chunk.clone()).await.is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    });
    let mut client = client(serving.connect(4096)).await;
    let response = client.send_request(request("/")).await.expect("a head");

    settle().await;

    // hyper's buffer of 64 KiB, the client's buffers, and what the guest has ahead.
    let ahead = written.load(Ordering::Relaxed);
    assert!(ahead < 64, "{ahead} chunks of 16 KiB");
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_loses_its_connection_and_the_guest_its_work() {
    let (serving, seen) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        let (sender, streamed) = streamed();
        let _ = head.send(streamed);
        while sender.send(Bytes::from(vec![0; 16 << 10])).await.is_ok() {}
        Ok(())
    });
    let mut stream = serving.connect(4096);
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("written");
    settle().await;
    assert_eq!(seen.alive(), 1);

    tokio::time::sleep(STANDSTILL + Duration::from_secs(1)).await;

    assert_eq!((seen.alive(), serving.in_work()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_trap_before_the_response_is_500_and_told() {
    let (serving, seen) = serving(SETTINGS, async |_, _| trap());

    let received = get(&serving, "/").await;

    assert_eq!(received.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(seen.told("a request ended its instance: unreachable"));
}

#[tokio::test(start_paused = true)]
async fn a_trap_after_the_head_but_before_it_was_sent_is_500_too() {
    let (serving, _) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        let _ = head.send(whole("hello"));
        trap()
    });

    assert_eq!(get(&serving, "/").await.status, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_a_trap_cut_off_does_not_look_complete() {
    let (serving, _) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        let (sender, streamed) = streamed();
        let _ = head.send(streamed);
        let _ = sender.send(Bytes::from_static(b"half")).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        trap()
    });

    let received = get(&serving, "/").await;

    assert_eq!(received.status, StatusCode::OK);
    assert!(received.body.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_is_500_and_told() {
    let (serving, seen) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        drop(head);
        Ok(())
    });

    let received = get(&serving, "/").await;

    assert_eq!(received.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(seen.told("without a response"));
}

#[tokio::test(start_paused = true)]
async fn five_fresh_instances_that_trap_in_a_row_end_the_container() {
    let (serving, _) = serving(SETTINGS, async |_, _| trap());
    let done = tokio::spawn(serving.done());
    for _ in 0..4 {
        get(&serving, "/").await;
    }
    settle().await;
    assert!(!done.is_finished());

    let mut last = client(serving.connect(4096)).await;
    let _ = last.send_request(request("/")).await;

    let end = done.await.expect("joined");
    assert_eq!((end.code, end.reason), (134, ExitReason::Trapped));
    assert!(end.message.contains("unreachable"), "{}", end.message);
}

#[tokio::test(start_paused = true)]
async fn a_container_out_of_memory_ends() {
    let (serving, _) = serving(SETTINGS, async |_, _| {
        Err(Fault::OutOfMemory(End {
            code: 137,
            reason: ExitReason::OutOfMemory,
            message: "the limit is 1 MiB".to_owned(),
        }))
    });
    let mut client = client(serving.connect(4096)).await;

    let _ = client.send_request(request("/")).await;

    let end = serving.done().await;
    assert_eq!((end.code, end.reason), (137, ExitReason::OutOfMemory));
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_room_for_an_instance_the_client_may_come_again() {
    let (serving, _) = serving(SETTINGS, async |_, _| Err(Fault::NoRoom("pool".to_owned())));

    for _ in 0..9 {
        assert_eq!(get(&serving, "/").await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test(start_paused = true)]
async fn draining_lets_requests_in_work_end_and_says_that_the_connection_closes() {
    let (serving, _) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let _ = head.send(whole("done"));
        Ok(())
    });
    let mut client = client(serving.connect(4096)).await;
    let asked = tokio::spawn(client.send_request(request("/")));
    settle().await;

    serving.drain(Instant::now() + Duration::from_secs(30));

    let received = receive(asked.await.expect("joined").expect("a response")).await;
    assert_eq!(
        (received.text(), &received.headers["connection"]),
        ("done", &"close".parse().expect("a value"))
    );
    assert_eq!(serving.done().await, End::with(0));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_on_its_way_when_the_draining_began_is_served() {
    let (serving, _) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        let _ = head.send(whole("done"));
        Ok(())
    });
    let mut client = client(serving.connect(4096)).await;
    receive(client.send_request(request("/")).await.expect("a response")).await;
    serving.drain(Instant::now() + Duration::from_secs(30));
    settle().await;

    let late = client.send_request(request("/late")).await;

    assert_eq!(late.expect("a response").status(), StatusCode::OK);
    assert_eq!(serving.done().await, End::with(0));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_does_not_hold_the_draining_up() {
    let (serving, _) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        let _ = head.send(whole("done"));
        Ok(())
    });
    let mut client = client(serving.connect(4096)).await;
    receive(client.send_request(request("/")).await.expect("a response")).await;
    let start = Instant::now();

    serving.drain(start + Duration::from_secs(30));

    assert_eq!(serving.done().await, End::with(0));
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_what_is_left_is_dropped() {
    let (serving, seen) = serving(SETTINGS, async |_, _| std::future::pending().await);
    let mut client = client(serving.connect(4096)).await;
    let asked = tokio::spawn(client.send_request(request("/")));
    settle().await;

    serving.drain(Instant::now() + Duration::from_secs(5));

    let end = serving.done().await;
    assert_eq!((end.code, end.reason), (137, ExitReason::Killed));
    assert!(end.message.contains("requests in work: 1"), "{}", end.message);
    assert_eq!(seen.alive(), 0);
    assert!(asked.await.expect("joined").is_err());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_may_come_nearer_and_not_move_away() {
    let (serving, _) = serving(SETTINGS, async |_, _| std::future::pending().await);
    let mut client = client(serving.connect(4096)).await;
    let _asked = tokio::spawn(client.send_request(request("/")));
    settle().await;
    let start = Instant::now();

    serving.drain(start + Duration::from_secs(8));
    serving.drain(start + Duration::from_secs(3));
    serving.drain(start + Duration::from_secs(9));

    serving.done().await;
    assert_eq!(start.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn stopping_drops_everything_at_once() {
    let (serving, seen) = serving(SETTINGS, async |_, _| std::future::pending().await);
    let mut client = client(serving.connect(4096)).await;
    let _asked = tokio::spawn(client.send_request(request("/")));
    settle().await;

    serving.stop();

    assert_eq!(serving.done().await.code, 137);
    assert_eq!((seen.alive(), serving.in_work()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_guest_may_go_on_after_its_response_and_draining_waits_for_it() {
    let (serving, seen) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        let _ = head.send(whole("early"));
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok(())
    });
    let start = Instant::now();

    let received = get(&serving, "/").await;
    settle().await;

    assert_eq!(received.text(), "early");
    assert_eq!((start.elapsed().as_secs(), seen.alive()), (0, 1));
    serving.drain(start + Duration::from_secs(30));
    assert_eq!(serving.done().await, End::with(0));
    assert_eq!((start.elapsed().as_secs(), seen.alive()), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_goes_on_for_ever_after_its_response_is_ended() {
    let (serving, seen) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        let _ = head.send(whole("early"));
        std::future::pending().await
    });
    assert_eq!(get(&serving, "/").await.text(), "early");

    tokio::time::sleep(Duration::from_millis(2 * SETTINGS.timeout_ms)).await;

    assert_eq!((seen.alive(), serving.in_work()), (0, 0));
    assert!(seen.told("work after the response"));
}

#[tokio::test(start_paused = true)]
async fn a_head_request_lets_its_guest_come_to_the_end() {
    let ended = Arc::new(AtomicU32::new(0));
    let counted = ended.clone();
    let (serving, _) = serving(SETTINGS, move |_, head: oneshot::Sender<Head>| {
        let counted = counted.clone();
        async move {
            let (sender, streamed) = streamed();
            let _ = head.send(streamed);
            for _ in 0..9 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sender.send(Bytes::from_static(b"x")).await.expect("somebody takes it");
            }
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    });
    let mut client = client(serving.connect(4096)).await;
    let head = Request::head("/").header("host", "a").body(Empty::new()).expect("a request");

    let response = client.send_request(head).await.expect("a response");
    tokio::time::sleep(Duration::from_secs(10)).await;

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(ended.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_body_is_read_as_it_comes() {
    let (serving, _) =
        serving(SETTINGS, async |request: Request<RequestBody>, head: oneshot::Sender<Head>| {
            let (sender, streamed) = streamed();
            let _ = head.send(streamed);
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data() {
                    let _ = sender.send(data).await;
                }
            }
            Ok(())
        });
    let mut stream = serving.connect(4096);
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head).await.expect("written");
    let mut seen = String::new();

    for chunk in ["4\r\nping\r\n", "4\r\npong\r\n", "0\r\n\r\n"] {
        stream.write_all(chunk.as_bytes()).await.expect("written");
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).await.expect("read");
        seen.push_str(std::str::from_utf8(&buffer[..length]).expect("text"));
    }

    assert!(seen.contains("ping") && seen.ends_with("pong\r\n0\r\n\r\n"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn a_request_body_that_stands_still_fails_for_the_guest() {
    let settings = HttpSettings { timeout_ms: 300_000, ..SETTINGS };
    let (serving, _) =
        serving(settings, async |request: Request<RequestBody>, head: oneshot::Sender<Head>| {
            let read = request.into_body().collect().await;
            let _ = head.send(whole(if read.is_err() { "cut" } else { "whole" }));
            Ok(())
        });
    let mut stream = serving.connect(4096);
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\npart";

    stream.write_all(head).await.expect("written");
    let mut buffer = vec![0; 4096];
    let length = stream.read(&mut buffer).await.expect("read");

    assert!(String::from_utf8_lossy(&buffer[..length]).ends_with("cut"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_drips_its_head_or_nothing_is_closed() {
    let (serving, _) = serving(SETTINGS, async |_, _| Ok(()));
    let mut dripping = serving.connect(4096);
    let mut silent = serving.connect(4096);
    let mut answer = Vec::new();

    let drip = async {
        for byte in
            b"GET / HTTP/1.1\r\nhost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        {
            if dripping.write_all(&[*byte]).await.is_err() {
                return true;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        false
    };

    assert!(drip.await);
    assert_eq!(silent.read_to_end(&mut answer).await.expect("closed"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_honest_request_is_400_and_closes_the_connection() {
    let (serving, seen) = serving(SETTINGS, async |_, _| Ok(()));

    // H09 and H12 of reliability.md.
    for bytes in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        "GET http://other/ HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nx",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n z\r\n\r\n",
        "GET / HTTP/1.1\nhost: a\rx\n\n",
    ] {
        let answer = raw(&serving, bytes).await;

        assert!(
            answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.0 400"),
            "{bytes:?}: {answer:?}"
        );
    }
    assert_eq!(seen.instantiated(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_too_large_or_has_too_many_lines_is_431() {
    let (serving, _) = serving(SETTINGS, async |_, _| Ok(()));
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(70 << 10));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(1000));

    for bytes in [long, many] {
        let mut stream = serving.connect(256 << 10);
        stream.write_all(bytes.as_bytes()).await.expect("written");
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await.expect("read");

        assert!(answer[..length].starts_with(b"HTTP/1.1 431"));
    }
}

#[tokio::test(start_paused = true)]
async fn http_2_by_prior_knowledge_runs_the_streams_of_a_connection_at_the_same_time() {
    let (serving, _) =
        serving(SETTINGS, async |request: Request<RequestBody>, head: oneshot::Sender<Head>| {
            assert_eq!(
                request.uri().authority().map(http::uri::Authority::as_str),
                Some("shop.example")
            );
            tokio::time::sleep(Duration::from_secs(5)).await;
            let _ = head.send(whole("done"));
            Ok(())
        });
    let io = TokioIo::new(serving.connect(64 << 10));
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), io).await.expect("a handshake");
    let connection = tokio::spawn(connection);
    let ask =
        || Request::get("http://shop.example/a").body(Empty::<Bytes>::new()).expect("a request");
    let start = Instant::now();

    let (one, two) = (client.send_request(ask()), client.send_request(ask()));
    let (one, two) = tokio::join!(one, two);

    assert_eq!(receive(one.expect("a response")).await.text(), "done");
    assert_eq!(receive(two.expect("a response")).await.text(), "done");
    assert_eq!(start.elapsed().as_secs(), 5);
    serving.drain(start + Duration::from_secs(30));
    connection.await.expect("joined").expect("closed by GOAWAY");
    assert_eq!(serving.done().await, End::with(0));
}

#[tokio::test(start_paused = true)]
async fn stopping_ends_the_streams_of_http_2_connections_too() {
    let (serving, seen) = serving(SETTINGS, async |_, _| std::future::pending().await);
    let io = TokioIo::new(serving.connect(64 << 10));
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), io).await.expect("a handshake");
    tokio::spawn(connection);
    let ask = Request::get("http://a/").body(Empty::<Bytes>::new()).expect("a request");
    let asked = tokio::spawn(client.send_request(ask));
    settle().await;
    assert_eq!(seen.alive(), 1);

    serving.stop();

    assert_eq!(serving.done().await.code, 137);
    assert_eq!(seen.alive(), 0);
    assert!(asked.await.expect("joined").is_err());
}

#[tokio::test(start_paused = true)]
async fn a_body_whose_declared_length_is_a_lie_is_500() {
    let (serving, _) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        let mut lie = whole("12345").expect("a response");
        lie.headers_mut().insert("content-length", 10.into());
        assert!(!lie.body().is_end_stream());
        let _ = head.send(Ok(lie));
        Ok(())
    });

    assert_eq!(get(&serving, "/").await.status, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test(start_paused = true)]
async fn an_http_2_client_that_opens_no_window_loses_its_connection() {
    let (serving, seen) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        let (sender, streamed) = streamed();
        let _ = head.send(streamed);
        while sender.send(Bytes::from(vec![0; 16 << 10])).await.is_ok() {}
        Ok(())
    });
    let io = TokioIo::new(serving.connect(64 << 10));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1024);
    let (mut client, connection) = builder.handshake(io).await.expect("a handshake");
    tokio::spawn(connection);
    let ask = Request::get("http://a/").body(Empty::<Bytes>::new()).expect("a request");
    let _unread = client.send_request(ask).await.expect("a head");
    settle().await;
    assert_eq!(seen.alive(), 1);

    // H11 of reliability.md.
    tokio::time::sleep(3 * STANDSTILL).await;

    assert_eq!((seen.alive(), serving.in_work()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_slow_to_write_keeps_its_connection() {
    let (serving, _) = serving(SETTINGS, async |_, head: oneshot::Sender<Head>| {
        let (sender, streamed) = streamed();
        let _ = head.send(streamed);
        for _ in 0..3 {
            tokio::time::sleep(5 * STANDSTILL).await;
            let _ = sender.send(Bytes::from_static(b"x")).await;
        }
        Ok(())
    });

    assert_eq!(get(&serving, "/").await.text(), "xxx");
}

#[tokio::test]
async fn an_idle_listener_costs_one_small_task() {
    let (serving, _) = serving(SETTINGS, async |_, _| Ok(()));
    let net = copepod_net::PodNet::new(&sandbox());
    let listener = net.listen("web", 0).expect("listening").remove(0);

    let bytes = serving.size_of_accepting(listener);

    assert!(bytes <= 1024, "{bytes} bytes");
}

fn sandbox() -> copepod_shim::protocol::PodSandbox {
    copepod_shim::protocol::PodSandbox {
        pod: "p".into(),
        name: "p".into(),
        namespace: "default".into(),
        ipv4: Some([127, 79, 0, 1].into()),
        ipv6: None,
        loopback: [127, 80, 0, 1].into(),
        hostname: "p".into(),
        hosts: Vec::new(),
        dns: copepod_shim::protocol::Dns::default(),
        denied: Vec::new(),
        max_sockets: 8,
    }
}

/// A response of so many bytes, all of them there.
fn large(bytes: usize) -> Head {
    let body = Full::new(Bytes::from(vec![b'x'; bytes]));
    Ok(Response::new(body.map_err(|never: Infallible| match never {}).boxed_unsync()))
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_charged_and_a_small_response_costs_nothing_more() {
    let ledger = Ledger::new(CONNECTION_COST);
    let (serving, _) = serving_within(ledger.clone(), SETTINGS, async |_, head| {
        let _ = head.send(whole("hello"));
        Ok(())
    });
    let mut kept = client(serving.connect(64 << 10)).await;

    let received = receive(kept.send_request(request("/")).await.expect("a response")).await;

    assert_eq!(received.text(), "hello");
    assert_eq!(ledger.used(), CONNECTION_COST);
    drop(kept);
    settle().await;
    assert_eq!(ledger.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_response_is_charged_until_its_client_has_read_it() {
    let ledger = Ledger::new(u64::MAX);
    let (serving, seen) = serving_within(ledger.clone(), SETTINGS, async |_, head| {
        let _ = head.send(large(300 << 10));
        Ok(())
    });
    let mut slow = client(serving.connect(1 << 10)).await;

    let response = slow.send_request(request("/")).await.expect("a response");
    settle().await;

    let held = ledger.used() - CONNECTION_COST;
    assert_eq!(seen.alive(), 0, "the guest has long ended");
    assert!(held >= 64 << 10, "{held}");
    assert_eq!(receive(response).await.body.expect("a whole body").len(), 300 << 10);
    settle().await;
    assert_eq!(ledger.used(), CONNECTION_COST);
}

#[tokio::test(start_paused = true)]
async fn a_response_for_which_there_is_no_memory_is_503_and_the_container_is_not_at_fault() {
    let ledger = Ledger::new(CONNECTION_COST + (64 << 10));
    let (serving, seen) = serving_within(ledger.clone(), SETTINGS, async |request, head| {
        let _ = head.send(large(if request.uri() == "/large" { 100 << 10 } else { 10 << 10 }));
        Ok(())
    });

    assert_eq!(get(&serving, "/large").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&serving, "/").await.status, StatusCode::OK);
    assert!(seen.told("no memory left"));
    assert!(!ledger.exceeded());
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_body_the_guest_does_not_read_is_charged_for_what_is_buffered() {
    let ledger = Ledger::new(u64::MAX);
    let (serving, _) = serving_within(ledger.clone(), SETTINGS, async |_, head| {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = head.send(whole("late"));
        Ok(())
    });
    let mut stream = serving.connect(64 << 10);

    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nbegin";
    stream.write_all(head.as_bytes()).await.expect("written");
    settle().await;

    assert_eq!(ledger.used(), CONNECTION_COST + BUFFER as u64);
}

#[tokio::test(start_paused = true)]
async fn a_connection_for_which_there_is_no_memory_is_closed() {
    let ledger = Ledger::new(CONNECTION_COST);
    let (serving, seen) = serving_within(ledger.clone(), SETTINGS, async |_, head| {
        let _ = head.send(whole("hello"));
        Ok(())
    });
    let _first = client(serving.connect(64 << 10)).await;

    let mut second = serving.connect(64 << 10);
    let mut answer = Vec::new();
    second.read_to_end(&mut answer).await.expect("closed");

    assert!(answer.is_empty());
    assert!(seen.told("no memory left"));
}
