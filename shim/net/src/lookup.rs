//! Names as the pod's `hosts` and `resolv.conf` would answer them: which names to ask for, in which order, of whom.
//! Absent: `getaddrinfo`, a cache, any judgement of addresses, and the wire ([`crate::dns`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use copepod_shim::protocol::{Dns, HostEntry, PodSandbox};
use hickory_resolver::proto::rr::{Name, RecordType};

use crate::dns::{self, Answer};
use crate::door::Door;
use crate::rules::Route;

/// Why a name gave no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Not a name.
    #[error("not a host name")]
    Invalid,
    /// There is no such name, or it has no address of the pod's families, or the pod has no name server.
    #[error("the name has no address")]
    NotFound,
    /// No name server answered in time.
    #[error("no name server answered")]
    TimedOut,
    /// The name servers answered that they cannot tell now.
    #[error("the name servers failed")]
    ServersFailed,
}

/// How one pod's names are looked up.
#[derive(Debug)]
pub(crate) struct Names {
    hosts: Box<[HostEntry]>,
    hostname: Box<str>,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    dns: Dns,
    door: Option<Arc<Door>>,
    /// The servers' port: 53, but for tests.
    port: u16,
}

impl Names {
    pub(crate) fn new(door: Option<Arc<Door>>, sandbox: &PodSandbox) -> Self {
        Self {
            hosts: sandbox.hosts.clone().into(),
            hostname: sandbox.hostname.as_str().into(),
            ipv4: sandbox.ipv4,
            ipv6: sandbox.ipv6,
            dns: sandbox.dns.clone(),
            door,
            port: 53,
        }
    }

    /// The addresses of a name, IPv4 first: a pod's IPv6 address is most often a unique local one, for which RFC 6724
    /// orders the same. `route` tells how a name server is reached; a server without a route is passed over.
    pub(crate) async fn resolve(
        &self,
        name: &str,
        route: impl Fn(IpAddr, u16) -> Option<Route>,
    ) -> Result<Vec<IpAddr>, LookupError> {
        if let Some(ip) = literal(name) {
            return Ok(vec![ip]);
        }
        let candidates = candidates(name, &self.dns).ok_or(LookupError::Invalid)?;
        if let Some(found) = self.in_files(name) {
            return if found.is_empty() { Err(LookupError::NotFound) } else { Ok(found) };
        }
        let servers: Vec<Route> =
            self.dns.servers.iter().filter_map(|ip| route(*ip, self.port)).collect();
        let types = self.types();
        if servers.is_empty() || types.is_empty() {
            return Err(LookupError::NotFound);
        }
        for candidate in candidates {
            match dns::ask(self.door.as_ref(), &servers, &candidate, &types).await? {
                Answer::Addresses(addresses) => return Ok(addresses),
                Answer::Nothing => {}
            }
        }
        Err(LookupError::NotFound)
    }

    /// What the pod's own files say: `None` where they do not have the name. The first line that has it answers, and all
    /// lines of other addresses with it.
    fn in_files(&self, name: &str) -> Option<Vec<IpAddr>> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let mut found: Vec<IpAddr> = self
            .hosts
            .iter()
            .filter(|entry| entry.names.iter().any(|n| is(n)))
            .map(|entry| entry.ip)
            .collect();
        if found.is_empty() {
            // RFC 6761: names under `localhost.` never leave the machine.
            let is_local = is("localhost")
                || name.rsplit_once('.').is_some_and(|(_, l)| l.eq_ignore_ascii_case("localhost"));
            let (v4, v6) = if is_local {
                (Some(Ipv4Addr::LOCALHOST), self.ipv6.map(|_| Ipv6Addr::LOCALHOST))
            } else if is(&self.hostname) {
                (self.ipv4, self.ipv6)
            } else {
                return None;
            };
            found.extend(v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)));
        }
        // An address of a family that the pod has not is of no use to it; its loopback has an IPv6 spelling always.
        let kept = |ip: &IpAddr| ip.is_ipv4() || self.ipv6.is_some();
        found.retain(kept);
        found.sort_by_key(IpAddr::is_ipv6);
        Some(found)
    }

    fn types(&self) -> Vec<RecordType> {
        let v4 = self.ipv4.map(|_| RecordType::A);
        let v6 = self.ipv6.map(|_| RecordType::AAAA);
        v4.into_iter().chain(v6).collect()
    }
}

/// The address that a "name" spells, with or without the brackets of a URL.
fn literal(name: &str) -> Option<IpAddr> {
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    bare.parse().ok()
}

