//! Which data directory is meant.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where root's pods live, unless told otherwise.
const OF_ROOT: &str = "/var/lib/copepod";

/// What decides about the directory, read once from the process.
pub(crate) struct Surroundings {
    /// The effective user is root.
    pub(crate) root: bool,
    /// `XDG_DATA_HOME`.
    pub(crate) xdg_data_home: Option<OsString>,
    /// `HOME`.
    pub(crate) home: Option<OsString>,
    /// The current directory, which makes a relative path absolute.
    pub(crate) current: PathBuf,
}

impl Surroundings {
    /// This process's.
    pub(crate) fn here() -> Self {
        Self {
            root: is_root(),
            xdg_data_home: std::env::var_os("XDG_DATA_HOME"),
            home: std::env::var_os("HOME"),
            current: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        }
    }
}

/// The effective user is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The data directory: the one asked for, else root's, else the user's own.
pub(crate) fn data_dir(asked: Option<&Path>, around: &Surroundings) -> PathBuf {
    let absolute = |path: &Option<OsString>| {
        path.as_ref().map(PathBuf::from).filter(|path| path.is_absolute())
    };
    let chosen = match asked {
        Some(path) => path.to_owned(),
        None if around.root => OF_ROOT.into(),
        None => match (absolute(&around.xdg_data_home), absolute(&around.home)) {
            (Some(xdg), _) => xdg.join("copepod"),
            (None, Some(home)) => home.join(".local/share/copepod"),
            (None, None) => "copepod-data".into(),
        },
    };
    around.current.join(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_the_one_asked_for_then_root_s_then_the_user_s() {
        let user = |xdg: Option<&str>, home: Option<&str>| Surroundings {
            root: false,
            xdg_data_home: xdg.map(Into::into),
            home: home.map(Into::into),
            current: "/here".into(),
        };
        let root = Surroundings { root: true, ..user(Some("/x"), Some("/root")) };
        let table = [
            (Some("/d"), &root, "/d"),
            (Some("d/e"), &root, "/here/d/e"),
            (None, &root, "/var/lib/copepod"),
            (None, &user(Some("/x"), Some("/home/u")), "/x/copepod"),
            (None, &user(Some("relative"), Some("/home/u")), "/home/u/.local/share/copepod"),
            (None, &user(None, Some("/home/u")), "/home/u/.local/share/copepod"),
            (None, &user(None, None), "/here/copepod-data"),
        ];
        for (asked, around, expected) in table {
            assert_eq!(data_dir(asked.map(Path::new), around), Path::new(expected));
        }
    }
}
