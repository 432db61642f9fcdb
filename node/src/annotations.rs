//! Our pod annotations `copepod.dev/*`: a closed list, each with a default and the node's ceiling.
//!
//! Absent: all other annotations, which are nobody's business here.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::refusal::Refusal;

/// What every key of ours begins with.
pub const PREFIX: &str = "copepod.dev/";

/// Every key that there is.
pub const KEYS: [&str; 3] =
    ["copepod.dev/http-reuse", "copepod.dev/http-concurrency", "copepod.dev/http-timeout"];

/// The most that a node grants to an annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCeilings {
    /// For `copepod.dev/http-reuse`.
    pub http_reuse: u32,
    /// For `copepod.dev/http-concurrency`.
    pub http_concurrency: u32,
    /// For `copepod.dev/http-timeout`.
    pub http_timeout: Duration,
    /// The RuntimeClass names that the node runs, beside none at all.
    pub runtime_classes: Vec<String>,
}

impl Default for NodeCeilings {
    /// What a node without configuration grants.
    fn default() -> Self {
        Self {
            // One instance for a million requests is as good as one for ever, and no counter overflows.
            http_reuse: 1_000_000,
            // Beyond some thousand requests at a time a container's memory limit decides, not this number.
            http_concurrency: 4096,
            http_timeout: Duration::from_secs(3600),
            runtime_classes: vec!["copepod".to_owned(), "copepod-pod".to_owned()],
        }
    }
}

/// What the annotations of a pod say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodOptions {
    /// How many requests one instance of an HTTP component serves, one after the other.
    pub http_reuse: u32,
    /// How many requests are in work at a time.
    pub http_concurrency: u32,
    /// From a request's head to its response's head.
    pub http_timeout: Duration,
}

impl Default for PodOptions {
    /// A fresh instance for each request; 64 at a time, which a small container's memory holds; a minute, as most proxies wait.
    fn default() -> Self {
        Self { http_reuse: 1, http_concurrency: 64, http_timeout: Duration::from_secs(60) }
    }
}

/// Reads a pod's annotations, or says all that is wrong with them.
pub fn parse(pod: &Pod, ceilings: &NodeCeilings) -> Result<PodOptions, Vec<Refusal>> {
    let mut options = PodOptions::default();
    let mut wrong = Vec::new();
    for (key, value) in pod.metadata.annotations.iter().flatten() {
        if !key.starts_with(PREFIX) {
            continue;
        }
        let result = match key.as_str() {
            "copepod.dev/http-reuse" => {
                count(value, ceilings.http_reuse).map(|n| options.http_reuse = n)
            }
            "copepod.dev/http-concurrency" => {
                count(value, ceilings.http_concurrency).map(|n| options.http_concurrency = n)
            }
            "copepod.dev/http-timeout" => {
                time(value, ceilings.http_timeout).map(|t| options.http_timeout = t)
            }
            _ => Err(format!("unknown; the keys that there are: {}", KEYS.join(", "))),
        };
        if let Err(message) = result {
            wrong.push(Refusal::new(format!("metadata.annotations[{key}]"), message));
        }
    }
    let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_ref());
    if let Some(class) = class.filter(|class| !ceilings.runtime_classes.contains(class)) {
        let known = ceilings.runtime_classes.join(", ");
        let message =
            format!("this node does not run {class:?}; leave it out or write one of: {known}");
        wrong.push(Refusal::new("spec.runtimeClassName", message));
    }
    if wrong.is_empty() { Ok(options) } else { Err(wrong) }
}

fn count(value: &str, ceiling: u32) -> Result<u32, String> {
    match value.parse() {
        Ok(n) if (1..=ceiling).contains(&n) => Ok(n),
        _ => Err(format!("{value:?} is no whole number from 1 to {ceiling} (the node's ceiling)")),
    }
}

/// `90s`, `1500ms` or `2m`.
fn time(value: &str, ceiling: Duration) -> Result<Duration, String> {
    let split = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let unit = match &value[split..] {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        _ => None,
    };
    let number: Option<u64> = value[..split].parse().ok();
    let time =
        number.zip(unit).and_then(|(n, unit)| n.checked_mul(unit)).map(Duration::from_millis);
    time.filter(|time| !time.is_zero() && *time <= ceiling).ok_or_else(|| {
        let most = ceiling.as_secs();
        format!(
            "{value:?} is no time such as 60s, 500ms or 2m, of at most {most}s (the node's ceiling)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(key: &str, value: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.annotations = Some([(key.to_owned(), value.to_owned())].into());
        pod
    }

    #[test]
    fn without_annotations_the_defaults_hold() {
        let options = parse(&Pod::default(), &NodeCeilings::default());

        assert_eq!(options, Ok(PodOptions::default()));
    }

    #[test]
    fn an_unknown_key_of_ours_is_refused_and_a_foreign_one_is_not() {
        let wrong = parse(&pod("copepod.dev/engine", "x"), &NodeCeilings::default());
        let foreign = parse(&pod("example.com/engine", "x"), &NodeCeilings::default());

        assert_eq!(wrong.unwrap_err()[0].field, "metadata.annotations[copepod.dev/engine]");
        assert!(foreign.is_ok());
    }

    #[test]
    fn a_value_is_read_within_the_nodes_ceiling() {
        let ceilings = NodeCeilings { http_reuse: 10, ..NodeCeilings::default() };
        for (key, value, good) in [
            ("copepod.dev/http-reuse", "10", true),
            ("copepod.dev/http-reuse", "11", false),
            ("copepod.dev/http-reuse", "0", false),
            ("copepod.dev/http-concurrency", "-1", false),
            ("copepod.dev/http-timeout", "500ms", true),
            ("copepod.dev/http-timeout", "2m", true),
            ("copepod.dev/http-timeout", "2", false),
            ("copepod.dev/http-timeout", "0s", false),
            ("copepod.dev/http-timeout", "99999999999999999999s", false),
            ("copepod.dev/http-timeout", "61m", false),
        ] {
            assert_eq!(parse(&pod(key, value), &ceilings).is_ok(), good, "{key}={value}");
        }
    }

    #[test]
    fn an_unknown_runtime_class_is_refused() {
        let mut pod = Pod::default();
        let spec = pod.spec.get_or_insert_default();
        spec.runtime_class_name = Some("kata".to_owned());

        let wrong = parse(&pod, &NodeCeilings::default()).unwrap_err();

        assert_eq!(wrong[0].field, "spec.runtimeClassName");
    }
}
