//! What the programs of a control plane are told: a table from settings and places to flags.
//!
//! Absent: anything that acts. The files that the flags name are written by [`super`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// The programs of a control plane, in the order in which they start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `etcd`.
    Etcd,
    /// `kube-apiserver`.
    ApiServer,
    /// `kube-controller-manager`.
    ControllerManager,
    /// `kube-scheduler`.
    Scheduler,
}

impl Part {
    pub(super) const ALL: [Self; 4] =
        [Self::Etcd, Self::ApiServer, Self::ControllerManager, Self::Scheduler];

    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }
}

/// What a cluster may have different from others.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the API server listens. Pods in networks of their own reach it only where this is no loopback address.
    pub address: IpAddr,
    /// The ranges of pods' addresses, one for each family, each with the number of leading bits of a node's share of it.
    pub pod_cidrs: Vec<(String, u8)>,
    /// The ranges of services' addresses, one for each family.
    pub service_cidrs: Vec<String>,
    /// More flags of a program. Where one was given already, the last counts.
    pub flags: Vec<(Part, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
            pod_cidrs: vec![("10.244.0.0/16".to_owned(), 24)],
            service_cidrs: vec!["10.96.0.0/16".to_owned()],
            flags: Vec::new(),
        }
    }
}

impl Settings {
    /// A cluster whose pods and services have addresses of both families, IPv4 first.
    pub fn dual_stack() -> Self {
        let (v4, v6) = (Self::default(), Self::ipv6());
        Self {
            pod_cidrs: [v4.pod_cidrs, v6.pod_cidrs].concat(),
            service_cidrs: [v4.service_cidrs, v6.service_cidrs].concat(),
            ..Self::default()
        }
    }

    /// A cluster of IPv6 alone.
    pub fn ipv6() -> Self {
        Self {
            address: Ipv6Addr::LOCALHOST.into(),
            pod_cidrs: vec![("fd00:10::/48".to_owned(), 64)],
            service_cidrs: vec!["fd00:20::/108".to_owned()],
            ..Self::default()
        }
    }

    /// The first address of each range of services, by which pods reach the API server.
    pub(super) fn service_addresses(&self) -> Vec<IpAddr> {
        let first = |cidr: &String| {
            let network: IpAddr = cidr.split_once('/')?.0.parse().ok()?;
            Some(match network {
                IpAddr::V4(it) => IpAddr::V4((it.to_bits() | 1).into()),
                IpAddr::V6(it) => IpAddr::V6((it.to_bits() | 1).into()),
            })
        };
        self.service_cidrs.iter().filter_map(first).collect()
    }

    /// The arguments of a program, where the cluster's files are in `folder` and its API server is `server`.
    pub(super) fn arguments(&self, part: Part, folder: &Path, server: SocketAddr) -> Vec<String> {
        let at = |name: &str| folder.join(name).display().to_string();
        let mut flags: Vec<(&str, String)> = match part {
            Part::Etcd => etcd(&at),
            Part::ApiServer => self.api_server(&at, server),
            Part::ControllerManager => self.controller_manager(&at),
            Part::Scheduler => scheduler(&at),
        };
        if part == Part::ApiServer && self.address.is_loopback() {
            // A service cannot lead to a loopback address, and the API server would try to write so again and again.
            flags.push(("endpoint-reconciler-type", "none".to_owned()));
        }
        let own = flags.into_iter().map(|(name, value)| format!("--{name}={value}"));
        let more = self.flags.iter().filter(|(of, _)| *of == part).map(|(_, flag)| flag.clone());
        own.chain(more).collect()
    }

    fn api_server(
        &self,
        at: &dyn Fn(&str) -> String,
        server: SocketAddr,
    ) -> Vec<(&'static str, String)> {
        vec![
            ("etcd-servers", format!("unix://{}", at("etcd.sock"))),
            ("bind-address", server.ip().to_string()),
            ("advertise-address", server.ip().to_string()),
            ("secure-port", server.port().to_string()),
            ("tls-cert-file", at("server.crt")),
            ("tls-private-key-file", at("server.key")),
            ("client-ca-file", at("ca.crt")),
            ("enable-bootstrap-token-auth", "true".to_owned()),
            ("authorization-mode", "Node,RBAC".to_owned()),
            ("enable-admission-plugins", "NodeRestriction".to_owned()),
            ("allow-privileged", "true".to_owned()),
            ("service-cluster-ip-range", self.service_cidrs.join(",")),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".to_owned()),
            ("service-account-key-file", at("service-accounts.crt")),
            ("service-account-signing-key-file", at("service-accounts.key")),
            ("kubelet-certificate-authority", at("ca.crt")),
            ("kubelet-client-certificate", at("kubelet-client.crt")),
            ("kubelet-client-key", at("kubelet-client.key")),
            ("kubelet-preferred-address-types", "InternalIP,Hostname".to_owned()),
            // Servers of further APIs, such as metrics-server, which are reached as pods are: no kube-proxy is on this machine.
            ("requestheader-client-ca-file", at("front-proxy-ca.crt")),
            ("requestheader-allowed-names", "front-proxy-client".to_owned()),
            ("requestheader-username-headers", "X-Remote-User".to_owned()),
            ("requestheader-group-headers", "X-Remote-Group".to_owned()),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-".to_owned()),
            ("proxy-client-cert-file", at("front-proxy-client.crt")),
            ("proxy-client-key-file", at("front-proxy-client.key")),
            ("enable-aggregator-routing", "true".to_owned()),
            ("audit-policy-file", at("audit-policy.json")),
            ("audit-log-path", at("audit.log")),
            // A request's line is in the file before the request is over, and the file stays one.
            ("audit-log-mode", "blocking".to_owned()),
            ("audit-log-maxsize", "4096".to_owned()),
        ]
    }

