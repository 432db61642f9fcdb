//! Statements about TCP, UDP and names, through std: the wasip2 build only.
//!
//! Absent: HTTP, for which there are HTTP components.

use std::io::{ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket,
};
use std::time::Duration;

use crate::{Finding, equal, number, text, two};

pub fn run(verb: &str, rest: &str) -> Option<Finding> {
    Some(match verb {
        // `HOST:PORT ok|refused|denied|unreachable|failed`: how connecting ends.
        "connect" => two(rest).and_then(|(to, wanted)| ended(TcpStream::connect(to), wanted)),
        // `HOST:PORT TEXT`: sends the text, ends sending, prints what comes back.
        "ask" => two(rest).and_then(|(to, said)| ask(to, said)).map(|reply| println!("= {reply}")),
        // `HOST:PORT TEXT`: the same text must come back.
        "echo" => two(rest).and_then(|(to, said)| equal(&ask(to, said)?, said)),
        // `HOST:PORT`: whether an HTTP server answers 200 to GET /.
        "http-get" => http_get(rest),
        // `ADDR:PORT ok|denied|in-use|failed`, e.g. `0.0.0.0:8080 ok`; prints the address as it reads back.
        "bind" => two(rest).and_then(|(at, wanted)| {
            let bound = TcpListener::bind(at);
            if let Ok(listener) = &bound {
                println!("= bound {}", listener.local_addr().map_err(text)?);
            }
            ended(bound, wanted)
        }),
        "udp-bind" => two(rest).and_then(|(at, wanted)| ended(UdpSocket::bind(at), wanted)),
        // `PORT` or `ADDR:PORT`: serves an echo for ever.
        "listen" => place(rest).and_then(listen),
        "udp-listen" => place(rest).and_then(udp_listen),
        // `HOST:PORT TEXT`: sends a datagram again and again, which must come back.
        "udp-echo" => two(rest).and_then(|(to, said)| udp_echo(to, said)),
        // `HOST:PORT TEXT`: sends it once and waits for it as long as it takes.
        "udp-wait" => two(rest).and_then(|(to, said)| udp_wait(to, said)),
        // `HOST:PORT`: sending a datagram there must be refused.
        "udp-cannot-send" => udp_cannot_send(rest),
        // Prints a name's addresses.
        "resolve" => resolve(rest).map(|found| println!("= {rest}: {found}")),
        // `NAME ADDR,ADDR`
        "resolve-is" => two(rest).and_then(|(name, wanted)| equal(&resolve(name)?, wanted)),
        "cannot-resolve" => match resolve(rest) {
            Err(why) => {
                println!("= {why}");
                Ok(())
            }
            Ok(found) => Err(format!("found {found}")),
        },
        // `N`: opens N UDP sockets and keeps them; says how far it got.
        "many-sockets" => number(rest).and_then(many_sockets),
        // `HOST:PORT N`: opens N connections and keeps them.
        "many-connections" => {
            two(rest).and_then(|(to, count)| many_connections(to, number(count)?))
        }
        _ => return None,
    })
}

/// The word for how an operation ended.
fn ended<T>(result: std::io::Result<T>, wanted: &str) -> Finding {
    let found = match &result {
        Ok(_) => "ok",
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => "refused",
            ErrorKind::PermissionDenied => "denied",
            ErrorKind::AddrInUse => "in-use",
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable",
            _ => "failed",
        },
    };
    // `failed` is any failure, where a test does not care which.
    match result {
        Err(_) if wanted == "failed" => Ok(()),
        _ if wanted == found => Ok(()),
        Err(error) => Err(format!("{found} ({})", text(error))),
        Ok(_) => Err(found.to_owned()),
    }
}

fn ask(to: &str, said: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect(to).map_err(text)?;
    stream.write_all(said.as_bytes()).map_err(text)?;
    stream.shutdown(std::net::Shutdown::Write).map_err(text)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).map_err(text)?;
    Ok(reply)
}

fn http_get(to: &str) -> Finding {
    let mut stream = TcpStream::connect(to).map_err(text)?;
    write!(stream, "GET / HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n").map_err(text)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).map_err(text)?;
    let status = reply.lines().next().unwrap_or_default().to_owned();
    println!("= {status}");
    if status.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(status) }
}

/// An address, or a port of all IPv4 addresses.
fn place(rest: &str) -> Result<SocketAddr, String> {
    match rest.parse() {
        Ok(address) => Ok(address),
        Err(_) => Ok((Ipv4Addr::UNSPECIFIED, number(rest)?).into()),
    }
}

fn listen(at: SocketAddr) -> Finding {
    let listener = TcpListener::bind(at).map_err(text)?;
    println!("= listening on {}", listener.local_addr().map_err(text)?);
    for stream in listener.incoming() {
        let mut stream = stream.map_err(text)?;
        println!("= connection from {}", stream.peer_addr().map_err(text)?);
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn udp_listen(at: SocketAddr) -> Finding {
    let socket = UdpSocket::bind(at).map_err(text)?;
    println!("= listening on {}", socket.local_addr().map_err(text)?);
    let mut buffer = [0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).map_err(text)?;
        println!("= datagram from {peer}");
        socket.send_to(&buffer[..length], peer).map_err(text)?;
    }
}

fn udp_echo(to: &str, said: &str) -> Finding {
    let any: IpAddr = match to.parse() {
        Ok(SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).map_err(text)?;
    let mut buffer = [0; 2048];
    // A datagram may be lost: nine more follow, half a second apart. WASI knows no time limit of a socket.
    socket.set_nonblocking(true).map_err(text)?;
    for _ in 0..10 {
        socket.send_to(said.as_bytes(), to).map_err(text)?;
        for _ in 0..50 {
            if let Ok((length, _)) = socket.recv_from(&mut buffer) {
                return equal(&String::from_utf8_lossy(&buffer[..length]), said);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Err("ten datagrams went unanswered".to_owned())
}

fn udp_wait(to: &str, said: &str) -> Finding {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(text)?;
    let mut buffer = [0; 2048];
    socket.send_to(said.as_bytes(), to).map_err(text)?;
    let (length, peer) = socket.recv_from(&mut buffer).map_err(text)?;
    equal(&peer.to_string(), to)?;
    equal(&String::from_utf8_lossy(&buffer[..length]), said)
}

fn udp_cannot_send(to: &str) -> Finding {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(text)?;
    crate::refused(socket.send_to(b"from the probe", to))?;
    // The other way to name a peer must be judged too.
    crate::refused(socket.connect(to).and_then(|()| socket.send(b"from the probe")))
}

fn resolve(name: &str) -> Result<String, String> {
    let found = (name, 0).to_socket_addrs().map_err(text)?;
    let mut addresses: Vec<String> =
        found.map(|address: SocketAddr| address.ip().to_string()).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses.join(","))
}

fn many_sockets(count: u32) -> Finding {
    let mut held = Vec::new();
    for n in 0..count {
        match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) {
            Ok(socket) => held.push(socket),
            Err(error) => return Err(format!("after {n} sockets: {}", text(error))),
        }
    }
    Ok(())
}

fn many_connections(to: &str, count: u32) -> Finding {
    let mut held = Vec::new();
    for n in 0..count {
        match TcpStream::connect(to) {
            Ok(stream) => held.push(stream),
            Err(error) => return Err(format!("after {n} connections: {}", text(error))),
        }
    }
    Ok(())
}
