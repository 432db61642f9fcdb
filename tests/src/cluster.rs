//! A real control plane of Kubernetes on this machine: etcd, kube-apiserver, kube-controller-manager and kube-scheduler.
//!
//! [`shared`] is the one that the tests of a program have in common; each uses nodes and namespaces of names of its own. A test
//! that kills parts of it, or needs other [`settings`], starts a [`Cluster`] for itself. All of it lies in a temporary folder
//! and goes with whoever started it, which is the guard's work. Beneath: [`authority`] makes its certificates, [`identity`] says
//! who asks, [`audit`] what was asked; [`member`] is a node's process,
//! [`metrics_server`] one more program. Absent: a client but kubectl; building the programs, as `cargo xtask kube` does.

pub mod audit;
pub mod authority;
mod component;
mod guard;
pub mod identity;
mod joining;
pub mod member;
pub mod metrics_server;
pub mod settings;

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use serde_json::{Value, json};

use audit::Event;
use authority::{Authority, Certified};
use component::Component;
use guard::Guard;
use identity::Identity;
use settings::{Part, Settings};

use crate::node::Ended;

/// Names the folder of the programs; Kubernetes' own tools for tests know it too.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// Far beyond what a control plane takes to start on a machine under load, which is seconds.
const PATIENCE: Duration = Duration::from_secs(180);

/// Between two looks at one that starts.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a start is tried where another program took the port that was free.
const TRIES: usize = 3;

/// What Kubernetes' authority is called; a foreign one pretends to be it.
const AUTHORITY: &str = "kubernetes";

/// The control plane that all tests of this program share, started by the first that asks.
///
/// # Panics
/// Where it did not start, for each that asks; and where it has died since.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();
    let start = || assets().and_then(|programs| Cluster::start(&programs, &Settings::default()));
    match SHARED.get_or_init(|| start().map_err(|error| format!("{error:#}"))) {
        Ok(cluster) => {
            cluster.assert_well();
            cluster
        }
        Err(error) => panic!("{error}"),
    }
}

/// The folder of the programs, as the environment names it.
///
/// # Errors
/// Where it names none.
pub fn assets() -> Result<PathBuf> {
    let named = std::env::var_os(ASSETS).filter(|named| !named.is_empty());
    named.map(PathBuf::from).with_context(|| format!("{ASSETS} is not set: run cargo xtask test"))
}

/// A control plane, until this is dropped or its process ends.
pub struct Cluster {
    folder: PathBuf,
    kubectl: PathBuf,
    server: SocketAddr,
    authority: Authority,
    stranger: Authority,
    admin: PathBuf,
    kubeconfigs: AtomicU32,
    parts: Mutex<Parts>,
}

struct Parts {
    /// In the order of [`Part::ALL`].
    components: Vec<Component>,
    guard: Guard,
}

impl Cluster {
    /// Starts the programs of this folder, and waits until pods can be made.
    ///
    /// # Errors
    /// Where a program dies, or does not get ready: with the end of its log.
    pub fn start(programs: &Path, settings: &Settings) -> Result<Self> {
        let mut tried = 1;
        loop {
            match Self::try_to_start(programs, settings) {
                Err(error) if tried < TRIES && is_about_a_port(&error) => tried += 1,
                result => return result.context("the control plane does not start"),
            }
        }
    }

    fn try_to_start(programs: &Path, settings: &Settings) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("copepod-cluster-").tempdir()?;
        let guard = Guard::of(folder.path())?;
        // From here on, the guard removes it.
        let folder = folder.keep();
        // Free now; the API server fails, and says so, where someone takes it in between.
        let server = TcpListener::bind((settings.address, 0))?.local_addr()?;
        let component = |part: Part| {
            let arguments = settings.arguments(part, &folder, server);
            Component::new(programs.join(part.program()), arguments, &folder)
        };
        let mut cluster = Self {
            kubectl: programs.join("kubectl"),
            server,
            authority: Authority::new(AUTHORITY)?,
            stranger: Authority::new(AUTHORITY)?,
            admin: PathBuf::new(),
            kubeconfigs: AtomicU32::new(0),
            parts: Mutex::new(Parts { components: Part::ALL.map(component).into(), guard }),
            folder,
        };
        cluster.write_files(settings)?;
        cluster.admin = cluster.kubeconfig(&Identity::admin())?;

