//! `tar`, as `kubectl cp` uses it.
//!
//! Absent: owners, modes and devices, which a guest has none of; compression.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::tar::{Archive, Builder, EntryType, Header};

use super::files::make_way;
use crate::call::{Call, Options, parse, usage};
use crate::places::{self, Found};

pub(super) fn tar(call: &mut Call<'_>) -> io::Result<u8> {
    // The first word is options, whether it begins with a dash or not.
    let mut args = call.args.to_vec();
    if let Some(first) = args.first_mut().filter(|first| !first.starts_with('-')) {
        first.insert(0, '-');
    }
    // What they ask for is so anyway.
    args.retain(|arg| {
        !matches!(
            arg.as_str(),
            "--no-same-permissions" | "--no-same-owner" | "--numeric-owner" | "--overwrite"
        )
    });
    let options = parse(&args, "cxtvf:C:mpoOhzjJ")?;
    if ['z', 'j', 'J'].into_iter().any(|flag| options.has(flag)) {
        return Err(usage("archives are not compressed here: leave -z, -j and -J out"));
    }
    let folder = options.value('C').map_or_else(|| call.folder.to_owned(), |path| call.path(path));
    match (options.has('c'), options.has('x'), options.has('t')) {
        (true, false, false) => create(call, &options, &folder),
        (false, true, false) | (false, false, true) => extract(call, &options, &folder),
        _ => Err(usage("say one of -c, -x and -t")),
    }
}

fn create(call: &mut Call<'_>, options: &Options, folder: &Path) -> io::Result<u8> {
    if options.rest.is_empty() {
        return Err(usage("an archive of nothing: name files"));
    }
    let output: Box<dyn Write> = match options.value('f') {
        None | Some("-") => Box::new(call.streams.output.clone()),
        Some(path) => Box::new(File::create(call.path(path))?),
    };
    let mut builder = Builder::new(io::BufWriter::with_capacity(64 << 10, output));
    let mut code = 0;
    for name in &options.rest {
        let path = places::joined(folder, name);
        if let Err(error) = add(call, &mut builder, options, &path, name) {
            if error.kind() == io::ErrorKind::BrokenPipe {
                return Err(error);
            }
            code = call.complain(name, &error);
        }
    }
    builder.into_inner()?.flush()?;
    Ok(code)
}

fn add<W: Write>(
    call: &mut Call<'_>,
    builder: &mut Builder<W>,
    options: &Options,
    path: &Path,
    name: &str,
) -> io::Result<()> {
    let found = places::found(path, options.has('h'))?;
    // As everywhere: nothing of an archive leads to the root.
    let shown = name.trim_start_matches('/');
    let shown = if shown.is_empty() { "." } else { shown };
    if options.has('v') {
        writeln!(call.streams.error, "{shown}")?;
    }
    let mut header = Header::new_gnu();
    let changed = match &found {
        Found::Real(metadata) => metadata.modified().ok(),
        Found::OnTheWay => None,
    };
    let since = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    header.set_mtime(since.as_secs());
    match &found {
        Found::Real(metadata) if metadata.is_symlink() => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            builder.append_link(&mut header, shown, fs::read_link(path)?)
        }
        found if found.is_dir() => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            builder.append_data(&mut header, format!("{shown}/"), io::empty())?;
            for below in places::names(path)? {
                let name = format!("{}/{below}", name.trim_end_matches('/'));
                add(call, builder, options, &path.join(&below), &name)?;
            }
            Ok(())
        }
        found => {
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o644);
            header.set_size(found.len());
            // A file that shrinks meanwhile would put all that follows out of step.
            let content = File::open(path)?.chain(io::repeat(0)).take(found.len());
            builder.append_data(&mut header, shown, content)
        }
    }
}

/// Unpacks, or lists where `-t`.
fn extract(call: &mut Call<'_>, options: &Options, folder: &Path) -> io::Result<u8> {
    let input = match options.value('f') {
        None => call.streams.input.clone(),
        Some(path) => call.open(path)?,
    };
    let mut archive = Archive::new(input);
    let mut code = 0;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let is_wanted = |wanted: &String| {
            Path::new(&name).starts_with(wanted.trim_start_matches('/').trim_start_matches("./"))
        };
        if !options.rest.is_empty() && !options.rest.iter().any(is_wanted) {
            continue;
        }
        if options.has('t') {
            call.say(&name)?;
            continue;
        }
        if options.has('v') {
            writeln!(call.streams.error, "{name}")?;
        }
        let Some(below) = beneath(&name) else {
            code = call.complain(&name, &"it leads out of the folder, and is left out");
            continue;
        };
        if options.has('O') {
            io::copy(&mut entry, &mut call.streams.output)?;
            continue;
        }
        let time = (!options.has('m')).then(|| entry.header().mtime().ok()).flatten();
        if let Err(error) = place(&mut entry, &folder.join(below), time) {
            code = call.complain(&name, &error);
        }
    }
    Ok(code)
}

/// An entry's path beneath the folder that is unpacked into.
fn beneath(name: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => return None,
            _ => {}
        }
    }
    Some(path)
}

fn place<R: Read>(
    entry: &mut ::tar::Entry<'_, R>,
    path: &Path,
    time: Option<u64>,
) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make_way(parent)?;
    }
    match entry.header().entry_type() {
        EntryType::Directory => make_way(path),
        EntryType::Regular | EntryType::Continuous => {
            // Never through a link that lies there.
            if fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink()) {
                fs::remove_file(path)?;
            }
            let mut file = File::create(path)?;
            io::copy(entry, &mut file)?;
            if let Some(seconds) = time {
                let time: SystemTime = UNIX_EPOCH + Duration::from_secs(seconds);
                file.set_modified(time)?;
            }
            Ok(())
        }
        EntryType::Symlink => {
            let target = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
            let _ = fs::remove_file(path);
            places::link(&target.to_string_lossy(), path)
        }
        EntryType::Link => Err(io::Error::other("hard links of archives are not made here")),
        _ => Err(io::Error::other("it is neither a file nor a folder")),
    }
}
