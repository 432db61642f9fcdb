//! Reading, writing and cutting text.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::thread::sleep;
use std::time::Duration;

use regex::bytes::{Regex, RegexBuilder};

use crate::call::{Call, parse, usage};
use crate::streams::Input;

/// How often `tail -f` looks whether a file has grown.
const LOOK: Duration = Duration::from_millis(200);

pub(super) fn cat(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("u")?;
    call.each_input(&options.rest, |call, _, input| call.copy(input))
}

pub(super) fn echo(call: &mut Call<'_>) -> io::Result<u8> {
    let (mut ends, mut escapes, mut args) = (true, false, call.args);
    while let Some((first, rest)) = args.split_first() {
        let is_option = first.len() > 1
            && first.starts_with('-')
            && first[1..].chars().all(|flag| matches!(flag, 'n' | 'e' | 'E'));
        if !is_option {
            break;
        }
        for flag in first[1..].chars() {
            match flag {
                'n' => ends = false,
                'e' => escapes = true,
                _ => escapes = false,
            }
        }
        args = rest;
    }
    let text = args.join(" ");
    let mut bytes = if escapes { unescaped(&text, true).0 } else { text.into_bytes() };
    if ends {
        bytes.push(b'\n');
    }
    call.streams.output.write_all(&bytes)?;
    Ok(0)
}

/// The text with its escapes replaced, and whether `\c` ended it; of octal ones those of `echo` begin with a zero.
fn unescaped(text: &str, octal_with_zero: bool) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    let number = |rest: &mut &[u8], radix: u32, most: usize| -> u32 {
        let mut number = 0;
        for _ in 0..most {
            let Some(digit) = rest.first().and_then(|&it| char::from(it).to_digit(radix)) else {
                break;
            };
            number = number * radix + digit;
            *rest = &rest[1..];
        }
        number
    };
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let Some((&escape, after)) = rest.split_first() else {
            bytes.push(b'\\');
            break;
        };
        rest = after;
        let byte = match escape {
            b'a' => 7,
            b'b' => 8,
            b'c' => return (bytes, true),
            b'e' => 27,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            b'\\' => b'\\',
            b'x' => number(&mut rest, 16, 2) as u8,
            b'0' if octal_with_zero => number(&mut rest, 8, 3) as u8,
            b'0'..=b'7' if !octal_with_zero => {
                rest = &text.as_bytes()[text.len() - rest.len() - 1..];
                number(&mut rest, 8, 3) as u8
            }
            other => {
                bytes.push(b'\\');
                other
            }
        };
        bytes.push(byte);
    }
    (bytes, false)
}

pub(super) fn printf(call: &mut Call<'_>) -> io::Result<u8> {
    let Some((format, mut args)) = call.args.split_first() else {
        return Err(usage("printf needs a format"));
    };
    loop {
        let before = args.len();
        let (bytes, ended) = formatted(format, &mut args)?;
        call.streams.output.write_all(&bytes)?;
        // The format is used again while it takes arguments and there are some.
        if ended || args.is_empty() || args.len() == before {
            return Ok(0);
        }
    }
}

fn formatted(format: &str, args: &mut &[String]) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        let (text, ended) = unescaped(&rest[..at], false);
        bytes.extend(text);
        if ended {
            return Ok((bytes, true));
        }
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            bytes.push(b'%');
            rest = after;
            continue;
        }
        let end = rest
            .find(|c: char| c.is_ascii_alphabetic())
            .ok_or_else(|| usage(format!("format {format:?} ends within a %")))?;
        let (flags, kind) = (&rest[..end], rest.as_bytes()[end]);
        rest = &rest[end + 1..];
        let mut arg = || match args.split_first() {
            Some((first, others)) => {
                *args = others;
                first.clone()
            }
            None => String::new(),
        };
        let arg = arg();
        if kind == b'b' {
            let (text, ended) = unescaped(&arg, true);
            bytes.extend(text);
            if ended {
                return Ok((bytes, true));
            }
            continue;
        }
        bytes.extend(converted(flags, kind, &arg)?.into_bytes());
    }
    let (text, ended) = unescaped(rest, false);
    bytes.extend(text);
    Ok((bytes, ended))
}

