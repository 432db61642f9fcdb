use serde_json::json;

use super::*;
use crate::{
    objects::{Allocatable, KnownObjects},
    quantity::Amount,
};

fn pod(container: serde_json::Value) -> Pod {
    let mut container = container;
    container["name"] = json!("c");
    serde_json::from_value(json!({
        "metadata": {
            "name": "p", "namespace": "ns", "uid": "u-1",
            "labels": {"app": "web"}, "annotations": {"note": "hi"}
        },
        "spec": {"containers": [container, {"name": "other", "resources": {"limits": {"cpu": "1500m"}}}]}
    }))
    .unwrap()
}

fn objects() -> KnownObjects {
    let map = json!({"data": {"a": "1", "b": "2"}, "binaryData": {"bin": "/w=="}});
    let secret = json!({"data": {"password": "czNjcmV0", "bad": "/w=="}});
    KnownObjects {
        config_maps: [("m".to_owned(), serde_json::from_value(map).unwrap())].into(),
        secrets: [("s".to_owned(), serde_json::from_value(secret).unwrap())].into(),
        ..KnownObjects::default()
    }
}

fn run_with(container: serde_json::Value, image: &ImageConfig) -> Result<Process, ConfigError> {
    let node = NodeFacts {
        name: "node-1".to_owned(),
        ips: vec!["192.0.2.1".parse().unwrap()],
        allocatable: Allocatable {
            cpu: Amount::units(4),
            memory: Amount::units(1 << 30),
            ephemeral_storage: Amount::units(1 << 33),
        },
        cluster_domain: "cluster.local".into(),
    };
    let pod_ips = ["10.64.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
    let objects = objects();
    let services = [("DB_SERVICE_HOST".to_owned(), "10.0.0.1".to_owned())];
    let context =
        Context { objects: &objects, node: &node, pod_ips: &pod_ips, services: &services };
    process(&pod(container), "c", image, &context)
}

fn image() -> ImageConfig {
    ImageConfig { module: "app.wasm".to_owned(), ..ImageConfig::default() }
}

fn run(container: serde_json::Value) -> Result<Process, ConfigError> {
    run_with(container, &image())
}

fn value(process: &Process, name: &str) -> Option<String> {
    process.env.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone())
}

fn one(variable: serde_json::Value) -> Result<Option<String>, ConfigError> {
    let mut variable = variable;
    variable["name"] = json!("X");
    run(json!({"env": [variable]})).map(|process| value(&process, "X"))
}

#[test]
fn command_and_args_override_the_image_as_docker_does() {
    let full =
        ImageConfig { entrypoint: vec!["/entry".into()], cmd: vec!["cmd".into()], ..image() };
    let only_cmd = ImageConfig { cmd: vec!["run".into(), "x".into()], ..image() };
    for (image, container, argv) in [
        (&full, json!({}), vec!["/entry", "cmd"]),
        (&full, json!({"args": ["a"]}), vec!["/entry", "a"]),
        (&full, json!({"command": ["c"]}), vec!["c"]),
        (&full, json!({"command": ["c"], "args": ["a"]}), vec!["c", "a"]),
        (&only_cmd, json!({}), vec!["run", "x"]),
        (&only_cmd, json!({"args": ["a"]}), vec!["app.wasm", "a"]),
        (&image(), json!({}), vec!["app.wasm"]),
        (&image(), json!({"args": ["a"]}), vec!["app.wasm", "a"]),
    ] {
        assert_eq!(run_with(container.clone(), image).unwrap().args, argv, "{container}");
    }
}

#[test]
fn a_later_source_wins_and_sees_the_earlier_ones() {
    let image = ImageConfig { env: vec!["PATH=/bin".into(), "FROM=image".into()], ..image() };
    let container = json!({
        "args": ["$(URL)", "$(FROM)", "$$(URL)"],
        "envFrom": [{"configMapRef": {"name": "m"}}, {"prefix": "P_", "configMapRef": {"name": "m"}}],
        "env": [
            {"name": "b", "value": "own"},
            {"name": "URL", "value": "$(DB_SERVICE_HOST):$(a)/$(b)/$(P_b)/$(LATER)"},
            {"name": "LATER", "value": "x"}
        ]
    });

    let process = run_with(container, &image).unwrap();

    assert_eq!(value(&process, "URL").as_deref(), Some("10.0.0.1:1/own/2/$(LATER)"));
    assert_eq!(value(&process, "PATH").as_deref(), Some("/bin"));
    assert_eq!(value(&process, "HOSTNAME").as_deref(), Some("p"));
    assert_eq!(value(&process, "FROM").as_deref(), Some("image"));
    // The image's variables are the runtime's, not the kubelet's: `$(FROM)` does not see them.
    assert_eq!(process.args, ["app.wasm", "10.0.0.1:1/own/2/$(LATER)", "$(FROM)", "$(URL)"]);
    let names: std::collections::BTreeSet<_> = process.env.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), process.env.len(), "names are unique");
}

