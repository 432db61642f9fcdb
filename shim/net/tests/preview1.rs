//! Sockets of preview1 modules, driven as a module's imports would drive them.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{pod_ip, sandbox};
use copepod_net::preview1::{Ports, Preview1, listen_variables};
use copepod_net::{NetCtx, PodNet};
use copepod_shim::protocol::PodSandbox;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wasmtime_wasi::p1::types::{
    Ciovec, Clockid, Errno, Error, Event, EventFdReadwrite, Eventrwflags, Eventtype, Fd, Fdflags,
    Filetype, Iovec, Riflags, Sdflags, Subclockflags, Subscription, SubscriptionClock,
    SubscriptionFdReadwrite, SubscriptionU,
};
use wasmtime_wasi::p1::wasi_snapshot_preview1::WasiSnapshotPreview1 as _;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};
use wiggle::{GuestMemory, GuestPtr};

/// Where in the guest's memory things are laid.
const SUBSCRIPTIONS: u32 = 0x1000;
const EVENTS: u32 = 0x2000;
const IOVEC: u32 = 0x3000;
const DATA: u32 = 0x4000;

/// A preview1 module in the container `app` of a pod, and its memory.
struct Module {
    state: Preview1,
    memory: Vec<u8>,
    asked: Arc<AtomicBool>,
}

impl Module {
    fn with_ports(net: &Arc<PodNet>, ports: &[u16]) -> Self {
        Self::new(net, WasiCtxBuilder::new(), 0, ports)
    }

    fn new(net: &Arc<PodNet>, wasi: WasiCtxBuilder, directories: usize, ports: &[u16]) -> Self {
        let ctx = || NetCtx::new(Arc::clone(net), "app".into());
        let mut state = Preview1::new(wasi, directories, tokio::io::empty(), ctx(), 100);
        let ports = Ports::bind(&ctx(), ports.iter().copied(), false).expect("free ports");
        let asked = ports.asked();
        state.take_ports(ports);
        Self { state, memory: vec![0; 1 << 16], asked }
    }

    fn parts(&mut self) -> (&mut Preview1, GuestMemory<'_>) {
        (&mut self.state, GuestMemory::Unshared(&mut self.memory))
    }

    async fn accept(&mut self, fd: u32, flags: Fdflags) -> Result<u32, Errno> {
        told(self.state.accept(Fd::from(fd), flags).await).map(u32::from)
    }

    async fn receive(&mut self, fd: u32, most: u32) -> Result<Vec<u8>, Errno> {
        let (state, mut memory) = self.parts();
        let place = Iovec { buf: GuestPtr::new(DATA), buf_len: most };
        memory.write(GuestPtr::<Iovec>::new(IOVEC), place).expect("room");
        let buffers = GuestPtr::<Iovec>::new(IOVEC).as_array(1);
        let length = told(state.receive(&mut memory, fd.into(), buffers, Riflags::empty()).await)?;
        Ok(self.memory[DATA as usize..][..length as usize].to_vec())
    }

    async fn send(&mut self, fd: u32, bytes: &[u8]) -> Result<u32, Errno> {
        let (state, mut memory) = self.parts();
        let length = u32::try_from(bytes.len()).expect("short");
        memory.copy_from_slice(bytes, GuestPtr::<u8>::new(DATA).as_array(length)).expect("room");
        let piece = Ciovec { buf: GuestPtr::new(DATA), buf_len: length };
        memory.write(GuestPtr::<Ciovec>::new(IOVEC), piece).expect("room");
        let pieces = GuestPtr::<Ciovec>::new(IOVEC).as_array(1);
        told(state.send(&mut memory, fd.into(), pieces, None).await)
    }

    async fn poll(&mut self, asked: &[SubscriptionU]) -> Vec<Event> {
        let (state, mut memory) = self.parts();
        let count = u32::try_from(asked.len()).expect("few");
        let places = GuestPtr::<Subscription>::new(SUBSCRIPTIONS);
        for (userdata, u) in (0..).zip(asked) {
            let place = places.as_array(count).get(userdata).expect("in the array");
            let asked = Subscription { userdata: userdata.into(), u: u.clone() };
            memory.write(place, asked).expect("room");
        }
        let events = GuestPtr::<Event>::new(EVENTS);
        let polled = state.poll_oneoff(&mut memory, places, events, count).await;
        let told = told(polled).expect("a poll that does not fail as a whole");
        let events = events.as_array(told);
        events
            .iter()
            .map(|place| memory.read(place.expect("in the array")).expect("written"))
            .collect()
    }
}

