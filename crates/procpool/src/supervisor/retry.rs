//! Jobs that killed their worker and wait before they run again: whatever made them die may pass meanwhile.
//!
//! Pure: the time is an argument, and so is what the jitter is drawn from.

use std::collections::{BTreeMap, BTreeSet};

/// How long a job waits before its next attempt.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    /// Before the first retry.
    pub(crate) first_ns: u64,
    /// Before any.
    pub(crate) max_ns: u64,
    /// What the jitter is drawn from: pools that differ in it do not retry in step.
    pub(crate) seed: u64,
}

impl Backoff {
    /// The wait before the `retry`-th retry, from 1, of the job with this number. It doubles each time, and
    /// up to half of it is taken off at random, so that jobs which died together do not come back together.
    pub(crate) fn wait_ns(&self, job: u64, retry: u32) -> u64 {
        let doublings = retry.saturating_sub(1).min(63);
        let longest = self.first_ns.saturating_mul(1 << doublings).min(self.max_ns);
        let drawn = mix(self.seed ^ mix(job ^ mix(u64::from(retry))));
        longest - drawn % (longest / 2 + 1)
    }
}

/// The finaliser of SplitMix64: each bit of the input changes half of those of the output.
fn mix(n: u64) -> u64 {
    let mut mixed = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The jobs that wait, each known by its number in the queue.
#[derive(Debug)]
pub(crate) struct Retries<T> {
    pub(crate) backoff: Backoff,
    by_number: BTreeMap<u64, (u64, T)>,
    by_time: BTreeSet<(u64, u64)>,
}

impl<T> Default for Retries<T> {
    fn default() -> Retries<T> {
        Retries {
            backoff: Backoff::default(),
            by_number: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }
}

impl<T> Retries<T> {
    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Lets a job wait until `due`.
    pub(crate) fn insert(&mut self, number: u64, due: u64, item: T) {
        self.by_time.insert((due, number));
        self.by_number.insert(number, (due, item));
    }

    /// When the next one is due.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.by_time.first().map(|(due, _)| *due)
    }

    /// Takes one that is due by now, the one that is due first.
    pub(crate) fn pop_due(&mut self, now: u64) -> Option<T> {
        let (due, number) = *self.by_time.first()?;
        if due > now { None } else { self.remove(number) }
    }

    /// Takes the one with this number.
    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        let (due, item) = self.by_number.remove(&number)?;
        self.by_time.remove(&(due, number));
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn backoff(seed: u64) -> Backoff {
        Backoff { first_ns: 10 * MS, max_ns: 1000 * MS, seed }
    }

    /// Goal: each wait is about twice the one before, never longer than the longest, and never less than
    /// half of what it is without jitter.
    #[test]
    fn waits_double_up_to_the_longest() {
        for job in 0..1000 {
            for retry in 1..200 {
                let full = (10 * MS).saturating_mul(1 << (retry - 1).min(40)).min(1000 * MS);
                let wait = backoff(job).wait_ns(job, retry);
                assert!((full / 2..=full).contains(&wait), "job {job}, retry {retry}: {wait}");
            }
        }
    }

    /// Goal: the same seed gives the same waits; jobs that died together do not come back together.
    #[test]
    fn jitter_is_determined_by_the_seed_and_spreads_jobs() {
        let waits = |seed| (0..100).map(|job| backoff(seed).wait_ns(job, 1)).collect::<Vec<_>>();
        assert_eq!(waits(7), waits(7));
        assert_ne!(waits(7), waits(8));
        let distinct: BTreeSet<u64> = waits(7).into_iter().collect();
        assert!(distinct.len() > 95, "{} of 100 differ", distinct.len());
    }

    /// Goal: without a back-off there is none; with the longest possible one nothing overflows.
    #[test]
    fn the_extremes_hold() {
        assert_eq!(Backoff::default().wait_ns(3, 1), 0);
        let longest = Backoff { first_ns: u64::MAX, max_ns: u64::MAX, seed: 1 };
        assert!(longest.wait_ns(3, u32::MAX) >= u64::MAX / 2);
    }

    /// Goal: jobs come back when they are due, in that order, and one that was taken away does not.
    #[test]
    fn jobs_come_back_in_the_order_in_which_they_are_due() {
        let mut retries = Retries::default();
        for (number, due) in [(1, 30), (2, 10), (3, 20), (4, 20)] {
            retries.insert(number, due, number);
        }
        assert_eq!(retries.next_due(), Some(10));
        assert_eq!(retries.pop_due(9), None);
        assert_eq!(retries.remove(3), Some(3));
        assert_eq!(retries.remove(3), None);
        let due: Vec<_> = std::iter::from_fn(|| retries.pop_due(25)).collect();
        assert_eq!(due, [2, 4]);
        assert_eq!((retries.len(), retries.next_due()), (1, Some(30)));
        assert_eq!(retries.pop_due(30), Some(1));
        assert_eq!(retries.next_due(), None);
    }
}
