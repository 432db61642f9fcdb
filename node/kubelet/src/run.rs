//! `copepod node` from its start to its end.
//!
//! Start at [`run`]. It has two phases, as the agent enters namespaces while the process has one thread, and needs to know the pods'
//! addresses by then. The first, [`join`], asks the API server, keeps what it says in `<data>/node.json`, and has the process
//! execute itself anew, which leaves no thread behind. The second starts from that file: with the API server away too.
//!
//! Absent: what a node does ([`crate::heartbeat`], [`crate::lease`], [`crate::pods`], [`crate::server`]).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use copepod_agent::front::Front;
use copepod_agent::{AgentConfig, AgentError, ClusterNode, run_agent, with_causes};
use copepod_domain::Blocks;
use copepod_node::resolve::ClusterDns;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::bootstrap::{BootstrapError, bootstrap};
use crate::connection::{Connection, Use};
use crate::heartbeat::Heartbeat;
use crate::identity::{self, Identity, IdentityError};
use crate::joined::{Joined, JoinedError};
use crate::machine::{Machine, NoAddress, addresses, at_odds};
use crate::node_object::{Known, NodeState, pod_cidrs};
use crate::outdated::Outdating;
use crate::pods::{Book, Keeper, KeeperSettings};
use crate::pressure::Pressures;
use crate::register::{RegisterError, register};
use crate::routes::follow::{self, Follower, follow, withdraw};
use crate::server::access::{ClientAuthorities, ClusterReviews};
use crate::server::pods::Here;
use crate::server::{Server, ServerSettings};
use crate::settings::{Masquerade, NodeSettings, Routes};
use crate::trouble::explain;
use crate::{heartbeat, images, lease, own_node, rotation};

/// Features of Kubernetes that the scheduler may count on here: none before it works (kubelet.md N14).
pub const FEATURES: &[&str] = &[];

/// One request to the API server, which answers at once or not at all.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a podCIDR may take before somebody is told what it waits for, and told again.
const REMIND: Duration = Duration::from_secs(60);