#[test]
fn a_missing_object_or_key_is_named_with_its_field() {
    let key = json!({"valueFrom": {"configMapKeyRef": {"name": "m", "key": "zz"}}});
    let object = json!({"valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}});

    let key = one(key).unwrap_err();
    let object = one(object).unwrap_err();
    let from = run(json!({"envFrom": [{"secretRef": {"name": "none"}}]})).unwrap_err();

    assert_eq!(key.field, "spec.containers[0].env[0].valueFrom.configMapKeyRef.key");
    assert_eq!(key.message, "the ConfigMap \"m\" has no key \"zz\"");
    assert_eq!(object.field, "spec.containers[0].env[0].valueFrom.secretKeyRef.name");
    assert_eq!(from.field, "spec.containers[0].envFrom[0].secretRef.name");
}

#[test]
fn what_is_optional_and_missing_sets_nothing() {
    let key =
        json!({"valueFrom": {"configMapKeyRef": {"name": "m", "key": "zz", "optional": true}}});
    let object =
        json!({"valueFrom": {"secretKeyRef": {"name": "z", "key": "k", "optional": true}}});

    assert_eq!(one(key), Ok(None));
    assert_eq!(one(object), Ok(None));
    assert!(run(json!({"envFrom": [{"secretRef": {"name": "z", "optional": true}}]})).is_ok());
}

#[test]
fn a_secret_is_decoded_and_bytes_that_are_no_text_are_refused() {
    let good = json!({"valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}});
    let bad = json!({"valueFrom": {"secretKeyRef": {"name": "s", "key": "bad"}}});

    assert_eq!(one(good), Ok(Some("s3cret".to_owned())));
    assert!(one(bad).is_err());
}

#[test]
fn a_pod_may_ask_for_its_own_fields() {
    for (path, expected) in [
        ("metadata.name", "p"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['note']", "hi"),
        ("spec.nodeName", "node-1"),
        ("spec.serviceAccountName", "default"),
        ("status.hostIP", "192.0.2.1"),
        ("status.podIP", "10.64.0.5"),
        ("status.podIPs", "10.64.0.5,fd00::5"),
    ] {
        let variable = json!({"valueFrom": {"fieldRef": {"fieldPath": path}}});
        assert_eq!(one(variable), Ok(Some(expected.to_owned())), "{path}");
    }
    let bad = json!({"valueFrom": {"fieldRef": {"fieldPath": "spec.hostPID"}}});
    assert!(one(bad).unwrap_err().message.contains("metadata.name"));
}

#[test]
fn a_limit_is_rounded_up_and_a_missing_one_is_what_the_node_has() {
    for (selector, expected) in [
        (json!({"resource": "limits.cpu"}), "4"),
        (json!({"resource": "limits.memory", "divisor": "1Mi"}), "1024"),
        (json!({"resource": "limits.ephemeral-storage", "divisor": "1Gi"}), "8"),
        (json!({"resource": "requests.cpu"}), "0"),
        (json!({"resource": "limits.cpu", "containerName": "other"}), "2"),
        (json!({"resource": "limits.cpu", "containerName": "other", "divisor": "1m"}), "1500"),
    ] {
        let variable = json!({"valueFrom": {"resourceFieldRef": selector.clone()}});
        assert_eq!(one(variable), Ok(Some(expected.to_owned())), "{selector}");
    }
}

#[test]
fn an_environment_beyond_a_mebibyte_and_a_nul_are_refused() {
    let big = "x".repeat(MOST_BYTES);

    assert!(one(json!({"value": big})).is_err());
    assert!(one(json!({"value": "a\0b"})).is_err());
}

#[test]
fn a_probes_command_sees_only_the_values_that_stand_in_the_spec() {
    let env: Vec<EnvVar> = serde_json::from_value(json!([
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)2"},
        {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    ]))
    .unwrap();
    let command = ["$(B)".to_owned(), "$(C)".to_owned()];

    assert_eq!(with_static_variables(&command, &env), ["12", "$(C)"]);
}

fn called(spec: serde_json::Value) -> HostNames {
    let pod = json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec});
    HostNames::of(&serde_json::from_value(pod).unwrap(), "cluster.local")
}

#[test]
fn a_pod_with_a_subdomain_has_a_whole_name_and_calls_itself_by_it_only_where_it_asks_to() {
    let whole = "db-0.db.shop.svc.cluster.local";
    let plain = called(json!({"containers": [], "hostname": "db-0", "subdomain": "db"}));
    let asked = called(
        json!({"containers": [], "hostname": "db-0", "subdomain": "db", "setHostnameAsFQDN": true}),
    );

    assert_eq!(plain, HostNames { own: "db-0".into(), all: vec![whole.into(), "db-0".into()] });
    assert_eq!((asked.own.as_str(), asked.trouble()), (whole, None));
    // Without a subdomain there is no whole name to ask for, and an override is the whole name itself.
    for spec in [
        json!({"containers": [], "setHostnameAsFQDN": true}),
        json!({"containers": [], "subdomain": "", "hostname": "web-0"}),
        json!({"containers": [], "subdomain": "db", "hostnameOverride": "web-0"}),
    ] {
        assert_eq!(called(spec), HostNames { own: "web-0".into(), all: vec!["web-0".into()] });
    }
}

#[test]
fn a_whole_name_that_linux_has_no_room_for_is_told_with_its_length() {
    let long = "x".repeat(40);
    let names = called(
        json!({"containers": [], "hostname": long, "subdomain": "db", "setHostnameAsFQDN": true}),
    );

    let trouble = names.trouble().unwrap();

    assert!(trouble.contains("is too long (64 characters is the max, 66 characters"), "{trouble}");
}
