//! Socket options in the units and bounds of `wasi:sockets`: nanoseconds, bytes as asked for, nothing that is zero.
//! Absent: which state of a socket allows which option.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::net::sockopt;
use wasmtime_wasi::p2::SocketResult;
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;

use crate::rules::Family;

/// What Linux takes at most for keep-alive times (32767 s) and probes (127).
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(32_767);
const MAX_KEEP_ALIVE_COUNT: u32 = 127;

/// The largest kernel buffer of a guest's socket in one direction. A larger wish is cut without a word, as the
/// specification allows; Linux itself grows a buffer nobody asked to change to 6 MiB (tcp_rmem) where a connection needs it.
const MAX_BUFFER: u64 = 4 << 20;

/// The options that a guest has set, to be set again where its socket is made anew.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    keep_alive: Option<bool>,
    keep_alive_idle: Option<Duration>,
    keep_alive_interval: Option<Duration>,
    keep_alive_count: Option<u32>,
    hop_limit: Option<u8>,
    receive_buffer: Option<usize>,
    send_buffer: Option<usize>,
}

impl Options {
    /// Sets all of them on another socket.
    pub(crate) fn apply(&self, fd: BorrowedFd<'_>, beneath: Family) -> rustix::io::Result<()> {
        if let Some(on) = self.keep_alive {
            sockopt::set_socket_keepalive(fd, on)?;
        }
        if let Some(time) = self.keep_alive_idle {
            sockopt::set_tcp_keepidle(fd, time)?;
        }
        if let Some(time) = self.keep_alive_interval {
            sockopt::set_tcp_keepintvl(fd, time)?;
        }
        if let Some(count) = self.keep_alive_count {
            sockopt::set_tcp_keepcnt(fd, count)?;
        }
        if let Some(hops) = self.hop_limit {
            set_hops(fd, beneath, hops)?;
        }
        if let Some(bytes) = self.receive_buffer {
            sockopt::set_socket_recv_buffer_size(fd, bytes)?;
        }
        if let Some(bytes) = self.send_buffer {
            sockopt::set_socket_send_buffer_size(fd, bytes)?;
        }
        Ok(())
    }
}

/// The options of one socket, to be read and set.
pub(crate) struct Settings<'a> {
    fd: BorrowedFd<'a>,
    beneath: Family,
    set: &'a mut Options,
}

impl<'a> Settings<'a> {
    /// Of the socket `fd`, of this family; what is set is kept in `set`.
    pub(crate) fn new(fd: BorrowedFd<'a>, beneath: Family, set: &'a mut Options) -> Self {
        Self { fd, beneath, set }
    }

    pub(crate) fn keep_alive(&self) -> SocketResult<bool> {
        Ok(sockopt::socket_keepalive(self.fd)?)
    }

    pub(crate) fn set_keep_alive(&mut self, on: bool) -> SocketResult<()> {
        sockopt::set_socket_keepalive(self.fd, on)?;
        self.set.keep_alive = Some(on);
        Ok(())
    }

    pub(crate) fn keep_alive_idle(&self) -> SocketResult<u64> {
        Ok(nanoseconds(sockopt::tcp_keepidle(self.fd)?))
    }

    pub(crate) fn set_keep_alive_idle(&mut self, ns: u64) -> SocketResult<()> {
        let time = keep_alive_time(ns)?;
        sockopt::set_tcp_keepidle(self.fd, time)?;
        self.set.keep_alive_idle = Some(time);
        Ok(())
    }

    pub(crate) fn keep_alive_interval(&self) -> SocketResult<u64> {
        Ok(nanoseconds(sockopt::tcp_keepintvl(self.fd)?))
    }

    pub(crate) fn set_keep_alive_interval(&mut self, ns: u64) -> SocketResult<()> {
        let time = keep_alive_time(ns)?;
        sockopt::set_tcp_keepintvl(self.fd, time)?;
        self.set.keep_alive_interval = Some(time);
        Ok(())
    }

    pub(crate) fn keep_alive_count(&self) -> SocketResult<u32> {
        Ok(sockopt::tcp_keepcnt(self.fd)?)
    }

    pub(crate) fn set_keep_alive_count(&mut self, count: u32) -> SocketResult<()> {
        if count == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let count = count.min(MAX_KEEP_ALIVE_COUNT);
        sockopt::set_tcp_keepcnt(self.fd, count)?;
        self.set.keep_alive_count = Some(count);
        Ok(())
    }

    pub(crate) fn hop_limit(&self) -> SocketResult<u8> {
        Ok(match self.beneath {
            Family::V4 => {
                u8::try_from(sockopt::ip_ttl(self.fd)?).map_err(|_| ErrorCode::NotSupported)?
            }
            Family::V6 => sockopt::ipv6_unicast_hops(self.fd)?,
        })
    }

    pub(crate) fn set_hop_limit(&mut self, hops: u8) -> SocketResult<()> {
        if hops == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        set_hops(self.fd, self.beneath, hops)?;
        self.set.hop_limit = Some(hops);
        Ok(())
    }

    /// Linux doubles what it is asked for and tells the double.
    pub(crate) fn receive_buffer(&self) -> SocketResult<u64> {
        Ok(sockopt::socket_recv_buffer_size(self.fd)? as u64 / 2)
    }

    pub(crate) fn set_receive_buffer(&mut self, bytes: u64) -> SocketResult<()> {
        let bytes = buffer_size(bytes)?;
        sockopt::set_socket_recv_buffer_size(self.fd, bytes)?;
        self.set.receive_buffer = Some(bytes);
        Ok(())
    }

    /// As [`Settings::receive_buffer`].
    pub(crate) fn send_buffer(&self) -> SocketResult<u64> {
        Ok(sockopt::socket_send_buffer_size(self.fd)? as u64 / 2)
    }

    pub(crate) fn set_send_buffer(&mut self, bytes: u64) -> SocketResult<()> {
        let bytes = buffer_size(bytes)?;
        sockopt::set_socket_send_buffer_size(self.fd, bytes)?;
        self.set.send_buffer = Some(bytes);
        Ok(())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn set_hops(fd: BorrowedFd<'_>, beneath: Family, hops: u8) -> rustix::io::Result<()> {
    match beneath {
        Family::V4 => sockopt::set_ip_ttl(fd, hops.into()),
        Family::V6 => sockopt::set_ipv6_unicast_hops(fd, Some(hops)),
    }
}

/// Whole seconds are all that Linux knows; less than one would be none.
fn keep_alive_time(ns: u64) -> Result<Duration, ErrorCode> {
    if ns == 0 {
        return Err(ErrorCode::InvalidArgument);
    }
    Ok(Duration::from_nanos(ns).clamp(Duration::from_secs(1), MAX_KEEP_ALIVE))
}

fn buffer_size(bytes: u64) -> Result<usize, ErrorCode> {
    if bytes == 0 {
        return Err(ErrorCode::InvalidArgument);
    }
    Ok(bytes.min(MAX_BUFFER) as usize)
}
