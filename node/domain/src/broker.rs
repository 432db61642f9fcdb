//! The broker of an ordinary user's pods: one thread that answers questions until nobody can ask any more.
//!
//! It stays in the host's network and mounts, where it was started, and touches no file. It goes with the last connection: those of
//! the agent, one for each runner. Nothing that it does can wait for anything, so that no runner holds up another.
//!
//! A socket that it hands out is bound to the link through which its destination lies, which only root can undo: even a runner that
//! has fallen to its guests cannot turn it to the host's loopback. Absent: relaying; what was handed out is the runner's.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use copepod_shim::broker::{Ask, NAMESPACES, Told};
use copepod_shim::{destination, stage};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit};

use crate::netlink::Netlink;
use crate::sys;

/// How long the broker waits for its first client: the agent that starts it connects at once, or has died.
const FIRST_CLIENT: Duration = Duration::from_secs(2);

/// Where the broker of a data directory listens.
pub(crate) fn socket_path(data: &Path) -> PathBuf {
    data.join("broker.sock")
}

/// Answers on this listening socket until nobody is connected.
///
/// # Errors
/// The kernel's, of waiting or of asking for routes.
pub fn serve(listener: OwnedFd) -> io::Result<()> {
    let most = rustix::process::getrlimit(Resource::Nofile).maximum;
    // Each runner is one descriptor here; what is handed out is closed at once.
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
    rustix::io::ioctl_fionbio(&listener, true)?;
    let mut broker = Broker { clients: Vec::new(), kept: None, routes: Netlink::open()? };
    let begun = Instant::now();
    while broker.clients.is_empty() {
        let left = FIRST_CLIENT.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        broker.turn(&listener, Some(left))?;
    }
    while !broker.clients.is_empty() {
        broker.turn(&listener, None)?;
    }
    Ok(())
}

struct Client {
    socket: OwnedFd,
    /// A runner, which may ask for sockets and nothing else.
    is_runner: bool,
}

struct Broker {
    clients: Vec<Client>,
    kept: Option<Vec<OwnedFd>>,
    routes: Netlink,
}

impl Broker {
    /// Waits until somebody wants something, and gives it, to each that does.
    fn turn(&mut self, listener: &OwnedFd, at_most: Option<Duration>) -> io::Result<()> {
        let mut polled = vec![PollFd::new(listener, PollFlags::IN)];
        polled.extend(self.clients.iter().map(|client| PollFd::new(&client.socket, PollFlags::IN)));
        let at_most = at_most.and_then(|time| Timespec::try_from(time).ok());
        match rustix::event::poll(&mut polled, at_most.as_ref()) {
            Err(Errno::INTR) => return Ok(()),
            other => drop(other?),
        }
        let ready: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
        drop(polled);

        let mut asking = std::mem::take(&mut self.clients);
        let mut wants = ready.iter().skip(1);
        asking.retain(|client| {
            // Whoever left, does not read its answers, or talks nonsense, is disconnected.
            !wants.next().is_some_and(|ready| *ready) || self.answer(client).is_ok()
        });
        self.clients.splice(0..0, asking);
        if ready.first() == Some(&true) {
            self.accept(listener);
        }
        Ok(())
    }

    /// Agents come by the socket in the data directory, where nobody else has access; root may try, and is refused.
    fn accept(&mut self, listener: &OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Why not is the business of the one that tried.
        let Ok(socket) = rustix::net::accept_with(listener, flags) else { return };
        let same_user = sockopt::socket_peercred(&socket)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        if same_user {
            self.clients.push(Client { socket, is_runner: false });
        }
    }

