//! Container images with more files than their program.

use copepod_tests::manifest::{With, pod};
use copepod_tests::node::Node;
use copepod_tests::registry::served::{Image, archive, serve};
use serde_json::{Value, json};

/// A container of an image whose entrypoint is the probe, with this script.
fn probe(image: &str, script: &[&str]) -> Value {
    json!({ "name": "probe", "image": image, "args": script, "imagePullPolicy": "Always" })
}

/// The name of an image that is served.
fn served(image: Image) -> String {
    format!("{}/files:1", serve(move |path| image.answer(path)))
}

fn guest(node: &Node, name: &str) -> Vec<u8> {
    std::fs::read(node.built().guest(name)).expect("it is built")
}

#[test]
fn a_program_finds_the_files_of_its_image_at_its_root_and_cannot_change_them() {
    let node = Node::new();
    for program in ["probe", "probe-p1"] {
        let lower = archive(&[
            ("app/main.wasm", &guest(&node, program)),
            ("etc/motd", b"old"),
            ("etc/removed", b"old"),
            ("usr/share/data/one", b"1"),
        ]);
        let upper = archive(&[
            ("etc/motd", b"hello"),
            ("etc/.wh.removed", b""),
            ("etc/link -> /usr/share/data", b""),
            ("outside -> ../../../../etc/passwd", b""),
        ]);
        let image = served(Image::container(&["/app/main.wasm"], &[lower, upper]));
        let script = [
            "file-is /etc/motd hello",
            "missing /etc/removed",
            "file-is /etc/link/one 1",
            "cannot-read /outside",
            "list-is / app,etc,outside,usr",
            "cannot-write /etc/motd",
            "cannot-mkdir /new",
            "cannot-remove /etc/motd",
            "write /data/mine yes",
            "file-is /data/mine yes",
            "file-is /etc/motd hello",
        ];
        let mut container = probe(&image, &script);
        container["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
        let pod = pod(program, [container])
            .with("/spec/volumes", json!([{ "name": "data", "emptyDir": {} }]));

        let ended = node.run_to_end(&[pod]);

        assert_eq!(ended.code, Some(0), "{program}: {}{}", ended.stdout, ended.stderr);
    }
}

#[test]
fn containers_of_one_image_share_its_files_and_a_new_version_has_its_own() {
    let node = Node::new();
    let program = guest(&node, "probe");
    let version = |text: &str| {
        let layer = archive(&[("main.wasm", &program), ("version", text.as_bytes())]);
        served(Image::container(&["/main.wasm"], &[layer]))
    };
    let (first, second) = (version("1"), version("2"));
    let waiting = ["file-is /version 1", "sleep 600000"];
    let pods = [
        pod("one", [probe(&first, &waiting)]),
        pod("two", [probe(&first, &waiting)]),
        pod("three", [probe(&second, &["file-is /version 2", "sleep 600000"])]),
    ];
    node.start(&pods);

    for name in ["one", "two", "three"] {
        node.wait_ready(name);
        copepod_tests::wait::until("what it found", || {
            let said = node.logs(name, "probe");
            assert!(!said.contains("FAILED"), "{said}");
            said.contains("ok: file-is /version").then_some(())
        });
    }
    // Also of a command beside them.
    let beside = node.run(&["exec", "two", "--", "main.wasm", "file-is /version 1"]);
    assert_eq!(beside.code, Some(0), "{}{}", beside.stdout, beside.stderr);
    assert!(node.ok(&["image", "inspect", &first]).contains("read-only at /"));
}
