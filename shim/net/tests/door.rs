//! The way out through a broker, as a guest sees it: like any other.

mod common;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use common::{Guest, V4, address, at, code, pod_ip, sandbox};
use copepod_net::{Door, PodNet};
use copepod_shim::broker::{Ask, Told};
use copepod_shim::protocol::PodSandbox;
use copepod_shim::stage::{self, Outside};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;

/// The servers that stand for every address outside.
struct World {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl World {
    fn new() -> Self {
        let here = (Ipv4Addr::LOCALHOST, 0);
        let tcp = TcpListener::bind(here).expect("a free port");
        let udp = UdpSocket::bind(here).expect("a free port");
        // What does not come is a failure and no hang.
        udp.set_read_timeout(Some(Duration::from_secs(30))).expect("a valid time");
        Self { tcp, udp }
    }

    /// A pod whose broker takes every connection to the servers. The tests' pods have addresses of 127.0.0.0/8.
    fn behind(&self, sandbox: &PodSandbox) -> Arc<PodNet> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("a pair of sockets");
        let (tcp, udp) = (self.tcp.local_addr(), self.udp.local_addr());
        let (tcp, udp) = (tcp.expect("bound"), udp.expect("bound"));
        std::thread::spawn(move || {
            while let Ok((Ask::Open { udp: is_udp, .. }, _)) = stage::receive(&theirs) {
                let socket = if is_udp { open_udp(udp) } else { open_tcp(tcp) };
                stage::send(&theirs, &Told::Opened, &[socket.as_fd()]).expect("it is there");
            }
        });
        let outside = Outside { base: Ipv4Addr::new(127, 0, 0, 0), prefix: 8 };
        PodNet::behind(Some(Arc::new(Door::new(outside, ours))), sandbox)
    }
}

fn open_tcp(to: SocketAddr) -> OwnedFd {
    let socket = std::net::TcpStream::connect(to).expect("it listens");
    socket.set_nonblocking(true).expect("set");
    socket.into()
}

fn open_udp(to: SocketAddr) -> OwnedFd {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.connect(to).expect("connected");
    socket.set_nonblocking(true).expect("set");
    socket.into()
}

#[tokio::test]
async fn a_connection_shows_the_address_that_was_asked_and_the_pod_s_own() {
    let (world, sandbox) = (World::new(), sandbox());
    let net = world.behind(&sandbox);
    let mut guest = Guest::new(&net, "app");

    let outside = guest.connect(address("192.0.2.1:80")).await.expect("connected");
    let (accepted, peer) = world.tcp.accept().expect("accepted");
    let (local, remote) = (guest.local(&outside.socket), guest.remote(&outside.socket));
    guest.write(&outside, b"ping").await;
    let mut got = [0; 4];
    std::io::Read::read_exact(&mut &accepted, &mut got).expect("it comes");

    assert_eq!(remote, address("192.0.2.1:80"));
    assert_eq!(local, at(pod_ip(&sandbox), peer.port()));
    assert_eq!(&got, b"ping");
}

#[tokio::test]
async fn what_is_inside_or_denied_never_comes_to_the_door() {
    let (world, sandbox) = (World::new(), sandbox());
    world.tcp.set_nonblocking(true).expect("set");
    let net = world.behind(&sandbox);
    let mut guest = Guest::new(&net, "app");
    let listener = guest.listen(V4, address("0.0.0.0:8080")).await;

    let by_loopback = guest.connect(address("127.0.0.1:8080")).await;
    let by_ip = guest.connect(at(pod_ip(&sandbox), 8080)).await;
    let denied = guest.connect(address("169.254.169.254:80")).await;

    assert!(by_loopback.is_ok() && by_ip.is_ok());
    assert!(matches!(code(denied), ErrorCode::AccessDenied));
    assert!(world.tcp.accept().is_err(), "nobody came");
    guest.accept(&listener).await;
}

#[tokio::test]
async fn datagrams_go_to_several_peers_outside_and_their_answers_come_from_whom_was_asked() {
    let (world, sandbox) = (World::new(), sandbox());
    let net = world.behind(&sandbox);
    let mut guest = Guest::new(&net, "app");
    let socket = guest.udp(V4, address("0.0.0.0:0")).await;
    let streams = guest.streams(&socket, None).await;

    for asked in ["192.0.2.1:53", "192.0.2.2:53", "192.0.2.1:53"].map(address) {
        guest.send(&streams, b"question", Some(asked)).expect("sent");
        let mut buffer = [0; 16];
        let (length, from) = world.udp.recv_from(&mut buffer).expect("it comes");
        world.udp.send_to(b"answer", from).expect("sent");

        assert_eq!(&buffer[..length], b"question");
        assert_eq!(guest.receive(&streams).await, (b"answer".to_vec(), asked));
    }
    // The guest's socket, and one for each of two peers.
    assert_eq!(net.sockets_left(), 64 - 3);
}

#[tokio::test]
async fn a_socket_connected_to_the_outside_hears_its_peer_alone() {
    let (world, sandbox) = (World::new(), sandbox());
    let net = world.behind(&sandbox);
    let mut guest = Guest::new(&net, "app");
    let socket = guest.udp(V4, address("0.0.0.0:0")).await;
    let local = guest.udp_local(&socket);
    let neighbour = guest.udp(V4, address("0.0.0.0:0")).await;
    let from_neighbour = guest.streams(&neighbour, None).await;

    let connected = guest.streams(&socket, Some(address("192.0.2.1:53"))).await;
    let to_socket = at(pod_ip(&sandbox), local.port());
    guest.send(&from_neighbour, b"stranger", Some(to_socket)).expect("sent");
    guest.send(&connected, b"question", None).expect("sent");
    let (_, from) = world.udp.recv_from(&mut [0; 16]).expect("it comes");
    world.udp.send_to(b"answer", from).expect("sent");

    let heard = guest.receive(&connected).await;
    assert_eq!(heard, (b"answer".to_vec(), address("192.0.2.1:53")));
}
