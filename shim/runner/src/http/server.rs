//! One container's listeners, connections and end.
//!
//! A listener costs one task and one descriptor; everything else comes with a connection and goes with it. Absent:
//! requests (`respond`) and who decides that the container is to stop (the runner, by [`Server::drain`] and `stop`).

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use copepod_net::{Listener, PodStream};
use copepod_shim::protocol::HttpSettings;
use futures::FutureExt;
use http::{HeaderValue, Request, Response, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::Instant;

use crate::exit::End;
use crate::ledger::{Charge, Ledger};

use super::body::Answer;
use super::gate::Gate;
use super::idle::Idle;
use super::paced::{PacedIo, STANDSTILL};
use super::respond::{Guests, KEEP_INSTANCE, Used, busy, respond};

/// Open connections of one container; the next ones wait in the listeners' backlogs. `wasmtime serve` has the same number.
const MAX_CONNECTIONS: usize = 1_000;

/// The most that hyper buffers of one HTTP/1.1 connection, in each direction; also the longest head. nginx takes 32 KiB.
pub(crate) const BUFFER: usize = 64 << 10;

/// HTTP/2 streams of one connection at a time: what RFC 9113 recommends not to go below.
const STREAMS: u32 = 100;

/// What one HTTP/2 stream may send ahead of its reader, in each direction: RFC 9113's default.
const STREAM_WINDOW: u32 = 64 << 10;

/// What all streams of an HTTP/2 connection may send ahead: four full streams.
const CONNECTION_WINDOW: u32 = 256 << 10;

/// The longest head of an HTTP/2 request, as it lies in memory.
const HEADER_LIST: u32 = 64 << 10;

/// What a connection is charged, in bytes: its task, hyper's state and first buffer of 8 KiB, a small request and a small answer.
pub(crate) const CONNECTION_COST: u64 = 16 << 10;

/// What one that speaks HTTP/2 is charged on top: its windows, and small answers of all its streams.
const HTTP_2_COST: u64 = 512 << 10;

/// An answer of at most so many bytes is covered by what its connection is charged.
const SMALL: u64 = 4 << 10;

/// How long a connection without a request is kept while draining: what was sent before the client could know is served.
const LINGER: Duration = Duration::from_millis(100);

/// The same where another runner accepts in this one's place: nobody waits for the end, and a client that comes back within this time
/// is told in an answer, where it might otherwise have sent a request that nobody reads.
const LINGER_BEHIND_ANOTHER: Duration = Duration::from_secs(5);

/// A pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How an HTTP component is served, parsed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Requests that an instance serves, at least one.
    pub(crate) reuse: u32,
    /// From a request's head to its response's.
    pub(crate) timeout: Duration,
}

/// What the server is doing.
///
/// ```text
/// Serving ──drain──▶ Draining ──▶ Stopped
///    └───────── stop, or the container's end ──▲
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Listening.
    Serving,
    /// No new connection; requests in work go on until then. `shared`: another runner accepts on the listeners, which stay as they are.
    Draining { by: Instant, shared: bool },
    /// Everything is dropped.
    Stopped,
}

/// What all connections of a container share.
pub(crate) struct Shared<G: Guests> {
    pub(crate) guests: G,
    pub(crate) settings: Settings,
    pub(crate) idle: Idle<Used<G::Instance>>,
    /// The newest trap's text.
    pub(crate) last_trap: Mutex<String>,
    gate: Mutex<Gate<oneshot::Sender<()>>>,
    /// Every listener, connection and stream holds a receiver: when none is left, all have ended.
    phase: watch::Sender<Phase>,
    connections: Arc<Semaphore>,
    http: auto::Builder<Streams>,
    tasks: Streams,
    end: Mutex<Option<End>>,
    ending: watch::Sender<Option<End>>,
    deadline_moved: Notify,
}

impl<G: Guests> Shared<G> {
    pub(crate) fn gate(&self) -> MutexGuard<'_, Gate<oneshot::Sender<()>>> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` until it ends or the server stops; the server is not done before.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.execute(work);
    }

    /// The container ends, for this reason unless it has one already. Everything is dropped.
    pub(crate) fn end(self: &Arc<Self>, end: End) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(end);
        self.advance(Phase::Stopped);
    }

    /// Moves on; never back. The first move starts the one task that sees the end.
    fn advance(self: &Arc<Self>, to: Phase) {
        let mut first = false;
        let moved = self.phase.send_if_modified(|phase| {
            let next = match (*phase, to) {
                (Phase::Stopped, _) | (_, Phase::Serving) => return false,
                (Phase::Draining { by: old, .. }, Phase::Draining { by: new, .. })
                    if new >= old =>
                {
                    return false;
                }
                (Phase::Draining { shared, .. }, Phase::Draining { by, .. }) => {
                    Phase::Draining { by, shared }
                }
                (_, next) => next,
            };
            first = *phase == Phase::Serving;
            *phase = next;
            true
        });
        if first {
            tokio::spawn(finish(self.clone()));
        } else if moved {
            self.deadline_moved.notify_one();
        }
    }
}

