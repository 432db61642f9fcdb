//! Approves the certificates with which nodes' agents serve the kubelet's API: those that name the asking node's own addresses and no
//! others. Kubernetes leaves that to an administrator (kubernetes #73356).
//!
//! Start at [`judge`]. Whatever is not surely right is left for a person, never denied: a denial is final, and a node that has no
//! address yet will have one. Absent: client certificates, which kube-controller-manager approves; signing, which it does for both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

const SIGNER: &str = "kubernetes.io/kubelet-serving";
const USER_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";

/// What a serving certificate may be used for; the last it must.
const USAGES: [&str; 3] = ["digital signature", "key encipherment", "server auth"];

/// How often requests that were left are looked at again, besides whenever a node or a request changes.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// After an approval that the API server did not take.
const RETRY: Duration = Duration::from_secs(5);

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block(IpNet);

impl std::str::FromStr for Block {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |_| format!("{text:?} is no block of addresses; write 192.0.2.0/24");
        text.parse().map(Self).map_err(wrong)
    }
}

/// What is to be done about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It asks for what is the node's own.
    Approve,
    /// Somebody has decided, or it is not for a node's serving certificate.
    NotOurs,
    /// A person is to look at it.
    Leave(Why),
}

/// Why a request is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is not a node that asks.
    Asker(String),
    /// The request cannot be read.
    Unreadable(String),
    /// The certificate would not be the asker's.
    Subject(String),
    /// It asks for more than to serve.
    Usages(Vec<String>),
    /// It names nobody, or in a way that a node does not.
    Names(String),
    /// There is no such node.
    NoNode(String),
    /// The node has no such name or address.
    Foreign(String),
    /// An address that nodes may not have.
    Outside(IpAddr),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asker(user) => write!(f, "{user:?} asks, who is no node"),
            Self::Unreadable(why) => write!(f, "it cannot be read: {why}"),
            Self::Subject(subject) => write!(f, "its subject is {subject:?} and not the asker's"),
            Self::Usages(usages) => write!(f, "it asks for the usages {usages:?}"),
            Self::Names(why) => f.write_str(why),
            Self::NoNode(name) => write!(f, "there is no node {name:?}"),
            Self::Foreign(name) => write!(f, "{name} is none of the node's names and addresses"),
            Self::Outside(address) => write!(f, "{address} is in no block that nodes may have"),
        }
    }
}

/// Judges a request by the node that asks, as the cluster knows it. `allowed`: the blocks that nodes' addresses are in; none: a node's
/// word about its own addresses is taken.
pub fn judge(
    request: &CertificateSigningRequest,
    node: impl FnOnce(&str) -> Option<Node>,
    allowed: &[Block],
) -> Verdict {
    let decided = request.status.as_ref().is_some_and(|status| {
        status.certificate.is_some() || status.conditions.as_ref().is_some_and(|it| !it.is_empty())
    });
    if request.spec.signer_name != SIGNER || decided {
        return Verdict::NotOurs;
    }
    match own(request, node, allowed) {
        Ok(()) => Verdict::Approve,
        Err(why) => Verdict::Leave(why),
    }
}

fn own(
    request: &CertificateSigningRequest,
    node: impl FnOnce(&str) -> Option<Node>,
    allowed: &[Block],
) -> Result<(), Why> {
    let spec = &request.spec;
    let user = spec.username.as_deref().unwrap_or_default();
    let is_of = |group: &str| spec.groups.iter().flatten().any(|it| it == group);
    let name = user
        .strip_prefix(USER_PREFIX)
        .filter(|name| !name.is_empty() && is_of(GROUP))
        .ok_or_else(|| Why::Asker(user.to_owned()))?;
    let usages = spec.usages.clone().unwrap_or_default();
    let serves = usages.iter().any(|it| it == USAGES[2]);
    if !serves || usages.iter().any(|it| !USAGES.contains(&it.as_str())) {
        return Err(Why::Usages(usages));
    }
    let asked = Asked::read(&spec.request.0, user)?;
    let node = node(name).ok_or_else(|| Why::NoNode(name.to_owned()))?;
    let (names, addresses) = known(&node);
    if let Some(name) = asked.names.iter().find(|it| !names.contains(&it.to_lowercase())) {
        return Err(Why::Foreign(name.clone()));
    }
    for address in asked.addresses {
        if !addresses.contains(&address) {
            return Err(Why::Foreign(address.to_string()));
        }
        if !allowed.is_empty() && !allowed.iter().any(|block| block.0.contains(&address)) {
            return Err(Why::Outside(address));
        }
    }
    Ok(())
}

