//! What a wasm file is and will need, in words: pure, from its imports.
//!
//! Absent: whether an import's very function is there, which only linking tells; this knows the interfaces.

use std::collections::BTreeSet;

use copepod_shim::kind::{Inspection, Kind};

/// What a kind is, in a sentence.
pub(crate) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::HttpComponent => {
            "HTTP component: serves the container's ports (8080 where it declares none), an instance per request"
        }
        Kind::CommandComponent => {
            "command component: runs to its end; its exit code is the container's"
        }
        Kind::Preview1Command => {
            "core module with a preview1 _start: runs to its end; its exit code is the container's"
        }
    }
}

/// What it asks of its host, a sentence each, and the imports that nothing here provides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Sentences, the most telling first.
    pub(crate) words: Vec<&'static str>,
    /// Imports of interfaces that copepod does not have.
    pub(crate) missing: Vec<String>,
}

/// The interfaces that every guest gets, and what using one means for the pod.
const INTERFACES: &[(&str, Option<(u8, &str)>)] = &[
    (
        "wasi:http/outgoing-handler",
        Some((0, "HTTP requests to others: the pod's network rules apply")),
    ),
    (
        "wasi:http/incoming-handler",
        Some((0, "another component that handles HTTP: a chain is not supported")),
    ),
    ("wasi:http/", None),
    ("wasi:sockets/tcp", Some((1, "TCP sockets: from the pod's address"))),
    ("wasi:sockets/udp", Some((2, "UDP sockets: from the pod's address"))),
    ("wasi:sockets/ip-name-lookup", Some((3, "name lookup: by the pod's DNS settings"))),
    ("wasi:sockets/", None),
    (
        "wasi:filesystem/",
        Some((4, "files: the directories that volumeMounts show it, and no others")),
    ),
    ("wasi:cli/environment", Some((5, "environment variables and arguments: from the pod's spec"))),
    ("wasi:cli/stdin", None),
    ("wasi:cli/", None),
    ("wasi:clocks/", Some((6, "clocks"))),
    ("wasi:random/", Some((7, "random numbers"))),
    ("wasi:io/", None),
];

/// The same for functions of preview1, by the beginning of their names.
const PREVIEW1: &[(&str, (u8, &str))] = &[
    ("sock_", (1, "sockets: one descriptor for each declared port")),
    ("path_", (4, "files: the directories that volumeMounts show it, and no others")),
    ("environ_", (5, "environment variables and arguments: from the pod's spec")),
    ("args_", (5, "environment variables and arguments: from the pod's spec")),
    ("clock_", (6, "clocks")),
    ("random_", (7, "random numbers")),
];

/// What `inspection` asks for.
pub(crate) fn needs(inspection: &Inspection) -> Needs {
    let mut words = BTreeSet::new();
    let mut missing = Vec::new();
    for import in &inspection.imports {
        if let Some(function) = import.strip_prefix("wasi_snapshot_preview1.") {
            words.extend(
                PREVIEW1.iter().filter(|(start, _)| function.starts_with(start)).map(|it| it.1),
            );
            continue;
        }
        let is_current =
            import.split_once('@').is_none_or(|(_, version)| version.starts_with("0.2."));
        match INTERFACES.iter().find(|(start, _)| import.starts_with(start)) {
            Some((_, word)) if is_current => words.extend(*word),
            _ => missing.push(import.clone()),
        }
    }
    Needs { words: words.into_iter().map(|(_, word)| word).collect(), missing }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(imports: &[&str]) -> Needs {
        needs(&Inspection {
            kind: Kind::CommandComponent,
            imports: imports.iter().map(|it| (*it).to_owned()).collect(),
            exports: Vec::new(),
        })
    }

    #[test]
    fn imports_are_told_as_needs_once_each() {
        let needs = of(&[
            "wasi:io/streams@0.2.3",
            "wasi:filesystem/types@0.2.3",
            "wasi:filesystem/preopens@0.2.0",
            "wasi:http/outgoing-handler@0.2.3",
            "wasi:http/types@0.2.3",
        ]);

        assert_eq!(needs.missing, Vec::<String>::new());
        assert_eq!(needs.words.len(), 2);
        assert!(needs.words[0].starts_with("HTTP requests"));
        assert!(needs.words[1].starts_with("files"));
    }

    #[test]
    fn a_preview1_module_s_functions_are_told_too() {
        let needs = of(&["wasi_snapshot_preview1.fd_write", "wasi_snapshot_preview1.path_open"]);

        assert_eq!(needs.words.len(), 1);
        assert_eq!(needs.missing, Vec::<String>::new());
    }

    #[test]
    fn what_nothing_here_provides_is_named() {
        let needs = of(&["wasi:keyvalue/store@0.2.0-draft", "wasi:cli/stdout@0.3.0", "env.memory"]);

        assert_eq!(
            needs.missing,
            ["wasi:keyvalue/store@0.2.0-draft", "wasi:cli/stdout@0.3.0", "env.memory"]
        );
    }
}
