//! A data directory of a test's own, with the means to look for what it left on the machine.
//!
//! Absent: any expectation about domains.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use copepod_domain::domain::{Limits, Network};
use copepod_domain::{DataId, Domain, DomainSpec, Host, HostConfig};

/// A test's own data directory.
pub(crate) struct Bench {
    directory: PathBuf,
}

impl Bench {
    /// Runs a test, and cleans up whatever came of it.
    pub(crate) fn run<T: Send>(name: &str, test: impl AsyncFnOnce(&Bench) -> T + Send) -> T {
        Self::run_two(name, test, async |_, value| value)
    }

    /// Runs a test in which a second agent follows the first.
    pub(crate) fn run_two<A: Send, B: Send>(
        name: &str,
        first: impl AsyncFnOnce(&Bench) -> A + Send,
        second: impl AsyncFnOnce(&Bench, A) -> B + Send,
    ) -> B {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make namespaces, mounts and routes, and need root"
        );
        let directory =
            std::env::temp_dir().join(format!("copepod-domain-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a test's directory can be made");
        let bench = Bench { directory };
        let result = bench
            .as_an_agent(async || first(&bench).await)
            .and_then(|value| bench.as_an_agent(async || second(&bench, value).await));
        let cleaned = bench.as_an_agent(async || {
            let host = bench.enter();
            let id = host.id();
            host.reset().await.expect("everything can be undone");
            bench.assert_no_trace(id);
        });
        let removed = fs::remove_dir_all(&bench.directory);
        match result.and_then(|value| cleaned.map(|()| value)) {
            Ok(value) => {
                removed.expect("a test's directory can be removed");
                value
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// On a thread that begins in the machine's mount namespace, as every agent does: the namespace is a thread's.
    fn as_an_agent<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> std::thread::Result<T> {
        std::thread::scope(|scope| {
            let agent = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(work())
            });
            agent.join()
        })
    }

    pub(crate) fn config(&self) -> HostConfig {
        HostConfig::new(self.directory.join("data"))
    }

    pub(crate) fn enter(&self) -> Host {
        Host::enter(self.config()).expect("the host can be entered")
    }

    /// The same with these blocks of pod addresses.
    pub(crate) fn enter_with(&self, blocks: &str) -> Host {
        let pod_cidrs = Some(blocks.parse().expect("blocks"));
        Host::enter(HostConfig { pod_cidrs, ..self.config() }).expect("the host can be entered")
    }

    /// A directory beside the data directory.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::create_dir_all(&path).expect("made");
        path
    }

    pub(crate) fn spec(&self, id: &str, arguments: &[&str]) -> DomainSpec {
        DomainSpec {
            id: id.parse().expect("a domain's name"),
            program: runner(),
            arguments: arguments.iter().map(|&argument| argument.into()).collect(),
            code: self.scratch("code"),
            limits: Limits::default(),
            network: Network::Own,
        }
    }

    /// A domain with an ordinary runner.
    pub(crate) async fn start(&self, host: &Host, id: &str) -> Domain {
        host.start_domain(self.spec(id, &[])).await.expect("the domain starts")
    }

    /// A domain whose runner does what the test tells it, as one under an attacker's control would.
    pub(crate) async fn start_attacker(&self, host: &Host, id: &str) -> Domain {
        host.start_domain(self.spec(id, &["--attempts"])).await.expect("the domain starts")
    }

    /// Every link, route, mount, cgroup and process that bears the data directory's id or path.
    pub(crate) fn traces(&self, host: &Host) -> BTreeSet<String> {
        let mut traces = self.traces_of(host.id());
        for entry in walk(&host.data().join("domains")) {
            traces.insert(format!("file {}", entry.display()));
        }
        traces
    }

    pub(crate) fn assert_no_trace(&self, id: DataId) {
        assert_eq!(self.traces_of(id), BTreeSet::new());
    }

