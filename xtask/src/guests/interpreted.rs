//! Guests of JavaScript and Python: components that have their engine in them.
//!
//! Both tools take the interfaces of WASI as text, which one of npm's packages carries. Absent: bringing Node.js and Python.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::unless_made;
use crate::cache::Cache;
use crate::command::{run, step};
use crate::pypi;

/// What makes a component of JavaScript.
const COMPONENTIZE_JS: &str = "@bytecodealliance/componentize-js@0.23.0";

/// The package with the texts of WASI's interfaces, where they are in it, and of which version they are.
const JCO: &str = "@bytecodealliance/jco@1.35.0";
const TEXTS: &str = "node_modules/@bytecodealliance/jco/lib/wit/builtin/0.2.12";
const TEXTS_VERSION: &str = "0.2.12";

/// The version that [`COMPONENTIZE_JS`] was made for.
const JS_VERSION: &str = "0.2.10";

/// What makes a component of Python.
const COMPONENTIZE_PY: &str = "componentize-py==0.25.1";
const PYTHON_TOOL: &str = "bin/componentize-py";

const JS: &str = "js-http";
const PYTHON: &str = "python-http";

/// Builds what changed.
pub(super) fn build(cache: &Cache, folder: &Path) -> Result<()> {
    unless_made(folder, JS, &format!("{COMPONENTIZE_JS} {JCO}"), |source, to| {
        let node = node_tools(cache)?;
        let work = worlds(&node, source, JS_VERSION)?;
        // The tool reads its source in the folder that it is called in.
        fs::copy(source.join("http.js"), work.path().join("http.js"))?;
        let tool = node.join("node_modules/.bin/componentize-js");
        run(Command::new(tool)
            .current_dir(work.path())
            .args(["http.js", "-w", "wit", "-n", "server", "-o"])
            .arg(to))
    })?;
    unless_made(folder, PYTHON, &format!("{COMPONENTIZE_PY} {JCO}"), |source, to| {
        let work = worlds(&node_tools(cache)?, source, TEXTS_VERSION)?;
        // The interpreter writes beside the source that it reads.
        fs::copy(source.join("app.py"), work.path().join("app.py"))?;
        let python = pypi::installed(cache, COMPONENTIZE_PY, PYTHON_TOOL)?;
        run(Command::new(python.join(PYTHON_TOOL))
            .env("PYTHONPATH", &python)
            .current_dir(work.path())
            .args(["-d", "wit", "-w", "server", "componentize", "app", "-o"])
            .arg(to))
    })
}

/// The folder in which npm has put the tools.
fn node_tools(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.peers().join("node-tools");
    let done = folder.join("made-of");
    let wanted = format!("{COMPONENTIZE_JS} {JCO}");
    if !fs::read_to_string(&done).is_ok_and(|has| has == wanted) {
        step("the tools for JavaScript from npm", || {
            fs::create_dir_all(&folder)?;
            let mut npm = Command::new("npm");
            npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(&folder);
            run(npm.args([COMPONENTIZE_JS, JCO]))?;
            Ok(fs::write(&done, &wanted)?)
        })?;
    }
    Ok(folder)
}

/// A folder with `wit`: the world of a guest, and the interfaces of WASI under this version.
fn worlds(node: &Path, source: &Path, version: &str) -> Result<tempfile::TempDir> {
    let work = tempfile::tempdir()?;
    let wit = work.path().join("wit");
    copy_texts(&node.join(TEXTS), &wit.join("deps"), version)?;
    fs::copy(source.join("world.wit"), wit.join("world.wit"))?;
    Ok(work)
}

fn copy_texts(from: &Path, to: &Path, version: &str) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_texts(&entry.path(), &to, version)?;
        } else {
            let text = fs::read_to_string(entry.path())?;
            fs::write(to, text.replace(TEXTS_VERSION, version))?;
        }
    }
    Ok(())
}
