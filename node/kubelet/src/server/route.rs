//! From a method and a path to what is asked, and to what one must be allowed for it. Pure.
//!
//! A path is taken apart once, and both the answer and the rights follow from the same parts: no spelling of a path can be
//! authorized as one thing and served as another. Absent: who asks ([`super::access`]), and every answer.

use copepod_agent::api::PodName;
use http::Method;

/// What one must be allowed, as a SubjectAccessReview has it: `nodes/<subresource>` of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// `get`, `create` and so on.
    pub verb: &'static str,
    /// `proxy`, `metrics` and so on.
    pub subresource: &'static str,
}

/// A container of a pod, as the path names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) pod: PodName,
    pub(crate) uid: Option<String>,
    pub(crate) container: String,
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// All checks, or the one that is named.
    Healthz(Option<String>),
    Pods,
    RunningPods,
    Summary,
    Metrics,
    ResourceMetrics,
    ProbeMetrics,
    Configz,
    ContainerLogs(Target),
    Exec(Target),
    Attach(Target),
    PortForward {
        pod: PodName,
        uid: Option<String>,
    },
    /// Something that upstream can switch off, and we have switched off: 405 with this sentence.
    Off(&'static str),
    /// Nothing.
    Unknown,
}

impl Route {
    /// One word for it, of few.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Healthz(_) => "healthz",
            Self::Pods => "pods",
            Self::RunningPods => "runningpods",
            Self::Summary => "stats",
            Self::Metrics => "metrics",
            Self::ResourceMetrics => "metrics/resource",
            Self::ProbeMetrics => "metrics/probes",
            Self::Configz => "configz",
            Self::ContainerLogs(_) => "containerLogs",
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward { .. } => "portForward",
            Self::Off(_) | Self::Unknown => "other",
        }
    }
}

/// Which of a node's subresources cover a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cover {
    /// The first that is allowed suffices.
    Any(&'static [&'static str]),
    /// Code runs, or a connection is made: `create` on `proxy`, whatever the method. A WebSocket comes as a GET, and the right to
    /// look must not be a right to run (kubelets ask for `get nodes/proxy` only).
    Run,
}

/// A request's path, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) route: Route,
    cover: Cover,
}

impl Asked {
    /// Takes a path apart; `None` where it is not even a path.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let parts: Option<Vec<String>> =
            path.strip_prefix('/')?.split('/').map(|part| decode(part, false)).collect();
        let mut parts = parts?;
        // `/pods/` is `/pods`, as for upstream.
        if parts.last().is_some_and(String::is_empty) {
            parts.pop();
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Some(Self { route: route(&parts), cover: cover(&parts) })
    }

    /// What one must be allowed: one of these suffices. None: nobody may.
    pub(crate) fn attributes(&self, method: &Method) -> Vec<Attributes> {
        match self.cover {
            Cover::Run => vec![Attributes { verb: "create", subresource: "proxy" }],
            Cover::Any(subresources) => match verb(method) {
                Some(verb) => subresources
                    .iter()
                    .map(|&subresource| Attributes { verb, subresource })
                    .collect(),
                None => Vec::new(),
            },
        }
    }

    /// The methods that are answered.
    pub(crate) fn methods(&self) -> &'static [Method] {
        const READ: &[Method] = &[Method::GET];
        const BOTH: &[Method] = &[Method::GET, Method::POST];
        match self.route {
            Route::Summary | Route::Exec(_) | Route::Attach(_) | Route::PortForward { .. } => BOTH,
            _ => READ,
        }
    }
}

fn verb(method: &Method) -> Option<&'static str> {
    Some(match *method {
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return None,
    })
}

fn cover(parts: &[&str]) -> Cover {
    Cover::Any(match parts.first().copied().unwrap_or_default() {
        "exec" | "attach" | "run" | "portForward" => return Cover::Run,
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        _ => &["proxy"],
    })
}

fn route(parts: &[&str]) -> Route {
    let pod = |namespace: &str, name: &str| PodName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let target = |rest: &[&str]| match *rest {
        [namespace, name, container] => {
            Some(Target { pod: pod(namespace, name), uid: None, container: container.to_owned() })
        }
        [namespace, name, uid, container] => Some(Target {
            pod: pod(namespace, name),
            uid: Some(uid.to_owned()),
            container: container.to_owned(),
        }),
        _ => None,
    };
    match *parts {
        ["healthz"] => Route::Healthz(None),
        ["healthz", check] => Route::Healthz(Some(check.to_owned())),
        ["pods"] => Route::Pods,
        ["runningpods"] => Route::RunningPods,
        ["stats", "summary"] => Route::Summary,
        ["metrics"] => Route::Metrics,
        ["metrics", "resource"] => Route::ResourceMetrics,
        ["metrics", "probes"] => Route::ProbeMetrics,
        ["configz"] => Route::Configz,
        ["containerLogs", ref rest @ ..] if rest.len() == 3 => {
            target(rest).map_or(Route::Unknown, Route::ContainerLogs)
        }
        ["exec", ref rest @ ..] => target(rest).map_or(Route::Unknown, Route::Exec),
        ["attach", ref rest @ ..] => target(rest).map_or(Route::Unknown, Route::Attach),
        ["portForward", namespace, name] => {
            Route::PortForward { pod: pod(namespace, name), uid: None }
        }
        ["portForward", namespace, name, uid] => {
            Route::PortForward { pod: pod(namespace, name), uid: Some(uid.to_owned()) }
        }
        ["run", ..] => Route::Off("run endpoint is disabled."),
        ["logs", ..] => Route::Off("logs endpoint is disabled."),
        ["debug", "pprof", ..] => Route::Off("profiling endpoint is disabled."),
        ["debug", "flags", "v"] => Route::Off("flags endpoint is disabled."),
        _ => Route::Unknown,
    }
}

