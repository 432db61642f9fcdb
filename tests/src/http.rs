//! A small HTTP/1.1 client: GET over a connection that is kept.
//!
//! Absent: TLS, redirects, bodies of requests.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Far beyond any answer's time.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest head that is read: servers' own limits are of this order.
const MAX_HEAD: u64 = 64 * 1024;

/// An answer, read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The body, decoded where it was chunked.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    /// Whether the server ends the connection behind it.
    pub fn is_last(&self) -> bool {
        self.header("connection").is_some_and(|it| it.eq_ignore_ascii_case("close"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// As [`Connection::get`].
pub fn get(to: SocketAddr, path: &str) -> Result<Response> {
    Connection::open(to)?.get(path)
}

/// A connection that is kept between requests.
pub struct Connection {
    stream: BufReader<TcpStream>,
    host: SocketAddr,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Where nobody listens there.
    pub fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), host: to })
    }

    /// Asks, and reads the whole answer.
    ///
    /// # Errors
    /// Where the connection ends, or what comes is no HTTP.
    pub fn get(&mut self, path: &str) -> Result<Response> {
        write!(self.stream.get_mut(), "GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.host)?;
        let (status, headers) = self.head()?;
        let header =
            |name: &str| headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str());
        let body =
            if header("transfer-encoding").is_some_and(|it| it.eq_ignore_ascii_case("chunked")) {
                self.chunks()?
            } else if let Some(length) = header("content-length") {
                let length =
                    length.parse().map_err(|_| not_http("a content-length that is no number"))?;
                let mut body = Vec::new();
                let read = self.stream.by_ref().take(length).read_to_end(&mut body)?;
                if (read as u64) < length {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                body
            } else {
                let mut body = Vec::new();
                self.stream.read_to_end(&mut body)?;
                body
            };
        Ok(Response { status, headers, body })
    }

    fn head(&mut self) -> Result<(u16, Vec<(String, String)>)> {
        let first = self.line()?;
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| not_http(&first))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((status, headers));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| not_http(&line))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let length = line.split(';').next().unwrap_or_default().trim();
            let length = u64::from_str_radix(length, 16).map_err(|_| not_http(&line))?;
            if length == 0 {
                // Trailers, then the empty line.
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            let read = self.stream.by_ref().take(length).read_to_end(&mut body)?;
            if (read as u64) < length || !self.line()?.is_empty() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        if self.stream.by_ref().take(MAX_HEAD).read_until(b'\n', &mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8(line).map_err(|_| not_http("a head that is no text"))?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

fn not_http(found: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("not HTTP/1.1: {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each line-ended head on one connection with the next of `answers`, then hangs up.
    fn serve(answers: &'static [&'static str]) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut reader = BufReader::new(&stream);
            for answer in answers {
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    line.clear();
                }
                (&stream).write_all(answer.as_bytes()).expect("the client reads");
            }
        });
        address
    }

    #[test]
    fn two_answers_come_over_one_kept_connection() {
        let address = serve(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst",
            "HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n3\r\nsec\r\n3;x=y\r\nond\r\n0\r\n\r\n",
        ]);
        let mut connection = Connection::open(address).expect("it listens");

        let first = connection.get("/").expect("an answer");
        let second = connection.get("/more").expect("an answer");

        assert_eq!((first.status, first.text().as_str()), (200, "first"));
        assert_eq!((second.status, second.text().as_str()), (404, "second"));
    }

    #[test]
    fn a_body_that_ends_early_is_an_error() {
        let address = serve(&["HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfir"]);

        let error = get(address, "/").expect_err("two bytes are missing");

        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
}
