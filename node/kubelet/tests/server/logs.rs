//! `/containerLogs`.

use super::bench::{Bench, line, piece, pod, running};
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::sync::mpsc;

const LOG: &str = "/containerLogs/default/web/app";

async fn with_log() -> Bench {
    let bench = Bench::new().await;
    let mut lines = bench.pods.lines.lock().expect("no panic");
    lines.insert(0, vec![line(1, "first run")]);
    lines.insert(1, vec![line(10, "a"), line(20, "b"), line(30, "c")]);
    drop(lines);
    bench
}

#[tokio::test]
async fn a_log_is_shown_by_its_options() {
    let bench = with_log().await;

    for (query, shown) in [
        ("", "a\nb\nc\n"),
        ("?previous=true", "first run\n"),
        ("?tailLines=2", "b\nc\n"),
        ("?tailLines=0", ""),
        ("?limitBytes=3", "a\nb"),
        ("?limitBytes=1", "a"),
        ("?sinceTime=1970-01-01T00:00:20Z", "b\nc\n"),
        ("?sinceSeconds=60", ""),
        ("?timestamps=true&tailLines=1", "1970-01-01T00:00:30.000000000Z c\n"),
    ] {
        let (status, text) = bench.get(&format!("{LOG}{query}")).await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, shown), "{query}");
    }
}

#[tokio::test]
async fn what_cannot_be_shown_is_refused_in_the_kubelet_s_words() {
    let bench = with_log().await;

    for (path, status, text) in [
        ("/containerLogs/default/none/app", 404, "pod \"none\" does not exist"),
        ("/containerLogs/default/web/none", 404, "container \"none\" not found in pod \"web\""),
        (&format!("{LOG}?sinceSeconds=0")[..], 422, r#"{"message": "Invalid request."}"#),
        (&format!("{LOG}?tailLines=x")[..], 400, r#"{"message": "Unable to decode query."}"#),
    ] {
        let (got, said) = bench.get(path).await;
        assert_eq!((got.as_u16(), said.as_str()), (status, text), "{path}");
    }
    let waiting = pod(json!({"waiting": {"reason": "ImagePullBackOff"}}), json!({}));
    *bench.pods.pods.lock().expect("no panic") = vec![waiting];
    let (status, text) = bench.get(LOG).await;
    let expected =
        "container \"app\" in pod \"web\" is waiting to start: trying and failing to pull image";
    assert_eq!((status, text.as_str()), (StatusCode::BAD_REQUEST, expected));
}

#[tokio::test]
async fn a_followed_log_begins_at_once_and_ends_with_its_run_and_not_with_the_next() {
    let bench = with_log().await;
    bench.pods.lines.lock().expect("no panic").insert(1, Vec::new());
    let (more, comes) = mpsc::channel(1);
    *bench.pods.more.lock().expect("no panic") = Some(comes);
    let mut client = bench.connect(None).await;

    let request = super::bench::request("GET", &format!("{LOG}?follow=true"), Some("admin"));
    let mut answer = client.sender.send_request(request).await.expect("a head at once");
    assert_eq!(answer.status(), StatusCode::OK);
    more.send(piece(1, vec![line(40, "d")])).await.expect("followed");
    let frame = answer.body_mut().frame().await.expect("a frame").expect("no error");
    assert_eq!(frame.into_data().expect("data"), "d\n");

    // It ends, and what it wrote last is in its log.
    bench.pods.lines.lock().expect("no panic").insert(1, vec![line(40, "d"), line(50, "e")]);
    let over = pod(
        json!({"terminated": {"exitCode": 0, "containerID": "copepod://u-1/app/1"}}),
        json!({}),
    );
    *bench.pods.pods.lock().expect("no panic") = vec![over];
    let rest = answer.into_body().collect().await.expect("an end").to_bytes();
    assert_eq!(rest, "e\n");
    drop(more);
}

#[tokio::test]
async fn a_follower_that_leaves_ends_the_following() {
    let bench = with_log().await;
    let (more, comes) = mpsc::channel(1);
    *bench.pods.more.lock().expect("no panic") = Some(comes);
    *bench.pods.pods.lock().expect("no panic") = vec![running()];
    let mut client = bench.connect(None).await;
    let request = super::bench::request("GET", &format!("{LOG}?follow=true"), Some("admin"));
    let answer = client.sender.send_request(request).await.expect("a head");

    drop((answer, client));

    // The fake passes on until nobody takes anything any more.
    while more.send(piece(1, vec![line(100, "x")])).await.is_ok() {}
}
