//! The standard streams of an exec: descriptors that came with the request.
//!
//! The agent hands over pipes or sockets of its own, never a terminal that others share: they are made non-blocking here.
//! A reader that is gone is an error of the guest's write and never a hang; a program that believes to be at a terminal ends with it, as
//! by a hangup. Absent: terminals, which the agent has, and their sizes.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use copepod_shim::protocol::Failure;
use rustix::fs::{FileType, OFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use wasmtime_wasi::cli::{AsyncStdinStream, IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::guest::Stdio;
use crate::log::Stream;

/// What a guest may write before the other side has read: a pipe's own size.
const BUFFER: usize = 64 << 10;

/// What an attached client may be behind what its container writes, before it is let go.
const BEHIND: usize = 1 << 20;

/// How long what the guest wrote last may take to be read after its end.
const LINGER: Duration = Duration::from_secs(5);

/// The three streams of one exec.
pub struct Streams {
    stdin: Option<Stdin>,
    stdout: Output,
    stderr: Output,
    is_terminal: bool,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("is_terminal", &self.is_terminal).finish_non_exhaustive()
    }
}

/// One input, whichever instance reads it in the end.
#[derive(Clone)]
struct Stdin(Arc<AsyncStdinStream>);

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Stdin {
    fn p2_stream(&self) -> Box<dyn InputStream> {
        self.0.p2_stream()
    }

    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        self.0.async_stream()
    }
}

/// What a client writes.
pub type Input = Box<dyn AsyncRead + Send + Sync + Unpin>;

impl Streams {
    /// Takes stdin, stdout and stderr of a program. To be called within the runtime.
    ///
    /// # Errors
    /// [`Failure::Refused`]: there are not three, or they are none that can be waited for.
    pub fn new(descriptors: Vec<OwnedFd>, is_terminal: bool) -> Result<Self, Failure> {
        let (input, streams) = Self::of_client(descriptors)?;
        let stdin = input.map(|input| Stdin(Arc::new(AsyncStdinStream::new(input))));
        Ok(Self { stdin, is_terminal, ..streams })
    }

    /// Takes the same of a client that is attached to a program, whose input comes back by itself; none where it is /dev/null.
    ///
    /// # Errors
    /// As [`Streams::new`].
    pub fn of_client(descriptors: Vec<OwnedFd>) -> Result<(Option<Input>, Self), Failure> {
        let refused = |message: String| Failure::Refused { reason: "ExecFailed".into(), message };
        let [stdin, stdout, stderr]: [OwnedFd; 3] = descriptors
            .try_into()
            .map_err(|_| refused("an exec needs three descriptors".into()))?;
        let failed = |error: io::Error| refused(format!("a stream cannot be used: {error}"));
        let streams = Self {
            stdin: None,
            stdout: Output::new(End::new(stdout).map_err(failed)?),
            stderr: Output::new(End::new(stderr).map_err(failed)?),
            is_terminal: false,
        };
        Ok((input(stdin).map_err(failed)?, streams))
    }

    /// The guest's ends of them; the same each time.
    pub fn stdio(&self) -> Stdio {
        Stdio {
            stdin: match &self.stdin {
                Some(stdin) => Box::new(stdin.clone()),
                None => Box::new(tokio::io::empty()),
            },
            stdout: Box::new(self.stdout.clone()),
            stderr: Box::new(self.stderr.clone()),
            is_terminal: self.is_terminal,
        }
    }

    /// Shows an attached client what its container has written; whether it is still there. To be called within the runtime.
    pub fn offer(&self, stream: Stream, bytes: &[u8]) -> bool {
        match stream {
            Stream::Stdout => self.stdout.offer(bytes),
            Stream::Stderr => self.stderr.offer(bytes),
        }
    }

    /// Resolves once nobody reads what is written, where that can be told, or a client that does not keep up is let go: whether it is.
    pub async fn abandoned(&self) -> bool {
        tokio::select! {
            let_go = self.stdout.abandoned() => let_go,
            let_go = self.stderr.abandoned() => let_go,
        }
    }

    /// Lets what was written be read, for a while.
    pub async fn finish(&self) {
        let both = futures::future::join(self.stdout.drained(), self.stderr.drained());
        let _ = tokio::time::timeout(LINGER, both).await;
    }
}

/// What kind of file a descriptor is, made non-blocking.
fn kind(descriptor: &OwnedFd) -> io::Result<FileType> {
    let flags = rustix::fs::fcntl_getfl(descriptor)?;
    rustix::fs::fcntl_setfl(descriptor, flags | OFlags::NONBLOCK)?;
    let stat = rustix::fs::fstat(descriptor)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    // /dev/null; a terminal would have to be waited for, and is shared with whoever else has it.
    if kind.is_char_device() && stat.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a terminal or a device"));
    }
    Ok(kind)
}

