//! The Node object that this machine is, and what of it an API server has to be told: pure.
//!
//! [`new_node`] makes it, [`repair`] mends one that is there already, [`status`] says how the node is, [`changes`] what of that an
//! API server does not know. The strings are a kubelet's, as schedulers, controllers and people read them. Absent: asking
//! ([`crate::register`], [`crate::heartbeat`]), and what decides about readiness, which [`NodeState`] brings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use copepod_node::quantity::Amount;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::machine::Machine;
use crate::pressure::{Pressure, Pressures};
use crate::settings::NodeSettings;

/// The Kubernetes whose contract this node keeps, and then who keeps it; version skew is judged by the former.
pub const KUBELET_VERSION: &str = concat!("v1.37.2-copepod.", env!("CARGO_PKG_VERSION"));

/// The label by which our RuntimeClasses find our nodes, whatever their `kubernetes.io/os`.
pub const OUR_LABEL: &str = "copepod.dev/node";

/// As `containerRuntimeVersion`: by its first word a node knows its like.
pub const RUNTIME: &str = "copepod";

/// The handlers that a RuntimeClass may name; without one, pods of a namespace share a domain.
pub const RUNTIME_HANDLERS: [&str; 3] = ["", "copepod", "copepod-pod"];

/// Memory that the node keeps for itself where nobody says how much: as the agent does.
const RESERVED_MEMORY: u64 = 512 << 20;

/// Of the disk, where nobody says how much: a kubelet evicts pods when less than a tenth is left.
const RESERVED_DISK: u64 = 10;

/// As many images as a kubelet reports (`nodeStatusMaxImages`), and names of each.
const MOST_IMAGES: usize = 50;
const MOST_NAMES: usize = 5;

/// What decides whether the node is ready, besides pressure. Its pods' side keeps it up to date.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// The agent takes pods.
    pub agent_up: bool,
    /// Pods get addresses, and routes to them stand.
    pub network_ready: bool,
    /// What else keeps the node from being ready, a clause each.
    pub errors: Vec<String>,
    /// The images that it has.
    pub images: Vec<ContainerImage>,
}

/// All that a node's status is made of.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The settings.
    pub settings: &'a NodeSettings,
    /// The machine.
    pub machine: &'a Machine,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
    /// The state of the pods' side.
    pub state: &'a NodeState,
    /// What runs out.
    pub pressures: Pressures,
    /// Features of Kubernetes that the scheduler may count on here (kubelet.md N14).
    pub features: &'a [&'static str],
}

/// The node's share for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of cores.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of disk.
    pub ephemeral_storage: u64,
    /// Pods.
    pub pods: u32,
}

/// All that the node has.
pub fn capacity(settings: &NodeSettings, machine: &Machine) -> Resources {
    Resources {
        cpu_millis: machine.cpu_millis,
        memory: machine.memory,
        ephemeral_storage: machine.disk,
        pods: settings.max_pods,
    }
}

/// What of it is for pods.
pub fn allocatable(settings: &NodeSettings, machine: &Machine) -> Resources {
    let kept = &settings.reserved;
    let disk =
        (u128::from(machine.disk) * u128::from(RESERVED_DISK) / 100).try_into().unwrap_or(u64::MAX);
    let less = |all: u64, kept: Option<u64>, usual: u64| all.saturating_sub(kept.unwrap_or(usual));
    Resources {
        cpu_millis: less(machine.cpu_millis, kept.cpu.map(Amount::ceil_millis), 0),
        memory: less(machine.memory, kept.memory.map(Amount::ceil), RESERVED_MEMORY),
        ephemeral_storage: less(machine.disk, kept.ephemeral_storage.map(Amount::ceil), disk),
        pods: settings.max_pods,
    }
}

