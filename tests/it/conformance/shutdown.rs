//! Section J: shutdown, drop, exit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use procpool::{JobError, JobFuture, ProcessPool, Shutdown};

use super::encoding::{RefusesOdd, refuse_result};
use super::jobs::{Marks, Raw, double, fail, mark, pid, segv, wait_and_die, wait_at};
use super::{Pool, hold, on_both_pools};
use crate::support::{Meeting, children, is_alive, meet, test};

const EVERY: [Shutdown; 3] = [Shutdown::Drain, Shutdown::CancelPending, Shutdown::Abort];

/// Goal: a draining shutdown returns when every job has ended, with its value; nothing is left of the
/// workers.
///
/// Covers: 100, 101, 111, Y5
fn draining_finishes_every_job<P: Pool>() {
    let pool = P::of(3);
    let futures: Vec<_> = (0..50).map(|n| pool.submit(double, n)).collect();
    pool.shutdown(Shutdown::Drain);
    assert!(futures.iter().all(JobFuture::is_done));
    assert!(children().is_empty());
    for (n, future) in futures.into_iter().enumerate() {
        assert_eq!(future.result().unwrap(), n as u64 * 2);
    }
}

/// Goal: leaving the scope of a pool drains it.
///
/// Covers: 102, 105, 106, F-64
fn leaving_the_scope_drains<P: Pool>() {
    let marks = Marks::new();
    let future = {
        let pool = P::of(2);
        for n in 0..20 {
            pool.submit(mark, marks.line(n));
        }
        pool.submit(double, 4)
    };
    assert_eq!(marks.lines().len(), 20);
    assert!(future.is_done());
    assert_eq!(future.result().unwrap(), 8);
}

/// Goal: a panic that unwinds through the scope of a pool goes on, and does not wait for jobs.
/// Method: the jobs on processes never return by themselves, those on threads when they are asked.
///
/// Covers: 102, X19
fn a_panic_in_the_scope_goes_on<P: Pool>() {
    let endless = |path: String| {
        let context = procpool::context().unwrap();
        meet(&path, "endless");
        while !context.is_cancelled() {
            thread::yield_now();
        }
    };
    let meeting = Meeting::new();
    let marks = Marks::new();
    let mut behind = None;
    let payload = catch_unwind(AssertUnwindSafe(|| {
        let pool = P::of(1);
        pool.submit(endless, meeting.path());
        meeting.next().go();
        behind = Some(pool.submit(mark, marks.line("ran")));
        panic!("the block's own error");
    }));
    assert_eq!(payload.unwrap_err().downcast_ref::<&str>(), Some(&"the block's own error"));
    assert!(matches!(behind.unwrap().result(), Err(JobError::Cancelled { started: false })));
    assert!(marks.lines().is_empty());
}

/// Goal: a shutdown waits for a job that runs, and other threads may look on.
///
/// Covers: 100, 103
fn a_shutdown_waits_for_the_running_job<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let behind = pool.submit(double, 1);
    thread::scope(|scope| {
        let ender = scope.spawn(|| pool.shutdown(Shutdown::Drain));
        while !pool.submit(double, 1).is_done() {
            thread::yield_now();
        }
        assert!(held.is_running() && !behind.is_done());
        assert!(!ender.is_finished());
        guest.go();
        ender.join().unwrap();
    });
    assert!(held.is_done());
    assert_eq!(behind.result().unwrap(), 2);
}

/// Goal: `CancelPending` cancels what has not started and lets the rest finish; nothing stays pending.
///
/// Covers: 107, 108
fn cancel_pending_finishes_what_has_started<P: Pool>() {
    let pool = P::of(5);
    let meeting = Meeting::new();
    let marks = Marks::new();
    let (held, guests): (Vec<_>, Vec<_>) = (0..5).map(|_| hold(&pool, &meeting)).unzip();
    let waiting: Vec<_> = (0..45).map(|n| pool.submit(mark, marks.line(n))).collect();
    thread::scope(|scope| {
        let ender = scope.spawn(|| pool.shutdown(Shutdown::CancelPending));
        for future in &waiting {
            future.wait();
            assert!(future.is_cancelled());
        }
        guests.into_iter().for_each(|guest| guest.go());
        ender.join().unwrap();
    });
    assert!(marks.lines().is_empty());
    for future in held {
        assert_eq!(future.result().unwrap(), "held");
    }
}

