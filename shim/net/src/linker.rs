//! `wasi:sockets` 0.2 for any store state that has a [`NetCtx`] and a resource table.
//!
//! The host traits are wasmtime-wasi's, and so are the types of their resources; but a `Resource` is only an index, and
//! what lies in the table under it are the sockets of this crate. Absent: rules, and what a socket does.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::network::{
    self, ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Network,
};
use wasmtime_wasi::p2::bindings::sockets::{
    instance_network, ip_name_lookup, tcp, tcp_create_socket, udp, udp_create_socket,
};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, Pollable, SocketError, SocketResult, subscribe,
};
use wasmtime_wasi_io::async_trait;

use crate::lookup::LookupError;
use crate::podnet::{Permit, PodNet};
use crate::stream::{Connection, Input, Output};
use crate::tcp::TcpSocket;
use crate::udp::{Incoming, Outgoing, UdpSocket};
use crate::wasi;

/// What a store needs to take part in its pod's network.
pub struct NetCtx {
    /// The pod's network.
    pub net: Arc<PodNet>,
    /// The container, in whose name ports are held.
    pub container: Arc<str>,
}

impl NetCtx {
    /// A container's share of its pod's network.
    pub fn new(net: Arc<PodNet>, container: Arc<str>) -> Self {
        Self { net, container }
    }
}

/// A store state with a network.
pub trait NetView: Send {
    /// The network and the table that holds the guest's sockets.
    fn net(&mut self) -> (&mut NetCtx, &mut ResourceTable);
}

/// Adds the seven interfaces of `wasi:sockets` 0.2.
pub fn add_to_linker<T: NetView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    let unstable = network::LinkOptions::default();
    instance_network::add_to_linker::<T, PodSockets>(linker, sockets)?;
    network::add_to_linker::<T, PodSockets>(linker, &unstable, sockets)?;
    ip_name_lookup::add_to_linker::<T, PodSockets>(linker, sockets)?;
    tcp_create_socket::add_to_linker::<T, PodSockets>(linker, sockets)?;
    tcp::add_to_linker::<T, PodSockets>(linker, sockets)?;
    udp_create_socket::add_to_linker::<T, PodSockets>(linker, sockets)?;
    udp::add_to_linker::<T, PodSockets>(linker, sockets)
}

fn sockets<T: NetView>(state: &mut T) -> Sockets<'_> {
    let (ctx, table) = state.net();
    Sockets { ctx, table }
}

struct PodSockets;

impl HasData for PodSockets {
    type Data<'a> = Sockets<'a>;
}

/// The host's side of `wasi:sockets` for one store: implements all of its host traits.
pub struct Sockets<'a> {
    /// The container's share of the network.
    pub ctx: &'a mut NetCtx,
    /// The store's resources.
    pub table: &'a mut ResourceTable,
}

/// The right to use the network; every guest has it, so it says nothing.
struct PodNetwork;

type TcpHandle = Resource<tcp::TcpSocket>;
type UdpHandle = Resource<udp::UdpSocket>;
type IncomingHandle = Resource<udp::IncomingDatagramStream>;
type OutgoingHandle = Resource<udp::OutgoingDatagramStream>;
type LookupHandle = Resource<ip_name_lookup::ResolveAddressStream>;
type InputHandle = Resource<DynInputStream>;
type OutputHandle = Resource<DynOutputStream>;

/// The same index as what really lies under it, borrowed.
fn borrow<Own: 'static, Theirs: 'static>(handle: &Resource<Theirs>) -> Resource<Own> {
    Resource::new_borrow(handle.rep())
}

/// The same index as what really lies under it, to take it out.
fn taken<Own: 'static, Theirs: 'static>(handle: Resource<Theirs>) -> Resource<Own> {
    Resource::new_own(handle.rep())
}

