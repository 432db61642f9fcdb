//! The way out of a pods' network that leads nowhere: sockets of the host's side, asked of the broker.
//!
//! Where an ordinary user runs the agent, nobody may join the pods' network to the host's; then every connection to an address that
//! is no pod's goes through here. Absent: the judge, whom callers have asked before, and who sits in the broker once more.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use copepod_shim::broker::{self, Ask, Told};
use copepod_shim::stage::Outside;
use rustix::net::sockopt::{self, Timeout};
use tokio::net::{TcpStream, UdpSocket};

/// How long an answer may take. The broker waits for nothing and answers within microseconds; longer takes only one that was stopped,
/// and then no guest is to hang for it twice.
const ANSWER: Duration = Duration::from_secs(2);

/// The broker, and what it is asked for.
#[derive(Debug)]
pub struct Door {
    outside: Outside,
    /// None once it failed: an answer that comes late would be taken for the next one.
    broker: Mutex<Option<OwnedFd>>,
}

impl Door {
    /// The way to what is `outside`, by the broker at the other end of this socket.
    pub fn new(outside: Outside, broker: OwnedFd) -> Self {
        // Where the kernel refuses, a broker that was stopped holds its callers up until it goes on.
        let _ = sockopt::set_socket_timeout(&broker, Timeout::Recv, Some(ANSWER));
        let _ = sockopt::set_socket_timeout(&broker, Timeout::Send, Some(ANSWER));
        Self { outside, broker: Mutex::new(Some(broker)) }
    }

    /// Whether an address is reached through here.
    pub(crate) fn leads_to(&self, ip: IpAddr) -> bool {
        self.outside.holds(ip)
    }

    /// A connection.
    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::from_std(self.open(to, false)?.into())?;
        // It began to connect when it was opened.
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }

    /// A socket that sends to this peer and hears of nobody else.
    pub(crate) fn connect_udp(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        UdpSocket::from_std(self.open(to, true)?.into())
    }

    fn open(&self, to: SocketAddr, udp: bool) -> io::Result<OwnedFd> {
        let mut broker = self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = broker.as_ref().ok_or(io::ErrorKind::NetworkDown)?;
        match broker::ask(socket, Ask::Open { to, udp }, &[]) {
            Ok((Told::Opened, mut opened)) if opened.len() == 1 => Ok(opened.remove(0)),
            Ok((Told::Refused(error), _)) => Err(io::Error::from_raw_os_error(error)),
            failed => {
                tracing::error!(
                    ?failed,
                    "the broker does not answer: no pod reaches the outside any more"
                );
                *broker = None;
                Err(io::ErrorKind::NetworkDown.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::os::fd::AsFd;

    use copepod_shim::stage;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("a pair of sockets")
    }

    const OUTSIDE: Outside = Outside { base: Ipv4Addr::new(10, 64, 0, 0), prefix: 18 };

    #[tokio::test]
    async fn a_socket_that_the_broker_connected_is_the_guest_s_connection() {
        let (ours, theirs) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let to = listener.local_addr().expect("bound");
        let broker = std::thread::spawn(move || {
            let (asked, _) = stage::receive::<Ask>(&theirs).expect("a question");
            assert_eq!(asked, Ask::Open { to, udp: false });
            let socket = std::net::TcpStream::connect(to).expect("connected");
            socket.set_nonblocking(true).expect("set");
            stage::send(&theirs, &Told::Opened, &[socket.as_fd()]).expect("answered");
        });

        let mut stream = Door::new(OUTSIDE, ours).connect(to).await.expect("connected");
        stream.write_all(b"x").await.expect("sent");
        broker.join().expect("no panic");
        let (accepted, _) = listener.accept().expect("accepted");
        accepted.set_nonblocking(true).expect("set");
        let mut got = [0];
        let mut accepted = TcpStream::from_std(accepted).expect("known");
        accepted.read_exact(&mut got).await.expect("read");

        assert_eq!(&got, b"x");
    }

    #[tokio::test]
    async fn a_refusal_is_one_connection_s_and_a_broker_that_is_gone_is_everybody_s() {
        let (ours, theirs) = pair();
        let to = SocketAddr::from(([192, 0, 2, 1], 80));
        let broker = std::thread::spawn(move || {
            for _ in 0..2 {
                stage::receive::<Ask>(&theirs).expect("a question");
                stage::send(&theirs, &Told::Refused(libc::ENETUNREACH), &[]).expect("answered");
            }
        });
        let door = Door::new(OUTSIDE, ours);

        for _ in 0..2 {
            let refused = door.connect(to).await.expect_err("refused");
            assert_eq!(refused.raw_os_error(), Some(libc::ENETUNREACH));
        }
        broker.join().expect("no panic");
        let gone = door.connect(to).await.expect_err("gone");

        assert_eq!(gone.kind(), io::ErrorKind::NetworkDown);
    }
}
