//! What of a pod's spec decides its life, parsed once: policies, graces, probes, hooks.
//!
//! Absent: env and volumes (`env`, `volumes`, read at each start), and the judgement of fields (`fields`, `validate`).

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, EnvVar, HTTPGetAction, LifecycleHandler, Pod, Probe,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::words::PullPolicy;
use crate::{
    containers::{List, of_ephemeral},
    env::with_static_variables,
    name::ContainerName,
    refusal::Refusal,
};

/// The longest grace, deadline, delay or period that we count with: ten years. What is longer is cut to it (no overflow).
pub const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What decides a pod's life.
#[derive(Debug)]
pub(crate) struct LifeSpec {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) generation: Option<i64>,
    pub(crate) restart: RestartPolicy,
    /// `terminationGracePeriodSeconds`.
    pub(crate) grace: Duration,
    /// `activeDeadlineSeconds`.
    pub(crate) active_deadline: Option<Duration>,
    /// Init containers and sidecars in their order, then the app containers in theirs.
    pub(crate) containers: Vec<Arc<ContainerSpec>>,
}

/// What decides a container's life.
#[derive(Debug)]
pub(crate) struct ContainerSpec {
    pub(crate) name: ContainerName,
    pub(crate) role: Role,
    /// Its own policy, or the pod's, or what the role makes of that.
    pub(crate) restart: RestartPolicy,
    /// Exit codes after which it is started again, whatever the policy.
    pub(crate) restart_rules: Vec<RestartRule>,
    pub(crate) image: Arc<str>,
    pub(crate) pull: PullPolicy,
    pub(crate) startup: Option<ProbeSpec>,
    pub(crate) liveness: Option<ProbeSpec>,
    pub(crate) readiness: Option<ProbeSpec>,
    pub(crate) post_start: Option<Arc<Handler>>,
    pub(crate) pre_stop: Option<Arc<Handler>>,
    /// For events: `spec.containers{name}`.
    pub(crate) field_path: String,
}

/// A container's part in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end, before the next one.
    Init,
    /// An init container with restartPolicy Always: the next one starts when this has started; stops last.
    Sidecar,
    /// An app container.
    Main,
    /// Added to a pod that runs, to look around in it: runs once, whatever the others do, and says nothing of the pod.
    Ephemeral,
}

impl Role {
    /// One of those that come before the app.
    pub(crate) fn is_init(self) -> bool {
        matches!(self, Self::Init | Self::Sidecar)
    }

    /// One that the pod is ready by, and there for.
    pub(crate) fn counts(self) -> bool {
        matches!(self, Self::Main | Self::Sidecar)
    }
}

/// `restartPolicyRules`: the first that fits an exit code decides, before any policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RestartRule {
    /// Fits codes in `values`; else those that are not.
    pub(crate) is_in: bool,
    pub(crate) values: Vec<i32>,
}

/// When a container is started again after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(crate) fn restarts_after(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

impl ContainerSpec {
    /// Whether it is started again after this exit code: by its rules, then by its policy.
    pub(crate) fn restarts_after(&self, code: i32) -> bool {
        // One that succeeded is done, whatever its rules.
        if self.role == Role::Init && code == 0 {
            return false;
        }
        let fits = |rule: &RestartRule| rule.values.contains(&code) == rule.is_in;
        self.restart_rules.iter().any(fits) || self.restart.restarts_after(code)
    }

    /// It never runs twice.
    pub(crate) fn runs_once(&self) -> bool {
        self.restart == RestartPolicy::Never && self.restart_rules.is_empty()
    }
}

/// A probe: what to do, and when.
#[derive(Debug)]
pub(crate) struct ProbeSpec {
    pub(crate) handler: Arc<Handler>,
    pub(crate) initial_delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) successes: u32,
    pub(crate) failures: u32,
    /// The grace of a kill by this probe; none: the pod's.
    pub(crate) grace: Option<Duration>,
}

