//! The HTTP client that goes where a registry sends us, and the places it does not go.
//!
//! Built on reqwest and not on oci-client 0.18: that one makes its reqwest client itself, follows any redirect, sends the
//! credentials to whatever realm a registry names, reads manifests without a cap, fetches a layer's foreign `urls`, and lets
//! none of this be set from outside (read in its source). Here redirects are followed by hand and every address is judged.
//!
//! Absent: what a registry's answers mean, and who we are to it: [`crate::registry`].

use std::collections::BTreeSet;
use std::error::Error as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION};
use reqwest::{Certificate, Client, Method, Request, Response, StatusCode, Url};
use tokio::time::Instant;

use crate::trust::{self, CA_FOLDERS};

/// How long an answer's head may take to come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Real registries need one redirect, to their blob storage.
const MAX_HOPS: usize = 5;

/// Where the client may go, and how patient it is.
#[derive(Clone, Debug)]
pub struct PullRules {
    /// Hosts (with port where it is not 80) that are asked by plain HTTP. Loopback hosts are where they have no folder in
    /// `ca_folders`.
    pub plain_http: BTreeSet<String>,
    /// Whether images may name a registry on this machine's loopback. On for one machine; off for a cluster's node,
    /// where a pod's author must not reach the node's own services.
    pub loopback: bool,
    /// Pairs (registry host, login host) beyond the built-in ones: the login of the first may be sent to the second.
    pub login_hosts: BTreeSet<(String, String)>,
    /// The largest single layer.
    pub max_layer_bytes: u64,
    /// The largest image, all layers together.
    pub max_image_bytes: u64,
    /// In every such stretch of time ...
    pub progress_window: Duration,
    /// ... at least so many bytes must come, or the download is given up.
    pub progress_bytes: u64,
    /// How often one request is sent where the registry is unavailable.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles from there.
    pub backoff: Duration,
    /// Folders that hold one for each registry (`HOST` or `HOST:PORT`), whose `*.crt` files are authorities that are trusted for that
    /// registry alone, beside the system's. Of several the first holds.
    pub ca_folders: Vec<PathBuf>,
}

impl Default for PullRules {
    fn default() -> Self {
        Self {
            plain_http: BTreeSet::new(),
            loopback: true,
            login_hosts: BTreeSet::new(),
            // The largest single module met so far has 70 MB; 512 MiB leaves room.
            max_layer_bytes: 512 << 20,
            max_image_bytes: 2 << 30,
            // 2 KiB/s: slower than a modem is no download but an attack or a dead line.
            progress_window: Duration::from_secs(30),
            progress_bytes: 64 << 10,
            attempts: 4,
            backoff: Duration::from_millis(500),
            ca_folders: CA_FOLDERS.map(PathBuf::from).into(),
        }
    }
}

/// Registries whose login server has another name, as their documentation says.
const LOGIN_HOSTS: [(&str, &str); 2] =
    [("registry-1.docker.io", "auth.docker.io"), ("registry.gitlab.com", "gitlab.com")];

