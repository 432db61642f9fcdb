//! Exit records that outlive the runner: written and synced before anybody hears of an exit, kept until acknowledged.
//!
//! One file of JSON lines, appended to; a line that a crash cut short is the last and is dropped. Exits that come together
//! share one sync. Absent: what an exit means.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use copepod_shim::protocol::{AttemptId, Exit};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// The most records kept: an agent that is away while more containers end than that loses the oldest. A record is at most
/// some 5 KiB, so the file stays below 50 MiB.
const MAX_RECORDS: usize = 10_000;

/// The size from which the file is written anew once most of it is about what is gone.
const WORTH_COMPACTING: u64 = 256 << 10;

#[derive(Debug, Serialize, Deserialize)]
enum Line {
    Exit { id: AttemptId, exit: Exit },
    Acknowledged(AttemptId),
    Forgotten { pod: String },
}

/// The runner's exit records.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: Option<File>,
    size: u64,
    kept: BTreeMap<AttemptId, Exit>,
    queue: Vec<u8>,
    waiting: Vec<oneshot::Sender<()>>,
    writing: bool,
}

impl Records {
    /// The records in `folder`, those of an earlier runner included.
    ///
    /// # Errors
    /// The folder or the file cannot be made or read.
    pub fn open(folder: &Path) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join("records");
        let mut kept = BTreeMap::new();
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
        let mut good = 0;
        let mut reader = BufReader::new(&mut file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            let Ok(read) = serde_json::from_slice::<Line>(&line) else { break };
            if line.last() != Some(&b'\n') {
                break;
            }
            apply(&mut kept, read);
            good += line.len() as u64;
            line.clear();
        }
        if file.metadata()?.len() > good {
            tracing::warn!(path = %path.display(), "the end of the exit records is damaged and was dropped");
            file.set_len(good)?;
        }
        let state = State {
            file: Some(file),
            size: good,
            kept,
            queue: Vec::new(),
            waiting: Vec::new(),
            writing: false,
        };
        Ok(Arc::new(Self { path, state: Mutex::new(state) }))
    }

    /// Records an exit; resolves once it is on the disk (or the disk has refused, which is logged: the exit is told anyway).
    pub async fn record(self: &Arc<Self>, id: AttemptId, exit: Exit) {
        let (written, on_disk) = oneshot::channel();
        self.push(Line::Exit { id, exit }, Some(written));
        let _ = on_disk.await;
    }

    /// The agent has it: it may go.
    pub fn acknowledge(self: &Arc<Self>, id: &AttemptId) {
        if self.lock().kept.contains_key(id) {
            self.push(Line::Acknowledged(id.clone()), None);
        }
    }

    /// All of a pod's records go.
    pub fn forget(self: &Arc<Self>, pod: &str) {
        if self.lock().kept.keys().any(|id| id.pod == pod) {
            self.push(Line::Forgotten { pod: pod.to_owned() }, None);
        }
    }

    /// The record of this attempt, while it is kept.
    pub fn get(&self, id: &AttemptId) -> Option<Exit> {
        self.lock().kept.get(id).cloned()
    }

    /// All that are kept.
    pub fn all(&self) -> Vec<(AttemptId, Exit)> {
        self.lock().kept.iter().map(|(id, exit)| (id.clone(), exit.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(self: &Arc<Self>, line: Line, written: Option<oneshot::Sender<()>>) {
        let mut state = self.lock();
        append(&mut state.queue, &line);
        apply(&mut state.kept, line);
        state.waiting.extend(written);
        if !state.writing {
            state.writing = true;
            let records = self.clone();
            drop(tokio::task::spawn_blocking(move || records.write()));
        }
    }

    fn write(&self) {
        loop {
            let (queue, waiting, file, size) = {
                let mut state = self.lock();
                if state.queue.is_empty() {
                    state.writing = false;
                    return;
                }
                let queue = std::mem::take(&mut state.queue);
                (queue, std::mem::take(&mut state.waiting), state.file.take(), state.size)
            };
            let durable = !waiting.is_empty();
            let (file, size) = match self.append(file, size, &queue, durable) {
                Ok((file, size)) => (Some(file), size),
                Err(error) => {
                    tracing::error!(path = %self.path.display(), %error, "exit records cannot be written");
                    (None, size)
                }
            };
            {
                let mut state = self.lock();
                state.file = file;
                state.size = size;
            }
            for written in waiting {
                let _ = written.send(());
            }
        }
    }

    fn append(
        &self,
        file: Option<File>,
        size: u64,
        queue: &[u8],
        durable: bool,
    ) -> io::Result<(File, u64)> {
        let mut file = match file {
            Some(file) => file,
            None => OpenOptions::new().append(true).create(true).open(&self.path)?,
        };
        file.write_all(queue)?;
        let size = size + queue.len() as u64;
        if durable {
            file.sync_data()?;
        }
        if size >= WORTH_COMPACTING {
            let mut lines = Vec::new();
            for (id, exit) in self.all() {
                append(&mut lines, &Line::Exit { id, exit });
            }
            // Twice its size, so that the writing anew costs no more than the appending did.
            if size >= 2 * lines.len() as u64 {
                return self.compact(&lines);
            }
        }
        Ok((file, size))
    }

    fn compact(&self, lines: &[u8]) -> io::Result<(File, u64)> {
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(lines)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        let file = OpenOptions::new().append(true).open(&self.path)?;
        Ok((file, lines.len() as u64))
    }
}

fn append(lines: &mut Vec<u8>, line: &Line) {
    // A vector takes every byte, and these types have no map with keys that JSON lacks.
    let _ = serde_json::to_writer(&mut *lines, line);
    lines.push(b'\n');
}

fn apply(kept: &mut BTreeMap<AttemptId, Exit>, line: Line) {
    match line {
        Line::Exit { id, exit } => {
            kept.insert(id, exit);
            if kept.len() > MAX_RECORDS
                && let Some(oldest) =
                    kept.iter().min_by_key(|(_, exit)| exit.finished_us).map(|(id, _)| id.clone())
            {
                kept.remove(&oldest);
            }
        }
        Line::Acknowledged(id) => {
            kept.remove(&id);
        }
        Line::Forgotten { pod } => kept.retain(|id, _| id.pod != pod),
    }
}

#[cfg(test)]
mod tests {
    use copepod_shim::protocol::ExitReason;

    use super::*;

    fn id(pod: &str, attempt: u32) -> AttemptId {
        AttemptId { pod: pod.into(), container: "app".into(), attempt }
    }

    fn exit(code: i32) -> Exit {
        Exit {
            code,
            reason: ExitReason::Ended,
            message: "a\nb".into(),
            started_us: 1,
            finished_us: 2,
        }
    }

    #[tokio::test]
    async fn a_successor_finds_what_nobody_acknowledged() {
        let folder = tempfile::tempdir().expect("a folder");
        let records = Records::open(folder.path()).expect("opened");
        records.record(id("a", 0), exit(7)).await;
        records.record(id("a", 1), exit(8)).await;
        records.record(id("b", 0), exit(9)).await;
        records.acknowledge(&id("a", 0));
        records.forget("b");
        records.record(id("c", 0), exit(1)).await;
        drop(records);

        let successor = Records::open(folder.path()).expect("opened");

        assert_eq!(successor.all(), [(id("a", 1), exit(8)), (id("c", 0), exit(1))]);
    }

    #[tokio::test]
    async fn a_line_cut_short_by_a_crash_is_dropped_and_the_file_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let records = Records::open(folder.path()).expect("opened");
        records.record(id("a", 0), exit(7)).await;
        drop(records);
        let path = folder.path().join("records");
        let mut bytes = std::fs::read(&path).expect("read");
        bytes.extend_from_slice(b"{\"Exit\":{\"id\":{\"po");
        std::fs::write(&path, bytes).expect("written");

        let successor = Records::open(folder.path()).expect("opened");
        successor.record(id("a", 1), exit(8)).await;
        drop(successor);

        let third = Records::open(folder.path()).expect("opened");
        assert_eq!(third.all(), [(id("a", 0), exit(7)), (id("a", 1), exit(8))]);
    }

    #[tokio::test]
    async fn the_file_stays_small_however_many_exits_were_acknowledged() {
        let folder = tempfile::tempdir().expect("a folder");
        let records = Records::open(folder.path()).expect("opened");
        for attempt in 0..3000 {
            records.push(Line::Exit { id: id("a", attempt), exit: exit(0) }, None);
            records.acknowledge(&id("a", attempt));
        }
        records.record(id("b", 0), exit(5)).await;
        while records.lock().writing {
            tokio::task::yield_now().await;
        }

        let size = std::fs::metadata(folder.path().join("records")).expect("there").len();

        assert!(size < 2 * WORTH_COMPACTING, "{size}");
        assert_eq!(Records::open(folder.path()).expect("opened").all(), [(id("b", 0), exit(5))]);
    }
}