/// A node's names and addresses, as its object has them.
fn known(node: &Node) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for address in all {
        match address.type_.as_str() {
            "Hostname" | "InternalDNS" | "ExternalDNS" => {
                names.insert(address.address.to_lowercase());
            }
            _ => addresses.extend(address.address.parse::<IpAddr>().ok()),
        }
    }
    (names, addresses)
}

/// Whom a certificate would speak for.
#[derive(Debug, Default)]
struct Asked {
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl Asked {
    /// What a request in PEM form asks for, where its subject is `user` as a node.
    fn read(pem: &[u8], user: &str) -> Result<Self, Why> {
        let unreadable = |error: &dyn fmt::Display| Why::Unreadable(error.to_string());
        let (rest, pem) = parse_x509_pem(pem).map_err(|error| unreadable(&error))?;
        if !rest.trim_ascii().is_empty() || pem.label != "CERTIFICATE REQUEST" {
            return Err(Why::Unreadable("not one certificate request".to_owned()));
        }
        let (_, request) = X509CertificationRequest::from_der(&pem.contents)
            .map_err(|error| unreadable(&error))?;
        let info = &request.certification_request_info;
        let text = |it: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            it.as_str().unwrap_or_default().to_owned()
        };
        let people: Vec<String> = info.subject.iter_common_name().map(text).collect();
        let groups: Vec<String> = info.subject.iter_organization().map(text).collect();
        if people != [user] || groups != [GROUP] || info.subject.iter_attributes().count() != 2 {
            return Err(Why::Subject(info.subject.to_string()));
        }
        let mut asked = Self::default();
        let mut lists = 0;
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(wanted) = attribute.parsed_attribute() else {
                continue;
            };
            for extension in &wanted.extensions {
                if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension()
                {
                    lists += 1;
                    names.general_names.iter().try_for_each(|name| asked.add(name))?;
                }
            }
        }
        match lists {
            // Of two lists it is the signer's choice which one counts.
            1 if !asked.names.is_empty() || !asked.addresses.is_empty() => Ok(asked),
            0 | 1 => Err(Why::Names("it names no address and no name".to_owned())),
            _ => Err(Why::Names("it has more than one list of names".to_owned())),
        }
    }

    fn add(&mut self, name: &GeneralName<'_>) -> Result<(), Why> {
        let strange = || Why::Names(format!("it asks for {name}, which is no node's name"));
        match name {
            GeneralName::DNSName(name) => {
                self.names.insert((*name).to_owned());
            }
            GeneralName::IPAddress(bytes) => {
                let address = <[u8; 4]>::try_from(*bytes)
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                self.addresses.insert(address.map_err(|_| strange())?);
            }
            _ => return Err(strange()),
        }
        Ok(())
    }
}

