//! How long to wait before trying again, how often something may be done, and how far apart nodes beat that were started together.
//!
//! Absent: sleeping.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

/// Waits that double from one bound to another.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// From `first`, doubled until it is `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// After a failure: how long to wait now.
    pub fn failed(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.most);
        now
    }

    /// After a success.
    pub fn succeeded(&mut self) {
        self.next = self.first;
    }
}

/// Lets so many through in a second, and as many as a burst has at once after a time without any.
#[derive(Clone, Debug)]
pub struct Measure {
    per_second: f64,
    burst: f64,
    /// How many may pass at `at`; below none: how many have been let through ahead of their time.
    left: f64,
    at: Option<Instant>,
}

impl Measure {
    /// A whole burst may pass now.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let (per_second, burst) = (per_second.into(), burst.into());
        Self { per_second, burst, left: burst, at: None }
    }

    /// Takes one more; how long it has to wait from `now`.
    pub fn take(&mut self, now: Instant) -> Duration {
        let since = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.left = (self.left + since.as_secs_f64() * self.per_second).min(self.burst) - 1.0;
        self.at = Some(now);
        Duration::from_secs_f64((-self.left).max(0.0) / self.per_second)
    }
}

/// A time about as long as `time`: between it less `share` and it plus `share`, of one.
pub fn about(time: Duration, share: f64) -> Duration {
    // A fresh state's keys are random, which is enough for not doing the same as the neighbour.
    let random = RandomState::new().build_hasher().finish();
    between(time, share, random as f64 / u64::MAX as f64)
}

fn between(time: Duration, share: f64, random: f64) -> Duration {
    time.mul_f64(1.0 - share + 2.0 * share * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_bound_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));

        let waits = [(); 4].map(|()| backoff.failed().as_secs());
        backoff.succeeded();

        assert_eq!((waits, backoff.failed().as_secs()), ([1, 2, 4, 5], 1));
    }

    #[test]
    fn a_burst_passes_at_once_and_what_comes_behind_it_in_measure() {
        let mut measure = Measure::new(10, 3);
        let now = Instant::now();

        let waits = [(); 5].map(|()| measure.take(now).as_millis());
        assert_eq!(waits, [0, 0, 0, 100, 200]);

        let later = now + Duration::from_millis(300);
        assert_eq!(measure.take(later).as_millis(), 0, "those ahead of their time have passed");
        let much_later = now + Duration::from_secs(3600);
        let waits = [(); 4].map(|()| measure.take(much_later).as_millis());
        assert_eq!(waits, [0, 0, 0, 100], "more than a burst is never saved up");
    }

    #[test]
    fn times_are_spread_to_both_sides() {
        let time = Duration::from_secs(100);
        for (random, seconds) in [(0.0, 50), (0.5, 100), (1.0, 150)] {
            assert_eq!(between(time, 0.5, random).as_secs(), seconds);
        }
    }
}
