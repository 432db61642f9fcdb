//! Looking around in files: `ls`, `find`, `stat`, `du`.

use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

use glob::Pattern;
use jiff::Timestamp;

use crate::call::{Call, Options, usage};
use crate::places::{self, Found};

/// What `ls -l` shows of a file: a guest sees neither modes nor owners, only kinds, sizes and times.
fn long(name: &str, path: &Path, found: &Found) -> String {
    let (kind, changed, leads) = match found {
        Found::OnTheWay => ('d', None, None),
        Found::Real(metadata) => {
            let kind = match metadata.file_type() {
                it if it.is_dir() => 'd',
                it if it.is_symlink() => 'l',
                _ => '-',
            };
            (kind, metadata.modified().ok(), std::fs::read_link(path).ok())
        }
    };
    let time = changed.and_then(|time| Timestamp::try_from(time).ok());
    let time = time.map_or("-".into(), |time| time.strftime("%Y-%m-%d %H:%M").to_string());
    let leads = leads.map(|to| format!(" -> {}", to.display())).unwrap_or_default();
    format!("{kind} {:>12} {time:>16} {name}{leads}", found.len())
}

pub(super) fn ls(call: &mut Call<'_>) -> io::Result<u8> {
    let mut options = call.options("laA1dRhtrFin")?;
    if options.rest.is_empty() {
        options.rest.push(".".into());
    }
    let mut code = 0;
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for name in &options.rest {
        let path = call.path(name);
        match places::found(&path, !options.has('l')) {
            Ok(found) if found.is_dir() && !options.has('d') => folders.push((name.clone(), path)),
            Ok(found) => files.push((name.clone(), path, found)),
            Err(error) => code = call.complain(name, &error),
        }
    }
    for (name, path, found) in &files {
        let line = if options.has('l') { long(name, path, found) } else { name.clone() };
        call.say(line)?;
    }
    let titled = files.len() + folders.len() > 1 || options.has('R');
    let mut first = files.is_empty();
    folders.reverse();
    while let Some((name, path)) = folders.pop() {
        if titled {
            call.say(format!("{}{name}:", if first { "" } else { "\n" }))?;
        }
        first = false;
        match list(call, &options, &path) {
            Ok(below) if options.has('R') => {
                let below = below.into_iter().rev();
                folders.extend(below.map(|it| (format!("{name}/{it}"), path.join(it))));
            }
            Ok(_) => {}
            Err(error) => code = call.complain(&name, &error),
        }
    }
    Ok(code)
}

/// Writes a folder's entries; its folders.
fn list(call: &mut Call<'_>, options: &Options, folder: &Path) -> io::Result<Vec<String>> {
    let mut names = places::names(folder)?;
    names.retain(|name| options.has('a') || options.has('A') || !name.starts_with('.'));
    if options.has('t') {
        names.sort_by_key(|name| {
            let changed = std::fs::metadata(folder.join(name)).and_then(|it| it.modified());
            std::cmp::Reverse(changed.unwrap_or(UNIX_EPOCH))
        });
    }
    if options.has('r') {
        names.reverse();
    }
    if options.has('a') {
        names.splice(0..0, [".".to_owned(), "..".to_owned()]);
    }
    let mut folders = Vec::new();
    for name in names {
        let path = places::joined(folder, &name);
        let found = places::found(&path, false)?;
        if found.is_dir() && !matches!(name.as_str(), "." | "..") {
            folders.push(name.clone());
        }
        let mark = if options.has('F') && found.is_dir() { "/" } else { "" };
        if options.has('l') {
            call.say(long(&name, &path, &found) + mark)?;
        } else {
            call.say(name + mark)?;
        }
    }
    Ok(folders)
}

pub(super) fn stat(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("Lc:")?;
    if options.rest.is_empty() {
        return Err(usage("stat needs a file"));
    }
    let mut code = 0;
    for name in &options.rest {
        let path = call.path(name);
        let found = match places::found(&path, options.has('L')) {
            Ok(found) => found,
            Err(error) => {
                code = call.complain(name, &error);
                continue;
            }
        };
        let Some(format) = options.value('c') else {
            call.say(long(name, &path, &found))?;
            continue;
        };
        let mut text = String::new();
        let mut letters = format.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                text.push(letter);
                continue;
            }
            match letters.next() {
                Some('n') => text.push_str(name),
                Some('s') => text.push_str(&found.len().to_string()),
                Some('F') => {
                    text.push_str(if found.is_dir() { "directory" } else { "regular file" })
                }
                Some('%') => text.push('%'),
                other => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(usage(format!("-c knows %n, %s and %F, not %{other}")));
                }
            }
        }
        call.say(text)?;
    }
    Ok(code)
}

