//! `cargo xtask demo`: the whole story once, from wasm files to requests answered while the agent is killed.
//!
//! Here: on one machine. [`kube`] is the same on a node of a real Kubernetes. Both end by themselves and say what they left behind,
//! which must be nothing. Absent: figures; a debug build tells none.

mod kube;
mod load;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use copepod_tests::built::Built;
use copepod_tests::http;
use copepod_tests::node::{Node, is_root, status};
use copepod_tests::registry::Registry;

use self::load::{Met, while_asked};
use crate::cache::{Cache, checkout};
use crate::command::step;
use crate::programs::Profile;
use crate::{debian, guests, programs};

const POD: &str = "pod-of-two";
const CONTAINERS: [&str; 2] = ["app", "sidecar"];
/// The registry that the manifests of examples/ name.
const NAMED: &str = "localhost:5000";
/// How often the agent is killed, and how long requests go on between two kills.
const KILLS: usize = 3;
const BETWEEN: Duration = Duration::from_millis(700);

/// Runs the demo on one machine, or with `kube` on a node of a real Kubernetes.
pub(crate) fn run(cache: &Cache, kube: bool) -> Result<()> {
    ensure!(
        is_root(),
        "the demo needs root: pods get network namespaces, routes and cgroups of their own. Try: sudo -E cargo xtask demo"
    );
    let took = Took::default();
    let built = took.step("build the two programs", || programs::build(cache, Profile::Dev))?;
    let guests = took.step("build the guests", || guests::build(cache))?;
    let (registry, nft) = took.step("bring docker-registry and nft", || {
        Ok((
            debian::program(cache, "docker-registry", "docker-registry")?,
            debian::program(cache, "nftables", "nft")?,
        ))
    })?;
    let node = Node::of(Built { copepod: built.copepod, guests, registry, nft });
    if kube {
        let programs = took.step("bring Kubernetes' programs", || kube::Programs::bring(cache))?;
        kube::show(node, &programs, &took)?;
    } else {
        show(&node, &took)?;
    }
    took.print();
    Ok(())
}

fn show(node: &Node, took: &Took) -> Result<()> {
    let registry =
        took.step("start a registry on loopback", || Registry::start(&node.built().registry))?;
    let place = registry.address().to_string();

    took.step("pack the guests and push them", || {
        CONTAINERS.iter().try_for_each(|it| push(node, &format!("{POD}-{it}"), &place))
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

    took.step("look into the pod with a shell, which no image brings", || {
        let script = "ps; wget -q -O - http://localhost:8080/";
        print!("{}", copepod(node, &["exec", POD, "--", "sh", "-c", script])?);
        Ok(())
    })?;

    let Met { answered, failed } = took
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

/// Kills the agent again and again while clients ask.
fn under_fire(node: &Node, address: SocketAddr) -> Result<Met> {
    while_asked(&[address], || {
        (0..KILLS).try_for_each(|_| {
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
        })
    })
}

/// Has a guest's image in the registry at `place`, and nowhere else.
fn push(node: &Node, guest: &str, place: &str) -> Result<()> {
    let image = format!("{place}/{guest}:1");
    let file = node.built().guest(guest);
    copepod(node, &["image", "load", &file.to_string_lossy(), "--tag", &image])?;
    copepod(node, &["image", "push", &image])?;
    copepod(node, &["image", "rm", &image])?;
    Ok(())
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
struct Took(RefCell<Vec<(String, Duration)>>);

impl Took {
    fn step<T>(&self, what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let result = step(what, act)?;
        self.0.borrow_mut().push((what.to_owned(), begin.elapsed()));
        Ok(result)
    }

    fn print(&self) {
        println!("\nwhat each step took:");
        for (what, time) in self.0.borrow().iter() {
            println!("  {:>7.2} s  {what}", time.as_secs_f64());
        }
    }
}
