//! `copepod node`: its settings from flags, environment and file, in this order, and then `copepod-kubelet`.
//!
//! Absent: what a setting may be (`copepod_kubelet::settings`), and everything that a node does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use copepod_agent::with_causes;
use copepod_domain::explain::Thing;
use copepod_domain::nft::{self, Nft};
use copepod_kubelet::NodeSettings;
use copepod_kubelet::settings::{Given, KEYS, Key};

use crate::args::{Node, NodeAction};
use crate::data_dir::{Surroundings, data_dir, is_root};
use crate::exit;
use crate::manifest::closest;
use crate::manifest::tree::{self, Value, documents};
use crate::out::Out;
use crate::serve;

/// The field of the file that stands for `--data-dir`, which is no setting of the node's alone.
const DATA_DIR: &str = "dataDir";

/// Runs a node to its end; its exit code.
pub(crate) fn node(out: Out, asked: Option<&Path>, args: &Node) -> u8 {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let refused = |why: &str| {
        out.error(why);
        exit::BAD_INPUT
    };
    if !is_root() {
        return refused(
            "a node gives its pods addresses that the cluster reaches, which takes root: run copepod node as root",
        );
    }
    let file = match args.config.as_deref().map(File::read).transpose() {
        Ok(file) => file.unwrap_or_default(),
        Err(why) => return refused(&why),
    };
    let asked = asked.map(Path::to_owned).or_else(|| file.data_dir.clone());
    let data = data_dir(asked.as_deref(), &Surroundings::here());
    if args.explain {
        return explain(out, &data);
    }
    let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let given = |key| given(key, args, &variable, &file);
    let agent = match serve::settings(data.clone(), &variable) {
        Ok(agent) => agent,
        Err(why) => return refused(&why),
    };
    let done = match args.action {
        Some(NodeAction::Reset) => copepod_kubelet::reset(agent),
        None => match NodeSettings::parse(data, &host_name, given) {
            Ok(settings) => copepod_kubelet::run(settings, agent),
            Err(error) => return refused(&error.to_string()),
        },
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            out.error(&with_causes(&error));
            1
        }
    }
}

/// Prints what a node has on this machine, or would have; the exit code.
fn explain(out: Out, data: &Path) -> u8 {
    let nft = Nft::find(None);
    if nft.is_none() {
        out.warn(&format!("nft was not found, so its tables are not looked at; {}", nft::REMEDY));
    }
    let lines = |Thing { kind, name, present, purpose }: Thing| {
        let state = if present { "present" } else { "absent" };
        format!("{state:<7}  {kind:<8}  {name}\n{:19}{purpose}\n", "")
    };
    let things = copepod_domain::explain::explain(data, nft.as_ref());
    let told = things.map(|all| all.into_iter().map(lines).collect::<String>());
    match told.map(|text| out.write(text.as_bytes())) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            out.error(&format!("standard output: {error}"));
            1
        }
        Err(error) => {
            out.error(&with_causes(&error));
            1
        }
    }
}

/// A setting by flag, else by environment, else by file.
fn given(
    key: Key,
    args: &Node,
    variable: &dyn Fn(&str) -> Option<String>,
    file: &File,
) -> Option<Given> {
    let flags = of_flag(args, key.flag);
    if !flags.is_empty() {
        return Some(Given { by: format!("--{}", key.flag), texts: flags.to_owned() });
    }
    if let Some(text) = variable(key.variable) {
        return Some(Given { by: key.variable.to_owned(), texts: vec![text] });
    }
    file.fields.get(key.field).cloned()
}

/// What was given by a flag, as often as it was.
fn of_flag<'a>(args: &'a Node, flag: &str) -> &'a [String] {
    match flag {
        "kubeconfig" => &args.kubeconfig,
        "bootstrap-kubeconfig" => &args.bootstrap_kubeconfig,
        "node-name" => &args.node_name,
        "node-ip" => &args.node_ip,
        "pod-cidr" => &args.pod_cidr,
        "port" => &args.port,
        "client-ca-file" => &args.client_ca_file,
        "register-with-taints" => &args.register_with_taints,
        "node-labels" => &args.node_labels,
        "max-pods" => &args.max_pods,
        "masquerade" => &args.masquerade,
        "masquerade-exceptions" => &args.masquerade_exceptions,
        "routes" => &args.routes,
        "cluster-dns" => &args.cluster_dns,
        "cluster-domain" => &args.cluster_domain,
        "system-reserved" => &args.system_reserved,
        "allow-host-path" => &args.allow_host_path,
        "allow-host-network" => &args.allow_host_network,
        "eviction-hard" => &args.eviction_hard,
        "max-runner-age" => &args.max_runner_age,
        "node-os-label" => &args.node_os_label,
        _ => &[],
    }
}

/// A configuration file.
#[derive(Debug, Default)]
struct File {
    fields: BTreeMap<String, Given>,
    data_dir: Option<PathBuf>,
}

