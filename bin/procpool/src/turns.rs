//! With `--keep-order`, jobs that have ended wait here for those before them.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// How many may wait, since what runs long would have all others wait for it.
const HELD_MAX: usize = 1000;
/// And their size in memory.
const HELD_BYTES_MAX: usize = 64 << 20;

/// Lets things through in the order of their numbers. The first is number 1, and one is left out only if that is said.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    /// The number of the last that was let through.
    through: u64,
    /// The others, each with its size.
    held: BTreeMap<u64, (usize, T)>,
    bytes: usize,
    /// Ranges that have nobody, each by its first number, with its last.
    left_out: BTreeMap<u64, u64>,
}

impl<T> Turns<T> {
    pub(crate) fn new() -> Turns<T> {
        Turns { through: 0, held: BTreeMap::new(), bytes: 0, left_out: BTreeMap::new() }
    }

    /// Keeps one until its turn has come.
    pub(crate) fn add(&mut self, number: u64, size: usize, thing: T) {
        self.bytes += size;
        self.held.insert(number, (size, thing));
    }

    /// Nobody will have these numbers.
    pub(crate) fn leave_out(&mut self, numbers: RangeInclusive<u64>) {
        self.left_out.insert(*numbers.start(), *numbers.end());
    }

    /// Takes the one whose turn it is, if it is here.
    pub(crate) fn take(&mut self) -> Option<T> {
        while let Some(last) = self.left_out.remove(&(self.through + 1)) {
            self.through = last;
        }
        let (size, thing) = self.held.remove(&(self.through + 1))?;
        self.through += 1;
        self.bytes -= size;
        Some(thing)
    }

    /// Whether so much waits that nothing new should be begun.
    pub(crate) fn is_full(&self) -> bool {
        self.held.len() >= HELD_MAX || self.bytes >= HELD_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waits_for_those_before_it() {
        let mut turns = Turns::new();
        turns.add(2, 1, "two");
        assert_eq!(turns.take(), None);
        turns.add(1, 1, "one");
        assert_eq!([turns.take(), turns.take(), turns.take()], [Some("one"), Some("two"), None]);
        turns.add(3, 1, "three");
        assert_eq!(turns.take(), Some("three"));
    }

    #[test]
    fn nobody_waits_for_who_will_not_come() {
        let mut turns = Turns::new();
        turns.leave_out(3..=4);
        turns.leave_out(5..=5);
        turns.add(6, 1, "six");
        turns.add(2, 1, "two");
        assert_eq!(turns.take(), None);
        turns.leave_out(1..=1);
        assert_eq!([turns.take(), turns.take(), turns.take()], [Some("two"), Some("six"), None]);
    }

    #[test]
    fn neither_many_nor_large_ones_may_wait() {
        let held = |sizes: &[usize]| {
            let mut turns = Turns::new();
            (2..).zip(sizes).for_each(|(number, size)| turns.add(number, *size, ()));
            turns
        };
        assert!(!held(&[0; HELD_MAX - 1]).is_full());
        assert!(held(&[0; HELD_MAX]).is_full());
        assert!(!held(&[HELD_BYTES_MAX - 1]).is_full());
        let mut turns = held(&[HELD_BYTES_MAX]);
        assert!(turns.is_full());
        turns.add(1, 0, ());
        assert_eq!([turns.take(), turns.take(), turns.take()], [Some(()), Some(()), None]);
        assert!(!turns.is_full());
    }
}