fn quantities(resources: Resources) -> BTreeMap<String, Quantity> {
    let bytes = |bytes: u64| match bytes % 1024 {
        0 if bytes > 0 => format!("{}Ki", bytes / 1024),
        _ => bytes.to_string(),
    };
    let cpu = match resources.cpu_millis % 1000 {
        0 => (resources.cpu_millis / 1000).to_string(),
        _ => format!("{}m", resources.cpu_millis),
    };
    [
        ("cpu", cpu),
        ("memory", bytes(resources.memory)),
        ("ephemeral-storage", bytes(resources.ephemeral_storage)),
        ("pods", resources.pods.to_string()),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), Quantity(text)))
    .collect()
}

/// The labels that every node has, and those of the settings.
pub fn labels(settings: &NodeSettings, machine: &Machine) -> BTreeMap<String, String> {
    let os = settings.os_label.as_str();
    let usual = [
        ("kubernetes.io/hostname", settings.node_name.as_str()),
        ("kubernetes.io/os", os),
        ("kubernetes.io/arch", machine.architecture),
        ("beta.kubernetes.io/os", os),
        ("beta.kubernetes.io/arch", machine.architecture),
        (OUR_LABEL, "true"),
    ];
    let usual = usual.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    // A label's value has at most 63 bytes, a node's name more; then the label tells less, and the name all.
    let usual = usual.map(|(key, mut value)| {
        value.truncate(63);
        (key, value.trim_end_matches(['-', '.']).to_owned())
    });
    settings.labels.clone().into_iter().chain(usual).collect()
}

/// The node as it is made, where there is none. Taints can be given only now (NodeRestriction).
pub fn new_node(known: Known<'_>, now: Timestamp) -> Node {
    let settings = known.settings;
    let cidrs: Option<Vec<String>> =
        settings.pod_cidrs.map(|blocks| blocks.iter().map(|block| block.to_string()).collect());
    Node {
        metadata: ObjectMeta {
            name: Some(settings.node_name.to_string()),
            labels: Some(labels(settings, known.machine)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: cidrs.as_ref().and_then(|blocks| blocks.first().cloned()),
            pod_cidrs: cidrs,
            taints: Some(settings.taints.clone()).filter(|taints| !taints.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status(known, None, now)),
    }
}

/// What a Node that is there already has to be given: its labels, and its podCIDR where the settings name one and the cluster none.
/// None: nothing.
pub fn repair(there: &Node, settings: &NodeSettings, machine: &Machine) -> Option<Value> {
    let has = there.metadata.labels.clone().unwrap_or_default();
    let lacking: BTreeMap<_, _> = labels(settings, machine)
        .into_iter()
        .filter(|(key, value)| has.get(key) != Some(value))
        .collect();
    let mut patch = Map::new();
    if !lacking.is_empty() {
        patch.insert("metadata".into(), json!({ "labels": lacking }));
    }
    if let Some(blocks) = settings.pod_cidrs.filter(|_| pod_cidrs(there).is_empty()) {
        let all: Vec<_> = blocks.iter().collect();
        patch.insert("spec".into(), json!({ "podCIDR": blocks.first(), "podCIDRs": all }));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The blocks of pod addresses that a Node was given.
pub fn pod_cidrs(node: &Node) -> Vec<String> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let first = || spec.pod_cidr.clone().filter(|block| !block.is_empty()).into_iter().collect();
    spec.pod_cidrs.clone().filter(|all| !all.is_empty()).unwrap_or_else(first)
}

/// The program that a Node says it is, where it is not this one: `containerd://2.1`.
pub fn other_runtime(node: &Node) -> Option<&str> {
    let version = &node.status.as_ref()?.node_info.as_ref()?.container_runtime_version;
    let kind = version.split_once("://").map_or(version.as_str(), |(kind, _)| kind);
    (!kind.is_empty() && kind != RUNTIME).then_some(version)
}

/// How the node is. `before` is what the API server says of it: times of transitions go on from there.
pub fn status(known: Known<'_>, before: Option<&NodeStatus>, now: Timestamp) -> NodeStatus {
    let Known { settings, machine, .. } = known;
    let before = before.and_then(|it| it.conditions.as_deref()).unwrap_or_default();
    NodeStatus {
        addresses: Some(addresses(known)),
        capacity: Some(quantities(capacity(settings, machine))),
        allocatable: Some(quantities(allocatable(settings, machine))),
        conditions: Some(conditions(known, before, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: settings.port.into() }),
        }),
        declared_features: Some(declared(known.features)).filter(|all| !all.is_empty()),
        images: Some(images(&known.state.images)),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: format!("{RUNTIME}://{}", env!("CARGO_PKG_VERSION")),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            running_in_user_namespace: None,
            swap: None,
            system_uuid: machine.system_uuid.clone(),
        }),
        runtime_handlers: Some(
            RUNTIME_HANDLERS
                .iter()
                .map(|name| NodeRuntimeHandler {
                    name: Some((*name).to_owned()),
                    features: Some(NodeRuntimeHandlerFeatures {
                        recursive_read_only_mounts: Some(false),
                        user_namespaces: Some(false),
                    }),
                })
                .collect(),
        ),
        ..NodeStatus::default()
    }
}

