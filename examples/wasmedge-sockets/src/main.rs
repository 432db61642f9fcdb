//! A preview1 module that opens sockets by itself, by the imports that WasmEdge has for it.
//!
//! Without arguments it echoes TCP at port 7000. With some it does one thing, tells what came of it, and ends:
//! `tcp HOST:PORT TEXT` and `udp HOST:PORT TEXT` send a text and show the answer, `names HOST` shows a name's addresses, `udp-echo PORT` answers
//! datagrams until one says `bye`.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use wasmedge_wasi_socket::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket, nslookup};

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [] => echo(7000),
        ["tcp", to, text] => tcp(to, text),
        ["udp", to, text] => udp(to, text),
        ["udp-echo", port] => udp_echo(port.parse().map_err(io::Error::other)?),
        ["names", host] => names(host),
        _ => Err(io::Error::other(format!("what is {args:?}?"))),
    }
}

fn echo(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port), false)?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (mut stream, _) = listener.accept(false)?;
        let mut buffer = [0; 4096];
        let mut total = 0;
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                read => {
                    stream.write_all(&buffer[..read])?;
                    total += read;
                }
            }
        }
        println!("{total} bytes");
    }
}

fn tcp(to: &str, text: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{} answered: {answer}", raw::peer(&stream)?);
    Ok(())
}

fn udp(to: &str, text: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let to = to.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    socket.send_to(text.as_bytes(), to)?;
    let mut buffer = [0; 1024];
    let (length, sender) = raw::receive(&socket, &mut buffer)?;
    println!("{sender} answered: {}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}

fn udp_echo(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    println!("listening on udp {port}");
    loop {
        let mut buffer = [0; 1024];
        let (length, sender) = raw::receive(&socket, &mut buffer)?;
        socket.send_to(&buffer[..length], sender)?;
        if &buffer[..length] == b"bye" {
            return Ok(());
        }
    }
}

fn names(host: &str) -> io::Result<()> {
    for address in nslookup(host, "")? {
        println!("{host} is {}", address.ip());
    }
    Ok(())
}

/// Two calls that the crate makes in its own way: it has the host write into buffers that it declares immutable, of which an optimising
/// compiler takes what it wrote itself.
mod raw {
    use std::io;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::os::fd::AsRawFd;

    #[repr(C)]
    struct Buffer {
        start: *mut u8,
        length: usize,
    }

    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn sock_getpeeraddr(fd: i32, address: *mut Buffer, family: *mut u32, port: *mut u32)
        -> u32;
        fn sock_recv_from(
            fd: i32,
            buffers: *mut Buffer,
            count: usize,
            address: *mut Buffer,
            flags: u32,
            port: *mut u32,
            received: *mut usize,
            told: *mut u32,
        ) -> u32;
    }

    pub fn peer(socket: &impl AsRawFd) -> io::Result<SocketAddr> {
        let (mut bytes, mut family, mut port) = ([0; 16], 0, 0);
        let mut address = Buffer { start: bytes.as_mut_ptr(), length: bytes.len() };
        // SAFETY: all pointers are to variables that live longer than the call.
        told(unsafe {
            sock_getpeeraddr(socket.as_raw_fd(), &mut address, &mut family, &mut port)
        })?;
        let ip: IpAddr = match family {
            4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
            _ => Ipv6Addr::from(bytes).into(),
        };
        Ok(SocketAddr::new(ip, port as u16))
    }

    pub fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (mut bytes, mut port, mut received, mut flags) = ([0; 128], 0, 0, 0);
        let mut address = Buffer { start: bytes.as_mut_ptr(), length: bytes.len() };
        let mut buffers = Buffer { start: buffer.as_mut_ptr(), length: buffer.len() };
        let fd = socket.as_raw_fd();
        // SAFETY: as above.
        told(unsafe {
            let (address, port) = (&mut address, &mut port);
            sock_recv_from(fd, &mut buffers, 1, address, 0, port, &mut received, &mut flags)
        })?;
        // The family comes first.
        let ip: IpAddr = match bytes[0] {
            1 => Ipv4Addr::new(bytes[2], bytes[3], bytes[4], bytes[5]).into(),
            _ => <[u8; 16]>::try_from(&bytes[2..18]).map(Ipv6Addr::from).expect("16 bytes").into(),
        };
        Ok((received, SocketAddr::new(ip, port as u16)))
    }

    fn told(error: u32) -> io::Result<()> {
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error as i32)) }
    }
}
