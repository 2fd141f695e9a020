//! The first things that anyone does with a pool.

use procpool::ProcessPool;

use crate::support::test;

fn double(n: u64) -> u64 {
    n * 2
}

/// Goal: a function runs in a process of its own and its value comes back.
#[test]
fn a_job_runs_in_another_process() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        assert_eq!(pool.submit(double, 21).result().unwrap(), 42);
        assert_ne!(pool.submit(|()| std::process::id(), ()).result().unwrap(), std::process::id());
    });
}

/// Goal: no worker is started before it is needed, and an idle one is used before a new one is started.
#[test]
fn one_worker_serves_jobs_that_come_one_after_another() {
    test(|| {
        let pool = ProcessPool::builder().workers(4).build().unwrap();
        assert_eq!(pool.stats().spawned, 0);
        for n in 0..10 {
            assert_eq!(pool.submit(double, n).result().unwrap(), n * 2);
        }
        assert_eq!(pool.stats().spawned, 1);
    });
}

/// Recurses until the stack ends, with frames that cannot be optimised away.
fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 512]);
    if depth == u64::MAX { 0 } else { overflow(depth + 1) + frame[0] }
}

/// Goal: a stack overflow is told from other crashes, also in a worker of a test program, which lives
/// before `main` and so before the standard library's own handler.
#[test]
fn a_stack_overflow_says_so() {
    test(|| {
        let pool =
            ProcessPool::builder().workers(1).stderr(procpool::Output::Capture).build().unwrap();
        let error = pool.submit(overflow, 0).result().unwrap_err();
        let procpool::JobError::Died(death) = &error else { panic!("{error:?}") };
        assert_eq!(death.status, procpool::Status::Signal(libc::SIGABRT, false));
        assert!(death.stderr_tail.contains("has overflowed its stack"), "{}", death.stderr_tail);
        assert!(error.to_string().contains("stack_size"), "{error}");
    });
}
