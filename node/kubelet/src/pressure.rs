//! Whether the machine runs out of something: pure, with a kubelet's thresholds.
//!
//! Start at [`Pressures::look`]; from where on it does, [`Thresholds`] says. A pressure is over only when it has not been seen for a while, so that a machine at the edge does
//! not tell something else every ten seconds. Absent: what is done about it.

use std::time::Duration;

use copepod_node::quantity::Amount;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::machine::Usage;

/// Less than this is too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Least {
    /// Bytes, or a number of files or tasks.
    Amount(u64),
    /// So many hundredths of all.
    Hundredths(u64),
}

impl Least {
    fn of(self, all: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Hundredths(share) => {
                (u128::from(all) * u128::from(share) / 100).try_into().unwrap_or(u64::MAX)
            }
        }
    }
}

/// From where on the machine is short of something: a kubelet's `evictionHard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    memory: Least,
    disk: Least,
    inodes: Least,
    tasks: Least,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            memory: Least::Amount(100 << 20),
            disk: Least::Hundredths(10),
            inodes: Least::Hundredths(5),
            // A kubelet has no default for this; at less, a machine soon cannot even log in.
            tasks: Least::Hundredths(5),
        }
    }
}

impl Thresholds {
    /// As a kubelet's flag says them, `memory.available<100Mi` or `nodefs.available<10%`; what is not named stays as it is by default.
    ///
    /// # Errors
    /// What is wrong with the first that cannot be.
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let mut all = Self::default();
        for text in texts {
            let (signal, least) = text.split_once('<').ok_or_else(|| {
                format!("{text:?}: write it as memory.available<100Mi or nodefs.available<10%")
            })?;
            let least = match least.strip_suffix('%') {
                Some(share) => {
                    Least::Hundredths(share.parse().ok().filter(|it| *it <= 100).ok_or_else(
                        || format!("{least:?} is no share; write a whole number from 0% to 100%"),
                    )?)
                }
                None => Least::Amount(
                    Amount::parse(&Quantity(least.to_owned()))
                        .map_err(|why| format!("{signal}: {why}"))?
                        .ceil(),
                ),
            };
            let place = match signal {
                "memory.available" => &mut all.memory,
                "nodefs.available" => &mut all.disk,
                "nodefs.inodesFree" => &mut all.inodes,
                "pid.available" => &mut all.tasks,
                other => {
                    return Err(format!(
                        "{other:?} is not looked at: memory.available, nodefs.available, nodefs.inodesFree and pid.available are"
                    ));
                }
            };
            *place = least;
        }
        Ok(all)
    }
}

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
    pub fn look(self, usage: &Usage, least: &Thresholds, now: Timestamp) -> Self {
        let seen = |yes: bool, before: Option<Timestamp>| {
            let held = |since: &Timestamp| now.duration_since(*since).unsigned_abs() < HELD;
            if yes { Some(now) } else { before.filter(held) }
        };
        let disk = usage.disk_available < least.disk.of(usage.disk)
            || usage.inodes > 0 && usage.inodes_free < least.inodes.of(usage.inodes);
        let tasks_left = usage.max_tasks.saturating_sub(usage.tasks);
        let memory = usage.memory_available < least.memory.of(usage.memory);
        Self {
            memory: seen(memory, self.memory),
            disk: seen(disk, self.disk),
            pids: seen(tasks_left < least.tasks.of(usage.max_tasks), self.pids),
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

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    fn plenty() -> Usage {
        Usage {
            memory: 4 << 30,
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
        found_by(&Thresholds::default(), usage)
    }

    fn found_by(least: &Thresholds, usage: &Usage) -> (bool, bool, bool) {
        let pressures = Pressures::default().look(usage, least, Timestamp::UNIX_EPOCH);
        let is = |it| pressures.is(it);
        (is(Pressure::Memory), is(Pressure::Disk), is(Pressure::Pids))
    }

    fn parsed(text: &str) -> Result<Thresholds, String> {
        Thresholds::parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
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
    fn an_administrators_thresholds_take_the_place_of_the_defaults_each_for_itself() {
        let table = [
            ("memory.available<2Gi", (true, false, false)),
            ("memory.available<26%", (true, false, false)),
            ("memory.available<25%", (false, false, false)),
            ("nodefs.available<51", (false, true, false)),
            ("nodefs.inodesFree<51%", (false, true, false)),
            ("pid.available<51,nodefs.available<50%", (false, false, true)),
        ];
        for (text, expected) in table {
            let least = parsed(text).expect("good thresholds");
            assert_eq!(found_by(&least, &plenty()), expected, "{text}");
        }
        let none = parsed("nodefs.available<0").expect("good thresholds");
        let full = Usage { disk_available: 0, memory_available: 0, ..plenty() };
        assert_eq!(found_by(&none, &full), (true, false, false));
    }

    #[test]
    fn a_threshold_that_cannot_be_is_refused_with_how_to_write_one() {
        for (text, words) in [
            ("memory.available=1Gi", "memory.available<100Mi"),
            ("memory.available<101%", "0% to 100%"),
            ("memory.available<-1%", "0% to 100%"),
            ("memory.available<lots", "memory.available"),
            ("imagefs.available<1%", "nodefs.available"),
        ] {
            let why = parsed(text).expect_err(text);
            assert!(why.contains(words), "{why}");
        }
    }

    #[test]
    fn a_pressure_is_over_five_minutes_after_it_was_last_seen() {
        let start = Timestamp::UNIX_EPOCH;
        let after = |seconds: i64| start.checked_add(seconds.seconds()).expect("a time");
        let scarce = Usage { memory_available: 0, ..plenty() };

        let least = Thresholds::default();
        let seen =
            Pressures::default().look(&scarce, &least, start).look(&plenty(), &least, after(60));
        let held = seen.look(&plenty(), &least, after(299));
        let over = held.look(&plenty(), &least, after(300));

        assert!(seen.is(Pressure::Memory) && held.is(Pressure::Memory));
        assert!(!over.is(Pressure::Memory));
    }
}
