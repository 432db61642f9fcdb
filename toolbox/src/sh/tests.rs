//! Scripts, and what a POSIX shell makes of them.

use std::path::Path;

use crate::call::{Call, Variables};
use crate::streams::{Input, Output, Streams};

/// Runs a script in a folder; what it wrote, what it complained of, and its code.
fn run_in(folder: &Path, script: &str, input: &str) -> (String, String, u8) {
    let ((output, written), (error, complained)) = (Output::kept(), Output::kept());
    let variables =
        Variables::from([("HOME".into(), "/home".into()), ("GIVEN".into(), "yes".into())]);
    let args =
        ["-c".to_owned(), script.to_owned(), "name".to_owned(), "one".into(), "two 2".into()];
    let streams = Streams { input: Input::of(input.into()), output, error };
    let mut call = Call { name: "sh", args: &args, variables: &variables, folder, streams };
    let code = crate::tools::run(super::main, &mut call);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (text(written.take()), text(complained.take()), code)
}

fn run(script: &str) -> (String, u8) {
    let (written, complained, code) = run_in(Path::new("/"), script, "");
    assert_eq!(complained, "", "{script}");
    (written, code)
}

fn writes(script: &str, expected: &str) {
    assert_eq!(run(script).0, expected, "{script}");
}

#[test]
fn words_are_split_only_where_nothing_quotes_them() {
    writes("x='a  b'; echo $x \"$x\" '$x'", "a b a  b $x\n");
    writes("for i in $(echo 1 2 3); do printf '<%s>' $i; done", "<1><2><3>");
    writes("IFS=:; x=a:b::c; for i in $x; do printf '<%s>' \"$i\"; done", "<a><b><><c>");
    writes("printf '<%s>' '' \"$none\" $none a\"\"b", "<><><ab>");
    writes("echo \"a\\\"b\\$c\\n\" a\\ b", "a\"b$c\\n a b\n");
}

#[test]
fn positional_parameters_keep_their_borders_in_quotes() {
    writes("printf '<%s>' \"$@\"", "<one><two 2>");
    writes("printf '<%s>' $*", "<one><two><2>");
    writes("printf '<%s>' \"$*\"", "<one two 2>");
    writes(
        "echo $# $0 $2; shift; echo $1 $#; set -- x y z; echo \"$*\"",
        "2 name two 2\ntwo 2 1\nx y z\n",
    );
    writes("set --; printf '<%s>' \"$@\"; echo $#", "<>0\n");
}

#[test]
fn parameters_are_tested_defaulted_measured_and_cut() {
    writes("echo ${none:-a b} ${GIVEN:+set} ${none-d} ${#GIVEN}", "a b set d 3\n");
    writes("echo ${x:=5} $x", "5 5\n");
    writes(
        "p=/a/b/file.tar.gz; echo ${p##*/} ${p%/*} ${p%%.*} ${p#*.}",
        "file.tar.gz /a/b /a/b/file tar.gz\n",
    );
    let (written, complained, code) =
        run_in(Path::new("/"), "echo a; : ${none:?must be set}; echo b", "");
    assert_eq!((written.as_str(), code), ("a\n", 2));
    assert!(complained.contains("none: must be set"), "{complained}");
}

#[test]
fn conditions_and_loops_go_as_their_codes_say() {
    writes("if false; then echo a; elif true; then echo b; else echo c; fi", "b\n");
    writes(
        "i=0; while [ $i -lt 3 ]; do i=$((i+1)); [ $i = 2 ] && continue; echo $i; done",
        "1\n3\n",
    );
    writes("until false; do echo once; break; done; echo $?", "once\n0\n");
    writes(
        "for a in 1 2; do for b in 1 2; do [ $b = 2 ] && break 2; echo $a$b; done; done",
        "11\n",
    );
    writes("case abc in x) echo no;; a*|b) echo yes;; *) echo other;; esac", "yes\n");
    writes("true && false || echo recovered; ! true; echo $?", "recovered\n1\n");
    assert_eq!(run("false; exit"), (String::new(), 1));
    assert_eq!(run("(exit 3); echo $?; exit 259"), ("3\n".into(), 3));
}

#[test]
fn arithmetic_is_that_of_whole_numbers() {
    writes(
        "x=7; echo $((x*3%5)) $((-x/2)) $((x>3&&x<9)) $((1<<4|1)) $((x>7?1:2))",
        "1 -3 1 17 2\n",
    );
    writes("echo $((i=3)) $((i+=2)) $((i++)) $i", "3 5 5 6\n");
}

#[test]
fn functions_have_arguments_of_their_own_and_give_back_a_code() {
    writes(
        "f() { local x=in; echo $1 $x; return 4; }; x=out; f a; echo $? $x $1",
        "a in\n4 out one\n",
    );
    writes(
        "fact() { [ $1 -le 1 ] && echo 1 || echo $(( $1 * $(fact $(( $1 - 1 ))) )); }; fact 6",
        "720\n",
    );
    let (_, complained, code) = run_in(Path::new("/"), "f() { f; }; f", "");
    assert!(complained.contains("deep") && code == 2, "{complained}");
}

