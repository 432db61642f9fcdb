//! Sees to it that nothing stays of a cluster, however the process that uses it ends: also killed, also with the cluster in a static.
//!
//! It is a shell that reads process ids from a pipe. When the pipe ends, it kills them and removes the folder. Absent: asking
//! politely. Nothing of a test's cluster is worth keeping.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result};

/// A process id is trusted only while its command line names the folder; then it is certainly ours. Looked at again until all
/// are gone, for 10 s.
const SCRIPT: &str = r#"
pids=
while read -r pid; do pids="$pids $pid"; done
round=0
while [ $round -lt 200 ]; do
    left=
    for pid in $pids; do
        if grep -qaF -- "$1" "/proc/$pid/cmdline" 2>/dev/null; then
            kill -KILL "$pid" 2>/dev/null
            left=yes
        fi
    done
    [ -z "$left" ] && break
    round=$((round + 1))
    sleep 0.05
done
rm -rf -- "$1"
"#;

/// Lives as long as what it guards.
pub(super) struct Guard {
    shell: Child,
    pids: Option<ChildStdin>,
}

impl Guard {
    /// Guards this folder, which is gone in the end, and processes whose command line names it.
    ///
    /// # Errors
    /// Without a shell.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(folder)
            // Outside the folder, and where no Ctrl-C reaches it. Its output is that of whoever uses the cluster, so that a
            // reader of it, such as `cargo xtask test`, waits until all is gone.
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start sh")?;
        let pids = shell.stdin.take();
        Ok(Self { shell, pids })
    }

    /// Guards this process too.
    ///
    /// # Errors
    /// Where the guard is gone.
    pub(super) fn add(&mut self, pid: u32) -> Result<()> {
        let pids = self.pids.as_mut().context("the guard was sent home")?;
        writeln!(pids, "{pid}").context("a cluster's guard is gone")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pids.take());
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_name_the_folder_end_with_the_guard_and_others_do_not() {
        let folder = tempfile::tempdir().expect("a temporary folder").keep();
        let waiting = |name: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", "read -r line", "sh", name]).stdin(Stdio::piped());
            command.spawn().expect("a shell")
        };
        let mut ours = waiting(folder.to_str().expect("text"));
        let mut other = waiting("elsewhere");
        // A command line appears a moment after its process.
        crate::wait::until("the program", || {
            let line = std::fs::read(format!("/proc/{}/cmdline", ours.id())).ok()?;
            line.starts_with(b"sh\0-c").then_some(())
        });
        let mut guard = Guard::of(&folder).expect("it starts");
        for process in [&ours, &other] {
            guard.add(process.id()).expect("it lives");
        }

        drop(guard);

        let ended = ours.wait().expect("it can be waited for");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
        assert!(other.try_wait().expect("it is ours").is_none(), "the other lives");
        assert!(!folder.exists());
        drop(other.stdin.take());
        other.wait().expect("it ends with its input");
    }
}
