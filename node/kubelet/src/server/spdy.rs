//! The server's half of SPDY/3.1, as far as Kubernetes' clients speak it: a client opens streams, both sides send on them.
//!
//! [`open`] takes a connection and gives the streams as they come, and a future that moves their frames. As in every client and
//! server of Kubernetes there is no flow control: a stream whose bytes nobody takes holds up its whole connection, after
//! [`STREAM_QUEUE`] pieces. Bounded are streams, frames, headers and queues; what breaks a bound breaks the connection.
//! Absent: streams that the server opens, SETTINGS and WINDOW_UPDATE (read and passed over), what the headers mean.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, watch};

use super::websocket::{Activity, Gone, IDLE};
use headers::Headers;

pub(crate) mod headers;

/// Streams open at a time: kubectl forwards a connection by two of them.
const STREAMS: usize = 512;
/// The largest piece of a stream in memory; a DATA frame may have 16 MiB, and is passed on in pieces.
const PIECE: usize = 16 << 10;
/// Pieces of one stream that nobody has taken yet.
const STREAM_QUEUE: usize = 2;
/// The largest control frame: headers, and little of them.
const CONTROL: usize = 16 << 10;
/// Frames under way to a client that does not read.
const QUEUE: usize = 16;
/// Streams that the client opened and nobody took yet.
const ACCEPTED: usize = 4;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GO_AWAY: u16 = 7;
const HEADERS: u16 = 8;
const FIN: u8 = 1;
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;
const STREAM_IN_USE: u32 = 8;

/// A stream that the client opened.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
    /// What the client sends; ends when it closes its half, or all of it.
    pub(crate) input: mpsc::Receiver<Bytes>,
    pub(crate) output: Output,
}

impl Stream {
    /// The first header of this name, however it is spelled.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// The way out of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    id: u32,
    frames: mpsc::Sender<Frame>,
    reset: watch::Receiver<bool>,
}

impl Output {
    /// Sends bytes, once there is room.
    ///
    /// # Errors
    /// The client wants no more of them, or is gone.
    pub(crate) async fn send(&self, bytes: &[u8]) -> Result<(), Gone> {
        for piece in bytes.chunks(PIECE) {
            if *self.reset.borrow() {
                return Err(Gone);
            }
            self.frame(Frame::Data(self.id, Bytes::copy_from_slice(piece))).await?;
        }
        Ok(())
    }

    /// Nothing more comes of us.
    pub(crate) async fn finish(&self) {
        let _ = self.frame(Frame::Fin(self.id)).await;
    }

    /// Nothing more is read of the client either; to be called last.
    pub(crate) async fn forget(&self) {
        let _ = self.frame(Frame::Forget(self.id)).await;
    }

    /// Breaks the stream off, in both directions.
    pub(crate) async fn reset(&self) {
        let _ = self.frame(Frame::Reset(self.id, CANCEL)).await;
    }

    /// Waits until the client has broken the stream off, or is gone.
    pub(crate) async fn gone(&self) {
        let mut reset = self.reset.clone();
        tokio::select! {
            // The other end is dropped with the stream's entry, which our own end of it may do.
            Ok(_) = reset.wait_for(|reset| *reset) => {}
            () = self.frames.closed() => {}
        }
    }

    async fn frame(&self, frame: Frame) -> Result<(), Gone> {
        self.frames.send(frame).await.map_err(|_| Gone)
    }
}

#[derive(Debug)]
enum Frame {
    Reply(u32),
    Data(u32, Bytes),
    Fin(u32),
    Forget(u32),
    Reset(u32, u32),
    Pong(u32),
}

/// The streams that are open, by id.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<HashMap<u32, Entry>>>);

struct Entry {
    input: Option<mpsc::Sender<Bytes>>,
    reset: watch::Sender<bool>,
    finished: bool,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a stream's bytes go; `None`: nowhere any more.
    fn input(&self, id: u32) -> Option<mpsc::Sender<Bytes>> {
        self.lock().get(&id)?.input.clone()
    }

