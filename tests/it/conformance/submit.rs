//! Section H: submitting.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use procpool::{Error, JobError, ProcessPool, Rejected, Rejection, Shutdown, ThreadPool};

use super::jobs::{Marks, double, mark};
use super::{Pool, hold, on_a_daemon, on_both_pools};
use crate::support::{Meeting, test};

fn join((a, (b, c)): (String, (Vec<u8>, Option<i64>))) -> String {
    format!("{a} {b:?} {c:?}")
}

/// Goal: a job is a call: its arguments arrive, its value comes back. Any function will do, and a closure
/// that captures nothing.
///
/// Covers: 66
fn a_submit_is_a_call<P: Pool>() {
    let pool = P::of(1);
    let arg = ("a".to_owned(), (vec![1, 2], Some(-3)));
    assert_eq!(pool.submit(join, arg).result().unwrap(), "a [1, 2] Some(-3)");
    assert_eq!(pool.submit(|n: u8| n + 1, 1).result().unwrap(), 2);
    assert_eq!(pool.submit(|()| (), ()).result().unwrap(), ());
    fn local(n: i32) -> Result<i32, String> {
        if n > 0 { Ok(n) } else { Err("not positive".into()) }
    }
    assert_eq!(pool.submit(local, 1).result().unwrap(), Ok(1));
    assert_eq!(pool.submit(local, 0).result().unwrap(), Err("not positive".into()));
    assert_eq!(pool.submit(u64::count_ones, 255).result().unwrap(), 8);
}

/// Goal: after a shutdown a job is refused, in its own outcome, and so is a map's element.
///
/// Covers: 68, 99, F-77
fn after_a_shutdown_jobs_are_refused<P: Pool>() {
    for how in [Shutdown::Drain, Shutdown::CancelPending, Shutdown::Abort] {
        let pool = P::of(1);
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
        pool.shutdown(how);
        let future = pool.submit(double, 1);
        assert!(future.is_done() && !future.is_cancelled() && !future.cancel());
        let outcome = future.outcome();
        assert!(matches!(outcome.result, Err(JobError::Closed)));
        assert_eq!(outcome.report.attempts, 0);
        let results: Vec<_> = pool.map(double, 0..3).collect();
        assert_eq!(results.len(), 3);
        assert!(results.iter().all(|r| matches!(r, Err(JobError::Closed))));
    }
}

/// Goal: submitting never waits for a worker: there is no bound unless one is set.
///
/// Covers: 71
fn submitting_never_blocks<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let futures: Vec<_> = (0..P::many(20_000)).map(|n| pool.submit(double, n)).collect();
    assert!(held.is_running());
    guest.go();
    for (n, future) in futures.into_iter().enumerate() {
        assert_eq!(future.result().unwrap(), n as u64 * 2);
    }
}

/// Goal: dropping a future does not cancel its job.
///
/// Covers: 72, F-65
fn dropping_a_future_cancels_nothing<P: Pool>() {
    let pool = P::of(2);
    let marks = Marks::new();
    for n in 0..20 {
        drop(pool.submit(mark, marks.line(n)));
    }
    pool.shutdown(Shutdown::Drain);
    let mut lines: Vec<u32> = marks.lines().iter().map(|l| l.parse().unwrap()).collect();
    lines.sort_unstable();
    assert_eq!(lines, (0..20).collect::<Vec<_>>());
}

/// Goal: once a job has run, the pool keeps nothing of it: not the closure, not its value.
///
/// Covers: 72, 125
#[test]
fn a_thread_pool_keeps_nothing_of_a_finished_job() {
    test(|| {
        let pool = ThreadPool::of(1);
        let captured = Arc::new(());
        let (argument, value) = (Arc::downgrade(&captured), Arc::new(()));
        let result = Arc::downgrade(&value);
        let future = pool.spawn(move || {
            let _captured = &captured;
            value
        });
        future.wait();
        assert!(argument.upgrade().is_none());
        drop(future);
        // The worker lets go of its handle of the job a moment after the job has ended, and before the next.
        pool.spawn(|| ()).wait();
        assert!(result.upgrade().is_none());
    });
}

