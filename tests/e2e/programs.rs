//! What is, and is not, linked into the built programs.

use std::process::Command;

use copepod_tests::built::Built;

#[test]
fn no_compiler_is_linked_into_the_runner() {
    let runner = Built::from_env().copepod.with_file_name("copepod-runner");

    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--package",
            "copepod-runner",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ])
        .output()
        .expect("cargo starts");
    let program = std::fs::read(&runner).expect("the runner is built");

    let tree = String::from_utf8_lossy(&tree.stdout);
    assert!(tree.contains("wasmtime v"), "{tree}");
    assert!(!tree.contains("cranelift-codegen"), "{tree}");
    // The names of a compiler's functions are in a program that holds one.
    assert!(contains(&program, b"wasmtime"));
    assert!(!contains(&program, b"cranelift_codegen"));
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}
