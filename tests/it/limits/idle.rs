//! Workers that leave while jobs arrive.

use std::thread;
use std::time::Duration;

use procpool::{JobError, ProcessPool, Shutdown};

use crate::support::{Random, test};

/// Goal: a job is never lost to a worker that leaves at this very moment.
/// Method: workers leave after a millisecond, jobs come at random distances of about that. The times are
/// not synchronisation: at any moment the same must hold.
///
/// Covers: F-45
#[test]
fn no_job_is_lost_to_a_worker_that_leaves() {
    test(|| {
        let mut random = Random::new();
        let timeout = Duration::from_millis(1);
        let pool = ProcessPool::builder().workers(2).idle_timeout(timeout).build().unwrap();
        let mut futures = Vec::new();
        for n in 0..10_000u64 {
            futures.push((n, pool.submit(|n: u64| n + 1, n)));
            match random.below(40) {
                // Now and then both workers have gone, or are just going.
                0 => thread::sleep(Duration::from_micros(random.below(3_000))),
                1 => futures.drain(..).for_each(|(n, future)| {
                    assert_eq!(future.result().unwrap(), n + 1);
                }),
                _ => {}
            }
        }
        for (n, future) in futures {
            assert_eq!(future.result().unwrap(), n + 1);
        }
        let stats = pool.stats();
        println!("{stats:?}");
        assert!(stats.spawned > 10, "workers did leave: {stats:?}");
        assert_eq!((stats.finished, stats.deaths), (10_000, 0));
    });
}

/// Goal: leaving goes with everything else that ends or starts workers: warm-up, recycling, each shutdown.
#[test]
fn leaving_goes_with_warm_up_recycling_and_shutdown() {
    test(|| {
        let mut random = Random::new();
        for round in 0..60 {
            let pool = ProcessPool::builder()
                .workers(3)
                .idle_timeout(Duration::from_millis(1))
                .max_jobs_per_worker(1 + random.below(3))
                .build()
                .unwrap();
            if random.below(2) == 0 {
                pool.warm_up().unwrap();
            }
            let futures: Vec<_> = (0..random.below(8)).map(|n| pool.submit(|n| n, n)).collect();
            // The moment is random; what must hold does not depend on it.
            thread::sleep(Duration::from_micros(random.below(2_500)));
            let how = [Shutdown::Drain, Shutdown::CancelPending, Shutdown::Abort][round % 3];
            pool.shutdown(how);
            for future in futures {
                let result = future.result();
                let fine = matches!(result, Ok(_) | Err(JobError::Cancelled { .. }));
                assert!(fine && (result.is_ok() || how != Shutdown::Drain), "{how:?}: {result:?}");
            }
            let stats = pool.stats();
            // An abort may have had to end the process under a job.
            assert!(
                stats.workers == 0 && (stats.deaths == 0 || how == Shutdown::Abort),
                "{stats:?}"
            );
        }
    });
}

/// Goal: no time at all is an error.
#[test]
fn an_idle_timeout_of_zero_is_an_error() {
    let error = ProcessPool::builder().idle_timeout(Duration::ZERO).build().unwrap_err();
    assert!(error.is_setting() && error.to_string().starts_with("idle_timeout(0)"), "{error}");
}