/// What a probe or hook does. Ports are numbers: names are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Another instance in the container's sandbox; exit code 0 is success.
    Exec {
        /// argv.
        command: Vec<String>,
    },
    /// A GET to the pod's own address; 200 to 399 is success.
    Http {
        /// Over TLS, whose certificate nobody checks.
        https: bool,
        /// The port.
        port: u16,
        /// Path and query.
        path: String,
        /// Header fields, in order.
        headers: Vec<(String, String)>,
    },
    /// The health check of gRPC (probes only).
    Grpc {
        /// Over TLS, whose certificate nobody checks.
        tls: bool,
        /// The port.
        port: u16,
        /// The service that is asked for; empty for the server as a whole.
        service: String,
    },
    /// A connection to the pod's own address.
    Tcp {
        /// The port.
        port: u16,
    },
    /// Do nothing for so long (hooks only).
    Sleep(Duration),
}

impl LifeSpec {
    /// Parses a pod that has its defaults.
    pub(crate) fn parse(pod: &Pod) -> Result<Self, Vec<Refusal>> {
        let mut wrong = Vec::new();
        let meta = &pod.metadata;
        let Some(spec) = &pod.spec else {
            return Err(vec![Refusal::new("spec", "a pod needs a spec")]);
        };
        let restart = parse_policy(&spec.restart_policy, "spec.restartPolicy", &mut wrong);
        let restart = restart.unwrap_or(RestartPolicy::Always);
        let mut containers = Vec::new();
        for (i, container) in spec.init_containers.iter().flatten().enumerate() {
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            let role = if sidecar { Role::Sidecar } else { Role::Init };
            let path = format!("spec.initContainers[{i}]");
            containers.extend(parse_container(container, role, restart, &path, &mut wrong));
        }
        for (i, container) in spec.containers.iter().enumerate() {
            let path = format!("spec.containers[{i}]");
            containers.extend(parse_container(container, Role::Main, restart, &path, &mut wrong));
        }
        for (i, container) in spec.ephemeral_containers.iter().flatten().enumerate() {
            let (path, container) =
                (format!("spec.ephemeralContainers[{i}]"), of_ephemeral(container));
            containers.extend(parse_container(
                &container,
                Role::Ephemeral,
                RestartPolicy::Never,
                &path,
                &mut wrong,
            ));
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Self {
            name: meta.name.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation,
            restart,
            grace: seconds(spec.termination_grace_period_seconds.unwrap_or(30)),
            active_deadline: spec.active_deadline_seconds.map(seconds),
            containers: containers.into_iter().map(Arc::new).collect(),
        })
    }
}

fn parse_container(
    container: &Container,
    role: Role,
    pod_restart: RestartPolicy,
    path: &str,
    wrong: &mut Vec<Refusal>,
) -> Option<ContainerSpec> {
    let name = ContainerName::try_from(container.name.as_str())
        .map_err(|e| wrong.push(Refusal::new(format!("{path}.name"), e.to_string())))
        .ok()?;
    let own = parse_policy(&container.restart_policy, &format!("{path}.restartPolicy"), wrong);
    let restart = match (role, own.unwrap_or(pod_restart)) {
        (Role::Sidecar, _) => RestartPolicy::Always,
        // An init container that succeeded is done, whatever the policy.
        (Role::Init, RestartPolicy::Always) => RestartPolicy::OnFailure,
        (Role::Ephemeral, _) => RestartPolicy::Never,
        (Role::Init | Role::Main, policy) => policy,
    };
    let restart_rules = parse_rules(container, path, wrong);
    let pull = match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        None | Some("IfNotPresent") => PullPolicy::IfNotPresent,
        Some(other) => {
            wrong.push(Refusal::new(
                format!("{path}.imagePullPolicy"),
                format!("{other:?} is unknown; write Always, IfNotPresent or Never"),
            ));
            PullPolicy::Never
        }
    };
    let ports = container.ports.as_deref().unwrap_or_default();
    let env = container.env.as_deref().unwrap_or_default();
    let mut probe = |probe: &Option<Probe>, field: &str| {
        let path = format!("{path}.{field}");
        probe.as_ref().and_then(|probe| parse_probe(probe, ports, env, &path, wrong))
    };
    let startup = probe(&container.startup_probe, "startupProbe");
    let liveness = probe(&container.liveness_probe, "livenessProbe");
    let readiness = probe(&container.readiness_probe, "readinessProbe");
    let lifecycle = container.lifecycle.as_ref();
    let mut hook = |hook: Option<&LifecycleHandler>, field: &str| {
        let path = format!("{path}.lifecycle.{field}");
        hook.and_then(|hook| parse_hook(hook, ports, &path, wrong)).map(Arc::new)
    };
    let post_start = hook(lifecycle.and_then(|l| l.post_start.as_ref()), "postStart");
    let pre_stop = hook(lifecycle.and_then(|l| l.pre_stop.as_ref()), "preStop");
    let list = match role {
        Role::Main => List::App,
        Role::Init | Role::Sidecar => List::Init,
        Role::Ephemeral => List::Ephemeral,
    };
    let list = list.field();
    Some(ContainerSpec {
        field_path: format!("spec.{list}{{{name}}}"),
        name,
        role,
        restart,
        restart_rules,
        image: container.image.clone().unwrap_or_default().into(),
        pull,
        startup,
        liveness,
        readiness,
        post_start,
        pre_stop,
    })
}

