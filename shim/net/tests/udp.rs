//! UDP as guests of one pod and of two see it.

mod common;

use std::net::{Ipv4Addr, UdpSocket};

use common::{Guest, NODE, V4, V6, address, at, code, pod_ip, same, sandbox};
use copepod_net::PodNet;
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;
use wasmtime_wasi::p2::bindings::sockets::udp::HostUdpSocket as _;
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket::Host as _;

#[tokio::test]
async fn an_answer_comes_from_the_address_that_was_asked() {
    let sandbox = sandbox();
    let net = PodNet::new(&sandbox);
    let (mut server, mut client) = (Guest::new(&net, "dns"), Guest::new(&net, "app"));
    let server_socket = server.udp(V4, address("0.0.0.0:5353")).await;
    let served = server.streams(&server_socket, None).await;
    let client_socket = client.udp(V4, address("0.0.0.0:0")).await;
    let streams = client.streams(&client_socket, None).await;

    for asked in [address("127.0.0.53:5353"), at(pod_ip(&sandbox), 5353)] {
        client.send(&streams, b"question", Some(asked)).expect("sent");
        let (question, from) = server.receive(&served).await;
        server.send(&served, b"answer", Some(from)).expect("sent");
        let (answer, answered_by) = client.receive(&streams).await;

        assert_eq!((question.as_slice(), answer.as_slice()), (&b"question"[..], &b"answer"[..]));
        assert_eq!(from.ip(), pod_ip(&sandbox));
        assert_eq!(answered_by, asked);
    }
    assert_eq!(server.udp_local(&server_socket), address("0.0.0.0:5353"));
}

#[tokio::test]
async fn a_connected_socket_hears_its_peer_alone_and_keeps_its_port_when_it_lets_go() {
    let net = PodNet::new(&sandbox());
    let mut guest = Guest::new(&net, "app");
    let (one, two) = (
        guest.udp(V4, address("127.0.0.1:4001")).await,
        guest.udp(V4, address("127.0.0.1:4002")).await,
    );
    let (from_one, from_two) = (guest.streams(&one, None).await, guest.streams(&two, None).await);
    let socket = guest.udp(V4, address("127.0.0.1:0")).await;
    let local = guest.udp_local(&socket);

    let connected = guest.streams(&socket, Some(address("127.0.0.1:4001"))).await;
    guest.send(&from_two, b"stranger", Some(local)).expect("sent");
    guest.send(&from_one, b"peer", Some(local)).expect("sent");
    let heard = guest.receive(&connected).await;
    let elsewhere = guest.send(&connected, b"x", Some(address("127.0.0.1:4002")));
    let remote = guest.host().remote_address(same(&socket)).expect("a peer");
    guest.drop_streams(connected).await;
    let free = guest.streams(&socket, None).await;
    guest.send(&from_two, b"welcome", Some(local)).expect("sent");
    let heard_again = guest.receive(&free).await;

    assert_eq!(heard, (b"peer".to_vec(), address("127.0.0.1:4001")));
    assert!(matches!(code(elsewhere), ErrorCode::InvalidArgument));
    assert_eq!(std::net::SocketAddr::from(remote), address("127.0.0.1:4001"));
    assert_eq!(heard_again, (b"welcome".to_vec(), address("127.0.0.1:4002")));
    assert_eq!(guest.udp_local(&socket), local);
}

#[tokio::test]
async fn neither_connecting_nor_sending_reaches_what_is_denied() {
    let net = PodNet::new(&sandbox());
    let mut guest = Guest::new(&net, "app");
    let canary = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    canary.set_nonblocking(true).expect("a socket takes the flag");
    let canary_at = canary.local_addr().expect("it is bound");
    let v4 = guest.udp(V4, address("0.0.0.0:0")).await;
    let v6 = guest.udp(V6, address("[::]:0")).await;
    let denied_v4 = [
        address("169.254.169.254:53"),
        address("224.0.0.251:5353"),
        address("255.255.255.255:67"),
        at(NODE, 53),
    ];
    let denied_v6 = [
        address("[::ffff:169.254.169.254]:53"),
        address("[ff02::fb]:5353"),
        address("[fe80::1]:53"),
        at(NODE.to_ipv6_mapped(), 53),
    ];

    for (socket, denied) in [(&v4, denied_v4), (&v6, denied_v6)] {
        for to in denied {
            let connected = guest.try_streams(socket, Some(to)).await;
            assert!(matches!(code(connected), ErrorCode::AccessDenied), "connect {to}");
            let streams = guest.streams(socket, None).await;
            let sent = guest.send(&streams, b"x", Some(to));
            assert!(matches!(code(sent), ErrorCode::AccessDenied), "send {to}");
            guest.drop_streams(streams).await;
        }
    }
    let streams = guest.streams(&v4, None).await;
    let _ = guest.send(&streams, b"x", Some(canary_at));
    let _ = guest.send(&streams, b"x", Some(at(Ipv4Addr::new(127, 1, 2, 3), canary_at.port())));

    assert_eq!(
        canary.recv(&mut [0; 8]).expect_err("nothing came").kind(),
        std::io::ErrorKind::WouldBlock
    );
}

#[tokio::test]
async fn udp_sockets_count_against_the_quota_and_their_ports_are_held() {
    let mut sandbox = sandbox();
    sandbox.max_sockets = 2;
    let net = PodNet::new(&sandbox);
    let mut guest = Guest::new(&net, "app");
    let _held = guest.udp(V4, address("0.0.0.0:53")).await;

    let in_use = guest.try_udp(V4, address("127.0.0.1:53")).await;
    let beyond = guest.host().create_udp_socket(V4).await;

    assert!(matches!(code(in_use), ErrorCode::AddressInUse));
    assert!(matches!(code(beyond), ErrorCode::NewSocketLimit));
}
