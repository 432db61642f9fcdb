//! Everything of this machine that one data directory owns, and the list of what was changed for it.
//!
//! Absent: one domain's life (`domain`); the lock on the data directory and the agent's socket (`copepod-agent`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

use crate::broker;
use crate::cgroup::{self, Cgroups, NoGroups};
use crate::cidr::{Blocks, Cidr};
use crate::domain;
use crate::domain::{Adopted, Domain, DomainSpec};
use crate::error::{HostError, Step};
use crate::mounts;
use crate::names::{DataId, DomainId, DomainIndex};
use crate::netlink::{Change, Netlink};
use crate::network;
use crate::nft::{self, Nft, Rules};
use crate::tree::Tree;
use crate::user;
use crate::ways;

/// A runner's instances need five map entries each; the kernel's default of 65,530 is reached at 13,388 (measured), and 28,000 ran with this.
const MAX_MAP_COUNT: u64 = 1_048_576;

/// Most open files of the agent and of each runner: the kernel's own default ceiling (`fs.nr_open`).
const MAX_FILES: u64 = 1_048_576;

/// The longest packet of a domain's link where no other link says so: Ethernet's.
const LINK_MTU: u32 = 1500;

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The data directory; made where it is not there.
    pub data: PathBuf,
    /// The pods' blocks of addresses; none: a free /18 of 10.64.0.0/10, kept.
    pub pod_cidrs: Option<Blocks>,
    /// Whether pods reach the world beyond the node under the node's address; else they do under their own.
    pub masquerade: bool,
    /// Blocks that pods reach under their own addresses.
    pub masquerade_exceptions: Vec<Cidr>,
    /// More of them until [`Host::set_direct`] says otherwise: as it last did.
    pub direct: Vec<Cidr>,
    /// TCP ports of the node that no pod reaches.
    pub denied_node_ports: Vec<u16>,
    /// The `nft` program; none: as [`Nft::find`] finds it.
    pub nft: Option<PathBuf>,
    /// The program that is the broker ([`crate::broker::serve`] on its standard input), with its arguments: for an ordinary user's
    /// pods, which do not run without.
    pub broker: Option<(PathBuf, Vec<String>)>,
}

impl HostConfig {
    /// A data directory with every default.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            pod_cidrs: None,
            masquerade: true,
            masquerade_exceptions: Vec::new(),
            direct: Vec::new(),
            denied_node_ports: Vec::new(),
            nft: None,
            broker: None,
        }
    }
}

/// A setting of the whole machine that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The file.
    pub path: PathBuf,
    /// What it said.
    pub before: String,
    /// What it says now.
    pub after: String,
    /// The network whose setting it is; none: the machine's.
    #[serde(default)]
    pub network: Option<String>,
}

/// Everything of this machine that one data directory owns. Clones share it.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) data: PathBuf,
    pub(crate) id: DataId,
    pub(crate) blocks: Blocks,
    pub(crate) mtu: u32,
    pub(crate) max_files: u64,
    pub(crate) cgroups: Box<dyn Cgroups>,
    pub(crate) namespace: OwnedFd,
    /// An ordinary user's namespaces; none for root.
    pub(crate) user: Option<user::Ground>,
    netlink: Mutex<Netlink>,
    indexes: Mutex<()>,
    pub(crate) nft: Option<Nft>,
    /// Of these, pods' addresses lead to each other, the node and known blocks only.
    pub(crate) confined: Vec<Cidr>,
    rules: Mutex<Rules>,
    /// Those that the operator named, which are always among the rules'.
    pub(crate) exceptions: Vec<Cidr>,
    warnings: Vec<String>,
}