impl Sockets<'_> {
    fn tcp(&mut self, handle: &TcpHandle) -> SocketResult<&mut TcpSocket> {
        Ok(self.table.get_mut(&borrow(handle))?)
    }

    fn udp(&mut self, handle: &UdpHandle) -> SocketResult<&mut UdpSocket> {
        Ok(self.table.get_mut(&borrow(handle))?)
    }

    fn check(&self, network: &Resource<Network>) -> SocketResult<()> {
        self.table.get::<PodNetwork>(&borrow(network))?;
        Ok(())
    }

    fn push<Own: Send + 'static, Theirs: 'static>(
        &mut self,
        own: Own,
    ) -> wasmtime::Result<Resource<Theirs>> {
        Ok(taken(self.table.push(own)?))
    }

    fn push_streams(
        &mut self,
        socket: &Resource<TcpSocket>,
        connection: &Arc<Connection>,
    ) -> SocketResult<(InputHandle, OutputHandle)> {
        let input: DynInputStream = Box::new(Input(Arc::clone(connection)));
        let output: DynOutputStream = Box::new(Output(Arc::clone(connection)));
        let input = self.table.push_child(input, socket)?;
        let output = self.table.push_child(output, socket)?;
        Ok((input, output))
    }
}

impl network::Host for Sockets<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        let error = self.table.get(&error)?;
        Ok(error.downcast_ref::<std::io::Error>().map(ErrorCode::from))
    }
}

impl network::HostNetwork for Sockets<'_> {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        self.table.delete::<PodNetwork>(taken(network))?;
        Ok(())
    }
}

impl instance_network::Host for Sockets<'_> {
    fn instance_network(&mut self) -> wasmtime::Result<Resource<Network>> {
        self.push(PodNetwork)
    }
}

impl tcp_create_socket::Host for Sockets<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<TcpHandle> {
        let socket = TcpSocket::new(self.ctx, wasi::family(family))?;
        self.push(socket).map_err(SocketError::trap)
    }
}

impl tcp::Host for Sockets<'_> {}

