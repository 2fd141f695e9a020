//! Workers that have become too large.

use std::mem;
use std::process;

use procpool::ProcessPool;

use crate::support::test;

const MIB: u64 = 1 << 20;

/// Keeps so much memory for good, touched, so that it is resident.
fn leak(bytes: u64) -> u32 {
    mem::forget(vec![1u8; bytes as usize]);
    process::id()
}

/// Goal: a worker that leaks leaves before it is large; every job ends well, and nothing counts as a death.
///
/// Covers: F-28
#[test]
fn a_worker_that_has_grown_leaves() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).max_rss_per_worker(64 * MIB).build().unwrap();
        let pids: Vec<_> = (0..24).map(|_| pool.submit(leak, 10 * MIB).result().unwrap()).collect();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for pid in pids {
            match runs.last_mut() {
                Some((last, count)) if *last == pid => *count += 1,
                _ => runs.push((pid, 1)),
            }
        }
        assert!(runs.len() >= 3, "{runs:?}");
        // Six of them are below the limit, seven are not; what the process itself takes may cost one.
        assert!(runs.iter().all(|(_, jobs)| *jobs <= 7), "{runs:?}");
        assert!(runs[0].1 >= 4, "not before it is large: {runs:?}");
        let stats = pool.stats();
        assert_eq!((stats.deaths, stats.failed), (0, 0), "{stats:?}");
    });
}

/// Goal: jobs that wait behind the one that made the worker too large run elsewhere, all of them.
#[test]
fn a_backlog_survives_its_workers() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).max_rss_per_worker(32 * MIB).build().unwrap();
        let futures: Vec<_> = (0..100).map(|_| pool.submit(leak, 4 * MIB)).collect();
        for future in futures {
            future.result().unwrap();
        }
        let stats = pool.stats();
        assert_eq!((stats.deaths, stats.finished), (0, 100), "{stats:?}");
        assert!(stats.spawned >= 4, "{stats:?}");
    });
}

/// Goal: a worker that is larger from its start does one job after another all the same, each in a process.
#[test]
fn a_limit_below_every_process_makes_progress() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).max_rss_per_worker(1).build().unwrap();
        let pids: Vec<_> = (0..5).map(|_| pool.submit(leak, 0).result().unwrap()).collect();
        assert!(pids.windows(2).all(|pair| pair[0] != pair[1]), "{pids:?}");
    });
}