impl Host {
    /// Takes possession: the pinned mount namespace, the claim of addresses, the limits, the packet filter. An ordinary user enters a
    /// user namespace first, and what is root's alone is left out.
    ///
    /// To be called before any thread is started that touches the data directory: the mount namespace is the calling thread's and that
    /// of threads it starts later. Of an ordinary user's process it has to be the only thread.
    ///
    /// # Errors
    /// Not root, and no user namespaces here, or no broker; the configured block is occupied; a step that the kernel refused.
    pub fn enter(config: HostConfig) -> Result<Self, HostError> {
        let data = &config.data;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data)
            .step(|| format!("make {}", data.display()))?;
        let data = fs::canonicalize(data).step(|| format!("find {}", data.display()))?;
        let id = id_of(&data)?;
        if !rustix::process::geteuid().is_root() {
            let (program, arguments) = config.broker.as_ref().ok_or(HostError::NotRoot)?;
            let ground = user::Ground::enter(&data, program, arguments)?;
            let namespace = ground.host.try_clone().step(|| "copy a descriptor".into())?;
            let entered = Inner::enter(config, data, id, namespace, Some(ground))?;
            return Ok(Self { inner: Arc::new(entered) });
        }
        let (namespace, fresh) = mounts::enter_pinned_namespace(&data)?;
        let copy = namespace.try_clone().step(|| "copy a descriptor".into())?;
        let entered = Inner::enter(config, data.clone(), id, copy, None);
        // What a first start could not finish is not left behind; after a restart, runners may live in it.
        if entered.is_err() && fresh {
            let undone =
                network::forget_claim(&data).and_then(|()| mounts::unpin(&data, namespace));
            if let Err(error) = undone {
                tracing::warn!(%error, "a start that failed leaves something behind");
            }
        }
        Ok(Self { inner: Arc::new(entered?) })
    }

    /// The data directory's id.
    pub fn id(&self) -> DataId {
        self.inner.id
    }

    /// The data directory, with no link in its path.
    pub fn data(&self) -> &Path {
        &self.inner.data
    }

    /// The pods' blocks of addresses.
    pub fn pod_cidrs(&self) -> Blocks {
        self.inner.blocks
    }

    /// The node's own addresses as pods see them, one in each block; requests of the host to pods come from them.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.inner.blocks.iter().map(Cidr::gateway).collect()
    }

    /// Whether pods reach the world beyond the node by all of their addresses.
    pub fn has_egress(&self) -> bool {
        self.inner.confined.is_empty()
    }

    /// Whether a second runner can take over from a first ([`crate::Heir`]): the network of an ordinary user's is of a user namespace that
    /// no other runner enters.
    pub fn can_have_heirs(&self) -> bool {
        self.inner.user.is_none()
    }

    /// What is missing here, each in a sentence with its remedy.
    pub fn warnings(&self) -> &[String] {
        &self.inner.warnings
    }

    /// Starts a domain's runner behind all its fences. Where one of this name has died, this is its successor: with its
    /// user, files, volumes on disk and exit records, and with none of its mounts.
    ///
    /// # Errors
    /// [`HostError::Invalid`] where it runs already; a step that failed, with nothing left of the domain.
    pub async fn start_domain(&self, spec: DomainSpec) -> Result<Domain, HostError> {
        let inner = self.inner.clone();
        blocking(move || domain::start(&inner, &spec)).await
    }

    /// Finds a domain's runner that an earlier agent started.
    ///
    /// # Errors
    /// A step that failed; a runner that is gone is [`Adopted::Dead`], not an error.
    pub async fn adopt_domain(&self, id: &DomainId) -> Result<Adopted, HostError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        blocking(move || domain::adopt(&inner, &id)).await
    }

    /// Ends a domain and removes all of it: processes, link, routes, mounts, files, cgroup. Its pods' logs, which lie elsewhere, stay.
    ///
    /// # Errors
    /// A step that failed; what came before it is done, and calling again goes on.
    pub async fn remove_domain(&self, id: &DomainId) -> Result<(), HostError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        blocking(move || domain::remove(&inner, &id)).await
    }

    /// The domains that have a directory, alive or not.
    ///
    /// # Errors
    /// The file system's.
    pub fn existing_domains(&self) -> Result<Vec<DomainId>, HostError> {
        self.inner.existing_domains()
    }

    /// The programs that the runners on record were started from, whether they live or not.
    ///
    /// # Errors
    /// The file system's.
    pub fn runner_programs(&self) -> Result<Vec<PathBuf>, HostError> {
        let mut programs = Vec::new();
        for id in self.inner.existing_domains()? {
            let record = Tree::new(&self.inner.data, id.as_str()).read_record();
            programs.extend(record.and_then(|record| record.runner).map(|runner| runner.program));
        }
        Ok(programs)
    }

    /// Undoes every change to this machine: all domains, then the rest. Images, logs and the id stay in the data directory.
    ///
    /// # Errors
    /// A step that failed; calling again goes on.
    pub async fn reset(self) -> Result<(), HostError> {
        blocking(move || self.inner.reset()).await
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(HostError::Failed { step: "finish a task".into(), source: io::Error::other(error) })
    })
}

