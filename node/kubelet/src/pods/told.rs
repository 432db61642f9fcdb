//! The pods of this node for whoever asks the kubelet's API: as the API server told them, with the newest status that is known here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use copepod_agent::api::PodName;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::server::pods::Told;

/// The list; one writes it, the server reads it.
#[derive(Debug, Default)]
pub struct Book {
    pods: Mutex<BTreeMap<PodName, Entry>>,
}

#[derive(Debug)]
struct Entry {
    uid: String,
    pod: Arc<Pod>,
    status: PodStatus,
}

impl Book {
    /// A pod is here, or looks otherwise than before. Of two of one name the one told last is told.
    pub fn put(&self, name: PodName, uid: &str, pod: Arc<Pod>, status: PodStatus) {
        self.pods().insert(name, Entry { uid: uid.to_owned(), pod, status });
    }

    /// A pod is here no more.
    pub fn remove(&self, uid: &str) {
        self.pods().retain(|_, entry| entry.uid != uid);
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<PodName, Entry>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn whole(&self) -> Arc<Pod> {
        let mut pod = Pod::clone(&self.pod);
        pod.status = Some(self.status.clone());
        Arc::new(pod)
    }
}

impl Told for Book {
    fn all(&self) -> Vec<Arc<Pod>> {
        self.pods().values().map(Entry::whole).collect()
    }

    fn find(&self, name: &PodName) -> Option<Arc<Pod>> {
        self.pods().get(name).map(Entry::whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_pods_of_one_name_the_newer_stays_when_the_older_goes() {
        let book = Book::default();
        let name = PodName { namespace: "default".into(), name: "web".into() };
        book.put(name.clone(), "old", Arc::default(), PodStatus::default());
        let running = PodStatus { phase: Some("Running".into()), ..PodStatus::default() };
        book.put(name.clone(), "new", Arc::default(), running);

        book.remove("old");

        let phase = book.find(&name).and_then(|pod| pod.status.clone()?.phase);
        assert_eq!(phase.as_deref(), Some("Running"));
        book.remove("new");
        assert!(book.all().is_empty());
    }
}
