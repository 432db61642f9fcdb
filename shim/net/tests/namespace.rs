//! Pods as they stand in a runner's network namespace: addresses of a cluster, several pods side by side.

mod common;

use std::net::{IpAddr, Ipv6Addr};

use common::{
    Guest, NODE, V4, V6, address, at, cluster_pod, code, dual_stack_pod, in_namespace, ipv6_pod,
    pod_ip,
};
use copepod_net::PodNet;
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;

#[test]
fn two_pods_listen_on_one_port_and_see_each_others_pod_ip() {
    in_namespace(|| async {
        let (one, two) = (cluster_pod(), cluster_pod());
        let (one_net, two_net) = (PodNet::new(&one), PodNet::new(&two));
        let (mut a, mut b) = (Guest::new(&one_net, "app"), Guest::new(&two_net, "app"));

        let a_listener = a.listen(V4, address("0.0.0.0:443")).await;
        let _b_listener = b.listen(V4, address("0.0.0.0:443")).await;
        let connected = b.connect(at(pod_ip(&one), 443)).await.expect("connected");
        let accepted = a.accept(&a_listener).await;

        assert_eq!(a.remote(&accepted.socket), b.local(&connected.socket));
        assert_eq!(b.local(&connected.socket).ip(), pod_ip(&two));
    });
}

#[test]
fn a_pod_reaches_neither_the_loopback_of_another_pod_nor_that_of_the_runner() {
    in_namespace(|| async {
        let (one, two) = (cluster_pod(), cluster_pod());
        let (one_net, two_net) = (PodNet::new(&one), PodNet::new(&two));
        let (mut a, mut b) = (Guest::new(&one_net, "app"), Guest::new(&two_net, "app"));
        let _a_listener = a.listen(V4, address("127.0.0.1:80")).await;
        let runner = std::net::TcpListener::bind("127.0.0.1:81").expect("a listener");
        runner.set_nonblocking(true).expect("a socket takes the flag");

        for to in [at(pod_ip(&one), 80), at(one.loopback, 80), address("127.0.0.1:81")] {
            let error = code(b.connect(to).await);
            assert!(matches!(error, ErrorCode::ConnectionRefused), "{to}: {error:?}");
        }
        let bound = b.try_listen(V4, at(pod_ip(&one), 8080)).await;

        assert!(runner.accept().is_err());
        assert!(matches!(code(bound), ErrorCode::AddressNotBindable));
    });
}

#[test]
fn a_socket_bound_to_the_loopback_has_no_way_out_of_the_pod() {
    in_namespace(|| async {
        let (one, two) = (cluster_pod(), cluster_pod());
        let (one_net, two_net) = (PodNet::new(&one), PodNet::new(&two));
        let (mut a, mut b) = (Guest::new(&one_net, "app"), Guest::new(&two_net, "app"));
        let _listener = a.listen(V4, address("0.0.0.0:8080")).await;
        let socket = b.tcp(V4);
        b.bind(&socket, address("127.0.0.1:0")).await.expect("bound");

        let connected = b.connect_with(socket, at(pod_ip(&one), 8080)).await;

        assert!(matches!(code(connected), ErrorCode::RemoteUnreachable));
    });
}

#[test]
fn a_datagram_to_another_pod_comes_from_the_pod_ip() {
    in_namespace(|| async {
        let (one, two) = (cluster_pod(), cluster_pod());
        let (one_net, two_net) = (PodNet::new(&one), PodNet::new(&two));
        let (mut a, mut b) = (Guest::new(&one_net, "app"), Guest::new(&two_net, "app"));
        let a_socket = a.udp(V6, address("[::]:4000")).await;
        let a_streams = a.streams(&a_socket, None).await;
        let b_socket = b.udp(V4, address("0.0.0.0:4000")).await;
        let b_streams = b.streams(&b_socket, None).await;

        b.send(&b_streams, b"hello", Some(at(pod_ip(&one), 4000))).expect("sent");
        let (_, from) = a.receive(&a_streams).await;
        a.send(&a_streams, b"hello back", Some(from)).expect("a mapped address is taken back");
        let (_, back_from) = b.receive(&b_streams).await;

        assert_eq!(from, at(two.ipv4.expect("it has IPv4").to_ipv6_mapped(), 4000));
        assert_eq!(back_from, at(pod_ip(&one), 4000));
    });
}

