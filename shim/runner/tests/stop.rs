//! A program without a shutdown notice that is stopped while it has callers: `examples/axum`, over real sockets.
//!
//! Absent: programs without a network (`runner.rs`) and HTTP components (`http.rs`).

#[allow(dead_code, reason = "the other tests of the runner use the rest")]
mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::time::Duration;

use copepod_shim::kind::Kind;
use copepod_shim::protocol::ExitReason;

use support::{Agent, POD_IP, Runner, container, patiently, port};

/// An unlimited grace: a minute later the test has failed anyway.
const LATER_MS: i64 = 600_000;

/// The server, in a runner.
struct Served {
    // Ends the runner when the test is over.
    _runner: Runner,
    agent: Agent,
    port: u16,
}

async fn serve() -> Served {
    static GUEST: OnceLock<Vec<u8>> = OnceLock::new();
    let runner = Runner::start();
    let code = runner.compile(GUEST.get_or_init(|| support::guest("axum")));
    let mut agent = runner.connect_with_pod().await;
    let port = port();
    let mut spec = container("web", &code, Kind::CommandComponent);
    spec.env = vec![("PORT".into(), port.to_string())];
    agent.start(&spec).await;
    patiently(async {
        while connect(port).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    Served { _runner: runner, agent, port }
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect((POD_IP, port))
}

/// A connection on which this was sent.
fn sent(port: u16, request: &str) -> TcpStream {
    let mut stream = connect(port).expect("connected");
    stream.write_all(request.as_bytes()).expect("sent");
    stream
}

/// What comes until the connection ends.
fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a whole answer");
    text
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

const SLOW: &str = "GET /slow HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_connected_is_answered_and_nobody_else_is_let_in() {
    let mut served = serve().await;
    let open: Vec<_> = (0..50).map(|_| sent(served.port, SLOW)).collect();

    served.agent.stop("web", now_ms() + LATER_MS).await;
    let exit = served.agent.exit("web").await;

    for stream in open {
        let answer = answer(stream);
        assert!(answer.ends_with("slow, but not in the way\n"), "{answer:?}");
    }
    assert_eq!((exit.code, exit.reason), (143, ExitReason::Ended));
    assert!(connect(served.port).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_that_was_sent_while_the_stop_came() {
    let mut served = serve().await;
    let port = served.port;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            // As long as they are let in.
            std::thread::spawn(move || {
                let mut answered = 0;
                while let Ok(mut stream) = connect(port) {
                    stream.write_all(SLOW.as_bytes()).expect("sent");
                    let answer = answer(stream);
                    assert!(answer.ends_with("slow, but not in the way\n"), "{answer:?}");
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;

    served.agent.stop("web", now_ms() + LATER_MS).await;
    let exit = served.agent.exit("web").await;

    assert_eq!(exit.code, 143);
    for client in clients {
        assert!(client.join().expect("no request failed") > 0);
    }
}

#[tokio::test]
async fn a_connection_that_a_client_keeps_for_later_does_not_hold_a_stop_up() {
    let mut served = serve().await;
    let mut kept = sent(served.port, "GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut begin = [0; 15];
    kept.read_exact(&mut begin).expect("an answer");
    assert_eq!(&begin, b"HTTP/1.1 200 OK");

    served.agent.stop("web", now_ms() + LATER_MS).await;

    assert_eq!(served.agent.exit("web").await.code, 143);
}

#[tokio::test]
async fn who_still_owes_an_answer_at_the_deadline_is_killed() {
    let mut served = serve().await;
    let head = "POST /increment HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
    let _unanswered = sent(served.port, &format!("{head}content-length: 100\r\n\r\n{{"));

    served.agent.stop("web", now_ms() + 2_000).await;

    let exit = served.agent.exit("web").await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::Killed));
}
