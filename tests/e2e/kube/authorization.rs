//! Who gets into a node's own HTTPS API, and to what, where a real API server reviews tokens and rights.
//!
//! Start at [`ROUTES`]. What a path's spelling or a body could do to it, the kubelet's own tests show with a fake of the API server.
//! Absent: what the routes answer.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use copepod_tests::cluster::Cluster;
use copepod_tests::cluster::identity::Identity;
use copepod_tests::manifest::{pod, probe};
use copepod_tests::wait::until;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use super::running::Joined;

/// A route: its path after the place of the pod, what covers it, and what it answers to a GET of the API server's.
struct Route {
    path: &'static str,
    cover: Cover,
    get: u16,
}

#[derive(Clone, Copy)]
enum Cover {
    /// By the method's verb on one of these.
    Any(&'static [&'static str]),
    /// By `create` on `proxy`, whatever the method.
    Run,
}

use Cover::{Any, Run};

/// `POD` is the pod's namespace and name.
const ROUTES: &[Route] = &[
    Route { path: "/healthz", cover: Any(&["healthz", "proxy"]), get: 200 },
    Route { path: "/healthz/ping", cover: Any(&["healthz", "proxy"]), get: 200 },
    Route { path: "/healthz/syncloop", cover: Any(&["healthz", "proxy"]), get: 200 },
    Route { path: "/pods", cover: Any(&["pods", "proxy"]), get: 200 },
    Route { path: "/runningpods/", cover: Any(&["pods", "proxy"]), get: 200 },
    Route { path: "/configz", cover: Any(&["configz", "proxy"]), get: 200 },
    Route { path: "/stats/summary", cover: Any(&["stats"]), get: 200 },
    Route { path: "/metrics", cover: Any(&["metrics"]), get: 200 },
    Route { path: "/metrics/resource", cover: Any(&["metrics"]), get: 200 },
    Route { path: "/metrics/probes", cover: Any(&["metrics"]), get: 200 },
    Route { path: "/metrics/cadvisor", cover: Any(&["metrics"]), get: 404 },
    Route { path: "/containerLogs/POD/probe", cover: Any(&["proxy"]), get: 200 },
    Route { path: "/exec/POD/probe?command=x&output=1", cover: Run, get: 400 },
    Route { path: "/attach/POD/probe?output=1", cover: Run, get: 400 },
    Route { path: "/portForward/POD", cover: Run, get: 400 },
    Route { path: "/run/POD/probe?cmd=x", cover: Run, get: 405 },
    Route { path: "/logs/", cover: Any(&["log"]), get: 405 },
    Route { path: "/checkpoint/POD/probe", cover: Any(&["checkpoint"]), get: 404 },
    Route { path: "/statusz", cover: Any(&["statusz"]), get: 404 },
    Route { path: "/flagz", cover: Any(&["configz"]), get: 404 },
    Route { path: "/debug/pprof/heap", cover: Any(&["proxy"]), get: 405 },
    Route { path: "/", cover: Any(&["proxy"]), get: 404 },
    Route { path: "/nowhere", cover: Any(&["proxy"]), get: 404 },
];

/// Methods, and the verbs that they are to the API server; a method without one is nobody's.
const METHODS: &[(&str, Option<&str>)] = &[
    ("GET", Some("get")),
    ("POST", Some("create")),
    ("PUT", Some("update")),
    ("PATCH", Some("patch")),
    ("DELETE", Some("delete")),
    ("HEAD", None),
    ("OPTIONS", None),
];

/// What somebody may do with nodes, by the cluster's roles.
#[derive(Clone, Copy)]
enum Rights {
    /// The API server does not know them.
    Unknown,
    /// These verbs on these subresources.
    These(&'static [(&'static str, &'static str)]),
    All,
}

impl Rights {
    fn allow(self, method: Option<&str>, cover: Cover) -> bool {
        let may = |verb: &str, on: &str| match self {
            Self::Unknown => false,
            Self::These(all) => all.contains(&(verb, on)),
            Self::All => true,
        };
        match (cover, method) {
            (Run, _) => may("create", "proxy"),
            (Any(all), Some(verb)) => all.iter().any(|on| may(verb, on)),
            (Any(_), None) => false,
        }
    }
}

/// Somebody who asks.
struct Caller {
    who: &'static str,
    rights: Rights,
    /// A certificate chain and its key, in PEM form.
    certificate: Option<(Vec<u8>, Vec<u8>)>,
    token: Option<String>,
}

/// The node's API, as its clients see it.
struct Api {
    address: SocketAddr,
    authority: String,
    /// The namespace and name of a pod that runs.
    pod: String,
}

impl Api {
    fn of(node: &Joined<'_>, pod: &str) -> Self {
        let status = &node.get("node", &node.name)["status"];
        let addresses = status["addresses"].as_array().expect("a list");
        let internal = addresses.iter().find(|it| it["type"] == "InternalIP").expect("an address");
        let ip = internal["address"].as_str().expect("text").parse().expect("an address");
        let port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().expect("a port");
        Self {
            address: SocketAddr::new(ip, u16::try_from(port).expect("a port")),
            authority: node.cluster.authority().certificate().to_owned(),
            pod: format!("{}/{pod}", node.name),
        }
    }

