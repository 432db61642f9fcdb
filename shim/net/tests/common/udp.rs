//! The steps of a guest's UDP socket.

use std::net::SocketAddr;

use wasmtime_wasi::p2::SocketError;
use wasmtime_wasi::p2::bindings::sockets::network::IpAddressFamily;
use wasmtime_wasi::p2::bindings::sockets::udp::{
    HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, OutgoingDatagram,
};
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket::Host as _;

use super::{Datagrams, Guest, Udp, same};

impl Guest {
    pub(crate) async fn try_udp(
        &mut self,
        family: IpAddressFamily,
        local: SocketAddr,
    ) -> Result<Udp, SocketError> {
        let socket = self.host().create_udp_socket(family).await?;
        let network = self.network();
        self.host().start_bind(same(&socket), network, local.into()).await?;
        self.host().finish_bind(same(&socket))?;
        Ok(socket)
    }

    pub(crate) async fn udp(&mut self, family: IpAddressFamily, local: SocketAddr) -> Udp {
        self.try_udp(family, local).await.expect("a bound socket")
    }

    pub(crate) fn udp_local(&mut self, socket: &Udp) -> SocketAddr {
        self.host().local_address(same(socket)).expect("a local address").into()
    }

    pub(crate) async fn try_streams(
        &mut self,
        socket: &Udp,
        remote: Option<SocketAddr>,
    ) -> Result<Datagrams, SocketError> {
        let remote = remote.map(Into::into);
        let (incoming, outgoing) = self.host().stream(same(socket), remote).await?;
        Ok(Datagrams { incoming, outgoing })
    }

    pub(crate) async fn streams(&mut self, socket: &Udp, remote: Option<SocketAddr>) -> Datagrams {
        self.try_streams(socket, remote).await.expect("two streams")
    }

    pub(crate) fn send(
        &mut self,
        streams: &Datagrams,
        data: &[u8],
        to: Option<SocketAddr>,
    ) -> Result<u64, SocketError> {
        let granted = self.host().check_send(same(&streams.outgoing))?;
        assert!(granted > 0, "a socket with an empty buffer takes datagrams");
        let datagram = OutgoingDatagram { data: data.to_vec(), remote_address: to.map(Into::into) };
        self.host().send(same(&streams.outgoing), vec![datagram])
    }

    pub(crate) async fn receive(&mut self, streams: &Datagrams) -> (Vec<u8>, SocketAddr) {
        loop {
            let pollable =
                HostIncomingDatagramStream::subscribe(&mut self.host(), same(&streams.incoming))
                    .expect("a pollable");
            self.wait(pollable).await;
            let mut got = self.host().receive(same(&streams.incoming), 1).expect("datagrams");
            if let Some(datagram) = got.pop() {
                return (datagram.data, datagram.remote_address.into());
            }
        }
    }

    pub(crate) async fn drop_streams(&mut self, streams: Datagrams) {
        HostIncomingDatagramStream::drop(&mut self.host(), streams.incoming).expect("dropped");
        HostOutgoingDatagramStream::drop(&mut self.host(), streams.outgoing)
            .await
            .expect("dropped");
    }
}
