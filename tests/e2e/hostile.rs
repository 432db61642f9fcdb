//! Hostile guests, manifests and registries. Each test's name begins with its number in the list of the project's security
//! reference: W for a guest, P for a manifest, R for a registry.
//!
//! Every case runs beside a [`Canary`], which must not notice: a pod in the same domain and one in another answer as before,
//! nobody was started again, and the agent is the same process. Absent: hostile requests to our own servers.

mod guests;
mod manifests;
mod registries;

use copepod_tests::http;
use copepod_tests::manifest::{With, container, pod};
use copepod_tests::node::{Node, status};
use serde_json::json;

/// A node with two pods that must not notice what happens beside them.
struct Canary {
    node: Node,
    agent: Option<u32>,
}

/// The canaries' pods: one in the domain where the hostile case runs, one in another.
const CANARIES: [(&str, &str); 2] = [("canary-near", "default"), ("canary-far", "elsewhere")];

impl Canary {
    fn new() -> Self {
        let node = Node::new();
        node.load(&["hello-http", "probe", "probe-p1"]);
        let canaries = CANARIES.map(|(name, namespace)| {
            pod(name, [container("hello", "hello-http")])
                .with("/metadata/namespace", json!(namespace))
        });
        node.start(&canaries);
        for (name, _) in CANARIES {
            node.wait_ready(name);
        }
        let agent = node.agent();
        Self { node, agent }
    }

    /// # Panics
    /// Where a canary noticed something.
    fn is_well(&self) {
        for (name, _) in CANARIES {
            let canary = self.node.pod(name).expect("the canary is there");
            assert_eq!(status(&canary, "hello")["restartCount"], 0, "{name} was started again");
            let answer = http::get(self.node.address(name, 8080), "/").expect("the canary answers");
            assert_eq!(answer.text(), "hello from copepod\n");
        }
        assert_eq!(self.node.agent(), self.agent, "the agent is another process");
    }
}
