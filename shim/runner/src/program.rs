//! In which engine an instance of a program is made: programs that end soon take turns in slots of the pool.
//!
//! An instance of the on-demand engine has its memory mapped and unmapped, which a short job pays for each time; a slot of the pool
//! is only wiped. What lives long would hold a slot for nothing, and a spec does not tell the two apart: many a pod that is never
//! restarted sleeps for days. So a program is judged by what it did. Absent: HTTP components, which are always the pool's.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::PoolConcurrencyLimitError;

/// Who ends within this time is a short job.
const SOON: Duration = Duration::from_secs(10);

/// So often in a row a program ends soon before the pool takes it: one that ran once has no use for what that loads.
const PROVEN: u8 = 2;

/// Instances of short jobs that are in the pool at a time, so that most of its slots are left to requests.
pub const SEATS: usize = 64;

/// A program's code, and what is known of it.
pub struct Program<P> {
    /// The file's digest, by which it is loaded once more.
    pub(crate) digest: String,
    on_demand: P,
    /// Loaded when it is first wanted. None: the pool cannot have it, as it needs more than a slot holds.
    pooled: OnceLock<Option<P>>,
    /// How often in a row it ended soon; counts to [`PROVEN`].
    soon: AtomicU8,
}

/// Where one instance is made.
pub struct Place<'a, P> {
    program: &'a Program<P>,
    pre: &'a P,
    begun: Instant,
    /// In the pool.
    seat: Option<OwnedSemaphorePermit>,
}

impl<P> Program<P> {
    /// A program of which nothing is known.
    pub(crate) fn new(digest: &str, on_demand: P) -> Self {
        let digest = digest.to_owned();
        Self { digest, on_demand, pooled: OnceLock::new(), soon: AtomicU8::new(0) }
    }

    /// Where the next instance is made, for as long as the answer lives. `load` has the pool's engine load the code.
    pub(crate) fn place(
        &self,
        seats: &Arc<Semaphore>,
        load: impl FnOnce() -> Option<P>,
    ) -> Place<'_, P> {
        let begun = Instant::now();
        let elsewhere = Place { program: self, pre: &self.on_demand, begun, seat: None };
        if self.soon.load(Ordering::Relaxed) < PROVEN {
            return elsewhere;
        }
        let Ok(seat) = seats.clone().try_acquire_owned() else { return elsewhere };
        match self.pooled.get_or_init(load) {
            Some(pre) => Place { program: self, pre, begun, seat: Some(seat) },
            None => elsewhere,
        }
    }
}

impl<P> Place<'_, P> {
    /// What the instance is made of.
    pub fn pre(&self) -> &P {
        self.pre
    }

    /// Whether the instance can be tried again, outside the pool, where making it ended with this error: requests may have all slots.
    pub(crate) fn makes_way(&mut self, error: &wasmtime::Error) -> bool {
        let is_full = self.seat.is_some() && error.is::<PoolConcurrencyLimitError>();
        if is_full {
            (self.pre, self.seat) = (&self.program.on_demand, None);
        }
        is_full
    }
}

impl<P> Drop for Place<'_, P> {
    /// The instance has ended, however it did: by itself, by a trap, or because it was stopped.
    fn drop(&mut self) {
        let soon = &self.program.soon;
        if self.begun.elapsed() >= SOON {
            soon.store(0, Ordering::Relaxed);
        } else if soon.load(Ordering::Relaxed) < PROVEN {
            soon.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(count: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(count))
    }

    /// A program that ended soon so often as it takes.
    fn proven() -> Program<&'static str> {
        let program = Program::new("digest", "on demand");
        for _ in 0..PROVEN {
            assert_eq!(*program.place(&seats(1), || Some("pooled")).pre(), "on demand");
        }
        program
    }

    #[test]
    fn a_program_that_ended_soon_twice_is_the_pool_s_from_then_on() {
        let program = proven();

        for _ in 0..3 {
            assert_eq!(*program.place(&seats(1), || Some("pooled")).pre(), "pooled");
        }
    }

    #[test]
    fn a_program_that_lived_long_has_to_prove_itself_anew() {
        let program = proven();
        let mut place = program.place(&seats(1), || Some("pooled"));
        place.begun = Instant::now().checked_sub(SOON).expect("this machine is up that long");

        drop(place);

        assert_eq!(*program.place(&seats(1), || Some("pooled")).pre(), "on demand");
    }

    #[test]
    fn beyond_the_seats_instances_are_made_elsewhere_and_a_seat_is_free_with_its_instance_s_end() {
        let (program, seats) = (proven(), seats(1));
        let first = program.place(&seats, || Some("pooled"));

        assert_eq!(*program.place(&seats, || Some("pooled")).pre(), "on demand");
        drop(first);

        assert_eq!(*program.place(&seats, || Some("pooled")).pre(), "pooled");
    }

    #[test]
    fn a_program_that_the_pool_cannot_have_is_tried_there_once_and_holds_no_seat() {
        let (program, seats) = (proven(), seats(1));

        let place = program.place(&seats, || None);

        assert_eq!((*place.pre(), seats.available_permits()), ("on demand", 1));
        drop(place);
        program.place(&seats, || panic!("it was tried before"));
    }
}
