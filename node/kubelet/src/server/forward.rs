//! `/portForward`: a client's connections to a pod's ports, over SPDY, over SPDY in a WebSocket, or over a WebSocket's channels.
//!
//! A connection is a pair of streams, `data` and `error`, which a client names by a `requestID`. Every one is dialled from inside
//! the pod's own network. Absent: UDP, which Kubernetes does not forward either.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use copepod_agent::api::PodName;
use futures::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Session as GoesOn;
use super::answer::{self, Answer};
use super::command::CREATION;
use super::pods::Pods;
use super::route::Query;
use super::sink::Sink;
use super::spdy;
use super::websocket::{self, Channels, Framing};

/// The header by which SPDY's protocols are chosen.
pub(crate) const PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

const OVER_SPDY: &[(&str, ())] = &[("portforward.k8s.io", ())];
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const OVER_WEBSOCKET: &[(&str, Framing)] = &[
    ("v4.channel.k8s.io", Framing { base64: false, half_close: false }),
    ("v4.base64.channel.k8s.io", Framing { base64: true, half_close: false }),
    ("", Framing { base64: false, half_close: false }),
];
/// Ports in one query: as many as have channels whose numbers are digits in the base64 form.
const PORTS: usize = 32;
/// How long a port of the pod may take to answer.
const DIAL: Duration = Duration::from_secs(30);
/// Bytes in memory per direction of a connection.
const PIECE: usize = 16 << 10;

/// Answers `/portForward`.
pub(crate) fn answer(
    pods: &Arc<dyn Pods>,
    target: Target,
    query: &Query,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
) -> (Answer, Option<GoesOn>) {
    let pods = pods.clone();
    let opened = if !websocket::is_asked(headers) {
        over_spdy(pods, target, headers, upgrade)
    } else if websocket::protocols(headers).contains(&TUNNEL) {
        over_tunnel(pods, target, headers, upgrade)
    } else {
        over_channels(pods, target, query, headers, upgrade)
    };
    match opened {
        Ok((answer, session)) => (answer, Some(session)),
        Err(answer) => (*answer, None),
    }
}

/// The pod whose ports they are.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) pod: PodName,
    pub(crate) uid: String,
}

type Opened = Result<(Answer, GoesOn), Box<Answer>>;

/// What a request for SPDY gets: the protocol chosen, or why not.
pub(crate) fn spdy_handshake<T: Copy>(
    headers: &HeaderMap,
    known: &[(&'static str, T)],
) -> Result<(&'static str, T), Box<Answer>> {
    let refuse = |status, text: String| Box::new(answer::text(status, text));
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    let is_spdy = upgrade.is_some_and(|it| it.trim().eq_ignore_ascii_case("SPDY/3.1"));
    if !is_spdy || !websocket::wants_upgrade(headers) {
        let text = "unable to upgrade: missing upgrade headers in request: \
                    wanted is a WebSocket or SPDY/3.1";
        return Err(refuse(StatusCode::BAD_REQUEST, text.into()));
    }
    let values = headers.get_all(PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let asked: Vec<&str> =
        values.flat_map(|it| it.split(',')).map(str::trim).filter(|it| !it.is_empty()).collect();
    if asked.is_empty() {
        let text = "unable to upgrade: header X-Stream-Protocol-Version names no protocol";
        return Err(refuse(StatusCode::BAD_REQUEST, text.into()));
    }
    let found = asked.iter().find_map(|name| known.iter().find(|(known, _)| known == name));
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {asked:?}, \
             server accepts {names:?}"
        );
        let mut answer = refuse(StatusCode::FORBIDDEN, text);
        for name in names {
            answer.headers_mut().append(ACCEPTED, HeaderValue::from_static(name));
        }
        answer
    })
}

fn over_spdy(
    pods: Arc<dyn Pods>,
    target: Target,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
) -> Opened {
    let (name, ()) = spdy_handshake(headers, OVER_SPDY)?;
    let mut answer = answer::switching("SPDY/3.1");
    answer.headers_mut().insert(PROTOCOL, HeaderValue::from_static(name));
    let goes_on = async move {
        if let Ok(connection) = upgrade.await {
            serve(pods, target, TokioIo::new(connection)).await;
        }
    };
    Ok((answer, Box::pin(goes_on)))
}

fn over_tunnel(
    pods: Arc<dyn Pods>,
    target: Target,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
) -> Opened {
    let answer = websocket::accept(headers, TUNNEL)?;
    let goes_on = async move {
        let Ok(connection) = upgrade.await else { return };
        let (inner, ours) = tokio::io::duplex(PIECE);
        let tunnel = websocket::tunnel(TokioIo::new(connection), inner);
        tokio::join!(tunnel, serve(pods, target, ours));
    };
    Ok((answer, Box::pin(goes_on)))
}

