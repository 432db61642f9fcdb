//! Asking the API server from tests that wait for each answer.
//!
//! Absent: commands, which are kubectl's (`Cluster::kubectl`).

use std::future::Future;
use std::path::Path;
use std::sync::LazyLock;

use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// One for all tests, as connections are served by it between two questions.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
});

/// Waits for an answer.
pub(crate) fn wait<F: Future>(answer: F) -> F::Output {
    RUNTIME.block_on(answer)
}

/// Work that goes on beside a test, until this is dropped.
pub(crate) struct Beside(JoinHandle<()>);

impl Beside {
    pub(crate) fn start(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(RUNTIME.spawn(work))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Who asks as this kubeconfig says.
pub(crate) fn client(kubeconfig: &Path) -> Client {
    wait(async {
        let read = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(read, &options).await.expect("a config");
        Client::try_from(config).expect("a client")
    })
}

/// The status code by which the API server refused.
pub(crate) fn code<T>(answer: Result<T, ::kube::Error>) -> Option<u16> {
    match answer {
        Err(::kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}
