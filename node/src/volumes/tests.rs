use serde_json::json;

use super::*;
use crate::objects::{Allocatable, KnownObjects, NodeFacts};

fn pod(volumes: serde_json::Value, mounts: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": "p", "namespace": "ns",
            "labels": {"tier": "a \"b\"\n\u{200b}", "app": "web"}, "annotations": {"note": "hi"}
        },
        "spec": {"containers": [{"name": "c", "volumeMounts": mounts}], "volumes": volumes}
    }))
    .unwrap()
}

fn objects() -> KnownObjects {
    let map = json!({"data": {"a": "1", "b": "22"}, "binaryData": {"z": "/w=="}});
    let secret = json!({"data": {"key": "czNjcmV0"}});
    KnownObjects {
        config_maps: [("m".to_owned(), serde_json::from_value(map).unwrap())].into(),
        secrets: [("s".to_owned(), serde_json::from_value(secret).unwrap())].into(),
        tokens: [((None, 3607), "jwt".to_owned())].into(),
        claims: BTreeMap::new(),
    }
}

fn planned(source: serde_json::Value) -> Result<Content, ConfigError> {
    let mut volume = source;
    volume["name"] = json!("v");
    let node = NodeFacts {
        name: "node-1".to_owned(),
        ips: Vec::new(),
        allocatable: Allocatable {
            cpu: Amount::units(4),
            memory: Amount::units(1 << 30),
            ephemeral_storage: Amount::units(1 << 33),
        },
        cluster_domain: "cluster.local".into(),
    };
    let context = Context { objects: &objects(), node: &node, pod_ips: &[], services: &[] };
    plan(&pod(json!([volume]), json!([])), &context).map(|mut planned| planned.remove(0).content)
}

fn listed(source: serde_json::Value) -> Vec<(String, usize, u32)> {
    match planned(source).unwrap() {
        Content::Files { files, .. } => {
            files.into_iter().map(|file| (file.path, file.bytes.len(), file.mode)).collect()
        }
        other => panic!("{other:?} holds no files"),
    }
}

fn mounted(mounts_: serde_json::Value) -> Result<Vec<PlannedMount>, ConfigError> {
    let volumes = json!([{"name": "v", "emptyDir": {}}, {"name": "m", "configMap": {"name": "m"}}]);
    let env = [("POD".to_owned(), "p-0".to_owned()), ("UP".to_owned(), "../x".to_owned())];
    mounts(&pod(volumes, mounts_), "c", &env)
}

#[test]
fn a_config_map_without_items_shows_all_its_keys() {
    let all = listed(json!({"configMap": {"name": "m"}}));
    let strict = listed(json!({"configMap": {"name": "m", "defaultMode": 0o400}}));

    assert_eq!(all, [("a".into(), 1, 0o644), ("b".into(), 2, 0o644), ("z".into(), 1, 0o644)]);
    assert!(strict.iter().all(|(_, _, mode)| *mode == 0o400));
}

#[test]
fn items_choose_keys_paths_and_modes() {
    let items =
        json!([{"key": "b", "path": "conf/./b.txt", "mode": 0o600}, {"key": "a", "path": "a"}]);

    let files = listed(json!({"configMap": {"name": "m", "items": items}}));

    assert_eq!(files, [("a".into(), 1, 0o644), ("conf/b.txt".into(), 2, 0o600)]);
}

#[test]
fn a_missing_object_or_key_is_named_and_an_optional_one_is_empty() {
    let object = planned(json!({"secret": {"secretName": "none"}})).unwrap_err();
    let items = json!([{"key": "zz", "path": "zz"}]);
    let key = planned(json!({"configMap": {"name": "m", "items": items}})).unwrap_err();
    let items = json!([{"key": "zz", "path": "zz"}]);

    assert_eq!(object.field, "spec.volumes[0].secret.secretName");
    assert_eq!(key.field, "spec.volumes[0].configMap.items[0].key");
    assert_eq!(listed(json!({"secret": {"secretName": "none", "optional": true}})), []);
    assert_eq!(listed(json!({"configMap": {"name": "m", "optional": true, "items": items}})), []);
}

#[test]
fn p04_item_paths_that_leave_the_volume_or_meet_are_refused() {
    for path in ["../x", "/x", "a/../b", "..data", "", ".", "a\0b", "..", &"x".repeat(300)] {
        let items = json!([{"key": "a", "path": path}]);
        let source = json!({"configMap": {"name": "m", "items": items}});
        assert!(planned(source).is_err(), "{path:?}");
    }
    for (first, second) in [("x", "x"), ("x", "x/y"), ("x/y", "x")] {
        let items = json!([{"key": "a", "path": first}, {"key": "b", "path": second}]);
        let source = json!({"configMap": {"name": "m", "items": items}});
        assert!(planned(source).is_err(), "{first} and {second}");
    }
}

