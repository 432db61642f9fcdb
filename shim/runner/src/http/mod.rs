//! HTTP components: serving them, and the requests that guests of any kind send.
//!
//! Start at [`serve`]. `server` holds the listeners, the connections and the end; `respond` takes a request through
//! `head` (is it one?) and `gate` (may it enter?) into an instance of `guests`; `body` carries the response while the
//! guest writes it. `idle` keeps what may be used again, `paced` loses patience with peers that stand still,
//! `notes` bounds what is told about failures.
//! [`outgoing`] is the client behind `wasi:http/outgoing-handler`; `upload` is what it sends, [`tls`] whom it trusts.
//!
//! Elsewhere: sockets and their rules (`copepod-net`), stores and limits (the crate's root).
//! Invariant: an idle container holds one task and one descriptor per listener, and no instance.

use std::future::Future;
use std::sync::Arc;

use copepod_net::Listener;
use copepod_shim::protocol::HttpSettings;
use tokio::time::Instant;

use crate::container::Container;
use crate::exit::End;

mod body;
mod gate;
mod guests;
mod head;
mod idle;
mod notes;
pub mod outgoing;
mod paced;
mod respond;
mod server;
#[cfg(test)]
mod tests;
pub mod tls;
mod upload;

/// A container that is being served. Dropping it stops it.
pub struct Server(server::Serving<guests::Component>);

/// Serves an HTTP component on these listeners until it is stopped or has to be given up. To be called within the runtime
/// that runs the guests.
pub fn serve(
    container: Arc<Container>,
    listeners: Vec<Listener>,
    settings: &HttpSettings,
) -> Server {
    let guests = guests::Component::new(container);
    Server(server::Serving::start(guests, listeners, settings))
}

impl Server {
    /// Stops listening, lets all requests in work come to their end, and drops what is left at the deadline.
    ///
    /// A later call may bring the deadline nearer, and never moves it away.
    pub fn drain(&self, by: impl Into<Instant>) {
        self.0.drain(by.into());
    }

    /// [`Server::drain`], where another runner accepts on the listeners from now on.
    pub fn leave(&self, by: impl Into<Instant>) {
        self.0.leave(by.into());
    }

    /// Drops everything now.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// How it ended, once nothing of it is left: drained 0, dropped 137, out of memory 137, given up 134.
    pub fn done(&self) -> impl Future<Output = End> + Send + use<> {
        self.0.done()
    }

    /// Requests in work now.
    pub fn in_work(&self) -> u32 {
        self.0.in_work()
    }
}
