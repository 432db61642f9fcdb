//! An ordinary axum server. Compiled for wasm32-wasip2 it binds a socket by itself, through `wasi:sockets`, at the port `PORT`, or
//! 8080. Compiled for wasm32-wasip1, which has no call for that, it serves on the socket of its container's first declared port, which
//! it is given.

use std::time::Duration;

use axum::routing::{get, post};
use axum::{Json, Router};

#[derive(serde::Serialize, serde::Deserialize)]
struct Number {
    n: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let routes = Router::new()
        .route("/", get(async || "hello from axum in wasm\n"))
        .route("/healthz", get(async || "ok\n"))
        .route("/slow", get(slow))
        .route("/increment", post(increment));

    axum::serve(listener().await?, routes).await
}

#[cfg(not(target_env = "p1"))]
async fn listener() -> std::io::Result<tokio::net::TcpListener> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080);
    let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(listener)
}

/// The first of `COPEPOD_LISTEN_FDS`, which is `name=number,name=number`.
#[cfg(target_env = "p1")]
async fn listener() -> std::io::Result<tokio::net::TcpListener> {
    use std::os::fd::FromRawFd;

    let given = std::env::var("COPEPOD_LISTEN_FDS").unwrap_or_default();
    let first = given.split(',').next().and_then(|one| one.rsplit_once('=')?.1.parse().ok());
    let number = first.ok_or_else(|| {
        std::io::Error::other("no socket was given: declare a port of the container")
    })?;
    // SAFETY: the number is of a socket that nobody else in this program uses.
    let listener = unsafe { std::net::TcpListener::from_raw_fd(number) };
    listener.set_nonblocking(true)?;
    println!("serving on descriptor {number}");
    tokio::net::TcpListener::from_std(listener)
}

/// Answers late without holding up anybody else's request.
async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_millis(80)).await;
    "slow, but not in the way\n"
}

async fn increment(Json(Number { n }): Json<Number>) -> Json<Number> {
    Json(Number { n: n.saturating_add(1) })
}
