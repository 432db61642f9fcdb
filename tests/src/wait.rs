//! Waiting for a condition, with a deadline that only a hang reaches.
//!
//! Absent: assertions about how long something took. A machine may be slow.

use std::time::{Duration, Instant};

/// Far beyond what anything takes on a machine under load.
pub const LONG: Duration = Duration::from_secs(60);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks until there is an answer.
///
/// # Panics
/// After [`LONG`], with `what` was waited for.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < LONG, "waited {} s for {what}", LONG.as_secs());
        std::thread::sleep(PAUSE);
    }
}

/// As [`until`], for something that is there and changes: the panic tells what it was at last.
///
/// # Panics
/// After [`LONG`].
pub fn until_it_is<T>(
    what: &str,
    mut look: impl FnMut() -> T,
    is: impl Fn(&T) -> bool,
    tell: impl Fn(&T) -> String,
) -> T {
    let begin = Instant::now();
    loop {
        let seen = look();
        if is(&seen) {
            return seen;
        }
        assert!(
            begin.elapsed() < LONG,
            "waited {} s for {what}; at last: {}",
            LONG.as_secs(),
            tell(&seen)
        );
        std::thread::sleep(PAUSE);
    }
}
