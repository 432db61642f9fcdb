//! What an attacker in control of a runner would try: for the tests of the fences, behind a hidden argument.
//!
//! It runs after confinement and has no power that the runner lacks. Absent: any judgement; the tests expect the errno.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::sys;

/// How long a connection attempt waits: what is dropped on the way never answers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The hidden argument that makes a confined runner serve attempts instead of pods.
pub const ARGUMENT: &str = "--attempts";

/// Confines this process as any runner, then makes the attempts that arrive on its socket, a line each, and answers each with a line:
/// `allowed`, or the error's number and text.
///
/// | attempt | tries to |
/// |---|---|
/// | `exec`, `fork`, `ptrace`, `kill` | start, trace or signal a process |
/// | `mount`, `chroot`, `unshare`, `setuid`, `bpf` | use a privilege |
/// | `raw-socket`, `packet-socket`, `netlink` | open a socket below TCP and UDP |
/// | `read:PATH`, `list:PATH`, `write:PATH` | reach a file |
/// | `bind:IP:PORT`, `freebind:IP:PORT` | listen there (with `IP_FREEBIND`) |
/// | `connect:IP:PORT` | connect there |
/// | `spoof:IP>IP:PORT` | send a datagram from the first address to the second |
/// | `spoof-connect:IP>IP:PORT` | the same with a connection |
pub fn serve() -> ExitCode {
    let confined = match super::enter() {
        Ok(confined) => confined,
        Err(_) => return ExitCode::FAILURE,
    };
    for agent in confined.listener.incoming() {
        // An agent that leaves in the middle ends its own connection only.
        let _ = agent.and_then(|agent| answer_each(&agent));
    }
    ExitCode::SUCCESS
}

fn answer_each(agent: &UnixStream) -> io::Result<()> {
    for line in BufReader::new(agent).lines() {
        let answer = match run(&line?) {
            Ok(()) => "allowed\n".to_owned(),
            Err(error) => format!("errno {} ({error})\n", error.raw_os_error().unwrap_or(0)),
        };
        let mut agent = agent;
        agent.write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn run(what: &str) -> io::Result<()> {
    let (verb, argument) = what.split_once(':').unwrap_or((what, ""));
    match verb {
        "exec" => raw(libc::SYS_execve, [c"/bin/sh".as_ptr() as usize, 0, 0, 0, 0]),
        "fork" => raw(libc::SYS_clone, [libc::SIGCHLD.unsigned_abs() as usize, 0, 0, 0, 0]),
        "ptrace" => raw(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, 1, 0, 0, 0]),
        "kill" => raw(libc::SYS_kill, [1, 0, 0, 0, 0]),
        "mount" => {
            raw(libc::SYS_mount, [0, c"/rw".as_ptr() as usize, c"tmpfs".as_ptr() as usize, 0, 0])
        }
        "chroot" => raw(libc::SYS_chroot, [c"/rw".as_ptr() as usize, 0, 0, 0, 0]),
        "unshare" => {
            raw(libc::SYS_unshare, [libc::CLONE_NEWUSER.unsigned_abs() as usize, 0, 0, 0, 0])
        }
        "setuid" => raw(libc::SYS_setresuid, [0, 0, 0, 0, 0]),
        "bpf" => raw(libc::SYS_bpf, [0; 5]),
        "raw-socket" => socket(AddressFamily::INET, SocketType::RAW),
        "packet-socket" => socket(AddressFamily::PACKET, SocketType::DGRAM),
        "netlink" => socket(AddressFamily::NETLINK, SocketType::RAW),
        "read" => File::open(argument).map(drop),
        "list" => std::fs::read_dir(argument).map(drop),
        "write" => File::create(argument).map(drop),
        "bind" => TcpListener::bind(address(argument)?).map(drop),
        "freebind" => from(address(argument)?, SocketType::STREAM).map(drop),
        "connect" => TcpStream::connect_timeout(&address(argument)?, CONNECT_TIMEOUT).map(drop),
        "spoof" => {
            let (source, target) = source_and_target(argument)?;
            let socket = UdpSocket::from(from((source, 0).into(), SocketType::DGRAM)?);
            socket.send_to(b"spoofed", target).map(drop)
        }
        "spoof-connect" => {
            let (source, target) = source_and_target(argument)?;
            let socket = from((source, 0).into(), SocketType::STREAM)?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(CONNECT_TIMEOUT))?;
            Ok(rustix::net::connect(&socket, &target)?)
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "no such attempt")),
    }
}

fn raw(number: libc::c_long, arguments: [usize; 5]) -> io::Result<()> {
    sys::raw(number, arguments).map(drop)
}

fn socket(family: AddressFamily, kind: SocketType) -> io::Result<()> {
    Ok(rustix::net::socket(family, kind, None).map(drop)?)
}

/// A socket bound to any address at all, its own or not: `IP_FREEBIND` asks for no privilege.
fn from(source: SocketAddr, kind: SocketType) -> io::Result<std::os::fd::OwnedFd> {
    let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, kind, None)?;
    if source.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true)?;
    } else {
        sockopt::set_ipv6_freebind(&socket, true)?;
    }
    rustix::net::bind(&socket, &source)?;
    Ok(socket)
}

fn address(text: &str) -> io::Result<SocketAddr> {
    text.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not an address"))
}

fn source_and_target(text: &str) -> io::Result<(IpAddr, SocketAddr)> {
    let (source, target) = text.split_once('>').unwrap_or(("", ""));
    let source = source.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    Ok((source, address(target)?))
}
