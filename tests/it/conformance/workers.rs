//! Section K: how many workers there are, when they start, and that they are used again.

use std::collections::BTreeSet;
use std::thread;

use procpool::{ProcessPool, Shutdown, StartMethod, ThreadPool, WorkerState};
use serde::{Deserialize, Serialize};

use super::jobs::{double, pid};
use super::{Pool, hold, on_a_daemon, on_both_pools};
use crate::support::{Meeting, children, test};

/// Goal: no pool has no workers.
///
/// Covers: 116
#[test]
fn a_pool_without_workers_is_an_error() {
    let error = ProcessPool::builder().workers(0).build().unwrap_err();
    assert!(error.is_setting() && error.to_string().starts_with("workers(0)"));
    let error = ThreadPool::builder().workers(0).build().unwrap_err();
    assert!(error.is_setting() && error.to_string().starts_with("workers(0)"));
}

/// Goal: by default there are as many processes as CPUs that may be used, and as many threads as CPython has.
///
/// Covers: 118, 119, X18
#[test]
fn the_default_is_one_process_for_each_cpu() {
    test(|| {
        let cpus = thread::available_parallelism().unwrap().get();
        let pool = ProcessPool::new().unwrap();
        pool.warm_up().unwrap();
        assert_eq!(pool.workers().len(), cpus);
        assert_eq!(children().len(), cpus);
        let threads = ThreadPool::new().unwrap();
        let expected = 32.min(cpus + 4);
        let meeting = Meeting::new();
        // More jobs than threads: as many start as there are threads.
        let futures: Vec<_> = (0..expected + 5)
            .map(|n| threads.submit(super::jobs::wait_and_double, (meeting.path(), n as u64)))
            .collect();
        let guests: Vec<_> = (0..expected).map(|_| meeting.next()).collect();
        assert_eq!(futures.iter().filter(|f| f.is_running()).count(), expected);
        drop(guests);
        for _ in 0..5 {
            meeting.next().go();
        }
    });
}

/// Goal: no worker exists before the first job; then they start one by one as jobs need them, never more
/// than the limit, and never while one is idle.
///
/// Covers: 120, 121, 122
#[test]
fn workers_start_as_jobs_need_them() {
    test(|| {
        let pool = ProcessPool::of(3);
        assert!(children().is_empty() && pool.workers().is_empty());
        let meeting = Meeting::new();
        let mut guests = Vec::new();
        for n in 1..=3 {
            let (_, guest) = hold(&pool, &meeting);
            guests.push(guest);
            assert_eq!(pool.stats().spawned, n);
            assert_eq!(children().len(), n as usize);
        }
        let backlog: Vec<_> = (0..45).map(|n| pool.submit(double, n)).collect();
        assert_eq!((pool.stats().spawned, children().len()), (3, 3));
        drop(guests);
        for future in backlog {
            future.wait();
        }
        assert_eq!((pool.stats().spawned, children().len()), (3, 3));
    });
}

/// Goal: an idle worker is used before a new one is started.
///
/// Covers: 123
#[test]
fn an_idle_worker_is_used_again() {
    test(|| {
        let pool = ProcessPool::of(4);
        let pids: BTreeSet<_> = (0..3).map(|_| pool.submit(pid, ()).result().unwrap()).collect();
        assert_eq!((pids.len(), pool.stats().spawned), (1, 1));
        // A mixed pattern: two at a time need two.
        let meeting = Meeting::new();
        for _ in 0..3 {
            let (held, guest) = hold(&pool, &meeting);
            assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
            guest.go();
            held.wait();
        }
        assert!(pool.stats().spawned <= 3, "{:?}", pool.stats());
    });
}

/// Goal: the same for threads, which are named for their number.
///
/// Covers: 120, 122, 123
#[test]
fn an_idle_thread_is_used_again() {
    test(|| {
        let pool = ThreadPool::builder().workers(4).name("ThreadPool-again").build().unwrap();
        let name = || thread::current().name().map(str::to_owned);
        for _ in 0..10 {
            assert_eq!(pool.spawn(name).result().unwrap().as_deref(), Some("ThreadPool-again_0"));
            // The thread is idle a moment after its job has ended. Waiting too short could only start a
            // thread more, so the end of its wait is looked for.
            while !sleeps("ThreadPool-again") {
                thread::yield_now();
            }
        }
    });
}

/// True if the first thread of this name waits for something.
fn sleeps(prefix: &str) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    for task in tasks {
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        // The kernel keeps 15 bytes of a name.
        if read("comm").trim() == &prefix[..15] {
            return read("stat").rsplit(')').next().unwrap().trim_start().starts_with('S');
        }
    }
    false
}

