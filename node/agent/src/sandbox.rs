//! What a pod needs on the host before its first container, and what is given back after its last: folders, volumes, addresses, its
//! place in a runner. Then what one start of a container needs.
//!
//! All of it is idempotent, as a crash may come between any two steps, and a dead runner's successor needs it again. What the runner
//! can write is never followed: folders that the agent goes into are root's, and paths of guests are resolved by the kernel beneath
//! their volume.
//!
//! Absent: which files and mounts (`copepod_node::volumes`), which arguments (`copepod_node::env`), how files are written (`files`).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, lchown};
use std::path::{Component, Path, PathBuf};
use std::sync::PoisonError;

use copepod_domain::{BindMount, Domain, HostError, Source, published};
use copepod_node::containers;
use copepod_node::env::{self, HostNames, ImageConfig};
use copepod_node::quantity::Amount;
use copepod_node::resolve;
use copepod_node::volumes::{self, Content, PlannedFile, PlannedMount};
use copepod_shim::protocol::{
    AttemptId, Dns, GuestMount, HostEntry, HttpSettings, Limits, PodSandbox, Port, Request,
    StartContainer, layout,
};
use k8s_openapi::api::core::v1::{Container, Volume};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::accept::is_on_host;
use crate::causes::with_causes;
use crate::domains::Live;
use crate::files;
use crate::front::refused_host_path;
use crate::perform::Performer;
use crate::pod::{ReadyImage, World};
use crate::remove;
use crate::root;
use crate::runner::RequestError;
use crate::store::{PodObjects, Store};

/// Most open sockets of a pod: a server under load, far below what a runner's descriptors allow for all its pods.
const MOST_SOCKETS: u32 = 4096;

/// Most open WASI resources of an instance (engine.md 5.3: 10,000 where the engine's default is a million).
const MOST_HANDLES: u32 = 10_000;

/// The kubelet's containerLogMaxSize and containerLogMaxFiles.
const LOG_FILE: (u64, u32) = (10 << 20, 5);

/// A step that failed, with the reason that a kubelet's event would have.
#[derive(Debug)]
pub(crate) struct SetUpFailed {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl SetUpFailed {
    fn mount(volume: &str, message: impl std::fmt::Display) -> Self {
        let message = format!("MountVolume.SetUp failed for volume {volume:?}: {message}");
        Self { reason: "FailedMount", message }
    }

    fn missing(error: env::ConfigError) -> Self {
        Self { reason: "FailedMount", message: error.to_string() }
    }

    fn sandbox(message: impl std::fmt::Display) -> Self {
        Self { reason: "FailedCreatePodSandBox", message: message.to_string() }
    }