impl tcp::HostTcpSocket for Sockets<'_> {
    async fn start_bind(
        &mut self,
        socket: TcpHandle,
        network: Resource<Network>,
        local: IpSocketAddress,
    ) -> SocketResult<()> {
        self.check(&network)?;
        self.tcp(&socket)?.start_bind(local.into())
    }

    fn finish_bind(&mut self, socket: TcpHandle) -> SocketResult<()> {
        self.tcp(&socket)?.finish_bind()
    }

    fn start_connect(
        &mut self,
        socket: TcpHandle,
        network: Resource<Network>,
        remote: IpSocketAddress,
    ) -> SocketResult<()> {
        self.check(&network)?;
        self.tcp(&socket)?.start_connect(remote.into())
    }

    fn finish_connect(&mut self, socket: TcpHandle) -> SocketResult<(InputHandle, OutputHandle)> {
        let connection = self.tcp(&socket)?.finish_connect()?;
        self.push_streams(&borrow(&socket), &connection)
    }

    async fn start_listen(&mut self, socket: TcpHandle) -> SocketResult<()> {
        self.tcp(&socket)?.start_listen()
    }

    fn finish_listen(&mut self, socket: TcpHandle) -> SocketResult<()> {
        self.tcp(&socket)?.finish_listen()
    }

    fn accept(
        &mut self,
        socket: TcpHandle,
    ) -> SocketResult<(TcpHandle, InputHandle, OutputHandle)> {
        let (accepted, connection) = self.tcp(&socket)?.accept()?;
        let accepted = self.table.push(accepted)?;
        let (input, output) = self.push_streams(&accepted, &connection)?;
        Ok((taken(accepted), input, output))
    }

    fn local_address(&mut self, socket: TcpHandle) -> SocketResult<IpSocketAddress> {
        Ok(self.tcp(&socket)?.local_address()?.into())
    }

    fn remote_address(&mut self, socket: TcpHandle) -> SocketResult<IpSocketAddress> {
        Ok(self.tcp(&socket)?.remote_address()?.into())
    }

    fn is_listening(&mut self, socket: TcpHandle) -> wasmtime::Result<bool> {
        Ok(self.tcp(&socket)?.is_listening())
    }

    fn address_family(&mut self, socket: TcpHandle) -> wasmtime::Result<IpAddressFamily> {
        Ok(wasi::address_family(self.tcp(&socket)?.family()))
    }

    fn set_listen_backlog_size(&mut self, socket: TcpHandle, value: u64) -> SocketResult<()> {
        self.tcp(&socket)?.set_backlog(value)
    }

    fn keep_alive_enabled(&mut self, socket: TcpHandle) -> SocketResult<bool> {
        self.tcp(&socket)?.options()?.keep_alive()
    }

    fn set_keep_alive_enabled(&mut self, socket: TcpHandle, value: bool) -> SocketResult<()> {
        self.tcp(&socket)?.options()?.set_keep_alive(value)
    }

    fn keep_alive_idle_time(&mut self, socket: TcpHandle) -> SocketResult<u64> {
        self.tcp(&socket)?.options()?.keep_alive_idle()
    }

    fn set_keep_alive_idle_time(&mut self, socket: TcpHandle, value: u64) -> SocketResult<()> {
        self.tcp(&socket)?.options()?.set_keep_alive_idle(value)
    }

    fn keep_alive_interval(&mut self, socket: TcpHandle) -> SocketResult<u64> {
        self.tcp(&socket)?.options()?.keep_alive_interval()
    }

    fn set_keep_alive_interval(&mut self, socket: TcpHandle, value: u64) -> SocketResult<()> {
        self.tcp(&socket)?.options()?.set_keep_alive_interval(value)
    }

    fn keep_alive_count(&mut self, socket: TcpHandle) -> SocketResult<u32> {
        self.tcp(&socket)?.options()?.keep_alive_count()
    }

    fn set_keep_alive_count(&mut self, socket: TcpHandle, value: u32) -> SocketResult<()> {
        self.tcp(&socket)?.options()?.set_keep_alive_count(value)
    }

    fn hop_limit(&mut self, socket: TcpHandle) -> SocketResult<u8> {
        self.tcp(&socket)?.options()?.hop_limit()
    }

    fn set_hop_limit(&mut self, socket: TcpHandle, value: u8) -> SocketResult<()> {
        self.tcp(&socket)?.options()?.set_hop_limit(value)
    }

    fn receive_buffer_size(&mut self, socket: TcpHandle) -> SocketResult<u64> {
        self.tcp(&socket)?.options()?.receive_buffer()
    }

    fn set_receive_buffer_size(&mut self, socket: TcpHandle, value: u64) -> SocketResult<()> {
        self.tcp(&socket)?.options()?.set_receive_buffer(value)
    }

    fn send_buffer_size(&mut self, socket: TcpHandle) -> SocketResult<u64> {
        self.tcp(&socket)?.options()?.send_buffer()
    }

    fn set_send_buffer_size(&mut self, socket: TcpHandle, value: u64) -> SocketResult<()> {
        self.tcp(&socket)?.options()?.set_send_buffer(value)
    }

    fn subscribe(&mut self, socket: TcpHandle) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe::<TcpSocket>(self.table, borrow(&socket))
    }

    fn shutdown(&mut self, socket: TcpHandle, how: tcp::ShutdownType) -> SocketResult<()> {
        self.tcp(&socket)?.shutdown(how)
    }

    fn drop(&mut self, socket: TcpHandle) -> wasmtime::Result<()> {
        self.table.delete::<TcpSocket>(taken(socket))?;
        Ok(())
    }
}

impl udp_create_socket::Host for Sockets<'_> {
    async fn create_udp_socket(&mut self, family: IpAddressFamily) -> SocketResult<UdpHandle> {
        let socket = UdpSocket::new(self.ctx, wasi::family(family))?;
        self.push(socket).map_err(SocketError::trap)
    }
}

