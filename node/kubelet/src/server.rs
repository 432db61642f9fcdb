//! The kubelet's HTTPS API: what the API server, metrics-server and monitoring ask a node for.
//!
//! Start at [`Server::run`]. [`route`] says what is asked and which rights it needs, [`access`] who asks and whether they may; then
//! one module answers each kind of question. Nothing of a request's body is read before it is allowed.
//!
//! Invariants: no route without both questions; whatever a client sends or does not read costs a bounded amount of memory; a task
//! ends with its connection. Absent: what a pod does with it ([`pods`] is the door), the read-only port, and every debugging page.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use copepod_agent::api::PodName;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Pod;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub mod access;
mod answer;
mod command;
mod follower;
mod forward;
mod logs;
pub mod metrics;
pub mod pods;
pub mod route;
mod sink;
mod spdy;
mod terminal;
pub mod tls;
mod usage;
mod websocket;

use access::{Access, ClientAuthorities, Reviews};
use answer::Answer;
use metrics::{Metrics, Page};
use pods::Pods;
use route::{Asked, Query, Route};

/// Connections at a time, sessions of exec and the like included: an API server's are a few dozen.
const CONNECTIONS: usize = 2048;
/// The longest a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may be idle between requests, and a request's head take: the kubelet's.
const IDLE: Duration = Duration::from_secs(90);
/// The largest head of a request: Go's, and so the kubelet's.
const HEAD: usize = 1 << 20;

/// All that a server is made of.
pub struct ServerSettings {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The certificate that it shows: another one may come at any time.
    pub serving: tls::Serving,
    /// Whose client certificates are believed.
    pub authorities: ClientAuthorities,
    /// What the API server decides.
    pub reviews: Arc<dyn Reviews>,
    /// The pods' side.
    pub pods: Arc<dyn Pods>,
    /// The node's name.
    pub node: String,
    /// What `/configz` shows as `kubeletconfig`.
    pub config: serde_json::Value,
    /// The agent's own figures.
    pub metrics: Arc<Metrics>,
    /// The data directory, whose file system is the node's in `/stats/summary`.
    pub data: PathBuf,
}

/// The server, listening.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    site: Arc<Site>,
}

/// What all requests share.
struct Site {
    access: Access,
    pods: Arc<dyn Pods>,
    node: String,
    config: serde_json::Value,
    metrics: Arc<Metrics>,
    usage: usage::Usage,
    data: PathBuf,
}

