//! A pod as the API server last told it: what the node's side needs of it, and not the whole object a thousand times.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use copepod_agent::api::PodName;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

/// What of a pod may change while it runs: its spec, by the generation, and what an administrator writes on it. Two forms of one pod
/// are as good as surely the same pod where they are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    generation: Option<i64>,
    notes: u64,
}

impl Form {
    /// A pod's form.
    pub fn of(pod: &Pod) -> Self {
        let mut notes = DefaultHasher::new();
        (&pod.metadata.labels, &pod.metadata.annotations).hash(&mut notes);
        Self { generation: pod.metadata.generation, notes: notes.finish() }
    }
}

/// The API server's copy of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Namespace and name.
    pub name: PodName,
    /// The UID.
    pub uid: String,
    /// `metadata.resourceVersion`: later copies have greater ones.
    pub version: u128,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// To tell whether the agent has the pod as it is now.
    pub form: Form,
    /// It is to end, with so much grace.
    pub deletion: Option<Duration>,
    /// The status that the API server has.
    pub status: PodStatus,
    /// Condition types that have to be true before the pod is ready (`spec.readinessGates`).
    pub gates: Vec<String>,
    /// The kind of the object that made it, where one did.
    pub controller: Option<String>,
    /// The pod itself, until the agent has it in this form, or has refused it.
    pub pod: Option<Arc<Pod>>,
}

impl Seen {
    /// Of a pod from the API; none where it lacks what every API server gives.
    pub fn of(mut pod: Pod) -> Option<Self> {
        let form = Form::of(&pod);
        let meta = &mut pod.metadata;
        // As large as the rest of the pod, and nobody's business here.
        meta.managed_fields = None;
        let seen = Self {
            name: PodName { namespace: meta.namespace.clone()?, name: meta.name.clone()? },
            uid: meta.uid.clone()?,
            version: 0,
            generation: meta.generation,
            form,
            deletion: meta.deletion_timestamp.is_some().then(|| {
                let seconds = meta.deletion_grace_period_seconds.unwrap_or(0);
                Duration::from_secs(seconds.try_into().unwrap_or(0))
            }),
            status: pod.status.take().unwrap_or_default(),
            gates: pod
                .spec
                .iter()
                .flat_map(|spec| spec.readiness_gates.iter().flatten())
                .map(|gate| gate.condition_type.clone())
                .collect(),
            controller: (pod.metadata.owner_references.iter().flatten())
                .find(|owner| owner.controller == Some(true))
                .map(|owner| owner.kind.clone()),
            pod: None,
        };
        Some(Self { version: Self::version_of(&pod), pod: Some(Arc::new(pod)), ..seen })
    }

    /// The number in a pod's `metadata.resourceVersion`; 0 where it is none.
    pub fn version_of(pod: &Pod) -> u128 {
        let version = pod.metadata.resource_version.as_deref();
        version.and_then(|it| it.parse().ok()).unwrap_or(0)
    }

    /// Whether the API server has its last phase.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }
}
