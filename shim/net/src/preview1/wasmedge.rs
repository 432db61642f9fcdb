//! Sockets that a preview1 guest opens by itself, as WasmEdge defines them: what its Rust crate (`wasmedge_wasi_socket` 0.5.5), the forks of
//! tokio and hyper over it, and Go's `wasip1` network package call.
//!
//! An address is a buffer of 4 or 16 bytes, or of 128 with the family (1 for IPv4, 2 for IPv6) in its first two bytes, least first, and
//! the address after them. Absent: options that the pod's sockets do not have (time limits, linger, broadcast), which are told `NOPROTOOPT`.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Waker};

use wasmtime::{Caller, Linker};
use wasmtime_wasi::p1::types::{Ciovec, Errno, Error, Fd, Iovec};
use wiggle::{GuestMemory, GuestPtr};

use super::link::{self, MODULE, fd_of};
use super::socket::{Kind, Socket, told};
use super::{Descriptor, Preview1};
use crate::lookup::LookupError;
use crate::options::Settings;
use crate::rules::Family;
use crate::tcp::TcpSocket;
use crate::udp::UdpSocket;

type Result<T> = std::result::Result<T, Error>;

/// An address with its family before it.
const TAGGED: u32 = 128;

/// The most addresses of a name that are told; each is 28 bytes, and two buffers of the guest's.
const MOST_ADDRESSES: u32 = 64;

/// Numbers of the family and of the kind of a socket.
const INET4: u32 = 1;
const INET6: u32 = 2;
const DATAGRAM: i32 = 1;
const STREAM: i32 = 2;

/// The options of level 0, by their numbers.
mod option {
    pub(super) const REUSE_ADDRESS: i32 = 0;
    pub(super) const TYPE: i32 = 1;
    pub(super) const ERROR: i32 = 2;
    pub(super) const SEND_BUFFER: i32 = 5;
    pub(super) const RECEIVE_BUFFER: i32 = 6;
    pub(super) const KEEP_ALIVE: i32 = 7;
    pub(super) const LISTENS: i32 = 13;
}

/// Adds a function that works on the guest's memory and state, and returns an error's number.
macro_rules! function {
    ($linker:ident, $state:ident, $name:literal, |$memory:ident, $guest:ident, $($arg:ident),+| $body:expr) => {
        $linker.func_wrap_async(
            MODULE,
            $name,
            move |mut caller: Caller<'_, T>, ($($arg,)+): ($(function!(@i32 $arg),)+)| {
                Box::new(async move {
                    let (mut memory, $guest) = link::guest(&mut caller, $state)?;
                    let $memory = &mut memory;
                    link::errno($body.await)
                })
            },
        )?
    };
    (@i32 $arg:ident) => { i32 };
}