/// Approves what is to be approved, for ever. Two of them do no harm.
pub async fn run(client: Client, allowed: Vec<Block>) {
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    let (requests, requests_writer) = reflector::store();
    let (nodes, nodes_writer) = reflector::store();
    let served = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
    let requests_seen = watcher(api.clone(), served).default_backoff().reflect(requests_writer);
    let nodes_seen = watcher(Api::<Node>::all(client), watcher::Config::default())
        .default_backoff()
        .reflect(nodes_writer);
    let (mut requests_seen, mut nodes_seen) = (pin!(requests_seen), pin!(nodes_seen));
    let mut listed = (false, false);
    let mut left = BTreeMap::new();
    let mut next = LOOK_AGAIN;
    tracing::info!(
        "nodes' serving certificates are approved where they name the node's own addresses"
    );
    loop {
        tokio::select! {
            event = requests_seen.next() => match event {
                Some(Ok(event)) => listed.0 |= matches!(event, watcher::Event::InitDone),
                Some(Err(error)) => tracing::warn!(%error, "requests for certificates cannot be watched"),
                None => return,
            },
            event = nodes_seen.next() => match event {
                Some(Ok(event)) => listed.1 |= matches!(event, watcher::Event::InitDone),
                Some(Err(error)) => tracing::warn!(%error, "nodes cannot be watched"),
                None => return,
            },
            () = tokio::time::sleep(next) => {}
        }
        next = LOOK_AGAIN;
        // Before all nodes are known, one that is not known says nothing.
        if listed != (true, true) {
            continue;
        }
        let all = requests.state();
        left.retain(|name, _| all.iter().any(|request| request.name_any() == *name));
        for request in all {
            let node = |name: &str| Some(Node::clone(&*nodes.get(&ObjectRef::new(name))?));
            match judge(&request, node, &allowed) {
                Verdict::NotOurs => {}
                Verdict::Leave(why) => tell(&mut left, &request, why),
                Verdict::Approve => {
                    if let Err(error) = approve(&api, &request).await {
                        let name = request.name_any();
                        tracing::warn!(%error, name, "the approval is not taken");
                        next = RETRY;
                    }
                }
            }
        }
    }
}

/// Tells of a request that a person is to look at, once for each reason.
fn tell(left: &mut BTreeMap<String, Why>, request: &CertificateSigningRequest, why: Why) {
    let name = request.name_any();
    if left.get(&name) != Some(&why) {
        tracing::warn!(
            name,
            "left for a person: {why}. To approve it all the same: kubectl certificate approve {name}"
        );
        left.insert(name, why);
    }
}

