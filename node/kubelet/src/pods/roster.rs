//! Which pods there are, by the API server's word: what it tells is taken here, and nothing else makes a pod gone.
//!
//! Absent: what is done about a pod ([`super::plan`]).

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;

use super::plan::{Local, Tracked};
use super::seen::Seen;

/// All pods that the API server or the agent has.
#[derive(Debug, Default)]
pub struct Roster {
    /// By UID.
    pub pods: HashMap<String, Tracked>,
    /// The API server has told of all pods once.
    pub listed: bool,
    /// The list that is coming in: what is not in it is gone.
    listing: Option<HashSet<String>>,
    /// Pods that are gone by the answer to a request, of whose end the watch, which may be behind, has yet to tell.
    gone: HashSet<String>,
}

impl Roster {
    /// Takes what the watch tells; the pods that it is about.
    pub fn hear(&mut self, event: watcher::Event<Pod>, touched: &mut HashSet<String>) {
        match event {
            watcher::Event::Init => self.listing = Some(HashSet::new()),
            watcher::Event::InitApply(pod) => {
                // Also where the list is older than what an answer to a write told: it is there.
                if let (Some(listing), Some(uid)) = (&mut self.listing, &pod.metadata.uid) {
                    listing.insert(uid.clone());
                }
                touched.extend(self.see(pod));
            }
            watcher::Event::InitDone => {
                let listing = self.listing.take().unwrap_or_default();
                self.listed = true;
                self.gone.retain(|uid| listing.contains(uid));
                for (uid, tracked) in &mut self.pods {
                    if !listing.contains(uid) {
                        tracked.seen = None;
                    }
                    touched.insert(uid.clone());
                }
            }
            watcher::Event::Apply(pod) => touched.extend(self.see(pod)),
            watcher::Event::Delete(pod) => {
                let Some(uid) = pod.metadata.uid else { return };
                self.gone.remove(&uid);
                if let Some(tracked) = self.pods.get_mut(&uid) {
                    tracked.seen = None;
                    touched.insert(uid);
                }
            }
        }
    }

    /// Takes the API server's copy of a pod, where it is no older than the one at hand.
    fn see(&mut self, pod: Pod) -> Option<String> {
        let mut seen = Seen::of(pod)?;
        let uid = seen.uid.clone();
        if self.gone.contains(&uid) {
            return None;
        }
        let tracked = self.pods.entry(uid.clone()).or_default();
        if tracked.seen.as_ref().is_some_and(|known| known.version > seen.version) {
            return None;
        }
        if matches!(tracked.local, Local::Here { .. }) && tracked.given == Some(seen.form) {
            // The agent has it.
            seen.pod = None;
        }
        tracked.seen = Some(seen);
        Some(uid)
    }

    /// The API server has answered that a pod is gone, or is nobody's but its finalizers' any more. What the watch tells of it from here
    /// on, but for its end, was so before.
    pub fn is_gone(&mut self, uid: &str) {
        // Where the watch was quicker, nothing more comes of it.
        if self.pods.get_mut(uid).is_some_and(|tracked| tracked.seen.take().is_some()) {
            self.gone.insert(uid.to_owned());
        }
    }

