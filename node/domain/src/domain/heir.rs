//! A second runner in a domain's tree, to take over from the first without anybody's noticing.
//!
//! ```text
//! start_heir ──▶ beside its ancestor ──take_over──▶ on record ──▶ the domain's runner; the ancestor ends by itself
//!                                                       └─step_back──▶ beside its ancestor again
//! ```
//! Both have the same user, network, cgroup and files, each its own mount namespace and socket. Absent: what the ancestor hands over, and that
//! both can serve at once (`copepod_shim::protocol`).

use std::os::fd::AsFd;

use copepod_shim::stage;

use super::{
    Ancestry, Domain, DomainSpec, Shared, bear, code_target, has_ended, network_of, remove_socket,
    show_code,
};
use crate::error::HostError;
use crate::host::blocking;
use crate::mounts;
use crate::tree::Record;

/// A second runner in the tree, the network and the cgroup of a domain, under its user. It is not on record: the agent's death, or the
/// value's, is its own.
#[derive(Debug)]
pub struct Heir {
    domain: Domain,
    ancestor: Domain,
    /// With the heir's runner, and with the ancestor's.
    records: (Record, Record),
    /// It is not ended with this value.
    ends_by_itself: bool,
}

impl Heir {
    /// The domain as it is with this runner in it.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Puts it on record in its ancestor's place: from now on the next agent finds this one.
    ///
    /// # Errors
    /// The file system's; then nothing has changed.
    pub async fn take_over(&self) -> Result<(), HostError> {
        let (tree, record) = (self.domain.inner.tree.clone(), self.records.0.clone());
        blocking(move || tree.write_record(&record)).await
    }

    /// Puts the ancestor back on record.
    ///
    /// # Errors
    /// The file system's.
    pub async fn step_back(&self) -> Result<(), HostError> {
        let (tree, record) = (self.domain.inner.tree.clone(), self.records.1.clone());
        blocking(move || tree.write_record(&record)).await
    }

    /// It has been told to end, and will by itself.
    pub fn let_go(mut self) {
        self.ends_by_itself = true;
    }

    /// The ancestor has left everything to it, and will end by itself.
    pub async fn into_domain(mut self) -> Domain {
        self.ends_by_itself = true;
        let (domain, ancestor) = (self.domain.clone(), self.ancestor.clone());
        let [new, old] = [&self.records.0, &self.records.1]
            .map(|it| it.runner.as_ref().map(|it| it.code.clone()));
        let cleared = blocking(move || {
            // The ancestor's code is loaded; the mount is not needed for it.
            if let Some(code) = old.filter(|old| Some(old) != new.as_ref()) {
                mounts::unmount(ancestor.inner.root.as_fd(), &code)?;
            }
            remove_socket(&ancestor.inner.tree, ancestor.inner.socket)
        });
        if let Err(error) = cleared.await {
            tracing::warn!(%error, "what a runner has left behind is not removed");
        }
        domain
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        if !self.ends_by_itself {
            self.domain.kill();
        }
    }
}

/// Starts an heir beside a domain's runner.
pub(super) fn start(ancestor: &Domain, spec: &DomainSpec) -> Result<Heir, HostError> {
    let Shared { host, tree, .. } = &*ancestor.inner;
    if host.user.is_some() {
        return Err(HostError::Invalid("an ordinary user's runner has no heir".into()));
    }
    let lost = || HostError::Invalid(format!("domain {} is not on record", spec.id));
    let old = tree.read_record().ok_or_else(lost)?;
    let network = network_of(ancestor.inner.pid)?;
    if has_ended(ancestor.pidfd()) {
        return Err(HostError::Invalid(format!("the runner of domain {} has ended", spec.id)));
    }
    let root = mounts::open_path(&tree.root())?;
    let code = code_target(&spec.code)?;
    if old.runner.as_ref().is_none_or(|runner| runner.code != code) {
        // Of an heir that did not come to anything.
        mounts::unmount(root.as_fd(), &code)?;
        show_code(&root, &spec.code)?;
    }
    let mut record = old.clone();
    let shared = if old.own_network { stage::Network::Shared } else { stage::Network::Host };
    let ancestry = Ancestry { network: shared, from: Some(network.as_fd()) };
    let mut born = bear(host, spec, tree, &mut record, &root, ancestry)?;
    born.link = ancestor.inner.link.clone();
    let domain = born.into_domain(host, spec.id.clone(), tree.clone(), old.uid, root);
    let ancestor = ancestor.clone();
    Ok(Heir { domain, ancestor, records: (record, old), ends_by_itself: false })
}
