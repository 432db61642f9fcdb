//! Reads the logs that runners write, in the CRI's format, one folder per container.
//!
//! A container's folder holds `<attempt>.log` and what rotation made of it, `<attempt>.log.<anything>`, oldest first by the time of
//! their last change. The files are a runner's, which may be hostile: they are opened beneath the folder without following a link,
//! a line is at most [`MAX_LINE`] long, and what is no CRI line is shown as it stands.
//!
//! Absent: writing and rotating, which runners do while no agent is there.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::api::{LogLine, LogPosition};

/// The longest line that is read whole: runners cut at 16 KiB, as containerd does.
const MAX_LINE: u64 = 64 << 10;

/// How many lines make a piece.
const PIECE: usize = 256;

/// Reads one container's log onward from a position.
#[derive(Debug)]
pub(crate) struct LogReader {
    folder: OwnedFd,
    attempt: u32,
    current: Option<Open>,
    after: Option<LogPosition>,
    seen_at: (i64, u32),
    skip: u64,
    since_ns: i64,
}

#[derive(Debug)]
struct Open {
    reader: BufReader<File>,
    inode: u64,
    /// A line whose newline has not come yet.
    rest: Vec<u8>,
}

impl LogReader {
    /// Begins at the first line of `attempt`, or after `after` where that is a later place.
    pub(crate) fn open(
        folder: &Path,
        attempt: u32,
        after: Option<LogPosition>,
    ) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let folder = rustix::fs::openat(CWD, folder, flags, Mode::empty())?;
        let after = after.filter(|after| after.attempt >= attempt);
        Ok(Self {
            folder,
            attempt: after.map_or(attempt, |after| after.attempt),
            current: None,
            after,
            seen_at: (i64::MIN, 0),
            skip: 0,
            since_ns: i64::MIN,
        })
    }

    /// Leaves out lines before this Unix time in seconds.
    pub(crate) fn since(&mut self, seconds: i64) {
        self.since_ns = seconds.saturating_mul(1_000_000_000);
    }

    /// Leaves out all that is there but the last `lines`.
    pub(crate) fn tail(&mut self, lines: u64) -> io::Result<()> {
        let mut count = 0u64;
        for name in self.files()? {
            let mut reader = BufReader::new(self.file(&name)?);
            loop {
                let buffer = reader.fill_buf()?;
                if buffer.is_empty() {
                    break;
                }
                count += buffer.iter().filter(|&&byte| byte == b'\n').count() as u64;
                let length = buffer.len();
                reader.consume(length);
            }
        }
        self.skip = count.saturating_sub(lines);
        Ok(())
    }

    /// The next lines that are there, and the position after them; nothing at the end so far.
    pub(crate) fn next_piece(&mut self) -> io::Result<Option<(Vec<LogLine>, LogPosition)>> {
        let mut lines = Vec::new();
        while lines.len() < PIECE {
            match self.next_line()? {
                Some(line) => lines.extend(self.wanted(line)),
                None => break,
            }
        }
        let position =
            LogPosition { attempt: self.attempt, time_ns: self.seen_at.0, lines: self.seen_at.1 };
        Ok(if lines.is_empty() { None } else { Some((lines, position)) })
    }

    /// Goes on with the next attempt's log, once all of this one was read.
    pub(crate) fn next_attempt(&mut self, attempt: u32) {
        if attempt > self.attempt {
            self.attempt = attempt;
            self.current = None;
            self.seen_at = (i64::MIN, 0);
        }
    }

    /// Which attempt is read.
    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    fn wanted(&mut self, line: LogLine) -> Option<LogLine> {
        let (time, count) = self.seen_at;
        self.seen_at = (line.time_ns, if line.time_ns == time { count + 1 } else { 1 });
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let before = self.after.is_some_and(|after| {
            after.attempt == self.attempt
                && (line.time_ns < after.time_ns
                    || line.time_ns == after.time_ns && self.seen_at.1 <= after.lines)
        });
        (!before && line.time_ns >= self.since_ns).then_some(line)
    }

    fn next_line(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if self.current.is_none() {
                let Some(first) = self.files()?.into_iter().next() else { return Ok(None) };
                self.current = Some(self.open_file(&first)?);
            }
            let Some(open) = &mut self.current else { return Ok(None) };
            let wanted = MAX_LINE.saturating_sub(open.rest.len() as u64);
            let got = (&mut open.reader).take(wanted).read_until(b'\n', &mut open.rest)?;
            if open.rest.ends_with(b"\n") || open.rest.len() as u64 >= MAX_LINE {
                let line = std::mem::take(&mut open.rest);
                return Ok(Some(parse(line.strip_suffix(b"\n").unwrap_or(&line))));
            }
            if got > 0 {
                continue;
            }
            // The end of this file: of the log too, unless it was rotated away from under us.
            let inode = open.inode;
            let files = self.files()?;
            let here = files.iter().position(|name| self.inode(name) == Some(inode));
            let next = match here {
                Some(index) => files.get(index + 1),
                // Deleted by rotation: what is oldest now comes next.
                None => files.first(),
            };
            match next {
                Some(name) => self.current = Some(self.open_file(&name.clone())?),
                None => return Ok(None),
            }
        }
    }

    fn open_file(&self, name: &str) -> io::Result<Open> {
        let file = self.file(name)?;
        let inode = file.metadata()?.ino();
        Ok(Open { reader: BufReader::new(file), inode, rest: Vec::new() })
    }

    fn file(&self, name: &str) -> io::Result<File> {
        // NONBLOCK: a FIFO in the place of a log must not hold the agent up.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(&self.folder, name, flags, Mode::empty(), resolve)?;
        let file = File::from(file);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn inode(&self, name: &str) -> Option<u64> {
        rustix::fs::statat(&self.folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .ok()
            .map(|stat| stat.st_ino)
    }

    /// The attempt's files that are there, oldest first, the current one last.
    fn files(&self) -> io::Result<Vec<String>> {
        let current = format!("{}.log", self.attempt);
        let rotated = format!("{current}.");
        let mut found = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == current || name.starts_with(&rotated) {
                let stat =
                    rustix::fs::statat(&self.folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
                if let Ok(stat) = stat {
                    found.push((
                        name == current,
                        stat.st_mtime,
                        stat.st_mtime_nsec,
                        name.to_owned(),
                    ));
                }
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, _, _, name)| name).collect())
    }
}

