//! Debian's `docker-registry`, on loopback, with its images in a temporary folder.
//!
//! Beneath: [`served`], a registry of a test's own. Absent: what a hostile one answers, which is written by the tests that need it, and
//! certificates, which are made there too.

pub mod served;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How a registry is got into.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// It speaks TLS with this certificate chain and key, in PEM form.
    pub tls: Option<(String, String)>,
    /// Who is let in.
    pub logins: Logins,
}

/// Whom a registry lets in.
#[derive(Clone, Debug, Default)]
pub enum Logins {
    /// Everybody.
    #[default]
    None,
    /// Who is in this line of an htpasswd file, with bcrypt.
    Htpasswd(&'static str),
    /// Who brings a token of the server at `realm`, for the service `test` and by the issuer `test`.
    Token {
        /// The server's address.
        realm: String,
        /// The authority, in PEM form, of the certificate that signs the tokens.
        authority: String,
    },
}

/// A registry that runs while this lives.
pub struct Registry {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Registry {
    /// Starts `program` on a free port, by plain HTTP and for everybody, and waits until it answers.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(program: &Path) -> Result<Self> {
        Self::start_with(program, &Access::default())
    }

    /// The same with other ways in.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start_with(program: &Path, access: &Access) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // Free now; the registry fails, and says so, where someone takes it in between.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).map(|()| path)
        };
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            folder.path().join("images").display()
        );
        if let Some((certificate, key)) = &access.tls {
            let (certificate, key) = (write("tls.crt", certificate)?, write("tls.key", key)?);
            config.push_str(&format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                certificate.display(),
                key.display()
            ));
        }
        match &access.logins {
            Logins::None => {}
            Logins::Htpasswd(line) => config.push_str(&format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                write("htpasswd", line)?.display()
            )),
            Logins::Token { realm, authority } => config.push_str(&format!(
                "auth:\n  token:\n    realm: {realm}\n    service: test\n    issuer: test\n    rootcertbundle: {}\n",
                write("tokens.crt", authority)?.display()
            )),
        }
        let config = write("config.yml", &config)?;
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
        // It listens only once it can answer.
        while TcpStream::connect(address).is_err() {
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