/// Why a request came to nothing.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// Nobody answered, or too late, or "not now". Another attempt may help.
    Unavailable(String),
    /// We do not go there.
    Blocked(String),
    /// It answered, and the answer is no.
    Denied(String),
    /// It has no such thing.
    NotFound(String),
    /// What it sent is not what was named.
    Corrupt(String),
    /// What it sent or announced is above a limit, or of no use.
    Unusable(String),
    /// Our own disk.
    Store(Arc<std::io::Error>),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unavailable(text)
            | Self::Blocked(text)
            | Self::Denied(text)
            | Self::NotFound(text)
            | Self::Corrupt(text)
            | Self::Unusable(text) => f.write_str(text),
            Self::Store(error) => write!(f, "the local store: {error}"),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Scheme, host and port: what a credential belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    pub(crate) fn of(url: &Url) -> Option<Self> {
        Some(Self {
            scheme: url.scheme().to_owned(),
            host: url.host_str()?.to_ascii_lowercase(),
            port: url.port_or_known_default()?,
        })
    }

    fn is_loopback(&self) -> bool {
        is_loopback_name(&self.host)
    }

    /// As image names have it: with the port where it is not the scheme's own.
    fn as_registry(&self) -> String {
        match (self.scheme.as_str(), self.port) {
            ("https", 443) | ("http", 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }
}

/// A registry as it is spoken to.
pub(crate) struct Home {
    url: Url,
    origin: Origin,
    client: Client,
}

impl Home {
    /// Its base address, with the scheme that it is spoken to in.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// What its credentials belong to.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }
}

/// Two clients, because the loopback one uses no proxy and may meet loopback addresses. They are made when they are first needed:
/// that takes the system's certificates, which a machine that pulls nothing need not have.
pub(crate) struct Guard {
    outside: OnceLock<Client>,
    inside: OnceLock<Client>,
    pub(crate) rules: PullRules,
}

impl Guard {
    pub(crate) fn new(rules: PullRules) -> Self {
        crate::install_tls_provider();
        Self { outside: OnceLock::new(), inside: OnceLock::new(), rules }
    }

    /// A client that trusts these authorities beside the system's.
    fn new_client(loopback: bool, authorities: &[Certificate]) -> Result<Client, Failure> {
        let builder = || {
            let builder = Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .retry(reqwest::retry::never())
                .pool_max_idle_per_host(4)
                .pool_idle_timeout(Duration::from_secs(30))
                .user_agent(concat!("copepod/", env!("CARGO_PKG_VERSION")))
                .dns_resolver(Arc::new(Judge { loopback }));
            if loopback { builder.no_proxy() } else { builder }
        };
        let with_system = builder().tls_certs_merge(authorities.iter().cloned()).build();
        with_system
            // The system has none: plain HTTP does without, and whatever speaks TLS is an authority nobody knows.
            .or_else(|_| builder().tls_certs_only(authorities.iter().cloned()).build())
            .map_err(|error| Failure::Blocked(format!("cannot set up TLS: {}", in_words(&error))))
    }

    /// The client for all that is not a registry with authorities of its own.
    fn client(&self, loopback: bool) -> Result<&Client, Failure> {
        let client = if loopback { &self.inside } else { &self.outside };
        match client.get() {
            Some(client) => Ok(client),
            None => {
                let new = Self::new_client(loopback, &[])?;
                Ok(client.get_or_init(|| new))
            }
        }
    }

    /// How a registry is spoken to, if it is at all.
    pub(crate) fn home(&self, registry: &str) -> Result<Home, Failure> {
        let parsed = |scheme: &str| {
            Url::parse(&format!("{scheme}://{registry}/")).map_err(|_| {
                Failure::Blocked(format!("{registry:?} is not a registry's host name"))
            })
        };
        let url = parsed("https")?;
        let loopback = url.host_str().is_some_and(is_loopback_name);
        let folder = trust::folder(&self.rules.ca_folders, registry);
        let plain = (loopback && folder.is_none()) || self.rules.plain_http.contains(registry);
        let url = if plain { parsed("http")? } else { url };
        let origin = Origin::of(&url)
            .ok_or_else(|| Failure::Blocked(format!("{registry:?} has no host")))?;
        self.judge(&url, &origin)?;
        let client = match folder {
            Some(folder) => {
                let authorities = trust::authorities(&folder).map_err(Failure::Blocked)?;
                Self::new_client(loopback, &authorities)?
            }
            None => self.client(loopback)?.clone(),
        };
        Ok(Home { url, origin, client })
    }

    /// Whether a login for `registry` may be sent to `server`.
    pub(crate) fn may_log_in_at(&self, registry: &Origin, server: &Origin) -> bool {
        let same = registry.host == server.host
            // Two ports of a loopback host may be two users' programs.
            && (!registry.is_loopback() || registry.port == server.port);
        same || LOGIN_HOSTS.contains(&(registry.host.as_str(), server.host.as_str()))
            || self.rules.login_hosts.contains(&(registry.host.clone(), server.host.clone()))
    }

    /// Whether a registry at `registry` may send us to `url` at all; and where that is.
    fn judge(&self, url: &Url, registry: &Origin) -> Result<Origin, Failure> {
        let shown = shown(url);
        let Some(target) = Origin::of(url) else {
            return Err(Failure::Blocked(format!("{shown} has no host")));
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Failure::Blocked(
                "an address with a user name in it is not followed".into(),
            ));
        }
        let loopback = target.is_loopback();
        if loopback && !self.rules.loopback {
            return Err(Failure::Blocked(format!(
                "{shown} is on this node's loopback, where images are not pulled from"
            )));
        }
        if loopback && !registry.is_loopback() {
            return Err(Failure::Blocked(format!(
                "{shown} is on this node's loopback, and the registry is not"
            )));
        }
        match target.scheme.as_str() {
            "https" => {}
            "http" if loopback => {}
            "http" if target == *registry && self.is_plain(&target) => {}
            "http" => {
                return Err(Failure::Blocked(format!(
                    "{shown} is plain HTTP, which is only spoken to a registry on this machine's loopback"
                )));
            }
            _ => return Err(Failure::Blocked(format!("{shown} is neither http nor https"))),
        }
        // The resolver never sees an address written out.
        let literal = target.host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        if let Ok(ip) = literal {
            judge(ip, loopback)
                .map_err(|why| Failure::Blocked(format!("{shown} is not asked: {why}")))?;
        }
        Ok(target)
    }

    fn is_plain(&self, origin: &Origin) -> bool {
        let with_port = format!("{}:{}", origin.host, origin.port);
        self.rules.plain_http.contains(&with_port)
            || (origin.port == 80 && self.rules.plain_http.contains(&origin.host))
    }

    /// Sends one request. Redirects are followed where `follow` says so, and the Authorization header stays at its own origin.
    pub(crate) async fn send(
        &self,
        home: &Home,
        mut request: Request,
        follow: Follow,
    ) -> Result<Response, Failure> {
        let first = Origin::of(request.url());
        for _ in 0..=MAX_HOPS {
            let target = self.judge(request.url(), &home.origin)?;
            // A registry's own authorities vouch for nobody else.
            let client = match target == home.origin {
                true => &home.client,
                false => self.client(target.is_loopback())?,
            };
            let next = match follow {
                Follow::Redirects => request.try_clone(),
                Follow::Nothing => None,
            };
            // A body may take as long as it moves; its sender watches that.
            let patience = if request.body().is_some() { None } else { Some(HEAD_TIMEOUT) };
            let shown = shown(request.url());
            let sending = client.execute(request);
            let response = match patience {
                Some(patience) => tokio::time::timeout(patience, sending).await.map_err(|_| {
                    Failure::Unavailable(format!("{shown} did not answer within {patience:?}"))
                })?,
                None => sending.await,
            }
            .map_err(|error| failure_of(&error, &shown, &target))?;
            let (true, Some(mut again)) = (is_redirect(response.status()), next) else {
                return Ok(response);
            };
            let target = response
                .headers()
                .get(LOCATION)
                .and_then(|it| it.to_str().ok())
                .and_then(|it| again.url().join(it).ok())
                .ok_or_else(|| Failure::Corrupt(format!("{shown} redirects to nowhere")))?;
            if Origin::of(&target) != first {
                again.headers_mut().remove(AUTHORIZATION);
            }
            *again.url_mut() = target;
            request = again;
        }
        Err(Failure::Blocked(format!("more than {MAX_HOPS} redirects")))
    }

    /// Reads a whole answer of at most `cap` bytes.
    pub(crate) async fn read(
        &self,
        response: Response,
        cap: u64,
        what: &str,
    ) -> Result<Vec<u8>, Failure> {
        let too_large =
            || Failure::Unusable(format!("{what} is larger than {}", crate::sizes::shown(cap)));
        if response.content_length().is_some_and(|length| length > cap) {
            return Err(too_large());
        }
        let mut body = self.body(response);
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await? {
            if bytes.len() as u64 + chunk.len() as u64 > cap {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// An answer's bytes under the progress deadline.
    pub(crate) fn body(&self, response: Response) -> Body {
        Body {
            response,
            window: self.rules.progress_window,
            least: self.rules.progress_bytes,
            ends: Instant::now() + self.rules.progress_window,
            came: 0,
        }
    }
}

/// Whether a request's redirects are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    /// Up to five, each judged.
    Redirects,
    /// None: token calls and uploads.
    Nothing,
}

/// A body that must keep moving.
pub(crate) struct Body {
    response: Response,
    window: Duration,
    least: u64,
    ends: Instant,
    came: u64,
}

impl Body {
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let shown = || shown(self.response.url());
        let shown = shown();
        let chunk = tokio::time::timeout_at(self.ends, self.response.chunk())
            .await
            .map_err(|_| {
                Failure::Unavailable(format!(
                    "{shown} sent less than {} bytes in {:?}",
                    self.least, self.window
                ))
            })?
            .map_err(|error| {
                Failure::Unavailable(format!("{shown} broke off: {}", in_words(&error)))
            })?;
        if let Some(chunk) = &chunk {
            self.came += chunk.len() as u64;
            if self.came >= self.least {
                self.came = 0;
                self.ends = Instant::now() + self.window;
            }
        }
        Ok(chunk)
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A new request, with nothing but its method and address.
pub(crate) fn request(method: Method, url: Url) -> Request {
    Request::new(method, url)
}

/// Sets the Authorization header, marked so that no log shows it.
pub(crate) fn authorize(request: &mut Request, header: &str) -> Result<(), Failure> {
    let mut value = HeaderValue::from_str(header).map_err(|_| {
        Failure::Denied("the login or token cannot be sent: it holds control characters".into())
    })?;
    value.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, value);
    Ok(())
}

/// An address as messages show it: no query, which may hold a signature.
pub(crate) fn shown(url: &Url) -> String {
    let text = format!("{}://{}{}", url.scheme(), url.authority(), url.path());
    // `authority` holds a user name where there is one; such an address is refused, and shown without it.
    let text = match url.username().is_empty() {
        true => text,
        false => format!("{}://{}", url.scheme(), url.host_str().unwrap_or("?")),
    };
    text.chars().take(200).collect()
}

fn failure_of(error: &reqwest::Error, shown: &str, target: &Origin) -> Failure {
    if let Some(why) = trust::in_words(error, shown, &target.as_registry()) {
        return Failure::Blocked(why);
    }
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(blocked) = inner.downcast_ref::<BlockedAddress>() {
            return Failure::Blocked(format!("{shown} is not asked: {blocked}"));
        }
        source = inner.source();
    }
    Failure::Unavailable(format!("cannot reach {shown}: {}", in_words(error)))
}

/// The innermost cause: the layers above only say "error sending request".
fn in_words(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string().chars().take(300).collect()
}

pub(crate) fn is_loopback_name(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    match host.parse::<IpAddr>() {
        Ok(ip) => unmapped(ip).is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// A name that leads to an address that is not asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BlockedAddress(String);

/// Resolves names, and leaves out every address that a registry has no business at. The check is on the very
/// addresses that are connected to, so a second answer of the DNS changes nothing.
struct Judge {
    loopback: bool,
}

impl Resolve for Judge {
    fn resolve(&self, name: Name) -> Resolving {
        let loopback = self.loopback;
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let mut refused = None;
            let mut good = Vec::with_capacity(found.len());
            for address in found {
                match judge(address.ip(), loopback) {
                    Ok(()) => good.push(address),
                    Err(why) => refused = Some(why),
                }
            }
            match (good.is_empty(), refused) {
                (true, Some(why)) => {
                    Err(BlockedAddress(format!("{host} is at an address where {why}")).into())
                }
                _ => Ok(Box::new(good.into_iter()) as Addrs),
            }
        })
    }
}

fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Clouds' metadata servers at addresses that are not link-local (AWS by IPv6, Alibaba).
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
const METADATA_V4: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);

