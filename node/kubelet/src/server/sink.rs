//! The way out to a client, whatever carries it.

use super::spdy;
use super::websocket::{Channel, Gone};

/// The way out of a stream.
#[derive(Clone, Debug)]
pub(crate) enum Sink {
    Channel(Channel),
    Spdy(spdy::Output),
}

impl Sink {
    /// Sends bytes, once there is room.
    ///
    /// # Errors
    /// The client wants no more of them, or is gone.
    pub(crate) async fn send(&self, bytes: &[u8]) -> Result<(), Gone> {
        match self {
            Self::Channel(channel) => channel.send(bytes).await,
            Self::Spdy(output) => output.send(bytes).await,
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
        }
    }
}