fn told<T>(result: Result<T, Error>) -> Result<T, Errno> {
    result.map_err(|error| error.downcast().expect("an error's number, and no trap"))
}

fn read(fd: u32) -> SubscriptionU {
    SubscriptionU::FdRead(SubscriptionFdReadwrite { file_descriptor: fd.into() })
}

fn write(fd: u32) -> SubscriptionU {
    SubscriptionU::FdWrite(SubscriptionFdReadwrite { file_descriptor: fd.into() })
}

fn after(wait: Duration) -> SubscriptionU {
    SubscriptionU::Clock(SubscriptionClock {
        id: Clockid::Monotonic,
        timeout: u64::try_from(wait.as_nanos()).expect("short"),
        precision: 0,
        flags: Subclockflags::empty(),
    })
}

const AT_ONCE: Duration = Duration::ZERO;

fn event(userdata: u64, type_: Eventtype, nbytes: u64, hangup: bool) -> Event {
    let flags = if hangup { Eventrwflags::FD_READWRITE_HANGUP } else { Eventrwflags::empty() };
    let fd_readwrite = EventFdReadwrite { nbytes, flags };
    Event { userdata, error: Errno::Success, type_, fd_readwrite }
}

fn pod() -> (PodSandbox, Arc<PodNet>) {
    let sandbox = sandbox();
    let net = PodNet::new(&sandbox);
    (sandbox, net)
}

fn call(sandbox: &PodSandbox, port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect(SocketAddr::new(pod_ip(sandbox), port))
}

#[tokio::test]
async fn a_declared_port_listens_from_the_guest_s_first_look_for_connections_on() {
    let (sandbox, net) = pod();
    let mut module = Module::with_ports(&net, &[7000]);
    assert!(call(&sandbox, 7000).is_err());
    assert!(!module.asked.load(Ordering::Relaxed));

    let nobody = module.poll(&[read(3), after(AT_ONCE)]).await;

    assert_eq!(nobody, [event(1, Eventtype::Clock, 0, false)]);
    assert!(module.asked.load(Ordering::Relaxed));
    call(&sandbox, 7000).expect("connected");
}