    /// The status code of a request on a connection of its own.
    fn ask(&self, caller: &Caller, method: &str, path: &str, headers: &[&str]) -> u16 {
        let code = self.try_ask(caller, method, path, headers);
        code.unwrap_or_else(|error| panic!("{method} {path} by {}: {error}", caller.who))
    }

    fn try_ask(
        &self,
        caller: &Caller,
        method: &str,
        path: &str,
        headers: &[&str],
    ) -> std::io::Result<u16> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(self.authority.as_bytes());
        roots.add(authority.expect("a certificate")).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS")
            .with_root_certificates(roots);
        let config = match &caller.certificate {
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>();
                let key = PrivateKeyDer::from_pem_slice(key).expect("a key");
                config.with_client_auth_cert(chain.expect("a chain"), key).expect("they match")
            }
            None => config.with_no_client_auth(),
        };
        let name = ServerName::from(self.address.ip());
        let session = ClientConnection::new(Arc::new(config), name).expect("a session");
        let socket = TcpStream::connect(self.address)?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut stream = StreamOwned::new(session, socket);
        let path = path.replace("POD", &self.pod);
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nhost: node\r\ncontent-length: 0\r\n");
        if let Some(token) = &caller.token {
            request.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        headers.iter().for_each(|it| request.push_str(&format!("{it}\r\n")));
        request.push_str("\r\n");
        stream.write_all(request.as_bytes())?;
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line)?;
        let code = line.split(' ').nth(1).and_then(|it| it.parse().ok());
        code.ok_or_else(|| std::io::Error::other(format!("not HTTP: {line:?}")))
    }
}

/// The certificate and key of a new kubeconfig.
fn certificate(cluster: &Cluster, of: &Identity) -> Option<(Vec<u8>, Vec<u8>)> {
    let file = cluster.kubeconfig(of).expect("a kubeconfig");
    let text = std::fs::read(file).expect("it is there");
    let kubeconfig: Value = serde_json::from_slice(&text).expect("JSON");
    let user = &kubeconfig["users"][0]["user"];
    let part = |key: &str| {
        let text = user[key].as_str().expect("text");
        BASE64_STANDARD.decode(text).expect("base64")
    };
    Some((part("client-certificate-data"), part("client-key-data")))
}

/// A service account of the node's namespace with these rights to nodes, and its token for an audience.
fn account(
    node: &Joined<'_>,
    name: &str,
    rights: &[(&str, &str)],
    audience: Option<&str>,
) -> Option<String> {
    let rules: Vec<Value> = rights
        .iter()
        .map(|(verb, on)| json!({ "apiGroups": [""], "resources": [format!("nodes/{on}")], "verbs": [verb] }))
        .collect();
    let api = "rbac.authorization.k8s.io";
    let role = format!("{}-{name}", node.name);
    node.cluster.apply(&[
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": name, "namespace": node.name },
        }),
        json!({
            "apiVersion": format!("{api}/v1"), "kind": "ClusterRole", "metadata": { "name": role }, "rules": rules,
        }),
        json!({
            "apiVersion": format!("{api}/v1"), "kind": "ClusterRoleBinding", "metadata": { "name": role },
            "roleRef": { "apiGroup": api, "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": node.name }],
        }),
    ]);
    // Roles are in force some moments after they were made, and the node believes a refusal for half a minute.
    let user = format!("--as=system:serviceaccount:{}:{name}", node.name);
    for (verb, on) in rights {
        let question = ["auth", "can-i", *verb, "nodes", "--subresource", *on, user.as_str()];
        until("a role to be in force", || {
            (node.cluster.kubectl(&question).code == Some(0)).then_some(())
        });
    }
    let audience = audience.map(|it| format!("--audience={it}"));
    let arguments: Vec<&str> =
        ["create", "token", name].into_iter().chain(audience.as_deref()).collect();
    Some(node.kubectl(&arguments).trim().to_owned())
}

const METRICS: &[(&str, &str)] = &[("get", "metrics")];
const LOOKS: &[(&str, &str)] = &[("get", "proxy")];
const RUNS: &[(&str, &str)] = &[("create", "proxy")];

