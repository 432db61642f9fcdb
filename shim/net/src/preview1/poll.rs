//! `poll_oneoff`: clocks, files, standard streams and sockets waited for together.
//!
//! Written anew because upstream's knows no sockets, and fails as a whole for one bad descriptor, where preview1 has an error per event.
//! Absent: the guest's memory ([`super`]).

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use wasmtime_wasi::p1::types::{
    Clockid, Errno, Error, Event, EventFdReadwrite, Eventrwflags, Eventtype, Subclockflags,
    Subscription, SubscriptionClock, SubscriptionU, Userdata,
};
use wasmtime_wasi::p1::wasi_snapshot_preview1::WasiSnapshotPreview1 as _;
use wiggle::GuestMemory;

use super::descriptors::Descriptors;
use super::socket::Readable;
use super::{Descriptor, Preview1, STDERR, STDIN, STDOUT};

/// One subscription, and what has come of it.
pub(super) struct Watched {
    userdata: Userdata,
    of: Of,
    outcome: Option<Outcome>,
}

enum Of {
    /// Until then; none: longer than anybody waits.
    Clock(Option<Instant>),
    Read(u32),
    Write(u32),
}

struct Outcome {
    error: Errno,
    bytes: u64,
    hangup: bool,
}

impl Outcome {
    const READY: Self = Self { error: Errno::Success, bytes: 0, hangup: false };

    fn failed(error: Errno) -> Self {
        Self { error, bytes: 0, hangup: false }
    }
}

impl Watched {
    fn kind(&self) -> Eventtype {
        match self.of {
            Of::Clock(_) => Eventtype::Clock,
            Of::Read(_) => Eventtype::FdRead,
            Of::Write(_) => Eventtype::FdWrite,
        }
    }

    fn until(&self) -> Option<Instant> {
        match self.of {
            Of::Clock(until) => until,
            Of::Read(_) | Of::Write(_) => None,
        }
    }

    /// Asks a socket, or the standard input, what it has to tell; who is asked wakes the waiting later.
    fn look(
        &mut self,
        descriptors: &mut Descriptors<Descriptor>,
        cx: &mut Context<'_>,
        has_input: bool,
    ) {
        if self.outcome.is_some() {
            return;
        }
        self.outcome = match self.of {
            Of::Clock(_) => None,
            Of::Read(fd) => match descriptors.get_mut(fd) {
                Some(Descriptor::Socket(socket)) => match socket.poll_readable(cx) {
                    Poll::Ready(Ok(Readable { bytes, hangup })) => {
                        Some(Outcome { error: Errno::Success, bytes, hangup })
                    }
                    Poll::Ready(Err(errno)) => Some(Outcome::failed(errno)),
                    Poll::Pending => None,
                },
                _ => has_input.then_some(Outcome { bytes: 1, ..Outcome::READY }),
            },
            Of::Write(fd) => match descriptors.get_mut(fd) {
                Some(Descriptor::Socket(socket)) => {
                    let is_ready = socket.poll_writable(cx).is_ready();
                    is_ready.then_some(Outcome { bytes: 1, ..Outcome::READY })
                }
                _ => None,
            },
        };
    }

    /// What the guest is told, where there is something to tell.
    pub(super) fn event(&self) -> Option<Event> {
        let outcome = self.outcome.as_ref()?;
        let mut flags = Eventrwflags::empty();
        if outcome.hangup {
            flags |= Eventrwflags::FD_READWRITE_HANGUP;
        }
        Some(Event {
            userdata: self.userdata,
            error: outcome.error,
            type_: self.kind(),
            fd_readwrite: EventFdReadwrite { nbytes: outcome.bytes, flags },
        })
    }
}

impl Preview1 {
    /// What a subscription asks for, and at once what is known of it.
    pub(super) async fn watch(
        &mut self,
        memory: &mut GuestMemory<'_>,
        asked: Subscription,
        begun: Instant,
    ) -> Result<Watched, Error> {
        let (of, outcome) = match asked.u {
            SubscriptionU::Clock(clock) => match self.until(memory, &clock, begun)? {
                Ok(until) => (Of::Clock(until), None),
                Err(errno) => (Of::Clock(None), Some(Outcome::failed(errno))),
            },
            SubscriptionU::FdRead(it) => {
                let fd = u32::from(it.file_descriptor);
                (Of::Read(fd), self.readable_at_once(memory, fd).await?)
            }
            SubscriptionU::FdWrite(it) => {
                let fd = u32::from(it.file_descriptor);
                (Of::Write(fd), self.writable_at_once(fd))
            }
        };
        Ok(Watched { userdata: asked.userdata, of, outcome })
    }

