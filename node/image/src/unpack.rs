//! The one program in a container image's layers: found, checked, and stored as a blob of its own.
//!
//! Nothing is ever unpacked to the host's file system: a layer is read as a stream, so `..`, links, devices and modes have
//! nothing to act on. Absent: the image's other files, which come when a container's root is composed.

use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};

use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType};

use crate::digest::{Digest, Hash};
use crate::guard::{Failure, PullRules};
use crate::pull::refusal_by_ends;
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

/// A program taken out of an image.
pub(crate) struct Unpacked {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    /// Its file name.
    pub(crate) name: String,
    /// What of the image the program will not see.
    pub(crate) warning: Option<String>,
}

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

/// What one layer says of the path looked for.
enum Told {
    /// Nothing: the layers below decide.
    Nothing,
    /// It holds the file.
    Here(Digest, u64),
    /// It removes the file, or puts something else in its place.
    Gone(String),
}

/// Finds `path` as the stacked layers (lowest first) show it.
pub(crate) fn program(
    store: &Store,
    layers: &[Digest],
    diff_ids: &[Digest],
    path: &str,
    rules: &PullRules,
) -> Result<Unpacked, Failure> {
    if !diff_ids.is_empty() && diff_ids.len() != layers.len() {
        return Err(Failure::Corrupt(format!(
            "its configuration names {} layers, and its manifest {}",
            diff_ids.len(),
            layers.len()
        )));
    }
    let mut budget = Budget { bytes: rules.max_image_bytes, entries: MAX_ENTRIES };
    let mut others = 0;
    let mut found = Told::Nothing;
    // All layers are read, from the uppermost: the first that speaks of the path decides, the rest are checked and counted.
    for (number, layer) in layers.iter().enumerate().rev() {
        let decided = !matches!(found, Told::Nothing);
        let told = read_layer(
            store,
            layer,
            diff_ids.get(number),
            path,
            decided,
            rules,
            &mut budget,
            &mut others,
        )?;
        if !decided {
            found = told;
        }
    }
    match found {
        Told::Here(digest, bytes) => {
            let name = path.rsplit('/').next().unwrap_or(path).to_owned();
            let warning = (others > 0).then(|| {
                format!(
                    "the image holds {others} more files, which its program does not see: root files from images are not supported yet"
                )
            });
            Ok(Unpacked { digest, bytes, name, warning })
        }
        Told::Gone(why) => {
            Err(Failure::Unusable(format!("its entrypoint /{path} cannot be run: {why}")))
        }
        Told::Nothing => {
            Err(Failure::Unusable(format!("its entrypoint /{path} is in none of its layers")))
        }
    }
}

/// What the layers of one image may still use.
struct Budget {
    bytes: u64,
    entries: u64,
}

#[allow(clippy::too_many_arguments)] // One call, above; a struct for it would only rename them.
fn read_layer(
    store: &Store,
    layer: &Digest,
    diff_id: Option<&Digest>,
    path: &str,
    decided: bool,
    rules: &PullRules,
    budget: &mut Budget,
    others: &mut u64,
) -> Result<Told, Failure> {
    let mut file = BufReader::with_capacity(64 << 10, File::open(store.blob_path(layer))?);
    let is_gzip = io::BufRead::fill_buf(&mut file)?.starts_with(&[0x1f, 0x8b]);
    let compressed = file.get_ref().metadata()?.len();
    let plain: Box<dyn Read> =
        if is_gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let allowed =
        if is_gzip { compressed.saturating_mul(MAX_RATIO).max(RATIO_FROM) } else { u64::MAX };
    let mut metered =
        Metered { inner: plain, hash: Hash::default(), left: budget.bytes.min(allowed), bytes: 0 };
    let result = scan(store, &mut metered, path, decided, rules, budget, others).and_then(|told| {
        // What lies behind the archive's end belongs to the layer's digest.
        io::copy(&mut metered, &mut io::sink()).map_err(|e| damaged(&e))?;
        Ok(told)
    });
    // A bomb shows as a read error; it is told as what it is.
    if metered.left == 0 {
        return Err(Failure::Unusable(format!(
            "layer {layer} unpacks to more than {} from {}: this looks like a decompression bomb",
            sizes::shown(metered.bytes),
            sizes::shown(compressed)
        )));
    }
    let told = result?;
    budget.bytes -= metered.bytes.min(budget.bytes);
    if let Some(diff_id) = diff_id {
        let found = metered.hash.finish();
        if found != *diff_id {
            return Err(Failure::Corrupt(format!(
                "layer {layer} unpacks to {found}, and its configuration says {diff_id}"
            )));
        }
    }
    Ok(told)
}

