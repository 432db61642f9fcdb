//! Things kept for a next use, the last used on top: instances between two requests, connections between two calls.
//!
//! Absent: a timer for each. One task sweeps while there is something to sweep, and none exists otherwise.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What waits for its next use.
#[derive(Debug)]
pub(crate) struct Idle<T> {
    keep: Duration,
    most: usize,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    /// In the order of time: the bottom has waited longest.
    stack: Vec<(T, Instant)>,
    swept: bool,
    closed: bool,
}

/// What [`Idle::put`] asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Put {
    /// Nothing.
    Done,
    /// Start a task that runs [`Idle::sweep`] every now and then until it says that nothing is left.
    Sweep,
}

impl<T> Idle<T> {
    /// Nothing yet. What is put is kept for that long, and no more than `most` at a time.
    pub(crate) const fn new(keep: Duration, most: usize) -> Self {
        let state = State { stack: Vec::new(), swept: false, closed: false };
        Self { keep, most, state: Mutex::new(state) }
    }

    /// What was used last: its memory is warm.
    pub(crate) fn take(&self) -> Option<T> {
        self.lock().stack.pop().map(|(thing, _)| thing)
    }

    /// What was used last of those that fit.
    pub(crate) fn take_fitting(&self, fits: impl Fn(&T) -> bool) -> Option<T> {
        let mut state = self.lock();
        let place = state.stack.iter().rposition(|(thing, _)| fits(thing))?;
        Some(state.stack.remove(place).0)
    }

    /// Keeps a thing for its next use. Where there are too many, the one that has waited longest is dropped.
    pub(crate) fn put(&self, thing: T, now: Instant) -> Put {
        let mut state = self.lock();
        if state.closed || self.most == 0 {
            drop(state);
            drop(thing);
            return Put::Done;
        }
        let excess = (state.stack.len() >= self.most).then(|| state.stack.remove(0));
        state.stack.push((thing, now));
        let put = if std::mem::replace(&mut state.swept, true) { Put::Done } else { Put::Sweep };
        drop(state);
        drop(excess);
        put
    }

    /// Drops what has waited long enough; whether anything is left, and so whether to come again.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let kept = |(_, since): &(T, Instant)| now.saturating_duration_since(*since) < self.keep;
        let first_kept = state.stack.iter().position(kept).unwrap_or(state.stack.len());
        let old: Vec<_> = state.stack.drain(..first_kept).collect();
        if state.stack.is_empty() {
            state.stack = Vec::new();
            state.swept = false;
        }
        let more = state.swept;
        // Outside the lock: dropping a store unmaps memory.
        drop(state);
        drop(old);
        more
    }

    /// Drops all that waits now.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut self.lock().stack);
        drop(all);
    }

    /// Drops all, and whatever is put from now on.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.clear();
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().stack.len()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sweeps every `period` until `sweep` says that nothing is left.
pub(crate) async fn keep_sweeping(period: Duration, sweep: impl Fn() -> bool) {
    loop {
        tokio::time::sleep(period).await;
        if !sweep() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(1);

    fn idle() -> Idle<&'static str> {
        Idle::new(KEEP, 2)
    }

    fn put(idle: &Idle<&'static str>, things: &[&'static str], now: Instant) {
        for thing in things {
            let _ = idle.put(thing, now);
        }
    }

    #[test]
    fn what_was_used_last_is_taken_first() {
        let idle = idle();
        put(&idle, &["old", "new"], Instant::now());

        let taken: Vec<_> = std::iter::from_fn(|| idle.take()).collect();

        assert_eq!(taken, ["new", "old"]);
    }

    #[test]
    fn only_what_fits_is_taken() {
        let idle = idle();
        put(&idle, &["a", "b"], Instant::now());

        assert_eq!(idle.take_fitting(|thing| *thing == "a"), Some("a"));
        assert_eq!(idle.take_fitting(|thing| *thing == "a"), None);
        assert_eq!(idle.len(), 1);
    }

    #[test]
    fn past_the_ceiling_the_one_that_waited_longest_goes() {
        let idle = idle();
        put(&idle, &["a", "b", "c"], Instant::now());

        let taken: Vec<_> = std::iter::from_fn(|| idle.take()).collect();

        assert_eq!(taken, ["c", "b"]);
    }

    #[test]
    fn only_the_first_put_asks_for_a_sweeper_until_nothing_is_left() {
        let idle = idle();
        let start = Instant::now();

        assert_eq!(idle.put("a", start), Put::Sweep);
        assert_eq!(idle.put("b", start), Put::Done);
        assert!(!idle.sweep(start + KEEP));
        assert_eq!(idle.put("c", start + KEEP), Put::Sweep);
    }

    #[test]
    fn what_has_waited_long_enough_is_dropped_and_the_rest_stays() {
        let idle = idle();
        let start = Instant::now();
        put(&idle, &["old"], start);
        put(&idle, &["new"], start + KEEP / 2);

        let more = idle.sweep(start + KEEP);

        assert!(more);
        assert_eq!(idle.len(), 1);
        assert_eq!(idle.take(), Some("new"));
    }

    #[test]
    fn a_sweep_while_all_are_in_use_ends_the_sweeping() {
        let idle = idle();
        let start = Instant::now();
        put(&idle, &["a"], start);
        idle.take();

        assert!(!idle.sweep(start));
    }

    #[test]
    fn nothing_is_kept_once_it_is_closed() {
        let idle = idle();
        put(&idle, &["a"], Instant::now());

        idle.close();

        put(&idle, &["b"], Instant::now());
        assert_eq!(idle.len(), 0);
    }
}
