#![allow(missing_docs, clippy::print_stdout, dead_code)]
mod support;
use copepod_shim::kind::Kind;
use copepod_shim::protocol::*;
use support::*;

fn p2() -> Vec<u8> {
    r#"(component
      (import "wasi:clocks/wall-clock@0.2.0" (instance $clock
        (type $d (record (field "seconds" u64) (field "nanoseconds" u32)))
        (export "datetime" (type $dt (eq $d)))
        (export "now" (func (result $dt)))))
      (import "wasi:io/error@0.2.0" (instance $error (export "error" (type (sub resource)))))
      (alias export $error "error" (type $err))
      (import "wasi:io/streams@0.2.0" (instance $streams
        (export "output-stream" (type $os (sub resource)))
        (alias outer 1 $err (type $e0))
        (export "error" (type $e (eq $e0)))
        (type $se0 (variant (case "last-operation-failed" (own $e)) (case "closed")))
        (export "stream-error" (type $se (eq $se0)))
        (export "[method]output-stream.blocking-write-and-flush" (func (param "self" (borrow $os)) (param "contents" (list u8)) (result (result (error $se)))))))
      (alias export $streams "output-stream" (type $os))
      (import "wasi:cli/stdout@0.2.0" (instance $stdout
        (alias outer 1 $os (type $o0))
        (export "output-stream" (type $o (eq $o0)))
        (export "get-stdout" (func (result (own $o))))))
      (core module $mem (memory (export "memory") 2))
      (core instance $m (instantiate $mem))
      (core func $now (canon lower (func $clock "now") (memory (core memory $m "memory"))))
      (core func $get (canon lower (func $stdout "get-stdout")))
      (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush") (memory (core memory $m "memory"))))
      (core module $main
        (import "m" "memory" (memory 2))
        (import "w" "now" (func $now (param i32)))
        (import "w" "get" (func $get (result i32)))
        (import "w" "write" (func $write (param i32 i32 i32 i32)))
        (func $hex (param $from i32) (param $to i32) (param $n i32)
          (local $b i32)
          (loop $l
            (local.set $b (i32.load8_u (local.get $from)))
            (i32.store8 (local.get $to) (i32.add (i32.const 65) (i32.shr_u (local.get $b) (i32.const 4))))
            (i32.store8 (i32.add (local.get $to) (i32.const 1)) (i32.add (i32.const 65) (i32.and (local.get $b) (i32.const 15))))
            (local.set $from (i32.add (local.get $from) (i32.const 1)))
            (local.set $to (i32.add (local.get $to) (i32.const 2)))
            (local.set $n (i32.sub (local.get $n) (i32.const 1)))
            (br_if $l (local.get $n))))
        (func (export "run") (result i32)
          (call $now (i32.const 64))
          (call $hex (i32.const 64) (i32.const 128) (i32.const 12))
          (call $write (call $get) (i32.const 128) (i32.const 24) (i32.const 256))
          i32.const 0))
      (core instance $i (instantiate $main (with "m" (instance $m)) (with "w" (instance (export "now" (func $now)) (export "get" (func $get)) (export "write" (func $write))))))
      (func $run (result (result)) (canon lift (core func $i "run")))
      (instance $cli (export "run" (func $run)))
      (export "wasi:cli/run@0.2.0" (instance $cli)))"#.as_bytes().to_vec()
}

fn parse(line: &str) -> i64 {
    let hex = line.strip_prefix("stdout F ").expect("a line").as_bytes();
    let bytes: Vec<u8> = hex.chunks(2).map(|c| (c[0] - b'A') << 4 | (c[1] - b'A')).collect();
    let s = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let n = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
    (s * 1_000_000_000 + u64::from(n)) as i64
}

fn now_ns() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as i64
}

fn rss(pid: u32) -> String {
    let s = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    s.lines()
        .filter(|l| l.starts_with("Rss") || l.starts_with("Private"))
        .collect::<Vec<_>>()
        .join(" | ")
        + &format!(" threads {}", std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count())
}

#[tokio::test]
async fn measure() {
    let runner = Runner::start();
    let code = runner.compile(&p2());
    let mut agent = runner.connect().await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    println!("idle: {}", rss(runner.pid()));
    agent.ask(Request::CreatePod(sandbox(POD))).await.unwrap();
    println!("pod: {}", rss(runner.pid()));
    for gap in [0u64, 5] {
        let (mut total, mut inst, mut hop) = (vec![], vec![], vec![]);
        for n in 0..1000 {
            let name = format!("c{gap}x{n}");
            let spec = container(&name, &code, Kind::CommandComponent);
            if gap > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(gap)).await;
            }
            let t0 = now_ns();
            let at = agent.start(&spec).await;
            let exit = agent.exit(&name).await;
            assert_eq!(exit.code, 0, "{exit:?}");
            let t2 = parse(&runner.lines(&name)[0]);
            agent.ask(Request::Acknowledge(spec.id.clone())).await.unwrap();
            total.push((t2 - t0) / 1000);
            inst.push((t2 - at * 1000) / 1000);
            hop.push(at - t0 / 1000);
        }
        for (what, v) in [
            ("client->first", &mut total),
            ("task start->first", &mut inst),
            ("client->task", &mut hop),
        ] {
            v.sort();
            println!("gap {gap} ms {what}: min {} p50 {} p90 {} us", v[0], v[500], v[900]);
        }
    }
    println!("after: {}", rss(runner.pid()));
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    println!("after 11 s: {}", rss(runner.pid()));
    agent.ask(Request::RemovePod { pod: POD.into() }).await.unwrap();
    println!("removed: {}", rss(runner.pid()));
}