/// Goal: workers have indices from 0, the same in every report; they are direct children; their states are
/// those that one sees.
///
/// Covers: Y13
#[test]
fn workers_are_known_by_their_index() {
    test(|| {
        let pool = ProcessPool::of(3);
        pool.warm_up().unwrap();
        let workers = pool.workers();
        assert_eq!(workers.iter().map(|w| w.index).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(workers.iter().all(|w| w.state == WorkerState::Idle && w.job.is_none()));
        let pids: BTreeSet<_> = workers.iter().map(|w| w.pid).collect();
        assert_eq!(pids, children().into_iter().collect());
        let meeting = Meeting::new();
        let (held, guest) = hold(&pool, &meeting);
        let busy: Vec<_> =
            pool.workers().into_iter().filter(|w| w.state == WorkerState::Busy).collect();
        assert_eq!((busy.len(), busy[0].job), (1, Some(held.id())));
        guest.go();
        let report = held.outcome().report;
        assert_eq!(report.worker, Some(busy[0].index));
        assert_eq!(report.pid, Some(busy[0].pid));
        let here = |()| (procpool::context().unwrap().worker_index(), std::process::id());
        let outcome = pool.submit(here, ()).outcome();
        let (index, pid) = outcome.result.unwrap();
        assert_eq!((outcome.report.worker, outcome.report.pid), (Some(index), Some(pid)));
        let after = pool.workers();
        assert_eq!(after.iter().map(|w| w.jobs_done).sum::<u64>(), 2);
        assert_eq!(after[index].pid, pid);
    });
}

thread_local! {
    static DROPPED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

#[derive(Serialize, Deserialize)]
struct Tracked(u32);

impl Drop for Tracked {
    fn drop(&mut self) {
        DROPPED.set(DROPPED.get() + self.0);
    }
}

#[procpool::task]
fn argument(tracked: Tracked) -> u64 {
    u64::from(tracked.0)
}

#[procpool::task]
fn dropped((): ()) -> u32 {
    DROPPED.get()
}

/// Goal: a job's argument is let go where it ran as soon as the job has ended, and so is its result.
///
/// Covers: 125
fn arguments_are_let_go_when_the_job_has_ended<P: Pool>() {
    let pool = P::of(1);
    // Jobs of one worker run on one thread, which is where the count is.
    assert_eq!(pool.submit(argument, Tracked(5)).result().unwrap(), 5);
    assert_eq!(pool.submit(dropped, ()).result().unwrap(), 5);
}

/// Goal: `warm_up` starts all workers and waits for them; after a shutdown it says that it is too late.
#[test]
fn a_warm_up_starts_all() {
    test(|| {
        let pool = ProcessPool::of(3);
        pool.warm_up().unwrap();
        pool.warm_up().unwrap();
        let stats = pool.stats();
        assert_eq!((stats.workers, stats.idle, stats.spawned), (3, 3, 3));
        pool.shutdown(Shutdown::Drain);
        assert!(pool.warm_up().unwrap_err().is_closed());
        assert!(pool.workers().is_empty());
    });
}

/// Goal: workers are executed by default: no process but them is there. With a fork server there is one more, of
/// which they come.
///
/// Covers: 127
#[test]
fn workers_are_executed_unless_a_fork_server_is_asked_for() {
    test(|| {
        for (method, processes) in [(None, 2), (Some(StartMethod::ForkServer), 3)] {
            let builder = ProcessPool::builder().workers(2);
            let pool = match method {
                Some(method) => builder.start_method(method),
                None => builder,
            };
            let pool = pool.build().unwrap();
            pool.warm_up().unwrap();
            assert_eq!(children().len(), processes);
            assert_eq!(pool.submit(double, 4).result().unwrap(), 8);
        }
    });
}

/// Goal: a short job never waits behind a long one while a worker is idle.
#[test]
fn nobody_waits_behind_a_long_job_while_a_worker_is_idle() {
    test(|| {
        let pool = ProcessPool::of(2);
        pool.warm_up().unwrap();
        let meeting = Meeting::new();
        let (_one, first) = hold(&pool, &meeting);
        let (_two, second) = hold(&pool, &meeting);
        let short: Vec<_> = (0..40).map(|n| pool.submit(double, n)).collect();
        // Whichever of the two becomes free, it must come to all of them.
        first.go();
        for (n, future) in short.into_iter().enumerate() {
            assert_eq!(future.result().unwrap(), n as u64 * 2);
        }
        second.go();
    });
}

on_both_pools![arguments_are_let_go_when_the_job_has_ended];

on_a_daemon![arguments_are_let_go_when_the_job_has_ended,];