    /// The client sends no more on a stream.
    fn close(&self, id: u32) {
        let mut streams = self.lock();
        if let Some(entry) = streams.get_mut(&id) {
            entry.input = None;
            if entry.finished {
                streams.remove(&id);
            }
        }
    }

    /// We send no more on a stream.
    fn finish(&self, id: u32) {
        let mut streams = self.lock();
        if let Some(entry) = streams.get_mut(&id) {
            entry.finished = true;
            if entry.input.is_none() {
                streams.remove(&id);
            }
        }
    }

    fn remove(&self, id: u32) -> Option<Entry> {
        self.lock().remove(&id)
    }
}

/// Takes a connection: its streams as they come, and what has to be driven for them to move. That ends with the client, with its
/// first breach, after hours of silence, and once [`Streams`] and all outputs are dropped.
pub(crate) fn open<S>(connection: S) -> (Streams, impl Future<Output = io::Result<()>>)
where
    S: AsyncRead + AsyncWrite,
{
    let (accepted, streams) = mpsc::channel(ACCEPTED);
    let (frames, queue) = mpsc::channel(QUEUE);
    let driving = drive(connection, accepted, frames.downgrade(), queue);
    (Streams { accepted: streams, _open: frames }, driving)
}

/// The streams that a client opens.
pub(crate) struct Streams {
    accepted: mpsc::Receiver<Stream>,
    /// While it is held, the connection is.
    _open: mpsc::Sender<Frame>,
}

impl Streams {
    /// The next one; `None`: the client is gone.
    pub(crate) async fn next(&mut self) -> Option<Stream> {
        self.accepted.recv().await
    }
}

async fn drive<S>(
    connection: S,
    accepted: mpsc::Sender<Stream>,
    frames: mpsc::WeakSender<Frame>,
    queue: mpsc::Receiver<Frame>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, mut writer) = tokio::io::split(connection);
    let (table, activity) = (Table::default(), Activity::new());
    let mut reading = Reading {
        reader: BufReader::with_capacity(PIECE, reader),
        headers: headers::Reader::new(),
        table: table.clone(),
        frames,
        accepted,
        newest: 0,
        activity: &activity,
    };
    let done = tokio::select! {
        read = reading.run() => read,
        written = write(&mut writer, queue, &table, &activity) => written,
        () = activity.idle(IDLE) => Ok(()),
    };
    let mut goodbye = control(GO_AWAY, 0, 8);
    goodbye.put_u32(reading.newest);
    // 1: a breach of the protocol.
    goodbye.put_u32(u32::from(done.is_err()));
    // Whoever works on a stream hears of the end before the goodbye is said.
    drop(reading);
    table.lock().clear();
    // A client that does not read it has missed nothing.
    let goodbye = async { writer.write_all(&goodbye).await.and(writer.shutdown().await) };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), goodbye).await;
    done
}

struct Reading<'a, R> {
    reader: R,
    headers: headers::Reader,
    table: Table,
    frames: mpsc::WeakSender<Frame>,
    accepted: mpsc::Sender<Stream>,
    newest: u32,
    activity: &'a Activity,
}

