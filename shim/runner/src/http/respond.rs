//! From a request to its response: through the gate, into an instance, and back with the head.
//!
//! The guest runs in the task that asks for its response: a connection's (HTTP/1.1) or a stream's (HTTP/2). Absent: wasm.
//! What an instance is, [`Guests`] says; `guests` has the real ones, the tests have closures.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;

use copepod_shim::protocol::ExitReason;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::Instant;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;

use crate::exit::End;
use crate::ledger::Ledger;

use super::body::{Answer, Live, Tail, Whole};
use super::gate::{Arrival, Ended, TRAPS_IN_A_ROW, Ticket, Verdict};
use super::head;
use super::idle::{Put, keep_sweeping};
use super::paced::{PacedBody, STANDSTILL};
use super::server::Shared;

/// What a guest is given to say its response's head with.
pub(crate) type Head = Result<Response<WasiBody>, ErrorCode>;

/// The body of a request, as a guest reads it.
pub(crate) type RequestBody = PacedBody<Incoming>;

/// How long an instance may wait for its next request: as long as `wasmtime serve` keeps one (engine.md 4).
pub(crate) const KEEP_INSTANCE: Duration = Duration::from_secs(1);

/// An instance with the number of requests that it has served.
pub(crate) struct Used<I> {
    /// The instance.
    pub(crate) instance: I,
    /// Requests served, at least one.
    pub(crate) served: u32,
}

/// A guest at work on one request.
pub(crate) type Run<G> = Pin<Box<dyn Future<Output = Finished<G>> + Send>>;

/// Where instances come from.
pub(crate) trait Guests: Send + Sync + 'static {
    /// One instance.
    type Instance: Send + 'static;

    /// A new instance.
    fn instantiate(&self) -> impl Future<Output = Result<Self::Instance, Fault>> + Send;

    /// Has `instance` serve one request; `head` is used when the guest sets its response. Ends when the guest returns.
    fn handle(
        &self,
        instance: &mut Self::Instance,
        request: Request<RequestBody>,
        head: oneshot::Sender<Head>,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Runs a guest's future under the container's CPU accounts.
    fn metered<F: Future + Send>(&self, future: F) -> impl Future<Output = F::Output> + Send;

    /// A request got its response's head, from the guest or in its place.
    fn answered(&self);

    /// Tells the container's owner, by its log, why a request failed.
    fn tell(&self, line: &str);

    /// The container's memory, on which is booked what its clients make the host hold.
    fn ledger(&self) -> &Arc<Ledger>;
}

/// Why an instance could not serve a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The guest trapped, or left with a code other than 0; with the backtrace.
    Trap(String),
    /// The container is past its memory limit: it ends.
    OutOfMemory(End),
    /// The runner has no room for an instance now.
    NoRoom(String),
}

/// A request that was let in. Its place is free again when this is dropped.
pub(crate) struct Permit<G: Guests> {
    shared: Arc<Shared<G>>,
    ended: Ended,
}

impl<G: Guests> Drop for Permit<G> {
    fn drop(&mut self) {
        let (next, verdict) = self.shared.gate().leave(self.ended);
        wake(next);
        if verdict == Verdict::GiveUp {
            let mut last_trap =
                self.shared.last_trap.lock().unwrap_or_else(PoisonError::into_inner);
            let message = std::mem::take(&mut *last_trap);
            drop(last_trap);
            self.shared.end(gave_up(&message));
        }
    }
}

fn gave_up(last_trap: &str) -> End {
    End {
        code: 134,
        reason: ExitReason::Trapped,
        message: format!(
            "{TRAPS_IN_A_ROW} fresh instances in a row trapped; the last: {last_trap}"
        ),
    }
}

fn wake(next: Option<oneshot::Sender<()>>) {
    // Where nobody listens any more, that one's `Waiting` passes the place on.
    let _ = next.map(|next| next.send(()));
}

/// A request in the queue.
struct Waiting<'a, G: Guests> {
    shared: &'a Arc<Shared<G>>,
    ticket: Ticket,
    entered: bool,
}

impl<G: Guests> Drop for Waiting<'_, G> {
    fn drop(&mut self) {
        if !self.entered {
            let next = self.shared.gate().abandon(self.ticket);
            wake(next);
        }
    }
}

