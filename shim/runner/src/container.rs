//! What all instances of one attempt of a container share, and the one place where an instance's store is made.
//!
//! Absent: running them ([`crate::command`], [`crate::http`]) and deciding when ([`crate::pods`]).

use std::fs::OpenOptions;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use copepod_net::{NetCtx, PodNet};
use copepod_shim::protocol::StartContainer;
use copepod_shim::seen;
use wasmtime_wasi::filesystem::Dir;
use wasmtime_wasi::{FsPerms, OpenMode};

use crate::attach::Stdin;
use crate::code::Code;
use crate::cpu::{self, Cpu};
use crate::engines::Engines;
use crate::http::tls::Trust;
use crate::last_words::LastWords;
use crate::ledger::Ledger;
use crate::log::Log;
use crate::root::Root;

/// One attempt of one container.
pub struct Container {
    /// What the agent asked for.
    pub spec: StartContainer,
    /// The code that it runs, ready to be instantiated.
    pub code: Arc<Code>,
    /// The runner's engines and its ticker.
    pub engines: Arc<Engines>,
    /// The pod's network.
    pub net: Arc<PodNet>,
    /// The container's name, shared with its sockets.
    pub name: Arc<str>,
    /// Its memory.
    pub ledger: Arc<Ledger>,
    /// Its CPU time.
    pub cpu: Cpu,
    /// Its stdin, where its spec has one.
    pub stdin: Option<Stdin>,
    /// Its log.
    pub log: Arc<Log>,
    /// HTTP requests answered.
    pub requests: AtomicU64,
    /// Instances alive; counted by their stores.
    pub instances: AtomicU32,
    /// Connections kept for `wasi:http` requests of its guests.
    pub outgoing: crate::http::outgoing::Pool,
    /// Whom they trust.
    pub trust: Arc<Trust>,
    mounts: Vec<Mount>,
    last_words: Option<Arc<LastWords>>,
}

/// A directory of the guest's.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Where it lies for the runner.
    pub source: PathBuf,
    /// Where the guest sees it.
    pub guest: String,
    /// Whether the guest may write in it.
    pub perms: FsPerms,
    /// Of the folder of last words, which is made when it is first opened.
    pub last_words: Option<Arc<LastWords>>,
}

impl Container {
    /// An attempt without instances. To be called within the runtime that runs the guests.
    pub fn new(
        spec: StartContainer,
        code: Arc<Code>,
        engines: Arc<Engines>,
        net: Arc<PodNet>,
        trust: Arc<Trust>,
        root: &Root,
    ) -> Arc<Self> {
        let mut mounts: Vec<Mount> = spec
            .mounts
            .iter()
            .map(|mount| Mount {
                source: root.path(&mount.source),
                guest: mount.guest.clone(),
                perms: if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite },
                last_words: None,
            })
            .collect();
        // A volume that is mounted there is where the guest's file is then.
        let last_words = LastWords::of(&spec, root).map(Arc::new).filter(|last_words| {
            !mounts.iter().any(|mount| mount.guest == last_words.guest_directory())
        });
        if let Some(last_words) = &last_words {
            mounts.push(Mount {
                source: last_words.directory().to_owned(),
                guest: last_words.guest_directory().to_owned(),
                perms: FsPerms::ReadWrite,
                last_words: Some(last_words.clone()),
            });
        }
        let ledger = Ledger::new(spec.limits.memory);
        Arc::new(Self {
            name: spec.id.container.as_str().into(),
            cpu: Cpu::new(spec.limits.cpu_millis),
            stdin: spec.stdin.then(|| Stdin::new(spec.stdin_once)),
            log: Log::new(root.path(&spec.log), &spec.limits, &ledger),
            ledger,
            requests: AtomicU64::new(0),
            instances: AtomicU32::new(0),
            outgoing: crate::http::outgoing::Pool::default(),
            trust,
            mounts,
            last_words,
            spec,
            code,
            engines,
            net,
        })
    }

    /// Runs a future that runs this container's guest code: booked, within `limits.cpu`, interrupted by epochs.
    pub async fn metered<F: Future>(&self, future: F) -> F::Output {
        cpu::metered(&self.cpu, &self.engines.ticker, future).await
    }

    /// What this container's sockets go by.
    pub fn net_ctx(&self) -> NetCtx {
        NetCtx::new(self.net.clone(), self.name.clone())
    }

    /// The directories that the guest sees.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Opens each directory of the guest's, with its guest path.
    ///
    /// # Errors
    /// The first that cannot be opened.
    pub fn open_directories(&self) -> io::Result<Vec<(Dir, String)>> {
        self.mounts.iter().map(|mount| Ok((mount.open()?, mount.guest.clone()))).collect()
    }

    /// Opens the wasm file that the guest sees by this name. It waits for the disk.
    pub fn open_program(&self, name: &str) -> Option<OwnedFd> {
        let folders: Vec<_> = self
            .mounts
            .iter()
            .map(|mount| seen::Folder { guest: &mount.guest, source: mount.source.clone() })
            .collect();
        Some(seen::open(&folders, &self.spec.cwd, &self.spec.env, name)?.into())
    }

    /// Puts the guest's last words, if it left any, where the agent reads them.
    pub fn collect_last_words(&self) {
        if let Some(last_words) = &self.last_words {
            last_words.collect();
        }
    }

    /// Keeps the guest's last words short while it runs.
    pub fn trim_last_words(&self) {
        if let Some(last_words) = &self.last_words {
            last_words.trim();
        }
    }
}

impl Mount {
    /// Makes it, where that was left until somebody looks.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn prepare(&self) -> io::Result<()> {
        self.last_words.as_ref().map_or(Ok(()), |last_words| last_words.show())
    }

    fn open(&self) -> io::Result<Dir> {
        self.prepare()?;
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::DIRECTORY.bits() as i32)
            .open(&self.source)?;
        let mode = match self.perms {
            FsPerms::ReadOnly => OpenMode::READ,
            FsPerms::ReadWrite => OpenMode::READ | OpenMode::WRITE,
        };
        Ok(Dir::new(directory, self.perms, mode, false))
    }
}
