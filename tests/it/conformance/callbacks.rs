//! Section E: callbacks.

use std::sync::mpsc;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use procpool::{JobError, JobFuture, ProcessPool, Shutdown};

use super::jobs::{double, fail, segv, wait_and_die, wait_and_double};
use super::{Pool, hold, on_a_daemon, on_both_pools};
use crate::support::{Meeting, test};

/// Goal: a callback learns how the job ended: a value, a failure, a cancel.
///
/// Covers: 33, 34, 35
fn a_callback_runs_on_success_failure_and_cancel<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (_held, guest) = hold(&pool, &meeting);
    let (good, bad, cancelled) =
        (pool.submit(double, 1), pool.submit(fail, 1), pool.submit(double, 2));
    let (word, said) = mpsc::channel();
    for future in [&good, &bad, &cancelled] {
        let word = word.clone();
        future.on_done(move |done| {
            let thread = thread::current().id();
            word.send((done.id, done.error, done.report.attempts, thread)).unwrap();
        });
    }
    assert!(cancelled.cancel());
    // It ran inside `cancel`, so its word is there.
    let (id, error, attempts, thread) = said.try_recv().unwrap();
    assert_eq!((id, attempts), (cancelled.id(), 0));
    assert_eq!(thread, thread::current().id());
    assert!(matches!(error, Some(JobError::Cancelled { started: false })));
    guest.go();
    let mut words = [said.recv().unwrap(), said.recv().unwrap()];
    words.sort_by_key(|word| word.0);
    assert!(words[0].0 == good.id() && words[0].1.is_none() && words[0].2 == 1);
    assert!(words[1].0 == bad.id() && matches!(words[1].1, Some(JobError::Panicked(_))));
}

/// Goal: callbacks of one job run in the order in which they were added, and a panic in one is not the end
/// of the others, nor of the pool.
///
/// Covers: 36, 39, F-76
fn callbacks_run_in_order_and_a_panic_stops_none<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let (word, said) = mpsc::channel();
    for n in 0..10 {
        let word = word.clone();
        held.on_done(move |_| {
            word.send(n).unwrap();
            assert!(n % 3 != 1, "callback {n} panics");
        });
    }
    drop(word);
    guest.go();
    assert_eq!(said.iter().collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    assert_eq!(pool.submit(double, 4).result().unwrap(), 8);
}

/// Goal: a callback for a job that has ended runs at once, on the thread that adds it; its panic goes no
/// further.
///
/// Covers: 37, 38
fn a_callback_added_late_runs_here_and_now<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (_held, guest) = hold(&pool, &meeting);
    let cancelled = pool.submit(double, 1);
    cancelled.cancel();
    guest.go();
    for future in [pool.submit(double, 1), pool.submit(fail, 1), cancelled] {
        future.wait();
        let ran = Arc::new(Mutex::new(None));
        let note = Arc::clone(&ran);
        future.on_done(move |done| {
            *note.lock().unwrap() = Some((thread::current().id(), done.error.is_none()));
            panic!("a late callback panics");
        });
        // A panic poisons the lock: which is how we know that it happened after the note.
        let noted = ran.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (thread, good) = noted.unwrap();
        drop(noted);
        assert_eq!(thread, thread::current().id());
        assert_eq!(good, future.result().is_ok());
    }
}

/// Goal: callbacks run in the process that added them.
///
/// Covers: 40
fn a_callback_runs_in_this_process<P: Pool>() {
    let pool = P::of(1);
    let future = pool.submit(double, 1);
    let (word, said) = mpsc::channel();
    future.on_done(move |_| word.send(std::process::id()).unwrap());
    assert_eq!(said.recv().unwrap(), std::process::id());
}

/// Goal: when a callback runs, the job is done for everyone, and the callback may ask anything of it.
///
/// Covers: 32, 41
fn a_job_is_done_before_its_callbacks_run<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let future = Arc::new(pool.submit(wait_and_double, (meeting.path(), 4)));
    let guest = meeting.next();
    let (word, said) = mpsc::channel();
    let same = Arc::clone(&future);
    future.on_done(move |_| {
        same.wait();
        let states = (same.is_done(), same.is_running(), same.cancel());
        let (inner, inside) = mpsc::channel();
        same.on_done(move |_| inner.send(()).unwrap());
        inside.recv().unwrap();
        word.send(states).unwrap();
    });
    guest.go();
    assert_eq!(said.recv().unwrap(), (true, false, false));
    // The callback's own handle goes a moment after its word: until then ours is not the last.
    let mut future = Some(future);
    let value = loop {
        match Arc::try_unwrap(future.take().unwrap()) {
            Ok(future) => break future.result().unwrap(),
            Err(shared) => future = Some(shared),
        }
        thread::yield_now();
    };
    assert_eq!(value, 8);
}

