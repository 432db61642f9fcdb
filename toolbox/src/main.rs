//! The toolbox as a program: the name that it is called by says which one it is.

use std::io::Write as _;
use std::path::Path;

use copepod_toolbox::{Call, Streams, Variables, tools};

fn main() {
    let mut words: Vec<String> = std::env::args().collect();
    let is_program =
        |name: Option<&String>| name.is_some_and(|name| tools::program(name).is_some());
    // `toolbox ls` is `ls`.
    if !is_program(words.first()) && !words.is_empty() {
        words.remove(0);
    }
    let variables: Variables = std::env::vars().collect();
    let folder = variables.get("PWD").map_or("/", String::as_str).to_owned();
    let Some((name, args)) = words.split_first() else {
        let names: Vec<&str> = tools::names().collect();
        let mut streams = Streams::of_process();
        let _ = writeln!(streams.output, "{}", names.join(" "));
        return;
    };
    let streams = Streams::of_process();
    let mut call = Call { name, args, variables: &variables, folder: Path::new(&folder), streams };
    let code = match tools::program(name) {
        Some(program) => tools::run(program, &mut call),
        None => {
            call.complain(name, &"no such program in the toolbox");
            127
        }
    };
    end(code);
}

/// Rust's own way out of a component has two codes only.
#[cfg(target_os = "wasi")]
fn end(code: u8) {
    let _ = std::io::stdout().flush();
    wasip2::cli::exit::exit_with_code(code);
}

#[cfg(not(target_os = "wasi"))]
fn end(code: u8) {
    std::process::exit(i32::from(code));
}
