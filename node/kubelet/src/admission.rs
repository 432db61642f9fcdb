//! Whether a pod that was bound to this node may run on it: a kubelet's own judgement, with its words (kubelet.md P5). Pure.
//!
//! Start at [`admit`]; [`Taken`] is what the node's other pods have. The order of the rules is a kubelet's, as only the first that
//! fails is told. A pod that ran here before a restart is not judged again (P6), which is up to the caller. Absent: fields that no
//! pod of ours can have, which leave a pod waiting and not failed (`copepod-node`), and preemption for critical pods.

use std::collections::BTreeMap;

use copepod_node::host_ports::{self, HostPort};
use copepod_node::quantity::Amount;
use copepod_node::status::{QosClass, qos_class};
use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pressure::{Pressure, Pressures};

/// Why a pod fails before it has run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// `status.reason`, and the event's.
    pub reason: String,
    /// The event's message.
    pub message: String,
}

impl Rejection {
    /// `status.message`.
    pub fn status_message(&self) -> String {
        format!("Pod was rejected: {}", self.message)
    }
}

/// Thousandths of a core for `cpu`, whole units for all others, as schedulers count.
type Requests = BTreeMap<String, u64>;

/// What the pods that run on the node have of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    pods: usize,
    requests: Requests,
    ports: Vec<HostPort>,
}

impl Taken {
    /// A pod that is admitted.
    pub fn add(&mut self, pod: &Pod) {
        self.pods += 1;
        for (name, amount) in requests(pod) {
            let sum = self.requests.entry(name).or_default();
            *sum = sum.saturating_add(amount);
        }
        self.ports.extend(host_ports::of(pod));
    }

    /// A pod that was added, and is over.
    pub fn remove(&mut self, pod: &Pod) {
        self.pods = self.pods.saturating_sub(1);
        for (name, amount) in requests(pod) {
            let sum = self.requests.entry(name).or_default();
            *sum = sum.saturating_sub(amount);
        }
        for port in host_ports::of(pod) {
            if let Some(index) = self.ports.iter().position(|taken| *taken == port) {
                self.ports.swap_remove(index);
            }
        }
    }
}