        cluster.start_part(Part::Etcd)?;
        let socket = cluster.folder.join("etcd.sock");
        cluster.wait_until("etcd listens", || UnixStream::connect(&socket).is_ok())?;
        cluster.start_part(Part::ApiServer)?;
        let ready = || {
            cluster.kubectl(&["get", "--raw", "/readyz", "--request-timeout", "5s"]).code == Some(0)
        };
        cluster.wait_until("kube-apiserver is ready", ready)?;
        cluster.start_part(Part::ControllerManager)?;
        cluster.start_part(Part::Scheduler)?;
        // Without it no pod is let in. It is the controller manager's work.
        let account = || cluster.kubectl(&["get", "serviceaccount", "default"]).code == Some(0);
        cluster.wait_until("there is a service account", account)?;
        Ok(cluster)
    }

    fn write_files(&self, settings: &Settings) -> Result<()> {
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let mut addresses = settings.service_addresses();
        addresses.extend([settings.address, IpAddr::from([127, 0, 0, 1])]);
        let masters = Identity::admin().groups;
        let front_proxy = Authority::new("front-proxy")?;
        self.write("ca.crt", self.authority.certificate())?;
        self.write("ca.key", self.authority.key())?;
        self.write("front-proxy-ca.crt", front_proxy.certificate())?;
        for (name, certified) in [
            ("server", self.authority.server(&names, &addresses)?),
            ("kubelet-client", self.authority.client("kube-apiserver", &masters, false)?),
            ("front-proxy-client", front_proxy.client("front-proxy-client", &[], false)?),
            // The key signs tokens, and the certificate stands for its public half.
            ("service-accounts", self.authority.client("service-accounts", &[], false)?),
        ] {
            self.write(&format!("{name}.crt"), certified.certificate)?;
            self.write(&format!("{name}.key"), certified.key)?;
        }
        for (name, user) in [
            ("controller-manager", "system:kube-controller-manager"),
            ("scheduler", "system:kube-scheduler"),
        ] {
            let certified = self.certified(&Identity::user(user, &[]))?;
            let user = identity::by_certificate(&certified);
            self.write(&format!("{name}.kubeconfig"), self.kubeconfig_of(&user).to_string())?;
        }
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": [{ "level": "Metadata" }],
        });
        self.write("audit-policy.json", policy.to_string())?;
        Ok(())
    }

    /// Waits for `condition` while all that was started lives.
    fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
        let begin = Instant::now();
        while !condition() {
            self.check()?;
            if begin.elapsed() > PATIENCE {
                let words = |it: &Component| format!("{}:\n{}", it.name(), it.last_words());
                let all: Vec<String> = self.parts().components.iter().map(words).collect();
                bail!("waited {} s until {what}\n{}", PATIENCE.as_secs(), all.join("\n"));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a part that does not run: after [`Self::kill`], with all that it had on disk.
    ///
    /// # Errors
    /// Where the program cannot be started.
    pub fn start_part(&self, part: Part) -> Result<()> {
        let mut parts = self.parts();
        let Parts { components, guard } = &mut *parts;
        components[part as usize].start(guard)
    }

    /// Kills a part, as a crash would.
    pub fn kill(&self, part: Part) {
        self.parts().components[part as usize].kill();
    }

    /// An error where a part died by itself: with its last words.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        match self.parts().components.iter_mut().find_map(Component::died) {
            Some(death) => bail!("{death}"),
            None => Ok(()),
        }
    }

    /// The same for a test.
    ///
    /// # Panics
    /// Where a part died by itself.
    pub fn assert_well(&self) {
        if let Err(death) = self.check() {
            panic!("{death}");
        }
    }

    /// The processes of all parts that run.
    pub fn pids(&self) -> Vec<u32> {
        self.parts().components.iter().filter_map(Component::pid).collect()
    }

    /// Where all of it lies. A test's own files may lie there too.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The API server's URL.
    pub fn server(&self) -> String {
        format!("https://{}", self.server)
    }

    /// The certificate that signed those of the API server, of users and of nodes.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The file of [`Identity::admin`]'s kubeconfig.
    pub fn admin(&self) -> &Path {
        &self.admin
    }

    /// A new file with the kubeconfig of a user, who gets a new certificate.
    ///
    /// # Errors
    /// Where the file cannot be written, or the user has too many groups.
    pub fn kubeconfig(&self, of: &Identity) -> Result<PathBuf> {
        self.write_kubeconfig(&identity::by_certificate(&self.certified(of)?))
    }

    /// The same of a user who has a bearer token, such as a service account's or a bootstrap token.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn kubeconfig_with_token(&self, token: &str) -> Result<PathBuf> {
        self.write_kubeconfig(&json!({ "token": token }))
    }

    /// Lets nodes join by the bootstrap token of the kubeconfig in this new file, as kubeadm does: who has it gets a certificate
    /// for a node's agent, and such an agent its next one.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn bootstrap_kubeconfig(&self) -> Result<PathBuf> {
        self.apply(&joining::objects());
        self.kubeconfig_with_token(&joining::token())
    }

    /// A CertificateSigningRequest, called `foreign`, for a serving certificate of this user as a node, for these names.
    ///
    /// # Panics
    /// Where no such request can be made.
    pub fn signing_request(&self, user: &str, names: &[&str]) -> Value {
        let request = authority::request(user, "system:nodes", names).expect("a request");
        json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": { "name": "foreign" },
            "spec": {
                "signerName": "kubernetes.io/kubelet-serving",
                "usages": ["digital signature", "server auth"],
                "request": base64::prelude::BASE64_STANDARD.encode(request),
            },
        })
    }

    fn write_kubeconfig(&self, user: &Value) -> Result<PathBuf> {
        let number = self.kubeconfigs.fetch_add(1, Ordering::Relaxed);
        self.write(&format!("{number}.kubeconfig"), self.kubeconfig_of(user).to_string())
    }

    fn kubeconfig_of(&self, user: &Value) -> Value {
        identity::kubeconfig(&self.server(), self.authority.certificate(), user)
    }

    fn certified(&self, of: &Identity) -> Result<Certified> {
        let authority = if of.foreign { &self.stranger } else { &self.authority };
        authority.client(&of.user, &of.groups, of.expired)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let file = self.folder.join(name);
        std::fs::write(&file, content)
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// `kubectl <arguments>` as the admin.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn kubectl(&self, arguments: &[&str]) -> Ended {
        self.kubectl_as(&self.admin, arguments)
    }

    /// `kubectl <arguments>` with this kubeconfig.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Ended {
        self.kubectl_command(kubeconfig, arguments).output().expect("kubectl starts").into()
    }

    /// `kubectl <arguments>` as the admin, which must succeed; its standard output.
    ///
    /// # Panics
    /// Where it fails.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.kubectl(arguments);
        assert_eq!(ended.code, Some(0), "kubectl {arguments:?}: {}{}", ended.stdout, ended.stderr);
        ended.stdout
    }

    /// Makes a namespace, and waits until pods can be made in it.
    ///
    /// # Panics
    /// Where there is one of that name.
    pub fn namespace(&self, name: &str) {
        self.ok(&["create", "namespace", name]);
        let account = ["wait", "--for=create", "serviceaccount/default", "--timeout=60s"];
        self.ok(&[account.as_slice(), &["--namespace", name]].concat());
    }

    /// `kubectl apply` of these objects as the admin.
    ///
    /// # Panics
    /// Where it fails.
    pub fn apply(&self, objects: &[Value]) {
        let ended = self.apply_as(&self.admin, objects);
        assert_eq!(ended.code, Some(0), "kubectl apply: {}{}", ended.stdout, ended.stderr);
    }

    /// `kubectl apply` of these objects with this kubeconfig.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn apply_as(&self, kubeconfig: &Path, objects: &[Value]) -> Ended {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let mut child = self
            .kubectl_command(kubeconfig, &["apply", "--filename", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut input = child.stdin.take().expect("it is piped");
        // Where it does not read to the end, it says why.
        let _ = input.write_all(list.to_string().as_bytes());
        drop(input);
        child.wait_with_output().expect("it is ours").into()
    }

    /// `kubectl <arguments>` with this kubeconfig, to be run.
    pub fn kubectl_command(&self, kubeconfig: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(arguments)
            // Neither a person's settings nor their cache.
            .env_clear()
            .env("HOME", &self.folder)
            .stdin(Stdio::null());
        command
    }

    /// All requests so far that are over.
    pub fn audit(&self) -> Vec<Event> {
        audit::read(&self.folder.join("audit.log"))
    }

    /// The requests that were refused (403) to users whose names begin so.
    pub fn denials(&self, user_prefix: &str) -> Vec<Event> {
        let refused = |it: &Event| it.code() == 403 && it.user().starts_with(user_prefix);
        self.audit().into_iter().filter(refused).collect()
    }
}

/// Whether a part died because its port was somebody else's in the meantime.
fn is_about_a_port(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("address already in use")
}
