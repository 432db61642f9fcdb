//! A guest's TCP socket: bound, connecting, listening or connected, at the addresses that [`crate::rules`] gives it.
//! Absent: bytes ([`crate::stream`]) and the resource table ([`crate::linker`]).

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use rustix::io::Errno;
use tokio::net::TcpStream;
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;
use wasmtime_wasi::p2::bindings::sockets::tcp::ShutdownType;
use wasmtime_wasi::p2::{Pollable, SocketResult};
use wasmtime_wasi_io::async_trait;

use crate::linker::NetCtx;
use crate::listening::Listening;
use crate::options::{Options, Settings};
use crate::os;
use crate::podnet::{BindError, Binding, Permit, PodNet};
use crate::rules::{Family, Place, Scope};
use crate::stream::Connection;
use crate::table::Proto;
use crate::wasi;

/// The queue of a listener whose guest asked for none: what std asks for. And the longest: Linux' own default limit.
const DEFAULT_BACKLOG: u32 = 128;
const MAX_BACKLOG: u32 = 4096;

/// A TCP socket of a guest.
pub struct TcpSocket {
    net: Arc<PodNet>,
    container: Arc<str>,
    guest: Family,
    /// The family of the socket in `state`.
    beneath: Family,
    options: Options,
    backlog: u32,
    bound: Option<Bound>,
    state: State,
    /// What was started and not finished.
    started: Option<Started>,
    permit: Arc<Permit>,
}

struct Bound {
    binding: Binding,
    /// What the guest asked for, and reads back.
    asked: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Started {
    Bind,
    Connect,
    Listen,
}

/// ```text
/// Fresh ──connect──▶ Connecting ──▶ Connected
///   │                    └────────▶ Closed
///   └─────listen───▶ Listening
/// ```
enum State {
    /// Bound or not.
    Fresh(tokio::net::TcpSocket),
    Connecting(Connecting),
    Connected(Arc<Connection>),
    Listening {
        listener: Arc<Listening>,
        arrived: Option<Arrived>,
        /// What a wait for a connection has come to.
        arriving: Option<Pin<Box<dyn Future<Output = Arrived> + Send>>>,
    },
    /// Its connection did not come about.
    Closed,
}

type Arrived = io::Result<(TcpStream, SocketAddr)>;

struct Connecting {
    to: SocketAddr,
    /// The source that the guest sees where the socket is one of the host's side.
    shown: Option<IpAddr>,
    attempt: Attempt,
}

enum Attempt {
    Waiting(Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>),
    Over(io::Result<TcpStream>),
}

impl Attempt {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Waiting(attempt) = self {
            match attempt.as_mut().poll(cx) {
                Poll::Ready(result) => *self = Self::Over(result),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }
}

impl TcpSocket {
    /// A socket that is bound to nothing; [`ErrorCode::NewSocketLimit`] where the pod has as many as it may.
    pub(crate) fn new(ctx: &NetCtx, guest: Family) -> SocketResult<Self> {
        let permit = Arc::new(ctx.net.take_socket().ok_or(ErrorCode::NewSocketLimit)?);
        let beneath = ctx.net.rules().beneath(guest);
        Ok(Self {
            net: Arc::clone(&ctx.net),
            container: Arc::clone(&ctx.container),
            guest,
            beneath,
            options: Options::default(),
            backlog: DEFAULT_BACKLOG,
            bound: None,
            state: State::Fresh(os::tcp(beneath)?),
            started: None,
            permit,
        })
    }

    pub(crate) fn start_bind(&mut self, asked: SocketAddr) -> SocketResult<()> {
        self.nothing_is_started()?;
        if self.bound.is_some() || !matches!(self.state, State::Fresh(_)) {
            return Err(ErrorCode::InvalidState.into());
        }
        let rules = self.net.rules();
        if !rules.is_of_family(self.guest, asked.ip()) || !wasi::is_unicast(asked.ip()) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let place = rules.bind(self.guest, asked.ip()).ok_or(ErrorCode::AddressNotBindable)?;
        self.bind(place, asked).map_err(wasi::bind_error)?;
        self.started = Some(Started::Bind);
        Ok(())
    }

