//! What the kernel remembers of flows: forgetting those whose way has changed.
//!
//! The kernel judges a flow's first packet and then remembers where it goes. A UDP client that keeps its socket would so be led on to
//! whoever had a port before, or to nobody, for as long as it does not pause. Absent: TCP, whose next connection is another flow.

use std::collections::BTreeSet;
use std::io;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// The subsystem of netfilter, in a message's kind.
const CONNTRACK: u16 = 1 << 8;
/// What is asked of it, and how it tells of a flow.
const NEW: u16 = CONNTRACK;
const GET: u16 = CONNTRACK | 1;
const DELETE: u16 = CONNTRACK | 2;

/// netlink's own kinds: an answer or acknowledgement, and a list's end.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Attributes of a flow: the packets of its beginner, in them the transport, in it the protocol and the port called.
const ORIGINAL: u16 = 1;
const TRANSPORT: u16 = 2;
const PROTOCOL: u16 = 1;
const PORT_CALLED: u16 = 3;

/// Marks an attribute that has others in it.
const NESTED: u16 = 1 << 15;

const UDP: u8 = 17;

/// Forgets all flows over UDP to these ports, to whichever address.
pub(crate) fn forget_udp(ports: &BTreeSet<u16>) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let all = message(GET, NLM_F_REQUEST | NLM_F_DUMP, 0, &[]);
    socket.send(&all, 0)?;
    let mut flows = Vec::new();
    exchange(&socket, |kind, body| {
        flows.extend(Some(body).filter(|_| kind == NEW).and_then(|body| udp_flow(body, ports)));
    })?;
    for Flow { family, original } in flows {
        let delete = message(DELETE, NLM_F_REQUEST | NLM_F_ACK, family, &original);
        socket.send(&delete, 0)?;
        match exchange(&socket, |_, _| ()) {
            // It has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

/// A flow, as it is named to the kernel.
#[derive(Debug, PartialEq, Eq)]
struct Flow {
    family: u8,
    /// The attribute with the packets of its beginner, whole.
    original: Vec<u8>,
}

/// The flow that a message tells of, where it is one over UDP to one of the ports.
fn udp_flow(body: &[u8], ports: &BTreeSet<u16>) -> Option<Flow> {
    let (head, rest) = body.split_at_checked(4)?;
    let tuple = find(rest, ORIGINAL)?;
    let transport = find(tuple, TRANSPORT)?;
    let port = find(transport, PORT_CALLED)?.first_chunk::<2>()?;
    let is_wanted =
        find(transport, PROTOCOL)? == [UDP] && ports.contains(&u16::from_be_bytes(*port));
    let length = u16::try_from(tuple.len() + 4).ok()?;
    let mut original = length.to_ne_bytes().to_vec();
    original.extend((ORIGINAL | NESTED).to_ne_bytes());
    original.extend(tuple);
    is_wanted.then_some(Flow { family: head[0], original })
}

/// The value of the first attribute of this kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while let Some([a, b, c, d]) = attributes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([*c, *d]) & !NESTED == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// A whole message; only one is under way at a time, so it needs no number.
fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let body = [&[family, 0, 0, 0], attributes].concat();
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// Reads what is answered, to its end.
fn exchange(socket: &Socket, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while let Some([a, b, c, d, kind @ .., _, _]) = rest.first_chunk::<8>() {
            let length = u32::from_ne_bytes([*a, *b, *c, *d]) as usize;
            let Some(body) = rest.get(16..length) else { break };
            match u16::from_ne_bytes(*kind) {
                DONE => return Ok(()),
                ERROR => {
                    let code = body.first_chunk().map_or(-libc::EIO, |it| i32::from_ne_bytes(*it));
                    return match code {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                kind => each(kind, body),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).expect("it is short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// What the kernel tells of a flow to a port.
    fn told(protocol: u8, port: u16) -> Vec<u8> {
        let addresses = attribute(1 | NESTED, &attribute(1, &[192, 0, 2, 1]));
        let caller = attribute(2, &40_000_u16.to_be_bytes());
        let called = attribute(PORT_CALLED, &port.to_be_bytes());
        let transport = [attribute(PROTOCOL, &[protocol]), caller, called].concat();
        let tuple = [addresses, attribute(TRANSPORT | NESTED, &transport)].concat();
        let others = attribute(3, &[0; 4]);
        [vec![2, 0, 0, 0], others, attribute(ORIGINAL | NESTED, &tuple)].concat()
    }

    #[test]
    fn a_flow_is_found_by_its_protocol_and_the_port_that_it_called() {
        let ports = BTreeSet::from([53, 8000]);

        let found = udp_flow(&told(UDP, 8000), &ports).expect("it is one");

        assert_eq!(found.family, 2);
        let whole = told(UDP, 8000);
        assert!(whole.ends_with(&found.original), "as the kernel named it");
        assert_eq!(udp_flow(&told(UDP, 8001), &ports), None);
        assert_eq!(udp_flow(&told(6, 8000), &ports), None);
    }

    #[test]
    fn a_message_that_ends_too_early_tells_of_no_flow() {
        let whole = told(UDP, 8000);

        for length in 0..whole.len() {
            assert_eq!(udp_flow(&whole[..length], &BTreeSet::from([8000])), None, "{length}");
        }
    }

    #[test]
    fn a_message_says_how_long_it_is() {
        let bytes = message(DELETE, NLM_F_REQUEST | NLM_F_ACK, 2, &[1; 8]);

        assert_eq!(bytes.len(), 28);
        assert_eq!(bytes[..4], 28_u32.to_ne_bytes());
        assert_eq!(bytes[16], 2);
    }
}
