//! How a pod resolves names: the node's resolver, and what `dnsPolicy` and `dnsConfig` make of it.
//!
//! Absent: reading the node's `/etc/resolv.conf`, a cluster's DNS, and asking anybody.

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

/// The resolver of a pod on a node with this resolver.
///
/// `ClusterFirst` without a cluster DNS means the node's resolver, as under a kubelet.
pub fn resolver(pod: &Pod, node: &Resolver) -> Resolver {
    let spec = pod.spec.as_ref();
    let mut resolver = match spec.and_then(|spec| spec.dns_policy.as_deref()) {
        Some("None") => Resolver { servers: Vec::new(), search: Vec::new(), ndots: 1 },
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
        let mut spec = spec;
        spec["containers"] = json!([]);
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        let node = Resolver {
            servers: vec!["192.0.2.53".parse().unwrap()],
            search: vec!["example.com".to_owned()],
            ndots: 1,
        };
        resolver(&pod, &node)
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
