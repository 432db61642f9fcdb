//! Keeps the node's certificates fresh: its own to the API server, and the one that its API is served with.
//!
//! [`client`] and [`serving`] are each a task that sleeps until most of a lifetime is over, asks for the next certificate, and puts it
//! in the place of the old one without a restart (kubelet.md C3, C4, C6). Absent: the asking ([`crate::csr`]).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::connection::{Connection, Use};
use crate::csr::{self, CsrError, Purpose};
use crate::identity::{self, CertificateFacts};
use crate::pace::{Backoff, about};
use crate::pki::{self, Pair};
use crate::run::PATIENCE;
use crate::settings::NodeSettings;
use crate::trouble::explain;

/// How often somebody looks whether it is time, and whether a person has put other files there. Clocks jump, and machines sleep.
const LOOK: Duration = Duration::from_secs(60);

/// Of a lifetime: between 70 and 90 hundredths, as a kubelet.
const MOST_OF_IT: (f64, f64) = (0.8, 0.1);

/// When a certificate is to be renewed.
fn due(facts: &CertificateFacts) -> Timestamp {
    let life = facts.until.duration_since(facts.from).unsigned_abs();
    let (share, spread) = MOST_OF_IT;
    facts.from.checked_add(about(life.mul_f64(share), spread / share)).unwrap_or(facts.until)
}