/// Adds WasmEdge's functions, but `sock_accept`.
pub(super) fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    state: fn(&mut T) -> &mut Preview1,
) -> wasmtime::Result<()> {
    function!(linker, state, "sock_open", |memory, guest, family, kind, opened| async {
        let number = guest.open(family, kind)?;
        Ok(memory.write(at(opened), number)?)
    });
    function!(linker, state, "sock_bind", |memory, guest, fd, address, port| async {
        let address = read_address(memory, address, port)?;
        match &mut guest.socket(fd_of(fd))?.kind {
            Kind::Tcp(tcp) => {
                tcp.socket.start_bind(address).map_err(told)?;
                tcp.socket.finish_bind().map_err(told)
            }
            Kind::Udp(udp) => udp.bind(address).await,
        }
    });
    function!(linker, state, "sock_listen", |_memory, guest, fd, backlog| async {
        let Kind::Tcp(tcp) = &mut guest.socket(fd_of(fd))?.kind else {
            return Err(Errno::Notsup.into());
        };
        tcp.socket.set_backlog(u64::try_from(backlog).unwrap_or(0).max(1)).map_err(told)?;
        tcp.socket.start_listen().map_err(told)?;
        tcp.socket.finish_listen().map_err(told)
    });
    function!(linker, state, "sock_connect", |memory, guest, fd, address, port| async {
        let address = read_address(memory, address, port)?;
        guest.connect(fd_of(fd), address).await
    });
    function!(
        linker,
        state,
        "sock_recv_from",
        |memory, guest, fd, buffers, count, address, flags, port, received, told| async {
            let buffers = GuestPtr::<Iovec>::new(buffers as u32).as_array(count as u32);
            let flags = (flags as u16).try_into()?;
            let (length, sender, cut) =
                guest.receive_from(memory, fd_of(fd), buffers, flags).await?;
            write_address(memory, address, sender.ip())?;
            memory.write(at(port), u32::from(sender.port()))?;
            memory.write(at(received), length)?;
            Ok(memory.write(at::<u16>(told), u16::from(cut))?)
        }
    );
    function!(linker, state, "sock_send_to", |memory,
                                              guest,
                                              fd,
                                              pieces,
                                              count,
                                              address,
                                              port,
                                              _flags,
                                              sent| async {
        let pieces = GuestPtr::<Ciovec>::new(pieces as u32).as_array(count as u32);
        let to = read_address(memory, address, port)?;
        let length = guest.send(memory, fd_of(fd), pieces, Some(to)).await?;
        Ok(memory.write(at(sent), length)?)
    });
    function!(
        linker,
        state,
        "sock_getlocaladdr",
        |memory, guest, fd, address, family, port| async {
            let local = guest.socket(fd_of(fd))?.local()?;
            write_socket_address(memory, address, family, port, local)
        }
    );
    function!(
        linker,
        state,
        "sock_getpeeraddr",
        |memory, guest, fd, address, family, port| async {
            let remote = guest.socket(fd_of(fd))?.remote()?;
            write_socket_address(memory, address, family, port, remote)
        }
    );
    function!(
        linker,
        state,
        "sock_getsockopt",
        |memory, guest, fd, level, name, value, length| async {
            if memory.read(at::<u32>(length))? < 4 {
                return Err(Errno::Inval.into());
            }
            let found = guest.socket(fd_of(fd))?.option(level, name)?;
            memory.write(at(value), found)?;
            Ok(memory.write(at(length), 4_u32)?)
        }
    );
    function!(
        linker,
        state,
        "sock_setsockopt",
        |memory, guest, fd, level, name, value, length| async {
            // A time has twice that length and is none of ours.
            let wanted = match length {
                4 => memory.read(at::<i32>(value))?,
                _ => return Err(Errno::Noprotoopt.into()),
            };
            guest.socket(fd_of(fd))?.set_option(level, name, wanted)
        }
    );
    function!(
        linker,
        state,
        "sock_getaddrinfo",
        |memory, guest, node, node_length, service, service_length, hint, found, most, count| async {
            let node = read_text(memory, node, node_length)?;
            let service = read_text(memory, service, service_length)?;
            let hint = Hint::read(memory, hint)?;
            let port = port_of(&service).ok_or(Errno::Noent)?;
            let mut addresses = guest.look_up(&node).await?;
            addresses.retain(|ip| hint.family.is_none_or(|family| family == Family::of(*ip)));
            if addresses.is_empty() {
                return Err(Errno::Noent.into());
            }
            let first = memory.read(at::<u32>(found))?;
            let most = (most as u32).min(MOST_ADDRESSES);
            let told = write_found(memory, first, most, &addresses, port, &hint)?;
            Ok(memory.write(at(count), told)?)
        }
    );
    Ok(())
}

fn at<T>(address: i32) -> GuestPtr<T> {
    GuestPtr::new(address as u32)
}

impl Preview1 {
    fn open(&mut self, family: i32, kind: i32) -> Result<u32> {
        let family = match family as u32 {
            INET4 => Family::V4,
            INET6 => Family::V6,
            _ => return Err(Errno::Afnosupport.into()),
        };
        if self.descriptors.is_full() {
            return Err(Errno::Mfile.into());
        }
        let socket = match kind {
            STREAM => Socket::tcp(TcpSocket::new(&self.net, family).map_err(told)?, false),
            DATAGRAM => Socket::udp(UdpSocket::new(&self.net, family).map_err(told)?),
            _ => return Err(Errno::Prototype.into()),
        };
        let number = self.descriptors.push(Descriptor::Socket(socket));
        Ok(number.map_err(|_| Errno::Mfile)?)
    }

    async fn connect(&mut self, fd: Fd, to: SocketAddr) -> Result<()> {
        let socket = self.socket(fd)?;
        let nonblocking = socket.nonblocking;
        match &mut socket.kind {
            Kind::Udp(udp) => {
                udp.streams().await?;
                udp.connect(to)
            }
            Kind::Tcp(tcp) => {
                // Asked again, it tells what has come of the first time.
                match tcp.is_connected() {
                    Ok(()) => return Err(Errno::Isconn.into()),
                    Err(Errno::Notconn) => {}
                    Err(Errno::Again) => return Err(Errno::Already.into()),
                    Err(failure) => return Err(failure.into()),
                }
                tcp.connect(to)?;
                if nonblocking {
                    let now = tcp.poll_connected(&mut Context::from_waker(Waker::noop()));
                    if now.is_pending() {
                        return Err(Errno::Inprogress.into());
                    }
                }
                poll_fn(|cx| tcp.poll_connected(cx)).await;
                tcp.take_failure().map_or(Ok(()), |errno| Err(errno.into()))
            }
        }
    }

