//! Each program by what it is asked for most.

use std::path::Path;

use crate::call::{Call, Variables};
use crate::streams::{Input, Output, Streams};

/// Runs a line of words, split at blanks, in a folder.
fn run_in(folder: &Path, line: &str, input: &[u8]) -> (String, u8) {
    let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let ((output, written), (error, complained)) = (Output::kept(), Output::kept());
    let variables = Variables::from([
        ("HOSTNAME".into(), "pod".into()),
        ("COPEPOD_PROCESSES".into(), "app\t61500\t2097152\t/app.wasm --serve\n".into()),
    ]);
    let streams = Streams { input: Input::of(input.to_vec()), output, error };
    let (name, args) = words.split_first().expect("a name");
    let program = super::program(name).expect("a program");
    let mut call = Call { name, args, variables: &variables, folder, streams };
    let code = super::run(program, &mut call);
    let mut text = String::from_utf8_lossy(&written.take()).into_owned();
    text.push_str(&String::from_utf8_lossy(&complained.take()));
    (text, code)
}

fn filtered(line: &str, input: &str) -> String {
    let (text, code) = run_in(Path::new("/"), line, input.as_bytes());
    assert_eq!(code, 0, "{line}: {text}");
    text
}

#[test]
fn the_programs_are_found_by_name_and_by_path() {
    let names: Vec<&str> = super::names().collect();

    assert!(names.is_sorted(), "they are searched in order");
    assert!(super::program("/bin/sh").is_some() && super::program("[").is_some());
    assert!(super::program("app").is_none() && super::program("/bin/").is_none());
}

#[test]
fn text_is_cut_counted_sorted_and_searched() {
    assert_eq!(filtered("head -n 2", "1\n2\n3\n"), "1\n2\n");
    assert_eq!(filtered("head -c 3", "12345"), "123");
    assert_eq!(filtered("tail -1", "1\n2\n3"), "3");
    assert_eq!(filtered("tail -n +2", "1\n2\n3\n"), "2\n3\n");
    assert_eq!(filtered("tail -c+3", "12345"), "345");
    assert_eq!(filtered("wc -l", "a\nb\n"), "2\n");
    assert_eq!(filtered("wc", "a b\n"), "1 2 4\n");
    assert_eq!(filtered("sort -n -r", "9\n10\n8\n"), "10\n9\n8\n");
    assert_eq!(filtered("sort -k 2 -t :", "a:2\nb:1\n"), "b:1\na:2\n");
    assert_eq!(filtered("uniq -c", "a\na\nb\n"), "      2 a\n      1 b\n");
    assert_eq!(filtered("cut -d : -f 1,3-", "a:b:c:d\n"), "a:c:d\n");
    assert_eq!(filtered("cut -c 2-3", "abcd\n"), "bc\n");
    assert_eq!(filtered("tr a-c A-C", "abcd"), "ABCd");
    assert_eq!(filtered("tr -d \\n", "a\nb\n"), "ab");
    assert_eq!(filtered("seq 3 -1 1", ""), "3\n2\n1\n");
    assert_eq!(filtered("basename /a/b.txt .txt", ""), "b\n");
    assert_eq!(filtered("dirname /a/b", ""), "/a\n");
}

#[test]
fn grep_knows_basic_extended_and_fixed_patterns() {
    let text = "one\ntwo (2)\nthree\n";
    assert_eq!(filtered("grep o", text), "one\ntwo (2)\n");
    assert_eq!(filtered("grep (2)", text), "two (2)\n");
    assert_eq!(filtered("grep -E ^(one|three)$", text), "one\nthree\n");
    assert_eq!(filtered("grep -F (2)", text), "two (2)\n");
    assert_eq!(filtered("grep -vn o", text), "3:three\n");
    assert_eq!(filtered("grep -ic ONE", text), "1\n");
    assert_eq!(filtered("grep -o [a-z]*ee", text), "three\n");
    assert_eq!(run_in(Path::new("/"), "grep -q none", text.as_bytes()), (String::new(), 1));
}

#[test]
fn printf_and_echo_write_what_their_formats_say() {
    assert_eq!(filtered("printf %s-%03d\\n a 7 b 12", ""), "a-007\nb-012\n");
    assert_eq!(filtered("printf %5s|%-5s|%x|%.2f a b 255 1", ""), "    a|b    |ff|1.00");
    assert_eq!(filtered("printf \\101\\t%%", ""), "A\t%");
    assert_eq!(filtered("echo -n a -n", ""), "a -n");
    assert_eq!(filtered("echo -e a\\tb\\0101", ""), "a\tbA\n");
    assert_eq!(run_in(Path::new("/"), "printf %d x", b"").1, 2);
}

#[test]
fn conditions_hold_as_posix_says() {
    let holds = |line: &str| run_in(Path::new("/"), line, b"").1;
    for line in ["test a", "test a = a", "test ! a = b", "[ 2 -gt 1 ]", "test -d /", "test ( a )"] {
        assert_eq!(holds(line), 0, "{line}");
    }
    for line in ["test", "test -n ", "test a = b", "test -f /", "[ 1 -eq 2 ]", "test a -a "] {
        assert_eq!(holds(line), 1, "{line}");
    }
    for line in ["[ a", "test a -eq b", "test -Q a"] {
        assert_eq!(holds(line), 2, "{line}");
    }
    assert_eq!(holds("test a = b -o c = c"), 0);
    assert_eq!(holds("test ( a = b -o c = c ) -a d = e"), 1);
}

