//! `cargo xtask kube`: Kubernetes' own programs and etcd, built from source by Go into the cache, and run for a person to try.
//!
//! Each set of programs is a Go module in xtask/kube with no code of ours: its `tool` block names what to build, and its go.sum
//! what that is built from. Go brings the sources as it is set up on this machine. Absent: Go itself, which a person installs.

mod up;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use copepod_tests::cluster::ASSETS;
use sha2::{Digest, Sha256};

use crate::cache::{Cache, checkout};
use crate::command::{output, step};
use crate::go::Go;

/// How often a build says how far it is.
const TELL: Duration = Duration::from_secs(10);

/// What may be asked for besides building the control plane.
#[derive(Subcommand)]
pub(crate) enum Ask {
    /// Build kwok instead, which pretends to be nodes.
    Kwok,
    /// Build metrics-server instead.
    MetricsServer,
    /// Run a control plane until Ctrl-C, and print how to reach it.
    Up {
        /// Where its API server listens; pods reach it only where this is no loopback address.
        #[arg(long)]
        address: Option<IpAddr>,
    },
}

pub(crate) fn run(cache: &Cache, ask: Option<&Ask>) -> Result<()> {
    let set = match ask {
        None => Set::ControlPlane,
        Some(Ask::Kwok) => Set::Kwok,
        Some(Ask::MetricsServer) => Set::MetricsServer,
        Some(Ask::Up { address }) => return up::up(cache, *address),
    };
    println!("{}", bring(cache, set)?.display());
    Ok(())
}

/// A set of programs that is built by itself, with its own choice of versions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    /// etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl and kubelet.
    ControlPlane,
    /// kwok, which pretends to be nodes.
    Kwok,
    /// metrics-server.
    MetricsServer,
}

impl Set {
    /// Its Go module.
    fn module(self) -> PathBuf {
        let all = checkout().join("xtask/kube");
        match self {
            Self::ControlPlane => all,
            Self::Kwok => all.join("kwok"),
            Self::MetricsServer => all.join("metrics-server"),
        }
    }

    /// Its folder in the cache.
    fn folder(self, cache: &Cache) -> PathBuf {
        cache.kube().join(match self {
            Self::ControlPlane => "control-plane",
            Self::Kwok => "kwok",
            Self::MetricsServer => "metrics-server",
        })
    }

    /// What it must have.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::ControlPlane => &[
                "etcd",
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubectl",
                "kubelet",
            ],
            Self::Kwok => &["kwok"],
            Self::MetricsServer => &["metrics-server"],
        }
    }

    /// The module whose version the programs print, and the variables by which they do.
    fn version(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::ControlPlane => (
                "k8s.io/kubernetes",
                &["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"],
            ),
            // Its version stands in its source.
            Self::Kwok => ("sigs.k8s.io/kwok", &[]),
            Self::MetricsServer => {
                ("sigs.k8s.io/metrics-server", &["k8s.io/client-go/pkg/version"])
            }
        }
    }

    /// How Go links them: without symbols for a debugger, a third of their size, and with their version, which programs of
    /// other versions judge them by.
    fn link_flags(self, module_file: &str) -> Result<String> {
        let (module, packages) = self.version();
        let version = required_version(module_file, module)
            .with_context(|| format!("go.mod requires no {module}"))?;
        let mut parts = version.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let mut flags = "-s -w".to_owned();
        for package in packages {
            for (variable, value) in
                [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor)]
            {
                flags.push_str(&format!(" -X {package}.{variable}={value}"));
            }
        }
        Ok(flags)
    }
}

/// The folder of a set's programs: for the control plane what the environment names, else what was built, else it is built now.
pub(crate) fn bring(cache: &Cache, set: Set) -> Result<PathBuf> {
    if set == Set::ControlPlane
        && let Some(named) = std::env::var_os(ASSETS).filter(|named| !named.is_empty())
    {
        let folder = PathBuf::from(named);
        // A kubelet is only compared with.
        let missing: Vec<_> = set
            .programs()
            .iter()
            .filter(|&&it| it != "kubelet" && !folder.join(it).is_file())
            .collect();
        ensure!(
            missing.is_empty(),
            "{ASSETS} names {}, which lacks {missing:?}: put them there, or unset {ASSETS} to have all of them built",
            folder.display()
        );
        return Ok(folder);
    }
    let module = set.module();
    let module_file = read(&module.join("go.mod"))?;
    let link_flags = set.link_flags(&module_file)?;
    let sums = read(&module.join("go.sum"))?;
    let folder = set.folder(cache).join(made_of(&[&module_file, &sums, &link_flags]));
    let bin = folder.join("bin");
    if set.programs().iter().all(|program| bin.join(program).is_file()) {
        return Ok(bin);
    }
    let go = find_go(&module)?;
    let names = set.programs().join(", ");
    step(
        &format!("building {names} (the first time takes Go a quarter of an hour on two cores)"),
        || {
            let part = folder.with_extension("part");
            let _ = fs::remove_dir_all(&part);
            fs::create_dir_all(part.join("bin"))?;
            build_tools(&go, &module, &link_flags, &part.join("bin"))?;
            if set == Set::ControlPlane {
                // Go names a program after its folder.
                fs::rename(part.join("bin/server"), part.join("bin/etcd"))?;
            }
            let _ = fs::remove_dir_all(&folder);
            fs::rename(&part, &folder)?;
            prune(&folder)
        },
    )?;
    Ok(bin)
}

