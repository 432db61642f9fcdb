//! Making, copying, moving and removing files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::call::{Call, usage};
use crate::places;

fn operands(call: &Call<'_>, rest: &[String], least: usize) -> io::Result<()> {
    if rest.len() < least {
        return Err(usage(format!("{} needs {least} operand(s) or more", call.name)));
    }
    Ok(())
}

pub(super) fn mkdir(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("pm:")?;
    operands(call, &options.rest, 1)?;
    let mut code = 0;
    for name in &options.rest {
        let path = call.path(name);
        let made = if options.has('p') { make_way(&path) } else { fs::create_dir(&path) };
        if let Err(error) = made {
            code = call.complain(name, &error);
        }
    }
    Ok(code)
}

/// Makes a folder and what is missing above it.
pub(super) fn make_way(path: &Path) -> io::Result<()> {
    if super::machine::is_folder(path) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_way(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

pub(super) fn rmdir(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("")?;
    operands(call, &options.rest, 1)?;
    let mut code = 0;
    for name in &options.rest {
        if let Err(error) = fs::remove_dir(call.path(name)) {
            code = call.complain(name, &error);
        }
    }
    Ok(code)
}

pub(super) fn rm(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("rRfv")?;
    let (forced, deep) = (options.has('f'), options.has('r') || options.has('R'));
    if !forced {
        operands(call, &options.rest, 1)?;
    }
    let mut code = 0;
    for name in &options.rest {
        let path = call.path(name);
        let removed = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() && deep => remove_all(&path),
            Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => fs::remove_file(&path),
            Err(error) if forced && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(error),
        };
        match removed {
            Err(error) => code = call.complain(name, &error),
            Ok(()) if options.has('v') => call.say(format!("removed {name:?}"))?,
            Ok(()) => {}
        }
    }
    Ok(code)
}

fn remove_all(folder: &Path) -> io::Result<()> {
    for name in places::names(folder)? {
        let path = folder.join(name);
        if fs::symlink_metadata(&path)?.is_dir() {
            remove_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    fs::remove_dir(folder)
}

/// Where each of several operands goes: into the last one, where that is a folder.
fn targets(call: &Call<'_>, rest: &[String]) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    operands(call, rest, 2)?;
    let Some((last, sources)) = rest.split_last() else { return Ok(Vec::new()) };
    let target = call.path(last);
    let into = super::machine::is_folder(&target);
    if sources.len() > 1 && !into {
        return Err(usage(format!("{last} is no folder")));
    }
    let each = |source: &String| {
        let from = call.path(source);
        let to =
            if into { target.join(from.file_name().unwrap_or_default()) } else { target.clone() };
        (from, to)
    };
    Ok(sources.iter().map(each).collect())
}

pub(super) fn cp(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("rRafpLPv")?;
    let deep = ['r', 'R', 'a'].into_iter().any(|flag| options.has(flag));
    let mut code = 0;
    for (from, to) in targets(call, &options.rest)? {
        let copied = if places::found(&from, true).is_ok_and(|found| found.is_dir()) {
            if deep {
                copy_all(&from, &to)
            } else {
                Err(io::Error::other("it is a folder: -r copies folders"))
            }
        } else {
            copy_file(&from, &to)
        };
        if let Err(error) = copied {
            code = call.complain(&from.display().to_string(), &error);
        }
    }
    Ok(code)
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = places::open(from)?;
    io::copy(&mut source, &mut File::create(to)?)?;
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    if to.starts_with(from) {
        return Err(io::Error::other("a folder cannot be copied into itself"));
    }
    make_way(to)?;
    for name in places::names(from)? {
        let (from, to) = (from.join(&name), to.join(&name));
        if places::found(&from, true)?.is_dir() {
            copy_all(&from, &to)?;
        } else {
            copy_file(&from, &to)?;
        }
    }
    Ok(())
}

pub(super) fn mv(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("fnv")?;
    let mut code = 0;
    for (from, to) in targets(call, &options.rest)? {
        if options.has('n') && to.exists() {
            continue;
        }
        let moved = match fs::rename(&from, &to) {
            // Into another volume.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                if super::machine::is_folder(&from) {
                    copy_all(&from, &to).and_then(|()| remove_all(&from))
                } else {
                    copy_file(&from, &to).and_then(|()| fs::remove_file(&from))
                }
            }
            moved => moved,
        };
        if let Err(error) = moved {
            code = call.complain(&from.display().to_string(), &error);
        }
    }
    Ok(code)
}

pub(super) fn ln(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("sfn")?;
    let [target, name] = &options.rest[..] else {
        return Err(usage("ln needs what it leads to, and a name"));
    };
    let path = call.path(name);
    if options.has('f') {
        let _ = fs::remove_file(&path);
    }
    if options.has('s') {
        places::link(target, &path)?;
    } else {
        fs::hard_link(call.path(target), &path)?;
    }
    Ok(0)
}

pub(super) fn readlink(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("nf")?;
    let mut code = 0;
    for name in &options.rest {
        match fs::read_link(call.path(name)) {
            Ok(target) => call.say(target.display().to_string())?,
            Err(_) if options.has('f') => call.say(call.path(name).display().to_string())?,
            Err(_) => code = 1,
        }
    }
    Ok(code)
}

pub(super) fn touch(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("cam")?;
    operands(call, &options.rest, 1)?;
    let mut code = 0;
    for name in &options.rest {
        let path = call.path(name);
        if options.has('c') && !path.exists() {
            continue;
        }
        let opened = OpenOptions::new().append(true).create(true).open(&path);
        if let Err(error) = opened.and_then(|file| file.set_modified(SystemTime::now())) {
            code = call.complain(name, &error);
        }
    }
    Ok(code)
}

/// A number with one of dd's units.
fn size(text: &str) -> io::Result<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor: u64 = match unit {
        "" | "c" => 1,
        "b" => 512,
        "k" | "K" | "kB" => 1 << 10,
        "M" | "MB" => 1 << 20,
        "G" | "GB" => 1 << 30,
        _ => return Err(usage(format!("{text} is no size"))),
    };
    let number = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    number.ok_or_else(|| usage(format!("{text} is no size")))
}

