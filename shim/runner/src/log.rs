//! A container's log: guests' lines as CRI records in a file that is rotated by size.
//!
//! A guest writes into a buffer; a blocking thread empties it while there is anything, so a quick writer costs one system
//! call per buffer and not per line, and an idle container holds no descriptor. Absent: reading logs, which the agent does.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use copepod_shim::protocol::Limits;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::attach::Clients;
use crate::ledger::{Charge, Ledger};

/// The longest content of one record: containerd's and CRI-O's 16 KiB. A longer line is cut into records tagged `P`.
pub const MAX_RECORD: usize = 16 << 10;

/// How much waits to be written at most before guests wait: four records of the longest kind.
const BUFFER: usize = 4 * MAX_RECORD;

/// What is booked while there is anything to write: the buffer that is filled and the one that is written meanwhile.
const FLUSHING: u64 = 2 * BUFFER as u64;

/// How long a guest over its rate is slowed down before what it writes is dropped.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which of a guest's two outputs a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error; our own notes go here too.
    Stderr,
}

impl Stream {
    fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One container's log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file_bytes: u64,
    files: u32,
    runtime: Handle,
    ledger: Arc<Ledger>,
    /// Who sees what is written while it is.
    clients: Clients,
    state: Mutex<State>,
    /// Something was written or became writable.
    progress: Notify,
}

#[derive(Debug)]
struct State {
    buffer: Vec<u8>,
    /// There is while a thread is at work on the file.
    flushing: Option<Charge>,
    rate: Rate,
    stamp: Stamp,
}

/// The byte rate: a second's worth saved up at most.
#[derive(Debug)]
struct Rate {
    per_second: u64,
    tokens: i64,
    filled: Instant,
    /// Since when the guest has been slowed down, with no pause of half a second's worth since.
    empty_since: Option<Instant>,
    /// Over the rate for longer than [`PATIENCE`]: this many bytes were dropped since.
    dropping: Option<u64>,
}

/// The text of the current second, made once for all records of it.
#[derive(Debug, Default)]
struct Stamp {
    second: i64,
    text: String,
}

impl Log {
    /// The log at `path`; neither it nor its folder is made before the first byte. What it holds in memory is booked on `ledger`,
    /// beyond the limit if need be: a log is never what a container is ended by. To be called within the runtime.
    pub fn new(path: PathBuf, limits: &Limits, ledger: &Arc<Ledger>) -> Arc<Self> {
        Arc::new(Self {
            path,
            file_bytes: limits.log_file_bytes.max(1),
            files: limits.log_files.max(1),
            runtime: Handle::current(),
            ledger: ledger.clone(),
            clients: Clients::default(),
            state: Mutex::new(State {
                buffer: Vec::new(),
                flushing: None,
                rate: Rate::new(limits.log_bytes_per_second),
                stamp: Stamp::default(),
            }),
            progress: Notify::new(),
        })
    }

    /// A guest's end of the log: one per instance and output, so that two instances' lines never run into each other.
    pub fn writer(self: &Arc<Self>, stream: Stream) -> LogWriter {
        LogWriter(Arc::new(Lines { log: self.clone(), stream, partial: Mutex::default() }))
    }

    /// Who sees what guests write beside the log.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// A line of the runner's own, outside the rate.
    pub fn note(self: &Arc<Self>, text: &str) {
        let mut state = self.lock();
        for line in text.lines() {
            state.record(Stream::Stderr, 'F', format!("copepod: {line}").as_bytes());
        }
        self.flush_soon(&mut state);
    }