    pub(crate) fn config(message: impl std::fmt::Display) -> Self {
        Self { reason: "CreateContainerConfigError", message: message.to_string() }
    }
}

impl From<HostError> for SetUpFailed {
    fn from(error: HostError) -> Self {
        Self::sandbox(with_causes(&error))
    }
}

/// Makes all that the pod's containers share.
pub(crate) async fn set_up(
    performer: &Performer,
    world: &World,
) -> Result<Vec<IpAddr>, SetUpFailed> {
    // Before anything is made for a pod that cannot be called what it is to be.
    let sandbox = pod_sandbox(performer, world)?;
    let live = performer
        .domains
        .join(&world.stored.domain, &world.uid)
        .await
        .map_err(|error| SetUpFailed::sandbox(with_causes(&error)))?;
    let root = live.domain.root().to_owned();
    let uid = live.domain.uid();
    make_folders(world, &root, uid).map_err(|error| {
        SetUpFailed::sandbox(format!("the pod's folders cannot be made: {error}"))
    })?;
    bind(&live.domain, &world.logs, &format!("{}/{}", layout::LOGS, world.uid), false, false)
        .await?;
    set_up_volumes(performer, world, &live.domain, &root).await?;
    if !is_on_host(&world.stored.pod) {
        live.domain.add_addresses(&world.ips()).await?;
    }
    reopen_published(world, &live).await?;
    live.runner
        .ask(Request::CreatePod(sandbox))
        .await
        .map_err(|error| SetUpFailed::sandbox(with_causes(&error)))?;
    publish(world, &live).await?;
    performer.ports.lead(&world.uid, &world.stored.pod, &world.ips()).await?;
    Ok(world.ips())
}

/// Gives back what [`set_up`] made, as far as it was made. The logs stay until the pod is forgotten.
pub(crate) async fn tear_down(performer: &Performer, world: &World) -> Result<(), SetUpFailed> {
    // First of all: nothing is to lead to whoever gets the address next.
    let closed = performer.ports.close(&world.uid).await;
    if let Some(live) = performer.domains.live_of(&world.uid).await {
        match live.runner.ask(Request::RemovePod { pod: world.uid.clone() }).await {
            Ok(_) | Err(RequestError::Gone) => {}
            Err(error) => return Err(SetUpFailed::sandbox(with_causes(&error))),
        }
        if !is_on_host(&world.stored.pod) {
            let _ = live.domain.remove_addresses(&world.ips()).await;
        }
        let roots = root::mount_points(world, live.domain.root());
        for target in roots.into_iter().chain(mount_targets(world)) {
            live.domain.unmount(Path::new(target.trim_start_matches('/'))).await?;
        }
        let root = live.domain.root().to_owned();
        // The one in `rw` goes last: by it the next agent knows that something of the pod may be left here.
        let folders = [layout::RO, layout::MNT, layout::LOGS, layout::RW];
        let folders = folders.map(|folder| below(&root, folder).join(&world.uid));
        let going_on = world.going_on.clone();
        // Guests may have left millions of files.
        let removing = tokio::task::spawn_blocking(move || {
            let _alone = going_on.files.lock().unwrap_or_else(PoisonError::into_inner);
            for path in folders {
                if let Err(error) = remove::tree(&path) {
                    tracing::warn!(path = %path.display(), %error, "a pod's folder is left over");
                }
            }
        });
        removing.await.map_err(SetUpFailed::sandbox)?;
    }
    performer
        .domains
        .leave(&world.uid)
        .await
        .map_err(|error| SetUpFailed::sandbox(with_causes(&error)))?;
    Ok(closed?)
}

pub(crate) fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// A folder, also where it is there already.
pub(crate) fn folder(path: &Path, mode: u32, owner: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    lchown(path, Some(owner), Some(owner))?;
    let here = rustix::fs::openat(
        CWD,
        path,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(rustix::fs::fchmod(here, Mode::from_raw_mode(mode))?)
}

fn make_folders(world: &World, root: &Path, uid: u32) -> io::Result<()> {
    let rw = below(root, layout::RW).join(&world.uid);
    // First of all: by it the next agent finds the pod in this tree. Where a crash comes before it, nothing of the pod is here.
    // Root's, so that the runner cannot put a link in the place of a folder that the agent goes into.
    folder(&rw, 0o755, 0)?;
    // The domain's: its runner makes a container's folder in it with the container's first line. And it keeps the domain's user from
    // being given to another domain while the logs are here.
    if let Some(all) = world.logs.parent() {
        std::fs::create_dir_all(all)?;
    }
    folder(&world.logs, 0o700, uid)
}

/// Where in the runner's root a volume's folder is.
fn volume_source(world: &World, volume: &Volume, read_only: bool) -> String {
    let name = &volume.name;
    if volume.empty_dir.is_some() {
        format!("{}/{}/{name}", layout::RW, world.uid)
    } else if volumes::is_of_the_machine(volume) {
        let access = if read_only { "ro" } else { "rw" };
        format!("{}/{}/{name}-{access}", layout::MNT, world.uid)
    } else {
        format!("{}/{}/{name}", layout::RO, world.uid)
    }
}

async fn set_up_volumes(
    performer: &Performer,
    world: &World,
    domain: &Domain,
    root: &Path,
) -> Result<(), SetUpFailed> {
    let uid = domain.uid();
    write_volumes(performer, world, root, uid)?;
    let (objects, ips) = (world.stored.objects.get(), world.ips());
    for (index, volume) in world.volumes().iter().enumerate() {
        if volumes::is_written_by_agent(volume) {
            continue;
        }
        let content =
            volumes::content_of(&world.stored.pod, index, &context(performer, &objects, &ips));
        let Some(content) = content.map_err(SetUpFailed::missing)? else { continue };
        let failed = |error: io::Error| SetUpFailed::mount(&volume.name, error);
        match &content {
            Content::EmptyDir { memory, size_limit } => {
                let path = below(root, layout::RW).join(&world.uid).join(&volume.name);
                folder(&path, 0o777, uid).map_err(failed)?;
                // A limit is kept by the file system itself, in the write path and to the byte's page.
                if *memory || size_limit.is_some() {
                    let size = size_limit.unwrap_or(DEFAULT_MEMORY_VOLUME);
                    let target = format!("rw/{}/{}", world.uid, volume.name);
                    domain.mount_tmpfs(Path::new(&target), size).await?;
                }
            }
            // They are written already.
            Content::Files { .. } => {}
            Content::HostPath { path, create, checked } => {
                // Of a claim's volume nothing was known when the pod came.
                if let Some(node) = &performer.config.cluster
                    && let Some(why) = refused_host_path(Path::new(path), &node.host_paths)
                {
                    return Err(SetUpFailed::mount(&volume.name, why));
                }
                let source = host_folder(Path::new(path), *create, *checked)
                    .map_err(|message| SetUpFailed::mount(&volume.name, message))?;
                for read_only in [true, false] {
                    if uses(world, volume, read_only) {
                        let target = volume_source(world, volume, read_only);
                        let source = Source::Descriptor(source.try_clone().map_err(failed)?);
                        mount(domain, source, &target, read_only, true).await.map_err(|error| {
                            SetUpFailed::mount(&volume.name, with_causes(&error))
                        })?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// The size of an emptyDir in memory without a limit, of which guests use what they write: a kubelet gives half of the machine's.
const DEFAULT_MEMORY_VOLUME: u64 = 1 << 30;

/// Where what the agent writes for a pod lies; made where it is not there, as most pods need none.
fn files_folder(world: &World, root: &Path) -> io::Result<PathBuf> {
    let path = below(root, layout::RO).join(&world.uid);
    folder(&path, 0o755, 0)?;
    Ok(path)
}

fn uses(world: &World, volume: &Volume, read_only: bool) -> bool {
    let nobody_writes = volumes::is_read_only(volume);
    world.container_names().iter().filter_map(|name| world.container(name)).any(|container| {
        container.volume_mounts.iter().flatten().any(|it| {
            let is_read_only = nobody_writes || it.read_only.unwrap_or(false);
            it.name == volume.name && is_read_only == read_only
        })
    })
}

/// Makes the volumes with files of a pod that is set up, or is being so, show what its objects hold now. As much as can be done is
/// done; the first trouble is told.
fn write_volumes(
    performer: &Performer,
    world: &World,
    root: &Path,
    group: u32,
) -> Result<(), SetUpFailed> {
    if !world.volumes().iter().any(volumes::is_written_by_agent) {
        return Ok(());
    }
    let _alone = world.going_on.files.lock().unwrap_or_else(PoisonError::into_inner);
    // It is not set up, or torn down: without the lock that could be so just behind this look.
    if !below(root, layout::RW).join(&world.uid).exists() {
        return Ok(());
    }
    let (objects, ips) = (world.stored.objects.get(), world.ips());
    let context = context(performer, &objects, &ips);
    let mut done = Ok(());
    for (index, volume) in world.volumes().iter().enumerate() {
        if !volumes::is_written_by_agent(volume) {
            continue;
        }
        let planned = volumes::files_of(&world.stored.pod, index, &context);
        let written = planned.map_err(SetUpFailed::missing).and_then(|planned| {
            files_folder(world, root)
                .and_then(|all| files::write(&all.join(&volume.name), &planned, group))
                .map_err(|error| SetUpFailed::mount(&volume.name, error))
        });
        done = done.and(written);
    }
    done
}

/// After the pod's objects changed: writes its volumes again and then puts the objects on disk. In this order, so that whoever hands the
/// same objects to the next agent has it write what a crash left undone. `home` is the pod's tree and its user, where a runner has it.
pub(crate) fn refresh(
    performer: &Performer,
    world: &World,
    store: &Store,
    home: Option<(PathBuf, u32)>,
) -> Result<(), SetUpFailed> {
    let (_, revision) = world.stored.objects.with_revision();
    // The newest version's own refresh does what is left.
    if !world.is_newest() {
        return Ok(());
    }
    if let Some((root, uid)) = home {
        write_volumes(performer, world, &root, uid)?;
    }
    let mut kept = world.going_on.kept.lock().unwrap_or_else(PoisonError::into_inner);
    if world.is_newest() && kept.is_some_and(|kept| kept < revision) {
        let put = store.put_revision(&world.uid, &world.stored, revision).map_err(|error| {
            let message = format!("what the pod refers to cannot be kept: {error}");
            SetUpFailed { reason: "FailedMount", message }
        })?;
        if put {
            *kept = Some(revision);
        }
    }
    Ok(())
}

/// Opens a host's folder by a path of which no step is a link.
fn host_folder(path: &Path, create: bool, checked: bool) -> Result<std::os::fd::OwnedFd, String> {
    if create && !path.exists() {
        make_folders_to(path)
            .map_err(|error| format!("hostPath {} cannot be made: {error}", path.display()))?;
    }
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve).map_err(|error| {
        let hint = match error {
            rustix::io::Errno::LOOP => {
                " (a step of the path is a symbolic link: write where it leads)"
            }
            rustix::io::Errno::NOENT if !checked => {
                " (type: DirectoryOrCreate makes a folder that is not there)"
            }
            _ => "",
        };
        format!("hostPath {}: {error}{hint}", path.display())
    })?;
    let stat = rustix::fs::fstat(&found).map_err(|error| error.to_string())?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory {
        return Err(format!(
            "hostPath {} is no folder; only folders can be mounted yet: write the folder that it is in",
            path.display()
        ));
    }
    // An ordinary user's agent may show what this user may read. What it cannot open, its runner could not either.
    let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&found, ".", readable, Mode::empty())
        .map_err(|error| format!("hostPath {}: {error}", path.display()))?;
    Ok(found)
}

async fn bind(
    domain: &Domain,
    source: &Path,
    target: &str,
    read_only: bool,
    idmap: bool,
) -> Result<(), HostError> {
    let source = Source::Beneath { root: source.to_owned(), path: PathBuf::new() };
    mount(domain, source, target, read_only, idmap).await
}

async fn mount(
    domain: &Domain,
    source: Source,
    target: &str,
    read_only: bool,
    idmap: bool,
) -> Result<(), HostError> {
    let target = PathBuf::from(target.trim_start_matches('/'));
    // Of an earlier life of the runner, or of a set-up that failed later on.
    domain.unmount(&target).await?;
    domain.mount(BindMount { source, target, read_only, idmap }).await
}

/// All places where [`set_up`] and [`start_request`] may have mounted something.
fn mount_targets(world: &World) -> Vec<String> {
    let mut targets = vec![format!("{}/{}", layout::LOGS, world.uid)];
    for volume in world.volumes() {
        if volumes::is_of_the_machine(volume) {
            targets.push(format!("{}/{}/{}-ro", layout::MNT, world.uid, volume.name));
            targets.push(format!("{}/{}/{}-rw", layout::MNT, world.uid, volume.name));
        }
        if let Some(empty) = &volume.empty_dir
            && (empty.medium.as_deref() == Some("Memory") || empty.size_limit.is_some())
        {
            targets.push(format!("{}/{}/{}", layout::RW, world.uid, volume.name));
        }
    }
    for container in containers::all(&world.stored.pod).map(|listed| listed.container) {
        for index in 0..container.volume_mounts.as_ref().map_or(0, Vec::len) {
            targets.push(sub_path_target(world, &container.name, index));
        }
    }
    // What lies deeper goes first.
    targets.reverse();
    targets
}

fn sub_path_target(world: &World, container: &str, index: usize) -> String {
    format!("{}/{}/sub-{container}-{index}", layout::MNT, world.uid)
}

pub(crate) fn pod_sandbox(performer: &Performer, world: &World) -> Result<PodSandbox, SetUpFailed> {
    let pod = &world.stored.pod;
    let spec = pod.spec.as_ref();
    let name = world.name();
    let called = HostNames::of(pod, &performer.node.facts.cluster_domain);
    if let Some(trouble) = called.trouble() {
        return Err(SetUpFailed::sandbox(trouble));
    }
    let ips = world.ips();
    let own = ips.iter().map(|&ip| HostEntry { ip, names: called.all.clone() });
    let mut hosts: Vec<HostEntry> = own.collect();
    for alias in spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten()) {
        if let Ok(ip) = alias.ip.parse() {
            hosts.push(HostEntry { ip, names: alias.hostnames.clone().unwrap_or_default() });
        }
    }
    let ipv4 = ips.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    });
    let ipv6 = ips.iter().find_map(|ip| match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(*ip),
    });
    let cluster = performer.config.cluster.as_ref().and_then(|cluster| cluster.dns.as_ref());
    let resolver = resolve::resolver(pod, &performer.node.resolver, cluster);
    Ok(PodSandbox {
        pod: world.uid.clone(),
        name: name.name,
        namespace: name.namespace,
        ipv4,
        ipv6,
        loopback: world.stored.loopback,
        hostname: called.own,
        hosts,
        dns: Dns { servers: resolver.servers, search: resolver.search, ndots: resolver.ndots },
        denied: performer.node.denied.clone(),
        max_sockets: MOST_SOCKETS,
    })
}

/// After a restart of the agent: opens the published ports again. A runner that got them from an earlier agent gives them up with
/// the pod, of which nothing has run yet where it is set up.
async fn reopen_published(world: &World, live: &Live) -> Result<(), SetUpFailed> {
    let wanted = &world.stored.publish;
    let is_open =
        !world.going_on.listeners.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
    if is_open || wanted.is_empty() {
        return Ok(());
    }
    let removed = live.runner.ask(Request::RemovePod { pod: world.uid.clone() }).await;
    removed.map_err(|error| SetUpFailed::sandbox(with_causes(&error)))?;
    let mut opened = Vec::new();
    for one in wanted {
        let address = SocketAddr::new(one.host_ip, one.host_port);
        let listener = published::open(address).map_err(|error| {
            SetUpFailed::sandbox(format!("port {address} cannot be published again: {error}"))
        })?;
        opened.push((listener, one.pod_port));
    }
    *world.going_on.listeners.lock().unwrap_or_else(PoisonError::into_inner) = opened;
    Ok(())
}

async fn publish(world: &World, live: &Live) -> Result<(), SetUpFailed> {
    let listeners = {
        let held = world.going_on.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let cloned: io::Result<Vec<_>> =
            held.iter().map(|(listener, port)| Ok((listener.try_clone()?, *port))).collect();
        cloned.map_err(SetUpFailed::sandbox)?
    };
    for (listener, port) in listeners {
        let request = Request::Publish { pod: world.uid.clone(), port };
        live.runner
            .give(request, &[listener.into()])
            .await
            .map_err(|error| SetUpFailed::sandbox(with_causes(&error)))?;
    }
    Ok(())
}

/// All that the runner needs to start one attempt; what is to be mounted for its subPaths is mounted.
pub(crate) async fn start_request(
    performer: &Performer,
    world: &World,
    container: &str,
    attempt: u32,
    ready: &ReadyImage,
) -> Result<StartContainer, SetUpFailed> {
    let pod = &world.stored.pod;
    let spec = world
        .container(container)
        .ok_or_else(|| SetUpFailed::config(format!("no container {container:?} in the pod")))?;
    let process = process(performer, world, container, ready)?;
    let planned = volumes::mounts(pod, container, &process.env).map_err(SetUpFailed::config)?;
    let mut mounts = guest_mounts(performer, world, container, planned).await?;
    // A volume that is mounted there is all that is seen.
    if ready.image.root.is_some() && mounts.iter().all(|mount| mount.guest != "/") {
        let live = performer.domains.live_of(&world.uid).await;
        let live = live.ok_or_else(|| SetUpFailed::sandbox("the pod's runner is gone"))?;
        if let Some(root) = root::mount(world, &live, &spec, attempt, ready).await? {
            mounts.insert(0, root);
        }
    }
    let options = &world.options;
    Ok(StartContainer {
        id: AttemptId { pod: world.uid.clone(), container: container.to_owned(), attempt },
        code: ready.code.wasm.hex().to_owned(),
        kind: ready.code.inspection.kind,
        args: process.args,
        env: process.env,
        mounts,
        ports: ports(&spec),
        limits: limits(performer, &spec),
        http: HttpSettings {
            reuse: options.http_reuse,
            concurrency: options.http_concurrency,
            // As many again as are in work: one more round, not an unbounded wait.
            queue: options.http_concurrency.saturating_mul(4),
            timeout_ms: u64::try_from(options.http_timeout.as_millis()).unwrap_or(u64::MAX),
        },
        log: format!("{}/{}/{container}/{attempt}.log", layout::LOGS, world.uid),
        termination_log: world.termination_log(container, attempt),
        termination_path: spec
            .termination_message_path
            .clone()
            .unwrap_or_else(|| "/dev/termination-log".to_owned()),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        cwd: process.working_dir,
        since_us: None,
    })
}

/// What the pod's variables and volumes may refer to.
fn context<'a>(
    performer: &'a Performer,
    objects: &'a PodObjects,
    pod_ips: &'a [IpAddr],
) -> env::Context<'a> {
    let node = &performer.node.facts;
    env::Context { objects, node, pod_ips, services: &objects.services }
}

