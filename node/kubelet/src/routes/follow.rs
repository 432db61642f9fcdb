//! Follows the cluster's nodes where this one may see them, and has ways to their pods set and taken back.
//!
//! Start at [`follow`]. A node's own user may see no node but itself, so it asks first whether somebody gave it that right, and never
//! makes a request that would be refused. While the API server is away, everything stays as it is. Absent: what is decided
//! ([`super::plan`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use copepod_agent::front::Front;
use copepod_agent::{with_causes, write_whole};
use copepod_domain::{Blocks, Cidr, WayChange};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_all};
use kube::{Api, Client};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Peer, Remark, plan, sentences};
use crate::pace::{Backoff, about};
use crate::settings::NodeName;

/// How often the machine's routes are looked at while no node changes: one that went with its link comes back within this time.
const LOOK: Duration = Duration::from_secs(30);

/// How long news of nodes are gathered, as many may come at once.
const GATHER: Duration = Duration::from_millis(100);

/// How soon a right that is missing is asked about again, at first and at most.
const ASK: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5 * 60));

/// Who follows, and what for.
pub struct Follower {
    /// The way to the API server: for requests, with a time limit.
    pub client: Client,
    /// The same for watches.
    pub streams: Client,
    /// This node.
    pub node: NodeName,
    /// The blocks of its pods.
    pub own: Blocks,
    /// The data directory, which keeps what was last known.
    pub data: PathBuf,
    /// The agent.
    pub front: Front,
}

/// What is kept from look to look.
struct Following {
    of: Follower,
    roster: Roster,
    /// What was last set.
    direct: Option<BTreeSet<Cidr>>,
    /// What was said, and still holds.
    remarks: BTreeSet<Remark>,
    failed: BTreeSet<String>,
}

/// Follows for ever.
pub async fn follow(of: Follower) {
    let mut following = Following {
        of,
        roster: Roster::default(),
        direct: None,
        remarks: BTreeSet::new(),
        failed: BTreeSet::new(),
    };
    let mut backoff = Backoff::new(ASK.0, ASK.1);
    let mut told = false;
    loop {
        match may_see_nodes(&following.of.client).await {
            Ok(true) => {
                info!("ways to other nodes' pods follow the cluster's nodes");
                following.watch().await;
                (told, backoff) = (false, Backoff::new(ASK.0, ASK.1));
            }
            Ok(false) if told => {}
            Ok(false) => {
                warn!("{}", missing_right(&user(&following.of).await, &following.of.node));
                told = true;
            }
            Err(error) => {
                debug!(error = with_causes(&error), "whether nodes may be listed is unknown");
            }
        }
        tokio::time::sleep(about(backoff.failed(), 0.1)).await;
    }
}

/// Takes back what an earlier process of this node has set, where the network is to do all of it.
///
/// # Errors
/// What could not be taken back.
pub async fn withdraw(front: &Front, data: &Path) -> Result<(), String> {
    let seen = front.surroundings(Vec::new()).await.map_err(|error| with_causes(&error))?;
    let removals = seen.ours.into_iter().map(WayChange::Remove).collect();
    let failed = front.change_ways(removals).await.map_err(|error| with_causes(&error))?;
    front.set_direct(Vec::new()).await.map_err(|error| with_causes(&error))?;
    forget(data).map_err(|error| error.to_string())?;
    match failed.first() {
        Some((change, error)) => Err(sentence(change, error)),
        None => Ok(()),
    }
}

