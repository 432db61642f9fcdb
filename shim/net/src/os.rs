//! The kernel's sockets as this crate wants them: non-blocking, IPv6 alone on IPv6, bound to a source before they connect.
//! Absent: any judgement; whoever calls has asked [`crate::rules`] before.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::door::Door;
use crate::rules::Family;

/// A TCP socket, bound to nothing.
pub(crate) fn tcp(family: Family) -> io::Result<TcpSocket> {
    match family {
        Family::V4 => TcpSocket::new_v4(),
        Family::V6 => {
            let socket = TcpSocket::new_v6()?;
            sockopt::set_ipv6_v6only(&socket, true)?;
            Ok(socket)
        }
    }
}

/// A UDP socket, bound to nothing, known to the runtime's poller.
pub(crate) fn udp(family: Family) -> io::Result<UdpSocket> {
    let domain = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(domain, SocketType::DGRAM, flags, None)?;
    if family == Family::V6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    UdpSocket::from_std(socket.into())
}

/// Binds for listening: a port whose last connections linger in TIME_WAIT can be had again.
pub(crate) fn bind_tcp(socket: &TcpSocket, address: SocketAddr) -> io::Result<()> {
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

/// Fixes the source address and leaves the port to `connect`, which then knows the whole connection and can share ports.
pub(crate) fn bind_source(socket: &TcpSocket, source: IpAddr) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open while `socket` is borrowed, and the option is one `int`, of which pointer and size
    // are given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(SocketAddr::new(source, 0))
}

/// A connection from `source`, or through a door, where the host's address is the source.
pub(crate) async fn connect(
    door: Option<&Arc<Door>>,
    source: IpAddr,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    if let Some(door) = door {
        return door.connect(to).await;
    }
    let socket = tcp(Family::of(to.ip()))?;
    bind_source(&socket, source)?;
    socket.connect(to).await
}

/// Has the kernel drop each first packet of a connection to this listener, as if it had been lost; handshakes that have begun come
/// to their end.
pub(crate) fn ignore_newcomers(listener: impl AsFd) -> io::Result<()> {
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    /// Where a TCP header has its flags.
    const FLAGS: u32 = 13;
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, FLAGS),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, SYN | ACK),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, SYN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
    ];
    let program =
        libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    // SAFETY: the descriptor is open while `listener` is borrowed; the kernel copies the program, whose length and address are given,
    // and which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the kernel has to tell of a socket now, without taking an error of it away; `WouldBlock` where it is nothing.
pub(crate) fn poll_now(socket: impl AsFd, asked: PollFlags) -> io::Result<PollFlags> {
    let mut sockets = [PollFd::new(&socket, asked)];
    match rustix::event::poll(&mut sockets, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(sockets[0].revents()),
    }
}

/// Ends a listener while others still own it: what waits in its queue is reset and nothing more comes in.
pub(crate) fn stop_listening(listener: impl AsFd) {
    // It fails for a socket that does not listen any more, which is what was wanted.
    let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
}