#[test]
fn a_pipeline_s_code_is_its_last_one_s_and_each_part_is_a_subshell() {
    writes("printf 'b\\na\\n' | sort | head -n 1", "a\n");
    writes("false | true; echo $?; set -o pipefail; false | true; echo $?", "0\n1\n");
    writes("x=1; echo | x=2; (x=3); echo $x", "1\n");
    writes("echo one two | while read a b; do echo $b $a; done", "two one\n");
    writes("echo text | (cat; echo more) | wc -l", "2\n");
}

#[test]
fn streams_are_led_to_files_and_to_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |script: &str| run_in(folder.path(), script, "typed\n").0;

    assert_eq!(run("echo a > f; echo b >> f; cat < f"), "a\nb\n");
    assert_eq!(run("cat none 2>/dev/null || echo $?; cat none 2>&1 | grep -c none"), "1\n1\n");
    assert_eq!(run("{ echo out; echo err >&2; } > both 2>&1; cat both"), "out\nerr\n");
    assert_eq!(run("read line; echo got $line"), "got typed\n");
    assert_eq!(run("x=5; cat <<END\nx is $x\nEND\ncat <<'END'\n$x\nEND"), "x is 5\n$x\n");
    assert_eq!(run("exec > all; echo kept; exec >&2; cat all >/dev/null"), "");
    assert_eq!(run("cat all"), "kept\n");
    assert_eq!(run("> empty; [ -s empty ] || echo empty"), "empty\n");
}

#[test]
fn names_of_files_stand_for_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |script: &str| run_in(folder.path(), script, "").0;
    run("mkdir -p d/e; touch b.txt a.txt d/c.txt d/e/x .hidden");

    assert_eq!(run("echo *.txt d/* */*/x"), "a.txt b.txt d/c.txt d/e d/e/x\n");
    assert_eq!(run("echo '*'.txt none* \"*\" [ab].txt"), "*.txt none* * a.txt b.txt\n");
    assert_eq!(run("cd d && pwd && echo *"), format!("{}/d\nc.txt e\n", folder.path().display()));
    assert_eq!(run("set -f; echo *"), "*\n");
}

#[test]
fn set_e_ends_the_shell_but_not_in_a_condition() {
    writes("set -e; if false; then :; fi; false || true; ! true; echo on; false; echo off", "on\n");
    let (written, complained, code) = run_in(Path::new("/"), "set -u; echo $none; echo off", "");
    assert_eq!((written.as_str(), code), ("", 2), "{complained}");
}

#[test]
fn what_runs_at_the_end_runs_however_it_ends() {
    writes("trap 'echo bye' EXIT; echo hi; exit 3", "hi\nbye\n");
    assert_eq!(run("trap 'echo bye' EXIT; exit 3").1, 3);
    writes("trap 'exit 0' TERM INT; echo goes on", "goes on\n");
}

#[test]
fn variables_are_exported_by_word_and_for_one_command() {
    writes("x=1; export y=2; z=3 env | grep -E '^(x|y|z)='", "y=2\nz=3\n");
    writes("z=3 true; echo [$z]; echo $GIVEN; unset GIVEN; echo [$GIVEN]", "[]\nyes\n[]\n");
    let (_, complained, code) = run_in(Path::new("/"), "readonly r=1; r=2; echo $r", "");
    assert!(complained.contains("r: is read only") && code == 2, "{complained}");
}

#[test]
fn what_takes_a_second_process_is_refused_in_words() {
    for (script, words) in
        [("sleep 1 & echo no", "& starts a second process"), ("cat <(echo a)", "syntax error")]
    {
        let (written, complained, code) = run_in(Path::new("/"), script, "");
        assert!(complained.contains(words), "{script}: {complained}");
        assert_eq!((written.as_str(), code), ("", 2), "{script}");
    }
    for (script, words) in [
        ("curl example.com", "curl: not found (this shell runs its own programs only"),
        ("[[ a = a ]]", "[[: not found (it is Bash's: write [ ... ])"),
    ] {
        let (_, complained, code) = run_in(Path::new("/"), script, "");
        assert!(complained.contains(words) && code == 127, "{complained}");
    }
    let (_, complained, code) = run_in(Path::new("/"), "echo 'open", "");
    assert!(complained.contains("ends too early") && code == 2, "{complained}");
}

#[test]
fn a_shell_that_reads_runs_each_command_when_it_is_whole_and_leaves_the_rest_to_it() {
    let ((output, written), (error, _)) = (Output::kept(), Output::kept());
    let script =
        "if true\nthen echo in\nfi\nread x\nfor the variable\necho \"$x\"\ncat\nall the rest\n";
    let streams = Streams { input: Input::of(script.into()), output, error };
    let variables = Variables::new();
    let mut call =
        Call { name: "sh", args: &[], variables: &variables, folder: Path::new("/"), streams };

    let code = crate::tools::run(super::main, &mut call);

    let written = String::from_utf8(written.take()).expect("text");
    assert_eq!((written.as_str(), code), ("in\nfor the variable\nall the rest\n", 0));
}

