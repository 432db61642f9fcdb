//! A machine of a test's own, as far as networks go, and a world beyond it: two network namespaces with a link between them.
//!
//! Absent: anything on either side; a test's threads go there and listen.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The two sides' addresses, of a block kept for documentation (RFC 5737).
pub const MACHINE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
/// As [`MACHINE`].
pub const BEYOND: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

/// Both namespaces. They end when this is dropped and nobody is in them any more.
pub struct World {
    machine: Namespace,
    beyond: Namespace,
}

impl World {
    /// A machine whose default route leads to the world.
    ///
    /// # Panics
    /// Without root, `ip`, or `unshare` and `nsenter` of util-linux.
    pub fn new() -> Self {
        let world = Self { machine: Namespace::new(), beyond: Namespace::new() };
        let beyond = world.beyond.process.id().to_string();
        let link = ["link", "add", "out0", "type", "veth", "peer", "name", "in0", "netns", &beyond];
        world.machine.ip(&link);
        for (side, name, address) in
            [(&world.machine, "out0", MACHINE), (&world.beyond, "in0", BEYOND)]
        {
            side.ip(&["address", "add", &format!("{address}/24"), "dev", name]);
            side.ip(&["link", "set", "lo", "up"]);
            side.ip(&["link", "set", name, "up"]);
        }
        world.machine.ip(&["route", "add", "default", "via", &BEYOND.to_string()]);
        world
    }

    /// Moves the calling thread, and the programs that it starts from now on, to the machine.
    pub fn live_on_the_machine(&self) {
        self.machine.enter();
    }

    /// Runs on a thread beyond the machine, in the background.
    pub fn beyond(&self, work: impl FnOnce() + Send + 'static) {
        self.beyond.spawn(work);
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// A network namespace, held by a process that waits for the end of its input: it ends with the tests, however they end.
pub struct Namespace {
    process: Child,
}

impl Namespace {
    /// An empty one, whose loopback is down.
    ///
    /// # Panics
    /// Without root, or `unshare` of util-linux.
    pub fn new() -> Self {
        let mut process = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; read -r end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux");
        let mut said = String::new();
        let out = process.stdout.take().expect("it is piped");
        BufReader::new(out).read_line(&mut said).expect("its words are text");
        assert_eq!(said, "there\n", "a network namespace");
        Self { process }
    }

    /// The file that names it to other programs.
    pub fn file(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.process.id()).into()
    }

    /// The process that holds it: as `ip` may name a namespace.
    pub fn holder(&self) -> String {
        self.process.id().to_string()
    }

    fn network(&self) -> File {
        File::open(self.file()).expect("its process lives")
    }

    /// Moves the calling thread, and the programs that it starts from now on, there.
    ///
    /// # Panics
    /// Without root.
    pub fn enter(&self) {
        enter(&self.network());
    }

    /// Runs on a thread there, in the background.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let network = self.network();
        std::thread::spawn(move || {
            enter(&network);
            work()
        })
    }

    /// Runs `ip` there, which must succeed; what it prints.
    ///
    /// # Panics
    /// Where it fails, or without `nsenter` of util-linux.
    pub fn ip(&self, arguments: &[&str]) -> String {
        let done = Command::new("nsenter")
            .arg(format!("--net={}", self.file().display()))
            .arg("ip")
            .args(arguments)
            .output()
            .expect("nsenter of util-linux");
        let failed = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "ip {arguments:?}: {failed}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn enter(network: &File) {
    use std::os::fd::AsFd;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("root enters any network");
}
