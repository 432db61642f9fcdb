//! A node of a test's own in the tests' cluster.
//!
//! Absent: the machine it stands for, which is this one for all of them; their pods' addresses differ.

use copepod_tests::cluster::identity::Identity;
pub(crate) use copepod_tests::cluster::member::{Running, address, approve_serving, text};
use copepod_tests::cluster::{Cluster, shared};
use copepod_tests::node::{Node as OurNode, is_ready};
use copepod_tests::wait::until_it_is;
use serde_json::{Value, json};

/// A node of a cluster, whose pods say by a node selector that they are its.
pub(crate) struct Joined<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) name: String,
    /// A namespace of the test's own, named as the node.
    pub(crate) node: OurNode,
    running: Option<Running>,
}

impl Joined<'static> {
    /// Starts a node of the shared cluster that has these guests' images, and waits until it is ready.
    pub(crate) fn start(name: &str, guests: &[&str]) -> Self {
        let node = OurNode::new();
        node.load(guests);
        Self::start_in(shared(), node, name, &[])
    }
}

impl<'a> Joined<'a> {
    /// Starts this node in a cluster, and waits until it is ready.
    pub(crate) fn start_in(cluster: &'a Cluster, node: OurNode, name: &str, more: &[&str]) -> Self {
        cluster.namespace(name);
        let mut joined = Self { cluster, name: name.to_owned(), node, running: None };
        joined.begin(more);
        joined
    }

    /// Starts the node's process, again where it was killed, and waits for nothing.
    pub(crate) fn launch(&mut self, more: &[&str]) {
        let kubeconfig =
            self.cluster.kubeconfig(&Identity::node(&self.name)).expect("a kubeconfig");
        let arguments = [
            "--kubeconfig",
            text(&kubeconfig),
            "--node-name",
            &self.name,
            // The machine of the tests may really have little room left.
            "--eviction-hard",
            "nodefs.available<1%,nodefs.inodesFree<1%",
        ];
        self.running = Some(Running::start(&self.node, &[&arguments, more].concat()));
    }

    /// Starts the node's process, again where it was killed, and waits until the cluster takes it for ready.
    pub(crate) fn begin(&mut self, more: &[&str]) {
        self.launch(more);
        let get = || self.get("node", &self.name);
        until_it_is("the node to be ready", get, is_ready, |node| node["status"].to_string());
    }

    /// Approves the certificate that the kubelet's API asks for, as an administrator does.
    pub(crate) fn approve_serving(&self) {
        approve_serving(self.cluster, &self.node, &self.name);
    }

    /// Kills the node's process; its pods go on.
    pub(crate) fn kill(&mut self) {
        self.running = None;
    }

    /// Ends the node's process by SIGTERM, which it alone gets; its pods go on.
    pub(crate) fn terminate(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.terminate();
        }
    }

    pub(crate) fn log(&self) -> String {
        self.running.as_ref().map(Running::log).unwrap_or_default()
    }

    /// An object as it is now; null where there is none.
    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        let told = self.cluster.kubectl(&[
            "--namespace",
            &self.name,
            "get",
            kind,
            name,
            "--output",
            "json",
        ]);
        serde_json::from_str(&told.stdout).unwrap_or_default()
    }

    /// All pods of the test.
    pub(crate) fn pods(&self) -> Vec<Value> {
        let told = self.kubectl(&["get", "pods", "--output", "json"]);
        let list: Value = serde_json::from_str(&told).expect("JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// kubectl in the test's namespace; it must succeed.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.ok(&[&["--namespace", &self.name], arguments].concat())
    }

    /// Applies objects in the test's namespace; pods among them, and those of templates, are this node's.
    pub(crate) fn apply(&self, objects: &[Value]) {
        self.apply_in(&self.name, objects);
    }

    /// The same in another namespace.
    pub(crate) fn apply_in(&self, namespace: &str, objects: &[Value]) {
        let here = |mut object: Value| {
            object["metadata"]["namespace"] = json!(namespace);
            let spec = match object["kind"].as_str() {
                Some("Pod") => Some(&mut object["spec"]),
                Some("Deployment" | "StatefulSet" | "Job" | "DaemonSet") => {
                    Some(&mut object["spec"]["template"]["spec"])
                }
                _ => None,
            };
            if let Some(spec) = spec {
                spec["nodeSelector"] = json!({ "kubernetes.io/hostname": self.name });
            }
            object
        };
        self.cluster.apply(&objects.iter().cloned().map(here).collect::<Vec<_>>());
    }

    /// Waits until a pod is as `condition` says; the pod.
    pub(crate) fn wait(&self, pod: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        until_it_is(
            &format!("pod {pod} to be {what}"),
            || self.get("pod", pod),
            condition,
            |pod| format!("{}\n{}", pod["status"], self.log()),
        )
    }

    /// Waits until so many pods of the test are ready; they.
    pub(crate) fn wait_ready(&self, count: usize) -> Vec<Value> {
        until_it_is(
            &format!("{count} pods to be ready"),
            || self.pods(),
            |pods| pods.len() == count && pods.iter().all(is_ready),
            |pods| {
                let statuses: Vec<_> = pods.iter().map(|pod| pod["status"].to_string()).collect();
                format!("{}\n{}", statuses.join("\n"), self.log())
            },
        )
    }

    /// Refusals that the API server gave the node; but of reading what a pod refers to, as the API server's authorizer may learn of the
    /// pod after the node does (kubelet.md C9), and the node asks again.
    pub(crate) fn denials(&self) -> Vec<String> {
        let user = format!("system:node:{}", self.name);
        let told = self.cluster.denials(&user);
        let is_early = |verb: &str, of: &str| match verb {
            "get" => of == "configmaps" || of == "secrets",
            _ => verb == "create" && of == "serviceaccounts/token",
        };
        told.iter()
            .filter(|it| !is_early(it.verb(), &it.resource()))
            .map(|it| format!("{} {} {}", it.verb(), it.resource(), it.name()))
            .collect()
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", &self.name, "--wait=false"];
        self.cluster.kubectl(&delete);
        self.cluster.kubectl(&["delete", "node", &self.name, "--wait=false"]);
        self.running = None;
    }
}
