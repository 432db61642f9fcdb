//! The shapes of what the server answers.

use std::convert::Infallible;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::Stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

/// What the server answers a request with.
pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A status with a sentence.
pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    whole(status, "text/plain; charset=utf-8", text.into())
}

/// A JSON document.
pub(crate) fn json(text: impl Into<Bytes>) -> Answer {
    whole(StatusCode::OK, "application/json", text)
}

/// All of it at once.
pub(crate) fn whole(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// As it comes.
pub(crate) fn stream<S>(kind: &'static str, pieces: S) -> Answer
where
    S: Stream<Item = Bytes> + Send + 'static,
{
    let frames = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// A switch to another protocol.
pub(crate) fn switching(protocol: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::new()).boxed_unsync());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    answer
}