/// Waits until nothing of the server is left, by the deadline, and says how it ended.
async fn finish<G: Guests>(shared: Arc<Shared<G>>) {
    let mut in_work = 0;
    loop {
        let phase = *shared.phase.borrow();
        let over = async {
            match phase {
                Phase::Draining { by, .. } => tokio::time::sleep_until(by).await,
                Phase::Serving | Phase::Stopped => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shared.phase.closed() => break,
            () = shared.deadline_moved.notified() => {}
            () = over => {
                in_work = shared.gate().in_work();
                shared.advance(Phase::Stopped);
            }
        }
    }
    shared.idle.close();
    let stopped = *shared.phase.borrow() == Phase::Stopped;
    let end = shared.end.lock().unwrap_or_else(PoisonError::into_inner).take();
    let end = end.unwrap_or_else(|| if stopped { killed(in_work) } else { End::with(0) });
    shared.ending.send_replace(Some(end));
}

/// Dropped before it was drained.
fn killed(in_work: u32) -> End {
    let mut end = End::killed();
    if in_work > 0 {
        end.message = format!("{}; requests in work: {in_work}", end.message);
    }
    end
}

/// A served container.
pub(crate) struct Serving<G: Guests> {
    shared: Arc<Shared<G>>,
}

impl<G: Guests> Serving<G> {
    /// Serves `guests` on `listeners`, at once.
    pub(crate) fn start(guests: G, listeners: Vec<Listener>, http: &HttpSettings) -> Self {
        let (phase, receiver) = watch::channel(Phase::Serving);
        let shared = Arc::new(Shared {
            guests,
            settings: Settings {
                reuse: http.reuse.max(1),
                timeout: Duration::from_millis(http.timeout_ms),
            },
            idle: Idle::new(KEEP_INSTANCE, usize::MAX),
            last_trap: Mutex::default(),
            gate: Mutex::new(Gate::new(http.concurrency, http.queue)),
            http: builder(Streams { phase: phase.clone() }),
            tasks: Streams { phase: phase.clone() },
            phase,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            end: Mutex::new(None),
            ending: watch::Sender::new(None),
            deadline_moved: Notify::new(),
        });
        for listener in listeners {
            tokio::spawn(accept(shared.clone(), listener, receiver.clone()));
        }
        Self { shared }
    }

    /// Stops listening, lets requests in work end, and drops what is left at the deadline. A later call may only bring
    /// the deadline nearer.
    pub(crate) fn drain(&self, by: Instant) {
        self.shared.advance(Phase::Draining { by, shared: false });
    }

    /// [`Serving::drain`], where another runner accepts on the listeners from now on: they are let go of as they are.
    pub(crate) fn leave(&self, by: Instant) {
        self.shared.advance(Phase::Draining { by, shared: true });
    }

    /// Drops everything now.
    pub(crate) fn stop(&self) {
        self.shared.advance(Phase::Stopped);
    }

    /// How it ended, once nothing of it is left.
    pub(crate) fn done(&self) -> impl Future<Output = End> + Send + use<G> {
        let mut ending = self.shared.ending.subscribe();
        async move {
            let end = ending.wait_for(Option::is_some).await.map(|end| end.clone());
            // Without a sender the server was dropped unasked, which ends it as `stop` does.
            end.ok().flatten().unwrap_or_else(|| killed(0))
        }
    }

    /// Requests in work now.
    pub(crate) fn in_work(&self) -> u32 {
        self.shared.gate().in_work()
    }

    /// Bytes of the task that an idle listener keeps, its descriptor and the kernel's part not counted.
    #[cfg(test)]
    pub(crate) fn size_of_accepting(&self, listener: Listener) -> usize {
        let phase = self.shared.phase.subscribe();
        std::mem::size_of_val(&accept(self.shared.clone(), listener, phase))
    }

    /// A connection without a socket.
    #[cfg(test)]
    pub(crate) fn connect(&self, buffer: usize) -> tokio::io::DuplexStream {
        let (ours, theirs) = tokio::io::duplex(buffer);
        let local = SocketAddr::from(([10, 64, 0, 7], 8080));
        start(&self.shared, ours, local, None);
        theirs
    }

    /// Instances that wait for a request now.
    #[cfg(test)]
    pub(crate) fn idle_instances(&self) -> usize {
        self.shared.idle.len()
    }
}

impl<G: Guests> Drop for Serving<G> {
    fn drop(&mut self) {
        if tokio::runtime::Handle::try_current().is_ok() {
            self.stop();
        }
    }
}

fn builder(streams: Streams) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(streams);
    builder
        .http1()
        .max_buf_size(BUFFER)
        // `connection` has one timer for a connection, where this would set one for each request.
        .header_read_timeout(None);
    builder
        .http2()
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .max_header_list_size(HEADER_LIST);
    builder
}

