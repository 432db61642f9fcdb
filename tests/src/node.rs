//! A node of a test's own: a private data directory, and `copepod` commands that work on it.
//!
//! When it is dropped, all its pods are stopped and whatever is left of it on the machine is removed, also after a failed
//! test. Absent: a way to share a node between tests.

// A failed test tells what its node was about.
#![allow(clippy::print_stderr)]

use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::built::Built;
use crate::host::{self, Mark};
use crate::manifest;
use crate::wait::{until, until_it_is};

/// How often an agent that should go is looked for, and the time between: 10 s, where it lingers for two.
const LEAVING: usize = 250;
const PAUSE: Duration = Duration::from_millis(40);

/// The user and group as whom nodes of an ordinary user run: Linux's `nobody`, who may do nothing that others may not.
pub const ORDINARY_USER: u32 = 65534;

/// A private data directory and what runs in it.
pub struct Node {
    built: Built,
    /// Of the engine of the programs in use, where they are not the built ones.
    salt: Option<String>,
    folder: tempfile::TempDir,
    log: Option<String>,
    /// The network namespace in which all of it runs; none: the tests' own.
    network: Option<std::path::PathBuf>,
    /// An ordinary user's: whoever runs the commands, else whoever runs the tests.
    user: Option<u32>,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Node {
    /// A node without pods; its agent starts with its first command.
    ///
    /// # Panics
    /// Where the tests were not started by `cargo xtask test`, or not as root.
    pub fn new() -> Self {
        assert!(is_root(), "the end-to-end tests need root: run cargo xtask test as root");
        Self::of(Built::from_env())
    }

    /// The same of other programs.
    ///
    /// # Panics
    /// Where no temporary folder can be made.
    pub fn of(built: Built) -> Self {
        let folder =
            tempfile::Builder::new().prefix("copepod-test-").tempdir().expect("a temporary folder");
        Self { built, salt: None, folder, log: None, network: None, user: None }
    }

    /// Has the agent write into its log what `filter` (as of `RUST_LOG`) lets through.
    pub fn with_log(mut self, filter: &str) -> Self {
        self.log = Some(filter.to_owned());
        self
    }

    /// Has all of the node run in a network namespace, by the file that names it: on a machine of its own, as far as the network goes.
    pub fn in_network(mut self, network: &Path) -> Self {
        self.network = Some(network.to_owned());
        self
    }

    /// A node of [`ORDINARY_USER`], with a home of its own, which holds the data directory, and copies of all that it reads.
    ///
    /// # Panics
    /// Where the tests were not started by `cargo xtask test`, or not as root.
    pub fn of_an_ordinary_user() -> Self {
        let mut node = Self::new();
        node.user = Some(ORDINARY_USER);
        let at = |name: &str| node.folder.path().join(name);
        // A temporary folder is its owner's alone.
        let all_read = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(node.scratch(), all_read).expect("one's own folder");
        for folder in ["bin", "guests", "home"] {
            std::fs::create_dir(at(folder)).expect("a new folder");
        }
        node.give(&at("home"));
        let runner = node.built.copepod.with_file_name("copepod-runner");
        copy(&runner, &at("bin/copepod-runner"));
        copy(&node.built.copepod, &at("bin/copepod"));
        let toolbox = node.built.copepod.with_file_name("copepod-toolbox.wasm");
        copy(&toolbox, &at("bin/copepod-toolbox.wasm"));
        let guests = std::fs::read_dir(&node.built.guests).expect("the guests are built");
        for guest in guests.flatten().filter(|it| it.path().extension().is_some()) {
            copy(&guest.path(), &at("guests").join(guest.file_name()));
        }
        (node.built.copepod, node.built.guests) = (at("bin/copepod"), at("guests"));
        node
    }

    /// Makes a file or folder the ordinary user's.
    ///
    /// # Panics
    /// Where it is not there.
    pub fn give(&self, path: &Path) {
        std::os::unix::fs::chown(path, self.user, self.user).expect("root gives what it will");
    }

    /// The built programs.
    pub fn built(&self) -> &Built {
        &self.built
    }

    /// Goes on with programs of another generation, as after an upgrade: copies of the built ones with other bytes at their end,
    /// which makes another build, and with an engine that loads no other's code. Whatever runs, runs on.
    ///
    /// # Panics
    /// Where the copies cannot be made.
    pub fn upgrade(&mut self, generation: &str) {
        let folder = self.scratch().join(generation);
        std::fs::create_dir(&folder).expect("a temporary folder can be written");
        for name in ["copepod", "copepod-runner"] {
            let copy = folder.join(name);
            std::fs::copy(self.built.copepod.with_file_name(name), &copy).expect("a copy");
            let mut end = std::fs::File::options().append(true).open(copy).expect("it opens");
            std::io::Write::write_all(&mut end, generation.as_bytes()).expect("it is written");
        }
        self.go_on_with(folder.join("copepod"), Some(generation));
    }

    /// Goes on with `copepod` at this path, and with the engine that has this salt.
    pub fn go_on_with(&mut self, copepod: std::path::PathBuf, salt: Option<&str>) {
        self.built.copepod = copepod;
        self.salt = salt.map(str::to_owned);
    }

    /// The data directory. An ordinary user's is where the programs choose it.
    pub fn data(&self) -> std::path::PathBuf {
        let own = if self.user.is_some() { "home/.local/share/copepod" } else { "data" };
        self.folder.path().join(own)
    }

    /// A folder for a test's own files, gone with the node.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// How the node is found from outside.
    pub fn mark(&self) -> Mark {
        Mark::of(&self.data(), &self.built.nft)
    }

    /// `copepod <arguments>` on this data directory.
    pub fn copepod(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.network {
            None => Command::new(&self.built.copepod),
            Some(network) => {
                // It becomes the program, in the same process.
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", network.display())).arg("--");
                command.arg(&self.built.copepod);
                command
            }
        };
        match self.user {
            Some(user) => command
                .uid(user)
                .gid(user)
                .current_dir("/")
                .env("HOME", self.folder.path().join("home"))
                .env_remove("XDG_DATA_HOME")
                .env_remove("COPEPOD_RUNNER"),
            None => command.arg("--data-dir").arg(self.data()),
        };
        command.args(arguments).env("COPEPOD_NFT", &self.built.nft).stdin(Stdio::null());
        command.envs(self.log.iter().map(|filter| ("COPEPOD_LOG", filter)));
        command.envs(self.salt.iter().map(|salt| ("COPEPOD_ENGINE_SALT", salt)));
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.copepod(arguments).output().expect("the built program starts").into()
    }

    /// Runs a command that must succeed; its standard output.
    ///
    /// # Panics
    /// Where it fails.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "copepod {arguments:?}: {}{}", ended.stdout, ended.stderr);
        ended.stdout
    }

