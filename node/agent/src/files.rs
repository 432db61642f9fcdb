//! Writes the files of a volume as a kubelet's atomic writer does, so that a guest sees all of the old or all of the new ones.
//!
//! ```text
//! <volume>/..2026_11_29_05_27_34.123456789/   the files
//! <volume>/..data -> ..2026_11_29_…           renamed over the one before: the one step by which all files change
//! <volume>/key    -> ..data/key               for each file or folder that the volume shows
//! ```
//!
//! A crash may come between any two steps: the next write goes on from whatever is there, and removes what was left over. All
//! of it is root's, and the files are the domain's to read by its group: the runner writes nothing here, so the agent may follow the links.
//!
//! Absent: which files (`copepod_node::volumes`), when they are written (`sandbox`), and mounts of a part of a volume, which show it
//! as it was at their container's start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use copepod_node::volumes::PlannedFile;
use jiff::Timestamp;

/// The link to the folder with the present files.
const DATA: &str = "..data";
/// The link before it is renamed to [`DATA`].
const NEW_DATA: &str = "..data_tmp";

/// Makes a volume hold these files and no others. Where it does so already, nothing is written.
pub(crate) fn write(volume: &Path, files: &[PlannedFile], group: u32) -> io::Result<()> {
    write_in_steps(volume, files, group, || Ok(()))
}

/// Makes a folder hold these files and no others, as plain files: for those who are to see no later ones.
pub(crate) fn write_once(folder: &Path, files: &[PlannedFile], group: u32) -> io::Result<()> {
    remove(folder)?;
    make_folder(folder)?;
    write_plain(folder, files, group, &mut || Ok(()))
}

/// As [`write()`]; `step` is called before each change, and may end it there as a crash would.
fn write_in_steps(
    volume: &Path,
    files: &[PlannedFile],
    group: u32,
    mut step: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    make_folder(volume)?;
    let mut present = fs::read_link(volume.join(DATA)).ok().filter(|it| is_folders_name(it));
    let is_written = match &present {
        Some(present) => holds(&volume.join(present), files)?,
        None => false,
    };
    if !is_written {
        step()?;
        let new = new_folder(volume)?;
        write_plain(&volume.join(&new), files, group, &mut step)?;
        step()?;
        remove(&volume.join(NEW_DATA))?;
        symlink(&new, volume.join(NEW_DATA))?;
        step()?;
        fs::rename(volume.join(NEW_DATA), volume.join(DATA))?;
        present = Some(new);
    }
    let shown: BTreeSet<&str> =
        files.iter().filter_map(|file| file.path.split('/').next()).collect();
    for name in &shown {
        let (link, target) = (volume.join(name), Path::new(DATA).join(name));
        if fs::read_link(&link).is_ok_and(|there| there == target) {
            continue;
        }
        step()?;
        // Of an older agent, which wrote plain files; or of a crash.
        remove(&link)?;
        symlink(target, link)?;
    }
    for entry in fs::read_dir(volume)? {
        let name = entry?.file_name();
        let is_present = present.as_ref().is_some_and(|present| present.as_os_str() == name);
        let is_shown = name.to_str().is_some_and(|name| name == DATA || shown.contains(name));
        if !is_present && !is_shown {
            step()?;
            remove(&volume.join(name))?;
        }
    }
    Ok(())
}

/// It names one of our folders with files, and nothing else.
fn is_folders_name(name: &Path) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("..2") && !name.contains('/'))
}

/// Whether a folder holds these files and no others, each with its bytes and mode.
fn holds(folder: &Path, files: &[PlannedFile]) -> io::Result<bool> {
    let mut wanted: BTreeMap<PathBuf, &PlannedFile> =
        files.iter().map(|file| (folder.join(&file.path), file)).collect();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // The link leads nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut is_empty = true;
        for entry in entries {
            is_empty = false;
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                folders.push(path);
                continue;
            }
            let Some(file) = wanted.remove(&path) else { return Ok(false) };
            let is_same = metadata.is_file()
                && metadata.permissions().mode() & 0o7777 == mode(file)
                && metadata.len() == file.bytes.len() as u64
                && fs::read(&path)? == file.bytes;
            if !is_same {
                return Ok(false);
            }
        }
        // One without files shows a folder that is not wanted; the outermost may be empty.
        if is_empty && !folder.file_name().is_some_and(|name| is_folders_name(Path::new(name))) {
            return Ok(false);
        }
    }
    Ok(wanted.is_empty())
}

