//! WASI preview1 for a module: upstream's files, clocks and streams, and beside them sockets of the pod.
//!
//! Upstream knows no sockets and gives descriptors numbers of its own choice. So a guest's number is looked up in a table of ours
//! ([`descriptors`]), which leads to one of upstream's or to a [`socket`]. A guest finds its directories first, from 3 on, then one socket
//! for each TCP port that its container declares ([`listen_variables`]): libraries stop looking for directories at the first
//! number that is none.
//!
//! In upstream's trait `sock_accept`, `sock_recv` and `sock_send` could not wait, so they are linked apart from it ([`link`], [`waiting`]).
//! [`poll`] waits for several things at a time, and [`wasmedge`] has the sockets that a guest opens by itself.
//!
//! Absent: threads' shared memories, which no engine of ours has.

mod descriptors;
mod forward;
mod link;
mod poll;
mod socket;
mod waiting;
mod wasmedge;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::cli::StdinStream;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p2::InputStream;

use self::descriptors::Descriptors;
use self::socket::Socket;
use crate::linker::NetCtx;

pub use self::link::{Accept, add_to_linker};

/// Upstream's numbers of the standard streams.
const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;

/// The preview1 state of one instance.
pub struct Preview1 {
    wasi: WasiP1Ctx,
    net: NetCtx,
    descriptors: Descriptors<Descriptor>,
    /// Another end of the standard input, to wait for it.
    stdin: Box<dyn InputStream>,
}

/// What a guest's number leads to.
enum Descriptor {
    /// Upstream's descriptor of this number.
    Wasi(u32),
    Socket(Socket),
}

impl Preview1 {
    /// The state of an instance that upstream's builder has everything of but the standard input, these many directories among it. It has at
    /// most `most` descriptors open.
    pub fn new(
        mut wasi: WasiCtxBuilder,
        directories: usize,
        stdin: impl StdinStream + 'static,
        net: NetCtx,
        most: u32,
    ) -> Self {
        let upstreams = 0..STDERR + 1 + u32::try_from(directories).unwrap_or(u32::MAX);
        let most = most.max(upstreams.end);
        let descriptors = Descriptors::new(upstreams.map(Descriptor::Wasi), most);
        let waits = stdin.p2_stream();
        Self { wasi: wasi.stdin(stdin).build_p1(), net, descriptors, stdin: waits }
    }

    /// Puts the sockets of declared ports under the next numbers.
    pub fn take_ports(&mut self, ports: Ports) {
        self.descriptors.make_room(ports.sockets.len());
        for socket in ports.sockets {
            let _ = self.descriptors.push(Descriptor::Socket(socket));
        }
    }

    /// Upstream's context.
    pub fn wasi(&mut self) -> &mut WasiP1Ctx {
        &mut self.wasi
    }

    /// How many sockets the guest has open.
    pub fn sockets(&self) -> usize {
        self.descriptors.iter().filter(|it| matches!(it, Descriptor::Socket(_))).count()
    }
}

/// Sockets for the TCP ports that a container declares. They listen once the guest first asks for connections, so that until then nobody
/// is told that it serves.
pub struct Ports {
    sockets: Vec<Socket>,
    asked: Arc<AtomicBool>,
}

impl Ports {
    /// Binds them. Whether they are `nonblocking` until the guest says otherwise depends on the guest: Go serves on no other, and a program
    /// without a call to wait by (`poll_oneoff`) could do nothing with such.
    ///
    /// # Errors
    /// The first port that is taken, or for which the pod has no socket left.
    pub fn bind(
        net: &NetCtx,
        ports: impl IntoIterator<Item = u16>,
        nonblocking: bool,
    ) -> io::Result<Self> {
        let asked = Arc::default();
        let socket = |port| Socket::of_port(net, port, nonblocking, &asked);
        let sockets = ports.into_iter().map(socket).collect::<io::Result<_>>()?;
        Ok(Self { sockets, asked })
    }

    /// Becomes true once the guest asks for connections.
    pub fn asked(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.asked)
    }
}

/// The variables by which a guest finds its sockets: systemd's two, as wasmtime once set them, and `COPEPOD_LISTEN_FDS` with
/// `name=number` for each, as systemd's say nothing of where the first is: `3` only in a container without directories.
pub fn listen_variables(directories: usize, names: &[String]) -> [(&'static str, String); 3] {
    let first = STDERR as usize + 1 + directories;
    let numbered = names.iter().zip(first..).map(|(name, number)| format!("{name}={number}"));
    [
        ("LISTEN_FDS", names.len().to_string()),
        ("LISTEN_FDNAMES", names.join(":")),
        ("COPEPOD_LISTEN_FDS", numbered.collect::<Vec<_>>().join(",")),
    ]
}