    /// A socket that is bound to a port of every pod address of a family.
    pub(crate) fn of_port(ctx: &NetCtx, guest: Family, port: u16) -> io::Result<Self> {
        let full = || io::Error::other("the pod has as many sockets as it may");
        let mut socket = Self::new(ctx, guest).map_err(|_| full())?;
        let any = guest.unspecified();
        let place = ctx.net.rules().bind(guest, any).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let bound = socket.bind(place, SocketAddr::new(any, port));
        bound.map_err(|error| error.of_port(place.ip, port))?;
        Ok(socket)
    }

    fn bind(&mut self, place: Place, asked: SocketAddr) -> Result<(), BindError> {
        let State::Fresh(socket) = &mut self.state else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        };
        // A bound socket cannot be bound again, so each further attempt takes a new one.
        let beneath = Family::of(place.ip);
        let mut used = beneath != self.beneath;
        let bound = self.net.bind(
            Proto::Tcp,
            self.guest,
            place,
            asked.port(),
            &self.container,
            |address| {
                if std::mem::replace(&mut used, true) {
                    *socket = os::tcp(beneath)?;
                    self.options.apply(socket.as_fd(), beneath)?;
                    self.beneath = beneath;
                }
                os::bind_tcp(socket, address)?;
                Ok((socket.local_addr()?.port(), ()))
            },
        );
        let ((), binding) = bound?;
        self.bound = Some(Bound { binding, asked: asked.ip() });
        Ok(())
    }

    pub(crate) fn finish_bind(&mut self) -> SocketResult<()> {
        self.finish(Started::Bind)
    }

    pub(crate) fn start_connect(&mut self, asked: SocketAddr) -> SocketResult<()> {
        self.nothing_is_started()?;
        let State::Fresh(_) = self.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        let rules = self.net.rules();
        let is_valid = rules.is_of_family(self.guest, asked.ip())
            && wasi::is_unicast(asked.ip())
            && wasi::is_remote(asked);
        if !is_valid {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let mut route = self.net.route(Proto::Tcp, self.guest, asked).map_err(wasi::refused)?;
        if let Some(bound) = &self.bound {
            route = rules.from_bound(bound.binding.place(), route).map_err(wasi::refused)?;
        }

        let State::Fresh(mut socket) = std::mem::replace(&mut self.state, State::Closed) else {
            return Err(ErrorCode::InvalidState.into());
        };
        if let Some(door) = self.net.door_to(route).cloned() {
            let (options, beneath) = (self.options, Family::of(route.to.ip()));
            self.beneath = beneath;
            let connect = async move {
                let stream = door.connect(route.to).await?;
                options.apply(stream.as_fd(), beneath)?;
                Ok(stream)
            };
            self.begin_to_connect(asked, Some(route.source), connect);
            return Ok(());
        }
        if self.bound.is_none() {
            let beneath = Family::of(route.source);
            if beneath != self.beneath {
                socket = os::tcp(beneath)?;
                self.options.apply(socket.as_fd(), beneath)?;
                self.beneath = beneath;
            }
            os::bind_source(&socket, route.source)?;
        }
        self.begin_to_connect(asked, None, socket.connect(route.to));
        Ok(())
    }

    fn begin_to_connect(
        &mut self,
        to: SocketAddr,
        shown: Option<IpAddr>,
        connect: impl Future<Output = io::Result<TcpStream>> + Send + 'static,
    ) {
        let mut attempt = Attempt::Waiting(Box::pin(connect));
        // The first poll sends the first packet; whoever waits later is woken instead of nobody.
        let _ = attempt.poll(&mut Context::from_waker(Waker::noop()));
        self.state = State::Connecting(Connecting { to, shown, attempt });
        self.started = Some(Started::Connect);
    }

    pub(crate) fn finish_connect(&mut self) -> SocketResult<Arc<Connection>> {
        if self.started != Some(Started::Connect) {
            return Err(ErrorCode::NotInProgress.into());
        }
        let State::Connecting(connecting) = &mut self.state else {
            return Err(ErrorCode::NotInProgress.into());
        };
        if connecting.attempt.poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Err(ErrorCode::WouldBlock.into());
        }
        self.started = None;
        let (to, source) = (connecting.to, connecting.shown);
        let State::Connecting(Connecting { attempt: Attempt::Over(connected), .. }) =
            std::mem::replace(&mut self.state, State::Closed)
        else {
            return Err(ErrorCode::NotInProgress.into());
        };
        let stream = connected.map_err(|e| match Errno::from_io_error(&e) {
            // Not an address, the ports of ours have run out.
            Some(Errno::ADDRNOTAVAIL) => ErrorCode::AddressInUse,
            _ => ErrorCode::from(e),
        })?;
        let actual = stream.local_addr()?;
        let local = if to.ip().to_canonical().is_loopback() && !self.is_own_pod_ip(to.ip()) {
            wasi::loopback(self.guest)
        } else {
            self.net.rules().shown(self.guest, source.unwrap_or(actual.ip()))
        };
        let local = SocketAddr::new(local, actual.port());
        let connection = Connection::new(stream, local, to, Arc::clone(&self.permit));
        self.state = State::Connected(Arc::clone(&connection));
        Ok(connection)
    }