    async fn look_up(&mut self, name: &str) -> Result<Vec<IpAddr>> {
        self.net.net.resolve(name).await.map_err(|error| {
            match error {
                LookupError::Invalid => Errno::Inval,
                LookupError::NotFound => Errno::Noent,
                LookupError::TimedOut => Errno::Timedout,
                LookupError::ServersFailed => Errno::Again,
            }
            .into()
        })
    }
}

impl Socket {
    /// As Linux tells it: of one that is bound to nothing, no address.
    fn local(&self) -> Result<SocketAddr> {
        let (local, family) = match &self.kind {
            Kind::Tcp(tcp) => (tcp.socket.local_address(), tcp.socket.family()),
            Kind::Udp(udp) => (udp.socket.local_address(), udp.socket.family()),
        };
        Ok(local.unwrap_or_else(|_| SocketAddr::new(family.unspecified(), 0)))
    }

    fn remote(&mut self) -> Result<SocketAddr> {
        let remote = match &mut self.kind {
            Kind::Tcp(tcp) => {
                // It may be connected by now.
                let _ = tcp.poll_connected(&mut Context::from_waker(Waker::noop()));
                tcp.socket.remote_address()
            }
            Kind::Udp(udp) => udp.socket.remote_address(),
        };
        remote.map_err(|_| Errno::Notconn.into())
    }

    fn settings(&mut self) -> Result<Settings<'_>> {
        match &mut self.kind {
            Kind::Tcp(tcp) => tcp.socket.options().map_err(told),
            Kind::Udp(udp) => Ok(udp.socket.options()),
        }
    }

    fn option(&mut self, level: i32, name: i32) -> Result<i32> {
        let size = |bytes: u64| i32::try_from(bytes).unwrap_or(i32::MAX);
        match (level, name, &mut self.kind) {
            (0, option::TYPE, Kind::Tcp(_)) => Ok(STREAM),
            (0, option::TYPE, Kind::Udp(_)) => Ok(DATAGRAM),
            (0, option::ERROR, Kind::Tcp(tcp)) => {
                Ok(tcp.take_failure().map_or(0, |errno| i32::from(errno as u16)))
            }
            (0, option::ERROR, Kind::Udp(_)) => Ok(0),
            (0, option::LISTENS, Kind::Tcp(tcp)) => Ok(tcp.socket.is_listening().into()),
            // Every listener of a pod has it.
            (0, option::REUSE_ADDRESS, kind) => Ok(matches!(kind, Kind::Tcp(_)).into()),
            (0, option::KEEP_ALIVE, Kind::Tcp(_)) => {
                Ok(self.settings()?.keep_alive().map_err(told)?.into())
            }
            (0, option::SEND_BUFFER, _) => Ok(size(self.settings()?.send_buffer().map_err(told)?)),
            (0, option::RECEIVE_BUFFER, _) => {
                Ok(size(self.settings()?.receive_buffer().map_err(told)?))
            }
            _ => Err(Errno::Noprotoopt.into()),
        }
    }

    fn set_option(&mut self, level: i32, name: i32, wanted: i32) -> Result<()> {
        let size = u64::try_from(wanted).map_err(|_| Errno::Inval);
        match (level, name, &self.kind) {
            (0, option::REUSE_ADDRESS, _) => Ok(()),
            (0, option::KEEP_ALIVE, Kind::Tcp(_)) => {
                self.settings()?.set_keep_alive(wanted != 0).map_err(told)
            }
            (0, option::SEND_BUFFER, _) => self.settings()?.set_send_buffer(size?).map_err(told),
            (0, option::RECEIVE_BUFFER, _) => {
                self.settings()?.set_receive_buffer(size?).map_err(told)
            }
            _ => Err(Errno::Noprotoopt.into()),
        }
    }
}

fn read_text(memory: &GuestMemory<'_>, text: i32, length: i32) -> Result<String> {
    // A name is 253 bytes at most, and one more is the zero after it.
    let text = GuestPtr::<str>::new((text as u32, (length as u32).min(256)));
    Ok(memory.as_cow_str(text)?.trim_end_matches('\0').to_owned())
}

/// The port of a service by its number, or by one of the names that libraries ask for.
fn port_of(service: &str) -> Option<u16> {
    match service {
        "" => Some(0),
        "domain" => Some(53),
        "http" => Some(80),
        "https" => Some(443),
        number => number.parse().ok(),
    }
}

/// The bytes of the buffer that an address is in.
fn buffer(memory: &GuestMemory<'_>, address: i32) -> Result<GuestPtr<[u8]>> {
    let (start, size) = (at::<u32>(address), at::<u32>(address).add(1)?);
    let (start, size) = (memory.read(start)?, memory.read(size)?);
    Ok(GuestPtr::<u8>::new(start).as_array(size.min(TAGGED)))
}

