//! The peer that is a whole node: the control plane's own kubelet with containerd, runc and a bridge, as Debian has them.
//!
//! It runs in namespaces of processes and mounts of its own, with empty folders over those that it would write to, so that it ends
//! with its first process and leaves nothing but a bridge and cgroups, which are removed here. Settings are for its good: images are
//! there, it may ask the API server as often as it likes, and evicts nobody.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use copepod_tests::cluster::Cluster;
use copepod_tests::cluster::identity::Identity;
use serde_json::{Value, json};

use super::{Node, OF_A_KUBELET, await_ready};
use crate::bench::cgroup::Cgroup;
use crate::bench::peers::{self, Running, free_port};
use crate::cache::Cache;
use crate::command::output;
use crate::debian;

const NAME: &str = "kubelet";

/// The image of its pods and of their sandboxes: busybox, asleep.
const IMAGE: &str = "bench.invalid/sleep:1";

/// What a kubelet insists on having of the machine, file by file. It reads them here and has no reason to write them.
const KERNEL: [(&str, &str); 7] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
    ("net/ipv4/ip_forward", "1"),
];

/// The kubelet and all that it needs, until this is dropped. In this order: first its processes end.
pub(super) struct Kubelet {
    _processes: Running,
    _bridge: Bridge,
    group: Cgroup,
    versions: Vec<String>,
}

/// The bridge of its pods' network.
struct Bridge(String);

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = output(Command::new("ip").args(["link", "delete", &self.0]));
    }
}

impl Kubelet {
    pub(super) fn start(
        cache: &Cache,
        programs: &Path,
        cluster: &Cluster,
        folder: &Path,
    ) -> Result<Self> {
        let home = folder.join("kubelet");
        std::fs::create_dir_all(&home)?;
        let containerd = debian::program(cache, "containerd", "containerd")?;
        let ctr = debian::program(cache, "containerd", "ctr")?;
        // The program itself, as its starter would be run several times for each container.
        let runc = debian::unpacked(cache, "containerd", "runc")?;
        let plugins = debian::folder(cache, "containernetworking-plugins", "usr/lib/cni")?;
        let rootfs = peers::bundle(cache, &home)?.join("rootfs");
        let image = peers::pack(&rootfs, &home, IMAGE, &["/bin/sleep", "100000000"])?;
        let group = Cgroup::make_for_pods(NAME)?;
        let bridge = Bridge(format!("bench{}", std::process::id()));

        write_network(&home, &bridge.0)?;
        std::fs::write(home.join("containerd.toml"), containerd_config(&home, &runc, &plugins))?;
        std::fs::write(home.join("kubelet.json"), kubelet_config(&home, &group)?.to_string())?;
        std::fs::write(home.join("resolv.conf"), "")?;
        let kubeconfig = cluster.kubeconfig(&Identity::node(NAME))?;
        let kubelet = programs.join("kubelet");
        let script = script(&home, &group, &[&containerd, &ctr, &image, &kubelet, &kubeconfig])?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]);
        command.arg(script);
        let processes = Running::logged(&mut command, &home.join("log"))?;
        let versions = [(&containerd, "--version"), (&runc, "--version"), (&kubelet, "--version")]
            .map(|(program, argument)| peers::version(program, argument));
        let this =
            Self { _processes: processes, _bridge: bridge, group, versions: versions.into() };
        await_ready(cluster, NAME).with_context(|| last_words(&home.join("log")))?;
        Ok(this)
    }

    /// Of its parts.
    pub(super) fn versions(&self) -> Vec<String> {
        self.versions.clone()
    }
}

impl Node for Kubelet {
    fn name(&self) -> &'static str {
        NAME
    }

    fn containers(&self) -> Value {
        json!([{ "name": "sleep", "image": IMAGE }])
    }

    fn cpu(&self) -> Result<Duration> {
        self.group.cpu()
    }

    fn share(&self, burst: usize) -> usize {
        (burst / OF_A_KUBELET).max(1)
    }
}

/// What the first process of the namespaces does.
fn script(home: &Path, group: &Cgroup, programs: &[&Path; 5]) -> Result<String> {
    let [containerd, ctr, image, kubelet, kubeconfig] = programs.map(Path::display);
    let mut lines = vec!["set -e".to_owned()];
    // Where they would leave what is to be found by others.
    for folder in ["/run", "/var/lib", "/var/log"] {
        lines.push(format!("mount -t tmpfs none {folder}"));
    }
    let kernel = home.join("kernel");
    for (name, value) in KERNEL {
        let file = kernel.join(name);
        std::fs::create_dir_all(file.parent().context("it lies in a folder")?)?;
        std::fs::write(&file, value)?;
        lines.push(format!("mount --bind {} /proc/sys/{name}", file.display()));
    }
    let home = home.display();
    lines.extend([
        format!("{} true", group.enter()),
        format!("{containerd} --config {home}/containerd.toml &"),
        format!("ctr='{ctr} --address {home}/containerd.sock --namespace k8s.io'"),
        "until $ctr version >/dev/null 2>&1; do sleep 0.1; done".to_owned(),
        format!("$ctr image import {image}"),
        format!(
            "{kubelet} --config {home}/kubelet.json --kubeconfig {kubeconfig} --hostname-override {NAME} \
             --root-dir {home}/root --cert-dir {home}/pki &"
        ),
        // It waits for the orphans too, as the first process of a machine has to.
        "wait".to_owned(),
    ]);
    Ok(lines.join("\n"))
}

fn containerd_config(home: &Path, runc: &Path, plugins: &Path) -> String {
    let at = |name: &str| home.join(name);
    format!(
        r#"version = 2
root = {root:?}
state = {state:?}
[grpc]
  address = {socket:?}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  netns_mounts_under_state_dir = true
  # A machine that may not raise a process's priority with its out-of-memory killer could start none.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {plugins:?}
    conf_dir = {network:?}
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = {runc:?}
      SystemdCgroup = false
"#,
        root = at("containerd"),
        state = at("state"),
        socket = at("containerd.sock"),
        network = at("net.d"),
    )
}

fn kubelet_config(home: &Path, group: &Cgroup) -> Result<Value> {
    let at = |name: &str| -> PathBuf { home.join(name) };
    Ok(json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "127.0.0.1",
        "port": free_port()?,
        "healthzPort": 0,
        "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "containerRuntimeEndpoint": format!("unix://{}", at("containerd.sock").display()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": group.path(),
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": ["none"],
        "evictionHard": { "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%" },
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false,
        "oomScoreAdj": 0,
        "podLogsDir": at("logs"),
        "volumePluginDir": at("plugins"),
        "resolvConf": at("resolv.conf"),
        "maxPods": 500,
        "kubeAPIQPS": 1000,
        "kubeAPIBurst": 2000,
        "serializeImagePulls": false,
    }))
}

fn write_network(home: &Path, bridge: &str) -> Result<()> {
    let folder = home.join("net.d");
    std::fs::create_dir_all(&folder)?;
    let network = json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "plugins": [{
            "type": "bridge",
            "bridge": bridge,
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": home.join("addresses"),
                "ranges": [[{ "subnet": "10.248.0.0/20" }]],
            },
        }],
    });
    Ok(std::fs::write(folder.join("10-bench.conflist"), network.to_string())?)
}

fn last_words(log: &Path) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
