//! Where the authorities of single registries are looked for: the user's own folder first, as podman has it, then the machine's.
//!
//! Absent: what is in them (`copepod-image`).

use std::path::PathBuf;

use copepod_image::CA_FOLDERS;

/// The folders, for the user of this environment.
pub(crate) fn ca_folders(variable: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let own = config.map(|config| config.join("containers/certs.d"));
    own.into_iter().chain(CA_FOLDERS.map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_s_folder_comes_before_the_machine_s() {
        let table = [
            (&[("HOME", "/home/a")][..], Some("/home/a/.config/containers/certs.d")),
            (&[("HOME", "/home/a"), ("XDG_CONFIG_HOME", "/x")], Some("/x/containers/certs.d")),
            (&[("XDG_CONFIG_HOME", "")], None),
        ];
        for (set, own) in table {
            let variable = |asked: &str| {
                set.iter().find(|(name, _)| *name == asked).map(|(_, value)| (*value).to_owned())
            };

            let folders = ca_folders(&variable);

            let expected: Vec<PathBuf> =
                own.into_iter().chain(CA_FOLDERS).map(PathBuf::from).collect();
            assert_eq!(folders, expected);
        }
    }
}
