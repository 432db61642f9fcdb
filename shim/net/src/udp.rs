//! A guest's UDP socket and its two datagram streams: every datagram out is judged, every sender is shown as it was asked.
//! Absent: the resource table ([`crate::linker`]). Datagrams wait in the kernel's buffers, none here.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use rustix::event::PollFlags;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::UdpSocket as OsSocket;
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;
use wasmtime_wasi::p2::{Pollable, SocketError, SocketResult};
use wasmtime_wasi_io::async_trait;

use crate::door::Door;
use crate::linker::NetCtx;
use crate::options::{Options, Settings};
use crate::os;
use crate::podnet::{Binding, Permit, PodNet};
use crate::rules::{Family, Refused};
use crate::stream::BUDGET;
use crate::table::Proto;
use crate::wasi;

/// Datagrams per call, in either direction.
const MAX_DATAGRAMS: usize = 16;

/// The length field of UDP has 16 bits.
const MAX_DATAGRAM_BYTES: usize = 65_535;

/// How many destinations on the loopback a socket remembers, to show their answers as they were asked.
const MAX_REMEMBERED: usize = 64;

/// A UDP socket of a guest.
pub struct UdpSocket {
    net: Arc<PodNet>,
    container: Arc<str>,
    guest: Family,
    /// The family of the socket in `state`.
    beneath: Family,
    options: Options,
    state: State,
    /// A bind was started and not finished.
    is_binding: bool,
    permit: Option<Permit>,
}

enum State {
    Fresh(OsSocket),
    Bound(Arc<Bound>),
}

/// What a bound socket and its streams share.
pub(crate) struct Bound {
    socket: OsSocket,
    net: Arc<PodNet>,
    guest: Family,
    binding: Binding,
    /// What the guest asked to be bound to.
    asked: IpAddr,
    talk: Mutex<Talk>,
    /// The ways to peers beyond the door, oldest first.
    beyond: Mutex<VecDeque<Arc<Beyond>>>,
    _permit: Option<Permit>,
}

/// A socket of the host's side, which knows one peer. A guest's socket has one for each peer outside that it turned to.
struct Beyond {
    peer: SocketAddr,
    socket: OsSocket,
    _permit: Permit,
}

/// Peers beyond the door that a socket remembers: a client has one or two, and each costs a descriptor.
const MAX_BEYOND: usize = 16;

#[derive(Default)]
struct Talk {
    /// The peer that it is connected to.
    peer: Option<Peer>,
    /// Sockets of the pod's own that were asked for by another address than is shown of them, and that address.
    remembered: BTreeMap<SocketAddr, IpAddr>,
    /// The last outside senders that the guest may not turn to by itself, but may answer: the node, asking its pods.
    askers: VecDeque<SocketAddr>,
}

impl Talk {
    fn remember_asker(&mut self, sender: SocketAddr) {
        if self.askers.contains(&sender) {
            return;
        }
        if self.askers.len() == MAX_REMEMBERED {
            self.askers.pop_front();
        }
        self.askers.push_back(sender);
    }
}

/// A peer in the guest's terms and in the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    asked: SocketAddr,
    actual: SocketAddr,
}

impl UdpSocket {
    /// A socket that is bound to nothing; [`ErrorCode::NewSocketLimit`] where the pod has as many as it may.
    pub(crate) fn new(ctx: &NetCtx, guest: Family) -> SocketResult<Self> {
        let permit = ctx.net.take_socket().ok_or(ErrorCode::NewSocketLimit)?;
        let beneath = ctx.net.rules().beneath(guest);
        Ok(Self {
            net: Arc::clone(&ctx.net),
            container: Arc::clone(&ctx.container),
            guest,
            beneath,
            options: Options::default(),
            state: State::Fresh(os::udp(beneath)?),
            is_binding: false,
            permit: Some(permit),
        })
    }

