//! How images are pulled, from the environment: how large they may be, where logins may go, and where the authorities of single
//! registries are: the user's own folder first, as podman has it, then the machine's.
//!
//! Absent: what the rules mean (`copepod-image`).

use std::path::PathBuf;

use copepod_image::{CA_FOLDERS, PullRules};

/// The rules for the user of this environment; a bad value is refused by its variable's name.
pub(crate) fn pull_rules(variable: &dyn Fn(&str) -> Option<String>) -> Result<PullRules, String> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let mut rules = PullRules { ca_folders: ca_folders(&set), ..PullRules::default() };
    for (name, bytes) in [
        ("COPEPOD_MAX_LAYER_BYTES", &mut rules.max_layer_bytes),
        ("COPEPOD_MAX_IMAGE_BYTES", &mut rules.max_image_bytes),
    ] {
        if let Some(text) = set(name) {
            *bytes = text.parse().map_err(|_| format!("{name}={text}: this is no whole number"))?;
        }
    }
    if let Some(pairs) = set("COPEPOD_LOGIN_HOSTS") {
        for pair in pairs.split(',') {
            let (registry, server) = pair.trim().split_once('=').ok_or_else(|| {
                format!("COPEPOD_LOGIN_HOSTS={pairs}: {pair:?} is not REGISTRY=LOGIN-HOST")
            })?;
            rules.login_hosts.insert((registry.to_owned(), server.to_owned()));
        }
    }
    Ok(rules)
}

fn ca_folders(set: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let path = |name| set(name).map(PathBuf::from);
    let config = path("XDG_CONFIG_HOME").or_else(|| path("HOME").map(|home| home.join(".config")));
    let own = config.map(|config| config.join("containers/certs.d"));
    own.into_iter().chain(CA_FOLDERS.map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(set: &[(&str, &str)]) -> Result<PullRules, String> {
        pull_rules(&|asked| {
            set.iter().find(|(name, _)| *name == asked).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_user_s_folder_comes_before_the_machine_s() {
        let table = [
            (&[("HOME", "/home/a")][..], Some("/home/a/.config/containers/certs.d")),
            (&[("HOME", "/home/a"), ("XDG_CONFIG_HOME", "/x")], Some("/x/containers/certs.d")),
            (&[("XDG_CONFIG_HOME", "")], None),
        ];
        for (set, own) in table {
            let folders = rules(set).expect("good").ca_folders;

            let expected: Vec<PathBuf> =
                own.into_iter().chain(CA_FOLDERS).map(PathBuf::from).collect();
            assert_eq!(folders, expected);
        }
    }

    #[test]
    fn sizes_and_login_hosts_are_taken_from_their_variables_and_refused_by_their_names() {
        let good = rules(&[
            ("COPEPOD_MAX_LAYER_BYTES", "5"),
            ("COPEPOD_LOGIN_HOSTS", "a.example=login.example, b.example=c.example"),
        ])
        .expect("good");
        let pair = |registry: &str, server: &str| (registry.to_owned(), server.to_owned());
        assert_eq!(good.max_layer_bytes, 5);
        assert_eq!(
            good.login_hosts,
            [pair("a.example", "login.example"), pair("b.example", "c.example")].into()
        );

        for name in ["COPEPOD_MAX_IMAGE_BYTES", "COPEPOD_LOGIN_HOSTS"] {
            let why = rules(&[(name, "much")]).expect_err(name);
            assert!(why.starts_with(name), "{why}");
        }
    }
}