/// Forwards the connections of one client, until it is gone.
async fn serve<S>(pods: Arc<dyn Pods>, target: Target, connection: S)
where
    S: AsyncRead + AsyncWrite,
{
    let (streams, driving) = spdy::open(connection);
    let (driven, ()) = tokio::join!(driving, pair(&pods, &target, streams));
    if let Err(error) = driven {
        tracing::debug!(%error, "a client's SPDY connection ended");
    }
}

/// Finds the two streams of each connection, and forwards it.
async fn pair(pods: &Arc<dyn Pods>, target: &Target, mut streams: spdy::Streams) {
    let mut waiting: HashMap<String, spdy::Stream> = HashMap::new();
    let mut late: JoinSet<String> = JoinSet::new();
    let mut forwarded = JoinSet::new();
    loop {
        tokio::select! {
            stream = streams.next() => {
                let Some(stream) = stream else { return };
                let Some(request) = request_of(&stream) else {
                    stream.output.reset().await;
                    continue;
                };
                match waiting.remove(&request.id) {
                    None => {
                        let id = request.id.clone();
                        late.spawn(async move {
                            tokio::time::sleep(CREATION).await;
                            id
                        });
                        waiting.insert(request.id, stream);
                    }
                    Some(first) if is_data(&first) == is_data(&stream) => {
                        let text = format!(
                            "error processing stream for request {}: stream already assigned",
                            request.id
                        );
                        let _ = stream.output.send(text.as_bytes()).await;
                        stream.output.reset().await;
                        waiting.insert(request.id, first);
                    }
                    Some(first) => {
                        let (data, error) =
                            if is_data(&first) { (first, stream) } else { (stream, first) };
                        let (pods, target) = (pods.clone(), target.clone());
                        forwarded.spawn(async move {
                            forward(&*pods, &target, request.port, data, error).await;
                        });
                    }
                }
            }
            Some(id) = late.join_next() => {
                // A pair that is complete is not here any more; one of the same name that came later has the rest of the time.
                if let Some(stream) = id.ok().and_then(|id| waiting.remove(&id)) {
                    let text = "timed out waiting for streams";
                    let _ = stream.output.send(text.as_bytes()).await;
                    stream.output.reset().await;
                }
            }
            Some(_) = forwarded.join_next() => {}
        }
    }
}

struct Request {
    id: String,
    port: u16,
}

/// Which connection a stream belongs to; `None`: none.
fn request_of(stream: &spdy::Stream) -> Option<Request> {
    let port: u16 = stream.header("port")?.parse().ok().filter(|port| *port > 0)?;
    let kind = stream.header("streamtype")?;
    if kind != "data" && kind != "error" {
        return None;
    }
    let id = match stream.header("requestid") {
        Some(id) if !id.is_empty() => id.to_owned(),
        // Clients of long ago open the error stream first, and the data stream next.
        _ if kind == "error" => stream.id.to_string(),
        _ => stream.id.checked_sub(2)?.to_string(),
    };
    Some(Request { id, port })
}

fn is_data(stream: &spdy::Stream) -> bool {
    stream.header("streamtype") == Some("data")
}

/// Moves bytes between a pair of streams and a port, until both directions are over or the client breaks it off.
async fn forward(
    pods: &dyn Pods,
    target: &Target,
    port: u16,
    data: spdy::Stream,
    error: spdy::Stream,
) {
    let output = data.output.clone();
    let to_client = Sink::Spdy(data.output);
    let moved = async {
        let connection = dial(pods, target, port).await?;
        let (mut reader, mut writer) = connection.into_split();
        let (inward, outward) = tokio::join!(inward(data.input, &mut writer), async {
            let read = outward(&mut reader, &to_client).await;
            to_client.finish().await;
            read
        });
        inward.and(outward).map_err(|why| failed(target, port, &why))
    };
    let moved = tokio::select! {
        moved = moved => moved,
        () = output.gone() => Ok(()),
    };
    match moved {
        Ok(()) => {
            output.finish().await;
            output.forget().await;
            error.output.finish().await;
            error.output.forget().await;
        }
        Err(text) => {
            tracing::debug!(text, "a forwarded connection failed");
            let _ = error.output.send(text.as_bytes()).await;
            output.reset().await;
            error.output.reset().await;
        }
    }
}

async fn dial(pods: &dyn Pods, target: &Target, port: u16) -> Result<TcpStream, String> {
    match tokio::time::timeout(DIAL, pods.dial(&target.pod, port)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(why)) => Err(failed(target, port, &why)),
        Err(_) => Err(failed(target, port, &"no answer")),
    }
}

/// As the kubelet words it.
fn failed(target: &Target, port: u16, why: &dyn std::fmt::Display) -> String {
    let Target { pod, uid } = target;
    format!("error forwarding port {port} to pod {}_{}, uid {uid}: {why}", pod.name, pod.namespace)
}

/// From the client to the pod; the client's end is the pod's.
async fn inward<W>(mut input: mpsc::Receiver<Bytes>, pod: &mut W) -> std::io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    while let Some(bytes) = input.recv().await {
        pod.write_all(&bytes).await?;
    }
    // The pod may have closed all of it already.
    let _ = pod.shutdown().await;
    Ok(())
}

