//! Between the terms of this crate and those of `wasi:sockets`: error codes, and which addresses the specification takes.
//! Absent: decisions of ours; an address that is fine here is still to be judged by [`crate::rules`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wasmtime_wasi::p2::SocketError;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily};

use crate::lookup::LookupError;
use crate::podnet::BindError;
use crate::rules::{Family, Refused};

/// An address of one host.
pub(crate) fn is_unicast(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_multicast(),
    }
}

/// An address that something can be sent to.
pub(crate) fn is_remote(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_unspecified() && address.port() != 0
}

/// How a guest spells its loopback.
pub(crate) fn loopback(guest: Family) -> IpAddr {
    match guest {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

pub(crate) fn family(family: IpAddressFamily) -> Family {
    match family {
        IpAddressFamily::Ipv4 => Family::V4,
        IpAddressFamily::Ipv6 => Family::V6,
    }
}

pub(crate) fn address_family(family: Family) -> IpAddressFamily {
    match family {
        Family::V4 => IpAddressFamily::Ipv4,
        Family::V6 => IpAddressFamily::Ipv6,
    }
}

pub(crate) fn refused(refused: Refused) -> SocketError {
    match refused {
        Refused::Denied => ErrorCode::AccessDenied,
        Refused::Unreachable => ErrorCode::RemoteUnreachable,
    }
    .into()
}

pub(crate) fn bind_error(error: BindError) -> SocketError {
    match error {
        BindError::Held(_) => ErrorCode::AddressInUse.into(),
        BindError::Os(error) => error.into(),
    }
}

pub(crate) fn lookup_error(error: LookupError) -> SocketError {
    match error {
        LookupError::Invalid => ErrorCode::InvalidArgument,
        LookupError::NotFound => ErrorCode::NameUnresolvable,
        LookupError::TimedOut | LookupError::ServersFailed => ErrorCode::TemporaryResolverFailure,
    }
    .into()
}
