//! The node's lease: told every ten seconds that the node lives, by a thread that does nothing else.
//!
//! Start at [`keep`]. Guests and pods may take all they want of the other threads, and requests about them all connections: the
//! lease has its own (kubelet.md L1–L4). It never gives up and never panics. Absent: how the node is ([`crate::heartbeat`]).

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::connection::{Connection, Use};
use crate::pace::{Backoff, about};
use crate::settings::NodeName;
use crate::trouble::explain;

/// Where nodes' leases are.
pub const NAMESPACE: &str = "kube-node-lease";

/// A kubelet's `nodeLeaseDurationSeconds`.
const DURATION: Duration = Duration::from_secs(40);

/// A quarter of the duration, as a kubelet renews.
const EVERY: Duration = Duration::from_secs(10);

/// How far apart two nodes drift.
const JITTER: f64 = 0.04;

/// One request; several fit into the duration.
const PATIENCE: Duration = Duration::from_secs(8);

/// Keeps the lease, on a thread of its own, for as long as the sender of `uid` is held: that of the Node object, once it is known.
///
/// # Errors
/// The machine gives no thread.
pub fn keep(
    connection: Connection,
    node: NodeName,
    uid: watch::Receiver<Option<String>>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("lease".into())
        .spawn(move || runtime.block_on(renew_for_ever(connection, node, uid)))
}

async fn renew_for_ever(
    connection: Connection,
    node: NodeName,
    mut uid: watch::Receiver<Option<String>>,
) {
    // A kubelet's, for a lease that is to be made.
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7));
    let mut failures = 0_u32;
    let mut leases = None;
    let mut last: Option<Lease> = None;
    loop {
        // A connection on which a request got lost may hang for the next ones too.
        if failures >= 2 {
            leases = None;
        }
        let api = match leases.take() {
            Some(api) => Ok(api),
            None => connection
                .client(Use::Requests(PATIENCE))
                .map(|client| Api::<Lease>::namespaced(client, NAMESPACE)),
        };
        let owner = uid.borrow_and_update().clone();
        let renewed = match &api {
            Ok(api) => renew(api, &node, owner.as_deref(), last.take()).await,
            Err(error) => {
                debug!(%error, "no client for the lease");
                Err(None)
            }
        };
        leases = api.ok();
        let wait = match renewed {
            Ok(lease) => {
                if failures > 1 {
                    warn!("the node's lease is renewed again, after {failures} failures");
                }
                (failures, last) = (0, Some(lease));
                backoff.succeeded();
                about(EVERY, JITTER)
            }
            Err(error) => {
                failures += 1;
                // One may be chance; of an outage the beginning is enough.
                if failures == 2 {
                    let why = error.map(|error| explain(&error, &connection.server()));
                    warn!("the node's lease cannot be renewed: {}", why.unwrap_or_default());
                }
                backoff.failed()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // The UID has come, which the lease lacks; or nobody wants it any more.
            changed = uid.changed() => if changed.is_err() { return },
        }
    }
}

/// Renews once: from the lease that was answered last, else from the one that is there, else a new one.
async fn renew(
    leases: &Api<Lease>,
    node: &NodeName,
    uid: Option<&str>,
    last: Option<Lease>,
) -> Result<Lease, Option<kube::Error>> {
    let there = match last {
        Some(last) => Some(last),
        None => leases.get_opt(node.as_str()).await?,
    };
    let params = PostParams::default();
    let renewed = renewed(there.as_ref(), node, uid, Timestamp::now());
    Ok(match there {
        Some(_) => leases.replace(node.as_str(), &params, &renewed).await?,
        None => leases.create(&params, &renewed).await?,
    })
}

/// The lease as it is to be now. What others wrote into it stays.
fn renewed(there: Option<&Lease>, node: &NodeName, uid: Option<&str>, now: Timestamp) -> Lease {
    let mut lease = there.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(node.to_string()),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    });
    // With its owner it goes when the node is deleted.
    if let Some(uid) = uid
        && lease.metadata.owner_references.as_ref().is_none_or(Vec::is_empty)
    {
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: node.to_string(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }]);
    }
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(node.to_string());
    spec.lease_duration_seconds = Some(DURATION.as_secs() as i32);
    spec.renew_time = Some(MicroTime(now));
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeName {
        "n1".parse().expect("a name")
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_new_lease_is_the_node_s_and_goes_with_it() {
        let lease = renewed(None, &node(), Some("uid"), at("2026-06-01T00:00:00.123456Z"));

        let text = serde_json::to_value(&lease).expect("JSON");
        assert_eq!(text["metadata"]["namespace"], "kube-node-lease");
        assert_eq!(text["metadata"]["ownerReferences"][0]["uid"], "uid");
        assert_eq!(text["spec"]["holderIdentity"], "n1");
        assert_eq!(text["spec"]["leaseDurationSeconds"], 40);
        assert_eq!(text["spec"]["renewTime"], "2026-06-01T00:00:00.123456Z");
    }

    #[test]
    fn a_lease_that_lacks_its_owner_gets_it_as_soon_as_that_is_known() {
        let first = renewed(None, &node(), None, at("2026-06-01T00:00:00Z"));
        let second = renewed(Some(&first), &node(), Some("uid"), at("2026-06-01T00:00:10Z"));
        let third = renewed(Some(&second), &node(), Some("other"), at("2026-06-01T00:00:20Z"));

        assert_eq!(first.metadata.owner_references, None);
        let owner =
            |lease: &Lease| lease.metadata.owner_references.as_ref().map(|all| all[0].uid.clone());
        assert_eq!(
            (owner(&second).as_deref(), owner(&third).as_deref()),
            (Some("uid"), Some("uid"))
        );
    }

    #[test]
    fn what_others_wrote_into_the_lease_stays() {
        let mut there = renewed(None, &node(), None, at("2026-06-01T00:00:00Z"));
        there.metadata.resource_version = Some("7".into());
        there.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());

        let next = renewed(Some(&there), &node(), None, at("2026-06-01T00:00:10Z"));

        assert_eq!(next.metadata, there.metadata);
    }
}
