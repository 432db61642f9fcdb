//! What an error of the API server means to the person who set this node up: one sentence, and what to do.
//!
//! Start at [`explain`]. Pure. Absent: whether to try again, which each caller decides; all of these may pass.

use std::error::Error;
use std::io;

use kube::core::Status;
use rustls::CertificateError;

use copepod_agent::with_causes;

/// The error in one sentence, with what to do about it where that is known.
pub fn explain(error: &kube::Error, server: &http::Uri) -> String {
    if let kube::Error::Api(status) = error {
        return of_status(status);
    }
    of_connection(error, server).unwrap_or_else(|| format!("{server}: {}", with_causes(error)))
}

fn of_status(status: &Status) -> String {
    match status.code {
        401 => format!(
            "the API server does not know this node (401 {}): its certificate is not signed by the authority that the API server \
             takes clients from, or its token has ended; give the node a new kubeconfig",
            status.reason
        ),
        403 => match missing_rule(&status.message) {
            Some(rule) => format!(
                "{}; add this rule to a ClusterRole that is bound to this user: {rule}",
                status.message
            ),
            None => format!("the API server forbids it: {}", status.message),
        },
        _ if status.message.is_empty() => {
            format!("the API server answered {} {}", status.code, status.reason)
        }
        _ => format!("the API server answered {}: {}", status.code, status.message),
    }
}

/// The rule that RBAC lacks, from the text with which an API server refuses:
/// `… User "u" cannot create resource "nodes" in API group "" at the cluster scope`.
fn missing_rule(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("\" cannot ")?;
    let (verb, rest) = rest.split_once(" resource \"")?;
    let (resource, rest) = rest.split_once('"')?;
    let group = rest
        .split_once("API group \"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map(|(group, _)| group);
    // A node's own user is authorized by other means, and what it may not do no rule should allow.
    if message.contains("User \"system:node:") {
        return None;
    }
    Some(format!(
        "{{apiGroups: [{:?}], resources: [{resource:?}], verbs: [{verb:?}]}}",
        group.unwrap_or_default()
    ))
}

fn of_connection(error: &(dyn Error + 'static), server: &http::Uri) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = as_tls(error) {
            return Some(of_tls(tls, server));
        }
        // Inside of an I/O error may be one of TLS.
        let io = error.downcast_ref::<io::Error>();
        if let Some(inner) = io.and_then(io::Error::get_ref)
            && let Some(found) = of_connection(inner, server)
        {
            return Some(found);
        }
        if let Some(io) = io
            && let Some(text) = of_io(io, server)
        {
            return Some(text);
        }
        next = error.source();
    }
    None
}

fn as_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    error.downcast_ref::<rustls::Error>()
}

fn of_io(error: &io::Error, server: &http::Uri) -> Option<String> {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nothing listens there: is the API server running, and is the port right?"
        }
        io::ErrorKind::TimedOut => {
            "it does not answer: is the address right, and does a firewall let it through?"
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "no way leads there: is the address right, and is this machine's network up?"
        }
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe => {
            "it closes the connection: is it still starting, and does it speak TLS on this port?"
        }
        _ if error.to_string().contains("lookup address") => {
            "its name cannot be resolved: is the name right, and does this machine's DNS know it?"
        }
        _ => return None,
    };
    Some(format!("the API server at {server} cannot be reached ({error}): {why}"))
}

fn of_tls(error: &rustls::Error, server: &http::Uri) -> String {
    if matches!(error, rustls::Error::InconsistentKeys(_)) {
        return "the client key of the kubeconfig is not its client certificate's: give both from one pair".into();
    }
    let why = match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is not signed by the authority in the kubeconfig: put the API server's own one into \
                 certificate-authority-data (kubectl config view --raw --minify shows it)"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has ended, by this machine's clock: compare the clocks, else renew the certificate"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate has not begun, by this machine's clock: set the clock"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is not for this name: use a name or address that it has, or set tls-server-name"
            }
            _ => "its certificate cannot be used",
        },
        rustls::Error::AlertReceived(_) => {
            "it refuses this node's certificate: is the certificate of this cluster, and do the clocks agree?"
        }
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS on this port: is the port right?"
        }
        _ => "the secure connection fails",
    };
    format!("the API server at {server} is not trusted ({error}): {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, message: &str) -> String {
        let status = Status::failure(message, "Reason").with_code(code).boxed();
        explain(&kube::Error::Api(status), &server())
    }

    fn server() -> http::Uri {
        "https://192.0.2.1:6443".parse().expect("an address")
    }

    fn io(error: impl Into<Box<dyn Error + Send + Sync>>) -> String {
        let inner = io::Error::other(error);
        explain(&kube::Error::Service(Box::new(io::Error::other(inner))), &server())
    }

    #[test]
    fn a_missing_right_is_told_with_the_rule_to_add() {
        let text = api(
            403,
            "leases.coordination.k8s.io is forbidden: User \"system:serviceaccount:a:b\" cannot create resource \"leases\" in API \
             group \"coordination.k8s.io\" in the namespace \"kube-node-lease\"",
        );

        let rule =
            r#"{apiGroups: ["coordination.k8s.io"], resources: ["leases"], verbs: ["create"]}"#;
        assert!(text.ends_with(rule), "{text}");
    }

    #[test]
    fn what_a_node_may_never_do_is_told_without_a_rule() {
        let text = api(
            403,
            "nodes \"n2\" is forbidden: User \"system:node:n1\" cannot patch resource \"nodes\" in API group \"\"",
        );

        assert!(text.contains("forbids it") && !text.contains("verbs"), "{text}");
    }

    #[test]
    fn what_fails_on_the_way_is_told_with_what_to_look_at() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let certificate = |why| rustls::Error::InvalidCertificate(why);
        let table = [
            (io(refused()), "is the API server running"),
            (io(certificate(CertificateError::UnknownIssuer)), "certificate-authority-data"),
            (io(certificate(CertificateError::NotValidForName)), "tls-server-name"),
            (io(certificate(CertificateError::Expired)), "compare the clocks"),
            (
                io(rustls::Error::AlertReceived(rustls::AlertDescription::BadCertificate)),
                "refuses this node's certificate",
            ),
            (api(401, "Unauthorized"), "does not know this node"),
            (api(500, "etcdserver: leader changed"), "etcdserver: leader changed"),
        ];
        for (text, expected) in table {
            assert!(text.contains(expected), "{text}");
        }
    }
}