fn parse_policy(
    word: &Option<String>,
    path: &str,
    wrong: &mut Vec<Refusal>,
) -> Option<RestartPolicy> {
    match word.as_deref() {
        None | Some("") => None,
        Some("Always") => Some(RestartPolicy::Always),
        Some("OnFailure") => Some(RestartPolicy::OnFailure),
        Some("Never") => Some(RestartPolicy::Never),
        Some(other) => {
            let message = format!("{other:?} is unknown; write Always, OnFailure or Never");
            wrong.push(Refusal::new(path, message));
            None
        }
    }
}

/// As the API server: at most 20 rules, with a policy beside them. Their words are judged by the table of fields.
fn parse_rules(container: &Container, path: &str, wrong: &mut Vec<Refusal>) -> Vec<RestartRule> {
    let rules = container.restart_policy_rules.as_deref().unwrap_or_default();
    let path = format!("{path}.restartPolicyRules");
    if !rules.is_empty() && container.restart_policy.as_deref().is_none_or(str::is_empty) {
        let message = "write the container's restartPolicy too, for the codes that no rule fits";
        wrong.push(Refusal::new(&*path, message));
    }
    if rules.len() > 20 {
        wrong.push(Refusal::new(&*path, "a container has at most 20 rules"));
    }
    let mut parsed = Vec::new();
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let Some(codes) = &rule.exit_codes else {
            wrong.push(Refusal::new(
                format!("{path}.exitCodes"),
                "write which exit codes it is for",
            ));
            continue;
        };
        let is_in = codes.operator == "In";
        let values = codes.values.clone().unwrap_or_default();
        if values.len() > 255 {
            let message = "a rule has at most 255 exit codes";
            wrong.push(Refusal::new(format!("{path}.exitCodes.values"), message));
        }
        parsed.push(RestartRule { is_in, values });
    }
    parsed
}

fn parse_probe(
    probe: &Probe,
    ports: &[ContainerPort],
    env: &[EnvVar],
    path: &str,
    wrong: &mut Vec<Refusal>,
) -> Option<ProbeSpec> {
    let mut handlers = Vec::new();
    if let Some(exec) = &probe.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        let command = with_static_variables(command, env);
        handlers.push(Some(Handler::Exec { command }));
    }
    if let Some(http) = &probe.http_get {
        handlers.push(parse_http(http, ports, &format!("{path}.httpGet"), wrong));
    }
    if let Some(tcp) = &probe.tcp_socket {
        let port = resolve_port(&tcp.port, ports, &format!("{path}.tcpSocket.port"), wrong);
        handlers.push(port.map(|port| Handler::Tcp { port }));
    }
    if let Some(grpc) = &probe.grpc {
        let port = IntOrString::Int(grpc.port);
        let port = resolve_port(&port, ports, &format!("{path}.grpc.port"), wrong);
        let service = grpc.service.clone().unwrap_or_default();
        let tls = grpc.mode.as_deref() == Some("TLS");
        handlers.push(port.map(|port| Handler::Grpc { tls, port, service }));
    }
    let handler = exactly_one(handlers, path, "exec, httpGet, grpc or tcpSocket", wrong)?;
    let count = |value: Option<i32>, default: i32| value.unwrap_or(default).max(1).unsigned_abs();
    Some(ProbeSpec {
        handler: Arc::new(handler),
        initial_delay: seconds(probe.initial_delay_seconds.unwrap_or(0).into()),
        period: seconds(probe.period_seconds.unwrap_or(10).max(1).into()),
        timeout: seconds(probe.timeout_seconds.unwrap_or(1).max(1).into()),
        successes: count(probe.success_threshold, 1),
        failures: count(probe.failure_threshold, 3),
        grace: probe.termination_grace_period_seconds.map(seconds),
    })
}

