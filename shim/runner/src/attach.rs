//! A running container's own streams, given to clients: its stdin, and what it writes from then on.
//!
//! The log goes on beside it. Absent: history, which is the log's; terminals, whose line discipline is the agent's.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use copepod_shim::protocol::Failure;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::sync::Notify;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use crate::exec::Streams;
use crate::log::Stream;

/// What clients may have written before the guest has read: a pipe's own size.
const TYPED: usize = 64 << 10;

/// Clients of one container at a time.
const MOST_CLIENTS: usize = 16;

/// A container's stdin: open until a client ends it, where its spec says so, and fed by all that are attached.
#[derive(Clone, Debug)]
pub struct Stdin(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    typed: Mutex<Typed>,
    /// There is something to read, or room to write.
    changed: Notify,
    /// It ends with its first client.
    once: bool,
}

#[derive(Debug, Default)]
struct Typed {
    bytes: VecDeque<u8>,
    ended: bool,
}

impl Stdin {
    /// One that nobody has written to.
    pub fn new(once: bool) -> Self {
        Self(Arc::new(Shared { typed: Mutex::default(), changed: Notify::new(), once }))
    }

    fn lock(&self) -> MutexGuard<'_, Typed> {
        self.0.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all that a client writes, as fast as the guest reads it.
    pub async fn feed(&self, mut client: impl AsyncRead + Unpin) {
        let mut piece = vec![0; 8 << 10];
        while let Ok(length @ 1..) = client.read(&mut piece).await {
            self.until(|typed| typed.bytes.len() < TYPED || typed.ended).await;
            let mut typed = self.lock();
            if typed.ended {
                return;
            }
            typed.bytes.extend(&piece[..length]);
            drop(typed);
            self.0.changed.notify_waiters();
        }
        self.left();
    }

    /// A client that wrote to it is gone: it ends, where it is for one only.
    pub fn left(&self) {
        if self.0.once {
            self.lock().ended = true;
            self.0.changed.notify_waiters();
        }
    }

    /// There is something to read, or nothing will come.
    async fn readable(&self) {
        self.until(|typed| !typed.bytes.is_empty() || typed.ended).await;
    }

    async fn until(&self, holds: impl Fn(&Typed) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if holds(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    /// What is there; `None` at the end.
    fn take(&self, most: usize) -> Option<Bytes> {
        let mut typed = self.lock();
        if typed.bytes.is_empty() && typed.ended {
            return None;
        }
        let length = most.min(typed.bytes.len());
        let taken: Vec<u8> = typed.bytes.drain(..length).collect();
        drop(typed);
        self.0.changed.notify_waiters();
        Some(taken.into())
    }
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Stdin {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(Reader { stdin: self.clone(), waiting: None })
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

impl InputStream for Stdin {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.take(size).ok_or(StreamError::Closed)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stdin {
    async fn ready(&mut self) {
        self.readable().await;
    }
}

/// The same for interfaces that read by polling.
struct Reader {
    stdin: Stdin,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                match waiting.as_mut().poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => self.waiting = None,
                }
            }
            match self.stdin.take(buffer.remaining()) {
                Some(bytes) if bytes.is_empty() && buffer.remaining() > 0 => {
                    let stdin = self.stdin.clone();
                    self.waiting = Some(Box::pin(async move { stdin.readable().await }));
                }
                Some(bytes) => {
                    buffer.put_slice(&bytes);
                    return Poll::Ready(Ok(()));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// Who sees what a container writes, beside its log.
#[derive(Debug, Default)]
pub struct Clients {
    count: AtomicUsize,
    all: Mutex<Vec<Arc<Streams>>>,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Streams>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what a guest has written to all clients. One that does not keep up is let go.
    pub fn show(&self, stream: Stream, bytes: &[u8]) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut all = self.lock();
        all.retain(|client| client.offer(stream, bytes));
        self.count.store(all.len(), Ordering::Relaxed);
    }

    /// Takes a client on. To be called within the runtime.
    ///
    /// # Errors
    /// [`Failure::Busy`] where there are as many as there may be.
    pub fn add(&self, client: Arc<Streams>) -> Result<(), Failure> {
        let mut all = self.lock();
        if all.len() >= MOST_CLIENTS {
            return Err(Failure::Busy(format!("{MOST_CLIENTS} clients are attached")));
        }
        all.push(client);
        self.count.store(all.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Lets a client go.
    pub fn remove(&self, client: &Arc<Streams>) {
        let mut all = self.lock();
        all.retain(|other| !Arc::ptr_eq(other, client));
        self.count.store(all.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_clients_write_is_read_in_order_and_stays_open_unless_it_is_for_once() {
        let mut stdin = Stdin::new(false);
        stdin.feed(&b"one "[..]).await;
        stdin.feed(&b"two"[..]).await;

        assert_eq!(stdin.read(5).expect("open"), "one t");
        assert_eq!(stdin.read(100).expect("open"), "wo");
        assert_eq!(stdin.read(100).expect("still open"), "");

        let mut once = Stdin::new(true);
        once.feed(&b"all"[..]).await;
        once.feed(&b"too late"[..]).await;

        assert_eq!(once.read(100).expect("open"), "all");
        assert!(matches!(once.read(100), Err(StreamError::Closed)));
    }

    #[tokio::test]
    async fn a_client_waits_while_the_guest_does_not_read() {
        let mut stdin = Stdin::new(true);
        let all = vec![b'x'; 3 * TYPED];
        let feeding = tokio::spawn({
            let (stdin, all) = (stdin.clone(), all.clone());
            async move { stdin.feed(&all[..]).await }
        });

        let mut read = 0;
        loop {
            stdin.ready().await;
            assert!(stdin.lock().bytes.len() <= TYPED + (8 << 10));
            match stdin.read(1000) {
                Ok(bytes) => read += bytes.len(),
                Err(_) => break,
            }
        }

        assert_eq!(read, all.len());
        feeding.await.expect("it ended");
    }

    #[tokio::test]
    async fn a_poll_wakes_when_a_client_writes() {
        let stdin = Stdin::new(true);
        let mut reader = Box::into_pin(stdin.async_stream());
        let reading = tokio::spawn(async move {
            let mut text = String::new();
            reader.read_to_string(&mut text).await.map(|_| text)
        });
        tokio::task::yield_now().await;

        stdin.feed(&b"typed"[..]).await;

        assert_eq!(reading.await.expect("it ended").expect("read"), "typed");
    }
}