    /// Takes the answer to a write. One that comes after the watch told of the pod's end does not bring it back.
    pub fn answered(&mut self, pod: Pod) {
        let known = pod.metadata.uid.as_ref().and_then(|uid| self.pods.get(uid));
        if known.is_some_and(|tracked| tracked.seen.is_some()) {
            self.see(pod);
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, version: u32) -> Pod {
        let meta = json!({ "namespace": "default", "name": uid, "uid": uid, "resourceVersion": version.to_string() });
        serde_json::from_value(json!({ "metadata": meta, "spec": { "containers": [] } }))
            .expect("a pod")
    }

    /// The agent has these already.
    fn roster(uids: &[&str]) -> Roster {
        let mut roster = Roster::default();
        for uid in uids {
            let local = Local::Here { over: false };
            roster.pods.insert((*uid).to_owned(), Tracked { local, ..Tracked::new() });
        }
        roster
    }

    fn hear(roster: &mut Roster, events: impl IntoIterator<Item = Event<Pod>>) {
        events.into_iter().for_each(|event| roster.hear(event, &mut HashSet::new()));
    }

    fn is_there(roster: &Roster, uid: &str) -> bool {
        roster.pods.get(uid).is_some_and(|tracked| tracked.seen.is_some())
    }

    #[test]
    fn a_pod_that_a_complete_list_leaves_out_is_gone_and_one_that_half_a_list_does_is_not() {
        let mut roster = roster(&["a", "b"]);

        hear(&mut roster, [Event::Init, Event::InitApply(pod("a", 1))]);
        assert!(!roster.listed);

        // The list broke off, and another one comes.
        hear(
            &mut roster,
            [
                Event::Init,
                Event::InitApply(pod("b", 1)),
                Event::InitApply(pod("a", 1)),
                Event::InitDone,
            ],
        );
        assert!(roster.listed && is_there(&roster, "a") && is_there(&roster, "b"));

        hear(&mut roster, [Event::Init, Event::InitApply(pod("a", 1)), Event::InitDone]);
        assert!(is_there(&roster, "a") && !is_there(&roster, "b"));
    }

    #[test]
    fn a_list_older_than_the_answer_to_a_write_takes_no_pod_away_and_nothing_back() {
        let mut roster = roster(&["a"]);
        hear(&mut roster, [Event::Init, Event::InitApply(pod("a", 5)), Event::InitDone]);
        roster.answered(pod("a", 9));

        hear(&mut roster, [Event::Init, Event::InitApply(pod("a", 5)), Event::InitDone]);

        let seen = roster.pods["a"].seen.as_ref().expect("it lives");
        assert_eq!(seen.version, 9);
    }

    #[test]
    fn an_answer_that_comes_after_the_pods_end_does_not_bring_it_back() {
        let mut roster = roster(&["a"]);
        hear(&mut roster, [Event::Init, Event::InitApply(pod("a", 5)), Event::InitDone]);
        hear(&mut roster, [Event::Delete(pod("a", 8))]);

        roster.answered(pod("a", 7));

        assert!(!is_there(&roster, "a"));
    }

    #[test]
    fn an_answer_that_comes_after_the_watch_told_of_the_end_leaves_nothing_behind() {
        let mut roster = roster(&["a"]);
        hear(&mut roster, [Event::Init, Event::InitApply(pod("a", 5)), Event::InitDone]);
        hear(&mut roster, [Event::Delete(pod("a", 6))]);

        roster.is_gone("a");

        assert!(roster.gone.is_empty());
    }

    #[test]
    fn what_a_late_watch_tells_of_a_deleted_pod_does_not_bring_it_back_and_another_of_its_name_comes()
     {
        let mut roster = roster(&["a"]);
        hear(&mut roster, [Event::Init, Event::InitApply(pod("a", 5)), Event::InitDone]);
        roster.is_gone("a");
        // The agent has forgotten it.
        roster.pods.remove("a");

        hear(&mut roster, [Event::Apply(pod("a", 6)), Event::Apply(pod("b", 8))]);
        assert!(!is_there(&roster, "a") && is_there(&roster, "b"));

        // Where finalizers hold it, a list has it still.
        hear(&mut roster, [Event::Init, Event::InitApply(pod("a", 7)), Event::InitDone]);
        assert!(!is_there(&roster, "a"));
        hear(&mut roster, [Event::Delete(pod("a", 9))]);
        assert!(roster.gone.is_empty());
    }

    #[test]
    fn of_a_deleted_pod_that_a_complete_list_leaves_out_nothing_is_kept() {
        let mut roster = roster(&["a"]);
        hear(&mut roster, [Event::Init, Event::InitApply(pod("a", 5)), Event::InitDone]);
        roster.is_gone("a");

        hear(&mut roster, [Event::Init, Event::InitDone]);

        assert!(roster.gone.is_empty());
    }
}