/// Runs what is no connection, such as a stream of an HTTP/2 connection, until it ends or the server stops.
#[derive(Clone)]
struct Streams {
    phase: watch::Sender<Phase>,
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let mut phase = self.phase.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = stream => {}
                _ = phase.wait_for(|phase| *phase == Phase::Stopped) => {}
            }
        });
    }
}

/// Takes connections from one listener while the container serves.
async fn accept<G: Guests>(
    shared: Arc<Shared<G>>,
    listener: Listener,
    mut phase: watch::Receiver<Phase>,
) {
    let local = listener.address();
    loop {
        let next = async {
            // Never closed, so there is always a permit in the end.
            let permit = shared.connections.clone().acquire_owned().await.ok();
            (listener.accept().await, permit)
        };
        let accepted = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => None,
            accepted = next => Some(accepted),
        };
        match accepted {
            Some((Ok((stream, _)), permit)) => start_tcp(&shared, stream, local, permit),
            // Closed by its pod.
            Some((Err(error), _)) if error.kind() == io::ErrorKind::InvalidInput => break,
            Some((Err(error), _)) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            None => break,
        }
    }
    let last = *phase.borrow();
    if let Phase::Draining { shared: true, .. } = last {
        // Who stands in the backlog is the other runner's.
        return;
    }
    if last != Phase::Stopped {
        listener.turn_away().await;
    }
    // Who stands in the backlog has been told by the kernel that it is connected: it is served, too.
    while *phase.borrow() != Phase::Stopped
        && let Ok(permit) = shared.connections.clone().try_acquire_owned()
        && let Some(Ok((stream, _))) = listener.accept().now_or_never()
    {
        start_tcp(&shared, stream, local, Some(permit));
    }
}

fn start_tcp<G: Guests>(
    shared: &Arc<Shared<G>>,
    stream: PodStream,
    local: SocketAddr,
    permit: Option<OwnedSemaphorePermit>,
) {
    // Fails only on a connection that is already gone, which the first read will tell.
    let _ = stream.tcp().set_nodelay(true);
    start(shared, stream, local, permit);
}

/// Serves a connection, or closes it where the container's memory has no room for it.
fn start<G: Guests>(
    shared: &Arc<Shared<G>>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    local: SocketAddr,
    permit: Option<OwnedSemaphorePermit>,
) {
    let Some(_held) = shared.guests.ledger().reserve(CONNECTION_COST) else {
        shared.guests.tell("a connection was closed: there is no memory left for it");
        return;
    };
    let phase = shared.phase.subscribe();
    let entered = Entered { _permit: permit, _held };
    tokio::spawn(connection(shared.clone(), stream, local, entered, phase));
}

/// What a connection takes of its container as long as it lasts.
struct Entered {
    _permit: Option<OwnedSemaphorePermit>,
    _held: Charge,
}

/// What a connection's own clock looks at.
#[derive(Default)]
struct Tally {
    /// Requests begun.
    begun: AtomicU32,
    /// Requests whose response is not through.
    in_work: AtomicU32,
    /// Frames of responses handed over.
    frames: AtomicU32,
    /// Responses of which a frame was handed over and the next not yet asked for: the client is to read.
    unread: AtomicU32,
    /// The connection is being closed: an answer says so.
    closing: AtomicBool,
    /// What HTTP/2 is charged, from its first request on.
    http_2: OnceLock<Charge>,
}

impl Tally {
    /// Changes with all that a client brings about.
    fn moved(&self) -> (u32, u32) {
        (self.begun.load(Ordering::Relaxed), self.frames.load(Ordering::Relaxed))
    }

    /// Books what a request makes the host hold until its response is through; none where there is no room.
    fn book<B: Body>(&self, request: &Request<B>, ledger: &Arc<Ledger>) -> Option<Option<Charge>> {
        if request.version() == Version::HTTP_2 && self.http_2.get().is_none() {
            // Of two at once one is given back.
            let _ = self.http_2.set(ledger.reserve(HTTP_2_COST)?);
        }
        if request.body().is_end_stream() {
            return Some(None);
        }
        // What the guest has not read yet.
        ledger.reserve(BUFFER as u64).map(Some)
    }
}

