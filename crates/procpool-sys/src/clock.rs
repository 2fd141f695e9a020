//! The clocks, as plain numbers that mean the same in every process of this machine.

use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes share (clock_gettime(2)).
#[inline]
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// CPU time of this process, all threads, in nanoseconds.
pub fn process_cpu_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

/// Peak resident set of this process, in bytes (getrusage(2) counts KiB on Linux).
pub fn peak_rss() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss() as u64 * 1024)
}

#[inline]
fn nanoseconds(clock: ClockId) -> u64 {
    // These clocks exist on every Linux that has pidfds, so the call has no way to fail.
    clock_gettime(clock)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
