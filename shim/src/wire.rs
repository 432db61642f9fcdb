//! Frames over a unix stream socket: a length, CBOR, and the descriptors that belong to it.
//!
//! A frame is a little-endian `u32` of at most [`MAX_FRAME`], then that many bytes. Descriptors travel by `SCM_RIGHTS` with
//! the length, at most [`MAX_DESCRIPTORS`] a frame. Both sides treat the other as able to send anything: a frame over the cap, a
//! value that does not decode and more descriptors than allowed are errors that end the connection, never a panic.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

/// The largest frame either side accepts: a pod's start with its largest environment (1 MiB) fits several times.
pub const MAX_FRAME: usize = 4 << 20;

/// The most descriptors of one frame: an exec has three streams, and a container that is handed over has a socket for each of its ports
/// and each family of addresses.
pub const MAX_DESCRIPTORS: usize = 16;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer closed it between two frames.
    #[error("the other side closed the connection")]
    Closed,
    /// The socket failed, or the peer left in the middle of a frame.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer's frame is longer than [`MAX_FRAME`], or ours would be.
    #[error("a frame of {0} bytes where at most {MAX_FRAME} are allowed")]
    TooLong(usize),
    /// The peer's bytes are not a value of the type expected.
    #[error("a frame that is not understood: {0}")]
    Malformed(String),
    /// The peer sent more descriptors than a frame may carry.
    #[error("a frame with more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
}

/// Both ends of a connection.
pub fn split(stream: UnixStream) -> (FrameSender, FrameReceiver) {
    let stream = Arc::new(stream);
    (
        FrameSender { stream: stream.clone(), sending: Arc::new(Mutex::new(())) },
        FrameReceiver { stream },
    )
}

/// The sending end; clones share the socket and send whole frames in turn.
#[derive(Clone, Debug)]
pub struct FrameSender {
    stream: Arc<UnixStream>,
    sending: Arc<Mutex<()>>,
}

/// The receiving end.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: Arc<UnixStream>,
}

impl FrameSender {
    /// Sends one frame, with the descriptors that belong to it.
    ///
    /// Not cancel safe: dropping the future in the middle of a frame ends the connection's use.
    ///
    /// # Errors
    /// [`WireError::TooLong`], with nothing sent, or [`WireError::Io`].
    pub async fn send<T: Serialize>(
        &self,
        value: &T,
        descriptors: &[OwnedFd],
    ) -> Result<(), WireError> {
        let mut frame = vec![0; 4];
        ciborium::into_writer(value, &mut frame)
            .map_err(|error| WireError::Malformed(error.to_string()))?;
        let length = frame.len() - 4;
        if length > MAX_FRAME {
            return Err(WireError::TooLong(length));
        }
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(WireError::TooManyDescriptors);
        }
        frame[..4].copy_from_slice(&u32::try_from(length).expect("MAX_FRAME fits").to_le_bytes());

        let _turn = self.sending.lock().await;
        let mut sent = 0;
        while sent < frame.len() {
            // The descriptors go with the first byte; the kernel keeps them with it.
            let with_it = if sent == 0 { descriptors } else { &[] };
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || send_some(&self.stream, &frame[sent..], with_it))
                .await?;
        }
        Ok(())
    }
}