fn place(user: Option<&user::Ground>) -> network::Place<'_> {
    user.map_or(network::Place::Host, |user| network::Place::Own(user.network.as_fd()))
}

impl Inner {
    /// The second part of [`Host::enter`], in the data directory's mount namespace.
    fn enter(
        config: HostConfig,
        data: PathBuf,
        id: DataId,
        namespace: OwnedFd,
        user: Option<user::Ground>,
    ) -> Result<Self, HostError> {
        let domains = data.join("domains");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&domains)
            .step(|| format!("make {}", domains.display()))?;

        let mut warnings = Vec::new();
        let max_files = raise_max_files(&mut warnings)?;
        let place = place(user.as_ref());
        let mut netlink = place.netlink()?;
        if user.is_some() {
            // What an ordinary user cannot raise, `copepod check` tells; here one line says it all.
            warnings = vec![user::LOST.into()];
            if let Some(blocks) = config.pod_cidrs.filter(|blocks| network::has_ipv6(*blocks)) {
                return Err(HostError::Invalid(format!(
                    "the pods of an ordinary user have IPv4 addresses only, not of {blocks}: give a block of IPv4, or run as root"
                )));
            }
            let blocks = network::claim(&mut netlink, &data, id, config.pod_cidrs, place)?;
            let rules = Rules {
                id,
                blocks,
                masquerade: false,
                exceptions: Vec::new(),
                denied_ports: Vec::new(),
            };
            return Ok(Self {
                data,
                id,
                blocks,
                mtu: LINK_MTU,
                max_files,
                cgroups: Box::new(NoGroups),
                namespace,
                user,
                netlink: Mutex::new(netlink),
                indexes: Mutex::new(()),
                nft: None,
                confined: Vec::new(),
                rules: Mutex::new(rules),
                exceptions: Vec::new(),
                warnings,
            });
        }
        let cgroups = cgroup::find(&id.table()).map_err(|source| HostError::Unsupported {
            what: "limiting the memory of pods".into(),
            remedy: format!(
                "mount a cgroup hierarchy with the controllers memory and pids ({source})"
            ),
        })?;

