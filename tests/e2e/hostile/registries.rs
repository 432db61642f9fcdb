//! Registries that lie. Each is a server of a few lines on loopback.

use std::net::SocketAddr;

use copepod_tests::manifest::{With, pod, probe};
use copepod_tests::node::Ended;
use copepod_tests::registry::served::{Image, MANIFEST, serve};
use serde_json::json;

use super::Canary;

/// Pulls from there; how that ended.
fn pull(canary: &Canary, from: SocketAddr) -> Ended {
    canary.node.run(&["image", "pull", &format!("{from}/hostile:1")])
}

#[test]
fn an_honest_registry_of_this_kind_serves() {
    let canary = Canary::new();
    let wasm = std::fs::read(canary.node.built().guest("batch")).expect("a built guest");
    let image = Image::of(&wasm);
    let from = serve(move |path| image.answer(path));

    let ended = canary.node.run_to_end(&[pod(
        "batch",
        [probe(&["100"]).with("/image", json!(format!("{from}/hostile:1")))],
    )]);

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("25 primes below 100"), "{}", ended.stdout);
}

#[test]
fn r02_a_layer_with_another_digest_is_refused_and_not_kept() {
    let canary = Canary::new();
    let wasm = std::fs::read(canary.node.built().guest("batch")).expect("a built guest");
    let mut image = Image::of(&wasm);
    let middle = image.layers[0].len() / 2;
    image.layers[0][middle] ^= 1;
    let from = serve(move |path| image.answer(path));

    let ended = pull(&canary, from);

    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains("digest"), "{}", ended.stderr);
    assert!(!canary.node.ok(&["image", "ls"]).contains("hostile"));
    canary.is_well();
}

#[test]
fn r03_a_layer_of_another_length_is_refused() {
    let canary = Canary::new();
    let wasm = std::fs::read(canary.node.built().guest("batch")).expect("a built guest");

    for length in [wasm.len() - 1, wasm.len() + 100_000] {
        let mut image = Image::of(&wasm);
        image.layers[0].resize(length, 0);
        let from = serve(move |path| image.answer(path));
        assert_ne!(pull(&canary, from).code, Some(0), "{length} bytes");
    }

    canary.is_well();
}

#[test]
fn r06_a_manifest_of_100_mb_is_not_read_to_its_end() {
    let canary = Canary::new();
    let from = serve(|path| {
        let large = || {
            [br#"{"schemaVersion":2,"annotations":{"a":""#.as_slice(), &vec![b'x'; 100_000_000]]
                .concat()
        };
        if path.contains("/manifests/") {
            Some((MANIFEST, large()))
        } else {
            Some(("application/json", b"{}".to_vec()))
        }
    });

    let ended = pull(&canary, from);

    assert_ne!(ended.code, Some(0));
    canary.is_well();
}

#[test]
fn r21_a_layer_of_native_code_is_refused_as_what_it_is() {
    let canary = Canary::new();
    let image = Image::of(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
    let from = serve(move |path| image.answer(path));

    let ended = canary.node.run_to_end(&[pod(
        "native",
        [probe(&[]).with("/image", json!(format!("{from}/hostile:1")))],
    )]);

    assert_eq!(ended.code, Some(125), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("Linux"), "{}", ended.stderr);
    canary.is_well();
}
