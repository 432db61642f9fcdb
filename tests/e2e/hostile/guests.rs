//! Hostile wasm: modules written for the case, and the probe told to misbehave.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use copepod_tests::manifest::{With, pod, probe};
use copepod_tests::node::{Ended, Node, status};
use serde_json::{Value, json};

use super::Canary;

/// The image reference of a module that a test wrote.
const WRITTEN: &str = "localhost:5000/written:1";

/// Loads a module from its text form.
fn load(node: &Node, text: &str) -> Ended {
    load_bytes(node, &wat::parse_str(text).expect("the test's own text is right"))
}

fn load_bytes(node: &Node, wasm: &[u8]) -> Ended {
    let file = node.write("written.wasm", wasm);
    node.run(&["image", "load", &file, "--tag", WRITTEN])
}

fn written(name: &str) -> Value {
    pod(name, [probe(&[]).with("/image", json!(WRITTEN))])
}

/// Loads and runs a module; whichever step refuses it, its message.
fn refused(canary: &Canary, wasm: &[u8]) -> String {
    let loaded = load_bytes(&canary.node, wasm);
    if loaded.code != Some(0) {
        return loaded.stderr;
    }
    let ended = canary.node.run_to_end(&[written("refused")]);
    assert_eq!(ended.code, Some(125), "it can never run: {}{}", ended.stdout, ended.stderr);
    ended.stderr
}

/// How a pod's one container ended.
fn end(node: &Node, name: &str) -> (i64, String) {
    let over = node.wait_over(name);
    let state = status(&over, "probe")["state"]["terminated"].clone();
    (
        state["exitCode"].as_i64().unwrap_or(-1),
        state["reason"].as_str().unwrap_or_default().to_owned(),
    )
}

#[test]
fn w01_a_loop_without_end_is_stopped() {
    let canary = Canary::new();
    let spinning = pod("spinning", [probe(&["spin"]).with("/resources/limits/cpu", json!("200m"))]);
    canary.node.start(&[spinning.with("/spec/terminationGracePeriodSeconds", json!(1))]);
    canary.node.wait_for("spinning", "running", |pod| {
        status(pod, "probe")["state"]["running"].is_object()
    });

    canary.is_well();
    canary.node.ok(&["stop", "spinning"]);

    canary.is_well();
}

#[test]
fn w02_a_loop_in_the_start_function_is_stopped_and_is_never_ready() {
    let canary = Canary::new();
    let text = "(module (func $loop (loop (br 0))) (start $loop) (func (export \"_start\")))";
    assert_eq!(load(&canary.node, text).code, Some(0));
    canary.node.start(&[written("looping").with("/spec/terminationGracePeriodSeconds", json!(1))]);

    canary.is_well();
    canary.node.ok(&["stop", "looping"]);

    canary.is_well();
}

#[test]
fn w04_memory_grows_to_its_limit_and_no_further() {
    let canary = Canary::new();
    canary.node.start(&[pod(
        "growing",
        [probe(&["alloc-all"]).with("/resources/limits/memory", json!("32Mi"))],
    )]);

    assert_eq!(end(&canary.node, "growing"), (137, "OOMKilled".to_owned()));

    canary.is_well();
}

#[test]
fn w06_a_memory_of_2_to_the_48_bytes_is_refused() {
    let canary = Canary::new();
    let wasm = wat::parse_str("(module (memory i64 0x100000000) (func (export \"_start\")))")
        .expect("right");

    let said = refused(&canary, &wasm);

    // Without the proposal the flag of a 64-bit memory is not even read as one.
    assert!(said.contains("the module is not valid"), "{said}");
    canary.is_well();
}