fn process(
    performer: &Performer,
    world: &World,
    container: &str,
    ready: &ReadyImage,
) -> Result<env::Process, SetUpFailed> {
    let (objects, ips) = (world.stored.objects.get(), world.ips());
    let context = context(performer, &objects, &ips);
    let image = &ready.image;
    let config = ImageConfig {
        entrypoint: image.entrypoint.clone(),
        cmd: image.cmd.clone(),
        env: image.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        working_dir: Some(image.working_dir.clone()),
        module: image.program.clone(),
    };
    env::process(&world.stored.pod, container, &config, &context).map_err(SetUpFailed::config)
}

fn ports(spec: &Container) -> Vec<Port> {
    let mut ports: Vec<Port> = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Ok(number) = u16::try_from(port.container_port) else { continue };
        let udp = port.protocol.as_deref() == Some("UDP");
        // Several ports of the node may lead to one.
        if !ports.iter().any(|it| (it.port, it.udp) == (number, udp)) {
            let name = port.name.clone().unwrap_or_default();
            ports.push(Port { name, port: number, udp });
        }
    }
    ports
}

fn limits(performer: &Performer, spec: &Container) -> Limits {
    let resources = spec.resources.as_ref();
    let amount = |limits: bool, name: &str| {
        let resources = resources?;
        let map = if limits { &resources.limits } else { &resources.requests };
        Amount::parse(map.as_ref()?.get(name)?).ok()
    };
    let millis = |amount: Amount| u32::try_from(amount.ceil_millis()).unwrap_or(u32::MAX);
    Limits {
        memory: amount(true, "memory").map_or(performer.node.memory, Amount::ceil),
        cpu_millis: amount(true, "cpu").map(millis),
        // As under a kubelet: what asks for nothing gets cpu.shares of 2.
        cpu_weight: amount(false, "cpu").map_or(2, millis).max(2),
        log_bytes_per_second: performer.config.log_bytes_per_second,
        log_file_bytes: LOG_FILE.0,
        log_files: LOG_FILE.1,
        handles: MOST_HANDLES,
    }
}

