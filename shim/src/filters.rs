//! The two filters of system calls that a confined process gives itself: calls that it is to take for unknown, and the only ones
//! that are left.
//!
//! Two, because a filter answers all that it does not name in one way. Absent: the lists, which are each program's own.

use std::collections::BTreeMap;
use std::ffi::c_long;

use rustix::io::Errno;
use seccompiler::{BpfProgram, Error, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

/// Calls by their number, each with the rules of which one has to hold; without rules it may be made whatever its arguments are.
pub type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Both filters, compiled for this machine.
#[derive(Debug)]
pub struct Filters {
    unknown: BpfProgram,
    allowed: BpfProgram,
}

/// These calls, whatever their arguments are.
pub fn always(calls: &[c_long]) -> Rules {
    calls.iter().map(|&call| (call, Vec::new())).collect()
}

impl Filters {
    /// Filters that answer calls of `unknown` as if the kernel were too old, which makes callers fall back, and forbid all but
    /// those of `allowed`.
    ///
    /// # Errors
    /// A rule that is not well formed, or a machine that filters cannot be made for.
    pub fn new(unknown: &[c_long], allowed: Rules) -> Result<Self, Error> {
        let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
        let refuse = |error: Errno| SeccompAction::Errno(error.raw_os_error().unsigned_abs());
        let pass = SeccompAction::Allow;
        let unknown =
            SeccompFilter::new(always(unknown), pass.clone(), refuse(Errno::NOSYS), architecture)?;
        let allowed = SeccompFilter::new(allowed, refuse(Errno::PERM), pass, architecture)?;
        Ok(Self { unknown: unknown.try_into()?, allowed: allowed.try_into()? })
    }

    /// Holds every thread of this process to them, and those to come.
    ///
    /// # Errors
    /// The kernel's.
    pub fn install(&self) -> Result<(), Error> {
        seccompiler::apply_filter_all_threads(&self.unknown)?;
        // The list last: it leaves no call to install another one.
        seccompiler::apply_filter_all_threads(&self.allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compile_for_this_machine() {
        let filters = Filters::new(&[435], always(&[0, 1])).expect("they compile");

        assert!(!filters.unknown.is_empty() && !filters.allowed.is_empty());
    }
}