#[test]
fn an_empty_dir_has_a_medium_and_a_limit() {
    let plain = planned(json!({"emptyDir": {}})).unwrap();
    let memory = planned(json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})).unwrap();

    assert_eq!(plain, Content::EmptyDir { memory: false, size_limit: None });
    assert_eq!(memory, Content::EmptyDir { memory: true, size_limit: Some(1 << 20) });
}

#[test]
fn a_host_path_is_absolute_and_goes_nowhere_up() {
    let plain = planned(json!({"hostPath": {"path": "/srv//data/", "type": "DirectoryOrCreate"}}));

    let path = "/srv/data".to_owned();
    assert_eq!(plain, Ok(Content::HostPath { path, create: true, checked: true }));
    assert!(planned(json!({"hostPath": {"path": "/srv/../etc"}})).is_err());
    assert!(planned(json!({"hostPath": {"path": "srv"}})).is_err());
}

#[test]
fn a_mount_comes_before_what_is_mounted_beneath_it() {
    let mounts = mounted(json!([
        {"name": "v", "mountPath": "/data/cache/x"},
        {"name": "v", "mountPath": "/data-2"},
        {"name": "m", "mountPath": "/data/"},
        {"name": "v", "mountPath": "/data/cache", "readOnly": true}
    ]))
    .unwrap();

    let paths: Vec<_> = mounts.iter().map(|mount| mount.path.as_str()).collect();
    assert_eq!(paths, ["/data", "/data/cache", "/data/cache/x", "/data-2"]);
    let read_only: Vec<_> = mounts.iter().map(|mount| mount.read_only).collect();
    assert_eq!(read_only, [true, true, false, false], "a ConfigMap is always read-only");
}

#[test]
fn p02_sub_paths_are_checked_also_where_they_come_from_a_variable() {
    let sub = |key: &str, path: &str| {
        let mut mount = json!({"name": "v", "mountPath": "/d"});
        mount[key] = json!(path);
        mounted(json!([mount]))
    };

    assert_eq!(sub("subPath", "a/./b").unwrap()[0].sub_path.as_deref(), Some("a/b"));
    assert_eq!(sub("subPathExpr", "$(POD)/x").unwrap()[0].sub_path.as_deref(), Some("p-0/x"));
    for (key, path) in [
        ("subPath", "../x"),
        ("subPath", "/etc"),
        ("subPath", "a/../../b"),
        ("subPathExpr", "$(UP)"),
        ("subPathExpr", "$(NOPE)"),
        ("subPathExpr", "`x`"),
    ] {
        assert!(sub(key, path).is_err(), "{key}: {path}");
    }
}

#[test]
fn two_mounts_at_one_place_and_unknown_volumes_are_refused() {
    let twice = mounted(json!([
        {"name": "v", "mountPath": "/d"}, {"name": "m", "mountPath": "/d/"}
    ]));
    let unknown = mounted(json!([{"name": "zz", "mountPath": "/d"}]));

    assert_eq!(twice.unwrap_err().field, "spec.containers[0].volumeMounts[1].mountPath");
    assert_eq!(unknown.unwrap_err().field, "spec.containers[0].volumeMounts[0].name");
    for path in ["/", "d", "/../d", "/a:b"] {
        assert!(mounted(json!([{"name": "v", "mountPath": path}])).is_err(), "{path}");
    }
}

#[test]
fn the_bytes_of_a_secret_do_not_appear_in_a_debug_print() {
    let content = planned(json!({"secret": {"secretName": "s"}})).unwrap();

    assert_eq!(format!("{content:?}"), "Files { files: [key (6 bytes, 644)], secret: true }");
}

/// The files of a projected volume with these sources: paths and texts.
fn projected(sources: serde_json::Value) -> Result<Vec<(String, String)>, ConfigError> {
    match planned(json!({"projected": {"sources": sources}}))? {
        Content::Files { files, .. } => {
            let text = |file: PlannedFile| String::from_utf8(file.bytes).expect("text");
            Ok(files.into_iter().map(|file| (file.path.clone(), text(file))).collect())
        }
        other => panic!("{other:?} holds no files"),
    }
}

