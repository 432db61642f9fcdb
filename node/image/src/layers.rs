//! The layers of a container image, read as streams: decompressed, counted, checked against their digests, entry by entry.
//!
//! Absent: what becomes of the entries ([`crate::root`]).

use std::fs::File;
use std::io::{self, BufReader, Read};

use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType};

use crate::digest::{Digest, Hash};
use crate::guard::{Failure, PullRules};
use crate::sizes;
use crate::store::Store;

/// More entries than the largest images have (a full distribution: 60,000).
const MAX_ENTRIES: u64 = 200_000;
/// A path's own limit in Linux is 4 KiB; PAX headers hold a few of them.
const MAX_EXTENSION: u64 = 64 << 10;
/// gzip can reach 1,030:1 on zeros; programs have 3:1 and sparse data seldom more than this.
const MAX_RATIO: u64 = 200;
/// Below this, a ratio says nothing.
const RATIO_FROM: u64 = 16 << 20;

/// A path without `.`, `..` and doubled slashes, relative to the root; `None` where `..` leads above it.
pub(crate) fn normal(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// One file, folder or link of a layer.
pub(crate) struct Entry<'a> {
    /// Where it is: normal, relative to the root. Never empty.
    pub(crate) path: String,
    pub(crate) kind: EntryType,
    pub(crate) size: u64,
    /// What a link leads to, as it is written there.
    pub(crate) link: String,
    pub(crate) is_executable: bool,
    /// Unix time in seconds of its last change.
    pub(crate) changed: u64,
    pub(crate) bytes: &'a mut dyn Read,
}

/// What the layers of one image may still use.
pub(crate) struct Budget {
    bytes: u64,
    entries: u64,
}

impl Budget {
    pub(crate) fn new(rules: &PullRules) -> Self {
        Self { bytes: rules.max_image_bytes, entries: MAX_ENTRIES }
    }
}

