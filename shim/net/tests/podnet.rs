//! The platform's own side of a pod's network: listeners, outgoing connections by name, what an idle pod costs.

mod common;

use std::io;

use common::{Guest, NODE, V4, address, code, pod_ip, sandbox};
use copepod_net::{DialError, LookupError, NetCtx, NetView, PodNet, add_to_linker};
use copepod_shim::protocol::HostEntry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wasmtime::component::{Linker, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;

fn host(ip: &str, name: &str) -> HostEntry {
    HostEntry { ip: ip.parse().expect("an address"), names: vec![name.into()] }
}

#[tokio::test]
async fn a_port_that_a_container_holds_is_refused_to_another_by_name() {
    let net = PodNet::new(&sandbox());
    let mut guest = Guest::new(&net, "proxy");
    let listeners = net.listen("web", 8080).expect("it listens");

    let by_guest = guest.try_listen(V4, address("0.0.0.0:8080")).await;
    let by_platform = net.listen("api", 8080).err().expect("the port is held");
    drop(listeners);
    let afterwards = net.listen("api", 8080);

    assert!(matches!(code(by_guest), ErrorCode::AddressInUse));
    assert_eq!(by_platform.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(by_platform.to_string(), "port 8080 is held by container web");
    assert!(afterwards.is_ok());
}

#[tokio::test]
async fn a_port_that_another_process_has_is_named_too() {
    let sandbox = sandbox();
    let net = PodNet::new(&sandbox);
    let taken = std::net::TcpListener::bind((pod_ip(&sandbox), 0)).expect("a listener");
    let port = taken.local_addr().expect("it is bound").port();

    let error = net.listen("web", port).err().expect("the port is taken");

    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&format!("port {port} of {}", pod_ip(&sandbox))));
}

#[tokio::test]
async fn a_listener_of_a_closed_container_accepts_no_more() {
    let net = PodNet::new(&sandbox());
    let listeners = net.listen("web", 8080).expect("it listens");
    let accepting = tokio::spawn(async move { listeners[0].accept().await.err() });
    tokio::task::yield_now().await;

    net.close_all();

    let error = accepting.await.expect("no panic").expect("no connection");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(net.dial(8080).await.is_err());
    assert!(net.listen("web", 8080).is_ok());
}

#[tokio::test]
async fn a_connection_out_goes_to_a_sidecar_by_localhost_and_by_the_pods_name() {
    let net = PodNet::new(&sandbox());
    let listeners = net.listen("sidecar", 8080).expect("it listens");

    for name in ["localhost", "LOCALHOST.", "web", "127.0.0.1", "api.localhost"] {
        let mut to = net.connect(name, 8080).await.expect("connected");
        let (mut from, _) = listeners[0].accept().await.expect("a connection");
        to.write_all(b"hello").await.expect("written");
        let mut read = [0; 5];
        from.read_exact(&mut read).await.expect("read");

        assert_eq!(&read, b"hello", "{name}");
    }
    assert_eq!(net.sockets_left(), 64);
}

#[tokio::test]
async fn a_name_is_judged_by_the_address_that_it_has_when_it_is_used() {
    let mut sandbox = sandbox();
    sandbox.hosts = vec![
        host("169.254.169.254", "metadata.example"),
        host("127.0.0.1", "rebound.example"),
        host(&NODE.to_string(), "node.example"),
    ];
    let net = PodNet::new(&sandbox);
    let canary = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = canary.local_addr().expect("it is bound").port();

    for name in ["metadata.example", "node.example", "169.254.169.254", "[::ffff:169.254.1.1]"] {
        let error = net.connect(name, 80).await.expect_err("denied");
        assert!(matches!(error, DialError::Denied(_)), "{name}: {error}");
    }
    let rebound = net.connect("rebound.example", port).await.expect_err("one's own loopback");

    assert!(matches!(rebound, DialError::Refused(_)));
}

#[tokio::test]
async fn the_next_address_of_a_name_is_tried_where_one_refuses() {
    let mut sandbox = sandbox();
    sandbox.hosts = vec![
        host("169.254.169.254", "web.example"),
        host("127.0.0.1", "web.example"),
        host(&pod_ip(&sandbox).to_string(), "web.example"),
    ];
    let net = PodNet::new(&sandbox);
    let mut guest = Guest::new(&net, "app");
    let _listener = guest.listen(V4, std::net::SocketAddr::new(pod_ip(&sandbox), 8080)).await;

    let connected = net.connect("web.example", 8080).await;

    assert!(connected.is_ok());
}

#[tokio::test]
async fn a_pod_without_name_servers_knows_its_own_names_alone() {
    let net = PodNet::new(&sandbox());

    let foreign = net.connect("example.com", 80).await.expect_err("nobody to ask");
    let no_name = net.connect("a name", 80).await.expect_err("no name");

    assert!(matches!(foreign, DialError::Name { source: LookupError::NotFound, .. }));
    assert!(matches!(no_name, DialError::Name { source: LookupError::Invalid, .. }));
}

#[tokio::test]
async fn a_connection_out_counts_against_the_quota() {
    let mut sandbox = sandbox();
    sandbox.max_sockets = 1;
    let net = PodNet::new(&sandbox);
    let _listeners =
        net.listen("web", 8080).expect("a listener of the platform is not the guest's");

    let held = net.connect("localhost", 8080).await.expect("connected");
    let beyond = net.connect("localhost", 8080).await.expect_err("beyond the quota");
    drop(held);

    assert!(matches!(beyond, DialError::SocketLimit));
    assert!(net.connect("localhost", 8080).await.is_ok());
}

#[test]
fn all_seven_interfaces_are_linked() {
    struct State(NetCtx, ResourceTable);
    impl NetView for State {
        fn net(&mut self) -> (&mut NetCtx, &mut ResourceTable) {
            (&mut self.0, &mut self.1)
        }
    }
    let mut linker = Linker::<State>::new(&wasmtime::Engine::default());

    add_to_linker(&mut linker).expect("linked");

    let members = [
        ("instance-network", "instance-network"),
        ("ip-name-lookup", "resolve-addresses"),
        ("network", "network"),
        ("tcp", "[method]tcp-socket.start-bind"),
        ("tcp-create-socket", "create-tcp-socket"),
        ("udp", "[method]udp-socket.start-bind"),
        ("udp-create-socket", "create-udp-socket"),
    ];
    for (interface, member) in members {
        let name = format!("wasi:sockets/{interface}@0.2.12");
        let mut interface = linker.instance(&name).expect("an instance");
        let again = interface.func_wrap(member, |_, (): ()| Ok(()));
        assert!(again.is_err(), "{name} has no {member}");
    }
}

#[test]
fn an_idle_pod_is_a_few_hundred_bytes_and_needs_no_runtime() {
    let net = PodNet::new(&sandbox());

    assert!(size_of_val(&*net) <= 320, "{} bytes", size_of_val(&*net));
}
