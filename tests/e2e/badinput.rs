//! Bad input gets a sentence that says what is wrong and where, and the exit code that the documentation gives.

use copepod_tests::manifest::{With, container, pod, probe};
use copepod_tests::node::{Ended, Node};
use serde_json::json;

/// Asserts how a command failed: its code, and the words that its message must hold.
fn fails(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}{}", ended.stdout, ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "no {word:?} in: {}", ended.stderr);
    }
}

#[test]
fn a_manifest_that_is_no_yaml_is_refused_with_its_line() {
    let node = Node::new();
    let file = node.write("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: [\n");

    fails(&node.run(&["run", &file]), 2, &["broken.yaml", "line"]);
}

#[test]
fn an_unknown_field_is_refused_with_its_name_and_line() {
    let node = Node::new();
    let file = node.write(
        "typo.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: a\n    image: b\n    comand: [x]\n",
    );

    fails(&node.run(&["run", &file]), 2, &["comand", "9"]);
}

#[test]
fn a_field_that_no_wasm_pod_can_honour_is_refused_by_its_name() {
    let node = Node::new();
    node.load(&["probe"]);
    let refused = pod("greedy", [probe(&["exit 0"])]).with("/spec/hostPID", json!(true));

    fails(&node.run_to_end(&[refused]), 125, &["hostPID"]);
}

#[test]
fn a_token_of_a_cluster_is_refused_by_its_field_where_there_is_no_cluster() {
    let node = Node::new();
    node.load(&["probe"]);
    let token = json!({ "serviceAccountToken": { "path": "token", "expirationSeconds": 3607 } });
    let mounts_one = pod("a", [probe(&["exit 0"])])
        .with("/spec/volumes", json!([{ "name": "api", "projected": { "sources": [token] } }]));
    let wants_one =
        pod("a", [probe(&["exit 0"])]).with("/spec/automountServiceAccountToken", json!(true));

    let field = "spec.volumes[0].projected.sources[0].serviceAccountToken";
    fails(&node.run_to_end(&[mounts_one]), 125, &[field, "cluster", "Secret"]);
    let field = "spec.automountServiceAccountToken";
    fails(&node.run_to_end(&[wants_one]), 125, &[field, "cluster", "leave it out"]);
}

#[test]
fn a_field_with_a_value_out_of_its_range_is_refused_by_its_name() {
    let node = Node::new();
    node.load(&["probe"]);
    let table = [
        (pod("Not_A_Name", [probe(&["exit 0"])]), "name"),
        (
            pod("a", [probe(&["exit 0"]).with("/ports", json!([{ "containerPort": 70000 }]))]),
            "containerPort",
        ),
        (pod("a", [probe(&["exit 0"]), probe(&["exit 0"])]), "name"),
        (pod("a", [probe(&["exit 0"]).with("/resources/limits/memory", json!("lots"))]), "memory"),
        (
            pod("a", [probe(&["exit 0"])]).with("/spec/terminationGracePeriodSeconds", json!(-1)),
            "terminationGracePeriodSeconds",
        ),
        (
            pod(
                "a",
                [probe(&["exit 0"])
                    .with("/volumeMounts", json!([{ "name": "none", "mountPath": "/x" }]))],
            ),
            "none",
        ),
    ];

    for (bad, word) in table {
        let ended = node.run_to_end(std::slice::from_ref(&bad));
        assert!(matches!(ended.code, Some(2 | 125)), "{bad}: {:?} {}", ended.code, ended.stderr);
        assert!(ended.stderr.contains(word), "no {word:?} in: {}", ended.stderr);
    }
}

#[test]
fn a_file_that_is_not_there_and_an_empty_one_are_said_to_be_so() {
    let node = Node::new();
    let empty = node.write("empty.yaml", "");

    fails(&node.run(&["run", "/no/such/manifest.yaml"]), 2, &["/no/such/manifest.yaml"]);
    fails(&node.run(&["run", &empty]), 2, &["empty.yaml"]);
}

