//! `copepod run`: from a file to running pods, and on to their end.
//!
//! Start at [`run`]. Here: reading the file, the pod's admission with lines, asking the agent. What follows, in the
//! foreground, is [`crate::follow`]. Absent: anything that makes a pod run.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};

use copepod_agent::api::{AcceptedPod, Call, PodName, Publish, Reply, RunPods};
use copepod_node::annotations::NodeCeilings;
use copepod_node::life::PodLife;
use copepod_node::{fields, validate};
use copepod_shim::kind;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::args::Run;
use crate::client::{Client, ClientError, after_break, odd};
use crate::docker_config;
use crate::exit::{BAD_INPUT, NEVER};
use crate::follow::{self, Followed};
use crate::images;
use crate::manifest::{self, Manifest};
use crate::out::Out;
use crate::publish;
use crate::references::Held;
use crate::wasm_pod::{self, WasmPod};

/// Why nothing was started: the exit code, and the lines to tell.
#[derive(Debug)]
pub(crate) struct Refused {
    code: u8,
    lines: Vec<String>,
}

impl Refused {
    fn bad(line: impl Into<String>) -> Self {
        Self { code: BAD_INPUT, lines: vec![line.into()] }
    }

    fn never(line: impl Into<String>) -> Self {
        Self { code: NEVER, lines: vec![line.into()] }
    }
}

impl From<ClientError> for Refused {
    fn from(error: ClientError) -> Self {
        Self::never(error.to_string())
    }
}

/// Runs the command to its exit code.
pub(crate) async fn run(out: Out, data: &Path, args: Run, verbose: u8) -> u8 {
    let refuse = |refused: Refused| {
        refused.lines.iter().for_each(|line| out.error(line));
        refused.code
    };
    let asked = match prepare(out, data, &args) {
        Ok(asked) => asked,
        Err(refused) => return refuse(refused),
    };
    if asked.pods.is_empty() {
        out.note("there is no pod in this manifest: nothing to run");
        return 0;
    }
    let pods: Vec<Pod> =
        asked.pods.iter().filter_map(|pod| serde_json::from_str(pod).ok()).collect();
    let mut client = Client::new(data.to_owned());
    let accepted = match ask(&mut client, asked).await {
        Ok(accepted) => accepted,
        Err(refused) => return refuse(refused),
    };
    for pod in &accepted {
        let PodName { namespace, name } = &pod.pod;
        for (address, port) in &pod.published {
            out.note(&format!("{address} -> {namespace}/{name}:{port}"));
        }
    }
    if args.detach {
        for AcceptedPod { pod: PodName { namespace, name }, .. } in &accepted {
            if out.line(&format!("{namespace}/{name}")).is_err() {
                break;
            }
        }
        return 0;
    }
    let followed = accepted.into_iter().zip(pods).map(|(pod, spec)| Followed::new(pod, spec));
    follow::follow(out, client, followed.collect(), verbose).await
}

/// All that is decided before the agent is asked.
fn prepare(out: Out, data: &Path, args: &Run) -> Result<RunPods, Refused> {
    let (manifest, pods) = if args.file.ends_with(".wasm") || is_wasm(&args.file) {
        let pod = wasm(data, args)?;
        admit_wasm(&pod)?;
        (Manifest::default(), vec![pod])
    } else {
        no_wasm_options(args)?;
        let manifest = read(args)?;
        manifest.notes.iter().for_each(|note| out.note(note));
        admit(&manifest)?;
        let pods = manifest.pods.iter().map(|pod| pod.pod.clone()).collect();
        (manifest, pods)
    };
    let borrowed: Vec<_> = pods.iter().collect();
    let publish = publish::resolve(&args.publish, &borrowed).map_err(Refused::bad)?;
    let images: Vec<String> = pods
        .iter()
        .filter_map(|pod| pod.spec.as_ref())
        .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
        .filter_map(|container| container.image.clone())
        .collect();
    let config = docker_config::path().and_then(|path| docker_config::text(&path).ok().flatten());
    let credentials = config.map(|config| docker_config::logins_for(&config, &images));
    Ok(RunPods {
        pods: pods.iter().map(json).collect(),
        config_maps: manifest.config_maps.iter().map(json).collect(),
        secrets: manifest.secrets.iter().map(json).collect(),
        publish,
        credentials: credentials.unwrap_or_default(),
    })
}

fn json<T: serde::Serialize>(object: &T) -> String {
    serde_json::to_string(object).expect("Kubernetes' types have string keys and finite numbers")
}

/// Asks the agent, and finds out what it did where it died over the question.
async fn ask(client: &mut Client, asked: RunPods) -> Result<Vec<AcceptedPod>, Refused> {
    let names: Vec<_> = asked.pods.iter().filter_map(|pod| name_of(pod)).collect();
    let publish = asked.publish.clone();
    let call = Call::Run(Box::new(asked));
    let first = client.connect().await?.ask(&call).await;
    let answer = match first {
        Err(error) if error.is_broken() => {
            after_break().await;
            // Accepted pods are on the agent's disk before it says so.
            let all = client.connect().await?.ask(&Call::List).await?;
            match accepted_already(&all, &names, &publish) {
                Some(accepted) => return Ok(accepted),
                None => client.connect().await?.ask(&call).await,
            }
        }
        answered => answered,
    };
    match answer? {
        Reply::Accepted(accepted) => Ok(accepted),
        Reply::Refused(lines) => Err(Refused { code: NEVER, lines }),
        other => Err(odd(&other).into()),
    }
}

