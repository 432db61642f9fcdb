//! How many of the server's own lines a container's log takes: clients can make it fail as often as they like.
//!
//! Pure. Absent: writing them.

use std::time::{Duration, Instant};

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
