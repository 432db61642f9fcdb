//! A pod's quality-of-service class, as the API server computes it.
//!
//! Absent: what follows from it (eviction), and pod-level resources (refused).

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::quantity::Amount;

/// How sure of its resources a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has limits for cpu and memory, and requests equal to them.
    Guaranteed,
    /// Some container asks for something.
    Burstable,
    /// No container asks for anything.
    BestEffort,
}

impl QosClass {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The class of a pod that has its defaults.
pub fn qos_class(pod: &Pod) -> QosClass {
    let Some(spec) = &pod.spec else { return QosClass::BestEffort };
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers).peekable();
    let mut guaranteed = containers.peek().is_some();
    let mut asked = false;
    for container in containers {
        for resource in ["cpu", "memory"] {
            let (request, limit) = amounts(container, resource);
            asked |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some()
                && request.unwrap_or(limit.unwrap_or_default()) == limit.unwrap_or_default();
        }
    }
    match (guaranteed, asked) {
        (true, _) => QosClass::Guaranteed,
        (false, true) => QosClass::Burstable,
        (false, false) => QosClass::BestEffort,
    }
}

/// Request and limit; zero counts as none.
fn amounts(container: &Container, resource: &str) -> (Option<Amount>, Option<Amount>) {
    let Some(resources) = &container.resources else { return (None, None) };
    let amount = |map: &Option<std::collections::BTreeMap<_, _>>| {
        let quantity = map.as_ref()?.get(resource)?;
        Amount::parse(quantity).ok().filter(|amount| *amount != Amount::default())
    };
    (amount(&resources.requests), amount(&resources.limits))
}
