//! The body of an outgoing request, between the guest that writes it and hyper that sends it.
//!
//! hyper lets go of a body the moment it needs no more of it: after the last byte that `content-length` promised, and at once
//! where it takes a request for one without a body (a GET that says nothing of a length). A guest's end of the body would
//! break then, often before the guest has flushed or finished it, and a request that was sent well would be told as failed.
//! So the end stays open here until the guest has closed it too. Absent: connections and responses ([`super::outgoing`]).

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request};
use http_body::{Body, Frame, SizeHint};
use wasmtime_wasi_http::{Error, WasiBody};

use crate::ledger::{Charge, Ledger};

use super::outgoing::{BODY_COST, no_memory};

/// How long a GET or HEAD waits to learn whether it has a body. Guests write or finish theirs right after they have handed the
/// request over; who takes longer is not held up for good.
const MAKE_UP_ITS_MIND: Duration = Duration::from_millis(100);

/// A request's body on its way out.
pub(crate) struct Upload {
    /// None once it has ended.
    body: Option<WasiBody>,
    /// What was read ahead, to learn whether there is a body.
    first: Option<Frame<Bytes>>,
    /// Data bytes still to be passed on; none where nothing says how many there are.
    owed: Option<u64>,
    /// What the guest's chunks are charged, where there may be some.
    _held: Option<Charge>,
}

impl Upload {
    /// Makes the body of `request` one that hyper can send as it is meant: a GET or HEAD with a body says so in its head, which
    /// hyper would not do by itself.
    ///
    /// # Errors
    /// The guest broke its body off, or its container has no memory left for it.
    pub(crate) async fn of(
        request: Request<WasiBody>,
        ledger: &Arc<Ledger>,
    ) -> Result<Request<Self>, Error> {
        let (mut head, body) = request.into_parts();
        let declared = head.headers.get(CONTENT_LENGTH);
        let declared = declared.and_then(|length| length.to_str().ok()?.parse().ok());
        let mut upload = Self { body: Some(body), first: None, owed: declared, _held: None };
        let seldom_has_one = matches!(head.method, Method::GET | Method::HEAD);
        if declared.is_none() && seldom_has_one && upload.may_hold_something().await? {
            head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if !upload.is_end_stream() && declared != Some(0) {
            upload._held = Some(ledger.reserve(BODY_COST).ok_or_else(|| no_memory(ledger))?);
        }
        Ok(Request::from_parts(head, upload))
    }

    /// Whether anything is to be sent, as far as can be told in time.
    async fn may_hold_something(&mut self) -> Result<bool, Error> {
        if self.is_end_stream() {
            self.body = None;
            return Ok(false);
        }
        let first = poll_fn(|context| Pin::new(&mut *self).poll_frame(context));
        match tokio::time::timeout(MAKE_UP_ITS_MIND, first).await {
            Ok(Some(Ok(frame))) => {
                self.first = Some(frame);
                Ok(true)
            }
            Ok(Some(Err(error))) => Err(error),
            Ok(None) => Ok(false),
            // It may come yet, and must not be lost.
            Err(_) => Ok(true),
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if let Some(frame) = this.first.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(owed), Some(data)) = (&mut this.owed, frame.data_ref()) {
                    *owed = owed.saturating_sub(data.len() as u64);
                }
            }
            Poll::Ready(Some(Err(_)) | None) => this.body = None,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.first, &self.body) {
            (None, Some(body)) => body.size_hint(),
            (None, None) => SizeHint::with_exact(0),
            (Some(_), _) => SizeHint::default(),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // One that still owes bytes was given up, and the guest is to hear of it.
        if self.owed == Some(0)
            && let Some(body) = self.body.take()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            tokio::spawn(see_off(body));
        }
    }
}