/// Waits for a place; none where too many wait already.
async fn enter<G: Guests>(shared: &Arc<Shared<G>>) -> Option<Permit<G>> {
    let permit = || Permit { shared: shared.clone(), ended: Ended::Dropped };
    let mut call = None;
    let arrival = shared.gate().arrive(|| {
        let (sender, receiver) = oneshot::channel();
        call = Some(receiver);
        sender
    });
    match (arrival, call) {
        (Arrival::Enter, _) => Some(permit()),
        (Arrival::Wait(ticket), Some(call)) => {
            let mut waiting = Waiting { shared, ticket, entered: false };
            call.await.ok()?;
            waiting.entered = true;
            Some(permit())
        }
        (Arrival::Wait(_), None) | (Arrival::Refuse, _) => None,
    }
}

/// A guest that is through with a request, and what it leaves behind.
pub(crate) struct Finished<G: Guests> {
    used: Option<Used<G::Instance>>,
    fault: Option<Fault>,
    permit: Permit<G>,
}

impl<G: Guests> Finished<G> {
    /// Whether the guest trapped or the like.
    pub(crate) fn failed(&self) -> bool {
        self.fault.is_some()
    }

    /// Keeps the instance for another request where it may serve one, and frees the place.
    pub(crate) fn settle(self, reusable: bool) {
        let Self { used, fault, permit } = self;
        let shared = &permit.shared;
        let more =
            |used: &Used<_>| reusable && fault.is_none() && used.served < shared.settings.reuse;
        if let Some(used) = used.filter(more)
            && shared.idle.put(used, Instant::now().into_std()) == Put::Sweep
        {
            let shared = Arc::downgrade(shared);
            tokio::spawn(keep_sweeping(KEEP_INSTANCE, move || {
                shared.upgrade().is_some_and(|shared| shared.idle.sweep(Instant::now().into_std()))
            }));
        }
        // The place goes last: who gets it finds the instance.
        drop(permit);
    }
}

/// Has an instance serve the request.
async fn run<G: Guests>(
    mut permit: Permit<G>,
    request: Request<RequestBody>,
    head: oneshot::Sender<Head>,
) -> Finished<G> {
    let shared = permit.shared.clone();
    let (known, served) = match shared.idle.take() {
        Some(Used { instance, served }) => (Some(instance), served),
        None => (None, 0),
    };
    let guests = &shared.guests;
    let outcome = guests
        .metered(async {
            let mut instance = match known {
                Some(instance) => instance,
                None => guests.instantiate().await?,
            };
            guests.handle(&mut instance, request, head).await?;
            Ok(instance)
        })
        .await;
    match outcome {
        Ok(instance) => {
            permit.ended = Ended::Served;
            Finished { used: Some(Used { instance, served: served + 1 }), fault: None, permit }
        }
        Err(fault) => {
            match &fault {
                Fault::Trap(trap) => {
                    permit.ended = Ended::Trapped { fresh: served == 0 };
                    guests.tell(&format!("a request ended its instance: {trap}"));
                    let mut last = shared.last_trap.lock().unwrap_or_else(PoisonError::into_inner);
                    last.clone_from(trap);
                }
                Fault::OutOfMemory(end) => shared.end(end.clone()),
                Fault::NoRoom(why) => guests.tell(&format!("no instance could be made: {why}")),
            }
            Finished { used: None, fault: Some(fault), permit }
        }
    }
}

/// Answers one request, whatever it is and whatever the guest does.
pub(crate) async fn respond<G: Guests>(
    shared: &Arc<Shared<G>>,
    local: SocketAddr,
    request: Request<Incoming>,
) -> Response<Answer<G>> {
    let response = in_time(shared, local, request).await;
    shared.guests.answered();
    response
}

