//! Removing a folder that a guest has filled: however deep, wide or strange it is.
//!
//! A guest can make folders in each other until nobody's stack or supply of descriptors holds their path. So nothing here goes deeper than
//! two: a folder that is not empty is emptied upwards, its own folders moved beside it, and no link is followed.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Removes a folder with all that is in it; nothing there is no error. It waits for the disk.
///
/// # Errors
/// The disk's, and where something is mounted in it.
pub(crate) fn tree(path: &Path) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let top = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let mut moved = 0_u64;
    loop {
        let mut is_empty = true;
        for entry in Dir::read_from(&top)? {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            is_empty = false;
            flatten(&top, entry.file_name(), flags, &mut moved)?;
        }
        if is_empty {
            break;
        }
    }
    match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

/// Removes an entry, or else moves what it holds up, for the next round.
fn flatten(top: &OwnedFd, name: &CStr, flags: OFlags, moved: &mut u64) -> io::Result<()> {
    if is_removed(top, name)? {
        return Ok(());
    }
    let folder = rustix::fs::openat(top, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let below = entry.file_name();
        if matches!(below.to_bytes(), b"." | b"..") || is_removed(&folder, below)? {
            continue;
        }
        loop {
            *moved += 1;
            let beside = format!(".removed-{moved}");
            // A name that is taken may be a guest's own.
            match rustix::fs::renameat_with(&folder, below, top, beside, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                renamed => break renamed?,
            }
        }
    }
    Ok(())
}

/// Whether the entry is gone by now; else it is a folder with something in it.
fn is_removed(folder: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        // Of a folder.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    match rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_however_deep_and_with_links_that_lead_out_of_it() {
        let all = tempfile::tempdir().expect("a folder");
        let (top, canary) = (all.path().join("top"), all.path().join("canary"));
        std::fs::create_dir(&top).expect("made");
        std::fs::write(&canary, "alive").expect("written");
        std::os::unix::fs::symlink(all.path(), top.join("out")).expect("made");
        std::fs::create_dir(top.join(".removed-1")).expect("made");
        std::fs::write(top.join(".removed-1/file"), "x").expect("written");
        // Deeper than a path may be long, by folders that are moved down one by one.
        let inner = all.path().join("inner");
        std::fs::create_dir(&inner).expect("made");
        for _ in 0..20_000 {
            let outer = all.path().join("outer");
            std::fs::create_dir(&outer).expect("made");
            std::fs::write(outer.join("file"), "x").expect("written");
            std::fs::rename(&inner, outer.join("d")).expect("moved");
            std::fs::rename(&outer, &inner).expect("moved");
        }
        std::fs::rename(&inner, top.join("deep")).expect("moved");

        tree(&top).expect("removed");

        assert!(!top.exists());
        assert_eq!(std::fs::read_to_string(canary).expect("read"), "alive");
        tree(&top).expect("nothing to do");
    }
}