fn damaged(error: &io::Error) -> Failure {
    let text: String = error.to_string().chars().filter(|c| !c.is_control()).take(200).collect();
    Failure::Corrupt(format!("a layer is damaged: {text}"))
}

fn scan(
    store: &Store,
    metered: &mut Metered,
    path: &str,
    decided: bool,
    rules: &PullRules,
    budget: &mut Budget,
    others: &mut u64,
) -> Result<Told, Failure> {
    let mut told = Told::Nothing;
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
        if given.size.is_some_and(|size| size != entry.size()) {
            return Err(Failure::Unusable("a file in one of its layers has two sizes".into()));
        }
        let name = match given.path {
            Some(path) => path,
            None => String::from_utf8_lossy(&entry.header().path_bytes()).into_owned(),
        };
        // A path that leads above the root is nowhere in the image.
        let Some(name) = normal(&name) else { continue };
        if name == path {
            match kind {
                EntryType::Regular | EntryType::Continuous => {
                    let size = entry.size();
                    if size > rules.max_layer_bytes {
                        return Err(Failure::Unusable(format!(
                            "its program has {}, more than the limit of {} (COPEPOD_MAX_LAYER_BYTES)",
                            sizes::shown(size),
                            sizes::shown(rules.max_layer_bytes)
                        )));
                    }
                    if !decided {
                        let (digest, bytes) = keep(store, &mut entry)?;
                        told = Told::Here(digest, bytes);
                    }
                }
                EntryType::Symlink | EntryType::Link => {
                    told = Told::Gone(
                        "it is a link; copy the .wasm file itself into the image".into(),
                    );
                }
                _ => told = Told::Gone("it is no ordinary file".into()),
            }
            continue;
        }
        if let Some((folder, last)) = split(&name)
            && let Some(hidden) = last.strip_prefix(".wh.")
        {
            // Whiteouts hide what is below this layer, not what it holds itself.
            let hides = if hidden == ".wh..opq" {
                is_below(path, folder)
            } else {
                let target = if folder.is_empty() {
                    hidden.to_owned()
                } else {
                    format!("{folder}/{hidden}")
                };
                path == target || is_below(path, &target)
            };
            if hides && matches!(told, Told::Nothing) {
                told = Told::Gone("a later layer removes it".into());
            }
            continue;
        }
        if is_below(path, &name) && kind != EntryType::Directory {
            told = Told::Gone(format!("/{name} is no folder"));
            continue;
        }
        if kind != EntryType::Directory {
            *others += 1;
        }
    }
    Ok(told)
}

/// Stores a program's bytes as a blob, after a look at what they are.
fn keep(store: &Store, entry: &mut impl Read) -> Result<(Digest, u64), Failure> {
    let temp = store.temp()?;
    let mut hash = Hash::default();
    let mut length = 0u64;
    let mut head = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = entry.read(&mut buffer).map_err(|e| damaged(&e))?;
        if count == 0 {
            break;
        }
        let bytes = &buffer[..count];
        hash.update(bytes);
        length += count as u64;
        if head.len() < 4096 {
            head.extend_from_slice(&bytes[..count.min(4096 - head.len())]);
        }
        temp.file().write_all(bytes)?;
    }
    if let Some(refusal) = refusal_by_ends(&head, &mut temp.file().try_clone()?)? {
        return Err(Failure::Unusable(refusal.to_string()));
    }
    let digest = hash.finish();
    store.commit_blob(temp, &digest)?;
    Ok((digest, length))
}