fn input(descriptor: OwnedFd) -> io::Result<Option<Input>> {
    Ok(Some(match kind(&descriptor)? {
        FileType::Fifo => Box::new(pipe::Receiver::from_owned_fd_unchecked(descriptor)?),
        FileType::Socket => Box::new(UnixStream::from_std(descriptor.into())?),
        FileType::CharacterDevice => return Ok(None),
        _ => Box::new(tokio::fs::File::from_std(descriptor.into())),
    }))
}

/// Something that can be waited for, or a file, which is always ready.
enum End {
    Pipe(pipe::Sender),
    Socket(UnixStream),
    Ready(OwnedFd),
}

impl End {
    fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(match kind(&descriptor)? {
            FileType::Fifo => Self::Pipe(pipe::Sender::from_owned_fd_unchecked(descriptor)?),
            FileType::Socket => Self::Socket(UnixStream::from_std(descriptor.into())?),
            _ => Self::Ready(descriptor),
        })
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_write(bytes),
            Self::Socket(socket) => socket.try_write(bytes),
            Self::Ready(file) => Ok(rustix::io::write(file, bytes)?),
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.writable().await,
            Self::Socket(socket) => socket.writable().await,
            Self::Ready(_) => Ok(()),
        }
    }
}

/// One output. What the descriptor does not take at once is kept, and the guest waits until it is gone.
#[derive(Clone)]
struct Output(Arc<Mutex<Pending>>);

struct Pending {
    end: Arc<End>,
    buffer: Vec<u8>,
    closed: bool,
    /// Told where a client that is too far behind is let go.
    let_go: Arc<Notify>,
}

impl Output {
    fn new(end: End) -> Self {
        let (end, let_go) = (Arc::new(end), Arc::default());
        let pending = Pending { end, buffer: Vec::new(), closed: false, let_go };
        Self(Arc::new(Mutex::new(pending)))
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what can be written at once, and has the rest follow; `false`: nobody reads it, or not fast enough.
    fn offer(&self, bytes: &[u8]) -> bool {
        let mut pending = self.lock();
        let waits = !pending.buffer.is_empty();
        if pending.buffer.len() + bytes.len() > BEHIND {
            pending.closed = true;
            pending.buffer = Vec::new();
            pending.let_go.notify_one();
        }
        if pending.closed {
            return false;
        }
        pending.buffer.extend_from_slice(bytes);
        pending.write_some();
        if !waits && !pending.buffer.is_empty() {
            let output = self.clone();
            drop(tokio::spawn(async move { output.drained().await }));
        }
        !pending.closed
    }

    /// Resolves once its reader is gone, which only of a pipe can be told, or is let go; whether it is the latter.
    async fn abandoned(&self) -> bool {
        let (end, let_go) = {
            let pending = self.lock();
            (pending.end.clone(), pending.let_go.clone())
        };
        let gone = async {
            match &*end {
                End::Pipe(pipe) => drop(pipe.ready(Interest::ERROR).await),
                End::Socket(_) | End::Ready(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = gone => false,
            () = let_go.notified() => true,
        }
    }

    /// Resolves once nothing waits to be written, or nobody will read it.
    async fn drained(&self) {
        loop {
            let end = {
                let mut pending = self.lock();
                pending.write_some();
                if pending.buffer.is_empty() || pending.closed {
                    return;
                }
                pending.end.clone()
            };
            if end.writable().await.is_err() {
                self.lock().closed = true;
                return;
            }
        }
    }
}

impl Pending {
    fn write_some(&mut self) {
        while !self.buffer.is_empty() {
            match self.end.try_write(&self.buffer) {
                Ok(written) => drop(self.buffer.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.closed = true;
                    self.buffer = Vec::new();
                }
            }
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut pending = self.lock();
        if pending.closed {
            return Err(StreamError::Closed);
        }
        pending.buffer.extend_from_slice(&bytes);
        pending.write_some();
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let mut pending = self.lock();
        pending.write_some();
        if pending.closed {
            return Err(StreamError::Closed);
        }
        Ok(if pending.buffer.is_empty() { BUFFER } else { 0 })
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        self.drained().await;
    }
}

/// For interfaces of WASI 0.3, which take their streams in this form.
impl AsyncWrite for Output {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut pending = self.lock();
        pending.write_some();
        if pending.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !pending.buffer.is_empty() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let taken = bytes.len().min(BUFFER);
        pending.buffer.extend_from_slice(&bytes[..taken]);
        pending.write_some();
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
