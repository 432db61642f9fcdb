//! `copepod logs`: sends a container's log to a client, and what comes, over the container's restarts.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::api::{LogPiece, LogsOf, Reply};
use crate::logs::LogReader;
use crate::perform::Performer;
use crate::pod::World;

/// How often a followed log is looked at. Only clients that follow cost this.
const LOOK: Duration = Duration::from_millis(100);

impl Performer {
    /// Answers [`Call::Logs`](crate::api::Call::Logs).
    pub(crate) fn logs(
        self: &Arc<Self>,
        world: &Arc<World>,
        logs: LogsOf,
        replies: mpsc::Sender<Reply>,
    ) {
        let world = world.clone();
        tokio::spawn(async move {
            let reply = match follow(&world, logs, &replies).await {
                Ok(()) => Reply::Done,
                Err(message) => Reply::Failed(message),
            };
            let _ = replies.send(reply).await;
        });
    }
}

async fn follow(world: &World, logs: LogsOf, replies: &mpsc::Sender<Reply>) -> Result<(), String> {
    let name = logs.container.clone().or_else(|| world.only_container()).ok_or_else(|| {
        format!(
            "pod {:?} has several containers: choose one of {} by -c",
            logs.pod.name,
            world.container_names().join(", ")
        )
    })?;
    if world.container(&name).is_none() {
        return Err(format!(
            "pod {:?} has no container {name:?}, but {}",
            logs.pod.name,
            world.container_names().join(", ")
        ));
    }
    let folder = world.logs.join(&name);
    let failed =
        |error: io::Error| format!("the log of container {name:?} cannot be read: {error}");
    // A container that has not written yet has no log: that is an empty one.
    let mut reader = loop {
        let attempts = attempts(&folder).map_err(failed)?;
        let wanted = match (logs.previous, attempts.as_slice()) {
            (true, [.., previous, _]) => Some(*previous),
            (true, _) => return Err(format!("container {name:?} has no previous run")),
            (false, [.., newest]) => Some(*newest),
            (false, []) => None,
        };
        // One who goes on begins where it was, in the log of then.
        let wanted = logs.after.map_or(wanted, |after| Some(after.attempt));
        match wanted {
            Some(attempt) if folder.is_dir() => {
                break LogReader::open(&folder, attempt, logs.after).map_err(failed)?;
            }
            _ if !logs.follow || replies.is_closed() || world.is_over() => return Ok(()),
            _ => tokio::time::sleep(LOOK).await,
        }
    };
    if let Some(since) = logs.since {
        reader.since(since);
    }
    if let Some(tail) = logs.tail {
        reader.tail(tail).map_err(failed)?;
    }
    loop {
        // Asked before the last look, so that what the container wrote at its end is seen.
        let over = world.is_over();
        while let Some((lines, position)) = reader.next_piece().map_err(failed)? {
            let piece = Reply::Log(LogPiece { lines, position });
            if replies.send(piece).await.is_err() {
                return Ok(());
            }
        }
        let next = attempts(&folder).map_err(failed)?.into_iter().find(|it| *it > reader.attempt());
        match next {
            _ if !logs.follow => return Ok(()),
            Some(next) => {
                // The log before is complete once a later one is there: what was written in between is read first.
                if let Some((lines, position)) = reader.next_piece().map_err(failed)? {
                    let _ = replies.send(Reply::Log(LogPiece { lines, position })).await;
                    continue;
                }
                reader.next_attempt(next);
            }
            None if over || replies.is_closed() => return Ok(()),
            None => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The attempts that have a log, ascending.
fn attempts(folder: &Path) -> io::Result<Vec<u32>> {
    let mut attempts: Vec<u32> = match std::fs::read_dir(folder) {
        Ok(entries) => entries
            .filter_map(|entry| {
                entry.ok()?.file_name().to_str()?.split_once(".log")?.0.parse().ok()
            })
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    attempts.sort_unstable();
    attempts.dedup();
    Ok(attempts)
}
