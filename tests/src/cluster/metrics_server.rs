//! metrics-server as a program beside the control plane, for `kubectl top` and autoscaling by CPU and memory.
//!
//! It is reached by a name of this machine and not as a pod is, as it runs in none. Absent: building it, as
//! `cargo xtask kube metrics-server` does.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::Cluster;
use super::component::Component;
use super::identity::Identity;
use super::settings::Part;

const USER: &str = "system:metrics-server";
const NAMESPACE: &str = "kube-system";
const NAME: &str = "metrics-server";
const RBAC: &str = "rbac.authorization.k8s.io";

/// A flag of the API server without which it looks for a pod of metrics-server's.
pub fn flag() -> (Part, String) {
    (Part::ApiServer, "--enable-aggregator-routing=false".to_owned())
}

impl Cluster {
    /// Starts this metrics-server, and has the API server ask it. The cluster needs [`flag`].
    ///
    /// # Errors
    /// Where it cannot be started. Whether it is asked with success, tells `kubectl top`; [`Cluster::check`] tells where it died.
    pub fn start_metrics_server(&self, program: &Path) -> Result<()> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let kubeconfig = self.kubeconfig(&Identity::user(USER, &[]))?;
        let service = format!("{NAME}.{NAMESPACE}.svc");
        let certified = self.authority.server(&[&service], &[])?;
        let at = |name: &str| self.folder().join(name).display().to_string();
        self.write("metrics-server.crt", certified.certificate)?;
        self.write("metrics-server.key", certified.key)?;
        self.apply(&objects(address, self.authority.certificate()));
        let kubeconfig = kubeconfig.display();
        let arguments = vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            format!("--bind-address={}", address.ip()),
            format!("--secure-port={}", address.port()),
            format!("--tls-cert-file={}", at("metrics-server.crt")),
            format!("--tls-private-key-file={}", at("metrics-server.key")),
            format!("--kubelet-certificate-authority={}", at("ca.crt")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            // Each node says on which.
            "--kubelet-use-node-status-port".to_owned(),
            // The shortest that it takes, and longer than a node may take to answer.
            "--metric-resolution=10s".to_owned(),
            "--kubelet-request-timeout=5s".to_owned(),
        ];
        let mut parts = self.parts();
        let mut component = Component::new(program.to_owned(), arguments, self.folder());
        component.start(&mut parts.guard)?;
        parts.components.push(component);
        Ok(())
    }
}

/// What it may read, and where the API server finds it.
fn objects(address: SocketAddr, authority: &str) -> Vec<Value> {
    use base64::Engine;
    let authority = base64::prelude::BASE64_STANDARD.encode(authority);
    let subject = json!([{ "apiGroup": RBAC, "kind": "User", "name": USER }]);
    let role = json!({
        "apiVersion": format!("{RBAC}/v1"),
        "kind": "ClusterRole",
        "metadata": { "name": USER },
        "rules": [
            { "apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"] },
            { "apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"] },
        ],
    });
    let binding = |name: &str, role: &str| {
        json!({
            "apiVersion": format!("{RBAC}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": { "name": name },
            "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": role },
            "subjects": subject,
        })
    };
    let reader = json!({
        "apiVersion": format!("{RBAC}/v1"),
        "kind": "RoleBinding",
        "metadata": { "name": "metrics-server-auth-reader", "namespace": NAMESPACE },
        "roleRef": { "apiGroup": RBAC, "kind": "Role", "name": "extension-apiserver-authentication-reader" },
        "subjects": subject,
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": NAME, "namespace": NAMESPACE },
        "spec": { "type": "ExternalName", "externalName": "localhost" },
    });
    let api = json!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": { "name": "v1beta1.metrics.k8s.io" },
        "spec": {
            "group": "metrics.k8s.io",
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "caBundle": authority,
            "service": { "name": NAME, "namespace": NAMESPACE, "port": address.port() },
        },
    });
    vec![
        role,
        binding(USER, USER),
        binding("metrics-server:system:auth-delegator", "system:auth-delegator"),
        reader,
        service,
        api,
    ]
}
