//! Workers that end: by plan, by accident, often.

use std::collections::HashSet;
use std::fs;
use std::process;
use std::thread;
use std::time::Duration;

use procpool::{JobError, Output, ProcessPool, context};

use crate::support::{Meeting, Random, children, meet, test};

fn abort(_: ()) {
    process::abort();
}

/// Goal: each of many workers runs one job, and none is left.
#[test]
fn two_hundred_workers_can_be_recycled() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).max_jobs_per_worker(1).build().unwrap();
        let futures: Vec<_> = (0..200).map(|_| pool.submit(|()| process::id(), ())).collect();
        let pids: HashSet<u32> =
            futures.into_iter().map(|future| future.result().unwrap()).collect();
        // Ids are reused only after some ten thousand others.
        assert_eq!(pids.len(), 200);
        assert_eq!(pool.stats().deaths, 0, "a planned end is no death");
    });
}

/// Goal: a worker that was asked to stop its last job is replaced like any other that has done its share.
#[test]
fn a_worker_whose_last_job_was_stopped_is_replaced() {
    fn wait_to_be_asked(path: String) {
        let context = context().unwrap();
        meet(&path, "running");
        while !context.is_cancelled() {
            thread::yield_now();
        }
    }
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .max_jobs_per_worker(1)
            .grace(Duration::from_secs(30))
            .build()
            .unwrap();
        let meeting = Meeting::new();
        let future = pool.submit(wait_to_be_asked, meeting.path());
        meeting.next().go();
        future.abort();
        let result = future.result();
        assert!(matches!(result, Err(JobError::Cancelled { started: true })), "{result:?}");
        let next = pool.submit(|()| (), ());
        assert!(next.wait_timeout(Duration::from_secs(20)), "{:?}", pool.workers());
    });
}

/// Goal: a job never waits behind another while a slot is empty, whenever it was submitted.
/// Method: the second job comes at a random moment of the start of the first one's worker, and has to run
/// while the first one does. The time is not synchronisation: at any moment the same must hold.
#[test]
fn a_job_submitted_while_a_worker_starts_gets_one_of_its_own() {
    test(|| {
        let mut random = Random::new();
        for round in 0..60 {
            let pool = ProcessPool::builder().workers(2).build().unwrap();
            let meeting = Meeting::new();
            let first = pool.submit(|path: String| meet(&path, "first"), meeting.path());
            thread::sleep(Duration::from_micros(random.below(10_000)));
            let second = pool.submit(|n: u32| n, round);
            let guest = meeting.next();
            assert!(second.wait_timeout(Duration::from_secs(10)), "round {round}");
            guest.go();
            first.result().unwrap();
        }
    });
}

/// Goal: hundreds of crashes leave nothing behind in the host.
/// Method: what is held after the first crashes is what is held after the last.
#[test]
fn crashes_leave_nothing_behind() {
    fn held() -> (usize, usize, usize) {
        let count = |dir: &str| fs::read_dir(dir).unwrap().count();
        (count("/proc/self/fd"), count("/proc/self/task"), children().len())
    }
    test(|| {
        let pool = ProcessPool::builder().workers(2).stderr(Output::Capture).build().unwrap();
        let crash = |times: u32| {
            for _ in 0..times {
                let result = pool.submit(abort, ()).result();
                assert!(matches!(result, Err(JobError::Died(_))), "{result:?}");
            }
            pool.warm_up().unwrap();
            held()
        };
        let before = crash(10);
        let after = crash(300);
        assert_eq!(before, after, "descriptors, threads, children");
        assert_eq!(pool.stats().deaths, 310);
    });
}
