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
fn a_program_finds_the_files_of_its_image_at_its_root_and_cannot_change_them_where_that_is_read_only()
 {
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
        container["securityContext"] = json!({ "readOnlyRootFilesystem": true });
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

#[test]
fn what_a_container_writes_to_its_image_s_files_is_its_own_and_goes_with_the_run() {
    let node = Node::new();
    for program in ["probe", "probe-p1"] {
        let layer = archive(&[
            ("main.wasm", &guest(&node, program)),
            ("etc/motd", b"hello"),
            ("etc/deep/one", b"1"),
            ("tmp/.keep", b""),
        ]);
        let image = served(Image::container(&["/main.wasm"], &[layer]));
        let writes = [
            "file-is /etc/motd hello",
            "write /etc/motd changed",
            "file-is /etc/motd changed",
            "mkdir /new",
            "write /new/file mine",
            "remove /etc/deep/one",
            "missing /etc/deep/one",
            "write /tmp/scratch yes",
            "sleep 600000",
        ];
        let mut first = probe(&image, &writes);
        first["name"] = json!("first");
        // Of the same image, at the same time.
        let mut second = probe(&image, &["sleep 600000"]);
        second["name"] = json!("second");
        // Sees its own only, although it has failed once after it wrote.
        let mut third =
            probe(&image, &["file-is /etc/motd hello", "write /etc/motd again", "exit 3"]);
        third["name"] = json!("third");
        node.start(&[
            pod(program, [first, second]),
            pod(&format!("{program}-twice"), [third])
                .with("/spec/restartPolicy", json!("OnFailure")),
        ]);
        copepod_tests::wait::until("what it wrote", || {
            let said = node.logs(program, "first");
            assert!(!said.contains("FAILED"), "{said}");
            said.contains("ok: write /tmp/scratch").then_some(())
        });

        let exec = |container: &str, script: &[&str]| {
            node.run(
                &[&["exec", program, "--container", container, "--", "main.wasm"], script].concat(),
            )
        };
        let beside = exec("first", &["file-is /etc/motd changed", "file-is /new/file mine"]);
        let other =
            exec("second", &["file-is /etc/motd hello", "missing /new", "file-is /etc/deep/one 1"]);
        let again = node.wait_for(&format!("{program}-twice"), "over once more", |pod| {
            let status = &pod["status"]["containerStatuses"][0];
            let waits = &status["state"]["waiting"]["reason"];
            status["restartCount"] == 1 && waits == "CrashLoopBackOff"
        });

        assert_eq!(beside.code, Some(0), "{program}: {}{}", beside.stdout, beside.stderr);
        assert_eq!(other.code, Some(0), "{program}: {}{}", other.stdout, other.stderr);
        let said = node.logs(&format!("{program}-twice"), "third");
        assert!(said.contains("ok: file-is /etc/motd hello") && !said.contains("FAILED"), "{said}");
        assert!(again["status"]["containerStatuses"][0]["lastState"]["terminated"].is_object());
        node.ok(&["stop", "--grace", "0", program, &format!("{program}-twice")]);
    }
}
