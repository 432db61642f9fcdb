//! Takes pods on: what a client sends is judged whole, given its identity, and put on disk before it is acted on.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use copepod_domain::{Slot, published};
use copepod_node::annotations::NodeCeilings;
use copepod_node::env;
use copepod_node::life::PodLife;
use copepod_node::objects::{References, needs_a_cluster};
use copepod_node::quantity::Amount;
use copepod_node::volumes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;

use crate::api::{AcceptedPod, Publish, Reply, RunPods};
use crate::owner::Owner;
use crate::pod::{Entry, World};
use crate::ports;
use crate::store::{PodObjects, Stored};

/// A pod that passed every check and is not known yet.
struct Candidate {
    entry: Entry,
    published: Vec<(SocketAddr, u16)>,
}

impl Owner {
    /// Answers [`Call::Run`](crate::api::Call::Run): all pods or none.
    pub(crate) fn accept(&mut self, run: RunPods, touched: &mut BTreeSet<String>) -> Reply {
        let mut candidates = Vec::new();
        let mut refused = Vec::new();
        let objects = parse_all::<ConfigMap>(&run.config_maps)
            .and_then(|maps| Ok((maps, parse_all::<Secret>(&run.secrets)?)));
        let (config_maps, secrets) = match objects {
            Ok(objects) => objects,
            Err(error) => return Reply::Refused(vec![error]),
        };
        let mut names = BTreeSet::new();
        for (index, text) in run.pods.iter().enumerate() {
            let publish = run.publish.iter().filter(|it| it.pod == index).cloned().collect();
            let candidate = serde_json::from_str::<Pod>(text)
                .map_err(|error| vec![error.to_string()])
                .and_then(|pod| self.candidate(pod, publish, &config_maps, &secrets, &run));
            match candidate {
                Ok(candidate) => {
                    let name = candidate.entry.world.name();
                    if !names.insert(name.clone()) {
                        refused.push(format!("pod {:?} is there twice", name.name));
                    }
                    let here = self.pods.values().filter(|entry| !entry.life.is_over());
                    let others = here.chain(candidates.iter().map(|it: &Candidate| &it.entry));
                    let others = others.map(|entry| &entry.world.stored);
                    refused.extend(ports::clashes(&candidate.entry.world.stored, others));
                    candidates.push(candidate);
                }
                Err(reasons) => refused.extend(reasons),
            }
        }
        let mut accepted = Vec::new();
        if refused.is_empty() {
            for Candidate { entry, .. } in &candidates {
                let world = &entry.world;
                if let Err(error) = self.store.put(&world.uid, &world.stored) {
                    refused.push(format!("the data directory cannot be written: {error}"));
                }
            }
        }
        for Candidate { entry, published } in candidates {
            let world = entry.world.clone();
            if refused.is_empty() {
                let pod = world.name();
                self.names.insert(pod.clone(), world.uid.clone());
                touched.insert(world.uid.clone());
                self.pods.insert(world.uid.clone(), entry);
                accepted.push(AcceptedPod { uid: world.uid.clone(), pod, published });
            } else {
                self.addresses.give_back(world.stored.ip);
                let _ = self.store.remove(&world.uid);
            }
        }
        if refused.is_empty() { Reply::Accepted(accepted) } else { Reply::Refused(refused) }
    }

    fn candidate(
        &mut self,
        mut pod: Pod,
        mut publish: Vec<Publish>,
        config_maps: &[Arc<ConfigMap>],
        secrets: &[Arc<Secret>],
        run: &RunPods,
    ) -> Result<Candidate, Vec<String>> {
        let uid = new_uid().map_err(|error| vec![error])?;
        let now = Timestamp::now();
        let namespace = pod.metadata.namespace.get_or_insert_with(|| "default".into()).clone();
        let name = pod.metadata.name.clone().unwrap_or_default();
        pod.metadata.uid = Some(uid.clone());
        pod.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        let prefix = format!("pod {name:?}: ");
        let life = PodLife::admit(pod, &NodeCeilings::default(), now).map_err(|refusals| {
            refusals.iter().map(|refusal| format!("{prefix}{refusal}")).collect::<Vec<_>>()
        })?;
        let pod = life.pod().clone();
        if is_on_host(&pod) {
            return Err(vec![format!(
                "{prefix}spec.hostNetwork: only a cluster's node has a network to share; leave it out, and publish ports with --publish"
            )]);
        }
        if self.names.keys().any(|it| it.name == name && it.namespace == namespace) {
            return Err(vec![format!(
                "{prefix}a pod of this name is here already; `copepod stop {name}` ends and forgets it"
            )]);
        }
        let wrong = ports::refused(self.performer.domains.host(), &pod, &[]);
        if !wrong.is_empty() {
            return Err(wrong.into_iter().map(|it| format!("{prefix}{it}")).collect());
        }
        let named = References::of(&pod);
        let objects = PodObjects {
            config_maps: of_pod(config_maps, |it| &it.metadata, &namespace, &named.config_maps),
            secrets: of_pod(secrets, |it| &it.metadata, &namespace, &named.secrets),
            ..PodObjects::default()
        };
        self.check_references(&pod, &objects).map_err(|wrong| {
            wrong.into_iter().map(|it| format!("{prefix}{it}")).collect::<Vec<_>>()
        })?;
        let mut listeners = Vec::new();
        let mut opened = Vec::new();
        for one in &mut publish {
            let address = SocketAddr::new(one.host_ip, one.host_port);
            let bound = published::open(address)
                .and_then(|listener| Ok((listener.local_addr()?, listener)))
                .map_err(|error| {
                    vec![format!("{prefix}--publish {address}: the port cannot be opened: {error}")]
                })?;
            // The port that a later agent opens again.
            one.host_port = bound.0.port();
            opened.push((bound.0, one.pod_port));
            listeners.push((bound.1, one.pod_port));
        }
        let slot = self.addresses.take().ok_or_else(|| {
            vec![format!("{prefix}all {} pod addresses are taken", self.addresses.blocks())]
        })?;
        let (ip, second_ip) = self.addresses_of(slot);
        let stored = Stored {
            domain: domain_of(&pod, &uid),
            pod,
            objects: Arc::new(objects.into()),
            publish,
            credentials: run.credentials.clone(),
            ip,
            second_ip,
            loopback: loopback_of(slot),
            accepted: now,
        };
        let host_ips = self.performer.node.facts.ips.clone();
        let world = World::new(&self.performer.config.data, uid, stored, host_ips, listeners);
        Ok(Candidate { entry: Entry::new(life, world), published: opened })
    }

