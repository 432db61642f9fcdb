//! What a node is told by flags, environment and file: parsed once, whole, each bad value refused by the key that gave it.
//!
//! Start at [`NodeSettings::parse`]. [`KEYS`] is the table of all settings; who reads flags and files (the program) walks it, so that
//! a setting has one name in each place. Absent: reading the file, and whether a path leads anywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use copepod_domain::{Blocks, Cidr};
use copepod_node::name::is_dns_label;
use copepod_node::quantity::Amount;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pressure::Thresholds;

/// A setting's name, wherever it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The flag, without its dashes.
    pub flag: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    /// The field of the configuration file.
    pub field: &'static str,
}

macro_rules! keys {
    ($($name:ident $flag:literal $variable:literal $field:literal)*) => {
        $(const $name: Key = Key { flag: $flag, variable: $variable, field: $field };)*

        /// All settings.
        pub const KEYS: &[Key] = &[$($name),*];
    };
}

keys! {
    KUBECONFIG "kubeconfig" "COPEPOD_NODE_KUBECONFIG" "kubeconfig"
    BOOTSTRAP "bootstrap-kubeconfig" "COPEPOD_NODE_BOOTSTRAP_KUBECONFIG" "bootstrapKubeconfig"
    NAME "node-name" "COPEPOD_NODE_NAME" "nodeName"
    IPS "node-ip" "COPEPOD_NODE_IP" "nodeIPs"
    POD_CIDR "pod-cidr" "COPEPOD_NODE_POD_CIDR" "podCIDR"
    PORT "port" "COPEPOD_NODE_PORT" "port"
    CLIENT_CA "client-ca-file" "COPEPOD_NODE_CLIENT_CA_FILE" "clientCAFile"
    TAINTS "register-with-taints" "COPEPOD_NODE_REGISTER_WITH_TAINTS" "registerWithTaints"
    LABELS "node-labels" "COPEPOD_NODE_LABELS" "nodeLabels"
    MAX_PODS "max-pods" "COPEPOD_NODE_MAX_PODS" "maxPods"
    MASQUERADE "masquerade" "COPEPOD_NODE_MASQUERADE" "masquerade"
    EXCEPTIONS "masquerade-exceptions" "COPEPOD_NODE_MASQUERADE_EXCEPTIONS" "masqueradeExceptions"
    ROUTES "routes" "COPEPOD_NODE_ROUTES" "routes"
    CLUSTER_DNS "cluster-dns" "COPEPOD_NODE_CLUSTER_DNS" "clusterDNS"
    CLUSTER_DOMAIN "cluster-domain" "COPEPOD_NODE_CLUSTER_DOMAIN" "clusterDomain"
    RESERVED "system-reserved" "COPEPOD_NODE_SYSTEM_RESERVED" "systemReserved"
    HOST_PATHS "allow-host-path" "COPEPOD_NODE_ALLOW_HOST_PATH" "allowHostPaths"
    HOST_NETWORK "allow-host-network" "COPEPOD_NODE_ALLOW_HOST_NETWORK" "allowHostNetwork"
    EVICTION "eviction-hard" "COPEPOD_NODE_EVICTION_HARD" "evictionHard"
    RUNNER_AGE "max-runner-age" "COPEPOD_NODE_MAX_RUNNER_AGE" "maxRunnerAge"
    OS_LABEL "node-os-label" "COPEPOD_NODE_OS_LABEL" "nodeOSLabel"
}

/// A setting as somebody gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Who: `--max-pods`, `COPEPOD_NODE_MAX_PODS`, `maxPods in node.yaml`.
    pub by: String,
    /// The texts, one or more where the flag was repeated or the file has a list; a mapping's entries as `key=value`.
    pub texts: Vec<String>,
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{by}: {why}")]
pub struct BadSetting {
    /// The key, as the person wrote it.
    pub by: String,
    /// What is wrong, and what to write instead.
    pub why: String,
}

