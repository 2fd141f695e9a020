//! Sections A and B: what a future says, and its result.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use procpool::{JobError, JobFuture, Shutdown};

use super::jobs::{double, fail, wait_and_fail, wait_at};
use super::{Pool, hold, on_a_daemon, on_both_pools};
use crate::support::Meeting;

fn state<R>(future: &JobFuture<R>) -> (bool, bool, bool) {
    (future.is_done(), future.is_running(), future.is_cancelled())
}

const PENDING: (bool, bool, bool) = (false, false, false);
const RUNNING: (bool, bool, bool) = (false, true, false);
const FINISHED: (bool, bool, bool) = (true, false, false);
const CANCELLED: (bool, bool, bool) = (true, false, true);

/// Goal: each state of a job is told apart by its future, exactly.
/// Method: a held worker; the job behind it has not started, wherever it waits.
///
/// Covers: 1, 2, 3, 4, 26
fn a_future_tells_its_state<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let behind = pool.submit(double, 4);
    let failing = pool.submit(fail, 4);
    let cancelled = pool.submit(double, 5);
    assert_eq!(state(&held), RUNNING);
    assert_eq!(state(&behind), PENDING);
    assert!(cancelled.cancel());
    assert_eq!(state(&cancelled), CANCELLED);
    guest.go();
    for future in [&behind, &failing] {
        future.wait();
        assert_eq!(state(future), FINISHED);
    }
    assert_eq!(state(&held), FINISHED);
    pool.shutdown(Shutdown::Drain);
    assert_eq!(state(&cancelled), CANCELLED);
}

/// Goal: whoever looks at a future while it changes sees states in their order and never a contradiction.
/// Method: four threads look a thousand times each, while the job starts, runs and ends.
///
/// Covers: 5
fn states_are_seen_in_order_by_every_thread<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (_held, guest) = hold(&pool, &meeting);
    let futures = [pool.submit(double, 1), pool.submit(double, 2)];
    let look = |future: &JobFuture<u64>| {
        let mut was_done = false;
        for _ in 0..1000 {
            let cancelled = future.is_cancelled();
            let done = future.is_done();
            let running = future.is_running();
            assert!(!cancelled || done, "cancelled is done");
            assert!(!done || !running, "done is not running any more");
            assert!(done || !was_done, "done is for good");
            was_done = done;
        }
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| futures.iter().for_each(look));
        }
        assert!(futures[1].cancel());
        guest.go();
    });
}

/// Goal: the debug text of a future says what has become of the job: the type of its value, and its error.
///
/// Covers: 6
fn the_debug_text_shows_the_state<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let cancelled = pool.submit(double, 1);
    cancelled.cancel();
    assert!(format!("{held:?}").contains("pending"), "{held:?}");
    assert!(format!("{cancelled:?}").contains("cancelled"));
    guest.go();
    held.wait();
    assert!(format!("{held:?}").contains("finished"), "{held:?}");
    assert!(format!("{held:?}").contains("alloc::string::String"), "{held:?}");
    let failing = pool.submit(fail, 1);
    failing.wait();
    assert!(format!("{failing:?}").contains("failed"), "{failing:?}");
    let id = failing.id().to_string();
    assert!(format!("{failing:?}").contains(&id), "{failing:?}");
    assert!(format!("{failing:?}").contains("panicked"), "{failing:?}");
}

/// Goal: a timeout says so, changes nothing, and a later wait can succeed. The longest is for ever.
///
/// Covers: 8, 16, 18
fn a_timeout_changes_nothing<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let behind = pool.submit(double, 21);
    for timeout in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(3)] {
        assert!(!held.wait_timeout(timeout));
        assert!(!behind.wait_timeout(timeout));
    }
    assert_eq!(state(&held), RUNNING);
    assert_eq!(state(&behind), PENDING);
    guest.go();
    assert!(behind.wait_timeout(Duration::MAX));
    assert_eq!(behind.result().unwrap(), 42);
    assert_eq!(held.result().unwrap(), "held");
}

/// Goal: a cancelled job's result is there at once, whatever the timeout.
///
/// Covers: 9, 14
fn the_result_of_a_cancelled_job_is_there_at_once<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (_held, _guest) = hold(&pool, &meeting);
    let future = pool.submit(double, 1);
    assert!(future.cancel());
    assert!(future.wait_timeout(Duration::ZERO));
    future.wait();
    let outcome = future.outcome();
    assert!(matches!(outcome.result, Err(JobError::Cancelled { started: false })));
    assert_eq!((outcome.report.attempts, outcome.report.pid), (0, None));
}