fn read_address(memory: &GuestMemory<'_>, address: i32, port: i32) -> Result<SocketAddr> {
    let bytes = memory.to_vec(buffer(memory, address)?)?;
    let ip = match (bytes.len() as u32, &bytes[..]) {
        (TAGGED, [1, 0, rest @ ..]) => ip_of(&rest[..4]),
        (TAGGED, [2, 0, rest @ ..]) => ip_of(&rest[..16]),
        _ => ip_of(&bytes),
    };
    let port = u16::try_from(port).map_err(|_| Errno::Inval)?;
    Ok(SocketAddr::new(ip.ok_or(Errno::Inval)?, port))
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|it| IpAddr::V4(it.into()));
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|it| IpAddr::V6(it.into()))).ok()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn write_address(memory: &mut GuestMemory<'_>, address: i32, ip: IpAddr) -> Result<()> {
    let place = buffer(memory, address)?;
    let mut bytes = octets(ip);
    if place.len() == TAGGED {
        let family = if ip.is_ipv4() { INET4 } else { INET6 };
        bytes.splice(0..0, [family as u8, 0]);
    }
    let length = bytes.len() as u32;
    let place = place.get_range(0..length).ok_or(Errno::Inval)?;
    Ok(memory.copy_from_slice(&bytes, place)?)
}

fn write_socket_address(
    memory: &mut GuestMemory<'_>,
    address: i32,
    family: i32,
    port: i32,
    told: SocketAddr,
) -> Result<()> {
    write_address(memory, address, told.ip())?;
    memory.write(at(family), if told.is_ipv4() { 4_u32 } else { 6 })?;
    Ok(memory.write(at(port), u32::from(told.port()))?)
}

/// What a lookup is to find: the first fields of a guest's `addrinfo`.
struct Hint {
    flags: u16,
    family: Option<Family>,
    kind: u8,
    protocol: u8,
}

impl Hint {
    fn read(memory: &GuestMemory<'_>, hint: i32) -> Result<Self> {
        let bytes = GuestPtr::<u8>::new(hint as u32);
        let family = memory.read(bytes.add(2)?)?;
        Ok(Self {
            flags: memory.read(at::<u16>(hint))?,
            family: match u32::from(family) {
                INET4 => Some(Family::V4),
                INET6 => Some(Family::V6),
                _ => None,
            },
            kind: memory.read(bytes.add(3)?)?,
            protocol: memory.read(bytes.add(4)?)?,
        })
    }
}

/// Fills the list of `addrinfo` that a guest has laid out at `first`, each linked to the next and with a buffer for its address:
/// `{flags: u16, family: u8, kind: u8, protocol: u8, addrlen: u32, addr: *, canonname: *, canonnamelen: u32, next: *}`, where
/// `addr` is `{family: u8, length: u32, data: *}` and `data` the port, most first, and the address. How many were filled.
fn write_found(
    memory: &mut GuestMemory<'_>,
    first: u32,
    most: u32,
    addresses: &[IpAddr],
    port: u16,
    hint: &Hint,
) -> Result<u32> {
    let field = |info: u32, offset: u32| info.checked_add(offset).ok_or(Errno::Fault);
    let mut info = first;
    let mut filled = 0;
    for ip in addresses.iter().take(most as usize) {
        if info == 0 {
            break;
        }
        let family = if ip.is_ipv4() { INET4 as u8 } else { INET6 as u8 };
        let mut data = port.to_be_bytes().to_vec();
        data.extend(octets(*ip));
        let length = data.len() as u32;
        memory.write(GuestPtr::<u16>::new(info), hint.flags)?;
        memory.write(GuestPtr::<u8>::new(field(info, 2)?), family)?;
        memory.write(GuestPtr::<u8>::new(field(info, 3)?), hint.kind)?;
        memory.write(GuestPtr::<u8>::new(field(info, 4)?), hint.protocol)?;
        memory.write(GuestPtr::<u32>::new(field(info, 8)?), 16)?;
        let address = memory.read(GuestPtr::<u32>::new(field(info, 12)?))?;
        memory.write(GuestPtr::<u32>::new(field(info, 20)?), 0)?;
        memory.write(GuestPtr::<u8>::new(address), family)?;
        memory.write(GuestPtr::<u32>::new(field(address, 4)?), length)?;
        let place = memory.read(GuestPtr::<u32>::new(field(address, 8)?))?;
        memory.copy_from_slice(&data, GuestPtr::<u8>::new(place).as_array(length))?;
        info = memory.read(GuestPtr::<u32>::new(field(info, 24)?))?;
        filled += 1;
    }
    Ok(filled)
}