/// A query's keys and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Takes a query apart; `None` where an escape in it is none.
    pub(crate) fn parse(query: &str) -> Option<Self> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key, true)?, decode(value, true)?))
        });
        pairs.collect::<Option<_>>().map(Self)
    }

    /// The first value of a key.
    pub(crate) fn first(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// All values of a key.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// Undoes percent escapes, and in a query `+` for a space.
fn decode(text: &str, plus: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if plus => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(method: Method, path: &str) -> String {
        let asked = Asked::parse(path).expect("a path");
        let each = asked.attributes(&method);
        let each: Vec<_> =
            each.iter().map(|it| format!("{} {}", it.verb, it.subresource)).collect();
        each.join(", ")
    }

    #[test]
    fn each_route_and_method_needs_the_rights_that_a_kubelet_asks_for() {
        let table = [
            ("/healthz", "get healthz, get proxy", "create healthz, create proxy"),
            ("/healthz/syncloop", "get healthz, get proxy", "create healthz, create proxy"),
            ("/pods", "get pods, get proxy", "create pods, create proxy"),
            ("/pods/", "get pods, get proxy", "create pods, create proxy"),
            ("/runningpods/", "get pods, get proxy", "create pods, create proxy"),
            ("/configz", "get configz, get proxy", "create configz, create proxy"),
            ("/flagz", "get configz", "create configz"),
            ("/statusz", "get statusz", "create statusz"),
            ("/stats/summary", "get stats", "create stats"),
            ("/stats", "get stats", "create stats"),
            ("/metrics", "get metrics", "create metrics"),
            ("/metrics/resource", "get metrics", "create metrics"),
            ("/metrics/cadvisor", "get metrics", "create metrics"),
            ("/logs/", "get log", "create log"),
            ("/logs/kubelet.log", "get log", "create log"),
            ("/checkpoint/n/p/c", "get checkpoint", "create checkpoint"),
            ("/containerLogs/n/p/c", "get proxy", "create proxy"),
            ("/debug/pprof/heap", "get proxy", "create proxy"),
            ("/debug/flags/v", "get proxy", "create proxy"),
            ("/", "get proxy", "create proxy"),
            ("/podsX", "get proxy", "create proxy"),
            ("/metrics2", "get proxy", "create proxy"),
            ("//metrics", "get proxy", "create proxy"),
            ("/x/../metrics", "get proxy", "create proxy"),
        ];
        for (path, get, post) in table {
            assert_eq!(rights(Method::GET, path), get, "GET {path}");
            assert_eq!(rights(Method::POST, path), post, "POST {path}");
        }
    }

    #[test]
    fn what_runs_code_or_connects_needs_create_by_whatever_method_it_is_asked() {
        let paths = [
            "/exec/n/p/c",
            "/exec",
            "/attach/n/p/u/c",
            "/run/n/p/c",
            "/portForward/n/p",
            "/%65xec/n/p/c",
        ];
        let methods =
            [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS];
        for path in paths {
            for method in methods.clone() {
                assert_eq!(rights(method.clone(), path), "create proxy", "{method} {path}");
            }
        }
    }

    #[test]
    fn a_method_without_a_verb_is_allowed_to_nobody() {
        assert_eq!(rights(Method::HEAD, "/pods"), "");
        assert_eq!(rights(Method::OPTIONS, "/metrics"), "");
        assert_eq!(rights(Method::from_bytes(b"GET2").expect("a method"), "/pods"), "");
    }

    #[test]
    fn an_escape_changes_neither_rights_nor_route() {
        let plain = Asked::parse("/metrics/resource").expect("a path");

        assert_eq!(Asked::parse("/%6detrics/r%65source").expect("a path"), plain);
        let slash = Asked::parse("/metrics%2Fresource").expect("a path");
        assert_eq!(slash.route, Route::Unknown);
        assert_eq!(slash.attributes(&Method::GET)[0].subresource, "proxy");
    }

    #[test]
    fn a_container_is_named_with_or_without_its_pod_s_uid() {
        let pod = PodName { namespace: "n".into(), name: "p".into() };
        let route = |path: &str| Asked::parse(path).expect("a path").route;

        let target = Target { pod: pod.clone(), uid: None, container: "c".into() };
        assert_eq!(route("/exec/n/p/c"), Route::Exec(target.clone()));
        assert_eq!(route("/containerLogs/n/p/c"), Route::ContainerLogs(target.clone()));
        let with_uid = Target { uid: Some("u".into()), ..target };
        assert_eq!(route("/attach/n/p/u/c"), Route::Attach(with_uid));
        assert_eq!(route("/portForward/n/p/u"), Route::PortForward { pod, uid: Some("u".into()) });
        for path in ["/exec/n/p", "/containerLogs/n/p/u/c", "/portForward/n", "/exec/n/p/u/c/x"] {
            assert_eq!(route(path), Route::Unknown, "{path}");
        }
    }

    #[test]
    fn a_query_is_read_with_its_repetitions_and_escapes() {
        let query =
            Query::parse("command=sh&command=-c&command=echo+a%26b&output=1&tty").expect("a query");

        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo a&b"]);
        assert_eq!(query.first("output"), Some("1"));
        assert_eq!(query.first("tty"), Some(""));
        assert_eq!(query.first("input"), None);
        assert_eq!(Query::parse("a=%zz"), None);
        assert_eq!(Query::parse("a=%ff"), None);
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for path in ["", "*", "pods", "/%", "/%f", "/%ff"] {
            assert_eq!(Asked::parse(path), None, "{path}");
        }
    }
}