/// Other nodes' blocks as they were last known; none where nothing is kept.
pub fn kept(data: &Path) -> Vec<Cidr> {
    let Ok(bytes) = std::fs::read(data.join(FILE)) else { return Vec::new() };
    // A damaged file is as good as none: the API server tells all of it again.
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Forgets them.
///
/// # Errors
/// The disk's.
pub fn forget(data: &Path) -> io::Result<()> {
    match std::fs::remove_file(data.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Keeps other nodes' blocks, so that from an agent's start on its pods reach them as before.
const FILE: &str = "other-nodes.json";

/// Asks whether this node may list and watch nodes. Everybody may ask that.
async fn may_see_nodes(client: &Client) -> Result<bool, kube::Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    for verb in ["list", "watch"] {
        let attributes = ResourceAttributes {
            verb: Some(verb.into()),
            resource: Some("nodes".into()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        if !answer.status.is_some_and(|status| status.allowed) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// As whom the API server knows this node.
async fn user(of: &Follower) -> String {
    let reviews: Api<SelfSubjectReview> = Api::all(of.client.clone());
    let answer = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await;
    let info = answer.ok().and_then(|review| review.status).and_then(|status| status.user_info);
    info.and_then(|info| info.username).unwrap_or_else(|| of.node.user())
}

/// The right that is missing, and how to give it to this one user.
fn missing_right(user: &str, node: &NodeName) -> String {
    format!(
        "{user} may not list and watch nodes, so no routes to other nodes' pods are set here, and this node's pods reach them under the \
         node's address; an administrator allows it, to this user alone, by \
         kubectl create clusterrolebinding copepod:node-proxier:{node} --clusterrole system:node-proxier --user {user} \
         (the rule it needs: {{apiGroups: [\"\"], resources: [\"nodes\"], verbs: [\"list\", \"watch\"]}}); or have the cluster's own \
         network do it, and start the node with --routes off"
    )
}

impl Following {
    /// Goes on until the right is gone.
    async fn watch(&mut self) {
        let config = watcher::Config::default().fields(&format!("metadata.name!={}", self.of.node));
        let nodes = Api::<Node>::all(self.of.streams.clone());
        let mut events = std::pin::pin!(watch_all(nodes, config).default_backoff());
        let mut told = false;
        // What was known before the right was lost still holds until somebody tells otherwise.
        let mut due = self.roster.complete.then(|| Instant::now() + LOOK);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = sleep_until(due) => {
                    self.look().await;
                    due = Some(Instant::now() + LOOK);
                    continue;
                }
            };
            match event {
                Some(Ok(event)) => {
                    told = false;
                    let mut changed = self.roster.hear(event);
                    while let Some(Some(Ok(event))) = events.next().now_or_never() {
                        changed |= self.roster.hear(event);
                    }
                    if changed {
                        let soon = Instant::now() + GATHER;
                        due = Some(due.map_or(soon, |due| due.min(soon)));
                    }
                }
                Some(Err(error)) if is_refusal(&error) => return,
                Some(Err(error)) if !told => {
                    warn!("the cluster's nodes cannot be followed: {}", with_causes(&error));
                    told = true;
                }
                Some(Err(_)) => {}
                None => return,
            }
        }
    }

    /// Compares what is with what should be, and changes what differs.
    async fn look(&mut self) {
        let mut failed = BTreeSet::new();
        if let Err(error) = self.try_to_look(&mut failed).await {
            failed.insert(error);
        }
        for new in failed.difference(&self.failed) {
            warn!("{new}");
        }
        self.failed = failed;
    }

    async fn try_to_look(&mut self, failed: &mut BTreeSet<String>) -> Result<(), String> {
        let Follower { own, front, data, .. } = &self.of;
        let nodes = &self.roster.nodes;
        let addresses: BTreeSet<IpAddr> =
            nodes.values().flat_map(|peer| peer.addresses.iter().copied()).collect();
        let seen = front.surroundings(addresses.into_iter().collect()).await;
        let plan = plan(*own, nodes, &seen.map_err(|error| with_causes(&error))?);
        let new = plan.remarks.difference(&self.remarks).cloned().collect();
        for sentence in sentences(&new, *own) {
            warn!("{sentence}");
        }
        self.remarks = plan.remarks;
        // Before the routes, so that no connection begins with NAT that is to go on without.
        if self.direct.as_ref() != Some(&plan.direct) {
            let blocks: Vec<Cidr> = plan.direct.iter().copied().collect();
            let set = front.set_direct(blocks.clone()).await;
            set.map_err(|error| with_causes(&error))?;
            let text = serde_json::to_vec(&blocks).map_err(|error| error.to_string())?;
            write_whole(&data.join(FILE), &text, 0o644)
                .map_err(|error| format!("{}: {error}", data.join(FILE).display()))?;
            self.direct = Some(plan.direct);
        }
        if plan.changes.is_empty() {
            return Ok(());
        }
        for change in &plan.changes {
            info!("{}", told(change));
        }
        let refused = front.change_ways(plan.changes).await;
        let refused = refused.map_err(|error| with_causes(&error))?;
        failed.extend(refused.iter().map(|(change, error)| sentence(change, error)));
        Ok(())
    }
}

fn told(change: &WayChange) -> String {
    match change {
        WayChange::Set(way) => format!("route to {} via {}", way.block, way.gateway),
        WayChange::Remove(way) => format!("no route to {} via {} any more", way.block, way.gateway),
    }
}

fn sentence(change: &WayChange, error: &io::Error) -> String {
    format!("the kernel refuses \"{}\": {error}", told(change))
}

/// A right that was there has been taken away.
fn is_refusal(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == 403,
        _ => false,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The other nodes as they were last told. A list that is not complete yet changes nothing.
#[derive(Debug, Default)]
struct Roster {
    nodes: BTreeMap<String, Peer>,
    listed: BTreeMap<String, Peer>,
    complete: bool,
}

impl Roster {
    /// Takes an event; whether anything that matters has changed.
    fn hear(&mut self, event: Event<Node>) -> bool {
        let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
        match event {
            Event::Init => {
                self.listed.clear();
                false
            }
            Event::InitApply(node) => {
                self.listed.insert(name(&node), Peer::of(&node));
                false
            }
            Event::InitDone => {
                let before = std::mem::replace(&mut self.nodes, std::mem::take(&mut self.listed));
                let was_complete = std::mem::replace(&mut self.complete, true);
                !was_complete || before != self.nodes
            }
            Event::Apply(node) => {
                let peer = Peer::of(&node);
                self.nodes.insert(name(&node), peer.clone()).as_ref() != Some(&peer)
            }
            Event::Delete(node) => self.nodes.remove(&name(&node)).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake;

    fn node(name: &str, block: &str) -> Node {
        let node = json!({ "metadata": { "name": name }, "spec": { "podCIDR": block } });
        serde_json::from_value(node).expect("a node")
    }

    fn names(roster: &Roster) -> Vec<&str> {
        roster.nodes.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_list_takes_the_place_of_what_was_known_once_it_is_complete() {
        let mut roster = Roster::default();
        let first = [Event::Init, Event::InitApply(node("a", "10.1.0.0/24")), Event::InitDone];
        let told = first.map(|event| roster.hear(event));
        assert_eq!((told, names(&roster)), ([false, false, true], vec!["a"]));

        let again = [Event::Init, Event::InitApply(node("b", "10.2.0.0/24"))];
        let told = again.map(|event| roster.hear(event));

        assert_eq!((told, names(&roster)), ([false, false], vec!["a"]));
        assert!(roster.hear(Event::InitDone));
        assert_eq!(names(&roster), ["b"]);
    }

    #[test]
    fn the_first_complete_list_counts_as_news_also_where_nobody_is_in_it() {
        let mut roster = Roster::default();
        roster.hear(Event::Init);

        assert!(roster.hear(Event::InitDone), "ways of a former process may have to go");
        roster.hear(Event::Init);
        assert!(!roster.hear(Event::InitDone));
    }

    #[test]
    fn a_node_s_beating_heart_is_no_news() {
        let mut roster = Roster::default();
        let beats = [
            Event::Apply(node("a", "10.1.0.0/24")),
            Event::Apply(node("a", "10.1.0.0/24")),
            Event::Apply(node("a", "10.9.0.0/24")),
            Event::Delete(node("a", "10.9.0.0/24")),
            Event::Delete(node("a", "10.9.0.0/24")),
        ];

        assert_eq!(beats.map(|event| roster.hear(event)), [true, false, true, true, false]);
    }

    #[tokio::test]
    async fn who_may_list_nodes_and_not_watch_them_may_not_see_them() {
        let (client, log) = fake::api(|asked| {
            let verb = &asked.body["spec"]["resourceAttributes"]["verb"];
            let mut answer = asked.body.clone();
            answer["status"] = json!({ "allowed": verb == "list" });
            (201, answer)
        });

        let may = may_see_nodes(&client).await.expect("answered");

        assert!(!may);
        let path = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        assert_eq!(log.lines(), [path, path]);
    }

    #[test]
    fn the_right_that_is_missing_is_told_with_the_command_that_gives_it_to_this_user_alone() {
        let text = missing_right("system:node:n1", &"n1".parse().expect("a name"));

        for expected in [
            "kubectl create clusterrolebinding copepod:node-proxier:n1 --clusterrole system:node-proxier --user system:node:n1 ",
            r#"{apiGroups: [""], resources: ["nodes"], verbs: ["list", "watch"]}"#,
            "--routes off",
        ] {
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn what_was_last_known_is_found_again_and_a_damaged_file_is_as_good_as_none() {
        let data = tempfile::tempdir().expect("a folder");
        assert_eq!(kept(data.path()), []);
        std::fs::write(data.path().join(FILE), r#"["10.1.0.0/24"]"#).expect("written");
        assert_eq!(kept(data.path()), ["10.1.0.0/24".parse().expect("a block")]);
        std::fs::write(data.path().join(FILE), "[").expect("written");
        assert_eq!(kept(data.path()), []);

        forget(data.path()).expect("forgotten");
        forget(data.path()).expect("there is nothing to forget");
    }
}
