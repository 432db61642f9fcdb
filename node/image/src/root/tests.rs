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
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.set_link_name("/etc/passwd").expect("a link");
        }
        header.set_cksum();
        self.0.append(&header, bytes).expect("appends");
        self
    }

    fn link(mut self, path: &str, kind: EntryType, target: &str) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).expect("a path");
        header.set_entry_type(kind);
        header.set_size(0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.append(&header, io::empty()).expect("appends");
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

/// What came of it, and where it lies as long as the folder lives.
type Stacked = (Unpacked, tempfile::TempDir);

fn stacked_with(
    layers: &[Vec<u8>],
    diff_ids: &[Digest],
    rules: &PullRules,
) -> Result<Stacked, Failure> {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).expect("a store");
    let digests: Vec<Digest> = layers.iter().map(|it| store.put(it).expect("a blob")).collect();
    Ok((compose(&store, &digests, diff_ids, "app/main.wasm", rules)?, folder))
}

/// All names in a composed root with what they are: a file's bytes, a link's target, a folder's `/`.
fn contents(stacked: &Stacked) -> Vec<(String, String)> {
    fn walk(folder: &Path, at: &str, found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let entry = entry.expect("an entry");
            let name = format!("{at}{}", entry.file_name().display());
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                found.push((name.clone(), "/".into()));
                walk(&entry.path(), &format!("{name}/"), found);
            } else if kind.is_symlink() {
                let target = std::fs::read_link(entry.path()).expect("a link");
                found.push((name, format!("-> {}", target.display())));
            } else {
                let bytes = std::fs::read(entry.path()).expect("a file");
                found.push((name, String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
    }
    let mut found = Vec::new();
    if let Some((root, _)) = &stacked.0.root {
        walk(root.path(), "", &mut found);
    }
    found.retain(|(name, _)| name != "app" && name != "app/main.wasm");
    found.sort();
    found
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

fn stacked(layers: &[Vec<u8>]) -> Result<Stacked, Failure> {
    stacked_with(layers, &[], &PullRules::default())
}

#[test]
fn the_uppermost_layer_that_holds_the_program_gives_it() {
    let old = [WASM, b"old"].concat();
    let lower = Layer::new().file("./app/main.wasm", &old).file("etc/motd", b"hi").bytes();
    let upper = gzip(&Layer::new().file("/app//main.wasm", WASM).bytes());

    let found = stacked(&[lower, upper]).expect("found");

    assert_eq!(found.0.digest, Digest::of(WASM));
    assert_eq!(found.0.name, "main.wasm");
    assert_eq!(contents(&found), pairs(&[("etc", "/"), ("etc/motd", "hi")]));
}

#[test]
fn a_whiteout_of_the_file_or_a_folder_above_it_removes_it_from_the_layers_below() {
    let lower = || Layer::new().file("app/main.wasm", WASM).bytes();
    for whiteout in ["app/.wh.main.wasm", ".wh.app", "app/.wh..wh..opq", ".wh..wh..opq"] {
        let upper = Layer::new().file(whiteout, b"").bytes();
        let error = stacked(&[lower(), upper]).err().expect(whiteout).to_string();
        assert!(error.contains("a later one removes it"), "{whiteout}: {error}");

        let both = Layer::new().file(whiteout, b"").file("app/main.wasm", WASM).bytes();
        assert!(stacked(&[lower(), both]).is_ok(), "{whiteout}");
    }
    let harmless = Layer::new().file("app/.wh.other", b"").bytes();
    assert!(stacked(&[lower(), harmless]).is_ok());
}

#[test]
fn an_image_of_the_program_alone_has_no_folder() {
    let layer = Layer::new().entry("app", EntryType::Directory, b"").file("app/main.wasm", WASM);

    let (found, _folder) = stacked(&[layer.bytes()]).expect("found");

    assert!(found.root.is_none());
}

#[test]
fn later_layers_add_replace_and_remove() {
    let lower = Layer::new()
        .file("app/main.wasm", WASM)
        .file("etc/a", b"1")
        .file("etc/b", b"1")
        .file("lib/x/deep", b"1")
        .file("lib/y", b"1")
        .file("gone/file", b"1")
        .file("was-file", b"1")
        .bytes();
    let upper = Layer::new()
        .file("etc/a", b"2")
        .file("etc/.wh.b", b"")
        // Hides what is below, not what this layer has there itself, whichever comes first.
        .file("lib/x/new", b"2")
        .file("lib/.wh..wh..opq", b"")
        .file(".wh.gone", b"")
        .file("was-file/now-a-folder", b"2")
        .file("etc/.wh.never-there", b"")
        .bytes();

    let error = stacked(&[lower.clone(), upper]).err().expect("a file is no folder");
    assert!(matches!(&error, Failure::Unusable(text) if text.contains("was-file")), "{error}");
    let upper = Layer::new()
        .file("etc/a", b"2")
        .file("etc/.wh.b", b"")
        .file("lib/x/new", b"2")
        .file("lib/.wh..wh..opq", b"")
        .file(".wh.gone", b"")
        .entry("was-file", EntryType::Directory, b"")
        .file("was-file/now-a-folder", b"2")
        .bytes();

    let expected = pairs(&[
        ("etc", "/"),
        ("etc/a", "2"),
        ("lib", "/"),
        ("lib/x", "/"),
        ("lib/x/new", "2"),
        ("was-file", "/"),
        ("was-file/now-a-folder", "2"),
    ]);
    assert_eq!(contents(&stacked(&[lower, upper]).expect("composed")), expected);
}

#[test]
fn links_lead_nowhere_but_into_the_image_r12() {
    let outside = tempfile::tempdir().expect("a folder");
    let canary = outside.path().join("canary");
    std::fs::write(&canary, "untouched").expect("written");
    let to = outside.path().to_str().expect("a path").to_owned();
    let climbing = format!("../../../../../../../../../..{to}");
    let dangling = Layer::new()
        .file("app/main.wasm", WASM)
        .link("a", EntryType::Symlink, &to)
        .file("a/canary", b"written");
    assert!(matches!(stacked(&[dangling.bytes()]), Err(Failure::Unusable(_))));
    let layer = Layer::new()
        .file("app/main.wasm", WASM)
        .file(&format!("{}/beside", to.trim_start_matches('/')), b"")
        .link("a/absolute", EntryType::Symlink, &to)
        .link("a/climbing", EntryType::Symlink, &climbing)
        // Through the links, as if they led out.
        .file("a/absolute/canary", b"written")
        .file("a/climbing/canary", b"written")
        .link("a/beside", EntryType::Symlink, "absolute")
        .bytes();

    let made = stacked(&[layer]).expect("composed");

    assert_eq!(std::fs::read_to_string(&canary).expect("there"), "untouched");
    let found = contents(&made);
    let inside = format!("{}/canary", to.trim_start_matches('/'));
    let of = |name: &str| found.iter().find(|it| it.0 == name).map(|it| it.1.as_str());
    assert_eq!(of(&inside), Some("written"));
    assert_eq!(of("a/absolute"), Some(&*format!("-> ../{}", to.trim_start_matches('/'))));
    assert_eq!(of("a/beside"), Some("-> absolute"));
    // No other file of this machine's either.
    let hard = Layer::new().file("app/main.wasm", WASM);
    let hard = hard.link("b", EntryType::Link, canary.to_str().expect("a path")).bytes();
    assert!(matches!(stacked(&[hard]), Err(Failure::Unusable(_))));
}

#[test]
fn the_program_may_be_a_link_and_is_an_ordinary_file_at_its_end_r12() {
    let linked = |target: &str| {
        let layer = Layer::new().file("lib/real.wasm", WASM);
        stacked(&[layer.link("app/main.wasm", EntryType::Symlink, target).bytes()])
    };
    assert_eq!(linked("../lib/real.wasm").expect("found").0.digest, Digest::of(WASM));
    assert_eq!(linked("/lib/real.wasm").expect("found").0.digest, Digest::of(WASM));
    for target in ["main.wasm", "/lib", "/nowhere", "/etc/passwd"] {
        assert!(matches!(linked(target), Err(Failure::Unusable(_))), "{target}");
    }
    let lower = || Layer::new().file("app/main.wasm", WASM).bytes();
    for (path, kind) in [
        ("app/main.wasm", EntryType::Fifo),
        ("app/main.wasm", EntryType::Char),
        ("app/main.wasm", EntryType::Directory),
        ("app", EntryType::Regular),
    ] {
        let upper = Layer::new().entry(path, kind, b"").bytes();
        let refused = stacked(&[lower(), upper]);
        assert!(matches!(refused, Err(Failure::Unusable(_))), "{path} {kind:?}");
    }
    let escaping = Layer::new().file("../app/main.wasm", WASM).bytes();
    assert!(matches!(stacked(&[escaping]), Err(Failure::Unusable(_))));
}

#[test]
fn files_are_everybody_s_to_read_and_nobody_s_to_gain_rights_by() {
    use std::os::unix::fs::PermissionsExt as _;

    let mut archive = Layer::new().file("app/main.wasm", WASM);
    for (path, mode) in [("secret", 0o000), ("tool", 0o4700)] {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).expect("a path");
        header.set_size(0);
        header.set_mode(mode);
        header.set_uid(1234);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        archive.0.append(&header, io::empty()).expect("appends");
    }

    let (made, _folder) = stacked(&[archive.bytes()]).expect("composed");

    let root = made.root.expect("a folder").0;
    let of = |name: &str| std::fs::metadata(root.path().join(name)).expect("there");
    let mode = |name: &str| of(name).permissions().mode() & 0o7777;
    assert_eq!((mode("secret"), mode("tool"), mode("app")), (0o644, 0o755, 0o755));
    let changed = of("tool").modified().expect("a time");
    assert_eq!(
        changed.duration_since(std::time::UNIX_EPOCH).expect("later").as_secs(),
        1_000_000_000
    );
}

#[test]
fn folders_without_an_end_are_refused() {
    let deep = "d/".repeat(MAX_DEPTH + 1);
    let record = format!("path={deep}x\n");
    let record = format!("{} {record}", record.len() + 4);
    let layer = Layer::new()
        .file("app/main.wasm", WASM)
        .entry("x", EntryType::XHeader, record.as_bytes())
        .file("short", b"")
        .bytes();

    let error = stacked(&[layer]).err().expect("refused");

    assert!(error.to_string().contains("deep"), "{error}");
}

#[test]
fn a_gzip_bomb_is_stopped_by_its_ratio_and_its_size_r11() {
    let zeros = vec![0; 64 << 20];
    let bomb = gzip(&Layer::new().file("zeros", &zeros).bytes());
    // A member after the first is counted like it.
    let twice = [gzip(&Layer::new().file("app/main.wasm", WASM).bytes()), gzip(&zeros)].concat();
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
    let aot = Layer::new().file("app/main.wasm", b"\x7fELF\x02\x01\x01 .wasmtime.engine").bytes();

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