        let nft = Nft::find(config.nft.as_deref());
        // Before anything is claimed, and of what was: an earlier agent's pods may do without.
        let kept = network::kept_blocks(&data, place);
        if let Some(blocks) = kept.or(config.pod_cidrs) {
            check_needs(blocks, nft.as_ref())?;
        }
        let blocks = network::claim(&mut netlink, &data, id, config.pod_cidrs, place)?;
        check_needs(blocks, nft.as_ref())?;
        raise_max_map_count(&mut warnings)?;
        let exceptions = config.masquerade_exceptions;
        let rules = Rules {
            id,
            blocks,
            masquerade: config.masquerade,
            exceptions: exceptions.iter().copied().chain(config.direct).collect(),
            denied_ports: config.denied_node_ports,
        };
        match &nft {
            None if config.masquerade => warnings.push(format!(
                "nft was not found: pods reach each other and this machine, but nothing beyond it, and no port is published by the \
                 kernel; {}",
                nft::REMEDY
            )),
            None => warnings.push(format!(
                "nft was not found: what pods send is judged once instead of twice, and no port is published by the kernel; {}",
                nft::REMEDY
            )),
            Some(nft) => nft.load(&rules)?,
        }
        if network::has_ipv6(blocks) {
            forward_all_ipv6(&mut netlink)?;
        }
        let (mut confined, mut mtu) = (Vec::new(), 65_535);
        for block in blocks.iter() {
            let uplink = network::uplink(&mut netlink, block.base())?;
            let egress = uplink.as_ref().filter(|_| nft.is_some() || !config.masquerade);
            if let Some((link, _)) = egress {
                // Answers from the world arrive there, and are to be passed on.
                forward_on(link, block.base())?;
            } else {
                confined.push(block);
            }
            let confined_to = egress.is_none().then_some(rules.exceptions.as_slice());
            network::confine(&mut netlink, block, confined_to)?;
            mtu = mtu.min(uplink.map_or(LINK_MTU, |(_, mtu)| mtu));
        }
        Ok(Self {
            data,
            id,
            blocks,
            mtu: mtu.max(1280),
            max_files,
            cgroups,
            namespace,
            user: None,
            netlink: Mutex::new(netlink),
            indexes: Mutex::new(()),
            nft,
            confined,
            rules: Mutex::new(rules),
            exceptions,
            warnings,
        })
    }

    /// Where the domains' links end on our side.
    pub(crate) fn place(&self) -> network::Place<'_> {
        place(self.user.as_ref())
    }

    pub(crate) fn netlink(&self) -> MutexGuard<'_, Netlink> {
        // A panic in the middle of a request leaves a socket with an unread answer, which the sequence numbers sort out.
        self.netlink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn existing_domains(&self) -> Result<Vec<DomainId>, HostError> {
        let directory = self.data.join("domains");
        let step = || format!("list {}", directory.display());
        let mut domains = Vec::new();
        for entry in fs::read_dir(&directory).step(step)? {
            let name = entry.step(step)?.file_name();
            match name.into_string().map(DomainId::try_from) {
                Ok(Ok(id)) => domains.push(id),
                other => tracing::warn!(?other, "something that is no domain lies among them"),
            }
        }
        domains.sort();
        Ok(domains)
    }

    /// Reserves a number, and makes the domain's directory with `write` while nobody else reserves one.
    ///
    /// Numbers go round: one comes back after 65,535 others, and only where no file of its user is left among domains and logs.
    pub(crate) fn reserve(
        &self,
        write: impl FnOnce(DomainIndex, u32) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        let _turn = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.data.join("next-domain");
        let next: u16 =
            fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let first = self.id.first_uid();
        let mut taken = std::collections::BTreeSet::new();
        for id in self.existing_domains()? {
            let record = Tree::new(&self.data, id.as_str()).read_record();
            taken.extend(record.map(|record| record.index));
        }
        // The pods' log directories belong to their domain's user and outlive the domain.
        for log in fs::read_dir(self.data.join("logs/pods")).into_iter().flatten().flatten() {
            let owner = log.metadata().ok().and_then(|status| status.uid().checked_sub(first));
            taken.extend(owner.and_then(|number| u16::try_from(number).ok()).map(DomainIndex));
        }
        let index = (0..=u16::MAX)
            .map(|step| DomainIndex(next.wrapping_add(step)))
            .find(|index| !taken.contains(index))
            .ok_or(HostError::Exhausted("user for another domain"))?;
        fs::write(&file, index.0.wrapping_add(1).to_string())
            .step(|| format!("write {}", file.display()))?;
        // An ordinary user has one user to give, and is it.
        let uid = if self.user.is_some() { 0 } else { first + u32::from(index.0) };
        write(index, uid)
    }

    /// Unless another data directory's runners may live by the same settings: it has claimed its addresses before it takes the lock.
    fn undo_changes(&self) -> Result<(), HostError> {
        let changes = Changes::open()?;
        let here = self.place().name()?;
        let mut others_here = false;
        self.netlink()
            .routes(|route| others_here |= route.ours)
            .step(|| "read the routes".into())?;
        let mut in_use = network::networks_with_claims();
        in_use.remove(&here);
        if others_here {
            in_use.insert(here.clone());
        }
        changes.undo(&here, &in_use)
    }

    fn reset(&self) -> Result<(), HostError> {
        for id in self.existing_domains()? {
            domain::remove(self, &id)?;
        }
        if self.user.is_some() {
            // The rest is in namespaces that end with this process, and so does their broker.
            let _ = fs::remove_file(self.data.join("network.json"));
            let _ = fs::remove_file(broker::socket_path(&self.data));
            return Ok(());
        }
        if let Some(nft) = &self.nft {
            nft.remove(self.id)?;
            self.remove_ports()?;
        }
        let mut netlink = self.netlink();
        let step = || "list the links".to_owned();
        let prefix = self.id.link_prefix();
        let left: Vec<_> = netlink
            .links()
            .step(step)?
            .into_iter()
            .filter(|(_, name)| name.starts_with(&prefix))
            .map(|(_, name)| Change::remove_link(&name))
            .collect();
        netlink.apply(&left).step(|| "remove links".into())?;
        ways::remove_all(&mut netlink, self.id.metric())?;
        for block in self.blocks.iter() {
            network::confine(&mut netlink, block, None)?;
            network::release(&mut netlink, block)?;
        }
        drop(netlink);
        self.undo_changes()?;
        self.cgroups.remove_all().step(|| "remove the cgroup".into())?;
        let namespace = self.namespace.as_fd().try_clone_to_owned();
        mounts::unpin(&self.data, namespace.step(|| "copy a descriptor".into())?)?;
        let _ = fs::remove_file(self.data.join("network.json"));
        Ok(())
    }
}

