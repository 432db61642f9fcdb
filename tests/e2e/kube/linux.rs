//! Pods that are not meant for this node and come to it all the same: images of Linux programs, from controllers that make a new pod
//! wherever one fails. They are explained, and neither the registry nor the API server is asked again and again.
//!
//! Absent: keeping such pods off, which the node's label `kubernetes.io/os` and `deploy/`'s policies do.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use copepod_tests::cluster::audit::Event;
use copepod_tests::manifest::With;
use copepod_tests::registry::served::{Image, serve};
use copepod_tests::wait::until_it_is;
use serde_json::{Value, json};

use super::running::Joined;
use super::watched::{Watched, uid};

/// As issue 4 has it.
const WATCHED_FOR: Duration = Duration::from_secs(60);

/// After this all has been said that there is to say.
const SAID: Duration = Duration::from_secs(20);

/// A DaemonSet's pods that fail are made anew after 1 s, 2 s, 4 s and so on: 6 in a minute, and the one that was there. One more is for
/// a slow machine, on which the minute is longer.
const MOST_FAILED: usize = 8;

fn made_by(kind: &str, name: &str, spec: Value) -> Value {
    let labels = json!({ "app": name });
    json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec },
        },
    })
}

/// What a container waits for: its reason and message.
fn waits(pod: &Value) -> (String, String) {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let word = |key: &str| waiting[key].as_str().unwrap_or_default().to_owned();
    (word("reason"), word("message"))
}

/// What a node wrote into the API: not that it lives, and not what it only asked.
fn writes(node: &Joined<'_>) -> Vec<String> {
    let user = format!("system:node:{}", node.name);
    let is_write = |it: &Event| {
        matches!(it.verb(), "create" | "update" | "patch" | "delete")
            && matches!(it.resource().as_str(), "pods" | "pods/status" | "events")
    };
    let all = node.cluster.audit().into_iter().filter(|it| it.user() == user && is_write(it));
    all.map(|it| format!("{} {} {}", it.verb(), it.resource(), it.name())).collect()
}

#[test]
fn linux_images_of_controllers_are_explained_and_neither_pulled_nor_replaced_again_and_again() {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let registry = {
        let (image, asked) = (Image::linux(), asked.clone());
        serve(move |path| {
            asked.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
            match path.contains("/everywhere/") {
                true => image.answer_by_index(path, "linux", "amd64"),
                false => image.answer(path),
            }
        })
    };
    let requests = || asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let node = Joined::start("linux", &[]);
    let watched = Watched::start(node.cluster, &node.name);
    let of = |name: &str| {
        let all = watched.by_pod().into_values().filter_map(|mut row| row.pop());
        all.filter(|it| it.pod["metadata"]["labels"]["app"] == name).collect::<Vec<_>>()
    };
    let container = |image: &str| json!({ "name": "c", "image": format!("{registry}/{image}") });

    let begin = Instant::now();
    let everywhere = json!([{ "operator": "Exists" }]);
    let web = made_by("Deployment", "web", json!({ "containers": [container("web:1")] }));
    let agent = json!({ "containers": [container("everywhere/agent:1")] });
    // As those of network plugins are.
    let mut proxy = container("everywhere/proxy:1");
    proxy["securityContext"] = json!({ "privileged": true });
    let proxy = json!({ "hostPID": true, "containers": [proxy] });
    node.apply(&[
        web.with("/spec/replicas", json!(3)),
        made_by("DaemonSet", "agent", agent.with("/tolerations", everywhere.clone())),
        made_by("DaemonSet", "proxy", proxy.with("/tolerations", everywhere)),
    ]);
    until_it_is(
        "each pod to be explained",
        || (of("web"), of("agent"), of("proxy")),
        |(web, agent, proxy)| {
            let is_explained = |pod: &Value| waits(pod).1.contains("inux");
            web.len() == 3
                && agent.len() == 1
                && web.iter().chain(agent).all(|it| is_explained(&it.pod))
                && proxy.iter().any(|it| it.pod["status"]["phase"] == "Failed")
        },
        |pods| format!("{pods:?}\n{}", node.log()),
    );
    std::thread::sleep(SAID.saturating_sub(begin.elapsed()));
    let (pulled, written) = (requests(), writes(&node));
    std::thread::sleep(WATCHED_FOR.saturating_sub(begin.elapsed()));

    let (web, agent, proxy) = (of("web"), of("agent"), of("proxy"));
    assert_eq!((web.len(), agent.len()), (3, 1), "{web:?} {agent:?}");
    for it in web.iter().chain(&agent) {
        let (reason, message) = waits(&it.pod);
        assert_eq!(it.pod["status"]["phase"], "Pending");
        assert_eq!(reason, "ErrImagePull", "{message}");
        assert!(message.contains("linux/amd64"), "{message}");
    }
    assert!(proxy.len() <= MOST_FAILED, "{} pods", proxy.len());
    for it in &proxy {
        assert_eq!(it.pod["status"]["phase"], "Failed", "{}", it.pod["status"]);
        let message = it.pod["status"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("spec.hostPID"), "{message}");
    }
    assert_eq!(requests(), pulled, "nothing is asked of the registry any more");
    let of_four = |all: &[String]| {
        all.iter().filter(|it| !it.contains("proxy-")).cloned().collect::<Vec<_>>()
    };
    // For each of the four: what waits and why, and some events.
    assert!(of_four(&written).len() <= 4 * 8, "{:#?}", of_four(&written));
    assert_eq!(of_four(&writes(&node)), of_four(&written), "all has been said");
    let blobs =
        pulled.iter().filter(|path| path.contains("/blobs/") || path.contains("/manifests/"));
    assert!(blobs.count() <= 4 * 6, "{pulled:#?}");
    assert_eq!(watched.untruths(), Vec::<String>::new());
    let told = node.kubectl(&["get", "events", "--output", "json"]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let warned = |pod: &Value| {
        told["items"].as_array().is_some_and(|all| {
            all.iter().any(|it| {
                it["involvedObject"]["uid"] == uid(pod).as_str() && it["type"] == "Warning"
            })
        })
    };
    assert!(web.iter().chain(&agent).all(|it| warned(&it.pod)), "{told}");

    node.kubectl(&["delete", "deployment/web", "daemonset/agent", "daemonset/proxy"]);
    until_it_is("no pod", || node.pods(), Vec::is_empty, |pods| format!("{pods:?}"));
    assert_eq!(node.denials(), Vec::<String>::new());
}
