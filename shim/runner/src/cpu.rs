//! CPU time: exact accounting per container, `limits.cpu` by a token bucket, and the ticks that interrupt a spinning guest.
//!
//! Absent: a scheduler. Guests are futures of one tokio runtime; a guest gives way at its slice's end and queues behind others.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::thread::Thread;
use std::time::{Duration, Instant};

use rustix::thread::ClockId;
use tokio::time::Sleep;
use wasmtime::Engine;

/// The length of an epoch: the longest that a spinning guest keeps its thread beyond its slice.
pub const TICK: Duration = Duration::from_millis(1);

/// How many ticks the ticker goes on after the last guest was polled: a busy server's ticker is not woken for each request.
const LINGER_TICKS: u32 = 10;

/// The kernel's own period for CPU quotas; a bucket holds what one period allows.
const PERIOD: Duration = Duration::from_millis(100);

/// The least CPU time for which a throttled container is woken: shorter runs would cost more in wake-ups than they compute.
const LEAST_RUN: Duration = Duration::from_millis(2);

/// The longest slice: with requests of a whole core. Two workers and 50 spinning guests leave a neighbour waiting 25 slices.
const MAX_SLICE: u64 = 5;

/// How many ticks a guest of this weight (thousandths of a core) runs before it gives way: one for each 200, at least one.
pub fn slice(weight: u32) -> u64 {
    (u64::from(weight) / 200).clamp(1, MAX_SLICE)
}

/// What one container used, and what it may use.
#[derive(Debug)]
pub struct Cpu {
    used_ns: AtomicU64,
    bucket: Option<Mutex<Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    /// Nanoseconds of CPU per second of wall time, divided by a million: thousandths of a core.
    millis: i64,
    capacity_ns: i64,
    tokens_ns: i64,
    filled: Instant,
}

impl Cpu {
    /// Nothing used; `millis` thousandths of a core allowed, or no limit.
    pub fn new(millis: Option<u32>) -> Self {
        let bucket = millis.map(|millis| {
            let millis = i64::from(millis.max(1));
            let capacity_ns = PERIOD.as_nanos() as i64 * millis / 1000;
            Mutex::new(Bucket {
                millis,
                capacity_ns,
                tokens_ns: capacity_ns,
                filled: Instant::now(),
            })
        });
        Self { used_ns: AtomicU64::new(0), bucket }
    }

    /// CPU time used so far, in nanoseconds.
    pub fn used_ns(&self) -> u64 {
        self.used_ns.load(Ordering::Relaxed)
    }

    /// Books CPU time.
    pub fn charge(&self, ns: u64) {
        self.used_ns.fetch_add(ns, Ordering::Relaxed);
        if let Some(bucket) = &self.bucket {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.tokens_ns =
                bucket.tokens_ns.saturating_sub(i64::try_from(ns).unwrap_or(i64::MAX));
        }
    }

    /// How long to pause before the next poll; none: run.
    fn pause(&self, now: Instant) -> Option<Duration> {
        let bucket = self.bucket.as_ref()?;
        bucket.lock().unwrap_or_else(PoisonError::into_inner).pause(now)
    }
}

impl Bucket {
    fn pause(&mut self, now: Instant) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        let elapsed = i64::try_from(elapsed).unwrap_or(i64::MAX);
        let gained = elapsed.saturating_mul(self.millis) / 1000;
        if gained > 0 {
            self.tokens_ns = self.tokens_ns.saturating_add(gained).min(self.capacity_ns);
            self.filled = now;
        }
        if self.tokens_ns > 0 {
            return None;
        }
        let wanted = (LEAST_RUN.as_nanos() as i64).min(self.capacity_ns);
        let missing = wanted.saturating_sub(self.tokens_ns);
        let ns = missing.saturating_mul(1000) / self.millis;
        Some(Duration::from_nanos(u64::try_from(ns).unwrap_or(0)))
    }
}