    /// Puts guests of examples/ into the node's images, under [`manifest::image`].
    pub fn load(&self, guests: &[&str]) {
        for guest in guests {
            self.load_file(&self.built.guest(guest), &manifest::image(guest));
        }
    }

    /// Puts a wasm file into the node's images.
    pub fn load_file(&self, file: &Path, reference: &str) {
        let file = file.to_str().expect("a test's paths are text");
        self.ok(&["image", "load", file, "--tag", reference]);
    }

    /// Writes a manifest into a file of the node's; its path.
    ///
    /// # Panics
    /// Where the file cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let file = self.scratch().join(name);
        std::fs::write(&file, content).expect("a temporary folder can be written");
        file.to_str().expect("a test's paths are text").to_owned()
    }

    /// `copepod run` of a manifest in the foreground, to the end of its pods.
    pub fn run_to_end(&self, objects: &[Value]) -> Ended {
        self.run(&["run", &self.write("run.yaml", manifest::all(objects))])
    }

    /// `copepod run --detach` of a manifest.
    pub fn start(&self, objects: &[Value]) {
        self.ok(&["run", "--detach", &self.write("start.yaml", manifest::all(objects))]);
    }

    /// `copepod run --detach` of a manifest of examples/, whose images are loaded first.
    pub fn start_example(&self, name: &str, guests: &[&str]) {
        self.load(guests);
        let manifest = std::fs::read(manifest::example(name)).expect("an example's manifest");
        self.ok(&["run", "--detach", &self.write("example.yaml", manifest)]);
    }

    /// A pod as the node reports it; none where it has no such pod.
    pub fn pod(&self, name: &str) -> Option<Value> {
        self.pods().into_iter().find(|pod| pod["metadata"]["name"] == name)
    }

    /// All pods.
    pub fn pods(&self) -> Vec<Value> {
        let listed = self.run(&["ps", "--output", "json"]).stdout;
        let list: Value = serde_json::from_str(&listed).unwrap_or_default();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until a pod is as `condition` says; the pod.
    ///
    /// # Panics
    /// Where that does not come, with the pod as it is then.
    pub fn wait_for(&self, name: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let seen = until_it_is(
            &format!("pod {name} to be {what}"),
            || self.pod(name),
            |pod| pod.as_ref().is_some_and(&condition),
            |pod| pod.as_ref().map_or("no such pod".to_owned(), |pod| pod["status"].to_string()),
        );
        seen.unwrap_or_default()
    }

    /// Waits until a pod is ready.
    pub fn wait_ready(&self, name: &str) -> Value {
        self.wait_for(name, "ready", is_ready)
    }

    /// Waits until a pod is over, well or not.
    pub fn wait_over(&self, name: &str) -> Value {
        self.wait_for(name, "over", |pod| {
            matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
        })
    }

    /// An address of a pod's port.
    ///
    /// # Panics
    /// Where the pod has no address yet.
    pub fn address(&self, name: &str, port: u16) -> SocketAddr {
        let pod = self.pod(name).expect("a pod");
        let ip: IpAddr =
            pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok()).expect("a pod address");
        SocketAddr::new(ip, port)
    }

    /// What a container logged.
    pub fn logs(&self, pod: &str, container: &str) -> String {
        self.ok(&["logs", pod, "--container", container])
    }

    /// The agent's process, if one runs.
    pub fn agent(&self) -> Option<u32> {
        let mine = |(_, line): &(u32, String)| line.contains("__agent");
        host::processes(&self.mark()).into_iter().find(mine).map(|(pid, _)| pid)
    }

    /// The processes of the node's runners.
    pub fn runners(&self) -> Vec<u32> {
        let mine = |(_, line): &(u32, String)| line.contains("copepod-runner");
        host::processes(&self.mark()).into_iter().filter(mine).map(|(pid, _)| pid).collect()
    }

    /// The process of the broker of an ordinary user's pods, if one runs.
    pub fn broker(&self) -> Option<u32> {
        let mine = |(_, line): &(u32, String)| line.contains("__broker");
        host::processes(&self.mark()).into_iter().find(mine).map(|(pid, _)| pid)
    }

    /// Kills the agent as a crash would, and waits until it is gone.
    ///
    /// # Panics
    /// Where none runs.
    pub fn kill_agent(&self) {
        let pid = self.agent().expect("an agent runs");
        host::kill(pid);
        until("the killed agent to be gone", || (self.agent() != Some(pid)).then_some(()));
    }

    /// Stops all pods, waits for the agent to leave, and tells what it left behind.
    pub fn stop_all(&self) -> Vec<String> {
        let mark = self.mark();
        self.ok(&["stop", "--all", "--grace", "1"]);
        let mut left = Vec::new();
        for _ in 0..LEAVING {
            left = host::leftovers(&mark);
            if left.is_empty() {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        left
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let mark = self.mark();
        if std::thread::panicking() {
            for log in ["agent.log", "journal.log"] {
                if let Ok(log) = std::fs::read_to_string(self.data().join(log)) {
                    let lines: Vec<&str> = log.lines().collect();
                    eprintln!(
                        "--- the agent's last words\n{}",
                        lines[lines.len().saturating_sub(40)..].join("\n")
                    );
                }
            }
        }
        if self.data().join("node.json").is_file() {
            let _ = self.copepod(&["node", "reset"]).output();
        }
        if self.agent().is_some() {
            let _ = self.copepod(&["stop", "--all", "--grace", "0"]).output();
            // It removes what it made, and goes.
            for _ in 0..LEAVING {
                if self.agent().is_none() {
                    break;
                }
                std::thread::sleep(PAUSE);
            }
        }
        host::sweep(&mark);
    }
}

/// A second name for the file where it can have one, else a copy.
fn copy(from: &Path, to: &Path) {
    if std::fs::hard_link(from, to).is_err() {
        std::fs::copy(from, to).expect("a built file can be read");
    }
}

/// Only root may make namespaces, routes and cgroups.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The pod's `Ready` condition is true.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .is_some_and(|all| all.iter().any(|it| it["type"] == "Ready" && it["status"] == "True"))
}

/// The status of one of a pod's containers.
pub fn status<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let all = pod["status"]["containerStatuses"].as_array();
    all.and_then(|all| all.iter().find(|it| it["name"] == container)).unwrap_or(&Value::Null)
}