#[test]
fn w07_a_table_does_not_grow_past_the_container_s_memory() {
    let canary = Canary::new();
    let text = "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
        (memory (export \"memory\") 1) (table $t 1 funcref)
        (func (export \"_start\")
            (call $exit (i32.add (i32.const 8) (table.grow $t (ref.null func) (i32.const 1000000000))))))";
    assert_eq!(load(&canary.node, text).code, Some(0));
    canary.node.start(&[written("growing")]);

    let (code, reason) = end(&canary.node, "growing");

    // Refused, as -1, and the guest goes on; or ended for asking.
    assert!(code == 7 || (code == 137 && reason == "OOMKilled"), "{code} {reason}");
    canary.is_well();
}

#[test]
fn w08_recursion_to_the_end_of_the_stack_is_a_trap() {
    let canary = Canary::new();
    let text =
        "(module (import \"wasi_snapshot_preview1\" \"sched_yield\" (func $yield (result i32)))
        (memory (export \"memory\") 1)
        (func $deeper (drop (call $yield)) (call $deeper) (drop (call $yield)))
        (func (export \"_start\") (call $deeper)))";
    assert_eq!(load(&canary.node, text).code, Some(0));
    canary.node.start(&[written("deep")]);

    assert_eq!(end(&canary.node, "deep"), (134, "Error".to_owned()));

    canary.is_well();
}

#[test]
fn w10_a_module_that_is_dear_to_compile_harms_nobody() {
    let canary = Canary::new();
    // 100,000 nested blocks: a parser that recursed would end its own stack.
    let wasm = nested_blocks(100_000);

    let ended = {
        let loaded = load_bytes(&canary.node, &wasm);
        if loaded.code == Some(0) { canary.node.run_to_end(&[written("nested")]) } else { loaded }
    };

    // It may compile and run, or be refused as what can never run; it may not end the agent.
    assert!(matches!(ended.code, Some(0 | 1 | 2 | 125)), "{:?}: {}", ended.code, ended.stderr);
    canary.is_well();
}

#[test]
fn w13_a_file_cut_off_anywhere_is_refused_as_damaged() {
    let canary = Canary::new();
    let whole = std::fs::read(canary.node.built().guest("batch")).expect("a built guest");

    for length in [9, 100, whole.len() / 2, whole.len() - 1] {
        let said = refused(&canary, &whole[..length]);
        assert!(said.contains("damaged") || said.contains("_start"), "cut at {length}: {said}");
    }

    canary.is_well();
}

#[test]
fn w21_shared_memory_is_refused() {
    let canary = Canary::new();
    let wasm = wat::parse_str(
        "(module (memory 1 1 shared) (func (export \"_start\") (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1)))))",
    )
    .expect("right");

    let said = refused(&canary, &wasm);

    assert!(said.contains("threads") || said.contains("shared"), "{said}");
    canary.is_well();
}

#[test]
fn w26_w27_no_path_and_no_link_leads_out_of_a_volume() {
    let canary = Canary::new();
    let secret = canary.node.scratch().join("secret");
    std::fs::write(&secret, "outside").expect("a file");
    let folder = canary.node.scratch().join("volume");
    std::fs::create_dir(&folder).expect("a folder");
    // A link that somebody else left in the volume.
    std::os::unix::fs::symlink(&secret, folder.join("left-behind")).expect("a link");
    std::os::unix::fs::symlink("/", folder.join("root")).expect("a link");
    let long = format!("cannot-read /volume/{}", "../".repeat(20_000));
    let script = [
        "cannot-read /volume/../secret",
        "cannot-read /volume/../../../../../../etc/passwd",
        "cannot-read /etc/passwd",
        "cannot-read /volume/left-behind",
        "cannot-truncate /volume/left-behind",
        "cannot-read /volume/root/etc/passwd",
        "cannot-list /volume/root/",
        "cannot-symlink /etc/passwd /volume/absolute",
        "cannot-link /volume/../secret /volume/hard",
        &long,
        "write /volume/inside x",
        "cannot-rename /volume/inside /volume/../outside",
        "file-is /volume/inside x",
    ];
    let climber =
        probe(&script).with("/volumeMounts", json!([{ "name": "volume", "mountPath": "/volume" }]));

    let ended = canary.node.run_to_end(&[pod("climber", [climber])
        .with("/spec/volumes", json!([{ "name": "volume", "hostPath": { "path": folder } }]))]);

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(std::fs::read_to_string(&secret).expect("kept"), "outside");
    canary.is_well();
}

#[test]
fn w36_a_flood_of_output_fills_no_disk() {
    let canary = Canary::new();
    canary.node.start(&[pod("loud", [probe(&["forever flood-line 1000000"])])]);
    std::thread::sleep(std::time::Duration::from_secs(3));

    canary.is_well();
    canary.node.ok(&["stop", "loud", "--grace", "0"]);

    canary.is_well();
}

#[test]
fn w37_what_a_guest_prints_cannot_pass_for_another_record_of_the_log() {
    let canary = Canary::new();
    canary.node.start(&[pod("forger", [probe(&["forge-log"])])]);
    canary.node.wait_over("forger");

    let mut records = String::new();
    for file in log_files(&canary.node.data().join("logs")) {
        if file.to_string_lossy().contains("forger") {
            records
                .push_str(&String::from_utf8_lossy(&std::fs::read(file).expect("root may read")));
        }
    }

    assert!(records.contains("forged"), "the bytes are kept: {records:?}");
    assert!(!records.lines().any(|line| line.starts_with("2026-01-01T")), "{records:?}");
    canary.is_well();
}

#[test]
fn w38_no_form_of_loopback_reaches_a_listener_of_the_host() {
    let canary = Canary::new();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    listener.set_nonblocking(true).expect("a socket");
    let statements: Vec<String> =
        ["127.0.0.1", "127.9.9.9", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "localhost"]
            .iter()
            .map(|host| format!("connect {host}:{port} failed"))
            .collect();
    let script: Vec<&str> = statements.iter().map(String::as_str).collect();

    let ended = canary.node.run_to_end(&[pod("caller", [probe(&script)])]);

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let reached = listener.accept();
    assert_eq!(reached.expect_err("nobody came").kind(), std::io::ErrorKind::WouldBlock);
    canary.is_well();
}

#[test]
fn w39_w41_link_local_and_metadata_addresses_are_denied_for_tcp_and_udp() {
    let canary = Canary::new();
    let script = [
        "connect 169.254.169.254:80 denied",
        "connect [fe80::1]:80 failed",
        "udp-cannot-send 169.254.169.254:53",
        "udp-cannot-send 224.0.0.1:53",
        "udp-cannot-send 255.255.255.255:53",
    ];

    let ended = canary.node.run_to_end(&[pod("caller", [probe(&script)])]);

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    canary.is_well();
}

#[test]
fn w40_no_address_of_another_pod_or_of_the_host_can_be_bound() {
    let canary = Canary::new();
    let near = canary.node.address("canary-near", 8080).ip();
    let far = canary.node.address("canary-far", 8080).ip();
    let host = UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| {
            socket.connect((near, 9))?;
            socket.local_addr()
        })
        .expect("the host reaches its pods")
        .ip();
    let statements: Vec<String> = [near, far, host]
        .iter()
        .flat_map(|ip| [format!("bind {ip}:7999 failed"), format!("udp-bind {ip}:7999 failed")])
        .chain(["bind 0.0.0.0:7999 ok".to_owned()])
        .collect();
    let script: Vec<&str> = statements.iter().map(String::as_str).collect();

    let ended = canary.node.run_to_end(&[pod("squatter", [probe(&script)])]);

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    canary.is_well();
}

/// A module whose `_start` is so many blocks, one in the other: written as bytes, as no writer of text would nest so deep.
fn nested_blocks(depth: usize) -> Vec<u8> {
    let mut body = vec![0];
    body.extend(std::iter::repeat_n([0x02, 0x40], depth).flatten());
    body.extend(std::iter::repeat_n(0x0b, depth + 1));
    let mut code = vec![1];
    leb(body.len(), &mut code);
    code.extend(body);

    let mut wasm = b"\0asm\x01\0\0\0".to_vec();
    section(1, &[1, 0x60, 0, 0], &mut wasm);
    section(3, &[1, 0], &mut wasm);
    section(7, b"\x01\x06_start\0\0", &mut wasm);
    section(10, &code, &mut wasm);
    wasm
}

fn section(id: u8, content: &[u8], wasm: &mut Vec<u8>) {
    wasm.push(id);
    leb(content.len(), wasm);
    wasm.extend(content);
}

/// An unsigned number in LEB128.
fn leb(mut n: usize, to: &mut Vec<u8>) {
    loop {
        let low = (n & 0x7f) as u8;
        n >>= 7;
        to.push(if n == 0 { low } else { low | 0x80 });
        if n == 0 {
            return;
        }
    }
}

fn log_files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .flat_map(
            |entry| {
                if entry.path().is_dir() { log_files(&entry.path()) } else { vec![entry.path()] }
            },
        )
        .collect()
}