fn converted(flags: &str, kind: u8, arg: &str) -> io::Result<String> {
    let left = flags.contains('-');
    let flags = flags.trim_start_matches(['-', '+', ' ', '#']);
    let zeros = flags.starts_with('0');
    let (width, precision) = flags.split_once('.').map_or((flags, None), |(w, p)| (w, Some(p)));
    let number = |text: &str| text.parse::<usize>().unwrap_or(0).min(1 << 16);
    let (width, precision) = (number(width), precision.map(number));
    let whole = || -> io::Result<i64> {
        let text = arg.trim();
        let parsed = match text.strip_prefix("0x") {
            _ if text.is_empty() => Ok(0),
            Some(hex) => i64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        parsed.map_err(|_| usage(format!("{arg:?} is no whole number")))
    };
    let text = match kind {
        b's' => match precision {
            Some(most) => arg.chars().take(most).collect(),
            None => arg.to_owned(),
        },
        b'c' => arg.chars().take(1).collect(),
        b'd' | b'i' | b'u' => whole()?.to_string(),
        b'x' => format!("{:x}", whole()?),
        b'X' => format!("{:X}", whole()?),
        b'o' => format!("{:o}", whole()?),
        b'f' => {
            let text = if arg.is_empty() { "0" } else { arg };
            let value: f64 = text.parse().map_err(|_| usage(format!("{arg:?} is no number")))?;
            format!("{value:.*}", precision.unwrap_or(6))
        }
        _ => return Err(usage(format!("printf does not know %{}", char::from(kind)))),
    };
    let missing = width.saturating_sub(text.chars().count());
    Ok(if left {
        text + &" ".repeat(missing)
    } else if zeros && !matches!(kind, b's' | b'c') {
        match text.strip_prefix('-') {
            Some(digits) => format!("-{}{digits}", "0".repeat(missing)),
            None => "0".repeat(missing) + &text,
        }
    } else {
        " ".repeat(missing) + &text
    })
}

pub(super) fn basename(call: &mut Call<'_>) -> io::Result<u8> {
    let Some(path) = call.args.first() else { return Err(usage("basename needs a path")) };
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let name = if name.is_empty() && path.starts_with('/') { "/" } else { name };
    let ending = call.args.get(1).map_or("", String::as_str);
    call.say(name.strip_suffix(ending).filter(|it| !it.is_empty()).unwrap_or(name))?;
    Ok(0)
}

pub(super) fn dirname(call: &mut Call<'_>) -> io::Result<u8> {
    let Some(path) = call.args.first() else { return Err(usage("dirname needs a path")) };
    let folder = match path.trim_end_matches('/').rsplit_once('/') {
        Some((folder, _)) => folder.trim_end_matches('/'),
        None if path.starts_with('/') => "",
        None => ".",
    };
    call.say(if folder.is_empty() { "/" } else { folder })?;
    Ok(0)
}

/// A count behind `-n` or `-c`, or in the old form `-5`.
fn old_form(args: &[String]) -> Vec<String> {
    let is_old = |arg: &str| arg.len() > 1 && arg[1..].bytes().all(|it| it.is_ascii_digit());
    let split = |arg: &String| match arg.strip_prefix('-') {
        Some(number) if is_old(arg) => vec!["-n".to_owned(), number.to_owned()],
        _ => vec![arg.clone()],
    };
    args.iter().flat_map(split).collect()
}

pub(super) fn head(call: &mut Call<'_>) -> io::Result<u8> {
    let args = old_form(call.args);
    let options = parse(&args, "n:c:q")?;
    let number = |flag| options.value(flag).map(parsed).transpose();
    let (lines, bytes) = (number('n')?.unwrap_or(10), number('c')?);
    call.each_input(&options.rest, |call, _, input| {
        if let Some(bytes) = bytes {
            io::copy(&mut input.take(bytes), &mut call.streams.output)?;
            return Ok(());
        }
        for _ in 0..lines {
            let line = input.line()?;
            if line.is_empty() {
                break;
            }
            call.streams.output.write_all(&line)?;
        }
        Ok(())
    })
}

fn parsed(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| usage(format!("{text:?} is no count")))
}