pub(super) fn dd(call: &mut Call<'_>) -> io::Result<u8> {
    let (mut from, mut to, mut block, mut count, mut skip, mut seek) =
        (None, None, 512, None, 0, 0);
    let mut keeps = false;
    for arg in call.args {
        let (key, value) = arg.split_once('=').ok_or_else(|| usage("dd takes KEY=VALUE"))?;
        match key {
            "if" => from = Some(value),
            "of" => to = Some(value),
            "bs" => block = size(value)?,
            "count" => count = Some(size(value)?),
            "skip" => skip = size(value)?,
            "seek" => seek = size(value)?,
            "conv" => keeps = value.split(',').any(|it| it == "notrunc"),
            "status" | "oflag" | "iflag" => {}
            _ => return Err(usage(format!("unknown operand {key}="))),
        }
    }
    if block == 0 || block > 64 << 20 {
        return Err(usage("bs is a size of at most 64M"));
    }
    let mut source: Box<dyn Read> = match from {
        Some("/dev/zero") => Box::new(io::repeat(0)),
        Some(path) => Box::new(call.open(path)?),
        None => Box::new(call.streams.input.clone()),
    };
    io::copy(&mut source.by_ref().take(skip.saturating_mul(block)), &mut io::sink())?;
    let mut target: Box<dyn Write> = match to {
        Some(path) => {
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(!keeps && seek == 0);
            let mut file = file.open(call.path(path))?;
            io::Seek::seek(&mut file, io::SeekFrom::Start(seek.saturating_mul(block)))?;
            Box::new(file)
        }
        None => Box::new(call.streams.output.clone()),
    };
    let mut buffer = vec![0; usize::try_from(block).unwrap_or(usize::MAX)];
    let (mut whole, mut partial, mut bytes) = (0_u64, 0_u64, 0_u64);
    while count.is_none_or(|count| whole + partial < count) {
        let mut filled = 0;
        while filled < buffer.len() {
            match source.read(&mut buffer[filled..])? {
                0 => break,
                length => filled += length,
            }
        }
        if filled == 0 {
            break;
        }
        target.write_all(&buffer[..filled])?;
        bytes += filled as u64;
        *(if filled == buffer.len() { &mut whole } else { &mut partial }) += 1;
    }
    target.flush()?;
    let records = format!("{whole}+{partial} records");
    writeln!(call.streams.error, "{records} in\n{records} out\n{bytes} bytes copied")?;
    Ok(0)
}
