//! TCP as guests of one pod and of two see it.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use common::{Guest, NODE, V4, V6, address, at, code, pod_ip, same, sandbox};
use copepod_net::PodNet;
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;
use wasmtime_wasi::p2::bindings::sockets::tcp::{HostTcpSocket as _, ShutdownType};
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as _;
use wasmtime_wasi_io::bindings::wasi::io::streams::HostOutputStream as _;

#[tokio::test]
async fn a_server_on_the_wildcard_is_reached_at_the_pod_ip_and_on_the_loopback() {
    let sandbox = sandbox();
    let net = PodNet::new(&sandbox);
    let (mut server, mut sidecar) = (Guest::new(&net, "server"), Guest::new(&net, "sidecar"));
    let listener = server.listen(V4, address("0.0.0.0:8080")).await;

    let by_ip = sidecar.connect(at(pod_ip(&sandbox), 8080)).await.expect("connected");
    let from_ip = server.accept(&listener).await;
    let by_loopback = sidecar.connect(address("127.0.0.1:8080")).await.expect("connected");
    let from_loopback = server.accept(&listener).await;

    assert_eq!(server.local(&listener), address("0.0.0.0:8080"));
    assert_eq!(sidecar.remote(&by_ip.socket), at(pod_ip(&sandbox), 8080));
    assert_eq!(server.remote(&from_ip.socket), sidecar.local(&by_ip.socket));
    assert_eq!(server.remote(&from_ip.socket).ip(), pod_ip(&sandbox));
    assert_eq!(sidecar.remote(&by_loopback.socket), address("127.0.0.1:8080"));
    assert_eq!(server.remote(&from_loopback.socket), sidecar.local(&by_loopback.socket));
    assert_eq!(server.remote(&from_loopback.socket).ip(), Ipv4Addr::LOCALHOST);
    assert_eq!(server.local(&from_loopback.socket), address("127.0.0.1:8080"));

    sidecar.write(&by_loopback, b"ping").await;
    assert_eq!(server.read(&from_loopback).await.as_deref(), Some(&b"ping"[..]));
    server.write(&from_loopback, b"pong").await;
    assert_eq!(sidecar.read(&by_loopback).await.as_deref(), Some(&b"pong"[..]));
}

#[tokio::test]
async fn a_server_on_the_loopback_is_reached_by_its_own_pod_alone() {
    let (own, other) = (sandbox(), sandbox());
    let (net, others_net) = (PodNet::new(&own), PodNet::new(&other));
    let (mut server, mut client) = (Guest::new(&net, "app"), Guest::new(&net, "sidecar"));
    let mut stranger = Guest::new(&others_net, "app");
    let listener = server.listen(V4, address("127.0.0.1:7000")).await;

    let connected = client.connect(address("127.0.0.5:7000")).await;
    let accepted = server.accept(&listener).await;
    let by_pod_ip = client.connect(at(pod_ip(&own), 7000)).await;
    let by_stranger = stranger.connect(at(own.loopback, 7000)).await;
    let by_strangers_loopback = stranger.connect(address("127.0.0.1:7000")).await;
    let dialled = net.dial(7000).await;

    assert!(connected.is_ok());
    assert_eq!(server.remote(&accepted.socket).ip(), Ipv4Addr::LOCALHOST);
    assert_eq!(server.local(&accepted.socket), address("127.0.0.1:7000"));
    assert!(matches!(code(by_pod_ip), ErrorCode::ConnectionRefused));
    assert!(matches!(code(by_stranger), ErrorCode::ConnectionRefused));
    assert!(matches!(code(by_strangers_loopback), ErrorCode::ConnectionRefused));
    assert_eq!(
        dialled.expect_err("nobody listens there").kind(),
        std::io::ErrorKind::ConnectionRefused
    );
}

