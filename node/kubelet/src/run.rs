//! `copepod node` from its start to its end.
//!
//! Start at [`run`]. It has two phases, as the agent enters namespaces while the process has one thread, and needs to know the pods'
//! addresses by then. The first, [`join`], asks the API server, keeps what it says in `<data>/node.json`, and has the process
//! execute itself anew, which leaves no thread behind. The second starts from that file: with the API server away too.
//!
//! Absent: what a node does ([`crate::heartbeat`], [`crate::lease`], the pods).

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use copepod_agent::{AgentConfig, AgentError};
use copepod_domain::Cidr;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::bootstrap::{BootstrapError, bootstrap};
use crate::connection::{Connection, Use};
use crate::heartbeat::Heartbeat;
use crate::identity::{self, Identity, IdentityError};
use crate::joined::{Joined, JoinedError};
use crate::machine::{Machine, NoAddress, addresses};
use crate::node_object::{Known, NodeState, pod_cidrs};
use crate::pressure::Pressures;
use crate::register::{RegisterError, register};
use crate::settings::NodeSettings;
use crate::trouble::explain;
use crate::{lease, own_node, rotation};

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
    /// No IPv4 block.
    #[error(
        "the cluster has given this node {0} for pods, and pods have IPv4 addresses only so far: it needs an IPv4 podCIDR"
    )]
    NoIpv4(String),
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
            info!("{error}");
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
    let addresses = addresses(&settings.node_ips, address_of(&server))?;
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
        };
        tokio::spawn(heartbeat.run(own.clone(), state));
        found = podcidr(own).await;
    }
    ipv4(&found)?;
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

/// The block that pods here get their addresses of.
fn ipv4(blocks: &[String]) -> Result<Cidr, NodeError> {
    blocks
        .iter()
        .find_map(|block| block.parse().ok())
        .ok_or_else(|| NodeError::NoIpv4(blocks.join(",")))
}

/// The API server's first address.
fn address_of(server: &http::Uri) -> Option<SocketAddr> {
    let port = server.port_u16().unwrap_or(443);
    let host = server.host()?.trim_start_matches('[').trim_end_matches(']');
    (host, port).to_socket_addrs().ok()?.next()
}

// ---------------------------------------------------------------------------------------------------------------------------
// The second phase: the body is the pods' side's.
// ---------------------------------------------------------------------------------------------------------------------------

/// The second phase.
fn serve(settings: NodeSettings, agent: AgentConfig, joined: Joined) -> Result<(), NodeError> {
    let _pods = ipv4(&joined.pod_cidrs)?;
    let _ = agent;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(NodeError::Begin)?;
    runtime.block_on(async move {
        let identity = identify(&settings).await?;
        let connection = Connection::new(identity.config);
        let server = connection.server();
        let bad = |error: kube::Error| NodeError::Credentials(explain(&error, &server));
        let client = connection.client(Use::Requests(PATIENCE)).map_err(bad)?;
        let machine = Machine::here(&settings.data).map_err(NodeError::Machine)?;
        let addresses = addresses(&settings.node_ips, address_of(&server))?;
        let (_state, state) = watch::channel(NodeState::default());
        let known = Known {
            settings: &settings,
            machine: &machine,
            addresses: &addresses,
            state: &NodeState::default(),
            pressures: Pressures::default(),
            features: FEATURES,
        };
        let (_uid, uid) = watch::channel(Some(joined.uid.clone()));
        lease::keep(connection.clone(), settings.node_name.clone(), uid)
            .map_err(NodeError::Begin)?;
        register(&Api::all(client.clone()), known, &server).await?;
        let own =
            own_node::follow(connection.client(Use::Streams).map_err(bad)?, &settings.node_name);
        let settings = Arc::new(settings);
        let ask = identity.certificate.is_some_and(|it| it.user == settings.node_name.user());
        let (_serving, serving) =
            rotation::serving(connection.clone(), settings.clone(), &addresses, ask)
                .map_err(NodeError::Credentials)?;
        tokio::spawn(serving);
        tokio::spawn(rotation::client(connection.clone(), settings.clone()));
        let heartbeat = Heartbeat {
            client,
            server: server.clone(),
            machine,
            addresses,
            features: FEATURES,
            pod_cidrs: Some(joined.pod_cidrs),
            settings,
        };
        heartbeat.run(own, state).await;
        Ok(())
    })
}
