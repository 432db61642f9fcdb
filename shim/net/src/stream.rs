//! A guest's TCP connection once it stands: the two streams of it, and at most 64 KiB in host memory on their way out.
//! Absent: how it came about ([`crate::tcp`]). What the kernel does not take at once is sent by a task that dies with the stream.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::Pollable;
use wasmtime_wasi_io::streams::{InputStream, OutputStream, StreamError, StreamResult};

use crate::calls::Call;
use crate::os;
use crate::podnet::Permit;

/// The most that one read brings, and one write takes: a guest's wish does not become an allocation of the host.
pub(crate) const BUDGET: usize = 64 << 10;

/// A connection of a guest, shared by its socket and the two streams.
pub(crate) struct Connection {
    stream: TcpStream,
    /// The two ends as the guest sees them.
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    reading_is_over: AtomicBool,
    /// The last bytes that moved came from the peer.
    guests_turn: AtomicBool,
    /// Reads and writes that moved bytes.
    moved: AtomicU32,
    sending: Mutex<Sending>,
    /// Told whenever `sending` has sent all, or failed.
    sent: Notify,
    _permit: Arc<Permit>,
}

struct Sending {
    state: SendState,
    /// What the kernel has not taken yet. While it is not empty, `task` is at work on it.
    pending: Bytes,
    task: Option<AbortHandle>,
    /// How much the next write may be: granted by `check-write`, gone with the write.
    granted: usize,
}

enum SendState {
    /// More may be written.
    Open,
    /// Nothing more may be written; the kernel is told once `pending` is sent.
    Closing,
    /// It is over, and the guest knows or need not.
    Closed,
    /// It has failed, and the guest has not been told yet.
    Failed(io::Error),
}

impl Connection {
    pub(crate) fn new(
        stream: TcpStream,
        local: SocketAddr,
        remote: SocketAddr,
        permit: Arc<Permit>,
    ) -> Arc<Self> {
        let sending =
            Sending { state: SendState::Open, pending: Bytes::new(), task: None, granted: 0 };
        Arc::new(Self {
            stream,
            local,
            remote,
            reading_is_over: AtomicBool::new(false),
            guests_turn: AtomicBool::new(false),
            moved: AtomicU32::new(0),
            sending: Mutex::new(sending),
            sent: Notify::new(),
            _permit: permit,
        })
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.stream
    }

    /// Whose turn it is; none where the peer is gone.
    pub(crate) fn call(&self) -> Option<Call> {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let unread = match rustix::net::recv(&self.stream, &mut byte, flags) {
            Ok((_, length)) => length > 0,
            Err(Errno::AGAIN) => false,
            Err(_) => return None,
        };
        Some(Call {
            id: std::ptr::from_ref(self).addr(),
            guests_turn: unread
                || self.guests_turn.load(Ordering::Relaxed)
                || !self.sending().pending.is_empty(),
            moved: self.moved.load(Ordering::Relaxed),
        })
    }

    fn moves(&self, to_the_guest: bool) {
        self.guests_turn.store(to_the_guest, Ordering::Relaxed);
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// What has arrived, straight into a guest's memory; 0 at the end. With `peek` it stays where it is.
    ///
    /// # Errors
    /// `WouldBlock`: nothing has arrived; what the kernel says.
    pub(crate) fn receive(&self, buffer: &mut [u8], peek: bool) -> io::Result<usize> {
        if self.reading_is_over.load(Ordering::Relaxed) {
            return Ok(0);
        }
        if peek {
            return self.peek(buffer);
        }
        let received = self.stream.try_read(buffer);
        match &received {
            Ok(0) if !buffer.is_empty() => self.reading_is_over.store(true, Ordering::Relaxed),
            Ok(_) => self.moves(true),
            Err(_) => {}
        }
        received
    }

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.try_io(Interest::READABLE, || {
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            Ok(rustix::net::recv(&self.stream, buffer, flags)?.1)
        })
    }

