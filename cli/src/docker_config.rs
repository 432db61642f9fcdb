//! Docker's configuration file: where it is, which logins it holds, and keeping a new one in it.
//!
//! Everything in the file that we do not know stays as it is. Absent: credential helpers, which are programs.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use copepod_agent::api::RegistryCredentials;
use serde_json::{Map, Value, json};

/// Where Docker keeps its configuration: `$DOCKER_CONFIG`, else `~/.docker`.
pub(crate) fn path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")))?;
    Some(folder.join("config.json"))
}

/// The configuration's text; none where there is no file.
pub(crate) fn text(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The logins in `config` for the registries of `images`: the agent gets no others.
pub(crate) fn logins_for(config: &str, images: &[String]) -> Vec<RegistryCredentials> {
    let Ok(config) = serde_json::from_str::<Value>(config) else { return Vec::new() };
    let auths = config.get("auths").and_then(Value::as_object);
    auths
        .into_iter()
        .flatten()
        .filter(|(key, _)| images.iter().any(|image| host_of_key(key) == registry(image)))
        .filter_map(|(key, auth)| {
            let (username, password) = login(auth)?;
            Some(RegistryCredentials { registry: key.clone(), username, password })
        })
        .collect()
}

fn login(auth: &Value) -> Option<(String, String)> {
    let text = |name| auth.get(name).and_then(Value::as_str);
    if let Some(encoded) = text("auth").filter(|it| !it.is_empty()) {
        let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        return Some((user.to_owned(), password.to_owned()));
    }
    Some((text("username")?.to_owned(), text("password")?.to_owned()))
}

/// The host of an entry of `auths`.
fn host_of_key(key: &str) -> &str {
    let key = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
    match key.split('/').next().unwrap_or(key) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// The registry that an image's name stands for: its first part where that is a host.
pub(crate) fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host_of_key(host),
        _ => "docker.io",
    }
}

/// `config` with one more login.
///
/// # Errors
/// A sentence, where `config` is not a JSON object.
pub(crate) fn with_login(
    config: Option<&str>,
    registry: &str,
    user: &str,
    password: &str,
) -> Result<String, String> {
    let mut config: Map<String, Value> = match config.map(str::trim).filter(|it| !it.is_empty()) {
        None => Map::new(),
        Some(text) => serde_json::from_str(text).map_err(|e| {
            format!("it is not a JSON object (line {}, column {})", e.line(), e.column())
        })?,
    };
    // Docker's own name for its hub.
    let key = match host_of_key(registry) {
        "docker.io" => "https://index.docker.io/v1/",
        _ => registry,
    };
    let auths = config.entry("auths").or_insert_with(|| json!({}));
    let Some(auths) = auths.as_object_mut() else {
        return Err("its auths is not an object".into());
    };
    auths.insert(key.into(), json!({"auth": STANDARD.encode(format!("{user}:{password}"))}));
    serde_json::to_string_pretty(&config).map_err(|error| error.to_string())
}

/// Puts `text` in the place of the file at once, readable by its owner only.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let beside = folder.join(format!(".config.json.copepod-{}", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_added_and_all_else_stays() {
        let old = r#"{"credsStore": "x", "auths": {"a.b": {"auth": "b2xkOnB3"}}}"#;

        let once = with_login(Some(old), "localhost:5000", "me", "pw").expect("added");
        let new = with_login(Some(&once), "a.b", "you", "p:w").expect("added");

        let value: Value = serde_json::from_str(&new).expect("JSON");
        assert_eq!(value["credsStore"], "x");
        let images = ["a.b/c:1".to_owned(), "localhost:5000/x".into()];
        let logins: Vec<_> = logins_for(&new, &images)
            .into_iter()
            .map(|it| format!("{} {} {}", it.registry, it.username, it.password))
            .collect();
        assert_eq!(logins, ["a.b you p:w", "localhost:5000 me pw"]);
    }

    #[test]
    fn docker_s_hub_has_its_own_key() {
        let config = with_login(None, "docker.io", "me", "pw").expect("added");

        assert!(config.contains("https://index.docker.io/v1/"), "{config}");
        assert_eq!(logins_for(&config, &["busybox".into()]).len(), 1);
        assert_eq!(logins_for(&config, &["ghcr.io/x/y".into()]).len(), 0);
    }

    #[test]
    fn a_file_that_is_no_configuration_is_left_alone() {
        assert!(with_login(Some("[]"), "a.b", "me", "pw").is_err());
        assert!(with_login(Some("{\"auths\": 3}"), "a.b", "me", "pw").is_err());
        assert!(logins_for("[", &["a".into()]).is_empty());
    }
}
