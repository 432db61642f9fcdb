//! Sends back what each TCP connection sends, one connection after the other: a guest has one thread.
//!
//! The port is `PORT`, or 7000.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

fn main() -> std::io::Result<()> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(7000);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    println!("listening on {}", listener.local_addr()?);

    for stream in listener.incoming() {
        let stream = stream?;
        let peer = stream.peer_addr()?;
        match echo(stream) {
            Ok(bytes) => println!("{peer}: {bytes} bytes"),
            Err(error) => eprintln!("{peer}: {error}"),
        }
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> std::io::Result<u64> {
    let mut buffer = [0; 4096];
    let mut total = 0;
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(total);
        }
        stream.write_all(&buffer[..read])?;
        total += read as u64;
    }
}