/// The names to ask for, in order: the name as it is and in every search domain, and which is first depends on its dots,
/// as resolv.conf(5) has it. `None`: not a name.
fn candidates(name: &str, dns: &Dns) -> Option<Vec<Name>> {
    let is_plain = !name.is_empty() && !name.bytes().any(|b| b.is_ascii_whitespace() || b == b'\\');
    let parsed = Name::from_str_relaxed(name).ok().filter(|_| is_plain)?;
    let absolute = || {
        let mut absolute = parsed.clone();
        absolute.set_fqdn(true);
        absolute
    };
    if parsed.is_fqdn() {
        return Some(vec![parsed]);
    }
    let dots = name.bytes().filter(|b| *b == b'.').count();
    let as_it_is_first = dots >= usize::from(dns.ndots);
    let searched = dns.search.iter().filter_map(|domain| {
        let mut domain = Name::from_str_relaxed(domain).ok()?;
        domain.set_fqdn(true);
        // Longer than a name may be: then no such name exists.
        parsed.clone().append_domain(&domain).ok()
    });
    let mut names = Vec::with_capacity(dns.search.len() + 1);
    if as_it_is_first {
        names.push(absolute());
    }
    names.extend(searched);
    if !as_it_is_first {
        names.push(absolute());
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};

    use hickory_resolver::proto::op::{Message, ResponseCode};
    use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
    use hickory_resolver::proto::rr::{RData, Record};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UdpSocket};

    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn names(search: &[&str], ndots: u8) -> Names {
        let dns = Dns {
            servers: vec![SOURCE],
            search: search.iter().map(|s| (*s).to_owned()).collect(),
            ndots,
        };
        Names {
            hosts: Box::default(),
            hostname: "web".into(),
            ipv4: Some(Ipv4Addr::new(10, 64, 0, 5)),
            ipv6: None,
            dns,
            door: None,
            port: 0,
        }
    }

    fn route(ip: IpAddr, port: u16) -> Option<Route> {
        Some(Route { source: SOURCE, to: SocketAddr::new(ip, port), inside: false })
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn record(owner: &str, data: RData) -> Record {
        Record::from_rdata(name(owner), 30, data)
    }

    /// What a server does with one question.
    enum Reply {
        Records(Vec<Record>),
        Code(ResponseCode),
        Truncated(Vec<Record>),
    }

    /// A name server on the loopback that writes down what it is asked, and its port.
    async fn server(
        reply: impl Fn(&str, RecordType) -> Reply + Send + 'static,
    ) -> (u16, Arc<Mutex<Vec<String>>>) {
        let tcp = TcpListener::bind((SOURCE, 0)).await.expect("a listener");
        let port = tcp.local_addr().expect("it is bound").port();
        let udp = UdpSocket::bind((SOURCE, port)).await.expect("a socket");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.expect("a question");
                let question = Message::from_vec(&buffer[..length]).expect("a message");
                let query = question.queries[0].clone();
                let owner = query.name().to_ascii();
                log.lock().expect("no panic").push(owner.clone());
                let mut answer = question.into_response();
                match reply(&owner, query.query_type()) {
                    Reply::Records(records) => answer.answers = records,
                    Reply::Code(code) => answer.metadata.response_code = code,
                    Reply::Truncated(records) => {
                        answer.metadata.truncation = true;
                        let bytes = answer.to_vec().expect("it fits");
                        udp.send_to(&bytes, from).await.expect("sent");
                        let (mut stream, _) = tcp.accept().await.expect("a connection");
                        let length = stream.read_u16().await.expect("a length");
                        let mut bytes = vec![0; length.into()];
                        stream.read_exact(&mut bytes).await.expect("a question");
                        let mut answer =
                            Message::from_vec(&bytes).expect("a message").into_response();
                        answer.answers = records;
                        let bytes = answer.to_vec().expect("it fits");
                        stream.write_u16(bytes.len() as u16).await.expect("written");
                        stream.write_all(&bytes).await.expect("written");
                        continue;
                    }
                }
                let bytes = answer.to_vec().expect("it fits");
                udp.send_to(&bytes, from).await.expect("sent");
            }
        });
        (port, asked)
    }

    fn a(last: u8) -> RData {
        RData::A(A(Ipv4Addr::new(10, 96, 0, last)))
    }

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 96, 0, last).into()
    }

    #[test]
    fn dots_decide_whether_the_search_list_comes_first() {
        let dns = names(&["default.svc.cluster.local", "cluster.local"], 5).dns;
        let few = |name| -> Vec<String> {
            candidates(name, &dns).expect("a name").iter().map(Name::to_ascii).collect()
        };
        let many = Dns { ndots: 1, ..dns.clone() };

        assert_eq!(
            few("db.prod"),
            ["db.prod.default.svc.cluster.local.", "db.prod.cluster.local.", "db.prod."]
        );
        assert_eq!(few("db.prod."), ["db.prod."]);
        let first = candidates("db.prod", &many).expect("a name")[0].to_ascii();
        assert_eq!(first, "db.prod.");
        assert_eq!(
            candidates("bücher.example", &many).expect("a name")[0].to_ascii(),
            "xn--bcher-kva.example."
        );
    }

    #[test]
    fn what_is_no_name_is_not_asked_for() {
        let dns = names(&[], 1).dns;
        let long = "a".repeat(64);

        for name in ["", "a b", "a..b", "back\\slash", long.as_str()] {
            assert!(candidates(name, &dns).is_none(), "{name}");
        }
    }

    #[test]
    fn the_pods_files_answer_first_and_in_any_case() {
        let mut names = names(&[], 1);
        let entry = |ip: &str, name: &str| HostEntry {
            ip: ip.parse().expect("an address"),
            names: vec![name.to_owned()],
        };
        names.hosts = [entry("10.1.2.3", "db"), entry("fd64::9", "db")].into();

        assert_eq!(names.in_files("DB."), Some(vec![IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3))]));
        assert_eq!(names.in_files("localhost"), Some(vec![Ipv4Addr::LOCALHOST.into()]));
        assert_eq!(names.in_files("web"), Some(vec![Ipv4Addr::new(10, 64, 0, 5).into()]));
        assert_eq!(names.in_files("web.example"), None);
    }

    #[tokio::test]
    async fn the_search_list_is_gone_through_until_a_name_has_an_address() {
        let (port, asked) = server(|name, _| match name {
            "db.svc.cluster.local." => Reply::Records(Vec::new()),
            "db.cluster.local." => Reply::Records(vec![record("db.cluster.local.", a(7))]),
            _ => Reply::Code(ResponseCode::NXDomain),
        })
        .await;
        let mut names = names(&["ns.svc.cluster.local", "svc.cluster.local", "cluster.local"], 5);
        names.port = port;

        let found = names.resolve("db", route).await;

        assert_eq!(found, Ok(vec![ip(7)]));
        assert_eq!(
            *asked.lock().expect("no panic"),
            ["db.ns.svc.cluster.local.", "db.svc.cluster.local.", "db.cluster.local."]
        );
    }

    #[tokio::test]
    async fn aliases_are_followed_and_records_of_other_names_are_not_taken() {
        let (port, _) = server(|_, _| {
            Reply::Records(vec![
                record("www.example.", RData::CNAME(CNAME(name("edge.example.")))),
                record("edge.example.", a(1)),
                record("planted.example.", a(2)),
            ])
        })
        .await;
        let mut names = names(&[], 1);
        names.port = port;

        assert_eq!(names.resolve("www.example", route).await, Ok(vec![ip(1)]));
    }

    #[tokio::test]
    async fn an_answer_that_does_not_fit_comes_by_tcp() {
        let (port, _) =
            server(|name, _| Reply::Truncated((0..100).map(|n| record(name, a(n))).collect()))
                .await;
        let mut names = names(&[], 1);
        names.port = port;

        let found = names.resolve("many.example", route).await.expect("an answer");

        assert_eq!(found.len(), 64);
        assert_eq!(found[0], ip(0));
    }

    #[tokio::test]
    async fn both_families_are_asked_for_where_the_pod_has_both() {
        let (port, _) = server(|name, kind| {
            Reply::Records(vec![record(
                name,
                match kind {
                    RecordType::A => a(1),
                    _ => RData::AAAA(AAAA(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1))),
                },
            )])
        })
        .await;
        let mut names = names(&[], 1);
        names.port = port;
        names.ipv6 = Some(Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, 5));

        let found = names.resolve("dual.example", route).await.expect("an answer");

        assert_eq!(found, [ip(1), "fd00::1".parse().expect("an address")]);
    }

    #[tokio::test]
    async fn a_server_that_fails_is_not_a_name_that_does_not_exist() {
        let (port, _) = server(|_, _| Reply::Code(ResponseCode::ServFail)).await;
        let (other, _) = server(|_, _| Reply::Code(ResponseCode::NXDomain)).await;
        let mut failing = names(&[], 1);
        failing.port = port;
        let mut knowing = names(&[], 1);
        knowing.port = other;

        let failed = failing.resolve("a.example", route).await;
        let unknown = knowing.resolve("a.example", route).await;

        assert_eq!(failed, Err(LookupError::ServersFailed));
        assert_eq!(unknown, Err(LookupError::NotFound));
    }

    #[tokio::test]
    async fn the_next_server_is_asked_where_one_is_not_there() {
        let (port, _) = server(|name, _| Reply::Records(vec![record(name, a(3))])).await;
        let mut names = names(&[], 1);
        names.port = port;
        names.dns.servers = vec![IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), SOURCE];

        assert_eq!(names.resolve("a.example", route).await, Ok(vec![ip(3)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_a_timeout() {
        let silent = UdpSocket::bind((SOURCE, 0)).await.expect("a socket");
        let mut names = names(&[], 1);
        names.port = silent.local_addr().expect("it is bound").port();

        assert_eq!(names.resolve("a.example", route).await, Err(LookupError::TimedOut));
    }
}
