//! One program of a control plane, its log, and its last words where it died.
//!
//! Absent: when which is started, and with what; that is [`super`].

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::guard::Guard;

/// How many lines of its log a program that died is remembered by.
const LAST_WORDS: usize = 30;

/// A program of the control plane: run, killed, run again.
pub(super) struct Component {
    program: PathBuf,
    arguments: Vec<String>,
    folder: PathBuf,
    child: Option<Child>,
}

impl Component {
    /// One that does not run yet; `folder` holds its log, and is its home.
    pub(super) fn new(program: PathBuf, arguments: Vec<String>, folder: &Path) -> Self {
        Self { program, arguments, folder: folder.to_owned(), child: None }
    }

    /// The program's name.
    pub(super) fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Its process, while it runs or has died by itself.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name()))
    }

    /// Starts it, with what it says added to its log.
    pub(super) fn start(&mut self, guard: &mut Guard) -> Result<()> {
        let file = self.log();
        let log = File::options().create(true).append(true).open(&file);
        let log = log.with_context(|| format!("cannot write {}", file.display()))?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            // What a person's shell sets, such as proxies or a kubeconfig, is not the cluster's.
            .env_clear()
            .env("HOME", &self.folder)
            .current_dir(&self.folder)
            // Ctrl-C is for whoever uses it, whose end is its own.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let pid = child.id();
        self.child = Some(child);
        guard.add(pid)
    }

    /// Kills it, as a crash would.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// How it ended by itself, with its last words; none while it runs, and after [`Self::kill`].
    pub(super) fn died(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        Some(format!("{} ended with {status}:\n{}", self.name(), self.last_words()))
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        self.kill();
    }
}
