//! `cargo xtask demo --kube`: a node of a real Kubernetes, from joining to leaving, its agent killed and upgraded under load.
//!
//! The control plane is that of the tests, built from source. Absent: a second node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use copepod_tests::cluster::member::{Running, address, approve_serving, text};
use copepod_tests::cluster::settings::Settings;
use copepod_tests::cluster::{Cluster, metrics_server};
use copepod_tests::node::{Node, is_ready};
use copepod_tests::registry::Registry;
use copepod_tests::wait::{until, until_it_is};
use copepod_tests::{host, http};
use serde_json::Value;

use super::load::while_asked;
use super::{NAMED, Took, copepod};
use crate::cache::{Cache, checkout};
use crate::kube::{Set, bring};

const NAME: &str = "edge-1";
/// The Deployments of examples/ that are shown: one that serves, and one that has a main, for `kubectl exec`.
const DEPLOYMENTS: [&str; 2] = ["hello-http", "probe"];
/// How many pods the first is scaled to.
const MANY: usize = 50;
/// How long requests go on between two things that happen to the agent.
const BETWEEN: Duration = Duration::from_millis(700);

/// The programs of Kubernetes.
pub(super) struct Programs {
    control_plane: PathBuf,
    metrics_server: PathBuf,
}

impl Programs {
    pub(super) fn bring(cache: &Cache) -> Result<Self> {
        Ok(Self {
            control_plane: bring(cache, Set::ControlPlane)?,
            metrics_server: bring(cache, Set::MetricsServer)?.join("metrics-server"),
        })
    }
}

/// A node, its cluster, and the time that each step takes.
struct Show<'a> {
    cluster: Cluster,
    node: Node,
    took: &'a Took,
}

pub(super) fn show(node: Node, programs: &Programs, took: &Took) -> Result<()> {
    let registry =
        took.step("start a registry on loopback", || Registry::start(&node.built().registry))?;
    let place = registry.address().to_string();
    took.step("pack the guests and push them", || {
        DEPLOYMENTS.iter().try_for_each(|guest| super::push(&node, guest, &place))
    })?;
    let cluster =
        took.step("start etcd, kube-apiserver, kube-controller-manager, kube-scheduler", || {
            let settings = Settings { flags: vec![metrics_server::flag()], ..Settings::default() };
            let cluster = Cluster::start(&programs.control_plane, &settings)?;
            cluster.start_metrics_server(&programs.metrics_server)?;
            Ok(cluster)
        })?;
    let mut show = Show { cluster, node, took };
    let running = show.join()?;
    show.deploy(&place)?;
    show.look()?;
    let running = show.kill_and_upgrade(running)?;
    show.leave(running)
}

