//! Whom a registry's certificate must come from, and in words what to do where it does not.
//!
//! Trusted are the system's authorities (or those in `SSL_CERT_FILE` and `SSL_CERT_DIR`), and for one registry alone those in its
//! folder, as podman and Docker have it: `certs.d/HOST:PORT/*.crt`. Absent: certificates that we would show ourselves.

use std::error::Error;
use std::io;
use std::path::{Component, Path, PathBuf};

use reqwest::Certificate;
use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// Where a registry's own authorities may be, for every user of the machine.
pub const CA_FOLDERS: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// The folder of `registry` among those of all registries: the first that is there.
pub(crate) fn folder(folders: &[PathBuf], registry: &str) -> Option<PathBuf> {
    let mut steps = Path::new(registry).components();
    let is_one_step = matches!((steps.next(), steps.next()), (Some(Component::Normal(_)), None));
    let mut places = folders.iter().map(|folders| folders.join(registry));
    places.find(|place| is_one_step && place.is_dir())
}

/// The authorities in a registry's folder: its `*.crt` files.
pub(crate) fn authorities(folder: &Path) -> Result<Vec<Certificate>, String> {
    let unreadable = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| unreadable(folder, error))? {
        let path = entry.map_err(|error| unreadable(folder, error))?.path();
        if path.extension().is_none_or(|extension| extension != "crt") {
            continue;
        }
        let pem = std::fs::read(&path).map_err(|error| unreadable(&path, error))?;
        let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if certificates.is_empty() {
            return Err(format!("{} holds no certificate in PEM form", path.display()));
        }
        found.extend(certificates);
    }
    Ok(found)
}

/// What a failed request says about TLS, and what to do. `shown` is the address, `registry` its folder's name.
pub(crate) fn in_words(error: &reqwest::Error, shown: &str, registry: &str) -> Option<String> {
    Some(match tls_error(error)? {
        rustls::Error::InvalidCertificate(why) => match why {
            // The latter: of an authority with the name of a trusted one and another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "no authority that is trusted here has signed the certificate of {shown}: put its authority's certificate at \
                 {}/{registry}/ca.crt, or add it to the system's",
                CA_FOLDERS[0]
            ),
            CertificateError::NotValidForName => another_name(shown, ""),
            CertificateError::NotValidForNameContext { presented, .. } => {
                let names: String = presented.join(", ").chars().take(100).collect();
                another_name(shown, &format!(" ({names})"))
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!(
                "the certificate of {shown} has expired: the registry has to renew it, unless this machine's clock is wrong"
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!(
                    "the certificate of {shown} is not valid yet: is this machine's clock right?"
                )
            }
            other => format!("the certificate of {shown} is not accepted: {other}"),
        },
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => format!(
            "{shown} does not speak TLS, and plain HTTP is only spoken to a registry on this machine's loopback: give it a \
             certificate"
        ),
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            format!("{shown} wants a client's certificate, and copepod shows none: log in instead")
        }
        _ => return None,
    })
}

fn another_name(shown: &str, names: &str) -> String {
    format!(
        "the certificate of {shown} is for another name{names}: name the registry as its certificate does"
    )
}

/// The TLS error among an error's causes. An I/O error does not tell what it holds as its cause.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(held) => Some(held as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_s_folder_is_the_first_of_its_name_and_never_outside_of_them() {
        let all = tempfile::tempdir().expect("a folder");
        let folders = [all.path().join("own"), all.path().join("system")];
        for made in ["own/a.example:5000", "system/a.example:5000", "system/b.example"] {
            std::fs::create_dir_all(all.path().join(made)).expect("made");
        }

        let found = |registry: &str| folder(&folders, registry);

        assert_eq!(found("a.example:5000"), Some(folders[0].join("a.example:5000")));
        assert_eq!(found("b.example"), Some(folders[1].join("b.example")));
        for none in ["a.example", "..", ".", "", "/", "../own/a.example:5000"] {
            assert_eq!(found(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_file_that_should_be_an_authority_and_is_none_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("client.key"), "not looked at").expect("written");
        assert_eq!(authorities(folder.path()).map(|all| all.len()), Ok(0));

        std::fs::write(folder.path().join("ca.crt"), "nonsense").expect("written");

        let why = authorities(folder.path()).expect_err("nonsense");
        assert!(why.contains("ca.crt holds no certificate"), "{why}");
    }
}
