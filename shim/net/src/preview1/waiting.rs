//! What a guest does with a socket and may have to wait for: accepting, receiving, sending.
//!
//! A descriptor that is non-blocking is told [`Errno::Again`] instead. Absent: which bytes of the guest's hold the arguments ([`super::link`]).

use std::future::poll_fn;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::Duration;

use wasmtime_wasi::p1::types::{CiovecArray, Errno, Error, Fd, Fdflags, IovecArray, Riflags, Size};
use wiggle::{GuestMemory, GuestPtr};

use super::socket::{self, Kind, Socket, told};
use super::{Descriptor, Preview1};

/// The most pieces that one send takes of a guest's list: the rest is for its next one, as after any short write.
const MOST_SLICES: usize = 16;

/// The most buffers of one call: Linux's own limit (IOV_MAX).
const MOST_PIECES: u32 = 1024;

/// Between two attempts to send a datagram that the kernel had no room for.
const FULL: Duration = Duration::from_millis(1);

/// The length field of UDP has 16 bits.
const MOST_DATAGRAM: usize = 65_535;

impl Preview1 {
    /// The next connection to a listening socket, as a descriptor.
    pub async fn accept(&mut self, fd: Fd, flags: Fdflags) -> Result<Fd, Error> {
        if !(flags & !Fdflags::NONBLOCK).is_empty() {
            return Err(Errno::Inval.into());
        }
        // Before anybody is let in.
        if self.descriptors.is_full() {
            return Err(Errno::Mfile.into());
        }
        let listener = self.socket(fd)?;
        let accepted = loop {
            match listener.accept() {
                Ok(accepted) => break accepted,
                Err(error) => match error.downcast() {
                    Ok(Errno::Again) if !listener.nonblocking => {
                        poll_fn(|cx| listener.poll_readable(cx)).await?;
                    }
                    Ok(errno) => return Err(errno.into()),
                    Err(trap) => return Err(Error::trap(trap)),
                },
            }
        };
        let socket = Socket::tcp(accepted, flags.contains(Fdflags::NONBLOCK));
        let number = self.descriptors.push(Descriptor::Socket(socket));
        Ok(number.map_err(|_| Errno::Mfile)?.into())
    }

    /// Bytes from a connection, or a datagram, into the first of the guest's buffers that has room.
    pub async fn receive(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        buffers: IovecArray,
        flags: Riflags,
    ) -> Result<Size, Error> {
        match self.socket(fd)?.kind {
            Kind::Tcp(_) => self.receive_bytes(memory, fd, buffers, flags).await,
            Kind::Udp(_) => Ok(self.receive_datagram(memory, fd, buffers, flags).await?.0),
        }
    }

    /// As [`Preview1::receive`], and who sent it; of a datagram also whether it was longer than the buffer.
    pub(super) async fn receive_from(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        buffers: IovecArray,
        flags: Riflags,
    ) -> Result<(Size, SocketAddr, bool), Error> {
        match &mut self.socket(fd)?.kind {
            Kind::Tcp(tcp) => {
                tcp.is_connected()?;
                let sender = tcp.socket.remote_address().map_err(|_| Errno::Notconn)?;
                Ok((self.receive_bytes(memory, fd, buffers, flags).await?, sender, false))
            }
            Kind::Udp(_) => self.receive_datagram(memory, fd, buffers, flags).await,
        }
    }

    /// A guest's bytes to a connection, as many as the kernel takes and at least one; or all of them as a datagram to `to`, or to whom
    /// the socket is connected.
    pub async fn send(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        pieces: CiovecArray,
        to: Option<SocketAddr>,
    ) -> Result<Size, Error> {
        match self.socket(fd)?.kind {
            // Linux takes no address into account here either.
            Kind::Tcp(_) => self.send_bytes(memory, fd, pieces).await,
            Kind::Udp(_) => self.send_datagram(memory, fd, pieces, to).await,
        }
    }