/// Judges a pod by the node as the API server has it, what others have of it, and what it is short of.
///
/// # Errors
/// The first rule that the pod breaks.
pub fn admit(
    pod: &Pod,
    node: &Node,
    taken: &Taken,
    pressures: &Pressures,
) -> Result<(), Rejection> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    short_of(pod, spec, pressures)?;
    operating_system(pod, spec, node)?;
    resources(pod, node, taken)?;
    if !matches_node(spec, node) {
        return Err(predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    if spec.node_name.as_ref().is_some_and(|name| Some(name) != node.metadata.name.as_ref()) {
        return Err(predicate("NodeName", "node(s) didn't match the requested node name"));
    }
    if host_ports::of(pod).iter().any(|port| taken.ports.iter().any(|other| port.clashes(other))) {
        return Err(predicate(
            "NodePorts",
            "node(s) didn't have free ports for the requested pod ports",
        ));
    }
    if !tolerates(spec, node) {
        return Err(predicate(
            "TaintToleration",
            "node(s) had taints that the pod didn't tolerate",
        ));
    }
    Ok(())
}

fn predicate(name: &str, why: &str) -> Rejection {
    Rejection { reason: name.to_owned(), message: format!("Predicate {name} failed: {why}") }
}

// What the node is short of --------------------------------------------------------------------------------------------------

/// The least priority of pods that a node under pressure still takes (`system-cluster-critical`).
const CRITICAL: i32 = 2_000_000_000;

fn short_of(pod: &Pod, spec: &PodSpec, pressures: &Pressures) -> Result<(), Rejection> {
    let all = [
        (Pressure::Memory, "MemoryPressure"),
        (Pressure::Disk, "DiskPressure"),
        (Pressure::Pids, "PIDPressure"),
    ];
    let now: Vec<_> =
        all.iter().filter(|(it, _)| pressures.is(*it)).map(|(_, name)| *name).collect();
    let critical = spec.priority.is_some_and(|priority| priority >= CRITICAL);
    // Whoever has asked for memory gets it.
    let spared = now == ["MemoryPressure"]
        && (!is_best_effort(pod)
            || tolerated(
                spec,
                &Taint {
                    key: "node.kubernetes.io/memory-pressure".into(),
                    effect: "NoSchedule".into(),
                    ..Taint::default()
                },
            ));
    if now.is_empty() || critical || spared {
        return Ok(());
    }
    let message = format!("The node had condition: [{}]. ", now.join(" "));
    Err(Rejection { reason: "Evicted".into(), message })
}

fn is_best_effort(pod: &Pod) -> bool {
    qos_class(pod) == QosClass::BestEffort
}

// Operating system -----------------------------------------------------------------------------------------------------------

const OS_LABEL: &str = "kubernetes.io/os";

fn operating_system(pod: &Pod, spec: &PodSpec, node: &Node) -> Result<(), Rejection> {
    let of_pod = pod.metadata.labels.as_ref().and_then(|labels| labels.get(OS_LABEL));
    if of_pod.is_some() && of_pod != label(node, OS_LABEL) {
        return Err(Rejection {
            reason: "PodOSSelectorNodeLabelDoesNotMatch".into(),
            message: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"
                .into(),
        });
    }
    // A wasm guest runs on every system; charts that harden their pods say linux.
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(Rejection {
            reason: "PodOSNotSupported".into(),
            message: "Failed to admit pod as the OS field doesn't match node OS".into(),
        });
    }
    Ok(())
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a String> {
    node.metadata.labels.as_ref()?.get(key)
}

// Resources ------------------------------------------------------------------------------------------------------------------

fn resources(pod: &Pod, node: &Node, taken: &Taken) -> Result<(), Rejection> {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let amount = |name: &str| {
        allocatable.and_then(|all| all.get(name)).map(|quantity| units(name, quantity))
    };
    let lacks = |name: &str, requested: u64, used: u64, capacity: u64| Rejection {
        reason: format!("OutOf{name}"),
        message: format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    };
    let pods = amount("pods").unwrap_or_default();
    if taken.pods as u64 >= pods {
        return Err(lacks("pods", 1, taken.pods as u64, pods));
    }
    let wanted = requests(pod);
    let first = ["cpu", "memory", "ephemeral-storage"];
    let others = wanted.keys().map(String::as_str).filter(|name| !first.contains(name));
    for name in first.into_iter().chain(others) {
        let wanted = wanted.get(name).copied().unwrap_or_default();
        let capacity = match amount(name) {
            Some(capacity) => capacity,
            // Somebody else looks after what no node tells of.
            None if is_extended(name) => continue,
            None => 0,
        };
        let used = taken.requests.get(name).copied().unwrap_or_default();
        if wanted > 0 && wanted > capacity.saturating_sub(used) {
            return Err(lacks(name, wanted, used, capacity));
        }
    }
    Ok(())
}

/// `example.com/gpu`, and not one of Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| {
        domain != "kubernetes.io"
            && !domain.ends_with(".kubernetes.io")
            && !name.starts_with("requests.")
    })
}

fn units(name: &str, quantity: &Quantity) -> u64 {
    // An API server takes no other; what is no quantity asks for nothing.
    let amount = Amount::parse(quantity).unwrap_or_default();
    if name == "cpu" { amount.ceil_millis() } else { amount.ceil() }
}