/// Goal: a shutdown may be repeated, of a pool that was used or not, and from several threads: each returns
/// when nothing is left.
///
/// Covers: 109, 166
fn a_shutdown_can_be_repeated<P: Pool>() {
    for how in EVERY {
        let unused = P::of(2);
        unused.shutdown(how);
        unused.shutdown(how);
        let pool = P::of(2);
        let futures: Vec<_> = (0..20).map(|n| pool.submit(double, n)).collect();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    pool.shutdown(how);
                    assert!(futures.iter().all(JobFuture::is_done));
                });
            }
        });
        for other in EVERY {
            pool.shutdown(other);
        }
    }
}

/// Goal: a second shutdown, too, returns only when the running job has returned.
///
/// Covers: 109
fn a_second_shutdown_waits_as_well<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    thread::scope(|scope| {
        let first = scope.spawn(|| pool.shutdown(Shutdown::Drain));
        while !pool.submit(double, 1).is_done() {
            thread::yield_now();
        }
        let second = scope.spawn(|| {
            pool.shutdown(Shutdown::Drain);
            assert!(held.is_done(), "the job still runs");
        });
        // It may not have begun to wait yet; then this test is weaker, never red.
        thread::sleep(Duration::from_millis(20));
        assert!(!second.is_finished());
        guest.go();
        first.join().unwrap();
        second.join().unwrap();
    });
}

/// Goal: a cancel right before the shutdown does not make it hang.
///
/// Covers: 110
fn a_cancel_before_the_shutdown_is_harmless<P: Pool>() {
    for how in EVERY {
        for n in 0..20 {
            let pool = P::of(1);
            let future = pool.submit(double, n);
            if n % 2 == 0 {
                future.cancel();
            }
            pool.shutdown(how);
            assert!(future.is_done());
        }
    }
}

