//! Limits and order: the queue, the payload, the priority.

use std::thread;
use std::time::Duration;

use procpool::{JobError, ProcessPool, Rejected, Rejection, Shutdown};

use super::jobs::{Marks, double, mark, wait_and_double};
use super::{Pool, hold, on_a_daemon, on_both_pools};
use crate::support::{Meeting, test};

fn limited(workers: usize, jobs: usize) -> ProcessPool {
    ProcessPool::builder().workers(workers).queue_limit(jobs).build().unwrap()
}

/// Goal: the limit counts jobs that were accepted and not started, exactly; beyond it `try_submit` gives
/// the argument back, and a cancel makes room for one.
/// Covers: F-78
#[test]
fn a_full_queue_refuses_and_a_cancel_makes_room() {
    test(|| {
        for limit in [1, 3, 70] {
            let pool = limited(1, limit);
            let meeting = Meeting::new();
            let (_held, guest) = hold(&pool, &meeting);
            let mut futures: Vec<_> =
                (0..limit as u64).map(|n| pool.try_submit(double, n).unwrap()).collect();
            for _ in 0..2 {
                let Err(Rejected { arg, reason, .. }) = pool.try_submit(double, 99) else {
                    panic!("the queue is full")
                };
                assert!(arg == 99 && matches!(reason, Rejection::Full));
            }
            assert!(futures.pop().unwrap().cancel());
            futures.push(pool.try_submit(double, 50).unwrap());
            assert!(pool.try_submit(double, 99).is_err());
            let stats = pool.stats();
            assert_eq!((stats.queued, stats.submitted), (limit, limit as u64 + 2));
            guest.go();
            for future in futures {
                future.result().unwrap();
            }
            assert_eq!(pool.try_submit(double, 4).unwrap().result().unwrap(), 8);
        }
    });
}

/// Goal: a `submit` that waits for room is woken when there is some, and every job runs.
/// Covers: F-78
#[test]
fn a_blocked_submit_goes_on_when_there_is_room() {
    test(|| {
        let pool = limited(2, 2);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let futures: Vec<_> = (0..200).map(|n| pool.submit(double, n)).collect();
                    for (n, future) in futures.into_iter().enumerate() {
                        assert_eq!(future.result().unwrap(), n as u64 * 2);
                    }
                });
            }
        });
        // A cancel alone makes room as well.
        let meeting = Meeting::new();
        let (_one, _first) = hold(&pool, &meeting);
        let (_two, _second) = hold(&pool, &meeting);
        let waiting: Vec<_> = (0..2).map(|n| pool.submit(double, n)).collect();
        thread::scope(|scope| {
            let blocked = scope.spawn(|| pool.submit(double, 3));
            assert!(waiting[0].cancel());
            assert!(!blocked.join().unwrap().is_done());
        });
    });
}

/// Goal: a `submit` that waits for room when the pool is shut down is refused as closed.
#[test]
fn a_blocked_submit_is_woken_by_a_shutdown() {
    test(|| {
        for how in [Shutdown::Drain, Shutdown::CancelPending, Shutdown::Abort] {
            let pool = limited(1, 1);
            let meeting = Meeting::new();
            let (_held, guest) = hold(&pool, &meeting);
            let _waiting = pool.submit(double, 1);
            thread::scope(|scope| {
                let blocked: Vec<_> =
                    (0..3).map(|_| scope.spawn(|| pool.submit(double, 2).result())).collect();
                let ender = scope.spawn(|| pool.shutdown(how));
                for blocked in blocked {
                    assert!(matches!(blocked.join().unwrap(), Err(JobError::Closed)));
                }
                drop(guest);
                ender.join().unwrap();
            });
        }
    });
}

/// Goal: a map over a pool with a small queue still runs, in order.
#[test]
fn a_map_gets_along_with_a_small_queue() {
    test(|| {
        let pool = limited(2, 1);
        for chunk in [1, 5] {
            let values: Vec<_> =
                pool.map(double, 0..100).chunk_size(chunk).map(Result::unwrap).collect();
            assert_eq!(values, (0..100).map(double).collect::<Vec<_>>());
        }
    });
}

fn echo(data: Vec<u8>) -> Vec<u8> {
    data
}

fn zeros(len: usize) -> Vec<u8> {
    vec![0; len]
}