/// Goal: a job's value or its error comes back, also once it is long there.
///
/// Covers: 10, 11, 14
fn a_result_is_the_value_or_the_error<P: Pool>() {
    let pool = P::of(2);
    let good = pool.submit(double, 3);
    let bad = pool.submit(fail, 3);
    good.wait();
    bad.wait();
    assert!(good.wait_timeout(Duration::ZERO) && bad.wait_timeout(Duration::ZERO));
    let outcome = good.outcome();
    assert_eq!(outcome.result.unwrap(), 6);
    assert_eq!(outcome.report.attempts, 1);
    let Err(JobError::Panicked(panic)) = bad.result() else { panic!("the job panicked") };
    assert_eq!(panic.message, "no 3");
}

/// Goal: threads that wait wake up when the job ends: by a value, by an error, by a cancel.
///
/// Covers: 12, 13, 15, 19
fn waiting_threads_wake_when_the_job_ends<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let cancelled = pool.submit(double, 1);
    let failing = pool.submit(wait_and_fail, (meeting.path(), 1));
    thread::scope(|scope| {
        let waiters = [
            scope.spawn(|| cancelled.wait()),
            scope.spawn(|| assert!(cancelled.wait_timeout(Duration::MAX))),
        ];
        let (word, said) = mpsc::channel();
        scope.spawn(move || word.send(held.result()).unwrap());
        assert!(cancelled.cancel());
        for waiter in waiters {
            waiter.join().unwrap();
        }
        guest.go();
        assert_eq!(said.recv().unwrap().unwrap(), "held");
        let waiter = scope.spawn(|| failing.wait());
        meeting.next().go();
        waiter.join().unwrap();
    });
    assert!(matches!(failing.result(), Err(JobError::Panicked(_))));
}

/// Goal: any number of threads may wait for one job, and callbacks see its outcome beside the taker.
///
/// Covers: 17
fn many_threads_wait_and_one_takes<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let (word, said) = mpsc::channel();
    for _ in 0..2 {
        let word = word.clone();
        held.on_done(move |done| word.send((done.id, done.error.is_none())).unwrap());
    }
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..4).map(|_| scope.spawn(|| held.wait())).collect();
        guest.go();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
    let id = held.id();
    assert_eq!(said.recv().unwrap(), (id, true));
    assert_eq!(said.recv().unwrap(), (id, true));
    assert_eq!(held.result().unwrap(), "held");
}

/// Goal: ids are unique, in order of submission, and the same wherever they are seen.
fn ids_count_up<P: Pool>() {
    let pool = P::of(1);
    let futures: Vec<_> = (0..10).map(|n| pool.submit(double, n)).collect();
    assert!(futures.is_sorted_by(|a, b| a.id() < b.id()));
    let (word, said) = mpsc::channel();
    futures[3].on_done(move |done| word.send(done.id).unwrap());
    assert_eq!(said.recv().unwrap(), futures[3].id());
}

/// Goal: a future may be dropped, moved to another thread and waited for there.
fn a_future_can_move<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let future = pool.submit(wait_at, (meeting.path(), "moved".into()));
    let taker = thread::spawn(move || future.result());
    meeting.next().go();
    assert_eq!(taker.join().unwrap().unwrap(), "moved");
}

/// Goal: a panic of the taker's does not harm the pool.
fn a_panicking_taker_harms_nobody<P: Pool>() {
    let pool = P::of(1);
    let future = pool.submit(fail, 1);
    let taken = catch_unwind(AssertUnwindSafe(|| future.result().unwrap()));
    assert!(taken.is_err());
    assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
}

on_both_pools![
    a_future_tells_its_state,
    states_are_seen_in_order_by_every_thread,
    the_debug_text_shows_the_state,
    a_timeout_changes_nothing,
    the_result_of_a_cancelled_job_is_there_at_once,
    a_result_is_the_value_or_the_error,
    waiting_threads_wake_when_the_job_ends,
    many_threads_wait_and_one_takes,
    ids_count_up,
    a_future_can_move,
    a_panicking_taker_harms_nobody,
];

on_a_daemon![
    a_future_tells_its_state,
    states_are_seen_in_order_by_every_thread,
    the_debug_text_shows_the_state,
    a_timeout_changes_nothing,
    the_result_of_a_cancelled_job_is_there_at_once,
    a_result_is_the_value_or_the_error,
    waiting_threads_wake_when_the_job_ends,
    many_threads_wait_and_one_takes,
    ids_count_up,
    a_future_can_move,
    a_panicking_taker_harms_nobody,
];
