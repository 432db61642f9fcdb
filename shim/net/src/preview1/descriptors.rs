//! Which number a guest knows each descriptor by: the lowest that is free, as POSIX has it.
//!
//! Pure. Absent: what a descriptor is; `D` is a name for it.

use std::collections::BTreeSet;

/// The descriptors of one instance.
#[derive(Debug)]
pub(crate) struct Descriptors<D> {
    slots: Vec<Option<D>>,
    free: BTreeSet<u32>,
    most: u32,
}

/// As many are open as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<D> Descriptors<D> {
    /// At most `most` of them, `first` under the numbers from 0 on.
    pub(crate) fn new(first: impl IntoIterator<Item = D>, most: u32) -> Self {
        Self { slots: first.into_iter().map(Some).collect(), free: BTreeSet::new(), most }
    }

    /// Gives a descriptor its number.
    pub(crate) fn push(&mut self, descriptor: D) -> Result<u32, Full> {
        if let Some(number) = self.free.pop_first() {
            self.slots[number as usize] = Some(descriptor);
            return Ok(number);
        }
        let number = u32::try_from(self.slots.len()).map_err(|_| Full)?;
        if number >= self.most {
            return Err(Full);
        }
        self.slots.push(Some(descriptor));
        Ok(number)
    }

    /// Lets so many more be open: those that the guest has not opened itself.
    pub(crate) fn make_room(&mut self, more: usize) {
        self.most = self.most.saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
    }

    /// Whether [`Descriptors::push`] would be refused.
    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= self.most as usize
    }

    pub(crate) fn get(&self, number: u32) -> Option<&D> {
        self.slots.get(number as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut D> {
        self.slots.get_mut(number as usize)?.as_mut()
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<D> {
        let removed = self.slots.get_mut(number as usize)?.take()?;
        self.free.insert(number);
        Some(removed)
    }

    /// Puts one descriptor in another's place, which comes back; its own number is free then. `None` where either is not open.
    pub(crate) fn renumber(&mut self, from: u32, to: u32) -> Option<D> {
        self.get(to)?;
        let moved = self.remove(from)?;
        self.slots[to as usize].replace(moved)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &D> {
        self.slots.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_given_next() {
        let mut descriptors = Descriptors::new(["in", "out", "err"], 100);
        assert_eq!(descriptors.push("a"), Ok(3));
        assert_eq!(descriptors.push("b"), Ok(4));

        assert_eq!(descriptors.remove(3), Some("a"));
        assert_eq!(descriptors.remove(0), Some("in"));

        assert_eq!(descriptors.push("c"), Ok(0));
        assert_eq!(descriptors.push("d"), Ok(3));
        assert_eq!(descriptors.push("e"), Ok(5));
        assert_eq!(
            descriptors.iter().copied().collect::<Vec<_>>(),
            ["c", "out", "err", "d", "b", "e"]
        );
    }

    #[test]
    fn a_number_that_is_not_open_has_nothing_and_cannot_be_closed_twice() {
        let mut descriptors = Descriptors::new(["in"], 100);

        assert_eq!(descriptors.remove(0), Some("in"));

        assert_eq!(descriptors.remove(0), None);
        assert_eq!(descriptors.remove(7), None);
        assert_eq!(descriptors.get(0), None);
        assert_eq!(descriptors.get_mut(u32::MAX), None);
    }

    #[test]
    fn a_descriptor_that_is_renumbered_takes_another_s_place_and_leaves_its_own() {
        let mut descriptors = Descriptors::new(["in", "out", "a"], 100);

        assert_eq!(descriptors.renumber(2, 0), Some("in"));

        assert_eq!((descriptors.get(0), descriptors.get(2)), (Some(&"a"), None));
        assert_eq!(descriptors.push("b"), Ok(2));
        assert_eq!(descriptors.renumber(1, 9), None);
        assert_eq!(descriptors.renumber(9, 1), None);
        assert_eq!(descriptors.get(1), Some(&"out"));
    }

    #[test]
    fn no_more_are_open_than_may_be() {
        let mut descriptors = Descriptors::new(["in", "out"], 3);
        assert_eq!(descriptors.push("a"), Ok(2));
        assert!(descriptors.is_full());
        assert_eq!(descriptors.push("b"), Err(Full));

        descriptors.remove(1);

        assert_eq!(descriptors.push("b"), Ok(1));
    }
}