fn name_of(pod: &str) -> Option<PodName> {
    let metadata = serde_json::from_str::<Pod>(pod).ok()?.metadata;
    Some(PodName { namespace: metadata.namespace?, name: metadata.name? })
}

/// The pods called `names`, where all of them are there.
fn accepted_already(
    reply: &Reply,
    names: &[PodName],
    publish: &[Publish],
) -> Option<Vec<AcceptedPod>> {
    let Reply::Pods(views) = reply else { return None };
    let pods: Vec<Pod> =
        views.iter().filter_map(|view| serde_json::from_str(&view.pod).ok()).collect();
    let found = names.iter().enumerate().map(|(index, name)| {
        let pod = pods.iter().find(|pod| {
            pod.metadata.name.as_ref() == Some(&name.name)
                && pod.metadata.namespace.as_ref() == Some(&name.namespace)
        })?;
        let published = publish
            .iter()
            .filter(|it| it.pod == index && it.host_port != 0)
            .map(|it| ((it.host_ip, it.host_port).into(), it.pod_port))
            .collect();
        Some(AcceptedPod { uid: pod.metadata.uid.clone()?, pod: name.clone(), published })
    });
    found.collect()
}

/// Reads the manifest of the command line.
fn read(args: &Run) -> Result<Manifest, Refused> {
    let (name, text) = text_of(&args.file)?;
    let mut manifest = Manifest::default();
    let mut options = manifest::Options {
        namespace: args.namespace.as_deref().unwrap_or("default"),
        forced: args.namespace.is_some(),
        suffix: &mut random_suffix,
    };
    manifest::read(&name, &text, &mut options, &mut manifest)
        .map_err(|bad| Refused::bad(bad.to_string()))?;
    Ok(manifest)
}

fn text_of(file: &str) -> Result<(String, String), Refused> {
    let limit = manifest::MAX_BYTES;
    let mut bytes = Vec::new();
    let (name, read) = if file == "-" {
        ("stdin", std::io::stdin().lock().take(limit + 1).read_to_end(&mut bytes))
    } else {
        let read =
            std::fs::File::open(file).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
        (file, read)
    };
    read.map_err(|error| Refused::bad(format!("cannot read {name}: {error}")))?;
    if bytes.len() as u64 > limit {
        let most = limit >> 20;
        return Err(Refused::bad(format!(
            "{name}: this manifest is larger than {most} MiB, the most that is read"
        )));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        Refused::bad(format!("{name}:{line}: this is not text in UTF-8"))
    })?;
    Ok((name.to_owned(), text))
}

/// Five characters as the API server completes a generateName.
fn random_suffix() -> String {
    // Without vowels and look-alikes, so that no words arise.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    // RandomState's keys come from the kernel, and differ with every one that is made.
    let mut random = RandomState::new().build_hasher().finish();
    let mut next = || {
        let letter = ALPHABET[(random % ALPHABET.len() as u64) as usize];
        random /= ALPHABET.len() as u64;
        char::from(letter)
    };
    (0..5).map(|_| next()).collect()
}

/// Refuses what the pods' core would refuse, with the line: 2 where a pod is wrong, 125 where it cannot be honoured here.
fn admit(manifest: &Manifest) -> Result<(), Refused> {
    let held = Held::new(&manifest.config_maps, &manifest.secrets);
    let mut lines = Vec::new();
    let mut is_wrong = false;
    for pod in &manifest.pods {
        let (invalid, mut refusals) = refusals(&pod.pod);
        refusals.extend(held.missing(&pod.pod));
        is_wrong |= invalid;
        let mut told: Vec<_> = refusals
            .iter()
            .map(|refusal| (pod.line_of(&refusal.field), pod.path_of(&refusal.field), refusal))
            .collect();
        // In the order of the text; of one field the first word suffices.
        told.sort_by_key(|(place, ..)| place.line);
        told.dedup_by(|(_, second, _), (_, first, _)| first == second);
        let told = told.into_iter();
        lines.extend(told.map(|(place, field, it)| format!("{place}: {field}: {}", it.message)));
    }
    match lines.is_empty() {
        true => Ok(()),
        false => Err(Refused { code: if is_wrong { BAD_INPUT } else { NEVER }, lines }),
    }
}

fn admit_wasm(pod: &Pod) -> Result<(), Refused> {
    let (_, refusals) = refusals(pod);
    match refusals.is_empty() {
        true => Ok(()),
        false => Err(Refused {
            code: BAD_INPUT,
            lines: refusals.iter().map(ToString::to_string).collect(),
        }),
    }
}

