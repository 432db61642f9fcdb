//! The sidecar of the pod of two: writes a page into the shared volume, then answers HTTP on the pod's localhost.
//!
//! It speaks just enough HTTP for its one client, whose requests have an empty body.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

/// Where both containers mount the shared emptyDir.
const PAGE: &str = "/shared/page.txt";

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:9000")?;
    println!("listening on {}", listener.local_addr()?);

    // Last: once there is a page, the app is ready, and may be asked for both.
    std::fs::write(PAGE, "this page was written by the sidecar\n")?;
    println!("wrote {PAGE}");

    let mut asked = 0u64;
    for connection in listener.incoming() {
        asked += 1;
        if let Err(error) = connection.and_then(|stream| answer(stream, asked)) {
            eprintln!("request {asked}: {error}");
        }
    }
    Ok(())
}

fn answer(stream: TcpStream, asked: u64) -> std::io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let chunked = read_lines(&mut reader)?
        .iter()
        .any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    if chunked {
        // The body has no chunk but the last. Who answers before it is read has a client that hears of a reset connection.
        read_lines(&mut reader)?;
    }
    let body = format!("you are request {asked}\n");
    let length = body.len();
    write!(
        &stream,
        "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )?;
    println!("answered request {asked}");
    Ok(())
}

/// The lines up to the next empty one.
fn read_lines(reader: &mut impl BufRead) -> std::io::Result<Vec<String>> {
    reader.lines().take_while(|line| !matches!(line, Ok(line) if line.is_empty())).collect()
}
