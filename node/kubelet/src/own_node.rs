//! This node's object as the API server has it, followed.
//!
//! Absent: other nodes, which a node may see only where somebody allows it ([`crate::routes`]).

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tracing::warn;

use crate::settings::NodeName;

/// The newest state of this node's object; none while there is none, or none is known yet.
pub type OwnNode = watch::Receiver<Option<Arc<Node>>>;

/// Follows the node's object until the last receiver is gone. To be called within a runtime.
pub fn follow(client: Client, name: &NodeName) -> OwnNode {
    let (newest, receiver) = watch::channel(None);
    let selector = format!("metadata.name={name}");
    let config = watcher::Config::default().fields(&selector);
    let events = watcher(Api::<Node>::all(client), config).default_backoff();
    tokio::spawn(async move {
        let mut events = std::pin::pin!(events);
        let mut listed = None;
        let mut told = false;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = newest.closed() => return,
            };
            match event {
                Some(Ok(Event::Apply(node))) => {
                    newest.send_replace(Some(Arc::new(node)));
                }
                Some(Ok(Event::Delete(_))) => {
                    newest.send_replace(None);
                }
                Some(Ok(Event::Init)) => listed = None,
                Some(Ok(Event::InitApply(node))) => listed = Some(Arc::new(node)),
                Some(Ok(Event::InitDone)) => {
                    newest.send_replace(listed.take());
                    told = false;
                }
                Some(Err(error)) if !told => {
                    warn!("the node's own object cannot be followed: {error}");
                    told = true;
                }
                Some(Err(_)) => {}
                None => return,
            }
        }
    });
    receiver
}