fn addresses(known: Known<'_>) -> Vec<NodeAddress> {
    let address = |type_: &str, address: String| NodeAddress { address, type_: type_.to_owned() };
    let internal = known.addresses.iter().map(|ip| address("InternalIP", ip.to_string()));
    internal.chain([address("Hostname", known.settings.node_name.to_string())]).collect()
}

fn declared(features: &[&'static str]) -> Vec<String> {
    let sorted: BTreeSet<_> = features.iter().collect();
    sorted.into_iter().map(|name| (*name).to_owned()).collect()
}

/// The largest first, as the scheduler's ImageLocality counts.
fn images(all: &[ContainerImage]) -> Vec<ContainerImage> {
    let mut all = all.to_vec();
    all.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    all.truncate(MOST_IMAGES);
    for names in all.iter_mut().filter_map(|image| image.names.as_mut()) {
        // Names by digest first.
        names.sort_by_key(|name| !name.contains('@'));
        names.truncate(MOST_NAMES);
    }
    all
}

/// A condition in both its states: what it says, and the event of getting there.
struct Told {
    type_: &'static str,
    yes: (&'static str, &'static str, &'static str),
    no: (&'static str, &'static str, &'static str),
}

/// `(reason, message, event)`, as a kubelet has them.
const PRESSURES: [(Pressure, Told); 3] = [
    (
        Pressure::Memory,
        Told {
            type_: "MemoryPressure",
            yes: (
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
                "NodeHasInsufficientMemory",
            ),
            no: (
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
                "NodeHasSufficientMemory",
            ),
        },
    ),
    (
        Pressure::Disk,
        Told {
            type_: "DiskPressure",
            yes: ("KubeletHasDiskPressure", "kubelet has disk pressure", "NodeHasDiskPressure"),
            no: (
                "KubeletHasNoDiskPressure",
                "kubelet has no disk pressure",
                "NodeHasNoDiskPressure",
            ),
        },
    ),
    (
        Pressure::Pids,
        Told {
            type_: "PIDPressure",
            yes: (
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
                "NodeHasInsufficientPID",
            ),
            no: (
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
                "NodeHasSufficientPID",
            ),
        },
    ),
];

fn conditions(known: Known<'_>, before: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let condition = |type_: &str, yes: bool, reason: &str, message: String| {
        let status = if yes { "True" } else { "False" };
        let same = before.iter().find(|it| it.type_ == type_ && it.status == status);
        let since = same
            .and_then(|it| it.last_transition_time.clone())
            .unwrap_or_else(|| whole_second(now));
        NodeCondition {
            last_heartbeat_time: Some(whole_second(now)),
            last_transition_time: Some(since),
            message: Some(message),
            reason: Some(reason.to_owned()),
            status: status.to_owned(),
            type_: type_.to_owned(),
        }
    };
    let pressures = PRESSURES.iter().map(|(pressure, told)| {
        let yes = known.pressures.is(*pressure);
        let (reason, message, _) = if yes { told.yes } else { told.no };
        condition(told.type_, yes, reason, message.to_owned())
    });
    let errors = not_ready(known);
    let ready = match errors.as_slice() {
        [] => condition(READY, true, "KubeletReady", "kubelet is posting ready status".into()),
        [one] => condition(READY, false, "KubeletNotReady", one.clone()),
        all => condition(READY, false, "KubeletNotReady", format!("[{}]", all.join(", "))),
    };
    pressures.chain([ready]).collect()
}

const READY: &str = "Ready";

/// What keeps the node from being ready.
fn not_ready(known: Known<'_>) -> Vec<String> {
    let state = known.state;
    let mut errors = Vec::new();
    if !state.agent_up {
        errors.push("container runtime is down".to_owned());
    }
    if !state.network_ready {
        errors.push(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:the node waits for its \
             podCIDR"
                .to_owned(),
        );
    }
    errors.extend(state.errors.iter().cloned());
    errors
}

/// An API server keeps no more of a `Time`.
fn whole_second(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// An event of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEvent {
    /// `Warning`; else `Normal`.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
}

/// What has happened between what the API server said of the node and what is said now.
pub fn events(node: &Node, after: &NodeStatus) -> Vec<NodeEvent> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let before = node.status.as_ref();
    let status_of = |status: Option<&NodeStatus>, type_: &str| {
        let conditions = status.and_then(|it| it.conditions.as_deref()).unwrap_or_default();
        conditions.iter().find(|it| it.type_ == type_).map(|it| it.status.clone())
    };
    let mut events = Vec::new();
    let mut became = |type_: &str, yes: &'static str, no: &'static str| {
        let now = status_of(Some(after), type_);
        if now == status_of(before, type_) {
            return;
        }
        let reason = if now.as_deref() == Some("True") { yes } else { no };
        let message = format!("Node {name} status is now: {reason}");
        events.push(NodeEvent { warning: false, reason, message });
    };
    for (_, told) in &PRESSURES {
        became(told.type_, told.yes.2, told.no.2);
    }
    became(READY, "NodeReady", "NodeNotReady");
    let boot = |status: Option<&NodeStatus>| {
        status.and_then(|it| it.node_info.as_ref()).map(|it| it.boot_id.clone()).unwrap_or_default()
    };
    let (booted, now) = (boot(before), boot(Some(after)));
    if !booted.is_empty() && booted != now {
        let message = format!("Node {name} has been rebooted, boot id: {now}");
        events.push(NodeEvent { warning: true, reason: "Rebooted", message });
    }
    events
}

/// The event of a node that was cordoned or uncordoned.
pub fn schedulable(name: &str, unschedulable: bool) -> NodeEvent {
    let reason = if unschedulable { "NodeNotSchedulable" } else { "NodeSchedulable" };
    NodeEvent { warning: false, reason, message: format!("Node {name} status is now: {reason}") }
}

/// What of `wanted` the API server's copy lacks, as a strategic merge patch's `status`; all conditions with it, as they carry the
/// heartbeat. `whole`: the heartbeat is due by itself. What stands in `ignored`, this API server does not keep. None: nothing.
pub fn changes(
    there: &NodeStatus,
    wanted: &NodeStatus,
    whole: bool,
    ignored: &BTreeSet<&'static str>,
) -> Option<Map<String, Value>> {
    let mut patch = Map::new();
    for field in differing(there, wanted) {
        if !ignored.contains(field) {
            patch.insert(field.to_owned(), patch_of(field, there, wanted));
        }
    }
    if patch.is_empty() && !whole {
        return None;
    }
    patch.insert(CONDITIONS.into(), value(&wanted.conditions));
    Some(patch)
}

const CONDITIONS: &str = "conditions";

/// The fields of which the API server says something else.
pub fn differing(there: &NodeStatus, wanted: &NodeStatus) -> Vec<&'static str> {
    let same_conditions = wanted.conditions.iter().flatten().all(|it| {
        let same = |other: &&NodeCondition| {
            (&other.type_, &other.status, &other.reason, &other.message)
                == (&it.type_, &it.status, &it.reason, &it.message)
        };
        there.conditions.iter().flatten().any(|other| same(&other))
    });
    let table = [
        ("addresses", there.addresses == wanted.addresses),
        ("allocatable", lacking(&there.allocatable, &wanted.allocatable).is_empty()),
        ("capacity", lacking(&there.capacity, &wanted.capacity).is_empty()),
        (CONDITIONS, same_conditions),
        ("daemonEndpoints", there.daemon_endpoints == wanted.daemon_endpoints),
        (
            "declaredFeatures",
            or_none(&there.declared_features) == or_none(&wanted.declared_features),
        ),
        ("images", or_none(&there.images) == or_none(&wanted.images)),
        ("nodeInfo", there.node_info == wanted.node_info),
        ("runtimeHandlers", or_none(&there.runtime_handlers) == or_none(&wanted.runtime_handlers)),
    ];
    table.into_iter().filter(|(_, same)| !same).map(|(field, _)| field).collect()
}

