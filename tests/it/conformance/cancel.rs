//! Sections C and D: cancelling and aborting, and the race with the job's own end.

use std::sync::mpsc;
use std::thread;

use procpool::{JobError, ProcessPool, Shutdown, ThreadPool, Until, as_completed, wait};

use super::jobs::{Marks, double, hang, mark, wait_at};
use super::{Pool, hold, on_a_daemon, on_both_pools};
use crate::support::{Meeting, meet, test};

/// Goal: cancelling answers true as often as it is asked, and its callback runs once.
///
/// Covers: 19, 21
fn a_cancel_can_be_repeated<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (_held, _guest) = hold(&pool, &meeting);
    let future = pool.submit(double, 1);
    let (word, said) = mpsc::channel();
    future.on_done(move |done| word.send(done.error).unwrap());
    for _ in 0..3 {
        assert!(future.cancel());
        assert!(future.is_cancelled() && future.is_done());
    }
    assert!(matches!(said.recv().unwrap(), Some(JobError::Cancelled { started: false })));
    assert!(said.recv().is_err(), "the callback ran once and is gone");
}

/// Goal: a job that runs or has ended is not cancelled, and nothing changes.
///
/// Covers: 20, 22
fn a_started_job_is_not_cancelled<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    assert!(!held.cancel());
    assert!(held.is_running() && !held.is_cancelled());
    guest.go();
    held.wait();
    assert!(!held.cancel() && !held.is_cancelled());
    assert_eq!(held.result().unwrap(), "held");
}

/// Goal: "cancelled" means that the job never runs, wherever it was waiting: jobs that were handed to a
/// worker can be cancelled too.
/// Method: many jobs behind a held worker, all of them cancelled but one in ten.
///
/// Covers: 23, 24, 27
fn a_cancelled_job_never_runs<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let marks = Marks::new();
    let (_held, guest) = hold(&pool, &meeting);
    let futures: Vec<_> = (0..200).map(|n| pool.submit(mark, marks.line(n))).collect();
    let mut expected = Vec::new();
    for (n, future) in futures.iter().enumerate() {
        assert!(!future.is_running());
        if n % 10 == 7 {
            expected.push(n.to_string());
        } else {
            assert!(future.cancel());
        }
    }
    guest.go();
    pool.shutdown(Shutdown::Drain);
    assert_eq!(marks.lines(), expected);
    for (n, future) in futures.into_iter().enumerate() {
        assert_eq!(future.result().is_ok(), n % 10 == 7);
    }
}

/// Goal: a cancel wakes those that wait for several jobs.
///
/// Covers: 27
fn a_cancel_wakes_those_who_wait_for_many<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (_held, _guest) = hold(&pool, &meeting);
    let futures: Vec<_> = (0..3).map(|n| pool.submit(double, n)).collect();
    let ids: Vec<_> = futures.iter().map(|future| future.id()).collect();
    let (first, rest) = {
        let mut futures = futures.into_iter();
        (futures.next().unwrap(), futures.collect::<Vec<_>>())
    };
    assert!(rest.iter().all(|future| future.cancel()));
    // The waiting thread may see the cancels before or after it waits; both must end it.
    let waiter = thread::spawn(move || wait(rest, Until::AllDone, None).done);
    let done = waiter.join().unwrap();
    assert_eq!(done.len(), 2);
    assert!(first.cancel());
    let completed: Vec<_> = as_completed([first]).map(|future| future.id()).collect();
    assert_eq!(completed, ids[..1]);
}

/// Goal: cancel and the job's end race, and whoever wins, the answer is the truth.
///
/// Covers: 31, 110
fn a_cancel_that_races_with_the_job_tells_the_truth<P: Pool>() {
    let pool = P::of(2);
    let marks = Marks::new();
    let mut ran = 0;
    for n in 0..300 {
        let future = pool.submit(mark, marks.line(n));
        for _ in 0..n % 7 {
            std::hint::spin_loop();
        }
        if n % 3 == 0 {
            thread::yield_now();
        }
        let cancelled = future.cancel();
        match future.result() {
            Ok(()) => {
                assert!(!cancelled);
                ran += 1;
            }
            Err(JobError::Cancelled { started: false }) => assert!(cancelled),
            Err(error) => panic!("{error}"),
        }
    }
    pool.submit(double, 1).cancel();
    pool.shutdown(Shutdown::Drain);
    assert_eq!(marks.lines().len(), ran);
}

/// Goal: `abort` of a job that has not started is a cancel.
fn an_abort_before_the_start_is_a_cancel<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let marks = Marks::new();
    let (_held, guest) = hold(&pool, &meeting);
    let future = pool.submit(mark, marks.line("ran"));
    future.abort();
    assert!(future.is_cancelled());
    assert!(matches!(future.result(), Err(JobError::Cancelled { started: false })));
    guest.go();
    pool.shutdown(Shutdown::Drain);
    assert!(marks.lines().is_empty());
}