/// Keeps the node's own certificate fresh, for ever. A token is the cluster's to renew, in its file.
pub async fn client(connection: Connection, settings: Arc<NodeSettings>) {
    let Ok(requests) = connection.client(Use::Requests(PATIENCE)) else { return };
    let mut held: Option<CertificateFacts> = None;
    let mut renew_at = Timestamp::MAX;
    loop {
        let now = Timestamp::now();
        match identity::of_settings(&settings, now).await {
            Ok(found) => {
                if found.certificate != held {
                    if held.is_some() {
                        info!("the node goes on with another client certificate");
                        connection.replace(found.config);
                    }
                    renew_at = found.certificate.as_ref().map_or(Timestamp::MAX, due);
                    held = found.certificate;
                }
            }
            // It was good when the node started, and what was read then still holds.
            Err(error) => warn!("the node's kubeconfig is of no use any more: {error}"),
        }
        if now >= renew_at && of_the_node(held.as_ref(), &settings) {
            let pair = renew(&requests, &connection, &settings, &Purpose::Client).await;
            match pair.write(&pki::client_file(&settings.data)) {
                // The next look takes it up.
                Ok(()) => continue,
                Err(error) => warn!(%error, "the new client certificate cannot be kept"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Only a node's own user may ask for a node's certificates.
fn of_the_node(facts: Option<&CertificateFacts>, settings: &NodeSettings) -> bool {
    facts.is_some_and(|facts| facts.user == settings.node_name.user())
}

/// Asks until there is a certificate.
async fn renew(
    requests: &Client,
    connection: &Connection,
    settings: &NodeSettings,
    purpose: &Purpose,
) -> Pair {
    let folder = pki::folder(&settings.data);
    // After a refusal there is a person to be waited for.
    let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(10 * 60));
    let mut told = String::new();
    loop {
        let why = match csr::obtain(requests, &settings.node_name, purpose, &folder).await {
            Ok(pair) => return pair,
            Err(CsrError::Api(error)) => explain(&error, &connection.server()),
            Err(error) => copepod_agent::with_causes(&error),
        };
        if why != told {
            warn!("the node gets no new certificate: {why}");
            told = why;
        }
        tokio::time::sleep(backoff.failed()).await;
    }
}

/// What the node's API is served with: the newest certificate, and the old one until there is a newer.
pub type Serving = watch::Receiver<Arc<CertifiedKey>>;

/// The certificate that the node's API is served with: the one that was kept, where it still holds, else one that only this node
/// vouches for. The second is a task that keeps it fresh; `ask` says that the node's own user asks, the only one who may.
///
/// # Errors
/// What is wrong, in a sentence.
pub fn serving(
    connection: Connection,
    settings: Arc<NodeSettings>,
    addresses: &[IpAddr],
    ask: bool,
) -> Result<(Serving, impl Future<Output = ()> + Send + use<>), String> {
    let now = Timestamp::now();
    let names: BTreeSet<_> =
        addresses.iter().map(IpAddr::to_string).chain([settings.node_name.to_string()]).collect();
    let file = pki::serving_file(&settings.data);
    let kept = kept(&file, &names, now);
    let first = match &kept {
        Some((pair, _)) => pair.clone(),
        None => pki::self_signed(&settings.node_name.user(), &names, now)
            .map_err(|error| format!("no certificate can be made for {names:?}: {error}"))?,
    };
    let first = first
        .certified_key()
        .map_err(|why| format!("the certificate of {} is of no use: {why}", file.display()))?;
    let (newest, receiver) = watch::channel(Arc::new(first));
    let task = async move {
        if !ask {
            info!(
                "only a node's own user may ask for a serving certificate; the kubelet's API keeps a self-signed one"
            );
            newest.closed().await;
            return;
        }
        let Ok(requests) = connection.client(Use::Requests(PATIENCE)) else { return };
        let mut renew_at = kept.map_or(Timestamp::MIN, |(_, facts)| due(&facts));
        loop {
            while Timestamp::now() < renew_at {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = newest.closed() => return,
                }
            }
            let purpose = Purpose::Serving(names.clone());
            let pair = tokio::select! {
                pair = renew(&requests, &connection, &settings, &purpose) => pair,
                () = newest.closed() => return,
            };
            if let Err(error) = pair.write(&file) {
                warn!(%error, "the new serving certificate cannot be kept");
            }
            // `obtain` has looked at both.
            if let (Ok(key), Ok(facts)) = (pair.certified_key(), pair.facts()) {
                info!(until = %facts.until, "the kubelet's API has another serving certificate");
                newest.send_replace(Arc::new(key));
                renew_at = due(&facts);
            }
        }
    };
    Ok((receiver, task))
}

/// The pair of an earlier process, where it is for these names and still holds.
fn kept(file: &Path, names: &BTreeSet<String>, now: Timestamp) -> Option<(Pair, CertificateFacts)> {
    let pair = match Pair::read(file) {
        Ok(pair) => pair?,
        Err(error) => {
            warn!(%error, file = %file.display(), "a serving certificate cannot be read; there will be another one");
            return None;
        }
    };
    let facts = pair.facts().ok()?;
    (facts.from <= now && now < facts.until && &pair.names() == names).then_some((pair, facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_certificate_is_renewed_between_70_and_90_hundredths_of_its_life() {
        let facts = CertificateFacts {
            user: String::new(),
            groups: Vec::new(),
            from: at("2026-01-01T00:00:00Z"),
            until: at("2026-04-11T00:00:00Z"),
        };

        for _ in 0..100 {
            let days = due(&facts).duration_since(facts.from).as_hours() / 24;
            assert!((70..=90).contains(&days), "{days}");
        }
    }

    #[test]
    fn a_kept_certificate_is_used_while_it_holds_and_for_the_same_addresses() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = pki::serving_file(folder.path());
        let names: BTreeSet<_> = ["192.0.2.1", "n1"].map(str::to_owned).into();
        let now = at("2026-06-15T00:00:00Z");
        let other = BTreeSet::from(["192.0.2.2".to_owned()]);
        let pair = pki::self_signed("system:node:n1", &names, now).expect("a pair");

        pair.write(&file).expect("written");

        assert_eq!(kept(&file, &names, now).map(|(it, _)| it), Some(pair));
        assert_eq!(kept(&file, &other, now), None);
        assert_eq!(kept(&file, &names, at("2028-01-01T00:00:00Z")), None);
        std::fs::write(&file, "damaged").expect("written");
        assert_eq!(kept(&file, &names, now), None);
    }
}
