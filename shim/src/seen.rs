//! Finding a wasm file by the name that a guest would use: what `argv[0]` may stand for.
//!
//! The kernel resolves what lies beneath a mount as if it were the root of all files, so that neither `..` nor a link that a guest has made
//! leads out of it. Absent: which mounts a container has, and running the file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

/// A folder that a guest sees.
#[derive(Clone, Debug)]
pub struct Folder<'a> {
    /// Its absolute path in the guest.
    pub guest: &'a str,
    /// Where it lies for whoever looks; a folder that no guest can put a link in the place of.
    pub source: PathBuf,
}

/// Opens the wasm file that a guest with these folders, working directory and environment sees by `name`: a path, or a name that is looked for
/// in the folders of its `PATH`, which whoever starts a container always sets. `None`: there is none, or what is there is no wasm.
pub fn open(
    folders: &[Folder<'_>],
    cwd: &str,
    env: &[(String, String)],
    name: &str,
) -> Option<File> {
    if name.contains('/') {
        return open_at(folders, &Path::new("/").join(cwd).join(name));
    }
    let (_, path) = env.iter().find(|(variable, _)| variable == "PATH")?;
    path.split(':')
        .filter(|folder| folder.starts_with('/'))
        .find_map(|folder| open_at(folders, &Path::new(folder).join(name)))
}

fn open_at(folders: &[Folder<'_>], path: &Path) -> Option<File> {
    let mut whole = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(part) => whole.push(part),
            Component::ParentDir => drop(whole.pop()),
            _ => {}
        }
    }
    let beneath = |folder: &Folder<'_>| whole.strip_prefix(folder.guest).ok().map(Path::to_owned);
    let nearest = folders.iter().filter_map(|folder| Some((folder, beneath(folder)?)));
    let (folder, below) = nearest.min_by_key(|(_, below)| below.components().count())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, &folder.source, flags, Mode::empty()).ok()?;
    // Of a pipe there is nobody to wait for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(&top, below, flags, Mode::empty(), resolve).ok()?;
    let stat = rustix::fs::fstat(&opened).ok()?;
    let file = File::from(opened);
    let mut magic = [0; 4];
    let is_wasm = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && file.read_exact_at(&mut magic, 0).is_ok()
        && &magic == b"\0asm";
    is_wasm.then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("seen-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("made");
        path
    }

    #[test]
    fn a_program_is_found_by_its_path_its_name_and_through_links_that_stay_inside() {
        let (root, data) = (folder("root"), folder("data"));
        std::fs::create_dir(root.join("bin")).expect("made");
        std::fs::write(root.join("bin/tool"), b"\0asm tool").expect("written");
        std::fs::write(root.join("bin/script"), b"#!/bin/sh").expect("written");
        std::os::unix::fs::symlink("/bin/tool", root.join("bin/link")).expect("made");
        std::os::unix::fs::symlink("../../../../etc/passwd", root.join("bin/out")).expect("made");
        std::fs::write(data.join("app.wasm"), b"\0asm app").expect("written");
        let folders = [
            Folder { guest: "/", source: root.clone() },
            Folder { guest: "/data", source: data.clone() },
        ];
        let finds = |cwd: &str, path: &str, name: &str| {
            let env = [("PATH".to_owned(), path.to_owned())];
            open(&folders, cwd, &env, name).is_some()
        };

        for name in ["/bin/tool", "/bin/link", "/data/app.wasm", "/data/../bin/tool", "tool"] {
            assert!(finds("", "/usr/bin:/bin", name), "{name}");
        }
        assert!(finds("/data", "", "./app.wasm") && finds("/", "/data", "app.wasm"));
        for name in ["/bin/script", "/bin/out", "/bin", "/bin/none", "/data/none", "app.wasm", ""] {
            assert!(!finds("", "/bin", name), "{name}");
        }
        assert!(open(&folders[1..], "/", &[], "/bin/tool").is_none());
        std::fs::remove_dir_all(root).expect("removed");
        std::fs::remove_dir_all(data).expect("removed");
    }
}