    async fn receive_bytes(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        buffers: IovecArray,
        flags: Riflags,
    ) -> Result<Size, Error> {
        let socket = self.socket(fd)?;
        let buffer = first_buffer(memory, buffers)?;
        let peek = flags.contains(Riflags::RECV_PEEK);
        let wait_all = flags.contains(Riflags::RECV_WAITALL) && !peek && !socket.nonblocking;
        let mut filled = 0;
        loop {
            let place = memory.as_slice_mut(buffer)?.ok_or(Errno::Notsup)?;
            match socket.connection().and_then(|connection| {
                connection.receive(&mut place[filled..], peek).map_err(|error| socket::os(&error))
            }) {
                Ok(length) => {
                    filled += length;
                    if length == 0 || filled == place.len() || !wait_all {
                        return Ok(filled.try_into()?);
                    }
                }
                Err(Errno::Again) if !socket.nonblocking => {
                    poll_fn(|cx| socket.poll_readable(cx)).await?;
                }
                // What came before is not to be lost.
                Err(_) if filled > 0 => return Ok(filled.try_into()?),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    async fn send_bytes(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        pieces: CiovecArray,
    ) -> Result<Size, Error> {
        let socket = self.socket(fd)?;
        let mut slices = [IoSlice::new(&[]); MOST_SLICES];
        let mut count = 0;
        for piece in pieces_of(pieces)?.iter() {
            let piece = memory.read(piece?)?;
            if piece.buf_len > 0 && count < MOST_SLICES {
                let bytes = memory.as_slice(piece.buf.as_array(piece.buf_len))?;
                slices[count] = IoSlice::new(bytes.ok_or(Errno::Notsup)?);
                count += 1;
            }
        }
        loop {
            match socket.connection().and_then(|connection| {
                connection.transmit(&slices[..count]).map_err(|error| socket::os(&error))
            }) {
                Ok(length) => return Ok(length.try_into()?),
                Err(Errno::Again) if !socket.nonblocking => {
                    poll_fn(|cx| socket.poll_writable(cx)).await;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    async fn receive_datagram(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        buffers: IovecArray,
        flags: Riflags,
    ) -> Result<(Size, SocketAddr, bool), Error> {
        let socket = self.socket(fd)?;
        let nonblocking = socket.nonblocking;
        let Kind::Udp(udp) = &mut socket.kind else { return Err(Errno::Notsup.into()) };
        if flags.contains(Riflags::RECV_PEEK) {
            return Err(Errno::Notsup.into());
        }
        let buffer = first_buffer(memory, buffers)?;
        let (incoming, _) = udp.streams().await?;
        let (mut datagram, sender) = loop {
            if let Some(received) = incoming.receive(1).map_err(told)?.pop() {
                break received;
            }
            if nonblocking {
                return Err(Errno::Again.into());
            }
            poll_fn(|cx| incoming.poll_ready(cx)).await;
        };
        let is_cut = datagram.len() > buffer.len() as usize;
        datagram.truncate(buffer.len() as usize);
        let length = Size::try_from(datagram.len())?;
        memory.copy_from_slice(&datagram, buffer.get_range(0..length).ok_or(Errno::Fault)?)?;
        Ok((length, sender, is_cut))
    }

    async fn send_datagram(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        pieces: CiovecArray,
        to: Option<SocketAddr>,
    ) -> Result<Size, Error> {
        let socket = self.socket(fd)?;
        let nonblocking = socket.nonblocking;
        let Kind::Udp(udp) = &mut socket.kind else { return Err(Errno::Notsup.into()) };
        let mut datagram = Vec::new();
        for piece in pieces_of(pieces)?.iter() {
            let piece = memory.read(piece?)?;
            let bytes = memory.as_cow(piece.buf.as_array(piece.buf_len))?;
            if datagram.len() + bytes.len() > MOST_DATAGRAM {
                return Err(Errno::Msgsize.into());
            }
            datagram.extend_from_slice(&bytes);
        }
        let length = Size::try_from(datagram.len())?;
        let (_, outgoing) = udp.streams().await?;
        loop {
            if outgoing.check_send() > 0 {
                let one = std::iter::once((datagram.clone(), to));
                if outgoing.send(one).map_err(told)? == 1 {
                    return Ok(length);
                }
            }
            if nonblocking {
                return Err(Errno::Again.into());
            }
            poll_fn(|cx| outgoing.poll_ready(cx)).await;
            // What is full may be a way to one peer, of which the socket itself knows nothing.
            tokio::time::sleep(FULL).await;
        }
    }
}

/// A list of a guest's buffers, of as many as Linux takes.
fn pieces_of<T>(list: GuestPtr<[T]>) -> Result<GuestPtr<[T]>, Errno> {
    if list.len() > MOST_PIECES { Err(Errno::Inval) } else { Ok(list) }
}

/// The first buffer with room, or an empty one.
pub(super) fn first_buffer(
    memory: &GuestMemory<'_>,
    buffers: IovecArray,
) -> Result<GuestPtr<[u8]>, Error> {
    for buffer in pieces_of(buffers)?.iter() {
        let buffer = memory.read(buffer?)?;
        if buffer.buf_len > 0 {
            return Ok(buffer.buf.as_array(buffer.buf_len));
        }
    }
    Ok(GuestPtr::new((0, 0)))
}
