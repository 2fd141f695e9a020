//! Section G: futures as they complete.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use procpool::{ThreadPool, as_completed};

use super::jobs::{double, fail, wait_and_double};
use super::{Pool, hold, on_a_daemon, on_both_pools};
use crate::support::{Meeting, test};

/// Goal: every future comes exactly once, whatever the outcome, from any iterable.
///
/// Covers: 57, 61
fn each_comes_exactly_once<P: Pool>() {
    let pool = P::of(2);
    let meeting = Meeting::new();
    let (_held, guest) = hold(&pool, &meeting);
    let (_other, other_guest) = hold(&pool, &meeting);
    let cancelled = pool.submit(double, 100);
    assert!(cancelled.cancel());
    other_guest.go();
    let mut futures = vec![cancelled];
    futures.extend((0..50).map(|n| pool.submit(if n % 5 == 0 { fail } else { double }, n)));
    let ids: BTreeSet<_> = futures.iter().map(|future| future.id()).collect();
    let mut seen = BTreeSet::new();
    let (mut good, mut bad) = (0, 0);
    for future in as_completed(futures.into_iter().rev()) {
        assert!(future.is_done());
        assert!(seen.insert(future.id()));
        if future.result().is_ok() {
            good += 1;
        } else {
            bad += 1;
        }
    }
    assert_eq!(seen, ids);
    assert_eq!((good, bad), (40, 11));
    guest.go();
    assert_eq!(as_completed(Vec::<procpool::JobFuture<u8>>::new()).count(), 0);
}

/// Goal: those that have ended come first, even when the time is over; then the iteration ends, and what
/// is left can be had back, unharmed.
///
/// Covers: 58, 59, 60, 64
fn past_the_timeout_what_has_ended_still_comes<P: Pool>() {
    let pool = P::of(1);
    let done: Vec<_> = (0..3).map(|n| pool.submit(double, n)).collect();
    done.iter().for_each(|future| future.wait());
    let meeting = Meeting::new();
    let held = pool.submit(wait_and_double, (meeting.path(), 9));
    let guest = meeting.next();
    let behind = pool.submit(double, 10);
    let left = [held.id(), behind.id()];
    let mut futures = vec![held];
    futures.extend(done);
    futures.push(behind);
    let mut completed = as_completed(futures).timeout(Duration::ZERO);
    for n in 0..3 {
        assert_eq!(completed.next().unwrap().result().unwrap(), n * 2);
    }
    assert!(completed.next().is_none());
    assert!(completed.next().is_none());
    let pending = completed.into_pending();
    assert_eq!(pending.iter().map(|f| f.id()).collect::<Vec<_>>(), left);
    assert!(pending[0].is_running() && !pending[1].is_done());
    guest.go();
    let values: Vec<_> = pending.into_iter().map(|f| f.result().unwrap()).collect();
    assert_eq!(values, [18, 20]);
}

/// Goal: the timeout is for the whole iteration, from the call that sets it.
///
/// Covers: 59, 65
fn the_timeout_counts_from_the_call_that_sets_it<P: Pool>() {
    const LIMIT: Duration = Duration::from_millis(200);
    let pool = P::of(1);
    let meeting = Meeting::new();
    let held = pool.submit(wait_and_double, (meeting.path(), 1));
    let _guest = meeting.next();
    let mut futures = vec![held];
    // A clock that starts at `next` makes each try take all of the limit; a busy machine only some of them.
    let prompt = (0..5).any(|_| {
        let set = Instant::now();
        let mut completed = as_completed(std::mem::take(&mut futures)).timeout(LIMIT);
        thread::sleep(LIMIT);
        let asked = Instant::now();
        assert!(completed.next().is_none());
        assert!(set.elapsed() >= LIMIT);
        futures = completed.into_pending();
        asked.elapsed() < LIMIT
    });
    assert!(prompt, "the clock started late");
}

/// Goal: after those that had ended, futures come in the order in which their jobs end.
///
/// Covers: 63
fn they_come_in_the_order_of_completion<P: Pool>() {
    let pool = P::of(3);
    let meetings: Vec<_> = (0..3).map(|_| Meeting::new()).collect();
    let (mut futures, mut guests) = (Vec::new(), Vec::new());
    for (n, meeting) in meetings.iter().enumerate() {
        futures.push(pool.submit(wait_and_double, (meeting.path(), n as u64)));
        guests.push(Some(meeting.next()));
    }
    let mut completed = as_completed(futures);
    for n in [2, 0, 1] {
        guests[n].take().unwrap().go();
        assert_eq!(completed.next().unwrap().result().unwrap(), n as u64 * 2);
    }
    assert!(completed.next().is_none());
}

/// Goal: dropping the iterator early cancels nothing, and the jobs end without it.
///
/// Covers: 64
fn dropping_it_cancels_nothing<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let marks = super::jobs::Marks::new();
    let futures: Vec<_> = (0..3).map(|n| pool.submit(super::jobs::mark, marks.line(n))).collect();
    drop(as_completed(futures).timeout(Duration::ZERO));
    guest.go();
    held.wait();
    pool.shutdown(procpool::Shutdown::Drain);
    assert_eq!(marks.lines(), ["0", "1", "2"]);
}

/// Goal: the iterator keeps nothing of a future that it has yielded.
///
/// Covers: 62
#[test]
fn a_yielded_future_is_let_go() {
    test(|| {
        let pool = ThreadPool::of(1);
        let value = Arc::new(());
        let weak = Arc::downgrade(&value);
        let meeting = Meeting::new();
        let path = meeting.path();
        let first = pool.spawn(move || value);
        let second = pool.spawn(move || {
            crate::support::meet(&path, "second");
            Arc::new(())
        });
        let mut completed = as_completed([first, second]);
        drop(completed.next().unwrap().result().unwrap());
        assert!(weak.upgrade().is_none());
        meeting.next().go();
        assert_eq!(completed.count(), 1);
    });
}

on_both_pools![
    each_comes_exactly_once,
    past_the_timeout_what_has_ended_still_comes,
    the_timeout_counts_from_the_call_that_sets_it,
    they_come_in_the_order_of_completion,
    dropping_it_cancels_nothing,
];

on_a_daemon![
    each_comes_exactly_once,
    past_the_timeout_what_has_ended_still_comes,
    the_timeout_counts_from_the_call_that_sets_it,
    they_come_in_the_order_of_completion,
    dropping_it_cancels_nothing,
];