/// Runs a guest's future: each poll is booked on `cpu`, none begins while the bucket is empty, and epochs advance meanwhile.
pub async fn metered<F: Future>(cpu: &Cpu, ticker: &Ticker, future: F) -> F::Output {
    let mut future = pin!(future);
    let mut pause: Option<Pin<Box<Sleep>>> = None;
    poll_fn(move |context| {
        loop {
            if let Some(sleep) = &mut pause {
                std::task::ready!(sleep.as_mut().poll(context));
                pause = None;
            }
            match cpu.bucket.is_some().then(|| cpu.pause(Instant::now())).flatten() {
                Some(wait) => pause = Some(Box::pin(tokio::time::sleep(wait))),
                None => break,
            }
        }
        let _ticking = ticker.tick_while();
        let watch = Stopwatch::start();
        let polled: Poll<F::Output> = future.as_mut().poll(context);
        cpu.charge(watch.stop());
        polled
    })
    .await
}

/// A poll within this time is booked as the time that went by: no less than it computed, and the thread's own clock is a system call
/// on either side of polls that take a tenth of this.
const BRIEF: Duration = Duration::from_micros(50);

/// How old the last reading of the thread's clock may be when a poll begins: what a poll that was interrupted is booked too much.
const STALE: Duration = Duration::from_millis(1);

thread_local! {
    /// When the thread's clock was last read, and what it said.
    static READING: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };
}

/// Measures what one poll computes: never too little, and for one that computes for long exactly, as its last reading is its first.
struct Stopwatch {
    begun: Instant,
    /// What the thread's clock said, at most [`STALE`] before.
    read: u64,
}

impl Stopwatch {
    fn start() -> Self {
        let begun = Instant::now();
        let fresh = READING.get().filter(|(at, _)| begun.saturating_duration_since(*at) <= STALE);
        let read = fresh.map_or_else(|| read_thread_clock(begun), |(_, read)| read);
        Self { begun, read }
    }

    /// Nanoseconds since the start.
    fn stop(self) -> u64 {
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(self.begun);
        let computed = match elapsed < BRIEF {
            true => u64::MAX,
            false => read_thread_clock(now).saturating_sub(self.read),
        };
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).min(computed)
    }
}

fn read_thread_clock(now: Instant) -> u64 {
    let read = thread_cpu_ns();
    READING.set(Some((now, read)));
    read
}

fn thread_cpu_ns() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}

/// The thread that advances the engines' epochs, only while some guest is being polled.
#[derive(Debug)]
pub struct Ticker {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    polled_now: AtomicUsize,
    parked: AtomicBool,
    thread: OnceLock<Thread>,
    engines: Mutex<Vec<OpaqueEngine>>,
}

struct OpaqueEngine(Engine);

impl std::fmt::Debug for OpaqueEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Ticker {
    /// A ticker without engines; its thread starts with the first poll of a guest.
    pub fn new() -> Self {
        Self { shared: Arc::default() }
    }

    /// Ticks for `engine` too.
    pub fn add(&self, engine: &Engine) {
        let mut engines = self.shared.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.push(OpaqueEngine(engine.clone()));
    }

