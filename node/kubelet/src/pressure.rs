//! Whether the machine runs out of something: pure, with a kubelet's thresholds.
//!
//! Start at [`Pressures::look`]. A pressure is over only when it has not been seen for a while, so that a machine at the edge does
//! not tell something else every ten seconds. Absent: what is done about it.

use std::time::Duration;

use jiff::Timestamp;

use crate::machine::Usage;

/// A kubelet's default for `memory.available`.
const LEAST_MEMORY: u64 = 100 << 20;
/// A kubelet's default for `nodefs.available`, in hundredths.
const LEAST_DISK: u64 = 10;
/// A kubelet's default for `nodefs.inodesFree`, in hundredths.
const LEAST_INODES: u64 = 5;
/// A kubelet has no default for `pid.available`; at less than this, in hundredths, a machine soon cannot even log in.
const LEAST_TASKS: u64 = 5;
/// A kubelet's `evictionPressureTransitionPeriod`.
const HELD: Duration = Duration::from_secs(5 * 60);

/// What may run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Memory.
    Memory,
    /// Room or files on the disk.
    Disk,
    /// Processes.
    Pids,
}

/// When each was last seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    memory: Option<Timestamp>,
    disk: Option<Timestamp>,
    pids: Option<Timestamp>,
}

impl Pressures {
    /// With one more look at the machine.
    #[must_use]
    pub fn look(self, usage: &Usage, now: Timestamp) -> Self {
        let seen = |yes: bool, before: Option<Timestamp>| {
            let held = |since: &Timestamp| now.duration_since(*since).unsigned_abs() < HELD;
            if yes { Some(now) } else { before.filter(held) }
        };
        let disk = usage.disk_available < hundredths(usage.disk, LEAST_DISK)
            || usage.inodes_free < hundredths(usage.inodes, LEAST_INODES);
        let tasks_left = usage.max_tasks.saturating_sub(usage.tasks);
        Self {
            memory: seen(usage.memory_available < LEAST_MEMORY, self.memory),
            disk: seen(disk, self.disk),
            pids: seen(tasks_left < hundredths(usage.max_tasks, LEAST_TASKS), self.pids),
        }
    }

    /// Whether there is this pressure.
    pub fn is(&self, pressure: Pressure) -> bool {
        match pressure {
            Pressure::Memory => self.memory,
            Pressure::Disk => self.disk,
            Pressure::Pids => self.pids,
        }
        .is_some()
    }
}

fn hundredths(all: u64, share: u64) -> u64 {
    (u128::from(all) * u128::from(share) / 100).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    fn plenty() -> Usage {
        Usage {
            memory_available: 1 << 30,
            disk_available: 50,
            disk: 100,
            inodes_free: 50,
            inodes: 100,
            tasks: 50,
            max_tasks: 100,
        }
    }

    fn found(usage: &Usage) -> (bool, bool, bool) {
        let pressures = Pressures::default().look(usage, Timestamp::UNIX_EPOCH);
        let is = |it| pressures.is(it);
        (is(Pressure::Memory), is(Pressure::Disk), is(Pressure::Pids))
    }

    #[test]
    fn each_threshold_moves_its_own_condition() {
        let table = [
            (plenty(), (false, false, false)),
            (Usage { memory_available: (100 << 20) - 1, ..plenty() }, (true, false, false)),
            (Usage { memory_available: 100 << 20, ..plenty() }, (false, false, false)),
            (Usage { disk_available: 9, ..plenty() }, (false, true, false)),
            (Usage { disk_available: 10, ..plenty() }, (false, false, false)),
            (Usage { inodes_free: 4, ..plenty() }, (false, true, false)),
            (Usage { inodes_free: 0, inodes: 0, ..plenty() }, (false, false, false)),
            (Usage { tasks: 96, ..plenty() }, (false, false, true)),
            (Usage { tasks: 95, ..plenty() }, (false, false, false)),
            (Usage { tasks: 5, max_tasks: u64::MAX, ..plenty() }, (false, false, false)),
        ];
        for (usage, expected) in table {
            assert_eq!(found(&usage), expected, "{usage:?}");
        }
    }

    #[test]
    fn a_pressure_is_over_five_minutes_after_it_was_last_seen() {
        let start = Timestamp::UNIX_EPOCH;
        let after = |seconds: i64| start.checked_add(seconds.seconds()).expect("a time");
        let scarce = Usage { memory_available: 0, ..plenty() };

        let seen = Pressures::default().look(&scarce, start).look(&plenty(), after(60));
        let held = seen.look(&plenty(), after(299));
        let over = held.look(&plenty(), after(300));

        assert!(seen.is(Pressure::Memory) && held.is(Pressure::Memory));
        assert!(!over.is(Pressure::Memory));
    }
}
