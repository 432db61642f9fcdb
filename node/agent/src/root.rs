//! A container's `/`: the files of its image, and above them what the container has written.
//!
//! ```text
//! images/<digest>-own                      the image's files, once in a tree, as the domain's own and read-only
//! rw/<uid>/.layers/<name>/                 what an attempt has written, in a folder that only root enters
//! mnt/<uid>/.root-<name>                   both, as one; <name> is <container>-<attempt>-<part of the digest>, as an attempt's number is
//!                                          used again where it was not started
//! ```
//! As under a kubelet, what is written goes with the attempt. Absent: an image that is its program alone, which has no files and so no `/`; laying out
//! an image's files (`copepod-image`).

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use copepod_domain::{BindMount, Domain, HostError, Layers, Source};
use copepod_shim::protocol::{GuestMount, layout};
use k8s_openapi::api::core::v1::Container;

use crate::causes::with_causes;
use crate::domains::Live;
use crate::pod::{ReadyImage, World};
use crate::remove;
use crate::sandbox::{SetUpFailed, below, folder};

/// Where what containers have written lies, in the pod's folder.
const LAYERS: &str = ".layers";

/// What the names of their mount points begin with; no volume's does.
const ROOT: &str = ".root-";

/// The mount that is the container's `/`; none where its image has no files.
pub(crate) async fn mount(
    world: &World,
    live: &Live,
    container: &Container,
    attempt: u32,
    ready: &ReadyImage,
) -> Result<Option<GuestMount>, SetUpFailed> {
    let Some(files) = &ready.image.root else { return Ok(None) };
    let lower = format!("{}/{}-own", layout::IMAGES, ready.image.digest.hex());
    let context = container.security_context.as_ref();
    let read_only = context.and_then(|it| it.read_only_root_filesystem) == Some(true);
    let is_owned = show_image(live, files, &lower).await?;
    let guest = "/".to_owned();
    if read_only {
        return Ok(Some(GuestMount { guest, source: lower, read_only, size_limit: None }));
    }
    if !is_owned {
        return Err(SetUpFailed::config(format!(
            "container {:?}: its files cannot be written to, as the data directory's file system maps no owners; set securityContext.readOnlyRootFilesystem to true, or have the data directory on ext4, xfs or btrfs",
            container.name
        )));
    }
    let name = format!("{}-{attempt}-{}", container.name, &ready.image.digest.hex()[..12]);
    let failed = |error: io::Error| {
        SetUpFailed::config(format!("a layer for what container {name:?} writes: {error}"))
    };
    let root = live.domain.root();
    remove_others(world, &live.domain, &container.name, &name).await?;
    let (all, layers) = (layers_folder(world), format!("{}/{name}", layers_folder(world)));
    folder(&below(root, &all), 0o700, 0).map_err(failed)?;
    folder(&below(root, &layers), 0o700, 0).map_err(failed)?;
    let (upper, work) = (format!("{layers}/upper"), format!("{layers}/work"));
    folder(&below(root, &upper), 0o755, live.domain.uid()).map_err(failed)?;
    folder(&below(root, &work), 0o700, 0).map_err(failed)?;
    let source = mount_point(world, &name);
    let layers = Layers {
        lower: PathBuf::from(&lower),
        upper: PathBuf::from(upper),
        work: PathBuf::from(work),
    };
    live.domain.mount_layers(layers, Path::new(&source)).await.map_err(|error| {
        SetUpFailed::config(format!(
            "container {:?}: {}; securityContext.readOnlyRootFilesystem: true goes without",
            container.name,
            with_causes(&error)
        ))
    })?;
    Ok(Some(GuestMount { guest, source, read_only, size_limit: None }))
}

/// Has an image's files seen in a tree; whether they are the domain's own there.
async fn show_image(live: &Live, files: &Path, target: &str) -> Result<bool, SetUpFailed> {
    // One at a time: a mount is taken off before another comes in its place.
    let _alone = live.images.lock().await;
    let failed = |error: io::Error| SetUpFailed::config(format!("the image's files: {error}"));
    let place = PathBuf::from(target.trim_start_matches('/'));
    // Collected and pulled again, it is another folder.
    if !live.domain.shows(files, &place).map_err(failed)? {
        live.domain.unmount(&place).await?;
        let bind = |idmap| BindMount {
            source: Source::Beneath { root: files.to_owned(), path: PathBuf::new() },
            target: place.clone(),
            read_only: true,
            idmap,
        };
        match live.domain.mount(bind(true)).await {
            Err(HostError::NoIdmap { .. }) => live.domain.mount(bind(false)).await?,
            mounted => mounted?,
        }
    }
    let owner = std::fs::symlink_metadata(live.domain.root().join(&place)).map_err(failed)?.uid();
    Ok(owner == live.domain.uid())
}

/// Takes away what other attempts of a container have written.
async fn remove_others(
    world: &World,
    domain: &Domain,
    container: &str,
    own: &str,
) -> Result<(), SetUpFailed> {
    let all = below(domain.root(), &layers_folder(world));
    let is_other = |name: &str| {
        let rest = name.strip_prefix(container).and_then(|it| it.strip_prefix('-'));
        // A number and a digest: else it is of a container with a longer name.
        let parts: Vec<&str> = rest.map(|rest| rest.split('-').collect()).unwrap_or_default();
        name != own && parts.len() == 2 && parts[0].parse::<u32>().is_ok()
    };
    for name in names_in(&all).into_iter().filter(|name| is_other(name)) {
        domain.unmount(Path::new(&mount_point(world, &name))).await?;
        let (layer, uid) = (all.join(&name), world.uid.clone());
        // The guest may have left millions of files.
        let removing = tokio::task::spawn_blocking(move || {
            if let Err(error) = remove::tree(&layer) {
                tracing::warn!(uid, name, %error, "what a container wrote is left over");
            }
        });
        removing.await.map_err(SetUpFailed::config)?;
    }
    Ok(())
}

/// Where the roots of a pod's containers may be mounted.
pub(crate) fn mount_points(world: &World, root: &Path) -> Vec<String> {
    let all = names_in(&below(root, layout::MNT).join(&world.uid));
    let roots = all.iter().filter_map(|name| name.strip_prefix(ROOT));
    roots.map(|name| mount_point(world, name)).collect()
}

fn mount_point(world: &World, name: &str) -> String {
    format!("{}/{}/{ROOT}{name}", layout::MNT, world.uid)
}

fn layers_folder(world: &World) -> String {
    format!("{}/{}/{LAYERS}", layout::RW, world.uid)
}

/// Nothing where there is no such folder.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
