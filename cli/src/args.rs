//! The command line: every command with its arguments, and examples to start from.
//!
//! Absent: what the commands do, and checks that need more than the text (files, the agent).

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::out::Format;

const ABOUT: &str =
    "WebAssembly pods for Kubernetes: run them on this machine, look at them, keep their images.";

const EXAMPLES: &str = "\
Examples:
  copepod run app.wasm --publish 8080        serve a component at http://127.0.0.1:8080/
  copepod run pod.yaml                       run a manifest's pods and stream their logs
  copepod run -d pod.yaml && copepod ps      the same in the background
  copepod check                              what this machine can do";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "copepod", version, about = ABOUT, after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where pods, images and the agent live [default: /var/lib/copepod as root, else $XDG_DATA_HOME/copepod]
    #[arg(long, global = true, env = "COPEPOD_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// How copepod's own messages, and the logs that `run` streams, are written
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub(crate) log_format: Format,
    /// Tell more; twice: tell everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the pods of a manifest, or a wasm file, on this machine
    Run(Run),
    /// List pods
    Ps(Ps),
    /// Tell all about a pod: containers, exit codes, volumes, events
    Describe(Describe),
    /// Print a container's log
    Logs(Logs),
    /// Run another program in a container's sandbox
    Exec(Exec),
    /// See what a running container writes, and write to its stdin
    Attach(Attach),
    /// Stop pods gracefully and forget them
    Stop(Stop),
    /// What each container uses now
    #[command(visible_alias = "top")]
    Stats(Stats),
    /// What this machine can do, and what is lost where something is missing
    Check(Check),
    /// Images: load, pull, push, list, inspect, remove
    #[command(subcommand, after_help = IMAGE_EXAMPLES)]
    Image(Image),
    /// Make this machine a node of a Kubernetes cluster
    Node(Box<Node>),
    /// What copepod does for a cluster as a whole; not on its nodes
    #[command(subcommand, after_help = CONTROLLERS_EXAMPLES)]
    Controllers(Controllers),
    /// Print a shell's completion script
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// The agent of a data directory; started by the other commands
    #[command(name = "__agent", hide = true)]
    Agent,
    /// The broker of an ordinary user's pods; started by the agent
    #[command(name = "__broker", hide = true)]
    Broker,
    /// The compile child; started by the agent
    #[command(name = "__compile", hide = true)]
    Compile,
}

const RUN_EXAMPLES: &str = "\
Examples:
  copepod run pod.yaml                             until the pods are over; Ctrl-C stops them
  copepod run -d --publish 8080:80 pod.yaml        in the background; see copepod ps, logs, stop
  kustomize build . | copepod run -                from another program
  copepod run app.wasm --publish 8080              no YAML at all
  copepod run job.wasm --env N=3 --volume ./in:/in:ro --memory 64Mi -- --input /in

The exit code is 0 where all pods succeeded, the failed container's where one failed,
1 where several did, 2 for a bad manifest, 125 for pods that can never run here, 130 after Ctrl-C.";

/// `copepod run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct Run {
    /// A manifest (YAML or JSON), `-` for one on stdin, or a .wasm file
    #[arg(value_name = "FILE")]
    pub(crate) file: String,
    /// The program's arguments, of a .wasm file only; those that start with - come after --
    #[arg(value_name = "ARGS")]
    pub(crate) args: Vec<String>,
    /// Return at once; the pods go on
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Open a port of this machine: [POD=][ADDRESS:]HOST[:PORT]; on 127.0.0.1 unless told otherwise; HOST 0 takes a free one
    #[arg(short, long, value_name = "HOST:PORT")]
    pub(crate) publish: Vec<PublishArg>,
    /// The namespace of objects that name none
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// The pod's name, of a .wasm file only [default: the file's]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Set an environment variable, of a .wasm file only; without =VALUE it is passed on from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Show a directory of this machine to the guest, of a .wasm file only
    #[arg(long, value_name = "HOST:GUEST[:ro]")]
    pub(crate) volume: Vec<VolumeArg>,
    /// The most memory, as 64Mi, of a .wasm file only
    #[arg(long, value_name = "QUANTITY")]
    pub(crate) memory: Option<QuantityArg>,
    /// The most CPU, as 500m or 2, of a .wasm file only
    #[arg(long, value_name = "QUANTITY")]
    pub(crate) cpu: Option<QuantityArg>,
}