impl udp::Host for Sockets<'_> {}

impl udp::HostUdpSocket for Sockets<'_> {
    async fn start_bind(
        &mut self,
        socket: UdpHandle,
        network: Resource<Network>,
        local: IpSocketAddress,
    ) -> SocketResult<()> {
        self.check(&network)?;
        self.udp(&socket)?.start_bind(local.into()).await
    }

    fn finish_bind(&mut self, socket: UdpHandle) -> SocketResult<()> {
        self.udp(&socket)?.finish_bind()
    }

    async fn stream(
        &mut self,
        socket: UdpHandle,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<(IncomingHandle, OutgoingHandle)> {
        let socket: Resource<UdpSocket> = borrow(&socket);
        let has_streams = self
            .table
            .iter_children(&socket)?
            .any(|child| child.is::<Incoming>() || child.is::<Outgoing>());
        if has_streams {
            return Err(SocketError::trap(wasmtime::format_err!(
                "the socket's former datagram streams are not dropped yet"
            )));
        }
        let streams = self.table.get_mut(&socket)?.streams(remote.map(SocketAddr::from))?;
        let incoming = self.table.push_child(streams.0, &socket)?;
        let outgoing = self.table.push_child(streams.1, &socket)?;
        Ok((taken(incoming), taken(outgoing)))
    }

    fn local_address(&mut self, socket: UdpHandle) -> SocketResult<IpSocketAddress> {
        Ok(self.udp(&socket)?.local_address()?.into())
    }

    fn remote_address(&mut self, socket: UdpHandle) -> SocketResult<IpSocketAddress> {
        Ok(self.udp(&socket)?.remote_address()?.into())
    }

    fn address_family(&mut self, socket: UdpHandle) -> wasmtime::Result<IpAddressFamily> {
        Ok(wasi::address_family(self.udp(&socket)?.family()))
    }

    fn unicast_hop_limit(&mut self, socket: UdpHandle) -> SocketResult<u8> {
        self.udp(&socket)?.options().hop_limit()
    }

    fn set_unicast_hop_limit(&mut self, socket: UdpHandle, value: u8) -> SocketResult<()> {
        self.udp(&socket)?.options().set_hop_limit(value)
    }

    fn receive_buffer_size(&mut self, socket: UdpHandle) -> SocketResult<u64> {
        self.udp(&socket)?.options().receive_buffer()
    }

    fn set_receive_buffer_size(&mut self, socket: UdpHandle, value: u64) -> SocketResult<()> {
        self.udp(&socket)?.options().set_receive_buffer(value)
    }

    fn send_buffer_size(&mut self, socket: UdpHandle) -> SocketResult<u64> {
        self.udp(&socket)?.options().send_buffer()
    }

    fn set_send_buffer_size(&mut self, socket: UdpHandle, value: u64) -> SocketResult<()> {
        self.udp(&socket)?.options().set_send_buffer(value)
    }

    fn subscribe(&mut self, socket: UdpHandle) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe::<UdpSocket>(self.table, borrow(&socket))
    }

    fn drop(&mut self, socket: UdpHandle) -> wasmtime::Result<()> {
        self.table.delete::<UdpSocket>(taken(socket))?;
        Ok(())
    }
}

impl udp::HostIncomingDatagramStream for Sockets<'_> {
    fn receive(
        &mut self,
        stream: IncomingHandle,
        max_results: u64,
    ) -> SocketResult<Vec<udp::IncomingDatagram>> {
        let received = self.table.get_mut::<Incoming>(&borrow(&stream))?.receive(max_results)?;
        let datagram = |(data, from): (Vec<u8>, SocketAddr)| udp::IncomingDatagram {
            data,
            remote_address: from.into(),
        };
        Ok(received.into_iter().map(datagram).collect())
    }

    fn subscribe(&mut self, stream: IncomingHandle) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe::<Incoming>(self.table, borrow(&stream))
    }

    fn drop(&mut self, stream: IncomingHandle) -> wasmtime::Result<()> {
        self.table.delete::<Incoming>(taken(stream))?;
        Ok(())
    }
}