/// An empty list is as good as none.
fn or_none<T>(list: &Option<Vec<T>>) -> Option<&[T]> {
    list.as_deref().filter(|list| !list.is_empty())
}

fn patch_of(field: &str, there: &NodeStatus, wanted: &NodeStatus) -> Value {
    match field {
        // The API merges addresses by their type, of which a node may have two: so all of them are put in the place of all.
        "addresses" => {
            let all = wanted.addresses.iter().flatten().map(value);
            Value::Array([json!({ "$patch": "replace" })].into_iter().chain(all).collect())
        }
        // Others' resources stay.
        "allocatable" => value(&lacking(&there.allocatable, &wanted.allocatable)),
        "capacity" => value(&lacking(&there.capacity, &wanted.capacity)),
        "daemonEndpoints" => value(&wanted.daemon_endpoints),
        "declaredFeatures" => value(&wanted.declared_features),
        "images" => value(&wanted.images),
        "nodeInfo" => value(&wanted.node_info),
        "runtimeHandlers" => value(&wanted.runtime_handlers),
        _ => value(&wanted.conditions),
    }
}

type Amounts = BTreeMap<String, Quantity>;

/// Resources of which the API server says another amount; it may write the same one in other words.
fn lacking(there: &Option<Amounts>, wanted: &Option<Amounts>) -> Amounts {
    let same = |name: &String, quantity: &Quantity| {
        let other = there.as_ref().and_then(|all| all.get(name));
        other.is_some_and(|other| {
            other == quantity
                || matches!((Amount::parse(other), Amount::parse(quantity)), (Ok(a), Ok(b)) if a == b)
        })
    };
    let wanted = wanted.iter().flatten().filter(|(name, quantity)| !same(name, quantity));
    wanted.map(|(name, quantity)| (name.clone(), quantity.clone())).collect()
}

