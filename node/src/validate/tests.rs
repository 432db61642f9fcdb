use serde_json::{Value, json};

use super::*;
use crate::defaults;

/// The paths refused in a good pod after `change`.
fn after(change: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut pod = json!({
        "metadata": {"name": "p", "namespace": "default", "uid": "u-1"},
        "spec": {
            "containers": [{"name": "c", "image": "i:1", "ports": [{"containerPort": 80, "name": "web"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]
        }
    });
    change(&mut pod);
    let mut pod: Pod = serde_json::from_value(pod).expect("a pod");
    defaults::apply(&mut pod);
    check(&pod).into_iter().map(|refusal| refusal.field).collect()
}

fn container(key: &str, value: Value) -> Vec<String> {
    after(|pod| pod["spec"]["containers"][0][key] = value)
}

#[test]
fn a_good_pod_is_good() {
    assert_eq!(after(|_| {}), [""; 0]);
}

#[test]
fn names_are_checked_wherever_they_stand() {
    for (name, bad) in [("a", false), ("a.b-1", false), ("", true), ("A", true), ("../x", true)] {
        let wrong = after(|pod| pod["metadata"]["name"] = json!(name));
        assert_eq!(wrong == ["metadata.name"], bad, "{name:?}: {wrong:?}");
    }
    assert_eq!(after(|pod| pod["metadata"]["namespace"] = json!("a/b")), ["metadata.namespace"]);
    assert_eq!(after(|pod| pod["metadata"]["uid"] = json!("../../etc")), ["metadata.uid"]);
    assert_eq!(container("name", json!("A")), ["spec.containers[0].name"]);
}

#[test]
fn p14_names_of_any_length_cannot_collide_when_joined() {
    let longest = "a".repeat(253);

    assert_eq!(after(|pod| pod["metadata"]["name"] = json!(longest)), [""; 0]);
    assert_eq!(after(|pod| pod["metadata"]["name"] = json!("a_b")), ["metadata.name"]);
    assert_eq!(after(|pod| pod["metadata"]["namespace"] = json!("a_b")), ["metadata.namespace"]);
}

#[test]
fn a_pod_needs_containers_with_images_and_names_of_their_own() {
    assert_eq!(after(|pod| pod["spec"]["containers"] = json!([])), ["spec.containers"]);
    assert_eq!(container("image", json!("")), ["spec.containers[0].image"]);
    let twice = after(|pod| {
        pod["spec"]["initContainers"] = json!([{"name": "c", "image": "i"}]);
    });
    assert_eq!(twice, ["spec.containers[0].name"]);
}

#[test]
fn p08_a_pod_of_a_thousand_containers_or_volumes_is_refused_in_one_line() {
    let many = after(|pod| {
        let all: Vec<_> =
            (0..1000).map(|i| json!({"name": format!("c{i}"), "image": "i"})).collect();
        pod["spec"]["containers"] = json!(all);
    });
    let volumes = after(|pod| {
        let all: Vec<_> =
            (0..10_000).map(|i| json!({"name": format!("v{i}"), "emptyDir": {}})).collect();
        pod["spec"]["volumes"] = json!(all);
    });

    assert_eq!(many, ["spec.containers"]);
    assert_eq!(volumes, ["spec.volumes"]);
}

#[test]
fn p11_numbers_of_seconds_are_in_range_and_never_overflow() {
    for (field, value, bad) in [
        ("terminationGracePeriodSeconds", -1, true),
        ("terminationGracePeriodSeconds", 0, false),
        ("terminationGracePeriodSeconds", i64::MAX, false),
        ("activeDeadlineSeconds", 0, true),
        ("activeDeadlineSeconds", -5, true),
        ("activeDeadlineSeconds", i64::MAX, true),
        ("activeDeadlineSeconds", 1, false),
    ] {
        let wrong = after(|pod| pod["spec"][field] = json!(value));
        assert_eq!(wrong == [format!("spec.{field}")], bad, "{field}: {value}");
    }
    for (field, value, bad) in [
        ("periodSeconds", -1, true),
        ("periodSeconds", i32::MAX, false),
        ("timeoutSeconds", 0, true),
        ("failureThreshold", 0, true),
        ("successThreshold", 2, true),
        ("initialDelaySeconds", -1, true),
        ("terminationGracePeriodSeconds", 0, true),
    ] {
        let mut probe = json!({"tcpSocket": {"port": 80}});
        probe[field] = json!(value);
        let wrong = container("livenessProbe", probe);
        assert_eq!(!wrong.is_empty(), bad, "{field}: {value}: {wrong:?}");
    }
}

#[test]
fn p12_quantities_are_those_of_the_api_server() {
    for (limit, bad) in [
        ("64Mi", false),
        ("1e308", true),
        ("-1", true),
        ("9Ei", true),
        ("0.1m", true),
        ("100m", true),
        ("lots", true),
    ] {
        let wrong = container("resources", json!({"limits": {"memory": limit}}));
        assert_eq!(
            wrong.contains(&"spec.containers[0].resources.limits[memory]".to_owned()),
            bad,
            "{limit}"
        );
    }
    let cpu = container("resources", json!({"limits": {"cpu": "0.0001"}}));
    assert!(cpu.contains(&"spec.containers[0].resources.limits[cpu]".to_owned()));
}

#[test]
fn a_request_is_at_most_its_limit() {
    let more = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1100m"}});
    let equal = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1000m"}});

    assert_eq!(container("resources", more), ["spec.containers[0].resources.requests[cpu]"]);
    assert_eq!(container("resources", equal), [""; 0]);
}

#[test]
fn in_the_host_s_network_a_port_is_the_host_s_and_no_other() {
    let on_host = |host: u16| {
        after(|pod| {
            pod["spec"]["hostNetwork"] = json!(true);
            pod["spec"]["containers"][0]["ports"] =
                json!([{"containerPort": 80, "hostPort": host}]);
        })
    };

    assert_eq!(on_host(80), [""; 0]);
    assert_eq!(on_host(8080), ["spec.containers[0].ports[0].hostPort"]);
}

#[test]
fn a_port_of_the_node_is_asked_for_once_and_by_a_number_and_an_address() {
    let ports = |ports: Value| container("ports", ports);

    let at = |host: u32, ip: &str| json!({"containerPort": host, "hostPort": host, "hostIP": ip});
    assert_eq!(ports(json!([at(80, ""), at(81, "192.0.2.1")])), [""; 0]);
    let too_large = json!([{"containerPort": 1, "hostPort": 65536}]);
    assert_eq!(ports(too_large), ["spec.containers[0].ports[0].hostPort"]);
    assert_eq!(ports(json!([at(80, "node")])), ["spec.containers[0].ports[0].hostIP"]);
    let twice = json!([at(80, "192.0.2.1"), {"containerPort": 1, "hostPort": 80}]);
    assert_eq!(ports(twice), ["spec.containers[0].ports[1].hostPort"]);
}

#[test]
fn ports_are_in_range_and_unique() {
    let ports = |ports: Value| container("ports", ports);

    assert_eq!(ports(json!([{"containerPort": 0}])), ["spec.containers[0].ports[0].containerPort"]);
    assert_eq!(
        ports(json!([{"containerPort": 65536}])),
        ["spec.containers[0].ports[0].containerPort"]
    );
    let twice = json!([{"containerPort": 1}, {"containerPort": 1}]);
    assert_eq!(ports(twice), ["spec.containers[0].ports[1].containerPort"]);
    assert_eq!(
        ports(json!([{"containerPort": 1}, {"containerPort": 1, "protocol": "UDP"}])),
        [""; 0]
    );
    let names = json!([{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}]);
    assert_eq!(ports(names), ["spec.containers[0].ports[1].name"]);
    let two = json!([{"containerPort": 1, "hostPort": 1}, {"containerPort": 1, "hostPort": 2}]);
    assert_eq!(ports(two), [""; 0], "two ports of the node may lead to one of the container");
    let many: Vec<_> = (1..10_000).map(|port| json!({"containerPort": port})).collect();
    assert_eq!(ports(json!(many)), ["spec.containers[0].ports"]);
}

#[test]
fn variables_have_one_source_that_can_exist() {
    let from = |source: Value| container("env", json!([{"name": "A", "valueFrom": source}]));
    let path = "spec.containers[0].env[0].valueFrom";

    assert_eq!(from(json!({})), [path]);
    assert_eq!(
        from(json!({"fieldRef": {"fieldPath": "spec.x"}})),
        [format!("{path}.fieldRef.fieldPath")]
    );
    let bad = json!({"configMapKeyRef": {"name": "m", "key": "../x"}});
    assert_eq!(from(bad), [format!("{path}.configMapKeyRef.key")]);
    assert_eq!(
        container("env", json!([{"name": "A=B", "value": ""}])),
        ["spec.containers[0].env[0].name"]
    );
    assert_eq!(container("env", json!([{"name": "A.b-c", "value": ""}])), [""; 0]);
    assert_eq!(container("envFrom", json!([{}])), ["spec.containers[0].envFrom[0]"]);
}

#[test]
fn p02_p04_paths_stay_inside_their_volume() {
    let mounts = |mount: Value| container("volumeMounts", json!([mount]));
    let path = "spec.containers[0].volumeMounts[0]";

    for sub_path in ["../x", "/x", "a/../.."] {
        let mount = json!({"name": "v", "mountPath": "/d", "subPath": sub_path});
        assert_eq!(mounts(mount), [format!("{path}.subPath")], "{sub_path}");
    }
    assert_eq!(mounts(json!({"name": "zz", "mountPath": "/d"})), [format!("{path}.name")]);
    assert_eq!(mounts(json!({"name": "v", "mountPath": "d"})), [format!("{path}.mountPath")]);
    let item = after(|pod| {
        let items = json!([{"key": "..data", "path": "../x", "mode": 0o7777}]);
        pod["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "m", "items": items}}]);
    });
    let items = "spec.volumes[0].configMap.items[0]";
    assert_eq!(item, [format!("{items}.key"), format!("{items}.path"), format!("{items}.mode")]);
}

#[test]
fn a_volume_has_exactly_one_source() {
    let volume = |volume: Value| after(|pod| pod["spec"]["volumes"] = json!([volume]));

    assert_eq!(volume(json!({"name": "v"})), ["spec.volumes[0]"]);
    let two = json!({"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}});
    assert_eq!(volume(two), ["spec.volumes[0]"]);
}

fn projected(sources: Value) -> Vec<String> {
    let wrong = after(|pod| {
        pod["spec"]["volumes"] = json!([{"name": "v", "projected": {"sources": sources}}]);
    });
    let sources = "spec.volumes[0].projected.sources";
    wrong.iter().map(|field| field.strip_prefix(sources).unwrap_or(field).to_owned()).collect()
}

#[test]
fn what_every_pod_of_a_cluster_mounts_is_good() {
    let namespace = json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    let root = json!({"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]});

    let wrong = projected(json!([
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": root},
        {"downwardAPI": {"items": [namespace]}}
    ]));

    assert_eq!(wrong, [""; 0]);
}

#[test]
fn a_projected_source_is_one_thing_with_paths_that_no_other_names() {
    let items = |path: &str| json!({"name": "m", "items": [{"key": "k", "path": path}]});

    assert_eq!(projected(json!([{}])), ["[0]"]);
    assert_eq!(projected(json!([{"configMap": items("a"), "secret": items("b")}])), ["[0]"]);
    let twice = json!([{"configMap": items("a")}, {"secret": items("a")}]);
    assert_eq!(projected(twice), ["[1].secret.items[0].path"]);
    // As the API server: a token may come over a file, in whose place it then is.
    let token = json!({"serviceAccountToken": {"path": "a", "expirationSeconds": 600}});
    assert_eq!(projected(json!([{"configMap": items("a")}, token])), [""; 0]);
    let many: Vec<_> = (0..1000).map(|_| json!({"secret": {"name": "s"}})).collect();
    assert_eq!(projected(json!(many)), [""], "in one line");
}

#[test]
fn a_token_has_a_path_and_lives_ten_minutes_or_longer() {
    let token = |path: &str, seconds: i64| {
        let source = json!({"path": path, "expirationSeconds": seconds});
        projected(json!([{"serviceAccountToken": source}]))
    };

    assert_eq!(token("a/token", 600), [""; 0]);
    assert_eq!(token("../token", 600), ["[0].serviceAccountToken.path"]);
    assert_eq!(token("", 600), ["[0].serviceAccountToken.path"]);
    for seconds in [599, 0, -1, (1 << 32) + 1] {
        assert_eq!(token("t", seconds), ["[0].serviceAccountToken.expirationSeconds"]);
    }
}

#[test]
fn a_file_of_the_downward_api_has_one_source_that_can_exist() {
    let item = |source: Value| {
        let mut item = json!({"path": "f"});
        for (key, value) in source.as_object().into_iter().flatten() {
            item[key] = value.clone();
        }
        let volume = json!({"name": "v", "downwardAPI": {"items": [item]}});
        after(|pod| pod["spec"]["volumes"] = json!([volume]))
    };
    let path = "spec.volumes[0].downwardAPI.items[0]";
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let resource = |container: &str, resource: &str| json!({"resourceFieldRef": {"containerName": container, "resource": resource}});

    assert_eq!(item(field("metadata.labels")), [""; 0]);
    assert_eq!(item(field("metadata.labels['a']")), [""; 0]);
    assert_eq!(item(field("status.podIP")), [format!("{path}.fieldRef.fieldPath")]);
    assert_eq!(item(json!({})), [path]);
    assert_eq!(item(resource("c", "limits.cpu")), [""; 0]);
    assert_eq!(
        item(resource("", "limits.cpu")),
        [format!("{path}.resourceFieldRef.containerName")]
    );
    assert_eq!(
        item(resource("zz", "limits.cpu")),
        [format!("{path}.resourceFieldRef.containerName")]
    );
    assert_eq!(item(resource("c", "limits.x")), [format!("{path}.resourceFieldRef.resource")]);
    assert_eq!(
        item(json!({"path": "..f", "fieldRef": {"fieldPath": "metadata.name"}})),
        [format!("{path}.path")]
    );
}

#[test]
fn only_sidecars_among_init_containers_have_probes_and_hooks() {
    let init = |policy: Value| {
        after(|pod| {
            let probe = json!({"tcpSocket": {"port": 80}});
            let hook = json!({"preStop": {"sleep": {"seconds": 1}}});
            pod["spec"]["initContainers"] = json!([{
                "name": "i", "image": "i", "restartPolicy": policy, "livenessProbe": probe, "lifecycle": hook
            }]);
        })
    };

    assert_eq!(init(json!("Always")), [""; 0]);
    assert_eq!(
        init(Value::Null),
        ["spec.initContainers[0].livenessProbe", "spec.initContainers[0].lifecycle"]
    );
}
