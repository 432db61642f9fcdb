//! How a pod resolves names: the node's resolver or the cluster's, and what `dnsPolicy` and `dnsConfig` make of it.
//!
//! Absent: reading the node's `/etc/resolv.conf`, and asking anybody.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

/// Most name servers, as a resolver of the C library takes them and the API server allows.
const MOST_SERVERS: usize = 3;
/// Most search domains, as the API server allows.
const MOST_SEARCHES: usize = 32;

/// What `/etc/resolv.conf` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// Name servers, asked in this order.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Names with at least this many dots are tried as they are first; the C library's default is 1.
    pub ndots: u8,
}

/// A cluster's DNS, as a node is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterDns {
    /// Its addresses, asked in this order; at least one.
    pub servers: Vec<IpAddr>,
    /// The domain of the cluster's Services, such as `cluster.local`.
    pub domain: String,
}

impl ClusterDns {
    /// What a kubelet writes into a pod's `resolv.conf`: the domains of the pod's namespace, of all Services and of the cluster
    /// before the node's own.
    fn resolver(&self, namespace: &str, node: &Resolver) -> Resolver {
        let domain = &self.domain;
        let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        Resolver {
            servers: self.servers.clone(),
            search: own.into_iter().chain(node.search.iter().cloned()).collect(),
            ndots: 5,
        }
    }
}

/// The resolver of a pod on a node with this resolver, in a cluster with this DNS.
///
/// `ClusterFirst` without a cluster DNS means the node's resolver, as under a kubelet, and in the host's network too, where
/// `ClusterFirstWithHostNet` says otherwise.
pub fn resolver(pod: &Pod, node: &Resolver, cluster: Option<&ClusterDns>) -> Resolver {
    let spec = pod.spec.as_ref();
    let of_cluster = || {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        cluster.map_or_else(|| node.clone(), |cluster| cluster.resolver(namespace, node))
    };
    let on_host = spec.and_then(|spec| spec.host_network) == Some(true);
    let mut resolver = match spec.and_then(|spec| spec.dns_policy.as_deref()) {
        Some("None") => Resolver { servers: Vec::new(), search: Vec::new(), ndots: 1 },
        Some("ClusterFirstWithHostNet") => of_cluster(),
        Some("ClusterFirst") | None if !on_host => of_cluster(),
        _ => node.clone(),
    };
    let Some(config) = spec.and_then(|spec| spec.dns_config.as_ref()) else { return resolver };
    for server in config.nameservers.iter().flatten().filter_map(|server| server.parse().ok()) {
        if !resolver.servers.contains(&server) {
            resolver.servers.push(server);
        }
    }
    for search in config.searches.iter().flatten() {
        if !resolver.search.contains(search) {
            resolver.search.push(search.clone());
        }
    }
    resolver.servers.truncate(MOST_SERVERS);
    resolver.search.truncate(MOST_SEARCHES);
    let ndots = config.options.iter().flatten().filter(|o| o.name.as_deref() == Some("ndots"));
    if let Some(ndots) = ndots.filter_map(|option| option.value.as_ref()?.parse().ok()).next_back()
    {
        resolver.ndots = ndots;
    }
    resolver
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resolved(spec: serde_json::Value) -> Resolver {
        resolved_in(spec, None)
    }

    fn resolved_in(spec: serde_json::Value, cluster: Option<&ClusterDns>) -> Resolver {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let pod = json!({"metadata": {"namespace": "shop"}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let node = Resolver {
            servers: vec!["192.0.2.53".parse().unwrap()],
            search: vec!["example.com".to_owned()],
            ndots: 1,
        };
        resolver(&pod, &node, cluster)
    }

    #[test]
    fn in_a_cluster_with_dns_its_names_come_before_the_node_s() {
        let servers = vec!["10.96.0.10".parse().unwrap()];
        let cluster = ClusterDns { servers: servers.clone(), domain: "cluster.local".to_owned() };
        let of = |spec| resolved_in(spec, Some(&cluster));

        let first = of(json!({"dnsPolicy": "ClusterFirst"}));

        assert_eq!((first.servers, first.ndots), (servers.clone(), 5));
        let search =
            ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.com"];
        assert_eq!(first.search, search);
        assert_ne!(of(json!({"dnsPolicy": "Default"})).servers, servers);
        assert_ne!(of(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true})).servers, servers);
        let with_host_net = json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true});
        assert_eq!(of(with_host_net).servers, servers);
        assert_eq!(of(json!({"dnsPolicy": "None"})).search, [""; 0]);
    }

    #[test]
    fn without_a_word_a_pod_resolves_as_its_node() {
        let resolver = resolved(json!({"dnsPolicy": "ClusterFirst"}));

        assert_eq!(resolver.servers, ["192.0.2.53".parse::<IpAddr>().unwrap()]);
        assert_eq!((resolver.search, resolver.ndots), (vec!["example.com".to_owned()], 1));
    }

    #[test]
    fn a_config_adds_to_the_policys_resolver_and_replaces_under_none() {
        let config = json!({
            "nameservers": ["192.0.2.53", "192.0.2.1"], "searches": ["a.test"],
            "options": [{"name": "ndots", "value": "5"}, {"name": "edns0"}]
        });

        let added = resolved(json!({"dnsPolicy": "Default", "dnsConfig": config}));
        let alone = resolved(json!({"dnsPolicy": "None", "dnsConfig": config}));

        assert_eq!((added.servers.len(), added.search.len(), added.ndots), (2, 2, 5));
        assert_eq!((alone.servers.len(), alone.search), (2, vec!["a.test".to_owned()]));
    }
}
