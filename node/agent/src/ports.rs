//! The machine's ports that lead to pods, as long as these are set up: together they are declared to the packet filter, whole.
//!
//! Whether a pod may have a port, [`refused`] and [`clashes`] say; in a cluster the kubelet's side has judged between pods. Absent: the
//! packet filter (`copepod-domain`, in `ports`), and published ports, which are sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use copepod_domain::{Host, HostError, PodPort, Protocol};
use copepod_node::host_ports::{self, HostPort};
use k8s_openapi::api::core::v1::Pod;

use crate::accept::is_on_host;
use crate::api::PodName;
use crate::causes::with_causes;
use crate::store::Stored;

/// The ports of all pods that are set up.
#[derive(Debug)]
pub(crate) struct Ports {
    host: Host,
    wanted: Mutex<Wanted>,
    /// What the packet filter has. Whoever holds it, declares.
    declared: tokio::sync::Mutex<Declared>,
}

/// What the packet filter was told last, and which revision that is.
#[derive(Debug, Default)]
struct Declared {
    ports: Vec<PodPort>,
    revision: u64,
}

/// What there should be, and how often that has changed.
#[derive(Debug, Default)]
struct Wanted {
    by_pod: BTreeMap<String, Vec<PodPort>>,
    revision: u64,
}

impl Ports {
    pub(crate) fn new(host: Host) -> Self {
        Self { host, wanted: Mutex::default(), declared: tokio::sync::Mutex::default() }
    }

    /// Leads to a pod what it asks for. It costs nothing where that is nothing.
    pub(crate) async fn lead(&self, uid: &str, pod: &Pod, ips: &[IpAddr]) -> Result<(), HostError> {
        let asked = asked(pod, ips);
        if asked.is_empty() {
            return Ok(());
        }
        let revision = self.change(|all| drop(all.insert(uid.to_owned(), asked)));
        self.declare(revision).await
    }

    /// Nothing leads to the pod any more.
    pub(crate) async fn close(&self, uid: &str) -> Result<(), HostError> {
        let mut was_there = false;
        let revision = self.change(|all| was_there = all.remove(uid).is_some());
        if was_there { self.declare(revision).await } else { Ok(()) }
    }

    /// At the agent's start: what leads to these pods, and nothing that an earlier agent left beside.
    pub(crate) async fn resume<'a>(
        &self,
        pods: impl Iterator<Item = (&'a str, &'a Pod, Vec<IpAddr>)>,
    ) -> Result<(), HostError> {
        let asked = pods.map(|(uid, pod, ips)| (uid.to_owned(), asked(pod, &ips)));
        let asked: Vec<_> = asked.filter(|(_, asked)| !asked.is_empty()).collect();
        // As an earlier agent told it: who calls is led well already.
        self.declared.lock().await.ports = asked.iter().flat_map(|(_, it)| it).copied().collect();
        let revision = self.change(|all| all.extend(asked));
        self.declare(revision).await
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<PodPort>>)) -> u64 {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut wanted.by_pod);
        wanted.revision += 1;
        wanted.revision
    }

    /// Returns once the packet filter has this revision or a later one: of many that come together one or two are declared.
    async fn declare(&self, revision: u64) -> Result<(), HostError> {
        let mut declared = self.declared.lock().await;
        if declared.revision >= revision {
            return Ok(());
        }
        let (ports, newest): (Vec<PodPort>, _) = {
            let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            (wanted.by_pod.values().flatten().copied().collect(), wanted.revision)
        };
        self.host.set_ports(ports.clone()).await?;
        let changed = changed_udp(&declared.ports, &ports);
        *declared = Declared { ports, revision: newest };
        if !changed.is_empty()
            && let Err(error) = self.host.forget_udp_callers(changed).await
        {
            tracing::warn!(
                error = with_causes(&error),
                "who calls over UDP may be led to an earlier pod"
            );
        }
        Ok(())
    }
}

/// The ports over UDP that lead elsewhere now, or did not before, or do not any more.
fn changed_udp(before: &[PodPort], now: &[PodPort]) -> BTreeSet<u16> {
    let of_one = |one: &[PodPort], other: &[PodPort]| {
        let gone = one.iter().filter(|it| it.protocol == Protocol::Udp && !other.contains(it));
        gone.map(|it| it.port).collect::<BTreeSet<u16>>()
    };
    &of_one(before, now) | &of_one(now, before)
}

