//! WebSockets as Kubernetes uses them: numbered channels in one connection, or a byte stream of another protocol inside it.
//!
//! A message begins with its channel, as a byte or in the base64 forms as a digit. Only v5 can close a channel in one direction: the
//! byte 255, and the channel. Absent: what the channels mean ([`super::command`], [`super::forward`]).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::answer::{self, Answer};

/// The longest message of a client: kubectl's have at most 32 KiB and a byte.
const MESSAGE: usize = 1 << 20;
/// Messages under way to a client that does not read: with those of at most 32 KiB that we make, some 256 KiB.
const QUEUE: usize = 8;
/// How long a session may be silent: the kubelet's `streamingConnectionIdleTimeout`.
pub(crate) const IDLE: Duration = Duration::from_secs(4 * 3600);
/// How long a client has to answer our goodbye.
const GOODBYE: Duration = Duration::from_secs(5);
/// The channel number that closes another one.
const CLOSE: u8 = 255;

/// How messages look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Framing {
    /// Text with a digit and base64.
    pub(crate) base64: bool,
    /// A client may close one channel.
    pub(crate) half_close: bool,
}

/// Whether a request wants to go on as a WebSocket.
pub(crate) fn is_asked(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|it| it.trim().eq_ignore_ascii_case("websocket")) && wants_upgrade(headers)
}

/// Whether `Connection` says so.
pub(crate) fn wants_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|it| it.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|it| it.trim().eq_ignore_ascii_case("upgrade"))
}

/// The protocols that a client can speak, in its order.
pub(crate) fn protocols(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let values = values.filter_map(|value| value.to_str().ok());
    values.flat_map(|it| it.split(',')).map(str::trim).filter(|it| !it.is_empty()).collect()
}

/// Chooses a protocol: the client's first that is known. The empty one is for who names none.
pub(crate) fn negotiate<T: Copy>(
    headers: &HeaderMap,
    known: &[(&'static str, T)],
) -> Result<(&'static str, T), Box<Answer>> {
    let asked = protocols(headers);
    let asked: &[&str] = if asked.is_empty() { &[""] } else { &asked };
    let found = asked.iter().find_map(|name| known.iter().find(|(known, _)| known == name));
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let text =
            format!("requested protocol(s) are not supported: {asked:?}; supports {names:?}");
        Box::new(answer::text(StatusCode::FORBIDDEN, text))
    })
}

/// The answer to a handshake.
pub(crate) fn accept(headers: &HeaderMap, protocol: &'static str) -> Result<Answer, Box<Answer>> {
    let bad = |text: &str| Box::new(answer::text(StatusCode::BAD_REQUEST, text));
    let version = headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
    if version != Some(b"13".as_slice()) {
        let mut answer = bad("Sec-WebSocket-Version has to be 13");
        answer.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(answer);
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let key = key.filter(|key| BASE64.decode(key).is_ok_and(|key| key.len() == 16));
    let key = key.ok_or_else(|| bad("Sec-WebSocket-Key has to be 16 bytes in base64"))?;
    let mut answer = answer::switching("websocket");
    let accepted = HeaderValue::from_str(&derive_accept_key(key))
        .map_err(|_| bad("Sec-WebSocket-Key cannot be answered"))?;
    answer.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    if !protocol.is_empty() {
        let protocol = HeaderValue::from_static(protocol);
        answer.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(answer)
}

/// The way out of one channel.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    number: u8,
    framing: Framing,
    messages: mpsc::Sender<Message>,
}

impl Channel {
    /// Sends bytes, once there is room.
    ///
    /// # Errors
    /// The client is gone.
    pub(crate) async fn send(&self, bytes: &[u8]) -> Result<(), Gone> {
        let message = if self.framing.base64 {
            let mut text = char::from(b'0' + self.number).to_string();
            BASE64.encode_string(bytes, &mut text);
            Message::text(text)
        } else {
            let mut message = BytesMut::with_capacity(bytes.len() + 1);
            message.put_u8(self.number);
            message.put_slice(bytes);
            Message::binary(message.freeze())
        };
        self.messages.send(message).await.map_err(|_| Gone)
    }

    /// Waits until the client is gone.
    pub(crate) async fn gone(&self) {
        self.messages.closed().await;
    }
}

/// The client is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// A connection's channels that has no connection yet: the ways out, and what has to be driven for them to lead anywhere.
pub(crate) struct Channels {
    framing: Framing,
    messages: mpsc::Sender<Message>,
    queue: mpsc::Receiver<Message>,
    inputs: Vec<Option<mpsc::Sender<Bytes>>>,
}

impl Channels {
    pub(crate) fn new(framing: Framing) -> Self {
        let (messages, queue) = mpsc::channel(QUEUE);
        Self { framing, messages, queue, inputs: Vec::new() }
    }

    /// The way out of a channel.
    pub(crate) fn output(&self, number: u8) -> Channel {
        Channel { number, framing: self.framing, messages: self.messages.clone() }
    }

    /// The way in of a channel; what comes on a channel without one is thrown away.
    pub(crate) fn input(&mut self, number: u8) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(1);
        let index = usize::from(number);
        if self.inputs.len() <= index {
            self.inputs.resize(index + 1, None);
        }
        self.inputs[index] = Some(sender);
        receiver
    }

    /// Moves messages until all outputs are dropped, or the client is gone.
    pub(crate) async fn drive<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { framing, messages, mut queue, mut inputs } = self;
        drop(messages);
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config())).await;
        let (mut sink, mut source) = socket.split();
        let activity = Activity::new();
        let reading = async {
            while let Some(Ok(message)) = source.next().await {
                activity.touch();
                let Some(data) = data(message) else { continue };
                let Some((channel, data)) = received(framing, data) else { continue };
                match data {
                    Some(data) => {
                        let input = inputs.get(usize::from(channel)).and_then(Option::as_ref);
                        if let Some(input) = input {
                            // Nobody there: whoever read it has enough.
                            let _ = input.send(data).await;
                        }
                    }
                    None => {
                        if let Some(input) = inputs.get_mut(usize::from(channel)) {
                            *input = None;
                        }
                    }
                }
            }
        };
        tokio::pin!(reading);
        let writing = async {
            while let Some(message) = queue.recv().await {
                activity.touch();
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            let _ = sink.send(Message::Close(None)).await;
        };
        tokio::select! {
            () = &mut reading => return,
            () = writing => {}
            () = activity.idle(IDLE) => return,
        }
        // The client's own goodbye, so that what it has not read yet is not torn away.
        let _ = tokio::time::timeout(GOODBYE, reading).await;
    }
}

