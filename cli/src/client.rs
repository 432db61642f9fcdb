//! Talking to the agent of a data directory, and starting it where it is needed.
//!
//! Here: connections, calls, and the agent's start with its error in plain words. Absent: what the calls mean (the commands),
//! and the agent itself (`copepod-agent`), which runs in a process and session of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use copepod_agent::api::{Call, Reply, VERSION};
use copepod_shim::wire::{self, FrameReceiver, FrameSender, WireError};
use tokio::net::UnixStream;
use tokio::time::Instant;

/// How long a starting agent may take to answer: it adopts its pods first, 1,000 of them in some seconds.
const START: Duration = Duration::from_secs(60);

/// How long to wait for an agent that another client started while ours found the directory taken.
const OTHERS_START: Duration = Duration::from_secs(5);

/// Far longer than the kernel takes to close what a killed agent had open.
const AFTER_BREAK: Duration = Duration::from_millis(100);

/// Between two looks at a starting agent.
const LOOK: Duration = Duration::from_millis(10);

/// Why the agent could not be asked, by what the user does about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No agent runs, and none was to be started.
    #[error("nothing runs in {0}")]
    NoAgent(PathBuf),
    /// The agent ended while it started.
    #[error("the agent of {data} cannot start: {why}")]
    CannotStart {
        /// The data directory.
        data: PathBuf,
        /// Its own words.
        why: String,
    },
    /// The agent is of a version that this program cannot talk to.
    #[error(
        "the agent of {data} (process {pid}) speaks version {theirs}, this program {VERSION}: stop its pods with the program that started them, or use that one"
    )]
    OtherVersion {
        /// The data directory.
        data: PathBuf,
        /// The agent's process.
        pid: u32,
        /// Its version.
        theirs: u32,
    },
    /// This user may not talk to the agent.
    #[error("the agent of {0} belongs to another user: try sudo, or another --data-dir")]
    NotOurs(PathBuf),
    /// The connection broke: the agent is gone, and the call may or may not have been carried out.
    #[error("the agent went away")]
    Broken(#[source] WireError),
    /// The agent refused the call, in its own words.
    #[error("{0}")]
    Failed(String),
    /// The agent answered something that does not belong to the call.
    #[error("the agent gave an answer that does not fit: {0}")]
    Odd(String),
    /// Something of this machine failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why not.
        source: io::Error,
    },
}

impl ClientError {
    /// Whether a new connection can help.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self, Self::Broken(_))
    }
}

/// The agent of one data directory, as far as this program knows it.
pub(crate) struct Client {
    data: PathBuf,
    /// The agent that we started: reaped here, so that none stays a zombie beside a long `run`.
    child: Option<Child>,
    greeted: bool,
}

/// One call's connection.
pub(crate) struct Connection {
    sender: FrameSender,
    receiver: FrameReceiver,
}

impl Client {
    /// For the agent of `data`, an absolute path. Nothing happens yet.
    pub(crate) fn new(data: PathBuf) -> Self {
        Self { data, child: None, greeted: false }
    }

    /// A connection to the agent, which is started where it does not run.
    pub(crate) async fn connect(&mut self) -> Result<Connection, ClientError> {
        let stream = match self.try_connect().await? {
            Some(stream) => stream,
            None => self.start().await?,
        };
        self.greet().await?;
        Ok(Connection::new(stream))
    }

    /// As [`connect`](Self::connect), but only where an agent runs or its pods wait for one; else [`ClientError::NoAgent`].
    pub(crate) async fn connect_if_needed(&mut self) -> Result<Connection, ClientError> {
        if self.try_connect().await?.is_none() && !holds_pods(&self.data) {
            return Err(ClientError::NoAgent(self.data.clone()));
        }
        self.connect().await
    }

    /// One call with one answer; where the connection breaks, once more with the agent restarted.
    pub(crate) async fn ask(&mut self, call: &Call) -> Result<Reply, ClientError> {
        match self.ask_once(call).await {
            Err(error) if error.is_broken() => {
                after_break().await;
                self.ask_once(call).await
            }
            answered => answered,
        }
    }