    fn is_own_pod_ip(&self, ip: IpAddr) -> bool {
        self.net.rules().pod_ips().any(|own| own == ip.to_canonical())
    }

    pub(crate) fn start_listen(&mut self) -> SocketResult<()> {
        self.nothing_is_started()?;
        let (Some(bound), State::Fresh(_)) = (&self.bound, &self.state) else {
            return Err(ErrorCode::InvalidState.into());
        };
        let State::Fresh(socket) = std::mem::replace(&mut self.state, State::Closed) else {
            return Err(ErrorCode::InvalidState.into());
        };
        let listener = Arc::new(Listening::new(socket.listen(self.backlog)?));
        bound.binding.listens(&listener);
        self.state = State::Listening { listener, arrived: None, arriving: None };
        self.started = Some(Started::Listen);
        Ok(())
    }

    pub(crate) fn finish_listen(&mut self) -> SocketResult<()> {
        self.finish(Started::Listen)
    }

    /// The next connection that has arrived, as a socket of its own.
    pub(crate) fn accept(&mut self) -> SocketResult<(Self, Arc<Connection>)> {
        let (Some(bound), State::Listening { listener, arrived, .. }) =
            (&self.bound, &mut self.state)
        else {
            return Err(ErrorCode::InvalidState.into());
        };
        if self.started.is_some() {
            return Err(ErrorCode::InvalidState.into());
        }
        // First the right to have it: without, the connection waits in the listener's queue.
        let permit = Arc::new(self.net.take_socket().ok_or(ErrorCode::NewSocketLimit)?);
        let accepted = match arrived.take() {
            Some(accepted) => accepted,
            None => listener.accept_now().ok_or(ErrorCode::WouldBlock)?,
        };
        let (stream, peer) = accepted.map_err(accept_error)?;
        let rules = self.net.rules();
        let remote = SocketAddr::new(rules.shown(self.guest, peer.ip()), peer.port());
        let place = bound.binding.place();
        let by_loopback = remote.ip().to_canonical().is_loopback()
            && !rules.pod_ips().any(|own| own == peer.ip().to_canonical());
        let local = match place.scope {
            Scope::Loopback => bound.asked,
            Scope::Wildcard if by_loopback => wasi::loopback(self.guest),
            Scope::Wildcard | Scope::Pod => rules.shown(self.guest, place.ip),
        };
        let local = SocketAddr::new(local, bound.binding.port());
        let connection = Connection::new(stream, local, remote, Arc::clone(&permit));
        self.net.accepts(&self.container, &connection);
        let socket = Self {
            net: Arc::clone(&self.net),
            container: Arc::clone(&self.container),
            guest: self.guest,
            beneath: self.beneath,
            options: self.options,
            backlog: DEFAULT_BACKLOG,
            bound: None,
            state: State::Connected(Arc::clone(&connection)),
            started: None,
            permit,
        };
        Ok((socket, connection))
    }

