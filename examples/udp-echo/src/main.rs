//! Sends every UDP datagram back to where it came from.
//!
//! The port is `PORT`, or 7000.

use std::net::{Ipv4Addr, UdpSocket};

/// The largest payload that fits an IPv4 datagram: 65,535 less 20 bytes of IP header and 8 of UDP header.
const LARGEST: usize = 65_507;

fn main() -> std::io::Result<()> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(7000);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    println!("listening on {}", socket.local_addr()?);

    let mut buffer = vec![0; LARGEST];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        match socket.send_to(&buffer[..length], peer) {
            Ok(_) => println!("{peer}: {length} bytes"),
            Err(error) => eprintln!("{peer}: {error}"),
        }
    }
}
