//! Connections to the API server that follow the node's credentials: whoever holds a [`Client`] goes on with it when they change.
//!
//! Start at [`Connection`]. Absent: whose credentials they are ([`crate::identity`]), and when they change ([`crate::rotation`]).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, header};
use kube::Client;
use kube::client::Body;

use crate::server::metrics::{API_REQUESTS, Metrics};

/// The API server, as this node. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct Connection {
    current: Arc<Mutex<Current>>,
    /// Where requests are counted.
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Current {
    /// Counts the credentials, so that a client sees that its own are old.
    version: u64,
    config: kube::Config,
}

/// What a client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Watches and streams, which may be silent for long.
    Streams,
    /// Requests that are answered at once, else given up after this time.
    Requests(Duration),
}

impl Connection {
    /// With these credentials, for now. Nothing is connected yet.
    pub fn new(mut config: kube::Config) -> Self {
        introduce(&mut config);
        let current = Arc::new(Mutex::new(Current { version: 0, config }));
        Self { current, metrics: Arc::default() }
    }

    /// The figures in which all requests are counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Other credentials; every client goes on with new connections. What is under way ends on the old ones.
    pub fn replace(&self, mut config: kube::Config) {
        introduce(&mut config);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.version += 1;
        current.config = config;
    }

    /// The API server's address.
    pub fn server(&self) -> http::Uri {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).config.cluster_url.clone()
    }

    /// A client with connections of its own, which belong to the runtime that this is called in.
    ///
    /// # Errors
    /// The credentials cannot be used: a key that is not the certificate's, say.
    pub fn client(&self, purpose: Use) -> Result<Client, kube::Error> {
        let first = self.build(purpose)?;
        let (connection, held) = (self.clone(), Arc::new(Mutex::new(first)));
        let server = self.server();
        let host: Arc<str> = server.authority().map_or("", |it| it.as_str()).into();
        let service = tower::service_fn(move |request: Request<Body>| {
            let client = connection.newest(&held, purpose);
            let (method, host) = (request.method().clone(), host.clone());
            let metrics = connection.metrics.clone();
            async move {
                let answer = client?.send(request).await;
                let code =
                    answer.as_ref().map_or("<error>".into(), |it| it.status().as_str().to_owned());
                let labels = [("code", &*code), ("host", &*host), ("method", method.as_str())];
                metrics.add(&API_REQUESTS, &labels, 1.0);
                answer
            }
        });
        Ok(Client::new(service, "default"))
    }

    /// The client of the newest credentials.
    fn newest(&self, held: &Mutex<(u64, Client)>, purpose: Use) -> Result<Client, kube::Error> {
        let version = self.current.lock().unwrap_or_else(PoisonError::into_inner).version;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 != version {
            *held = self.build(purpose)?;
        }
        Ok(held.1.clone())
    }

    fn build(&self, purpose: Use) -> Result<(u64, Client), kube::Error> {
        let (version, mut config) = {
            let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            (current.version, current.config.clone())
        };
        config.connect_timeout = Some(CONNECT);
        if let Use::Requests(patience) = purpose {
            config.read_timeout = Some(patience);
            config.reset_reader_on_write = true;
        }
        Ok((version, Client::try_from(config)?))
    }
}

/// How long a connection may take to come about: client-go's default.
const CONNECT: Duration = Duration::from_secs(30);

/// Has an audit log tell who asked.
fn introduce(config: &mut kube::Config) {
    let agent = concat!("copepod/", env!("CARGO_PKG_VERSION"));
    config.headers.retain(|(name, _)| name != header::USER_AGENT);
    config.headers.push((header::USER_AGENT, header::HeaderValue::from_static(agent)));
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::server::metrics::Page;

    /// A server that answers each request with its own name.
    async fn server(name: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}",
                            name.len()
                        );
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        address
    }

    fn config(address: SocketAddr) -> kube::Config {
        kube::Config::new(format!("http://{address}").parse().expect("an address"))
    }

    async fn asked(client: &Client) -> String {
        let request = Request::get("/").body(Vec::new()).expect("a request");
        client.request_text(request).await.expect("answered")
    }

    #[tokio::test]
    async fn every_request_is_counted_by_what_came_of_it() {
        let address = server("name").await;
        let connection = Connection::new(config(address));
        let client = connection.client(Use::Streams).expect("a client");
        asked(&client).await;
        asked(&client).await;
        connection.replace(config("127.0.0.1:1".parse().expect("an address")));
        let request = Request::get("/").body(Vec::new()).expect("a request");
        assert!(client.request_text(request).await.is_err());

        let page = connection.metrics().show(Page::Own);

        for (code, count) in [("200", 2), ("<error>", 1)] {
            let line = format!(
                "rest_client_requests_total{{code=\"{code}\",host=\"{address}\",method=\"GET\"}} {count}"
            );
            assert!(page.lines().any(|it| it == line), "{line}\n{page}");
        }
    }

    #[tokio::test]
    async fn a_client_that_somebody_holds_goes_on_with_new_credentials() {
        let connection = Connection::new(config(server("old").await));
        let client = connection.client(Use::Streams).expect("a client");
        let before = asked(&client).await;

        connection.replace(config(server("new").await));

        assert_eq!((before.as_str(), asked(&client).await.as_str()), ("old", "new"));
    }
}
