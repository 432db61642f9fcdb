//! A connection to one runner: requests with their replies, and the events that come unasked.
//!
//! The runner is not trusted: what it sends is bounded by [`copepod_shim::wire`], a reply that nobody waits for is dropped, and a
//! runner that does not answer in time is as good as gone.
//!
//! Absent: what a reply means for a pod, which the owner decides.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use copepod_domain::Domain;
use copepod_shim::protocol::{
    Answer, Event, Failure, FromRunner, Hello, Request, ToRunner, VERSIONS,
};
use copepod_shim::wire::{self, FrameReceiver, FrameSender, WireError};
use tokio::net::UnixStream;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, mpsc, oneshot};

/// How long a runner may take to answer what it can answer at once. Guests run metered beside it, so that even a node under full
/// load answers within some milliseconds; ten seconds is a runner that hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The runner understood and said no.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// It is gone, or does not speak.
    #[error("the pod's runner is gone")]
    Gone,
    /// It lives and does not answer.
    #[error("the pod's runner did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
}

/// Why a runner cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nobody listens, or the connection broke.
    #[error("no connection to the runner")]
    Wire(#[from] WireError),
    /// It listens and says nothing.
    #[error("the runner does not answer")]
    Silent,
    /// It speaks only versions that this agent does not.
    #[error("the runner speaks protocol versions {oldest} to {newest}, this agent {} to {}", VERSIONS.oldest, VERSIONS.newest)]
    Version { oldest: u32, newest: u32 },
}

type Waiting = HashMap<u64, oneshot::Sender<(Result<Answer, Failure>, Vec<OwnedFd>)>>;

/// What the owner hears of a runner.
#[derive(Debug)]
pub(crate) enum Heard {
    /// An event.
    Event(Event),
    /// The connection is over; no event follows.
    Gone,
}

/// The runner that serves a tree. Clones are one, also after another runner has taken over: whoever asks is answered by the one
/// that serves at that moment.
#[derive(Clone, Debug)]
pub(crate) struct Runner {
    current: Arc<RwLock<Connection>>,
}

/// The right to be the only one that asks, while one runner takes over from another.
pub(crate) struct Alone {
    current: OwnedRwLockWriteGuard<Connection>,
}

/// A live connection to one runner. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    sender: FrameSender,
    waiting: Arc<Mutex<Option<Waiting>>>,
    next: Arc<AtomicU64>,
}

impl Runner {
    /// The runner at the other end.
    pub(crate) fn new(connection: Connection) -> Self {
        Self { current: Arc::new(RwLock::new(connection)) }
    }

    /// Asks and waits for the answer, at most [`ANSWER_WITHIN`].
    pub(crate) async fn ask(&self, request: Request) -> Result<Answer, RequestError> {
        self.give(request, &[]).await
    }

    /// [`Runner::ask`] with descriptors.
    pub(crate) async fn give(
        &self,
        request: Request,
        descriptors: &[OwnedFd],
    ) -> Result<Answer, RequestError> {
        // Held to the answer: what changes something does so before the runner's place is another's, or after.
        let connection = self.current.read().await;
        connection.ask(request, descriptors).await.map(|(answer, _)| answer)
    }

    /// Asks for what changes nothing, with descriptors, and waits as long as it takes: an exec ends when its program does.
    pub(crate) async fn ask_with(
        &self,
        request: Request,
        descriptors: &[OwnedFd],
    ) -> Result<(Answer, Vec<OwnedFd>), RequestError> {
        let connection = self.current.read().await.clone();
        connection.ask_with(request, descriptors).await
    }

    /// Waits until nobody asks, and keeps others from asking.
    pub(crate) async fn alone(&self) -> Alone {
        Alone { current: self.current.clone().write_owned().await }
    }
}

impl Alone {
    /// The runner that serves.
    pub(crate) fn runner(&self) -> &Connection {
        &self.current
    }

    /// Another runner serves from now on.
    pub(crate) fn succeeded_by(mut self, heir: Connection) {
        *self.current = heir;
    }
}

