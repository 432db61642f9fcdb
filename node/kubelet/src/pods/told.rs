//! The pods of this node for whoever asks the kubelet's API: as the API server told them, with the newest status that is known here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use copepod_agent::api::PodName;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::server::pods::Told;

/// The list; one writes it, the server reads it.
#[derive(Debug, Default)]
pub struct Book {
    /// Where a pod of a name ends while another one of this name is here already, both are; the newest is the last.
    pods: Mutex<BTreeMap<PodName, Vec<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    uid: String,
    pod: Arc<Pod>,
    status: PodStatus,
}

impl Book {
    /// A pod is here, or looks otherwise than before.
    pub fn put(&self, name: PodName, uid: &str, pod: Arc<Pod>, status: PodStatus) {
        let mut pods = self.pods();
        let of_name = pods.entry(name).or_default();
        let entry = Entry { uid: uid.to_owned(), pod, status };
        match of_name.iter_mut().find(|known| known.uid == uid) {
            Some(known) => *known = entry,
            None => {
                of_name.push(entry);
                // After a restart they are told in any order.
                of_name.sort_by_key(Entry::made);
            }
        }
    }

    /// A pod is here no more.
    pub fn remove(&self, uid: &str) {
        self.pods().retain(|_, of_name| {
            of_name.retain(|entry| entry.uid != uid);
            !of_name.is_empty()
        });
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<PodName, Vec<Entry>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn whole(&self) -> Arc<Pod> {
        let mut pod = Pod::clone(&self.pod);
        pod.status = Some(self.status.clone());
        Arc::new(pod)
    }

    fn made(&self) -> Option<Timestamp> {
        self.pod.metadata.creation_timestamp.as_ref().map(|it| it.0)
    }
}

impl Told for Book {
    fn all(&self) -> Vec<Arc<Pod>> {
        self.pods().values().flatten().map(Entry::whole).collect()
    }

    fn find(&self, name: &PodName) -> Option<Arc<Pod>> {
        self.pods().get(name).and_then(|of_name| of_name.last()).map(Entry::whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(book: &Book, uid: &str, made: &str, phase: &str) {
        let name = PodName { namespace: "default".into(), name: "web".into() };
        let pod = serde_json::json!({ "metadata": { "uid": uid, "creationTimestamp": made } });
        let status = PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() };
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        book.put(name, uid, Arc::new(pod), status);
    }

    fn found(book: &Book) -> Option<String> {
        let name = PodName { namespace: "default".into(), name: "web".into() };
        book.find(&name)?.metadata.uid.clone()
    }

    const EARLIER: &str = "2026-01-01T00:00:00Z";
    const LATER: &str = "2026-01-01T00:00:01Z";

    #[test]
    fn of_two_pods_of_one_name_the_newer_is_found_also_while_the_older_tells_of_its_end() {
        let book = Book::default();
        put(&book, "old", EARLIER, "Running");
        put(&book, "new", LATER, "Running");

        put(&book, "old", EARLIER, "Failed");
        assert_eq!(found(&book).as_deref(), Some("new"));
        assert_eq!(book.all().len(), 2);
        book.remove("old");
        assert_eq!(found(&book).as_deref(), Some("new"));
        book.remove("new");
        assert!(book.all().is_empty());
    }

    #[test]
    fn the_newer_of_two_pods_is_found_in_whatever_order_they_are_told() {
        let book = Book::default();

        put(&book, "new", LATER, "Running");
        put(&book, "old", EARLIER, "Running");

        assert_eq!(found(&book).as_deref(), Some("new"));
    }
}
