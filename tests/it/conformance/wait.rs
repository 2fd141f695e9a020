//! Section F: waiting for several jobs.

use std::thread;
use std::time::Duration;

use procpool::{ProcessPool, ThreadPool, Until, wait};

use super::jobs::{double, fail, wait_and_double, wait_and_fail};
use super::{Pool, hold, on_a_daemon, on_both_pools};
use crate::support::{Meeting, test};

/// Goal: waiting for all returns when each has ended, whatever the outcome; the result is a partition in
/// the order given.
///
/// Covers: 42, 52
fn waiting_for_all_takes_every_outcome<P: Pool>() {
    let pool = P::of(2);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let done = pool.submit(double, 1);
    done.wait();
    let live = pool.submit(wait_and_double, (meeting.path(), 2));
    let other = meeting.next();
    let failing = pool.submit(fail, 3);
    let cancelled = pool.submit(double, 4);
    assert!(cancelled.cancel());
    let futures = [done, live, failing, cancelled];
    let ids = futures.each_ref().map(|future| future.id());
    let waiter = thread::spawn(move || wait(futures, Until::AllDone, None));
    other.go();
    let waited = waiter.join().unwrap();
    assert!(waited.pending.is_empty());
    let done: Vec<_> = waited.done.iter().map(|future| future.id()).collect();
    assert_eq!(done, ids);
    assert!(held.is_running());
    guest.go();
}

/// Goal: waiting for the first returns when one ends, with the others pending and untouched.
///
/// Covers: 44, 52
fn waiting_for_the_first_leaves_the_rest<P: Pool>() {
    let pool = P::of(2);
    let meeting = Meeting::new();
    let (_held, _guest) = hold(&pool, &meeting);
    let first = pool.submit(wait_and_double, (meeting.path(), 1));
    let guest = meeting.next();
    let second = pool.submit(wait_and_double, (meeting.path(), 2));
    let ids = (first.id(), second.id());
    let waiter = thread::spawn(move || wait([second, first], Until::FirstDone, None));
    guest.go();
    let mut waited = waiter.join().unwrap();
    assert_eq!((waited.done.len(), waited.pending.len()), (1, 1));
    assert_eq!((waited.done[0].id(), waited.pending[0].id()), ids);
    let rest = waited.pending.pop().unwrap();
    assert!(!rest.is_done());
    meeting.next().go();
    assert_eq!(rest.result().unwrap(), 4);
}

/// Goal: when some have ended already, waiting for the first returns at once with all of those. Cancelled
/// is done.
///
/// Covers: 45, 46
fn waiting_for_the_first_takes_all_that_have_ended<P: Pool>() {
    let pool = P::of(1);
    let (one, two) = (pool.submit(double, 1), pool.submit(double, 2));
    one.wait();
    two.wait();
    let meeting = Meeting::new();
    let (_held, _guest) = hold(&pool, &meeting);
    let (cancelled, pending) = (pool.submit(double, 3), pool.submit(double, 4));
    assert!(cancelled.cancel());
    let ids = [&one, &cancelled, &two].map(|future| future.id());
    let waited = wait([pending, one, cancelled, two], Until::FirstDone, None);
    let done: Vec<_> = waited.done.iter().map(|future| future.id()).collect();
    assert_eq!(done, ids);
    assert_eq!(waited.pending.len(), 1);
    // A cancelled one alone is enough as well.
    let another = pool.submit(double, 5);
    assert!(another.cancel());
    assert_eq!(wait([another], Until::FirstDone, None).done.len(), 1);
}

/// Goal: waiting for the first error returns when a job fails, not when one succeeds or is cancelled.
///
/// Covers: 47, 48
fn waiting_for_the_first_error_ignores_values_and_cancels<P: Pool>() {
    let pool = P::of(2);
    let meeting = Meeting::new();
    let good = pool.submit(wait_and_double, (meeting.path(), 1));
    let good_guest = meeting.next();
    let bad = pool.submit(wait_and_fail, (meeting.path(), 2));
    let bad_guest = meeting.next();
    let (cancelled, pending) = (pool.submit(double, 3), pool.submit(double, 4));
    assert!(cancelled.cancel());
    let waited = wait([good, bad, cancelled, pending], Until::FirstError, Some(Duration::ZERO));
    assert_eq!((waited.done.len(), waited.pending.len()), (1, 3));
    let mut futures = waited.pending;
    good_guest.go();
    futures[0].wait();
    // The worker that became free takes the last one: hold it there no longer than needed.
    futures[2].wait();
    let waiter = thread::spawn(move || wait(futures, Until::FirstError, None));
    bad_guest.go();
    futures = waiter.join().unwrap().done;
    assert_eq!(futures.len(), 3);
    assert!(futures.remove(1).result().is_err());
}