fn config() -> WebSocketConfig {
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = 32 << 10;
    config.write_buffer_size = 0;
    config.max_write_buffer_size = 2 * MESSAGE;
    config.max_message_size = Some(MESSAGE);
    config.max_frame_size = Some(MESSAGE);
    config
}

fn data(message: Message) -> Option<Bytes> {
    match message {
        Message::Binary(data) => Some(data),
        Message::Text(text) => Some(text.into()),
        _ => None,
    }
}

/// A message's channel and data; without data: the channel is closed. `None`: it is none.
fn received(framing: Framing, mut data: Bytes) -> Option<(u8, Option<Bytes>)> {
    if data.is_empty() {
        return None;
    }
    let first = data.split_to(1)[0];
    if framing.half_close && first == CLOSE {
        return match data[..] {
            [channel] => Some((channel, None)),
            _ => None,
        };
    }
    if framing.base64 {
        let channel = first.checked_sub(b'0')?;
        return Some((channel, Some(BASE64.decode(&data).ok()?.into())));
    }
    Some((first, Some(data)))
}

/// Carries a byte stream in binary messages, until either side ends it; the other end of the stream is whose it is.
pub(crate) async fn tunnel<S>(stream: S, inner: DuplexStream)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config())).await;
    let (mut sink, mut source) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(inner);
    let activity = Activity::new();
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            activity.touch();
            let Some(data) = data(message) else { continue };
            if writer.write_all(&data).await.is_err() {
                break;
            }
        }
    };
    tokio::pin!(inward);
    let outward = async {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    activity.touch();
                    let message = Message::binary(Bytes::copy_from_slice(&buffer[..length]));
                    if sink.send(message).await.is_err() {
                        return;
                    }
                }
            }
        }
        let _ = sink.send(Message::Close(None)).await;
    };
    tokio::select! {
        () = &mut inward => return,
        () = outward => {}
        () = activity.idle(IDLE) => return,
    }
    let _ = tokio::time::timeout(GOODBYE, inward).await;
}

/// When something last happened.
pub(crate) struct Activity(Mutex<Instant>);

impl Activity {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    pub(crate) fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until nothing has happened for so long.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINARY: Framing = Framing { base64: false, half_close: false };
    const TEXT: Framing = Framing { base64: true, half_close: false };
    const V5: Framing = Framing { base64: false, half_close: true };

    #[test]
    fn a_message_is_a_channel_and_data_in_either_form() {
        let of = |framing, data: &'static [u8]| received(framing, Bytes::from_static(data));

        assert_eq!(of(BINARY, b"\x00abc"), Some((0, Some("abc".into()))));
        assert_eq!(of(BINARY, b"\x04"), Some((4, Some(Bytes::new()))));
        assert_eq!(of(BINARY, b""), None);
        assert_eq!(of(TEXT, b"0YWJj"), Some((0, Some("abc".into()))));
        assert_eq!(of(TEXT, b"0!"), None);
        assert_eq!(of(TEXT, b"\x00YWJj"), None);
    }

    #[test]
    fn only_v5_closes_a_channel() {
        let of = |framing, data: &'static [u8]| received(framing, Bytes::from_static(data));

        assert_eq!(of(V5, b"\xff\x00"), Some((0, None)));
        assert_eq!(of(V5, b"\xff"), None);
        assert_eq!(of(V5, b"\xff\x00\x01"), None);
        assert_eq!(of(BINARY, b"\xff\x00"), Some((255, Some("\0".into()))));
    }

    #[test]
    fn the_first_protocol_of_the_client_s_that_is_known_is_taken() {
        let known = [("", 0), ("channel.k8s.io", 1), ("v4.channel.k8s.io", 4)];
        let headers = |names: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for name in names {
                headers.append(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
            }
            headers
        };
        let chosen =
            |names: &[&'static str]| negotiate(&headers(names), &known).map(|it| it.1).ok();

        assert_eq!(chosen(&["v5.channel.k8s.io, v4.channel.k8s.io, channel.k8s.io"]), Some(4));
        assert_eq!(chosen(&["channel.k8s.io", "v4.channel.k8s.io"]), Some(1));
        assert_eq!(chosen(&[]), Some(0));
        assert_eq!(chosen(&["chat"]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_idle_after_the_last_thing_that_happened() {
        let activity = Activity::new();
        let begun = Instant::now();

        let touched = async {
            tokio::time::sleep(IDLE / 2).await;
            activity.touch();
        };
        tokio::join!(touched, activity.idle(IDLE));

        assert_eq!(begun.elapsed(), IDLE + IDLE / 2);
    }
}
