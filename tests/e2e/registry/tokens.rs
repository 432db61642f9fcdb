//! A login server as `docker-registry` wants it: tokens are JWTs, signed with ES256 by a key whose certificate they carry.
//!
//! Absent: TLS, as it is on loopback; users beside one.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use serde_json::{Value, json};

use super::Authority;

/// A server that answers until the test program ends.
pub(super) struct Server {
    address: SocketAddr,
}

/// What signs the tokens, and who gets one.
struct Tokens {
    key: KeyPair,
    certificate: Vec<u8>,
    authorization: String,
}

impl Server {
    pub(super) fn start(authority: &Authority, user: &str, password: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["tokens".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &authority.issuer).expect("signed");
        let login = STANDARD.encode(format!("{user}:{password}"));
        let tokens = Arc::new(Tokens {
            key,
            certificate: certificate.der().to_vec(),
            authorization: format!("basic {login}"),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up has seen enough.
                let _ = tokens.answer(&stream);
            }
        });
        Self { address }
    }

    pub(super) fn realm(&self) -> String {
        format!("http://localhost:{}/token", self.address.port())
    }
}

impl Tokens {
    fn answer(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().unwrap_or(Ok(String::new()))?;
        let mut authorization = None;
        for line in lines {
            let line = line?;
            match line.split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                    authorization = Some(value.replacen("Basic", "basic", 1));
                }
                Some(_) => {}
                None => break,
            }
        }
        let known = authorization.as_ref() == Some(&self.authorization);
        let (status, body) = match authorization.is_some() && !known {
            true => ("401 Unauthorized", json!({})),
            // Who has no login gets a token for nothing.
            false => ("200 OK", json!({ "token": self.token(known.then_some(&first)) })),
        };
        let body = body.to_string();
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    /// A token for what the request's `scope` asks for.
    fn token(&self, request: Option<&String>) -> String {
        let query = request.and_then(|line| line.split(' ').nth(1)?.split_once('?'));
        let scopes = query.into_iter().flat_map(|(_, query)| query.split('&'));
        let scope = |pair: &str| {
            let scope = pair.strip_prefix("scope=")?.replace("%3A", ":").replace("%2F", "/");
            let mut parts =
                scope.replace("%2C", ",").split(':').map(str::to_owned).collect::<Vec<_>>();
            let (actions, name) = (parts.pop()?, parts.pop()?);
            let actions: Vec<&str> = actions.split(',').collect();
            Some(json!({ "type": "repository", "name": name, "actions": actions }))
        };
        let access: Vec<Value> = scopes.filter_map(scope).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let header =
            json!({ "typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate)] });
        let claims = json!({
            "iss": "test", "sub": "me", "aud": "test", "jti": now.to_string(), "access": access,
            "exp": now + 300, "nbf": now - 10, "iat": now,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(signed.as_bytes()).expect("signed");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(both_numbers(&signature)))
    }
}

/// An ECDSA signature's two numbers, of 32 bytes each, out of their ASN.1.
fn both_numbers(asn1: &[u8]) -> Vec<u8> {
    // SEQUENCE, its length; then twice INTEGER, its length, its bytes.
    let mut rest = &asn1[2..];
    let mut numbers = Vec::new();
    while let [_, length, after @ ..] = rest {
        let (number, after) = after.split_at(usize::from(*length));
        let digits = &number[number.len().saturating_sub(32)..];
        numbers.extend(std::iter::repeat_n(0, 32 - digits.len()).chain(digits.iter().copied()));
        rest = after;
    }
    numbers
}