/// Keeps the guest's end open until the guest closes it, which it does with its store at the latest, or writes more than it promised.
async fn see_off(mut body: WasiBody) {
    while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if frame.data_ref().is_none_or(|data| !data.is_empty()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::client::conn::http1::{self, SendRequest};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::sync::mpsc;

    use super::*;

    /// The guest's end of a body: it sees whether anybody still takes what it writes.
    type GuestsEnd = mpsc::Sender<Bytes>;

    fn body() -> (GuestsEnd, WasiBody) {
        let (end, chunks) = mpsc::channel(4);
        let frames = futures::stream::unfold(chunks, |mut chunks| async {
            let chunk: Bytes = chunks.recv().await?;
            Some((Ok::<_, Error>(Frame::data(chunk)), chunks))
        });
        (end, StreamBody::new(frames).boxed_unsync())
    }

    async fn connected() -> (SendRequest<Upload>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (sender, connection) = http1::handshake(TokioIo::new(ours)).await.expect("a handshake");
        tokio::spawn(connection);
        (sender, theirs)
    }

    async fn upload(request: Request<WasiBody>) -> Request<Upload> {
        Upload::of(request, &Ledger::new(BODY_COST)).await.expect("whole")
    }

    /// What the server reads of a request, which it answers as soon as the last of it, `until`, is there.
    async fn answered(server: &mut DuplexStream, until: &str) -> String {
        let mut seen = Vec::new();
        while !seen.ends_with(until.as_bytes()) {
            assert_ne!(server.read_buf(&mut seen).await.expect("read"), 0, "the client is gone");
        }
        server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("written");
        String::from_utf8(seen).expect("text")
    }

    /// Sends a request whose guest closes its end only after the response is there; whether the end was open until then.
    async fn closed_late(request: http::request::Builder, chunk: &'static str) -> (String, bool) {
        let (end, body) = body();
        if !chunk.is_empty() {
            end.send(Bytes::from_static(chunk.as_bytes())).await.expect("taken");
        }
        let upload = upload(request.body(body).expect("a request")).await;
        let (mut sender, mut server) = connected().await;
        let until = if chunk.is_empty() { "\r\n\r\n" } else { chunk };

        let (response, seen) =
            tokio::join!(sender.send_request(upload), answered(&mut server, until));
        response.expect("a response");
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
        (seen, !end.is_closed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_may_close_an_empty_body_after_the_response_has_come() {
        let (seen, open) = closed_late(Request::get("/").header("content-length", "0"), "").await;

        assert!(open, "the guest's flush would fail");
        assert!(!seen.contains("chunked"), "{seen}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_may_close_its_body_after_the_last_byte_that_it_promised_is_sent() {
        let request = Request::post("/").header("content-length", "4");

        let (_, open) = closed_late(request, "body").await;

        assert!(open, "the guest's flush would fail");
    }

    #[tokio::test(start_paused = true)]
    async fn a_get_that_never_says_whether_it_has_a_body_is_sent_nevertheless() {
        let (seen, open) = closed_late(Request::get("/"), "").await;

        assert!(open, "the guest's flush would fail");
        assert!(seen.contains("transfer-encoding: chunked"), "{seen}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_get_whose_body_is_finished_at_once_is_sent_without_one() {
        let (end, body) = body();
        drop(end);

        let request = Request::get("/").body(body).expect("a request");
        let request = upload(request).await;

        assert!(request.body().is_end_stream());
        assert!(!request.headers().contains_key(TRANSFER_ENCODING));
    }

    #[tokio::test(start_paused = true)]
    async fn the_body_of_a_get_arrives() {
        let (end, body) = body();
        end.send(Bytes::from_static(b"query")).await.expect("taken");
        drop(end);
        let request = Request::get("/").body(body).expect("a request");
        let (mut sender, mut server) = connected().await;

        let request = upload(request).await;
        let sending = sender.send_request(request);
        let (response, seen) = tokio::join!(sending, answered(&mut server, "0\r\n\r\n"));

        response.expect("a response");
        assert!(seen.contains("query"), "{seen}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_charged_while_it_is_on_its_way_and_refused_where_it_does_not_fit() {
        let ledger = Ledger::new(BODY_COST);
        let post = || {
            let (end, body) = body();
            (end, Request::post("/").body(body).expect("a request"))
        };
        let (_end, request) = post();
        let sent = Upload::of(request, &ledger).await.expect("fits");
        let (_end, request) = post();

        let refused = Upload::of(request, &ledger).await.err();

        assert!(matches!(refused, Some(Error::InternalError(Some(why))) if why.contains("memory")));
        assert_eq!((ledger.used(), ledger.exceeded()), (BODY_COST, false));
        drop(sent);
        assert_eq!(ledger.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_hears_of_a_connection_that_broke_before_its_body_was_sent() {
        let (end, body) = body();
        let request = Request::post("/").header("content-length", "4").body(body);
        let request = upload(request.expect("a request")).await;
        let (mut sender, server) = connected().await;

        drop(server);
        sender.send_request(request).await.expect_err("nobody is there");

        assert!(end.is_closed());
    }
}
