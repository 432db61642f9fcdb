//! `copepod node` as a process of a person's or a test's, and what an administrator does for it.
//!
//! Absent: pods.

// A failed test tells what its node said.
#![allow(clippy::print_stderr)]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Cluster;
use crate::node::Node;
use crate::wait::until;

/// `copepod node` while this lives.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts one with a port of its own for the kubelet's API. What it says is added to `node.log` in the node's folder.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start(node: &Node, arguments: &[&str]) -> Self {
        let log = node.scratch().join("node.log");
        let file = std::fs::File::options().create(true).append(true).open(&log).expect("a log");
        let mut command = node.copepod(&["node"]);
        command.args(arguments).args(["--port", &free_port().to_string()]);
        command.stdout(Stdio::null()).stderr(file);
        Self { child: command.spawn().expect("the built program starts"), log }
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it as `systemctl stop` does where `KillMode=process` is set.
    pub fn terminate(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn free_port() -> u16 {
    let any = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    any.local_addr().expect("bound").port()
}

/// A path as an argument.
///
/// # Panics
/// Where it is no text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a test's paths are text")
}

/// Approves the serving certificate that a node asks for, and waits until the node has it.
///
/// # Panics
/// Where the node does not ask.
pub fn approve_serving(cluster: &Cluster, node: &Node, name: &str) {
    let user = format!("system:node:{name}");
    let request = until("a request for a serving certificate", || {
        let signer = "spec.signerName=kubernetes.io/kubelet-serving";
        let listed = cluster.ok(&["get", "csr", "--field-selector", signer, "--output", "json"]);
        let list: Value = serde_json::from_str(&listed).ok()?;
        let all = list["items"].as_array()?.clone();
        let own = all.into_iter().find(|it| it["spec"]["username"] == user.as_str())?;
        own["metadata"]["name"].as_str().map(str::to_owned)
    });
    cluster.ok(&["certificate", "approve", &request]);
    until("the serving certificate", || {
        node.data().join("pki/serving.pem").is_file().then_some(())
    });
}

/// An address of a pod's port.
///
/// # Panics
/// Where the pod has no address yet.
pub fn address(pod: &Value, port: u16) -> SocketAddr {
    let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
    SocketAddr::new(ip.expect("a pod's address"), port)
}