impl<R: AsyncRead + Unpin> Reading<'_, R> {
    /// Reads frames until the client ends.
    async fn run(&mut self) -> io::Result<()> {
        loop {
            let mut head = [0; 8];
            match self.reader.read_exact(&mut head).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            };
            self.activity.touch();
            let [a, b, c, d, flags, length @ ..] = head;
            let length =
                usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
            if a & 0x80 == 0 {
                self.data(u32::from_be_bytes([a, b, c, d]), flags, length).await?;
                continue;
            }
            if u16::from_be_bytes([a & 0x7f, b]) != 3 {
                return Err(breach("a frame of another version"));
            }
            if length > CONTROL {
                return Err(breach("a control frame is too long"));
            }
            let mut payload = vec![0; length];
            self.reader.read_exact(&mut payload).await?;
            self.control(u16::from_be_bytes([c, d]), flags, &payload).await?;
        }
    }

    async fn data(&mut self, id: u32, flags: u8, mut left: usize) -> io::Result<()> {
        while left > 0 {
            let wanted = left.min(PIECE);
            let mut piece = BytesMut::with_capacity(wanted);
            if (&mut self.reader).take(wanted as u64).read_buf(&mut piece).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= piece.len();
            self.activity.touch();
            if let Some(input) = self.table.input(id) {
                // Nobody there: whoever read it has enough.
                let _ = input.send(piece.freeze()).await;
            }
        }
        if flags & FIN != 0 {
            self.table.close(id);
        }
        Ok(())
    }

    async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> io::Result<()> {
        let id = payload.first_chunk().map_or(0, |id| u32::from_be_bytes(*id) & 0x7fff_ffff);
        match kind {
            SYN_STREAM => {
                let block = payload.get(10..).ok_or_else(|| breach("a SYN_STREAM is too short"))?;
                let headers = self.headers.read(block)?;
                self.opened(id, flags, headers).await?;
            }
            HEADERS => {
                let block = payload.get(4..).ok_or_else(|| breach("a HEADERS is too short"))?;
                // Nobody asks for more headers, but the decompressor goes on with them.
                self.headers.read(block)?;
            }
            RST_STREAM => {
                if let Some(entry) = self.table.remove(id) {
                    let _ = entry.reset.send(true);
                }
            }
            PING if id % 2 == 1 => {
                say(self.frames.upgrade(), Frame::Pong(id)).await;
            }
            SYN_REPLY => return Err(breach("a SYN_REPLY to no stream of ours")),
            // GOAWAY too: a client says it and closes.
            _ => {}
        }
        Ok(())
    }

    async fn opened(&mut self, id: u32, flags: u8, headers: Headers) -> io::Result<()> {
        if id.is_multiple_of(2) {
            return Err(breach("a client's stream with a server's id"));
        }
        if id <= self.newest {
            say(self.frames.upgrade(), Frame::Reset(id, STREAM_IN_USE)).await;
            return Err(breach("a stream's id again"));
        }
        self.newest = id;
        let (sender, input) = mpsc::channel(STREAM_QUEUE);
        let (reset, watched) = watch::channel(false);
        let is_full = {
            let mut streams = self.table.lock();
            let is_full = streams.len() >= STREAMS;
            if !is_full {
                let input = (flags & FIN == 0).then_some(sender);
                streams.insert(id, Entry { input, reset, finished: false });
            }
            is_full
        };
        if is_full {
            say(self.frames.upgrade(), Frame::Reset(id, REFUSED_STREAM)).await;
            return Ok(());
        }
        // Nobody wants streams any more where there is none.
        let Some(frames) = self.frames.upgrade() else { return Ok(()) };
        let output = Output { id, frames, reset: watched };
        // The reply first: a client counts a stream as open by it.
        let _ = output.frame(Frame::Reply(id)).await;
        if self.accepted.send(Stream { id, headers, input, output }).await.is_err() {
            self.table.remove(id);
            say(self.frames.upgrade(), Frame::Reset(id, REFUSED_STREAM)).await;
        }
        Ok(())
    }
}

/// Sends a frame, where anybody still wants the connection.
async fn say(frames: Option<mpsc::Sender<Frame>>, frame: Frame) {
    if let Some(frames) = frames {
        let _ = frames.send(frame).await;
    }
}