#[test]
fn files_are_made_copied_moved_listed_and_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |line: &str| run_in(folder.path(), line, b"text");
    let done = (String::new(), 0);

    assert_eq!(run("mkdir -p a/b/c"), done);
    assert_eq!(run("tee a/f").0, "text");
    assert_eq!(run("cp -r a z"), done);
    assert_eq!(run("mv z/f z/b/g"), done);
    assert_eq!(run("find z -type f"), ("z/b/g\n".into(), 0));
    assert_eq!(run("find . -name c -maxdepth 3"), ("./a/b/c\n./z/b/c\n".into(), 0));
    assert_eq!(run("ln -s f a/link"), done);
    assert_eq!(run("readlink a/link"), ("f\n".into(), 0));
    assert_eq!(run("cat a/link"), ("text".into(), 0));
    assert_eq!(run("ls a"), ("b\nf\nlink\n".into(), 0));
    assert!(run("ls -l a").0.contains("link -> f"));
    assert_eq!(run("stat -c %s-%F a/f"), ("4-regular file\n".into(), 0));
    // The link is its one letter.
    assert_eq!(run("du -b a"), ("5\ta\n".into(), 0));
    assert_eq!(run("dd if=/dev/zero of=zeros bs=1k count=3").1, 0);
    assert_eq!(run("stat -c %s zeros"), ("3072\n".into(), 0));
    assert_eq!(run("rm a"), ("rm: a: is a directory\n".into(), 1));
    assert_eq!(run("rm -rf a z none zeros"), done);
    assert_eq!(run("ls"), done);
    assert_eq!(run("cat none").1, 1);
}

#[test]
fn an_archive_is_written_listed_and_unpacked_as_kubectl_cp_asks() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join("from/deep")).expect("made");
    std::fs::write(folder.path().join("from/deep/file"), "content").expect("written");
    std::fs::create_dir(folder.path().join("to")).expect("made");
    let packed = |args: &str| {
        let ((output, written), (error, _)) = (Output::kept(), Output::kept());
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        let streams = Streams { input: Input::Null, output, error };
        let variables = Variables::new();
        let mut call = Call {
            name: "tar",
            args: &args,
            variables: &variables,
            folder: folder.path(),
            streams,
        };
        assert_eq!(super::run(super::archive::tar, &mut call), 0);
        written.take()
    };
    let archive = packed("cf - from");

    let (listed, _) = run_in(folder.path(), "tar tf -", &archive);
    let unpacked = run_in(folder.path(), "tar -xmf - -C to --no-same-owner", &archive);

    assert_eq!(listed, "from/\nfrom/deep/\nfrom/deep/file\n");
    assert_eq!(unpacked, (String::new(), 0));
    let file = folder.path().join("to/from/deep/file");
    assert_eq!(std::fs::read_to_string(file).expect("read"), "content");
    assert_eq!(run_in(folder.path(), "tar cf - none", b"").1, 1);
}

#[test]
fn nothing_of_an_archive_leads_out_of_the_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let outside = tempfile::tempdir().expect("a folder");
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut add = |name: &str, link: Option<&Path>| {
        let mut header = ::tar::Header::new_gnu();
        header.set_mode(0o644);
        // As an attacker writes it, past the library's own checks.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        match link {
            Some(target) => {
                header.set_entry_type(::tar::EntryType::Symlink);
                header.set_link_name(target).expect("short");
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, std::io::empty()).expect("kept in memory");
            }
            None => {
                header.set_size(4);
                header.set_cksum();
                builder.append(&header, &b"evil"[..]).expect("kept in memory");
            }
        }
    };
    let target = outside.path().join("canary");
    std::fs::write(&target, "alive").expect("written");
    add("../up", None);
    add("/abs", None);
    add("link", Some(&target));
    add("link", None);
    let archive = builder.into_inner().expect("kept in memory");

    let (said, code) = run_in(folder.path(), "tar xf -", &archive);

    assert!(said.contains("../up: it leads out") && code == 1, "{said}");
    assert_eq!(std::fs::read_to_string(target).expect("read"), "alive");
    assert_eq!(std::fs::read_to_string(folder.path().join("link")).expect("read"), "evil");
    assert!(folder.path().join("abs").exists());
}

#[test]
fn what_surrounds_a_program_is_told() {
    assert_eq!(filtered("hostname", ""), "pod\n");
    assert_eq!(filtered("printenv HOSTNAME", ""), "pod\n");
    assert_eq!(filtered("env A=1 printenv A", ""), "1\n");
    assert_eq!(filtered("env", ""), "HOSTNAME=pod\n");
    assert_eq!(filtered("date -d @0 +%Y-%m-%d", ""), "1970-01-01\n");
    assert_eq!(filtered("uname -n", ""), "pod\n");
    let shown = filtered("ps", "");
    assert!(
        shown.contains("app") && shown.contains("1:01") && shown.contains("2048 KiB"),
        "{shown}"
    );
    assert_eq!(run_in(Path::new("/"), "sleep", b"").1, 2);
    assert_eq!(run_in(Path::new("/"), "sleep 1y", b"").1, 2);
}
