//! The built runner from the outside: what an agent sees of guests that behave, and of guests that do not.
//!
//! Absent: confinement (`copepod-domain`'s tests), HTTP and sockets in depth (the tests of `http` and of `copepod-net`).

#[allow(dead_code, reason = "the other tests of the runner use the rest")]
mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use copepod_runner::program::SEATS;
use copepod_shim::kind::Kind;
use copepod_shim::protocol::{
    Answer, AttemptState, ExecContainer, ExitReason, Failure, FromRunner, Request, layout,
};
use support::*;

const P1: Kind = Kind::Preview1Command;
const P2: Kind = Kind::CommandComponent;

/// A time by which nothing here is late.
const FAR: i64 = i64::MAX / 2;

#[tokio::test]
async fn a_program_runs_to_its_end_with_its_lines_in_the_log_and_its_code_recorded() {
    let runner = Runner::start();
    let code = runner.compile(&printer("hello\nworld\nwithout an end", 42));
    let mut agent = runner.connect_with_pod().await;

    let exit = agent.run(&container("app", &code, P1)).await;

    assert_eq!((exit.code, exit.reason), (42, ExitReason::Ended));
    assert!(exit.started_us <= exit.finished_us);
    assert_eq!(
        runner.lines("app"),
        ["stdout F hello", "stdout F world", "stdout F without an end"]
    );
    let time = runner.log("app").split(' ').next().expect("a time").to_owned();
    assert_eq!(time.len(), "2026-11-22T20:00:00.000000000Z".len(), "{time}");
}