/// Whether an address may be connected to. Private ranges may: companies' registries are there.
fn judge(ip: IpAddr, loopback: bool) -> Result<(), &'static str> {
    match unmapped(ip) {
        ip if ip.is_loopback() && !loopback => Err("this node's own loopback is"),
        ip if !ip.is_loopback() && loopback => Err("a loopback name must lead to the loopback"),
        ip if ip.is_unspecified() || ip.is_multicast() => Err("no registry can be"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.is_broadcast() => Err("no registry can be"),
        IpAddr::V4(v4) if v4.is_link_local() || v4 == METADATA_V4 => {
            Err("a cloud's metadata server is")
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() || v6 == METADATA_V6 => {
            Err("a cloud's metadata server is")
        }
        // IPv4 addresses in IPv6 dress: compatible (::a.b.c.d) and NAT64 (64:ff9b::a.b.c.d).
        IpAddr::V6(v6) if v6.segments()[..6] == [0; 6] && !v6.is_loopback() => {
            Err("no registry can be")
        }
        IpAddr::V6(v6) if v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            let [.., a, b, c, d] = v6.octets();
            judge(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), false)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(rules: PullRules) -> Guard {
        Guard::new(PullRules { ca_folders: Vec::new(), ..rules })
    }

    #[test]
    fn metadata_link_local_and_foreign_loopback_addresses_are_never_asked() {
        for ip in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::7f00:1",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(judge(ip.parse().expect(ip), false).is_err(), "{ip}");
        }
        for ip in ["10.0.0.1", "192.168.1.1", "93.184.216.34", "2606:4700::1", "fd12::1"] {
            assert!(judge(ip.parse().expect(ip), false).is_ok(), "{ip}");
        }
        assert!(
            judge("10.0.0.1".parse().expect("ip"), true).is_err(),
            "localhost must not lead away"
        );
    }

    #[test]
    fn plain_http_is_spoken_to_loopback_and_to_configured_hosts_only() {
        let guard = guard(PullRules {
            plain_http: ["registry.lan:5000".to_owned()].into(),
            ..PullRules::default()
        });

        let scheme =
            |registry: &str| guard.home(registry).map(|home| home.url().scheme().to_owned());

        assert_eq!(scheme("localhost:5000").as_deref().ok(), Some("http"));
        assert_eq!(scheme("127.0.0.1:5000").as_deref().ok(), Some("http"));
        assert_eq!(scheme("[::1]:5000").as_deref().ok(), Some("http"));
        assert_eq!(scheme("registry.lan:5000").as_deref().ok(), Some("http"));
        assert_eq!(scheme("registry.lan").as_deref().ok(), Some("https"));
        assert_eq!(scheme("ghcr.io").as_deref().ok(), Some("https"));
        assert!(scheme("169.254.169.254").is_err());
    }

    #[test]
    fn a_loopback_registry_with_a_folder_of_authorities_is_spoken_to_by_tls() {
        let folders = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folders.path().join("localhost:5000")).expect("made");
        let guard = Guard::new(PullRules {
            ca_folders: vec![folders.path().to_owned()],
            ..PullRules::default()
        });

        let scheme =
            |registry: &str| guard.home(registry).map(|home| home.url().scheme().to_owned());

        assert_eq!(scheme("localhost:5000").as_deref().ok(), Some("https"));
        assert_eq!(scheme("localhost:5001").as_deref().ok(), Some("http"));
    }

    #[test]
    fn where_loopback_is_off_no_spelling_of_it_is_asked_p09() {
        let guard = guard(PullRules { loopback: false, ..PullRules::default() });

        for registry in
            ["127.0.0.1:10250", "[::1]:10250", "localhost", "127.1:80", "2130706433", "0x7f.1"]
        {
            assert!(matches!(guard.home(registry), Err(Failure::Blocked(_))), "{registry}");
        }
    }

    #[test]
    fn a_login_goes_to_the_registrys_own_host_or_a_listed_pair() {
        let guard = guard(PullRules {
            login_hosts: [("a.example".to_owned(), "login.example".to_owned())].into(),
            ..PullRules::default()
        });
        let origin = |text: &str| Origin::of(&Url::parse(text).expect("url")).expect("host");

        let may =
            |registry: &str, server: &str| guard.may_log_in_at(&origin(registry), &origin(server));

        assert!(may("https://ghcr.io", "https://ghcr.io/token"));
        assert!(may("https://registry-1.docker.io", "https://auth.docker.io/token"));
        assert!(may("https://a.example", "https://login.example/"));
        assert!(!may("https://a.example", "https://evil.example/"));
        assert!(!may("https://a.example", "https://a.example.evil.example/"));
        assert!(!may("http://localhost:5000", "http://localhost:5001/"));
    }
}
