//! How long to wait before the next try, after a crash or a failed pull or start.
//!
//! Absent: whether there is a next try (`container`), and jitter: one node's pods crash apart anyway.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The first wait; a kubelet's `backOffPeriod`.
pub(crate) const FIRST: Duration = Duration::from_secs(10);
/// The longest wait; a kubelet's `MaxContainerBackOff`.
pub(crate) const LONGEST: Duration = Duration::from_secs(300);
/// A run of at least twice the longest wait forgets all crashes before it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// A container's crashes: the next restart waits `delay` from the last end. The first restart waits for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CrashBackoff {
    /// The wait that the next crash earns, and when the last restart was; none before the first restart.
    last: Option<(Duration, Timestamp)>,
}

impl CrashBackoff {
    /// When a container that ended at `finished` may start again, and how long a wait that is.
    pub(crate) fn after(&self, finished: Timestamp) -> (Timestamp, Duration) {
        match self.live(finished) {
            Some((delay, _)) => (later(finished, delay), delay),
            None => (finished, Duration::ZERO),
        }
    }

    /// The container that ended at `finished` starts again at `now`.
    pub(crate) fn restarted(&mut self, finished: Timestamp, now: Timestamp) {
        let delay = self.live(finished).map_or(FIRST, |(delay, _)| doubled(delay));
        self.last = Some((delay, now));
    }

    fn live(&self, finished: Timestamp) -> Option<(Duration, Timestamp)> {
        self.last.filter(|&(_, restarted)| finished <= later(restarted, FORGOTTEN_AFTER))
    }
}

/// The wait after one that was not long enough.
pub(crate) fn doubled(delay: Duration) -> Duration {
    (delay * 2).clamp(FIRST, LONGEST)
}

/// `at` and `wait`, or the end of time.
pub(crate) fn later(at: Timestamp, wait: Duration) -> Timestamp {
    at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// A duration as Go writes it, which is how a kubelet's messages show it: `10s`, `1m20s`, `5m0s`, `1.5s`, `250ms`.
pub(crate) fn go_duration(duration: Duration) -> String {
    let trimmed = |value: f64, unit: &str| {
        let text = format!("{value:.3}");
        format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    let seconds = duration.as_secs();
    if duration.is_zero() {
        return "0s".to_owned();
    }
    if seconds == 0 {
        return trimmed(duration.as_secs_f64() * 1000.0, "ms");
    }
    let rest = trimmed(duration.as_secs_f64() - (seconds / 60 * 60) as f64, "s");
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => rest,
        (0, minutes) => format!("{minutes}m{rest}"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("small")
    }

    #[test]
    fn the_first_restart_is_immediate_and_the_waits_double_from_10_s_to_300_s() {
        let mut backoff = CrashBackoff::default();
        let mut now = 1_000;
        let mut waits = Vec::new();

        for _ in 0..8 {
            let (at, wait) = backoff.after(t(now));
            waits.push(wait.as_secs());
            backoff.restarted(t(now), at);
            now = at.as_second() + 1;
        }

        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_run_of_more_than_ten_minutes_forgets_the_crashes() {
        let mut backoff = CrashBackoff::default();
        backoff.restarted(t(0), t(0));
        backoff.restarted(t(1), t(11));

        assert_eq!(backoff.after(t(11 + 600)).1.as_secs(), 20);
        assert_eq!(backoff.after(t(11 + 601)).1.as_secs(), 0);
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (ms, text) in [
            (0, "0s"),
            (250, "250ms"),
            (1_500, "1.5s"),
            (10_000, "10s"),
            (80_000, "1m20s"),
            (300_000, "5m0s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
    }
}
