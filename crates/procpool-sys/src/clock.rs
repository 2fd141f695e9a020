//! The clocks, as plain numbers that mean the same in every process of this machine.

mod counter;

use std::fs;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, gettid};

pub use counter::{Counter, counter_is_steady};

const SECOND: u64 = 1_000_000_000;
/// What Linux tells user space on every architecture that has pidfds (USER_HZ, time(7)).
const TICKS_PER_SECOND: u64 = 100;

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes share (clock_gettime(2)).
#[inline]
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// CPU time of this process, all threads, in nanoseconds.
pub fn process_cpu_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

/// CPU time of this process, all threads, and of the children that it has waited for, in nanoseconds.
pub fn tree_cpu_ns() -> u64 {
    let nanoseconds_of =
        |time: TimeVal| time.tv_sec() as u64 * SECOND + time.tv_usec() as u64 * 1000;
    let children = getrusage(UsageWho::RUSAGE_CHILDREN)
        .map_or(0, |usage| nanoseconds_of(usage.user_time()) + nanoseconds_of(usage.system_time()));
    process_cpu_ns() + children
}

/// CPU time of another process of this machine, all threads, in nanoseconds; `None` if it does not exist.
pub fn process_cpu_ns_of(pid: u32) -> Option<u64> {
    time_of(clock_getcpuclockid(Pid::from_raw(pid as i32)).ok()?)
}

/// As [`tree_cpu_ns`], of another process of this machine; `None` if it does not exist. Never more than
/// that, and at most two clock ticks (20 ms) less: of waited-for children the kernel tells others in whole
/// ticks only, user and system time apart (proc_pid_stat(5)).
pub fn tree_cpu_ns_of(pid: u32) -> Option<u64> {
    let own = process_cpu_ns_of(pid)?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    Some(own + children_cpu_ticks(&stat).unwrap_or(0) * (SECOND / TICKS_PER_SECOND))
}

/// The fields `cutime` and `cstime`, numbers 16 and 17, of which the second, the name, can hold anything.
fn children_cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(13);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// CPU time of the calling thread, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// The calling thread, as [`thread_cpu_ns_of`] wants it.
pub fn thread_id() -> i32 {
    gettid().as_raw()
}

/// CPU time of another thread of this process, in nanoseconds; `None` if it has ended.
pub fn thread_cpu_ns_of(thread: i32) -> Option<u64> {
    // How the kernel numbers the CPU clock of a thread (linux/posix-timers_types.h: CPUCLOCK_SCHED, with
    // CPUCLOCK_PERTHREAD_MASK).
    time_of(ClockId::from_raw(!thread << 3 | 4 | 2))
}

/// Peak resident set of this process, in bytes (getrusage(2) counts KiB on Linux).
pub fn peak_rss() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss() as u64 * 1024)
}

fn time_of(clock: ClockId) -> Option<u64> {
    let time = clock_gettime(clock).ok()?;
    Some(time.tv_sec() as u64 * SECOND + time.tv_nsec() as u64)
}

#[inline]
fn nanoseconds(clock: ClockId) -> u64 {
    // These clocks exist on every Linux that has pidfds, so the call has no way to fail.
    clock_gettime(clock)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_see_the_cpu_time_that_we_see() {
        let seen = tree_cpu_ns_of(std::process::id()).unwrap();
        let own = tree_cpu_ns();
        assert!(seen <= own, "{seen} was seen before {own}");
        assert!(tree_cpu_ns_of(std::process::id()).unwrap() + 2 * SECOND / TICKS_PER_SECOND >= own);
        // The kernel's own bound (PID_MAX_LIMIT): no process has this id.
        assert_eq!(tree_cpu_ns_of(4 << 20), None);
    }

    #[test]
    fn a_thread_has_a_clock_of_its_own() {
        let before = thread_cpu_ns();
        let seen = thread_cpu_ns_of(thread_id()).unwrap();
        assert!((before..=thread_cpu_ns()).contains(&seen));
        let ended = std::thread::spawn(thread_id).join().unwrap();
        // A joined thread can be there for a moment longer.
        while thread_cpu_ns_of(ended).is_some() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_name_in_a_stat_line_confuses_nobody() {
        let line = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 2 3 4 50 60 70 80 20 0 1 0 9";
        assert_eq!(children_cpu_ticks(line), Some(150));
        assert_eq!(children_cpu_ticks(""), None);
    }
}
