//! Pods on addresses of 127.0.0.0/8 and guests that speak to the host traits, as a component would.
#![allow(dead_code, unused_imports)]

mod namespace;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use copepod_net::linker::Sockets;
use copepod_net::{NetCtx, PodNet};
use copepod_shim::protocol::{Dns, PodSandbox};
use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::instance_network::Host as _;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, Network};
use wasmtime_wasi::p2::bindings::sockets::tcp::TcpSocket;
use wasmtime_wasi::p2::bindings::sockets::udp::{
    IncomingDatagramStream, OutgoingDatagramStream, UdpSocket,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, SocketError};
use wasmtime_wasi_io::bindings::wasi::io::poll::HostPollable as _;

pub(crate) use namespace::{cluster_pod, dual_stack_pod, in_namespace, ipv6_pod};

pub(crate) const V4: IpAddressFamily = IpAddressFamily::Ipv4;
pub(crate) const V6: IpAddressFamily = IpAddressFamily::Ipv6;

/// The node's own address, which no guest may reach.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// A pod whose addresses no other test has, in this process or beside it.
pub(crate) fn sandbox() -> PodSandbox {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let process = 64 + (std::process::id() % 128) as u8;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    PodSandbox {
        pod: "0b6a8bd6-6a0e-4c15-9a53-1b9f64e4b0a1".into(),
        name: "web".into(),
        namespace: "default".into(),
        ipv4: Some(Ipv4Addr::new(127, process, number, 1)),
        ipv6: None,
        loopback: Ipv4Addr::new(127, process, number, 2),
        hostname: "web".into(),
        hosts: Vec::new(),
        dns: Dns::default(),
        denied: vec![NODE.into()],
        max_sockets: 64,
    }
}

pub(crate) fn pod_ip(sandbox: &PodSandbox) -> IpAddr {
    sandbox.ipv4.expect("every pod of these tests has IPv4").into()
}

pub(crate) fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address with a port")
}

/// The error code that a guest gets.
pub(crate) fn code<T>(result: Result<T, SocketError>) -> ErrorCode {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(error) => error.downcast().expect("an error code, not a trap"),
    }
}

/// One instance in a container of a pod.
pub(crate) struct Guest {
    pub(crate) ctx: NetCtx,
    pub(crate) table: ResourceTable,
    network: u32,
}

pub(crate) type Tcp = Resource<TcpSocket>;
pub(crate) type Udp = Resource<UdpSocket>;

/// A connection: the socket and its streams.
pub(crate) struct Conn {
    pub(crate) socket: Tcp,
    pub(crate) input: Resource<DynInputStream>,
    pub(crate) output: Resource<DynOutputStream>,
}

pub(crate) struct Datagrams {
    pub(crate) incoming: Resource<IncomingDatagramStream>,
    pub(crate) outgoing: Resource<OutgoingDatagramStream>,
}

/// The same resource, lent to a host call.
pub(crate) fn same<T: 'static>(resource: &Resource<T>) -> Resource<T> {
    Resource::new_borrow(resource.rep())
}

impl Guest {
    pub(crate) fn new(net: &Arc<PodNet>, container: &str) -> Self {
        let mut guest = Self {
            ctx: NetCtx::new(Arc::clone(net), container.into()),
            table: ResourceTable::new(),
            network: 0,
        };
        guest.network = guest.host().instance_network().expect("a network").rep();
        guest
    }

    pub(crate) fn host(&mut self) -> Sockets<'_> {
        Sockets { ctx: &mut self.ctx, table: &mut self.table }
    }

    pub(crate) fn network(&self) -> Resource<Network> {
        Resource::new_borrow(self.network)
    }

    pub(crate) async fn wait(&mut self, pollable: Resource<DynPollable>) {
        self.table.block(same(&pollable)).await.expect("a pollable");
        self.table.delete(pollable).expect("the pollable is deleted");
    }
}
