//! The programs, by name.

mod archive;
mod files;
mod find;
mod machine;
mod test;
mod text;
mod web;

use std::io;

use crate::call::Call;

pub(crate) use machine::is_folder;

/// A program. It comes back with its exit code; an error is told by whoever called it.
pub type Program = fn(&mut Call<'_>) -> io::Result<u8>;

/// All programs that stand for themselves; the shell has more of its own, like `cd`.
const PROGRAMS: &[(&str, Program)] = &[
    ("[", test::test),
    ("basename", text::basename),
    ("cat", text::cat),
    ("cp", files::cp),
    ("cut", text::cut),
    ("date", machine::date),
    ("dd", files::dd),
    ("dirname", text::dirname),
    ("du", find::du),
    ("echo", text::echo),
    ("env", machine::env),
    ("false", machine::no),
    ("find", find::find),
    ("grep", text::grep),
    ("head", text::head),
    ("hostname", machine::hostname),
    ("ln", files::ln),
    ("ls", find::ls),
    ("mkdir", files::mkdir),
    ("mv", files::mv),
    ("nslookup", web::nslookup),
    ("printenv", machine::printenv),
    ("printf", text::printf),
    ("ps", machine::ps),
    ("pwd", machine::pwd),
    ("readlink", files::readlink),
    ("rm", files::rm),
    ("rmdir", files::rmdir),
    ("seq", text::seq),
    ("sh", crate::sh::main),
    ("sleep", machine::sleep),
    ("sort", text::sort),
    ("stat", find::stat),
    ("sync", machine::yes),
    ("tail", text::tail),
    ("tar", archive::tar),
    ("tee", text::tee),
    ("test", test::test),
    ("touch", files::touch),
    ("tr", text::tr),
    ("true", machine::yes),
    ("uname", machine::uname),
    ("uniq", text::uniq),
    ("wc", text::wc),
    ("wget", web::wget),
];

/// The program of this name, which may stand behind a folder: `/bin/sh` is `sh`.
pub fn program(name: &str) -> Option<Program> {
    let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
    let at = PROGRAMS.binary_search_by_key(&name, |(name, _)| name).ok()?;
    Some(PROGRAMS[at].1)
}

/// All names, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROGRAMS.iter().map(|(name, _)| *name)
}

/// Runs a program; its exit code. What went wrong is told on its stderr.
pub fn run(program: Program, call: &mut Call<'_>) -> u8 {
    use std::io::Write as _;
    let code = match program(call) {
        Ok(code) => code,
        // Nobody reads on, as in `... | head`: no news to anybody.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 141,
        Err(error) => {
            let text = format!("{}: {error}\n", call.name);
            let _ = call.streams.error.write_all(text.as_bytes());
            if error.kind() == io::ErrorKind::InvalidInput { 2 } else { 1 }
        }
    };
    let _ = call.streams.output.flush();
    code
}

#[cfg(test)]
mod tests;
