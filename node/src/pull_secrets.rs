//! The registry logins in a pod's `imagePullSecrets`: `kubernetes.io/dockerconfigjson` and the older `kubernetes.io/dockercfg`.
//!
//! Absent: which login an image needs, and credential helpers, which a Secret cannot hold.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use crate::objects::{Objects, secret_bytes};

/// A login at a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The key in the file: a host, perhaps with port, path or scheme, as `docker login` wrote it.
    pub registry: String,
    /// The user.
    pub username: String,
    /// The password or token.
    pub password: String,
}

impl std::fmt::Debug for Login {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.username, self.registry)
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// All logins in the pod's pull secrets, and what is wrong with the secrets that gave none. As under a kubelet the pull is tried all the
/// same: the image may be public.
pub fn logins(pod: &Pod, objects: &dyn Objects) -> (Vec<Login>, Vec<String>) {
    let (mut logins, mut wrong) = (Vec::new(), Vec::new());
    let spec = pod.spec.as_ref();
    for reference in spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
        match of_secret(&reference.name, objects) {
            Ok(found) => logins.extend(found),
            Err(why) => wrong.push(format!("the pull secret {:?} {why}", reference.name)),
        }
    }
    (logins, wrong)
}

fn of_secret(name: &str, objects: &dyn Objects) -> Result<Vec<Login>, String> {
    let secret = objects.secret(name).ok_or("is not in the pod's namespace")?;
    let auths = if let Some(bytes) = secret_bytes(secret, ".dockerconfigjson") {
        serde_json::from_slice::<DockerConfig>(bytes).map(|config| config.auths)
    } else if let Some(bytes) = secret_bytes(secret, ".dockercfg") {
        serde_json::from_slice(bytes)
    } else {
        return Err("has neither .dockerconfigjson nor .dockercfg".to_owned());
    };
    // serde_json's message would quote the text, which is a secret.
    let auths = auths.map_err(|error| {
        format!("is no JSON of registry logins (line {}, column {})", error.line(), error.column())
    })?;
    auths.into_iter().map(|(registry, auth)| login(registry, auth)).collect()
}

fn login(registry: String, auth: Auth) -> Result<Login, String> {
    if let (Some(username), Some(password)) = (auth.username, auth.password) {
        return Ok(Login { registry, username, password });
    }
    let unreadable = || format!("has no readable login for {registry:?}");
    let both =
        BASE64_STANDARD.decode(auth.auth.unwrap_or_default().trim()).map_err(|_| unreadable())?;
    let both = String::from_utf8(both).map_err(|_| unreadable())?;
    let (username, password) = both.split_once(':').ok_or_else(unreadable)?;
    let (username, password) = (username.to_owned(), password.to_owned());
    Ok(Login { registry, username, password })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::KnownObjects;

    fn found(secret: serde_json::Value) -> (Vec<Login>, Vec<String>) {
        let secret = serde_json::from_value(secret).unwrap();
        let objects =
            KnownObjects { secrets: [("s".to_owned(), secret)].into(), ..KnownObjects::default() };
        let spec = json!({"containers": [], "imagePullSecrets": [{"name": "s"}]});
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        logins(&pod, &objects)
    }

    fn login(registry: &str) -> Login {
        let (username, password) = ("u".to_owned(), "p:w".to_owned());
        Login { registry: registry.to_owned(), username, password }
    }

    #[test]
    fn both_forms_of_secrets_are_read() {
        // base64 of `u:p:w`.
        let new = r#"{"auths": {"r.test:5000": {"auth": "dTpwOnc="}}}"#;
        let old = r#"{"r.test": {"username": "u", "password": "p:w"}}"#;

        let new = found(json!({"stringData": {".dockerconfigjson": new}}));
        let old = found(json!({"stringData": {".dockercfg": old}}));

        assert_eq!(new, (vec![login("r.test:5000")], Vec::new()));
        assert_eq!(old, (vec![login("r.test")], Vec::new()));
    }

    #[test]
    fn a_secret_that_cannot_be_read_is_named_without_its_content() {
        for secret in [
            json!({"stringData": {"other": "x"}}),
            json!({"stringData": {".dockerconfigjson": "hunter2"}}),
            json!({"stringData": {".dockerconfigjson": "{\"auths\": {\"r\": {\"auth\": \"hunter2\"}}}"}}),
        ] {
            let (logins, wrong) = found(secret);

            assert_eq!(logins, []);
            assert!(
                wrong[0].starts_with("the pull secret \"s\" ") && !wrong[0].contains("hunter2")
            );
        }
    }
}
