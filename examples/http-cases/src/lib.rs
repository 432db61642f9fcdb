//! An HTTP component that does what its path says, well or badly.
//!
//! It answers gRPC's health check: the service `sick` does not serve, any other does.
//! `/hello /echo /about /count /slow?ms /sleepless?ms /stream?kib /trailers /late?ms /out?url /out-late?url /post?url` behave;
//! `/trap /trap-late /spin /alloc?mib /never /short /unfinished /error /exit?code` do not.

use std::sync::atomic::{AtomicU32, Ordering};

use wasip2::clocks::monotonic_clock;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest,
    OutgoingResponse, RequestOptions, ResponseOutparam, Scheme,
};
use wasip2::io::streams::{InputStream, StreamError};

struct Cases;

wasip2::http::proxy::export!(Cases);

static SERVED: AtomicU32 = AtomicU32::new(0);

impl Guest for Cases {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let served = SERVED.fetch_add(1, Ordering::Relaxed) + 1;
        match path {
            "/hello" => text(out, 200, "hello\n"),
            "/count" => text(out, 200, &format!("{served}\n")),
            "/about" => about(&request, out),
            "/echo" => echo(request, out),
            "/trailers" => trailers(request, out),
            "/slow" => {
                sleep_ms(number(query));
                text(out, 200, "slow\n");
            }
            "/sleepless" => {
                let end = monotonic_clock::now() + number(query) * 1_000_000;
                while monotonic_clock::now() < end {}
                text(out, 200, "awake\n");
            }
            "/stream" => stream(out, number(query)),
            "/late" => {
                text(out, 200, "early\n");
                sleep_ms(number(query));
                println!("late work is done");
            }
            "/out" => call(out, Method::Get, query),
            "/out-late" => call_late(out, query),
            "/post" => call(out, Method::Post, query),
            "/trap" => core::arch::wasm32::unreachable(),
            "/trap-late" => {
                let body = begin(out, 200, &[]);
                let stream = body.write().expect("first write");
                // Enough to be sent before the end comes.
                for _ in 0..32 {
                    stream.blocking_write_and_flush(&[b'x'; 4096]).expect("written");
                }
                core::arch::wasm32::unreachable()
            }
            "/spin" => loop {
                core::hint::black_box(());
            },
            "/alloc" => {
                let mut kept = Vec::new();
                for _ in 0..number(query) {
                    kept.push(vec![1_u8; 1 << 20]);
                }
                text(out, 200, &format!("{} MiB\n", kept.len()));
            }
            "/never" => drop(out),
            "/short" => {
                let body = begin(out, 200, &[("content-length", "10")]);
                let stream = body.write().expect("first write");
                stream.blocking_write_and_flush(b"12345").expect("written");
                drop(stream);
                let _ = OutgoingBody::finish(body, None);
            }
            "/unfinished" => {
                let body = begin(out, 200, &[]);
                let stream = body.write().expect("first write");
                stream.blocking_write_and_flush(b"unfinished\n").expect("written");
                std::mem::forget(stream);
                std::mem::forget(body);
            }
            "/error" => ResponseOutparam::set(out, Err(ErrorCode::ConfigurationError)),
            "/exit" => std::process::exit(number(query) as i32),
            "/grpc.health.v1.Health/Check" => health(&request, out),
            _ => text(out, 404, "no such case\n"),
        }
    }
}

