//! The compile child by itself: what `copepod __compile` runs, for tests of this crate.
//!
//! Absent: everything else of `copepod`.

fn main() -> std::process::ExitCode {
    copepod_image::install_tls_provider();
    copepod_image::compile_child_main()
}
