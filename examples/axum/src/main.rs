//! An ordinary axum server, compiled for wasm32-wasip2: it binds, accepts and answers through `wasi:sockets`.
//!
//! The port is `PORT`, or 8080.

use std::net::Ipv4Addr;
use std::time::Duration;

use axum::routing::{get, post};
use axum::{Json, Router};

#[derive(serde::Serialize, serde::Deserialize)]
struct Number {
    n: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080);
    let routes = Router::new()
        .route("/", get(async || "hello from axum in wasm\n"))
        .route("/healthz", get(async || "ok\n"))
        .route("/slow", get(slow))
        .route("/increment", post(increment));

    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, routes).await
}

/// Answers late without holding up anybody else's request.
async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_millis(80)).await;
    "slow, but not in the way\n"
}

async fn increment(Json(Number { n }): Json<Number>) -> Json<Number> {
    Json(Number { n: n.saturating_add(1) })
}
