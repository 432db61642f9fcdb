//! Volumes: what a container sees at a mount path, and what it cannot change there.

use copepod_tests::manifest::{With, pod, probe};
use copepod_tests::node::Node;
use serde_json::{Value, json};

fn config_map(name: &str, data: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data })
}

/// Runs one pod of one probe to its end, which must be a success.
fn finds(node: &Node, objects: &[Value]) {
    let ended = node.run_to_end(objects);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

fn mounts(container: Value, mounts: Value) -> Value {
    container.with("/volumeMounts", mounts)
}

#[test]
fn a_config_map_s_keys_are_files_that_nobody_can_change() {
    let node = Node::new();
    node.load(&["probe"]);
    let container = mounts(
        probe(&[
            "list-is /config greeting,other",
            "file-is /config/greeting hello",
            "cannot-write /config/greeting",
            "cannot-write /config/new",
            "cannot-remove /config/greeting",
            "cannot-truncate /config/greeting",
            "cannot-rename /config/greeting /config/moved",
            "file-is /config/greeting hello",
        ]),
        json!([{ "name": "config", "mountPath": "/config" }]),
    );

    finds(
        &node,
        &[
            config_map("greetings", json!({ "greeting": "hello", "other": "x" })),
            pod("reader", [container]).with(
                "/spec/volumes",
                json!([{ "name": "config", "configMap": { "name": "greetings" } }]),
            ),
        ],
    );
}

#[test]
fn chosen_items_of_a_secret_appear_under_their_paths_and_decoded() {
    let node = Node::new();
    node.load(&["probe"]);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "login" },
        "data": { "password": "czNjcmV0", "user": "bWU=" },
    });
    let container = mounts(
        probe(&[
            "list-is /secret db",
            "file-is /secret/db/password s3cret",
            "cannot-write /secret/db/password",
        ]),
        json!([{ "name": "login", "mountPath": "/secret", "readOnly": true }]),
    );

    finds(
        &node,
        &[
            secret,
            pod("reader", [container]).with(
                "/spec/volumes",
                json!([{ "name": "login", "secret": {
                    "secretName": "login", "items": [{ "key": "password", "path": "db/password" }] } }]),
            ),
        ],
    );
}

#[test]
fn an_empty_dir_is_shared_by_the_pod_s_containers_and_read_only_where_a_mount_says_so() {
    let node = Node::new();
    node.load(&["probe"]);
    let writer = mounts(
        probe(&["write /out/note from the writer", "wait-for /out/note"])
            .with("/name", json!("writer")),
        json!([{ "name": "shared", "mountPath": "/out" }]),
    );
    let reader = mounts(
        probe(&[
            "wait-for /in/note",
            "file-is /in/note from the writer",
            "cannot-write /in/note",
            "cannot-remove /in/note",
            "cannot-mkdir /in/folder",
        ])
        .with("/name", json!("reader")),
        json!([{ "name": "shared", "mountPath": "/in", "readOnly": true }]),
    );

    finds(
        &node,
        &[pod("pair", [writer, reader])
            .with("/spec/volumes", json!([{ "name": "shared", "emptyDir": {} }]))],
    );
}

#[test]
fn a_sub_path_shows_one_folder_of_a_volume_and_no_other() {
    let node = Node::new();
    node.load(&["probe"]);
    let container = mounts(
        probe(&[
            "write /all/a/inside x",
            "list-is /part inside",
            "cannot-read /part/../b",
            "write /part/more y",
            "file-is /all/a/more y",
        ]),
        json!([
            { "name": "shared", "mountPath": "/part", "subPath": "a" },
            { "name": "shared", "mountPath": "/all" },
        ]),
    );

    finds(
        &node,
        &[pod("parts", [container])
            .with("/spec/volumes", json!([{ "name": "shared", "emptyDir": {} }]))],
    );
}

#[test]
fn a_host_path_shows_the_host_s_files_and_is_written_only_where_the_mount_allows_it() {
    let node = Node::new();
    node.load(&["probe"]);
    let folder = node.scratch().join("host");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("there"), "from the host").expect("a file");
    let container = mounts(
        probe(&[
            "file-is /ro/there from the host",
            "cannot-write /ro/there",
            "cannot-truncate /ro/there",
            "write /rw/new from the guest",
        ]),
        json!([
            { "name": "host", "mountPath": "/ro", "readOnly": true },
            { "name": "host", "mountPath": "/rw" },
        ]),
    );

    finds(
        &node,
        &[pod("host-reader", [container]).with(
            "/spec/volumes",
            json!([{ "name": "host", "hostPath": { "path": folder, "type": "Directory" } }]),
        )],
    );

    assert_eq!(std::fs::read_to_string(folder.join("new")).expect("written"), "from the guest");
    assert_eq!(std::fs::read_to_string(folder.join("there")).expect("kept"), "from the host");
}

#[test]
fn an_empty_dir_holds_no_more_than_its_size_limit() {
    let node = Node::new();
    node.load(&["probe"]);
    let limited = |medium: &str| {
        let container = mounts(
            probe(&["fill /small/fits 500000", "cannot-fill /small/too-much 4000000"]),
            json!([{ "name": "small", "mountPath": "/small" }]),
        );
        pod(if medium.is_empty() { "on-disk" } else { "in-memory" }, [container]).with(
            "/spec/volumes",
            json!([{ "name": "small", "emptyDir": { "sizeLimit": "1Mi", "medium": medium } }]),
        )
    };

    finds(&node, &[limited("")]);
    finds(&node, &[limited("Memory")]);
}
