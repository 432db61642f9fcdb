//! A response's body: either already whole, or still being written by the guest, which this body drives.
//!
//! Absent: a task per request. The guest's future is polled where its output is asked for, so a client that reads slowly
//! slows its guest, and nothing is buffered beyond the guest's own channel (two chunks) and hyper's write buffer.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use wasmtime_wasi_http::{Error, WasiBody};

use super::respond::{Finished, Guests, Run};
use super::server::Shared;

/// The body of an answer.
pub(crate) enum Answer<G: Guests> {
    /// All of it is here.
    Whole(Whole),
    /// The guest is at work.
    Live(Box<Live<G>>),
}

impl<G: Guests> Answer<G> {
    /// Bytes that it makes the host hold, beside what an instance at work is charged: what is here, or a buffer for what is on its
    /// way.
    pub(crate) fn weight(&self) -> u64 {
        match self {
            Self::Whole(whole) => whole.bytes,
            Self::Live(live) => live.head_start.bytes + LIVE,
        }
    }
}

/// What is buffered at most between a guest that writes and the connection.
const LIVE: u64 = 64 << 10;

/// A body that is here.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    first: Option<Bytes>,
    rest: VecDeque<Frame<Bytes>>,
    trailers: bool,
    bytes: u64,
}

/// How the frames that are there end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// The body is complete.
    End,
    /// Somebody may still write.
    Open,
    /// The guest broke it off.
    Broken,
}

impl Whole {
    /// A short text.
    pub(crate) fn text(text: &'static str) -> Self {
        let bytes = Bytes::from_static(text.as_bytes());
        Self { bytes: bytes.len() as u64, first: Some(bytes), ..Self::default() }
    }

    /// Takes the frames that are there without waiting.
    pub(crate) fn gather(&mut self, body: &mut WasiBody) -> Tail {
        // Nobody has to be woken: the caller looks again when the guest has run again.
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match Pin::new(&mut *body).poll_frame(&mut context) {
                Poll::Ready(Some(Ok(frame))) => self.push(frame),
                Poll::Ready(Some(Err(_))) => return Tail::Broken,
                Poll::Ready(None) => return Tail::End,
                Poll::Pending => return Tail::Open,
            }
        }
    }

    /// Bytes of data in it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn push(&mut self, frame: Frame<Bytes>) {
        let frame = match frame.into_data() {
            Ok(data) if data.is_empty() => return,
            Ok(data) => {
                self.bytes += data.len() as u64;
                if self.first.is_none() && self.rest.is_empty() {
                    self.first = Some(data);
                    return;
                }
                Frame::data(data)
            }
            Err(trailers) => {
                self.trailers = true;
                trailers
            }
        };
        self.rest.push_back(frame);
    }

    fn next(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.first.take().map(Frame::data).or_else(|| self.rest.pop_front())?;
        if let Some(data) = frame.data_ref() {
            self.bytes -= data.len() as u64;
        }
        Some(frame)
    }
}

/// A body that a guest is still writing.
pub(crate) struct Live<G: Guests> {
    shared: Arc<Shared<G>>,
    /// What the guest wrote before the head was passed on.
    head_start: Whole,
    body: WasiBody,
    guest: Guest<G>,
    /// Data bytes still owed by the `content-length` that the guest declared.
    owed: Option<u64>,
    ended: bool,
}

enum Guest<G: Guests> {
    AtWork(Run<G>),
    /// It returned, or trapped; what it leaves is settled once its body has ended.
    Through(Finished<G>),
    Settled {
        failed: bool,
    },
}

impl<G: Guests> Live<G> {
    /// A body that `run` writes, `declared` bytes long if the head says so.
    pub(crate) fn new(
        shared: Arc<Shared<G>>,
        head_start: Whole,
        body: WasiBody,
        run: Run<G>,
        declared: Option<u64>,
    ) -> Self {
        Self { shared, head_start, body, guest: Guest::AtWork(run), owed: declared, ended: false }
    }