    fn answer(&mut self, client: &Client) -> io::Result<()> {
        let (question, mut descriptors) = stage::receive::<Ask>(&client.socket)?;
        let nonsense = || io::Error::from(io::ErrorKind::InvalidData);
        let (told, opened) = match question {
            Ask::Open { to, udp } => match self.open(to, udp) {
                Ok(socket) => (Told::Opened, Some(socket)),
                Err(error) => (Told::Refused(error.raw_os_error()), None),
            },
            _ if client.is_runner => return Err(nonsense()),
            Ask::Namespaces => {
                let kept = self.kept.as_deref().unwrap_or_default();
                let kept: Vec<BorrowedFd<'_>> = kept.iter().map(AsFd::as_fd).collect();
                let told = if kept.is_empty() { Told::Done } else { Told::Namespaces };
                return stage::send(&client.socket, &told, &kept);
            }
            Ask::Keep if descriptors.len() == NAMESPACES => {
                self.kept = Some(descriptors);
                (Told::Done, None)
            }
            Ask::Serve if descriptors.len() == 1 => {
                let socket = descriptors.remove(0);
                rustix::io::ioctl_fionbio(&socket, true)?;
                self.clients.push(Client { socket, is_runner: true });
                (Told::Done, None)
            }
            Ask::Keep | Ask::Serve => return Err(nonsense()),
        };
        let opened: Vec<BorrowedFd<'_>> = opened.iter().map(AsFd::as_fd).collect();
        stage::send(&client.socket, &told, &opened)
    }

