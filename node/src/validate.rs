//! What an API server would refuse in a pod, for pods that never saw one: names, numbers, references, bounds.
//!
//! Start at [`check`]; it wants a pod with its defaults. Absent: which fields are supported (`fields`), what the objects
//! referred to hold (`env`, `volumes`), and the ports of probes (`life`, where they are resolved).

mod containers;
mod volumes;

use std::{collections::BTreeSet, fmt::Display, ops::RangeInclusive};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::{
    containers::of_ephemeral,
    host_ports,
    name::{is_dns_label, is_dns_subdomain, is_uid},
    refusal::Refusal,
};

/// Most containers of a pod: far beyond what people write, far below what hurts (the objects of the API end at 1.5 MiB).
const MOST_CONTAINERS: usize = 256;
/// Most volumes of a pod, and most mounts of a container.
const MOST_VOLUMES: usize = 512;

/// All that is wrong with the pod, each with its path and what to write instead.
pub fn check(pod: &Pod) -> Vec<Refusal> {
    let mut wrong = Wrong::default();
    let meta = &pod.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    if !is_dns_subdomain(name) {
        wrong.add("metadata.name", format!("{name:?} is no name: {SUBDOMAIN}"));
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    if !is_dns_label(namespace) {
        wrong.add("metadata.namespace", format!("{namespace:?} is no namespace: {LABEL}"));
    }
    if let Some(uid) = meta.uid.as_deref()
        && !is_uid(uid)
    {
        wrong.add(
            "metadata.uid",
            "it holds other characters than letters, digits, '-', '_' and '.'",
        );
    }
    match &pod.spec {
        Some(spec) => {
            check_spec(spec, &mut wrong);
            check_host_ports(pod, &mut wrong);
        }
        None => wrong.add("spec", "a pod needs a spec with containers"),
    }
    wrong.0
}

const LABEL: &str =
    "write at most 63 lower case letters, digits and '-', with a letter or digit at both ends";
const SUBDOMAIN: &str = "write at most 253 lower case letters, digits, '-' and '.', each part with a letter or digit at both ends";

/// What was found so far.
#[derive(Debug, Default)]
struct Wrong(Vec<Refusal>);

impl Wrong {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Refusal::new(field, message));
    }

    fn check(&mut self, field: &str, result: Result<impl Sized, impl Display>) {
        if let Err(message) = result {
            self.add(field, message.to_string());
        }
    }

    /// A number in a range, if it is given.
    fn within<N: PartialOrd + Display + Copy>(
        &mut self,
        field: &str,
        value: Option<N>,
        range: RangeInclusive<N>,
    ) {
        if let Some(value) = value.filter(|value| !range.contains(value)) {
            let (low, high) = (range.start(), range.end());
            self.add(
                field,
                format!("{value} is out of range; write a number from {low} to {high}"),
            );
        }
    }

    /// A name that no other of its kind may have.
    fn unique<'a>(&mut self, field: &str, name: &'a str, seen: &mut BTreeSet<&'a str>) {
        if !seen.insert(name) {
            self.add(field, format!("{name:?} is there twice; names are unique in a pod"));
        }
    }
}

fn check_spec(spec: &PodSpec, wrong: &mut Wrong) {
    // As the API server: seconds of a grace are any whole number from 0; of a deadline from 1 to 2^31 - 1.
    wrong.within(
        "spec.terminationGracePeriodSeconds",
        spec.termination_grace_period_seconds,
        0..=i64::MAX,
    );
    wrong.within(
        "spec.activeDeadlineSeconds",
        spec.active_deadline_seconds,
        1..=i64::from(i32::MAX),
    );
    if let Some(name) = spec.hostname.as_deref().filter(|name| !name.is_empty())
        && !is_dns_label(name)
    {
        wrong.add("spec.hostname", format!("{name:?} is no host name: {LABEL}"));
    }
    if let Some(name) = spec.subdomain.as_deref().filter(|name| !name.is_empty())
        && !is_dns_label(name)
    {
        wrong.add("spec.subdomain", format!("{name:?} is no subdomain: {LABEL}"));
    }
    // 64 bytes are Linux's limit, and the API server's.
    if let Some(name) = spec.hostname_override.as_deref().filter(|name| !name.is_empty())
        && (!is_dns_subdomain(name) || name.len() > 64)
    {
        let message = format!("{name:?} is no host name of at most 64 bytes: {SUBDOMAIN}");
        wrong.add("spec.hostnameOverride", message);
    }
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = format!("spec.hostAliases[{i}]");
        wrong.check(&format!("{path}.ip"), alias.ip.parse::<std::net::IpAddr>());
        for (j, name) in alias.hostnames.iter().flatten().enumerate() {
            if !is_dns_subdomain(name) {
                let message = format!("{name:?} is no host name: {SUBDOMAIN}");
                wrong.add(format!("{path}.hostnames[{j}]"), message);
            }
        }
    }
    if let Some(dns) = &spec.dns_config {
        for (i, server) in dns.nameservers.iter().flatten().enumerate() {
            let field = format!("spec.dnsConfig.nameservers[{i}]");
            wrong.check(&field, server.parse::<std::net::IpAddr>());
        }
        let (servers, searches) = (
            dns.nameservers.as_ref().map_or(0, Vec::len),
            dns.searches.as_ref().map_or(0, Vec::len),
        );
        wrong.within("spec.dnsConfig.nameservers", Some(servers), 0..=3);
        wrong.within("spec.dnsConfig.searches", Some(searches), 0..=32);
    }
    if spec.dns_policy.as_deref() == Some("None")
        && spec
            .dns_config
            .as_ref()
            .is_none_or(|dns| dns.nameservers.as_ref().is_none_or(Vec::is_empty))
    {
        wrong.add("spec.dnsConfig.nameservers", "dnsPolicy None needs at least one name server");
    }

    let inits = spec.init_containers.as_deref().unwrap_or_default();
    if spec.containers.is_empty() {
        wrong.add("spec.containers", "a pod needs at least one container");
    }
    if inits.len() + spec.containers.len() > MOST_CONTAINERS {
        wrong.add("spec.containers", format!("a pod has at most {MOST_CONTAINERS} containers"));
        return;
    }
    volumes::check(spec, wrong);
    let mut names = BTreeSet::new();
    for (i, container) in inits.iter().enumerate() {
        let path = format!("spec.initContainers[{i}]");
        wrong.unique(&format!("{path}.name"), &container.name, &mut names);
        containers::check(container, &path, true, spec, wrong);
    }
    for (i, container) in spec.containers.iter().enumerate() {
        let path = format!("spec.containers[{i}]");
        wrong.unique(&format!("{path}.name"), &container.name, &mut names);
        containers::check(container, &path, false, spec, wrong);
    }
    for (i, container) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let path = format!("spec.ephemeralContainers[{i}]");
        wrong.unique(&format!("{path}.name"), &container.name, &mut names);
        containers::check_ephemeral(&of_ephemeral(container), &path, spec, wrong);
    }
}

/// Of the node's ports each is asked for once.
fn check_host_ports(pod: &Pod, wrong: &mut Wrong) {
    let asked = host_ports::of(pod);
    for (i, port) in asked.iter().enumerate() {
        if asked[..i].iter().any(|earlier| earlier.clashes(port)) {
            wrong.add(&*port.field, format!("{port} of the node is there twice"));
        }
    }
}

#[cfg(test)]
mod tests;
