//! Time limits of jobs.

use std::thread;
use std::time::Duration;

use procpool::{EndedBy, JobError, Limit, ProcessPool, Timeout};

use super::jobs::{double, hang, wait_and_double};
use super::{Pool, hold};
use crate::support::{Meeting, test};

const LIMIT: Duration = Duration::from_millis(30);

fn timed_out<R: std::fmt::Debug>(result: Result<R, JobError>) -> Timeout {
    match result {
        Err(JobError::TimedOut(timeout)) => timeout,
        other => panic!("{other:?}"),
    }
}

/// Goal: a job that takes too long ends as such, its worker is replaced, and others go on.
///
/// Covers: Y1
#[test]
fn a_job_that_takes_too_long_is_stopped() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).job_timeout(LIMIT).build().unwrap();
        let future = pool.submit(hang, 1);
        let behind: Vec<_> = (0..10).map(|n| pool.submit(double, n)).collect();
        let outcome = future.outcome();
        assert!(outcome.report.ran >= LIMIT && outcome.report.attempts == 1);
        let timeout = timed_out(outcome.result);
        assert_eq!((timeout.limit, timeout.after), (Limit::Job, LIMIT));
        assert_eq!(timeout.ended_by, EndedBy::Term);
        for (n, future) in behind.into_iter().enumerate() {
            assert_eq!(future.result().unwrap(), n as u64 * 2);
        }
    });
}

fn until_asked(_: u64) -> u64 {
    let context = procpool::context().unwrap();
    while !context.is_cancelled() {
        thread::yield_now();
    }
    7
}

/// Goal: a job that sees the flag and returns in time is still too late, but its worker lives on.
#[test]
fn a_job_that_returns_when_asked_keeps_its_worker() {
    test(|| {
        let pool =
            ProcessPool::builder().workers(1).grace(Duration::from_secs(20)).build().unwrap();
        let timeout = timed_out(pool.job(until_asked, 0).timeout(LIMIT).submit().result());
        assert_eq!(timeout.ended_by, EndedBy::Itself);
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
        assert_eq!((pool.stats().spawned, pool.stats().failed), (1, 1));
    });
}

/// Goal: the clock starts when the job does, not when it is submitted.
#[test]
fn the_clock_starts_with_the_job() {
    test(|| {
        let pool = ProcessPool::of(1);
        let meeting = Meeting::new();
        let (_held, guest) = hold(&pool, &meeting);
        // Long beside the microseconds that the job takes, so that only a clock that has run meanwhile
        // would end it.
        let limit = Duration::from_millis(300);
        let waiting = pool.job(double, 4).timeout(limit).submit();
        // Time that passes while the job waits: less of it would make the test weaker.
        thread::sleep(limit + Duration::from_millis(20));
        assert!(!waiting.is_done());
        guest.go();
        let outcome = waiting.outcome();
        assert_eq!(outcome.result.unwrap(), 8);
        assert!(outcome.report.queued >= limit);
    });
}

/// Goal: a job's own limit replaces the pool's, longer or shorter.
#[test]
fn a_jobs_own_limit_replaces_the_pools() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).job_timeout(LIMIT).build().unwrap();
        let meeting = Meeting::new();
        let long = pool
            .job(wait_and_double, (meeting.path(), 2))
            .timeout(Duration::from_secs(3600))
            .submit();
        let guest = meeting.next();
        assert!(!long.wait_timeout(LIMIT * 2));
        guest.go();
        assert_eq!(long.result().unwrap(), 4);
        let short = Duration::from_millis(5);
        let timeout = timed_out(pool.job(hang, 1).timeout(short).submit().result());
        assert_eq!(timeout.after, short);
        assert!(timed_out(pool.submit(hang, 1).result()).after == LIMIT);
        // The longest of all is none.
        let job = pool.job(double, 1).timeout(Duration::MAX);
        assert_eq!(job.submit().result().unwrap(), 2);
    });
}

/// Goal: a retried job's clock starts anew with each attempt.
#[test]
fn every_attempt_has_the_whole_time() {
    fn die_then_hang(_: u64) -> u64 {
        if procpool::context().unwrap().attempt() == 1 {
            super::jobs::bad_write();
        }
        hang(0)
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).retries(1).build().unwrap();
        let outcome = pool.job(die_then_hang, 1).timeout(LIMIT).submit().outcome();
        assert!(outcome.report.ran >= LIMIT);
        timed_out(outcome.result);
        assert_eq!(outcome.report.attempts, 2);
    });
}
