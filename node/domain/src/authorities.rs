//! The certificates of the authorities that this node trusts, laid where a domain's runner finds them.
//!
//! One copy in the data directory serves all domains by hard links: a bundle is 200 KiB, and a node has hundreds of domains.
//! Absent: what they are for (guests' `https` requests, in the runner), and authorities of a pod's own.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Where distributions keep the bundle: Debian, Ubuntu, Alpine, Arch; Fedora and RHEL; openSUSE; and OpenSSL's own default.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The file's name, in the data directory and in a domain's `ro`.
const NAME: &str = "ca-certificates.crt";

/// Lays the bundle into a domain's `ro`; a node without one lays nothing, and guests' requests say so.
///
/// A domain keeps the bundle that the node had when its runner started.
pub(crate) fn lay(data: &Path, ro: &Path) -> io::Result<()> {
    let named = std::env::var_os("SSL_CERT_FILE");
    match find(named.as_deref(), &BUNDLES) {
        Some(bundle) => link(&up_to_date_copy(&bundle, data)?, &ro.join(NAME)),
        None => Ok(()),
    }
}

/// The file that the environment names, or else the first that is there.
fn find(named: Option<&OsStr>, bundles: &[&str]) -> Option<PathBuf> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    bundles.iter().map(PathBuf::from).find(|bundle| bundle.is_file())
}

/// The data directory's copy, made anew where the bundle has changed. Domains that have the old one keep it.
fn up_to_date_copy(bundle: &Path, data: &Path) -> io::Result<PathBuf> {
    // Domains start side by side.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let copy = data.join(NAME);
    let now = fs::read(bundle)?;
    if fs::read(&copy).is_ok_and(|before| before == now) {
        return Ok(copy);
    }
    let new = data.join(format!("{NAME}.new"));
    fs::write(&new, now)?;
    // Runners have users of their own, whatever the agent's umask is.
    fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
    fs::rename(&new, &copy)?;
    Ok(copy)
}

fn link(copy: &Path, target: &Path) -> io::Result<()> {
    match fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::hard_link(copy, target)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_file_that_the_environment_names_is_taken_before_any_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let there = folder.path().join("there");
        fs::write(&there, "bundle").expect("written");
        let bundles = ["/no/such", there.to_str().expect("text")];

        assert_eq!(find(Some(OsStr::new("/mine")), &bundles), Some("/mine".into()));
        assert_eq!(find(Some(OsStr::new("")), &bundles), Some(there.clone()));
        assert_eq!(find(None, &bundles), Some(there.clone()));
        assert_eq!(find(None, &["/no/such"]), None);
    }

    #[test]
    fn domains_share_one_copy_and_a_changed_bundle_reaches_the_next_one() {
        let data = tempfile::tempdir().expect("a folder");
        let path = |name: &str| data.path().join(name);
        let give = |to: &str| {
            let copy = up_to_date_copy(&path("bundle"), data.path()).expect("copied");
            link(&copy, &path(to)).expect("linked");
        };
        fs::write(path("bundle"), "old").expect("written");
        give("first");
        give("second");
        fs::write(path("bundle"), "new").expect("written");
        give("third");
        give("second");

        let read = |name: &str| fs::read_to_string(path(name)).expect("there");
        let inode = |name: &str| fs::metadata(path(name)).expect("there").ino();
        assert_eq!([read("first"), read("second"), read("third")], ["old", "new", "new"]);
        assert_eq!(inode("second"), inode("third"));
    }
}