fn value(it: &impl Serialize) -> Value {
    serde_json::to_value(it).expect("these types have a form in JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Usage;
    use crate::pressure::Thresholds;
    use crate::settings::Given;

    fn settings(given: &[(&str, &str)]) -> NodeSettings {
        NodeSettings::parse("/data".into(), "n1", |key| {
            let text = match key.flag {
                "kubeconfig" => Some("/k"),
                flag => given.iter().find(|(name, _)| *name == flag).map(|(_, text)| *text),
            };
            text.map(|text| Given { by: key.flag.into(), texts: vec![text.into()] })
        })
        .expect("good settings")
    }

    fn machine() -> Machine {
        Machine {
            machine_id: "m".into(),
            system_uuid: "s".into(),
            boot_id: "b1".into(),
            kernel: "6.12".into(),
            os_image: "Debian 13".into(),
            architecture: "amd64",
            cpu_millis: 2000,
            memory: 4 << 30,
            disk: 100 << 30,
        }
    }

    fn well() -> NodeState {
        NodeState { agent_up: true, network_ready: true, ..NodeState::default() }
    }

    const SOME: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1))];

    /// A node's status with these settings and this state.
    fn told(
        given: &[(&str, &str)],
        state: &NodeState,
        before: Option<&NodeStatus>,
        now: &str,
    ) -> NodeStatus {
        let (settings, machine) = (settings(given), machine());
        let known = Known {
            settings: &settings,
            machine: &machine,
            addresses: &SOME,
            state,
            pressures: Pressures::default(),
            features: &["B", "A", "B"],
        };
        status(known, before, now.parse().expect("a time"))
    }

    const NOW: &str = "2026-06-01T00:00:00Z";

    fn text_of(amounts: &Option<Amounts>, name: &str) -> String {
        amounts.as_ref().and_then(|all| all.get(name)).map(|it| it.0.clone()).unwrap_or_default()
    }

    fn ready(status: &NodeStatus) -> NodeCondition {
        status.conditions.iter().flatten().next_back().cloned().expect("conditions")
    }

    fn new(given: &[(&str, &str)]) -> Node {
        let (settings, machine) = (settings(given), machine());
        let known = Known {
            settings: &settings,
            machine: &machine,
            addresses: &SOME,
            state: &NodeState::default(),
            pressures: Pressures::default(),
            features: &[],
        };
        new_node(known, NOW.parse().expect("a time"))
    }

    #[test]
    fn the_kubelet_s_version_is_a_semantic_one_of_the_kubernetes_it_keeps_to() {
        let (core, rest) =
            KUBELET_VERSION.strip_prefix('v').and_then(|it| it.split_once('-')).expect("both");

        let numbers: Vec<_> =
            core.split('.').map(|part| part.parse::<u32>().expect("a number")).collect();
        assert_eq!(numbers, [1, 37, 2]);
        for part in rest.split('.') {
            assert!(
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            );
            assert!(part == "0" || !part.starts_with('0'), "a number of it has no leading zero");
        }
    }

    #[test]
    fn what_the_node_keeps_for_itself_is_not_for_pods() {
        let usual = told(&[], &well(), None, NOW);
        let kept = told(
            &[("system-reserved", "cpu=500m,memory=1Gi,ephemeral-storage=99Gi")],
            &well(),
            None,
            NOW,
        );
        let all = told(&[("system-reserved", "cpu=9,memory=9Gi")], &well(), None, NOW);

        assert_eq!(text_of(&usual.capacity, "cpu"), "2");
        assert_eq!(text_of(&usual.capacity, "memory"), format!("{}Ki", 4 << 20));
        assert_eq!(text_of(&usual.allocatable, "memory"), format!("{}Ki", (4 << 20) - (512 << 10)));
        assert_eq!(text_of(&usual.allocatable, "ephemeral-storage"), format!("{}Ki", 90 << 20));
        assert_eq!(text_of(&usual.allocatable, "pods"), "110");
        assert_eq!(text_of(&kept.allocatable, "cpu"), "1500m");
        assert_eq!(text_of(&kept.allocatable, "ephemeral-storage"), format!("{}Ki", 1 << 20));
        assert_eq!(text_of(&all.allocatable, "cpu"), "0");
        assert_eq!(text_of(&all.allocatable, "memory"), "0");
    }

    #[test]
    fn a_new_node_has_its_labels_its_taints_and_a_given_block() {
        let node = new(&[
            ("node-labels", "tier=edge"),
            ("register-with-taints", "wasm:NoSchedule"),
            ("pod-cidr", "10.9.0.0/24,fd00:9::/64"),
        ]);

        let labels = node.metadata.labels.clone().expect("labels");
        let label = |key: &str| labels.get(key).map(String::as_str);
        assert_eq!(label("kubernetes.io/hostname"), Some("n1"));
        assert_eq!(
            (label("kubernetes.io/os"), label("kubernetes.io/arch")),
            (Some("copepod"), Some("amd64"))
        );
        assert_eq!(label("tier"), Some("edge"));
        assert_eq!(pod_cidrs(&node), ["10.9.0.0/24", "fd00:9::/64"]);
        let spec = node.spec.expect("a spec");
        assert_eq!(spec.pod_cidr.as_deref(), Some("10.9.0.0/24"));
        assert_eq!(spec.taints.map(|it| it.len()), Some(1));
    }

    #[test]
    fn a_node_that_is_there_gets_what_it_lacks_and_keeps_the_rest() {
        let mut there = new(&[]);
        let labels = there.metadata.labels.as_mut().expect("labels");
        labels.remove("kubernetes.io/arch");
        labels.insert("kubernetes.io/os".into(), "linux".into());
        labels.insert("node-role.kubernetes.io/wasm".into(), String::new());

        let patch =
            repair(&there, &settings(&[("pod-cidr", "10.9.0.0/24")]), &machine()).expect("a patch");

        let labels = json!({ "kubernetes.io/arch": "amd64", "kubernetes.io/os": "copepod" });
        let spec = json!({ "podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"] });
        assert_eq!(patch, json!({ "metadata": { "labels": labels }, "spec": spec }));
        assert_eq!(repair(&new(&[]), &settings(&[]), &machine()), None);
    }

    #[test]
    fn a_node_of_another_runtime_is_told_from_our_own() {
        let ours = new(&[]);
        let mut other = ours.clone();
        let info = other.status.as_mut().and_then(|it| it.node_info.as_mut()).expect("it");
        info.container_runtime_version = "containerd://2.1".into();

        assert_eq!(other_runtime(&ours), None);
        assert_eq!(other_runtime(&Node::default()), None);
        assert_eq!(other_runtime(&other), Some("containerd://2.1"));
    }

    #[test]
    fn conditions_stand_in_order_with_a_kubelet_s_words() {
        let status = told(&[], &well(), None, NOW);

        let told: Vec<_> = status
            .conditions
            .iter()
            .flatten()
            .map(|it| {
                (it.type_.as_str(), it.status.as_str(), it.reason.as_deref().unwrap_or_default())
            })
            .collect();
        let expected = [
            ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            ("PIDPressure", "False", "KubeletHasSufficientPID"),
            ("Ready", "True", "KubeletReady"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn readiness_names_everything_that_is_in_its_way() {
        let table = [
            (well(), "kubelet is posting ready status"),
            (NodeState { agent_up: false, ..well() }, "container runtime is down"),
            (
                NodeState { network_ready: false, ..well() },
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:the node waits for \
                 its podCIDR",
            ),
            (NodeState { errors: vec!["a".into(), "b".into()], ..well() }, "[a, b]"),
        ];
        for (state, message) in table {
            let condition = ready(&told(&[], &state, None, NOW));
            assert_eq!(condition.message.as_deref(), Some(message));
            assert_eq!(condition.status == "True", state == well());
        }
    }

    #[test]
    fn the_time_of_a_transition_moves_only_with_the_status() {
        let later = "2026-06-01T00:01:00Z";
        let first = told(&[], &well(), None, NOW);
        let mut taken_for_lost = first.clone();
        if let Some(it) = taken_for_lost.conditions.as_mut().and_then(|all| all.last_mut()) {
            it.status = "Unknown".into();
        }

        let same = told(&[], &well(), Some(&first), later);
        let other = told(&[], &NodeState::default(), Some(&first), later);
        let back = told(&[], &well(), Some(&taken_for_lost), later);

        let since =
            |status: &NodeStatus| ready(status).last_transition_time.map(|it| it.0.to_string());
        assert_eq!(since(&same).as_deref(), Some(NOW));
        assert_eq!(since(&other).as_deref(), Some(later));
        assert_eq!(since(&back).as_deref(), Some(later));
    }

    #[test]
    fn pressure_is_told_by_its_condition() {
        let (settings, machine, state) = (settings(&[]), machine(), well());
        let scarce = Usage { memory_available: 0, max_tasks: 100, ..Usage::default() };
        let now = NOW.parse().expect("a time");
        let known = Known {
            settings: &settings,
            machine: &machine,
            addresses: &SOME,
            state: &state,
            pressures: Pressures::default().look(&scarce, &Thresholds::default(), now),
            features: &[],
        };

        let status = status(known, None, now);

        let first = status.conditions.iter().flatten().next().cloned().expect("one");
        assert_eq!(first.reason.as_deref(), Some("KubeletHasInsufficientMemory"));
        assert_eq!(ready(&status).status, "True");
    }

    #[test]
    fn an_api_server_that_knows_all_is_told_nothing_until_a_heartbeat_is_due() {
        let there = told(&[], &well(), None, NOW);
        let wanted = told(&[], &well(), Some(&there), "2026-06-01T00:00:10Z");

        assert_eq!(changes(&there, &wanted, false, &BTreeSet::new()), None);

        let due = changes(&there, &wanted, true, &BTreeSet::new()).expect("due");
        assert_eq!(due.keys().collect::<Vec<_>>(), ["conditions"]);
    }

    #[test]
    fn only_what_differs_is_sent_and_addresses_are_replaced_as_a_whole() {
        let wanted = told(&[], &well(), None, NOW);
        let mut there = wanted.clone();
        there.addresses =
            Some(vec![NodeAddress { address: "192.0.2.9".into(), type_: "InternalIP".into() }]);
        if let Some(capacity) = there.capacity.as_mut() {
            // The same amount in other words, another amount, and somebody else's.
            capacity.insert("memory".into(), Quantity("4Gi".into()));
            capacity.insert("pods".into(), Quantity("10".into()));
            capacity.insert("example.com/gpu".into(), Quantity("1".into()));
        }

        let patch = changes(&there, &wanted, false, &BTreeSet::new()).expect("changes");

        assert_eq!(patch["capacity"], json!({ "pods": "110" }));
        let addresses = json!([
            { "$patch": "replace" },
            { "type": "InternalIP", "address": "192.0.2.1" },
            { "type": "Hostname", "address": "n1" },
        ]);
        assert_eq!(patch["addresses"], addresses);
        assert_eq!(patch.len(), 3, "{patch:?}");
    }

    #[test]
    fn what_an_api_server_does_not_keep_is_not_sent_for_ever() {
        let wanted = told(&[], &well(), None, NOW);
        let there = NodeStatus { declared_features: None, ..wanted.clone() };

        assert!(changes(&there, &wanted, false, &BTreeSet::new()).is_some());
        assert_eq!(changes(&there, &wanted, false, &BTreeSet::from(["declaredFeatures"])), None);
    }

    #[test]
    fn features_are_sorted_and_unique_and_images_by_size_with_digests_first() {
        let image = |names: &[&str], size| ContainerImage {
            names: Some(names.iter().map(|it| (*it).to_owned()).collect()),
            size_bytes: Some(size),
        };
        let mut state = well();
        state.images = (0..60).map(|size| image(&["x"], size)).collect();
        state.images.push(image(&["a:1", "a:2", "a:3", "a:4", "a:5", "a@sha256:1"], 1000));

        let status = told(&[], &state, None, NOW);

        assert_eq!(status.declared_features, Some(vec!["A".to_owned(), "B".to_owned()]));
        let images = status.images.expect("images");
        assert_eq!(
            (images.len(), images[0].size_bytes, images[1].size_bytes),
            (50, Some(1000), Some(59))
        );
        let names = images[0].names.clone().expect("names");
        assert_eq!((names.len(), names[0].as_str()), (5, "a@sha256:1"));
    }

    #[test]
    fn what_happens_to_a_node_is_an_event_each() {
        let mut node =
            Node { status: Some(told(&[], &NodeState::default(), None, NOW)), ..new(&[]) };
        if let Some(info) = node.status.as_mut().and_then(|it| it.node_info.as_mut()) {
            info.boot_id = "b0".into();
        }
        let reasons = |node: &Node, after: &NodeStatus| -> Vec<_> {
            events(node, after).into_iter().map(|it| (it.reason, it.warning)).collect()
        };

        let after = told(&[], &well(), node.status.as_ref(), NOW);

        assert_eq!(reasons(&node, &after), [("NodeReady", false), ("Rebooted", true)]);
        let new = Node { status: None, ..node.clone() };
        let first = [
            "NodeHasSufficientMemory",
            "NodeHasNoDiskPressure",
            "NodeHasSufficientPID",
            "NodeReady",
        ];
        assert_eq!(reasons(&new, &after), first.map(|it| (it, false)));
        let same = Node { status: Some(after.clone()), ..node };
        assert_eq!(reasons(&same, &after), []);
    }
}
