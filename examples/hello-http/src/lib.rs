//! The smallest HTTP component: every request gets one line, and each may be served by a fresh instance.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Hello;

wasip2::http::proxy::export!(Hello);

impl Guest for Hello {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("a new response still has its body");
        ResponseOutparam::set(out, Ok(response));

        let stream = body.write().expect("a new body still has its stream");
        // A client that hung up is not this program's trouble: there is nobody left to tell.
        let _ = stream.blocking_write_and_flush(b"hello from copepod\n");
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}