/// From the pod to the client, until the pod's end or the client's.
async fn outward<R>(pod: &mut R, client: &Sink) -> std::io::Result<()>
where
    R: AsyncRead + Unpin,
{
    let mut buffer = vec![0; PIECE];
    loop {
        match pod.read(&mut buffer).await? {
            0 => return Ok(()),
            length => {
                if client.send(&buffer[..length]).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

fn over_channels(
    pods: Arc<dyn Pods>,
    target: Target,
    query: &Query,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
) -> Opened {
    let ports = ports(query).map_err(|why| Box::new(answer::text(StatusCode::BAD_REQUEST, why)))?;
    let (name, framing) = websocket::negotiate(headers, OVER_WEBSOCKET)?;
    let answer = websocket::accept(headers, name)?;
    let goes_on = async move {
        let Ok(connection) = upgrade.await else { return };
        let mut channels = Channels::new(framing);
        let forwarded: Vec<_> = (0u8..)
            .zip(ports)
            .map(|(index, port)| {
                let input = channels.input(2 * index);
                let output = |number| Sink::Channel(channels.output(number));
                let (data, error) = (output(2 * index), output(2 * index + 1));
                over_channel(&*pods, &target, port, input, data, error)
            })
            .collect();
        tokio::join!(channels.drive(TokioIo::new(connection)), join_all(forwarded));
    };
    Ok((answer, Box::pin(goes_on)))
}

async fn over_channel(
    pods: &dyn Pods,
    target: &Target,
    port: u16,
    input: mpsc::Receiver<Bytes>,
    data: Sink,
    error: Sink,
) {
    // Each channel begins with its port.
    for channel in [&data, &error] {
        if channel.send(&port.to_le_bytes()).await.is_err() {
            return;
        }
    }
    let moved = async {
        let connection = dial(pods, target, port).await?;
        let (mut reader, mut writer) = connection.into_split();
        // No channel is closed by itself: the pod's end is the end.
        tokio::select! {
            moved = outward(&mut reader, &data) => moved,
            moved = async {
                inward(input, &mut writer).await?;
                std::future::pending().await
            } => moved,
        }
        .map_err(|why| failed(target, port, &why))
    };
    let moved = tokio::select! {
        moved = moved => moved,
        () = data.gone() => return,
    };
    if let Err(text) = moved {
        let _ = error.send(text.as_bytes()).await;
    }
}

/// The ports of a query.
fn ports(query: &Query) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for value in query.all("port") {
        for port in value.split(',') {
            match port.parse::<u16>() {
                Ok(0) => return Err(format!("port {value:?} must be > 0")),
                Ok(port) => ports.push(port),
                Err(_) => return Err(format!("unable to parse {value:?} as a port")),
            }
        }
    }
    match ports.len() {
        0 => Err("query parameter \"port\" is required".into()),
        1..=PORTS => Ok(ports),
        _ => Err(format!("more than {PORTS} ports in one query")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str) -> Result<Vec<u16>, String> {
        ports(&Query::parse(query).expect("a query"))
    }

    #[test]
    fn ports_are_given_one_by_one_or_in_a_list() {
        assert_eq!(asked("port=80&port=81,82"), Ok(vec![80, 81, 82]));
        for wrong in ["", "port=", "port=0", "port=65536", "port=http", "port=80,"] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
        let many = vec!["port=1"; PORTS + 1].join("&");
        assert!(asked(&many).is_err());
    }

    #[test]
    fn a_protocol_is_chosen_or_refused_as_upstream_does_it() {
        let headers = |pairs: &[(HeaderName, &'static str)]| {
            let pairs = pairs.iter();
            pairs.map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
        };
        let upgrade = [(header::UPGRADE, "SPDY/3.1"), (header::CONNECTION, "keep-alive, Upgrade")];
        let status = |headers: &HeaderMap| match spdy_handshake(headers, OVER_SPDY) {
            Ok((name, ())) => Ok(name),
            Err(answer) => Err((answer.status(), answer.headers().get(ACCEPTED).cloned())),
        };
        let with = |value: &'static str| {
            let mut all: HeaderMap = headers(&upgrade);
            all.append(PROTOCOL, HeaderValue::from_static(value));
            all
        };

        assert_eq!(status(&with("x, portforward.k8s.io")), Ok("portforward.k8s.io"));
        let known = Some(HeaderValue::from_static("portforward.k8s.io"));
        assert_eq!(status(&with("v5")), Err((StatusCode::FORBIDDEN, known)));
        assert_eq!(status(&with(" ")), Err((StatusCode::BAD_REQUEST, None)));
        assert_eq!(status(&headers(&upgrade)), Err((StatusCode::BAD_REQUEST, None)));
        let mut plain: HeaderMap = headers(&[]);
        plain.append(PROTOCOL, HeaderValue::from_static("portforward.k8s.io"));
        assert_eq!(status(&plain), Err((StatusCode::BAD_REQUEST, None)));
    }
}
