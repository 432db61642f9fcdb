//! `cargo xtask demo`: the whole story once, from wasm files to requests answered while the agent is killed.
//!
//! It ends by itself and says what it left behind, which must be nothing. Absent: figures; a debug build tells none.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use copepod_tests::built::Built;
use copepod_tests::http::{self, Connection};
use copepod_tests::node::{Node, is_root, status};
use copepod_tests::registry::Registry;

use crate::cache::{Cache, checkout};
use crate::command::step;
use crate::programs::Profile;
use crate::{debian, guests, programs};

const POD: &str = "pod-of-two";
const CONTAINERS: [&str; 2] = ["app", "sidecar"];
/// The registry that the manifests of examples/ name.
const NAMED: &str = "localhost:5000";
/// How many clients ask at a time while the agent is killed.
const CLIENTS: usize = 4;
/// How often the agent is killed, and how long requests go on between two kills.
const KILLS: usize = 3;
const BETWEEN: Duration = Duration::from_millis(700);

pub(crate) fn run(cache: &Cache) -> Result<()> {
    ensure!(
        is_root(),
        "the demo needs root: pods get network namespaces, routes and cgroups of their own. Try: sudo -E cargo xtask demo"
    );
    let mut took = Took::default();
    let built = took.step("build the two programs", || programs::build(cache, Profile::Dev))?;
    let guests = took.step("build the guests", || guests::build(cache))?;
    let (registry, nft) = took.step("bring docker-registry and nft", || {
        Ok((
            debian::program(cache, "docker-registry", "docker-registry")?,
            debian::program(cache, "nftables", "nft")?,
        ))
    })?;
    let node = Node::of(Built { copepod: built.copepod, guests, registry, nft });
    show(&node, &mut took)?;
    took.print();
    Ok(())
}

fn show(node: &Node, took: &mut Took) -> Result<()> {
    let registry =
        took.step("start a registry on loopback", || Registry::start(&node.built().registry))?;
    let place = registry.address().to_string();

    took.step("pack the guests and push them", || {
        for container in CONTAINERS {
            let guest = format!("{POD}-{container}");
            let image = format!("{place}/{guest}:1");
            let file = node.built().guest(&guest);
            copepod(node, &["image", "load", &file.to_string_lossy(), "--tag", &image])?;
            copepod(node, &["image", "push", &image])?;
            // Only the registry has it now.
            copepod(node, &["image", "rm", &image])?;
        }
        Ok(())
    })?;

    let manifest = std::fs::read_to_string(checkout().join("examples").join(POD).join("pod.yaml"))?;
    let manifest = node.write("pod.yaml", manifest.replace(NAMED, &place));
    let address = took.step("copepod run: pull, compile, start, become ready", || {
        copepod(node, &["run", "--detach", &manifest])?;
        node.wait_ready(POD);
        Ok(node.address(POD, 8080))
    })?;
    println!("\nthe pod answers on its own address, {address}:");

    took.step("ask it", || {
        for path in ["/", "/sidecar"] {
            let answer = http::get(address, path)?;
            ensure!(answer.status == 200, "GET {path}: {}", answer.status);
            print!("  GET {path}: {} {}", answer.status, answer.text());
        }
        Ok(())
    })?;

    for container in CONTAINERS {
        println!("\nthe log of {container}:");
        print!("{}", copepod(node, &["logs", POD, "--container", container])?);
    }
    println!();

    let (answered, failed) = took
        .step(&format!("kill the agent {KILLS} times under load"), || under_fire(node, address))?;
    println!("  {answered} requests answered, {failed} failed, 0 containers restarted");
    ensure!(failed == 0, "{failed} requests failed");

    took.step("stop everything, and look for what was left behind", || {
        let left = node.stop_all();
        ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
        Ok(())
    })?;
    drop(registry);
    println!("  left behind: no process, interface, route, mount, cgroup or nftables table");
    Ok(())
}

/// Kills the agent again and again while clients ask, each in turn on a kept connection and on a new one.
fn under_fire(node: &Node, address: SocketAddr) -> Result<(u64, u64)> {
    let over = AtomicBool::new(false);
    let (answered, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut kept = Connection::open(address).ok();
                while !over.load(Ordering::Relaxed) {
                    let on_kept = kept
                        .as_mut()
                        .is_some_and(|kept| kept.get("/").is_ok_and(|it| it.status == 200));
                    if !on_kept {
                        kept = Connection::open(address).ok();
                    }
                    let on_new = http::get(address, "/").is_ok_and(|it| it.status == 200);
                    for good in [on_kept, on_new] {
                        (if good { &answered } else { &failed }).fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let killed = (0..KILLS).try_for_each(|_| {
            std::thread::sleep(BETWEEN);
            let agent = node.agent().context("no agent runs")?;
            println!("  kill -9 {agent} (the agent)");
            node.kill_agent();
            std::thread::sleep(BETWEEN);
            // The next command starts it again, and it finds its pods.
            let pod = node.wait_ready(POD);
            for container in CONTAINERS {
                let restarts = &status(&pod, container)["restartCount"];
                ensure!(*restarts == 0, "{container} was restarted {restarts} times");
            }
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        killed
    })?;
    Ok((answered.into_inner(), failed.into_inner()))
}

/// A `copepod` command that must succeed, shown as it is run; its standard output.
fn copepod(node: &Node, arguments: &[&str]) -> Result<String> {
    println!("  $ copepod {}", arguments.join(" "));
    let ended = node.run(arguments);
    if ended.code != Some(0) {
        bail!("copepod {} ended with {:?}: {}", arguments.join(" "), ended.code, ended.stderr);
    }
    Ok(ended.stdout)
}

/// What each step took.
#[derive(Default)]
struct Took(Vec<(String, Duration)>);

impl Took {
    fn step<T>(&mut self, what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let result = step(what, act)?;
        self.0.push((what.to_owned(), begin.elapsed()));
        Ok(result)
    }

    fn print(&self) {
        println!("\nwhat each step took:");
        for (what, time) in &self.0 {
            println!("  {:>7.2} s  {what}", time.as_secs_f64());
        }
    }
}