/// Reads a layer to its end, and gives every entry to `take`.
pub(crate) fn read(
    store: &Store,
    layer: &Digest,
    diff_id: Option<&Digest>,
    budget: &mut Budget,
    take: &mut dyn FnMut(Entry<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut file = BufReader::with_capacity(64 << 10, File::open(store.blob_path(layer))?);
    let is_gzip = io::BufRead::fill_buf(&mut file)?.starts_with(&[0x1f, 0x8b]);
    let compressed = file.get_ref().metadata()?.len();
    let plain: Box<dyn Read> =
        if is_gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let allowed =
        if is_gzip { compressed.saturating_mul(MAX_RATIO).max(RATIO_FROM) } else { u64::MAX };
    let mut metered =
        Metered { inner: plain, hash: Hash::default(), left: budget.bytes.min(allowed), bytes: 0 };
    let result = entries(&mut metered, budget, take).and_then(|()| {
        // What lies behind the archive's end belongs to the layer's digest.
        io::copy(&mut metered, &mut io::sink()).map_err(|e| damaged(&e))?;
        Ok(())
    });
    // A bomb shows as a read error; it is told as what it is.
    if metered.left == 0 {
        return Err(Failure::Unusable(format!(
            "layer {layer} unpacks to more than {} from {}: this looks like a decompression bomb",
            sizes::shown(metered.bytes),
            sizes::shown(compressed)
        )));
    }
    result?;
    budget.bytes -= metered.bytes.min(budget.bytes);
    if let Some(diff_id) = diff_id {
        let found = metered.hash.finish();
        if found != *diff_id {
            return Err(Failure::Corrupt(format!(
                "layer {layer} unpacks to {found}, and its configuration says {diff_id}"
            )));
        }
    }
    Ok(())
}

/// A layer that cannot be read.
pub(crate) fn damaged(error: &io::Error) -> Failure {
    let text: String = error.to_string().chars().filter(|c| !c.is_control()).take(200).collect();
    Failure::Corrupt(format!("a layer is damaged: {text}"))
}

fn entries(
    metered: &mut Metered,
    budget: &mut Budget,
    take: &mut dyn FnMut(Entry<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut archive = Archive::new(metered);
    let mut extension = Extension::default();
    // Raw: the crate would read an extension header of any size into memory, and take a PAX size against the header's own.
    for entry in archive.entries().map_err(|e| damaged(&e))?.raw(true) {
        let mut entry = entry.map_err(|e| damaged(&e))?;
        budget.entries = budget.entries.checked_sub(1).ok_or_else(|| {
            Failure::Unusable(format!("its layers hold more than {MAX_ENTRIES} files"))
        })?;
        let kind = entry.header().entry_type();
        if matches!(
            kind,
            EntryType::GNULongName
                | EntryType::GNULongLink
                | EntryType::XHeader
                | EntryType::XGlobalHeader
        ) {
            let size = entry.size();
            if size > MAX_EXTENSION {
                return Err(Failure::Unusable(
                    "a header in one of its layers is larger than 64 KiB".into(),
                ));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(|e| damaged(&e))?;
            extension.take(kind, &bytes)?;
            continue;
        }
        let given = std::mem::take(&mut extension);
        let size = entry.size();
        if given.size.is_some_and(|given| given != size) {
            return Err(Failure::Unusable("a file in one of its layers has two sizes".into()));
        }
        let header = entry.header();
        let name = given.path.unwrap_or_else(|| lossy(&header.path_bytes()));
        // A path that leads above the root is nowhere in the image, and the root itself is there already.
        let Some(path) = normal(&name).filter(|path| !path.is_empty()) else { continue };
        let link = given.link.or_else(|| header.link_name_bytes().map(|it| lossy(&it)));
        let link = link.unwrap_or_default();
        let is_executable = header.mode().is_ok_and(|mode| mode & 0o111 != 0);
        let changed = header.mtime().unwrap_or(0);
        take(Entry { path, kind, size, link, is_executable, changed, bytes: &mut entry })?;
    }
    Ok(())
}

/// What the headers before an entry say of it.
#[derive(Default)]
struct Extension {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Extension {
    fn take(&mut self, kind: EntryType, bytes: &[u8]) -> Result<(), Failure> {
        match kind {
            EntryType::GNULongName | EntryType::GNULongLink => {
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
                let text = Some(String::from_utf8_lossy(&bytes[..end]).into_owned());
                if kind == EntryType::GNULongName { self.path = text } else { self.link = text }
            }
            EntryType::XHeader => {
                for record in tar::PaxExtensions::new(bytes) {
                    let record = record.map_err(|e| damaged(&e))?;
                    match record.key_bytes() {
                        b"path" => self.path = Some(lossy(record.value_bytes())),
                        b"linkpath" => self.link = Some(lossy(record.value_bytes())),
                        b"size" => {
                            let size = std::str::from_utf8(record.value_bytes())
                                .ok()
                                .and_then(|it| it.parse().ok());
                            self.size = Some(size.ok_or_else(|| {
                                Failure::Corrupt(
                                    "a layer is damaged: a size that is no number".into(),
                                )
                            })?);
                        }
                        key if key.starts_with(b"GNU.sparse") => {
                            return Err(Failure::Unusable(
                                "one of its layers holds a sparse file".into(),
                            ));
                        }
                        _ => {}
                    }
                }
            }
            // Global headers set times and comments.
            _ => {}
        }
        Ok(())
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Counts and hashes what is read, and ends with an error when the allowance is used up.
struct Metered {
    inner: Box<dyn Read>,
    hash: Hash,
    left: u64,
    bytes: u64,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            return Err(io::Error::other("more than the limit"));
        }
        let count = self.inner.read(&mut buffer[..most])?;
        self.hash.update(&buffer[..count]);
        self.left -= count as u64;
        self.bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_normal_without_dots_and_never_above_the_root() {
        assert_eq!(normal("/a/./b//c/../d").as_deref(), Some("a/b/d"));
        assert_eq!(normal("../a"), None);
        assert_eq!(normal("a/../../b"), None);
    }
}