/// `--publish`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublishArg {
    /// The pod's name, where there is a choice.
    pub(crate) pod: Option<String>,
    /// The address of this machine.
    pub(crate) address: IpAddr,
    /// The port of this machine.
    pub(crate) host: u16,
    /// The pod's port.
    pub(crate) port: u16,
}

impl FromStr for PublishArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pod, rest) = match text.split_once('=') {
            Some((pod, rest)) => (Some(pod.to_owned()), rest),
            None => (None, text),
        };
        // An IPv6 address stands in brackets.
        let (address, ports) = match rest.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
            Some((address, ports)) => (Some(address), ports),
            None => match rest.split(':').count() {
                3 => rest.split_once(':').map_or((None, rest), |(a, ports)| (Some(a), ports)),
                _ => (None, rest),
            },
        };
        let address = match address {
            None => IpAddr::from([127, 0, 0, 1]),
            Some(address) => {
                address.parse().map_err(|_| format!("{address:?} is no IP address"))?
            }
        };
        let number = |text: &str| {
            text.parse::<u16>().map_err(|_| format!("{text:?} is no port: 0 to 65535"))
        };
        let (host, port) = match ports.split_once(':') {
            Some((host, port)) => (number(host)?, number(port)?),
            None => (number(ports)?, number(ports)?),
        };
        if port == 0 {
            return Err("a pod's port is between 1 and 65535".into());
        }
        Ok(Self { pod, address, host, port })
    }
}

/// `--volume`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeArg {
    /// A directory or file of this machine.
    pub(crate) host: PathBuf,
    /// Where the guest sees it.
    pub(crate) guest: String,
    /// The guest cannot change it.
    pub(crate) read_only: bool,
}

impl FromStr for VolumeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(':').collect();
        let (host, guest, read_only) = match parts.as_slice() {
            [host, guest] | [host, guest, "rw"] => (host, guest, false),
            [host, guest, "ro"] => (host, guest, true),
            [_, _, mode] => return Err(format!("{mode:?} is neither ro nor rw")),
            _ => return Err("write HOST:GUEST or HOST:GUEST:ro".into()),
        };
        if host.is_empty() || !guest.starts_with('/') {
            return Err(format!("the guest's path has to start with /, found {guest:?}"));
        }
        Ok(Self { host: host.into(), guest: (*guest).to_owned(), read_only })
    }
}

/// A quantity whose syntax is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QuantityArg(pub(crate) String);

impl FromStr for QuantityArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if crate::manifest::is_quantity(text) && !text.starts_with('-') {
            Ok(Self(text.to_owned()))
        } else {
            Err("write a number with a suffix, like 500m, 2, 64Mi or 1G".into())
        }
    }
}

/// A pod on the command line: NAME, or NAMESPACE/NAME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodArg {
    /// The namespace, where it stands before the name.
    pub(crate) namespace: Option<String>,
    /// The name.
    pub(crate) name: String,
}

impl FromStr for PodArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            // As kubectl prints and takes it.
            Some(("pod" | "pods" | "po", name)) => (None, name),
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, text),
        };
        if name.is_empty() || name.contains('/') {
            return Err("write NAME or NAMESPACE/NAME".into());
        }
        Ok(Self { namespace, name: name.to_owned() })
    }
}

/// A span of time as kubectl takes it: `90s`, `10m`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanArg(pub(crate) jiff::SignedDuration);

impl FromStr for SpanArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<jiff::SignedDuration>() {
            Ok(span) if !span.is_negative() => Ok(Self(span)),
            _ => Err("write a span of time like 90s, 10m or 1h30m".into()),
        }
    }
}

const PS_EXAMPLES: &str = "\
Examples:
  copepod ps                 all pods of the data directory
  copepod ps -n shop -o wide
  copepod ps -o json | jq -r '.items[].status.podIP'";

