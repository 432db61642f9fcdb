//! The agent's side of the local API: accepts clients on `<data>/agent.sock` and hands their calls to the owner.
//!
//! Who may call is decided before a byte is read: root, and the user who runs the agent. Absent: what a call does.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use copepod_shim::wire::{self, WireError};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::api::{Call, Reply};
use crate::owner::{Asked, Wake};

/// Replies under way to one client: a follower of a log that stops reading holds so many pieces and no more.
const REPLIES: usize = 16;

/// Counts a client for as long as it is connected.
#[derive(Debug)]
pub(crate) struct Clients(Arc<AtomicUsize>);

impl Clients {
    pub(crate) fn count(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Binds the socket, in the place of one that a dead agent left.
pub(crate) fn bind(data: &Path) -> io::Result<UnixListener> {
    let path = data.join("agent.sock");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts clients for ever.
pub(crate) async fn serve(
    listener: UnixListener,
    owner: mpsc::Sender<Wake>,
    clients: Arc<AtomicUsize>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let counted = Clients::count(&clients);
                let owner = owner.clone();
                tokio::spawn(async move {
                    if let Err(error) = client(stream, owner.clone()).await {
                        tracing::debug!(%error, "a client left");
                    }
                    drop(counted);
                    // The owner may have stayed for this client only.
                    let _ = owner.send(Wake::Tick).await;
                });
            }
            Err(error) => {
                // Out of descriptors: those who wait are served when some are free again.
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client(stream: UnixStream, owner: mpsc::Sender<Wake>) -> Result<(), WireError> {
    let user = stream.peer_cred()?.uid();
    if user != 0 && user != rustix::process::geteuid().as_raw() {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied).into());
    }
    let (sender, mut receiver) = wire::split(stream);
    let (call, descriptors) = match receiver.receive::<Call>().await {
        Ok(received) => received,
        Err(WireError::Malformed(error)) => {
            let text = format!("this agent is of another version than the command ({error})");
            return sender.send(&Reply::Failed(text), &[]).await;
        }
        Err(error) => return Err(error),
    };
    let (replies, mut replied) = mpsc::channel(REPLIES);
    if owner.send(Wake::Call(Asked { call, descriptors, replies })).await.is_err() {
        return Err(WireError::Closed);
    }
    // A client that goes away ends its call: a second frame is not part of the protocol.
    let mut left = std::pin::pin!(receiver.receive_bytes());
    loop {
        tokio::select! {
            reply = replied.recv() => match reply {
                Some(reply) => {
                    for part in reply.in_parts() {
                        sender.send(&part, &[]).await?;
                    }
                }
                None => return Ok(()),
            },
            _ = &mut left => return Ok(()),
        }
    }
}