impl udp::HostOutgoingDatagramStream for Sockets<'_> {
    fn check_send(&mut self, stream: OutgoingHandle) -> SocketResult<u64> {
        Ok(self.table.get_mut::<Outgoing>(&borrow(&stream))?.check_send())
    }

    fn send(
        &mut self,
        stream: OutgoingHandle,
        datagrams: Vec<udp::OutgoingDatagram>,
    ) -> SocketResult<u64> {
        let stream = self.table.get_mut::<Outgoing>(&borrow(&stream))?;
        stream.send(datagrams.into_iter().map(|d| (d.data, d.remote_address.map(SocketAddr::from))))
    }

    fn subscribe(&mut self, stream: OutgoingHandle) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe::<Outgoing>(self.table, borrow(&stream))
    }

    async fn drop(&mut self, stream: OutgoingHandle) -> wasmtime::Result<()> {
        self.table.delete::<Outgoing>(taken(stream))?;
        Ok(())
    }
}

/// The addresses of a name, on their way or there.
enum Lookup {
    Asking {
        answer: Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, LookupError>> + Send>>,
        _permit: Permit,
    },
    Answered(Result<std::vec::IntoIter<IpAddr>, LookupError>),
}

impl Lookup {
    fn start(net: &Arc<PodNet>, name: String) -> SocketResult<Self> {
        // A question takes a socket, which counts like the guest's own.
        let permit = net.take_socket().ok_or(ErrorCode::TemporaryResolverFailure)?;
        let net = Arc::clone(net);
        let answer = Box::pin(async move { net.resolve(&name).await });
        let mut lookup = Self::Asking { answer, _permit: permit };
        // What the pod's own files answer is there at once, and a question is on its way before anybody waits for it.
        let _ = lookup.poll(&mut Context::from_waker(Waker::noop()));
        Ok(lookup)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<&mut Result<std::vec::IntoIter<IpAddr>, LookupError>> {
        if let Self::Asking { answer, .. } = self {
            match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => *self = Self::Answered(answer.map(Vec::into_iter)),
                Poll::Pending => return Poll::Pending,
            }
        }
        match self {
            Self::Answered(answer) => Poll::Ready(answer),
            Self::Asking { .. } => Poll::Pending,
        }
    }
}

#[async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        poll_fn(|cx| self.poll(cx).map(|_| ())).await;
    }
}

impl ip_name_lookup::Host for Sockets<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> SocketResult<LookupHandle> {
        self.check(&network)?;
        let lookup = Lookup::start(&self.ctx.net, name)?;
        if let Lookup::Answered(Err(LookupError::Invalid)) = lookup {
            return Err(ErrorCode::InvalidArgument.into());
        }
        self.push(lookup).map_err(SocketError::trap)
    }
}

impl ip_name_lookup::HostResolveAddressStream for Sockets<'_> {
    fn resolve_next_address(&mut self, stream: LookupHandle) -> SocketResult<Option<IpAddress>> {
        let lookup = self.table.get_mut::<Lookup>(&borrow(&stream))?;
        match lookup.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Err(ErrorCode::WouldBlock.into()),
            Poll::Ready(Ok(addresses)) => Ok(addresses.next().map(IpAddress::from)),
            Poll::Ready(Err(error)) => Err(wasi::lookup_error(*error)),
        }
    }

    fn subscribe(&mut self, stream: LookupHandle) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe::<Lookup>(self.table, borrow(&stream))
    }

    fn drop(&mut self, stream: LookupHandle) -> wasmtime::Result<()> {
        self.table.delete::<Lookup>(taken(stream))?;
        Ok(())
    }
}