/// The settings of one node.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The data directory; absolute.
    pub data: PathBuf,
    /// How the API server is reached, and as whom. With a bootstrap kubeconfig it is written, and may be missing at first.
    pub kubeconfig: PathBuf,
    /// A kubeconfig with a bootstrap token, for a node that has no certificate yet.
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// The node's name: of its object, its certificate, its lease.
    pub node_name: NodeName,
    /// The node's addresses, at most one of each family. None: the one by which the API server is reached.
    pub node_ips: Vec<IpAddr>,
    /// The blocks that pod addresses come from, at most one of each family. None: those that the cluster gives.
    pub pod_cidrs: Option<Blocks>,
    /// The port of the kubelet's API: 10250 unless set.
    pub port: u16,
    /// The authorities whose client certificates the kubelet's API takes. None: the kubeconfig's.
    pub client_ca_file: Option<PathBuf>,
    /// Taints of a Node object that is made anew.
    pub taints: Vec<Taint>,
    /// Labels beyond the usual ones.
    pub labels: BTreeMap<String, String>,
    /// The most pods: 110 unless set, a kubelet's default.
    pub max_pods: u32,
    /// Whether pods leave the cluster by the node's own address.
    pub masquerade: Masquerade,
    /// Blocks that pods reach by their own addresses whatever else is known: none unless set.
    pub masquerade_exceptions: Vec<Cidr>,
    /// Whether the node sets routes to other nodes' pods.
    pub routes: Routes,
    /// The addresses of the cluster's DNS. None: pods resolve names as the node does.
    pub cluster_dns: Vec<IpAddr>,
    /// The domain of the cluster's Services: `cluster.local` unless set.
    pub cluster_domain: String,
    /// What the node keeps for itself.
    pub reserved: Reserved,
    /// Folders of the machine beneath which pods may mount: none unless set.
    pub host_paths: Vec<PathBuf>,
    /// Whether pods may live in the node's own network: no unless set.
    pub host_network: bool,
    /// From where on the machine is short of something.
    pub thresholds: Thresholds,
    /// How long after an upgrade a runner of the build before may go on before its pods are evicted. None: as long as they do.
    pub max_runner_age: Option<Duration>,
    /// The value of the label `kubernetes.io/os`.
    pub os_label: OsLabel,
}

/// A node's name: an RFC 1123 subdomain of at most 253 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(String);

impl NodeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The user that a node of this name is: the common name of its certificate.
    pub fn user(&self) -> String {
        format!("{NODE_USER_PREFIX}{}", self.0)
    }
}

/// How the names of nodes' users begin.
pub const NODE_USER_PREFIX: &str = "system:node:";

/// The group that nodes' users are of.
pub const NODE_GROUP: &str = "system:nodes";

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() <= 253 && text.split('.').all(is_dns_label) {
            return Ok(Self(text.to_owned()));
        }
        let lower = text.to_lowercase();
        let instead = match lower.split('.').all(is_dns_label) {
            true => format!("; write {lower:?}"),
            false => String::new(),
        };
        Err(format!(
            "{text:?} is no node name: small letters, digits, - and dots, beginning and ending with a letter or digit{instead}"
        ))
    }
}

/// Whether the node masquerades what leaves the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masquerade {
    /// Pods reach what is outside the cluster by the node's address.
    #[default]
    Auto,
    /// The network knows the way to pods.
    Off,
}

/// Whether the node follows the cluster's other nodes: sets routes to their pods, and has its own pods reach them by their own addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routes {
    /// Where it may list nodes.
    #[default]
    Auto,
    /// The network does all of it.
    Off,
}

/// The value of the label `kubernetes.io/os`: it keeps DaemonSets of Linux programs, which tolerate everything, away (kubelet.md F5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OsLabel {
    /// `copepod`: what selects Linux nodes passes by.
    #[default]
    Copepod,
    /// `linux`: for charts that select it, where nothing else selects it that cannot run here.
    Linux,
}

impl OsLabel {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copepod => "copepod",
            Self::Linux => "linux",
        }
    }
}

/// What the node keeps for itself: none said, none kept beyond what the agent keeps by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// CPU.
    pub cpu: Option<Amount>,
    /// Bytes of memory.
    pub memory: Option<Amount>,
    /// Bytes of the data directory's file system.
    pub ephemeral_storage: Option<Amount>,
}

