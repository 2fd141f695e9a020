//! Section R: what holds for threads alone.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use procpool::{EndedBy, JobError, Limit, Shutdown, ThreadPool};

use super::Pool;
use super::jobs::double;
use crate::support::{Meeting, meet, test};

fn name() -> Option<String> {
    thread::current().name().map(str::to_owned)
}

/// Goal: threads have names: the one given and a number, or one that tells pools apart.
///
/// Covers: 171
#[test]
fn threads_have_names() {
    test(|| {
        let pool = ThreadPool::builder().workers(2).name("ThreadPool io").build().unwrap();
        let meeting = Meeting::new();
        let names: Vec<_> = (0..2)
            .map(|_| {
                let path = meeting.path();
                pool.spawn(move || {
                    meet(&path, "named");
                    name()
                })
            })
            .collect();
        let guests = (meeting.next(), meeting.next());
        drop(guests);
        let mut names: Vec<_> = names.into_iter().map(|f| f.result().unwrap().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["ThreadPool io_0", "ThreadPool io_1"]);
        let (one, two) = (ThreadPool::of(1), ThreadPool::of(1));
        let names = [one, two].map(|pool| pool.spawn(name).result().unwrap().unwrap());
        assert_ne!(names[0], names[1]);
        for name in names {
            let rest = name.strip_prefix("ThreadPool-").unwrap();
            let (pool, thread) = rest.split_once('_').unwrap();
            assert!(pool.parse::<u64>().is_ok() && thread == "0", "{name}");
        }
        assert!(ThreadPool::builder().name("a\0b").build().unwrap_err().is_setting());
    });
}

/// Goal: closures may capture, and values need not be data.
#[test]
fn closures_may_capture() {
    test(|| {
        let pool = ThreadPool::of(2);
        let shared = Arc::new(String::from("shared"));
        let same = Arc::clone(&shared);
        let (sender, receiver) = mpsc::channel();
        let future = pool.spawn(move || {
            sender.send(1).unwrap();
            same
        });
        assert!(Arc::ptr_eq(&future.result().unwrap(), &shared));
        assert_eq!(receiver.recv(), Ok(1));
        pool.shutdown(Shutdown::Drain);
        assert!(matches!(pool.spawn(|| 1).result(), Err(JobError::Closed)));
    });
}

/// Goal: a time limit on threads ends the future and raises the flag; the thread goes on until it looks,
/// and a shutdown waits for it.
///
/// Covers: Y1
#[test]
fn a_time_limit_on_threads_ends_the_future() {
    test(|| {
        let pool = ThreadPool::of(1);
        let limit = Duration::from_millis(20);
        let until_asked = |_: u64| {
            let context = procpool::context().unwrap();
            while !context.is_cancelled() {
                thread::yield_now();
            }
            1u64
        };
        let outcome = pool.job(until_asked, 0).timeout(limit).submit().outcome();
        let Err(JobError::TimedOut(timeout)) = outcome.result else {
            panic!("{:?}", outcome.result)
        };
        assert_eq!((timeout.limit, timeout.after), (Limit::Job, limit));
        assert_eq!(timeout.ended_by, EndedBy::Term);
        assert_eq!(outcome.report.attempts, 1);
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
    });
}

/// Goal: a second shutdown does not switch off the time limits of jobs that the first one waits for.
#[test]
fn limits_hold_while_two_shutdowns_wait() {
    test(|| {
        let pool = ThreadPool::of(1);
        let meeting = Meeting::new();
        let waits = |path: String| {
            let context = procpool::context().unwrap();
            meet(&path, "waits");
            while !context.is_cancelled() {
                thread::yield_now();
            }
        };
        let first = pool.submit(waits, meeting.path());
        let guest = meeting.next();
        let second = pool.job(waits, meeting.path()).timeout(Duration::from_millis(20)).submit();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| pool.shutdown(Shutdown::Drain));
            }
            while !pool.submit(double, 1).is_done() {
                thread::yield_now();
            }
            guest.go();
            // Aborted rather than let go, so that it returns at a moment when both shutdowns wait.
            first.abort();
            meeting.next().go();
        });
        assert!(matches!(second.result(), Err(JobError::TimedOut(_))));
    });
}

/// Goal: `CancelPending` and `Abort` on threads end what waits; `Abort` asks what runs to stop.
#[test]
fn an_abort_on_threads_asks_jobs_to_stop() {
    test(|| {
        let pool = ThreadPool::of(1);
        let meeting = Meeting::new();
        let path = meeting.path();
        let running = pool.spawn(move || {
            let context = procpool::context().unwrap();
            meet(&path, "running");
            while !context.is_cancelled() {
                thread::yield_now();
            }
        });
        meeting.next().go();
        let waiting = pool.submit(double, 1);
        pool.shutdown(Shutdown::Abort);
        assert!(matches!(running.result(), Err(JobError::Cancelled { started: true })));
        assert!(matches!(waiting.result(), Err(JobError::Cancelled { started: false })));
    });
}

/// Goal: a pool may be shut down and dropped by a job of its own.
#[test]
fn a_job_may_end_its_own_pool() {
    test(|| {
        let pool = ThreadPool::of(1);
        let (word, said) = mpsc::channel();
        let (give, given) = mpsc::channel::<ThreadPool>();
        let future = pool.spawn(move || {
            let pool = given.recv().unwrap();
            pool.shutdown(Shutdown::Drain);
            drop(pool);
            word.send(()).unwrap();
        });
        give.send(pool).unwrap();
        said.recv().unwrap();
        future.result().unwrap();
    });
}
