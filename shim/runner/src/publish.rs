//! A port of the host's, served for a pod: each connection to it goes on to the pod's port.
//!
//! The agent binds the port and hands the socket over, so that it goes on being served while no agent lives. Absent: UDP.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use copepod_net::PodNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections through one published port at a time; the next ones wait in its backlog. As many as an HTTP server takes.
const MAX_CONNECTIONS: usize = 1_000;

/// A pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The listener that this descriptor is. To be called within the runtime.
///
/// # Errors
/// It is none.
pub(crate) fn listener(socket: OwnedFd) -> io::Result<TcpListener> {
    if !rustix::net::sockopt::socket_acceptconn(&socket)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
    }
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Serves it until the future is dropped, which ends the connections too.
pub(crate) async fn serve(listener: TcpListener, net: Arc<PodNet>, port: u16) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((outer, _)) => {
                let net = net.clone();
                connections.spawn(async move {
                    // Whoever connected sees the end of it, which is all that there is to tell.
                    let _ = join(outer, &net, port).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn join(mut outer: TcpStream, net: &PodNet, port: u16) -> io::Result<()> {
    let mut inner = net.dial(port).await?;
    outer.set_nodelay(true)?;
    inner.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut outer, &mut inner).await?;
    Ok(())
}