/// Goal: a callback may block for as long as it likes; other jobs' results and callbacks come meanwhile.
/// Covers: F-76
fn a_blocking_callback_delays_nobody<P: Pool>() {
    let pool = P::of(1);
    let (release, released) = mpsc::channel::<()>();
    let (word, said) = mpsc::channel();
    let meeting = Meeting::new();
    let first = pool.submit(wait_and_double, (meeting.path(), 1));
    first.on_done(move |_| {
        word.send(()).unwrap();
        let _ = released.recv();
    });
    meeting.next().go();
    said.recv().unwrap();
    for n in 0..20 {
        let (word, said) = mpsc::channel();
        let future = pool.submit(double, n);
        future.on_done(move |_| word.send(()).unwrap());
        assert_eq!(future.result().unwrap(), n * 2);
        said.recv().unwrap();
    }
    drop(release);
}

/// Goal: a callback may submit, also one whose job was cancelled, and also a chain of them.
///
/// Covers: X9, F-76
fn a_callback_may_submit<P: Pool>() {
    fn chain<P: Pool>(pool: &Arc<P>, left: u64, word: mpsc::Sender<u64>) {
        let future = pool.submit(double, left);
        let weak = Arc::downgrade(pool);
        future.on_done(move |done| {
            assert!(done.error.is_none());
            match (left, weak.upgrade()) {
                (0, _) | (_, None) => word.send(left).unwrap(),
                (_, Some(pool)) => chain(&pool, left - 1, word),
            }
        });
    }
    let pool = Arc::new(P::of(1));
    let (word, said) = mpsc::channel();
    chain(&pool, 20, word);
    assert_eq!(said.recv().unwrap(), 0);
}

/// Goal: what a callback submits after the pool was shut down is refused there, without a panic or a hang.
///
/// Covers: X9
fn a_callback_that_submits_too_late_is_told_so<P: Pool>() {
    let pool = Arc::new(P::of(1));
    let meeting = Meeting::new();
    let (held, guest) = hold(&*pool, &meeting);
    let (word, said) = mpsc::channel();
    let other = Arc::clone(&pool);
    held.on_done(move |_| {
        word.send(other.submit(double, 1).result()).unwrap();
    });
    thread::scope(|scope| {
        let ender = scope.spawn(|| pool.shutdown(Shutdown::Drain));
        // The only worker is held, so a job that is done was refused: the shutdown has begun.
        while !pool.submit(double, 1).is_done() {
            thread::yield_now();
        }
        guest.go();
        ender.join().unwrap();
    });
    assert!(matches!(said.recv().unwrap(), Err(JobError::Closed)));
}

/// Goal: a callback may drop the last handle of its pool, or shut it down, which then does not wait for
/// the callback itself.
///
/// Covers: Y6, F-76
fn a_callback_may_end_its_pool<P: Pool>() {
    for how in [Shutdown::Drain, Shutdown::CancelPending, Shutdown::Abort] {
        let pool = P::of(1);
        let meeting = Meeting::new();
        let (held, guest) = hold(&pool, &meeting);
        let behind: Vec<JobFuture<u64>> = (0..5).map(|n| pool.submit(double, n)).collect();
        let (word, said) = mpsc::channel();
        held.on_done(move |_| {
            pool.shutdown(how);
            drop(pool);
            word.send(()).unwrap();
        });
        guest.go();
        said.recv().unwrap();
        for future in behind {
            assert!(future.is_done());
            assert!(matches!(future.result(), Ok(_) | Err(JobError::Cancelled { .. })));
        }
    }
}

/// Goal: a shutdown returns when the callbacks have run.
fn a_shutdown_waits_for_callbacks<P: Pool>() {
    let pool = P::of(2);
    let count = Arc::new(Mutex::new(0));
    for n in 0..50 {
        let count = Arc::clone(&count);
        pool.submit(double, n).on_done(move |_| *count.lock().unwrap() += 1);
    }
    pool.shutdown(Shutdown::Drain);
    assert_eq!(*count.lock().unwrap(), 50);
}

/// Goal: a callback that submits a job which crashes gets its worker's death as an answer like any other.
///
/// Covers: X9
#[test]
fn a_callback_may_submit_a_job_that_crashes() {
    test(|| {
        let pool = Arc::new(ProcessPool::of(1));
        let meeting = Meeting::new();
        let future = pool.submit(wait_and_die, (meeting.path(), 1));
        let (word, said) = mpsc::channel();
        let weak = Arc::downgrade(&pool);
        future.on_done(move |done| {
            let pool = weak.upgrade().unwrap();
            let next = pool.submit(segv, 1).result();
            word.send((done.error, next)).unwrap();
        });
        meeting.next().go();
        let (first, second) = said.recv().unwrap();
        assert!(matches!(first, Some(JobError::Died(_))));
        assert!(matches!(second, Err(JobError::Died(_))));
    });
}

