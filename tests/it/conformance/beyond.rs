//! Annexes X and Y, where they are not part of another section: what loky, pebble and mpire promise.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::{Data, JobError, ProcessPool, Shutdown, Status};

use super::Pool;
use super::jobs::{Raw, double, hang, pid};
use super::stats::Random;
use crate::support::{Meeting, say, test, wait_gone};

fn say_pid_and_hang(meeting: String) -> u64 {
    say(&meeting, &std::process::id().to_string());
    hang(0)
}

const MEETING: &str = "CONFORMANCE_MEETING";

/// A host that is killed by [`no_worker_outlives_a_killed_host`].
#[test]
#[ignore = "run by another test, in a process of its own"]
fn a_host_that_is_killed() {
    let meeting = std::env::var(MEETING).unwrap();
    let pool = ProcessPool::of(2);
    let futures: Vec<_> = (0..2).map(|_| pool.submit(say_pid_and_hang, meeting.clone())).collect();
    futures[0].wait();
}

/// Goal: when the host is killed, no worker remains, although its jobs would never end.
///
/// Covers: X6
#[test]
#[expect(clippy::disallowed_methods, reason = "a host, not a worker")]
fn no_worker_outlives_a_killed_host() {
    test(|| {
        let meeting = Meeting::new();
        let mut host = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "conformance::beyond::a_host_that_is_killed", "--ignored"])
            .env(MEETING, meeting.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let workers: Vec<u32> = (0..2).map(|_| meeting.next().word.parse().unwrap()).collect();
        host.kill().unwrap();
        host.wait().unwrap();
        workers.into_iter().for_each(wait_gone);
    });
}

/// Goal: workers that are killed at any moment, also in the middle of an exchange, never wedge the pool:
/// each job has its value, or the death of its own worker.
///
/// Covers: X17, Y8
#[test]
fn killing_workers_at_random_wedges_nothing() {
    test(|| {
        let mut random = Random::new();
        let pool = ProcessPool::of(3);
        let over = AtomicBool::new(false);
        let died = thread::scope(|scope| {
            let submitter = scope.spawn(|| {
                let mut died = 0;
                while !over.load(Ordering::Relaxed) {
                    let futures: Vec<_> = (0..300).map(|n| pool.submit(double, n)).collect();
                    for (n, future) in futures.into_iter().enumerate() {
                        match future.result() {
                            Ok(value) => assert_eq!(value, n as u64 * 2),
                            Err(JobError::Died(death)) => {
                                assert_eq!(death.status, Status::Signal(libc::SIGKILL, false));
                                died += 1;
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
                died
            });
            for _ in 0..30 {
                // A worker is found alive when there is one that is ready; it may be starting otherwise,
                // and starts have a budget that is not to be used up here.
                let ready = |w: &procpool::WorkerInfo| w.state != procpool::WorkerState::Starting;
                let workers: Vec<_> = pool.workers().into_iter().filter(ready).collect();
                if !workers.is_empty() {
                    let victim = &workers[random.below(workers.len() as u64) as usize];
                    // The pool has it unreaped or has just reaped it; a new process with its number cannot
                    // be there so soon.
                    let _ = kill(Pid::from_raw(victim.pid as i32), Signal::SIGKILL);
                }
                for _ in 0..random.below(2000) {
                    thread::yield_now();
                }
            }
            over.store(true, Ordering::Relaxed);
            submitter.join().unwrap()
        });
        println!("{died} jobs died");
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
    });
}

fn kill_them(pids: Vec<u32>) {
    for pid in pids {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
}

/// Goal: jobs that kill one another's workers end in errors, never in a hang, and the pool works on.
///
/// Covers: X17
#[test]
fn jobs_that_kill_each_other_hang_nobody() {
    test(|| {
        let pool = ProcessPool::of(3);
        for _ in 0..3 {
            pool.warm_up().unwrap();
            let pids: Vec<_> = pool.workers().iter().map(|w| w.pid).collect();
            let futures: Vec<_> = (0..6).map(|_| pool.submit(kill_them, pids.clone())).collect();
            for future in futures {
                match future.result() {
                    Ok(()) | Err(JobError::Died(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
    });
}

/// Goal: a job that runs a program gets its output, and the pool does not mistake the program's end.
///
/// Covers: Y9
#[test]
fn a_job_may_run_programs() {
    test(|| {
        let pool = ProcessPool::of(2);
        let run = |n: u64| {
            let output = Command::new("echo").arg(n.to_string()).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        for (n, text) in pool.map(run, 0..10).enumerate() {
            assert_eq!(text.unwrap(), format!("{n}\n"));
        }
    });
}

/// Goal: large values travel, in both directions, whole.
#[test]
fn large_values_travel_whole() {
    test(|| {
        let pool = ProcessPool::of(2);
        let reverse = |mut data: Vec<u32>| {
            data.reverse();
            data
        };
        for len in [0, 1, 1000, 16_000, 70_000, 1 << 20] {
            let data: Vec<u32> = (0..len).collect();
            let mut result = pool.submit(reverse, data.clone()).result().unwrap();
            result.reverse();
            assert!(result == data, "{len} numbers");
        }
    });
}

/// Goal: an argument of more than 2 GiB goes through.
///
/// Covers: X20
#[test]
#[ignore = "needs 10 GB of memory and half a minute"]
fn an_argument_of_more_than_two_gibibytes_travels() {
    test(|| {
        const LEN: usize = 2_200_000_000;
        fn ends<T: Data>(pool: &ProcessPool, f: fn(Raw) -> T, data: Vec<u8>) -> T {
            pool.submit(f, Raw(data)).result().unwrap()
        }
        let pool = ProcessPool::of(1);
        let mut data = vec![0; LEN];
        data[LEN - 1] = 9;
        let seen = ends(&pool, |raw| (raw.0.len(), raw.0[raw.0.len() - 1]), data);
        assert_eq!(seen, (LEN, 9));
        let back = pool.submit(|len| Raw(vec![1; len]), LEN).result().unwrap();
        assert_eq!(back.0.len(), LEN);
    });
}

/// Goal: several pools live side by side, and each has its own workers.
#[test]
fn pools_live_side_by_side() {
    test(|| {
        let pools: Vec<_> = (0..3).map(|_| ProcessPool::of(1)).collect();
        let pids: std::collections::BTreeSet<_> =
            pools.iter().map(|pool| pool.submit(pid, ()).result().unwrap()).collect();
        assert_eq!(pids.len(), 3);
        pools[0].shutdown(Shutdown::Abort);
        assert_eq!(pools[1].submit(double, 1).result().unwrap(), 2);
    });
}
