//! How an agent is set up: parsed once, before anything is touched.

use std::net::IpAddr;
use std::path::PathBuf;

use copepod_domain::{Blocks, Cidr};
use copepod_image::PullRules;
use copepod_node::resolve::ClusterDns;
use copepod_shim::engine::Salt;

/// The settings of one agent. `copepod __agent` fills it from its arguments.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The data directory; absolute.
    pub data: PathBuf,
    /// The runner's program.
    pub runner: PathBuf,
    /// The program with the compile child and the broker, which is `copepod` itself.
    pub compiler: PathBuf,
    /// The toolbox's wasm file; none: `exec` has the container's own programs only.
    pub toolbox: Option<PathBuf>,
    /// The blocks that pod addresses come from, e.g. `10.64.0.0/18`; none: a free one, kept.
    pub pod_cidrs: Option<Blocks>,
    /// Where pods without a container limit end: memory that the node gives to pods, in bytes. None: the machine's less 512 MiB.
    pub allocatable_memory: Option<u64>,
    /// CPU that the node gives to pods, in thousandths of a core. None: the machine's.
    pub allocatable_cpu_millis: Option<u32>,
    /// Name servers that guests' names are asked of. None: those of the host's `/etc/resolv.conf` that pods can reach.
    pub name_servers: Option<Vec<IpAddr>>,
    /// Log bytes per second that a container may write before it waits (DESIGN 6): 1 MiB/s unless set.
    pub log_bytes_per_second: u64,
    /// Where pulls may go, and how large they may be.
    pub pull: PullRules,
    /// CPU seconds that the compile child may use: 600 unless set.
    pub compile_cpu_seconds: u64,
    /// Seconds on the clock that a compilation may take: 1,800 unless set.
    pub compile_wall_seconds: u64,
    /// Bytes of memory that the compile child may use: 4 GiB unless set.
    pub compile_memory: u64,
    /// What this machine is in a cluster, whose pods come by a [`crate::front::Front`] and are forgotten once the cluster has forgotten
    /// them. None: a machine by itself.
    pub cluster: Option<ClusterNode>,
    /// Makes this agent one of another generation, whose engine no other's code fits: for tests of upgrades.
    pub engine_salt: Option<Salt>,
}

/// A node of a cluster, as its pods and the packet filter know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// `spec.nodeName`.
    pub name: String,
    /// `status.hostIPs`, the node's own family first.
    pub ips: Vec<IpAddr>,
    /// Folders of the machine beneath which pods may mount; absolute, without `..`.
    pub host_paths: Vec<PathBuf>,
    /// Whether pods may live in the node's own network.
    pub host_network: bool,
    /// TCP ports of the node that no pod reaches: the kubelet's.
    pub denied_ports: Vec<u16>,
    /// Whether pods reach what is outside of their cluster under the node's address; else they do under their own.
    pub masquerade: bool,
    /// Blocks that pods reach under their own addresses in any case.
    pub masquerade_exceptions: Vec<Cidr>,
    /// Other nodes' blocks, as they were last known: pods reach them under their own addresses, until the front says otherwise.
    pub direct: Vec<Cidr>,
    /// What the names of the cluster's Services end in.
    pub domain: String,
    /// The cluster's DNS. None: pods resolve names as the node does.
    pub dns: Option<ClusterDns>,
}

impl AgentConfig {
    /// The default settings for a data directory.
    pub fn new(data: PathBuf, runner: PathBuf, compiler: PathBuf) -> Self {
        Self {
            data,
            runner,
            compiler,
            toolbox: None,
            pod_cidrs: None,
            allocatable_memory: None,
            allocatable_cpu_millis: None,
            name_servers: None,
            log_bytes_per_second: 1 << 20,
            pull: PullRules::default(),
            compile_cpu_seconds: 600,
            compile_wall_seconds: 1800,
            compile_memory: 4 << 30,
            cluster: None,
            engine_salt: None,
        }
    }
}
