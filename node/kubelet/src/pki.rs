//! A certificate and its key: on disk in one file, so that they change together; and as TLS wants them.
//!
//! Absent: how a node comes to one ([`crate::csr`]), and when it changes ([`crate::rotation`]).

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

use crate::identity::CertificateFacts;
use crate::settings::NODE_GROUP;
use copepod_agent::write_whole;

/// Where a data directory keeps its pairs.
pub fn folder(data: &Path) -> PathBuf {
    data.join("pki")
}

/// The pair by which the node is known to the API server, where it has asked for one itself.
pub fn client_file(data: &Path) -> PathBuf {
    folder(data).join("client.pem")
}

/// The pair by which the API server knows the node.
pub fn serving_file(data: &Path) -> PathBuf {
    folder(data).join("serving.pem")
}

/// A certificate, with those between it and its authority, and its key; both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate first.
    pub certificates: String,
    /// The key.
    pub key: String,
}

// The key is nobody's business.
impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

impl Pair {
    /// From a file that holds both, in whatever order; none where there is no file.
    ///
    /// # Errors
    /// The file cannot be read, or lacks one of them.
    pub fn read(file: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (mut certificates, mut key) = (String::new(), String::new());
        let mut block = String::new();
        for line in text.lines() {
            block.push_str(line);
            block.push('\n');
            if line.starts_with("-----BEGIN ") {
                block = format!("{line}\n");
            } else if line.starts_with("-----END CERTIFICATE") {
                certificates.push_str(&std::mem::take(&mut block));
            } else if line.starts_with("-----END ") && line.contains("PRIVATE KEY") {
                key = std::mem::take(&mut block);
            }
        }
        if certificates.is_empty() || key.is_empty() {
            return Err(io::Error::other("it does not hold both a certificate and its key"));
        }
        Ok(Some(Self { certificates, key }))
    }

    /// Into a file that only its owner reads: whole, or not at all.
    ///
    /// # Errors
    /// The disk says no.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        if let Some(folder) = file.parent() {
            private_folder(folder)?;
        }
        write_whole(file, format!("{}{}", self.certificates, self.key).as_bytes(), 0o600)
    }

    /// Whose it is, and from when to when.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn facts(&self) -> Result<CertificateFacts, String> {
        CertificateFacts::of_pem(self.certificates.as_bytes())
    }

    /// As TLS wants it.
    ///
    /// # Errors
    /// What is wrong with it: a key that is not the certificate's, say.
    pub fn certified_key(&self) -> Result<CertifiedKey, String> {
        let chain = CertificateDer::pem_slice_iter(self.certificates.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|error| error.to_string())?;
        CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
            .map_err(|error| error.to_string())
    }

    /// The names and addresses that the certificate is for.
    pub fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let first = Pem::iter_from_buffer(self.certificates.as_bytes()).find_map(Result::ok);
        let Some(block) = first else { return names };
        let Ok(certificate) = block.parse_x509() else { return names };
        let Ok(Some(extension)) = certificate.subject_alternative_name() else { return names };
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.extend([(*name).to_owned()]),
                GeneralName::IPAddress(bytes) => {
                    names.extend(address(bytes).map(|it| it.to_string()))
                }
                _ => {}
            }
        }
        names
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// A folder for keys.
pub(crate) fn private_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;

    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// What a certificate of a node says of it: user, group, and what else it answers to.
///
/// # Errors
/// A name that no certificate can have.
pub(crate) fn subject(
    user: &str,
    names: &BTreeSet<String>,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, NODE_GROUP);
    params.distinguished_name.push(DnType::CommonName, user);
    Ok(params)
}

/// A pair that nobody but its maker vouches for: the kubelet's API has to be served before there is another (kubelet.md C6).
///
/// # Errors
/// A name that no certificate can have.
pub fn self_signed(
    user: &str,
    names: &BTreeSet<String>,
    now: Timestamp,
) -> Result<Pair, rcgen::Error> {
    let mut params = subject(user, names)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let today = now.to_zoned(TimeZone::UTC).date();
    let (month, day) = (today.month().unsigned_abs(), today.day().unsigned_abs().min(28));
    // From before now, as clocks differ.
    params.not_before = rcgen::date_time_ymd(today.year().into(), month, 1);
    params.not_after = rcgen::date_time_ymd(i32::from(today.year()) + 1, month, day);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(Pair { certificates: certificate.pem(), key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names() -> BTreeSet<String> {
        ["192.0.2.1", "2001:db8::1", "n1"].map(str::to_owned).into()
    }

    fn pair() -> Pair {
        self_signed("system:node:n1", &names(), "2026-12-31T12:00:00Z".parse().expect("a time"))
            .expect("a pair")
    }

    #[test]
    fn a_self_signed_pair_is_the_node_s_for_a_year() {
        let pair = pair();

        let facts = pair.facts().expect("good");
        assert_eq!(
            (facts.user.as_str(), facts.groups),
            ("system:node:n1", vec!["system:nodes".to_owned()])
        );
        assert_eq!(facts.from.to_string(), "2026-12-01T00:00:00Z");
        assert_eq!(facts.until.to_string(), "2027-12-28T00:00:00Z");
        assert_eq!(pair.names(), names());
        assert!(pair.certified_key().is_ok());
    }

    #[test]
    fn a_pair_comes_back_from_its_file_which_only_its_owner_reads() {
        let data = tempfile::tempdir().expect("a folder");
        let (file, pair) = (client_file(data.path()), pair());

        pair.write(&file).expect("written");

        assert_eq!(Pair::read(&file).expect("read"), Some(pair));
        let mode =
            |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(&folder(data.path()))), (0o600, 0o700));
        assert_eq!(Pair::read(&serving_file(data.path())).expect("read"), None);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let mixed = Pair { key: pair().key, ..pair() };

        assert!(mixed.certified_key().is_err());
        assert!(!format!("{mixed:?}").contains("PRIVATE"));
    }
}
