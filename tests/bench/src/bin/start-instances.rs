//! `start-instances SOCKET CODE COUNT PAUSE`: speaks to a runner as the agent does and starts a command component again and again,
//! each time as a fresh container, PAUSE milliseconds after the one before has ended. Prints a JSON list: for each the microseconds from just before the message was sent until
//! the guest's first instruction, as the runner tells it.
//!
//! Absent: starting the runner, and everything that the agent does before it sends the message.

// The list is what it is for.
#![allow(clippy::print_stdout)]

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use copepod_shim::kind::Kind;
use copepod_shim::protocol::{
    Answer, AttemptId, Dns, Event, Failure, FromRunner, Hello, HttpSettings, Limits, PodSandbox,
    Request, StartContainer, ToRunner, VERSIONS,
};
use copepod_shim::wire::{self, FrameReceiver, FrameSender};

const POD: &str = "00000000-0000-0000-0000-0000000000b1";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().with_context(|| format!("{what} is missing"));
    let (socket, code, count) =
        (next("the socket")?, next("the code")?, next("the count")?.parse()?);
    let pause = Duration::from_millis(next("the pause")?.parse()?);
    let times = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(start(&socket, &code, count, pause))?;
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}

async fn start(socket: &str, code: &str, count: u32, pause: Duration) -> Result<Vec<i64>> {
    let (sender, receiver) = wire::split(tokio::net::UnixStream::connect(socket).await?);
    let mut runner = Runner { sender, receiver, id: 0, exits: Vec::new() };
    let hello = Hello { versions: VERSIONS, build: "bench".into(), engine: String::new() };
    runner.sender.send(&hello, &[]).await?;
    let _theirs: (Hello, _) = runner.receiver.receive().await?;
    runner.ask(Request::CreatePod(sandbox())).await?;

    let mut times = Vec::new();
    for attempt in 0..count {
        tokio::time::sleep(pause).await;
        let id = AttemptId { pod: POD.into(), container: "app".into(), attempt };
        let request = Request::Start(Box::new(container(id.clone(), code)));
        let sent = unix_us()?;
        match runner.ask(request).await? {
            Answer::Started { at_us } => times.push(at_us - sent),
            other => bail!("a start was answered {other:?}"),
        }
        runner.exit_of(&id).await?;
        runner.ask(Request::Acknowledge(id)).await?;
    }
    // The next round begins with a pod that has started nothing.
    runner.ask(Request::RemovePod { pod: POD.into() }).await?;
    Ok(times)
}

fn unix_us() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?)
}

struct Runner {
    sender: FrameSender,
    receiver: FrameReceiver,
    id: u64,
    /// Exits that came while something else was awaited.
    exits: Vec<(AttemptId, i32)>,
}

impl Runner {
    async fn ask(&mut self, request: Request) -> Result<Answer> {
        self.id += 1;
        self.sender.send(&ToRunner { id: self.id, request }, &[]).await?;
        loop {
            if let Some((id, result)) = self.next().await?
                && id == self.id
            {
                return Ok(result?);
            }
        }
    }

    /// Waits until the attempt is over, so that the next start finds an idle runner.
    async fn exit_of(&mut self, of: &AttemptId) -> Result<()> {
        loop {
            if let Some(at) = self.exits.iter().position(|(id, _)| id == of) {
                let (_, code) = self.exits.swap_remove(at);
                ensure!(code == 0, "the guest ended with {code}");
                return Ok(());
            }
            self.next().await?;
        }
    }

    /// The next frame, where it is a reply.
    async fn next(&mut self) -> Result<Option<(u64, Result<Answer, Failure>)>> {
        match self.receiver.receive().await?.0 {
            FromRunner::Reply { id, result } => return Ok(Some((id, result))),
            FromRunner::Event(Event::Exited { id, exit }) => self.exits.push((id, exit.code)),
            FromRunner::Event(_) => {}
        }
        Ok(None)
    }
}

fn sandbox() -> PodSandbox {
    PodSandbox {
        pod: POD.into(),
        name: "bench".into(),
        namespace: "default".into(),
        ipv4: Some(Ipv4Addr::LOCALHOST),
        ipv6: None,
        loopback: Ipv4Addr::new(127, 0, 0, 2),
        hostname: "bench".into(),
        hosts: Vec::new(),
        dns: Dns::default(),
        denied: Vec::new(),
        max_sockets: 16,
    }
}

fn container(id: AttemptId, code: &str) -> StartContainer {
    StartContainer {
        id,
        code: code.into(),
        kind: Kind::CommandComponent,
        args: vec!["app".into(), "exit 0".into()],
        env: Vec::new(),
        mounts: Vec::new(),
        ports: Vec::new(),
        limits: Limits {
            memory: 64 << 20,
            cpu_millis: None,
            cpu_weight: 100,
            log_bytes_per_second: 1 << 20,
            log_file_bytes: 10 << 20,
            log_files: 2,
            handles: 100,
        },
        http: HttpSettings { reuse: 1, concurrency: 1, queue: 1, timeout_ms: 1000 },
        log: format!("/logs/{POD}/app/0.log"),
        termination_log: format!("/rw/{POD}/app/termination"),
        termination_path: "/dev/termination-log".into(),
        stdin: false,
        stdin_once: false,
        tty: false,
        cwd: String::new(),
        since_us: None,
    }
}
