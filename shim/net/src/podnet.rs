//! One pod's network, shared by its containers: binds, listeners, connections in and out, the quota, the stopping and closing.
//! Absent: guests' sockets ([`crate::tcp`], [`crate::udp`]). Idle, it is its addresses and a counter: no socket, no timer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use copepod_shim::protocol::PodSandbox;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::calls::{self, Call, Watch};
use crate::door::Door;
use crate::listening::Listening;
use crate::lookup::{LookupError, Names};
use crate::os;
use crate::rules::{Family, OUTSIDE_V4, OUTSIDE_V6, Place, Refused, Route, Rules};
use crate::stream::Connection;
use crate::table::{Claim, EntryId, Proto, Table};

/// The queue of connections that an HTTP listener has not accepted yet: what `net.core.somaxconn` is by default (4096)
/// allows more, but whoever waits behind a thousand others is better told so.
const HTTP_BACKLOG: u32 = 1024;

/// How long a connection attempt may take while another address is left to try; TCP sends its first SYN again after one
/// second and after three.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_secs(4);

/// How often the kernel is asked for another free port, where the one it chose is held on another address of the pod.
const FREE_PORT_ATTEMPTS: u32 = 16;

/// The network of one pod.
pub struct PodNet {
    rules: Rules,
    names: Names,
    door: Option<Arc<Door>>,
    table: Mutex<Table>,
    sockets: Arc<Semaphore>,
    /// Connections that containers accepted, also some that are gone.
    accepted: Mutex<Vec<(Arc<str>, Weak<Connection>)>>,
}

impl PodNet {
    /// The network of the pod of this sandbox, with nothing in it.
    pub fn new(sandbox: &PodSandbox) -> Arc<Self> {
        Self::behind(None, sandbox)
    }

    /// The same, where the way to other addresses than pods' is through this door.
    pub fn behind(door: Option<Arc<Door>>, sandbox: &PodSandbox) -> Arc<Self> {
        Arc::new(Self {
            rules: Rules::new(sandbox),
            names: Names::new(door.clone(), sandbox),
            door,
            table: Mutex::default(),
            sockets: Arc::new(Semaphore::new(sandbox.max_sockets as usize)),
            accepted: Mutex::default(),
        })
    }

    /// Listens on the port at every pod IP, for a container whose requests the platform itself accepts; on a pod without IPv4 also where
    /// `127.0.0.1` leads. The listeners close when they are dropped or their container is closed.
    ///
    /// The error names the port and, where it is another container of the pod, the holder.
    pub fn listen(self: &Arc<Self>, container: &str, port: u16) -> io::Result<Vec<Listener>> {
        let container: Arc<str> = container.into();
        self.listening_places().map(|place| self.listen_at(&container, place, port)).collect()
    }

    /// Where the platform listens for a container.
    fn listening_places(&self) -> impl Iterator<Item = Place> {
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let families = any.into_iter().filter(|ip| ip.is_ipv4() || self.rules.has(Family::V6));
        families.filter_map(|any| self.rules.bind(Family::of(any), any))
    }

    fn listen_at(
        self: &Arc<Self>,
        container: &Arc<str>,
        place: Place,
        port: u16,
    ) -> io::Result<Listener> {
        let guest = Family::of(place.ip);
        let bound = self.bind(Proto::Tcp, guest, place, port, container, |address| {
            let socket = os::tcp(guest)?;
            os::bind_tcp(&socket, address)?;
            Ok((socket.local_addr()?.port(), socket))
        });
        let (socket, binding) = bound.map_err(|error| error.of_port(place.ip, port))?;
        Ok(Listener::new(socket.listen(HTTP_BACKLOG)?, binding))
    }