/// Where Go keeps the sources of a set's own module, with the files beside them; brought by Go where they are not there.
pub(crate) fn sources(set: Set) -> Result<PathBuf> {
    let module = set.module();
    let go = find_go(&module)?;
    let mut command = go.command(&module);
    command.args(["mod", "download", "-json", set.version().0]);
    let told: serde_json::Value = serde_json::from_str(&output(&mut command)?)?;
    let folder = told["Dir"].as_str().context("Go does not say where the sources are")?;
    Ok(folder.into())
}

fn find_go(module: &Path) -> Result<Go> {
    Go::find(module, "Kubernetes is", &format!(" Or name a folder of built programs in {ASSETS}"))
}

/// Removes what was built from other versions. What runs from there runs on.
fn prune(keep: &Path) -> Result<()> {
    let all = keep.parent().context("it lies in the cache")?;
    for entry in fs::read_dir(all)? {
        let path = entry?.path();
        // A build that is under way belongs to somebody else.
        if path != keep && path.extension().is_none() {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// The first digits of a hash, of which a few suffice to tell some builds apart.
fn made_of(texts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The version of `module` in a go.mod's `require`.
fn required_version<'a>(module_file: &'a str, module: &str) -> Option<&'a str> {
    module_file.lines().find_map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("require ").unwrap_or(line);
        line.strip_prefix(module)?.strip_prefix(' ')?.split(' ').next()
    })
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Builds what the module's `tool` block names into `to`.
fn build_tools(go: &Go, module: &Path, link_flags: &str, to: &Path) -> Result<()> {
    let go = |arguments: &[&str]| {
        let mut command = go.command(module);
        // Without C no compiler is needed, and the programs run on any Linux.
        command.env("CGO_ENABLED", "0").args(arguments);
        command
    };
    // What is brought is told by Go itself, a line for each.
    let listed = go(&["list", "-deps", "-f", ".", "tool"]).stderr(Stdio::inherit()).output()?;
    let total = listed.stdout.split(|byte| *byte == b'\n').filter(|it| !it.is_empty()).count();
    let mut build = go(&["build", "-v", "-trimpath", "-ldflags", link_flags]);
    let mut child = build
        .arg("-o")
        .arg(to)
        .arg("tool")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start Go")?;
    let said = BufReader::new(child.stderr.take().context("its words are piped")?);
    let (lines, heard) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        said.lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
    });
    let begin = Instant::now();
    let mut told = 0;
    let mut packages = 0;
    loop {
        match heard.recv_timeout(TELL) {
            // With -v Go tells each package that it compiles by its path alone; all else is for a person to read.
            Ok(line) if line.contains([' ', '#']) => eprintln!("    {line}"),
            Ok(_) => packages += 1,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if begin.elapsed() >= TELL * (told + 1) {
            told += 1;
            let seconds = begin.elapsed().as_secs();
            eprintln!("    {seconds} s: {packages} packages of at most {total} begun");
        }
    }
    let _ = reader.join();
    let status = child.wait()?;
    ensure!(status.success(), "go build ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go;

    #[test]
    fn a_module_s_own_version_is_stamped_into_its_programs() {
        for set in [Set::ControlPlane, Set::Kwok, Set::MetricsServer] {
            let file = read(&set.module().join("go.mod")).expect("it is in the checkout");

            let flags = set.link_flags(&file).expect("it requires the module");

            for package in set.version().1 {
                assert!(flags.contains(&format!("-X {package}.gitVersion=v")), "{flags}");
            }
            assert!(go::at_least(go::required_go(&file), "1.26"));
        }
    }

    #[test]
    fn every_replaced_module_of_kubernetes_has_the_version_that_belongs_to_it() {
        let file = read(&Set::ControlPlane.module().join("go.mod")).expect("it is in the checkout");
        let version = required_version(&file, "k8s.io/kubernetes").expect("it is required");
        let staged = version.replacen("v1.", "v0.", 1);

        let replaced: Vec<_> = file.lines().filter_map(|line| line.split_once(" => ")).collect();

        assert!(!replaced.is_empty());
        for (from, to) in replaced {
            assert_eq!(to, format!("{} {staged}", from.trim()));
        }
    }
}