/// Why a node cannot start or go on. Each is for a person; what may pass by itself is waited for.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The kubeconfig is of no use.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It has no identity, and gets none.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The credentials do not work together.
    #[error("{0}")]
    Credentials(String),
    /// The machine cannot be read.
    #[error("this machine cannot be looked at")]
    Machine(#[source] io::Error),
    /// No address.
    #[error(transparent)]
    Address(#[from] NoAddress),
    /// Registration.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// What was kept.
    #[error(transparent)]
    Joined(#[from] JoinedError),
    /// No blocks of addresses.
    #[error(
        "the cluster has given this node the podCIDRs {given}, of which pods can have no addresses: {why}"
    )]
    Blocks {
        /// What it has given.
        given: String,
        /// What is wrong with it.
        why: String,
    },
    /// The kubelet's API has no place.
    #[error("the kubelet's API cannot listen on {listen}: choose another port with --port")]
    Port {
        /// Where it was to be.
        listen: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The process cannot go on as it has to.
    #[error("cannot begin")]
    Begin(#[source] io::Error),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Runs a node until it is told to stop. To be called before the process has a second thread. `agent` is set up but for what a
/// cluster decides.
///
/// # Errors
/// See [`NodeError`].
pub fn run(settings: NodeSettings, agent: AgentConfig) -> Result<(), NodeError> {
    let Some(joined) = Joined::read(&settings.data, &settings.node_name)? else {
        join(&settings)?;
        return Err(NodeError::Begin(again()));
    };
    serve(settings, agent, joined)
}

/// Ends whatever runs on this machine of a node whose process was stopped, undoes what the node has changed here, and forgets where it
/// belonged. The Node object and its pods in the API are their administrator's. To be called before the process has a second thread.
///
/// # Errors
/// The node's process still runs; or a step that the machine refused.
pub fn reset(agent: AgentConfig) -> Result<(), NodeError> {
    let data = agent.data.clone();
    // By itself, an agent without pods undoes what it made, and leaves.
    run_agent(agent, |front| {
        tokio::spawn(async move {
            for uid in front.known().await.into_keys() {
                front.forget(&uid).await;
            }
        });
    })?;
    follow::forget(&data).map_err(NodeError::Machine)?;
    Ok(Joined::forget(&data)?)
}

/// Executes this program anew, with the same arguments, in this process. It returns only where that fails.
fn again() -> io::Error {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "copepod".into());
    // The file that runs now, also where an upgrade has put another one in its place.
    Command::new("/proc/self/exe").arg0(name).args(arguments).exec()
}

/// The first phase: connects, registers, waits for the podCIDR, and keeps it.
///
/// # Errors
/// See [`NodeError`]. An API server that does not answer is waited for.
pub fn join(settings: &NodeSettings) -> Result<Joined, NodeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(NodeError::Begin)?;
    runtime.block_on(joining(settings))
}

/// Who this node is: by its kubeconfig, or where it has none, or its certificate has ended, by the bootstrap kubeconfig.
///
/// # Errors
/// See [`NodeError`]. An API server that does not answer a bootstrap is waited for.
pub async fn identify(settings: &NodeSettings) -> Result<Identity, NodeError> {
    match (identity::of_settings(settings, Timestamp::now()).await, &settings.bootstrap_kubeconfig)
    {
        (Err(error), Some(with)) if error.asks_for_bootstrap() => {
            info!(because = %error, "the node has no identity yet");
            bootstrap(settings, with).await?;
            Ok(identity::of_settings(settings, Timestamp::now()).await?)
        }
        (identity, _) => Ok(identity?),
    }
}

async fn joining(settings: &NodeSettings) -> Result<Joined, NodeError> {
    std::fs::create_dir_all(&settings.data).map_err(NodeError::Machine)?;
    let identity = identify(settings).await?;
    let connection = Connection::new(identity.config);
    let server = connection.server();
    let bad = |error: kube::Error| NodeError::Credentials(explain(&error, &server));
    let client = connection.client(Use::Requests(PATIENCE)).map_err(bad)?;
    let machine = Machine::here(&settings.data).map_err(NodeError::Machine)?;
    let addresses = addresses(&settings.node_ips, address_of(&server), settings.pod_cidrs)?;
    // Nothing runs yet, and nothing could.
    let state = NodeState { agent_up: true, ..NodeState::default() };
    let known = Known {
        settings,
        machine: &machine,
        addresses: &addresses,
        state: &state,
        pressures: Pressures::default(),
        features: FEATURES,
    };
    let node = register(&Api::all(client.clone()), known, &server).await?;
    let mut found = pod_cidrs(&node);
    if found.is_empty() {
        info!("waiting for the cluster to give this node a podCIDR");
        // It is a node meanwhile, that lives and is not ready.
        let (_uid, known_uid) = watch::channel(node.metadata.uid.clone());
        lease::keep(connection.clone(), settings.node_name.clone(), known_uid)
            .map_err(NodeError::Begin)?;
        let own =
            own_node::follow(connection.client(Use::Streams).map_err(bad)?, &settings.node_name);
        let (_state, state) = watch::channel(state.clone());
        let heartbeat = Heartbeat {
            client,
            server: server.clone(),
            settings: Arc::new(settings.clone()),
            machine: machine.clone(),
            addresses: addresses.clone(),
            features: FEATURES,
            pod_cidrs: None,
            pressures: watch::channel(Pressures::default()).0,
        };
        tokio::spawn(heartbeat.run(own.clone(), state));
        found = podcidr(own).await;
    }
    blocks(&found)?;
    let joined = Joined {
        node_name: settings.node_name.to_string(),
        uid: node.metadata.uid.unwrap_or_default(),
        pod_cidrs: found,
    };
    joined.write(&settings.data)?;
    info!(pods = joined.pod_cidrs.join(","), "joined");
    Ok(joined)
}

/// Waits until the node has a podCIDR.
async fn podcidr(mut own: own_node::OwnNode) -> Vec<String> {
    let given =
        |node: &Option<Arc<Node>>| node.as_ref().is_some_and(|node| !pod_cidrs(node).is_empty());
    loop {
        match tokio::time::timeout(REMIND, own.wait_for(given)).await {
            Ok(Ok(node)) => return node.as_ref().map(|node| pod_cidrs(node)).unwrap_or_default(),
            // The sender goes on for as long as there is a receiver.
            Ok(Err(_)) => return Vec::new(),
            Err(_) => warn!(
                "the cluster gives this node no podCIDR: have kube-controller-manager run with --allocate-node-cidrs and \
                 --cluster-cidr, or give a block that nobody else uses with --pod-cidr"
            ),
        }
    }
}

/// The blocks that pods here get their addresses of.
fn blocks(given: &[String]) -> Result<Blocks, NodeError> {
    let given = given.join(",");
    given.parse().map_err(|why| NodeError::Blocks { given, why })
}

/// The API server's first address.
fn address_of(server: &http::Uri) -> Option<SocketAddr> {
    let port = server.port_u16().unwrap_or(443);
    let host = server.host()?.trim_start_matches('[').trim_end_matches(']');
    (host, port).to_socket_addrs().ok()?.next()
}

/// The second phase: the agent goes on with its pods at once, and the cluster's side stands beside it. The API server may be away
/// for as long as it will.
fn serve(settings: NodeSettings, agent: AgentConfig, joined: Joined) -> Result<(), NodeError> {
    let blocks = blocks(&joined.pod_cidrs)?;
    let identity = {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(NodeError::Begin)?;
        runtime.block_on(identify(&settings))?
    };
    let server = Connection::new(identity.config.clone()).server();
    let addresses = addresses(&settings.node_ips, address_of(&server), Some(blocks))?;
    for sentence in at_odds(&addresses, blocks) {
        warn!("{sentence}");
    }
    let machine = Machine::here(&settings.data).map_err(NodeError::Machine)?;
    let agent = AgentConfig {
        pod_cidrs: Some(blocks),
        cluster: Some(ClusterNode {
            name: settings.node_name.to_string(),
            ips: addresses.clone(),
            host_paths: settings.host_paths.clone(),
            host_network: settings.host_network,
            denied_ports: vec![settings.port],
            masquerade: settings.masquerade == Masquerade::Auto,
            masquerade_exceptions: settings.masquerade_exceptions.clone(),
            direct: match settings.routes {
                Routes::Auto => follow::kept(&settings.data),
                Routes::Off => Vec::new(),
            },
            domain: settings.cluster_domain.clone(),
            dns: (!settings.cluster_dns.is_empty()).then(|| ClusterDns {
                servers: settings.cluster_dns.clone(),
                domain: settings.cluster_domain.clone(),
            }),
        }),
        ..agent
    };
    let side = Side { settings: Arc::new(settings), identity, joined, blocks, addresses, machine };
    run_agent(agent, |front| {
        tokio::spawn(async move {
            if let Err(error) = side.stand(front).await {
                // Guests go on, and whoever looks after this process starts it again.
                tracing::error!("{}", with_causes(&error));
                std::process::exit(1);
            }
        });
    })?;
    Ok(())
}

/// What the cluster's side of a node begins with.
struct Side {
    settings: Arc<NodeSettings>,
    identity: Identity,
    joined: Joined,
    /// The pods' addresses.
    blocks: Blocks,
    addresses: Vec<IpAddr>,
    machine: Machine,
}

impl Side {
    /// Stands for the node in its cluster until the node's heart stops, which it does not.
    async fn stand(self, front: Front) -> Result<(), NodeError> {
        let Self { settings, identity, joined, blocks, addresses, machine } = self;
        // As a kubeadm cluster has it, whoever vouches for the API server vouches for its clients.
        let cluster_authorities = identity.config.root_cert.clone().unwrap_or_default();
        let connection = Connection::new(identity.config);
        let server = connection.server();
        let bad = |error: kube::Error| NodeError::Credentials(explain(&error, &server));
        let client = connection.client(Use::Requests(PATIENCE)).map_err(bad)?;
        let streams = connection.client(Use::Streams).map_err(bad)?;
        let node = settings.node_name.to_string();

        // The kubelet's API answers before anybody is told of it (kubernetes #84891).
        let ask = identity.certificate.is_some_and(|it| it.user == settings.node_name.user());
        let (serving, kept_fresh) =
            rotation::serving(connection.clone(), settings.clone(), &addresses, ask)
                .map_err(NodeError::Credentials)?;
        tokio::spawn(kept_fresh);
        tokio::spawn(rotation::client(connection.clone(), settings.clone()));
        let authorities = match &settings.client_ca_file {
            Some(file) => ClientAuthorities::file(file),
            None => ClientAuthorities::fixed(
                cluster_authorities.into_iter().map(CertificateDer::from).collect(),
            ),
        };
        let book = Arc::new(Book::default());
        let listen = SocketAddr::new(unspecified(&addresses), settings.port);
        let api = Server::bind(ServerSettings {
            listen,
            serving,
            authorities: authorities.map_err(NodeError::Credentials)?,
            reviews: Arc::new(ClusterReviews::new(client.clone(), node.clone())),
            pods: Arc::new(Here::new(front.clone(), book.clone())),
            node: node.clone(),
            config: configuration(&settings),
            metrics: connection.metrics().clone(),
            data: settings.data.clone(),
        });
        let api = api.await.map_err(|source| NodeError::Port { listen, source })?;
        tokio::spawn(api.run());

        let up = NodeState { agent_up: true, network_ready: true, ..NodeState::default() };
        let known = Known {
            settings: &settings,
            machine: &machine,
            addresses: &addresses,
            state: &up,
            pressures: heartbeat::look(&settings, Pressures::default()).unwrap_or_default(),
            features: FEATURES,
        };
        let (pressures, short_of) = watch::channel(known.pressures);
        let (_uid, uid) = watch::channel(Some(joined.uid.clone()));
        lease::keep(connection.clone(), settings.node_name.clone(), uid)
            .map_err(NodeError::Begin)?;
        register(&Api::all(client.clone()), known, &server).await?;
        let own = own_node::follow(streams.clone(), &settings.node_name);
        tokio::spawn(ways(
            settings.clone(),
            client.clone(),
            streams.clone(),
            blocks,
            front.clone(),
        ));
        let outdating = Outdating {
            front: front.clone(),
            client: client.clone(),
            server: server.clone(),
            metrics: connection.metrics().clone(),
            max_age: settings.max_runner_age,
        };
        tokio::spawn(outdating.run());
        let images_of = front.clone();
        let keeper = KeeperSettings {
            client: client.clone(),
            streams,
            node,
            own: own.clone(),
            short_of,
            front,
            book,
            metrics: connection.metrics().clone(),
        };
        tokio::spawn(Keeper::new(keeper).run());
        let (told, state) = watch::channel(up);
        tokio::spawn(images::tell(images_of, told));
        let heartbeat = Heartbeat {
            client,
            server: server.clone(),
            machine,
            addresses,
            features: FEATURES,
            pod_cidrs: Some(joined.pod_cidrs),
            pressures,
            settings,
        };
        heartbeat.run(own, state).await;
        Ok(())
    }
}

/// Looks after the ways to other nodes' pods, as the settings say.
async fn ways(
    settings: Arc<NodeSettings>,
    client: kube::Client,
    streams: kube::Client,
    own: Blocks,
    front: Front,
) {
    let (node, data) = (settings.node_name.clone(), settings.data.clone());
    match settings.routes {
        Routes::Auto => follow(Follower { client, streams, node, own, data, front }).await,
        Routes::Off => {
            info!("ways to other nodes' pods are the network's (--routes off)");
            if let Err(why) = withdraw(&front, &data).await {
                warn!("routes to other nodes' pods are left over: {why}");
            }
        }
    }
}

/// All addresses of the node's families: those of IPv6 stand for those of IPv4, too.
fn unspecified(addresses: &[IpAddr]) -> IpAddr {
    if addresses.iter().any(IpAddr::is_ipv6) {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

/// What `/configz` shows, under the names that a kubelet's configuration has.
fn configuration(settings: &NodeSettings) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "port": settings.port,
        "maxPods": settings.max_pods,
        "clusterDomain": settings.cluster_domain,
        "clusterDNS": settings.cluster_dns,
        "podCIDR": settings.pod_cidrs.map(|blocks| blocks.to_string()),
    })
}