    /// Lets the guest go on to its end, within the time that a response may take, and forgets what it writes.
    pub(crate) async fn discard(mut self: Box<Self>) {
        let limit = self.shared.settings.timeout;
        let read = async {
            while let Some(Ok(_)) = std::future::poll_fn(|context| self.poll_next(context)).await {}
        };
        if tokio::time::timeout(limit, read).await.is_ok()
            && let Guest::AtWork(run) = std::mem::replace(&mut self.guest, Guest::settled())
        {
            go_on(&self.shared, run).await;
        }
    }

    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(frame) = self.head_start.next() {
            return Poll::Ready(Some(Ok(self.pay(frame))));
        }
        loop {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => return Poll::Ready(Some(Ok(self.pay(frame)))),
                Poll::Ready(Some(Err(error))) => {
                    self.settle(false);
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => {
                    self.ended = true;
                    return match self.settle(true) {
                        // A body that a trap cut off must not look complete.
                        true => Poll::Ready(Some(Err(Error::HttpResponseIncomplete))),
                        false => Poll::Ready(None),
                    };
                }
                Poll::Pending => {}
            }
            match &mut self.guest {
                Guest::AtWork(run) => match run.as_mut().poll(context) {
                    Poll::Ready(finished) => self.guest = Guest::Through(finished),
                    // What it has just written is taken at once.
                    Poll::Pending => {
                        return match Pin::new(&mut self.body).poll_frame(context) {
                            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(self.pay(frame)))),
                            Poll::Ready(_) => continue,
                            Poll::Pending => Poll::Pending,
                        };
                    }
                },
                // It returned without finishing its body: the instance goes, and the body ends with it.
                Guest::Through(_) => {
                    self.settle(false);
                }
                // Somebody else holds the writing end. There is nobody: the store is gone.
                Guest::Settled { .. } => return Poll::Ready(None),
            }
        }
    }

    fn pay(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        if let (Some(owed), Some(data)) = (&mut self.owed, frame.data_ref()) {
            *owed = owed.saturating_sub(data.len() as u64);
        }
        frame
    }

    /// Lets go of a guest that is through; whether it failed. One that is still at work stays so.
    fn settle(&mut self, reusable: bool) -> bool {
        match std::mem::replace(&mut self.guest, Guest::settled()) {
            Guest::Through(finished) => {
                let failed = finished.failed();
                finished.settle(reusable);
                self.guest = Guest::Settled { failed };
                failed
            }
            Guest::Settled { failed } => {
                self.guest = Guest::Settled { failed };
                failed
            }
            at_work @ Guest::AtWork(_) => {
                self.guest = at_work;
                false
            }
        }
    }
}

/// Lets a guest work after its response, for as long as a response may take.
async fn go_on<G: Guests>(shared: &Shared<G>, run: Run<G>) {
    let limit = shared.settings.timeout;
    match tokio::time::timeout(limit, run).await {
        Ok(finished) => finished.settle(true),
        Err(_) => shared.guests.tell(&format!(
            "work after the response took more than {} ms: the instance was ended",
            limit.as_millis()
        )),
    }
}

impl<G: Guests> Guest<G> {
    fn settled() -> Self {
        Self::Settled { failed: false }
    }
}

impl<G: Guests> Drop for Live<G> {
    fn drop(&mut self) {
        let complete = self.ended || self.owed == Some(0);
        match std::mem::replace(&mut self.guest, Guest::settled()) {
            // The client has all it was promised: what the guest does after its response may go on.
            Guest::AtWork(run) if complete && tokio::runtime::Handle::try_current().is_ok() => {
                let shared = self.shared.clone();
                self.shared.spawn(async move { go_on(&shared, run).await });
            }
            // The client is gone, and so is the guest (or the runner is ending).
            Guest::AtWork(run) => drop(run),
            Guest::Through(finished) => finished.settle(complete),
            Guest::Settled { .. } => {}
        }
    }
}

impl<G: Guests> Body for Answer<G> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Self::Whole(whole) => Poll::Ready(whole.next().map(Ok)),
            Self::Live(live) => live.poll_next(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.first.is_none() && whole.rest.is_empty(),
            Self::Live(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // With trailers the body has to be chunked.
            Self::Whole(whole) if !whole.trailers => SizeHint::with_exact(whole.bytes),
            Self::Whole(_) | Self::Live(_) => SizeHint::default(),
        }
    }
}