/// Goal: when a job has failed already, waiting for an error returns at once.
///
/// Covers: 49
fn waiting_for_an_error_that_is_there_returns_at_once<P: Pool>() {
    let pool = P::of(1);
    let bad = pool.submit(fail, 1);
    bad.wait();
    let meeting = Meeting::new();
    let (_held, _guest) = hold(&pool, &meeting);
    let waited = wait([pool.submit(double, 1), bad], Until::FirstError, None);
    assert_eq!((waited.done.len(), waited.pending.len()), (1, 1));
}

/// Goal: without an error, waiting for the first error waits for all.
///
/// Covers: 50
fn waiting_for_an_error_that_never_comes_waits_for_all<P: Pool>() {
    let pool = P::of(2);
    let futures: Vec<_> = (0..20).map(|n| pool.submit(double, n)).collect();
    futures[7].cancel();
    let waited = wait(futures, Until::FirstError, None);
    assert_eq!((waited.done.len(), waited.pending.len()), (20, 0));
}

/// Goal: a timeout gives the partition so far.
///
/// Covers: 51, 52
fn a_timeout_gives_the_partition_so_far<P: Pool>() {
    let pool = P::of(2);
    let meeting = Meeting::new();
    let (held, _guest) = hold(&pool, &meeting);
    let done = pool.submit(wait_and_double, (meeting.path(), 1));
    meeting.next().go();
    done.wait();
    let pending = pool.submit(wait_and_double, (meeting.path(), 1));
    let _other = meeting.next();
    for until in [Until::AllDone, Until::FirstError] {
        let fresh = pool.submit(double, 1);
        let waited = wait([fresh], until, Some(Duration::from_millis(3)));
        assert_eq!((waited.done.len(), waited.pending.len()), (0, 1));
        assert!(waited.pending[0].cancel());
    }
    let waited = wait([pending, done], Until::AllDone, Some(Duration::from_millis(3)));
    assert_eq!((waited.done.len(), waited.pending.len()), (1, 1));
    assert!(waited.pending[0].is_running() && held.is_running());
}

/// Goal: no wake-up is lost when jobs end while a thread begins to wait for them.
///
/// Covers: 53
fn jobs_that_end_meanwhile_are_seen<P: Pool>() {
    let pool = P::of(2);
    for round in 0..10 {
        let futures: Vec<_> = (0..100).map(|n| pool.submit(double, n)).collect();
        let until = if round % 2 == 0 { Until::AllDone } else { Until::FirstError };
        assert_eq!(wait(futures, until, None).done.len(), 100);
    }
}

/// Goal: nothing to wait for is done at once.
///
/// Covers: 55
#[test]
fn nothing_is_done_at_once() {
    for until in [Until::AllDone, Until::FirstDone, Until::FirstError] {
        let waited = wait(Vec::<procpool::JobFuture<()>>::new(), until, None);
        assert!(waited.done.is_empty() && waited.pending.is_empty());
    }
}

/// Goal: jobs of different executors are waited for together.
///
/// Covers: 54
#[test]
fn futures_of_different_pools_mix() {
    test(|| {
        let (processes, threads) = (ProcessPool::of(1), ThreadPool::of(1));
        let captured = 3;
        let futures = vec![
            processes.submit(double, 1),
            threads.submit(double, 2),
            threads.spawn(move || captured * 2),
        ];
        let waited = wait(futures, Until::AllDone, None);
        let values: Vec<_> =
            waited.done.into_iter().map(|future| future.result().unwrap()).collect();
        assert_eq!(values, [2, 4, 6]);
        let futures = vec![processes.submit(double, 1), threads.submit(double, 2)];
        assert_eq!(procpool::as_completed(futures).count(), 2);
    });
}

on_both_pools![
    waiting_for_all_takes_every_outcome,
    waiting_for_the_first_leaves_the_rest,
    waiting_for_the_first_takes_all_that_have_ended,
    waiting_for_the_first_error_ignores_values_and_cancels,
    waiting_for_an_error_that_is_there_returns_at_once,
    waiting_for_an_error_that_never_comes_waits_for_all,
    a_timeout_gives_the_partition_so_far,
    jobs_that_end_meanwhile_are_seen,
];

on_a_daemon![
    waiting_for_all_takes_every_outcome,
    waiting_for_the_first_leaves_the_rest,
    waiting_for_the_first_takes_all_that_have_ended,
    waiting_for_the_first_error_ignores_values_and_cancels,
    waiting_for_an_error_that_is_there_returns_at_once,
    waiting_for_an_error_that_never_comes_waits_for_all,
    a_timeout_gives_the_partition_so_far,
    jobs_that_end_meanwhile_are_seen,
];
