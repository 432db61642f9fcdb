//! A terminal between a client and a guest that has none: the kernel's own line discipline, in a pair of descriptors of this process.
//!
//! ```text
//! client ──▶ master ══ line discipline ══ slave ──▶ the program's stdin
//! client ◀── master ══ echo, \n → \r\n  ══ slave ◀── the program's output
//! ```
//! Lines are edited and echoed here, Ctrl-D ends the program's input, and Ctrl-C ends the session, as a guest gets no signals. Absent: sizes, which
//! WASI has no way to ask for.

use std::io;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::pty::{self, OpenptFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::sink::Sink;

/// What Ctrl-C sends.
const INTERRUPT: u8 = 3;

/// Bytes in memory at a time, each way.
const PIECE: usize = 4 << 10;

/// A terminal that nobody is at yet. Of each side both ways; they are no pipes, but can be waited for in the same way.
pub(super) struct Terminal {
    master: (pipe::Receiver, pipe::Sender),
    slave: (pipe::Receiver, pipe::Sender),
}

impl Terminal {
    /// Opens one. To be called within the runtime.
    pub(super) fn open() -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = pty::openpt(flags)?;
        pty::unlockpt(&master)?;
        let slave = pty::ioctl_tiocgptpeer(&master, flags)?;
        Ok(Self { master: both_ways(master)?, slave: both_ways(slave)? })
    }

    /// Carries everything until the program's output has ended and is shown, or the client interrupts: whether it does.
    pub(super) async fn carry(
        self,
        (typed, shown): (Option<mpsc::Receiver<Bytes>>, Option<&Sink>),
        (stdin, output): (Option<pipe::Sender>, Option<pipe::Receiver>),
    ) -> bool {
        let Self { master: (master_out, master_in), slave: (slave_out, slave_in) } = self;
        let programs = async move {
            tokio::select! {
                biased;
                () = pass_on(output, slave_in) => {}
                // After the end of its input the program may go on.
                () = async {
                    if let Some(stdin) = stdin {
                        pass_on(Some(slave_out), stdin).await;
                    }
                    std::future::pending().await
                } => {}
            }
            // The slave is closed. What the program wrote last is read from the other side before its end is.
        };
        let showing = async { tokio::join!(programs, show(master_out, shown)) };
        tokio::select! {
            _ = showing => false,
            () = type_in(typed, master_in) => true,
        }
    }
}

fn both_ways(end: OwnedFd) -> io::Result<(pipe::Receiver, pipe::Sender)> {
    let flags = rustix::fs::fcntl_getfl(&end)?;
    rustix::fs::fcntl_setfl(&end, flags | OFlags::NONBLOCK)?;
    let other = end.try_clone()?;
    Ok((
        pipe::Receiver::from_owned_fd_unchecked(end)?,
        pipe::Sender::from_owned_fd_unchecked(other)?,
    ))
}

/// Comes back where the client interrupts.
async fn type_in(typed: Option<mpsc::Receiver<Bytes>>, mut master: pipe::Sender) {
    if let Some(mut typed) = typed {
        while let Some(bytes) = typed.recv().await {
            let interrupt = bytes.iter().position(|&byte| byte == INTERRUPT);
            let before = &bytes[..interrupt.unwrap_or(bytes.len())];
            if master.write_all(before).await.is_err() {
                break;
            }
            if interrupt.is_some() {
                return;
            }
        }
    }
    std::future::pending().await
}

/// Until the end of `from`, or until nobody reads what is passed on; never where there is nothing to read from.
async fn pass_on(from: Option<pipe::Receiver>, mut to: pipe::Sender) {
    let Some(mut from) = from else { return std::future::pending().await };
    let mut buffer = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Comes back once the other side is closed and nothing is left.
async fn show(mut master: pipe::Receiver, shown: Option<&Sink>) {
    let mut buffer = vec![0; PIECE];
    while let Ok(length @ 1..) = master.read(&mut buffer).await {
        if let Some(sink) = shown
            && sink.send(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn pipe() -> (pipe::Sender, pipe::Receiver) {
        let (reading, writing) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let writing = pipe::Sender::from_owned_fd(writing).expect("a pipe");
        (writing, pipe::Receiver::from_owned_fd(reading).expect("a pipe"))
    }

    #[tokio::test]
    async fn lines_are_edited_and_echoed_and_the_program_s_own_get_a_carriage_return() {
        let (typing, typed) = mpsc::channel(8);
        let (sink, mut seen) = Sink::for_tests();
        let ((stdin, mut reads), (mut writes, output)) = (pipe(), pipe());
        let terminal = Terminal::open().expect("a terminal");
        let carrying = tokio::spawn(async move {
            terminal.carry((Some(typed), Some(&sink)), (Some(stdin), Some(output))).await
        });

        // A letter too many, taken back; then the end of the input.
        typing.send(Bytes::from_static(b"lsx\x7f\r")).await.expect("taken");
        let mut line = [0; 3];
        reads.read_exact(&mut line).await.expect("a line");
        typing.send(Bytes::from_static(b"\x04")).await.expect("taken");
        let mut rest = Vec::new();
        reads.read_to_end(&mut rest).await.expect("an end");
        writes.write_all(b"out\n").await.expect("taken");
        drop(writes);

        assert!(!carrying.await.expect("it ended"));
        assert_eq!((&line[..], &rest[..]), (&b"ls\n"[..], &b""[..]));
        let mut shown = Vec::new();
        while let Some(bytes) = seen.recv().await {
            shown.extend_from_slice(&bytes);
        }
        assert_eq!(String::from_utf8_lossy(&shown), "lsx\x08 \x08\r\nout\r\n");
    }

    #[tokio::test]
    async fn an_interrupt_ends_the_session() {
        let (typing, typed) = mpsc::channel(8);
        let ((stdin, _reads), (_writes, output)) = (pipe(), pipe());
        let terminal = Terminal::open().expect("a terminal");
        typing.send(Bytes::from_static(b"sleep\r\x03more")).await.expect("taken");

        assert!(terminal.carry((Some(typed), None), (Some(stdin), Some(output))).await);
    }
}