/// Every file below `path`, itself first, in order.
fn walk(
    path: &Path,
    shown: &str,
    depth: usize,
    each: &mut dyn FnMut(&Path, &str, &Found, usize) -> io::Result<bool>,
) -> io::Result<()> {
    let found = places::found(path, false)?;
    if !each(path, shown, &found, depth)? || !found.is_dir() {
        return Ok(());
    }
    for name in places::names(path)? {
        let below = format!("{}/{name}", shown.trim_end_matches('/'));
        walk(&path.join(&name), &below, depth + 1, each)?;
    }
    Ok(())
}

pub(super) fn find(call: &mut Call<'_>) -> io::Result<u8> {
    let at = call.args.iter().position(|arg| arg.starts_with('-')).unwrap_or(call.args.len());
    let (starts, mut tests) = call.args.split_at(at);
    let (mut names, mut kinds) = (Vec::new(), Vec::new());
    let (mut least, mut most, mut removes, mut nul) = (0, usize::MAX, false, false);
    while let Some((test, rest)) = tests.split_first() {
        let value = || rest.first().ok_or_else(|| usage(format!("{test} needs a value")));
        let number =
            || value()?.parse::<usize>().map_err(|_| usage(format!("{test} needs a whole number")));
        let mut taken = 1;
        match test.as_str() {
            "-name" => names.push(pattern(value()?)?),
            "-type" => kinds.push(value()?.clone()),
            "-mindepth" => least = number()?,
            "-maxdepth" => most = number()?,
            "-delete" => (removes, taken) = (true, 0),
            "-print" => taken = 0,
            "-print0" => (nul, taken) = (true, 0),
            _ => return Err(usage(format!("unknown test {test}"))),
        }
        tests = rest.get(taken..).unwrap_or_default();
    }
    let here = [".".to_owned()];
    let starts = if starts.is_empty() { &here[..] } else { starts };
    let mut code = 0;
    for start in starts {
        let mut matching = Vec::new();
        let walked = walk(&call.path(start), start, 0, &mut |path, shown, found, depth| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_link = matches!(found, Found::Real(it) if it.is_symlink());
            let is_kind = |kind: &String| match kind.as_str() {
                "d" => found.is_dir(),
                "l" => is_link,
                "f" => !found.is_dir() && !is_link,
                _ => false,
            };
            if depth >= least
                && names.iter().all(|it: &Pattern| it.matches(&name))
                && kinds.iter().all(is_kind)
            {
                matching.push((path.to_owned(), shown.to_owned(), found.is_dir()));
            }
            Ok(depth < most)
        });
        if removes {
            // What lies deeper goes first.
            for (path, shown, is_folder) in matching.iter().rev() {
                let removed =
                    if *is_folder { std::fs::remove_dir(path) } else { std::fs::remove_file(path) };
                if let Err(error) = removed {
                    code = call.complain(shown, &error);
                }
            }
        } else {
            for (_, shown, _) in &matching {
                use std::io::Write as _;
                write!(call.streams.output, "{shown}{}", if nul { '\0' } else { '\n' })?;
            }
        }
        if let Err(error) = walked {
            code = call.complain(start, &error);
        }
    }
    Ok(code)
}

fn pattern(text: &str) -> io::Result<Pattern> {
    Pattern::new(text).map_err(|error| usage(format!("pattern {text:?}: {error}")))
}

pub(super) fn du(call: &mut Call<'_>) -> io::Result<u8> {
    let mut options = call.options("shkmbc")?;
    if options.rest.is_empty() {
        options.rest.push(".".into());
    }
    let mut code = 0;
    for name in &options.rest {
        let mut bytes = 0_u64;
        let walked = walk(&call.path(name), name, 0, &mut |_, _, found, _| {
            bytes += if found.is_dir() { 0 } else { found.len() };
            Ok(true)
        });
        if let Err(error) = walked {
            code = call.complain(name, &error);
            continue;
        }
        let shown = match () {
            () if options.has('b') => bytes.to_string(),
            () if options.has('h') && bytes >= 1 << 20 => format!("{}M", bytes.div_ceil(1 << 20)),
            () if options.has('h') => format!("{}K", bytes.div_ceil(1 << 10)),
            () if options.has('m') => bytes.div_ceil(1 << 20).to_string(),
            () => bytes.div_ceil(1 << 10).to_string(),
        };
        call.say(format!("{shown}\t{name}"))?;
    }
    Ok(code)
}
