//! Deadlines for peers that stop in the middle: of reading what we write, or of sending a body.
//!
//! Absent: a deadline for the whole. A transfer may take as long as it likes while it moves. A timer exists only while
//! the peer keeps us waiting.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::Sleep;
use wasmtime_wasi_http::Error;

use crate::ledger::{Charge, Ledger};

/// How long a client may stand still in the middle of a message: nginx allows 60 s, hyper 30 s for a head.
pub(crate) const STANDSTILL: Duration = Duration::from_secs(30);

/// A timer that runs while something is awaited.
#[derive(Debug, Default)]
struct Patience(Option<Pin<Box<Sleep>>>);

impl Patience {
    /// The awaited thing is not there: whether the time is over. The first call starts the clock.
    fn is_over(&mut self, limit: Duration, context: &mut Context<'_>) -> bool {
        let timer = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        timer.as_mut().poll(context).is_ready()
    }

    /// It came.
    fn reset(&mut self) {
        self.0 = None;
    }
}

/// A connection on which a write that stands still for [`STANDSTILL`] fails.
///
/// While its peer reads nothing, what is buffered for it is booked: nothing is where the kernel takes all at once.
#[derive(Debug)]
pub(crate) struct PacedIo<T> {
    io: T,
    patience: Patience,
    ledger: Arc<Ledger>,
    /// Bytes buffered at most.
    buffer: u64,
    stalled: Option<Charge>,
}

impl<T> PacedIo<T> {
    /// Watches the writes to `io`, before which up to `buffer` bytes wait.
    pub(crate) fn new(io: T, ledger: Arc<Ledger>, buffer: u64) -> Self {
        Self { io, patience: Patience::default(), ledger, buffer, stalled: None }
    }

    fn paced<R>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        match polled {
            Poll::Ready(done) => {
                self.patience.reset();
                self.stalled = None;
                Poll::Ready(done)
            }
            Poll::Pending if self.patience.is_over(STANDSTILL, context) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")))
            }
            Poll::Pending => {
                if self.stalled.is_none() {
                    self.stalled = Some(self.ledger.hold(self.buffer));
                }
                Poll::Pending
            }
        }
    }
}

impl<T: Read + Unpin> Read for PacedIo<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(context, buffer)
    }
}

impl<T: Write + Unpin> Write for PacedIo<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write(context, bytes);
        this.paced(context, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write_vectored(context, bytes);
        this.paced(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}

/// A body that fails when its next frame takes longer than `limit`, counted from when it was asked for.
#[derive(Debug)]
pub(crate) struct PacedBody<B> {
    body: B,
    limit: Duration,
    patience: Patience,
}

impl<B> PacedBody<B> {
    /// Watches the frames of `body`.
    pub(crate) fn new(body: B, limit: Duration) -> Self {
        Self { body, limit, patience: Patience::default() }
    }
}

impl<B> Body for PacedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Error>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(frame) => {
                this.patience.reset();
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending if this.patience.is_over(this.limit, context) => {
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