    /// Waits until [`Connection::receive`] has something to tell, and tells how many bytes; 0 at the end.
    pub(crate) fn poll_received(&self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            if self.reading_is_over.load(Ordering::Relaxed) {
                return Poll::Ready(0);
            }
            // What the runtime remembers may be out of date: the kernel is asked, and where it has nothing, forgotten.
            ready!(self.stream.poll_read_ready(cx)).ok();
            let asked = PollFlags::IN | PollFlags::RDHUP;
            match self.stream.try_io(Interest::READABLE, || os::poll_now(&self.stream, asked)) {
                // An error is for the read that comes.
                Ok(told) if told.contains(PollFlags::ERR) => return Poll::Ready(1),
                Ok(_) => {
                    let bytes = rustix::io::ioctl_fionread(&self.stream).unwrap_or(0);
                    return Poll::Ready(usize::try_from(bytes).unwrap_or(usize::MAX));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(1),
            }
        }
    }

    /// Gives the kernel what it takes of a guest's bytes at once. Not while an [`Output`] of the connection is in use.
    ///
    /// # Errors
    /// `WouldBlock`: it takes none; `BrokenPipe` after [`Connection::stop_writing`]; what the kernel says.
    pub(crate) fn transmit(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        if !matches!(self.sending().state, SendState::Open) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let sent = self.stream.try_write_vectored(slices);
        if sent.is_ok() {
            self.moves(false);
        }
        sent
    }