/// Goal: aborting a job that has ended changes nothing.
fn an_abort_after_the_end_changes_nothing<P: Pool>() {
    let pool = P::of(1);
    let future = pool.submit(double, 2);
    future.wait();
    future.abort();
    assert!(!future.is_cancelled());
    assert_eq!(future.result().unwrap(), 4);
    assert_eq!(pool.submit(double, 3).result().unwrap(), 6);
}

fn meet_and_hang(meeting: String) -> u64 {
    meet(&meeting, "started");
    hang(0)
}

fn until_cancelled(meeting: String) -> u64 {
    let context = procpool::context().unwrap();
    meet(&meeting, "started");
    while !context.is_cancelled() {
        thread::yield_now();
    }
    7
}

/// Goal: a job that runs is stopped although it never looks up; the jobs sent after it to the same worker
/// run as if nothing had happened.
///
/// Covers: 25, Y2
#[test]
fn an_abort_stops_a_job_that_hangs() {
    test(|| {
        let pool = ProcessPool::of(1);
        let meeting = Meeting::new();
        let future = pool.submit(meet_and_hang, meeting.path());
        let _guest = meeting.next();
        let behind: Vec<_> = (0..20).map(|n| pool.submit(double, n)).collect();
        let (word, said) = mpsc::channel();
        future.on_done(move |done| word.send(done.error).unwrap());
        drop(_guest);
        future.abort();
        let outcome = future.outcome();
        assert!(matches!(outcome.result, Err(JobError::Cancelled { started: true })));
        assert_eq!(outcome.report.attempts, 1);
        assert!(matches!(said.recv().unwrap(), Some(JobError::Cancelled { started: true })));
        for (n, future) in behind.into_iter().enumerate() {
            let outcome = future.outcome();
            assert_eq!(outcome.result.unwrap(), n as u64 * 2);
            assert_eq!(outcome.report.attempts, 1);
        }
    });
}

/// Goal: a job that looks at its flag can end itself, and its worker lives on.
#[test]
fn an_aborted_job_that_looks_up_keeps_its_worker() {
    test(|| {
        let pool = ProcessPool::of(1);
        let meeting = Meeting::new();
        let future = pool.submit(until_cancelled, meeting.path());
        meeting.next().go();
        future.abort();
        assert!(matches!(future.result(), Err(JobError::Cancelled { started: true })));
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
        let stats = pool.stats();
        assert_eq!((stats.spawned, stats.deaths, stats.cancelled), (1, 0, 1));
    });
}

/// Goal: on threads an abort ends the future and raises the flag; the thread goes on until it looks.
///
/// Covers: 25
#[test]
fn an_abort_on_threads_raises_the_flag() {
    test(|| {
        let pool = ThreadPool::of(1);
        let meeting = Meeting::new();
        let future = pool.submit(until_cancelled, meeting.path());
        meeting.next().go();
        future.abort();
        assert!(future.is_cancelled() && !future.is_running());
        assert!(matches!(future.result(), Err(JobError::Cancelled { started: true })));
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
    });
}

/// Goal: an abort never hits the next job of the worker.
/// Method: each job is aborted about when it ends by itself.
#[test]
fn an_abort_that_comes_too_late_hits_nobody() {
    test(|| {
        let pool = ProcessPool::of(1);
        for n in 0..100 {
            let meeting = Meeting::new();
            let first = pool.submit(wait_at, (meeting.path(), "first".into()));
            let second = pool.submit(double, n);
            meeting.next().go();
            for _ in 0..n {
                std::hint::spin_loop();
            }
            first.abort();
            let outcome = second.outcome();
            assert_eq!(outcome.result.unwrap(), n * 2);
            assert_eq!(outcome.report.attempts, 1);
            match first.result() {
                Ok(word) => assert_eq!(word, "first"),
                Err(JobError::Cancelled { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
}

on_both_pools![
    a_cancel_can_be_repeated,
    a_started_job_is_not_cancelled,
    a_cancelled_job_never_runs,
    a_cancel_wakes_those_who_wait_for_many,
    a_cancel_that_races_with_the_job_tells_the_truth,
    an_abort_before_the_start_is_a_cancel,
    an_abort_after_the_end_changes_nothing,
];

on_a_daemon![
    a_cancel_can_be_repeated,
    a_started_job_is_not_cancelled,
    a_cancelled_job_never_runs,
    a_cancel_wakes_those_who_wait_for_many,
    a_cancel_that_races_with_the_job_tells_the_truth,
    an_abort_before_the_start_is_a_cancel,
    an_abort_after_the_end_changes_nothing,
];