pub(super) fn tail(call: &mut Call<'_>) -> io::Result<u8> {
    let args = old_form(call.args);
    let options = parse(&args, "n:c:fFqs:")?;
    let follow = options.has('f') || options.has('F');
    // `+3`: from the third one on.
    let place = |flag| -> io::Result<Option<(bool, u64)>> {
        let Some(text) = options.value(flag) else { return Ok(None) };
        let from = text.strip_prefix('+');
        Ok(Some((from.is_some(), parsed(from.unwrap_or(text).trim_start_matches('-'))?)))
    };
    let (lines, bytes) = (place('n')?.unwrap_or((false, 10)), place('c')?);
    call.each_input(&options.rest, |call, _, input| {
        match (bytes, lines) {
            (Some((true, first)), _) => {
                io::copy(&mut input.take(first.saturating_sub(1)), &mut io::sink())?;
                call.copy(input)?;
            }
            (Some((false, last)), _) => {
                let all = input.rest()?;
                let from = all.len().saturating_sub(usize::try_from(last).unwrap_or(usize::MAX));
                call.streams.output.write_all(&all[from..])?;
            }
            (None, (true, first)) => {
                for _ in 1..first {
                    input.line()?;
                }
                call.copy(input)?;
            }
            (None, (false, last)) => {
                let last = usize::try_from(last).unwrap_or(usize::MAX);
                let mut kept = VecDeque::new();
                loop {
                    let line = input.line()?;
                    if line.is_empty() {
                        break;
                    }
                    kept.push_back(line);
                    if kept.len() > last {
                        kept.pop_front();
                    }
                }
                kept.iter().try_for_each(|line| call.streams.output.write_all(line))?;
            }
        }
        while follow && matches!(input, Input::File(_)) {
            call.copy(input)?;
            call.streams.output.flush()?;
            sleep(LOOK);
        }
        Ok(())
    })
}

pub(super) fn tee(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("ai")?;
    let mut files = Vec::new();
    let mut code = 0;
    for name in &options.rest {
        let mut opening = OpenOptions::new();
        opening.write(true).create(true);
        let added = options.has('a');
        match opening.append(added).truncate(!added).open(call.path(name)) {
            Ok(file) => files.push(file),
            Err(error) => code = call.complain(name, &error),
        }
    }
    let mut input = call.streams.input.clone();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = input.read(&mut buffer)?;
        if length == 0 {
            return Ok(code);
        }
        files.iter_mut().try_for_each(|file| file.write_all(&buffer[..length]))?;
        call.streams.output.write_all(&buffer[..length])?;
    }
}

pub(super) fn wc(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("lwcm")?;
    let all = !['l', 'w', 'c', 'm'].into_iter().any(|flag| options.has(flag));
    let several = options.rest.len() > 1;
    let mut total = [0_usize; 3];
    let show = |counts: &[usize; 3], name: &str| {
        let wanted = [
            all || options.has('l'),
            all || options.has('w'),
            all || options.has('c') || options.has('m'),
        ];
        let mut parts: Vec<String> = counts
            .iter()
            .zip(wanted)
            .filter(|(_, wanted)| *wanted)
            .map(|(count, _)| count.to_string())
            .collect();
        if name != "-" {
            parts.push(name.to_owned());
        }
        parts.join(" ")
    };
    let code = call.each_input(&options.rest, |call, name, input| {
        let bytes = input.rest()?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
        let size = if options.has('m') { text.chars().count() } else { bytes.len() };
        let counts = [lines, text.split_whitespace().count(), size];
        for (total, count) in total.iter_mut().zip(counts) {
            *total += count;
        }
        call.say(show(&counts, name))
    })?;
    if several {
        call.say(show(&total, "total"))?;
    }
    Ok(code)
}

pub(super) fn seq(call: &mut Call<'_>) -> io::Result<u8> {
    let number = |text: &String| {
        text.parse::<i64>().map_err(|_| usage(format!("{text:?} is no whole number")))
    };
    let (mut here, step, last) = match call.args {
        [last] => (1, 1, number(last)?),
        [first, last] => (number(first)?, 1, number(last)?),
        [first, step, last] => (number(first)?, number(step)?, number(last)?),
        _ => return Err(usage("seq takes [FIRST [STEP]] LAST")),
    };
    if step == 0 {
        return Err(usage("a step of 0 leads nowhere"));
    }
    while if step > 0 { here <= last } else { here >= last } {
        call.say(here)?;
        let Some(next) = here.checked_add(step) else { break };
        here = next;
    }
    Ok(0)
}

/// All lines of the operands, without their ends.
fn lines(call: &mut Call<'_>, files: &[String]) -> io::Result<(Vec<Vec<u8>>, u8)> {
    let mut lines = Vec::new();
    let code = call.each_input(files, |_, _, input| {
        let bytes = input.rest()?;
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if !bytes.is_empty() {
            lines.extend(text.split(|&byte| byte == b'\n').map(<[u8]>::to_vec));
        }
        Ok(())
    })?;
    Ok((lines, code))
}

fn put_line(call: &mut Call<'_>, line: &[u8]) -> io::Result<()> {
    call.streams.output.write_all(line)?;
    call.streams.output.write_all(b"\n")
}

