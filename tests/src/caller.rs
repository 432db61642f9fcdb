//! A caller of echoes, somewhere on a network of a test's own.
//!
//! Absent: HTTP, which has a client of its own.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::wait::until;
use crate::world::Namespace;

/// A machine's own loopback address.
pub const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// How long an answer may take before it is asked again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where calls come from.
pub struct Caller<'a> {
    network: &'a Namespace,
}

impl<'a> Caller<'a> {
    /// A caller in this network.
    pub fn at(network: &'a Namespace) -> Self {
        Self { network }
    }

    /// Talks with an echo over TCP, once it answers; from where.
    ///
    /// # Panics
    /// Where it does not.
    pub fn tcp(&self, to: (IpAddr, u16)) -> SocketAddr {
        until("an echo over TCP", || self.ask(to, tcp))
    }

    /// The same with a datagram.
    ///
    /// # Panics
    /// As [`Self::tcp`].
    pub fn udp(&self, to: (IpAddr, u16)) -> SocketAddr {
        until("an echo over UDP", || self.ask(to, udp))
    }

    /// Whether an echo answers over TCP now.
    pub fn reaches(&self, to: (IpAddr, u16)) -> bool {
        self.ask(to, tcp).is_some()
    }

    /// A socket that talks to this address.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub fn udp_socket(&self, to: (IpAddr, u16)) -> UdpSocket {
        let to = SocketAddr::from(to);
        let made = self.network.spawn(move || connected(to)).join().expect("it does not panic");
        made.expect("a socket")
    }

    fn ask(
        &self,
        to: (IpAddr, u16),
        how: fn(SocketAddr) -> std::io::Result<SocketAddr>,
    ) -> Option<SocketAddr> {
        let to = SocketAddr::from(to);
        self.network.spawn(move || how(to)).join().expect("it does not panic").ok()
    }
}

/// Whether an echo answers this socket now.
pub fn is_answered(socket: &UdpSocket) -> bool {
    echoes(socket).is_ok()
}

fn tcp(to: SocketAddr) -> std::io::Result<SocketAddr> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer == "hello" {
        stream.local_addr()
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}

fn udp(to: SocketAddr) -> std::io::Result<SocketAddr> {
    let socket = connected(to)?;
    echoes(&socket)?;
    socket.local_addr()
}

fn connected(to: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    Ok(socket)
}

fn echoes(socket: &UdpSocket) -> std::io::Result<()> {
    socket.send(b"hello")?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    let is_echo = &answer[..length] == b"hello";
    if is_echo { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}
