//! How a node joins with a bootstrap token: what kubeadm puts into a new cluster for it, and no more.
//!
//! Absent: the ConfigMap `cluster-info`, by which a node would find the cluster; a kubeconfig says where it is.

use serde_json::{Value, json};

/// The token's two parts, of the lengths that Kubernetes asks for.
const ID: &str = "tests0";
const SECRET: &str = "0123456789abcdef";

/// The bearer token.
pub(super) fn token() -> String {
    format!("{ID}.{SECRET}")
}

/// The token, and what its users, and later the nodes, may ask for.
pub(super) fn objects() -> [Value; 4] {
    let token = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": format!("bootstrap-token-{ID}"), "namespace": "kube-system" },
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": ID,
            "token-secret": SECRET,
            "usage-bootstrap-authentication": "true",
        },
    });
    let requests = "system:certificates.k8s.io:certificatesigningrequests";
    [
        token,
        binding("nodes-may-ask", "system:node-bootstrapper", "system:bootstrappers"),
        binding("nodes-may-join", &format!("{requests}:nodeclient"), "system:bootstrappers"),
        binding("nodes-may-stay", &format!("{requests}:selfnodeclient"), "system:nodes"),
    ]
}

fn binding(name: &str, role: &str, group: &str) -> Value {
    let api = "rbac.authorization.k8s.io";
    json!({
        "apiVersion": format!("{api}/v1"),
        "kind": "ClusterRoleBinding",
        "metadata": { "name": name },
        "roleRef": { "apiGroup": api, "kind": "ClusterRole", "name": role },
        "subjects": [{ "apiGroup": api, "kind": "Group", "name": group }],
    })
}