    /// Waits until [`Connection::transmit`] takes something, or says why not.
    pub(crate) fn poll_transmits(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !matches!(self.sending().state, SendState::Open) {
                return Poll::Ready(());
            }
            ready!(self.stream.poll_write_ready(cx)).ok();
            let taken = self
                .stream
                .try_io(Interest::WRITABLE, || os::poll_now(&self.stream, PollFlags::OUT));
            if !taken.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                return Poll::Ready(());
            }
        }
    }

    /// No more is read: what arrives from now on is lost.
    pub(crate) fn stop_reading(&self) {
        self.reading_is_over.store(true, Ordering::Relaxed);
        self.shutdown(Shutdown::Read);
    }

    /// No more is written: the peer sees the end after what was written before.
    pub(crate) fn stop_writing(&self) {
        let mut sending = self.sending();
        if let SendState::Open = sending.state {
            if sending.pending.is_empty() {
                sending.state = SendState::Closed;
                self.shutdown(Shutdown::Write);
            } else {
                sending.state = SendState::Closing;
            }
        }
    }

    fn shutdown(&self, how: Shutdown) {
        // A connection that the peer has reset is shut already, which is what was wanted.
        let _ = rustix::net::shutdown(&self.stream, how);
    }

    fn sending(&self) -> MutexGuard<'_, Sending> {
        // No method panics between two states.
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` says so of what is left to send.
    async fn sent_until(&self, done: impl Fn(&Sending) -> bool) {
        loop {
            let told = self.sent.notified();
            let mut told = std::pin::pin!(told);
            told.as_mut().enable();
            if done(&self.sending()) {
                return;
            }
            told.await;
        }
    }

    /// Gives the kernel what it takes of `pending`; `true`: there is nothing left to do.
    fn send_pending(&self) -> bool {
        let mut sending = self.sending();
        while !sending.pending.is_empty() {
            match self.stream.try_write(&sending.pending) {
                Ok(n) => sending.pending.advance(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) => {
                    sending.pending = Bytes::new();
                    sending.state = match e.kind() {
                        io::ErrorKind::BrokenPipe => SendState::Closed,
                        _ => SendState::Failed(e),
                    };
                }
            }
        }
        // An empty slice still holds the whole buffer that it was cut from.
        sending.pending = Bytes::new();
        if let SendState::Closing = sending.state {
            sending.state = SendState::Closed;
            self.shutdown(Shutdown::Write);
        }
        drop(sending);
        self.sent.notify_waiters();
        true
    }

    async fn send_rest(self: Arc<Self>) {
        loop {
            // An error of waiting comes back from the write.
            let _ = self.stream.writable().await;
            if self.send_pending() {
                return;
            }
        }
    }
}

impl Sending {
    /// What a guest is told that wants to write.
    fn refuse(&mut self) -> StreamResult<()> {
        match &self.state {
            SendState::Open => Ok(()),
            SendState::Closing | SendState::Closed => Err(StreamError::Closed),
            SendState::Failed(_) => match std::mem::replace(&mut self.state, SendState::Closed) {
                SendState::Failed(error) => Err(StreamError::LastOperationFailed(error.into())),
                _ => Err(StreamError::Closed),
            },
        }
    }
}

/// The stream from the peer to the guest.
pub(crate) struct Input(pub(crate) Arc<Connection>);

#[async_trait]
impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.0.reading_is_over.load(Ordering::Relaxed) {
            return Err(StreamError::Closed);
        }
        let size = size.min(BUDGET);
        if size == 0 {
            return Ok(Bytes::new());
        }
        let mut buffer = BytesMut::with_capacity(size).limit(size);
        match self.0.stream.try_read_buf(&mut buffer) {
            Ok(0) => {
                self.0.reading_is_over.store(true, Ordering::Relaxed);
                Err(StreamError::Closed)
            }
            Ok(_) => {
                self.0.moves(true);
                Ok(buffer.into_inner().freeze())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Bytes::new()),
            Err(e) => {
                self.0.reading_is_over.store(true, Ordering::Relaxed);
                Err(StreamError::LastOperationFailed(e.into()))
            }
        }
    }
}

#[async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        if !self.0.reading_is_over.load(Ordering::Relaxed) {
            // An error of waiting comes back from the read.
            let _ = self.0.stream.readable().await;
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.0.stop_reading();
    }
}

/// The stream from the guest to the peer.
pub(crate) struct Output(pub(crate) Arc<Connection>);

#[async_trait]
impl OutputStream for Output {
    fn check_write(&mut self) -> StreamResult<usize> {
        let mut sending = self.0.sending();
        sending.refuse()?;
        sending.granted = if sending.pending.is_empty() { BUDGET } else { 0 };
        Ok(sending.granted)
    }

    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut sending = self.0.sending();
        sending.refuse()?;
        if bytes.len() > sending.granted {
            return Err(StreamError::trap("a write of more than check-write granted"));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        sending.granted = 0;
        sending.pending = bytes;
        drop(sending);
        self.0.moves(false);
        let is_done = self.0.send_pending();
        let mut sending = self.0.sending();
        if is_done {
            return match sending.state {
                SendState::Failed(_) => sending.refuse(),
                // A peer that is gone is told by the next check.
                _ => Ok(()),
            };
        }
        sending.task = Some(tokio::spawn(Arc::clone(&self.0).send_rest()).abort_handle());
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        // Whatever is written is on its way already.
        self.0.sending().refuse()
    }

    async fn cancel(&mut self) {
        // The guest drops the stream: what it has written is still sent.
        self.0.sent_until(|sending| sending.pending.is_empty()).await;
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        let is_ready = |s: &Sending| s.pending.is_empty() || !matches!(s.state, SendState::Open);
        self.0.sent_until(is_ready).await;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let mut sending = self.0.sending();
        if !sending.pending.is_empty() {
            // The store is gone, and so is the guest's claim on the host's memory. The peer must not take what it has got
            // for the whole: the connection ends in a reset. Where that cannot be set, it has been reset already.
            sending.pending = Bytes::new();
            sending.state = SendState::Closed;
            let _ = self.0.stream.set_zero_linger();
        }
        if let Some(task) = sending.task.take() {
            task.abort();
        }
        drop(sending);
        self.0.stop_writing();
    }
}
