//! A listening socket that can be closed to newcomers while those who came before are still let in.
//! Absent: which ports and addresses it may have ([`crate::podnet`]), and the right to each connection.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::os;

type Arrival = (TcpStream, SocketAddr);

/// A listener, shared by its guest's socket and the table of the pod's ports.
#[derive(Debug)]
pub struct Listening {
    socket: TcpListener,
    /// Once it is closed to newcomers: who had come by then. The kernel has told them that they are connected.
    late: Mutex<Option<VecDeque<Arrival>>>,
}

impl Listening {
    pub(crate) fn new(socket: TcpListener) -> Self {
        Self { socket, late: Mutex::new(None) }
    }

    /// The next connection. After [`Listening::turn_away`] those that had come, then none, for ever; after
    /// [`Listening::stop`] it fails.
    pub(crate) async fn accept(&self) -> io::Result<Arrival> {
        loop {
            if let Some(late) = &mut *self.late() {
                if let Some(arrival) = late.pop_front() {
                    return Ok(arrival);
                }
            } else {
                match self.socket.accept().await {
                    // It was closed to newcomers meanwhile.
                    Err(_) if self.late().is_some() => continue,
                    accepted => return accepted,
                }
            }
            std::future::pending::<()>().await;
        }
    }

    /// [`Listening::accept`], if that takes no time.
    pub(crate) fn accept_now(&self) -> Option<io::Result<Arrival>> {
        self.accept().now_or_never()
    }

    /// Lets nobody new come. Up to `most` of those that wait in the kernel's queue are kept for [`Listening::accept`].
    ///
    /// Who comes between the last look into the queue and the closing is told that it is connected, and then that it is not: let
    /// [`Listening::ignore_newcomers`] go before.
    pub(crate) fn turn_away(&self, most: usize) {
        let mut late = self.late();
        if late.is_none() {
            let waiting = std::iter::from_fn(|| self.socket.accept().now_or_never()?.ok());
            *late = Some(waiting.take(most).collect());
            os::stop_listening(&self.socket);
        }
    }

    /// Leaves whoever begins to connect without an answer, which makes it ask again; who has begun comes through.
    pub(crate) fn ignore_newcomers(&self) {
        if let Err(error) = os::ignore_newcomers(&self.socket) {
            tracing::debug!(%error, "newcomers are not ignored");
        }
    }

    /// Changes the length of the kernel's queue.
    pub(crate) fn set_backlog(&self, backlog: i32) -> io::Result<()> {
        match &*self.late() {
            // It would open again.
            Some(_) => Ok(()),
            None => Ok(rustix::net::listen(&self.socket, backlog)?),
        }
    }

    /// How many have come and were not let in yet, of those that [`Listening::turn_away`] kept.
    pub(crate) fn waiting(&self) -> usize {
        self.late().as_ref().map_or(0, VecDeque::len)
    }

    /// Ends it while others still own it.
    pub(crate) fn stop(&self) {
        os::stop_listening(&self.socket);
    }

    fn late(&self) -> MutexGuard<'_, Option<VecDeque<Arrival>>> {
        // Nothing in it panics halfway.
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
