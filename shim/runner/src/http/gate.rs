//! Who may enter: how many requests are in work, who waits and in which order, and when failures are enough to give up.
//!
//! Pure: a [`Gate`] is told what happened and answers what follows. The lock around it and the waking are in `respond`.

use std::collections::VecDeque;

/// Fresh instances that trap one after the other before the container is given up, so that it backs off: enough to tell
/// a broken component from one bad request, few enough that a crash loop ends in milliseconds.
pub(crate) const TRAPS_IN_A_ROW: u32 = 5;

/// The requests of one container. `W` is what wakes a waiting one.
pub(crate) struct Gate<W> {
    concurrency: u32,
    queue: usize,
    in_work: u32,
    waiting: VecDeque<(Ticket, W)>,
    next: u64,
    traps: u32,
}

/// A waiting request's place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// What becomes of a request that has just arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is in work.
    Enter,
    /// It waits until its `W` comes out of [`Gate::leave`] or [`Gate::abandon`].
    Wait(Ticket),
    /// Too many wait already.
    Refuse,
}

/// How a request in work ended, as far as the instance is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The guest returned.
    Served,
    /// The guest trapped; `fresh` when this was the instance's first request.
    Trapped {
        /// The instance had served nothing before.
        fresh: bool,
    },
    /// It says nothing about the component: the client went away, or the time was over.
    Dropped,
}

/// What follows from a request's end for the whole container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Go on.
    GoOn,
    /// The component is broken: end the container.
    GiveUp,
}

impl<W> Gate<W> {
    /// A gate with nobody in it. At least one request is let in at a time.
    pub(crate) fn new(concurrency: u32, queue: u32) -> Self {
        Self {
            concurrency: concurrency.max(1),
            queue: queue as usize,
            in_work: 0,
            waiting: VecDeque::new(),
            next: 0,
            traps: 0,
        }
    }

    /// A request has arrived; `waker` is only asked for where it has to wait.
    pub(crate) fn arrive(&mut self, waker: impl FnOnce() -> W) -> Arrival {
        if self.in_work < self.concurrency {
            // A place is free only while nobody waits: `leave` hands places over.
            self.in_work += 1;
            return Arrival::Enter;
        }
        if self.waiting.len() >= self.queue {
            return Arrival::Refuse;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.push_back((ticket, waker()));
        Arrival::Wait(ticket)
    }

    /// A request in work has ended. Who is returned now has its place, and is to be woken.
    pub(crate) fn leave(&mut self, ended: Ended) -> (Option<W>, Verdict) {
        let verdict = self.judge(ended);
        (self.hand_over(), verdict)
    }

    /// A request that was told to wait waits no longer. If it had been let in meanwhile, its place goes to the next.
    pub(crate) fn abandon(&mut self, ticket: Ticket) -> Option<W> {
        match self.waiting.iter().position(|(waiting, _)| *waiting == ticket) {
            Some(place) => {
                self.waiting.remove(place);
                None
            }
            None => self.hand_over(),
        }
    }

    /// Requests in work now.
    pub(crate) fn in_work(&self) -> u32 {
        self.in_work
    }

    fn hand_over(&mut self) -> Option<W> {
        match self.waiting.pop_front() {
            Some((_, waker)) => Some(waker),
            None => {
                self.in_work -= 1;
                None
            }
        }
    }

    fn judge(&mut self, ended: Ended) -> Verdict {
        match ended {
            Ended::Served => self.traps = 0,
            Ended::Trapped { fresh: true } => self.traps += 1,
            Ended::Trapped { fresh: false } | Ended::Dropped => {}
        }
        if self.traps >= TRAPS_IN_A_ROW { Verdict::GiveUp } else { Verdict::GoOn }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(concurrency: u32, queue: u32) -> Gate<&'static str> {
        let mut gate = Gate::new(concurrency, queue);
        for _ in 0..concurrency {
            assert_eq!(gate.arrive(|| "never"), Arrival::Enter);
        }
        gate
    }

    #[test]
    fn as_many_requests_as_the_concurrency_are_in_work_at_a_time() {
        let mut gate = full(2, 1);

        let third = gate.arrive(|| "third");

        assert!(matches!(third, Arrival::Wait(_)));
        assert_eq!(gate.in_work(), 2);
    }

    #[test]
    fn a_request_is_refused_once_the_queue_is_full() {
        let mut gate = full(1, 1);
        gate.arrive(|| "second");

        assert_eq!(gate.arrive(|| "third"), Arrival::Refuse);
    }

    #[test]
    fn waiting_requests_enter_in_the_order_in_which_they_came() {
        let mut gate = full(1, 3);
        gate.arrive(|| "second");
        gate.arrive(|| "third");

        let first_out = gate.leave(Ended::Served).0;
        let next_out = gate.leave(Ended::Served).0;

        assert_eq!((first_out, next_out), (Some("second"), Some("third")));
        assert_eq!(gate.in_work(), 1);
    }

    #[test]
    fn a_place_that_a_waiting_request_got_is_not_taken_by_a_newcomer() {
        let mut gate = full(1, 2);
        gate.arrive(|| "waiting");
        gate.leave(Ended::Served);

        assert!(matches!(gate.arrive(|| "newcomer"), Arrival::Wait(_)));
    }

    #[test]
    fn who_gives_up_waiting_frees_a_place_in_the_queue_and_nothing_else() {
        let mut gate = full(1, 1);
        let Arrival::Wait(ticket) = gate.arrive(|| "second") else { panic!("the gate is full") };

        assert_eq!(gate.abandon(ticket), None);

        assert_eq!(gate.in_work(), 1);
        assert!(matches!(gate.arrive(|| "third"), Arrival::Wait(_)));
    }

    #[test]
    fn who_was_let_in_and_is_gone_before_it_knew_passes_its_place_on() {
        let mut gate = full(1, 2);
        let Arrival::Wait(gone) = gate.arrive(|| "gone") else { panic!("the gate is full") };
        gate.arrive(|| "next");
        gate.leave(Ended::Served);

        assert_eq!(gate.abandon(gone), Some("next"));
        assert_eq!(gate.in_work(), 1);
    }

    #[test]
    fn the_gate_is_empty_when_all_have_left() {
        let mut gate = full(3, 0);

        for _ in 0..3 {
            assert_eq!(gate.leave(Ended::Dropped).0, None);
        }

        assert_eq!(gate.in_work(), 0);
    }

    #[test]
    fn five_fresh_instances_that_trap_in_a_row_are_enough() {
        let verdicts: Vec<_> = {
            let mut gate = full(5, 0);
            (0..5).map(|_| gate.leave(Ended::Trapped { fresh: true }).1).collect()
        };

        assert_eq!(verdicts[..4], [Verdict::GoOn; 4]);
        assert_eq!(verdicts[4], Verdict::GiveUp);
    }

    #[test]
    fn a_served_request_between_traps_begins_the_count_anew() {
        let mut gate = full(9, 0);
        for _ in 0..4 {
            gate.leave(Ended::Trapped { fresh: true });
        }
        gate.leave(Ended::Served);

        assert_eq!(gate.leave(Ended::Trapped { fresh: true }).1, Verdict::GoOn);
    }

    #[test]
    fn traps_of_instances_that_had_served_before_are_not_counted() {
        let mut gate = full(9, 0);

        for _ in 0..9 {
            assert_eq!(gate.leave(Ended::Trapped { fresh: false }).1, Verdict::GoOn);
        }
    }
}