/// The last bytes that a container wrote, for `terminationMessagePolicy: FallbackToLogsOnError`: at most 80 lines or 2048 bytes.
pub(crate) fn last_words(folder: &Path, attempt: u32) -> io::Result<String> {
    let mut reader = LogReader::open(folder, attempt, None)?;
    reader.tail(80)?;
    let mut text = Vec::new();
    while let Some((lines, _)) = reader.next_piece()? {
        for line in lines {
            text.extend(line.text);
            if !line.partial {
                text.push(b'\n');
            }
        }
    }
    let from = text.len().saturating_sub(2048);
    Ok(String::from_utf8_lossy(&text[from..]).into_owned())
}

/// A line as the CRI writes it: `<RFC 3339 time> stdout|stderr F|P <text>`. What is none of these is its own text, at no time.
fn parse(line: &[u8]) -> LogLine {
    let parsed = (|| {
        let mut parts = line.splitn(4, |&byte| byte == b' ');
        let time: Timestamp = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let stderr = match parts.next()? {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        let partial = parts.next()?.first() == Some(&b'P');
        let text = parts.next().unwrap_or_default().to_vec();
        let time_ns = i64::try_from(time.as_nanosecond()).ok()?;
        Some(LogLine { time_ns, stderr, text, partial })
    })();
    parsed.unwrap_or_else(|| LogLine {
        time_ns: 0,
        stderr: false,
        text: line.to_vec(),
        partial: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(second: u32, text: &str) -> String {
        format!("2026-11-22T20:00:{second:02}.000000001Z stdout F {text}\n")
    }

    fn texts(reader: &mut LogReader) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some((lines, _)) = reader.next_piece().expect("read") {
            texts.extend(lines.iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()));
        }
        texts
    }

    #[test]
    fn lines_are_read_over_rotated_files_and_onward_as_they_come() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("0.log.1"), line(1, "one")).expect("written");
        std::fs::write(at("0.log"), line(2, "two")).expect("written");
        std::fs::write(at("1.log"), line(9, "another attempt")).expect("written");
        let mut reader = LogReader::open(folder.path(), 0, None).expect("opened");
        assert_eq!(texts(&mut reader), ["one", "two"]);

        std::fs::rename(at("0.log"), at("0.log.2")).expect("rotated");
        std::fs::write(at("0.log"), line(3, "three") + "2026-11-22T20:00:04Z std")
            .expect("written");

        assert_eq!(texts(&mut reader), ["three"]);
    }

    #[test]
    fn a_reader_goes_on_after_the_position_of_an_earlier_one_without_a_line_lost_or_twice() {
        let folder = tempfile::tempdir().expect("a folder");
        let all = [line(1, "a"), line(2, "b"), line(2, "c"), line(2, "d"), line(3, "e")];
        std::fs::write(folder.path().join("0.log"), all[..3].concat()).expect("written");
        let mut first = LogReader::open(folder.path(), 0, None).expect("opened");
        let (lines, position) = first.next_piece().expect("read").expect("lines");
        assert_eq!(lines.len(), 3);

        std::fs::write(folder.path().join("0.log"), all.concat()).expect("written");
        let mut second = LogReader::open(folder.path(), 0, Some(position)).expect("opened");

        assert_eq!(texts(&mut second), ["d", "e"]);
    }

    #[test]
    fn the_last_lines_are_the_last_over_all_files() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("0.log.1"), line(1, "a") + &line(2, "b"))
            .expect("written");
        std::fs::write(folder.path().join("0.log"), line(3, "c")).expect("written");

        let mut reader = LogReader::open(folder.path(), 0, None).expect("opened");
        reader.tail(2).expect("counted");

        assert_eq!(texts(&mut reader), ["b", "c"]);
    }

    #[test]
    fn a_link_out_of_the_folder_and_a_fifo_are_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("0.log")).expect("linked");
        let mut reader = LogReader::open(folder.path(), 0, None).expect("opened");
        assert!(reader.next_piece().is_err());

        let fifo = folder.path().join("1.log");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).expect("made");
        let mut reader = LogReader::open(folder.path(), 1, None).expect("opened");
        assert!(reader.next_piece().is_err());
    }

    #[test]
    fn a_line_that_is_no_log_line_is_shown_as_it_stands() {
        assert_eq!(parse(b"no time at all").text, b"no time at all");
        assert_eq!(parse(b"2026-11-22T20:00:00Z stderr P  half").text, b" half");
        assert!(parse(b"2026-11-22T20:00:00Z stderr P  half").partial);
    }
}