async fn guest_mounts(
    performer: &Performer,
    world: &World,
    container: &str,
    planned: Vec<PlannedMount>,
) -> Result<Vec<GuestMount>, SetUpFailed> {
    let live = performer
        .domains
        .live_of(&world.uid)
        .await
        .ok_or_else(|| SetUpFailed::sandbox("the pod's runner is gone"))?;
    let (root, group) = (live.domain.root(), live.domain.uid());
    let mut mounts: Vec<GuestMount> = Vec::new();
    // Single files that are to be seen in one guest folder.
    let mut singles: BTreeMap<String, Vec<PlannedFile>> = BTreeMap::new();
    for (index, mount) in planned.into_iter().enumerate() {
        let volumes = world.volumes();
        let Some(at) = volumes.iter().position(|it| it.name == mount.volume) else { continue };
        let volume = &volumes[at];
        let written_by_agent = volumes::is_written_by_agent(volume);
        let source = volume_source(world, volume, mount.read_only);
        let source = match &mount.sub_path {
            None => source,
            Some(sub) if written_by_agent => {
                let (objects, ips) = (world.stored.objects.get(), world.ips());
                let context = context(performer, &objects, &ips);
                let all = volumes::files_of(&world.stored.pod, at, &context)
                    .map_err(SetUpFailed::config)?;
                if let Some(file) = all.iter().find(|file| file.path == *sub) {
                    let (parent, name) = mount.path.rsplit_once('/').unwrap_or(("", &mount.path));
                    let parent = if parent.is_empty() { "/" } else { parent };
                    let file = PlannedFile { path: name.to_owned(), ..file.clone() };
                    singles.entry(parent.to_owned()).or_default().push(file);
                    continue;
                }
                let part = volumes::part_of(all, sub);
                if part.is_empty() {
                    return Err(SetUpFailed::config(format!(
                        "volumeMounts of container {container:?}: volume {:?} has no {sub:?} (subPath)",
                        mount.volume
                    )));
                }
                write_part(world, root, &format!(".sub-{container}-{index}"), &part, group)
                    .map_err(|error| {
                        SetUpFailed::config(format!("the files for {:?}: {error}", mount.path))
                    })?
            }
            Some(sub) => {
                let target = sub_path_target(world, container, index);
                let volume = below(root, &source);
                make_sub_path(&volume, sub, live.domain.uid()).map_err(|error| {
                    SetUpFailed::config(format!(
                        "volumeMounts of container {container:?}: subPath {sub:?} of volume {:?}: {error}",
                        mount.volume
                    ))
                })?;
                let from = Source::Beneath { root: volume, path: PathBuf::from(sub) };
                self::mount(&live.domain, from, &target, mount.read_only, false).await?;
                target
            }
        };
        mounts.push(GuestMount {
            guest: mount.path,
            source,
            read_only: mount.read_only || written_by_agent,
            size_limit: None,
        });
    }
    for (number, (guest, files)) in singles.into_iter().enumerate() {
        if mounts.iter().any(|mount| mount.guest == guest) {
            return Err(SetUpFailed::config(format!(
                "volumeMounts of container {container:?}: single files by subPath cannot be mounted into {guest:?}, where another volume is"
            )));
        }
        let source =
            write_part(world, root, &format!(".files-{container}-{number}"), &files, group)
                .map_err(|error| SetUpFailed::config(format!("a file for {guest:?}: {error}")))?;
        mounts.push(GuestMount { guest, source, read_only: true, size_limit: None });
    }
    Ok(mounts)
}

