//! Volumes: what a container sees at a mount path, and what it cannot change there.

use std::os::unix::fs::symlink;
use std::path::Path;

use copepod_tests::manifest::{With, pod, probe};
use copepod_tests::node::Node;
use copepod_tests::wait::until;
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

#[test]
fn a_projected_volume_shows_config_maps_secrets_and_the_pod_itself_in_one_folder() {
    let node = Node::new();
    node.load(&["probe"]);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "login" },
        "data": { "password": "czNjcmV0" },
    });
    let container = mounts(
        probe(&[
            "list-is /all greeting,password,pod",
            "list-is /all/pod labels,limit",
            "file-is /all/greeting hello",
            "file-is /all/password s3cret",
            "file-is /all/pod/labels app=\"reader\"",
            "file-is /all/pod/limit 64",
            "file-is /self/name reader",
            "cannot-write /all/greeting",
            "cannot-remove /all/pod/labels",
            "cannot-write /self/new",
        ]),
        json!([{ "name": "all", "mountPath": "/all" }, { "name": "self", "mountPath": "/self" }]),
    )
    .with("/name", json!("app"))
    .with("/resources/limits/memory", json!("64Mi"));
    let limit = json!({ "containerName": "app", "resource": "limits.memory", "divisor": "1Mi" });
    let items = json!([
        { "path": "pod/labels", "fieldRef": { "fieldPath": "metadata.labels" } },
        { "path": "pod/limit", "resourceFieldRef": limit },
    ]);
    let name = json!([{ "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }]);

    finds(
        &node,
        &[
            config_map("greetings", json!({ "greeting": "hello", "other": "x" })),
            secret,
            pod("reader", [container]).with("/metadata/labels", json!({ "app": "reader" })).with(
                "/spec/volumes",
                json!([
                    { "name": "all", "projected": { "sources": [
                        { "configMap": { "name": "greetings", "items": [{ "key": "greeting", "path": "greeting" }] } },
                        { "secret": { "name": "login" } },
                        { "secret": { "name": "none", "optional": true } },
                        { "downwardAPI": { "items": items } },
                    ] } },
                    { "name": "self", "downwardAPI": { "items": name } },
                ]),
            ),
        ],
    );
}

/// Puts other files into a volume as the agent does: whole, by one rename.
fn replace_files(volume: &Path, files: &[(&str, &str)]) {
    let new = volume.join("..2222_new");
    for (path, text) in files {
        let at = new.join(path);
        std::fs::create_dir_all(at.parent().expect("a folder")).expect("made");
        std::fs::write(at, text).expect("written");
    }
    symlink("..2222_new", volume.join("..data_tmp")).expect("linked");
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("renamed");
}

#[test]
fn a_guest_that_opens_a_file_again_sees_what_has_come_into_its_place_but_not_through_a_sub_path() {
    let node = Node::new();
    node.load(&["probe"]);
    let container = mounts(
        probe(&[
            "file-is /config/greeting old",
            "file-is /config/conf/a old",
            "file-is /single/greeting old",
            "list-is /part a",
            "wait-for /config/conf/b",
            "file-is /config/greeting new",
            "file-is /config/conf/a new",
            "file-is /single/greeting old",
            "list-is /part a",
            "file-is /part/a old",
            "cannot-write /config/greeting",
            "cannot-write /config/..data/greeting",
            "cannot-remove /config/..data",
            "cannot-write /part/a",
            "cannot-read /config/../etc/passwd",
        ]),
        json!([
            { "name": "config", "mountPath": "/config" },
            { "name": "config", "mountPath": "/single/greeting", "subPath": "greeting" },
            { "name": "config", "mountPath": "/part", "subPath": "conf" },
        ]),
    );
    let items =
        json!([{ "key": "greeting", "path": "greeting" }, { "key": "a", "path": "conf/a" }]);
    node.start(&[
        config_map("greetings", json!({ "greeting": "old", "a": "old" })),
        pod("reader", [container]).with(
            "/spec/volumes",
            json!([{ "name": "config", "configMap": { "name": "greetings", "items": items } }]),
        ),
    ]);
    let reader = node.wait_for("reader", "running", |pod| pod["status"]["phase"] == "Running");
    until("the guest to have seen the old files", || {
        node.run(&["logs", "reader"]).stdout.contains("ok: list-is /part a").then_some(())
    });

    let uid = reader["metadata"]["uid"].as_str().expect("a UID");
    let volume = node.data().join("domains/ns-default/root/ro").join(uid).join("config");
    replace_files(&volume, &[("greeting", "new"), ("conf/a", "new"), ("conf/b", "new")]);

    let over = node.wait_over("reader");
    let logs = node.run(&["logs", "reader"]).stdout;
    assert_eq!(over["status"]["phase"], "Succeeded", "{logs}");
}