/// `copepod ps`.
#[derive(Debug, Args)]
#[command(after_help = PS_EXAMPLES)]
pub(crate) struct Ps {
    /// Only pods of this namespace
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// How to print them
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<PsOutput>,
}

/// How `ps` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PsOutput {
    /// The table with more columns
    Wide,
    /// A Kubernetes List of Pods
    Json,
}

/// A pod, and the namespace of a name that names none.
#[derive(Debug, Args)]
pub(crate) struct OnePod {
    /// NAME, or NAMESPACE/NAME
    #[arg(value_name = "POD")]
    pub(crate) pod: PodArg,
    /// The pod's namespace
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
}

const DESCRIBE_EXAMPLES: &str = "\
Examples:
  copepod describe web
  copepod describe shop/web";

/// `copepod describe`.
#[derive(Debug, Args)]
#[command(after_help = DESCRIBE_EXAMPLES)]
pub(crate) struct Describe {
    /// Which pod.
    #[command(flatten)]
    pub(crate) pod: OnePod,
}

const LOGS_EXAMPLES: &str = "\
Examples:
  copepod logs web                     what its container has written
  copepod logs -f --tail 10 web -c app
  copepod logs -p web                  the run before this one
  copepod logs --all-containers --since 10m --timestamps web";

/// `copepod logs`.
#[derive(Debug, Args)]
#[command(after_help = LOGS_EXAMPLES)]
pub(crate) struct Logs {
    /// Which pod.
    #[command(flatten)]
    pub(crate) pod: OnePod,
    /// The container, where the pod has several
    #[arg(short, long, conflicts_with = "all_containers")]
    pub(crate) container: Option<String>,
    /// All containers of the pod, each line with its container's name
    #[arg(long)]
    pub(crate) all_containers: bool,
    /// Go on with what comes, until the pod is over
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The run before the newest one
    #[arg(short, long, conflicts_with = "follow")]
    pub(crate) previous: bool,
    /// Only the last so many lines
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<u64>,
    /// Only lines of the last so long, as 10m
    #[arg(long, value_name = "SPAN")]
    pub(crate) since: Option<SpanArg>,
    /// Each line with its time
    #[arg(long)]
    pub(crate) timestamps: bool,
}

/// A container, and whether it is given this process's stdin.
#[derive(Debug, Args)]
pub(crate) struct WithStreams {
    /// Which pod.
    #[command(flatten)]
    pub(crate) pod: OnePod,
    /// The container [default: the first]
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Pass stdin on
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
}

const EXEC_EXAMPLES: &str = "\
Examples:
  copepod exec web -- app --version          the container's own module with other arguments
  echo hello | copepod exec -i web -c app -- /tools/upper.wasm

The program's exit code is copepod's.";

