//! Pools within the jobs of pools.

use std::process;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::{JobError, ProcessPool};

use super::fixture::Watched;
use crate::support::{Meeting, meet, test};

/// Has a pool in a job of a pool, and so on for ever; answers how deep it went, and why no deeper.
fn dig(depth: u32) -> (u32, String) {
    match ProcessPool::builder().workers(1).build() {
        Ok(pool) => pool.submit(dig, depth + 1).result().unwrap(),
        Err(error) => (depth, error.to_string()),
    }
}

/// Goal: pools may stand within each other, but not without end: that would be a fork bomb.
/// Covers: F-35
#[test]
fn pools_within_jobs_go_four_deep_and_no_deeper() {
    test(|| {
        let (depth, error) = dig(0);
        assert_eq!(depth, 4, "{error}");
        assert!(error.contains("4 pools deep"), "{error}");
    });
}

fn stay(meeting: String) {
    meet(&meeting, &process::id().to_string());
    loop {
        std::hint::spin_loop();
    }
}

fn host_of_two(meeting: String) {
    let pool = ProcessPool::builder().workers(2).build().unwrap();
    let futures = [0; 2].map(|_| pool.submit(stay, meeting.clone()));
    for future in futures {
        future.result().unwrap();
    }
}

/// Goal: when a worker dies, the workers of the pools in its jobs die with it, busy as they are.
/// Covers: F-35
#[test]
fn inner_workers_do_not_outlive_the_outer_one() {
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let outer = pool.submit(host_of_two, meeting.path());
        let inner = [0; 2].map(|_| {
            let guest = meeting.next();
            let watched = Watched::new(guest.word.parse().unwrap());
            guest.go();
            watched
        });
        let pid = Pid::from_raw(pool.workers()[0].pid as i32);
        kill(pid, Signal::SIGKILL).unwrap();
        let result = outer.result();
        assert!(matches!(result, Err(JobError::Died(_))), "{result:?}");
        for worker in inner {
            assert!(worker.ends_within(Duration::from_secs(5)), "{} lives on", worker.pid);
        }
        pool.submit(|()| (), ()).result().unwrap();
    });
}
