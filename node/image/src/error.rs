//! Why an image could not be had: one variant per thing that the agent does next, each with the kubelet's reason.
//!
//! Absent: back-off between attempts of a pod, which the pod's core decides; [`Retry`] only says whether another can help.

use std::io;
use std::sync::Arc;

use copepod_shim::kind::NotRunnable;

use crate::reference::InvalidReference;

/// Whether asking again can end differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The world may change: a registry comes back, a login is added, a disk is freed.
    Later,
    /// The same spec and the same image give the same answer.
    WhenChanged,
}

/// Why an image is not here.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PullError {
    /// `InvalidImageName`: the text is no image's name.
    #[error(transparent)]
    InvalidName(#[from] InvalidReference),
    /// `ErrImageNeverPull`: it is not here, and may not be pulled.
    #[error("Container image {image:?} is not present with pull policy of Never")]
    NotPresent {
        /// The name as the pod has it.
        image: String,
    },
    /// `ErrImageNeverPull`: it is here, but was pulled with a login that this pod does not have.
    #[error(
        "Container image {image:?} is present, but was pulled with other credentials than this pod's, and its pull policy of Never forbids to ask the registry"
    )]
    NotAllowed {
        /// The name as the pod has it.
        image: String,
    },
    /// `RegistryUnavailable`: the registry does not answer, or says that it cannot now.
    #[error("failed to pull image {image:?}: registry {registry} is unavailable: {why}")]
    Unavailable {
        /// The name as the pod has it.
        image: String,
        /// The registry asked.
        registry: String,
        /// What happened.
        why: String,
    },
    /// `ErrImagePull`: the registry answers, and does not give it to us as we are.
    #[error("failed to pull image {image:?}: {why}")]
    Denied {
        /// The name as the pod has it.
        image: String,
        /// What the registry said, and which login was used.
        why: String,
    },
    /// `ErrImagePull`: what the registry sent is not what was named. Another answer may be right.
    #[error("failed to pull image {image:?}: {why}")]
    Corrupt {
        /// The name as the pod has it.
        image: String,
        /// What differs.
        why: String,
    },
    /// `ErrImagePull`: an address, redirect or login server that this node does not go to.
    #[error("failed to pull image {image:?}: {why}")]
    Blocked {
        /// The name as the pod has it.
        image: String,
        /// Where the registry wanted us.
        why: String,
    },
    /// `ErrImagePull`: it is there, and cannot run here: a Linux image, a layer above the limit, no wasm in it.
    #[error("failed to pull image {image:?}: {why}")]
    Unusable {
        /// The name as the pod has it.
        image: String,
        /// What it is, and what to build or set instead.
        why: String,
    },
    /// `ImageInspectError`: the local store failed.
    #[error("cannot keep image {image:?} in the local store: {source}")]
    Store {
        /// The name as the pod has it.
        image: String,
        /// Why.
        source: Arc<io::Error>,
    },
}

impl PullError {
    /// The reason that a waiting container's status carries, as the kubelet spells it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName(_) => "InvalidImageName",
            Self::NotPresent { .. } | Self::NotAllowed { .. } => "ErrImageNeverPull",
            Self::Unavailable { .. } => "RegistryUnavailable",
            Self::Denied { .. }
            | Self::Corrupt { .. }
            | Self::Blocked { .. }
            | Self::Unusable { .. } => "ErrImagePull",
            Self::Store { .. } => "ImageInspectError",
        }
    }

    /// Whether asking again can end differently.
    pub fn retry(&self) -> Retry {
        match self {
            Self::InvalidName(_) | Self::Unusable { .. } => Retry::WhenChanged,
            // An image may be loaded by hand at any moment, a registry's set-up be mended.
            Self::NotPresent { .. }
            | Self::NotAllowed { .. }
            | Self::Unavailable { .. }
            | Self::Denied { .. }
            | Self::Corrupt { .. }
            | Self::Blocked { .. }
            | Self::Store { .. } => Retry::Later,
        }
    }
}

/// Why a push failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PushError {
    /// The text is no image's name, or names a digest, which is not ours to choose.
    #[error("cannot push to {image:?}: {why}")]
    Name {
        /// The name given.
        image: String,
        /// What is wrong.
        why: String,
    },
    /// No such image in the local store.
    #[error(
        "image {image:?} is not in the local store: `copepod image load FILE.wasm --tag {image}` puts it there"
    )]
    NotPresent {
        /// The name given.
        image: String,
    },
    /// The registry did not take it.
    #[error("failed to push {image:?} to {registry}: {why}")]
    Refused {
        /// The name given.
        image: String,
        /// The registry asked.
        registry: String,
        /// What it said.
        why: String,
    },
    /// The local store failed.
    #[error("cannot read image {image:?} from the local store")]
    Store {
        /// The name given.
        image: String,
        /// Why.
        source: Arc<io::Error>,
    },
}

/// Why the local store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The text is no image's name.
    #[error(transparent)]
    InvalidName(#[from] InvalidReference),
    /// The file cannot be a container's module.
    #[error("{file} cannot be run: {source}")]
    NotRunnable {
        /// The file given.
        file: String,
        /// What it is instead.
        source: NotRunnable,
    },
    /// No such image.
    #[error("no image {image:?} in the local store")]
    NotPresent {
        /// The name given.
        image: String,
    },
    /// The disk's answer.
    #[error("{doing}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Why a module could not be compiled.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CompileError {
    /// Its bytes cannot run; final.
    #[error("{0}")]
    NotRunnable(NotRunnable),
    /// The compiler says that the module is not valid; final.
    #[error("the module is not valid: {0}")]
    Invalid(String),
    /// A limit ended it; final until the setting changes.
    #[error("{0}")]
    Limit(String),
    /// The compile child died without a word; final, since the same module will do it again.
    #[error("the compiler failed: {0}")]
    Crashed(String),
    /// The stored module's bytes have changed since they were pulled. They are removed: pull again.
    #[error(
        "the stored module {digest} is damaged ({found} on disk); it was removed and will be pulled again"
    )]
    Damaged {
        /// What it must be.
        digest: String,
        /// What it is.
        found: String,
    },
    /// The disk or the child's start failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why.
        source: Arc<io::Error>,
    },
}

impl CompileError {
    /// Whether asking again can end differently.
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotRunnable(_) | Self::Invalid(_) | Self::Limit(_) | Self::Crashed(_) => {
                Retry::WhenChanged
            }
            Self::Damaged { .. } | Self::Io { .. } => Retry::Later,
        }
    }

    /// Whether the image must be resolved again before compiling can succeed.
    pub fn needs_pull(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}