#[test]
fn a_probe_comes_from_the_node_and_not_from_the_pod() {
    in_namespace(|| async {
        let pod = cluster_pod();
        let net = PodNet::new(&pod);
        let mut guest = Guest::new(&net, "app");
        let on_wildcard = guest.listen(V4, address("0.0.0.0:8080")).await;
        let _on_loopback = guest.listen(V4, address("127.0.0.1:9090")).await;
        let listeners = net.listen("http", 80).expect("it listens");

        let _to_guest = net.dial(8080).await.expect("connected");
        let from = guest.accept(&on_wildcard).await;
        let _to_http = net.dial(80).await.expect("connected");
        let (_, http_peer) = listeners[0].accept().await.expect("a connection");
        let to_loopback = net.dial(9090).await;

        assert_eq!(guest.remote(&from.socket).ip(), IpAddr::from(NODE));
        assert_eq!(guest.local(&from.socket), at(pod_ip(&pod), 8080));
        assert_eq!(http_peer.ip(), IpAddr::from(NODE));
        let error = to_loopback.expect_err("bound to the loopback alone");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_dual_stack_pod_has_one_wildcard_per_family_and_one_loopback_for_both() {
    in_namespace(|| async {
        let (one, two) = (dual_stack_pod(), dual_stack_pod());
        let (one_net, two_net) = (PodNet::new(&one), PodNet::new(&two));
        let (mut a, mut b) = (Guest::new(&one_net, "app"), Guest::new(&two_net, "app"));
        let v6 = one.ipv6.expect("it has IPv6");

        let on_v4 = a.listen(V4, address("0.0.0.0:80")).await;
        let on_v6 = a.listen(V6, address("[::]:80")).await;
        let on_loopback = a.listen(V6, address("[::1]:81")).await;
        let by_v6 = b.connect(at(v6, 80)).await.expect("connected");
        let from_b = a.accept(&on_v6).await;
        let _by_own_v6 = a.connect(address("[::1]:80")).await.expect("connected");
        let from_self = a.accept(&on_v6).await;
        let by_own_v4 = a.connect(address("127.0.0.1:80")).await.expect("connected");
        let from_own_v4 = a.accept(&on_v4).await;
        let _by_loopback = a.connect(address("127.0.0.1:81")).await.expect("connected");
        let from_loopback = a.accept(&on_loopback).await;

        assert_eq!(a.remote(&from_b.socket), b.local(&by_v6.socket));
        assert_eq!(b.local(&by_v6.socket).ip(), IpAddr::from(two.ipv6.expect("it has IPv6")));
        assert_eq!(a.remote(&from_self.socket).ip(), IpAddr::from(v6));
        assert_eq!(a.remote(&from_own_v4.socket), a.local(&by_own_v4.socket));
        assert_eq!(a.remote(&from_loopback.socket).ip(), IpAddr::from(Ipv6Addr::LOCALHOST));
        assert_eq!(a.local(&from_loopback.socket), address("[::1]:81"));
        let mapped = code(a.connect(address("[::ffff:10.64.0.1]:80")).await);
        assert!(matches!(mapped, ErrorCode::InvalidArgument));
        let listeners = one_net.listen("http", 8080).expect("it listens on both");
        assert_eq!(listeners.len(), 2);
    });
}

#[test]
fn a_pod_of_ipv6_alone_serves_and_connects_by_it_and_keeps_both_spellings_of_its_loopback() {
    in_namespace(|| async {
        let (one, two) = (ipv6_pod(), ipv6_pod());
        let (one_net, two_net) = (PodNet::new(&one), PodNet::new(&two));
        let (mut a, mut b) = (Guest::new(&one_net, "app"), Guest::new(&two_net, "app"));
        let v6 = IpAddr::from(one.ipv6.expect("it has IPv6"));

        let on_v6 = a.listen(V6, address("[::]:80")).await;
        let on_v4 = a.listen(V4, address("0.0.0.0:80")).await;
        let by_b = b.connect(at(v6, 80)).await.expect("connected");
        let from_b = a.accept(&on_v6).await;
        let _by_v4 = a.connect(address("127.0.0.1:80")).await.expect("connected");
        let from_v4 = a.accept(&on_v4).await;
        let _probe = one_net.dial(80).await.expect("connected");
        let from_node = a.accept(&on_v6).await;
        let listeners = one_net.listen("http", 8080).expect("it listens");
        let _by_loopback = one_net.connect("127.0.0.1", 8080).await.expect("connected");
        let _by_name = one_net.connect("localhost", 8080).await.expect("connected");
        let _by_pod_ip = two_net.connect(&v6.to_string(), 8080).await.expect("connected");
        let beyond = code(a.connect(address("198.51.100.1:80")).await);

        assert_eq!(a.remote(&from_b.socket), b.local(&by_b.socket));
        assert_eq!(b.local(&by_b.socket).ip(), IpAddr::from(two.ipv6.expect("it has IPv6")));
        assert_eq!(a.remote(&from_v4.socket).ip(), IpAddr::from(std::net::Ipv4Addr::LOCALHOST));
        // The node has no IPv6 address that the pod would know.
        assert_eq!(a.remote(&from_node.socket).ip(), address("[100::]:0").ip());
        assert_eq!(listeners.len(), 2);
        assert!(matches!(beyond, ErrorCode::RemoteUnreachable), "{beyond:?}");
    });
}

#[test]
fn datagrams_of_two_pods_of_ipv6_bear_their_pod_ips() {
    in_namespace(|| async {
        let (one, two) = (ipv6_pod(), ipv6_pod());
        let (one_net, two_net) = (PodNet::new(&one), PodNet::new(&two));
        let (mut a, mut b) = (Guest::new(&one_net, "app"), Guest::new(&two_net, "app"));
        let (a_ip, b_ip) = (one.ipv6.expect("it has IPv6"), two.ipv6.expect("it has IPv6"));
        let a_socket = a.udp(V6, address("[::]:4000")).await;
        let a_streams = a.streams(&a_socket, None).await;
        let b_socket = b.udp(V6, address("[::]:4000")).await;
        let b_streams = b.streams(&b_socket, None).await;

        b.send(&b_streams, b"hello", Some(at(a_ip, 4000))).expect("sent");
        let (_, from) = a.receive(&a_streams).await;
        a.send(&a_streams, b"hello back", Some(from)).expect("sent");
        let (_, back_from) = b.receive(&b_streams).await;

        assert_eq!((from, back_from), (at(b_ip, 4000), at(a_ip, 4000)));
    });
}