/// `copepod exec`.
#[derive(Debug, Args)]
#[command(after_help = EXEC_EXAMPLES)]
pub(crate) struct Exec {
    /// Whose streams.
    #[command(flatten)]
    pub(crate) target: WithStreams,
    /// Tell the program that it is at a terminal
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

const ATTACH_EXAMPLES: &str = "\
Examples:
  copepod attach web            what it writes from now on
  copepod attach -i web         and what is typed, to its stdin (`stdin: true` in its spec)

The exit code is the container's, where it ends meanwhile.";

/// `copepod attach`.
#[derive(Debug, Args)]
#[command(after_help = ATTACH_EXAMPLES)]
pub(crate) struct Attach {
    /// Whose streams.
    #[command(flatten)]
    pub(crate) target: WithStreams,
}

const STOP_EXAMPLES: &str = "\
Examples:
  copepod stop web              graceful, within the pod's own grace period
  copepod stop --grace 0 web    at once
  copepod stop --all            all pods of the data directory; the agent goes with the last";

/// `copepod stop`.
#[derive(Debug, Args)]
#[command(after_help = STOP_EXAMPLES)]
pub(crate) struct Stop {
    /// NAME, or NAMESPACE/NAME
    #[arg(value_name = "POD", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) pods: Vec<PodArg>,
    /// The namespace of names that name none
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// All pods of the data directory
    #[arg(long)]
    pub(crate) all: bool,
    /// Seconds instead of the pods' own grace periods
    #[arg(long, value_name = "SECONDS")]
    pub(crate) grace: Option<u32>,
}

/// `copepod stats`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  copepod stats\n  copepod top -n shop")]
pub(crate) struct Stats {
    /// Only pods of this namespace
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
}

/// `copepod check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  copepod check\n  copepod check --json | jq '.[] | select(.ok | not)'\n\nThe exit code is 1 where something is missing without which no pod runs."
)]
pub(crate) struct Check {
    /// A JSON list instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

const IMAGE_EXAMPLES: &str = "\
Examples:
  copepod image load app.wasm --tag localhost:5000/app:1
  copepod image push localhost:5000/app:1
  copepod image pull ghcr.io/team/app:1
  copepod image ls
  copepod image inspect app.wasm              a file, or an image of the store
  echo $TOKEN | copepod image login ghcr.io -u me --password-stdin";

/// `copepod image`.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Put a wasm file into the local store
    #[command(after_help = "Example:\n  copepod image load app.wasm --tag localhost:5000/app:1")]
    Load {
        /// The wasm module or component
        file: PathBuf,
        /// The image's name
        #[arg(short, long, value_name = "REF")]
        tag: String,
    },
    /// Keep a login for a registry in ~/.docker/config.json
    #[command(
        after_help = "Example:\n  echo $TOKEN | copepod image login ghcr.io -u me --password-stdin"
    )]
    Login {
        /// The registry's host, with a port where it has one
        registry: String,
        /// The user
        #[arg(short, long)]
        username: String,
        /// The password; others on this machine can see it while this runs
        #[arg(short, long, conflicts_with = "password_stdin")]
        password: Option<String>,
        /// The password is the one line on stdin
        #[arg(long)]
        password_stdin: bool,
    },
    /// Pull an image into the local store
    #[command(after_help = "Example:\n  copepod image pull ghcr.io/team/app:1")]
    Pull {
        /// The image
        #[arg(value_name = "REF")]
        reference: String,
    },
    /// Push an image of the local store to its registry
    #[command(after_help = "Example:\n  copepod image push localhost:5000/app:1")]
    Push {
        /// The image
        #[arg(value_name = "REF")]
        reference: String,
    },
    /// List the images of the local store
    #[command(visible_alias = "list", after_help = "Example:\n  copepod image ls --json")]
    Ls {
        /// A JSON list instead of the table
        #[arg(long)]
        json: bool,
    },
    /// What a wasm file or an image is, and what it will need
    #[command(
        after_help = "Examples:\n  copepod image inspect app.wasm\n  copepod image inspect --json ghcr.io/team/app:1"
    )]
    Inspect {
        /// A file, or an image of the local store
        #[arg(value_name = "FILE|REF")]
        what: String,
        /// JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Remove images from the local store
    #[command(
        visible_alias = "remove",
        after_help = "Example:\n  copepod image rm localhost:5000/app:1"
    )]
    Rm {
        /// The images
        #[arg(value_name = "REF", required = true)]
        references: Vec<String>,
    },
}

const NODE_EXAMPLES: &str = "\
Examples:
  copepod node --kubeconfig /etc/copepod/kubeconfig --node-name edge-1
  copepod node --bootstrap-kubeconfig bootstrap.conf       with a bootstrap token: the node gets its own certificate
  copepod node --explain                                   what a node changes on this machine, and what of it is there
  copepod node reset                                       ends what runs here and undoes what was changed
  copepod node --config /etc/copepod/node.yaml             the same settings as fields: kubeconfig, nodeName, nodeIPs, ...

A flag wins over its environment variable (COPEPOD_NODE_...), and that over the file.";