impl NodeSettings {
    /// The settings that `given` says; the defaults for the rest. `host_name` is the machine's, and the node's where nobody names it.
    ///
    /// # Errors
    /// The first value that cannot be.
    pub fn parse(
        data: PathBuf,
        host_name: &str,
        given: impl Fn(Key) -> Option<Given>,
    ) -> Result<Self, BadSetting> {
        let reader = Reader { given: &given };
        let bootstrap_kubeconfig = reader.one(BOOTSTRAP, path)?;
        let kubeconfig = match reader.one(KUBECONFIG, path)? {
            Some(path) => path,
            None if bootstrap_kubeconfig.is_some() => data.join("kubeconfig"),
            None => {
                return Err(BadSetting {
                    by: "--kubeconfig".into(),
                    why: "missing: name the file with which this node reaches the API server, or with \
                          --bootstrap-kubeconfig one with a bootstrap token"
                        .into(),
                });
            }
        };
        let node_name = match reader.one(NAME, str::parse::<NodeName>)? {
            Some(name) => name,
            None => host_name.to_lowercase().parse::<NodeName>().map_err(|why| BadSetting {
                by: "--node-name".into(),
                why: format!("missing, and the machine's own name cannot take its place: {why}"),
            })?,
        };
        Ok(Self {
            kubeconfig,
            bootstrap_kubeconfig,
            node_name,
            node_ips: reader.whole(IPS, node_ips)?.unwrap_or_default(),
            pod_cidrs: reader.whole(POD_CIDR, blocks)?,
            port: reader.one(PORT, port)?.unwrap_or(10250),
            client_ca_file: reader.one(CLIENT_CA, path)?,
            taints: reader
                .whole(TAINTS, |all| all.iter().map(|it| taint(it)).collect())?
                .unwrap_or_default(),
            labels: reader.whole(LABELS, labels)?.unwrap_or_default(),
            max_pods: reader.one(MAX_PODS, max_pods)?.unwrap_or(110),
            masquerade: match reader.one(MASQUERADE, auto_or_off)? {
                Some(false) => Masquerade::Off,
                _ => Masquerade::Auto,
            },
            masquerade_exceptions: reader
                .whole(EXCEPTIONS, |all| all.iter().map(|it| it.parse()).collect())?
                .unwrap_or_default(),
            routes: match reader.one(ROUTES, auto_or_off)? {
                Some(false) => Routes::Off,
                _ => Routes::Auto,
            },
            cluster_dns: reader
                .whole(CLUSTER_DNS, |all| all.iter().map(|it| address(it)).collect())?
                .unwrap_or_default(),
            cluster_domain: reader
                .one(CLUSTER_DOMAIN, domain)?
                .unwrap_or_else(|| "cluster.local".into()),
            reserved: reader.whole(RESERVED, reserved)?.unwrap_or_default(),
            host_paths: reader
                .whole(HOST_PATHS, |all| all.iter().map(|it| folder(it)).collect())?
                .unwrap_or_default(),
            host_network: reader.one(HOST_NETWORK, yes_or_no)?.unwrap_or(false),
            thresholds: reader.whole(EVICTION, Thresholds::parse)?.unwrap_or_default(),
            max_runner_age: reader.one(RUNNER_AGE, age)?,
            os_label: reader.one(OS_LABEL, os_label)?.unwrap_or_default(),
            data,
        })
    }
}

/// Asks for values, and puts the key before what is wrong with one.
struct Reader<'a, F> {
    given: &'a F,
}

impl<F: Fn(Key) -> Option<Given>> Reader<'_, F> {
    /// A setting that is one value.
    fn one<T>(
        &self,
        key: Key,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, BadSetting> {
        let Some(Given { by, texts }) = (self.given)(key) else { return Ok(None) };
        let parsed = match texts.as_slice() {
            [text] => parse(text.trim()),
            texts => Err(format!("this takes one value, found {}", texts.len())),
        };
        parsed.map(Some).map_err(|why| BadSetting { by, why })
    }

    /// A setting that is a list: by commas, by repetition, or both.
    fn whole<T>(
        &self,
        key: Key,
        parse: impl Fn(&[String]) -> Result<T, String>,
    ) -> Result<Option<T>, BadSetting> {
        let Some(Given { by, texts }) = (self.given)(key) else { return Ok(None) };
        let all: Vec<String> = texts
            .iter()
            .flat_map(|text| text.split(','))
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
            .collect();
        parse(&all).map(Some).map_err(|why| BadSetting { by, why })
    }
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a file's path is missing".into()) } else { Ok(text.into()) }
}

