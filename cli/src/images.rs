//! `copepod image`: the commands on the local image store and on registries.
//!
//! They work on the store's files beside a running agent: every file in it appears whole, and its locks hold between processes.
//! Absent: how images come and lie (`copepod-image`).

use std::io::{self, Read};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use copepod_agent::with_causes;
use copepod_image::{Credentials, Images, ImagesConfig, Progress, PullPolicy};
use copepod_shim::kind::{self, Inspection};
use jiff::Timestamp;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::args::Image;
use crate::docker_config;
use crate::exit::{BAD_INPUT, NEVER};
use crate::needs;
use crate::out::{Out, harmless, table};
use crate::pull_settings::pull_rules;
use crate::show::age;

/// The registry part of images that `copepod run app.wasm` makes: no such host exists, so that nothing is ever asked there.
const LOCAL: &str = "copepod.invalid";

/// Between two lines about the same pull or push.
const PROGRESS: Duration = Duration::from_secs(1);

/// Why a command failed: its exit code and what to tell.
type Failure = (u8, String);

/// Runs the command to its exit code.
pub(crate) async fn image(out: Out, data: &Path, command: Image) -> io::Result<u8> {
    let done = match command {
        Image::Load { file, tag } => load(out, data, &file, &tag),
        Image::Login { registry, username, password, password_stdin } => {
            login(out, &registry, &username, password, password_stdin)
        }
        Image::Pull { reference } => pull(out, data, &reference).await,
        Image::Push { reference } => push(out, data, &reference).await,
        Image::Ls { json } => list(out, data, json),
        Image::Inspect { what, json } => inspect(out, data, &what, json),
        Image::Rm { references } => remove(out, data, &references),
    };
    match done {
        Ok(printed) => printed.map(|()| 0),
        Err((code, why)) => {
            out.error(&why);
            Ok(code)
        }
    }
}

/// Loads `file` for `copepod run`: the image's name, which follows from its bytes.
pub(crate) fn load_to_run(data: &Path, file: &Path, name: &str) -> Result<String, String> {
    let bytes = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let digest = Sha256::digest(&bytes);
    // 48 bits tell the files of one name on one machine apart.
    let tag: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    let reference = format!("{LOCAL}/{name}:{tag}");
    let images = open(data).map_err(|(_, why)| why)?;
    images.load(file, &reference).map_err(|error| with_causes(&error))?;
    Ok(reference)
}

fn open(data: &Path) -> Result<Images, Failure> {
    copepod_image::install_tls_provider();
    let pull = pull_rules(&|name| std::env::var(name).ok()).map_err(|why| (BAD_INPUT, why))?;
    let config = ImagesConfig { pull, ..ImagesConfig::default() };
    Images::open(&data.join("images"), &data.join("code"), config)
        .map_err(|error| (NEVER, with_causes(&error)))
}

fn failed(error: &dyn std::error::Error) -> Failure {
    (1, harmless(&with_causes(error)))
}

fn load(out: Out, data: &Path, file: &Path, tag: &str) -> Result<io::Result<()>, Failure> {
    let image = open(data)?.load(file, tag).map_err(|error| failed(&error))?;
    Ok(out.line(&format!("{} {}", image.reference, image.digest)))
}

fn login(
    out: Out,
    registry: &str,
    user: &str,
    password: Option<String>,
    from_stdin: bool,
) -> Result<io::Result<()>, Failure> {
    let password =
        match (password, from_stdin) {
            (Some(password), _) => password,
            (None, true) => {
                let mut text = String::new();
                // A token has some thousand bytes at most.
                io::stdin().lock().take(1 << 20).read_to_string(&mut text).map_err(|error| {
                    (1, format!("cannot read the password from stdin: {error}"))
                })?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            (None, false) => {
                return Err((BAD_INPUT, "give the password by --password-stdin (or -p)".into()));
            }
        };
    if password.is_empty() || user.is_empty() || user.contains(':') {
        let why = "the user has no : in it, and neither user nor password is empty";
        return Err((BAD_INPUT, why.into()));
    }
    if registry.contains('/') {
        return Err((
            BAD_INPUT,
            format!("{registry:?} is no registry: write its host, as ghcr.io"),
        ));
    }
    let path = docker_config::path()
        .ok_or_else(|| (1, "neither DOCKER_CONFIG nor HOME is set".to_owned()))?;
    let shown = path.display();
    let old = docker_config::text(&path).map_err(|e| (1, format!("cannot read {shown}: {e}")))?;
    let new = docker_config::with_login(old.as_deref(), registry, user, &password)
        .map_err(|why| (1, format!("{shown} is left as it is: {why}")))?;
    docker_config::replace(&path, &new).map_err(|e| (1, format!("cannot write {shown}: {e}")))?;
    Ok(out.line(&format!("the login for {registry} is in {shown}; the next pull or push uses it")))
}

fn credentials() -> Result<Credentials, Failure> {
    match docker_config::path() {
        Some(path) => Credentials::from_docker_config(&path).map_err(|error| failed(&error)),
        None => Ok(Credentials::anonymous()),
    }
}

async fn pull(out: Out, data: &Path, reference: &str) -> Result<io::Result<()>, Failure> {
    let images = open(data)?;
    let progress = Teller::new(out, reference);
    let tell = |step| progress.tell(step);
    let image = images
        .resolve(reference, PullPolicy::Always, &credentials()?, &tell)
        .await
        .map_err(|error| failed(&error))?;
    let news = if image.pulled { "pulled" } else { "is up to date" };
    Ok(out.line(&format!("{} {news}: {}", image.reference, image.digest)))
}

async fn push(out: Out, data: &Path, reference: &str) -> Result<io::Result<()>, Failure> {
    let images = open(data)?;
    let progress = Teller::new(out, reference);
    let tell = |step| progress.tell(step);
    let digest =
        images.push(reference, &credentials()?, &tell).await.map_err(|error| failed(&error))?;
    Ok(out.line(&format!("{reference} pushed: {digest}")))
}

/// Tells progress on stderr, at most once a second.
struct Teller<'a> {
    out: Out,
    reference: &'a str,
    last: Mutex<Instant>,
}

