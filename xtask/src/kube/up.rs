//! `cargo xtask kube up`: a control plane to try things on, until Ctrl-C.
//!
//! It is the tests' own. Absent: a node; and an end of its own, as what guards it sees to that however this process ends.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use copepod_tests::cluster::Cluster;
use copepod_tests::cluster::settings::Settings;

use super::{Set, bring};
use crate::cache::Cache;
use crate::command::step;

/// Between two looks whether all of it lives.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) fn up(cache: &Cache, address: Option<IpAddr>) -> Result<()> {
    let programs = bring(cache, Set::ControlPlane)?;
    let default = Settings::default();
    let settings = Settings { address: address.unwrap_or(default.address), ..default };
    let cluster = step("starting a control plane", || Cluster::start(&programs, &settings))?;
    let joining = cluster.bootstrap_kubeconfig()?;

    println!("\n{}", cluster.server());
    println!("  you:         export KUBECONFIG={}", cluster.admin().display());
    println!("  kubectl:     {}", programs.join("kubectl").display());
    println!("  a new node:  {}", joining.display());
    println!("  logs:        {}/*.log", cluster.folder().display());
    println!("Ctrl-C ends it, and nothing stays.");
    loop {
        std::thread::sleep(PAUSE);
        cluster.check()?;
    }
}