async fn approve(
    api: &Api<CertificateSigningRequest>,
    request: &CertificateSigningRequest,
) -> Result<(), kube::Error> {
    let name = request.name_any();
    let patch = json!({
        // What was judged is what is approved.
        "metadata": { "uid": request.uid(), "resourceVersion": request.resource_version() },
        "status": { "conditions": [{
            "type": "Approved",
            "status": "True",
            "reason": "NodesOwnAddresses",
            "message": "It names the asking node's own names and addresses (copepod controllers approver).",
            "lastUpdateTime": Timestamp::now().to_string(),
        }] },
    });
    match api.patch_approval(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => tracing::info!(name, user = request.spec.username, "approved"),
        // Somebody was quicker, and the watch says who.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    const NODE: &str = "system:node:edge-1";

    /// A request of this subject for these names.
    fn pem(groups: &[&str], user: &str, names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.distinguished_name.push(DnType::CommonName, user);
        let key = KeyPair::generate().expect("a key");
        params.serialize_request(&key).expect("a request").pem().expect("PEM").into_bytes()
    }

    fn asked_by(user: &str, pem: Vec<u8>) -> CertificateSigningRequest {
        let mut request = CertificateSigningRequest::default();
        request.spec.signer_name = SIGNER.to_owned();
        request.spec.username = Some(user.to_owned());
        request.spec.groups = Some(vec![GROUP.to_owned(), "system:authenticated".to_owned()]);
        request.spec.usages = Some(vec!["digital signature".into(), "server auth".into()]);
        request.spec.request = ByteString(pem);
        request
    }

    fn good(names: &[&str]) -> CertificateSigningRequest {
        asked_by(NODE, pem(&[GROUP], NODE, names))
    }

    fn node(name: &str) -> Option<Node> {
        let addresses = json!([
            { "type": "InternalIP", "address": "192.0.2.7" },
            { "type": "InternalIP", "address": "2001:db8::7" },
            { "type": "Hostname", "address": "edge-1" },
        ]);
        let node =
            json!({ "metadata": { "name": "edge-1" }, "status": { "addresses": addresses } });
        (name == "edge-1").then(|| serde_json::from_value(node).expect("a node"))
    }

    fn why(request: &CertificateSigningRequest) -> String {
        match judge(request, node, &[]) {
            Verdict::Leave(why) => why.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_s_own_names_and_addresses_are_approved() {
        for names in [&["192.0.2.7"][..], &["edge-1"], &["192.0.2.7", "2001:db8::7", "EDGE-1"]] {
            assert_eq!(judge(&good(names), node, &[]), Verdict::Approve, "{names:?}");
        }
    }

    #[test]
    fn what_is_another_s_is_left_for_a_person() {
        assert!(why(&good(&["192.0.2.8"])).contains("192.0.2.8"));
        assert!(why(&good(&["192.0.2.7", "kubernetes.default"])).contains("kubernetes.default"));
        assert!(why(&good(&[])).contains("names no address"));
        let gone = asked_by("system:node:gone", pem(&[GROUP], "system:node:gone", &["192.0.2.7"]));
        assert!(why(&gone).contains("no node \"gone\""));
    }

    #[test]
    fn a_certificate_that_would_be_somebody_else_s_is_left() {
        for pem in [
            pem(&[GROUP], "system:node:edge-2", &["192.0.2.7"]),
            pem(&["system:masters"], NODE, &["192.0.2.7"]),
            pem(&[], NODE, &["192.0.2.7"]),
        ] {
            assert!(why(&asked_by(NODE, pem)).contains("subject"));
        }
        for user in ["admin", "system:node:", "system:serviceaccount:a:b"] {
            assert!(why(&asked_by(user, pem(&[GROUP], user, &["192.0.2.7"]))).contains("no node"));
        }
        let mut no_group = good(&["192.0.2.7"]);
        no_group.spec.groups = None;
        assert!(why(&no_group).contains("no node"));
    }

    #[test]
    fn more_than_serving_and_names_of_other_kinds_are_left() {
        let mut client = good(&["192.0.2.7"]);
        client.spec.usages = Some(vec!["client auth".into(), "server auth".into()]);
        assert!(why(&client).contains("client auth"));
        client.spec.usages = Some(vec!["digital signature".into()]);
        assert!(why(&client).contains("usages"));

        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, GROUP);
        params.distinguished_name.push(DnType::CommonName, NODE);
        params.subject_alt_names =
            vec![SanType::URI("spiffe://cluster/api".try_into().expect("ASCII"))];
        let key = KeyPair::generate().expect("a key");
        let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
        assert!(why(&asked_by(NODE, pem.into_bytes())).contains("no node's name"));
        assert!(why(&asked_by(NODE, b"no request".to_vec())).contains("cannot be read"));
    }

    #[test]
    fn an_address_outside_the_blocks_of_nodes_is_left_although_the_node_says_it_is_its_own() {
        let block = |text: &str| text.parse::<Block>().expect("a block");
        let judged = |request, blocks: &[Block]| judge(&request, node, blocks);

        let approved = judged(good(&["192.0.2.7"]), &[block("10.0.0.0/8"), block("192.0.2.0/24")]);
        assert_eq!(approved, Verdict::Approve);
        let outside = Why::Outside("192.0.2.7".parse().expect("an address"));
        assert_eq!(judged(good(&["192.0.2.7"]), &[block("10.0.0.0/8")]), Verdict::Leave(outside));
        assert_eq!(judged(good(&["2001:db8::7"]), &[block("::/0")]), Verdict::Approve);
        for wrong in ["192.0.2.0", "192.0.2.0/33", "x/8", "::/129"] {
            assert!(wrong.parse::<Block>().is_err_and(|why| why.contains("192.0.2.0/24")));
        }
    }

    #[test]
    fn what_is_decided_or_for_another_signer_is_let_be() {
        let mut other = good(&["192.0.2.7"]);
        other.spec.signer_name = "kubernetes.io/kube-apiserver-client-kubelet".into();
        assert_eq!(judge(&other, node, &[]), Verdict::NotOurs);

        let denied = json!({ "conditions": [{ "type": "Denied", "status": "True" }] });
        let mut decided = good(&["192.0.2.7"]);
        decided.status = Some(serde_json::from_value(denied).expect("a status"));
        assert_eq!(judge(&decided, node, &[]), Verdict::NotOurs);
    }
}