fn callers(node: &Joined<'_>) -> Vec<Caller> {
    let cluster = node.cluster;
    let by = |who, rights, of: &Identity| Caller {
        who,
        rights,
        certificate: certificate(cluster, of),
        token: None,
    };
    let with = |who, rights, token| Caller { who, rights, certificate: None, token };
    let file = |name: &str| std::fs::read(cluster.folder().join(name)).expect("it is there");
    let api_server = (file("kubelet-client.crt"), file("kubelet-client.key"));
    let other = Identity::node("authorization-other");
    vec![
        with("nobody", Rights::Unknown, None),
        with("who makes a token up", Rights::Unknown, Some("made.up.token".to_owned())),
        by("an admin of once", Rights::Unknown, &Identity::admin().expired()),
        by("an admin elsewhere", Rights::Unknown, &Identity::admin().foreign()),
        with(
            "who has a token for another audience",
            Rights::Unknown,
            account(node, "astray", &[("get", "proxy"), ("create", "proxy")], Some("elsewhere")),
        ),
        by("another node", Rights::These(&[]), &other),
        by("the node itself", Rights::These(&[]), &Identity::node(&node.name)),
        with("an account without rights", Rights::These(&[]), account(node, "idle", &[], None)),
        with("who may get metrics", Rights::These(METRICS), account(node, "m", METRICS, None)),
        with("who may look", Rights::These(LOOKS), account(node, "looks", LOOKS, None)),
        with("who may run", Rights::These(RUNS), account(node, "runs", RUNS, None)),
        Caller {
            who: "the API server",
            rights: Rights::All,
            certificate: Some(api_server),
            token: None,
        },
    ]
}

#[test]
fn each_caller_gets_to_the_routes_that_the_cluster_s_roles_give_and_to_no_other() {
    let node = Joined::start("authorization", &["probe"]);
    node.apply(&[pod("talker", [probe(&["sleep 600000"])])]);
    node.wait("talker", "running", |pod| pod["status"]["phase"] == "Running");
    node.approve_serving();
    let (api, callers) = (Api::of(&node, "talker"), callers(&node));
    // The new certificate is shown a moment after it is there.
    until("the certificate to be shown", || api.try_ask(&callers[0], "GET", "/", &[]).ok());

    let mut wrong = Vec::new();
    for caller in &callers {
        for Route { path, cover, get } in ROUTES {
            for (method, verb) in METHODS {
                let code = api.ask(caller, method, path, &[]);
                let is_right = match caller.rights {
                    Rights::Unknown => code == 401,
                    rights if !rights.allow(*verb, *cover) => code == 403,
                    Rights::All if *method == "GET" => code == *get,
                    _ => !matches!(code, 401 | 403 | 500..),
                };
                if !is_right {
                    wrong.push(format!("{method} {path} by {}: {code}", caller.who));
                }
            }
        }
    }

    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), node.log());
    // What was asked about a caller was kept: seven have tokens, and a token that is none is asked about again after ten seconds.
    let user = format!("system:node:{}", node.name);
    let asked = |resource: &str| {
        let all = node.cluster.audit().into_iter();
        all.filter(|it| it.user() == user && it.resource() == resource).count()
    };
    let (tokens, rights) = (asked("tokenreviews"), asked("subjectaccessreviews"));
    assert!((6..100).contains(&tokens), "{tokens} of {}", callers.len() * ROUTES.len());
    assert!((1..callers.len() * 50).contains(&rights), "{rights} questions");
    assert_eq!(node.denials(), Vec::<String>::new());
}

#[test]
fn a_web_socket_to_a_command_needs_the_right_to_run_and_not_only_to_look() {
    let node = Joined::start("authorization-exec", &["probe"]);
    node.apply(&[pod("talker", [probe(&["sleep 600000"])])]);
    node.wait("talker", "running", |pod| pod["status"]["phase"] == "Running");
    node.approve_serving();
    let api = Api::of(&node, "talker");
    let upgrade = [
        "connection: Upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-protocol: v5.channel.k8s.io",
    ];
    let ask = |who: &'static str, rights: &'static [(&'static str, &'static str)]| {
        let token = account(&node, who, rights, None);
        let caller = Caller { who, rights: Rights::These(rights), certificate: None, token };
        let path = "/exec/POD/probe?command=probe&command=print+hello&output=1";
        until("an answer over TLS", || api.try_ask(&caller, "GET", path, &upgrade).ok())
    };

    assert_eq!(ask("looks", LOOKS), 403);
    assert_eq!(ask("runs", RUNS), 101);
}