    /// Goes on with a socket that listens already, at a pod IP: of a runner that hands its container over. Both may accept.
    ///
    /// # Errors
    /// It does not listen, or not at a pod IP; another container of the pod holds the port.
    pub fn go_on_listening(
        self: &Arc<Self>,
        container: &str,
        socket: OwnedFd,
    ) -> io::Result<Listener> {
        let refused = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        if !rustix::net::sockopt::socket_acceptconn(&socket)? {
            return Err(refused("a socket that was handed over does not listen".into()));
        }
        let socket = std::net::TcpListener::from(socket);
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket)?;
        let address = socket.local_addr()?;
        let place = self.listening_places().find(|place| place.ip == address.ip());
        let place = place.ok_or_else(|| {
            refused(format!("a socket that was handed over listens at {address}"))
        })?;
        let claim = Claim {
            proto: Proto::Tcp,
            port: address.port(),
            place,
            guest: Family::of(address.ip()),
            container: container.into(),
        };
        let binding =
            self.hold(claim).map_err(|error| error.of_port(address.ip(), address.port()))?;
        Ok(Listener::new(socket, binding))
    }

    /// The sockets on which a container listens, for a runner that goes on with them.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn listening_sockets(&self, container: &str) -> io::Result<Vec<OwnedFd>> {
        let listeners: Vec<_> = self.table().listeners(container).collect();
        listeners.iter().map(|listener| listener.as_fd().try_clone_to_owned()).collect()
    }

    /// From now on a container's listeners are another runner's: its end stops none of them.
    pub fn share_listeners(&self, container: &str) {
        self.table().share(container);
    }

    /// Connects to a port of the pod as from outside it: what probes and port-forward see. A port that is bound to the
    /// pod's loopback alone refuses. The connection is not counted against the pod's sockets.
    pub async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the pod has no address");
        for ip in self.rules.pod_ips() {
            let source = match Family::of(ip) {
                Family::V4 => OUTSIDE_V4.into(),
                Family::V6 => OUTSIDE_V6.into(),
            };
            match os::connect(None, source, SocketAddr::new(ip, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Connects out of the pod to a name or an address, as a container of it would: for `wasi:http`. Each address that the
    /// name has is judged, then tried, until one answers.
    ///
    /// How long it may take altogether is the caller's to limit; only an attempt with another one behind it is cut short.
    pub async fn connect(&self, host: &str, port: u16) -> Result<PodStream, DialError> {
        let permit = self.take_socket().ok_or(DialError::SocketLimit)?;
        let addresses = self
            .resolve(host)
            .await
            .map_err(|source| DialError::Name { name: host.to_owned(), source })?;
        let mut last = DialError::Name { name: host.to_owned(), source: LookupError::NotFound };
        let mut left = addresses.len();
        for ip in addresses {
            left -= 1;
            match self.connect_to(SocketAddr::new(ip, port), left > 0).await {
                Ok(stream) => return Ok(PodStream { stream, _permit: permit }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, asked: SocketAddr, more: bool) -> Result<TcpStream, DialError> {
        let route = self.route(Proto::Tcp, Family::of(asked.ip()), asked).map_err(|e| match e {
            Refused::Denied => DialError::Denied(asked.ip()),
            Refused::Unreachable => DialError::Unreachable(asked),
        })?;
        let connect = os::connect(self.door_to(route), route.source, route.to);
        let connected = if more {
            match tokio::time::timeout(NEXT_ADDRESS_AFTER, connect).await {
                Ok(connected) => connected,
                Err(_) => return Err(DialError::TimedOut(asked)),
            }
        } else {
            connect.await
        };
        connected.map_err(|source| DialError::from_os(asked, source))
    }

    /// The addresses of a name by the pod's own files and name servers. Nothing is judged yet: a name's address may be
    /// another one by the time it is used.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        self.names.resolve(name, |server, port| self.route_to_server(server, port)).await
    }

    /// How a name server is reached. The agent vouches for it, so what no guest may reach is allowed here (a node-local
    /// cache has a link-local address); but a loopback is the pod's own, never the runner's.
    fn route_to_server(&self, server: IpAddr, port: u16) -> Option<Route> {
        let server = SocketAddr::new(server, port);
        match self.route(Proto::Udp, Family::of(server.ip()), server) {
            Err(Refused::Denied) => self.rules.route_unjudged(server).ok(),
            routed => routed.ok(),
        }
    }

    /// Takes the ports of a container that is over and stops its listeners; its other sockets close with its store.
    pub fn close_container(&self, container: &str) {
        self.close(Some(container));
    }

    /// [`PodNet::close_container`] for all containers of the pod.
    pub fn close_all(&self) {
        self.close(None);
    }

    fn close(&self, container: Option<&str>) {
        let listeners = self.table().take_container(container);
        for listener in listeners {
            listener.stop();
        }
    }

    /// Lets nobody new connect to a container that is to stop, and resolves once nobody is connected who waits for it. Those who the
    /// kernel has told that they are connected are still accepted by the guest, and after them nobody.
    ///
    /// A connection that the container accepted is waited for while it is in use: while an answer is owed on it, and until it has been
    /// quiet for a second after one. Without such connections it takes no time, with listeners a moment.
    pub async fn see_callers_off(&self, container: &str) {
        let listeners: Vec<_> = self.table().listeners(container).collect();
        if !listeners.is_empty() {
            listeners.iter().for_each(|listener| listener.ignore_newcomers());
            // Handshakes under way end in this time, and who was let in at this very moment is seen.
            tokio::time::sleep(calls::LOOK).await;
            listeners.iter().for_each(|listener| listener.turn_away(self.sockets_left()));
        }
        let mut watch = Watch::default();
        while watch.is_any_in_use(self.calls(container), Instant::now())
            || listeners.iter().any(|listener| listener.waiting() > 0)
        {
            tokio::time::sleep(calls::LOOK).await;
        }
    }

    fn calls(&self, container: &str) -> Vec<Call> {
        let accepted = self.accepted();
        let own = accepted.iter().filter(|(by, _)| **by == *container);
        own.filter_map(|(_, connection)| connection.upgrade()?.call()).collect()
    }

    /// A container has accepted a connection.
    pub(crate) fn accepts(&self, container: &Arc<str>, connection: &Arc<Connection>) {
        let mut accepted = self.accepted();
        if accepted.len() == accepted.capacity() {
            // Only then: each is looked at twice in its life on the average.
            accepted.retain(|(_, connection)| connection.strong_count() > 0);
        }
        accepted.push((Arc::clone(container), Arc::downgrade(connection)));
    }

    fn accepted(&self) -> MutexGuard<'_, Vec<(Arc<str>, Weak<Connection>)>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sockets the pod may still open.
    pub fn sockets_left(&self) -> usize {
        self.sockets.available_permits()
    }

    /// The pod's rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) fn route(
        &self,
        proto: Proto,
        guest: Family,
        asked: SocketAddr,
    ) -> Result<Route, Refused> {
        self.rules.route(guest, asked, |family, port| {
            self.table().answers_for_loopback(proto, family, port)
        })
    }

    /// The door through which a route leads, if it does.
    pub(crate) fn door_to(&self, route: Route) -> Option<&Arc<Door>> {
        self.door.as_ref().filter(|door| !route.inside && door.leads_to(route.to.ip()))
    }

    /// Binds with `bind`, which makes the socket and tells the port that it got, and holds that port in the table.
    pub(crate) fn bind<S>(
        self: &Arc<Self>,
        proto: Proto,
        guest: Family,
        place: Place,
        port: u16,
        container: &Arc<str>,
        mut bind: impl FnMut(SocketAddr) -> io::Result<(u16, S)>,
    ) -> Result<(S, Binding), BindError> {
        let claim = |port| Claim { proto, port, place, guest, container: Arc::clone(container) };
        let address = SocketAddr::new(place.ip, port);
        if port != 0 {
            // The table first: its holder is the better answer to who stands in the way.
            let binding = self.hold(claim(port))?;
            let (_, socket) = bind(address)?;
            return Ok((socket, binding));
        }
        let mut attempts = FREE_PORT_ATTEMPTS;
        loop {
            let (port, socket) = bind(address)?;
            match self.hold(claim(port)) {
                Ok(binding) => return Ok((socket, binding)),
                Err(held) if attempts == 1 => return Err(held),
                Err(_) => attempts -= 1,
            }
        }
    }

    fn hold(self: &Arc<Self>, claim: Claim) -> Result<Binding, BindError> {
        let (proto, port, place) = (claim.proto, claim.port, claim.place);
        let id = self.table().hold(claim).map_err(BindError::Held)?;
        Ok(Binding { net: Arc::clone(self), proto, port, place, id })
    }

    /// The right to one more socket, which ends with the value; `None`: the pod has as many as it may.
    pub(crate) fn take_socket(&self) -> Option<Permit> {
        Arc::clone(&self.sockets).try_acquire_owned().ok().map(|permit| Permit { _permit: permit })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every method of the table leaves it whole, also one that panics for want of memory.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to one socket of the pod's quota.
#[derive(Debug)]
pub(crate) struct Permit {
    _permit: OwnedSemaphorePermit,
}

/// Why a bind did not come about.
#[derive(Debug)]
pub(crate) enum BindError {
    /// This container holds the port.
    Held(Arc<str>),
    /// The kernel refused.
    Os(io::Error),
}

impl BindError {
    /// The same in words, for a port of the platform's choice.
    pub(crate) fn of_port(self, ip: IpAddr, port: u16) -> io::Error {
        match self {
            Self::Held(holder) => io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("port {port} is held by container {holder}"),
            ),
            Self::Os(source) => {
                io::Error::new(source.kind(), format!("cannot bind port {port} of {ip}: {source}"))
            }
        }
    }
}

impl From<io::Error> for BindError {
    fn from(error: io::Error) -> Self {
        Self::Os(error)
    }
}

/// A held port; dropping it lets it go.
pub(crate) struct Binding {
    net: Arc<PodNet>,
    proto: Proto,
    port: u16,
    place: Place,
    id: EntryId,
}

impl Binding {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// From now on closing the container stops this listener.
    pub(crate) fn listens(&self, listener: &Arc<Listening>) {
        self.net.table().listens(self.proto, self.port, self.id, listener);
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        self.net.table().release(self.proto, self.port, self.id);
    }
}

/// A port on which the platform accepts for a container.
pub struct Listener {
    socket: Arc<Listening>,
    binding: Binding,
}

impl Listener {
    fn new(socket: TcpListener, binding: Binding) -> Self {
        let socket = Arc::new(Listening::new(socket));
        binding.listens(&socket);
        Self { socket, binding }
    }

    /// The next connection, and its peer as a guest is to see it. It waits where the pod has as many sockets as it may.
    ///
    /// After [`PodNet::close_container`] it fails for good, with `InvalidInput`; other errors are of one connection.
    pub async fn accept(&self) -> io::Result<(PodStream, SocketAddr)> {
        let (stream, peer) = self.socket.accept().await?;
        let net = &self.binding.net;
        let permit = Arc::clone(&net.sockets).acquire_owned().await.map_err(io::Error::other)?;
        let guest = Family::of(self.binding.place.ip);
        let shown = SocketAddr::new(net.rules.shown(guest, peer.ip()), peer.port());
        Ok((PodStream { stream, _permit: Permit { _permit: permit } }, shown))
    }

    /// Lets nobody new connect. Who had begun to is connected once this resolves, and is had by [`Listener::accept`].
    pub async fn turn_away(&self) {
        self.socket.ignore_newcomers();
        tokio::time::sleep(calls::LOOK).await;
    }

    /// The address and port that it listens on.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.binding.place.ip, self.binding.port)
    }
}

/// A connection that counts against its pod's sockets.
#[derive(Debug)]
pub struct PodStream {
    stream: TcpStream,
    _permit: Permit,
}

impl PodStream {
    /// The connection itself, for its options.
    pub fn tcp(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsyncRead for PodStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PodStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Why a connection out of the pod did not come about; one variant per error of `wasi:http` that it becomes.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address, or nobody could say: `DNS-error`, or `DNS-timeout` for [`LookupError::TimedOut`].
    #[error("cannot resolve {name}")]
    Name {
        /// The name.
        name: String,
        /// Why.
        source: LookupError,
    },
    /// The pod may not go there: `destination-IP-prohibited`.
    #[error("the pod may not reach {0}")]
    Denied(IpAddr),
    /// No route, or the pod has no address of that family: `destination-IP-unroutable`.
    #[error("no route to {0}")]
    Unreachable(SocketAddr),
    /// Nobody listens there: `connection-refused`.
    #[error("connection to {0} refused")]
    Refused(SocketAddr),
    /// No answer: `connection-timeout`.
    #[error("no answer from {0}")]
    TimedOut(SocketAddr),
    /// The pod has as many sockets as it may: `connection-limit-reached`.
    #[error("the pod has reached its limit of open sockets")]
    SocketLimit,
    /// Anything else: `internal-error`.
    #[error("cannot connect to {to}")]
    Io {
        /// The address.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl DialError {
    fn from_os(to: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused(to),
            io::ErrorKind::TimedOut => Self::TimedOut(to),
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Self::Unreachable(to),
            _ => Self::Io { to, source },
        }
    }
}