    pub(crate) fn local_address(&self) -> SocketResult<SocketAddr> {
        match (&self.state, &self.bound) {
            (State::Connected(connection), _) => Ok(connection.local),
            (State::Fresh(_) | State::Listening { .. }, Some(bound)) => {
                Ok(SocketAddr::new(bound.asked, bound.binding.port()))
            }
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    pub(crate) fn remote_address(&self) -> SocketResult<SocketAddr> {
        match &self.state {
            State::Connected(connection) => Ok(connection.remote),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    pub(crate) fn is_listening(&self) -> bool {
        matches!(self.state, State::Listening { .. })
    }

    pub(crate) fn family(&self) -> Family {
        self.guest
    }

    pub(crate) fn set_backlog(&mut self, value: u64) -> SocketResult<()> {
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let value = u32::try_from(value).unwrap_or(MAX_BACKLOG).min(MAX_BACKLOG);
        match &self.state {
            State::Fresh(_) => {}
            // Linux takes another length while it listens.
            State::Listening { listener, .. } => listener.set_backlog(value as i32)?,
            _ => return Err(ErrorCode::InvalidState.into()),
        }
        self.backlog = value;
        Ok(())
    }

    pub(crate) fn shutdown(&self, how: ShutdownType) -> SocketResult<()> {
        let State::Connected(connection) = &self.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        if let ShutdownType::Receive | ShutdownType::Both = how {
            connection.stop_reading();
        }
        if let ShutdownType::Send | ShutdownType::Both = how {
            connection.stop_writing();
        }
        Ok(())
    }

    /// Its options, where its state has a socket.
    pub(crate) fn options(&mut self) -> SocketResult<Settings<'_>> {
        Ok(Settings::new(fd(&self.state)?, self.beneath, &mut self.options))
    }

    /// The connection, where there is one.
    pub(crate) fn connection(&self) -> Option<&Arc<Connection>> {
        match &self.state {
            State::Connected(connection) => Some(connection),
            _ => None,
        }
    }

    /// Waits for the end of an attempt to connect, or for a connection to accept; in other states there is nothing to wait for.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            State::Connecting(connecting) => connecting.attempt.poll(cx),
            State::Listening { listener, arrived, arriving } if arrived.is_none() => {
                let waiting = arriving.get_or_insert_with(|| {
                    let listener = Arc::clone(listener);
                    Box::pin(async move { listener.accept().await })
                });
                *arrived = Some(ready!(waiting.as_mut().poll(cx)));
                *arriving = None;
                Poll::Ready(())
            }
            _ => Poll::Ready(()),
        }
    }

    fn nothing_is_started(&self) -> SocketResult<()> {
        match self.started {
            None => Ok(()),
            Some(_) => Err(ErrorCode::ConcurrencyConflict.into()),
        }
    }

    fn finish(&mut self, what: Started) -> SocketResult<()> {
        if self.started != Some(what) {
            return Err(ErrorCode::NotInProgress.into());
        }
        self.started = None;
        Ok(())
    }
}

fn fd(state: &State) -> SocketResult<BorrowedFd<'_>> {
    match state {
        State::Fresh(socket) => Ok(socket.as_fd()),
        State::Connected(connection) => Ok(connection.tcp().as_fd()),
        State::Listening { listener, .. } => Ok(listener.as_fd()),
        State::Connecting(_) | State::Closed => Err(ErrorCode::InvalidState.into()),
    }
}

/// Linux hands errors of the connection that it accepts to whoever accepts.
fn accept_error(error: io::Error) -> ErrorCode {
    match Errno::from_io_error(&error) {
        Some(
            Errno::CONNRESET
            | Errno::NETRESET
            | Errno::HOSTUNREACH
            | Errno::HOSTDOWN
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::NONET
            | Errno::OPNOTSUPP,
        ) => ErrorCode::ConnectionAborted,
        // The container was closed under it.
        Some(Errno::INVAL) => ErrorCode::InvalidState,
        _ => error.into(),
    }
}

#[async_trait]
impl Pollable for TcpSocket {
    async fn ready(&mut self) {
        poll_fn(|cx| self.poll_ready(cx)).await;
    }
}
