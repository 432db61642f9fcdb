//! One line by HTTP, asked by wrk on the same machine: requests per second, and the server's CPU time per request.
//!
//! CPU per request is the figure to compare: client and servers share the cores. Absent: TLS, HTTP/2, bodies of any size.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use copepod_tests::built::Built;
use copepod_tests::manifest::{With, container, pod};
use copepod_tests::node::Node;
use serde_json::json;

use super::link::Link;
use super::peers::{self, Running, await_answer, free_port};
use super::{Report, own_programs};
use crate::cache::Cache;
use crate::command::{output, step};
use crate::programs::Profile;
use crate::{debian, guests, programs};

/// wrk's settings: connections, and seconds per round. One thread, as the machine may have two cores.
const CONNECTIONS: &str = "16";
const SECONDS: &str = "3";

/// Kernel ticks per second in /proc/<pid>/stat: fixed in the kernel's interface to programs.
const TICKS: f64 = 100.0;

/// A server that is measured.
struct Server {
    name: &'static str,
    address: SocketAddr,
    pids: Vec<u32>,
}

pub(crate) fn measure(cache: &Cache, rounds: usize) -> Result<Report> {
    let mut report = Report::default();
    let own = own_programs(cache)?;
    let built = programs::build(cache, Profile::Release)?;
    let guests = guests::build(cache)?;
    let wrk = debian::program(cache, "wrk", "wrk")?;
    let nginx = debian::program(cache, "nginx-light", "nginx")?;
    let wasmtime = peers::wasmtime(cache)?;
    report.notes.push(peers::version(&wasmtime, "--version"));
    report.notes.push(peers::version(&nginx, "-v"));
    report.notes.push(peers::version(&wrk, "-v"));
    let nft = debian::program(cache, "nftables", "nft")?;
    let link = Link::make(debian::program(cache, "iproute2", "ip")?)?;
    let hello = guests.join("hello-http.wasm");
    let folder = tempfile_in(cache)?;

    // All servers stand at once; one that is not asked costs nothing.
    let mut servers = Vec::new();
    let mut running = Vec::new();
    step("starting the servers", || {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let address = local(free_port()?);
        let hyper = Running::start(Command::new(&own.plain_hyper).arg(address.to_string()))?;
        servers.push(Server { name: "hyper", address, pids: vec![hyper.pid()] });
        running.push(hyper);

        let address = SocketAddr::from((link.address(), 8080));
        let hyper = Running::start(link.inside(&own.plain_hyper).arg(address.to_string()))?;
        servers.push(Server {
            name: "hyper, behind a link as a pod",
            address,
            pids: vec![hyper.pid()],
        });
        running.push(hyper);

        let port = free_port()?;
        let serve = Running::start(
            Command::new(&wasmtime)
                .args(["serve", "-S", "cli=y", "--addr"])
                .arg(local(port).to_string())
                .arg(&hello),
        )?;
        servers.push(Server {
            name: "wasmtime serve",
            address: local(port),
            pids: vec![serve.pid()],
        });
        running.push(serve);

        let port = free_port()?;
        let server = start_nginx(&nginx, folder.path(), port)?;
        await_answer(local(port))?;
        servers.push(Server { name: "nginx", address: local(port), pids: vec![server.pid()] });
        running.push(server);
        Ok(())
    })?;
    let node =
        Node::of(Built { copepod: built.copepod, guests, registry: "docker-registry".into(), nft });
    step("starting the pods", || {
        node.load(&["hello-http"]);
        // The ceiling of the node's own configuration bounds both annotations.
        let reused = pod("reused", [container("hello", "hello-http")])
            .with("/metadata/namespace", json!("reused"))
            .with("/metadata/annotations", json!({ "copepod.dev/http-reuse": "1000000" }));
        for (name, label, pod) in [
            (
                "fresh",
                "copepod, an instance per request",
                pod("fresh", [container("hello", "hello-http")]),
            ),
            ("reused", "copepod, instances reused", reused),
        ] {
            let before = node.runners();
            node.start(&[pod]);
            node.wait_ready(name);
            let pids = node.runners().into_iter().filter(|pid| !before.contains(pid)).collect();
            servers.push(Server { name: label, address: node.address(name, 8080), pids });
        }
        Ok(())
    })?;

    for server in &servers {
        await_answer(server.address).context(server.name)?;
        ensure!(!server.pids.is_empty(), "{} has no process", server.name);
    }
    for round in 1..=rounds {
        step(&format!("round {round} of {rounds}"), || {
            for server in &servers {
                let before = cpu_seconds(&server.pids);
                let said = output(
                    Command::new(&wrk)
                        .args(["-t1", "-c", CONNECTIONS, "-d", SECONDS, "--latency"])
                        .arg(format!("http://{}/", server.address)),
                )?;
                let cpu = cpu_seconds(&server.pids) - before;
                let found = Wrk::read(&said).with_context(|| format!("wrk said: {said}"))?;
                ensure!(!found.errors, "{}: {said}", server.name);
                report.sample(server.name, "CPU µs/request", cpu * 1e6 / found.requests);
                report.sample(server.name, "requests/s", found.per_second);
            }
            Ok(())
        })?;
    }
    report.notes.push(format!("wrk -t1 -c{CONNECTIONS} -d{SECONDS}, everything on one machine"));
    Ok(report)
}

fn tempfile_in(cache: &Cache) -> Result<tempfile::TempDir> {
    std::fs::create_dir_all(cache.peers())?;
    Ok(tempfile::tempdir_in(cache.peers())?)
}

fn start_nginx(program: &Path, folder: &Path, port: u16) -> Result<Running> {
    let folder = folder.display();
    let config = format!(
        "daemon off; master_process off; user root; pid {folder}/pid; error_log {folder}/error;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; keepalive_requests 100000000;
            client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
            uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
            server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"hello from copepod\\n\"; }} }}
        }}"
    );
    let file = format!("{folder}/nginx.conf");
    std::fs::write(&file, config)?;
    Running::start(Command::new(program).args(["-p", &folder.to_string(), "-c", &file]))
}

/// User and system time of these processes, all threads.
pub(super) fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is a name in brackets, which may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<f64>() / TICKS
}

/// What wrk found.
#[derive(Debug, PartialEq)]
struct Wrk {
    requests: f64,
    per_second: f64,
    errors: bool,
}

impl Wrk {
    fn read(said: &str) -> Option<Self> {
        let after = |mark: &str| said.lines().find_map(|line| line.trim().strip_prefix(mark));
        Some(Self {
            requests: said
                .lines()
                .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())?,
            per_second: after("Requests/sec:")?.trim().parse().ok()?,
            errors: after("Socket errors:").is_some() || after("Non-2xx").is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Running 3s test @ http://127.0.0.1:1/\n  1 threads and 16 connections\n  Latency Distribution\n     50%   98.00us\n  \
        91234 requests in 3.00s, 8.12MB read\nRequests/sec:  30411.22\nTransfer/sec:      2.71MB\n";

    #[test]
    fn wrk_s_figures_are_read_and_its_errors_seen() {
        let failing = format!("{SAID}  Socket errors: connect 0, read 3, write 0, timeout 0\n");

        let found = Wrk::read(SAID);

        assert_eq!(found, Some(Wrk { requests: 91234.0, per_second: 30411.22, errors: false }));
        assert!(Wrk::read(&failing).is_some_and(|it| it.errors));
        assert_eq!(Wrk::read("unable to connect"), None);
    }
}
