//! `copepod controllers`: what copepod does for a cluster as a whole, each with a kubeconfig of its own.
//!
//! Absent: the work itself (`copepod-controllers`).

use std::path::Path;

use copepod_agent::with_causes;
use copepod_controllers::approver::{self, Block};

use crate::args::Controllers;
use crate::exit;
use crate::out::Out;

/// Runs one until somebody ends it; its exit code.
pub(crate) async fn controllers(out: Out, args: &Controllers) -> u8 {
    match args {
        Controllers::Approver { kubeconfig, node_blocks } => {
            let blocks: Result<Vec<Block>, String> =
                node_blocks.iter().flat_map(|all| all.split(',')).map(str::parse).collect();
            let blocks = match blocks {
                Ok(blocks) => blocks,
                Err(why) => {
                    out.error(&format!("--node-blocks: {why}"));
                    return exit::BAD_INPUT;
                }
            };
            match copepod_controllers::client(kubeconfig.as_deref().map(Path::new)).await {
                Ok(client) => {
                    approver::run(client, blocks).await;
                    0
                }
                Err(error) => {
                    out.error(&format!("the cluster cannot be reached: {}", with_causes(&error)));
                    1
                }
            }
        }
    }
}