/// Goal: a shutdown right after more jobs than workers can hold does not hang.
///
/// Covers: 111
fn a_shutdown_with_a_full_queue_ends<P: Pool>() {
    for how in EVERY {
        let pool = P::of(2);
        let futures: Vec<_> = (0..2000).map(|n| pool.submit(double, n)).collect();
        pool.shutdown(how);
        for (n, future) in futures.into_iter().enumerate() {
            match future.result() {
                Ok(value) => assert_eq!(value, n as u64 * 2),
                Err(JobError::Cancelled { .. }) => assert_ne!(how, Shutdown::Drain),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Goal: an `Abort` overtakes a `Drain` that is under way.
///
/// Covers: X5, Y5
#[test]
fn an_abort_overtakes_a_drain() {
    test(|| {
        let pool = ProcessPool::of(1);
        let meeting = Meeting::new();
        let (held, _guest) = hold(&pool, &meeting);
        let behind = pool.submit(double, 1);
        thread::scope(|scope| {
            let drain = scope.spawn(|| pool.shutdown(Shutdown::Drain));
            while !pool.submit(double, 1).is_done() {
                thread::yield_now();
            }
            pool.shutdown(Shutdown::Abort);
            drain.join().unwrap();
        });
        assert!(matches!(held.result(), Err(JobError::Cancelled { started: true })));
        assert!(matches!(behind.result(), Err(JobError::Cancelled { started: false })));
    });
}

/// Goal: a worker that dies while the pool drains costs its job alone, and the shutdown ends.
///
/// Covers: 112, X19
#[test]
fn a_crash_during_a_drain_costs_its_job_alone() {
    test(|| {
        let pool = ProcessPool::of(1);
        let meeting = Meeting::new();
        let culprit = pool.submit(wait_and_die, (meeting.path(), 1));
        let guest = meeting.next();
        let behind: Vec<_> = (0..20).map(|n| pool.submit(double, n)).collect();
        thread::scope(|scope| {
            let drain = scope.spawn(|| pool.shutdown(Shutdown::Drain));
            while !pool.submit(double, 1).is_done() {
                thread::yield_now();
            }
            guest.go();
            drain.join().unwrap();
        });
        assert!(matches!(culprit.result(), Err(JobError::Died(_))));
        for (n, future) in behind.into_iter().enumerate() {
            assert_eq!(future.result().unwrap(), n as u64 * 2);
        }
    });
}

/// Goal: values that cannot be encoded are their jobs' errors during a shutdown too.
///
/// Covers: 113
#[test]
fn an_encoding_error_does_not_stop_a_drain() {
    test(|| {
        let pool = ProcessPool::of(1);
        let meeting = Meeting::new();
        let (_held, guest) = hold(&pool, &meeting);
        let argument = pool.submit(super::encoding::number_of, RefusesOdd(1));
        let result = pool.submit(refuse_result, 1);
        guest.go();
        drop(pool);
        assert!(matches!(argument.result(), Err(JobError::Encode(_))));
        assert!(matches!(result.result(), Err(JobError::Encode(_))));
    });
}

/// Goal: failing jobs, workers that retire after each job, and a shutdown at once: nothing hangs.
///
/// Covers: 114, 138, 139, 140
#[test]
fn a_drain_replaces_workers_that_retire() {
    test(|| {
        for workers in [1, 2, 4] {
            for jobs in [1, 3] {
                let pool = ProcessPool::builder()
                    .workers(workers)
                    .max_jobs_per_worker(jobs)
                    .build()
                    .unwrap();
                let failing: Vec<_> = (0..4).map(|n| pool.submit(fail, n)).collect();
                let good: Vec<_> = (0..6).map(|n| pool.submit(double, n)).collect();
                if workers == 2 {
                    drop(pool);
                } else {
                    pool.shutdown(Shutdown::Drain);
                }
                for future in failing {
                    assert!(matches!(future.result(), Err(JobError::Panicked(_))));
                }
                for (n, future) in good.into_iter().enumerate() {
                    assert_eq!(future.result().unwrap(), n as u64 * 2);
                }
            }
        }
    });
}

/// Goal: after a shutdown no worker is left, also of a pool whose workers have died.
///
/// Covers: 101, 165
#[test]
fn a_shutdown_tolerates_dead_workers() {
    test(|| {
        for how in EVERY {
            let pool = ProcessPool::of(2);
            let worker = pool.submit(pid, ()).result().unwrap();
            let dying: Vec<_> = (0..4).map(|n| pool.submit(segv, n)).collect();
            pool.shutdown(how);
            for future in dying {
                assert!(future.is_done());
            }
            assert!(!is_alive(worker));
            assert!(children().is_empty());
        }
    });
}

fn wait_with((meeting, _data): (String, Raw)) -> Raw {
    wait_at((meeting, "large".into()));
    Raw(vec![1; 4 << 20])
}

/// Goal: an abort ends at once although large arguments and results are on their way.
///
/// Covers: Y6
#[test]
fn an_abort_with_large_data_in_flight_ends() {
    test(|| {
        let pool = ProcessPool::of(2);
        let meeting = Meeting::new();
        let futures: Vec<_> = (0..8)
            .map(|_| pool.submit(wait_with, (meeting.path(), Raw(vec![2; 4 << 20]))))
            .collect();
        meeting.next().go();
        let start = Instant::now();
        pool.shutdown(Shutdown::Abort);
        assert!(start.elapsed() < Duration::from_secs(5));
        for future in futures {
            match future.result() {
                Ok(data) => assert_eq!(data.0.len(), 4 << 20),
                Err(JobError::Cancelled { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
}

on_both_pools![
    draining_finishes_every_job,
    leaving_the_scope_drains,
    a_panic_in_the_scope_goes_on,
    a_shutdown_waits_for_the_running_job,
    cancel_pending_finishes_what_has_started,
    a_shutdown_can_be_repeated,
    a_second_shutdown_waits_as_well,
    a_cancel_before_the_shutdown_is_harmless,
    a_shutdown_with_a_full_queue_ends,
];