/// What a pod asks for: the most that it needs at once. Its containers run together with its sidecars; each other init container
/// runs with the sidecars before it.
pub fn requests(pod: &Pod) -> BTreeMap<String, u64> {
    let Some(spec) = &pod.spec else { return Requests::new() };
    let mut all = Requests::new();
    for container in &spec.containers {
        add(&mut all, &of_container(container));
    }
    let (mut sidecars, mut peak) = (Requests::new(), Requests::new());
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &own);
            raise(&mut peak, &sidecars);
        } else {
            let mut beside = own;
            add(&mut beside, &sidecars);
            raise(&mut peak, &beside);
        }
    }
    add(&mut all, &sidecars);
    raise(&mut all, &peak);
    // What is said of the pod as a whole counts instead of the sum.
    if let Some(of_pod) = spec.resources.as_ref().and_then(|it| it.requests.as_ref()) {
        for (name, quantity) in of_pod {
            all.insert(name.clone(), units(name, quantity));
        }
    }
    for (name, quantity) in spec.overhead.iter().flatten() {
        let sum = all.entry(name.clone()).or_default();
        *sum = sum.saturating_add(units(name, quantity));
    }
    all
}

fn of_container(container: &Container) -> Requests {
    let requests = container.resources.as_ref().and_then(|it| it.requests.as_ref());
    requests
        .into_iter()
        .flatten()
        .map(|(name, quantity)| (name.clone(), units(name, quantity)))
        .collect()
}

