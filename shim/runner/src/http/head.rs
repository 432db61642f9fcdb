//! Judges a request's head before a guest sees it: one authority, a path, no tunnel.
//!
//! Pure. What hyper's parser refuses already (bad lengths, `transfer-encoding` that does not end in `chunked`, bare
//! line feeds in names, too many or too large headers) is not looked at again.

use std::net::SocketAddr;

use http::header::{HOST, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, StatusCode, Version};

/// Why a request is answered without asking the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The answer's status.
    pub(crate) status: StatusCode,
    /// The answer's body.
    pub(crate) why: &'static str,
}

impl Refusal {
    const fn bad(why: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, why }
    }
}

/// Sees to it that exactly one authority can be read from the head, and that there is a path.
///
/// An HTTP/1.0 request need not name a host: it is given `local`, the address that it came in by.
pub(crate) fn judge<B>(request: &mut Request<B>, local: SocketAddr) -> Result<(), Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal {
            status: StatusCode::NOT_IMPLEMENTED,
            why: "CONNECT is not served here\n",
        });
    }
    let asterisk = request.method() == Method::OPTIONS && request.uri().path() == "*";
    if !asterisk && !request.uri().path().starts_with('/') {
        return Err(Refusal::bad("the request target is no path\n"));
    }

    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::bad("more than one Host\n"));
    }
    let of_target = request.uri().authority();
    if of_target.is_some_and(has_user) {
        return Err(Refusal::bad("the request target names a user\n"));
    }
    match (host, of_target) {
        (Some(host), None) => {
            authority(host).ok_or(Refusal::bad("the Host is no authority\n"))?;
        }
        (Some(host), Some(of_target)) => {
            let host = authority(host).ok_or(Refusal::bad("the Host is no authority\n"))?;
            // `Authority` compares without regard to case.
            if host != *of_target {
                return Err(Refusal::bad("the Host is not the request target's\n"));
            }
        }
        (None, Some(_)) => {}
        (None, None) if request.version() == Version::HTTP_10 => {
            let value = HeaderValue::try_from(local.to_string())
                .expect("a socket address prints as visible ASCII");
            request.headers_mut().insert(HOST, value);
        }
        (None, None) => return Err(Refusal::bad("no Host\n")),
    }
    Ok(())
}

fn authority(host: &HeaderValue) -> Option<Authority> {
    let authority = Authority::try_from(host.as_bytes()).ok()?;
    (!has_user(&authority)).then_some(authority)
}

fn has_user(authority: &Authority) -> bool {
    authority.as_str().contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "10.64.0.7:8080";

    fn judged(request: http::request::Builder) -> (Result<(), Refusal>, Request<()>) {
        let mut request = request.body(()).expect("a valid request");
        let verdict = judge(&mut request, LOCAL.parse().expect("an address"));
        (verdict, request)
    }

    fn status(request: http::request::Builder) -> Option<u16> {
        judged(request).0.err().map(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn an_ordinary_request_passes_unchanged() {
        let request = Request::get("/a?b=c").header(HOST, "shop.example:8080");

        let (verdict, request) = judged(request);

        assert_eq!(verdict, Ok(()));
        assert_eq!(request.headers()[HOST], "shop.example:8080");
    }

    #[test]
    fn an_absolute_target_passes_where_host_says_the_same_in_any_case() {
        assert_eq!(
            status(Request::get("http://Shop.example/a").header(HOST, "shop.Example")),
            None
        );
        assert_eq!(status(Request::get("http://shop.example/a")), None);
    }

    #[test]
    fn an_absolute_target_of_another_host_is_refused() {
        let spoofed = Request::get("http://other.example/").header(HOST, "shop.example");

        assert_eq!(status(spoofed), Some(400));
    }

    #[test]
    fn two_hosts_are_refused_even_where_they_are_equal() {
        let twice = Request::get("/").header(HOST, "a").header(HOST, "a");

        assert_eq!(status(twice), Some(400));
    }

    #[test]
    fn a_host_that_is_no_authority_is_refused() {
        for host in ["", "a b", "user@a", "a/b", "a:b:c"] {
            assert_eq!(status(Request::get("/").header(HOST, host)), Some(400), "{host:?}");
        }
    }

    #[test]
    fn a_target_with_a_user_is_refused() {
        assert_eq!(status(Request::get("http://user@a/")), Some(400));
    }

    #[test]
    fn no_host_is_refused_in_http_1_1_and_filled_in_for_http_1_0() {
        assert_eq!(status(Request::get("/").version(Version::HTTP_11)), Some(400));

        let (verdict, request) = judged(Request::get("/").version(Version::HTTP_10));

        assert_eq!(verdict, Ok(()));
        assert_eq!(request.headers()[HOST], LOCAL);
    }

    #[test]
    fn a_tunnel_is_not_served() {
        let connect = Request::builder().method("CONNECT").uri("other.example:443");

        assert_eq!(status(connect), Some(501));
    }

    #[test]
    fn an_asterisk_is_a_target_of_options_only() {
        assert_eq!(status(Request::options("*").header(HOST, "a")), None);
        assert_eq!(status(Request::get("*").header(HOST, "a")), Some(400));
    }
}
