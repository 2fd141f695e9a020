//! Limits on the memory of workers where no cgroup keeps them: while jobs run the supervisor looks how much of the
//! worker and of all below it is resident, and kills it when that is too much.
//!
//! Each look costs reading a file for each process, so they come as far apart as the rest can be filled up at the
//! earliest. What is resident when the worker becomes ready does not count: a preload's memory is not the job's. An
//! idle pool does not look. RLIMIT_AS is there beside it, wide, for what is filled faster than anybody looks.

use std::sync::Arc;
use std::time::Duration;

use procpool_sys::clock;

use super::machine::Event;
use super::{Supervisor, nanoseconds};
use crate::tree;

/// What a process may reserve, as a multiple of its limit: programs reserve what they never use, and few reserve
/// several times of what they use;
const ADDRESS_SPACE_FACTOR: u64 = 4;
/// but never less than this: the C library reserves 64 MiB for each thread that allocates (mallopt(3), M_ARENA_MAX).
const ADDRESS_SPACE_MIN: u64 = 1 << 30;
/// What memory is filled with at most, in bytes per second: new pages take the kernel about as long on any machine.
const FILL_RATE: u64 = 2 << 30;
/// Looks are never closer than this,
const LOOKS_APART_MIN: Duration = Duration::from_millis(5);
/// and never further apart than this: between two jobs memory comes and goes.
const LOOKS_APART_MAX: Duration = Duration::from_millis(100);

/// After how long to look again at a worker that has filled so much; `None` if that is beyond its limit.
fn next_look(filled: u64, limit: u64) -> Option<Duration> {
    let left = limit.checked_sub(filled)?;
    let nanos = u128::from(left) * 1_000_000_000 / u128::from(FILL_RATE);
    let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    Some(time.clamp(LOOKS_APART_MIN, LOOKS_APART_MAX))
}

/// The watch over a worker that no cgroup limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryWatch {
    pub(super) limit: u64,
    /// What was resident when it became ready.
    from: u64,
    /// What was found when it was too much.
    pub(super) found: Option<u64>,
}

impl MemoryWatch {
    pub(super) fn new(limit: u64) -> MemoryWatch {
        MemoryWatch { limit, from: 0, found: None }
    }

    /// RLIMIT_AS beside it, beyond what the worker has mapped at its start.
    pub(super) fn address_space(&self) -> u64 {
        self.limit.saturating_mul(ADDRESS_SPACE_FACTOR).max(ADDRESS_SPACE_MIN)
    }
}

impl Supervisor {
    /// A worker is ready: what it has is not what its jobs take.
    pub(super) fn begin_memory_watch(&mut self, slot: usize) {
        let Some(worker) = &mut self.workers[slot] else { return };
        let pid = worker.process.id();
        if let Some(watch) = &mut worker.hold.watch {
            watch.from = tree::resident(pid);
            let first = next_look(0, watch.limit).unwrap_or(LOOKS_APART_MIN);
            let mut dispatch = self.inner.dispatch();
            let before = dispatch.memory_look.unwrap_or(first);
            dispatch.memory_look = Some(before.min(first));
        }
    }

    /// Looks at the workers that have jobs, if it is time to.
    pub(super) fn watch_memory(&mut self) {
        let now = clock::monotonic_ns();
        let inner = Arc::clone(&self.inner);
        if now < self.memory_look_at {
            return;
        }
        let busy = {
            let dispatch = inner.dispatch();
            if dispatch.memory_look.is_none() {
                return;
            }
            dispatch.busy()
        };
        let mut next: Option<Duration> = None;
        for slot in busy {
            let Some(worker) = &mut self.workers[slot] else { continue };
            let pid = worker.process.id();
            let Some(watch) = &mut worker.hold.watch else { continue };
            if watch.found.is_some() {
                continue;
            }
            let filled = tree::resident(pid).saturating_sub(watch.from);
            match next_look(filled, watch.limit) {
                Some(after) => next = Some(next.map_or(after, |next| next.min(after))),
                None => {
                    watch.found = Some(filled);
                    self.events.push(Event::Faulty(slot));
                }
            }
        }
        if let Some(next) = next {
            // Not at each turn of the loop, of which there are many while jobs are short.
            self.memory_look_at = now.saturating_add(nanoseconds(next / 2));
            let mut dispatch = inner.dispatch();
            dispatch.memory_look = Some(next);
            dispatch.look_no_later_than(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn looks_come_as_far_apart_as_the_rest_can_be_filled() {
        let ms = Duration::from_millis;
        assert_eq!(next_look(0, 128 * MIB), Some(Duration::from_micros(62_500)));
        assert_eq!(next_look(64 * MIB, 128 * MIB), Some(Duration::from_micros(31_250)));
        assert_eq!(next_look(127 * MIB, 128 * MIB), Some(ms(5)));
        assert_eq!(next_look(0, u64::MAX), Some(ms(100)));
        assert_eq!(next_look(129 * MIB, 128 * MIB), None);
    }

    #[test]
    fn what_is_resident_is_that_of_a_process_and_of_all_below_it() {
        let before = tree::resident(std::process::id());
        assert!(before > 0);
        let filled = std::hint::black_box(vec![1_u8; 32 * MIB as usize]);
        assert!(tree::resident(std::process::id()) >= before + 24 * MIB);
        drop(filled);
        assert_eq!(tree::resident(u32::MAX), 0, "there is no such process");
    }
}
