//! Wasm files that are in no image's manifest: a container's own files, and the toolbox. They become code as an image's module does.
//!
//! Whoever wrote the file may still write to it, so what is compiled is a copy, whose bytes are those of its digest. Absent: finding the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use crate::code::{Code, Compiler, in_background};
use crate::digest::{Digest, copy_hashed};
use crate::error::CompileError;
use crate::images::Images;
use crate::progress::ProgressFn;
use crate::sizes;

/// Files whose digest is remembered; a probe asks for the same one again and again.
const REMEMBERED: usize = 1_000;

/// A file as it was when its digest was taken. Nobody but root can set the last one, which changes with every write.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Seen {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// The digests of files that were compiled.
#[derive(Default)]
pub(crate) struct Digests(Mutex<HashMap<Seen, Digest>>);

impl Digests {
    fn get(&self, seen: &Seen) -> Option<Digest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(seen).cloned()
    }

    fn put(&self, seen: Seen, digest: Digest) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED {
            all.clear();
        }
        all.insert(seen, digest);
    }
}

impl Images {
    /// The code of a wasm file, compiled once for each content by a confined child.
    ///
    /// # Errors
    /// It is larger than a layer may be, cannot run or compile (final until it changes), or the disk failed.
    pub async fn code_of_file(
        &self,
        mut file: File,
        compiler: &Compiler,
        progress: ProgressFn<'_>,
    ) -> Result<Code, CompileError> {
        let inner = self.inner();
        let failed = |source: io::Error| CompileError::Io {
            doing: "read the program's file".into(),
            source: Arc::new(source),
        };
        let metadata = file.metadata().map_err(failed)?;
        // Who hands it over may have fallen to an attacker, and of another kind of file the end may never come.
        if !metadata.is_file() {
            return Err(CompileError::Invalid("it is no ordinary file".into()));
        }
        let seen = Seen {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        if let Some(digest) = inner.digests.get(&seen)
            && let Some(code) = inner.code.existing(compiler, &digest).await?
        {
            return Ok(code);
        }
        let limit = inner.guard.rules.max_layer_bytes;
        if seen.bytes > limit {
            return Err(CompileError::Limit(format!(
                "the program has {}, more than the limit of {} (COPEPOD_MAX_LAYER_BYTES)",
                sizes::shown(seen.bytes),
                sizes::shown(limit)
            )));
        }
        let store = inner.store.clone();
        let (copy, digest) = in_background(move || {
            let copy = store.temp()?;
            file.seek(SeekFrom::Start(0))?;
            // It may have grown since.
            let (digest, _) = copy_hashed(&mut file.take(limit), &mut copy.file())?;
            Ok((copy, digest))
        })
        .await
        .map_err(failed)?;
        let code = inner.code.code(compiler, &digest, copy.path(), || (), progress).await?;
        inner.digests.put(seen, digest);
        Ok(code)
    }
}
