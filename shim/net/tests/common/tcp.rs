//! The steps of a guest's TCP socket.

use std::net::SocketAddr;

use wasmtime_wasi::p2::SocketError;
use wasmtime_wasi::p2::bindings::sockets::network::IpAddressFamily;
use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket;
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as _;
use wasmtime_wasi_io::bindings::wasi::io::streams::{HostInputStream as _, HostOutputStream};

use super::{Conn, Guest, Tcp, V4, V6, same};

impl Guest {
    pub(crate) fn tcp(&mut self, family: IpAddressFamily) -> Tcp {
        self.host().create_tcp_socket(family).expect("a socket")
    }

    pub(crate) async fn bind(
        &mut self,
        socket: &Tcp,
        local: SocketAddr,
    ) -> Result<(), SocketError> {
        let network = self.network();
        self.host().start_bind(same(socket), network, local.into()).await?;
        self.host().finish_bind(same(socket))
    }

    pub(crate) async fn try_listen(
        &mut self,
        family: IpAddressFamily,
        local: SocketAddr,
    ) -> Result<Tcp, SocketError> {
        let socket = self.tcp(family);
        self.bind(&socket, local).await?;
        self.host().start_listen(same(&socket)).await?;
        self.host().finish_listen(same(&socket))?;
        Ok(socket)
    }

    pub(crate) async fn listen(&mut self, family: IpAddressFamily, local: SocketAddr) -> Tcp {
        self.try_listen(family, local).await.expect("it listens")
    }

    pub(crate) fn port(&mut self, socket: &Tcp) -> u16 {
        self.local(socket).port()
    }

    pub(crate) fn local(&mut self, socket: &Tcp) -> SocketAddr {
        self.host().local_address(same(socket)).expect("a local address").into()
    }

    pub(crate) fn remote(&mut self, socket: &Tcp) -> SocketAddr {
        self.host().remote_address(same(socket)).expect("a remote address").into()
    }

    pub(crate) async fn connect_with(
        &mut self,
        socket: Tcp,
        remote: SocketAddr,
    ) -> Result<Conn, SocketError> {
        let network = self.network();
        self.host().start_connect(same(&socket), network, remote.into())?;
        let pollable = self.host().subscribe(same(&socket)).expect("a pollable");
        self.wait(pollable).await;
        let (input, output) = self.host().finish_connect(same(&socket))?;
        Ok(Conn { socket, input, output })
    }

    pub(crate) async fn connect(&mut self, remote: SocketAddr) -> Result<Conn, SocketError> {
        let socket = self.tcp(if remote.is_ipv4() { V4 } else { V6 });
        self.connect_with(socket, remote).await
    }

    pub(crate) async fn try_accept(&mut self, listener: &Tcp) -> Result<Conn, SocketError> {
        let pollable = self.host().subscribe(same(listener)).expect("a pollable");
        self.wait(pollable).await;
        let (socket, input, output) = self.host().accept(same(listener))?;
        Ok(Conn { socket, input, output })
    }

    pub(crate) async fn accept(&mut self, listener: &Tcp) -> Conn {
        self.try_accept(listener).await.expect("a connection")
    }

    pub(crate) async fn write(&mut self, conn: &Conn, bytes: &[u8]) {
        for chunk in bytes.chunks(4096) {
            let output = same(&conn.output);
            self.table.blocking_write_and_flush(output, chunk.to_vec()).await.expect("written");
        }
    }

    /// `None`: the end.
    pub(crate) async fn read(&mut self, conn: &Conn) -> Option<Vec<u8>> {
        self.table.blocking_read(same(&conn.input), 1 << 20).await.ok()
    }

    pub(crate) async fn drop_conn(&mut self, conn: Conn) {
        self.table.delete(conn.input).expect("the input is deleted");
        HostOutputStream::drop(&mut self.table, conn.output).await.expect("the output is dropped");
        self.drop_tcp(conn.socket);
    }

    pub(crate) fn drop_tcp(&mut self, socket: Tcp) {
        HostTcpSocket::drop(&mut self.host(), socket).expect("the socket is dropped");
    }
}
