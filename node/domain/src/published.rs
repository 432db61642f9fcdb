//! Sockets of published ports: opened by the agent in the host's network, and served by a runner, which may have fallen.
//!
//! The kernel lets whoever holds a listening socket turn it into a connection to anywhere that its network reaches, here to the
//! host's loopback. So the socket belongs to a user of its own, and the data directory's table ([`crate::nft`]) refuses every
//! connection that this user begins. Accepted connections are the runner's, and go on.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::thread;

use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

/// The user that published sockets belong to: below those of runners ([`crate::names`]), and no account of anybody's.
pub const OWNER: u32 = 1_999_999_999;

/// Connections that wait until they are accepted, as `std` has it.
const BACKLOG: i32 = 128;

/// Opens a port of the host for a pod. Where the caller may not act for [`OWNER`], as an ordinary user may not, it is the caller's own.
///
/// # Errors
/// As of `bind` and `listen`.
pub fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = owned_socket(family)?;
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Whom a socket belongs to is settled with its making. The user is one thread's, and goes with it.
fn owned_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let make = move || {
        let _ = set_thread_res_uid(None::<Uid>, Uid::from_raw(OWNER), None::<Uid>);
        socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))
    };
    let made = thread::Builder::new().spawn(make)?.join();
    Ok(made.map_err(|_| io::Error::other("the socket's maker ended before it was made"))??)
}
