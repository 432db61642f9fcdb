//! What is said to the broker of an ordinary user's pods: one request, one answer, over a `SOCK_SEQPACKET` connection.
//!
//! The pods' network of an ordinary user leads nowhere: the kernel lets nobody but root join it to the host's. The broker stays in
//! the host's network and hands out sockets of that side. As it outlives the agent, it also keeps the namespaces in which the agent
//! and the runners live. Absent: the broker itself (`copepod-domain`), and the judge of addresses ([`crate::destination`]).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::stage;

/// The descriptors of [`Ask::Keep`] and [`Told::Namespaces`], in this order: the user namespace, the mount namespace as the host's
/// mounts are, the agent's own mount namespace, the pods' network namespace.
pub const NAMESPACES: usize = 4;

/// What the broker is asked. A runner may ask for [`Ask::Open`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// A socket of the host's side, connected or connecting to this address. [`Told::Opened`] or [`Told::Refused`].
    Open {
        /// The destination.
        to: SocketAddr,
        /// UDP; else TCP.
        udp: bool,
    },
    /// The namespaces, to enter them again. [`Told::Namespaces`], or [`Told::Done`] where none are kept.
    Namespaces,
    /// Keep the namespaces that travel with this. [`Told::Done`].
    Keep,
    /// Answer a runner on the socket that travels with this. [`Told::Done`].
    Serve,
}

/// What the broker answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// The socket travels with this; it does not block, and a TCP one may still be connecting.
    Opened,
    /// It was not opened, or not connected; the number of the error.
    Refused(i32),
    /// The namespaces travel with this.
    Namespaces,
    /// Done, nothing to tell.
    Done,
}

/// Asks and waits for the answer. A connection on which this failed once is of no use any more: the answer may still come, to the
/// next question.
///
/// # Errors
/// The socket's; the broker is gone, or does not answer within the socket's timeout.
pub fn ask(
    socket: impl AsFd,
    question: Ask,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<(Told, Vec<OwnedFd>)> {
    stage::send(socket.as_fd(), &question, descriptors)?;
    stage::receive(socket.as_fd())
}
