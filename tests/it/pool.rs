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
        assert_ne!(
            pool.submit(|()| std::process::id(), ()).result().unwrap(),
            std::process::id()
        );
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