fn parse_hook(
    hook: &LifecycleHandler,
    ports: &[ContainerPort],
    path: &str,
    wrong: &mut Vec<Refusal>,
) -> Option<Handler> {
    let mut handlers = Vec::new();
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        handlers.push(Some(Handler::Exec { command }));
    }
    if let Some(http) = &hook.http_get {
        handlers.push(parse_http(http, ports, &format!("{path}.httpGet"), wrong));
    }
    if let Some(sleep) = &hook.sleep {
        handlers.push(Some(Handler::Sleep(seconds(sleep.seconds))));
    }
    // An API server accepts a tcpSocket hook for old manifests' sake, and a kubelet then fails it at every start.
    if hook.tcp_socket.is_some() {
        let message = "no kubelet runs a tcpSocket hook; write exec, httpGet or sleep";
        wrong.push(Refusal::new(format!("{path}.tcpSocket"), message));
        return None;
    }
    exactly_one(handlers, path, "exec, httpGet or sleep", wrong)
}

fn exactly_one(
    mut handlers: Vec<Option<Handler>>,
    path: &str,
    choices: &str,
    wrong: &mut Vec<Refusal>,
) -> Option<Handler> {
    if handlers.len() == 1 {
        return handlers.remove(0);
    }
    let found = if handlers.is_empty() { "none is" } else { "more than one is" };
    wrong.push(Refusal::new(path, format!("write exactly one of {choices}; {found} set")));
    None
}

fn parse_http(
    http: &HTTPGetAction,
    ports: &[ContainerPort],
    path: &str,
    wrong: &mut Vec<Refusal>,
) -> Option<Handler> {
    let https = match http.scheme.as_deref() {
        None | Some("HTTP") => false,
        Some("HTTPS") => true,
        Some(other) => {
            let message = format!("{other:?} is unknown; write HTTP or HTTPS");
            wrong.push(Refusal::new(format!("{path}.scheme"), message));
            return None;
        }
    };
    let headers = http.http_headers.iter().flatten();
    let headers: Vec<_> = headers.map(|h| (h.name.clone(), h.value.clone())).collect();
    for (i, (name, value)) in headers.iter().enumerate() {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) || value.bytes().any(|b| b < 32 && b != 9) {
            let message = "a header's name is a token, and its value holds no control characters";
            wrong.push(Refusal::new(format!("{path}.httpHeaders[{i}]"), message));
        }
    }
    let mut target = http.path.clone().unwrap_or_default();
    if !target.starts_with('/') {
        target.insert(0, '/');
    }
    if target.bytes().any(|b| b <= b' ' || b == 127) {
        let message = "a path holds no spaces and no control characters; write them %-escaped";
        wrong.push(Refusal::new(format!("{path}.path"), message));
    }
    let port = resolve_port(&http.port, ports, &format!("{path}.port"), wrong)?;
    Some(Handler::Http { https, port, path: target, headers })
}

fn resolve_port(
    port: &IntOrString,
    ports: &[ContainerPort],
    path: &str,
    wrong: &mut Vec<Refusal>,
) -> Option<u16> {
    let (number, name) = match port {
        IntOrString::Int(number) => (Some(*number), None),
        // As a kubelet: a name first, then digits in a string.
        IntOrString::String(name) => {
            let named = ports.iter().find(|port| port.name.as_deref() == Some(name));
            let number = named.map(|port| port.container_port).or_else(|| name.parse().ok());
            (number, Some(name))
        }
    };
    let resolved = number.and_then(|number| u16::try_from(number).ok()).filter(|&port| port != 0);
    if resolved.is_none() {
        let message = match name {
            Some(name) => format!("no port of this container is named {name:?}"),
            None => "write a port from 1 to 65535".to_owned(),
        };
        wrong.push(Refusal::new(path, message));
    }
    resolved
}

/// Seconds of a spec as a duration: nothing below 0, nothing above [`LONGEST`].
pub(crate) fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(LONGEST)
}