    /// Resolves once everything written so far is in the file (or has failed to get there).
    pub async fn flushed(&self) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                let state = self.lock();
                if state.flushing.is_none() && state.buffer.is_empty() {
                    return;
                }
            }
            progress.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes a guest may write now, or how long until it is worth asking again (none: until the next flush).
    fn permit(self: &Arc<Self>) -> Result<usize, Option<Duration>> {
        let mut state = self.lock();
        if state.buffer.len() >= BUFFER {
            self.flush_soon(&mut state);
            return Err(None);
        }
        let dropped = state.rate.refill(Instant::now());
        if let Some(bytes) = dropped {
            let note = format!(
                "copepod: {bytes} bytes of this log were dropped: more than {} bytes a second",
                state.rate.per_second
            );
            state.record(Stream::Stderr, 'F', note.as_bytes());
        }
        state.rate.permit(Instant::now()).map(|()| BUFFER).map_err(Some)
    }

    fn put(self: &Arc<Self>, stream: Stream, tag: char, content: &[u8]) {
        let mut state = self.lock();
        // 40 bytes of time, stream and tag go with each record, so that a flood of empty lines is a flood too.
        if state.rate.spend(content.len() as u64 + 40) {
            state.record(stream, tag, content);
            self.flush_soon(&mut state);
        }
    }

    fn flush_soon(self: &Arc<Self>, state: &mut State) {
        if state.flushing.is_none() && !state.buffer.is_empty() {
            state.flushing = Some(self.ledger.hold(FLUSHING));
            let log = self.clone();
            drop(self.runtime.spawn_blocking(move || log.flush()));
        }
    }

    /// Writes until nothing is left, then lets go of the file.
    fn flush(&self) {
        let mut file: Option<OpenLog> = None;
        let mut chunk = Vec::new();
        loop {
            chunk.clear();
            {
                let mut state = self.lock();
                std::mem::swap(&mut state.buffer, &mut chunk);
                if chunk.is_empty() {
                    state.flushing = None;
                    state.buffer = Vec::new();
                    break;
                }
            }
            if let Err(error) = self.write(&mut file, &chunk) {
                // Once per flush and not per line: a full disk must not fill the runner's own log as well.
                tracing::warn!(log = %self.path.display(), %error, "a container's log cannot be written");
                file = None;
            }
            self.progress.notify_waiters();
        }
        self.progress.notify_waiters();
    }

    fn write(&self, file: &mut Option<OpenLog>, chunk: &[u8]) -> io::Result<()> {
        let mut open = match file.take() {
            Some(open) => open,
            None => OpenLog::open(&self.path)?,
        };
        if open.size > 0 && open.size + chunk.len() as u64 > self.file_bytes {
            drop(open);
            rotate(&self.path, self.files)?;
            open = OpenLog::open(&self.path)?;
        }
        open.file.write_all(chunk)?;
        open.size += chunk.len() as u64;
        *file = Some(open);
        Ok(())
    }
}

struct OpenLog {
    file: File,
    size: u64,
}

impl OpenLog {
    fn open(path: &Path) -> io::Result<Self> {
        let open = || {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o640);
            options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(path)
        };
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                open()?
            }
            opened => opened?,
        };
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

