//! The requests of probes and hooks, made over a connection that somebody else opened to the pod.
//!
//! Absent: when to probe and what a result means, which the core decides.

mod grpc;
mod http;
mod tls;

use std::net::IpAddr;

pub(crate) use self::grpc::health;
pub(crate) use self::http::{Get, get};

/// As the kubelet says who it is, with the version of Kubernetes whose API this is.
const USER_AGENT: &str = "kube-probe/1.37";

/// An address as a URL's host.
pub(crate) fn host_of(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// Makes a request while its connection is driven. Both live in this task and end with it: a probe leaves nothing behind.
async fn driven<T>(connection: impl Future, exchange: impl Future<Output = T>) -> T {
    tokio::pin!(exchange, connection);
    let mut connected = true;
    loop {
        tokio::select! {
            done = &mut exchange => return done,
            _ = &mut connection, if connected => connected = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_ipv6_is_asked_by_an_address_in_brackets() {
        assert_eq!(host_of("fd00::5".parse().expect("an address")), "[fd00::5]");
        assert_eq!(host_of("192.0.2.5".parse().expect("an address")), "192.0.2.5");
    }
}
