//! The variables by which containers find Services, as Docker links once named them (kubelet.md E3).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};

/// The variables of the Services that a pod sees: the API server's, and those of its own namespace unless `enableServiceLinks` is
/// false. A Service without an address of its own has none.
pub fn service_variables<'a>(
    pod: &Pod,
    services: impl IntoIterator<Item = &'a Service>,
) -> Vec<(String, String)> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    // Of two of one name the namespace's own wins over the API server's.
    let mut seen: BTreeMap<&str, (bool, &Service)> = BTreeMap::new();
    for service in services {
        let Some(name) = service.metadata.name.as_deref() else { continue };
        let from = service.metadata.namespace.as_deref();
        let own = links && from == Some(namespace);
        let is_api_server = from == Some("default") && name == "kubernetes";
        let replaces = seen.get(name).is_none_or(|(is_own, _)| own || !is_own);
        if (own || is_api_server) && address(service).is_some() && replaces {
            seen.insert(name, (own, service));
        }
    }
    seen.iter().flat_map(|(name, (_, service))| variables(name, service)).collect()
}

fn address(service: &Service) -> Option<&str> {
    let spec = service.spec.as_ref()?;
    let is_address = |ip: &&str| !ip.is_empty() && *ip != "None";
    spec.cluster_ip.as_deref().filter(is_address)
}

fn ports(service: &Service) -> &[ServicePort] {
    service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default()
}

fn variables(name: &str, service: &Service) -> Vec<(String, String)> {
    let (Some(ip), [first, ..]) = (address(service), ports(service)) else { return Vec::new() };
    let prefix = upper(name);
    let mut all = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.to_owned()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in ports(service) {
        if let Some(named) = port.name.as_deref().filter(|it| !it.is_empty()) {
            all.push((format!("{prefix}_SERVICE_PORT_{}", upper(named)), port.port.to_string()));
        }
    }
    // A host of IPv6 is in brackets where a port follows it.
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let url = |port: &ServicePort| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
        format!("{protocol}://{host}:{}", port.port)
    };
    all.push((format!("{prefix}_PORT"), url(first)));
    for port in ports(service) {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let each = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        all.push((each.clone(), url(port)));
        all.push((format!("{each}_PROTO"), protocol.to_lowercase()));
        all.push((format!("{each}_PORT"), port.port.to_string()));
        all.push((format!("{each}_ADDR"), ip.to_owned()));
    }
    all
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(namespace: &str, name: &str, ip: &str) -> Service {
        serde_json::from_value(json!({
            "metadata": { "namespace": namespace, "name": name },
            "spec": { "clusterIP": ip, "ports": [
                { "name": "web-ui", "port": 80, "protocol": "TCP" },
                { "name": "dns", "port": 53, "protocol": "UDP" },
            ] },
        }))
        .expect("a service")
    }

    fn pod(links: Option<bool>) -> Pod {
        let spec = json!({ "containers": [], "enableServiceLinks": links });
        serde_json::from_value(json!({ "metadata": { "namespace": "shop" }, "spec": spec }))
            .expect("a pod")
    }

    fn names(pod: &Pod, services: &[Service]) -> Vec<String> {
        let hosts = service_variables(pod, services).into_iter();
        hosts.map(|(name, _)| name).filter(|name| name.ends_with("_HOST")).collect()
    }

    #[test]
    fn a_service_is_told_by_the_variables_of_a_docker_link() {
        let found = service_variables(&pod(None), &[service("shop", "my-db", "10.96.0.7")]);

        let wanted = [
            ("MY_DB_SERVICE_HOST", "10.96.0.7"),
            ("MY_DB_SERVICE_PORT", "80"),
            ("MY_DB_SERVICE_PORT_WEB_UI", "80"),
            ("MY_DB_SERVICE_PORT_DNS", "53"),
            ("MY_DB_PORT", "tcp://10.96.0.7:80"),
            ("MY_DB_PORT_80_TCP", "tcp://10.96.0.7:80"),
            ("MY_DB_PORT_80_TCP_PROTO", "tcp"),
            ("MY_DB_PORT_80_TCP_PORT", "80"),
            ("MY_DB_PORT_80_TCP_ADDR", "10.96.0.7"),
            ("MY_DB_PORT_53_UDP", "udp://10.96.0.7:53"),
            ("MY_DB_PORT_53_UDP_PROTO", "udp"),
            ("MY_DB_PORT_53_UDP_PORT", "53"),
            ("MY_DB_PORT_53_UDP_ADDR", "10.96.0.7"),
        ];
        let found: Vec<_> = found.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_pod_sees_its_namespaces_services_and_the_api_servers_and_no_headless_one() {
        let all = [
            service("default", "kubernetes", "10.96.0.1"),
            service("default", "other", "10.96.0.2"),
            service("shop", "db", "10.96.0.3"),
            service("shop", "headless", "None"),
        ];

        assert_eq!(names(&pod(None), &all), ["DB_SERVICE_HOST", "KUBERNETES_SERVICE_HOST"]);
        assert_eq!(names(&pod(Some(false)), &all), ["KUBERNETES_SERVICE_HOST"]);
    }

    #[test]
    fn a_namespaces_own_service_of_the_api_servers_name_wins() {
        let all = [
            service("shop", "kubernetes", "10.96.0.9"),
            service("default", "kubernetes", "10.96.0.1"),
        ];

        let found = service_variables(&pod(None), &all);

        assert!(found.contains(&("KUBERNETES_SERVICE_HOST".into(), "10.96.0.9".into())));
    }
}