/// POSIX's language, which this machine's own shell is asked about.
const SCRIPTS: &[&str] = &[
    r#"echo "a  b" c; echo $((3+4)) "$(echo x y)""#,
    r#"x="a b"; set -- $x; echo $#; set -- "$x"; echo $#"#,
    "for f in a b; do echo $f; done | tr a-z A-Z",
    "i=0; while [ $i -lt 3 ]; do echo $i; i=$((i+1)); done > out; cat out; rm out",
    r#"f() { echo "$1-$2"; return 3; }; f x y; echo $?"#,
    r#"case "$HOME" in /*) echo abs;; *) echo rel;; esac"#,
    "x=abc.def.ghi; echo ${x%.*} ${x%%.*} ${x#*.} ${x##*.} ${#x}",
    r#"unset y; echo ${y:-def} ${y-def2} ${y:+alt}; y=; echo "[${y-def}]" "[${y:-d}]""#,
    "echo a; false || echo b; true && echo c",
    "cat <<EOF | sort\nb $((1+1))\na\nEOF",
    r#"cat <<"EOF"
$x `y`
EOF"#,
    r#"printf "%s\n" one two; printf "%d %05d\n" 3 42"#,
    r#"echo hello | while read x; do echo "got $x"; done"#,
    "(exit 4); echo $?; { echo grouped; } 2>&1",
    "set -e; (false) || echo caught; if false; then echo no; fi; echo end",
    r#"trap "echo bye" EXIT; echo hi"#,
    "a=1; (a=2; echo $a); echo $a",
    r#"IFS=,; x=a,b,,c; for i in $x; do echo "<$i>"; done"#,
    "x=5; [ $x -gt 3 ] && [ $x -lt 10 ] && echo between",
    r#"echo `echo back \`echo nested\``"#,
    r#"echo 'single $x' "double \$x""#,
    "test -d / && echo dir; test ! -e /nonexistent && echo none",
    r#"eval "echo \$((2*3))""#,
    r#"x=$(printf "a\n\n\n"); echo "[$x]""#,
    r#"export A=1; env | grep ^A=; A=2 sh -c "echo \$A""#,
    "while true; do break; done; echo done",
    "for i in 1 2 3; do if [ $i = 2 ]; then continue; fi; echo $i; done",
    "until [ -e made ]; do touch made; done; ls made; rm made",
    r#"echo a b c | (read x y; echo "$y")"#,
    r#"echo x > t1; echo y >> t1; wc -l < t1 | tr -d " "; rm t1"#,
    "echo ~ | head -c 1; echo",
    r#"x="*"; echo "$x"; y='a b'; echo $y"#,
    r#"read a b <<EOF
one two three
EOF
echo "$b""#,
    "! false; echo $?; ! true; echo $?",
    r#"set -- a b c; echo "$*" $2; shift 2; echo $1"#,
    "echo $((0x10)) $((010)) $((1 ? 2 : 3)) $((5 % 3)) $((-7 / 2))",
    "command -v cat >/dev/null && echo has",
    r#"if [ "a" = "b" -o "c" = "c" ]; then echo or; fi"#,
    r#"echo "a
b""#,
    "case x in a|b) echo 1;; [w-z]) echo 2;; esac",
    "echo one; exit 3; echo two",
    "seq 3 | { read a; read b; echo $a $b; }",
    r#"printf "a:b:c\n" | cut -d: -f2 | tr b B"#,
    "echo $(( $(echo 2) * 3 ))",
    r#"true; echo "status $?"; false; echo "status $?""#,
    r#"x=; echo "${x:=assigned}" $x"#,
    r#"echo a | cat - ; echo "b" | cat"#,
    r#"a="x y"; b=$a; echo "$b"; c="$a"z; echo $c"#,
    r#"echo "${HOME:+home}"; echo ${#}; echo "tail""#,
    r#"f() { echo $#; }; f "$@"; f ""; f"#,
    r#"echo "$(cat <<X
in here
X
)""#,
];

#[test]
fn scripts_do_what_they_do_in_the_shell_of_this_machine() {
    for script in SCRIPTS {
        let folder = tempfile::tempdir().expect("a folder");
        let theirs = std::process::Command::new("/bin/sh")
            .args(["-c", script])
            .current_dir(folder.path())
            .env_clear()
            .envs([("PATH", "/usr/bin:/bin"), ("HOME", "/home"), ("GIVEN", "yes")])
            .output()
            .expect("every machine of ours has a shell");
        let folder = tempfile::tempdir().expect("a folder");
        // Without the arguments that other tests have.
        let script = format!("set --; {script}");

        let (written, complained, code) = run_in(folder.path(), &script, "");

        let theirs = (String::from_utf8_lossy(&theirs.stdout).into_owned(), theirs.status.code());
        assert_eq!((written, Some(i32::from(code))), theirs, "{script}: {complained}");
    }
}
