//! A network namespace as a runner has it: pod addresses local on `lo`, without root's help only a note.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use copepod_shim::protocol::PodSandbox;

use super::sandbox;

/// Runs the test on a thread in a network namespace of its own, which ends with the thread.
#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not run: a network namespace is root's to make");
            return;
        }
        enter();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
    thread.join().expect("the test passes");
}

#[allow(unsafe_code)]
fn enter() {
    // SAFETY: only this thread, which owns no socket yet, moves to another network.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(done, 0, "a new network namespace");
    for arguments in [
        "link set lo up",
        "route add local 10.64.0.0/18 dev lo",
        "-6 route add local fd64::/64 dev lo",
    ] {
        let ip = Command::new("ip").args(arguments.split(' ')).status().expect("ip runs");
        assert!(ip.success(), "ip {arguments}");
    }
    std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").expect("the setting is written");
}

/// A pod with addresses as in a cluster.
pub(crate) fn cluster_pod() -> PodSandbox {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    PodSandbox {
        ipv4: Some(Ipv4Addr::new(10, 64, 0, number)),
        loopback: Ipv4Addr::new(127, 64, 0, number),
        ..sandbox()
    }
}

/// The same with IPv6.
pub(crate) fn dual_stack_pod() -> PodSandbox {
    let pod = cluster_pod();
    let number = pod.ipv4.expect("it has IPv4").octets()[3];
    PodSandbox { ipv6: Some(Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, number.into())), ..pod }
}

/// The same with IPv6 alone.
pub(crate) fn ipv6_pod() -> PodSandbox {
    PodSandbox { ipv4: None, ..dual_stack_pod() }
}
