//! Images on the agent's side: from the name in a pod's spec to compiled code on this machine's disk.
//!
//! Start at [`images`], which agent and command line use; then [`reference`], the name; [`pull`], which turns it into bytes by
//! way of [`registry`] and [`guard`]; [`root`], which makes one folder of a container image's layers; [`store`], where they lie; [`code`] and [`compiler`], which make native code of them;
//! [`loose`], files that are in no image.
//!
//! Elsewhere: a pod's back-off and events (`copepod-node`), running the code (`copepod-runner`).
//! Invariant: no module that was pulled is compiled, or even parsed beyond its first bytes, in the agent: the compile child does that.
//! (`Images::load` and `Images::inspect`, which the command line calls in its own process, read imports and exports.)

mod code;
mod compiler;
mod credentials;
mod digest;
mod error;
mod guard;
mod images;
mod layers;
mod loose;
mod manifest;
mod progress;
mod pull;
mod reference;
mod registry;
mod root;
pub mod sizes;
mod store;
mod trust;

pub use code::{Code, CompileLimits, Compiler, engine_hash, is_engine_hash};
pub use compiler::compile_child_main;
pub use credentials::{Credentials, CredentialsError};
pub use digest::{Digest, NotADigest};
pub use error::{CompileError, PullError, PushError, Retry, StoreError};
pub use guard::PullRules;
pub use images::{CollectPolicy, Image, Images, ImagesConfig, Inspected, Listed, PullPolicy};
pub use progress::{Progress, ProgressFn};
pub use reference::{InvalidReference, Reference, Version};
pub use store::Collected;
pub use trust::CA_FOLDERS;

/// Makes ring the process's one TLS provider. Harmless when called again, or after someone else has chosen.
pub fn install_tls_provider() {
    // The error only says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