/// Serves one connection to its end.
async fn connection<G: Guests>(
    shared: Arc<Shared<G>>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    local: SocketAddr,
    entered: Entered,
    mut phase: watch::Receiver<Phase>,
) {
    if *phase.borrow() != Phase::Serving {
        // It came out of the backlog of a listener that is closed already.
        phase.mark_changed();
    }
    let tally = Arc::new(Tally::default());
    let service = service_fn(|request| {
        let (shared, tally) = (shared.clone(), tally.clone());
        async move {
            tally.begun.fetch_add(1, Ordering::Relaxed);
            tally.in_work.fetch_add(1, Ordering::Relaxed);
            let counted = Counted(tally);
            let is_http_1 = request.version() < Version::HTTP_2;
            let (mut response, held) = booked(&shared, local, request, &counted.0).await;
            if is_http_1 && counted.0.closing.load(Ordering::Relaxed) {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(response.map(|body| {
                let (unread, _held) = (false, held);
                CountedBody { body, unread, counted, _held }
            }))
        }
    });
    let ledger = shared.guests.ledger().clone();
    let io = PacedIo::new(TokioIo::new(stream), ledger, BUFFER as u64);
    let mut http = pin!(shared.http.serve_connection(io, service));

    let mut clock = pin!(tokio::time::sleep(STANDSTILL));
    let mut before = (0, 0);
    let mut closing = false;
    loop {
        tokio::select! {
            biased;
            ended = http.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke");
                }
                break;
            }
            changed = phase.changed() => {
                if changed.is_err() || *phase.borrow_and_update() == Phase::Stopped {
                    break;
                }
                if std::mem::replace(&mut closing, true) {
                    continue;
                }
                let linger = match *phase.borrow() {
                    Phase::Draining { by, shared: true } => {
                        let left = by.saturating_duration_since(Instant::now());
                        LINGER_BEHIND_ANOTHER.min(left / 2)
                    }
                    _ => LINGER,
                };
                tally.closing.store(true, Ordering::Relaxed);
                if tally.in_work.load(Ordering::Relaxed) > 0 {
                    http.as_mut().graceful_shutdown();
                } else {
                    clock.as_mut().reset(Instant::now() + linger);
                    tokio::select! {
                        biased;
                        _ = http.as_mut() => break,
                        _ = phase.wait_for(|phase| *phase == Phase::Stopped) => break,
                        () = clock.as_mut() => http.as_mut().graceful_shutdown(),
                    }
                }
                clock.as_mut().reset(Instant::now() + STANDSTILL);
            }
            () = clock.as_mut() => {
                let now = tally.moved();
                let waits_for_client = tally.in_work.load(Ordering::Relaxed) == 0
                    || tally.unread.load(Ordering::Relaxed) > 0;
                if now == before && waits_for_client {
                    // Idle, or dripping a head, or reading nothing: it has had its time.
                    break;
                }
                before = now;
                clock.as_mut().reset(Instant::now() + STANDSTILL);
            }
        }
    }
    drop(entered);
}

/// What is charged for a request and its response until that is through.
type Held = (Option<Charge>, Option<Charge>);

/// Answers a request if the container's memory has room for what it makes the host hold, and for its response.
async fn booked<G: Guests>(
    shared: &Arc<Shared<G>>,
    local: SocketAddr,
    request: Request<Incoming>,
    tally: &Tally,
) -> (Response<Answer<G>>, Held) {
    let ledger = shared.guests.ledger();
    let Some(of_request) = tally.book(&request, ledger) else {
        shared.guests.tell("a request was refused: there is no memory left for it");
        return (busy("there is no memory left for the request\n"), (None, None));
    };
    let response = respond(shared, local, request).await;
    let weight = response.body().weight();
    if weight <= SMALL {
        return (response, (of_request, None));
    }
    match ledger.reserve(weight) {
        Some(of_response) => (response, (of_request, Some(of_response))),
        None => {
            shared.guests.tell("a response was dropped: there is no memory left for it");
            (busy("there is no memory left for the response\n"), (None, None))
        }
    }
}

/// A response's body; its request is in work until this is dropped.
struct CountedBody<B> {
    body: B,
    unread: bool,
    counted: Counted,
    _held: Held,
}

impl<B> CountedBody<B> {
    fn set_unread(&mut self, unread: bool) {
        let tally = &self.counted.0;
        match (std::mem::replace(&mut self.unread, unread), unread) {
            (false, true) => tally.unread.fetch_add(1, Ordering::Relaxed),
            (true, false) => tally.unread.fetch_sub(1, Ordering::Relaxed),
            (true, true) | (false, false) => 0,
        };
    }
}

impl<B> Drop for CountedBody<B> {
    fn drop(&mut self) {
        self.set_unread(false);
    }
}

impl<B: Body + Unpin> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        let handed_over = matches!(polled, Poll::Ready(Some(Ok(_))));
        this.set_unread(handed_over);
        if handed_over {
            this.counted.0.frames.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request in work on a connection.
struct Counted(Arc<Tally>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.in_work.fetch_sub(1, Ordering::Relaxed);
    }
}