/// What leads to a pod at these addresses, from the machine's of the same family. In the host's network a port is the host's already.
fn asked(pod: &Pod, ips: &[IpAddr]) -> Vec<PodPort> {
    if is_on_host(pod) {
        return Vec::new();
    }
    let each = |it: &HostPort, ip: IpAddr| {
        let protocol = match it.protocol {
            host_ports::Protocol::Tcp => Protocol::Tcp,
            host_ports::Protocol::Udp => Protocol::Udp,
            // It is refused by the table of fields.
            host_ports::Protocol::Sctp => return None,
        };
        let is_of_family = it.ip.is_none_or(|host| host.is_ipv4() == ip.is_ipv4());
        let lead =
            PodPort { host: it.ip, protocol, port: it.port, pod: ip, pod_port: it.container_port };
        is_of_family.then_some(lead)
    };
    let wanted = host_ports::of(pod);
    wanted.iter().flat_map(|it| ips.iter().filter_map(move |ip| each(it, *ip))).collect()
}

/// The ports of the machine that a pod asks for and cannot have here, whoever else is here: each a sentence that names the field.
/// `kept` are the node's own, of TCP.
pub(crate) fn refused(host: &Host, pod: &Pod, kept: &[u16]) -> Vec<String> {
    if is_on_host(pod) {
        return Vec::new();
    }
    let impossible = host.no_ports();
    let each = |it: HostPort| match impossible {
        Some(why) => Some(format!("{}: {}", it.field, why.sentence())),
        None if it.protocol == host_ports::Protocol::Tcp && kept.contains(&it.port) => Some(
            format!("{}: {} is the port of the node's own API; take another", it.field, it.port),
        ),
        None => None,
    };
    host_ports::of(pod).into_iter().filter_map(each).collect()
}

/// Ports of the machine that a newcomer asks for, or has published, and others have already: each a sentence that names the field.
/// Without a cluster nobody else has looked.
pub(crate) fn clashes<'a>(
    newcomer: &Stored,
    others: impl Iterator<Item = &'a Stored>,
) -> Vec<String> {
    let wanted = held(newcomer);
    if wanted.is_empty() {
        return Vec::new();
    }
    let name = PodName::of(&newcomer.pod).name;
    let mut wrong = Vec::new();
    for other in others {
        let PodName { namespace, name: owner } = PodName::of(&other.pod);
        for (port, is_published) in &wanted {
            let is_taken = held(other).iter().any(|(theirs, published)| {
                // Of two that are published the kernel has refused one already.
                port.clashes(theirs) && !(*is_published && *published)
            });
            if is_taken {
                wrong.push(format!(
                    "pod {name:?}: {}: {port} is pod {namespace}/{owner}'s; take another, or stop that pod",
                    port.field
                ));
            }
        }
    }
    wrong
}

/// The ports of the machine that a pod has, and whether by `--publish`.
fn held(stored: &Stored) -> Vec<(HostPort, bool)> {
    let published = stored.publish.iter().map(|it| HostPort {
        ip: Some(it.host_ip).filter(|ip| !ip.is_unspecified()),
        protocol: host_ports::Protocol::Tcp,
        port: it.host_port,
        container_port: it.pod_port,
        field: format!("--publish {}", std::net::SocketAddr::new(it.host_ip, it.host_port)),
    });
    let asked = host_ports::of(&stored.pod).into_iter().map(|it| (it, false));
    asked.chain(published.map(|it| (it, true))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 64, 0, 5));

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "spec": spec })).expect("a pod")
    }

    #[test]
    fn a_port_of_the_machine_leads_to_the_container_s_own() {
        let ports = json!([
            { "containerPort": 80, "hostPort": 8080, "hostIP": "192.0.2.1" },
            { "containerPort": 53, "hostPort": 5353, "protocol": "UDP" },
            { "containerPort": 81 },
        ]);
        let asked = asked(&pod(json!({ "containers": [{ "name": "c", "ports": ports }] })), &[IP]);

        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let one = Some(IpAddr::from([192, 0, 2, 1]));
        let expected = [
            PodPort { host: one, protocol: tcp, port: 8080, pod: IP, pod_port: 80 },
            PodPort { host: None, protocol: udp, port: 5353, pod: IP, pod_port: 53 },
        ];
        assert_eq!(asked, expected);
    }

    #[test]
    fn callers_over_udp_are_led_anew_only_where_their_port_leads_elsewhere() {
        let port = |protocol, port, last| PodPort {
            host: None,
            protocol,
            port,
            pod: IpAddr::from([10, 64, 0, last]),
            pod_port: 53,
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let before = [port(udp, 1, 5), port(udp, 2, 5), port(tcp, 3, 5), port(udp, 4, 5)];
        let now = [port(udp, 1, 5), port(udp, 2, 6), port(tcp, 3, 6), port(udp, 5, 6)];

        assert_eq!(changed_udp(&before, &now), BTreeSet::from([2, 4, 5]));
        assert_eq!(changed_udp(&before, &before), BTreeSet::new());
    }

    #[test]
    fn in_the_host_s_network_nothing_has_to_be_led() {
        let containers =
            json!([{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }] }]);

        assert_eq!(
            asked(&pod(json!({ "hostNetwork": true, "containers": containers })), &[IP]),
            []
        );
    }
}