impl FrameReceiver {
    /// The next frame and its descriptors.
    ///
    /// Not cancel safe: await it to its end in a task of its own.
    ///
    /// # Errors
    /// [`WireError::Closed`] at a clean end; every other error ends the connection's use, but [`WireError::Malformed`],
    /// after which the next frame can be read.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), WireError> {
        let (frame, descriptors) = self.receive_bytes().await?;
        let value = ciborium::from_reader(&frame[..])
            .map_err(|error| WireError::Malformed(error.to_string()))?;
        Ok((value, descriptors))
    }

    /// As [`receive`](Self::receive), undecoded.
    ///
    /// # Errors
    /// As there, without `Malformed`.
    pub async fn receive_bytes(&mut self) -> Result<(Vec<u8>, Vec<OwnedFd>), WireError> {
        let mut descriptors = Vec::new();
        let mut head = [0; 4];
        self.fill(&mut head, &mut descriptors, true).await?;
        let length = u32::from_le_bytes(head) as usize;
        if length > MAX_FRAME {
            return Err(WireError::TooLong(length));
        }
        let mut frame = vec![0; length];
        self.fill(&mut frame, &mut descriptors, false).await?;
        Ok((frame, descriptors))
    }

    async fn fill(
        &self,
        buffer: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        end_is_clean: bool,
    ) -> Result<(), WireError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let got = self
                .stream
                .async_io(Interest::READABLE, || {
                    receive_some(&self.stream, &mut buffer[filled..], descriptors)
                })
                .await?;
            match got {
                0 if filled == 0 && end_is_clean => return Err(WireError::Closed),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                got => filled += got,
            }
            if descriptors.len() > MAX_DESCRIPTORS {
                return Err(WireError::TooManyDescriptors);
            }
        }
        Ok(())
    }
}

fn send_some(socket: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?)
}

fn receive_some(
    socket: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    // Room for one more than allowed, so that too many are seen as such and none stays open unnoticed.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(got.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use tokio::io::AsyncWriteExt;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().expect("a socket pair")
    }

    #[tokio::test]
    async fn a_frame_arrives_with_the_descriptors_that_belong_to_it() {
        let (a, b) = pair();
        let (sender, _) = split(a);
        let (_, mut receiver) = split(b);
        let (mut near, far) = std::os::unix::net::UnixStream::pair().expect("a socket pair");

        sender.send(&"first", &[]).await.expect("sent");
        sender.send(&"second", &[far.into()]).await.expect("sent");

        let (first, none) = receiver.receive::<String>().await.expect("received");
        let (second, one) = receiver.receive::<String>().await.expect("received");
        assert_eq!((first.as_str(), none.len()), ("first", 0));
        assert_eq!((second.as_str(), one.len()), ("second", 1));
        near.write_all(b"x").expect("written");
        let mut far = std::fs::File::from(one.into_iter().next().expect("one"));
        let mut byte = [0];
        far.read_exact(&mut byte).expect("read");
        assert_eq!(&byte, b"x");
    }

    #[tokio::test]
    async fn a_large_frame_passes_while_the_other_side_reads() {
        let (a, b) = pair();
        let (sender, _) = split(a);
        let (_, mut receiver) = split(b);
        let large = "x".repeat(3 << 20);

        let expected = large.clone();
        let reading = tokio::spawn(async move { receiver.receive::<String>().await });
        sender.send(&large, &[]).await.expect("sent");

        assert_eq!(reading.await.expect("joined").expect("received").0, expected);
    }

    #[tokio::test]
    async fn a_frame_over_the_cap_is_refused_before_it_is_read() {
        let (mut a, b) = pair();
        let (_, mut receiver) = split(b);

        a.write_all(&u32::MAX.to_le_bytes()).await.expect("written");

        assert!(matches!(receiver.receive::<String>().await, Err(WireError::TooLong(_))));
    }

    #[tokio::test]
    async fn a_frame_that_is_not_understood_leaves_the_next_one_readable() {
        let (mut a, b) = pair();
        let (_, mut receiver) = split(b);

        a.write_all(&[1, 0, 0, 0, 0xff]).await.expect("written");
        a.write_all(&[2, 0, 0, 0, 0x61, b'y']).await.expect("written");

        assert!(matches!(receiver.receive::<String>().await, Err(WireError::Malformed(_))));
        assert_eq!(receiver.receive::<String>().await.expect("received").0, "y");
    }

    #[tokio::test]
    async fn an_end_between_frames_is_clean_and_one_within_a_frame_is_not() {
        let (a, b) = pair();
        let (_, mut receiver) = split(b);
        drop(a);
        assert!(matches!(receiver.receive::<String>().await, Err(WireError::Closed)));

        let (mut a, b) = pair();
        let (_, mut receiver) = split(b);
        a.write_all(&[9, 0]).await.expect("written");
        drop(a);
        assert!(matches!(receiver.receive::<String>().await, Err(WireError::Io(_))));
    }
}