/// `copepod node`. The texts are judged by `copepod-kubelet`, with those of the environment and the file.
#[derive(Clone, Debug, Default, Args)]
#[command(after_help = NODE_EXAMPLES)]
pub(crate) struct Node {
    /// Something else than to be a node
    #[command(subcommand)]
    pub(crate) action: Option<NodeAction>,
    /// Change nothing, and list what a node of this data directory changes on this machine, by name, and what of it is there now
    #[arg(long)]
    pub(crate) explain: bool,
    /// A file with these settings, YAML or JSON
    #[arg(long, env = "COPEPOD_NODE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// How the API server is reached, and as whom: system:node:NAME by a client certificate, or a token
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Vec<String>,
    /// A kubeconfig with a bootstrap token, with which the node asks for its first certificate
    #[arg(long, value_name = "FILE")]
    pub(crate) bootstrap_kubeconfig: Vec<String>,
    /// The node's name [default: the machine's]
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Vec<String>,
    /// The node's address, one of each family [default: the one from which the API server is reached, and one of the pods' other family]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) node_ip: Vec<String>,
    /// The block that pods' addresses come from, one of each family [default: the cluster gives them]
    #[arg(long, value_name = "BLOCK")]
    pub(crate) pod_cidr: Vec<String>,
    /// The port of the kubelet's API [default: 10250]
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Vec<String>,
    /// The authorities whose client certificates the kubelet's API takes [default: the kubeconfig's]
    #[arg(long, value_name = "FILE")]
    pub(crate) client_ca_file: Vec<String>,
    /// Taints of a node that is new to the cluster, as key=value:NoSchedule
    #[arg(long, value_name = "TAINTS")]
    pub(crate) register_with_taints: Vec<String>,
    /// More labels of the node, as key=value
    #[arg(long, value_name = "LABELS")]
    pub(crate) node_labels: Vec<String>,
    /// The most pods [default: 110]
    #[arg(long, value_name = "N")]
    pub(crate) max_pods: Vec<String>,
    /// Whether pods leave the cluster by the node's address: auto or off [default: auto]
    #[arg(long, value_name = "WHETHER")]
    pub(crate) masquerade: Vec<String>,
    /// Blocks that pods reach by their own addresses in any case [default: other nodes' podCIDRs, where they are known]
    #[arg(long, value_name = "BLOCKS")]
    pub(crate) masquerade_exceptions: Vec<String>,
    /// Whether routes to other nodes' pods are set, where the node may list nodes: auto or off [default: auto]
    #[arg(long, value_name = "WHETHER")]
    pub(crate) routes: Vec<String>,
    /// The addresses of the cluster's DNS
    #[arg(long, value_name = "ADDRESSES")]
    pub(crate) cluster_dns: Vec<String>,
    /// The domain of the cluster's Services [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) cluster_domain: Vec<String>,
    /// What the node keeps for itself, as cpu=500m,memory=1Gi [default: memory=512Mi and a tenth of the disk]
    #[arg(long, value_name = "RESOURCES")]
    pub(crate) system_reserved: Vec<String>,
    /// Folders of this machine beneath which pods may mount by hostPath [default: none]
    #[arg(long, value_name = "FOLDERS")]
    pub(crate) allow_host_path: Vec<String>,
    /// Whether pods may live in the node's own network by hostNetwork: true or false [default: false]
    #[arg(long, value_name = "WHETHER")]
    pub(crate) allow_host_network: Vec<String>,
    /// From where on the machine is short of something and takes no pods, as nodefs.available<10%,memory.available<100Mi [default: a
    /// kubelet's]
    #[arg(long, value_name = "THRESHOLDS")]
    pub(crate) eviction_hard: Vec<String>,
    /// How long after an upgrade programs may run on in a runner of the build before, as 24h; then their pods are evicted [default: as
    /// long as they do]
    #[arg(long, value_name = "AGE")]
    pub(crate) max_runner_age: Vec<String>,
    /// The label kubernetes.io/os: copepod, or linux where nothing selects it that cannot run here [default: copepod]
    #[arg(long, value_name = "OS")]
    pub(crate) node_os_label: Vec<String>,
}

/// What else is done about a node.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum NodeAction {
    /// End what runs here and undo what the node has changed on this machine, once the node is drained and its process stopped
    #[command(after_help = "Example:\n  copepod node reset --data-dir /var/lib/copepod")]
    Reset,
}

const CONTROLLERS_EXAMPLES: &str = "\
Examples:
  copepod controllers approver --kubeconfig approver.conf --node-blocks 192.0.2.0/24

The approver's rights are in deploy/approver.yaml.";

