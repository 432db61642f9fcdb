//! How far a node's journal has grown, read from its file while an agent writes it.
//!
//! Absent: what the records say. Their frame is known here, and that each names its pod and its fact.

use std::path::Path;

/// How many records of a pod are on disk, whole.
pub fn records_of(data: &Path, uid: &str) -> usize {
    records_with(data, uid)
}

/// How many records have this text in them, such as the name of a fact.
pub fn records_with(data: &Path, text: &str) -> usize {
    let bytes = std::fs::read(data.join("journal")).unwrap_or_default();
    let mut rest = bytes.as_slice();
    let mut found = 0;
    // A length and a checksum, of four bytes each, and the record.
    while let Some((head, after)) = rest.split_at_checked(8) {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some((record, after)) = after.split_at_checked(length) else { break };
        found += usize::from(record.windows(text.len()).any(|it| it == text.as_bytes()));
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_records_of_the_pod_are_counted_and_a_beginning_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let record = |text: &str| {
            let length = u32::try_from(text.len()).expect("short").to_le_bytes();
            [length.as_slice(), &[0; 4], text.as_bytes()].concat()
        };
        let mut journal = [record("of uid-1"), record("of uid-2"), record("uid-1 again")].concat();
        journal.extend(&record("of uid-1")[..12]);
        std::fs::write(folder.path().join("journal"), journal).expect("written");

        assert_eq!(records_of(folder.path(), "uid-1"), 2);
        assert_eq!(records_of(&folder.path().join("none"), "uid-1"), 0);
    }
}
