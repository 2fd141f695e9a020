//! Limits on the CPU time of jobs: how much a running one has left, and when to look again.
//!
//! The worker notes its CPU time as it begins an element of such a job; the supervisor compares that with
//! what the worker has used by now. Its threads count, and children that it has waited for. It looks again
//! no later than the rest can be used up on all CPUs, but not too often: a job that sleeps just before its
//! limit costs a look now and then, and an idle pool none.

use std::sync::OnceLock;
use std::time::Duration;

use procpool_sys::{clock, limits};

/// Looks are this part of the limit apart, or more: a job can use so much more than its limit on each CPU.
const LOOKS_PER_LIMIT: u32 = 100;
/// But never closer than this,
const LOOKS_APART_MIN: Duration = Duration::from_millis(1);
/// and no further than this unless there is that much left.
const LOOKS_APART_MAX: Duration = Duration::from_millis(50);

/// After how long a job with this limit that is starting now can be over it.
pub(super) fn first_look(limit: Duration) -> Duration {
    until_next(limit, limit, cpus())
}

/// After how long to look again at a job that began when its worker, the process `pid`, had used
/// `at_start` of CPU time; `None` if it has used up its limit. A job that has not begun has all of it.
pub(super) fn next_look(at_start: Option<u64>, pid: u32, limit: Duration) -> Option<Duration> {
    let used = match (at_start, clock::tree_cpu_ns_of(pid)) {
        (Some(at_start), Some(now)) => Duration::from_nanos(now.saturating_sub(at_start)),
        // It has not begun, or its process is gone, which is seen elsewhere.
        _ => Duration::ZERO,
    };
    let left = limit.checked_sub(used).filter(|left| !left.is_zero())?;
    Some(until_next(left, limit, cpus()))
}

fn until_next(left: Duration, limit: Duration, cpus: u32) -> Duration {
    let apart = (limit / LOOKS_PER_LIMIT).clamp(LOOKS_APART_MIN, LOOKS_APART_MAX);
    (left / cpus).max(apart)
}

/// All of the machine: a job can give itself more CPUs than its host has.
fn cpus() -> u32 {
    static CPUS: OnceLock<u32> = OnceLock::new();
    *CPUS.get_or_init(|| u32::try_from(limits::online_cpus()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn looks_come_closer_as_the_limit_does_but_not_too_close() {
        assert_eq!(until_next(1000 * MS, 1000 * MS, 4), 250 * MS);
        assert_eq!(until_next(100 * MS, 1000 * MS, 4), 25 * MS);
        assert_eq!(until_next(MS, 1000 * MS, 4), 10 * MS);
        assert_eq!(until_next(MS, 3_600_000 * MS, 4), LOOKS_APART_MAX);
        assert_eq!(until_next(Duration::ZERO, MS, 4), LOOKS_APART_MIN);
    }

    #[test]
    fn what_was_used_is_counted_from_the_start_of_the_job() {
        let pid = std::process::id();
        let used = Duration::from_nanos(clock::tree_cpu_ns());
        assert_eq!(next_look(Some(0), pid, used / 2), None);
        assert!(next_look(Some(clock::tree_cpu_ns()), pid, 1000 * MS).is_some());
        assert_eq!(next_look(None, pid, 1000 * MS), Some(first_look(1000 * MS)));
    }
}