#[test]
fn an_image_that_is_no_wasm_can_never_run_and_is_told_what_it_is() {
    let node = Node::new();
    let elf = node.write("linux", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let text = node.write("script.wasm", "#!/bin/sh\n");

    for (file, word) in [(elf, "Linux"), (text, "WebAssembly")] {
        let loaded = node.run(&["image", "load", &file, "--tag", "localhost:5000/bad:1"]);
        assert_ne!(loaded.code, Some(0));
        assert!(loaded.stderr.contains(word), "{}", loaded.stderr);
    }
}

#[test]
fn an_image_that_nobody_has_is_never_pulled_where_the_policy_forbids_it() {
    let node = Node::new();
    let absent = container("a", "absent").with("/imagePullPolicy", json!("Never"));

    fails(&node.run_to_end(&[pod("a", [absent])]), 125, &["localhost:5000/absent:1"]);
}

#[test]
fn a_missing_config_map_key_is_named() {
    let node = Node::new();
    node.load(&["probe"]);
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "map" }, "data": { "there": "x" } });
    let asks = probe(&["exit 0"]).with(
        "/env",
        json!([{ "name": "A", "valueFrom": { "configMapKeyRef": { "name": "map", "key": "not-there" } } }]),
    );

    fails(&node.run_to_end(&[map, pod("a", [asks])]), 125, &["not-there", "map"]);
}

#[test]
fn a_port_of_the_host_that_is_taken_is_named() {
    let node = Node::new();
    let guest = node.built().guest("hello-http");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();

    let ended =
        node.run(&["run", guest.to_str().expect("text"), "--publish", &format!("{port}:8080")]);

    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains(&port), "{}", ended.stderr);
}

#[test]
fn limits_beyond_the_machine_are_refused_with_both_figures() {
    let node = Node::new();
    node.load(&["probe"]);
    let huge = probe(&["exit 0"]).with(
        "/resources",
        json!({ "requests": { "memory": "900Ti" }, "limits": { "memory": "900Ti" } }),
    );

    let ended = node.run_to_end(&[pod("huge", [huge])]);

    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains("memory"), "{}", ended.stderr);
}

#[test]
fn a_damaged_code_cache_is_compiled_again() {
    let node = Node::new();
    node.load(&["probe"]);
    let once = |name: &str| node.run_to_end(&[pod(name, [probe(&["print it ran"])])]);
    assert_eq!(once("first").code, Some(0));
    let mut damaged = 0;
    for file in files(&node.data().join("code")) {
        if file.extension().is_some_and(|extension| extension == "cwasm") {
            let mut bytes = std::fs::read(&file).expect("the cache is readable");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            bytes[16] ^= 0x10;
            std::fs::write(&file, bytes).expect("root may write");
            damaged += 1;
        }
    }
    assert!(damaged > 0, "the code was cached");

    let again = once("second");

    assert_eq!(again.code, Some(0), "{}{}", again.stdout, again.stderr);
    assert!(again.stdout.contains("it ran"));
}

#[test]
fn an_import_that_nobody_provides_and_a_library_are_refused_by_what_they_miss() {
    let node = Node::new();
    let table = [
        (r#"(module (import "env" "magic" (func)) (func (export "_start")))"#, "magic"),
        (r#"(module (func (export "add")))"#, "_start"),
    ];

    for (text, word) in table {
        let file = node.write("app.wasm", wat::parse_str(text).expect("right"));
        fails(&node.run(&["run", &file]), 125, &[word]);
    }
}

#[test]
fn a_module_that_needs_more_than_a_compilation_may_use_is_refused_with_the_setting() {
    let node = Node::new();
    node.load(&["probe"]);
    let file = node.write("run.yaml", pod("dear", [probe(&["exit 0"])]).to_string());
    let mut command = node.copepod(&["run", &file]);

    let ended: Ended = command
        .env("COPEPOD_COMPILE_WALL_SECONDS", "0")
        .output()
        .expect("the built program starts")
        .into();

    fails(&ended, 125, &["raise COPEPOD_COMPILE_WALL_SECONDS"]);
}

#[test]
fn a_layer_above_its_limit_is_refused_with_the_setting() {
    let (node, elsewhere) = (Node::new(), Node::new());
    let registry =
        copepod_tests::registry::Registry::start(&node.built().registry).expect("it starts");
    let name = format!("{}/batch:1", registry.address());
    elsewhere.load_file(&node.built().guest("batch"), &name);
    elsewhere.ok(&["image", "push", &name]);
    let mut command = node.copepod(&["image", "pull", &name]);

    let ended: Ended = command
        .env("COPEPOD_MAX_LAYER_BYTES", "1000")
        .output()
        .expect("the built program starts")
        .into();

    fails(&ended, 1, &["COPEPOD_MAX_LAYER_BYTES"]);
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .flat_map(
            |entry| if entry.path().is_dir() { files(&entry.path()) } else { vec![entry.path()] },
        )
        .collect()
}