async fn in_time<G: Guests>(
    shared: &Arc<Shared<G>>,
    local: SocketAddr,
    mut request: Request<Incoming>,
) -> Response<Answer<G>> {
    if let Err(refusal) = head::judge(&mut request, local) {
        let mut response = plain(refusal.status, refusal.why);
        // What follows on the connection is not to be believed either. In HTTP/2 the header has no place.
        if request.version() < http::Version::HTTP_2 {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        return response;
    }
    let mut entered = false;
    match tokio::time::timeout(shared.settings.timeout, serve(shared, request, &mut entered)).await
    {
        Ok(response) => response,
        Err(_) if entered => {
            let limit = shared.settings.timeout.as_millis();
            shared.guests.tell(&format!("no response within {limit} ms: the instance was ended"));
            plain(StatusCode::GATEWAY_TIMEOUT, "the component did not answer in time\n")
        }
        Err(_) => busy("too many requests are in work\n"),
    }
}

async fn serve<G: Guests>(
    shared: &Arc<Shared<G>>,
    request: Request<Incoming>,
    entered: &mut bool,
) -> Response<Answer<G>> {
    let Some(permit) = enter(shared).await else {
        return busy("too many requests are waiting\n");
    };
    *entered = true;
    let bodiless = request.method() == Method::HEAD;
    let request = request.map(|body| PacedBody::new(body, STANDSTILL));
    let (sender, mut head) = oneshot::channel();
    let mut run: Run<G> = Box::pin(run(permit, request, sender));

    let mut finished = None;
    let head = poll_fn(|context| {
        if let Poll::Ready(through) = run.as_mut().poll(context) {
            finished = Some(through);
            return Poll::Ready(head.try_recv().ok());
        }
        // The guest sets its head from within its own future: there is nobody else to wake this one.
        match head.try_recv() {
            Ok(head) => Poll::Ready(Some(head)),
            Err(_) => Poll::Pending,
        }
    })
    .await;

    match (head, finished) {
        (Some(Ok(response)), None) => live(shared, response, run, bodiless),
        (Some(Ok(response)), Some(finished)) => whole(shared, response, finished, bodiless),
        (Some(Err(code)), finished) => {
            shared.guests.tell(&format!("the component answered with an error: {code:?}"));
            // What it does after that is of no use to anybody.
            if let Some(finished) = finished {
                finished.settle(true);
            }
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the component answered with an error\n")
        }
        (None, Some(finished)) => {
            let response = match &finished.fault {
                Some(Fault::Trap(_)) => trapped(),
                Some(Fault::OutOfMemory(_)) => {
                    plain(StatusCode::INTERNAL_SERVER_ERROR, "the component is out of memory\n")
                }
                Some(Fault::NoRoom(_)) => busy("there is no room for another instance\n"),
                None => {
                    shared.guests.tell("the component returned without a response");
                    plain(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "the component returned without a response\n",
                    )
                }
            };
            finished.settle(true);
            response
        }
        (None, None) => unreachable!("the wait ends with a head or with the guest's end"),
    }
}

/// The guest goes on writing.
fn live<G: Guests>(
    shared: &Arc<Shared<G>>,
    response: Response<WasiBody>,
    run: Run<G>,
    bodiless: bool,
) -> Response<Answer<G>> {
    let (parts, mut body) = response.into_parts();
    let declared =
        parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut head_start = Whole::default();
    if head_start.gather(&mut body) == Tail::Broken {
        shared.guests.tell("the component broke off its response's body");
        return broken_off();
    }
    let live = Box::new(Live::new(shared.clone(), head_start, body, run, declared));
    if bodiless
        || parts.status == StatusCode::NO_CONTENT
        || parts.status == StatusCode::NOT_MODIFIED
    {
        // hyper asks for no body then, but the guest is to come to its end.
        shared.spawn(live.discard());
        return Response::from_parts(parts, Answer::Whole(Whole::default()));
    }
    Response::from_parts(parts, Answer::Live(live))
}

/// The guest is through, so its body is complete or never will be.
fn whole<G: Guests>(
    shared: &Arc<Shared<G>>,
    response: Response<WasiBody>,
    finished: Finished<G>,
    bodiless: bool,
) -> Response<Answer<G>> {
    let (parts, mut body) = response.into_parts();
    let mut whole = Whole::default();
    let failed = finished.failed();
    let mut tail = whole.gather(&mut body);
    finished.settle(tail != Tail::Open);
    if tail == Tail::Open {
        // The guest returned without finishing its body. With the instance its writing end is gone.
        tail = whole.gather(&mut body);
    }
    if failed {
        return trapped();
    }
    let declared = parts.headers.get(CONTENT_LENGTH);
    let short = declared.is_some_and(|declared| {
        !bodiless && declared.to_str().ok().and_then(|n| n.parse().ok()) != Some(whole.bytes())
    });
    if tail == Tail::Broken || short {
        shared.guests.tell("the component broke off its response's body");
        return broken_off();
    }
    if bodiless && declared.is_some() {
        // The length is what the guest says; what it wrote nevertheless is not sent.
        whole = Whole::default();
    }
    Response::from_parts(parts, Answer::Whole(whole))
}

fn broken_off<G: Guests>() -> Response<Answer<G>> {
    plain(StatusCode::INTERNAL_SERVER_ERROR, "the component broke off its response\n")
}

fn trapped<G: Guests>() -> Response<Answer<G>> {
    plain(StatusCode::INTERNAL_SERVER_ERROR, "the component trapped\n")
}

pub(crate) fn busy<G: Guests>(why: &'static str) -> Response<Answer<G>> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, why);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn plain<G: Guests>(status: StatusCode, text: &'static str) -> Response<Answer<G>> {
    let mut response = Response::new(Answer::Whole(Whole::text(text)));
    *response.status_mut() = status;
    response
}
