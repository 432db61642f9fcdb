//! Asking others: `wget`, over the host's own `wasi:http`, and `nslookup`, over its resolver.

use std::io;
use std::net::ToSocketAddrs;

use crate::call::{Call, parse, usage};

pub(super) fn nslookup(call: &mut Call<'_>) -> io::Result<u8> {
    let [name, ..] = call.args else { return Err(usage("nslookup needs a name")) };
    let mut addresses: Vec<_> = (name.as_str(), 0)
        .to_socket_addrs()
        .map_err(|error| io::Error::other(format!("{name}: {error}")))?
        .map(|address| address.ip())
        .collect();
    addresses.dedup();
    call.say(format!("Name:      {name}"))?;
    for (number, address) in addresses.iter().enumerate() {
        call.say(format!("Address {}: {address}", number + 1))?;
    }
    Ok(0)
}

pub(super) fn wget(call: &mut Call<'_>) -> io::Result<u8> {
    // Long names of BusyBox's.
    let args: Vec<String> = call
        .args
        .iter()
        .map(|arg| match arg.as_str() {
            "--quiet" => "-q".to_owned(),
            "--spider" => "-s".to_owned(),
            _ => match (arg.strip_prefix("--timeout="), arg.strip_prefix("--post-data=")) {
                (Some(seconds), _) => format!("-T{seconds}"),
                (_, Some(data)) => format!("-P{data}"),
                _ => arg.clone(),
            },
        })
        .collect();
    let options = parse(&args, "qsSO:T:P:U:")?;
    let [url] = &options.rest[..] else { return Err(usage("wget needs one URL")) };
    let url = if url.contains("://") { url.clone() } else { format!("http://{url}") };
    let seconds = options.value('T').map(str::parse::<u64>).transpose();
    let seconds = seconds.map_err(|_| usage("-T takes whole seconds"))?;
    let file = match options.value('O') {
        Some(name) => name.to_owned(),
        None => {
            let path = url.split("://").nth(1).unwrap_or_default();
            let name = path.split(['?', '#']).next().unwrap_or_default();
            let name = name.split_once('/').map_or("", |(_, path)| path);
            let name = name.rsplit('/').next().unwrap_or_default();
            if name.is_empty() { "index.html".to_owned() } else { name.to_owned() }
        }
    };
    let mut answer = asked::ask(&url, options.value('P'), seconds)?;
    if options.has('S') {
        use std::io::Write as _;
        writeln!(call.streams.error, "  HTTP {}", answer.status)?;
    }
    if answer.status >= 400 {
        return Err(io::Error::other(format!("server returned error: HTTP {}", answer.status)));
    }
    if options.has('s') {
        return Ok(0);
    }
    if file == "-" {
        io::copy(&mut answer.body, &mut call.streams.output)?;
    } else if file == "/dev/null" {
        io::copy(&mut answer.body, &mut io::sink())?;
    } else {
        io::copy(&mut answer.body, &mut std::fs::File::create(call.path(&file))?)?;
    }
    Ok(0)
}

/// What came back.
struct Answer {
    status: u16,
    body: Box<dyn io::Read>,
}

#[cfg(target_os = "wasi")]
mod asked {
    use std::io;

    use wasip2::http::outgoing_handler::{self, RequestOptions};
    use wasip2::http::types::{
        Fields, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest, Scheme,
    };
    use wasip2::io::streams::{InputStream, StreamError};

    use super::Answer;
    use crate::call::usage;

    /// Redirects that are followed.
    const HOPS: usize = 5;

    pub(super) fn ask(url: &str, data: Option<&str>, seconds: Option<u64>) -> io::Result<Answer> {
        let mut url = url.to_owned();
        for _ in 0..=HOPS {
            let response = once(&url, data, seconds)?;
            let status = response.status();
            let location = response.headers().get("location");
            if let (300..400, Some(to)) = (status, location.first()) {
                let to = String::from_utf8_lossy(to).into_owned();
                url = if to.contains("://") { to } else { format!("{}{to}", origin(&url)) };
                continue;
            }
            let failed = || io::Error::other("the answer's body cannot be read");
            let body = response.consume().map_err(|()| failed())?;
            let stream = body.stream().map_err(|()| failed())?;
            return Ok(Answer {
                status,
                body: Box::new(Body { stream, _body: body, _response: response }),
            });
        }
        Err(io::Error::other(format!("more than {HOPS} redirects")))
    }

    fn origin(url: &str) -> &str {
        let host = url.find("://").map_or(0, |at| at + 3);
        url[host..].find('/').map_or(url, |at| &url[..host + at])
    }

    fn once(url: &str, data: Option<&str>, seconds: Option<u64>) -> io::Result<IncomingResponse> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(usage(format!("{scheme}: URLs begin with http:// or https://"))),
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let wrong = |()| usage(format!("{url} is no URL"));
        let headers = Fields::new();
        let _ = headers.append("user-agent", b"wget (copepod)");
        let request = OutgoingRequest::new(headers);
        request.set_scheme(Some(&scheme)).map_err(wrong)?;
        request.set_authority(Some(authority)).map_err(wrong)?;
        request.set_path_with_query(Some(&path)).map_err(wrong)?;
        if data.is_some() {
            request.set_method(&Method::Post).map_err(wrong)?;
        }
        let body = request.body().map_err(wrong)?;
        let options = RequestOptions::new();
        if let Some(seconds) = seconds {
            let time = Some(seconds.saturating_mul(1_000_000_000));
            let _ = options.set_connect_timeout(time);
            let _ = options.set_first_byte_timeout(time);
            let _ = options.set_between_bytes_timeout(time);
        }
        let failed =
            |error: &dyn std::fmt::Debug| io::Error::other(format!("{authority}: {error:?}"));
        let pending = outgoing_handler::handle(request, Some(options)).map_err(|it| failed(&it))?;
        if let Some(data) = data {
            let stream = body.write().map_err(wrong)?;
            for piece in data.as_bytes().chunks(4096) {
                stream.blocking_write_and_flush(piece).map_err(|it| failed(&it))?;
            }
        }
        OutgoingBody::finish(body, None).map_err(|it| failed(&it))?;
        pending.subscribe().block();
        match pending.get() {
            Some(Ok(Ok(response))) => Ok(response),
            Some(Ok(Err(error))) => Err(failed(&error)),
            _ => Err(io::Error::other("no answer came")),
        }
    }

    /// Fields are dropped in this order, as each lives in the next.
    struct Body {
        stream: InputStream,
        _body: IncomingBody,
        _response: IncomingResponse,
    }

    impl io::Read for Body {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.stream.blocking_read(buffer.len() as u64) {
                Ok(bytes) => {
                    buffer[..bytes.len()].copy_from_slice(&bytes);
                    Ok(bytes.len())
                }
                Err(StreamError::Closed) => Ok(0),
                Err(StreamError::LastOperationFailed(error)) => {
                    Err(io::Error::other(error.to_debug_string()))
                }
            }
        }
    }
}

#[cfg(not(target_os = "wasi"))]
mod asked {
    use std::io;

    pub(super) fn ask(_: &str, _: Option<&str>, _: Option<u64>) -> io::Result<super::Answer> {
        Err(io::Error::other("there is no wasi:http here"))
    }
}
