//! Hostile manifests, and what their pods may not reach.

use copepod_tests::manifest::{With, pod, probe};
use copepod_tests::node::Ended;
use serde_json::{Value, json};

use super::Canary;

/// Runs pods that can never run; what they were told.
fn refused(canary: &Canary, objects: &[Value]) -> Ended {
    let ended = canary.node.run_to_end(objects);
    assert!(
        matches!(ended.code, Some(2 | 125)),
        "{:?}: {}{}",
        ended.code,
        ended.stdout,
        ended.stderr
    );
    ended
}

#[test]
fn p02_a_sub_path_that_climbs_or_is_absolute_is_refused() {
    let canary = Canary::new();

    for path in ["..", "../../etc", "a/../../b", "/etc"] {
        let climbing = probe(&["exit 0"]).with(
            "/volumeMounts",
            json!([{ "name": "volume", "mountPath": "/volume", "subPath": path }]),
        );
        let ended = refused(
            &canary,
            &[pod("climbing", [climbing])
                .with("/spec/volumes", json!([{ "name": "volume", "emptyDir": {} }]))],
        );
        assert!(ended.stderr.contains("subPath"), "{path}: {}", ended.stderr);
    }

    canary.is_well();
}

#[test]
fn p03_a_sub_path_through_a_symbolic_link_leads_nowhere() {
    let canary = Canary::new();
    let folder = canary.node.scratch().join("volume");
    std::fs::create_dir(&folder).expect("a folder");
    std::os::unix::fs::symlink("/etc", folder.join("link")).expect("a link");
    let following = probe(&["cannot-read /volume/passwd"]).with(
        "/volumeMounts",
        json!([{ "name": "volume", "mountPath": "/volume", "subPath": "link" }]),
    );

    let ended = canary.node.run_to_end(&[pod("following", [following])
        .with("/spec/volumes", json!([{ "name": "volume", "hostPath": { "path": folder } }]))]);

    // Either the pod does not start, or it sees nothing there; never the host's file.
    assert!(
        !format!("{}{}", ended.stdout, ended.stderr).contains("FAILED: cannot-read"),
        "{}",
        ended.stdout
    );
    canary.is_well();
}

#[test]
fn p04_an_item_s_path_that_climbs_out_of_its_volume_is_refused() {
    let canary = Canary::new();
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "map" }, "data": { "key": "x" } });

    for path in ["../escaped", "/absolute", "a/../../b", ".."] {
        let reader = probe(&["exit 0"])
            .with("/volumeMounts", json!([{ "name": "map", "mountPath": "/map" }]));
        refused(
            &canary,
            &[
                map.clone(),
                pod("reader", [reader]).with(
                    "/spec/volumes",
                    json!([{ "name": "map", "configMap": { "name": "map", "items": [{ "key": "key", "path": path }] } }]),
                ),
            ],
        );
    }

    canary.is_well();
}

#[test]
fn p06_powers_that_no_guest_gets_are_refused_by_their_names() {
    let canary = Canary::new();
    let table = [
        (pod("a", [probe(&["exit 0"])]).with("/spec/hostPID", json!(true)), "hostPID"),
        (pod("a", [probe(&["exit 0"])]).with("/spec/hostIPC", json!(true)), "hostIPC"),
        (
            pod("a", [probe(&["exit 0"]).with("/securityContext/privileged", json!(true))]),
            "privileged",
        ),
        (
            pod(
                "a",
                [probe(&["exit 0"])
                    .with("/securityContext/capabilities/add", json!(["SYS_ADMIN"]))],
            ),
            "capabilities",
        ),
    ];

    for (asking, field) in table {
        let ended = refused(&canary, &[asking]);
        assert!(ended.stderr.contains(field), "{field}: {}", ended.stderr);
    }

    canary.is_well();
}

#[test]
fn p09_an_image_name_that_points_elsewhere_is_refused() {
    let canary = Canary::new();
    let long = format!("localhost:5000/a:{}", "x".repeat(4096));

    for image in [
        "user@host/a:1",
        "localhost:5000/../a:1",
        "localhost:5000/a@sha256:12",
        "http://localhost:5000/a:1",
        &long,
    ] {
        refused(&canary, &[pod("a", [probe(&["exit 0"]).with("/image", json!(image))])]);
    }

    canary.is_well();
}

#[test]
fn p11_numbers_at_the_ends_of_their_range_do_no_harm() {
    let canary = Canary::new();

    for seconds in [i64::MIN, -1, i64::MAX] {
        let ended = canary.node.run_to_end(&[pod("a", [probe(&["exit 0"])])
            .with("/spec/terminationGracePeriodSeconds", json!(seconds))]);
        assert!(
            matches!(ended.code, Some(0 | 2 | 125)),
            "{seconds}: {:?} {}",
            ended.code,
            ended.stderr
        );
    }

    canary.is_well();
}