impl Connection {
    /// Connects, agrees on a version, and sends what the runner tells to `heard`, as `wrap` makes it. While that channel is full the
    /// runner is not read, so that its events cannot fill the agent's memory.
    pub(crate) async fn connect<T: Send + 'static>(
        domain: &Domain,
        ours: Hello,
        heard: mpsc::Sender<T>,
        wrap: impl Fn(Heard) -> T + Send + Sync + 'static,
    ) -> Result<Self, ConnectError> {
        let shake = async {
            let domain = domain.clone();
            // A runner that does not accept would hold up more than this one call.
            let stream = tokio::task::spawn_blocking(move || domain.connect());
            let stream = stream.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
            stream.set_nonblocking(true)?;
            let stream = UnixStream::from_std(stream)?;
            let (sender, mut receiver) = wire::split(stream);
            sender.send(&ours, &[]).await?;
            let (theirs, _) = receiver.receive::<Hello>().await?;
            Ok::<_, WireError>((sender, receiver, theirs))
        };
        let (sender, receiver, hello) = tokio::time::timeout(ANSWER_WITHIN, shake)
            .await
            .map_err(|_| ConnectError::Silent)??;
        if VERSIONS.common(hello.versions).is_none() {
            let theirs = hello.versions;
            return Err(ConnectError::Version { oldest: theirs.oldest, newest: theirs.newest });
        }
        let connection = Self {
            sender,
            waiting: Arc::new(Mutex::new(Some(HashMap::new()))),
            next: Arc::default(),
        };
        tokio::spawn(listen(receiver, connection.waiting.clone(), heard, wrap));
        Ok(connection)
    }

    /// Asks and waits for the answer, at most [`ANSWER_WITHIN`].
    pub(crate) async fn ask(
        &self,
        request: Request,
        descriptors: &[OwnedFd],
    ) -> Result<(Answer, Vec<OwnedFd>), RequestError> {
        tokio::time::timeout(ANSWER_WITHIN, self.ask_with(request, descriptors))
            .await
            .map_err(|_| RequestError::Silent)?
    }

    async fn ask_with(
        &self,
        request: Request,
        descriptors: &[OwnedFd],
    ) -> Result<(Answer, Vec<OwnedFd>), RequestError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let forget = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.as_mut().ok_or(RequestError::Gone)?.insert(id, reply);
            Forget { waiting: &self.waiting, id }
        };
        self.sender
            .send(&ToRunner { id, request }, descriptors)
            .await
            .map_err(|_| RequestError::Gone)?;
        let (result, descriptors) = answer.await.map_err(|_| RequestError::Gone)?;
        drop(forget);
        Ok((result?, descriptors))
    }
}

/// Takes a request out of the waiting ones however its future ends.
struct Forget<'a> {
    waiting: &'a Mutex<Option<Waiting>>,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            waiting.remove(&self.id);
        }
    }
}

async fn listen<T>(
    mut receiver: FrameReceiver,
    waiting: Arc<Mutex<Option<Waiting>>>,
    heard: mpsc::Sender<T>,
    wrap: impl Fn(Heard) -> T,
) {
    loop {
        match receiver.receive::<FromRunner>().await {
            Ok((FromRunner::Reply { id, result }, descriptors)) => {
                let asked = waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .as_mut()
                    .and_then(|waiting| waiting.remove(&id));
                // Nobody waits for it any more where the asking side gave up.
                if let Some(asked) = asked {
                    let _ = asked.send((result, descriptors));
                }
            }
            Ok((FromRunner::Event(event), _)) => {
                if heard.send(wrap(Heard::Event(event))).await.is_err() {
                    break;
                }
            }
            // An event of a newer protocol, whose fields we do not know.
            Err(WireError::Malformed(_)) => {}
            Err(_) => break,
        }
    }
    // Those who wait are told by their senders' end; those who come later find `None`.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    let _ = heard.send(wrap(Heard::Gone)).await;
}
