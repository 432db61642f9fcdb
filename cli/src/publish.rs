//! Which pod a `--publish` means: pure.

use copepod_agent::api::Publish;
use k8s_openapi::api::core::v1::Pod;

use crate::args::PublishArg;

/// What to ask the agent for.
///
/// # Errors
/// A sentence where the pod that is meant is not clear.
pub(crate) fn resolve(wishes: &[PublishArg], pods: &[&Pod]) -> Result<Vec<Publish>, String> {
    wishes
        .iter()
        .map(|wish| {
            Ok(Publish {
                pod: pod_of(wish, pods)?,
                host_ip: wish.address,
                host_port: wish.host,
                pod_port: wish.port,
            })
        })
        .collect()
}

fn pod_of(wish: &PublishArg, pods: &[&Pod]) -> Result<usize, String> {
    let port = wish.port;
    if let Some(name) = &wish.pod {
        let found = pods.iter().position(|pod| pod.metadata.name.as_deref() == Some(name));
        return found.ok_or_else(|| format!("--publish {name}=…: there is no pod {name} here"));
    }
    if let [_] = pods {
        return Ok(0);
    }
    let declaring: Vec<_> = (0..pods.len()).filter(|index| declares(pods[*index], port)).collect();
    match declaring.as_slice() {
        [only] => Ok(*only),
        [] => Err(format!(
            "--publish {port}: no pod declares containerPort {port}; write POD={port} to say which is meant"
        )),
        _ => Err(format!(
            "--publish {port}: several pods declare containerPort {port}; write POD={port} to say which is meant"
        )),
    }
}

fn declares(pod: &Pod, port: u16) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .any(|it| it.container_port == i32::from(port))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ports: &[u16]) -> Pod {
        let ports: Vec<_> = ports.iter().map(|port| json!({"containerPort": port})).collect();
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "app", "ports": ports}]},
        }))
        .expect("a pod")
    }

    fn meant(wish: &str, pods: &[&Pod]) -> Result<usize, String> {
        let wish = wish.parse().expect("a publish");
        resolve(&[wish], pods).map(|publish| publish[0].pod)
    }

    #[test]
    fn the_only_pod_the_declaring_pod_or_the_named_pod_is_meant() {
        let (a, b, c) = (pod("a", &[80]), pod("b", &[81, 82]), pod("c", &[82]));

        assert_eq!(meant("8080:9", &[&a]), Ok(0));
        assert_eq!(meant("8080:81", &[&a, &b]), Ok(1));
        assert_eq!(meant("c=8080:82", &[&a, &b, &c]), Ok(2));
        assert!(meant("8080:82", &[&a, &b, &c]).expect_err("two").contains("several"));
        assert!(meant("8080:9", &[&a, &b]).expect_err("none").contains("no pod declares"));
        assert!(meant("x=8080:9", &[&a]).expect_err("none").contains("no pod x"));
    }
}