    fn controller_manager(&self, at: &dyn Fn(&str) -> String) -> Vec<(&'static str, String)> {
        let cidrs: Vec<&str> = self.pod_cidrs.iter().map(|(cidr, _)| cidr.as_str()).collect();
        let mut flags = vec![
            ("kubeconfig", at("controller-manager.kubeconfig")),
            // It is alone, and nobody asks it.
            ("leader-elect", "false".to_owned()),
            ("secure-port", "0".to_owned()),
            ("controllers", "*,bootstrapsigner,tokencleaner".to_owned()),
            ("use-service-account-credentials", "true".to_owned()),
            ("service-account-private-key-file", at("service-accounts.key")),
            ("root-ca-file", at("ca.crt")),
            ("cluster-signing-cert-file", at("ca.crt")),
            ("cluster-signing-key-file", at("ca.key")),
            ("allocate-node-cidrs", "true".to_owned()),
            ("cluster-cidr", cidrs.join(",")),
            ("service-cluster-ip-range", self.service_cidrs.join(",")),
            // By default 20 requests in a second, which are soon used up by a few tests at a time.
            ("kube-api-qps", "500".to_owned()),
            ("kube-api-burst", "1000".to_owned()),
        ];
        for (cidr, bits) in &self.pod_cidrs {
            let family = if cidr.contains(':') {
                "node-cidr-mask-size-ipv6"
            } else {
                "node-cidr-mask-size-ipv4"
            };
            flags.push((family, bits.to_string()));
        }
        flags
    }
}

fn etcd(at: &dyn Fn(&str) -> String) -> Vec<(&'static str, String)> {
    vec![
        ("data-dir", at("etcd")),
        // A socket in the cluster's folder, where no other user of the machine gets in, and no port can be taken.
        ("listen-client-urls", format!("unix://{}", at("etcd.sock"))),
        // It has no peers and is told to nobody, but etcd insists on URLs for both. A port 0 is whichever is free.
        ("advertise-client-urls", "http://127.0.0.1:0".to_owned()),
        ("listen-peer-urls", "http://127.0.0.1:0".to_owned()),
        ("log-level", "warn".to_owned()),
        // What it holds is of no worth once the machine is off.
        ("unsafe-no-fsync", "true".to_owned()),
    ]
}

fn scheduler(at: &dyn Fn(&str) -> String) -> Vec<(&'static str, String)> {
    vec![
        ("kubeconfig", at("scheduler.kubeconfig")),
        ("leader-elect", "false".to_owned()),
        ("secure-port", "0".to_owned()),
        ("kube-api-qps", "500".to_owned()),
        ("kube-api-burst", "1000".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(settings: &Settings, part: Part) -> Vec<String> {
        settings.arguments(part, Path::new("/cluster"), SocketAddr::new(settings.address, 6443))
    }

    #[test]
    fn a_cluster_of_two_families_has_a_range_and_a_node_s_share_of_each() {
        let settings = Settings::dual_stack();

        let flags = arguments(&settings, Part::ControllerManager);

        for flag in [
            "--cluster-cidr=10.244.0.0/16,fd00:10::/48",
            "--node-cidr-mask-size-ipv4=24",
            "--node-cidr-mask-size-ipv6=64",
            "--service-cluster-ip-range=10.96.0.0/16,fd00:20::/108",
        ] {
            assert!(flags.iter().any(|it| it == flag), "{flag}: {flags:?}");
        }
        let addresses: Vec<String> =
            settings.service_addresses().iter().map(IpAddr::to_string).collect();
        assert_eq!(addresses, ["10.96.0.1", "fd00:20::1"]);
    }

    #[test]
    fn a_flag_of_a_test_s_own_comes_last_and_to_its_program_alone() {
        let flag = "--v=4".to_owned();
        let settings =
            Settings { flags: vec![(Part::Scheduler, flag.clone())], ..Settings::default() };

        for part in Part::ALL {
            let last = arguments(&settings, part).pop();
            assert_eq!(last == Some(flag.clone()), part == Part::Scheduler, "{part:?}");
        }
    }
}
