//! Two runners in one tree: the one serves what the other hands over, without a request that fails.
//!
//! Absent: fences, which the agent's own tests have around both.

#[allow(dead_code, reason = "the other tests of the runner use the rest")]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use copepod_shim::kind::Kind;
use copepod_shim::protocol::{
    Answer, AttemptState, Failure, Port, Request, Retire, StartContainer,
};

use support::{Agent, POD, POD_IP, Runner, attempt, container, guest, patiently, port, sandbox};

/// A deadline that no test lives to see.
const NEVER_MS: i64 = i64::MAX;

fn served(code: &str, port: u16) -> StartContainer {
    let mut spec = container("web", code, Kind::HttpComponent);
    spec.ports = vec![Port { name: "http".into(), port, udp: false }];
    spec
}

/// One request on a connection of its own.
fn get(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((POD_IP, port))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

async fn until(mut is_so: impl FnMut() -> bool) {
    patiently(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn retire(containers: &[&str]) -> Request {
    let attempts = containers.iter().map(|name| attempt(name, 0)).collect();
    Request::Retire(Retire { attempts, deadline_ms: NEVER_MS })
}

/// Gives `heir` the container that `old` serves.
async fn hand_over(old: &mut Agent, heir: &mut Agent, mut spec: StartContainer) -> i64 {
    let (answer, sockets) = old.ask_with(Request::HandOver(attempt("web", 0)), &[]).await;
    let Ok(Answer::HandedOver { since_us }) = answer else { panic!("{answer:?}") };
    assert_eq!(heir.ask(Request::CreatePod(sandbox(POD))).await, Ok(Answer::Done));
    spec.since_us = Some(since_us);
    let (started, _) = heir.ask_with(Request::Start(Box::new(spec)), &sockets).await;
    assert_eq!(started, Ok(Answer::Started { at_us: since_us }));
    since_us
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_component_goes_on_in_another_runner_and_no_request_fails() {
    let mut runner = Runner::start();
    let code = runner.compile(&guest("hello-http"));
    let port = port();
    let mut old = runner.connect_with_pod().await;
    let spec = served(&code, port);
    let since = old.start(&spec).await;
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load = {
        let (over, answered) = (over.clone(), answered.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let answer = get(port).expect("every request is answered");
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    };

    let second = runner.start_heir();
    let mut heir = second.connect().await;
    let handed = hand_over(&mut old, &mut heir, spec).await;
    assert_eq!(old.ask(retire(&["web"])).await, Ok(Answer::Done));

    until(|| !runner.is_alive()).await;
    let before = answered.load(Ordering::Relaxed);
    until(|| answered.load(Ordering::Relaxed) >= before + 20).await;
    over.store(true, Ordering::Relaxed);
    load.join().expect("no request failed");
    assert_eq!(handed, since, "it has run since its own start");
    let pods = heir.list().await;
    assert_eq!(pods[0].containers[0].attempt, 0);
    assert_eq!(pods[0].containers[0].state, AttemptState::Running { since_us: since });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_retires_from_all_that_runs_in_it_and_from_nothing_else() {
    let runner = Runner::start();
    let code = runner.compile(&guest("hello-http"));
    let port = port();
    let mut old = runner.connect_with_pod().await;
    old.start(&served(&code, port)).await;

    for attempts in [&[][..], &["other"][..], &["web", "other"][..]] {
        let refused = old.ask(retire(attempts)).await;
        assert!(matches!(refused, Err(Failure::Busy(_))), "{attempts:?}: {refused:?}");
    }
    let asked = old.ask(Request::HandOver(attempt("web", 1))).await;
    assert_eq!(asked, Err(Failure::NotFound));
    old.stop("web", NEVER_MS).await;
    let refused = old.ask(Request::HandOver(attempt("web", 0))).await;

    assert!(matches!(refused, Err(Failure::Busy(_) | Failure::NotFound)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_not_handed_over() {
    let runner = Runner::start();
    let code = runner.compile(&guest("probe"));
    let mut old = runner.connect_with_pod().await;
    let mut spec = container("job", &code, Kind::CommandComponent);
    spec.args = vec!["probe".into(), "forever sleep 1000".into()];
    old.start(&spec).await;

    let refused = old.ask(Request::HandOver(attempt("job", 0))).await;

    let Err(Failure::Busy(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("container job"), "{why}");
    let refused = old.ask(retire(&["job"])).await;
    assert!(matches!(refused, Err(Failure::Busy(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_heir_that_is_called_off_leaves_the_listener_to_the_first_runner() {
    let runner = Runner::start();
    let code = runner.compile(&guest("hello-http"));
    let port = port();
    let mut old = runner.connect_with_pod().await;
    let spec = served(&code, port);
    old.start(&spec).await;
    let mut second = runner.start_heir();
    let mut heir = second.connect().await;
    hand_over(&mut old, &mut heir, spec).await;

    assert_eq!(heir.ask(retire(&["web"])).await, Ok(Answer::Done));

    until(|| !second.is_alive()).await;
    for _ in 0..10 {
        let answer = get(port).expect("the first runner answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    old.stop("web", 0).await;
    old.exit("web").await;
    assert!(get(port).is_err(), "nobody listens any more");
}