/// What is wrong with `pod`, and whether any of it is more than a field that is not honoured here.
fn refusals(pod: &Pod) -> (bool, Vec<copepod_node::Refusal>) {
    let mut pod = pod.clone();
    // The agent gives the real one; the core only wants that there is one.
    pod.metadata.uid = Some("00000000-0000-0000-0000-000000000000".into());
    let mut defaulted = pod.clone();
    copepod_node::defaults::apply(&mut defaulted);
    let refused = fields::check(&defaulted);
    let is_invalid = !validate::check(&defaulted).is_empty();
    match PodLife::admit(pod, &NodeCeilings::default(), Timestamp::now()) {
        Ok(_) => (false, Vec::new()),
        Err(all) => (is_invalid || all.len() > refused.len(), all),
    }
}

/// Options that mean nothing with a manifest are refused, not ignored.
fn no_wasm_options(args: &Run) -> Result<(), Refused> {
    let set = [
        ("ARGS", !args.args.is_empty()),
        ("--name", args.name.is_some()),
        ("--env", !args.env.is_empty()),
        ("--volume", !args.volume.is_empty()),
        ("--memory", args.memory.is_some()),
        ("--cpu", args.cpu.is_some()),
    ];
    match set.iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(Refused::bad(format!(
            "{name} goes with a .wasm file; {} is read as a manifest, which says it itself",
            args.file
        ))),
        None => Ok(()),
    }
}

/// Whether the file starts as every wasm file does.
fn is_wasm(file: &str) -> bool {
    let mut head = [0; 4];
    let read = std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head == *b"\0asm"
}

/// The pod of a wasm file, which is loaded into the image store.
fn wasm(data: &Path, args: &Run) -> Result<Pod, Refused> {
    let file = &args.file;
    let bytes = std::fs::read(file)
        .map_err(|error| Refused::bad(format!("cannot read {file}: {error}")))?;
    let inspection =
        kind::inspect(&bytes).map_err(|why| Refused::never(format!("{file}: {why}")))?;
    drop(bytes);
    let name = args.name.clone().unwrap_or_else(|| wasm_pod::name_of(file));
    if !manifest::is_label(&name) {
        return Err(Refused::bad(format!(
            "--name {name}: lower case letters, digits and - only, a letter or digit at both ends, at most 63"
        )));
    }
    let namespace = args.namespace.clone().unwrap_or_else(|| "default".into());
    if !manifest::is_label(&namespace) {
        return Err(Refused::bad(format!("-n {namespace}: this is no namespace's name")));
    }
    let volumes = args.volume.iter().map(|volume| {
        let host = absolute(&volume.host)?;
        Ok((host, volume.guest.clone(), volume.read_only))
    });
    let volumes = volumes.collect::<Result<Vec<_>, Refused>>()?;
    let env = args.env.iter().map(|variable| match variable.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => match std::env::var(variable) {
            Ok(value) => Ok((variable.clone(), value)),
            Err(_) => Err(Refused::bad(format!("--env {variable}: it is not set here"))),
        },
    });
    let env = env.collect::<Result<Vec<_>, Refused>>()?;
    let image = images::load_to_run(data, Path::new(file), &name).map_err(Refused::never)?;
    let pod = WasmPod {
        name,
        namespace,
        image,
        kind: inspection.kind,
        args: args.args.clone(),
        env,
        volumes,
        ports: args.publish.iter().map(|publish| publish.port).collect(),
        memory: args.memory.as_ref().map(|it| it.0.clone()),
        cpu: args.cpu.as_ref().map(|it| it.0.clone()),
    };
    Ok(pod.into_pod())
}

fn absolute(path: &Path) -> Result<PathBuf, Refused> {
    path.canonicalize()
        .map_err(|error| Refused::bad(format!("--volume {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> Run {
        let words = ["copepod", "run"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).expect("it parses").command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_option_of_wasm_files_is_not_ignored_with_a_manifest() {
        for line in ["pod.yaml arg", "pod.yaml --env A=1", "- --memory 1Mi", "pod.yaml --name a"] {
            let refused = no_wasm_options(&args(line)).expect_err(line);
            assert_eq!(refused.code, BAD_INPUT);
        }
        assert!(no_wasm_options(&args("pod.yaml --publish 80")).is_ok());
    }

    #[test]
    fn a_generated_suffix_is_five_characters_of_a_name() {
        let suffix = random_suffix();

        assert_eq!(suffix.len(), 5);
        assert!(manifest::is_label(&suffix), "{suffix}");
    }

    #[test]
    fn pods_that_an_agent_accepted_before_it_died_are_found_again() {
        let view = |name: &str| copepod_agent::api::PodView {
            pod: format!(
                r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","namespace":"default","uid":"u-{name}"}}}}"#
            ),
            events: Vec::new(),
            over: false,
            never: None,
            progress: None,
        };
        let name = |name: &str| PodName { namespace: "default".into(), name: name.into() };
        let reply = Reply::Pods(vec![view("b"), view("a")]);

        let both = accepted_already(&reply, &[name("a"), name("b")], &[]).expect("both are there");
        let uids: Vec<_> = both.iter().map(|it| it.uid.as_str()).collect();
        assert_eq!(uids, ["u-a", "u-b"]);
        assert_eq!(accepted_already(&reply, &[name("a"), name("c")], &[]), None);
    }
}
