//! Which of the connections that a container accepted are in use: what a program without a shutdown notice may finish.
//!
//! TCP does not say where a request ends, so it is told by whose turn it is. It is the guest's turn while the last bytes that
//! moved came from the peer: it owes an answer. It is the peer's once the guest has written; then the connection may hold a pause in
//! the middle of an answer, or be one that a client keeps for later, and is let go after [`REST`]. Connections that the guest opened do not
//! count: what it asks of others it asks for its callers, or for nobody who waits. Absent: who counts the bytes ([`crate::stream`]).

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a connection is quiet, the guest having written last, before it is taken to be at rest: longer than the pauses
/// in most answers that come in pieces, and short for somebody who waits for a pod to stop.
const REST: Duration = Duration::from_secs(1);

/// How often connections are looked at while a container stops.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// One connection at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// Which connection; no two that live are the same.
    pub(crate) id: usize,
    /// The guest owes its peer an answer, or has bytes under way.
    pub(crate) guests_turn: bool,
    /// Changes whenever bytes move.
    pub(crate) moved: u32,
}

/// What was seen of a container's connections since it was told to stop.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: HashMap<usize, (u32, Instant)>,
}

impl Watch {
    /// Looks at all connections that live; whether any is in use.
    pub(crate) fn is_any_in_use(
        &mut self,
        calls: impl IntoIterator<Item = Call>,
        now: Instant,
    ) -> bool {
        let mut seen = HashMap::new();
        let mut in_use = false;
        for Call { id, guests_turn, moved } in calls {
            let since = match self.seen.get(&id) {
                Some(&(before, since)) if before == moved => since,
                _ => now,
            };
            in_use |= guests_turn || now.saturating_duration_since(since) < REST;
            seen.insert(id, (moved, since));
        }
        self.seen = seen;
        in_use
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(guests_turn: bool, moved: u32) -> Call {
        Call { id: 7, guests_turn, moved }
    }

    #[test]
    fn without_connections_nothing_is_in_use() {
        assert!(!Watch::default().is_any_in_use([], Instant::now()));
    }

    #[test]
    fn a_connection_whose_peer_waits_for_an_answer_is_in_use_however_long_it_takes() {
        let start = Instant::now();
        let mut watch = Watch::default();

        for seconds in 0..100 {
            assert!(
                watch.is_any_in_use([call(true, 5)], start + Duration::from_secs(seconds)),
                "{seconds}"
            );
        }
    }

    #[test]
    fn an_answered_connection_is_in_use_until_it_was_quiet_for_a_while() {
        let start = Instant::now();
        let mut watch = Watch::default();

        assert!(watch.is_any_in_use([call(false, 5)], start));
        assert!(watch.is_any_in_use([call(false, 5)], start + REST / 2));
        assert!(watch.is_any_in_use([call(false, 6)], start + REST), "more of the answer came");
        assert!(watch.is_any_in_use([call(false, 6)], start + REST * 3 / 2));
        assert!(!watch.is_any_in_use([call(false, 6)], start + REST * 2));
    }

    #[test]
    fn a_connection_that_is_gone_is_in_use_no_more() {
        let start = Instant::now();
        let mut watch = Watch::default();
        assert!(watch.is_any_in_use([call(true, 5)], start));

        assert!(!watch.is_any_in_use([], start));
    }
}
