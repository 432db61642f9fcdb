//! A network namespace behind a link, such as a domain's: a peer in it pays the way that a pod's bytes take.
//!
//! Absent: filters; a pod's own are cheaper than the link by far.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command::run;

/// The namespace and the machine's end of the link.
const NAME: &str = "copepod-bench";

/// Out of the block that RFC 2544 keeps for benchmarks.
const OUTSIDE: &str = "198.18.0.1/30";
const INSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// One such namespace on this machine; it goes when this is dropped.
pub(crate) struct Link {
    ip: PathBuf,
}

impl Link {
    /// Makes it, in place of one that a run which was killed has left.
    pub(crate) fn make(ip: PathBuf) -> Result<Self> {
        let link = Self { ip };
        link.remove();
        for command in [
            format!("netns add {NAME}"),
            format!("link add {NAME} type veth peer name eth0 netns {NAME}"),
            format!("address add {OUTSIDE} dev {NAME}"),
            format!("link set {NAME} up"),
            format!("-n {NAME} address add {INSIDE}/30 dev eth0"),
            format!("-n {NAME} link set eth0 up"),
        ] {
            run(Command::new(&link.ip).args(command.split(' ')))?;
        }
        Ok(link)
    }

    /// The address inside.
    pub(crate) fn address(&self) -> Ipv4Addr {
        INSIDE
    }

    /// This program, to be run inside.
    pub(crate) fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.ip);
        // It executes the program in its own place, so that the process is the program's.
        command.args(["netns", "exec", NAME]).arg(program);
        command
    }

    fn remove(&self) {
        for command in [["link", "delete", NAME], ["netns", "delete", NAME]] {
            // Mostly there is none.
            let _ = Command::new(&self.ip).args(command).output();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.remove();
    }
}