/// Goal: a payload of exactly the limit goes through, both ways; one byte more is refused with the exact
/// numbers, and neither the worker nor another job is harmed.
#[test]
fn the_payload_limit_is_exact_both_ways() {
    test(|| {
        // The encoded form of a vector: eight bytes of length, then its bytes.
        const HEAD: u64 = 8;
        for limit in [100, 40_000, 200_000] {
            let pool = ProcessPool::builder().workers(1).payload_limit(limit).build().unwrap();
            let most = (limit - HEAD) as usize;
            let sent = vec![7; most];
            assert_eq!(pool.submit(echo, sent.clone()).result().unwrap(), sent);
            for over in [1, 1000] {
                let argument = pool.submit(echo, vec![7; most + over]);
                assert!(argument.is_done());
                let outcomes = [argument.outcome(), pool.submit(zeros, most + over).outcome()];
                let started = outcomes.each_ref().map(|outcome| outcome.report.attempts);
                assert_eq!(started, [0, 1]);
                for outcome in outcomes {
                    match outcome.result {
                        Err(error @ JobError::TooLarge { len, limit: told }) => {
                            assert_eq!((len, told), (limit + over as u64, limit));
                            assert!(error.to_string().contains(&len.to_string()), "{error}");
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            // In a chunk, too, each element is measured alone.
            let lens = [most, most + 1, most, most + 5];
            let results: Vec<_> = pool.map(zeros, lens).chunk_size(4).collect();
            let good: Vec<_> = results.iter().map(Result::is_ok).collect();
            assert_eq!(good, [true, false, true, false]);
            let items = lens.map(|len| vec![1; len]);
            let results: Vec<_> =
                pool.map(|data: Vec<u8>| data.len(), items).chunk_size(4).collect();
            assert!(matches!(results[3], Err(JobError::TooLarge { len, .. }) if len == limit + 5));
            assert_eq!(*results[2].as_ref().unwrap(), most);
            assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
        }
    });
}

/// Goal: jobs start by priority, higher first, and in order of submission among equals; jobs that were
/// handed to the worker already are no exception.
fn jobs_start_by_priority<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let marks = Marks::new();
    let (_held, guest) = hold(&pool, &meeting);
    let mut expected: Vec<(i32, u32)> = Vec::new();
    let priorities = [0, 5, -3, 0, 5, i32::MAX, i32::MIN, 1, 0, 5, -3, i32::MAX];
    for (n, priority) in priorities.into_iter().cycle().take(120).enumerate() {
        let job = pool.job(mark, marks.line(n));
        let job = if priority == 0 { job } else { job.priority(priority) };
        drop(job.submit());
        expected.push((priority, n as u32));
    }
    pool.settle();
    guest.go();
    pool.shutdown(Shutdown::Drain);
    expected.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
    let expected: Vec<_> = expected.iter().map(|(_, n)| n.to_string()).collect();
    assert_eq!(marks.lines(), expected);
}

/// Goal: the same with several workers: no job of low priority starts while one of high priority waits,
/// although it was handed to a worker before.
/// Method: only one of the two workers is let go, so that starts have an order.
#[test]
fn priority_overtakes_jobs_that_were_handed_over() {
    test(|| {
        let pool = ProcessPool::of(2);
        let meeting = Meeting::new();
        let marks = Marks::new();
        let (_one, first) = hold(&pool, &meeting);
        let (_two, second) = hold(&pool, &meeting);
        let low: Vec<_> = (0..30).map(|n| pool.submit(mark, marks.line(n))).collect();
        let high: Vec<_> =
            (100..110).map(|n| pool.job(mark, marks.line(n)).priority(1).submit()).collect();
        first.go();
        low.iter().chain(&high).for_each(|future| future.wait());
        second.go();
        let mut lines: Vec<u32> = marks.lines().iter().map(|line| line.parse().unwrap()).collect();
        // Equals that were handed to the worker that is held may come after those of the other.
        lines[..10].sort_unstable();
        assert_eq!(lines[..10], (100..110).collect::<Vec<_>>());
        assert_eq!(lines.len(), 40);
    });
}

/// Goal: a job of high priority submitted while others wait behind a running one is next.
#[test]
fn a_late_job_of_high_priority_is_next() {
    test(|| {
        let pool = ProcessPool::of(1);
        let meeting = Meeting::new();
        let futures: Vec<_> =
            (0..5).map(|n| pool.submit(wait_and_double, (meeting.path(), n))).collect();
        let guest = meeting.next();
        let urgent = pool.job(wait_and_double, (meeting.path(), 50)).priority(9).submit();
        guest.go();
        let guest = meeting.next();
        assert!(urgent.is_running() && futures[0].is_done() && !futures[1].is_running());
        guest.go();
        for _ in 0..4 {
            meeting.next().go();
        }
        assert!(futures[4].wait_timeout(Duration::MAX));
    });
}

on_both_pools![jobs_start_by_priority];

on_a_daemon![jobs_start_by_priority,];
