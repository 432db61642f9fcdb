//! A port of the host's, served for a pod: each connection to it goes on to the pod's port.
//!
//! The agent binds the port and hands the socket over, so that it goes on being served while no agent lives. Absent: UDP.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use copepod_net::PodNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

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

/// A port that is being served. Dropping it ends the connections through it, too.
pub(crate) struct Published {
    /// The pod's port.
    pub(crate) port: u16,
    /// The listening socket, for a runner that goes on with it.
    pub(crate) socket: OwnedFd,
    leaving: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

impl Published {
    /// Serves connections to `listener` by `runtime`.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn serve(
        runtime: &Handle,
        listener: TcpListener,
        net: Arc<PodNet>,
        port: u16,
    ) -> io::Result<Self> {
        let socket = listener.as_fd().try_clone_to_owned()?;
        let leaving = watch::Sender::new(false);
        let serving = runtime.spawn(serve(listener, net, port, leaving.subscribe()));
        Ok(Self { port, socket, leaving, serving })
    }

    /// Accepts nothing more: another runner does. The connections go on.
    pub(crate) fn leave(&self) {
        self.leaving.send_replace(true);
    }

    /// Resolves once the last connection has ended, after [`Published::leave`].
    pub(crate) async fn over(&mut self) {
        let _ = (&mut self.serving).await;
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(
    listener: TcpListener,
    net: Arc<PodNet>,
    port: u16,
    mut leaving: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // Never closed, so there is always a place in the end.
            let place = places.clone().acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            biased;
            _ = leaving.wait_for(|leaving| *leaving) => break,
            next = next => next,
        };
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
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn join(mut outer: TcpStream, net: &PodNet, port: u16) -> io::Result<()> {
    let mut inner = net.dial(port).await?;
    outer.set_nodelay(true)?;
    inner.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut outer, &mut inner).await?;
    Ok(())
}
