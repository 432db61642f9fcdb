//! A foreground run against an agent made of a script: what it asks, what it survives, how it ends.

use std::sync::atomic::{AtomicUsize, Ordering};

use copepod_agent::api::LogLine;
use copepod_shim::wire;
use serde_json::json;
use tokio::net::UnixListener;

use super::*;
use crate::out::Format;

/// What the scripted agent does, and what it was asked.
#[derive(Default)]
struct Script {
    /// The pod's views: one per look at it; the last one stays.
    views: Vec<(serde_json::Value, bool, Option<String>)>,
    /// Where the log's reader begins, each time that it connects.
    log_asked: std::sync::Mutex<Vec<Option<LogPosition>>>,
    stops: std::sync::Mutex<Vec<Option<u32>>>,
    looks: AtomicUsize,
}

fn view((status, over, never): &(serde_json::Value, bool, Option<String>)) -> PodView {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "default", "uid": "u"},
        "spec": {"containers": [{"name": "app"}]}, "status": status,
    });
    PodView {
        pod: pod.to_string(),
        events: Vec::new(),
        over: *over,
        never: never.clone(),
        progress: None,
    }
}

fn running() -> serde_json::Value {
    json!({"phase": "Running", "containerStatuses": [
        {"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]})
}

fn ended(code: i32) -> serde_json::Value {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    json!({"phase": phase, "containerStatuses": [
        {"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
         "state": {"terminated": {"exitCode": code, "reason": "Error", "message": "boom"}}}]})
}

fn piece(text: &str, line: u32) -> Reply {
    let position = LogPosition { attempt: 0, time_ns: i64::from(line), lines: 1 };
    let time_ns = i64::from(line);
    let line = LogLine { time_ns, stderr: false, text: text.into(), partial: false };
    Reply::Log(LogPiece { lines: vec![line], position })
}

/// Answers one connection; the first of a log and every look but the last break off, as by a killed agent.
async fn answer(script: &Script, stream: tokio::net::UnixStream) {
    let (sender, mut receiver) = wire::split(stream);
    let Ok((call, _)) = receiver.receive::<Call>().await else { return };
    let send = async |reply: Reply| {
        let _ = sender.send(&reply, &[]).await;
    };
    match call {
        Call::Hello { version, .. } => {
            send(Reply::Agent { version, build: String::new(), pid: 1 }).await
        }
        Call::Watch { .. } => {
            let look = script.looks.fetch_add(1, Ordering::SeqCst);
            let last = script.views.len() - 1;
            send(Reply::Pods(vec![view(&script.views[look.min(last)])])).await;
            if look >= last {
                let _ = receiver.receive_bytes().await;
            }
        }
        Call::Logs(logs) => {
            let count = {
                let mut asked = script.log_asked.lock().expect("no panic");
                asked.push(logs.after);
                asked.len()
            };
            match count {
                1 => send(piece("first", 1)).await,
                _ => {
                    send(piece("second", 2)).await;
                    send(Reply::Done).await;
                }
            }
        }
        Call::Stop(stop) => {
            script.stops.lock().expect("no panic").push(stop.grace);
            send(Reply::Done).await;
        }
        other => send(Reply::Failed(format!("{other:?}"))).await,
    }
}

/// Follows one pod of the script; the exit code.
async fn followed(script: Arc<Script>) -> u8 {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = UnixListener::bind(folder.path().join("agent.sock")).expect("a socket");
    let scripted = script.clone();
    let agent = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let script = scripted.clone();
            tokio::spawn(async move { answer(&script, stream).await });
        }
    });
    let name = PodName { namespace: "default".into(), name: "a".into() };
    let accepted = AcceptedPod { uid: "u".into(), pod: name, published: Vec::new() };
    let spec = serde_json::from_str(&view(&script.views[0]).pod).expect("a pod");
    let client = Client::new(folder.path().to_owned());
    let pods = vec![Followed::new(accepted, spec)];
    let code = follow(Out::new(Format::Text), client, pods, 0).await;
    agent.abort();
    code
}

#[tokio::test]
async fn a_run_survives_broken_connections_and_reads_each_line_once() {
    let views = vec![(running(), false, None), (running(), false, None), (ended(3), true, None)];
    let script = Arc::new(Script { views, ..Script::default() });

    let code = followed(script.clone()).await;

    assert_eq!(code, 3);
    let start = LogPosition { attempt: 0, time_ns: 0, lines: 0 };
    let first = LogPosition { attempt: 0, time_ns: 1, lines: 1 };
    assert_eq!(*script.log_asked.lock().expect("no panic"), [Some(start), Some(first)]);
    // Forgotten once, when it was over.
    assert_eq!(*script.stops.lock().expect("no panic"), [None]);
}

#[tokio::test]
async fn a_pod_that_succeeds_ends_the_run_with_0() {
    let views = vec![(ended(0), true, None)];

    assert_eq!(followed(Arc::new(Script { views, ..Script::default() })).await, 0);
}

#[tokio::test]
async fn a_pod_that_can_never_run_is_stopped_and_ends_the_run_with_125() {
    let pending = json!({"phase": "Pending"});
    let views = vec![(pending, false, Some("this is a Linux image".into()))];
    let script = Arc::new(Script { views, ..Script::default() });

    assert_eq!(followed(script.clone()).await, exit::NEVER);
    assert_eq!(*script.stops.lock().expect("no panic"), [None]);
}

#[tokio::test]
async fn a_pod_that_waits_for_an_image_that_may_not_be_pulled_ends_the_run_with_125() {
    let waiting = json!({"phase": "Pending", "containerStatuses": [
        {"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
         "state": {"waiting": {"reason": "ErrImageNeverPull", "message": "not here"}}}]});
    let script = Arc::new(Script { views: vec![(waiting, false, None)], ..Script::default() });

    assert_eq!(followed(script).await, exit::NEVER);
}