pub(super) fn sort(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("nrufk:t:")?;
    let (mut lines, code) = lines(call, &options.rest)?;
    let column = options.value('k').map(|key| parsed(key.split([',', '.']).next().unwrap_or(key)));
    let column = usize::try_from(column.transpose()?.unwrap_or(0)).unwrap_or(0);
    let divider = options.value('t').and_then(|it| it.chars().next());
    let key = |line: &[u8]| -> String {
        let text = String::from_utf8_lossy(line);
        let mut key = match (column, divider) {
            (0, _) => text.into_owned(),
            (column, Some(divider)) => {
                text.split(divider).nth(column - 1).unwrap_or_default().to_owned()
            }
            (column, None) => {
                text.split_whitespace().nth(column - 1).unwrap_or_default().to_owned()
            }
        };
        if options.has('f') {
            key = key.to_lowercase();
        }
        key
    };
    let number = |line: &[u8]| {
        let key = key(line);
        let text = key.trim_start();
        let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '-' | '.'));
        text[..end.unwrap_or(text.len())].parse::<f64>().unwrap_or(0.0)
    };
    if options.has('n') {
        lines.sort_by(|one, other| number(one).total_cmp(&number(other)));
    } else {
        lines.sort_by_cached_key(|line| key(line));
    }
    if options.has('r') {
        lines.reverse();
    }
    if options.has('u') {
        lines.dedup();
    }
    lines.iter().try_for_each(|line| put_line(call, line))?;
    Ok(code)
}

pub(super) fn uniq(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("cdu")?;
    let (lines, code) = lines(call, &options.rest)?;
    for same in lines.chunk_by(|one, other| one == other) {
        let is_wanted = !(options.has('d') && same.len() < 2 || options.has('u') && same.len() > 1);
        if is_wanted {
            if options.has('c') {
                write!(call.streams.output, "{:>7} ", same.len())?;
            }
            put_line(call, &same[0])?;
        }
    }
    Ok(code)
}

/// `2,4-6` and the like, counted from 1.
fn ranges(text: &str) -> io::Result<Vec<(usize, usize)>> {
    let number = |text: &str, open: usize| match text {
        "" => Ok(open),
        text => text.parse::<usize>().map_err(|_| usage(format!("{text:?} is no place"))),
    };
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Ok((number(first, 1)?, number(last, usize::MAX)?))
    };
    text.split(',').map(range).collect()
}

pub(super) fn cut(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("d:f:c:b:s")?;
    let divider = options.value('d').unwrap_or("\t").to_owned();
    let fields = options.value('f');
    let wanted = fields.or(options.value('c')).or(options.value('b'));
    let wanted = ranges(wanted.ok_or_else(|| usage("cut needs -f or -c with places"))?)?;
    let is_wanted =
        |at: usize| wanted.iter().any(|(first, last)| (*first..=*last).contains(&(at + 1)));
    let (lines, code) = lines(call, &options.rest)?;
    for line in lines {
        let text = String::from_utf8_lossy(&line);
        if fields.is_some() {
            if !text.contains(&divider) {
                if !options.has('s') {
                    call.say(&text)?;
                }
                continue;
            }
            let parts = text.split(divider.as_str()).enumerate();
            let kept: Vec<&str> =
                parts.filter(|(at, _)| is_wanted(*at)).map(|(_, part)| part).collect();
            call.say(kept.join(&divider))?;
        } else {
            let letters = text.chars().enumerate();
            let kept = letters.filter(|(at, _)| is_wanted(*at)).map(|(_, letter)| letter);
            call.say(kept.collect::<String>())?;
        }
    }
    Ok(code)
}

/// The letters of a `tr` set: ranges and escapes.
fn letters(set: &str) -> Vec<char> {
    let set = set
        .replace("[:lower:]", "a-z")
        .replace("[:upper:]", "A-Z")
        .replace("[:digit:]", "0-9")
        .replace("[:alpha:]", "a-zA-Z")
        .replace("[:alnum:]", "a-zA-Z0-9")
        .replace("[:space:]", " \\t\\n\\r");
    let (bytes, _) = unescaped(&set, false);
    let plain: Vec<char> = String::from_utf8_lossy(&bytes).chars().collect();
    let mut letters = Vec::new();
    let mut at = 0;
    while at < plain.len() {
        if plain.get(at + 1) == Some(&'-') && at + 2 < plain.len() {
            letters.extend(plain[at]..=plain[at + 2]);
            at += 3;
        } else {
            letters.push(plain[at]);
            at += 1;
        }
    }
    letters
}