fn number(query: &str) -> u64 {
    query.split_once('=').and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

fn sleep_ms(ms: u64) {
    monotonic_clock::subscribe_duration(ms * 1_000_000).block();
}

fn begin(out: ResponseOutparam, status: u16, headers: &[(&str, &str)]) -> OutgoingBody {
    let fields = Fields::new();
    for (name, value) in headers {
        fields.append(name, value.as_bytes()).expect("an allowed header");
    }
    let response = OutgoingResponse::new(fields);
    response.set_status_code(status).expect("a status");
    let body = response.body().expect("first body");
    ResponseOutparam::set(out, Ok(response));
    body
}

fn text(out: ResponseOutparam, status: u16, text: &str) {
    let body = begin(out, status, &[("content-type", "text/plain")]);
    let stream = body.write().expect("first write");
    for piece in text.as_bytes().chunks(4096) {
        if stream.blocking_write_and_flush(piece).is_err() {
            return;
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

/// The answer to a `HealthCheckRequest`: a frame with the status, and gRPC's own status after it.
fn health(request: &IncomingRequest, out: ResponseOutparam) {
    let asked = request.consume().expect("first use");
    let stream = asked.stream().expect("first use");
    let mut question = Vec::new();
    while let Ok(more) = stream.blocking_read(4096) {
        question.extend(more);
    }
    let status = if question.ends_with(b"sick") { 2 } else { 1 };
    let body = begin(out, 200, &[("content-type", "application/grpc")]);
    let stream = body.write().expect("first write");
    stream.blocking_write_and_flush(&[0, 0, 0, 0, 2, 8, status]).expect("written");
    drop(stream);
    let trailers = Fields::new();
    trailers.append("grpc-status", b"0").expect("an allowed trailer");
    let _ = OutgoingBody::finish(body, Some(trailers));
}

fn about(request: &IncomingRequest, out: ResponseOutparam) {
    let mut lines = vec![
        format!("method {:?}", request.method()),
        format!("scheme {:?}", request.scheme()),
        format!("authority {}", request.authority().unwrap_or_default()),
        format!("target {}", request.path_with_query().unwrap_or_default()),
    ];
    for (name, value) in request.headers().entries() {
        lines.push(format!("header {name}: {}", String::from_utf8_lossy(&value)));
    }
    lines.push(String::new());
    text(out, 200, &lines.join("\n"));
}

fn copy(from: &InputStream, to: &wasip2::io::streams::OutputStream) -> bool {
    loop {
        match from.blocking_read(4096) {
            Ok(bytes) => {
                if to.blocking_write_and_flush(&bytes).is_err() {
                    return false;
                }
            }
            Err(StreamError::Closed) => return true,
            Err(StreamError::LastOperationFailed(_)) => return false,
        }
    }
}

fn echo(request: IncomingRequest, out: ResponseOutparam) {
    let from = request.consume().expect("first consume");
    let body = begin(out, 200, &[]);
    let to = body.write().expect("first write");
    let input = from.stream().expect("first stream");
    if copy(&input, &to) {
        drop(to);
        let _ = OutgoingBody::finish(body, None);
    }
}

fn trailers(request: IncomingRequest, out: ResponseOutparam) {
    let from = request.consume().expect("first consume");
    let input = from.stream().expect("first stream");
    while input.blocking_read(4096).is_ok() {}
    drop(input);
    let future = IncomingBody::finish(from);
    future.subscribe().block();
    let came = future.get().and_then(Result::ok).and_then(Result::ok).flatten();
    let body = begin(out, 200, &[("trailer", "x-seen")]);
    let to = body.write().expect("first write");
    to.blocking_write_and_flush(b"with trailers\n").expect("written");
    drop(to);
    let fields = Fields::new();
    let seen = came.map_or(0, |fields| fields.entries().len());
    fields.append("x-seen", seen.to_string().as_bytes()).expect("an allowed trailer");
    let _ = OutgoingBody::finish(body, Some(fields));
}

fn stream(out: ResponseOutparam, kib: u64) {
    let body = begin(out, 200, &[]);
    let to = body.write().expect("first write");
    for _ in 0..kib.div_ceil(4) {
        if to.blocking_write_and_flush(&[b's'; 4096]).is_err() {
            eprintln!("the reader is gone");
            return;
        }
    }
    drop(to);
    let _ = OutgoingBody::finish(body, None);
}

/// A GET to `url=http://host:port/path` whose empty body is flushed and finished only after its response has come.
fn call_late(out: ResponseOutparam, query: &str) {
    let url = query.strip_prefix("url=http://").unwrap_or_default();
    let (authority, path) = url.split_at(url.find('/').unwrap_or(url.len()));
    let fields = Fields::new();
    fields.append("content-length", b"0").expect("an allowed header");
    let request = OutgoingRequest::new(fields);
    request.set_authority(Some(authority)).expect("an authority");
    request.set_path_with_query(Some(path)).expect("a path");
    let body = request.body().expect("first body");
    let to = body.write().expect("first write");
    let future = outgoing_handler::handle(request, None).expect("sent");
    future.subscribe().block();
    let flushed = to.blocking_flush();
    drop(to);
    let finished = OutgoingBody::finish(body, None);
    text(out, 200, &format!("{flushed:?} {finished:?}\n"));
}

/// `url=http://host:port/path`, with `&wait=ms` for both timeouts.
fn call(out: ResponseOutparam, method: Method, query: &str) {
    let mut url = "";
    let mut wait = None;
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("url", value)) => url = value,
            Some(("wait", value)) => wait = value.parse::<u64>().ok(),
            _ => {}
        }
    }
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let request = OutgoingRequest::new(Fields::new());
    let posts = matches!(method, Method::Post);
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let set = request.set_method(&method).is_ok()
        && request.set_scheme(Some(&scheme)).is_ok()
        && request.set_authority(Some(authority)).is_ok()
        && request.set_path_with_query(Some(path)).is_ok();
    if !set {
        return text(out, 502, "refused by the types\n");
    }
    let options = wait.map(|ms| {
        let options = RequestOptions::new();
        options.set_connect_timeout(Some(ms * 1_000_000)).expect("supported");
        options.set_first_byte_timeout(Some(ms * 1_000_000)).expect("supported");
        options
    });
    let body = posts.then(|| request.body().expect("first body"));
    let future = match outgoing_handler::handle(request, options) {
        Ok(future) => future,
        Err(code) => return text(out, 502, &format!("{code:?}\n")),
    };
    if let Some(body) = body {
        let to = body.write().expect("first write");
        for _ in 0..64 {
            if to.blocking_write_and_flush(&[b'p'; 4096]).is_err() {
                break;
            }
        }
        drop(to);
        let _ = OutgoingBody::finish(body, None);
    }
    future.subscribe().block();
    let response = match future.get() {
        Some(Ok(Ok(response))) => response,
        Some(Ok(Err(code))) => return text(out, 502, &format!("{code:?}\n")),
        _ => return text(out, 502, "no answer\n"),
    };
    let status = response.status();
    let from = response.consume().expect("first consume");
    let input = from.stream().expect("first stream");
    let body = begin(out, status, &[]);
    let to = body.write().expect("first write");
    if copy(&input, &to) {
        drop(to);
        let _ = OutgoingBody::finish(body, None);
    }
}
