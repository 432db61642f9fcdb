//! Registries as companies have them: TLS with a certificate of their own authority, and logins.
//!
//! Beneath: [`tokens`], a login server. The registry is Debian's `docker-registry` on loopback. Absent: registries that lie, which are among the hostile cases.

mod tokens;

use std::path::PathBuf;

use copepod_tests::manifest::{With, container, pod, probe};
use copepod_tests::node::{Ended, Node};
use copepod_tests::registry::{Access, Logins, Registry};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use serde_json::json;

/// `me` with the password `hunter2`.
const LOGIN: &str = "me:$2y$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.";

/// An authority of a test's own, and the certificates that it signs.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("signed").pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate for a server of this name, and its key.
    fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }
}

/// A node, a registry, and a user whose configuration is in a folder of the test's.
struct Setting {
    node: Node,
    _registry: Registry,
    /// As images name it.
    host: String,
}

impl Setting {
    fn new(access: &Access) -> Self {
        let node = Node::new();
        let registry = Registry::start_with(&node.built().registry, access).expect("it starts");
        let host = format!("localhost:{}", registry.address().port());
        Self { node, _registry: registry, host }
    }

    /// Of TLS, with a certificate for `localhost` of this authority.
    fn tls(authority: &Authority, logins: Logins) -> Self {
        Self::new(&Access { tls: Some(authority.sign("localhost", |_| ())), logins })
    }

    /// The registry's folder in the user's configuration, made where it is not there.
    fn folder(&self) -> PathBuf {
        let folder = self.node.scratch().join("config/containers/certs.d").join(&self.host);
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    fn trust(&self, authority: &Authority) {
        std::fs::write(self.folder().join("ca.crt"), &authority.certificate).expect("a file");
    }

    /// A command of this user's.
    fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with(arguments, &[])
    }

    fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
        let mut command = self.node.copepod(arguments);
        command.env("XDG_CONFIG_HOME", self.node.scratch().join("config"));
        command.env("DOCKER_CONFIG", self.node.scratch().join("docker"));
        command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
        command.envs(environment.iter().copied()).output().expect("it starts").into()
    }

    fn image(&self, guest: &str) -> String {
        format!("{}/{guest}:1", self.host)
    }

    /// Puts a guest into the registry, and takes it out of the node's own images.
    fn push(&self, guest: &str, environment: &[(&str, &str)]) {
        let image = self.image(guest);
        self.node.load_file(&self.node.built().guest(guest), &image);
        succeeds(&self.run_with(&["image", "push", &image], environment));
        self.node.ok(&["image", "rm", &image]);
    }

    fn log_in(&self, password: &str) {
        succeeds(&self.run(&["image", "login", &self.host, "-u", "me", "-p", password]));
    }

    fn pull(&self) -> Ended {
        self.run(&["image", "pull", &self.image("batch")])
    }
}

fn succeeds(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

fn fails(ended: &Ended, words: &[&str]) {
    assert_ne!(ended.code, Some(0), "{}", ended.stdout);
    for word in words {
        assert!(ended.stderr.contains(word), "no {word:?} in: {}", ended.stderr);
    }
}

#[test]
fn a_pod_s_image_comes_from_a_tls_registry_whose_authority_is_in_the_registry_s_folder() {
    let authority = Authority::new();
    let setting = Setting::tls(&authority, Logins::None);
    setting.trust(&authority);
    setting.push("probe", &[]);
    let asks = probe(&["print it ran"]).with("/image", json!(setting.image("probe")));
    let file = setting.node.write("run.yaml", pod("pulling", [asks]).to_string());

    let ended = setting.run(&["run", &file]);

    succeeds(&ended);
    assert!(ended.stdout.contains("it ran"), "{}", ended.stdout);
}

#[test]
fn an_authority_in_ssl_cert_file_is_one_of_the_system_s() {
    let authority = Authority::new();
    let setting = Setting::tls(&authority, Logins::None);
    // Without it a registry on loopback is asked by plain HTTP.
    setting.folder();
    let file = setting.node.write("authority.pem", &authority.certificate);
    setting.push("batch", &[("SSL_CERT_FILE", &file)]);

    let known =
        setting.run_with(&["image", "pull", &setting.image("batch")], &[("SSL_CERT_FILE", &file)]);
    setting.node.ok(&["image", "rm", &setting.image("batch")]);

    succeeds(&known);
    fails(&setting.pull(), &["no authority that is trusted here"]);
}

#[test]
fn a_certificate_that_cannot_be_trusted_is_refused_with_what_to_do() {
    let authority = Authority::new();
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
    };
    let early = |params: &mut CertificateParams| params.not_before = date_time_ymd(2999, 1, 1);
    let stranger = Authority::new();
    let table = [
        (stranger.sign("localhost", |_| ()), "ca.crt"),
        (authority.sign("registry.example", |_| ()), "is for another name"),
        (authority.sign("localhost", expired), "has expired"),
        (authority.sign("localhost", early), "not valid yet"),
    ];

    for (certificate, words) in table {
        let setting = Setting::new(&Access { tls: Some(certificate), ..Access::default() });
        setting.trust(&authority);

        fails(&setting.pull(), &[words, &setting.host]);
    }
}

