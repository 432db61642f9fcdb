//! One repository of one registry, spoken to with one login: manifests and blobs, both ways, each checked by its digest.
//!
//! Beneath: [`session`], how it is asked, and [`tokens`], how we get in. Absent: where we may go at all ([`crate::guard`]), and
//! what the bytes mean ([`crate::pull`]).

mod session;
mod tokens;

use std::io::{Seek as _, SeekFrom};

use reqwest::header::LOCATION;
use reqwest::{Response, StatusCode};
use tokio::io::AsyncWriteExt as _;

use self::session::{Ask, Payload, Session};
pub(crate) use self::tokens::Tokens;
use crate::credentials::Login;
use crate::digest::{Digest, Hash};
use crate::guard::{Failure, Guard};
use crate::manifest;
use crate::reference::Reference;
use crate::sizes;
use crate::store::Temp;

/// The distribution specification's own cap for a manifest.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// The media type of a blob on its way up, whatever is in it.
const BLOB: &str = "application/octet-stream";

/// A manifest or index as it came.
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) content_type: Option<String>,
}

/// A repository, and who we are to it.
pub(crate) struct Repository<'a>(Session<'a>);

impl<'a> Repository<'a> {
    pub(crate) fn new(
        guard: &'a Guard,
        tokens: &'a Tokens,
        reference: &'a Reference,
        login: Option<&'a Login>,
        push: bool,
    ) -> Result<Self, Failure> {
        Session::new(guard, tokens, reference, login, push).map(Self)
    }

    /// Whether the registry takes this login at all.
    pub(crate) async fn ping(&self) -> Result<(), Failure> {
        let Self(session) = self;
        let url =
            session.home.url().join("/v2/").map_err(|_| Failure::Blocked("no address".into()))?;
        session.get(&url, None).await.map(|_| ())
    }

    /// Fetches a manifest or index by tag or digest; a digest is checked.
    pub(crate) async fn manifest(
        &self,
        version: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, Failure> {
        let Self(session) = self;
        let url = session.url(&format!("manifests/{version}"))?;
        let response = session.get(&url, Some(manifest::ACCEPT)).await?;
        let text = |name: &str| {
            response.headers().get(name).and_then(|it| it.to_str().ok()).map(str::to_owned)
        };
        let content_type = text("content-type");
        let announced = text("docker-content-digest");
        let bytes = self.0.guard.read(response, MAX_MANIFEST, "the image's manifest").await?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(Failure::Corrupt(format!(
                "the manifest that the registry sent has digest {digest}, and {expected} was asked for"
            )));
        }
        if let Some(announced) = announced.filter(|it| it.starts_with("sha256:"))
            && announced != digest.as_str()
        {
            let announced: String = announced.chars().take(80).collect();
            return Err(Failure::Corrupt(format!(
                "the registry announced a manifest of digest {announced:?} and sent one of {digest}"
            )));
        }
        Ok(Fetched { bytes, digest, content_type })
    }

    /// Fetches a small blob into memory.
    pub(crate) async fn small_blob(
        &self,
        digest: &Digest,
        size: u64,
        cap: u64,
        what: &str,
    ) -> Result<Vec<u8>, Failure> {
        if size > cap {
            return Err(Failure::Unusable(format!(
                "{what} is said to have {}, more than {}",
                sizes::shown(size),
                sizes::shown(cap)
            )));
        }
        let response = self.blob_response(digest).await?;
        let bytes =
            self.0.guard.read(response, size.max(1), what).await.map_err(
                |failure| match failure {
                    Failure::Unusable(_) => Failure::Corrupt(format!(
                        "{what} is longer than the {size} bytes in its manifest"
                    )),
                    other => other,
                },
            )?;
        check_blob(what, digest, size, &Digest::of(&bytes), bytes.len() as u64)?;
        Ok(bytes)
    }

