//! How many of the server's own lines a container's log takes: clients can make it fail as often as they like.
//!
//! Deciding is pure; [`Note::write`] is its one effect.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::log::Log;

/// Lines about failed requests in one second: enough to see a pattern; a trap's backtrace is up to 4 KiB.
const NOTES_PER_SECOND: u32 = 10;

/// The notes of one container.
#[derive(Debug)]
pub(crate) struct Notes {
    since: Instant,
    told: u32,
    kept_back: u32,
}

/// What becomes of a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// It is told, after a word about so many that were not.
    Tell { kept_back: u32 },
    /// It is counted.
    KeepBack,
}

impl Note {
    /// Writes the line, if it is to be told.
    pub(crate) fn write(self, log: &Arc<Log>, line: &str) {
        match self {
            Self::Tell { kept_back: 0 } => log.note(line),
            Self::Tell { kept_back } => {
                log.note(&format!("{kept_back} more notes were left out"));
                log.note(line);
            }
            Self::KeepBack => {}
        }
    }
}

impl Notes {
    /// None yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, told: 0, kept_back: 0 }
    }

    /// There is something to tell.
    pub(crate) fn note(&mut self, now: Instant) -> Note {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.told) = (now, 0);
        }
        if self.told == NOTES_PER_SECOND {
            self.kept_back = self.kept_back.saturating_add(1);
            return Note::KeepBack;
        }
        self.told += 1;
        Note::Tell { kept_back: std::mem::take(&mut self.kept_back) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_notes_is_counted_and_told_in_one_line_later() {
        let start = Instant::now();
        let mut notes = Notes::new(start);

        let flood: Vec<_> = (0..100).map(|_| notes.note(start)).collect();
        let later = notes.note(start + Duration::from_secs(1));
        let after = notes.note(start + Duration::from_secs(1));

        assert_eq!(flood.iter().filter(|note| **note == Note::KeepBack).count(), 90);
        assert_eq!(later, Note::Tell { kept_back: 90 });
        assert_eq!(after, Note::Tell { kept_back: 0 });
    }
}
