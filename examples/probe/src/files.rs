//! Statements about files and directories.
//!
//! Absent: permissions and owners, which WASI does not show.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};

use crate::{Finding, equal, number, refused, text, two};

pub fn run(verb: &str, rest: &str) -> Option<Finding> {
    Some(match verb {
        "file-is" => with_path(rest, |path, wanted| {
            equal(fs::read_to_string(path).map_err(text)?.trim_end_matches('\n'), wanted)
        }),
        "file-has" => with_path(rest, |path, wanted| {
            let found = fs::read_to_string(path).map_err(text)?;
            if found.contains(wanted) { Ok(()) } else { Err(format!("found {found:?}")) }
        }),
        "size-is" => with_path(rest, |path, wanted| {
            equal(&fs::metadata(path).map_err(text)?.len().to_string(), wanted)
        }),
        // The names in a directory but those that `ls` hides, sorted, with commas between them.
        "list-is" => with_path(rest, |path, wanted| equal(&names(path)?.join(","), wanted)),
        "list" => names(rest).map(|names| println!("= {rest}: {}", names.join(","))),
        "show" => fs::read_to_string(rest).map_err(text).map(|found| println!("= {rest}: {found}")),
        "exists" => fs::metadata(rest).map(drop).map_err(text),
        "missing" => match fs::symlink_metadata(rest) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(text(error)),
            Ok(_) => Err("it is there".to_owned()),
        },
        "write" => with_path(rest, |path, content| fs::write(path, content).map_err(text)),
        "append" => with_path(rest, |path, content| {
            let mut file = OpenOptions::new().append(true).create(true).open(path).map_err(text)?;
            file.write_all(content.as_bytes()).map_err(text)
        }),
        "mkdir" => fs::create_dir(rest).map_err(text),
        "remove" => fs::remove_file(rest).map_err(text),
        "rename" => with_path(rest, |from, to| fs::rename(from, to).map_err(text)),
        "cannot-read" => refused(fs::read(rest)),
        "cannot-list" => refused(fs::read_dir(rest)),
        "cannot-write" => refused(fs::write(rest, "written by the probe")),
        "cannot-truncate" => refused(OpenOptions::new().write(true).truncate(true).open(rest)),
        "cannot-mkdir" => refused(fs::create_dir(rest)),
        "cannot-remove" => refused(fs::remove_file(rest)),
        "cannot-rename" => with_path(rest, |from, to| refused(fs::rename(from, to))),
        "cannot-link" => with_path(rest, |from, to| refused(fs::hard_link(from, to))),
        // A symbolic link by its text, which may point anywhere: whether it can be followed is another question.
        "symlink" => with_path(rest, symlink),
        "cannot-symlink" => with_path(rest, |target, link| match symlink(target, link) {
            Ok(()) => Err("it was allowed".to_owned()),
            Err(_) => Ok(()),
        }),
        // Writes until `BYTES` are in the file, which must all fit.
        "fill" => with_path(rest, |path, bytes| fill(path, number(bytes)?).map_err(text)),
        // As `fill`, where the host must refuse before the end.
        "cannot-fill" => with_path(rest, |path, bytes| refused(fill(path, number(bytes)?))),
        // `DIR N`: makes N empty files; what the host says when it refuses one is reported.
        "many-files" => with_path(rest, |dir, count| many_files(dir, number(count)?)),
        // `PATH N`: holds N open files of one path at once.
        "open-files" => with_path(rest, |path, count| {
            let mut open = Vec::new();
            (0..number::<u64>(count)?).try_for_each(|n| {
                open.push(
                    File::open(path)
                        .map_err(|error| format!("after {n} open files: {}", text(error)))?,
                );
                Ok(())
            })
        }),
        // Until the file is there, however long that takes.
        "wait-for" => {
            while fs::metadata(rest).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Ok(())
        }
        // Holds where standard input is at its end, or has what is given.
        "stdin-is" => {
            let mut found = String::new();
            std::io::stdin()
                .read_to_string(&mut found)
                .map_err(text)
                .and_then(|_| equal(&found, rest))
        }
        _ => return None,
    })
}

fn with_path(rest: &str, act: impl FnOnce(&str, &str) -> Finding) -> Finding {
    let (path, rest) = two(rest)?;
    act(path, rest)
}

fn names(path: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(text)? {
        names.push(entry.map_err(text)?.file_name().to_string_lossy().into_owned());
    }
    // How a volume with files is made is not what it shows.
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    Ok(names)
}

fn fill(path: &str, bytes: usize) -> std::io::Result<()> {
    let chunk = [b'x'; 64 * 1024];
    let mut file = File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        left -= file.write(&chunk[..left.min(chunk.len())])?;
    }
    file.flush()
}

fn many_files(dir: &str, count: u64) -> Finding {
    for n in 0..count {
        if let Err(error) = File::create(format!("{dir}/{n}")) {
            println!("= {n} files, then {}", text(error));
            return Err("refused".to_owned());
        }
    }
    Ok(())
}

fn symlink(target: &str, link: &str) -> Finding {
    #[cfg(target_os = "wasi")]
    {
        let (target, link) = (c_string(target)?, c_string(link)?);
        unsafe extern "C" {
            fn symlink(target: *const std::ffi::c_char, link: *const std::ffi::c_char) -> i32;
        }
        // SAFETY: both are C strings that live through the call, and libc's symlink keeps neither.
        let status = unsafe { symlink(target.as_ptr(), link.as_ptr()) };
        if status == 0 { Ok(()) } else { Err(text(std::io::Error::last_os_error())) }
    }
    #[cfg(not(target_os = "wasi"))]
    std::os::unix::fs::symlink(target, link).map_err(text)
}

#[cfg(target_os = "wasi")]
fn c_string(text: &str) -> Result<std::ffi::CString, String> {
    std::ffi::CString::new(text).map_err(|_| "a path has no NUL in it".to_owned())
}