/// What goes on with a connection after its last answer.
type Session = BoxFuture<'static, ()>;

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn bind(settings: ServerSettings) -> io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let config = tls::config(settings.serving).map_err(io::Error::other)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let site = Site {
            access: Access::new(settings.authorities, settings.reviews),
            pods: settings.pods,
            node: settings.node,
            config: settings.config,
            metrics: settings.metrics,
            usage: usage::Usage::default(),
            data: settings.data,
        };
        site.metrics.set(&metrics::NODE_NAME, &[("node", &site.node)], 1.0);
        let address = listener.local_addr()?;
        tracing::info!(%address, node = site.node, "serving the kubelet's API");
        Ok(Self { listener, acceptor, site: Arc::new(site) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves for ever. Whoever drops the future ends all connections.
    pub async fn run(self) {
        let mut connections = JoinSet::new();
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // Those who come when all are taken wait in the kernel's queue.
            let Ok(place) = free.clone().acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let (acceptor, site) = (self.acceptor.clone(), self.site.clone());
                    connections.spawn(async move {
                        let _place = place;
                        if let Err(error) = connection(stream, &acceptor, site).await {
                            tracing::debug!(%peer, error, "a connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors: those who wait are served when some are free again.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    site: Arc<Site>,
) -> Result<(), String> {
    keep_alive(&stream).map_err(|error| error.to_string())?;
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .map_err(|_| "no handshake in time".to_owned())?
        .map_err(|error| error.to_string())?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let certificates = Arc::new(certificates);
    let session: Arc<Mutex<Option<Session>>> = Arc::default();
    let service = service_fn(|request| {
        let (site, certificates) = (site.clone(), certificates.clone());
        let session = session.clone();
        async move {
            let (answer, goes_on) = site.answer(request, &certificates).await;
            *session.lock().unwrap_or_else(PoisonError::into_inner) = goes_on;
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    let goes_on = session.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (served, goes_on) {
        (Ok(()), Some(session)) => session.await,
        (Ok(()), None) => {}
        (Err(error), _) => return Err(error.to_string()),
    }
    Ok(())
}

/// A peer that is gone without a word is found out, as by Go's servers: after two and a half minutes.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    rustix::net::sockopt::set_socket_keepalive(socket, true)?;
    rustix::net::sockopt::set_tcp_keepidle(socket, Duration::from_secs(15))?;
    rustix::net::sockopt::set_tcp_keepintvl(socket, Duration::from_secs(15))?;
    rustix::net::sockopt::set_tcp_keepcnt(socket, 9)?;
    Ok(())
}

impl Site {
    /// Both questions, and then the answer.
    async fn answer(
        &self,
        request: Request<Incoming>,
        certificates: &[CertificateDer<'_>],
    ) -> (Answer, Option<Session>) {
        let authorization = request.headers().get(header::AUTHORIZATION);
        let Some(user) = self.access.user(certificates, authorization).await else {
            return (answer::text(StatusCode::UNAUTHORIZED, "Unauthorized"), None);
        };
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let Some(asked) = Asked::parse(uri.path()) else {
            return (answer::text(StatusCode::BAD_REQUEST, "the path cannot be read"), None);
        };
        let attributes = asked.attributes(&method);
        match self.access.may(&user, &attributes).await {
            Ok(true) => {}
            Ok(false) => {
                let text = forbidden(&user.name, &attributes);
                return (answer::text(StatusCode::FORBIDDEN, text), None);
            }
            Err(error) => {
                tracing::warn!(error, user = user.name, "a request is refused");
                let text = format!("Authorization error (user={}): {error}", user.name);
                return (answer::text(StatusCode::INTERNAL_SERVER_ERROR, text), None);
            }
        }
        let is_usual = [Method::GET, Method::POST].contains(&method);
        let (page, word) = (asked.route.name(), if is_usual { method.as_str() } else { "other" });
        self.metrics.add(&metrics::HTTP_REQUESTS, &[("method", word), ("path", page)], 1.0);
        match asked.route {
            Route::Unknown => {
                return (answer::text(StatusCode::NOT_FOUND, "404: Page Not Found"), None);
            }
            Route::Off(text) => return (answer::text(StatusCode::METHOD_NOT_ALLOWED, text), None),
            _ => {}
        }
        let methods = asked.methods();
        if !methods.contains(&method) {
            return (not_allowed(methods), None);
        }
        let Some(query) = Query::parse(uri.query().unwrap_or_default()) else {
            let text = r#"{"message": "Unable to decode query."}"#;
            return (answer::text(StatusCode::BAD_REQUEST, text), None);
        };
        self.serve(asked.route, &query, request).await
    }

    async fn serve(
        &self,
        route: Route,
        query: &Query,
        request: Request<Incoming>,
    ) -> (Answer, Option<Session>) {
        let answer = match route {
            Route::Pods => list(&self.pods.all(), Pod::clone),
            Route::RunningPods => {
                let mut pods = self.pods.all();
                pods.retain(|pod| pods::statuses(pod).any(pods::runs));
                list(&pods, as_running)
            }
            Route::Healthz(check) => self.health(check.as_deref(), query),
            Route::Configz => {
                answer::json(serde_json::json!({ "kubeletconfig": self.config }).to_string())
            }
            Route::Summary => {
                let is_short = query.first("only_cpu_and_memory") == Some("true");
                let data = (!is_short).then_some(self.data.as_path());
                let snapshot = self.usage.take(&*self.pods).await;
                answer::json(usage::summary(&snapshot, &self.node, data).to_string())
            }
            Route::ResourceMetrics => {
                figures(usage::resource_metrics(&self.usage.take(&*self.pods).await))
            }
            Route::Metrics => {
                self.count();
                figures(self.metrics.show(Page::Own))
            }
            Route::ProbeMetrics => figures(self.metrics.show(Page::Probes)),
            Route::ContainerLogs(target) => logs::answer(&self.pods, &target, query).await,
            Route::Exec(target) => {
                return match self.pod(&target.pod, target.uid.as_deref()) {
                    Ok(pod) => {
                        let (headers, upgrade) = taken(request);
                        command::exec(&self.pods, &pod, target, query, &headers, upgrade)
                    }
                    Err(answer) => (*answer, None),
                };
            }
            Route::Attach(target) => {
                return match self.pod(&target.pod, target.uid.as_deref()) {
                    Ok(pod) => {
                        let (headers, upgrade) = taken(request);
                        command::attach(&self.pods, &pod, target, query, &headers, upgrade)
                    }
                    Err(answer) => (*answer, None),
                };
            }
            Route::PortForward { pod: name, uid } => {
                return match self.pod(&name, uid.as_deref()) {
                    Ok(pod) => {
                        let (headers, upgrade) = taken(request);
                        let uid = pod.metadata.uid.clone().unwrap_or_default();
                        let target = forward::Target { pod: name, uid };
                        forward::answer(&self.pods, target, query, &headers, upgrade)
                    }
                    Err(answer) => (*answer, None),
                };
            }
            Route::Off(_) | Route::Unknown => {
                answer::text(StatusCode::NOT_FOUND, "404: Page Not Found")
            }
        };
        (answer, None)
    }

    /// What is counted when it is asked for.
    fn count(&self) {
        let pods = self.pods.all();
        let running = |pod: &&Arc<Pod>| pods::statuses(pod).any(pods::runs);
        let running = pods.iter().filter(running).count();
        self.metrics.set(&metrics::RUNNING_PODS, &[], running as f64);
        let (mut waiting, mut runs, mut over) = (0, 0, 0);
        for state in
            pods.iter().flat_map(|pod| pods::statuses(pod)).filter_map(|it| it.state.as_ref())
        {
            match (&state.running, &state.terminated) {
                (Some(_), _) => runs += 1,
                (None, Some(_)) => over += 1,
                (None, None) => waiting += 1,
            }
        }
        for (state, count) in [("created", waiting), ("running", runs), ("exited", over)] {
            let labels = [("container_state", state)];
            self.metrics.set(&metrics::RUNNING_CONTAINERS, &labels, f64::from(count));
        }
    }

    fn health(&self, check: Option<&str>, query: &Query) -> Answer {
        const CHECKS: [&str; 3] = ["ping", "log", "syncloop"];
        if check.is_some_and(|check| !CHECKS.contains(&check)) {
            return answer::text(StatusCode::NOT_FOUND, "404: Page Not Found");
        }
        let excluded: Vec<&str> = query.all("exclude").collect();
        let wanted = CHECKS.iter().filter(|name| match check {
            Some(check) => **name == check,
            None => !excluded.contains(name),
        });
        let (mut lines, mut failed) = (String::new(), false);
        for name in wanted {
            match if *name == "syncloop" { self.pods.healthy() } else { Ok(()) } {
                Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
                Err(why) => {
                    failed = true;
                    lines.push_str(&format!("[-]{name} failed: {why}\n"));
                }
            }
        }
        match (failed, query.first("verbose").is_some()) {
            (true, _) => {
                let text = format!("{lines}healthz check failed\n");
                answer::text(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
            (false, true) => answer::text(StatusCode::OK, format!("{lines}healthz check passed\n")),
            (false, false) => answer::text(StatusCode::OK, "ok"),
        }
    }

    /// The pod of this name, which is still the one of this UID.
    fn pod(&self, name: &PodName, uid: Option<&str>) -> Result<Arc<Pod>, Box<Answer>> {
        let not_found = |text: &str| Box::new(answer::text(StatusCode::NOT_FOUND, text));
        let pod = self.pods.find(name).ok_or_else(|| not_found("pod does not exist"))?;
        match uid {
            Some(uid) if pod.metadata.uid.as_deref() != Some(uid) => {
                Err(not_found("pod not found"))
            }
            _ => Ok(pod),
        }
    }
}

/// As the kubelet words it.
fn forbidden(user: &str, attributes: &[route::Attributes]) -> String {
    let Some(first) = attributes.first() else {
        return "Authorization error: could not determine attributes for request".into();
    };
    let all: Vec<_> = attributes.iter().map(|it| it.subresource).collect();
    format!(
        "Forbidden (user={user}, verb={}, resource=nodes, subresource(s)=[{}])\n",
        first.verb,
        all.join(" ")
    )
}

fn not_allowed(methods: &[Method]) -> Answer {
    let mut answer = answer::text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
        answer.headers_mut().insert(header::ALLOW, names);
    }
    answer
}

/// A page in Prometheus's text format.
fn figures(text: String) -> Answer {
    answer::whole(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

/// What is needed of a request for another protocol.
fn taken(mut request: Request<Incoming>) -> (HeaderMap, OnUpgrade) {
    let upgrade = hyper::upgrade::on(&mut request);
    (std::mem::take(request.headers_mut()), upgrade)
}

/// A `PodList`.
fn list(pods: &[Arc<Pod>], shape: impl Fn(&Pod) -> Pod) -> Answer {
    let list = k8s_openapi::List::<Pod> {
        items: pods.iter().map(|pod| shape(pod)).collect(),
        ..k8s_openapi::List::default()
    };
    match serde_json::to_vec(&list) {
        Ok(text) => answer::json(text),
        Err(error) => answer::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// What of a pod really runs: its name, and its running containers with their images.
fn as_running(pod: &Pod) -> Pod {
    use k8s_openapi::api::core::v1::{Container, PodSpec, PodStatus};
    let running = pods::statuses(pod).filter(|status| pods::runs(status));
    let containers = running.map(|status| Container {
        name: status.name.clone(),
        image: Some(status.image.clone()),
        ..Container::default()
    });
    let mut shown = Pod {
        spec: Some(PodSpec { containers: containers.collect(), ..PodSpec::default() }),
        status: Some(PodStatus::default()),
        ..Pod::default()
    };
    shown.metadata.name.clone_from(&pod.metadata.name);
    shown.metadata.namespace.clone_from(&pod.metadata.namespace);
    shown.metadata.uid.clone_from(&pod.metadata.uid);
    shown
}