    pub(crate) async fn start_bind(&mut self, asked: SocketAddr) -> SocketResult<()> {
        if self.is_binding {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        if let State::Bound(_) = self.state {
            return Err(ErrorCode::InvalidState.into());
        }
        let rules = self.net.rules();
        if !rules.is_of_family(self.guest, asked.ip()) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let place = rules.bind(self.guest, asked.ip()).ok_or(ErrorCode::AddressNotBindable)?;

        // The socket that was there was for its options; a bound one cannot be bound again.
        let beneath = Family::of(place.ip);
        let bound = self.net.bind(
            Proto::Udp,
            self.guest,
            place,
            asked.port(),
            &self.container,
            |address| {
                let socket = os::udp(beneath)?;
                self.options.apply(socket.as_fd(), beneath)?;
                rustix::net::bind(&socket, &address)?;
                Ok((socket.local_addr()?.port(), socket))
            },
        );
        let (socket, binding) = bound.map_err(wasi::bind_error)?;
        // The kernel's buffer is free from the start; the runtime has to hear of it before guests rely on it.
        socket.writable().await?;
        self.beneath = beneath;
        self.state = State::Bound(Arc::new(Bound {
            socket,
            net: Arc::clone(&self.net),
            guest: self.guest,
            binding,
            asked: asked.ip(),
            talk: Mutex::default(),
            beyond: Mutex::default(),
            _permit: self.permit.take(),
        }));
        self.is_binding = true;
        Ok(())
    }

    pub(crate) fn finish_bind(&mut self) -> SocketResult<()> {
        if !std::mem::take(&mut self.is_binding) {
            return Err(ErrorCode::NotInProgress.into());
        }
        Ok(())
    }

    /// The two streams of the socket, connected to a peer or not. The caller has seen to it that no older ones live.
    pub(crate) fn streams(
        &mut self,
        peer: Option<SocketAddr>,
    ) -> SocketResult<(Incoming, Outgoing)> {
        let State::Bound(bound) = &self.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        if self.is_binding {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        bound.disconnect()?;
        let peer = peer.map(|asked| bound.connect(asked)).transpose()?;
        let incoming = Incoming { bound: Arc::clone(bound), peer };
        let outgoing = Outgoing { bound: Arc::clone(bound), peer, granted: 0 };
        Ok((incoming, outgoing))
    }

    pub(crate) fn local_address(&self) -> SocketResult<SocketAddr> {
        let State::Bound(bound) = &self.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        Ok(SocketAddr::new(bound.asked, bound.binding.port()))
    }

    pub(crate) fn remote_address(&self) -> SocketResult<SocketAddr> {
        let State::Bound(bound) = &self.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        let peer = bound.talk().peer.ok_or(ErrorCode::InvalidState)?;
        Ok(peer.asked)
    }

    pub(crate) fn family(&self) -> Family {
        self.guest
    }

    /// Its options.
    pub(crate) fn options(&mut self) -> Settings<'_> {
        Settings::new(fd(&self.state), self.beneath, &mut self.options)
    }
}

fn fd(state: &State) -> BorrowedFd<'_> {
    match state {
        State::Fresh(socket) => socket.as_fd(),
        State::Bound(bound) => bound.socket.as_fd(),
    }
}

impl Bound {
    fn talk(&self) -> MutexGuard<'_, Talk> {
        // No method panics between two states.
        self.talk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a datagram to `asked` goes, after the judge; remembers what its answer is to be shown as.
    fn judge(&self, asked: SocketAddr) -> SocketResult<Peer> {
        let rules = self.net.rules();
        if !rules.is_of_family(self.guest, asked.ip()) || !wasi::is_remote(asked) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let route = match self.net.route(Proto::Udp, self.guest, asked) {
            Err(Refused::Denied) if self.may_answer(asked) => rules.route_unjudged(asked),
            route => route,
        };
        let route = route.map_err(wasi::refused)?;
        let route = rules.from_bound(self.binding.place(), route).map_err(wasi::refused)?;
        let peer = Peer { asked, actual: route.to };
        if let Some(door) = self.net.door_to(route) {
            self.open_beyond(door, route.to)?;
        }
        if route.inside {
            let remembered = &mut self.talk().remembered;
            if rules.shown(self.guest, route.to.ip()) == asked.ip() {
                remembered.remove(&route.to);
            } else {
                if remembered.len() >= MAX_REMEMBERED && !remembered.contains_key(&route.to) {
                    remembered.pop_first();
                }
                remembered.insert(route.to, asked.ip());
            }
        }
        Ok(peer)
    }