impl File {
    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("--config {}: {error}", path.display()))?;
        Self::parse(&path.display().to_string(), &text)
    }

    fn parse(name: &str, text: &str) -> Result<Self, String> {
        let at = |line: usize, why: &str| format!("{name}:{line}: {why}");
        let mut documents = documents(text).map_err(|it| at(it.line, &it.message))?;
        let root = match documents.len() {
            0 => return Ok(Self::default()),
            1 => documents.remove(0),
            _ => {
                return Err(format!(
                    "{name}: settings are one document, found {}",
                    documents.len()
                ));
            }
        };
        if !matches!(root.value, Value::Map(_)) {
            let found = root.describe();
            return Err(at(root.line, &format!("expected a mapping of settings, found {found}")));
        }
        let mut file = Self::default();
        for (key, node) in root.entries() {
            let by = format!("{name}:{}: {}", key.line, key.text);
            let known = KEYS.iter().map(|it| it.field).chain([DATA_DIR]);
            if !known.clone().any(|field| field == key.text) {
                let names: Vec<_> = known.collect();
                let hint = closest(&key.text, &names).map(|it| format!("; did you mean {it}?"));
                return Err(format!("{by}: unknown setting{}", hint.unwrap_or_default()));
            }
            if node.is_null() {
                continue;
            }
            let texts = texts(node).ok_or_else(|| {
                format!(
                    "{by}: expected a value, a list of values or a mapping of them, found {}",
                    node.describe()
                )
            })?;
            if key.text == DATA_DIR {
                file.data_dir = texts.into_iter().next().map(PathBuf::from);
            } else {
                file.fields.insert(key.text.clone(), Given { by, texts });
            }
        }
        Ok(file)
    }
}

/// A value as one text, a list as several, a mapping's entries as `key=value`; none for what is nested deeper.
fn texts(node: &tree::Node) -> Option<Vec<String>> {
    let text = |node: &tree::Node| match &node.value {
        Value::Scalar(scalar) => Some(scalar.text.clone()),
        Value::List(_) | Value::Map(_) => None,
    };
    match &node.value {
        Value::Scalar(scalar) => Some(vec![scalar.text.clone()]),
        Value::List(elements) => elements.iter().map(text).collect(),
        Value::Map(entries) => entries
            .iter()
            .map(|(key, node)| Some(format!("{}={}", key.text, text(node)?)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn settings(
        args: &Node,
        variables: &[(&str, &str)],
        file: &str,
    ) -> Result<NodeSettings, String> {
        let file = File::parse("node.yaml", file)?;
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
        };
        NodeSettings::parse("/data".into(), "host", |key| given(key, args, &variable, &file))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_file() {
        let file = "kubeconfig: /f\nnodeName: file\nport: 1\nmaxPods: 10\n";
        let variables = [("COPEPOD_NODE_NAME", "variable"), ("COPEPOD_NODE_PORT", "2")];
        let args = Node { node_name: vec!["flag".into()], ..Node::default() };

        let settings = settings(&args, &variables, file).expect("good");

        assert_eq!(
            (settings.node_name.as_str(), settings.port, settings.max_pods),
            ("flag", 2, 10)
        );
        assert_eq!(settings.kubeconfig, PathBuf::from("/f"));
    }

    #[test]
    fn a_file_gives_lists_and_mappings_in_its_own_form() {
        let file = "kubeconfig: /f\nnodeIPs: [192.0.2.1, '2001:db8::1']\nnodeLabels:\n  a: b\n  example.com/c: \"1\"\n\
                    registerWithTaints:\n- wasm=only:NoSchedule\nsystemReserved: {cpu: 1, memory: 64Mi}\n";

        let settings = settings(&Node::default(), &[], file).expect("good");

        assert_eq!(
            (settings.node_ips.len(), settings.labels.len(), settings.taints.len()),
            (2, 2, 1)
        );
        assert!(settings.reserved.cpu.is_some() && settings.reserved.memory.is_some());
    }

    #[test]
    fn what_is_wrong_in_a_file_is_told_with_line_and_key() {
        let table = [
            (
                "kubeconfig: /k\nmaxpods: 1\n",
                "node.yaml:2: maxpods: unknown setting; did you mean maxPods?",
            ),
            (
                "kubeconfig: /k\nmaxPods: many\n",
                "node.yaml:2: maxPods: \"many\" is no number of pods",
            ),
            ("kubeconfig: /k\nnodeIPs: [[a]]\n", "node.yaml:2: nodeIPs: expected a value"),
            ("- a\n", "node.yaml:1: expected a mapping"),
            ("a: [\n", "is not YAML"),
            ("a: 1\n---\nb: 1\n", "one document, found 2"),
        ];
        for (file, expected) in table {
            let refused = settings(&Node::default(), &[], file).expect_err(expected);
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn the_data_directory_stands_in_the_file_too() {
        let file = File::parse("node.yaml", "dataDir: /elsewhere\n").expect("good");

        assert_eq!(file.data_dir, Some(PathBuf::from("/elsewhere")));
    }

    #[test]
    fn every_setting_of_a_node_has_its_flag() {
        let cli = Cli::command();
        let node = cli.find_subcommand("node").expect("a command");
        for key in KEYS {
            let flag = node.get_arguments().find(|it| it.get_long() == Some(key.flag));
            assert!(flag.is_some(), "{}", key.flag);
            let id = flag.expect("checked").get_id().as_str();
            let line = ["copepod", "node", &format!("--{}", key.flag), "x"].map(str::to_owned);
            let parsed = <Cli as clap::Parser>::try_parse_from(line).expect("it parses");
            let crate::args::Command::Node(args) = parsed.command else {
                panic!("another command")
            };
            assert_eq!(of_flag(&args, key.flag), ["x"], "{id}");
        }
    }

    #[test]
    fn the_documentation_names_every_setting_in_each_place() {
        let text = include_str!("../../docs/cli.md");
        for Key { flag, variable, field } in KEYS {
            let line = format!("| `--{flag}` | `{variable}` | `{field}` |");
            assert!(text.contains(&line), "{line}");
        }
    }
}