#[test]
fn an_authority_of_one_registry_vouches_for_no_other() {
    let authority = Authority::new();
    let (one, other) =
        (Setting::tls(&authority, Logins::None), Setting::tls(&authority, Logins::None));
    one.trust(&authority);
    other.folder();
    one.push("batch", &[]);

    succeeds(&one.pull());
    fails(&other.pull(), &["no authority that is trusted here", &other.host]);
}

#[test]
fn a_tls_registry_on_loopback_without_a_folder_is_told_as_what_it_is() {
    let setting = Setting::tls(&Authority::new(), Logins::None);

    fails(&setting.pull(), &["speaks TLS", "certs.d", &setting.host]);
}

#[test]
fn plain_http_is_not_spoken_to_a_registry_that_is_not_on_loopback() {
    let node = Node::new();
    node.load(&["hello-http"]);
    node.start(&[pod("plain", [container("hello", "hello-http")])]);
    node.wait_ready("plain");
    let address = node.address("plain", 8080).to_string();

    let pulled = node.run(&["image", "pull", &format!("{address}/app:1")]);

    fails(&pulled, &["does not speak TLS", &address]);
}

#[test]
fn a_registry_with_logins_is_open_to_the_right_one_by_docker_s_file_and_by_a_pull_secret() {
    let authority = Authority::new();
    let setting = Setting::tls(&authority, Logins::Htpasswd(LOGIN));
    setting.trust(&authority);
    fails(&setting.pull(), &["asks for a login"]);
    setting.log_in("hunter3");
    fails(&setting.pull(), &["refuses", "login given"]);
    setting.log_in("hunter2");
    setting.push("batch", &[]);
    succeeds(&setting.pull());

    // Another user, who has no file: the pod brings the login.
    setting.node.ok(&["image", "rm", &setting.image("batch")]);
    std::fs::remove_dir_all(setting.node.scratch().join("docker")).expect("it was there");
    let config = json!({ "auths": { &setting.host: { "username": "me", "password": "hunter2" } } });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "registry" },
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": { ".dockerconfigjson": config.to_string() },
    });
    let batch = container("batch", "batch").with("/image", json!(setting.image("batch")));
    let asks = pod("asking", [batch.with("/args", json!(["100"]))])
        .with("/spec/imagePullSecrets", json!([{ "name": "registry" }]));
    let file = setting.node.write("run.yaml", format!("{secret}\n---\n{asks}"));

    let ended = setting.run(&["run", &file]);

    succeeds(&ended);
    assert!(ended.stdout.contains("25 primes below 100"), "{}", ended.stdout);
}

#[test]
fn a_registry_s_login_server_gives_a_token_for_the_login_that_may_be_sent_to_it() {
    let authority = Authority::new();
    let server = tokens::Server::start(&authority, "me", "hunter2");
    let logins = Logins::Token { realm: server.realm(), authority: authority.certificate.clone() };
    let setting = Setting::tls(&authority, logins);
    setting.trust(&authority);
    // Another port of the loopback may be another user's program.
    let allowed = [("COPEPOD_LOGIN_HOSTS", "localhost=localhost")];
    let image = setting.image("batch");
    let pull = || setting.run_with(&["image", "pull", &image], &allowed);

    fails(&pull(), &["refuses", "without a login"]);
    setting.log_in("hunter3");
    fails(&pull(), &["login server", "refuses the login"]);
    setting.log_in("hunter2");
    fails(&setting.pull(), &["wants its login to be sent", "COPEPOD_LOGIN_HOSTS"]);
    setting.push("batch", &allowed);

    succeeds(&pull());
}