fn folder(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let is_plain = path.components().all(|it| !matches!(it, std::path::Component::ParentDir));
    if path.is_absolute() && is_plain {
        Ok(path)
    } else {
        Err(format!(
            "{text:?} is no folder that pods can be let into; write an absolute path without .."
        ))
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{text:?} is no port: 1 to 65535"))
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is no IP address"))
}

/// Addresses by which others may reach this node.
fn node_ips(texts: &[String]) -> Result<Vec<IpAddr>, String> {
    let all = texts.iter().map(|text| address(text)).collect::<Result<Vec<_>, _>>()?;
    if let Some(bad) = all.iter().find(|ip| !is_reachable(ip)) {
        return Err(format!(
            "{bad} cannot be a node's address, as nobody else reaches it: give an address of this machine's network"
        ));
    }
    match all.as_slice() {
        [_] | [] => Ok(all),
        [a, b] if a.is_ipv4() != b.is_ipv4() => Ok(all),
        _ => Err("a node has at most one address of each family, IPv4 and IPv6".into()),
    }
}

fn blocks(texts: &[String]) -> Result<Blocks, String> {
    let all = texts.iter().map(|text| text.parse()).collect::<Result<Vec<Cidr>, _>>()?;
    Blocks::new(&all)
}

/// Neither loopback, multicast, link-local nor unspecified.
pub(crate) fn is_reachable(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || link_local)
}

fn max_pods(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no number of pods; write a whole number like 110"))
}

fn age(text: &str) -> Result<Duration, String> {
    let age = text.parse::<SignedDuration>().ok().and_then(|it| Duration::try_from(it).ok());
    age.ok_or_else(|| format!("{text:?} is no time; write one like 24h or 1h30m"))
}

/// Whether it is `auto`.
fn auto_or_off(text: &str) -> Result<bool, String> {
    match text {
        "auto" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("{other:?} is neither auto nor off")),
    }
}

fn os_label(text: &str) -> Result<OsLabel, String> {
    match text {
        "copepod" => Ok(OsLabel::Copepod),
        "linux" => Ok(OsLabel::Linux),
        other => Err(format!("{other:?} is neither copepod nor linux")),
    }
}

fn domain(text: &str) -> Result<String, String> {
    let name = text.trim_end_matches('.');
    if name.len() <= 253 && name.split('.').all(is_dns_label) {
        Ok(name.to_owned())
    } else {
        Err(format!("{text:?} is no domain; write one like cluster.local"))
    }
}

fn reserved(texts: &[String]) -> Result<Reserved, String> {
    let mut reserved = Reserved::default();
    for text in texts {
        let (name, amount) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?}: write it as cpu=500m or memory=1Gi"))?;
        let amount =
            Amount::parse(&Quantity(amount.to_owned())).map_err(|why| format!("{name}: {why}"))?;
        let place = match name {
            "cpu" => &mut reserved.cpu,
            "memory" => &mut reserved.memory,
            "ephemeral-storage" => &mut reserved.ephemeral_storage,
            other => {
                return Err(format!(
                    "{other:?} cannot be reserved: cpu, memory and ephemeral-storage can"
                ));
            }
        };
        *place = Some(amount);
    }
    Ok(reserved)
}

/// `key=value:Effect`, or `key:Effect`.
fn taint(text: &str) -> Result<Taint, String> {
    let form = || format!("{text:?} is no taint; write it as key=value:NoSchedule");
    let (rest, effect) = text.rsplit_once(':').ok_or_else(form)?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(format!("{effect:?} is no effect: NoSchedule, PreferNoSchedule or NoExecute"));
    }
    let (key, value) = match rest.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (rest, None),
    };
    label_key(key)?;
    let value = value.filter(|value| !value.is_empty()).map(str::to_owned);
    if let Some(value) = &value {
        label_value(value)?;
    }
    Ok(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for text in texts {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} is no label; write it as key=value"))?;
        label_key(key)?;
        label_value(value)?;
        may_label_itself(key)?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// `[prefix/]name`, as every label, taint and annotation is called.
fn label_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_fits =
        prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_dns_label));
    if prefix_fits && !name.is_empty() && is_label_text(name) {
        Ok(())
    } else {
        Err(format!("{key:?} is no label's key; write it as name or example.com/name"))
    }
}

