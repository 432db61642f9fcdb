//! A socket behind a descriptor of a preview1 guest: what it does at once, and what it is waited for.
//!
//! Absent: numbers, the guest's memory and blocking ([`super`]); addresses and bytes ([`crate::tcp`], [`crate::udp`], [`crate::stream`]).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

use wasmtime_wasi::p1::types::{Errno, Error, Filetype};
use wasmtime_wasi::p2::SocketError;
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;
use wasmtime_wasi::p2::bindings::sockets::tcp::ShutdownType;

use crate::linker::NetCtx;
use crate::rules::Family;
use crate::stream::Connection;
use crate::tcp::TcpSocket;
use crate::udp::{Incoming, Outgoing, UdpSocket};

/// A socket, and whether its guest waits for it.
pub(crate) struct Socket {
    pub(crate) kind: Kind,
    pub(crate) nonblocking: bool,
}

pub(crate) enum Kind {
    Tcp(Box<Tcp>),
    Udp(Box<Udp>),
}

/// A TCP socket. A declared port of a pod of both families is two sockets behind one descriptor, as one of Linux's listens on both.
pub(crate) struct Tcp {
    pub(crate) socket: TcpSocket,
    twin: Option<TcpSocket>,
    /// Which of the two is asked first next time.
    twin_is_next: bool,
    /// Of a declared port, which listens once the guest asks for connections: whether it has.
    declared: Option<Arc<AtomicBool>>,
    is_connecting: bool,
    /// Why it is not connected, until the guest has asked.
    failure: Option<Errno>,
}

/// A UDP socket, bound with its first use at the latest.
pub(crate) struct Udp {
    pub(crate) socket: UdpSocket,
    pub(crate) streams: Option<(Incoming, Outgoing)>,
}

/// What became readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Readable {
    pub(crate) bytes: u64,
    /// The peer has closed.
    pub(crate) hangup: bool,
}

impl Socket {
    /// The descriptor of a declared port: bound, and closed to everybody until the guest looks for connections.
    ///
    /// # Errors
    /// The port is taken, or the pod has as many sockets as it may.
    pub(crate) fn of_port(
        net: &NetCtx,
        port: u16,
        nonblocking: bool,
        asked: &Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let families = [Family::V4, Family::V6].into_iter().filter(|it| net.net.rules().has(*it));
        let sockets: io::Result<Vec<_>> =
            families.map(|family| TcpSocket::of_port(net, family, port)).collect();
        let mut sockets = sockets?.into_iter();
        let socket = sockets.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let declared = Some(Arc::clone(asked));
        let tcp = Tcp { twin: sockets.next(), declared, ..Tcp::new(socket) };
        Ok(Self { kind: Kind::Tcp(Box::new(tcp)), nonblocking })
    }

    pub(crate) fn tcp(socket: TcpSocket, nonblocking: bool) -> Self {
        Self { kind: Kind::Tcp(Box::new(Tcp::new(socket))), nonblocking }
    }

    pub(crate) fn udp(socket: UdpSocket) -> Self {
        Self { kind: Kind::Udp(Box::new(Udp { socket, streams: None })), nonblocking: false }
    }

    pub(crate) fn filetype(&self) -> Filetype {
        match self.kind {
            Kind::Tcp(_) => Filetype::SocketStream,
            Kind::Udp(_) => Filetype::SocketDgram,
        }
    }

    /// The connection that bytes go over.
    pub(crate) fn connection(&mut self) -> Result<&Connection, Errno> {
        match &mut self.kind {
            Kind::Tcp(tcp) => tcp.connection(),
            Kind::Udp(_) => Err(Errno::Notsup),
        }
    }

    /// A connection that has arrived; [`Errno::Again`] where none has. From its first call on a declared port listens.
    pub(crate) fn accept(&mut self) -> Result<TcpSocket, Error> {
        let Kind::Tcp(tcp) = &mut self.kind else { return Err(Errno::Notsup.into()) };
        tcp.listen_where_declared()?;
        let Some(twin) = &mut tcp.twin else { return Ok(tcp.socket.accept().map_err(told)?.0) };
        // By turns, so that a flood of one family leaves the other its share.
        let (mut first, mut second) = (&mut tcp.socket, twin);
        tcp.twin_is_next ^= true;
        if tcp.twin_is_next {
            std::mem::swap(&mut first, &mut second);
        }
        match first.accept() {
            Ok((socket, _)) => Ok(socket),
            Err(error) => match told(error).downcast() {
                Ok(Errno::Again) => Ok(second.accept().map_err(told)?.0),
                Ok(errno) => Err(errno.into()),
                Err(trap) => Err(Error::trap(trap)),
            },
        }
    }