/// How many threads this process has for callbacks.
fn callback_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // One that has ended meanwhile has no name.
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    tasks.filter_map(|task| name(task.ok()?)).filter(|name| name.trim() == "procpool-done").count()
}

/// Waits until threads that have nothing to do have ended; all but so many.
fn wait_for_calm(left: usize) {
    while callback_threads() > left {
        thread::yield_now();
    }
}

/// Goal: callbacks that do not block do not take a thread each, however many come at once.
/// Method: the jobs' ends arrive in batches, faster than callbacks run. Each hundredth callback counts threads. A
/// machine that is busy elsewhere makes some callbacks look as if they blocked: hence not just three threads.
#[test]
fn a_burst_of_callbacks_takes_few_threads() {
    test(|| {
        let pool = ProcessPool::of(2);
        let most = Arc::new(Mutex::new(0));
        let (word, said) = mpsc::channel::<()>();
        let meeting = Meeting::new();
        let (_held, guest) = hold(&pool, &meeting);
        for n in 0..10_000 {
            let (most, word) = (Arc::clone(&most), word.clone());
            pool.submit(double, n).on_done(move |_| {
                if n % 100 == 0 {
                    let now = callback_threads();
                    let mut most = most.lock().unwrap();
                    *most = now.max(*most);
                }
                drop(word);
            });
        }
        drop(word);
        guest.go();
        assert!(said.recv().is_err(), "all callbacks have run");
        assert!(*most.lock().unwrap() <= 20, "{most:?} threads");
        wait_for_calm(2);
    });
}

/// Goal: however many callbacks block, others run meanwhile; and the threads that this took end afterwards.
/// Method: fifty wait until one behind them has run, in one batch with it, twice.
#[test]
fn fifty_blocking_callbacks_delay_nobody() {
    test(|| {
        let pool = ProcessPool::of(1);
        for _ in 0..2 {
            let meeting = Meeting::new();
            let (_held, guest) = hold(&pool, &meeting);
            let last_has_run = Arc::new(Barrier::new(51));
            let (word, said) = mpsc::channel::<()>();
            for n in 0..51 {
                let (last_has_run, word) = (Arc::clone(&last_has_run), word.clone());
                pool.submit(double, n).on_done(move |_| {
                    last_has_run.wait();
                    drop(word);
                });
            }
            drop(word);
            guest.go();
            assert!(said.recv().is_err(), "all callbacks have run");
            wait_for_calm(2);
        }
    });
}

/// Goal: a shutdown waits for callbacks that block, and for those that wait behind them.
#[test]
fn a_shutdown_waits_for_blocking_callbacks() {
    test(|| {
        let pool = ProcessPool::of(1);
        let meeting = Meeting::new();
        let (_held, guest) = hold(&pool, &meeting);
        let together = Arc::new(Barrier::new(11));
        let count = Arc::new(Mutex::new(0));
        for n in 0..10 {
            let (together, count) = (Arc::clone(&together), Arc::clone(&count));
            pool.submit(double, n).on_done(move |_| {
                together.wait();
                *count.lock().unwrap() += 1;
            });
        }
        guest.go();
        thread::scope(|scope| {
            scope.spawn(|| together.wait());
            pool.shutdown(Shutdown::Drain);
        });
        assert_eq!(*count.lock().unwrap(), 10);
        // The kernel takes a moment to forget a thread that was joined.
        wait_for_calm(0);
    });
}

on_both_pools![
    a_callback_runs_on_success_failure_and_cancel,
    callbacks_run_in_order_and_a_panic_stops_none,
    a_callback_added_late_runs_here_and_now,
    a_callback_runs_in_this_process,
    a_job_is_done_before_its_callbacks_run,
    a_blocking_callback_delays_nobody,
    a_callback_may_submit,
    a_callback_that_submits_too_late_is_told_so,
    a_callback_may_end_its_pool,
    a_shutdown_waits_for_callbacks,
];

on_a_daemon![
    a_callback_runs_on_success_failure_and_cancel,
    callbacks_run_in_order_and_a_panic_stops_none,
    a_callback_added_late_runs_here_and_now,
    a_callback_runs_in_this_process,
    a_job_is_done_before_its_callbacks_run,
    a_blocking_callback_delays_nobody,
    a_callback_may_submit,
    a_callback_may_end_its_pool,
];