/// The data directory's id; a new one is drawn from the kernel's random numbers.
fn id_of(data: &Path) -> Result<DataId, HostError> {
    let file = data.join("id");
    let step = || format!("read {}", file.display());
    match fs::read_to_string(&file) {
        Ok(text) => text.trim().parse().map_err(HostError::Invalid),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let random = fs::read_to_string("/proc/sys/kernel/random/uuid").step(step)?;
            let id: DataId = random.get(..8).unwrap_or("").parse().map_err(HostError::Invalid)?;
            fs::write(&file, format!("{id}\n")).step(|| format!("write {}", file.display()))?;
            Ok(id)
        }
        Err(error) => Err(error).step(step),
    }
}

/// As many open files as the kernel lets this process have, up to [`MAX_FILES`].
fn raise_max_files(warnings: &mut Vec<String>) -> Result<u64, HostError> {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let allowed = now.maximum.unwrap_or(u64::MAX);
    let ceiling = fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(MAX_FILES)
        .min(MAX_FILES);
    let limit = |files: u64| Rlimit { current: Some(files), maximum: Some(files.max(allowed)) };
    if rustix::process::setrlimit(Resource::Nofile, limit(ceiling)).is_ok() {
        return Ok(ceiling);
    }
    // A root without CAP_SYS_RESOURCE, as in many containers, cannot pass its own ceiling.
    let files = allowed.min(ceiling);
    rustix::process::setrlimit(Resource::Nofile, limit(files))
        .step(|| format!("allow {files} open files"))?;
    warnings.push(format!(
        "at most {files} open files (sockets included) per domain; raise the limit (ulimit -Hn, LimitNOFILE=) to {ceiling}"
    ));
    Ok(files)
}

fn raise_max_map_count(warnings: &mut Vec<String>) -> Result<(), HostError> {
    let path = Path::new("/proc/sys/vm/max_map_count");
    let now = fs::read_to_string(path).step(|| format!("read {}", path.display()))?;
    if now.trim().parse::<u64>().is_ok_and(|now| now >= MAX_MAP_COUNT) {
        return Ok(());
    }
    let set = Changes::open().and_then(|changes| changes.set(path, &MAX_MAP_COUNT.to_string()));
    if let Err(error) = set {
        warnings.push(format!(
            "{error}: about {} instances per domain at most; set vm.max_map_count to {MAX_MAP_COUNT}",
            now.trim().parse::<u64>().unwrap_or(0) / 5
        ));
    }
    Ok(())
}

/// Where the list of changed settings lies, and its name there.
const CHANGES: &str = "/run/copepod";
const LIST: &str = "changes.json";

/// The list of changed settings of the machine and of its networks. It is the machine's and not a data directory's, as the settings are: the last data
/// directory that is reset sets them back. Like the settings it does not outlive a reboot.
struct Changes {
    file: PathBuf,
    /// Held while the list is read or changed.
    _lock: fs::File,
}

impl Changes {
    fn open() -> Result<Self, HostError> {
        let directory = Path::new(CHANGES);
        let step = || format!("open the list of changes in {}", directory.display());
        fs::create_dir_all(directory).step(step)?;
        let lock = fs::File::create(directory.join("lock")).step(step)?;
        lock.lock().step(step)?;
        Ok(Self { file: directory.join(LIST), _lock: lock })
    }