impl<'a> Teller<'a> {
    fn new(out: Out, reference: &'a str) -> Self {
        Self { out, reference, last: Mutex::new(Instant::now()) }
    }

    fn tell(&self, progress: Progress) {
        let text = match progress {
            Progress::Resolving => return,
            Progress::Pulling { done, total } => format!("{} of {}", size(done), size(total)),
            Progress::Unpacking => "unpacking".into(),
            Progress::Compiling { .. } => "compiling".into(),
        };
        // A poisoned clock is still a clock.
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.elapsed() >= PROGRESS {
            *last = Instant::now();
            self.out.note(&format!("{}: {text}", self.reference));
        }
    }
}

/// Bytes for a person, in the units of memory.
fn size(bytes: u64) -> String {
    match bytes {
        b if b < 10 << 10 => format!("{b} B"),
        b if b < 10 << 20 => format!("{} KiB", b >> 10),
        b => format!("{} MiB", b >> 20),
    }
}

fn list(out: Out, data: &Path, as_json: bool) -> Result<io::Result<()>, Failure> {
    // Nothing is made where there is nothing to list.
    let all = match data.join("images").is_dir() {
        true => open(data)?.list().map_err(|error| failed(&error))?,
        false => Vec::new(),
    };
    if as_json {
        return Ok(out.line(&json!(all).to_string()));
    }
    let now = Timestamp::now();
    let rows: Vec<_> = all
        .iter()
        .map(|image| {
            let used = Timestamp::try_from(image.used).unwrap_or(now);
            vec![
                harmless(&image.name),
                image.digest.to_string().chars().take("sha256:".len() + 12).collect(),
                size(image.bytes),
                format!("{} ago", age::since(used, now)),
            ]
        })
        .collect();
    Ok(out.write(table(&["NAME", "DIGEST", "SIZE", "USED"], &rows).as_bytes()))
}

fn inspect(out: Out, data: &Path, what: &str, as_json: bool) -> Result<io::Result<()>, Failure> {
    let path = Path::new(what);
    if path.is_file() {
        let bytes = std::fs::read(path).map_err(|e| (1, format!("cannot read {what}: {e}")))?;
        let inspection =
            kind::inspect(&bytes).map_err(|why| (1, harmless(&format!("{what}: {why}"))))?;
        let told = match as_json {
            true => json!({"file": what, "bytes": bytes.len(), "inspection": inspection,
                "missing": needs::needs(&inspection).missing})
            .to_string(),
            false => {
                let head = format!("File:     {what}\nSize:     {}\n", size(bytes.len() as u64));
                head + &in_words(&inspection)
            }
        };
        return Ok(out.line(told.trim_end()));
    }
    if !data.join("images").is_dir() {
        let why = format!("{what} is neither a file nor an image of the local store");
        return Err((1, why));
    }
    let it = open(data)?.inspect(what).map_err(|error| failed(&error))?;
    if as_json {
        return Ok(out.line(&json!(it).to_string()));
    }
    let list = |words: &[String]| match words.is_empty() {
        true => "<none>".to_owned(),
        false => words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" "),
    };
    let env: Vec<_> = it.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut text = format!(
        "Name:     {}\nDigest:   {}\nWasm:     {} ({})\nCommand:  {}\n",
        it.name,
        it.digest,
        it.wasm,
        size(it.wasm_bytes),
        list(&[it.entrypoint.as_slice(), it.cmd.as_slice()].concat()),
    );
    text += &format!("Env:      {}\n", list(&env));
    if let Some(bytes) = it.root_bytes {
        text += &format!("Files:    {}, read-only at /\n", size(bytes));
    }
    text += &in_words(&it.inspection);
    Ok(out.line(harmless(&text).trim_end()))
}

/// Kind, needs, imports and exports.
fn in_words(inspection: &Inspection) -> String {
    let needs = needs::needs(inspection);
    let mut text = format!("Kind:     {}\n", needs::kind(inspection.kind));
    text += "Needs:\n";
    if needs.words.is_empty() {
        text += "  nothing of the pod but its log\n";
    }
    for word in &needs.words {
        text += &format!("  {word}\n");
    }
    if !needs.missing.is_empty() {
        text += "Missing (nothing here provides these, so it cannot start):\n";
        for import in &needs.missing {
            text += &format!("  {import}\n");
        }
    }
    for (label, names) in [("Imports", &inspection.imports), ("Exports", &inspection.exports)] {
        text += &format!("{label}:\n");
        for name in names {
            text += &format!("  {name}\n");
        }
    }
    harmless(&text)
}

fn remove(out: Out, data: &Path, references: &[String]) -> Result<io::Result<()>, Failure> {
    let images = open(data)?;
    let mut failures = Vec::new();
    for reference in references {
        match images.remove(reference) {
            Ok(()) => {
                if let Err(error) = out.line(&format!("{reference} removed")) {
                    return Ok(Err(error));
                }
            }
            Err(error) => failures.push(with_causes(&error)),
        }
    }
    match failures.is_empty() {
        true => Ok(Ok(())),
        false => Err((1, harmless(&failures.join("\n")))),
    }
}