/// `0.log` becomes `0.log.1`, that `0.log.2`, and so on; of `files` in all, the oldest goes.
fn rotate(path: &Path, files: u32) -> io::Result<()> {
    let numbered = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    if files == 1 {
        return std::fs::remove_file(path);
    }
    for n in (1..files - 1).rev() {
        match std::fs::rename(numbered(n), numbered(n + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(path, numbered(1))
}

impl State {
    fn record(&mut self, stream: Stream, tag: char, content: &[u8]) {
        self.stamp.append(Timestamp::now(), &mut self.buffer);
        self.buffer.push(b' ');
        self.buffer.extend_from_slice(stream.word().as_bytes());
        self.buffer.extend_from_slice(&[b' ', tag as u8, b' ']);
        self.buffer.extend_from_slice(content);
        self.buffer.push(b'\n');
    }
}

impl Stamp {
    /// RFC 3339 with nine digits, as the CRI asks for.
    fn append(&mut self, now: Timestamp, buffer: &mut Vec<u8>) {
        let second = now.as_second();
        if second != self.second || self.text.is_empty() {
            self.second = second;
            self.text.clear();
            // Writing to a string cannot fail.
            let _ = write!(self.text, "{}", now.strftime("%Y-%m-%dT%H:%M:%S"));
        }
        buffer.extend_from_slice(self.text.as_bytes());
        let mut digits = [b'0'; 9];
        let mut nanos = now.subsec_nanosecond().unsigned_abs();
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (nanos % 10) as u8;
            nanos /= 10;
        }
        buffer.push(b'.');
        buffer.extend_from_slice(&digits);
        buffer.push(b'Z');
    }
}

impl Rate {
    fn new(per_second: u64) -> Self {
        let per_second = per_second.max(1);
        Self {
            per_second,
            tokens: i64::try_from(per_second).unwrap_or(i64::MAX),
            filled: Instant::now(),
            empty_since: None,
            dropping: None,
        }
    }

    fn full(&self) -> i64 {
        i64::try_from(self.per_second).unwrap_or(i64::MAX)
    }

    /// Adds what time brought; the bytes dropped, once dropping is over.
    fn refill(&mut self, now: Instant) -> Option<u64> {
        let micros = now.saturating_duration_since(self.filled).as_micros();
        let gained = (micros * u128::from(self.per_second) / 1_000_000).min(self.full() as u128);
        if gained > 0 {
            self.filled = now;
            self.tokens = self.tokens.saturating_add(gained as i64).min(self.full());
        }
        // Half a second's worth, so that a flood does not alternate between lines and notes.
        if self.tokens <= self.full() / 2 {
            return None;
        }
        self.empty_since = None;
        self.dropping.take()
    }

    fn permit(&mut self, now: Instant) -> Result<(), Duration> {
        if self.tokens > 0 || self.dropping.is_some() {
            return Ok(());
        }
        let since = *self.empty_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= PATIENCE {
            self.dropping = Some(0);
            return Ok(());
        }
        let missing = self.tokens.unsigned_abs() + 1;
        let wait = Duration::from_secs_f64(missing as f64 / self.per_second as f64);
        Err(wait.clamp(Duration::from_millis(1), PATIENCE))
    }

    /// Whether a record of so many bytes is kept.
    fn spend(&mut self, bytes: u64) -> bool {
        match &mut self.dropping {
            Some(dropped) => {
                *dropped += bytes;
                false
            }
            None => {
                self.tokens = self.tokens.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
                true
            }
        }
    }
}

#[derive(Debug)]
struct Lines {
    log: Arc<Log>,
    stream: Stream,
    partial: Mutex<Partial>,
}

/// The begin of a line whose end the guest has not written yet.
#[derive(Debug, Default)]
struct Partial {
    bytes: Vec<u8>,
    /// There is where `bytes` are.
    held: Option<Charge>,
}

impl Lines {
    fn write(&self, mut bytes: &[u8]) {
        self.log.clients.show(self.stream, bytes);
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let Partial { bytes: partial, held } = &mut *partial;
        while !bytes.is_empty() {
            let room = MAX_RECORD - partial.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|&byte| byte == b'\n') {
                Some(end) if partial.is_empty() => {
                    self.log.put(self.stream, 'F', &window[..end]);
                    bytes = &bytes[end + 1..];
                }
                Some(end) => {
                    partial.extend_from_slice(&window[..end]);
                    self.log.put(self.stream, 'F', partial);
                    partial.clear();
                    bytes = &bytes[end + 1..];
                }
                None => {
                    partial.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if partial.len() == MAX_RECORD {
                        self.log.put(self.stream, 'P', partial);
                        partial.clear();
                    }
                }
            }
        }
        if partial.is_empty() {
            (*partial, *held) = (Vec::new(), None);
        } else if held.is_none() {
            *held = Some(self.log.ledger.hold(MAX_RECORD as u64));
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let partial = self.partial.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !partial.bytes.is_empty() {
            self.log.put(self.stream, 'F', &partial.bytes);
        }
    }
}

/// A guest's stdout or stderr.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<Lines>);

impl IsTerminal for LogWriter {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogWriter {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for LogWriter {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.write(&bytes);
        Ok(())
    }

    /// What is written is on its way already.
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.0.log.permit().unwrap_or(0))
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LogWriter {
    async fn ready(&mut self) {
        loop {
            let progress = self.0.log.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            match self.0.log.permit() {
                Ok(_) => return,
                Err(Some(wait)) => tokio::time::sleep(wait).await,
                Err(None) => progress.await,
            }
        }
    }
}

/// For interfaces of WASI 0.3, which take their streams in this form.
impl tokio::io::AsyncWrite for LogWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.0.log.permit() {
            Ok(permit) => {
                let taken = bytes.len().min(permit);
                self.0.write(&bytes[..taken]);
                Poll::Ready(Ok(taken))
            }
            Err(_) => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_nine_digits_also_where_they_are_zero() {
        let mut stamp = Stamp::default();
        let mut buffer = Vec::new();
        for nanos in [7, 123_456_789] {
            let time = Timestamp::new(1_795_377_600, nanos).expect("in range");
            stamp.append(time, &mut buffer);
            buffer.push(b' ');
        }

        assert_eq!(
            String::from_utf8(buffer).expect("text"),
            "2026-11-22T20:00:00.000000007Z 2026-11-22T20:00:00.123456789Z "
        );
    }

    #[test]
    fn who_writes_too_much_waits_first_then_loses_lines_and_is_told_how_much() {
        let mut rate = Rate::new(1_000);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(rate.permit(at(0)).is_ok());
        assert!(rate.spend(1_500));

        // Half a second of debt, and one byte to be positive again.
        assert_eq!(rate.permit(at(0)), Err(Duration::from_millis(501)));
        assert_eq!(rate.refill(at(600)), None);
        assert!(rate.spend(100));
        assert!(rate.permit(at(900)).is_err());
        assert!(rate.permit(at(1_000)).is_ok(), "patience is at an end");
        assert!(!rate.spend(77));
        assert_eq!(rate.refill(at(1_050)), None);
        assert_eq!(rate.refill(at(1_700)), Some(77));
        assert!(rate.spend(10));
    }

    #[tokio::test]
    async fn what_waits_to_be_written_is_charged_and_so_is_the_begin_of_a_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = Ledger::new(1);
        let limits = Limits {
            memory: 1,
            cpu_millis: None,
            cpu_weight: 2,
            log_bytes_per_second: 1 << 20,
            log_file_bytes: 1 << 20,
            log_files: 2,
            handles: 1,
        };
        let log = Log::new(folder.path().join("0.log"), &limits, &ledger);
        let mut writer = log.writer(Stream::Stdout);

        writer.write(Bytes::from_static(b"the begin ")).expect("taken");
        let of_a_begin = ledger.used();
        writer.write(Bytes::from_static(b"and the end\n")).expect("taken");
        log.flushed().await;

        assert_eq!(of_a_begin, MAX_RECORD as u64);
        assert_eq!((ledger.used(), ledger.peak()), (0, FLUSHING + MAX_RECORD as u64));
        assert!(!ledger.exceeded());
    }

    #[test]
    fn rotation_keeps_so_many_files_and_drops_the_oldest() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("0.log");
        for content in ["a", "b", "c", "d"] {
            std::fs::write(&path, content).expect("written");
            rotate(&path, 3).expect("rotated");
        }
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).ok();

        assert_eq!(read("0.log"), None);
        assert_eq!(read("0.log.1").as_deref(), Some("d"));
        assert_eq!(read("0.log.2").as_deref(), Some("c"));
        assert_eq!(read("0.log.3"), None);
    }
}
