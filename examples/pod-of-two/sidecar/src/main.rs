//! The sidecar of the pod of two: writes a page into the shared volume, then answers HTTP on the pod's localhost.
//!
//! It speaks just enough HTTP for its one client: a request is read up to its empty line, and each gets the same answer.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

/// Where both containers mount the shared emptyDir.
const PAGE: &str = "/shared/page.txt";

fn main() -> std::io::Result<()> {
    std::fs::write(PAGE, "this page was written by the sidecar\n")?;
    println!("wrote {PAGE}");

    let listener = TcpListener::bind("127.0.0.1:9000")?;
    println!("listening on {}", listener.local_addr()?);

    let mut asked = 0u64;
    for connection in listener.incoming() {
        asked += 1;
        if let Err(error) = connection.and_then(|stream| answer(stream, asked)) {
            eprintln!("request {asked}: {error}");
        }
    }
    Ok(())
}

fn answer(mut stream: TcpStream, asked: u64) -> std::io::Result<()> {
    for line in BufReader::new(&stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let body = format!("you are request {asked}\n");
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    println!("answered request {asked}");
    Ok(())
}