/// A new folder in the volume, with a name that sorts by time.
fn new_folder(volume: &Path) -> io::Result<PathBuf> {
    let mut at = Timestamp::now();
    loop {
        let name = PathBuf::from(at.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string());
        match DirBuilder::new().mode(0o755).create(volume.join(&name)) {
            // The clock stands still, or was set back.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                at += jiff::SignedDuration::from_nanos(1);
            }
            made => {
                made?;
                fs::set_permissions(volume.join(&name), Permissions::from_mode(0o755))?;
                return Ok(name);
            }
        }
    }
}

fn write_plain(
    folder: &Path,
    files: &[PlannedFile],
    group: u32,
    step: &mut impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    for file in files {
        let at = folder.join(&file.path);
        let mut parent = folder.to_owned();
        let steps = Path::new(&file.path).parent().into_iter().flat_map(Path::iter);
        for name in steps {
            parent.push(name);
            make_folder(&parent)?;
        }
        step()?;
        // Nobody but the agent reads it before it is what it is to be.
        let closed = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&at)?;
        io::Write::write_all(&mut &closed, &file.bytes)?;
        chown(&at, None, Some(group))?;
        fs::set_permissions(&at, Permissions::from_mode(mode(file)))?;
    }
    Ok(())
}

/// The spec's mode, as far as it does not let anybody write; the domain's group reads in any case, as the guest has no other user.
fn mode(file: &PlannedFile) -> u32 {
    file.mode & 0o555 | 0o440
}

fn make_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        // Whatever the agent's umask is.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o755)),
    }
}