#[tokio::test]
async fn a_component_ends_with_0_or_1_as_its_run_says() {
    let runner = Runner::start();
    let good = runner.compile(&command(r#"(func (export "run") (result i32) i32.const 0)"#));
    let bad = runner.compile(&command(r#"(func (export "run") (result i32) i32.const 1)"#));
    let mut agent = runner.connect_with_pod().await;

    assert_eq!(agent.run(&container("good", &good, P2)).await.code, 0);
    assert_eq!(agent.run(&container("bad", &bad, P2)).await.code, 1);
}

#[tokio::test]
async fn a_trap_is_134_and_tells_the_functions_it_happened_in() {
    let runner = Runner::start();
    let code = runner.compile(&module(
        r#"(func $deepest unreachable)
           (func $middle (call $deepest))
           (func (export "_start") (call $middle))"#,
    ));
    let mut agent = runner.connect_with_pod().await;

    let exit = agent.run(&container("app", &code, P1)).await;

    assert_eq!((exit.code, exit.reason), (134, ExitReason::Trapped));
    assert!(exit.message.contains("unreachable"), "{}", exit.message);
    let deepest = exit.message.find("deepest").expect("named");
    let middle = exit.message.find("middle").expect("named");
    assert!(deepest < middle, "{}", exit.message);
    assert!(runner.log("app").contains("stderr F copepod: trap"));
}

#[tokio::test]
async fn a_stack_overflow_ends_that_guest_and_no_other() {
    let runner = Runner::start();
    let code = runner.compile(&module(
        r#"(func $again (param i64) (call $again (local.get 0)))
           (func (export "_start") (call $again (i64.const 1)))"#,
    ));
    let quiet = runner.compile(&printer("fine\n", 0));
    let mut agent = runner.connect_with_pod().await;

    let exit = agent.run(&container("app", &code, P1)).await;

    assert_eq!((exit.code, exit.reason), (134, ExitReason::Trapped));
    assert!(exit.message.contains("stack"), "{}", exit.message);
    assert_eq!(agent.run(&container("other", &quiet, P1)).await.code, 0);
}

#[tokio::test]
async fn memory_past_the_limit_is_out_of_memory_for_modules_and_components() {
    let runner = Runner::start();
    let grow = "(loop $more (drop (memory.grow (i32.const 16))) (br $more))";
    let p1 = runner.compile(&module(&format!(r#"(func (export "_start") {grow})"#)));
    let p2 = runner.compile(&command(&format!(
        r#"(memory 1) (func (export "run") (result i32) {grow} unreachable)"#
    )));
    let mut agent = runner.connect_with_pod().await;

    for (name, code, kind) in [("p1", p1, P1), ("p2", p2, P2)] {
        let exit = agent.run(&container(name, &code, kind)).await;

        assert_eq!((exit.code, exit.reason), (137, ExitReason::OutOfMemory), "{name}");
        assert!(exit.message.contains("67108864 bytes"), "{}", exit.message);
    }
}

#[tokio::test]
async fn a_guest_that_needs_more_memory_than_its_limit_to_begin_with_is_out_of_memory() {
    let runner = Runner::start();
    let code =
        runner.compile(&command(r#"(memory 2000) (func (export "run") (result i32) i32.const 0)"#));
    let mut agent = runner.connect_with_pod().await;

    let exit = agent.run(&container("app", &code, P2)).await;

    assert_eq!((exit.code, exit.reason), (137, ExitReason::OutOfMemory));
}

#[tokio::test]
async fn a_table_that_grows_counts_as_memory() {
    let runner = Runner::start();
    let code = runner.compile(&module(
        r#"(table $t 1 funcref)
           (func (export "_start")
             (loop $more
               (drop (table.grow $t (ref.null func) (i32.const 100000)))
               (br $more)))"#,
    ));
    let mut agent = runner.connect_with_pod().await;

    let exit = agent.run(&container("app", &code, P1)).await;

    assert_eq!((exit.code, exit.reason), (137, ExitReason::OutOfMemory));
}

#[tokio::test]
async fn a_guest_that_spins_or_sleeps_or_spins_while_starting_is_stopped_with_143() {
    let runner = Runner::start();
    let spin = runner.compile(&module(r#"(func (export "_start") (loop $l (br $l)))"#));
    let sleep = runner.compile(&module(r#"(func (export "_start") (call $sleep))"#));
    let start = runner.compile(&module(
        r#"(func $init (loop $l (br $l))) (start $init) (func (export "_start"))"#,
    ));
    let component = runner
        .compile(&command(r#"(func (export "run") (result i32) (loop $l (br $l)) unreachable)"#));
    let mut agent = runner.connect_with_pod().await;
    let guests =
        [("spin", spin, P1), ("sleep", sleep, P1), ("start", start, P1), ("p2", component, P2)];
    for (name, code, kind) in &guests {
        agent.start(&container(name, code, *kind)).await;
    }

    for (name, ..) in &guests {
        agent.stop(name, FAR).await;
        let exit = agent.exit(name).await;

        assert_eq!((exit.code, exit.reason), (143, ExitReason::Ended), "{name}");
    }
}

#[tokio::test]
async fn a_stop_whose_deadline_is_past_kills() {
    let runner = Runner::start();
    let code = runner.compile(&module(r#"(func (export "_start") (loop $l (br $l)))"#));
    let mut agent = runner.connect_with_pod().await;
    agent.start(&container("app", &code, P1)).await;

    agent.stop("app", 1).await;

    let exit = agent.exit("app").await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::Killed));
}

#[tokio::test]
async fn guests_that_spin_leave_a_neighbour_and_the_agent_their_turn() {
    let runner = Runner::start();
    let spin = runner.compile(&module(r#"(func (export "_start") (loop $l (br $l)))"#));
    let quiet = runner.compile(&printer("fine\n", 0));
    let mut agent = runner.connect_with_pod().await;
    for n in 0..20 {
        agent.start(&container(&format!("spin{n}"), &spin, P1)).await;
    }

    let exit = agent.run(&container("quiet", &quiet, P1)).await;

    assert_eq!(exit.code, 0);
    let Ok(Answer::Stats(stats)) = agent.ask(Request::Stats).await else { panic!("no stats") };
    assert_eq!(stats.len(), 20);
    assert!(stats.iter().all(|one| one.instances == 1 && one.memory >= 64 << 10), "{stats:?}");
    assert!(stats.iter().any(|one| one.cpu_ns > 0), "{stats:?}");
}

#[tokio::test]
async fn a_throttled_guest_uses_no_more_cpu_than_its_limit_and_can_be_stopped() {
    let runner = Runner::start();
    let spin = runner.compile(&module(r#"(func (export "_start") (loop $l (br $l)))"#));
    let mut agent = runner.connect_with_pod().await;
    let mut spec = container("app", &spin, P1);
    spec.limits.cpu_millis = Some(100);
    let begin = std::time::Instant::now();
    agent.start(&spec).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let Ok(Answer::Stats(stats)) = agent.ask(Request::Stats).await else { panic!("no stats") };
    let elapsed = begin.elapsed();

    // A tenth of the time, and what one period of the bucket and one slice allow on top.
    let allowed = elapsed / 10 + Duration::from_millis(10 + 20);
    let used = Duration::from_nanos(stats[0].cpu_ns);
    assert!(used <= allowed, "{used:?} of {elapsed:?}");
    agent.stop("app", FAR).await;
    assert_eq!(agent.exit("app").await.code, 143);
}

#[tokio::test]
async fn a_start_that_is_repeated_starts_nothing_a_second_time() {
    let runner = Runner::start();
    let code = runner.compile(&printer("once\n", 3));
    let mut agent = runner.connect_with_pod().await;
    let spec = container("app", &code, P1);

    let first = agent.start(&spec).await;
    let while_running_or_after = agent.start(&spec).await;
    agent.exit("app").await;
    let after = agent.start(&spec).await;

    assert_eq!([while_running_or_after, after], [first, first]);
    assert_eq!(runner.lines("app"), ["stdout F once"]);
}

#[tokio::test]
async fn another_attempt_waits_for_the_one_that_runs_and_an_older_one_never_starts() {
    let runner = Runner::start();
    let sleep = runner.compile(&module(r#"(func (export "_start") (call $sleep))"#));
    let mut agent = runner.connect_with_pod().await;
    let mut spec = container("app", &sleep, P1);
    spec.id.attempt = 1;
    agent.start(&spec).await;

    for attempt in [0, 2] {
        let mut other = spec.clone();
        other.id.attempt = attempt;
        let refused = agent.ask(Request::Start(Box::new(other))).await;
        assert!(matches!(refused, Err(Failure::Busy(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn an_exit_that_nobody_acknowledged_outlives_the_runner_and_starts_nothing_again() {
    let mut runner = Runner::start();
    let code = runner.compile(&printer("x\n", 7));
    let mut agent = runner.connect_with_pod().await;
    let spec = container("app", &code, P1);
    let exit = agent.run(&spec).await;
    runner.crash_and_start_again();
    let mut agent = runner.connect().await;

    let pods = agent.list().await;

    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].pod, POD);
    assert_eq!(pods[0].containers[0].state, AttemptState::Exited(exit.clone()));
    assert_eq!(agent.ask(Request::CreatePod(sandbox(POD))).await, Ok(Answer::Done));
    assert_eq!(agent.start(&spec).await, exit.started_us);
    let acknowledged = agent.ask(Request::Acknowledge(attempt("app", 0))).await;
    assert_eq!(acknowledged, Ok(Answer::Done));
    assert!(agent.list().await[0].containers.is_empty());
}

#[tokio::test]
async fn a_removed_pod_takes_its_guests_and_its_records_along() {
    let mut runner = Runner::start();
    let spin = runner.compile(&module(r#"(func (export "_start") (loop $l (br $l)))"#));
    let done = runner.compile(&printer("x\n", 7));
    let mut agent = runner.connect_with_pod().await;
    agent.start(&container("spin", &spin, P1)).await;
    agent.run(&container("done", &done, P1)).await;
    let busy = agent.ask(Request::Exit).await;

    let removed = agent.ask(Request::RemovePod { pod: POD.into() }).await;

    assert!(matches!(busy, Err(Failure::Busy(_))), "{busy:?}");
    assert_eq!(removed, Ok(Answer::Done));
    assert_eq!(agent.list().await, []);
    assert_eq!(agent.ask(Request::RemovePod { pod: POD.into() }).await, Ok(Answer::Done));
    assert_eq!(agent.ask(Request::Exit).await, Ok(Answer::Done));
    patiently(async {
        while runner.is_alive() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_import_that_nobody_provides_is_refused_by_its_name() {
    let runner = Runner::start();
    let module =
        runner.compile(br#"(module (import "env" "mystery" (func)) (func (export "_start")))"#);
    let component = runner.compile(
        br#"(component (import "acme:things/thing@1.0.0" (instance (export "f" (func)))))"#,
    );
    let mut agent = runner.connect_with_pod().await;

    for (code, kind, name) in [(module, P1, "env"), (component, P2, "acme:things/thing")] {
        let spec = container("app", &code, kind);
        let Err(Failure::Refused { reason, message }) =
            agent.ask(Request::Start(Box::new(spec))).await
        else {
            panic!("not refused")
        };
        assert_eq!(reason, "CreateContainerError");
        assert!(message.contains(name), "{message}");
    }
    assert!(agent.list().await[0].containers.is_empty());
}

#[tokio::test]
async fn code_that_is_missing_or_damaged_is_bad_code_and_nothing_worse() {
    let runner = Runner::start();
    let code = runner.compile(&printer("x\n", 0));
    let path = runner.code(&code);
    let mut bytes = std::fs::read(&path).expect("read");
    let half = bytes.len() / 2;
    bytes.truncate(half);
    std::fs::write(&path, bytes).expect("written");
    let mut agent = runner.connect_with_pod().await;

    for digest in [code.as_str(), &"0".repeat(64), "../../etc/passwd"] {
        let spec = container("app", digest, P1);
        let refused = agent.ask(Request::Start(Box::new(spec))).await;
        assert!(matches!(refused, Err(Failure::BadCode(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_not_understood_is_answered_and_the_next_one_served() {
    let runner = Runner::start();
    let mut agent = runner.connect().await;
    #[derive(serde::Serialize)]
    enum Newer {
        Hibernate { hours: u32 },
    }
    #[derive(serde::Serialize)]
    struct Frame {
        id: u64,
        request: Newer,
    }

    let frame = Frame { id: 77, request: Newer::Hibernate { hours: 3 } };
    agent.sender.send(&frame, &[]).await.expect("sent");

    let (result, _) = agent.reply(77).await;
    assert_eq!(result, Err(Failure::Unsupported));
    assert_eq!(agent.list().await, []);
    assert_eq!((agent.hello.build.as_str(), agent.hello.engine.as_str()), ("b", "e"));
}

#[tokio::test]
async fn an_agent_that_never_reads_holds_up_no_guest_and_no_other_agent() {
    let runner = Runner::start();
    let code = runner.compile(&printer("x\n", 0));
    let mut deaf = runner.connect().await;
    let mut agent = runner.connect_with_pod().await;
    for _ in 0..200 {
        deaf.send(Request::List, &[]).await;
    }

    for n in 0..50 {
        let name = format!("c{n}");
        assert_eq!(agent.run(&container(&name, &code, P1)).await.code, 0);
    }
}

#[tokio::test]
async fn both_of_two_agents_hear_of_an_exit() {
    let runner = Runner::start();
    let code = runner.compile(&printer("x\n", 5));
    let mut old = runner.connect().await;
    let mut new = runner.connect_with_pod().await;
    // Asked, so that it is known to be listening.
    old.list().await;

    new.start(&container("app", &code, P1)).await;

    assert_eq!(old.exit("app").await.code, 5);
    assert_eq!(new.exit("app").await.code, 5);
}

#[tokio::test]
async fn a_guest_writes_where_it_may_and_not_where_it_may_only_read() {
    let runner = Runner::start();
    // Creates "f" in descriptor 3 and ends with the error's number.
    let create = module(
        r#"(data (i32.const 4096) "f")
           (func (export "_start")
             (call $proc_exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 4096)
               (i32.const 1) (i32.const 1) (i64.const 64) (i64.const 64) (i32.const 0)
               (i32.const 512))))"#,
    );
    let code = runner.compile(&create);
    for folder in ["rw/a", "rw/b"] {
        std::fs::create_dir_all(runner.root().join(folder)).expect("made");
    }
    let mut agent = runner.connect_with_pod().await;
    let mut writer = container("writer", &code, P1);
    writer.mounts.push(mount("/data", "/rw/a", false));
    let mut reader = container("reader", &code, P1);
    reader.mounts.push(mount("/data", "/rw/b", true));
    let mut nowhere = container("nowhere", &code, P1);
    nowhere.mounts.push(mount("/data", "/rw/gone", false));

    assert_eq!(agent.run(&writer).await.code, 0);
    assert_ne!(agent.run(&reader).await.code, 0);
    let refused = agent.ask(Request::Start(Box::new(nowhere))).await;

    assert!(runner.root().join("rw/a/f").exists());
    assert!(!runner.root().join("rw/b/f").exists());
    assert!(matches!(refused, Err(Failure::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn last_words_are_where_the_agent_reads_them_from_the_exit_until_the_pod_is_removed() {
    let mut runner = Runner::start();
    let code = runner.compile(&module(
        r#"(data (i32.const 4096) "termination-log")
           (data (i32.const 4200) "farewell")
           (func (export "_start")
             (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 4096) (i32.const 15)
               (i32.const 1) (i64.const 64) (i64.const 64) (i32.const 0) (i32.const 512)))
             (call $proc_exit
               (call $write (i32.load (i32.const 512)) (i32.const 4200) (i32.const 8))))"#,
    ));
    let mut agent = runner.connect_with_pod().await;
    let mut spec = container("app", &code, P1);
    spec.termination_log = format!("{}/{POD}/app/0", layout::WORDS);
    spec.termination_path = "/dev/termination-log".into();
    let words = runner.root().join(spec.termination_log.trim_start_matches('/'));

    assert_eq!(agent.run(&spec).await.code, 0);

    assert_eq!(std::fs::read_to_string(&words).expect("left"), "farewell");
    runner.crash_and_start_again();
    let mut agent = runner.connect().await;
    assert_eq!(std::fs::read_to_string(&words).expect("recorded, so kept"), "farewell");
    let removed = agent.ask(Request::RemovePod { pod: POD.into() }).await;
    assert_eq!(removed, Ok(Answer::Done));
    let all = runner.root().join(layout::WORDS.trim_start_matches('/'));
    assert_eq!(std::fs::read_dir(all).expect("there").count(), 0);
}

#[tokio::test]
async fn a_log_is_rotated_and_a_line_without_end_is_cut() {
    let runner = Runner::start();
    // 40 times 64 KiB without a newline, less one page that holds the vectors.
    let code = runner.compile(&module(
        r#"(func (export "_start") (local $n i32)
             (memory.fill (i32.const 4096) (i32.const 97) (i32.const 60000))
             (loop $more
               (drop (call $write (i32.const 1) (i32.const 4096) (i32.const 60000)))
               (local.set $n (i32.add (local.get $n) (i32.const 1)))
               (br_if $more (i32.lt_u (local.get $n) (i32.const 40)))))"#,
    ));
    let mut agent = runner.connect_with_pod().await;
    let mut spec = container("app", &code, P1);
    spec.limits.log_file_bytes = 256 << 10;
    spec.limits.log_files = 3;

    assert_eq!(agent.run(&spec).await.code, 0);

    let folder = runner.root().join(format!("logs/{POD}/app"));
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("there")
        .map(|file| {
            let file = file.expect("read");
            let size = file.metadata().expect("there").len();
            assert!(size <= 256 << 10, "{size}");
            file.file_name().into_string().expect("text")
        })
        .collect();
    files.sort();
    assert_eq!(files, ["0.log", "0.log.1", "0.log.2"]);
    for line in runner.lines("app").iter().rev().skip(1) {
        assert!(line.starts_with("stdout P aaa"), "{line:.40}");
        assert_eq!(line.len(), "stdout P ".len() + (16 << 10));
    }
}

#[tokio::test]
async fn a_flood_is_slowed_down_then_dropped_with_a_note() {
    let runner = Runner::start();
    let code = runner.compile(&module(
        r#"(data (i32.const 4096) "flood\n")
           (func (export "_start") (loop $more
             (drop (call $write (i32.const 1) (i32.const 4096) (i32.const 6)))
             (br $more)))"#,
    ));
    let mut agent = runner.connect_with_pod().await;
    let mut spec = container("app", &code, P1);
    spec.limits.log_bytes_per_second = 10_000;
    agent.start(&spec).await;

    patiently(async {
        while !runner.log("app").contains("were dropped") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;

    agent.stop("app", FAR).await;
    assert_eq!(agent.exit("app").await.code, 143);
    // What PATIENCE, the first second's worth and a little luck let through.
    assert!(runner.log("app").len() < 200_000, "{}", runner.log("app").len());
}

/// Copies stdin to stdout until the end or an error; ends with the number of the error.
fn cat() -> Vec<u8> {
    module(
        r#"(func (export "_start") (local $error i32)
             (loop $more
               (i32.store (i32.const 0) (i32.const 4096))
               (i32.store (i32.const 4) (i32.const 4096))
               (br_if 1 (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
               (br_if 1 (i32.eqz (i32.load (i32.const 8))))
               (local.set $error
                 (call $write (i32.const 1) (i32.const 4096) (i32.load (i32.const 8))))
               (br_if $more (i32.eqz (local.get $error))))
             (call $proc_exit (local.get $error)))"#,
    )
}

fn ends() -> ([OwnedFd; 3], UnixStream, UnixStream, UnixStream) {
    let pair = || UnixStream::pair().expect("a pair");
    let ((stdin, a), (stdout, b), (stderr, c)) = (pair(), pair(), pair());
    ([a.into(), b.into(), c.into()], stdin, stdout, stderr)
}

fn exec(code: &str) -> ExecContainer {
    ExecContainer {
        id: attempt("app", 0),
        code: code.into(),
        kind: P1,
        args: vec!["cat".into()],
        timeout_ms: None,
        tty: false,
        of_toolbox: false,
    }
}

#[tokio::test]
async fn an_exec_reads_and_writes_its_own_streams_and_not_the_log() {
    let runner = Runner::start();
    let sleep = runner.compile(&module(r#"(func (export "_start") (call $sleep))"#));
    let cat = runner.compile(&cat());
    let mut agent = runner.connect_with_pod().await;
    agent.start(&container("app", &sleep, P1)).await;
    let (descriptors, mut stdin, mut stdout, _stderr) = ends();

    let id = agent.send(Request::Exec(exec(&cat)), &descriptors).await;
    drop(descriptors);
    let text = "through the guest ".repeat(20_000);
    let sent = text.clone();
    let writing = std::thread::spawn(move || stdin.write_all(sent.as_bytes()));
    let reading = std::thread::spawn(move || {
        let mut read = String::new();
        stdout.read_to_string(&mut read).map(|_| read)
    });
    let (result, _) = agent.reply(id).await;

    assert_eq!(result, Ok(Answer::Exited { code: 0, message: None }));
    writing.join().expect("joined").expect("written");
    assert_eq!(reading.join().expect("joined").expect("read"), text);
    assert_eq!(runner.log("app"), "");
}

#[tokio::test]
async fn an_exec_whose_reader_is_gone_or_whose_time_is_over_ends() {
    let runner = Runner::start();
    let sleep = runner.compile(&module(r#"(func (export "_start") (call $sleep))"#));
    let flood = runner.compile(&module(
        r#"(func (export "_start") (local $error i32)
             (loop $more
               (local.set $error (call $write (i32.const 1) (i32.const 4096) (i32.const 4096)))
               (br_if $more (i32.eqz (local.get $error))))
             (call $proc_exit (i32.const 9)))"#,
    ));
    let mut agent = runner.connect_with_pod().await;
    agent.start(&container("app", &sleep, P1)).await;

    let (descriptors, _stdin, stdout, _stderr) = ends();
    drop(stdout);
    let gone = agent.exec(exec(&flood), &descriptors).await;
    let (descriptors, _stdin, _stdout, _stderr) = ends();
    let slow =
        agent.exec(ExecContainer { timeout_ms: Some(50), ..exec(&sleep) }, &descriptors).await;
    let file = || OwnedFd::from(File::open("/dev/null").expect("open"));
    let to_null = agent.exec(exec(&cat_code(&runner)), &[file(), file(), file()]).await;
    let (two, ..) = agent.ask_with(Request::Exec(exec(&sleep)), &[file(), file()]).await;

    assert_eq!(gone.0, 9);
    assert_eq!(slow.0, 137);
    assert_eq!(to_null.0, 0);
    assert!(matches!(two, Err(Failure::Refused { .. })), "{two:?}");
}

fn cat_code(runner: &Runner) -> String {
    runner.compile(&cat())
}

/// More than the pool has seats for programs, all of one that has shown to end soon; also one whose table no slot can hold.
#[tokio::test]
async fn programs_that_end_soon_run_on_however_many_there_are_at_a_time() {
    let runner = Runner::start();
    let sleep = runner.compile(&module(r#"(func (export "_start") (call $sleep))"#));
    let cat = runner.compile(&cat());
    let large = runner.compile(&module(r#"(table 200000 funcref) (func (export "_start"))"#));
    let mut agent = runner.connect_with_pod().await;
    agent.start(&container("app", &sleep, P1)).await;
    for code in [&cat, &cat, &large, &large, &large] {
        let file = || OwnedFd::from(File::open("/dev/null").expect("open"));
        assert_eq!(agent.exec(exec(code), &[file(), file(), file()]).await.0, 0);
    }

    let mut all = Vec::new();
    for _ in 0..SEATS + 10 {
        let (descriptors, stdin, stdout, stderr) = ends();
        agent.send(Request::Exec(exec(&cat)), &descriptors).await;
        all.push((stdin, stdout, stderr));
    }

    let echo = |text: &'static str, all: &mut [(UnixStream, UnixStream, UnixStream)]| {
        for (stdin, stdout, _) in all {
            stdin.write_all(text.as_bytes()).expect("it reads");
            let mut read = vec![0; text.len()];
            stdout.read_exact(&mut read).expect("it writes");
            assert_eq!(read, text.as_bytes());
        }
    };
    let echoed = tokio::task::spawn_blocking(move || {
        // Twice, so that all of them lived at the same time.
        echo("once", &mut all);
        echo("again", &mut all);
    });
    patiently(echoed).await.expect("all of them answered");
}

/// As many seats as there are, of a component whose memories are more than the pool then has slots for.
#[tokio::test]
async fn programs_for_which_the_pool_has_no_slot_left_run_outside_it() {
    let runner = Runner::start();
    let sleep = runner.compile(&module(r#"(func (export "_start") (call $sleep))"#));
    let spins =
        r#"(memory 1) (func (export "run") (result i32) (loop $more (br $more)) (i32.const 0))"#;
    let more: String = (0..19).map(|n| format!("(core instance $n{n} (instantiate $n))")).collect();
    let wide = String::from_utf8(command(spins)).expect("text").replacen(
        "(component",
        &format!("(component (core module $n (memory 1)) {more}"),
        1,
    );
    let wide = runner.compile(wide.as_bytes());
    let mut agent = runner.connect_with_pod().await;
    let mut app = container("app", &sleep, P1);
    app.limits.memory = 1 << 30;
    agent.start(&app).await;
    let file = || OwnedFd::from(File::open("/dev/null").expect("open"));
    let for_ms = |ms| ExecContainer { timeout_ms: Some(ms), kind: P2, ..exec(&wide) };
    for _ in 0..2 {
        assert_eq!(agent.exec(for_ms(50), &[file(), file(), file()]).await.0, 137);
    }

    for _ in 0..SEATS {
        agent.send(Request::Exec(for_ms(3_000)), &[file(), file(), file()]).await;
    }

    for _ in 0..SEATS {
        let (_, result, _) = agent.any_reply().await;
        let Ok(Answer::Exited { code, message }) = result else { panic!("{result:?}") };
        assert_eq!((code, message.as_deref()), (137, Some("its time was over")));
    }
}

#[tokio::test]
async fn an_exec_ends_with_its_container() {
    let runner = Runner::start();
    let sleep = runner.compile(&module(r#"(func (export "_start") (call $sleep))"#));
    let mut agent = runner.connect_with_pod().await;
    let mut other = runner.connect().await;
    agent.start(&container("app", &sleep, P1)).await;
    let (descriptors, _stdin, _stdout, _stderr) = ends();

    let id = agent.send(Request::Exec(exec(&sleep)), &descriptors).await;
    other.stop("app", FAR).await;

    let (result, _) = agent.reply(id).await;
    assert!(matches!(result, Ok(Answer::Exited { code: 137, .. })), "{result:?}");
}

#[tokio::test]
async fn a_dial_to_a_port_where_nobody_listens_is_unreachable() {
    let runner = Runner::start();
    let mut agent = runner.connect_with_pod().await;

    let (refused, _) = agent.ask_with(Request::Dial { pod: POD.into(), port: 1 }, &[]).await;
    let unknown = agent.ask(Request::Dial { pod: "nobody".into(), port: 1 }).await;

    assert!(matches!(refused, Err(Failure::Unreachable(_))), "{refused:?}");
    assert_eq!(unknown, Err(Failure::NotFound));
}

#[tokio::test]
async fn garbage_ends_that_connection_only() {
    let runner = Runner::start();
    let mut agent = runner.connect().await;
    let mut vandal = runner.connect().await;

    vandal.sender.send(&"this is no request", &[]).await.expect("sent");

    let ended = patiently(vandal.receiver.receive::<FromRunner>()).await;
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(agent.list().await, []);
}

/// A guest of `examples/`, which `cargo xtask guests` builds.
fn example(name: &str) -> Vec<u8> {
    let folder =
        std::env::var_os("COPEPOD_GUESTS").expect("COPEPOD_GUESTS names the guests' folder");
    std::fs::read(std::path::Path::new(&folder).join(name).with_extension("wasm")).expect("read")
}

#[tokio::test]
#[ignore = "needs COPEPOD_GUESTS, which cargo xtask test sets"]
async fn a_real_program_sees_its_arguments_environment_files_and_streams() {
    let runner = Runner::start();
    std::fs::create_dir_all(runner.root().join("rw/data")).expect("made");
    std::fs::create_dir_all(runner.root().join("ro/config")).expect("made");
    std::fs::write(runner.root().join("ro/config/key"), "value").expect("written");
    let mut agent = runner.connect_with_pod().await;

    for (guest, kind) in [("probe", P2), ("probe-p1", P1)] {
        let code = runner.compile(&example(guest));
        let mut spec = container(guest, &code, kind);
        spec.env.push(("GREETING".into(), "hello world".into()));
        spec.mounts.push(mount("/data", "/rw/data", false));
        spec.mounts.push(mount("/config", "/ro/config", true));
        spec.termination_log = format!("{}/{POD}/{guest}/0", layout::WORDS);
        spec.termination_path = "/dev/termination-log".into();
        spec.args.extend(
            [
                "env-is GREETING hello world",
                "file-is /config/key value",
                "cannot-write /config/key",
                "cannot-remove /config/key",
                "write /data/file content",
                "append /data/file , more",
                "file-is /data/file content, more",
                "mkdir /data/folder",
                "rename /data/file /data/folder/file",
                "list-is /data folder",
                "cannot-read /etc/passwd",
                "cannot-read /data/../../etc/passwd",
                "remove /data/folder/file",
                "write /dev/termination-log bye",
                "eprint to stderr",
                "random",
                "clock",
                "sleep 10",
            ]
            .map(str::to_owned),
        );
        let exit = agent.run(&spec).await;

        assert_eq!(exit.code, 0, "{:#?}", runner.lines(guest));
        let words = runner.root().join(spec.termination_log.trim_start_matches('/'));
        assert_eq!(std::fs::read_to_string(words).expect("left"), "bye");
        assert!(runner.lines(guest).contains(&"stderr F to stderr".to_owned()));
        std::fs::remove_dir(runner.root().join("rw/data/folder")).expect("removed");
    }
}

#[tokio::test]
#[ignore = "needs COPEPOD_GUESTS, which cargo xtask test sets"]
async fn an_http_component_answers_through_a_dialled_connection_and_drains() {
    let runner = Runner::start();
    let code = runner.compile(&example("hello-http"));
    let mut agent = runner.connect_with_pod().await;
    agent.start(&container("app", &code, Kind::HttpComponent)).await;

    for _ in 0..3 {
        let answer = get(&mut agent).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("hello from copepod\n") || answer.contains("hello from copepod"));
    }
    let Ok(Answer::Stats(stats)) = agent.ask(Request::Stats).await else { panic!("no stats") };
    assert_eq!((stats[0].requests, stats[0].instances), (3, 0));

    agent.stop("app", FAR / 1_000).await;

    let exit = agent.exit("app").await;
    assert_eq!((exit.code, exit.reason), (0, ExitReason::Ended));
}

#[tokio::test]
#[ignore = "needs COPEPOD_GUESTS, which cargo xtask test sets"]
async fn requests_one_after_the_other_take_no_more_memory_than_the_first() {
    let runner = Runner::start();
    let code = runner.compile(&example("hello-http"));
    let mut agent = runner.connect_with_pod().await;
    agent.start(&container("app", &code, Kind::HttpComponent)).await;
    // Either of the guests' threads has a slot of its own, and the first requests fill what is made once.
    for _ in 0..10 {
        get(&mut agent).await;
    }
    let before = runner.anonymous_bytes();

    for _ in 0..20 {
        get(&mut agent).await;
    }

    // An instance's memory was 150 KiB at the least.
    let each = runner.anonymous_bytes().saturating_sub(before) / 20;
    assert!(each < 32 << 10, "{each} bytes for each request");
}

/// The answer of the tests' pod to a request on a connection of its own.
async fn get(agent: &mut Agent) -> String {
    let dial = Request::Dial { pod: POD.into(), port: 8080 };
    let (answer, descriptors) = agent.ask_with(dial, &[]).await;
    assert_eq!(answer, Ok(Answer::Descriptor));
    let descriptor = descriptors.into_iter().next().expect("one");
    let mut stream = std::net::TcpStream::from(descriptor);
    stream.set_nonblocking(false).expect("set");
    let answer = tokio::task::spawn_blocking(move || {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    });
    patiently(answer).await.expect("joined").expect("read")
}

#[tokio::test]
async fn a_published_port_leads_to_the_pods() {
    let runner = Runner::start();
    let mut agent = runner.connect_with_pod().await;
    let pod_port = std::net::TcpListener::bind("127.77.0.1:0").expect("bound");
    let port = pod_port.local_addr().expect("bound").port();
    let host = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = host.local_addr().expect("bound");
    let publish = Request::Publish { pod: POD.into(), port };

    let (published, _) = agent.ask_with(publish.clone(), &[host.into()]).await;
    let file = File::open("/dev/null").expect("open");
    let (refused, _) = agent.ask_with(publish, &[file.into()]).await;

    assert_eq!(published, Ok(Answer::Done));
    assert!(matches!(refused, Err(Failure::Refused { .. })), "{refused:?}");
    let mut client = std::net::TcpStream::connect(address).expect("connected");
    client.write_all(b"ping").expect("written");
    let (mut served, _) = pod_port.accept().expect("accepted");
    let mut read = [0; 4];
    served.read_exact(&mut read).expect("read");
    assert_eq!(&read, b"ping");
    agent.ask(Request::RemovePod { pod: POD.into() }).await.expect("removed");
    patiently(async {
        while std::net::TcpStream::connect(address).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