/// Writes frames as they come, for as long as somebody could make one.
async fn write<W: AsyncWrite + Unpin>(
    writer: &mut W,
    mut queue: mpsc::Receiver<Frame>,
    table: &Table,
    activity: &Activity,
) -> io::Result<()> {
    let mut headers = headers::Writer::new()?;
    while let Some(frame) = queue.recv().await {
        activity.touch();
        let bytes = match frame {
            Frame::Reply(id) => {
                let block = headers.write(&[])?;
                let mut bytes = control(SYN_REPLY, 0, 4 + block.len());
                bytes.put_u32(id);
                bytes.put_slice(&block);
                bytes
            }
            Frame::Data(id, piece) => data(id, 0, &piece),
            Frame::Fin(id) => {
                table.finish(id);
                data(id, FIN, &[])
            }
            Frame::Forget(id) => {
                table.remove(id);
                continue;
            }
            Frame::Reset(id, status) => {
                table.remove(id);
                let mut bytes = control(RST_STREAM, 0, 8);
                bytes.put_u32(id);
                bytes.put_u32(status);
                bytes
            }
            Frame::Pong(id) => {
                let mut bytes = control(PING, 0, 4);
                bytes.put_u32(id);
                bytes
            }
        };
        writer.write_all(&bytes).await?;
        if queue.is_empty() {
            writer.flush().await?;
        }
    }
    Ok(())
}

/// A control frame's head.
fn control(kind: u16, flags: u8, length: usize) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(8 + length);
    bytes.put_u16(0x8003);
    bytes.put_u16(kind);
    bytes.put_u32(u32::from(flags) << 24 | length as u32);
    bytes
}

fn data(id: u32, flags: u8, piece: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(8 + piece.len());
    bytes.put_u32(id);
    bytes.put_u32(u32::from(flags) << 24 | piece.len() as u32);
    bytes.put_slice(piece);
    bytes
}

fn breach(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What moby/spdystream v0.5.1, kubectl's own, writes for a pair of streams with `hello`, a ping, a reset and a goodbye.
    const KUBECTL: &str = "\
        800300010000003e0000000100000000000078f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c606160\
        61c0c0c0c0590489c64c50f2663400000000ffff0000000101000000800300010000001800000003000000000000c2aa1954\
        0e2512d60b000000ffff000000030000000568656c6c6f800300060000000400000001800300030000000800000003000000\
        0580030007000000080000000000000000";

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |at: usize| hex.as_bytes().get(at).and_then(|it| char::from(*it).to_digit(16));
        (0..hex.len() / 2)
            .map(|at| {
                let both = digit(2 * at).zip(digit(2 * at + 1)).expect("hex");
                u8::try_from(both.0 * 16 + both.1).expect("a byte")
            })
            .collect()
    }

    #[tokio::test]
    async fn what_kubectl_s_own_library_writes_is_understood() {
        let (mut client, server) = tokio::io::duplex(1024);
        let (mut streams, driving) = open(server);
        let driving = async { driving.await.expect("no breach") };
        let talking = async {
            client.write_all(&bytes(KUBECTL)).await.expect("written");
            let mut error = streams.next().await.expect("a stream");
            let mut data = streams.next().await.expect("another");

            for (stream, id, kind) in [(&error, 1, "error"), (&data, 3, "data")] {
                assert_eq!(stream.id, id);
                assert_eq!(stream.header("streamType"), Some(kind));
                assert_eq!(
                    (stream.header("port"), stream.header("requestID")),
                    (Some("8080"), Some("0"))
                );
            }
            assert_eq!(error.input.recv().await, None);
            assert_eq!(data.input.recv().await.as_deref(), Some(&b"hello"[..]));
            assert_eq!(data.input.recv().await, None);
            data.output.gone().await;
            assert_eq!(data.output.send(b"late").await, Err(Gone));
            error.output.finish().await;
            drop((error, data, streams));
            let mut answered = Vec::new();
            client.read_to_end(&mut answered).await.expect("an end");
            let end = [&control(PING, 0, 4)[..], &[0, 0, 0, 1], &data_of(1)].concat();
            let goodbye = [&control(GO_AWAY, 0, 8)[..], &[0, 0, 0, 3, 0, 0, 0, 0]].concat();
            assert!(answered.ends_with(&[end, goodbye].concat()), "{answered:?}");
        };
        tokio::join!(driving, talking);
    }

    fn data_of(id: u32) -> BytesMut {
        data(id, FIN, &[])
    }
}
