//! How long to wait before trying again, and how far apart nodes beat that were started together.
//!
//! Absent: sleeping.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

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
    fn times_are_spread_to_both_sides() {
        let time = Duration::from_secs(100);
        for (random, seconds) in [(0.0, 50), (0.5, 100), (1.0, 150)] {
            assert_eq!(between(time, 0.5, random).as_secs(), seconds);
        }
    }
}