    /// When a clock's time has come.
    fn until(
        &mut self,
        memory: &mut GuestMemory<'_>,
        clock: &SubscriptionClock,
        begun: Instant,
    ) -> Result<Result<Option<Instant>, Errno>, Error> {
        if !matches!(clock.id, Clockid::Monotonic | Clockid::Realtime) {
            return Ok(Err(Errno::Notsup));
        }
        let mut wait = clock.timeout;
        if clock.flags.contains(Subclockflags::SUBSCRIPTION_CLOCK_ABSTIME) {
            wait = wait.saturating_sub(self.wasi.clock_time_get(memory, clock.id, 0)?);
        }
        Ok(Ok(begun.checked_add(Duration::from_nanos(wait))))
    }

    async fn readable_at_once(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: u32,
    ) -> Result<Option<Outcome>, Error> {
        let Some(descriptor) = self.descriptors.get(fd) else {
            return Ok(Some(Outcome::failed(Errno::Badf)));
        };
        let inner = match descriptor {
            Descriptor::Socket(_) | Descriptor::Wasi(STDIN) => return Ok(None),
            Descriptor::Wasi(STDOUT | STDERR) => {
                return Ok(Some(Outcome::failed(Errno::Badf)));
            }
            Descriptor::Wasi(inner) => *inner,
        };
        // A file is always ready: with what is left of it, or with its end.
        Ok(Some(match self.left_of(memory, inner).await {
            Ok(left) => Outcome { error: Errno::Success, bytes: left, hangup: left == 0 },
            Err(error) => Outcome::failed(error.downcast().map_err(Error::trap)?),
        }))
    }

    async fn left_of(&mut self, memory: &mut GuestMemory<'_>, inner: u32) -> Result<u64, Error> {
        let position = self.wasi.fd_tell(memory, inner.into())?;
        let stat = self.wasi.fd_filestat_get(memory, inner.into()).await?;
        Ok(stat.size.saturating_sub(position))
    }

    fn writable_at_once(&self, fd: u32) -> Option<Outcome> {
        match self.descriptors.get(fd) {
            None | Some(Descriptor::Wasi(STDIN)) => Some(Outcome::failed(Errno::Badf)),
            Some(Descriptor::Socket(_)) => None,
            // What a file or a log does not take at once is waited for in the write, as on Linux.
            Some(Descriptor::Wasi(_)) => Some(Outcome { bytes: 1, ..Outcome::READY }),
        }
    }

    /// Waits until something can be told of at least one.
    pub(super) async fn wait_for(&mut self, watched: &mut [Watched]) {
        let Self { descriptors, stdin, .. } = self;
        let reads_stdin = |it: &Watched| matches!(it.of, Of::Read(fd) if matches!(descriptors.get(fd), Some(Descriptor::Wasi(STDIN))));
        let asks_stdin = watched.iter().any(reads_stdin);
        let mut input = pin!(asks_stdin.then(|| stdin.ready()));
        let next = watched.iter().filter_map(Watched::until).min();
        let mut sleep = pin!(next.map(|at| tokio::time::sleep_until(at.into())));
        poll_fn(|cx| {
            let has_input = input.as_mut().as_pin_mut().is_some_and(|it| it.poll(cx).is_ready());
            for it in &mut *watched {
                it.look(descriptors, cx, has_input);
            }
            let timed_out = sleep.as_mut().as_pin_mut().is_some_and(|it| it.poll(cx).is_ready());
            if timed_out || watched.iter().any(|it| it.outcome.is_some()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        let now = Instant::now();
        for it in watched {
            if it.until().is_some_and(|until| until <= now) {
                it.outcome = Some(Outcome::READY);
            }
        }
    }
}