    fn open(&mut self, to: SocketAddr, udp: bool) -> Result<OwnedFd, Errno> {
        if !destination::is_ordinary_throughout(to.ip()) {
            return Err(Errno::ACCESS);
        }
        let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        // An address of the host itself lies through no link.
        let link = self.routes.link_towards(to.ip()).map_err(errno)?.ok_or(Errno::ACCESS)?;
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let kind = if udp { SocketType::DGRAM } else { SocketType::STREAM };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        sys::bind_to_link(&socket, link).map_err(errno)?;
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{IpAddr, Ipv4Addr, TcpListener};

    use copepod_shim::broker::ask;
    use rustix::net::SocketAddrUnix;
    use rustix::thread::UnshareFlags;

    use super::*;
    use crate::mounts::on_a_thread;
    use crate::netlink::Change;

    /// Of a block kept for documentation (RFC 5737), as seen from the machine.
    const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    const BEYOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

    /// Runs on a thread in a network of its own, which needs root: a loopback, and a link to what lies beyond.
    fn on_a_machine(test: impl FnOnce() + Send + 'static) {
        let ran = on_a_thread(move || {
            sys::unshare(UnshareFlags::NEWNET).expect("these tests need root");
            let here = File::open("/proc/thread-self/ns/net").expect("it is there");
            let mut links = Netlink::open().expect("a socket");
            let (ours, theirs) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
            links
                .apply(&[Change::add_veth("out0", ours, 1500, "in0", theirs, here.as_fd())])
                .expect("a pair of links");
            let number = |links: &mut Netlink, name: &str| {
                let all = links.links().expect("they are listed");
                all.into_iter().find(|(_, it)| it == name).expect("it was made").0
            };
            let (out, inner) = (number(&mut links, "out0"), number(&mut links, "in0"));
            let beyond = IpAddr::V4(BEYOND);
            links
                .apply(&[
                    Change::set_up(1),
                    Change::set_up(out),
                    Change::set_up(inner),
                    Change::add_address(OWN.into(), out),
                    Change::add_neighbour(beyond, theirs, out),
                    Change::add_route_via(beyond, beyond, out, None),
                ])
                .expect("a way out");
            test();
            Ok(())
        });
        ran.expect("the test passes");
    }

    /// A broker at work, and an agent's connection to it.
    fn started() -> (std::thread::JoinHandle<io::Result<()>>, OwnedFd) {
        let folder = tempfile::tempdir().expect("a folder");
        let address = SocketAddrUnix::new(folder.path().join("s")).expect("short enough");
        let socket = || {
            let kind = SocketType::SEQPACKET;
            rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
                .expect("a socket")
        };
        let (listener, agent) = (socket(), socket());
        rustix::net::bind(&listener, &address).expect("bound");
        rustix::net::listen(&listener, 4).expect("it listens");
        rustix::net::connect(&agent, &address).expect("connected");
        (std::thread::spawn(|| serve(listener)), agent)
    }

    fn open(client: &OwnedFd, to: SocketAddr, udp: bool) -> Result<OwnedFd, i32> {
        match ask(client, Ask::Open { to, udp }, &[]).expect("an answer") {
            (Told::Opened, mut opened) => Ok(opened.remove(0)),
            (Told::Refused(error), _) => Err(error),
            (other, _) => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_addresses_beyond_the_machine_are_connected_to() {
        on_a_machine(|| {
            let (_broker, agent) = started();

            for refused in ["127.0.0.1", "::1", "0.0.0.0", "169.254.169.254", "198.51.100.2"] {
                let to = SocketAddr::new(refused.parse().expect("an address"), 80);
                for udp in [false, true] {
                    assert_eq!(open(&agent, to, udp).expect_err(refused), libc::EACCES);
                }
            }
            let nowhere = SocketAddr::from(([203, 0, 113, 1], 80));
            assert_eq!(open(&agent, nowhere, false).expect_err("no route"), libc::ENETUNREACH);
            for udp in [false, true] {
                open(&agent, (BEYOND, 80).into(), udp).expect("it lies beyond");
            }
        });
    }

    #[test]
    fn a_socket_that_was_handed_out_cannot_be_turned_to_the_machine_itself() {
        on_a_machine(|| {
            let (_broker, agent) = started();
            let canary = TcpListener::bind("0.0.0.0:0").expect("a free port");
            canary.set_nonblocking(true).expect("set");
            let port = canary.local_addr().expect("bound").port();

            let socket = open(&agent, (BEYOND, 80).into(), false).expect("it lies beyond");
            rustix::net::connect_unspec(&socket).expect("disconnected");
            let turned = rustix::net::connect(&socket, &SocketAddr::from(([127, 0, 0, 1], port)));

            assert!(turned.is_err());
            std::thread::sleep(Duration::from_millis(100));
            assert!(canary.accept().is_err(), "nobody came");
        });
    }

    #[test]
    fn a_runner_gets_sockets_and_neither_namespaces_nor_the_right_to_add_others() {
        on_a_machine(|| {
            let (_broker, agent) = started();
            let runner = || {
                let kind = SocketType::SEQPACKET;
                let (ours, theirs) =
                    rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
                        .expect("a pair");
                ask(&agent, Ask::Serve, &[theirs.as_fd()]).expect("it is served");
                ours
            };
            let honest = runner();

            open(&honest, (BEYOND, 80).into(), true).expect("it lies beyond");
            for forbidden in [Ask::Namespaces, Ask::Keep, Ask::Serve] {
                let ended = ask(runner(), forbidden, &[]).expect_err("disconnected");
                assert!(
                    [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset]
                        .contains(&ended.kind()),
                    "{forbidden:?}: {ended}"
                );
            }
            open(&honest, (BEYOND, 80).into(), true).expect("others go on");
        });
    }

    #[test]
    fn it_keeps_what_the_agent_gave_it_while_a_runner_lives_and_goes_with_the_last_client() {
        on_a_machine(|| {
            let (broker, agent) = started();
            let namespaces = File::open("/proc/thread-self/ns/net").expect("it is there");
            let kept = [namespaces.as_fd(); NAMESPACES];
            let (told, nothing) = ask(&agent, Ask::Namespaces, &[]).expect("an answer");
            assert_eq!((told, nothing.len()), (Told::Done, 0));
            ask(&agent, Ask::Keep, &kept).expect("kept");

            let (told, back) = ask(&agent, Ask::Namespaces, &[]).expect("an answer");
            assert_eq!((told, back.len()), (Told::Namespaces, NAMESPACES));
            drop(agent);

            broker.join().expect("no panic").expect("it ended well");
        });
    }
}