    fn list(&self) -> Vec<Changed> {
        fs::read(&self.file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Notes the change, then makes it.
    fn set(&self, path: &Path, after: &str) -> Result<(), HostError> {
        let step = || format!("set {} to {after}", path.display());
        let before = fs::read_to_string(path).step(step)?.trim().to_owned();
        if before == after {
            return Ok(());
        }
        let of_a_network = path.starts_with("/proc/sys/net");
        let network = of_a_network.then(|| network::Place::Host.name()).transpose()?;
        let mut list = self.list();
        match list.iter_mut().find(|it| it.path == path && it.network == network) {
            // Someone set it back meanwhile: what it was before us is what it was the first time.
            Some(changed) => after.clone_into(&mut changed.after),
            None => {
                let after = after.to_owned();
                list.push(Changed { path: path.to_owned(), before, after, network });
            }
        }
        self.write(&list).step(step)?;
        fs::write(path, after).step(step)
    }

    fn write(&self, list: &[Changed]) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(list).map_err(io::Error::from)?;
        fs::write(&self.file, bytes)
    }

    /// Sets back what still is as we set it, and nothing that the data directories in the networks of `in_use` live by. `here` is the
    /// calling thread's network.
    fn undo(&self, here: &str, in_use: &BTreeSet<String>) -> Result<(), HostError> {
        let mut kept = Vec::new();
        for changed in self.list() {
            let is_needed = match &changed.network {
                Some(network) => in_use.contains(network),
                None => !in_use.is_empty(),
            };
            if is_needed {
                kept.push(changed);
                continue;
            }
            let Changed { path, before, after, network } = changed;
            if network.is_some_and(|network| network != here) {
                // Of a network in which nobody is any more; it has mostly gone itself.
                continue;
            }
            let step = || format!("set {} back to {before}", path.display());
            match fs::read_to_string(&path) {
                Ok(now) if now.trim() == after => fs::write(&path, &before).step(step)?,
                // A link that is gone took its setting along.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).step(step),
            }
        }
        let step = || format!("write {}", self.file.display());
        if !kept.is_empty() {
            return self.write(&kept).step(step);
        }
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).step(step),
            _ => Ok(()),
        }
    }
}

/// Has packets of this address's family that come by a link of the calling thread's network be passed on.
pub(crate) fn forward_on(link: &str, family_of: IpAddr) -> Result<(), HostError> {
    let setting = match family_of {
        IpAddr::V4(_) => format!("/proc/sys/net/ipv4/conf/{link}/forwarding"),
        IpAddr::V6(_) => force_forwarding(link),
    };
    if family_of.is_ipv6() && !Path::new(&setting).exists() {
        // It is on for all links: [`forward_all_ipv6`].
        return Ok(());
    }
    Changes::open()?.set(Path::new(&setting), "1")
}

/// The setting by which one link's IPv6 packets are passed on and all else of it stays as it is; Linux knows it from 6.17 on.
fn force_forwarding(link: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{link}/force_forwarding")
}

/// Where IPv6 packets cannot be passed on by link, has those of all links be. The kernel takes such a machine for a router, which learns
/// nothing of others: those links that the machine has its default routes by are told to go on learning.
fn forward_all_ipv6(netlink: &mut Netlink) -> Result<(), HostError> {
    let all = Path::new("/proc/sys/net/ipv6/conf/all/forwarding");
    if Path::new(&force_forwarding("lo")).exists() {
        return Ok(());
    }
    let mut by = BTreeSet::new();
    netlink
        .routes(|route| {
            let leads_out = route.main && route.block.prefix() == 0 && route.block.base().is_ipv6();
            by.extend(route.link.filter(|_| leads_out));
        })
        .step(|| "find the default routes".into())?;
    let links = netlink.links().step(|| "list the links".into())?;
    let changes = Changes::open()?;
    for (_, link) in links.iter().filter(|(number, _)| by.contains(number)) {
        let learns = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
        if fs::read_to_string(&learns).is_ok_and(|now| now.trim() == "1") {
            changes.set(Path::new(&learns), "2")?;
        }
    }
    changes.set(all, "1")
}

/// Whether what IPv6 pods cannot do without is here, where the blocks are of any.
fn check_needs(blocks: Blocks, nft: Option<&Nft>) -> Result<(), HostError> {
    if !network::has_ipv6(blocks) {
        return Ok(());
    }
    if !network::ipv6_is_on() {
        return Err(HostError::Unsupported {
            what: format!("pods with addresses of {blocks}, as IPv6 is off on this machine"),
            remedy: format!("{}, or give the node a block of IPv4 alone", network::IPV6_REMEDY),
        });
    }
    if nft.is_none() {
        return Err(HostError::Unsupported {
            what: format!(
                "pods with addresses of {blocks}, as without nft nothing would keep a pod from sending under another one's IPv6 address"
            ),
            remedy: nft::REMEDY.into(),
        });
    }
    Ok(())
}

/// The changed settings of the machine, and those of the calling thread's network.
pub(crate) fn changed_settings() -> Result<Vec<Changed>, HostError> {
    let here = network::Place::Host.name()?;
    let of_here = |changed: &Changed| changed.network.as_ref().is_none_or(|it| *it == here);
    let file = Path::new(CHANGES).join(LIST);
    let changes: Option<Vec<Changed>> =
        fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(changes.unwrap_or_default().into_iter().filter(of_here).collect())
}