    fn traces_of(&self, id: DataId) -> BTreeSet<String> {
        let mut traces = BTreeSet::new();
        let mut note = |kind: &str, text: &str| {
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                traces.insert(format!("{kind} {}", line.trim()));
            }
        };
        let links = ip(&["-o", "link"]);
        let own: Vec<_> = links.lines().filter(|line| line.contains(&id.link_prefix())).collect();
        note(
            "link",
            &own.iter().filter_map(|l| l.split(':').nth(1)).collect::<Vec<_>>().join("\n"),
        );
        let routes =
            ip(&["route", "show", "table", "all"]) + &ip(&["-6", "route", "show", "table", "all"]);
        let own: Vec<_> = routes.lines().filter(|line| line.contains(&id.link_prefix())).collect();
        note("route", &own.join("\n"));
        let path = self.directory.to_string_lossy();
        let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("read");
        let own: Vec<_> = mounts.lines().filter(|line| line.contains(&*path)).collect();
        // The namespace's own mount of the data directory is no trace on the machine.
        let own: Vec<_> = own.into_iter().filter(|line| line.contains("/domains/")).collect();
        note("mount", &own.join("\n"));
        let host_mounts = fs::read_to_string("/proc/1/mounts").expect("read");
        let own: Vec<_> = host_mounts.lines().filter(|line| line.contains(&*path)).collect();
        let own: Vec<_> = own.into_iter().filter(|line| !line.contains("/data/ns")).collect();
        note("host mount", &own.join("\n"));
        for controller in fs::read_dir("/sys/fs/cgroup").expect("read").flatten() {
            for entry in walk(&controller.path().join(id.table())) {
                if entry.is_dir() {
                    note("cgroup", &entry.to_string_lossy());
                }
            }
        }
        let first = id.first_uid();
        for process in fs::read_dir("/proc").expect("read").flatten() {
            let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
            let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
            let uid = uid.and_then(|uid| uid.split_whitespace().next()?.parse::<u32>().ok());
            if uid.is_some_and(|uid| (first..=first + 65_535).contains(&uid)) {
                note("process", &process.path().to_string_lossy());
            }
        }
        traces
    }
}

fn ip(arguments: &[&str]) -> String {
    let output =
        Command::new("ip").args(arguments).output().expect("these tests need iproute2's ip");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}

/// The runner that `cargo build -p copepod-runner` made, or the one that `COPEPOD_RUNNER` names.
fn runner() -> PathBuf {
    if let Some(named) = std::env::var_os("COPEPOD_RUNNER") {
        return named.into();
    }
    let test = std::env::current_exe().expect("a test knows its own path");
    let built = test.ancestors().nth(2).expect("target/debug/deps/test").join("copepod-runner");
    assert!(
        built.is_file(),
        "{} is not there: run `cargo build -p copepod-runner` or set COPEPOD_RUNNER",
        built.display()
    );
    built
}

/// What came of an attempt.
#[derive(Debug)]
pub(crate) struct Outcome {
    what: String,
    line: String,
}

/// Lets a domain's runner try something.
pub(crate) fn attempts(domain: &Domain, what: &str) -> Outcome {
    let mut stream = domain.connect().expect("the runner listens");
    stream.write_all(format!("{what}\n").as_bytes()).expect("asked");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("answered");
    Outcome { what: what.into(), line: line.trim_end().into() }
}

impl Outcome {
    fn errno(&self) -> Option<i32> {
        self.line.strip_prefix("errno ")?.split(' ').next()?.parse().ok()
    }

    /// It was tried; what the runner saw of it does not matter.
    pub(crate) fn tried(&self) {
        assert!(self.line == "allowed" || self.errno().is_some(), "{self:?}");
    }

    pub(crate) fn expect_allowed(&self) {
        assert_eq!(self.line, "allowed", "{}", self.what);
    }

    pub(crate) fn expect_errno(&self, expected: &[i32]) {
        assert!(self.errno().is_some_and(|errno| expected.contains(&errno)), "{self:?}");
    }

    /// It failed, by an error or by silence.
    pub(crate) fn expect_refused(&self) {
        assert!(self.errno().is_some(), "{self:?}");
    }
}
