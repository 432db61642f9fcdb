//! Debian's `docker-registry`, on loopback, with its images in a temporary folder.
//!
//! Absent: hostile registries, which are written by the tests that need them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::http;

/// A registry that runs while this lives.
pub struct Registry {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Registry {
    /// Starts `program` on a free port and waits until it answers.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(program: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // Free now; the registry fails, and says so, where someone takes it in between.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = folder.path().join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
                folder.path().join("images").display()
            ),
        )?;
        let child = Command::new(program)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut registry = Self { child, address, _folder: folder };
        let begin = Instant::now();
        while !http::get(address, "/v2/").is_ok_and(|it| it.status == 200) {
            if let Some(status) = registry.child.try_wait()? {
                bail!("docker-registry ended with {status}");
            }
            if begin.elapsed() > Duration::from_secs(30) {
                bail!("docker-registry does not answer on {address}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    /// The host and port that image references begin with.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