#[tokio::test]
async fn a_listener_of_the_host_is_out_of_reach_in_every_spelling() {
    let net = PodNet::new(&sandbox());
    let mut guest = Guest::new(&net, "app");
    let canary = TcpListener::bind("127.0.0.1:0").expect("a listener");
    canary.set_nonblocking(true).expect("a socket takes the flag");
    let port = canary.local_addr().expect("it is bound").port();
    let v4 = ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.0.0.1", "255.255.255.255", "224.0.0.1"];
    let v6 = ["::1", "::ffff:127.0.0.1", "::ffff:127.9.9.9", "::", "::ffff:0.0.0.0", "::127.0.0.1"];

    for ip in v4.into_iter().chain(v6) {
        let connected =
            guest.connect(at(ip.parse::<std::net::IpAddr>().expect("an address"), port));
        let error = code(connected.await);
        assert!(
            matches!(
                error,
                ErrorCode::ConnectionRefused | ErrorCode::InvalidArgument | ErrorCode::AccessDenied
            ),
            "{ip}: {error:?}"
        );
    }

    assert_eq!(canary.accept().expect_err("nobody came").kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn metadata_link_local_and_node_addresses_are_denied_before_any_packet() {
    let net = PodNet::new(&sandbox());
    let mut guest = Guest::new(&net, "app");
    let mapped = NODE.to_ipv6_mapped();
    let denied = [
        address("169.254.169.254:80"),
        address("[::ffff:169.254.169.254]:80"),
        address("[64:ff9b::a9fe:a9fe]:80"),
        address("[2002:a9fe:a9fe::1]:80"),
        address("[fe80::1]:80"),
        at(NODE, 10250),
        at(mapped, 10250),
        address("0.1.2.3:80"),
        address("240.0.0.1:80"),
    ];

    for to in denied {
        let error = code(guest.connect(to).await);
        assert!(matches!(error, ErrorCode::AccessDenied), "{to}: {error:?}");
    }
}

#[tokio::test]
async fn nothing_but_the_pods_own_addresses_can_be_bound() {
    let other = sandbox();
    let net = PodNet::new(&sandbox());
    let mut guest = Guest::new(&net, "app");

    for ip in [NODE, Ipv4Addr::new(10, 0, 0, 1)] {
        let error = code(guest.try_listen(V4, at(ip, 80)).await);
        assert!(matches!(error, ErrorCode::AddressNotBindable), "{ip}: {error:?}");
    }
    // Another pod's loopback address is a spelling of one's own.
    let listener = guest.listen(V4, at(other.loopback, 0)).await;
    let port = guest.port(&listener);
    assert!(std::net::TcpStream::connect(at(other.loopback, port)).is_err());
}

#[tokio::test]
async fn the_wildcard_stands_against_every_address_on_its_port_and_two_addresses_do_not() {
    let sandbox = sandbox();
    let net = PodNet::new(&sandbox);
    let (mut first, mut second) = (Guest::new(&net, "first"), Guest::new(&net, "second"));

    let wildcard = first.listen(V4, address("0.0.0.0:80")).await;
    for local in [address("0.0.0.0:80"), address("127.0.0.1:80"), at(pod_ip(&sandbox), 80)] {
        let error = code(second.try_listen(V4, local).await);
        assert!(matches!(error, ErrorCode::AddressInUse), "{local}: {error:?}");
    }
    first.drop_tcp(wildcard);
    let on_loopback = second.try_listen(V4, address("127.0.0.1:80")).await;
    let on_pod_ip = first.try_listen(V4, at(pod_ip(&sandbox), 80)).await;

    assert!(on_loopback.is_ok() && on_pod_ip.is_ok());
    assert!(matches!(
        code(first.try_listen(V4, address("0.0.0.0:80")).await),
        ErrorCode::AddressInUse
    ));
}

#[tokio::test]
async fn a_pod_without_ipv6_serves_an_ipv6_wildcard_with_mapped_addresses() {
    let sandbox = sandbox();
    let net = PodNet::new(&sandbox);
    let mut guest = Guest::new(&net, "app");
    let listener = guest.listen(V6, address("[::]:8080")).await;
    let mapped = Ipv4Addr::to_ipv6_mapped(&sandbox.ipv4.expect("it has IPv4"));

    let by_v4 = guest.connect(at(pod_ip(&sandbox), 8080)).await.expect("connected");
    let from_v4 = guest.accept(&listener).await;
    let _by_v6 = guest.connect(address("[::1]:8080")).await.expect("connected");
    let from_v6 = guest.accept(&listener).await;
    let by_mapped = guest.connect(at(mapped, 8080)).await.expect("connected");

    assert_eq!(guest.local(&listener), address("[::]:8080"));
    assert_eq!(guest.remote(&from_v4.socket), at(mapped, guest.port(&by_v4.socket)));
    assert_eq!(guest.local(&from_v4.socket), at(mapped, 8080));
    assert_eq!(guest.remote(&from_v6.socket).ip(), Ipv6Addr::LOCALHOST);
    assert_eq!(guest.local(&by_mapped.socket).ip(), mapped);
}

#[tokio::test]
async fn a_pod_has_no_more_sockets_than_its_quota() {
    let mut sandbox = sandbox();
    sandbox.max_sockets = 3;
    let net = PodNet::new(&sandbox);
    let mut guest = Guest::new(&net, "app");
    let listener = guest.listen(V4, address("0.0.0.0:8080")).await;
    let conn = guest.connect(address("127.0.0.1:8080")).await.expect("connected");
    let spare = guest.tcp(V4);

    let beyond = guest.host().create_tcp_socket(V4);
    let accepted_beyond = guest.try_accept(&listener).await;
    guest.drop_tcp(spare);
    let accepted = guest.try_accept(&listener).await;

    assert!(matches!(code(beyond), ErrorCode::NewSocketLimit));
    assert!(matches!(code(accepted_beyond), ErrorCode::NewSocketLimit));
    let accepted = accepted.expect("the connection has waited");
    guest.drop_conn(accepted).await;
    guest.drop_conn(conn).await;
    guest.drop_tcp(listener);
    assert_eq!(net.sockets_left(), 3);
}

#[tokio::test]
async fn a_closed_container_listens_no_more_and_its_ports_are_free_while_its_guest_still_stands() {
    let net = PodNet::new(&sandbox());
    let (mut old, mut other) = (Guest::new(&net, "app"), Guest::new(&net, "other"));
    let _listener = old.listen(V4, address("0.0.0.0:8080")).await;
    let _kept = other.listen(V4, address("0.0.0.0:9090")).await;

    net.close_container("app");

    let refused = other.connect(address("127.0.0.1:8080")).await;
    assert!(matches!(code(refused), ErrorCode::ConnectionRefused));
    assert!(other.connect(address("127.0.0.1:9090")).await.is_ok());
    assert!(other.try_listen(V4, address("0.0.0.0:8080")).await.is_ok());
}

#[tokio::test]
async fn what_a_peer_does_not_read_is_held_by_the_kernel_and_one_write_of_64_kib() {
    let net = PodNet::new(&sandbox());
    let (mut server, mut client) = (Guest::new(&net, "server"), Guest::new(&net, "client"));
    let listener = server.listen(V4, address("127.0.0.1:8080")).await;
    let to = client.connect(address("127.0.0.1:8080")).await.expect("connected");
    let from = server.accept(&listener).await;

    let mut written = 0;
    loop {
        let output = same(&to.output);
        let granted = client.table.check_write(output).expect("it is open");
        assert!(granted <= 64 << 10);
        if granted == 0 {
            break;
        }
        let output = same(&to.output);
        client.table.write(output, vec![7; granted as usize]).expect("it was granted");
        written += granted as usize;
    }
    let reader = tokio::spawn(async move {
        let mut read = 0;
        while let Some(bytes) = server.read(&from).await {
            assert!(bytes.len() <= 64 << 10 && bytes.iter().all(|b| *b == 7));
            read += bytes.len();
        }
        read
    });
    client.drop_conn(to).await;

    assert_eq!(reader.await.expect("the reader ends"), written);
}

#[tokio::test]
async fn a_write_without_leave_traps() {
    let net = PodNet::new(&sandbox());
    let (mut server, mut client) = (Guest::new(&net, "server"), Guest::new(&net, "client"));
    let _listener = server.listen(V4, address("127.0.0.1:8080")).await;
    let conn = client.connect(address("127.0.0.1:8080")).await.expect("connected");

    let output = same(&conn.output);
    let written = client.table.write(output, vec![1]);

    assert!(matches!(written, Err(wasmtime_wasi::p2::StreamError::Trap(_))));
}

#[tokio::test]
async fn the_peer_of_a_shut_down_socket_reads_to_the_end_and_can_still_answer() {
    let net = PodNet::new(&sandbox());
    let (mut server, mut client) = (Guest::new(&net, "server"), Guest::new(&net, "client"));
    let listener = server.listen(V4, address("127.0.0.1:8080")).await;
    let to = client.connect(address("127.0.0.1:8080")).await.expect("connected");
    let from = server.accept(&listener).await;

    client.write(&to, b"question").await;
    client.host().shutdown(same(&to.socket), ShutdownType::Send).expect("shut down");

    assert_eq!(server.read(&from).await.as_deref(), Some(&b"question"[..]));
    assert_eq!(server.read(&from).await, None);
    server.write(&from, b"answer").await;
    assert_eq!(client.read(&to).await.as_deref(), Some(&b"answer"[..]));
    let output = same(&to.output);
    assert!(matches!(
        client.table.check_write(output),
        Err(wasmtime_wasi::p2::StreamError::Closed)
    ));
}

#[tokio::test]
async fn options_read_back_and_are_kept_where_the_socket_beneath_changes_its_family() {
    let mut sandbox = sandbox();
    sandbox.ipv6 = Some(Ipv6Addr::LOCALHOST);
    let net = PodNet::new(&sandbox);
    let mut guest = Guest::new(&net, "app");
    let socket = guest.tcp(V6);
    const SECOND: u64 = 1_000_000_000;

    let mut host = guest.host();
    host.set_keep_alive_enabled(same(&socket), true).expect("set");
    host.set_keep_alive_idle_time(same(&socket), 9 * SECOND).expect("set");
    host.set_keep_alive_interval(same(&socket), 1).expect("set");
    host.set_keep_alive_count(same(&socket), 3).expect("set");
    host.set_hop_limit(same(&socket), 42).expect("set");
    host.set_receive_buffer_size(same(&socket), 30_000).expect("set");
    host.set_send_buffer_size(same(&socket), u64::MAX).expect("cut, not refused");
    assert!(matches!(code(host.set_hop_limit(same(&socket), 0)), ErrorCode::InvalidArgument));
    assert!(matches!(
        code(host.set_receive_buffer_size(same(&socket), 0)),
        ErrorCode::InvalidArgument
    ));
    // The pod's own IPv6 address is `::1` here, so a mapped one is what leads to IPv4.
    guest.bind(&socket, address("[::]:0")).await.expect("bound");

    let mut host = guest.host();
    assert!(host.keep_alive_enabled(same(&socket)).expect("read"));
    assert_eq!(host.keep_alive_idle_time(same(&socket)).expect("read"), 9 * SECOND);
    assert_eq!(host.keep_alive_interval(same(&socket)).expect("read"), SECOND);
    assert_eq!(host.keep_alive_count(same(&socket)).expect("read"), 3);
    assert_eq!(host.hop_limit(same(&socket)).expect("read"), 42);
    assert_eq!(host.receive_buffer_size(same(&socket)).expect("read"), 30_000);
}

#[tokio::test]
async fn steps_out_of_order_are_refused_by_name() {
    let net = PodNet::new(&sandbox());
    let mut guest = Guest::new(&net, "app");
    let socket = guest.tcp(V4);
    let network = guest.network();

    let mut host = guest.host();
    assert!(matches!(code(host.finish_bind(same(&socket))), ErrorCode::NotInProgress));
    assert!(matches!(code(host.finish_connect(same(&socket))), ErrorCode::NotInProgress));
    assert!(matches!(code(host.local_address(same(&socket))), ErrorCode::InvalidState));
    assert!(matches!(code(host.start_listen(same(&socket)).await), ErrorCode::InvalidState));
    assert!(matches!(code(host.accept(same(&socket))), ErrorCode::InvalidState));
    host.start_bind(same(&socket), network, address("0.0.0.0:0").into()).await.expect("bound");
    let listen = host.start_listen(same(&socket)).await;
    assert!(matches!(code(listen), ErrorCode::ConcurrencyConflict));
    host.finish_bind(same(&socket)).expect("it was started");
    let again = guest.bind(&socket, address("0.0.0.0:0")).await;
    assert!(matches!(code(again), ErrorCode::InvalidState));
    let wrong_family = guest.tcp(V6);
    let bound = guest.bind(&wrong_family, address("127.0.0.1:0")).await;
    assert!(matches!(code(bound), ErrorCode::InvalidArgument));
}

/// Whether `future` is done after what can happen without anybody's doing.
async fn is_done<F: Future + Unpin>(future: &mut F) -> bool {
    tokio::time::timeout(std::time::Duration::from_millis(300), future).await.is_ok()
}

#[tokio::test]
async fn a_container_that_stops_lets_in_who_stood_in_the_queue_and_nobody_after() {
    let sandbox = sandbox();
    let net = PodNet::new(&sandbox);
    let (mut server, mut client) = (Guest::new(&net, "server"), Guest::new(&net, "client"));
    let listener = server.listen(V4, address("0.0.0.0:8080")).await;
    let to = at(pod_ip(&sandbox), 8080);
    let early = client.connect(to).await.expect("connected");
    let seen_off = {
        let net = net.clone();
        tokio::spawn(async move { net.see_callers_off("server").await })
    };
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;

    let late = client.connect(to).await;
    let accepted = server.accept(&listener).await;
    client.write(&early, b"ping").await;
    let ping = server.read(&accepted).await;
    let another = {
        let again = server.try_accept(&listener);
        tokio::time::timeout(std::time::Duration::from_millis(100), again).await
    };

    assert!(matches!(code(late), ErrorCode::ConnectionRefused));
    assert_eq!(ping.as_deref(), Some(&b"ping"[..]));
    assert!(another.is_err(), "a listener without newcomers waits");
    assert!(!seen_off.is_finished(), "an answer is owed");
}

#[tokio::test]
async fn a_container_that_stops_waits_for_answers_that_it_owes_and_not_for_idle_connections() {
    let sandbox = sandbox();
    let net = PodNet::new(&sandbox);
    let (mut server, mut client) = (Guest::new(&net, "server"), Guest::new(&net, "client"));
    let listener = server.listen(V4, address("0.0.0.0:8080")).await;
    let asking = client.connect(at(pod_ip(&sandbox), 8080)).await.expect("connected");
    let asked = server.accept(&listener).await;
    client.write(&asking, b"question").await;
    let mut seen_off = Box::pin(net.see_callers_off("server"));

    assert!(!is_done(&mut seen_off).await, "the question is not even read");
    assert!(server.read(&asked).await.is_some());
    assert!(!is_done(&mut seen_off).await, "an answer is owed");
    server.write(&asked, b"answer").await;
    assert!(client.read(&asking).await.is_some());

    // The connection stays, as one that is kept for later.
    seen_off.await;
}

#[tokio::test]
async fn a_container_that_stops_waits_for_nobody_where_its_only_peer_is_gone() {
    let sandbox = sandbox();
    let net = PodNet::new(&sandbox);
    let mut server = Guest::new(&net, "server");
    let listener = server.listen(V4, address("0.0.0.0:8080")).await;
    let caller = tokio::net::TcpStream::connect((pod_ip(&sandbox), 8080)).await.expect("connected");
    let called = server.accept(&listener).await;
    caller.writable().await.expect("writable");
    assert_eq!(caller.try_write(b"question").expect("written"), 8);
    assert!(server.read(&called).await.is_some());

    caller.set_zero_linger().expect("a socket takes it");
    drop(caller);

    net.see_callers_off("server").await;
}

#[tokio::test]
async fn a_container_without_connections_stops_at_once_whatever_connections_it_opened() {
    let sandbox = sandbox();
    let net = PodNet::new(&sandbox);
    let (mut server, mut worker) = (Guest::new(&net, "server"), Guest::new(&net, "worker"));
    let listener = server.listen(V4, address("0.0.0.0:8080")).await;
    let asking = worker.connect(at(pod_ip(&sandbox), 8080)).await.expect("connected");
    let _asked = server.accept(&listener).await;
    worker.write(&asking, b"question").await;

    let mut seen_off = Box::pin(net.see_callers_off("worker"));

    assert!(is_done(&mut seen_off).await);
}