pub(super) fn tr(call: &mut Call<'_>) -> io::Result<u8> {
    let options = call.options("cds")?;
    let mut sets = options.rest.iter().map(|set| letters(set));
    let first = sets.next().ok_or_else(|| usage("tr needs a set"))?;
    let second = sets.next().unwrap_or_default();
    if second.is_empty() && !options.has('d') && !options.has('s') {
        return Err(usage("tr needs two sets, or -d"));
    }
    let is_in = |letter: char| first.contains(&letter) != options.has('c');
    let text = String::from_utf8_lossy(&call.streams.input.rest()?).into_owned();
    let mut out = String::new();
    let mut before = None;
    for letter in text.chars() {
        let was_in = is_in(letter);
        if options.has('d') && was_in {
            continue;
        }
        let new = match second.last() {
            Some(&last) if was_in => {
                let at = first.iter().position(|&it| it == letter);
                at.and_then(|at| second.get(at)).copied().unwrap_or(last)
            }
            _ => letter,
        };
        if options.has('s') && was_in && before == Some(new) {
            continue;
        }
        before = Some(new);
        out.push(new);
    }
    call.streams.output.write_all(out.as_bytes())?;
    Ok(0)
}

pub(super) fn grep(call: &mut Call<'_>) -> io::Result<u8> {
    let mut options = call.options("EFGivnlcqohHwxse:m:")?;
    let mut patterns: Vec<String> = options.values('e').map(str::to_owned).collect();
    if patterns.is_empty() {
        if options.rest.is_empty() {
            return Err(usage("grep needs a pattern"));
        }
        patterns.push(options.rest.remove(0));
    }
    let regex = pattern(&patterns, &options)?;
    let most = options.value('m').map(parsed).transpose()?.unwrap_or(u64::MAX);
    let named = (options.rest.len() > 1 || options.has('H')) && !options.has('h');
    let mut any = false;
    let code = call.each_input(&options.rest, |call, name, input| {
        let (mut count, mut number) = (0_u64, 0_u64);
        loop {
            let line = input.line()?;
            if line.is_empty() || count >= most {
                break;
            }
            number += 1;
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            if regex.is_match(line) == options.has('v') {
                continue;
            }
            (count, any) = (count + 1, true);
            if options.has('q') || options.has('l') {
                break;
            }
            if options.has('c') {
                continue;
            }
            let mut before = if named { format!("{name}:") } else { String::new() };
            if options.has('n') {
                before += &format!("{number}:");
            }
            if options.has('o') && !options.has('v') {
                for found in regex.find_iter(line).filter(|found| !found.is_empty()) {
                    call.streams.output.write_all(before.as_bytes())?;
                    put_line(call, found.as_bytes())?;
                }
            } else {
                call.streams.output.write_all(before.as_bytes())?;
                put_line(call, line)?;
            }
        }
        if options.has('l') && count > 0 {
            call.say(name)?;
        } else if options.has('c') {
            call.say(if named { format!("{name}:{count}") } else { count.to_string() })?;
        }
        Ok(())
    })?;
    Ok(if code != 0 { 2 } else { u8::from(!any) })
}

fn pattern(patterns: &[String], options: &crate::call::Options) -> io::Result<Regex> {
    let one = |pattern: &String| {
        let mut text = match () {
            () if options.has('F') => regex::escape(pattern),
            () if options.has('E') => pattern.clone(),
            () => basic(pattern),
        };
        if options.has('w') {
            text = format!(r"\b(?:{text})\b");
        }
        if options.has('x') {
            text = format!("^(?:{text})$");
        }
        format!("(?:{text})")
    };
    let all: Vec<String> =
        patterns.iter().flat_map(|it| it.split('\n')).map(|it| one(&it.to_owned())).collect();
    let mut builder = RegexBuilder::new(&all.join("|"));
    builder.case_insensitive(options.has('i')).build().map_err(|error| usage(error.to_string()))
}

/// A basic regular expression in the form of an extended one: what is special without a backslash there is so with one here.
fn basic(pattern: &str) -> String {
    let mut out = String::new();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(special @ ('(' | ')' | '{' | '}' | '|' | '+' | '?')) => out.push(special),
                Some(other) => out.extend(['\\', other]),
                None => out.push_str(r"\\"),
            },
            '(' | ')' | '{' | '}' | '|' | '+' | '?' => out.extend(['\\', letter]),
            _ => out.push(letter),
        }
    }
    out
}