    pub(crate) fn shutdown(&mut self, how: ShutdownType) -> Result<(), Error> {
        match &mut self.kind {
            Kind::Tcp(tcp) => {
                tcp.is_connected()?;
                tcp.socket.shutdown(how).map_err(told)
            }
            Kind::Udp(_) => Err(Errno::Notsup.into()),
        }
    }

    /// Waits until reading, accepting or connecting has something to tell.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<Readable, Errno>> {
        match &mut self.kind {
            Kind::Tcp(tcp) => {
                if let Err(error) = tcp.listen_where_declared() {
                    return Poll::Ready(Err(error.downcast().unwrap_or(Errno::Io)));
                }
                if tcp.is_connecting && tcp.poll_connected(cx).is_pending() {
                    return Poll::Pending;
                }
                if let Some(connection) = tcp.socket.connection() {
                    return connection
                        .poll_received(cx)
                        .map(|bytes| Ok(Readable { bytes: bytes as u64, hangup: bytes == 0 }));
                }
                // Each is asked, so that each wakes.
                let twin = tcp.twin.as_mut().is_some_and(|twin| twin.poll_ready(cx).is_ready());
                if tcp.socket.poll_ready(cx).is_ready() || twin {
                    return Poll::Ready(Ok(Readable { bytes: 1, hangup: false }));
                }
                Poll::Pending
            }
            Kind::Udp(udp) => match &mut udp.streams {
                Some((incoming, _)) => {
                    incoming.poll_ready(cx).map(|()| Ok(Readable { bytes: 1, hangup: false }))
                }
                // Nothing can come before it is bound.
                None => Poll::Pending,
            },
        }
    }

    /// Waits until writing or connecting has something to tell.
    pub(crate) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.kind {
            Kind::Tcp(tcp) if tcp.is_connecting => tcp.poll_connected(cx),
            Kind::Tcp(tcp) => match tcp.socket.connection() {
                Some(connection) => connection.poll_transmits(cx),
                None if tcp.socket.is_listening() || tcp.declared.is_some() => Poll::Pending,
                None => Poll::Ready(()),
            },
            Kind::Udp(udp) => match &mut udp.streams {
                Some((_, outgoing)) => outgoing.poll_ready(cx),
                None => Poll::Ready(()),
            },
        }
    }
}

impl Tcp {
    fn new(socket: TcpSocket) -> Self {
        Self {
            socket,
            twin: None,
            twin_is_next: false,
            declared: None,
            is_connecting: false,
            failure: None,
        }
    }

    /// Begins to connect; [`Tcp::poll_connected`] tells when that is over.
    pub(crate) fn connect(&mut self, to: SocketAddr) -> Result<(), Error> {
        self.socket.start_connect(to).map_err(told)?;
        self.is_connecting = true;
        Ok(())
    }

    /// Waits until it is connected, or [`Tcp::take_failure`] tells why not.
    pub(crate) fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_connecting {
            ready!(self.socket.poll_ready(cx));
            self.is_connecting = false;
            self.failure = self
                .socket
                .finish_connect()
                .err()
                .map(|error| error.downcast().map_or(Errno::Io, errno));
        }
        Poll::Ready(())
    }

    /// Why it could not be connected: told once, as `SO_ERROR` is.
    pub(crate) fn take_failure(&mut self) -> Option<Errno> {
        let _ = self.poll_connected(&mut Context::from_waker(Waker::noop()));
        self.failure.take()
    }

    /// Whether it is connected by now; why not, else.
    pub(crate) fn is_connected(&mut self) -> Result<(), Errno> {
        self.connection().map(drop)
    }

    fn connection(&mut self) -> Result<&Connection, Errno> {
        if let Some(failure) = self.take_failure() {
            return Err(failure);
        }
        if self.is_connecting {
            return Err(Errno::Again);
        }
        self.socket.connection().map(|it| &**it).ok_or(Errno::Notconn)
    }

    fn listen_where_declared(&mut self) -> Result<(), Error> {
        let Some(asked) = self.declared.as_ref().filter(|_| !self.socket.is_listening()) else {
            return Ok(());
        };
        asked.store(true, Ordering::Relaxed);
        for socket in std::iter::once(&mut self.socket).chain(&mut self.twin) {
            socket.start_listen().map_err(told)?;
            socket.finish_listen().map_err(told)?;
        }
        Ok(())
    }
}

