//! What a node keeps of having joined: `<data>/node.json`, so that a restart needs no API server before pods go on.
//!
//! Absent: the Node object, which the API server has.

use std::io;
use std::path::{Path, PathBuf};

use copepod_agent::write_whole;
use serde::{Deserialize, Serialize};

use crate::settings::NodeName;

/// What was settled when the node joined; it holds for as long as the data directory has pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    /// The node's name.
    pub node_name: String,
    /// The Node object's UID.
    pub uid: String,
    /// The blocks that its pods' addresses come from, one of each family, as the cluster writes them.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JoinedError {
    /// The disk says no.
    #[error("{path} cannot be used")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is damaged.
    #[error("{path} is damaged: remove it, and the node joins again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It is another node's.
    #[error(
        "{data} is the data directory of the node {found}, and this node is {wanted}: give --node-name {found}, or another --data-dir"
    )]
    OtherNode {
        /// The data directory.
        data: PathBuf,
        /// Its node.
        found: String,
        /// The node of the settings.
        wanted: NodeName,
    },
}

impl Joined {
    /// What an earlier process of this node left; none before it has joined.
    ///
    /// # Errors
    /// See [`JoinedError`].
    pub fn read(data: &Path, node: &NodeName) -> Result<Option<Self>, JoinedError> {
        let path = data.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(JoinedError::Io { path, source }),
        };
        let joined: Self = serde_json::from_slice(&text)
            .map_err(|source| JoinedError::Damaged { path, source })?;
        if joined.node_name != node.as_str() {
            let (data, wanted) = (data.to_owned(), node.clone());
            return Err(JoinedError::OtherNode { data, found: joined.node_name, wanted });
        }
        Ok(Some(joined))
    }

    /// Forgets what was settled, where anything was: the node joins anew.
    ///
    /// # Errors
    /// The disk says no.
    pub fn forget(data: &Path) -> Result<(), JoinedError> {
        let path = data.join(FILE);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(JoinedError::Io { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Keeps it: whole, or not at all.
    ///
    /// # Errors
    /// The disk says no.
    pub fn write(&self, data: &Path) -> Result<(), JoinedError> {
        let path = data.join(FILE);
        let io = |source| JoinedError::Io { path: path.clone(), source };
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| io(error.into()))?;
        text.push(b'\n');
        std::fs::create_dir_all(data).map_err(io)?;
        write_whole(&path, &text, 0o644).map_err(io)
    }
}

const FILE: &str = "node.json";

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        name.parse().expect("a name")
    }

    fn joined() -> Joined {
        Joined { node_name: "n1".into(), uid: "u".into(), pod_cidrs: vec!["10.1.2.0/24".into()] }
    }

    #[test]
    fn a_node_that_has_joined_finds_what_it_kept() {
        let data = tempfile::tempdir().expect("a folder");

        joined().write(&data.path().join("new")).expect("written");

        let found = Joined::read(&data.path().join("new"), &node("n1")).expect("read");
        assert_eq!(found, Some(joined()));
        assert_eq!(Joined::read(data.path(), &node("n1")).expect("read"), None);
    }

    #[test]
    fn another_node_s_directory_is_refused_and_a_damaged_file_told() {
        let data = tempfile::tempdir().expect("a folder");
        joined().write(data.path()).expect("written");

        let other = Joined::read(data.path(), &node("n2")).expect_err("refused").to_string();
        std::fs::write(data.path().join(FILE), "{").expect("written");
        let damaged = Joined::read(data.path(), &node("n1")).expect_err("refused").to_string();

        assert!(other.contains("--node-name n1"), "{other}");
        assert!(damaged.contains("node.json is damaged"), "{damaged}");
    }
}