impl Show<'_> {
    fn join(&self) -> Result<Running> {
        self.took.step("a machine becomes a node", || {
            let running = self.start()?;
            println!("  $ kubectl certificate approve csr-...");
            approve_serving(&self.cluster, &self.node, NAME);
            print!("{}", self.kubectl(&["get", "nodes", "--output", "wide"]));
            Ok(running)
        })
    }

    /// The node's process: as it is started first, and again wherever it was killed.
    fn start(&self) -> Result<Running> {
        let bootstrap = self.cluster.bootstrap_kubeconfig()?;
        let arguments = ["--bootstrap-kubeconfig", text(&bootstrap), "--node-name", NAME];
        println!("  $ copepod node --bootstrap-kubeconfig bootstrap.conf --node-name {NAME} &");
        let running = Running::start(&self.node, &arguments);
        let get = || self.get(&["node", NAME]);
        until_it_is("the node to be ready", get, is_ready, |node| {
            format!("{}\n{}", node["status"], running.log())
        });
        Ok(running)
    }

    fn deploy(&self, place: &str) -> Result<()> {
        self.took.step("two Deployments: pulled, compiled, started, ready", || {
            for name in DEPLOYMENTS {
                let file = checkout().join("examples").join(name).join("deployment.yaml");
                let manifest = std::fs::read_to_string(file)?.replace(NAMED, place);
                self.kubectl(&["apply", "--filename", &self.node.write(name, manifest)]);
                self.rolled_out(name);
            }
            print!("{}", self.kubectl(&["get", "pods", "--output", "wide"]));
            Ok(())
        })?;
        self.took.step(&format!("scale to {MANY}, all ready"), || {
            self.kubectl(&["scale", "deployment/hello-http", &format!("--replicas={MANY}")]);
            self.rolled_out("hello-http");
            Ok(())
        })?;
        self.took.step("ask each of them by its own address", || {
            let all = self.addresses();
            ensure!(all.len() == MANY, "{} pods have addresses", all.len());
            for pod in &all {
                let answer = http::get(*pod, "/")?;
                ensure!(answer.status == 200, "{pod}: {}", answer.status);
            }
            println!("  {MANY} of {MANY} answered");
            Ok(())
        })
    }

    /// What people look at a cluster with.
    fn look(&self) -> Result<()> {
        self.took.step("kubectl logs, exec and top", || {
            print!("{}", self.kubectl(&["logs", "deployment/probe"]));
            print!(
                "{}",
                self.kubectl(&[
                    "exec",
                    "deployment/probe",
                    "--",
                    "probe",
                    "cannot-read /etc/passwd"
                ])
            );
            until_it_is(
                "metrics-server to have seen the pods twice",
                || {
                    self.cluster.assert_well();
                    self.cluster.kubectl(&["top", "pods", "--selector", "app=probe"])
                },
                |told| told.code == Some(0) && told.stdout.contains("probe"),
                |told| format!("{}{}", told.stdout, told.stderr),
            );
            print!("{}", self.kubectl(&["top", "nodes"]));
            print!("{}", self.kubectl(&["top", "pods", "--selector", "app=probe"]));
            Ok(())
        })
    }

    /// Two crashes of the agent, and two programs in its place whose engine loads no code of the one before.
    fn kill_and_upgrade(&mut self, running: Running) -> Result<Running> {
        let took = self.took;
        let mut running = Some(running);
        let addresses = self.addresses();
        let met = took.step("kill the agent twice and upgrade it, under load", || {
            while_asked(&addresses, || {
                for next in [None, None, Some("the-next-version")] {
                    std::thread::sleep(BETWEEN);
                    let agent = running.take().context("it runs")?;
                    println!("  kill -9 {} (the agent)", agent.pid());
                    drop(agent);
                    if let Some(next) = next {
                        println!("  ... and another build of both programs takes its place");
                        self.node.upgrade(next);
                    }
                    std::thread::sleep(BETWEEN);
                    running = Some(self.start()?);
                }
                // New pods are the new program's, beside the old ones.
                self.kubectl(&[
                    "scale",
                    "deployment/hello-http",
                    &format!("--replicas={}", MANY + 5),
                ]);
                self.rolled_out("hello-http");
                Ok(())
            })
        })?;
        let restarts: u64 = self
            .pods()
            .iter()
            .filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64())
            .sum();
        let (answered, failed) = (met.answered, met.failed);
        println!(
            "  {answered} requests answered, {failed} failed, {restarts} containers restarted"
        );
        println!("  runners: {}, of two builds", self.node.runners().len());
        ensure!(failed == 0, "{failed} requests failed");
        ensure!(restarts == 0, "{restarts} containers were restarted");
        running.context("it was started again")
    }

    fn leave(&self, running: Running) -> Result<()> {
        self.took.step("delete everything, and look for what was left behind", || {
            self.kubectl(&["delete", "deployment", "--all"]);
            until("the pods to be gone", || self.pods().is_empty().then_some(()));
            self.kubectl(&["delete", "node", NAME]);
            drop(running);
            copepod(&self.node, &["node", "reset"])?;
            let left = host::leftovers(&self.node.mark());
            ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
            Ok(())
        })?;
        println!("  left behind: no process, interface, route, mount, cgroup or nftables table");
        Ok(())
    }

    fn rolled_out(&self, name: &str) {
        let deployment = format!("deployment/{name}");
        print!("{}", self.kubectl(&["rollout", "status", &deployment, "--timeout=120s"]));
    }

    fn pods(&self) -> Vec<Value> {
        self.get(&["pods"])["items"].as_array().cloned().unwrap_or_default()
    }

    /// Where the pods of the Deployment that serves are.
    fn addresses(&self) -> Vec<SocketAddr> {
        let pods = self.get(&["pods", "--selector", "app=hello-http"]);
        let all = pods["items"].as_array().into_iter().flatten();
        all.map(|pod| address(pod, 8080)).collect()
    }

    fn get(&self, what: &[&str]) -> Value {
        let told = self.cluster.kubectl(&[&["get"], what, &["--output", "json"]].concat());
        serde_json::from_str(&told.stdout).unwrap_or_default()
    }

    /// kubectl, shown as it is run; it must succeed.
    fn kubectl(&self, arguments: &[&str]) -> String {
        let quoted = |word: &&str| match word.contains(' ') {
            true => format!("\"{word}\""),
            false => (*word).to_owned(),
        };
        println!("  $ kubectl {}", arguments.iter().map(quoted).collect::<Vec<_>>().join(" "));
        self.cluster.ok(arguments)
    }
}
