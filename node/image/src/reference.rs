//! The name of an image, as a pod writes it: parsed once, completed as Docker does.
//!
//! Absent: which hosts may be asked. That is [`crate::guard`]'s, because it needs the addresses behind a name.

use std::fmt;

use crate::digest::Digest;

/// A parsed image name. `hello` is `docker.io/library/hello:latest`; a digest wins over a tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    given: String,
    registry: String,
    repository: String,
    version: Version,
}

/// What a name picks in its repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// What the registry calls by this tag at the moment.
    Tag(String),
    /// These bytes and no others.
    Digest(Digest),
}

/// Text that is not an image's name: the kubelet's `InvalidImageName`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image name {shown:?}: {why}")]
pub struct InvalidReference {
    shown: String,
    why: String,
}

/// The longest name with tag and digest that can be right: 255 + 1 + 128 + 1 + 71.
const MAX_TEXT: usize = 456;
/// The longest registry and repository together, as the distribution specification has it.
const MAX_NAME: usize = 255;

impl Reference {
    /// Parses what stands in a pod's `image` field.
    ///
    /// # Errors
    /// One sentence that says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        parse(text).map_err(|why| InvalidReference { shown: text.chars().take(120).collect(), why })
    }

    /// The registry as written, `docker.io` where none is: host and perhaps port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host that answers for the registry.
    pub(crate) fn api_host(&self) -> &str {
        if self.registry == "docker.io" { "registry-1.docker.io" } else { &self.registry }
    }

    /// The repository's path in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag or the digest.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The tag or digest as it stands in a registry's URL.
    pub(crate) fn version_text(&self) -> &str {
        match &self.version {
            Version::Tag(tag) => tag,
            Version::Digest(digest) => digest.as_str(),
        }
    }

    /// The text that was parsed: what status and events repeat.
    pub fn given(&self) -> &str {
        &self.given
    }

    /// The same repository at `digest`: an image's id in a pod's status.
    pub fn at(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

/// The whole name, nothing left to a default.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if text.len() > MAX_TEXT {
        return Err(format!("it has {} bytes, more than any right name ({MAX_TEXT})", text.len()));
    }
    let (rest, digest) = match text.split_once('@') {
        None => (text, None),
        Some((_, digest)) if !digest.contains(':') => {
            return Err(
                "what follows @ must be a digest; a user name has no place in an image name".into(),
            );
        }
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|e| e.to_string())?)),
    };
    // A colon after the last slash begins the tag; one before it begins a port.
    let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[path_start..].split_once(':') {
        None => (rest, None),
        Some((last, tag)) => (&rest[..path_start + last.len()], Some(tag)),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, path.to_owned())
        }
        Some(_) => ("docker.io", name.to_owned()),
        None => ("docker.io", format!("library/{name}")),
    };
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    let path = match path.contains('/') {
        false if registry == "docker.io" => format!("library/{path}"),
        _ => path,
    };
    check_registry(registry)?;
    for part in path.split('/') {
        check_path_part(part)?;
    }
    if registry.len() + 1 + path.len() > MAX_NAME {
        return Err(format!("the name has more than {MAX_NAME} bytes"));
    }
    if digest.is_none() && name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("64 hex digits could be meant as a digest: write name@sha256:...".into());
    }
    let version = match (digest, tag) {
        (Some(digest), _) => Version::Digest(digest),
        (None, Some(tag)) => Version::Tag(tag.to_owned()),
        (None, None) => Version::Tag("latest".into()),
    };
    // A host's name has no case, and one registry must not be two.
    Ok(Reference {
        given: text.to_owned(),
        registry: registry.to_ascii_lowercase(),
        repository: path,
        version,
    })
}

fn check_tag(tag: &str) -> Result<(), String> {
    let mut bytes = tag.bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = tag.len() <= 128
        && bytes.next().is_some_and(word)
        && bytes.all(|b| word(b) || b == b'.' || b == b'-');
    if good {
        Ok(())
    } else {
        Err("a tag has 1 to 128 letters, digits, '_', '.' and '-', and begins with none of the last two".into())
    }
}