impl Udp {
    /// The two ways of it, bound to any port where it is bound to none.
    pub(crate) async fn streams(&mut self) -> Result<&mut (Incoming, Outgoing), Error> {
        if self.socket.local_address().is_err() {
            self.bind(SocketAddr::new(self.socket.family().unspecified(), 0)).await?;
        }
        if self.streams.is_none() {
            self.streams = Some(self.socket.streams(None).map_err(told)?);
        }
        self.streams.as_mut().ok_or(Errno::Io.into())
    }

    pub(crate) async fn bind(&mut self, address: SocketAddr) -> Result<(), Error> {
        self.socket.start_bind(address).await.map_err(told)?;
        self.socket.finish_bind().map_err(told)?;
        self.streams = Some(self.socket.streams(None).map_err(told)?);
        Ok(())
    }

    pub(crate) fn connect(&mut self, peer: SocketAddr) -> Result<(), Error> {
        // The old ones have to be gone before there are others.
        self.streams = None;
        let connected = self.socket.streams(Some(peer));
        let (streams, outcome) = match connected {
            Ok(streams) => (Some(streams), Ok(())),
            // It goes on as it was, connected to nobody.
            Err(error) => (self.socket.streams(None).ok(), Err(told(error))),
        };
        self.streams = streams;
        outcome
    }
}

/// An error of ours as preview1 names it.
pub(crate) fn told(error: SocketError) -> Error {
    match error.downcast() {
        Ok(code) => errno(code).into(),
        Err(trap) => Error::trap(trap),
    }
}

fn errno(code: ErrorCode) -> Errno {
    match code {
        ErrorCode::Unknown => Errno::Io,
        ErrorCode::AccessDenied => Errno::Acces,
        ErrorCode::NotSupported => Errno::Notsup,
        ErrorCode::InvalidArgument | ErrorCode::InvalidState | ErrorCode::NotInProgress => {
            Errno::Inval
        }
        ErrorCode::OutOfMemory => Errno::Nomem,
        ErrorCode::Timeout => Errno::Timedout,
        ErrorCode::ConcurrencyConflict => Errno::Already,
        ErrorCode::WouldBlock => Errno::Again,
        ErrorCode::NewSocketLimit => Errno::Mfile,
        ErrorCode::AddressNotBindable => Errno::Addrnotavail,
        ErrorCode::AddressInUse => Errno::Addrinuse,
        ErrorCode::RemoteUnreachable => Errno::Hostunreach,
        ErrorCode::ConnectionRefused => Errno::Connrefused,
        ErrorCode::ConnectionReset => Errno::Connreset,
        ErrorCode::ConnectionAborted => Errno::Connaborted,
        ErrorCode::DatagramTooLarge => Errno::Msgsize,
        ErrorCode::NameUnresolvable => Errno::Noent,
        ErrorCode::TemporaryResolverFailure | ErrorCode::PermanentResolverFailure => Errno::Io,
    }
}

/// What the kernel says, as preview1 names it.
pub(crate) fn os(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::WouldBlock => Errno::Again,
        io::ErrorKind::BrokenPipe => Errno::Pipe,
        io::ErrorKind::ConnectionReset => Errno::Connreset,
        io::ErrorKind::ConnectionAborted => Errno::Connaborted,
        io::ErrorKind::ConnectionRefused => Errno::Connrefused,
        io::ErrorKind::TimedOut => Errno::Timedout,
        io::ErrorKind::HostUnreachable => Errno::Hostunreach,
        io::ErrorKind::NetworkUnreachable => Errno::Netunreach,
        io::ErrorKind::NotConnected => Errno::Notconn,
        io::ErrorKind::InvalidInput => Errno::Inval,
        io::ErrorKind::Interrupted => Errno::Intr,
        io::ErrorKind::OutOfMemory => Errno::Nomem,
        _ => Errno::Io,
    }
}
