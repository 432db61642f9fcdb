//! The containers of a pod, whichever of its three lists they are in.
//!
//! An ephemeral container is of a type of its own, with the fields of every other one and the name of the one that it is to look at. Here it is a
//! [`Container`] too. Absent: what the lists mean for a pod's life (`life`).

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

/// A list of a pod's spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// `initContainers`.
    Init,
    /// `containers`.
    App,
    /// `ephemeralContainers`.
    Ephemeral,
}

impl List {
    /// The field's name.
    pub fn field(self) -> &'static str {
        match self {
            Self::Init => "initContainers",
            Self::App => "containers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

/// One container of a pod.
#[derive(Clone, Debug)]
pub struct Listed<'a> {
    /// Which list it is in.
    pub list: List,
    /// Its place in the list.
    pub index: usize,
    /// The container.
    pub container: Cow<'a, Container>,
}

impl Listed<'_> {
    /// Its path: `spec.containers[0]`.
    pub fn path(&self) -> String {
        format!("spec.{}[{}]", self.list.field(), self.index)
    }
}

/// All containers of a pod: init containers, then the app's, then ephemeral ones, each in their order.
pub fn all(pod: &Pod) -> impl Iterator<Item = Listed<'_>> {
    let spec = pod.spec.as_ref();
    let inits = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let apps = spec.map(|spec| &spec.containers[..]).unwrap_or_default();
    let ephemeral = spec.and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default();
    let ephemeral = ephemeral.iter().map(|it| Cow::Owned(of_ephemeral(it)));
    listed(List::Init, inits.iter().map(Cow::Borrowed))
        .chain(listed(List::App, apps.iter().map(Cow::Borrowed)))
        .chain(listed(List::Ephemeral, ephemeral))
}

fn listed<'a>(
    list: List,
    containers: impl Iterator<Item = Cow<'a, Container>>,
) -> impl Iterator<Item = Listed<'a>> {
    containers.enumerate().map(move |(index, container)| Listed { list, index, container })
}

/// The container of this name.
pub fn find<'a>(pod: &'a Pod, name: &str) -> Option<Listed<'a>> {
    all(pod).find(|listed| listed.container.name == name)
}

/// An ephemeral container as any other.
pub fn of_ephemeral(container: &EphemeralContainer) -> Container {
    // Named one by one: whoever brings a newer version of the API is told of a field that is missing here.
    let EphemeralContainer {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        target_container_name: _,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    } = container.clone();
    Container {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    }
}
