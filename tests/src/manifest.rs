//! Writing the manifests of test pods.
//!
//! Absent: YAML that a person would write; that is in examples/. This is JSON, which every YAML reader takes.

use serde_json::{Value, json};

/// The image reference under which a guest of examples/ is loaded.
pub fn image(guest: &str) -> String {
    format!("localhost:5000/{guest}:1")
}

/// The manifest of an example.
pub fn example(name: &str) -> String {
    format!("{}/../examples/{name}/pod.yaml", env!("CARGO_MANIFEST_DIR"))
}

/// A pod of these containers, which are not started again.
pub fn pod(name: &str, containers: impl IntoIterator<Item = Value>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": { "restartPolicy": "Never", "containers": containers.into_iter().collect::<Vec<_>>() },
    })
}

/// A container that runs a guest.
pub fn container(name: &str, guest: &str) -> Value {
    json!({
        "name": name,
        "image": image(guest),
        "resources": { "limits": { "memory": "64Mi" } },
    })
}

/// A container that runs the probe with this script.
pub fn probe(script: &[&str]) -> Value {
    let mut container = container("probe", "probe");
    container["args"] = json!(script);
    container
}

/// The same value with one more field, named by a JSON pointer whose parents exist or are made.
pub trait With {
    /// Sets the field.
    #[must_use]
    fn with(self, pointer: &str, value: Value) -> Self;
}

impl With for Value {
    fn with(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self;
        for key in pointer.trim_start_matches('/').split('/') {
            place = match key.parse::<usize>() {
                Ok(index) if place.is_array() => &mut place[index],
                _ => &mut place[key],
            };
        }
        *place = value;
        self
    }
}

/// Several objects as one manifest.
pub fn all(objects: &[Value]) -> String {
    objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n")
}