fn nested<P: Pool>(depth: u64) -> u64 {
    let pool = P::of(1);
    let inner = pool.submit(double, depth).result().unwrap();
    if depth > 0 { inner + pool.submit(nested::<P>, depth - 1).result().unwrap() } else { inner }
}

/// Goal: a job may use a pool of its own, and so may that pool's jobs.
///
/// Covers: 74, X12, Y9
fn a_job_may_have_a_pool_of_its_own<P: Pool>() {
    let pool = P::of(1);
    assert_eq!(pool.submit(nested::<P>, 2).result().unwrap(), 6);
}

fn always_failing(_: ()) -> Result<(), String> {
    Err("no such model".into())
}

/// Goal: a broken pool refuses jobs as broken, before and after it is shut down; `try_submit` gives the
/// argument back.
///
/// Covers: 70, F-77
#[test]
fn a_broken_pool_refuses_jobs_as_broken() {
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .initializer(always_failing, ())
            .restart_limit(1, Duration::from_secs(60))
            .build()
            .unwrap();
        let is_broken =
            |error: &Error| error.is_start() && error.to_string().contains("no such model");
        let broken =
            |error: &JobError| matches!(error, JobError::Broken(error) if is_broken(error));
        assert!(broken(&pool.submit(double, 1).result().unwrap_err()));
        assert!(broken(&pool.submit(double, 1).result().unwrap_err()));
        pool.shutdown(Shutdown::Drain);
        assert!(broken(&pool.submit(double, 1).result().unwrap_err()));
        let Err(Rejected { arg: 7, reason: Rejection::Broken(error), .. }) =
            pool.try_submit(double, 7)
        else {
            panic!("a broken pool takes no job")
        };
        assert!(is_broken(&error));
        assert!(is_broken(&pool.warm_up().unwrap_err()));
        let element = pool.map(double, [1]).next().unwrap();
        assert!(broken(&element.unwrap_err()));
    });
}

/// Goal: many threads submit to one pool, wait, cancel and drop, and every job has its own outcome.
///
/// Covers: X10, F-77
fn many_threads_share_a_pool<P: Pool>() {
    let pool = P::of(2);
    thread::scope(|scope| {
        for thread in 0..4 {
            let pool = &pool;
            scope.spawn(move || {
                for n in 0..200 {
                    let future = pool.submit(double, thread * 1000 + n);
                    match n % 5 {
                        0 => drop(future),
                        1 => {
                            let cancelled = future.cancel();
                            assert_eq!(cancelled, future.result().is_err());
                        }
                        _ => assert_eq!(future.result().unwrap(), 2 * (thread * 1000 + n)),
                    }
                }
            });
        }
    });
}

/// Goal: submits that race with a shutdown are taken or refused; none is lost, none hangs.
///
/// Covers: X10, F-77
fn submits_race_with_a_shutdown<P: Pool>() {
    for how in [Shutdown::Drain, Shutdown::CancelPending, Shutdown::Abort] {
        let pool = P::of(2);
        thread::scope(|scope| {
            let submitters: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut ended = (0, 0);
                        loop {
                            match pool.submit(double, 1).result() {
                                Ok(2) => ended.0 += 1,
                                Err(JobError::Cancelled { .. }) => ended.1 += 1,
                                Err(JobError::Closed) => return ended,
                                other => panic!("{other:?}"),
                            }
                        }
                    })
                })
                .collect();
            pool.submit(double, 1).wait();
            pool.shutdown(how);
            for submitter in submitters {
                let (_, cancelled) = submitter.join().unwrap();
                assert!(cancelled == 0 || how != Shutdown::Drain);
            }
        });
    }
}

on_both_pools![
    a_submit_is_a_call,
    after_a_shutdown_jobs_are_refused,
    submitting_never_blocks,
    dropping_a_future_cancels_nothing,
    a_job_may_have_a_pool_of_its_own,
    many_threads_share_a_pool,
    submits_race_with_a_shutdown,
];

on_a_daemon![submitting_never_blocks, dropping_a_future_cancels_nothing, many_threads_share_a_pool,];