    /// Streams a blob into `temp`. Its bytes are those of `digest` when this returns `Ok`. `came` hears of each piece, and of
    /// `None` where an attempt begins anew.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        temp: &Temp,
        came: &mut (dyn FnMut(Option<u64>) + Send),
    ) -> Result<(), Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            came(None);
            match self.blob_once(digest, size, temp, came).await {
                // A broken line, not a wrong answer: those are not asked for twice.
                Err(Failure::Unavailable(why)) if attempt < self.0.guard.rules.attempts => {
                    tracing::info!(registry = self.0.registry, %digest, attempt, why, "a download is begun again");
                    tokio::time::sleep(self.0.pause(attempt, None)).await;
                }
                other => return other,
            }
        }
    }

    async fn blob_once(
        &self,
        digest: &Digest,
        size: u64,
        temp: &Temp,
        came: &mut (dyn FnMut(Option<u64>) + Send),
    ) -> Result<(), Failure> {
        let response = self.blob_response(digest).await?;
        if let Some(length) = response.content_length()
            && length != size
        {
            return Err(Failure::Corrupt(format!(
                "layer {digest} has {length} bytes, and {size} in its manifest"
            )));
        }
        temp.file().set_len(0)?;
        temp.file().seek(SeekFrom::Start(0))?;
        let mut file = tokio::fs::File::from_std(temp.file().try_clone()?);
        let mut body = self.0.guard.body(response);
        let mut hash = Hash::default();
        let mut length = 0u64;
        while let Some(chunk) = body.next().await? {
            length += chunk.len() as u64;
            if length > size {
                return Err(Failure::Corrupt(format!(
                    "layer {digest} is longer than the {size} bytes in its manifest"
                )));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await?;
            came(Some(chunk.len() as u64));
        }
        file.flush().await?;
        check_blob("layer", digest, size, &hash.finish(), length)
    }

    async fn blob_response(&self, digest: &Digest) -> Result<Response, Failure> {
        let Self(session) = self;
        session.get(&session.url(&format!("blobs/{digest}"))?, None).await
    }

    /// Uploads a blob, unless the registry has it.
    pub(crate) async fn push_blob(
        &self,
        digest: &Digest,
        file: &std::fs::File,
        size: u64,
    ) -> Result<(), Failure> {
        let Self(session) = self;
        let url = session.url(&format!("blobs/{digest}"))?;
        if session.answer(&url, &Ask::Head).await?.status() == StatusCode::OK {
            return Ok(());
        }
        let url = session.url("blobs/uploads/")?;
        let begun = session.ask(&url, &Ask::Post, &[StatusCode::ACCEPTED]).await?;
        let mut target = begun
            .headers()
            .get(LOCATION)
            .and_then(|it| it.to_str().ok())
            .and_then(|it| url.join(it).ok())
            .ok_or_else(|| Failure::Corrupt("the registry names no place to upload to".into()))?;
        target.query_pairs_mut().append_pair("digest", digest.as_str());
        let upload = Ask::Put(BLOB, Payload::File(file, size));
        session.ask(&target, &upload, &[StatusCode::CREATED, StatusCode::NO_CONTENT]).await?;
        Ok(())
    }

    /// Puts a manifest under a tag.
    pub(crate) async fn push_manifest(
        &self,
        tag: &str,
        media_type: &'static str,
        bytes: Vec<u8>,
    ) -> Result<(), Failure> {
        let Self(session) = self;
        let url = session.url(&format!("manifests/{tag}"))?;
        let put = Ask::Put(media_type, Payload::Bytes(bytes));
        session.ask(&url, &put, &[StatusCode::CREATED, StatusCode::OK]).await?;
        Ok(())
    }
}

fn check_blob(
    what: &str,
    digest: &Digest,
    size: u64,
    found: &Digest,
    length: u64,
) -> Result<(), Failure> {
    if length != size {
        return Err(Failure::Corrupt(format!(
            "{what} {digest} has {length} bytes, and {size} in its manifest"
        )));
    }
    if found != digest {
        return Err(Failure::Corrupt(format!(
            "{what} {digest} came with other bytes: their digest is {found}"
        )));
    }
    Ok(())
}