/// A part of a volume as it is now, for a container that starts: as in Kubernetes a subPath shows no later change. Comes back as where it
/// is in the runner's root.
fn write_part(
    world: &World,
    root: &Path,
    name: &str,
    files: &[PlannedFile],
    group: u32,
) -> io::Result<String> {
    let _alone = world.going_on.files.lock().unwrap_or_else(PoisonError::into_inner);
    files::write_once(&files_folder(world, root)?.join(name), files, group)?;
    Ok(format!("{}/{}/{name}", layout::RO, world.uid))
}

/// Makes what is missing of a folder of the machine (0755), following no link on the way.
fn make_folders_to(path: &Path) -> io::Result<()> {
    let steps = path.components().filter_map(|step| match step {
        Component::Normal(step) => Some(step),
        _ => None,
    });
    make_way(Path::new("/"), steps, 0o755, None)
}

/// Makes the folders of a subPath in a volume that guests write to, without following a link.
fn make_sub_path(volume: &Path, sub: &str, uid: u32) -> io::Result<()> {
    let steps = sub.split('/').filter(|step| !step.is_empty()).map(OsStr::new);
    make_way(volume, steps, 0o777, Some(uid))
}

/// Makes what is missing of a way down from `top`, following no link beneath it. What is made gets `mode`, and belongs to `owner`.
fn make_way<'a>(
    top: &Path,
    steps: impl Iterator<Item = &'a OsStr>,
    mode: u32,
    owner: Option<u32>,
) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = rustix::fs::openat(CWD, top, flags, Mode::empty())?;
    for step in steps {
        match rustix::fs::mkdirat(&here, step, Mode::from_raw_mode(mode)) {
            Ok(()) => {
                if let Some(id) = owner {
                    let (user, group) =
                        (rustix::fs::Uid::from_raw(id), rustix::fs::Gid::from_raw(id));
                    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::chownat(&here, step, Some(user), Some(group), flags)?;
                }
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        here = rustix::fs::openat(&here, step, flags, Mode::empty())?;
    }
    Ok(())
}
