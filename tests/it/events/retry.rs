//! Jobs that killed their worker and are tried again.

use std::fs::OpenOptions;
use std::process;
use std::time::Duration;

use procpool::{JobError, ProcessPool, ProcessPoolBuilder, Shutdown};

use crate::support::{TempDir, test, wait_until};

/// So long that no test sees the end of it.
const FOR_EVER: Duration = Duration::from_secs(3600);

fn abort(_: ()) {
    process::abort();
}

/// Dies the first time, that is as long as the file is missing, which it makes.
fn die_once(file: String) -> u32 {
    if OpenOptions::new().write(true).create_new(true).open(file).is_ok() {
        process::abort();
    }
    procpool::context().unwrap().attempt()
}

fn one_worker() -> ProcessPoolBuilder {
    ProcessPool::builder().workers(1).retries(2)
}

/// A pool in which a job has died and waits, and does so for longer than any test.
fn patient() -> ProcessPool {
    one_worker().retry_backoff(FOR_EVER, FOR_EVER).build().unwrap()
}

/// Waits until the one job has died and counts as queued again.
fn wait_for_the_death(pool: &ProcessPool) {
    wait_until("the job has died", || pool.stats().deaths == 1 && pool.stats().queued == 1);
}

/// Goal: a job that kills every worker is given up after exactly its retries; the thousand beside it, which run
/// while it waits, are not touched.
///
/// Covers: F-36
#[test]
fn one_poison_among_a_thousand_kills_three_workers() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).retries(2).build().unwrap();
        let job = |n: u32| {
            if n == 500 {
                process::abort();
            }
            n
        };
        let futures: Vec<_> = (0..1000).map(|n| pool.submit(job, n)).collect();
        for (n, future) in (0..).zip(futures) {
            let outcome = future.outcome();
            match outcome.result {
                Err(JobError::Quarantined { attempts, .. }) if n == 500 => assert_eq!(attempts, 3),
                result => assert_eq!(result.unwrap(), n),
            }
            assert_eq!(outcome.report.attempts, if n == 500 { 3 } else { 1 });
        }
        assert_eq!((pool.stats().deaths, pool.stats().failed), (3, 1));
        assert_eq!(pool.submit(|n: u32| n, 7).result().unwrap(), 7, "the pool is well");
    });
}

/// Goal: the pause is real: a job that died is not started again before it is over.
/// Method: half of the pause is certain, the rest is jitter. A slow machine only makes it longer.
#[test]
fn a_retry_comes_after_its_pause() {
    test(|| {
        let pause = Duration::from_millis(200);
        let dir = TempDir::new();
        let file = dir.path().join("flag").to_str().unwrap().to_owned();
        let pool = one_worker().retry_backoff(pause, pause).build().unwrap();
        pool.warm_up().unwrap();
        let outcome = pool.submit(die_once, file).outcome();
        assert_eq!((outcome.result.unwrap(), outcome.report.attempts), (2, 2));
        assert!(outcome.report.queued >= pause / 2, "{:?}", outcome.report);
    });
}

/// Goal: while a job waits to be tried again its worker's slot serves others, and the job can be cancelled and
/// aborted like any that waits.
#[test]
fn a_job_that_waits_for_its_retry_can_be_cancelled() {
    test(|| {
        for abort_it in [false, true] {
            let pool = patient();
            let future = pool.submit(abort, ());
            wait_for_the_death(&pool);
            assert_eq!(pool.submit(|n: u32| n, 7).result().unwrap(), 7);
            assert!(!future.is_running() && !future.is_done());
            if abort_it {
                future.abort();
            } else {
                assert!(future.cancel());
            }
            let outcome = future.outcome();
            let cancelled = JobError::Cancelled { started: false };
            assert_eq!(outcome.result.unwrap_err().to_string(), cancelled.to_string());
            assert_eq!(pool.stats().queued, 0);
        }
    });
}

/// Goal: a shutdown that cancels what is pending, or aborts, does not wait for the pause.
/// Method: another job of the same worker ends first. Without a pause the older one would have gone before it, and
/// killed another worker.
#[test]
fn a_shutdown_that_cancels_does_not_wait_for_retries() {
    test(|| {
        for how in [Shutdown::CancelPending, Shutdown::Abort] {
            let pool = patient();
            let future = pool.submit(abort, ());
            wait_until("the job has died", || pool.stats().deaths > 0);
            pool.submit(|()| (), ()).result().unwrap();
            let stats = pool.stats();
            assert_eq!((stats.deaths, stats.queued), (1, 1), "it waits: {stats:?}");
            pool.shutdown(how);
            let outcome = future.outcome();
            assert!(matches!(outcome.result, Err(JobError::Cancelled { started: false })));
            assert_eq!((outcome.report.attempts, pool.stats().deaths), (1, 1), "it has waited");
        }
    });
}

/// Goal: a drain waits for a job that waits: it is accepted, so it is run.
#[test]
fn a_drain_waits_for_retries() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("flag").to_str().unwrap().to_owned();
        let pause = Duration::from_millis(100);
        let pool = one_worker().retry_backoff(pause, pause).build().unwrap();
        let future = pool.submit(die_once, file);
        pool.shutdown(Shutdown::Drain);
        assert!(future.is_done());
        assert_eq!(future.result().unwrap(), 2);
    });
}

/// Goal: a pause that is longer than the longest makes no sense, and `build` says so.
#[test]
fn a_pause_longer_than_the_longest_is_refused() {
    let (first, max) = (Duration::from_secs(2), Duration::from_secs(1));
    let error = ProcessPool::builder().retry_backoff(first, max).build().unwrap_err();
    assert!(error.is_setting() && error.to_string().contains("retry_backoff"), "{error}");
}