    /// One call with one answer. Where the connection breaks, it may or may not have been carried out.
    pub(crate) async fn ask_once(&mut self, call: &Call) -> Result<Reply, ClientError> {
        self.connect_if_needed().await?.ask(call).await
    }

    async fn try_connect(&self) -> Result<Option<UnixStream>, ClientError> {
        match connect_to(&self.data.join("agent.sock")).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                // No socket, or one that nobody listens at.
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                io::ErrorKind::PermissionDenied => Err(ClientError::NotOurs(self.data.clone())),
                _ => Err(ClientError::Io {
                    doing: format!("reach the agent of {}", self.data.display()),
                    source: error,
                }),
            },
        }
    }

    /// Makes sure, once, that the agent and this program understand each other.
    async fn greet(&mut self) -> Result<(), ClientError> {
        if self.greeted {
            return Ok(());
        }
        let Some(stream) = self.try_connect().await? else { return Ok(()) };
        let hello = Call::Hello { version: VERSION, build: String::new() };
        match Connection::new(stream).ask(&hello).await {
            Ok(Reply::Agent { version, pid, .. }) if version != VERSION => {
                Err(ClientError::OtherVersion { data: self.data.clone(), pid, theirs: version })
            }
            Ok(_) => {
                self.greeted = true;
                Ok(())
            }
            // It may be on its way out; the call itself will tell.
            Err(ClientError::Broken(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn start(&mut self) -> Result<UnixStream, ClientError> {
        self.greeted = false;
        let io = |doing: &str| {
            let doing = format!("{doing} {}", self.data.display());
            move |source| ClientError::Io { doing, source }
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.data)
            .map_err(io("make the data directory"))?;
        let path = self.data.join("agent.log");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(io("write agent.log in"))?;
        let before = log.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        let program = std::env::current_exe()
            .map_err(|source| ClientError::Io { doing: "find this program".into(), source })?;
        let deadline = Instant::now() + START;
        let mut others = None;
        self.spawn(&program, &log)?;
        loop {
            if let Ok(stream) = connect_to(&self.data.join("agent.sock")).await {
                return Ok(stream);
            }
            let now = Instant::now();
            if let Some(status) = self.ended() {
                let taken = status.code() == Some(i32::from(crate::serve::TAKEN));
                let until = *others.get_or_insert(now + OTHERS_START);
                if !taken || now >= until {
                    let why = match taken {
                        true => "another one holds it and does not answer".to_owned(),
                        false => last_words(&path, before, status),
                    };
                    return Err(ClientError::CannotStart { data: self.data.clone(), why });
                }
                // Another client's agent starts too, or an old one is about to be gone: one of them or the next will answer.
                tokio::time::sleep(LOOK * 10).await;
                self.spawn(&program, &log)?;
            }
            if now >= deadline {
                let seconds = START.as_secs();
                let log = path.display();
                let why = format!("it does not answer within {seconds} s; see {log}");
                return Err(ClientError::CannotStart { data: self.data.clone(), why });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts the agent's process. It makes a session of its own, which needs no help from here.
    fn spawn(&mut self, program: &Path, log: &File) -> Result<(), ClientError> {
        // An earlier one is dead, or we would be connected; this takes it off the process table.
        let _ = self.ended();
        let log = log
            .try_clone()
            .map_err(|source| ClientError::Io { doing: "write agent.log".into(), source })?;
        let child = Command::new(program)
            .arg("__agent")
            .arg("--data-dir")
            .arg(&self.data)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|source| ClientError::Io {
                doing: format!("start {}", program.display()),
                source,
            })?;
        self.child = Some(child);
        Ok(())
    }

    /// How the agent that we started ended, if it did.
    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok()?
    }
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        let (sender, receiver) = wire::split(stream);
        Self { sender, receiver }
    }

    /// Sends the call, with the descriptors that belong to it.
    pub(crate) async fn call(&mut self, call: &Call, fds: &[OwnedFd]) -> Result<(), ClientError> {
        match self.sender.send(call, fds).await {
            Ok(()) => Ok(()),
            Err(WireError::TooLong(bytes)) => Err(ClientError::Failed(format!(
                "the manifest's objects make {bytes} bytes together, where at most {} are taken",
                wire::MAX_FRAME
            ))),
            Err(error) => Err(ClientError::Broken(error)),
        }
    }

    /// The next answer. A failure that the agent tells is an error.
    pub(crate) async fn next(&mut self) -> Result<Reply, ClientError> {
        let mut so_far = Vec::new();
        loop {
            match self.receiver.receive::<Reply>().await {
                Ok((Reply::Failed(why), _)) => return Err(ClientError::Failed(why)),
                Ok((Reply::SomePods(pods), _)) => so_far.extend(pods),
                Ok((Reply::Pods(pods), _)) => {
                    so_far.extend(pods);
                    return Ok(Reply::Pods(so_far));
                }
                Ok((reply, _)) => return Ok(reply),
                Err(error) => return Err(ClientError::Broken(error)),
            }
        }
    }

    /// A call and its one answer.
    pub(crate) async fn ask(&mut self, call: &Call) -> Result<Reply, ClientError> {
        self.call(call, &[]).await?;
        self.next().await
    }
}

/// Waits after a connection that broke: an agent that was killed takes connections until the kernel has closed all that it had.
pub(crate) async fn after_break() {
    tokio::time::sleep(AFTER_BREAK).await;
}

/// What an answer is where it does not fit, without its content.
pub(crate) fn odd(reply: &Reply) -> ClientError {
    let text = format!("{reply:?}");
    let end = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
    ClientError::Odd(text[..end].to_owned())
}

/// Whether there are pods in `data`, which an agent may have to be started for.
fn holds_pods(data: &Path) -> bool {
    std::fs::read_dir(data.join("pods")).is_ok_and(|mut pods| pods.next().is_some())
}

/// Connects to a socket whose path may be longer than the 107 bytes that an address holds.
async fn connect_to(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() < 100 {
        return UnixStream::connect(path).await;
    }
    let folder = File::open(path.parent().unwrap_or(Path::new("/")))?;
    let short = {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
            .join(path.file_name().unwrap_or_default())
    };
    UnixStream::connect(short).await
}

/// What the agent said last, since `before` in its log.
fn last_words(log: &Path, before: u64, status: ExitStatus) -> String {
    // The end of the log suffices: an error is a line or two.
    const TAIL: u64 = 16 << 10;
    let mut text = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(before.max(length.saturating_sub(TAIL))))?;
        file.take(TAIL).read_to_end(&mut text)
    });
    let text = String::from_utf8_lossy(&text);
    match (read, said(&text)) {
        (Ok(_), Some(words)) => crate::out::harmless(words),
        _ => format!("it ended with {status}; see {}", log.display()),
    }
}

/// The text after the last `error: ` at the start of a line, or the last line.
fn said(text: &str) -> Option<&str> {
    const MARK: &str = "error: ";
    let text = text.trim_end();
    let at = if text.starts_with(MARK) { Some(0) } else { None };
    let at = text.rfind(&format!("\n{MARK}")).map(|at| at + 1).or(at);
    match at {
        Some(at) => Some(&text[at + MARK.len()..]),
        None => text.lines().last(),
    }
    .filter(|words| !words.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_s_last_words_are_its_error_without_the_log_before_it() {
        let table = [
            ("", None),
            ("error: no nft\n", Some("no nft")),
            (
                "INFO up\nerror: a\nINFO x\nerror: it failed:\n  because\n",
                Some("it failed:\n  because"),
            ),
            ("INFO up\nthread 'main' panicked\n", Some("thread 'main' panicked")),
        ];
        for (text, expected) in table {
            assert_eq!(said(text), expected, "{text:?}");
        }
    }
}
