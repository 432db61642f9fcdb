//! The pages that are read.

use super::bench::{Bench, pod, running};
use copepod_agent::api::{ContainerUse, PodName};
use http::StatusCode;
use serde_json::{Value, json};

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[tokio::test]
async fn pods_are_listed_as_the_api_server_told_them_and_those_that_run_apart() {
    let bench = Bench::new().await;
    let mut idle = (*pod(json!({"waiting": {"reason": "ContainerCreating"}}), json!({}))).clone();
    idle.metadata.name = Some("idle".into());
    bench.pods.pods.lock().expect("no panic").push(idle.into());

    let (status, text) = bench.get("/pods").await;
    assert_eq!(status, StatusCode::OK);
    let list = parsed(&text);
    assert_eq!((list["kind"].as_str(), list["apiVersion"].as_str()), (Some("PodList"), Some("v1")));
    let names: Vec<_> = list["items"].as_array().expect("items").iter().collect();
    assert_eq!(names.len(), 2);
    assert_eq!(list["items"][0], serde_json::to_value(&*running()).expect("JSON"));

    let list = parsed(&bench.get("/runningpods/").await.1);
    assert_eq!(list["items"].as_array().expect("items").len(), 1);
    assert_eq!(list["items"][0]["metadata"]["uid"], "u-1");
    let containers = &list["items"][0]["spec"]["containers"];
    assert_eq!(containers[0]["name"], "app");
    assert_eq!(containers[0]["image"], "registry/app:1");
}

#[tokio::test]
async fn health_is_told_as_a_whole_and_check_by_check() {
    let bench = Bench::new().await;

    for path in ["/healthz", "/healthz/ping", "/healthz/log", "/healthz/syncloop"] {
        assert_eq!(bench.get(path).await, (StatusCode::OK, "ok".into()), "{path}");
    }
    assert_eq!(bench.get("/healthz/other").await.0, StatusCode::NOT_FOUND);
    *bench.pods.ill.lock().expect("no panic") = Some("no news for 3 min".into());

    for path in ["/healthz", "/healthz/syncloop"] {
        let (status, text) = bench.get(path).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(text.contains("[-]syncloop failed: no news for 3 min"), "{text}");
    }
    assert_eq!(bench.get("/healthz/ping").await.0, StatusCode::OK);
    assert_eq!(bench.get("/healthz?exclude=syncloop").await.0, StatusCode::OK);
}

#[tokio::test]
async fn use_is_told_to_metrics_server_and_in_the_summary() {
    let bench = Bench::new().await;
    let name = PodName { namespace: "default".into(), name: "web".into() };
    *bench.pods.uses.lock().expect("no panic") = vec![ContainerUse {
        pod: name,
        container: "app".into(),
        cpu_ns: 2_500_000_000,
        memory: 3 << 20,
        requests: 0,
        instances: 1,
    }];

    let (status, text) = bench.get("/metrics/resource").await;
    assert_eq!(status, StatusCode::OK);
    let of = r#"{container="app",namespace="default",pod="web"}"#;
    assert!(
        text.contains(&format!("container_cpu_usage_seconds_total{of} 2.500000000 ")),
        "{text}"
    );
    assert!(text.contains(&format!("container_memory_working_set_bytes{of} 3145728 ")), "{text}");
    let summary = parsed(&bench.get("/stats/summary").await.1);
    assert_eq!(summary["node"]["nodeName"], "worker");
    assert!(summary["node"]["fs"].is_object());
    let container = &summary["pods"][0]["containers"][0];
    assert_eq!(container["memory"]["workingSetBytes"], 3 << 20);
    let short = parsed(&bench.get("/stats/summary?only_cpu_and_memory=true").await.1);
    assert!(short["node"]["fs"].is_null());

    let own = bench.get("/metrics").await.1;
    assert!(own.contains("kubelet_running_pods 1\n"), "{own}");
    assert!(own.contains("kubelet_running_containers{container_state=\"running\"} 1\n"), "{own}");
    assert!(own.contains("kubelet_node_name{node=\"worker\"} 1\n"), "{own}");
    let counted = "kubelet_http_requests_total{method=\"GET\",path=\"stats\"} 2\n";
    assert!(own.contains(counted), "{own}");
}

#[tokio::test]
async fn the_configuration_is_shown() {
    let bench = Bench::new().await;

    let shown = parsed(&bench.get("/configz").await.1);

    assert_eq!(shown, json!({"kubeletconfig": {"maxPods": 110}}));
}

#[tokio::test]
async fn what_is_switched_off_and_what_is_not_there_is_said_as_upstream_says_it() {
    let bench = Bench::new().await;
    let mut client = bench.connect(None).await;

    for (method, path, status) in [
        ("POST", "/run/default/web/app?cmd=x", 405),
        ("GET", "/logs/", 405),
        ("GET", "/debug/pprof/heap", 405),
        ("GET", "/debug/flags/v", 405),
        ("POST", "/pods", 405),
        ("POST", "/containerLogs/default/web/app", 405),
        ("GET", "/", 404),
        ("GET", "/spec", 404),
        ("GET", "/exec/default/web", 404),
        ("GET", "/exec/default/none/app?command=x&output=1", 404),
        ("GET", "/exec/default/web/u-2/app?command=x&output=1", 404),
        ("GET", "/exec/default/web/none?command=x&output=1", 404),
        ("GET", "/portForward/default/web/u-2", 404),
        ("GET", "/exec/default/web/app?command=x", 400),
        ("GET", "/exec/default/web/app?output=1", 400),
        ("GET", "/exec/default/web/app?command=x&output=1", 400),
        ("GET", "/attach/default/web/app?output=1&input=1", 400),
        ("GET", "/pods?a=%zz", 400),
    ] {
        let (got, headers, text) = client.whole(method, path, Some("admin")).await;
        assert_eq!(got.as_u16(), status, "{method} {path}: {text}");
        if path == "/pods" {
            assert_eq!(headers["allow"], "GET");
        }
    }
}
