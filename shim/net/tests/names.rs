//! `ip-name-lookup` as a guest uses it.

mod common;

use std::net::{IpAddr, Ipv4Addr};

use common::{Guest, code, same, sandbox};
use copepod_net::PodNet;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::{Host, HostResolveAddressStream};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress};

#[tokio::test]
async fn a_guest_finds_localhost_its_own_name_and_spelled_addresses() {
    let sandbox = sandbox();
    let net = PodNet::new(&sandbox);
    let mut guest = Guest::new(&net, "app");
    let own: IpAddr = sandbox.ipv4.expect("it has IPv4").into();
    let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
    let spelled: IpAddr = "fd00::1".parse().expect("an address");

    for (name, address) in [("localhost", loopback), ("web", own), ("[fd00::1]", spelled)] {
        let network = guest.network();
        let lookup = guest.host().resolve_addresses(network, name.into()).expect("a lookup");
        let pollable =
            HostResolveAddressStream::subscribe(&mut guest.host(), same(&lookup)).expect("it");
        guest.wait(pollable).await;
        let first = guest.host().resolve_next_address(same(&lookup)).expect("an answer");
        let second = guest.host().resolve_next_address(same(&lookup)).expect("an answer");

        let shown = |ip: Option<IpAddress>| ip.map(|ip| format!("{ip:?}"));
        assert_eq!(shown(first), shown(Some(address.into())), "{name}");
        assert_eq!(shown(second), None, "{name}");
        HostResolveAddressStream::drop(&mut guest.host(), lookup).expect("dropped");
    }
    assert_eq!(net.sockets_left(), 64);
}

#[tokio::test]
async fn what_is_no_name_and_what_nobody_knows_are_told_apart() {
    let net = PodNet::new(&sandbox());
    let mut guest = Guest::new(&net, "app");
    let network = guest.network();

    let no_name = guest.host().resolve_addresses(same(&network), "two words".into());
    let unknown = guest.host().resolve_addresses(network, "example.com".into()).expect("a lookup");
    let answer = guest.host().resolve_next_address(unknown);

    assert!(matches!(code(no_name), ErrorCode::InvalidArgument));
    assert!(matches!(code(answer), ErrorCode::NameUnresolvable));
}

#[tokio::test]
async fn lookups_take_sockets_of_the_quota_while_they_ask() {
    let mut sandbox = sandbox();
    sandbox.max_sockets = 1;
    let silent = std::net::UdpSocket::bind((sandbox.loopback, 53));
    sandbox.dns.servers = vec![Ipv4Addr::LOCALHOST.into()];
    let net = PodNet::new(&sandbox);
    let mut guest = Guest::new(&net, "app");
    let network = guest.network();

    let first = guest.host().resolve_addresses(same(&network), "a.example".into());
    let pending = first.expect("a lookup");
    let beyond = guest.host().resolve_addresses(network, "b.example".into());

    // Port 53 is root's to bind; without it nobody answers either, but at once.
    if silent.is_ok() {
        assert!(matches!(code(beyond), ErrorCode::TemporaryResolverFailure));
        assert_eq!(net.sockets_left(), 0);
    }
    HostResolveAddressStream::drop(&mut guest.host(), pending).expect("dropped");
    assert_eq!(net.sockets_left(), 1);
}
