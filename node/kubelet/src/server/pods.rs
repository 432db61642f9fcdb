//! What the server needs of the pods' side, and how the agent gives it.
//!
//! [`Pods`] is what a test fakes. [`Here`] is the real one: lists and statuses are of whoever watches the API server ([`Told`]),
//! logs, execs, connections and figures of the agent in the same process. Absent: any decision.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use copepod_agent::api::{AttachTo, Call, ContainerUse, ExecIn, LogsOf, PodName, Reply};
use copepod_agent::front::Front;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// The pods of this node, with the newest status that this node knows of each.
pub trait Told: Send + Sync + 'static {
    /// All of them.
    fn all(&self) -> Vec<Arc<Pod>>;

    /// The one of this namespace and name.
    fn find(&self, name: &PodName) -> Option<Arc<Pod>> {
        self.all().into_iter().find(|pod| {
            pod.metadata.namespace.as_deref() == Some(&name.namespace)
                && pod.metadata.name.as_deref() == Some(&name.name)
        })
    }

    /// Why the pods are not looked after, where that is so: `/healthz/syncloop` says it.
    ///
    /// # Errors
    /// A sentence.
    fn healthy(&self) -> Result<(), String> {
        Ok(())
    }
}

/// What the server needs of the pods' side.
pub trait Pods: Told {
    /// A container's log, as [`Call::Logs`] gives it.
    fn logs(&self, logs: LogsOf) -> BoxFuture<'_, mpsc::Receiver<Reply>>;

    /// Runs a program in a container with these as stdin, stdout and stderr: its exit code, and what to tell beyond that. Where the
    /// future is dropped nobody waits for the end any more.
    fn exec(
        &self,
        exec: ExecIn,
        streams: [OwnedFd; 3],
    ) -> BoxFuture<'_, Result<(i32, Option<String>), String>>;

    /// Gives a client a running container's own streams, until either ends: the exit code, where that is the container.
    fn attach(
        &self,
        attach: AttachTo,
        streams: [OwnedFd; 3],
    ) -> BoxFuture<'_, Result<Option<i32>, String>>;

    /// What each running container uses.
    fn uses(&self) -> BoxFuture<'_, Vec<ContainerUse>>;

    /// A connection to a port of a pod.
    fn dial<'a>(&'a self, pod: &'a PodName, port: u16) -> BoxFuture<'a, io::Result<TcpStream>>;
}

/// The pods of the agent in this process.
pub struct Here<T> {
    front: Front,
    told: Arc<T>,
}

impl<T: Told> Here<T> {
    /// Asks `told` for lists, and the agent for the rest.
    pub fn new(front: Front, told: Arc<T>) -> Self {
        Self { front, told }
    }
}

impl<T> std::fmt::Debug for Here<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Here").finish_non_exhaustive()
    }
}

impl<T: Told> Told for Here<T> {
    fn all(&self) -> Vec<Arc<Pod>> {
        self.told.all()
    }

    fn find(&self, name: &PodName) -> Option<Arc<Pod>> {
        self.told.find(name)
    }

    fn healthy(&self) -> Result<(), String> {
        self.told.healthy()
    }
}

impl<T: Told> Pods for Here<T> {
    fn logs(&self, logs: LogsOf) -> BoxFuture<'_, mpsc::Receiver<Reply>> {
        Box::pin(self.front.call(Call::Logs(logs), Vec::new()))
    }

    fn exec(
        &self,
        exec: ExecIn,
        streams: [OwnedFd; 3],
    ) -> BoxFuture<'_, Result<(i32, Option<String>), String>> {
        Box::pin(async move {
            let mut replies = self.front.call(Call::Exec(exec), streams.into()).await;
            match replies.recv().await {
                Some(Reply::Exited { code, message }) => Ok((code, message)),
                Some(Reply::Failed(why)) => Err(why),
                Some(_) | None => Err("the agent is ending".into()),
            }
        })
    }

    fn attach(
        &self,
        attach: AttachTo,
        streams: [OwnedFd; 3],
    ) -> BoxFuture<'_, Result<Option<i32>, String>> {
        Box::pin(async move {
            let mut replies = self.front.call(Call::Attach(attach), streams.into()).await;
            match replies.recv().await {
                Some(Reply::Exited { code, .. }) => Ok(Some(code)),
                Some(Reply::Done) => Ok(None),
                Some(Reply::Failed(why)) => Err(why),
                Some(_) | None => Err("the agent is ending".into()),
            }
        })
    }

    fn uses(&self) -> BoxFuture<'_, Vec<ContainerUse>> {
        Box::pin(async move {
            let mut replies = self.front.call(Call::Stats, Vec::new()).await;
            match replies.recv().await {
                Some(Reply::Stats(uses)) => uses,
                _ => Vec::new(),
            }
        })
    }

    fn dial<'a>(&'a self, pod: &'a PodName, port: u16) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(self.front.dial(pod, port))
    }
}

/// The status of a container of any kind.
pub(crate) fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    statuses(pod).find(|status| status.name == container)
}

/// The statuses of all containers of a pod.
pub(crate) fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let ordinary = status.and_then(|status| status.container_statuses.as_ref());
    let ephemeral = status.and_then(|status| status.ephemeral_container_statuses.as_ref());
    [init, ordinary, ephemeral].into_iter().flatten().flatten()
}

/// The names of a pod's containers of any kind.
pub(crate) fn container_names(pod: &Pod) -> impl Iterator<Item = &str> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    let ordinary = spec.map(|spec| &spec.containers).into_iter().flatten();
    let ephemeral = spec.and_then(|spec| spec.ephemeral_containers.as_ref()).into_iter().flatten();
    init.chain(ordinary)
        .map(|container| container.name.as_str())
        .chain(ephemeral.map(|container| container.name.as_str()))
}

/// Whether a container runs by its status.
pub(crate) fn runs(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}