fn add(to: &mut Requests, more: &Requests) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn raise(to: &mut Requests, least: &Requests) {
    for (name, amount) in least {
        let most = to.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

// Affinity -------------------------------------------------------------------------------------------------------------------

fn matches_node(spec: &PodSpec, node: &Node) -> bool {
    let selected =
        spec.node_selector.iter().flatten().all(|(key, value)| label(node, key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|it| it.node_affinity.as_ref())
        .and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    selected
        && required
            .is_none_or(|it| it.node_selector_terms.iter().any(|term| matches_term(term, node)))
}

fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name_of = |field: &str| node.metadata.name.as_ref().filter(|_| field == "metadata.name");
    // A term that asks for nothing finds nothing.
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|it| matches_requirement(it, label(node, &it.key)))
        && fields.iter().all(|it| matches_requirement(it, name_of(&it.key)))
}

fn matches_requirement(requirement: &NodeSelectorRequirement, found: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let compare = |holds: fn(&i64, &i64) -> bool| match (found.and_then(number), values) {
        (Some(found), [bound]) => number(bound).is_some_and(|bound| holds(&found, &bound)),
        _ => false,
    };
    match requirement.operator.as_str() {
        "In" => found.is_some_and(|found| values.contains(found)),
        "NotIn" => found.is_none_or(|found| !values.contains(found)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

// Taints ---------------------------------------------------------------------------------------------------------------------

/// A node asks only for those taints to be tolerated that would drive a running pod away.
fn tolerates(spec: &PodSpec, node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|taint| taint.effect == "NoExecute").all(|taint| tolerated(spec, taint))
}

fn tolerated(spec: &PodSpec, taint: &Taint) -> bool {
    spec.tolerations.iter().flatten().any(|toleration| fits(toleration, taint))
}

fn fits(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |it: &Option<String>| it.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    let (wanted, found) = (text(&toleration.value), text(&taint.value));
    let compare = |holds: fn(&i64, &i64) -> bool| match (found.parse(), wanted.parse()) {
        (Ok(found), Ok(bound)) => holds(&found, &bound),
        _ => false,
    };
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => wanted == found,
        "Exists" => true,
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::machine::Usage;
    use crate::pressure::Thresholds;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).expect("a pod")
    }

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": "n1", "labels": { "kubernetes.io/os": "copepod", "zone": "a", "cores": "8" } },
            "spec": { "taints": [
                { "key": "wasm", "value": "only", "effect": "NoExecute" },
                { "key": "slow", "effect": "NoSchedule" },
            ] },
            "status": { "allocatable": {
                "cpu": "2", "memory": "1Gi", "ephemeral-storage": "10Gi", "pods": "3", "example.com/gpu": "1",
            } },
        }))
        .expect("a node")
    }

    /// A pod with these containers' requests, which tolerates the node's taint.
    fn asking(requests: &[Value]) -> Pod {
        let containers: Vec<_> = requests
            .iter()
            .enumerate()
            .map(|(index, it)| json!({ "name": format!("c{index}"), "resources": { "requests": it } }))
            .collect();
        pod(json!({ "containers": containers, "tolerations": [{ "operator": "Exists" }] }))
    }

    fn with(more: Value) -> Pod {
        let mut spec = json!({ "containers": [], "tolerations": [{ "operator": "Exists" }] });
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        pod(spec)
    }

    fn judged(pod: &Pod, taken: &Taken) -> String {
        match admit(pod, &node(), taken, &Pressures::default()) {
            Ok(()) => "admitted".into(),
            Err(rejection) => format!("{}: {}", rejection.reason, rejection.message),
        }
    }

    fn alone(pod: &Pod) -> String {
        judged(pod, &Taken::default())
    }

    #[test]
    fn a_rejected_pod_says_so_in_its_status() {
        let rejection = predicate("NodePorts", "x");

        assert_eq!(rejection.status_message(), "Pod was rejected: Predicate NodePorts failed: x");
    }

    #[test]
    fn a_pod_gets_what_the_others_leave() {
        let mut taken = Taken::default();
        taken.add(&asking(&[json!({ "cpu": "1500m", "memory": "512Mi" })]));

        let table = [
            (json!({ "cpu": "500m", "memory": "512Mi" }), "admitted"),
            (
                json!({ "cpu": "501m" }),
                "OutOfcpu: Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000",
            ),
            (
                json!({ "memory": "513Mi" }),
                "OutOfmemory: Node didn't have enough resource: memory, requested: 537919488, used: 536870912, capacity: 1073741824",
            ),
            (
                json!({ "ephemeral-storage": "11Gi" }),
                "OutOfephemeral-storage: Node didn't have enough resource: ephemeral-storage, requested: 11811160064, used: 0, \
                 capacity: 10737418240",
            ),
            (
                json!({ "hugepages-2Mi": "2Mi" }),
                "OutOfhugepages-2Mi: Node didn't have enough resource: hugepages-2Mi, requested: 2097152, used: 0, capacity: 0",
            ),
            (
                json!({ "example.com/gpu": "2" }),
                "OutOfexample.com/gpu: Node didn't have enough resource: example.com/gpu, requested: 2, used: 0, capacity: 1",
            ),
            (json!({ "example.com/unknown": "2" }), "admitted"),
            (json!({}), "admitted"),
        ];
        for (requests, expected) in table {
            assert_eq!(judged(&asking(&[requests]), &taken), expected);
        }
    }

    #[test]
    fn what_a_pod_had_is_free_again_when_it_is_over() {
        let big = with(json!({ "containers": [{
            "name": "c",
            "resources": { "requests": { "cpu": "2" } },
            "ports": [{ "containerPort": 80, "hostPort": 80 }],
        }] }));
        let mut taken = Taken::default();

        taken.add(&big);
        let full = judged(&big, &taken);
        taken.remove(&big);

        assert!(full.starts_with("OutOfcpu"), "{full}");
        assert_eq!(judged(&big, &taken), "admitted");
    }

    #[test]
    fn a_node_takes_so_many_pods_and_no_more() {
        let mut taken = Taken::default();
        for _ in 0..3 {
            taken.add(&asking(&[]));
        }

        let expected =
            "OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3";
        assert_eq!(judged(&asking(&[]), &taken), expected);
    }

    #[test]
    fn a_pod_asks_for_the_most_that_it_needs_at_once() {
        let cpu = |amount: &str| json!({ "requests": { "cpu": amount } });
        let init = |amount: &str| json!({ "name": "i", "resources": cpu(amount) });
        let sidecar = |amount: &str| json!({ "name": "s", "restartPolicy": "Always", "resources": cpu(amount) });
        let app = json!([{ "name": "a", "resources": cpu("1") }]);
        let table = [
            (json!({ "containers": app }), 1000),
            (json!({ "containers": app, "initContainers": [init("3")] }), 3000),
            (json!({ "containers": app, "initContainers": [init("500m")] }), 1000),
            (json!({ "containers": app, "initContainers": [sidecar("1"), init("3")] }), 4000),
            (json!({ "containers": app, "initContainers": [init("3"), sidecar("1")] }), 3000),
            (json!({ "containers": app, "initContainers": [sidecar("1"), sidecar("1")] }), 3000),
            (json!({ "containers": app, "overhead": { "cpu": "250m" } }), 1250),
            (json!({ "containers": app, "resources": cpu("4"), "overhead": { "cpu": "1" } }), 5000),
        ];
        for (spec, millis) in table {
            assert_eq!(requests(&pod(spec.clone())).get("cpu"), Some(&millis), "{spec}");
        }
    }

    #[test]
    fn a_pod_for_another_system_is_rejected() {
        let mut labelled = with(json!({}));
        labelled.metadata.labels =
            Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());

        assert_eq!(
            alone(&labelled),
            "PodOSSelectorNodeLabelDoesNotMatch: Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"
        );
        assert_eq!(
            alone(&with(json!({ "os": { "name": "windows" } }))),
            "PodOSNotSupported: Failed to admit pod as the OS field doesn't match node OS"
        );
        assert_eq!(alone(&with(json!({ "os": { "name": "linux" } }))), "admitted");
    }

    #[test]
    fn selector_and_affinity_have_to_match_the_node() {
        let term = |key: &str, operator: &str, values: &[&str]| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
        let affinity = |terms: Value| {
            let required = json!({ "nodeSelectorTerms": terms });
            json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } } })
        };
        let named = |name: &str| json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [name] }] });
        let table = [
            (json!({ "nodeSelector": { "zone": "a" } }), true),
            (json!({ "nodeSelector": { "zone": "b" } }), false),
            (json!({ "nodeSelector": { "kubernetes.io/os": "linux" } }), false),
            (affinity(json!([term("zone", "In", &["a", "b"])])), true),
            (affinity(json!([term("zone", "NotIn", &["a"])])), false),
            (affinity(json!([term("rack", "NotIn", &["a"])])), true),
            (affinity(json!([term("zone", "Exists", &[])])), true),
            (affinity(json!([term("zone", "DoesNotExist", &[])])), false),
            (affinity(json!([term("cores", "Gt", &["4"])])), true),
            (affinity(json!([term("cores", "Lt", &["8"])])), false),
            (affinity(json!([term("zone", "Gt", &["4"])])), false),
            (affinity(json!([term("zone", "Near", &["a"])])), false),
            (affinity(json!([term("zone", "In", &["b"]), term("zone", "In", &["a"])])), true),
            (affinity(json!([named("n1")])), true),
            (affinity(json!([named("n2")])), false),
            (affinity(json!([{}])), false),
            (affinity(json!([])), false),
        ];
        for (spec, fits) in table {
            let expected = match fits {
                true => "admitted",
                false => {
                    "NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                }
            };
            assert_eq!(alone(&with(spec.clone())), expected, "{spec}");
        }
    }

    #[test]
    fn a_pod_that_names_another_node_is_rejected() {
        let expected =
            "NodeName: Predicate NodeName failed: node(s) didn't match the requested node name";

        assert_eq!(alone(&with(json!({ "nodeName": "n2" }))), expected);
        assert_eq!(alone(&with(json!({ "nodeName": "n1" }))), "admitted");
    }

    #[test]
    fn ports_of_the_node_are_taken_once() {
        let on = |port: Value| with(json!({ "containers": [{ "name": "c", "ports": [port] }] }));
        let mut taken = Taken::default();
        taken.add(&on(json!({ "containerPort": 80, "hostPort": 80, "hostIP": "192.0.2.1" })));

        let table = [
            (json!({ "containerPort": 80, "hostPort": 80 }), false),
            (json!({ "containerPort": 80, "hostPort": 80, "hostIP": "192.0.2.1" }), false),
            (json!({ "containerPort": 80, "hostPort": 80, "hostIP": "192.0.2.2" }), true),
            (json!({ "containerPort": 80, "hostPort": 80, "protocol": "UDP" }), true),
            (json!({ "containerPort": 80, "hostPort": 81 }), true),
            (json!({ "containerPort": 80 }), true),
        ];
        for (port, free) in table {
            let found = judged(&on(port.clone()), &taken);
            assert_eq!(found == "admitted", free, "{port}: {found}");
            assert!(free || found.starts_with("NodePorts: "), "{found}");
        }
    }

    #[test]
    fn taints_that_would_drive_the_pod_away_have_to_be_tolerated() {
        let table = [
            (json!([]), false),
            (json!([{ "operator": "Exists" }]), true),
            (json!([{ "key": "wasm", "operator": "Exists" }]), true),
            (json!([{ "key": "wasm", "value": "only" }]), true),
            (
                json!([{ "key": "wasm", "operator": "Equal", "value": "only", "effect": "NoExecute" }]),
                true,
            ),
            (
                json!([{ "key": "wasm", "operator": "Equal", "value": "only", "effect": "NoSchedule" }]),
                false,
            ),
            (json!([{ "key": "wasm", "operator": "Equal", "value": "other" }]), false),
            (json!([{ "key": "slow", "operator": "Exists" }]), false),
        ];
        for (tolerations, fits) in table {
            let found = alone(&pod(json!({ "containers": [], "tolerations": tolerations })));
            let expected = match fits {
                true => "admitted",
                false => {
                    "TaintToleration: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
                }
            };
            assert_eq!(found, expected, "{tolerations}");
        }
        let mut numbered = node();
        if let Some(spec) = numbered.spec.as_mut() {
            spec.taints = Some(vec![Taint {
                key: "load".into(),
                value: Some("5".into()),
                effect: "NoExecute".into(),
                time_added: None,
            }]);
        }
        for (operator, fits) in [("Gt", false), ("Lt", true)] {
            let tolerant = pod(json!({
                "containers": [],
                "tolerations": [{ "key": "load", "operator": operator, "value": "6" }],
            }));
            let found = admit(&tolerant, &numbered, &Taken::default(), &Pressures::default());
            assert_eq!(found.is_ok(), fits, "{operator}");
        }
    }

    #[test]
    fn a_node_under_pressure_takes_critical_pods_and_for_lack_of_memory_those_that_asked_for_it() {
        let plenty = Usage {
            memory_available: 1 << 30,
            disk_available: 50,
            disk: 100,
            max_tasks: 100,
            ..Usage::default()
        };
        let look = |usage: Usage| {
            let (least, now) = (Thresholds::default(), Timestamp::UNIX_EPOCH);
            Pressures::default().look(&usage, &least, now)
        };
        let memory = look(Usage { memory_available: 0, ..plenty });
        let disk = look(Usage { disk_available: 0, ..plenty });
        let modest = pod(json!({ "containers": [{ "name": "c" }] }));
        let asked = asking(&[json!({ "memory": "1Mi" })]);
        let critical = with(json!({ "priority": 2_000_001_000 }));
        let judge = |pod: &Pod, pressures: &Pressures| {
            admit(pod, &node(), &Taken::default(), pressures).err().map(|it| it.message)
        };

        assert_eq!(
            judge(&modest, &memory).as_deref(),
            Some("The node had condition: [MemoryPressure]. ")
        );
        assert_eq!(judge(&asked, &memory), None);
        assert_eq!(
            judge(&asked, &disk).as_deref(),
            Some("The node had condition: [DiskPressure]. ")
        );
        assert_eq!(judge(&critical, &disk), None);
    }
}