/// Removes a file, a link or a folder, where there is one.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn files<const N: usize>(files: [(&str, &str); N]) -> Vec<PlannedFile> {
        let file = |(path, text): (&str, &str)| PlannedFile {
            path: path.to_owned(),
            bytes: text.into(),
            mode: 0o644,
        };
        files.into_iter().map(file).collect()
    }

    fn group() -> u32 {
        rustix::process::getegid().as_raw()
    }

    /// What a guest finds under the names that it is to see: those that do not begin with `..`.
    fn seen(folder: &Path) -> BTreeMap<String, String> {
        let mut seen = BTreeMap::new();
        let mut folders = vec![(folder.to_owned(), String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let entry = entry.expect("an entry");
                let name = entry.file_name().to_str().expect("text").to_owned();
                if name.starts_with("..") {
                    continue;
                }
                match fs::metadata(entry.path()) {
                    Ok(it) if it.is_dir() => {
                        folders.push((entry.path(), format!("{prefix}{name}/")))
                    }
                    Ok(_) => {
                        let text = fs::read_to_string(entry.path()).expect("text");
                        seen.insert(format!("{prefix}{name}"), text);
                    }
                    Err(_) => drop(seen.insert(format!("{prefix}{name}"), "leads nowhere".into())),
                }
            }
        }
        seen
    }

    fn texts(files: &[PlannedFile]) -> BTreeMap<String, String> {
        let text = |file: &PlannedFile| String::from_utf8(file.bytes.clone()).expect("text");
        files.iter().map(|file| (file.path.clone(), text(file))).collect()
    }

    /// All names directly in the volume, without the time in them.
    fn names(volume: &Path) -> Vec<String> {
        let entries = fs::read_dir(volume).expect("a folder");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .map(|name| if name.starts_with("..2") { "..<time>".to_owned() } else { name })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_volume_shows_its_files_through_one_link_to_all_of_them() {
        let scratch = tempfile::tempdir().expect("a folder");
        let volume = scratch.path().join("volume");
        let wanted = files([("token", "t"), ("conf/a.txt", "1"), ("conf/b/c", "2")]);

        write(&volume, &wanted, group()).expect("written");

        assert_eq!(seen(&volume), texts(&wanted));
        assert_eq!(names(&volume), ["..<time>", "..data", "conf", "token"]);
        let link = fs::read_link(volume.join("conf")).expect("a link");
        assert_eq!(link, Path::new("..data/conf"));
    }

    #[test]
    fn what_is_there_already_is_not_written_again() {
        let scratch = tempfile::tempdir().expect("a folder");
        let volume = scratch.path().join("volume");
        let wanted = files([("a", "1"), ("conf/b", "2")]);
        let state = || {
            let inode = |path: &str| fs::metadata(volume.join(path)).expect("there").ino();
            (fs::read_link(volume.join(DATA)).expect("a link"), inode("a"), inode("conf/b"))
        };
        write(&volume, &wanted, group()).expect("written");
        let before = state();

        write(&volume, &wanted, group()).expect("looked at");

        assert_eq!(state(), before);
    }

    #[test]
    fn other_bytes_other_modes_and_other_names_are_each_a_change() {
        let scratch = tempfile::tempdir().expect("a folder");
        let volume = scratch.path().join("volume");
        let first = files([("a", "1"), ("b", "2")]);
        let mut stricter = first.clone();
        stricter[0].mode = 0o400;
        let others = [
            files([("a", "1"), ("b", "3")]),
            files([("a", "1")]),
            files([("a", "1"), ("b", "2"), ("c", "3")]),
            files([("a/b", "1"), ("b", "2")]),
            stricter,
            files([]),
        ];
        for other in others {
            write(&volume, &first, group()).expect("written");
            let before = fs::read_link(volume.join(DATA)).expect("a link");

            write(&volume, &other, group()).expect("written");

            assert_ne!(fs::read_link(volume.join(DATA)).expect("a link"), before, "{other:?}");
            assert_eq!(seen(&volume), texts(&other));
        }
        assert_eq!(names(&volume), ["..<time>", "..data"], "removed keys vanish");
    }

    #[test]
    fn a_reader_that_has_a_file_open_keeps_it_and_sees_the_new_one_when_it_opens_it_again() {
        let scratch = tempfile::tempdir().expect("a folder");
        let volume = scratch.path().join("volume");
        write(&volume, &files([("a", "old")]), group()).expect("written");
        let open = fs::File::open(volume.join("a")).expect("open");

        write(&volume, &files([("a", "new")]), group()).expect("written");

        assert_eq!(io::read_to_string(open).expect("read"), "old");
        assert_eq!(fs::read_to_string(volume.join("a")).expect("read"), "new");
    }

    #[test]
    fn nobody_may_write_a_file_and_the_domain_reads_it_whatever_mode_the_spec_gives() {
        let scratch = tempfile::tempdir().expect("a folder");
        let volume = scratch.path().join("volume");
        for (spec, on_disk) in [(0o644, 0o444), (0o400, 0o440), (0o777, 0o555), (0, 0o440)] {
            let mut wanted = files([("a", "1")]);
            wanted[0].mode = spec;

            write(&volume, &wanted, group()).expect("written");

            let mode = fs::metadata(volume.join("a")).expect("there").permissions().mode();
            assert_eq!(mode & 0o7777, on_disk, "{spec:o}");
        }
    }

    #[test]
    fn a_crash_between_any_two_steps_leaves_old_or_new_files_and_nothing_after_the_next_write() {
        let old = files([("kept", "old"), ("gone/a", "old"), ("turned", "old")]);
        let new = files([("kept", "new"), ("came/b", "new"), ("turned/c", "new")]);
        for crash_after in 0.. {
            let scratch = tempfile::tempdir().expect("a folder");
            let volume = scratch.path().join("volume");
            write(&volume, &old, group()).expect("written");
            let mut steps = 0;

            let ended = write_in_steps(&volume, &new, group(), || {
                steps += 1;
                if steps > crash_after { Err(io::Error::other("a crash")) } else { Ok(()) }
            });

            let kept = fs::read_to_string(volume.join("kept")).expect("always there");
            let data = fs::read_to_string(volume.join("..data/kept")).expect("always there");
            assert_eq!(kept, data, "after {crash_after} steps");
            let all = if kept == "old" { &old } else { &new };
            assert_eq!(seen(&fs::canonicalize(volume.join(DATA)).expect("a folder")), texts(all));
            // Whatever is wanted next: the same, or what was there before.
            for next in [&new, &old] {
                write(&volume, next, group()).expect("written");
                assert_eq!(seen(&volume), texts(next), "after {crash_after} steps");
                assert_eq!(names(&volume).len(), 5, "after {crash_after} steps");
            }
            if ended.is_ok() {
                assert!(crash_after > 8, "only {crash_after} steps");
                return;
            }
        }
    }

    #[test]
    fn plain_files_of_an_older_agent_become_links() {
        let scratch = tempfile::tempdir().expect("a folder");
        let volume = scratch.path().join("volume");
        fs::create_dir_all(volume.join("conf")).expect("made");
        fs::write(volume.join("conf/a"), "plain").expect("written");
        fs::write(volume.join("b"), "plain").expect("written");
        let wanted = files([("conf/a", "1"), ("c", "2")]);

        write(&volume, &wanted, group()).expect("written");

        assert_eq!(seen(&volume), texts(&wanted));
        assert_eq!(names(&volume), ["..<time>", "..data", "c", "conf"]);
    }

    #[test]
    fn files_that_are_written_once_stand_without_links_and_without_those_before_them() {
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path().join("part");
        write_once(&folder, &files([("a", "1"), ("b", "2")]), group()).expect("written");

        write_once(&folder, &files([("conf/a", "1")]), group()).expect("written");

        assert_eq!(names(&folder), ["conf"]);
        assert_eq!(seen(&folder), texts(&files([("conf/a", "1")])));
    }
}
