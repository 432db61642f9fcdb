//! Who gets in, and to what.

use super::bench::{AUTHORITIES, Authority, Bench};
use http::StatusCode;

/// Every kind of route, the method that it is asked by, and the right that suffices.
const ROUTES: &[(&str, &str, &str, &str)] = &[
    ("GET", "/healthz", "get", "healthz"),
    ("GET", "/healthz/syncloop", "get", "healthz"),
    ("GET", "/pods", "get", "pods"),
    ("GET", "/runningpods/", "get", "pods"),
    ("GET", "/configz", "get", "configz"),
    ("GET", "/stats/summary", "get", "stats"),
    ("POST", "/stats/summary", "create", "stats"),
    ("GET", "/metrics", "get", "metrics"),
    ("GET", "/metrics/resource", "get", "metrics"),
    ("GET", "/metrics/probes", "get", "metrics"),
    ("GET", "/metrics/cadvisor", "get", "metrics"),
    ("GET", "/containerLogs/default/web/app", "get", "proxy"),
    ("GET", "/exec/default/web/app?command=x&output=1", "create", "proxy"),
    ("POST", "/exec/default/web/app?command=x&output=1", "create", "proxy"),
    ("GET", "/exec/default/web/u-1/app?command=x&output=1", "create", "proxy"),
    ("GET", "/attach/default/web/app?output=1", "create", "proxy"),
    ("POST", "/attach/default/web/app?output=1", "create", "proxy"),
    ("GET", "/portForward/default/web", "create", "proxy"),
    ("POST", "/portForward/default/web", "create", "proxy"),
    ("POST", "/run/default/web/app?cmd=x", "create", "proxy"),
    ("GET", "/run/default/web/app?cmd=x", "create", "proxy"),
    ("GET", "/logs/", "get", "log"),
    ("POST", "/checkpoint/default/web/app", "create", "checkpoint"),
    ("GET", "/debug/pprof/heap", "get", "proxy"),
    ("GET", "/nowhere", "get", "proxy"),
    ("PUT", "/pods", "update", "pods"),
    ("DELETE", "/pods", "delete", "pods"),
    ("PATCH", "/containerLogs/default/web/app", "patch", "proxy"),
];

/// Whether a request got past both questions: what then comes may be any other answer.
fn is_in(status: StatusCode) -> bool {
    status != StatusCode::UNAUTHORIZED && status != StatusCode::FORBIDDEN
}

#[tokio::test]
async fn who_is_not_known_is_let_in_nowhere() {
    let bench = Bench::new().await;
    let expired = bench.cluster.client("admin", "system:masters", |params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let foreign = Authority::new("another").client("admin", "system:masters", |_| {});
    let no_client = bench.cluster.server();

    for (method, path, ..) in ROUTES {
        for identity in [None, Some(&expired), Some(&foreign), Some(&no_client)] {
            let mut client = bench.connect(identity).await;
            let (status, text) = client.send(method, path, None).await;
            assert_eq!(
                (status, text.as_str()),
                (StatusCode::UNAUTHORIZED, "Unauthorized"),
                "{path}"
            );
        }
        let mut client = bench.connect(None).await;
        let (status, _) = client.send(method, path, Some("of another audience")).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
}

#[tokio::test]
async fn who_is_known_is_let_in_where_the_right_is_given_and_nowhere_else() {
    let bench = Bench::new().await;
    bench.reviews.token("nobody", "nobody");
    let nobody = bench.cluster.client("nobody", "system:nodes", |_| {});

    for (number, (method, path, verb, subresource)) in ROUTES.iter().enumerate() {
        let mut client = bench.connect(Some(&nobody)).await;
        let (status, text) = client.send(method, path, None).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path} by certificate: {text}");
        assert!(text.starts_with("Forbidden (user=nobody, verb="), "{text}");
        let mut client = bench.connect(None).await;
        let (status, _) = client.send(method, path, Some("nobody")).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path} by token");

        let name = format!("user-{number}");
        bench.reviews.token(&name, &name);
        bench.reviews.allow(&name, verb, subresource);
        let by_certificate = bench.cluster.client(&name, "x", |_| {});
        let mut client = bench.connect(Some(&by_certificate)).await;
        let (status, text) = client.send(method, path, None).await;
        assert!(is_in(status), "{method} {path} by certificate: {status} {text}");
        let mut client = bench.connect(None).await;
        let (status, text) = client.send(method, path, Some(&name)).await;
        assert!(is_in(status), "{method} {path} by token: {status} {text}");
    }
}

#[tokio::test]
async fn the_right_to_look_is_no_right_to_run() {
    let bench = Bench::new().await;
    bench.reviews.token("monitor", "monitor");
    for subresource in ["proxy", "metrics", "stats", "pods", "log", "healthz"] {
        bench.reviews.allow("monitor", "get", subresource);
    }

    for path in [
        "/exec/default/web/app?command=x&output=1",
        "/attach/default/web/app?output=1",
        "/portForward/default/web?port=80",
        "/run/default/web/app?cmd=x",
        "/%65xec/default/web/app?command=x&output=1",
    ] {
        let mut client = bench.connect(None).await;
        let mut request = super::bench::request("GET", path, Some("monitor"));
        let headers = request.headers_mut();
        for (name, value) in [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            headers.insert(name, value.parse().expect("a value"));
        }
        let answer = client.sender.send_request(request).await.expect("answered");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(bench.pods.execs.lock().expect("no panic").len(), 0);
    let mut client = bench.connect(None).await;
    let (status, _) = client.send("GET", "/containerLogs/default/web/app", Some("monitor")).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn without_an_api_server_a_stranger_is_unknown_and_a_known_one_gets_an_error() {
    let bench = Bench::new().await;
    let known = bench.cluster.client("known", "x", |_| {});
    *bench.reviews.down.lock().expect("no panic") = true;

    let (status, _) = bench.connect(None).await.send("GET", "/pods", Some("admin")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let (status, _) = bench.connect(Some(&known)).await.send("GET", "/pods", None).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn another_serving_certificate_and_other_authorities_are_taken_without_a_restart() {
    let bench = Bench::new().await;
    bench.reviews.allow("later", "get", "healthz");
    let others = Authority::new("later");
    let later = others.client("later", "x", |_| {});
    let shown = async || {
        let stream = bench.tls(None).await.expect("a handshake");
        stream.get_ref().1.peer_certificates().expect("one")[0].clone().into_owned()
    };
    let before = shown().await;
    let (status, _) = bench.connect(Some(&later)).await.send("GET", "/healthz", None).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);

    let next = bench.cluster.server();
    bench.serving.send(next.certified()).expect("it is used");
    let both = bench.cluster.pem() + &others.pem();
    std::fs::write(bench.data.path().join(AUTHORITIES), both).expect("written");

    assert_eq!(shown().await, next.certificate);
    assert_ne!(before, next.certificate);
    let mut client = bench.connect(Some(&later)).await;
    // The file is looked at once in a second.
    while client.send("GET", "/healthz", None).await.0 == StatusCode::UNAUTHORIZED {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (status, text) = client.send("GET", "/healthz", None).await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "ok"));
}

#[tokio::test]
async fn a_certificate_and_a_token_are_both_tried() {
    let bench = Bench::new().await;
    let foreign = Authority::new("another").client("x", "y", |_| {});

    let mut client = bench.connect(Some(&foreign)).await;

    let (status, _) = client.send("GET", "/pods", Some("admin")).await;
    assert_eq!(status, StatusCode::OK);
}