fn check_path_part(part: &str) -> Result<(), String> {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if part.is_empty() {
        return Err("a part between slashes is empty".into());
    }
    if part.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("{part:?} must be lower case"));
    }
    let edges =
        part.bytes().next().is_some_and(letter) && part.bytes().next_back().is_some_and(letter);
    let separators =
        part.split(|c: char| letter(c as u8) && c.is_ascii()).filter(|it| !it.is_empty());
    let joined = separators
        .into_iter()
        .all(|it| it == "." || it == "_" || it == "__" || it.bytes().all(|b| b == b'-'));
    if edges && joined {
        Ok(())
    } else {
        Err(format!(
            "{part:?} must be lower-case letters and digits, joined by single '.', '_', '__' or '-'"
        ))
    }
}

fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, after) =
                rest.split_once(']').ok_or_else(|| "an IPv6 address lacks its ]".to_owned())?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("{address:?} is not an IPv6 address"));
            }
            let port = match after.strip_prefix(':') {
                None if after.is_empty() => None,
                None => return Err(format!("{after:?} cannot follow an address")),
                Some(port) => Some(port),
            };
            (None, port)
        }
        None => match registry.split_once(':') {
            None => (Some(registry), None),
            Some((host, port)) => (Some(host), Some(port)),
        },
    };
    if let Some(port) = port {
        let digits =
            !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
        if !digits
            || port.parse::<u16>().is_ok_and(|port| port == 0)
            || port.parse::<u16>().is_err()
        {
            return Err(format!("{port:?} is not a port"));
        }
    }
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match host {
        Some(host) if !host.split('.').all(label) => {
            Err(format!("{host:?} is not a registry's host name"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_completed_as_docker_does() {
        let digest = Digest::of(b"x");
        let table = [
            ("hello", "docker.io/library/hello:latest"),
            ("hello:1", "docker.io/library/hello:1"),
            ("me/hello", "docker.io/me/hello:latest"),
            ("docker.io/hello", "docker.io/library/hello:latest"),
            ("index.docker.io/me/hello", "docker.io/me/hello:latest"),
            ("localhost/hello", "localhost/hello:latest"),
            ("localhost:5000/a/b_c/d--e:v1.0", "localhost:5000/a/b_c/d--e:v1.0"),
            ("GHCR.io/a/b", "ghcr.io/a/b:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ];

        for (given, whole) in table {
            let reference = Reference::parse(given).expect(given);
            assert_eq!(reference.to_string(), whole);
            assert_eq!(reference.given(), given);
        }
        let both = Reference::parse(&format!("ghcr.io/a/b:v1@{digest}")).expect("tag and digest");
        assert_eq!(both.version(), &Version::Digest(digest.clone()));
        assert_eq!(both.to_string(), format!("ghcr.io/a/b@{digest}"));
    }

    #[test]
    fn nonsense_is_refused_with_the_part_that_is_wrong_p09() {
        let long_tag = format!("a:{}", "t".repeat(4096));
        let tag_129 = format!("a:{}", "t".repeat(129));
        let table = [
            ("", "empty"),
            (long_tag.as_str(), "more than any right name"),
            (tag_129.as_str(), "a tag has"),
            ("user@host/image", "digest"),
            ("user:password@host/image", "digest"),
            ("a@sha256:1234", "64 lower-case hex"),
            ("a/../b", "lower-case letters"),
            ("..", "lower-case letters"),
            ("a//b", "empty"),
            ("/a", "empty"),
            ("a/", "empty"),
            ("a:", "a tag has"),
            ("a:-x", "a tag has"),
            ("Hello", "lower case"),
            ("a b", "lower-case letters"),
            ("a\0", "lower-case letters"),
            ("host:port/a", "not a port"),
            ("host:0/a", "not a port"),
            ("host:99999/a", "not a port"),
            ("[::1/a", "lacks its ]"),
            ("[zz]/a", "not an IPv6 address"),
            ("-a.b/c", "host name"),
            ("https://ghcr.io/a", "not a port"),
            ("a___b", "joined by"),
            ("a..b", "joined by"),
        ];

        for (given, why) in table {
            let error = Reference::parse(given).expect_err(given).to_string();
            assert!(error.contains(why), "{given:?}: {error}");
            assert!(error.starts_with("invalid image name") && error.len() < 400);
        }
    }
}