#[tokio::test]
async fn a_connection_is_waited_for_read_from_and_written_to() {
    let (sandbox, net) = pod();
    let mut module = Module::with_ports(&net, &[7000]);
    module.poll(&[read(3), after(AT_ONCE)]).await;

    let calling = tokio::net::TcpStream::connect((pod_ip(&sandbox), 7000));
    let (fd, caller) = tokio::join!(module.accept(3, Fdflags::empty()), calling);
    let (fd, mut caller) = (fd.expect("a connection"), caller.expect("connected"));
    assert_eq!(fd, 4);
    let (got, sent) = tokio::join!(module.receive(fd, 100), caller.write_all(b"hello"));
    sent.expect("sent");
    assert_eq!(got.as_deref(), Ok(&b"hello"[..]));
    assert_eq!(module.send(fd, b"hi").await, Ok(2));
    let mut answer = [0; 2];
    caller.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"hi");

    drop(caller);
    assert_eq!(module.receive(fd, 100).await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_descriptor_that_does_not_block_is_told_to_come_again() {
    let (sandbox, net) = pod();
    let mut module = Module::with_ports(&net, &[7000]);
    let (state, mut memory) = module.parts();
    let flags = Fdflags::NONBLOCK;
    told(state.fd_fdstat_set_flags(&mut memory, 3.into(), flags)).expect("a socket takes it");

    assert_eq!(module.accept(3, flags).await, Err(Errno::Again));
    let mut caller = call(&sandbox, 7000).expect("connected");
    assert_eq!(module.poll(&[read(3)]).await, [event(0, Eventtype::FdRead, 1, false)]);
    let fd = module.accept(3, flags).await.expect("it has arrived");
    assert_eq!(module.receive(fd, 100).await, Err(Errno::Again));
    caller.write_all(b"x").expect("sent");
    assert_eq!(module.poll(&[read(fd)]).await, [event(0, Eventtype::FdRead, 1, false)]);

    assert_eq!(module.receive(fd, 100).await.as_deref(), Ok(&b"x"[..]));
    // What was read to its end is not said to be ready.
    let nothing = module.poll(&[read(fd), after(AT_ONCE)]).await;
    assert_eq!(nothing, [event(1, Eventtype::Clock, 0, false)]);
}

#[tokio::test]
async fn a_poll_tells_how_much_has_come_and_that_the_caller_is_gone() {
    let (sandbox, net) = pod();
    let mut module = Module::with_ports(&net, &[7000]);
    module.poll(&[read(3), after(AT_ONCE)]).await;
    let mut caller = call(&sandbox, 7000).expect("connected");
    let fd = module.accept(3, Fdflags::empty()).await.expect("a connection");

    assert_eq!(module.poll(&[write(fd)]).await, [event(0, Eventtype::FdWrite, 1, false)]);
    caller.write_all(b"four").expect("sent");
    assert_eq!(module.poll(&[read(fd)]).await, [event(0, Eventtype::FdRead, 4, false)]);
    assert_eq!(module.receive(fd, 100).await.as_deref(), Ok(&b"four"[..]));
    caller.shutdown(std::net::Shutdown::Write).expect("shut");

    assert_eq!(module.poll(&[read(fd)]).await, [event(0, Eventtype::FdRead, 0, true)]);
}

#[tokio::test]
async fn a_caller_that_does_not_read_is_not_written_to_for_ever() {
    let (sandbox, net) = pod();
    let mut module = Module::with_ports(&net, &[7000]);
    module.poll(&[read(3), after(AT_ONCE)]).await;
    let mut caller = call(&sandbox, 7000).expect("connected");
    let fd = module.accept(3, Fdflags::NONBLOCK).await.expect("a connection");
    let mut sent = 0;
    let much = vec![b'x'; 30_000];

    loop {
        match module.send(fd, &much).await {
            Ok(more) => sent += more as usize,
            Err(errno) => break assert_eq!(errno, Errno::Again),
        }
    }
    let full = module.poll(&[write(fd), after(AT_ONCE)]).await;
    assert_eq!(full, [event(1, Eventtype::Clock, 0, false)]);
    let mut taken = vec![0; sent];
    caller.read_exact(&mut taken).expect("all that was sent");

    assert_eq!(module.poll(&[write(fd)]).await, [event(0, Eventtype::FdWrite, 1, false)]);
}

#[tokio::test]
async fn a_bad_descriptor_is_an_error_of_its_own_event() {
    let (_, net) = pod();
    let mut module = Module::with_ports(&net, &[]);

    let events = module.poll(&[read(99), after(AT_ONCE), read(1), write(0), write(1)]).await;

    let errors: Vec<_> = events.iter().map(|it| (it.userdata, it.error)).collect();
    let bad = |number| (number, Errno::Badf);
    let expected = [bad(0), (1, Errno::Success), bad(2), bad(3), (4, Errno::Success)];
    assert_eq!(errors, expected);
}

#[tokio::test]
async fn a_standard_input_at_its_end_is_ready_to_be_read() {
    let (_, net) = pod();
    let mut module = Module::with_ports(&net, &[]);

    let events = module.poll(&[read(0), after(Duration::from_secs(3600))]).await;

    assert_eq!(events, [event(0, Eventtype::FdRead, 1, false)]);
}

#[tokio::test]
async fn a_clock_s_time_in_the_past_is_over_and_an_unknown_clock_is_an_error() {
    let (_, net) = pod();
    let mut module = Module::with_ports(&net, &[]);
    let clock =
        |id, flags| SubscriptionU::Clock(SubscriptionClock { id, timeout: 1, precision: 0, flags });
    let absolute = Subclockflags::SUBSCRIPTION_CLOCK_ABSTIME;

    let events = module.poll(&[clock(Clockid::Realtime, absolute)]).await;
    assert_eq!(events, [event(0, Eventtype::Clock, 0, false)]);
    let events = module.poll(&[clock(Clockid::ThreadCputimeId, absolute)]).await;
    assert_eq!(events[0].error, Errno::Notsup);
}

#[tokio::test]
async fn directories_come_first_then_the_ports_and_files_take_the_lowest_free_number() {
    let (_, net) = pod();
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("text"), "content").expect("written");
    let mut wasi = WasiCtxBuilder::new();
    wasi.preopened_dir(folder.path(), "/data", FsPerms::ReadOnly).expect("a directory");
    let mut module = Module::new(&net, wasi, 1, &[7000, 7001]);
    let (state, mut memory) = module.parts();
    state.set_hostcall_fuel(1 << 20);

    told(state.fd_prestat_get(&mut memory, 3.into())).expect("a directory");
    for socket in [4, 5] {
        // Where libraries stop to look.
        assert!(matches!(told(state.fd_prestat_get(&mut memory, socket.into())), Err(Errno::Badf)));
        let stat = told(state.fd_fdstat_get(&mut memory, socket.into()).await).expect("a socket");
        assert_eq!(stat.fs_filetype, Filetype::SocketStream);
    }
    told(state.fd_close(&mut memory, 4.into()).await).expect("closed");
    memory.copy_from_slice(b"text", GuestPtr::<u8>::new(DATA).as_array(4)).expect("room");
    let opened = state
        .path_open(
            &mut memory,
            3.into(),
            wasmtime_wasi::p1::types::Lookupflags::empty(),
            GuestPtr::<str>::new((DATA, 4)),
            wasmtime_wasi::p1::types::Oflags::empty(),
            wasmtime_wasi::p1::types::Rights::FD_READ,
            wasmtime_wasi::p1::types::Rights::empty(),
            Fdflags::empty(),
        )
        .await;
    let opened = u32::from(told(opened).expect("opened"));
    assert_eq!(opened, 4);

    let ready = module.poll(&[read(opened)]).await;
    assert_eq!(ready, [event(0, Eventtype::FdRead, 7, false)]);
    assert_eq!(module.receive(opened, 3).await, Err(Errno::Notsock));
    let (state, mut memory) = module.parts();
    told(state.fd_renumber(&mut memory, 4.into(), 5.into()).await).expect("in the socket's place");
    assert!(told(state.fd_tell(&mut memory, 5.into())).is_ok());
    assert!(matches!(told(state.fd_tell(&mut memory, 4.into())), Err(Errno::Badf)));
    assert!(!module.asked.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_shut_connection_takes_nothing_more_and_what_is_no_connection_is_said() {
    let (sandbox, net) = pod();
    let mut module = Module::with_ports(&net, &[7000]);
    module.poll(&[read(3), after(AT_ONCE)]).await;
    let mut caller = call(&sandbox, 7000).expect("connected");
    let fd = module.accept(3, Fdflags::empty()).await.expect("a connection");
    let (state, mut memory) = module.parts();

    told(state.sock_shutdown(&mut memory, fd.into(), Sdflags::WR)).expect("shut");
    let listener = told(state.sock_shutdown(&mut memory, 3.into(), Sdflags::RD));
    assert!(matches!(listener, Err(Errno::Notconn)));
    let nothing = told(state.sock_shutdown(&mut memory, fd.into(), Sdflags::empty()));
    assert!(matches!(nothing, Err(Errno::Inval)));

    assert_eq!(module.send(fd, b"x").await, Err(Errno::Pipe));
    assert_eq!(module.send(3, b"x").await, Err(Errno::Notconn));
    assert_eq!(module.accept(fd, Fdflags::empty()).await, Err(Errno::Inval));
    assert_eq!(module.accept(1, Fdflags::empty()).await, Err(Errno::Notsock));
    assert_eq!(module.accept(77, Fdflags::empty()).await, Err(Errno::Badf));
    let mut rest = Vec::new();
    caller.read_to_end(&mut rest).expect("an end");
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn a_port_that_another_container_has_is_refused_with_its_name() {
    let (_, net) = pod();
    let _listeners = net.listen("web", 7000).expect("free");

    let error = Ports::bind(&NetCtx::new(Arc::clone(&net), "app".into()), [7000], true).err();

    assert_eq!(error.expect("refused").to_string(), "port 7000 is held by container web");
}

#[test]
fn the_variables_tell_how_many_sockets_there_are_their_names_and_their_numbers() {
    let [count, names, numbers] = listen_variables(2, &["http".into(), "7001".into()]);

    assert_eq!(count, ("LISTEN_FDS", "2".to_owned()));
    assert_eq!(names, ("LISTEN_FDNAMES", "http:7001".to_owned()));
    assert_eq!(numbers, ("COPEPOD_LISTEN_FDS", "http=5,7001=6".to_owned()));
}