fn label_value(value: &str) -> Result<(), String> {
    if is_label_text(value) {
        Ok(())
    } else {
        Err(format!(
            "{value:?} is no label's value: at most 63 letters, digits, -, _ and dots, beginning and ending with a letter or digit"
        ))
    }
}

fn is_label_text(text: &str) -> bool {
    let outer = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.len() <= 63
        && text.chars().all(inner)
        && outer(text.chars().next())
        && outer(text.chars().last())
}

/// The labels of Kubernetes' own domains that a node may give itself (NodeRestriction; kubelet.md N4).
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

fn may_label_itself(key: &str) -> Result<(), String> {
    let Some((prefix, _)) = key.split_once('/') else { return Ok(()) };
    let within = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
    let of_kubernetes = within("kubernetes.io") || within("k8s.io");
    let of_nodes = within("kubelet.kubernetes.io") || within("node.kubernetes.io");
    if matches!(key, "kubernetes.io/hostname" | "kubernetes.io/os" | "kubernetes.io/arch") {
        return Err(format!(
            "{key} is set by the node itself; leave it out (see --node-os-label, --node-name)"
        ));
    }
    if !of_kubernetes || of_nodes || OWN_LABELS.contains(&key) {
        return Ok(());
    }
    Err(format!(
        "no node may give itself {key}: leave it out, and have an administrator do it, as by kubectl label node NAME {key}=VALUE"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(given: &[(&str, &str)]) -> Result<NodeSettings, BadSetting> {
        let with = |key: Key| {
            let texts: Vec<_> = given
                .iter()
                .filter(|(flag, _)| *flag == key.flag)
                .map(|(_, text)| (*text).to_owned())
                .collect();
            let by = format!("--{}", key.flag);
            (!texts.is_empty()).then_some(Given { by, texts })
        };
        NodeSettings::parse("/data".into(), "Machine-1", with)
    }

    fn with(flag: &str, value: &str) -> Result<NodeSettings, BadSetting> {
        parse(&[("kubeconfig", "/k"), (flag, value)])
    }

    #[test]
    fn what_nobody_says_is_as_a_kubelet_has_it() {
        let settings = parse(&[("kubeconfig", "/k")]).expect("enough");

        assert_eq!(settings.node_name.as_str(), "machine-1");
        assert_eq!((settings.port, settings.max_pods), (10250, 110));
        assert_eq!(settings.cluster_domain, "cluster.local");
        assert_eq!(settings.os_label.as_str(), "copepod");
        assert!(settings.taints.is_empty() && settings.node_ips.is_empty());
    }

    #[test]
    fn without_a_kubeconfig_a_bootstrap_kubeconfig_suffices() {
        let settings = parse(&[("bootstrap-kubeconfig", "/b")]).expect("enough");

        assert_eq!(settings.kubeconfig, PathBuf::from("/data/kubeconfig"));
        let refused = parse(&[]).expect_err("neither");
        assert!(refused.to_string().starts_with("--kubeconfig: missing"), "{refused}");
    }

    #[test]
    fn a_list_is_given_by_commas_by_repetition_or_both() {
        let settings = parse(&[
            ("kubeconfig", "/k"),
            ("node-labels", "a=1,example.com/b=2"),
            ("node-labels", "topology.kubernetes.io/zone=z"),
            ("register-with-taints", "wasm=only:NoSchedule,drain:NoExecute"),
            ("node-ip", "192.0.2.1,2001:db8::1"),
        ])
        .expect("good");

        assert_eq!(settings.labels.len(), 3);
        let taints: Vec<_> =
            settings.taints.iter().map(|it| (it.key.as_str(), it.value.as_deref())).collect();
        assert_eq!(taints, [("wasm", Some("only")), ("drain", None)]);
        assert_eq!(settings.node_ips.len(), 2);
    }

    #[test]
    fn what_is_off_stays_off_and_exceptions_are_blocks() {
        let settings = parse(&[
            ("kubeconfig", "/k"),
            ("routes", "off"),
            ("masquerade", "off"),
            ("masquerade-exceptions", "10.0.0.0/8,192.168.0.0/16"),
        ])
        .expect("good");

        assert_eq!((settings.routes, settings.masquerade), (Routes::Off, Masquerade::Off));
        assert_eq!(settings.masquerade_exceptions.len(), 2);
        let usual = parse(&[("kubeconfig", "/k")]).expect("enough");
        assert_eq!((usual.routes, usual.masquerade), (Routes::Auto, Masquerade::Auto));
    }

    #[test]
    fn what_is_reserved_is_read_as_quantities() {
        let settings = with("system-reserved", "cpu=500m,memory=1Gi").expect("good");

        let expected = Reserved {
            cpu: Some(Amount::millis(500)),
            memory: Some(Amount::units(1 << 30)),
            ephemeral_storage: None,
        };
        assert_eq!(settings.reserved, expected);
    }

    #[test]
    fn a_bad_value_is_refused_by_its_key_with_what_to_write_instead() {
        let table = [
            ("node-name", "Node_1", "small letters"),
            ("node-name", "Node.A", "write \"node.a\""),
            ("node-ip", "127.0.0.1", "nobody else reaches it"),
            ("node-ip", "169.254.1.1", "nobody else reaches it"),
            ("node-ip", "fe80::1", "nobody else reaches it"),
            ("node-ip", "192.0.2.1,192.0.2.2", "at most one address of each family"),
            ("node-ip", "here", "is no IP address"),
            ("pod-cidr", "10.0.0.1/24", "such as 10.64.0.0/18"),
            ("pod-cidr", "10.0.0.0/24,10.0.1.0/24", "at most one block of each family"),
            ("port", "0", "1 to 65535"),
            ("port", "https", "1 to 65535"),
            ("register-with-taints", "a=b", "key=value:NoSchedule"),
            ("register-with-taints", "a=b:Never", "NoSchedule, PreferNoSchedule or NoExecute"),
            ("register-with-taints", "a b:NoSchedule", "no label's key"),
            ("node-labels", "a", "key=value"),
            ("node-labels", "a=-", "no label's value"),
            ("node-labels", "node-role.kubernetes.io/wasm=", "kubectl label node"),
            ("node-labels", "node-restriction.kubernetes.io/a=b", "no node may give itself"),
            ("node-labels", "kubernetes.io/os=linux", "--node-os-label"),
            ("max-pods", "many", "a whole number like 110"),
            ("masquerade", "yes", "neither auto nor off"),
            ("masquerade-exceptions", "10.0.0.0/8,10.1.2.3", "such as 10.64.0.0/18"),
            ("routes", "on", "neither auto nor off"),
            ("cluster-dns", "dns", "is no IP address"),
            ("cluster-domain", "cluster local", "like cluster.local"),
            ("system-reserved", "cpu", "cpu=500m"),
            ("system-reserved", "cpu=-1", "below zero"),
            ("system-reserved", "gpu=1", "cpu, memory and ephemeral-storage can"),
            ("node-os-label", "windows", "neither copepod nor linux"),
        ];
        for (flag, value, expected) in table {
            let refused = with(flag, value).expect_err(value).to_string();
            assert!(refused.starts_with(&format!("--{flag}: ")), "{refused}");
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn a_single_value_given_twice_is_refused() {
        let refused = parse(&[("kubeconfig", "/a"), ("kubeconfig", "/b")]).expect_err("two");

        assert!(refused.why.contains("one value"), "{refused}");
    }

    #[test]
    fn every_setting_has_one_name_in_each_place() {
        for (index, key) in KEYS.iter().enumerate() {
            let clashes = |other: &&Key| {
                other.flag == key.flag || other.variable == key.variable || other.field == key.field
            };
            assert_eq!(KEYS[index + 1..].iter().find(clashes), None);
        }
    }
}
