//! Asks name servers for addresses, over UDP and, where an answer does not fit, TCP, from the pod's own address.
//! Absent: search lists and files ([`crate::lookup`]); a socket outlives no question.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::door::Door;
use crate::lookup::LookupError;
use crate::os;
use crate::rules::{Family, Route};

/// How long one server has for an answer, and how often the list of servers is gone through: the defaults of
/// resolv.conf(5).
const TIMEOUT: Duration = Duration::from_secs(5);
const ROUNDS: u32 = 2;

/// The longest answer over UDP: no larger size is offered (no EDNS), so 512 by RFC 1035; some send more all the same.
const UDP_ANSWER_BYTES: usize = 4096;

/// The most addresses of a name that are used, so that a hostile server cannot have the host carry thousands.
const MAX_ADDRESSES: usize = 64;

/// What a server that can tell has told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The name's addresses, those of the first type asked for first.
    Addresses(Vec<IpAddr>),
    /// No such name, or no address of these types: another name may be tried.
    Nothing,
}

/// Asks the servers, in order, for the records of these types; those that lie outside through the door, where there is one.
pub(crate) async fn ask(
    door: Option<&Arc<Door>>,
    servers: &[Route],
    name: &Name,
    types: &[RecordType],
) -> Result<Answer, LookupError> {
    let mut error = LookupError::TimedOut;
    for _ in 0..ROUNDS {
        for server in servers {
            match timeout(TIMEOUT, ask_one(door, server, name, types)).await {
                Ok(Ok(messages)) => match judge(name, &messages) {
                    Some(answer) => return Ok(answer),
                    None => error = LookupError::ServersFailed,
                },
                Ok(Err(reason)) => {
                    tracing::debug!(server = %server.to, %reason, "a name server is not reached");
                }
                Err(_) => tracing::debug!(server = %server.to, "a name server does not answer"),
            }
        }
    }
    Err(error)
}

/// One question per type to one server, all on one socket; comes back once all are answered.
async fn ask_one(
    door: Option<&Arc<Door>>,
    server: &Route,
    name: &Name,
    types: &[RecordType],
) -> io::Result<Vec<Message>> {
    let door = door.filter(|door| !server.inside && door.leads_to(server.to.ip()));
    // Connected, the socket takes answers from nobody else.
    let socket = match door {
        Some(door) => door.connect_udp(server.to)?,
        None => {
            let socket = os::udp(Family::of(server.to.ip()))?;
            rustix::net::bind(&socket, &SocketAddr::new(server.source, 0))?;
            socket.connect(server.to).await?;
            socket
        }
    };
    let mut open: Vec<Message> = types.iter().map(|kind| question(name, *kind)).collect();
    for message in &open {
        socket.send(&message.to_vec().map_err(io::Error::other)?).await?;
    }

    let mut answers = Vec::with_capacity(open.len());
    let mut buffer = vec![0; UDP_ANSWER_BYTES];
    while !open.is_empty() {
        let length = socket.recv(&mut buffer).await?;
        let Ok(answer) = Message::from_vec(&buffer[..length]) else { continue };
        let Some(at) = open.iter().position(|asked| answers_to(asked, &answer)) else { continue };
        let asked = open.swap_remove(at);
        if answer.metadata.truncation {
            answers.push(ask_by_tcp(door, server, &asked).await?);
        } else {
            answers.push(answer);
        }
    }
    Ok(answers)
}

async fn ask_by_tcp(
    door: Option<&Arc<Door>>,
    server: &Route,
    asked: &Message,
) -> io::Result<Message> {
    let mut stream = os::connect(door, server.source, server.to).await?;
    let bytes = asked.to_vec().map_err(io::Error::other)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&bytes).await?;

    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    let answer = Message::from_vec(&bytes).map_err(io::Error::other)?;
    if !answers_to(asked, &answer) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"));
    }
    Ok(answer)
}

fn question(name: &Name, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    message
}

fn answers_to(asked: &Message, answer: &Message) -> bool {
    answer.metadata.id == asked.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == asked.queries
}

/// What the answers of one server come to; `None`: it could not tell, another server may.
fn judge(name: &Name, answers: &[Message]) -> Option<Answer> {
    let mut addresses: Vec<IpAddr> = answers.iter().flat_map(|a| addresses(name, a)).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.truncate(MAX_ADDRESSES);
    if !addresses.is_empty() {
        return Some(Answer::Addresses(addresses));
    }
    let could_tell = |a: &Message| {
        matches!(a.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
    };
    answers.iter().all(could_tell).then_some(Answer::Nothing)
}

/// The addresses of the name in one answer, and of the names that it is an alias of. A server lists aliases before what
/// they stand for; records of names that nobody asked for are passed over.
fn addresses(name: &Name, answer: &Message) -> Vec<IpAddr> {
    let mut names = vec![name];
    let mut found = Vec::new();
    for record in &answer.answers {
        if !names.contains(&&record.name) {
            continue;
        }
        match &record.data {
            RData::A(ip) => found.push(IpAddr::V4(ip.0)),
            RData::AAAA(ip) => found.push(IpAddr::V6(ip.0).to_canonical()),
            RData::CNAME(alias) => names.push(&alias.0),
            _ => {}
        }
    }
    found
}
