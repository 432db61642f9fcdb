mod recorder;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::json;

use super::*;

fn refused(spec: serde_json::Value) -> Vec<String> {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([]);
    }
    let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
    check(&pod).into_iter().map(|refusal| refusal.field).collect()
}

#[test]
fn the_table_has_a_line_for_every_field_of_the_types() {
    let fields = recorder::fields_of::<PodSpec>("spec");

    let missing: Vec<_> = fields.iter().filter(|field| lookup(field).is_none()).collect();

    assert!(fields.len() > 400, "the recorder saw only {} fields", fields.len());
    assert!(missing.is_empty(), "no line for {missing:#?}");
}

#[test]
fn the_table_has_no_line_that_the_types_do_not_know() {
    let fields: BTreeSet<_> = recorder::fields_of::<PodSpec>("spec").into_iter().collect();

    let stale: Vec<_> = BY_PATTERN.keys().filter(|pattern| !fields.contains(*pattern)).collect();

    assert!(stale.is_empty(), "the types have no field {stale:#?}");
}

#[test]
fn no_field_has_two_lines() {
    let lines = SECTIONS.iter().map(|section| section.roots.len() * section.fields.len());

    assert_eq!(BY_PATTERN.len(), lines.sum::<usize>());
}

#[test]
fn every_refusal_says_what_to_write_instead() {
    let fields = SECTIONS.iter().flat_map(|section| section.fields);

    for field in fields.filter(|field| field.class != Class::Honoured) {
        assert!(!field.note.is_empty(), "{}", field.path);
    }
}

#[test]
fn the_page_in_docs_is_the_table_of_this_build() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pod-fields.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs")).unwrap();
        std::fs::write(path, markdown()).unwrap();
    }

    let page = std::fs::read_to_string(path).unwrap_or_default();

    assert!(page == markdown(), "stale: run UPDATE_DOCS=1 cargo test -p copepod-node");
}

#[test]
fn a_pod_under_the_restricted_security_standard_is_accepted() {
    let spec = json!({
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 1000, "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"}
        },
        "containers": [{"name": "c", "securityContext": {
            "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}
        }}]
    });

    assert_eq!(refused(spec), [""; 0]);
}

#[test]
fn a_refusal_names_the_field_with_its_index() {
    let spec = json!({"hostPID": true, "containers": [
        {"name": "a"},
        {"name": "b", "securityContext": {"privileged": true, "capabilities": {"add": ["SYS_ADMIN"]}},
         "resources": {"limits": {"nvidia.com/gpu": "1"}},
         "livenessProbe": {"httpGet": {"port": 1, "host": "example.com"}},
         "ports": [{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "protocol": "SCTP"}]}
    ]});

    let mut fields = refused(spec);
    fields.sort();

    assert_eq!(
        fields,
        [
            "spec.containers[1].livenessProbe.httpGet.host",
            "spec.containers[1].ports[1].protocol",
            "spec.containers[1].resources.limits[nvidia.com/gpu]",
            "spec.containers[1].securityContext.capabilities.add[0]",
            "spec.containers[1].securityContext.privileged",
            "spec.hostPID",
        ]
    );
}

#[test]
fn an_empty_value_is_as_good_as_none() {
    let spec = json!({
        "hostNetwork": false, "subdomain": "", "readinessGates": [],
        "containers": [{"name": "c", "tty": false, "ports": [{"containerPort": 1, "hostPort": 0}]}]
    });

    assert_eq!(refused(spec), [""; 0]);
}

#[test]
fn restart_policy_is_of_init_and_app_containers_and_not_of_ephemeral_ones() {
    for policy in ["Always", "OnFailure", "Never"] {
        let container = json!([{"name": "c", "restartPolicy": policy}]);

        assert_eq!(refused(json!({"initContainers": container})), [""; 0]);
        assert_eq!(refused(json!({"containers": container})), [""; 0]);
        assert_eq!(
            refused(json!({"ephemeralContainers": container})),
            ["spec.ephemeralContainers[0].restartPolicy"]
        );
    }
}
