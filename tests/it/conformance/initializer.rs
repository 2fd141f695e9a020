//! Section L: initializers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use procpool::{JobError, ProcessPool, ProcessPoolBuilder, Shutdown};

use super::jobs::{Marks, bad_write, double, mark, segv};
use crate::support::{children, test};

static PREPARED: AtomicU64 = AtomicU64::new(0);

fn prepare((marks, value): (String, u64)) -> Result<(), String> {
    PREPARED.fetch_add(value, Ordering::SeqCst);
    mark((marks, std::process::id().to_string()));
    Ok(())
}

fn prepared(_: u64) -> (u64, u32) {
    (PREPARED.load(Ordering::SeqCst), std::process::id())
}

/// Goal: the initializer runs once in every worker, before its first job; jobs see what it did. That is
/// how values given at construction come to every worker.
///
/// Covers: 128, 176
#[test]
fn an_initializer_runs_once_in_each_worker() {
    test(|| {
        let marks = Marks::new();
        let pool = ProcessPool::builder()
            .workers(3)
            .initializer(prepare, (marks.path(), 7))
            .build()
            .unwrap();
        assert!(marks.lines().is_empty());
        pool.warm_up().unwrap();
        for result in pool.map(prepared, 0..100).chunk_size(1) {
            let (value, pid) = result.unwrap();
            assert_eq!(value, 7);
            assert!(marks.lines().contains(&pid.to_string()));
        }
        assert_eq!(marks.lines().len(), 3);
        assert_eq!(PREPARED.load(Ordering::SeqCst), 0);
    });
}

/// Goal: it runs in every replacement too: after a death, after a retirement.
///
/// Covers: 133
#[test]
fn an_initializer_runs_in_every_replacement() {
    test(|| {
        let marks = Marks::new();
        let pool = ProcessPool::builder()
            .workers(1)
            .max_jobs_per_worker(2)
            .initializer(prepare, (marks.path(), 7))
            .build()
            .unwrap();
        assert!(pool.submit(segv, 1).result().is_err());
        for _ in 0..4 {
            assert_eq!(pool.submit(prepared, 0).result().unwrap().0, 7);
        }
        assert!(marks.lines().len() >= 3, "{:?}", marks.lines());
    });
}

fn refuse(message: String) -> Result<(), String> {
    Err(message)
}

fn panic_out(message: String) {
    panic!("{message}")
}

fn crash(_: String) {
    eprintln!("last words of the initializer");
    bad_write()
}

fn exit_with(_: String) {
    eprintln!("last words of the initializer");
    std::process::exit(3)
}

fn hang_at_start(_: String) {
    super::jobs::hang(0);
}

fn broken(builder: ProcessPoolBuilder) -> ProcessPool {
    builder
        .workers(2)
        .stderr(procpool::Output::Capture)
        .restart_limit(2, Duration::from_secs(60))
        .build()
        .unwrap()
}

/// Goal: an initializer that fails, in whatever way, breaks the pool: every pending future and every later
/// submit says so with the cause, a shutdown works, and nothing is left.
///
/// Covers: 129, 130, 131, 132, 165
#[test]
fn an_initializer_that_fails_breaks_the_pool() {
    test(|| {
        let message = || "no model\u{7} here".to_owned();
        let builder = ProcessPool::builder;
        let cases = [
            ("no model", broken(builder().initializer(refuse, message()))),
            ("no model", broken(builder().initializer(panic_out, message()))),
            ("last words", broken(builder().initializer(crash, message()))),
            ("last words", broken(builder().initializer(exit_with, message()))),
        ];
        for (cause, pool) in cases {
            let pending: Vec<_> = (0..20).map(|n| pool.submit(double, n)).collect();
            for future in pending {
                let Err(JobError::Broken(error)) = future.result() else {
                    panic!("no worker can have started")
                };
                let text = format!("{error} {:?}", std::error::Error::source(&error));
                assert!(error.is_start() && text.contains(cause), "{text}");
                let shown = JobError::Broken(error).to_string();
                assert!(!shown.chars().any(char::is_control), "{shown:?}");
            }
            let error = pool.submit(double, 1).result().unwrap_err();
            assert!(matches!(error, JobError::Broken(_)), "{error}");
            assert!(pool.warm_up().unwrap_err().is_start());
            pool.shutdown(Shutdown::Abort);
            assert!(children().is_empty());
            let stats = pool.stats();
            assert_eq!((stats.failed, stats.queued, stats.running), (20, 0, 0));
        }
    });
}

/// Goal: an initializer that takes for ever is given up.
///
/// Covers: Y10
#[test]
fn an_initializer_that_hangs_is_given_up() {
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .initializer(hang_at_start, String::new())
            .start_timeout(Duration::from_millis(50))
            .restart_limit(1, Duration::from_secs(60))
            .build()
            .unwrap();
        let error = pool.submit(double, 1).result().unwrap_err();
        assert!(matches!(error, JobError::Broken(_)), "{error}");
    });
}

fn once((marks, message): (String, String)) -> Result<(), String> {
    let first = std::fs::metadata(&marks).is_err();
    mark((marks, "here".into()));
    if first { Ok(()) } else { Err(message) }
}

/// Goal: when the last worker is gone and cannot be replaced, the jobs that wait are told.
///
/// Covers: 142
#[test]
fn a_replacement_that_cannot_start_breaks_the_pool() {
    test(|| {
        for retire in [false, true] {
            let marks = Marks::new();
            let builder = ProcessPool::builder()
                .workers(1)
                .initializer(once, (marks.path(), "only once".into()))
                .restart_limit(2, Duration::from_secs(60));
            let builder = if retire { builder.max_jobs_per_worker(1) } else { builder };
            let pool = builder.build().unwrap();
            if retire {
                assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
            } else {
                assert!(matches!(pool.submit(segv, 1).result(), Err(JobError::Died(_))));
            }
            let futures: Vec<_> = (0..5).map(|n| pool.submit(double, n)).collect();
            for future in futures {
                let Err(JobError::Broken(error)) = future.result() else {
                    panic!("there is no worker any more")
                };
                assert!(error.to_string().contains("only once"), "{error}");
            }
        }
    });
}

/// Goal: one worker that cannot start does not break a pool that has another.
#[test]
fn a_pool_with_a_live_worker_is_not_broken() {
    test(|| {
        let marks = Marks::new();
        let pool = ProcessPool::builder()
            .workers(2)
            .stderr(procpool::Output::Capture)
            .initializer(once, (marks.path(), "only once".into()))
            .restart_limit(1, Duration::from_secs(60))
            .build()
            .unwrap();
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
        let futures: Vec<_> = (0..50).map(|n| pool.submit(double, n)).collect();
        for (n, future) in futures.into_iter().enumerate() {
            assert_eq!(future.result().unwrap(), n as u64 * 2);
        }
    });
}
