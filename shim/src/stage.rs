//! What the agent and a runner say to each other between the runner's birth and its confinement: three messages, then never again.
//!
//! The runner is born with one end of a `SOCK_SEQPACKET` pair as its standard input. Absent: anything about pods
//! (`protocol`), and any doing; both sides act on their own.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The longest message: an error with its cause fits many times.
const MAX_MESSAGE: usize = 16 << 10;

/// The descriptors of [`ToRunner::Begin`] that always travel with it; [`Begin::outside`] and [`Begin::network`] tell of one more.
pub const BEGIN_DESCRIPTORS: usize = 3;

/// The most descriptors of one message.
const MAX_DESCRIPTORS: usize = 4;

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToRunner {
    /// The runner is in its cgroup; take these and leave the host's namespaces. With it travel the listening socket, the domain's
    /// root directory as a detached mount, and the host's mount namespace.
    Begin(Begin),
    /// The network is complete: give up every privilege and serve.
    Proceed,
}

/// What a runner is to become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The domain's name, for the host name of its UTS namespace.
    pub domain: String,
    /// The domain's own user and group.
    pub uid: u32,
    /// In which network it lives.
    pub network: Network,
    /// A directory of the host's mount namespace on which the root can be hung for the moment before `pivot_root`.
    pub mount_point: String,
    /// Most open files, `RLIMIT_NOFILE`.
    pub max_files: u64,
    /// Where an ordinary user runs the agent: there is one user only, `uid`, which the runner is already, and the way out of the
    /// pods' network is the broker ([`crate::broker`]), whose socket is the fourth descriptor.
    #[serde(default)]
    pub outside: Option<Outside>,
}

/// A runner's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// One of its own, which it makes.
    Own,
    /// The one of another runner in the same tree: the fourth descriptor. Not where [`Begin::outside`] is.
    Shared,
    /// The host's.
    Host,
}

/// What lies outside of a pods' network that has no way out of its own: everything but this block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// The block's first address.
    pub base: Ipv4Addr,
    /// How many leading bits the block's addresses have in common.
    pub prefix: u8,
}

impl Outside {
    /// Whether this address is none of the pods'.
    pub fn holds(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let differing = ip.to_bits() ^ self.base.to_bits();
                differing.checked_shr(32 - u32::from(self.prefix)).unwrap_or(0) != 0
            }
            IpAddr::V6(_) => true,
        }
    }
}

/// What the runner says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromRunner {
    /// It has its namespaces; the agent may fill the network one.
    Unshared,
    /// All privileges are gone; from here on it serves. Names what this kernel could not enforce.
    Confined {
        /// For the agent's log and `copepod check`.
        missing: Vec<String>,
    },
    /// It could not, and ends.
    Failed {
        /// The step and its error, in words.
        message: String,
    },
}

/// Sends one message, with the descriptors that belong to it.
///
/// # Errors
/// The socket's.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for one message and its descriptors.
///
/// # Errors
/// The socket's; `UnexpectedEof` where the other side is gone; `InvalidData` where the message is not understood.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let got = rustix::net::recvmsg(socket, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let message = ciborium::from_reader(&bytes[..got.bytes])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    Ok((message, descriptors))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("a socket pair")
    }

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (agent, runner) = pair();
        let (extra, _) = pair();
        let begin = ToRunner::Begin(Begin {
            domain: "default".into(),
            uid: 2_000_000_001,
            network: Network::Own,
            mount_point: "/var/lib/copepod/domains/default/root".into(),
            max_files: 1024,
            outside: None,
        });

        send(&agent, &begin, &[extra.as_fd()]).expect("sent");
        send(&agent, &ToRunner::Proceed, &[]).expect("sent");

        let (first, descriptors) = receive::<ToRunner>(&runner).expect("received");
        assert_eq!((first, descriptors.len()), (begin, 1));
        assert_eq!(receive::<ToRunner>(&runner).expect("received").0, ToRunner::Proceed);
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_not_an_endless_wait() {
        let (agent, runner) = pair();

        drop(agent);

        let error = receive::<ToRunner>(&runner).expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn outside_is_every_address_but_those_of_the_block() {
        let outside = Outside { base: Ipv4Addr::new(10, 64, 64, 0), prefix: 18 };

        for (text, expected) in [
            ("10.64.64.0", false),
            ("10.64.127.255", false),
            ("::ffff:10.64.64.9", false),
            ("10.64.128.0", true),
            ("10.64.63.255", true),
            ("192.0.2.1", true),
            ("2001:db8::1", true),
        ] {
            assert_eq!(outside.holds(text.parse().expect("an address")), expected, "{text}");
        }
    }
}
