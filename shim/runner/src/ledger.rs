//! The bytes that a container makes its host hold, in one number against one limit.
//!
//! Absent: the kernel's view. The domain's cgroup is the second fence; this ledger decides which container is at fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What one live instance costs beside its linear memories and tables: 46 KiB of resident memory and 12 KiB of page tables
/// were measured for a live command component (engine.md 5.1), rounded up to a whole wasm page.
pub const INSTANCE_BASE: u64 = 64 << 10;

/// What one open WASI resource is charged: a table entry with a socket or a stream and its buffers, 1 KiB as an estimate on
/// the safe side (the entry itself is about 100 bytes; a socket's kernel buffers are bounded by the socket quota).
pub const HANDLE_COST: u64 = 1 << 10;

/// What one table element is charged: the size of a pointer.
pub const TABLE_ELEMENT: u64 = 8;

/// The container is past `limits.memory`. Travels as the error of a trap; the whole container ends by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "out of memory: the container's limit is {limit} bytes, and {wanted} more were asked for with {used} in use"
)]
pub struct OutOfMemory {
    /// `limits.memory`.
    pub limit: u64,
    /// What the container held.
    pub used: u64,
    /// What it asked for on top.
    pub wanted: u64,
}

/// One container's account. Charged by every instance; above its limit only by what [`Ledger::hold`] books.
#[derive(Debug)]
pub struct Ledger {
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
    exceeded: AtomicBool,
}

impl Ledger {
    /// An empty account.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            exceeded: AtomicBool::new(false),
        })
    }

    /// Books `bytes`, or books nothing and marks the container as out of memory.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the guest is to be trapped.
    pub fn charge(&self, bytes: u64) -> Result<(), OutOfMemory> {
        self.book(bytes).map_err(|used| {
            self.exceeded.store(true, Ordering::Relaxed);
            OutOfMemory { limit: self.limit, used, wanted: bytes }
        })
    }

    /// Books `bytes` if they fit. Where they do not, nobody is at fault: a client cannot have a container killed by what it makes
    /// the host hold for it.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        self.book(bytes).ok()?;
        Some(Charge { ledger: self.clone(), bytes })
    }

    /// Books `bytes` that the host holds already and that something else bounds, whether or not they fit. The guest's next growth
    /// meets them.
    pub fn hold(self: &Arc<Self>, bytes: u64) -> Charge {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        self.peak.fetch_max(before + bytes, Ordering::Relaxed);
        Charge { ledger: self.clone(), bytes }
    }

    /// Books `bytes`, or tells what is in use instead.
    fn book(&self, bytes: u64) -> Result<(), u64> {
        let before = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|&after| after <= self.limit)
        })?;
        self.peak.fetch_max(before + bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back what was charged.
    pub fn release(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "released {bytes} of {before}");
    }

    /// Bytes booked now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The most that was ever booked.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// The ceiling.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether a charge was ever refused.
    pub fn exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Relaxed)
    }
}

/// A charge that is given back when it goes out of scope; it can grow and shrink.
#[derive(Debug)]
pub struct Charge {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Charge {
    /// A charge of nothing yet.
    pub fn none(ledger: Arc<Ledger>) -> Self {
        Self { ledger, bytes: 0 }
    }

    /// Books `bytes` more.
    ///
    /// # Errors
    /// [`OutOfMemory`], with nothing booked.
    pub fn add(&mut self, bytes: u64) -> Result<(), OutOfMemory> {
        self.ledger.charge(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Gives back `bytes`, at most what this charge holds.
    pub fn give_back(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.ledger.release(bytes);
        self.bytes -= bytes;
    }

    /// Makes the charge `bytes`.
    ///
    /// # Errors
    /// [`OutOfMemory`], with the charge as it was.
    pub fn set(&mut self, bytes: u64) -> Result<(), OutOfMemory> {
        if bytes > self.bytes {
            self.add(bytes - self.bytes)
        } else {
            self.give_back(self.bytes - bytes);
            Ok(())
        }
    }

    /// The account it is booked on.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_past_the_limit_books_nothing_and_marks_the_container() {
        let ledger = Ledger::new(100);
        ledger.charge(60).expect("fits");

        let refused = ledger.charge(41);

        assert_eq!(refused, Err(OutOfMemory { limit: 100, used: 60, wanted: 41 }));
        assert_eq!((ledger.used(), ledger.peak(), ledger.exceeded()), (60, 60, true));
    }

    #[test]
    fn a_charge_so_large_that_the_sum_overflows_is_refused() {
        let ledger = Ledger::new(u64::MAX);
        ledger.charge(2).expect("fits");

        assert!(ledger.charge(u64::MAX).is_err());
    }

    #[test]
    fn what_does_not_fit_is_not_reserved_and_nobody_is_at_fault() {
        let ledger = Ledger::new(100);
        let held = ledger.hold(120);

        assert!(ledger.reserve(1).is_none());
        assert_eq!((ledger.used(), ledger.exceeded()), (120, false));
        drop(held);

        let reserved = ledger.reserve(100).expect("fits");
        assert_eq!(ledger.used(), 100);
        drop(reserved);
        assert_eq!(ledger.used(), 0);
    }

    #[test]
    fn what_a_charge_holds_goes_back_with_it_and_the_peak_stays() {
        let ledger = Ledger::new(100);
        let mut charge = Charge::none(ledger.clone());
        charge.set(80).expect("fits");
        charge.set(30).expect("shrinks");
        assert_eq!(ledger.used(), 30);

        drop(charge);

        assert_eq!((ledger.used(), ledger.peak(), ledger.exceeded()), (0, 80, false));
    }
}
