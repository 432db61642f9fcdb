//! An API server for tests: a function answers, and what it was asked is kept.
//!
//! Absent: objects that stay, watches, and every rule of a real one, which the end-to-end tests ask.

use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    /// `POST`.
    pub(crate) method: String,
    /// The path, without what stands after `?`.
    pub(crate) path: String,
    /// The body; null where there is none.
    pub(crate) body: Value,
}

/// What it was asked, in order.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Asked>>>);

impl Log {
    /// All requests so far.
    pub(crate) fn all(&self) -> Vec<Asked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `POST /api/v1/nodes` and so on.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.all().iter().map(|it| format!("{} {}", it.method, it.path)).collect()
    }
}

/// A client of such a server. To be called within a runtime.
pub(crate) fn api(
    answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static,
) -> (Client, Log) {
    let (log, answer) = (Log::default(), Arc::new(answer));
    let kept = log.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (log, answer) = (kept.clone(), answer.clone());
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await?;
            let asked = Asked {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                body: serde_json::from_slice(&bytes).unwrap_or_default(),
            };
            let (code, body) = answer(&asked);
            log.0.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
            let body = Body::from(body.to_string().into_bytes());
            let response = Response::builder().status(code).body(body);
            response.map_err(kube::Error::HttpError)
        }
    });
    (Client::new(service, "default"), log)
}

/// A refusal.
pub(crate) fn refusal(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": reason,
    });
    (code, status)
}