fn split(name: &str) -> Option<(&str, &str)> {
    match name.rsplit_once('/') {
        Some(parts) => Some(parts),
        None if name.is_empty() => None,
        None => Some(("", name)),
    }
}

/// Whether `path` lies somewhere in `folder`. Everything lies in the root.
fn is_below(path: &str, folder: &str) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// What the headers before an entry say of it.
#[derive(Default)]
struct Extension {
    path: Option<String>,
    size: Option<u64>,
}

impl Extension {
    fn take(&mut self, kind: EntryType, bytes: &[u8]) -> Result<(), Failure> {
        match kind {
            EntryType::GNULongName => {
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
                self.path = Some(String::from_utf8_lossy(&bytes[..end]).into_owned());
            }
            EntryType::XHeader => {
                for record in tar::PaxExtensions::new(bytes) {
                    let record = record.map_err(|e| damaged(&e))?;
                    match record.key_bytes() {
                        b"path" => {
                            self.path =
                                Some(String::from_utf8_lossy(record.value_bytes()).into_owned());
                        }
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
            // Links' targets are never followed; global headers set times and comments.
            _ => {}
        }
        Ok(())
    }
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

    const WASM: &[u8] = b"\0asm\x01\0\0\0";

    struct Layer(tar::Builder<Vec<u8>>);

    impl Layer {
        fn new() -> Self {
            Self(tar::Builder::new(Vec::new()))
        }

        fn entry(mut self, path: &str, kind: EntryType, bytes: &[u8]) -> Self {
            let mut header = tar::Header::new_ustar();
            let field = &mut header.as_old_mut().name;
            field[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            if kind == EntryType::Symlink {
                header.set_link_name("/etc/passwd").expect("a link");
            }
            header.set_cksum();
            self.0.append(&header, bytes).expect("appends");
            self
        }

        fn file(self, path: &str, bytes: &[u8]) -> Self {
            self.entry(path, EntryType::Regular, bytes)
        }

        fn bytes(self) -> Vec<u8> {
            self.0.into_inner().expect("a tar file")
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).expect("compresses");
        encoder.finish().expect("compresses")
    }

    fn stacked_with(
        layers: &[Vec<u8>],
        diff_ids: &[Digest],
        rules: &PullRules,
    ) -> Result<Unpacked, Failure> {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("a store");
        let digests: Vec<Digest> = layers.iter().map(|it| store.put(it).expect("a blob")).collect();
        program(&store, &digests, diff_ids, "app/main.wasm", rules)
    }

    fn stacked(layers: &[Vec<u8>]) -> Result<Unpacked, Failure> {
        stacked_with(layers, &[], &PullRules::default())
    }

    #[test]
    fn the_uppermost_layer_that_holds_the_program_gives_it() {
        let old = [WASM, b"old"].concat();
        let lower = Layer::new().file("./app/main.wasm", &old).file("etc/motd", b"hi").bytes();
        let upper = gzip(&Layer::new().file("/app//main.wasm", WASM).bytes());

        let found = stacked(&[lower, upper]).expect("found");

        assert_eq!(found.digest, Digest::of(WASM));
        assert_eq!(found.name, "main.wasm");
        assert!(found.warning.expect("other files").contains("1 more files"));
    }

    #[test]
    fn a_whiteout_of_the_file_or_a_folder_above_it_removes_it_from_the_layers_below() {
        let lower = || Layer::new().file("app/main.wasm", WASM).bytes();
        for whiteout in ["app/.wh.main.wasm", ".wh.app", "app/.wh..wh..opq", ".wh..wh..opq"] {
            let upper = Layer::new().file(whiteout, b"").bytes();
            let error = stacked(&[lower(), upper]).err().expect(whiteout).to_string();
            assert!(error.contains("removes it"), "{whiteout}: {error}");

            let both = Layer::new().file(whiteout, b"").file("app/main.wasm", WASM).bytes();
            assert!(stacked(&[lower(), both]).is_ok(), "{whiteout}");
        }
        let harmless = Layer::new().file("app/.wh.other", b"").bytes();
        assert!(stacked(&[lower(), harmless]).is_ok());
    }

    #[test]
    fn no_link_is_followed_and_nothing_but_a_file_is_taken_r12() {
        let lower = || Layer::new().file("app/main.wasm", WASM).bytes();
        for (path, kind) in [
            ("app/main.wasm", EntryType::Symlink),
            ("app/main.wasm", EntryType::Link),
            ("app/main.wasm", EntryType::Fifo),
            ("app/main.wasm", EntryType::Char),
            ("app/main.wasm", EntryType::Directory),
            ("app", EntryType::Symlink),
            ("app", EntryType::Regular),
        ] {
            let upper = Layer::new().entry(path, kind, b"").bytes();
            assert!(
                matches!(stacked(&[lower(), upper]), Err(Failure::Unusable(_))),
                "{path} {kind:?}"
            );
        }
        let escaping = Layer::new().file("../app/main.wasm", WASM).bytes();
        assert!(matches!(stacked(&[escaping]), Err(Failure::Unusable(_))));
    }

    #[test]
    fn a_gzip_bomb_is_stopped_by_its_ratio_and_its_size_r11() {
        let zeros = vec![0; 64 << 20];
        let bomb = gzip(&Layer::new().file("zeros", &zeros).bytes());
        // A member after the first is counted like it.
        let twice =
            [gzip(&Layer::new().file("app/main.wasm", WASM).bytes()), gzip(&zeros)].concat();
        let rules = PullRules { max_image_bytes: 1 << 20, ..PullRules::default() };
        let plain = Layer::new().file("zeros", &zeros[..2 << 20]).bytes();

        for result in [stacked(&[bomb]), stacked(&[twice]), stacked_with(&[plain], &[], &rules)] {
            let error = result.err().expect("a bomb");
            assert!(
                matches!(&error, Failure::Unusable(text) if text.contains("unpacks to more")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_layer_whose_unpacked_bytes_are_not_those_of_the_configuration_is_refused() {
        let layer = Layer::new().file("app/main.wasm", WASM).bytes();
        let right = Digest::of(&layer);
        let rules = PullRules::default();

        assert!(stacked_with(&[gzip(&layer)], &[right], &rules).is_ok());
        assert!(matches!(
            stacked_with(&[gzip(&layer)], &[Digest::of(b"other")], &rules),
            Err(Failure::Corrupt(_))
        ));
    }

    #[test]
    fn native_code_in_the_programs_place_is_refused_r21() {
        let elf = Layer::new().file("app/main.wasm", b"\x7fELF\x02\x01\x01").bytes();
        let aot =
            Layer::new().file("app/main.wasm", b"\x7fELF\x02\x01\x01 .wasmtime.engine").bytes();

        assert!(stacked(&[elf]).err().expect("elf").to_string().contains("Linux program"));
        assert!(stacked(&[aot]).err().expect("aot").to_string().contains("precompiled"));
    }

    #[test]
    fn a_header_of_two_sizes_or_too_many_bytes_is_refused_r12() {
        let huge = Layer::new().entry("x", EntryType::XHeader, &vec![b'x'; 128 << 10]).bytes();
        let desynced = Layer::new()
            .entry("x", EntryType::XHeader, b"13 size=9999\n")
            .file("app/main.wasm", WASM)
            .bytes();
        let cut = &Layer::new().file("app/main.wasm", &[WASM, &[0; 4096]].concat()).bytes()[..1024];

        assert!(matches!(stacked(&[huge]), Err(Failure::Unusable(_))));
        assert!(matches!(stacked(&[desynced]), Err(Failure::Unusable(_))));
        assert!(matches!(stacked(&[cut.to_vec()]), Err(Failure::Corrupt(_))));
    }

    #[test]
    fn a_pax_path_names_the_file() {
        let record = b"22 path=app/main.wasm\n";
        let layer = Layer::new().entry("x", EntryType::XHeader, record).file("short", WASM).bytes();

        assert!(stacked(&[layer]).is_ok());
    }

    #[test]
    fn a_path_is_normal_without_dots_and_never_above_the_root() {
        assert_eq!(normal("/a/./b//c/../d").as_deref(), Some("a/b/d"));
        assert_eq!(normal("../a"), None);
        assert_eq!(normal("a/../../b"), None);
    }
}