    fn open_beyond(&self, door: &Door, peer: SocketAddr) -> SocketResult<()> {
        let mut beyond = self.beyond.lock().unwrap_or_else(PoisonError::into_inner);
        if !beyond.iter().any(|one| one.peer == peer) {
            if beyond.len() >= MAX_BEYOND {
                beyond.pop_front();
            }
            let permit = self.net.take_socket().ok_or(ErrorCode::NewSocketLimit)?;
            let socket = door.connect_udp(peer)?;
            beyond.push_back(Arc::new(Beyond { peer, socket, _permit: permit }));
        }
        Ok(())
    }

    fn all_beyond(&self) -> Vec<Arc<Beyond>> {
        self.beyond.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn beyond(&self, peer: SocketAddr) -> Option<Arc<Beyond>> {
        self.all_beyond().into_iter().find(|one| one.peer == peer)
    }

    /// The next datagram that has arrived, from whomever.
    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match self.socket.try_recv_from(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
        for one in self.all_beyond() {
            match one.socket.try_recv(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received.map(|length| (length, one.peer)),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn try_send(&self, data: &[u8], to: SocketAddr, is_connected: bool) -> io::Result<usize> {
        match self.beyond(to) {
            // Of the kernel itself: the runtime has not heard yet that a new socket's buffer is free.
            Some(beyond) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(rustix::net::send(&beyond.socket, data, flags)?)
            }
            None if is_connected => self.socket.try_send(data),
            None => self.socket.try_send_to(data, to),
        }
    }

    fn may_answer(&self, asked: SocketAddr) -> bool {
        let asker = SocketAddr::new(asked.ip().to_canonical(), asked.port());
        self.talk().askers.contains(&asker)
    }

    /// Fixes the peer in the kernel, which then drops what others send and tells when nobody listens there.
    fn connect(&self, asked: SocketAddr) -> SocketResult<Peer> {
        let peer = self.judge(asked)?;
        // Beyond the door the socket there is connected, and this one hears of nobody else either: it connects to itself.
        let to = match self.beyond(peer.actual) {
            Some(_) => self.socket.local_addr()?,
            None => peer.actual,
        };
        rustix::net::connect(&self.socket, &to)?;
        self.talk().peer = Some(peer);
        Ok(peer)
    }

    fn disconnect(&self) -> io::Result<()> {
        if self.talk().peer.take().is_none() {
            return Ok(());
        }
        rustix::net::connect_unspec(&self.socket)?;
        // With the peer Linux forgets a port that it has chosen itself.
        if self.socket.local_addr()?.port() != self.binding.port() {
            let address = SocketAddr::new(self.binding.place().ip, self.binding.port());
            rustix::net::bind(&self.socket, &address)?;
        }
        Ok(())
    }

    /// What the guest sees of a sender.
    fn shown(&self, sender: SocketAddr) -> SocketAddr {
        let remembered = self.talk().remembered.get(&sender).copied();
        let ip = remembered.unwrap_or_else(|| self.net.rules().shown(self.guest, sender.ip()));
        SocketAddr::new(ip, sender.port())
    }
}

/// The stream of datagrams to the guest.
pub struct Incoming {
    bound: Arc<Bound>,
    peer: Option<Peer>,
}

impl Incoming {
    /// Up to `max` datagrams that have arrived, and no more than about 64 KiB of them.
    pub(crate) fn receive(&mut self, max: u64) -> SocketResult<Vec<(Vec<u8>, SocketAddr)>> {
        thread_local! {
            // One buffer per thread takes the largest datagram, so that a small one costs only itself.
            static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_DATAGRAM_BYTES].into());
        }
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(MAX_DATAGRAMS);
        let mut received: Vec<(Vec<u8>, SocketAddr)> = Vec::new();
        let mut bytes = 0;
        BUFFER.with_borrow_mut(|buffer| {
            // What came before the socket was connected may be from anybody, and is passed over; a flood of it does not
            // hold the guest for ever.
            for _ in 0..2 * MAX_DATAGRAMS {
                if received.len() >= max || bytes >= BUDGET {
                    break;
                }
                match self.bound.try_receive(buffer) {
                    Ok((_, sender)) if self.peer.is_some_and(|p| p.actual != sender) => {}
                    Ok((length, sender)) => {
                        let sender = SocketAddr::new(sender.ip().to_canonical(), sender.port());
                        if !self.bound.net.rules().may_leave_for(sender.ip()) {
                            self.bound.talk().remember_asker(sender);
                        }
                        let shown = self.peer.map_or_else(|| self.bound.shown(sender), |p| p.asked);
                        received.push((buffer[..length].to_vec(), shown));
                        bytes += length;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) if !received.is_empty() => break,
                    Err(e) => return Err(e.into()),
                }
            }
            Ok(received)
        })
    }
}

#[async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        poll_fn(|cx| self.poll_ready(cx)).await;
    }
}