    /// What would never come, as no cluster is there to bring it: a ConfigMap or key that is not in the manifest, or more than the
    /// machine has.
    fn check_references(&self, pod: &Pod, objects: &PodObjects) -> Result<(), Vec<String>> {
        let node = &self.performer.node;
        let context = env::Context { objects, node: &node.facts, pod_ips: &[], services: &[] };
        let mut wrong: Vec<_> = needs_a_cluster(pod).iter().map(ToString::to_string).collect();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        wrong.extend(volumes::plan(pod, &context).err().map(|error| error.to_string()));
        let spec = pod.spec.iter();
        let (mut memory, mut cpu) = (0, 0);
        for container in
            spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
        {
            let image = env::ImageConfig::default();
            let process = env::process(pod, &container.name, &image, &context);
            wrong.extend(process.err().map(|error| error.to_string()));
        }
        // As a scheduler counts; init containers are done before these start.
        for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
            memory += asked(container, "memory", Amount::ceil);
            cpu += asked(container, "cpu", Amount::ceil_millis);
        }
        let (has_memory, has_cpu) = (node.memory, node.facts.allocatable.cpu.ceil_millis());
        if memory > has_memory {
            wrong.push(format!(
                "resources.requests[memory]: {memory} bytes are asked for, and this machine has {has_memory} for pods"
            ));
        }
        if cpu > has_cpu {
            wrong.push(format!(
                "resources.requests[cpu]: {cpu}m are asked for, and this machine has {has_cpu}m for pods"
            ));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// The addresses of the pod in this slot: the first block's, and the other's where there are two.
    pub(crate) fn addresses_of(&self, slot: Slot) -> (IpAddr, Option<IpAddr>) {
        let mut all = self.addresses.addresses(slot).into_iter();
        // A pool gives no slot that lies beyond one of its blocks.
        let first = all.next().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        (first, all.next())
    }
}

/// The address that stands for the loopback of the pod in this slot: as unique in 127.128.0.0/10 as the slot is.
pub(crate) fn loopback_of(slot: Slot) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 128, 0, 0).to_bits() + slot.number())
}

/// The domain that a pod belongs to: its namespace's, or its own by its RuntimeClass; each apart where pods live in the host's network.
pub(crate) fn domain_of(pod: &Pod, uid: &str) -> String {
    let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
    let network = if is_on_host(pod) { IN_HOST_NETWORK } else { "" };
    if class == Some("copepod-pod") {
        format!("{network}pod-{uid}")
    } else {
        format!("{network}ns-{}", pod.metadata.namespace.as_deref().unwrap_or("default"))
    }
}

/// How the names of domains begin that live in the host's network.
pub(crate) const IN_HOST_NETWORK: &str = "host-";

/// The pod asks for the host's network.
pub(crate) fn is_on_host(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

fn asked(container: &Container, resource: &str, unit: fn(Amount) -> u64) -> u64 {
    let requests = container.resources.as_ref().and_then(|it| it.requests.as_ref());
    let quantity = requests.and_then(|requests| requests.get(resource));
    quantity.and_then(|quantity| Amount::parse(quantity).ok()).map_or(0, unit)
}

fn parse_all<T: DeserializeOwned>(texts: &[String]) -> Result<Vec<Arc<T>>, String> {
    let parse = |text: &String| serde_json::from_str(text).map(Arc::new);
    texts.iter().map(|text| parse(text).map_err(|error| error.to_string())).collect()
}

/// Of all objects of a kind, those of a namespace that a pod names.
fn of_pod<T>(
    all: &[Arc<T>],
    meta: impl Fn(&T) -> &ObjectMeta,
    namespace: &str,
    names: &BTreeSet<&str>,
) -> Vec<Arc<T>> {
    let is_named = |it: &&Arc<T>| {
        let meta = meta(it);
        meta.namespace.as_deref().unwrap_or("default") == namespace
            && meta.name.as_deref().is_some_and(|name| names.contains(name))
    };
    all.iter().filter(is_named).cloned().collect()
}

/// A random UUID (version 4), as the API server gives.
fn new_uid() -> Result<String, String> {
    let mut bytes = [0u8; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(|error| format!("no random numbers: {error}"))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}
