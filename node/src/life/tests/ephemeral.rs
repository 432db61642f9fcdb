use serde_json::{Value, json};

use super::bench::Bench;

fn with(ephemeral: Value) -> Value {
    json!({ "containers": [{ "name": "c", "image": "app:1" }], "ephemeralContainers": ephemeral })
}

#[test]
fn an_ephemeral_container_that_is_added_runs_once_and_says_nothing_of_the_pod() {
    let mut bench = Bench::running(json!({}), "Always");
    assert_eq!(bench.plan(), [""; 0]);

    bench.update(with(json!([{ "name": "debug", "image": "tools:1" }]))).expect("it may be added");

    bench.run("debug");
    assert_eq!((bench.phase(), bench.state("c").as_str()), ("Running", "running"));
    let statuses = bench.status().ephemeral_container_statuses.expect("one");
    assert_eq!(statuses[0].name, "debug");
    assert!(statuses[0].state.as_ref().is_some_and(|state| state.running.is_some()));
    assert_eq!(bench.status().container_statuses.map(|all| all.len()), Some(1));
    bench.exited("debug", 0, 1);
    assert_eq!((bench.phase(), bench.plan()), ("Running", Vec::new()));
    let ended = bench.status().ephemeral_container_statuses.expect("one").remove(0);
    assert_eq!(ended.state.and_then(|it| it.terminated).map(|it| it.exit_code), Some(1));
    let ready = bench.status().conditions.into_iter().flatten().find(|it| it.type_ == "Ready");
    assert_eq!(ready.map(|it| it.status).as_deref(), Some("True"));
}

#[test]
fn a_pod_ends_without_its_ephemeral_containers_which_are_stopped_then() {
    let mut bench = Bench::running(json!({}), "Never");
    bench.update(with(json!([{ "name": "debug", "image": "tools:1" }]))).expect("it may be added");
    bench.run("debug");

    bench.exited("c", 0, 0);

    assert_eq!(bench.plan(), ["stop debug"]);
    bench.exited("debug", 0, 143);
    assert_eq!(bench.phase(), "Succeeded");
}

#[test]
fn ephemeral_containers_are_added_and_neither_taken_away_nor_changed_in_order() {
    let mut bench = Bench::running(json!({}), "Always");
    bench.update(with(json!([{ "name": "a", "image": "t:1" }]))).expect("it may be added");

    let gone = bench.update(with(json!([]))).expect_err("it stays");
    let other = bench.update(with(json!([{ "name": "b", "image": "t:1" }]))).expect_err("it stays");

    assert_eq!(gone[0].field, "spec.ephemeralContainers");
    assert_eq!(other[0].field, "spec.ephemeralContainers");
    bench
        .update(with(json!([{ "name": "a", "image": "t:1" }, { "name": "b", "image": "t:1" }])))
        .expect("one more");
}

#[test]
fn what_an_api_server_gives_no_ephemeral_container_is_refused() {
    let mut bench = Bench::running(json!({}), "Always");
    let ports = json!([{ "containerPort": 80 }]);

    let wrong = bench.update(with(json!([{ "name": "a", "image": "t:1", "ports": ports }])));

    assert_eq!(wrong.expect_err("refused")[0].field, "spec.ephemeralContainers[0].ports");
}
