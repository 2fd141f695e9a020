//! Section M: workers that retire.

use std::collections::BTreeMap;
use std::thread;

use procpool::{JobError, ProcessPool, Shutdown};

use super::hold;
use super::jobs::{double, pid};
use crate::support::{Meeting, children, is_alive, test};

fn recycling(workers: usize, jobs: u64) -> ProcessPool {
    ProcessPool::builder().workers(workers).max_jobs_per_worker(jobs).build().unwrap()
}

/// Goal: a worker runs exactly so many jobs, then ends and is reaped, and another takes its place.
///
/// Covers: 135
#[test]
fn a_worker_retires_after_so_many_jobs() {
    test(|| {
        let pool = recycling(1, 3);
        let pids: Vec<_> = (0..9).map(|_| pool.submit(pid, ()).result().unwrap()).collect();
        for group in pids.chunks(3) {
            assert!(group.iter().all(|pid| *pid == group[0]), "{pids:?}");
        }
        assert!(pids[0] != pids[3] && pids[3] != pids[6]);
        assert!(!is_alive(pids[0]) && !is_alive(pids[3]));
        assert!(children().len() <= 2);
        assert_eq!(pool.stats().deaths, 0);
    });
}

/// Goal: the count is exact although jobs are handed over in advance.
///
/// Covers: 135, 137
#[test]
fn a_backlog_keeps_the_count_exact() {
    test(|| {
        for (workers, limit, jobs) in [(1, 2, 6), (2, 2, 8), (2, 5, 50), (1, 1, 5)] {
            let pool = recycling(workers, limit);
            let meeting = Meeting::new();
            let (held, guest) = hold(&pool, &meeting);
            let futures: Vec<_> = (0..jobs).map(|_| pool.submit(pid, ())).collect();
            guest.go();
            let mut served = BTreeMap::new();
            *served.entry(held.outcome().report.pid.unwrap()).or_insert(0) += 1;
            for future in futures {
                *served.entry(future.result().unwrap()).or_insert(0) += 1;
            }
            assert!(served.values().all(|count| *count <= limit), "{served:?}");
            assert_eq!(served.values().sum::<u64>(), jobs + 1);
        }
    });
}

/// Goal: no job at all is an error.
///
/// Covers: 136
#[test]
fn a_worker_for_no_jobs_is_an_error() {
    let error = ProcessPool::builder().max_jobs_per_worker(0).build().unwrap_err();
    assert!(error.is_setting() && error.to_string().starts_with("max_jobs_per_worker(0)"));
}

/// Goal: a worker that has become too large leaves, and no job is lost to it.
///
/// Covers: X11
#[test]
fn a_worker_that_has_grown_retires() {
    fn grow(megabytes: usize) -> u32 {
        std::mem::forget(vec![1u8; megabytes << 20]);
        std::process::id()
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).max_rss_per_worker(100 << 20).build().unwrap();
        let small = pool.submit(grow, 10).result().unwrap();
        assert_eq!(pool.submit(grow, 300).result().unwrap(), small);
        assert_ne!(pool.submit(grow, 0).result().unwrap(), small);
        assert_eq!(pool.stats().deaths, 0);
    });
}

/// Goal: a shutdown while workers retire finishes every job.
///
/// Covers: 138, 139, 140
#[test]
fn a_drain_while_workers_retire_finishes_all() {
    test(|| {
        for (workers, jobs) in [(3, 6), (1, 4), (2, 2)] {
            let pool = recycling(workers, 1);
            let futures: Vec<_> = (0..jobs).map(|n| pool.submit(double, n)).collect();
            thread::scope(|scope| {
                scope.spawn(|| pool.shutdown(Shutdown::Drain));
            });
            for (n, future) in futures.into_iter().enumerate() {
                assert_eq!(future.result().unwrap(), n as u64 * 2);
            }
        }
    });
}

/// Goal: a worker that retires during an abort is not replaced, and nothing hangs.
///
/// Covers: 141
#[test]
fn an_abort_while_workers_retire_replaces_none() {
    test(|| {
        let pool = recycling(2, 1);
        let meeting = Meeting::new();
        let (held, guest) = hold(&pool, &meeting);
        let futures: Vec<_> = (0..20).map(|n| pool.submit(double, n)).collect();
        guest.go();
        pool.shutdown(Shutdown::Abort);
        let spawned = pool.stats().spawned;
        for future in futures.iter() {
            assert!(future.is_done());
        }
        for future in futures {
            assert!(matches!(future.result(), Ok(_) | Err(JobError::Cancelled { .. })));
        }
        assert!(held.is_done());
        assert!(children().is_empty());
        assert_eq!(pool.stats().spawned, spawned);
    });
}

/// Goal: a chunk of a map counts as one job.
///
/// Covers: 143
#[test]
fn a_chunk_counts_as_one_job() {
    test(|| {
        let pool = recycling(1, 2);
        let pids: Vec<_> = pool.map(pid, vec![(); 40]).chunk_size(10).map(Result::unwrap).collect();
        assert!(pids[..20].iter().all(|pid| *pid == pids[0]));
        assert!(pids[20..].iter().all(|pid| *pid == pids[20]));
        assert_ne!(pids[0], pids[20]);
    });
}
