//! A supervisor that did not get the CPU for a while, as happens on every busy machine.

use std::hint;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::ProcessPool;

use crate::support::test;

/// Long enough that jobs pile up at a worker, short enough that the pool hands it hundreds.
fn double_slowly(n: u64) -> u64 {
    let until = Instant::now() + Duration::from_nanos(700);
    while Instant::now() < until {
        hint::spin_loop();
    }
    n * 2
}

/// Stops a process for a moment.
fn hold_up((pid, after_us): (u32, u64)) {
    let pid = Pid::from_raw(pid as i32);
    // Neither sleep waits for anything: at another time, or for longer, the process is only held up in a
    // place that does less harm.
    thread::sleep(Duration::from_micros(after_us));
    kill(pid, Signal::SIGSTOP).unwrap();
    thread::sleep(Duration::from_millis(2));
    kill(pid, Signal::SIGCONT).unwrap();
}

/// Goal: results that pile up while the supervisor is held up are all read before it sleeps.
/// Method: a worker of another pool stops this process, at another moment of each burst of jobs, while the
/// burst's workers go on. After the burst there is silence: nothing else would wake the supervisor.
#[test]
fn results_that_piled_up_are_all_read() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let other = ProcessPool::builder().workers(1).build().unwrap();
        pool.warm_up().unwrap();
        other.warm_up().unwrap();
        for round in 0..100 {
            let held_up = other.submit(hold_up, (process::id(), round * 37 % 1000));
            let futures: Vec<_> = (0..2_000).map(|n| pool.submit(double_slowly, n)).collect();
            for (n, future) in (0..).zip(futures) {
                assert!(
                    future.wait_timeout(Duration::from_secs(10)),
                    "round {round}: job {n} has no result: {:?}",
                    pool.stats()
                );
                assert_eq!(future.result().unwrap(), n * 2);
            }
            held_up.result().unwrap();
        }
    });
}