impl Incoming {
    /// Waits for a datagram. An error of waiting comes back from receiving.
    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        // The peers are those of now: a guest that waits asks no new one.
        let beyond = self.bound.all_beyond();
        let sockets = std::iter::once(&self.bound.socket);
        let sockets = sockets.chain(beyond.iter().map(|one| &one.socket));
        // Each is asked, so that each wakes.
        let ready = sockets.filter(|it| poll_received(it, cx).is_ready()).count();
        if ready > 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Waits until a datagram is there. What the runtime remembers may be out of date: the kernel is asked, and where it has nothing, forgotten.
fn poll_received(socket: &OsSocket, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        ready!(socket.poll_recv_ready(cx)).ok();
        let told = socket.try_io(Interest::READABLE, || os::poll_now(socket, PollFlags::IN));
        if !told.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return Poll::Ready(());
        }
    }
}

/// The stream of datagrams from the guest.
pub struct Outgoing {
    bound: Arc<Bound>,
    peer: Option<Peer>,
    granted: usize,
}

impl Outgoing {
    /// Waits until the kernel takes a datagram. An error of waiting comes back from sending.
    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.bound.socket.poll_send_ready(cx).map(drop)
    }

    /// How many datagrams the next call of [`Outgoing::send`] may have.
    pub(crate) fn check_send(&mut self) -> u64 {
        let is_free =
            self.bound.socket.poll_send_ready(&mut Context::from_waker(Waker::noop())).is_ready();
        self.granted = if is_free { MAX_DATAGRAMS } else { 0 };
        self.granted as u64
    }

    /// Sends them in order and tells how many went; an error only where the first did not.
    pub(crate) fn send(
        &mut self,
        datagrams: impl ExactSizeIterator<Item = (Vec<u8>, Option<SocketAddr>)>,
    ) -> SocketResult<u64> {
        if datagrams.len() == 0 {
            return Ok(0);
        }
        if datagrams.len() > self.granted {
            return Err(SocketError::trap(wasmtime::format_err!(
                "more datagrams than check-send granted"
            )));
        }
        self.granted = 0;
        let mut sent = 0;
        for (data, to) in datagrams {
            match self.send_one(&data, to) {
                Ok(true) => sent += 1,
                Ok(false) => break,
                Err(_) if sent > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(sent)
    }

    /// `false`: the kernel's buffer is full.
    fn send_one(&self, data: &[u8], to: Option<SocketAddr>) -> SocketResult<bool> {
        let sent = match (self.peer, to) {
            // The peer was judged when the socket was connected to it.
            (Some(peer), None) => self.bound.try_send(data, peer.actual, true),
            (Some(peer), Some(to)) if peer.asked == to => {
                self.bound.try_send(data, peer.actual, true)
            }
            (Some(_), Some(_)) | (None, None) => return Err(ErrorCode::InvalidArgument.into()),
            (None, Some(to)) => {
                let peer = self.bound.judge(to)?;
                self.bound.try_send(data, peer.actual, false)
            }
        };
        match sent {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

#[async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {
        poll_fn(|cx| self.poll_ready(cx)).await;
    }
}

#[async_trait]
impl Pollable for UdpSocket {
    async fn ready(&mut self) {
        // Nothing that is started takes time.
    }
}