/// `copepod controllers`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Controllers {
    /// Approve nodes' serving certificates that name the node's own addresses; all others are left for a person
    #[command(after_help = CONTROLLERS_EXAMPLES)]
    Approver {
        /// How the API server is reached, and as whom [default: KUBECONFIG, ~/.kube/config, or a pod's service account]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// The blocks that nodes' addresses are in; others are left [default: a node's word about its own is taken]
        #[arg(long, value_name = "BLOCKS")]
        node_blocks: Vec<String>,
    },
}

const COMPLETION_EXAMPLES: &str = "\
Examples:
  copepod completions bash > /etc/bash_completion.d/copepod
  copepod completions zsh > ~/.zfunc/_copepod";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        let words = ["copepod"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.command)
    }

    #[test]
    fn the_command_line_is_consistent_with_itself() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_in_its_help() {
        fn look(command: &clap::Command) {
            for sub in command.get_subcommands().filter(|it| !it.is_hide_set()) {
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("copepod "), "{}", sub.get_name());
                look(sub);
            }
        }
        look(&Cli::command());
    }

    #[test]
    fn options_of_run_stand_on_either_side_of_the_program_s_arguments() {
        let line = "run app.wasm one two --publish 8080 --env A=1 -- --flag";

        let Command::Run(run) = parse(line).expect("it parses") else { panic!("another command") };

        assert_eq!(run.args, ["one", "two", "--flag"]);
        assert_eq!(run.publish.len(), 1);
        assert_eq!(run.env, ["A=1"]);
    }

    #[test]
    fn a_published_port_is_read_in_all_its_forms() {
        let arg = |pod: Option<&str>, address: &str, host, port| PublishArg {
            pod: pod.map(str::to_owned),
            address: address.parse().expect("an address"),
            host,
            port,
        };
        let table = [
            ("8080", Some(arg(None, "127.0.0.1", 8080, 8080))),
            ("80:8080", Some(arg(None, "127.0.0.1", 80, 8080))),
            ("0:8080", Some(arg(None, "127.0.0.1", 0, 8080))),
            ("0.0.0.0:80:8080", Some(arg(None, "0.0.0.0", 80, 8080))),
            ("[::1]:80:8080", Some(arg(None, "::1", 80, 8080))),
            ("web=80:8080", Some(arg(Some("web"), "127.0.0.1", 80, 8080))),
            ("", None),
            ("x", None),
            ("80:0", None),
            ("0", None),
            ("70000", None),
            ("a.b:80:80", None),
            ("1:2:3:4", None),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse().ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn volumes_pods_and_spans_are_read() {
        let volume = |text: &str| text.parse::<VolumeArg>().ok().map(|it| (it.guest, it.read_only));
        assert_eq!(volume("./a:/b"), Some(("/b".into(), false)));
        assert_eq!(volume("/a:/b:ro"), Some(("/b".into(), true)));
        for bad in ["/a", "/a:b", ":/b", "/a:/b:x", "/a:/b:ro:z"] {
            assert_eq!(volume(bad), None, "{bad}");
        }

        let pod = |text: &str| text.parse::<PodArg>().ok().map(|it| (it.namespace, it.name));
        assert_eq!(pod("web"), Some((None, "web".into())));
        assert_eq!(pod("shop/web"), Some((Some("shop".into()), "web".into())));
        assert_eq!(pod("pod/web"), Some((None, "web".into())));
        assert_eq!((pod("a/b/c"), pod("a/")), (None, None));

        let span = |text: &str| text.parse::<SpanArg>().ok().map(|it| it.0.as_secs());
        assert_eq!((span("90s"), span("1h30m"), span("2h")), (Some(90), Some(5400), Some(7200)));
        assert_eq!((span("x"), span("-5s")), (None, None));
    }

    #[test]
    fn what_makes_no_sense_together_is_refused() {
        for line in [
            "",
            "run",
            "stop",
            "stop --all web",
            "exec web",
            "logs -f -p web",
            "logs -c a --all-containers web",
            "image login reg -u me -p x --password-stdin",
            "image rm",
            "run app.wasm --memory 64MB",
            "ps -o yaml",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in ["stop --all", "top", "exec web -- ls -l", "image list", "completions bash"] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }
}