    /// Epochs advance at least until the answer is dropped.
    pub fn tick_while(&self) -> Ticking<'_> {
        // Pairs with the ticker's order: it says "parked" first and looks at the count then, so one side sees the other.
        self.shared.polled_now.fetch_add(1, Ordering::SeqCst);
        match self.shared.thread.get() {
            Some(thread) => {
                // Looked at before it is taken, so that polls of a busy runner only share the line.
                let parked = &self.shared.parked;
                if parked.load(Ordering::SeqCst) && parked.swap(false, Ordering::SeqCst) {
                    thread.unpark();
                }
            }
            None => self.start(),
        }
        Ticking { shared: &self.shared }
    }

    #[cold]
    fn start(&self) {
        self.shared.thread.get_or_init(|| {
            let shared = Arc::downgrade(&self.shared);
            let run = move || {
                let mut idle = 0;
                loop {
                    std::thread::sleep(TICK);
                    let Some(shared) = shared.upgrade() else { return };
                    idle = if shared.polled_now.load(Ordering::SeqCst) == 0 { idle + 1 } else { 0 };
                    if idle > LINGER_TICKS {
                        shared.parked.store(true, Ordering::SeqCst);
                        if shared.polled_now.load(Ordering::SeqCst) == 0 {
                            while shared.parked.load(Ordering::SeqCst) {
                                std::thread::park();
                            }
                        }
                        shared.parked.store(false, Ordering::SeqCst);
                        idle = 0;
                    }
                    let engines = shared.engines.lock().unwrap_or_else(PoisonError::into_inner);
                    for engine in engines.iter() {
                        engine.0.increment_epoch();
                    }
                }
            };
            let thread = std::thread::Builder::new().name("epochs".into()).stack_size(64 << 10);
            match thread.spawn(run) {
                Ok(handle) => handle.thread().clone(),
                // Without ticks a spinning guest could not be stopped: better no runner than that one.
                Err(error) => panic!("the epoch thread cannot be started: {error}"),
            }
        });
    }
}

impl Default for Ticker {
    fn default() -> Self {
        Self::new()
    }
}

/// While this lives, epochs advance.
#[derive(Debug)]
pub struct Ticking<'a> {
    shared: &'a Shared,
}

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.shared.polled_now.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_without_a_limit_never_pauses() {
        let cpu = Cpu::new(None);
        cpu.charge(u64::MAX / 2);

        assert_eq!(cpu.pause(Instant::now()), None);
        assert_eq!(cpu.used_ns(), u64::MAX / 2);
    }

    #[test]
    fn a_container_that_used_up_its_period_pauses_until_its_share_has_refilled() {
        let cpu = Cpu::new(Some(500));
        let start = Instant::now();

        cpu.charge(60_000_000);

        // 50 ms were in the bucket; 10 ms of debt and 2 ms of a least run take 24 ms at half a core.
        let pause = cpu.pause(start).expect("throttled");
        assert!(pause <= Duration::from_millis(24), "{pause:?}");
        assert!(pause >= Duration::from_millis(23), "{pause:?}");
        assert_eq!(cpu.pause(start + pause + Duration::from_millis(1)), None);
    }

    #[test]
    fn an_idle_container_saves_up_one_period_and_no_more() {
        let cpu = Cpu::new(Some(100));
        let later = Instant::now() + Duration::from_secs(3600);
        assert_eq!(cpu.pause(later), None);

        cpu.charge(10_000_001);

        assert!(cpu.pause(later).is_some());
    }

    #[test]
    fn a_poll_that_waits_is_not_booked_as_one_that_computes() {
        let watch = Stopwatch::start();
        std::thread::sleep(Duration::from_millis(20));

        assert!(watch.stop() < 10_000_000);
    }

    #[test]
    fn many_brief_polls_are_booked_at_no_less_than_they_computed() {
        let before = thread_cpu_ns();

        let booked: u64 = (0..2_000)
            .map(|_| {
                let watch = Stopwatch::start();
                std::hint::black_box(
                    (0..2_000_u64).fold(1, |all, it| std::hint::black_box(all ^ it)),
                );
                watch.stop()
            })
            .sum();

        let computed = thread_cpu_ns() - before;
        // What lies between two polls, the clocks' own time among it, is nobody's.
        assert!(booked > computed / 2, "{booked} of {computed}");
    }

    #[test]
    fn one_long_poll_upon_the_other_is_booked_by_the_thread_s_clock() {
        let spin = || {
            let watch = Stopwatch::start();
            let until = thread_cpu_ns() + 3_000_000;
            while thread_cpu_ns() < until {}
            watch.stop()
        };
        spin();

        let booked = spin();

        assert!((3_000_000..5_000_000).contains(&booked), "{booked}");
    }

    #[test]
    fn a_slice_grows_with_the_requested_cores_and_has_a_ceiling() {
        assert_eq!([slice(2), slice(400), slice(1000), slice(64_000)], [1, 2, 5, 5]);
    }
}