#[test]
fn a_projected_volume_shows_all_its_sources_in_one_folder() {
    let token = json!({"path": "token", "expirationSeconds": 3607});
    let namespace = json!({"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}});
    let items = json!([{"key": "a", "path": "ca.crt"}]);

    let files = projected(json!([
        {"serviceAccountToken": token},
        {"configMap": {"name": "m", "items": items}},
        {"downwardAPI": {"items": [namespace]}},
        {"secret": {"name": "s"}}
    ]))
    .unwrap();

    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    assert_eq!(
        files,
        [file("ca.crt", "1"), file("key", "s3cret"), file("namespace", "ns"), file("token", "jwt")]
    );
}

#[test]
fn modes_of_a_projected_volume_are_its_items_or_its_own() {
    let volume = json!({"projected": {"defaultMode": 0o440, "sources": [
        {"configMap": {"name": "m", "items": [{"key": "a", "path": "a", "mode": 0o600}, {"key": "b", "path": "b"}]}},
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}
    ]}});

    let files = listed(volume);

    assert_eq!(files, [("a".into(), 1, 0o600), ("b".into(), 2, 0o440), ("token".into(), 3, 0o440)]);
}

#[test]
fn a_token_that_has_not_come_and_an_object_that_is_missing_hold_up_a_projected_volume() {
    let path = "spec.volumes[0].projected.sources[0]";
    for (source, field) in [
        (json!({"serviceAccountToken": {"path": "t", "audience": "vault"}}), "serviceAccountToken"),
        (
            json!({"serviceAccountToken": {"path": "t", "expirationSeconds": 600}}),
            "serviceAccountToken",
        ),
        (json!({"configMap": {"name": "none"}}), "configMap.name"),
        (json!({"secret": {"name": "none"}}), "secret.name"),
    ] {
        let error = projected(json!([source])).unwrap_err();
        assert_eq!(error.field, format!("{path}.{field}"), "{source}");
    }
    let optional =
        json!([{"configMap": {"name": "none", "optional": true}}, {"secret": {"name": "s"}}]);
    assert_eq!(projected(optional).unwrap().len(), 1, "what is optional may be missing");
}

#[test]
fn of_two_projected_files_under_one_path_the_later_source_wins_and_one_beneath_another_is_refused()
{
    let key = json!({"secret": {"name": "s"}});
    let token =
        |path: &str| json!({"serviceAccountToken": {"path": path, "expirationSeconds": 3607}});

    let token_last = projected(json!([key, token("key")])).unwrap();
    let token_first = projected(json!([token("key"), key])).unwrap();

    assert_eq!(token_last, [("key".to_owned(), "jwt".to_owned())]);
    assert_eq!(token_first, [("key".to_owned(), "s3cret".to_owned())]);
    assert!(projected(json!([key, token("key/b")])).is_err());
}

#[test]
fn a_downward_api_volume_shows_what_the_pod_says_of_itself() {
    let field = |path: &str, field: &str| json!({"path": path, "fieldRef": {"fieldPath": field}});
    let cpu = json!({"containerName": "c", "resource": "limits.cpu", "divisor": "1m"});
    let volume = json!({"downwardAPI": {"items": [
        field("labels", "metadata.labels"),
        field("note", "metadata.annotations['note']"),
        field("where/name", "metadata.name"),
        {"path": "cpu", "resourceFieldRef": cpu, "mode": 0o400}
    ]}});

    let Content::Files { files, secret: false } = planned(volume).unwrap() else {
        panic!("it holds files")
    };

    let texts: Vec<_> = files.iter().map(|file| String::from_utf8_lossy(&file.bytes)).collect();
    assert_eq!(texts, ["4000", "app=\"web\"\ntier=\"a \\\"b\\\"\\n\\u200b\"", "hi", "p"]);
    assert_eq!(files[0].mode, 0o400);
    let unknown = planned(json!({"downwardAPI": {"items": [field("ip", "status.podIP")]}}));
    assert_eq!(
        unknown.unwrap_err().field,
        "spec.volumes[0].downwardAPI.items[0].fieldRef.fieldPath"
    );
}

#[test]
fn the_part_of_a_volume_beneath_a_folder_has_paths_of_its_own() {
    let items = json!([{"key": "a", "path": "conf/x/a"}, {"key": "b", "path": "config"}]);
    let volume = json!({"configMap": {"name": "m", "items": items}});
    let Content::Files { files, .. } = planned(volume).unwrap() else { panic!("it holds files") };

    let part = part_of(files.clone(), "conf");

    assert_eq!(part.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["x/a"]);
    assert_eq!(part_of(files, "con"), []);
}
