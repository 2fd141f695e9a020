//! Workers that leave because they have nothing to do.

use std::thread;
use std::time::Duration;

use procpool::ProcessPool;
use serde::{Deserialize, Serialize, Serializer};

use super::jobs::{double, pid};
use crate::support::{children, test, wait_until};

fn impatient(workers: usize, milliseconds: u64) -> ProcessPool {
    let timeout = Duration::from_millis(milliseconds);
    ProcessPool::builder().workers(workers).idle_timeout(timeout).build().unwrap()
}

/// Goal: idle workers leave, and return when there is work again, as often as you like; nothing is left of
/// those that went, and nothing counts as a death.
///
/// Covers: X1
#[test]
fn idle_workers_leave_and_come_back() {
    test(|| {
        let pool = impatient(2, 20);
        let mut pids = Vec::new();
        for round in 1..=5 {
            pool.warm_up().unwrap();
            assert_eq!(pool.stats().spawned, 2 * round);
            pids.push(pool.submit(pid, ()).result().unwrap());
            wait_until("idle workers leave", || children().is_empty() && pool.stats().workers == 0);
        }
        pids.dedup();
        assert_eq!(pids.len(), 5);
        assert_eq!(pool.stats().deaths, 0);
    });
}

/// A number that takes as long to encode as workers take to leave.
#[derive(Deserialize)]
struct Slow(u64);

impl Serialize for Slow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        wait_until("the worker leaves while we encode", || children().is_empty());
        serializer.serialize_u64(self.0)
    }
}

fn double_slow(n: Slow) -> u64 {
    n.0 * 2
}

/// Goal: a job whose argument is being encoded while the last worker leaves is not lost.
///
/// Covers: X2
#[test]
fn a_worker_that_leaves_while_an_argument_is_encoded_loses_nothing() {
    test(|| {
        let pool = impatient(1, 10);
        for n in 0..5 {
            assert_eq!(pool.submit(double, n).result().unwrap(), 2 * n);
            assert_eq!(pool.submit(double_slow, Slow(n)).result().unwrap(), 2 * n);
        }
    });
}

/// Goal: by default idle workers stay.
/// Method: another pool's worker, which does not stay, is the clock.
///
/// Covers: 124
#[test]
fn idle_workers_stay_by_default() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let before = pool.submit(pid, ()).result().unwrap();
        let other = impatient(1, 100);
        other.warm_up().unwrap();
        wait_until("the other pool's worker leaves", || other.stats().workers == 0);
        assert_eq!(pool.submit(pid, ()).result().unwrap(), before);
        assert_eq!(pool.stats().spawned, 1);
    });
}

/// Goal: a worker leaves after its time, not before; a job starts its time anew.
#[test]
fn a_worker_stays_for_its_time() {
    test(|| {
        let pool = impatient(1, 300);
        let first = pool.submit(pid, ()).outcome();
        let begun = std::time::Instant::now();
        // A machine that sleeps longer than this makes the test weaker: then there is nothing to compare.
        thread::sleep(Duration::from_millis(150));
        let resumed = std::time::Instant::now();
        let second = pool.submit(pid, ()).outcome();
        if begun.elapsed() < Duration::from_millis(300) {
            assert_eq!(first.report.pid, second.report.pid);
        }
        wait_until("it leaves", || pool.stats().workers == 0);
        assert!(resumed.elapsed() >= Duration::from_millis(300), "{:?}", resumed.elapsed());
    });
}
