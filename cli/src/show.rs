//! Pods as text, as kubectl shows them: pure functions from a status and a moment to lines.
//!
//! Start at [`ps`] for the table and [`describe`] for one pod. Absent: fetching anything, and colours.

pub(crate) mod age;
pub(crate) mod describe;
pub(crate) mod ps;
pub(crate) mod usage;

#[cfg(test)]
pub(crate) mod samples;
