//! While jobs are short few workers run them, and nobody waits there behind a long one.

use std::hint;
use std::thread;
use std::time::Duration;

use procpool::ProcessPool;

use crate::support::test;

/// Longer than any test may take: what waits for the end of such a job is seen to hang.
const LONG: Duration = Duration::from_secs(600);

fn same(n: u64) -> u64 {
    n
}

fn sleep_long(_: u64) {
    thread::sleep(LONG);
}

fn compute_long(_: u64) {
    loop {
        hint::spin_loop();
    }
}

/// Goal: short jobs that were sent to a busy worker, because jobs were short, are done although a long one comes before
/// them there, be it one that sleeps or one that computes.
/// Method: more workers than processors, and a flood of short jobs; in its midst as many long ones as there are
/// processors, so that each of the few that are awake gets one. None of the long ones ends by itself.
#[test]
fn short_jobs_do_not_wait_behind_a_long_one() {
    test(|| {
        let processors = thread::available_parallelism().unwrap().get();
        let pool = ProcessPool::builder().workers(processors + 4).build().unwrap();
        pool.warm_up().unwrap();
        for round in 0..10 {
            let long = if round % 2 == 0 { sleep_long } else { compute_long };
            let before: Vec<_> = (0..2_000).map(|n| pool.submit(same, n)).collect();
            let long: Vec<_> = (0..processors as u64).map(|n| pool.submit(long, n)).collect();
            let behind: Vec<_> = (0..500).map(|n| pool.submit(same, n)).collect();
            for (n, future) in before.into_iter().chain(behind).enumerate() {
                assert!(
                    future.wait_timeout(Duration::from_secs(20)),
                    "round {round}: short job {n} waits: {:?} {:#?}",
                    pool.stats(),
                    pool.workers(),
                );
                future.result().unwrap();
            }
            for future in long {
                assert!(!future.is_done());
                future.abort();
                future.wait();
            }
        }
    });
}
