//! Reads one run of one container onward, and ends with that run: what `kubectl logs` and `kubectl attach` show.
//!
//! The agent's own followed log goes on over restarts, which a kubelet's does not. Absent: which run it is, and how lines are
//! shown ([`super::logs`]).

use std::sync::Arc;
use std::time::Duration;

use copepod_agent::api::{LogLine, LogPosition, LogsOf, PodName, Reply};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::logs::attempt_of;
use super::pods::{Pods, runs, status_of};

/// How often it is asked whether a followed run is over.
const LOOK: Duration = Duration::from_millis(500);
/// The longest that a follower follows: the kubelet's write timeout.
const LONGEST: Duration = Duration::from_secs(4 * 3600);

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) pod: PodName,
    pub(crate) uid: String,
    pub(crate) container: String,
    pub(crate) attempt: u32,
}

/// From where on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// The first line, or the last so many.
    Start { tail: Option<u64> },
    /// This Unix time in nanoseconds.
    Time(i64),
}

/// The lines of one run.
pub(crate) struct Follower {
    pods: Arc<dyn Pods>,
    run: Run,
    follow: bool,
    tail: Option<u64>,
    start: LogPosition,
    last: Option<LogPosition>,
    replies: mpsc::Receiver<Reply>,
    look: Interval,
    until: Instant,
}

impl Follower {
    pub(crate) async fn new(pods: Arc<dyn Pods>, run: Run, from: Begin, follow: bool) -> Self {
        let (tail, time_ns) = match from {
            Begin::Start { tail } => (tail, i64::MIN),
            Begin::Time(time) => (None, time),
        };
        let start = LogPosition { attempt: run.attempt, time_ns, lines: 0 };
        let follow = follow && is_on(&*pods, &run);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (_, none) = mpsc::channel(1);
        let until = Instant::now() + LONGEST;
        let mut follower =
            Self { pods, run, follow, tail, start, last: None, replies: none, look, until };
        follower.ask().await;
        follower
    }

    /// The next lines; `None` at the end of the run, or of what is there unless it is followed.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<LogLine>>, String> {
        loop {
            tokio::select! {
                reply = self.replies.recv() => match reply {
                    Some(Reply::Log(piece)) if piece.position.attempt != self.run.attempt => {
                        return Ok(None);
                    }
                    Some(Reply::Log(piece)) => {
                        self.last = Some(piece.position);
                        return Ok(Some(piece.lines));
                    }
                    Some(Reply::Failed(why)) => return Err(why),
                    _ => return Ok(None),
                },
                _ = self.look.tick(), if self.follow => {
                    if !is_on(&*self.pods, &self.run) {
                        // What it wrote at its end is there by now, and is read without waiting for more.
                        self.follow = false;
                        self.ask().await;
                    }
                }
                () = tokio::time::sleep_until(self.until), if self.follow => return Ok(None),
            }
        }
    }

    async fn ask(&mut self) {
        let logs = LogsOf {
            pod: self.run.pod.clone(),
            container: Some(self.run.container.clone()),
            previous: false,
            follow: self.follow,
            tail: self.tail.filter(|_| self.last.is_none()),
            since: None,
            // It names the run too.
            after: Some(self.last.unwrap_or(self.start)),
        };
        self.replies = self.pods.logs(logs).await;
    }
}

/// Whether this very run goes on.
fn is_on(pods: &dyn Pods, run: &Run) -> bool {
    let pod = pods.find(&run.pod);
    let pod = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(&run.uid));
    pod.as_deref().and_then(|pod| status_of(pod, &run.container)).is_some_and(|status| {
        runs(status) && attempt_of(status.container_id.as_deref()) == Some(run.attempt)
    })
}
