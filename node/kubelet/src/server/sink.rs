//! The way out to a client, whatever carries it.

use super::spdy;
use super::websocket::{Channel, Gone};

/// The way out of a stream.
#[derive(Clone, Debug)]
pub(crate) enum Sink {
    Channel(Channel),
    Spdy(spdy::Output),
    #[cfg(test)]
    Test(tokio::sync::mpsc::Sender<Vec<u8>>),
}

impl Sink {
    /// One whose other end a test has.
    #[cfg(test)]
    pub(crate) fn for_tests() -> (Self, tokio::sync::mpsc::Receiver<Vec<u8>>) {
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        (Self::Test(sender), receiver)
    }

    /// Sends bytes, once there is room.
    ///
    /// # Errors
    /// The client wants no more of them, or is gone.
    pub(crate) async fn send(&self, bytes: &[u8]) -> Result<(), Gone> {
        match self {
            Self::Channel(channel) => channel.send(bytes).await,
            Self::Spdy(output) => output.send(bytes).await,
            #[cfg(test)]
            Self::Test(sender) => sender.send(bytes.to_vec()).await.map_err(|_| Gone),
        }
    }

    /// Nothing more comes; a WebSocket's channels cannot say so.
    pub(crate) async fn finish(&self) {
        if let Self::Spdy(output) = self {
            output.finish().await;
        }
    }

    /// Waits until the client wants no more, or is gone.
    pub(crate) async fn gone(&self) {
        match self {
            Self::Channel(channel) => channel.gone().await,
            Self::Spdy(output) => output.gone().await,
            #[cfg(test)]
            Self::Test(sender) => sender.closed().await,
        }
    }
}
