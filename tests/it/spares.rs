//! Processes that are ready beside workers that are used again: the next worker costs a hand-over.

use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::{
    Isolation, JobError, Output, ProcessPool, ProcessPoolBuilder, Shutdown, StartMethod, context,
};

use crate::support::{Meeting, children, describe, meet, spare_pids, test, wait_until};

fn builder(method: StartMethod, workers: usize) -> ProcessPoolBuilder {
    ProcessPool::builder().workers(workers).start_method(method).stderr(Output::Capture)
}

/// Ends the pool, and sees to it that it has reaped every child itself.
fn leaves_nobody(pool: ProcessPool) {
    drop(pool);
    let left: Vec<String> = children().into_iter().map(describe).collect();
    assert!(left.is_empty(), "left behind, or not reaped: {left:?}");
}

fn abort(_: ()) {
    process::abort();
}

fn who(_: ()) -> (u32, usize) {
    (process::id(), context().unwrap().worker_index())
}

fn kill_worker(pool: &ProcessPool, index: usize) {
    let worker = pool.workers().into_iter().find(|worker| worker.index == index).unwrap();
    kill(Pid::from_raw(worker.pid as i32), Signal::SIGKILL).unwrap();
}

/// Goal: a pool of forked workers has no spare before a worker has died, however many leave by plan, and one from then
/// on; the next worker is that one, and it is replaced. It is no worker to callers until then.
#[test]
fn a_death_leaves_a_spare_for_the_next() {
    test(|| {
        let pool = builder(StartMethod::ForkServer, 2).max_jobs_per_worker(10).build().unwrap();
        for _ in 0..25 {
            pool.submit(who, ()).result().unwrap();
        }
        pool.warm_up().unwrap();
        assert!(spare_pids(&pool).is_empty(), "nobody has died yet");
        for deaths in 1..5 {
            pool.submit(abort, ()).result().unwrap_err();
            // In this order: the one that is just being taken is the second worker.
            wait_until("two workers and one spare", || {
                pool.workers().len() == 2 && spare_pids(&pool).len() == 1
            });
            let before = spare_pids(&pool);
            let spawned = pool.stats().spawned;
            kill_worker(&pool, 1);
            wait_until("the spare is worker 1", || {
                pool.workers().iter().any(|worker| (worker.index, worker.pid) == (1, before[0]))
            });
            wait_until("another one is spare", || {
                spare_pids(&pool).len() == 1 && spare_pids(&pool) != before
            });
            assert_eq!(pool.stats().spawned, spawned + 1, "a spare is no worker before it is one");
            assert_eq!(pool.stats().deaths, 2 * deaths);
            // Both at once, so that each has a job.
            let meeting = Meeting::new();
            let futures = [(); 2].map(|()| {
                pool.submit(
                    |path: String| {
                        meet(&path, "here");
                        who(())
                    },
                    meeting.path(),
                )
            });
            let guests = [(); 2].map(|()| meeting.next());
            guests.into_iter().for_each(crate::support::Guest::go);
            let seen = futures.map(|future| future.result().unwrap());
            assert!(seen.contains(&(before[0], 1)), "{seen:?}");
        }
        leaves_nobody(pool);
    });
}

/// Goal: a pool whose initializer could take what is there once for each worker has no spare unasked, nor has one
/// whose workers are executed.
#[test]
fn spares_that_cost_something_have_to_be_asked_for() {
    static STARTS: AtomicU64 = AtomicU64::new(0);
    fn count(_: ()) {
        STARTS.fetch_add(1, Ordering::Relaxed);
    }
    test(|| {
        let pools = [
            builder(StartMethod::ForkServer, 2).initializer(count, ()),
            builder(StartMethod::ForkServer, 2).spares(0),
            builder(StartMethod::Spawn, 2),
        ];
        for builder in pools {
            let pool = builder.build().unwrap();
            for _ in 0..5 {
                pool.submit(abort, ()).result().unwrap_err();
                pool.warm_up().unwrap();
                assert!(spare_pids(&pool).is_empty());
            }
            leaves_nobody(pool);
        }
        let asked = builder(StartMethod::ForkServer, 1).initializer(count, ()).spares(1);
        let pool = asked.build().unwrap();
        pool.warm_up().unwrap();
        wait_until("the spare that was asked for", || spare_pids(&pool).len() == 1);
        kill_worker(&pool, 0);
        let seen = pool.submit(|()| STARTS.load(Ordering::Relaxed), ()).result();
        // The job may have reached the old worker before the signal did.
        assert!(matches!(seen, Ok(1) | Err(JobError::Died(_))), "{seen:?}");
        leaves_nobody(pool);
    });
}

/// Goal: as many spares as were asked for are there once a worker was ready, whatever workers are and do; they take
/// the places of those that have run what they shall, or ran into a limit.
#[test]
fn as_many_spares_as_were_asked_for() {
    fn hang(_: ()) {
        loop {
            std::thread::park();
        }
    }
    test(|| {
        for method in [StartMethod::Spawn, StartMethod::ForkServer] {
            let pool = builder(method, 1)
                .spares(2)
                .max_jobs_per_worker(2)
                .grace(Duration::from_millis(20))
                .build()
                .unwrap();
            assert!(children().is_empty(), "nothing is started before the first job");
            let is_ready = || pool.workers().len() == 1 && spare_pids(&pool).len() == 2;
            pool.warm_up().unwrap();
            wait_until("a worker and two spares", is_ready);
            let before = spare_pids(&pool);
            pool.submit(who, ()).result().unwrap();
            // Its last job.
            pool.job(hang, ()).timeout(Duration::from_millis(1)).submit().result().unwrap_err();
            let (pid, index) = pool.submit(who, ()).result().unwrap();
            assert!(before.contains(&pid) && index == 0, "{pid} of {before:?}");
            assert_eq!(pool.submit(who, ()).result().unwrap(), (pid, 0));
            let (next, _) = pool.submit(who, ()).result().unwrap();
            assert!(next != pid);
            wait_until("a worker and two spares", is_ready);
            leaves_nobody(pool);
            let fresh = builder(method, 2).isolation(Isolation::FreshProcess).spares(0);
            let pool = fresh.build().unwrap();
            for _ in 0..5 {
                pool.submit(who, ()).result().unwrap();
                assert!(spare_pids(&pool).is_empty());
            }
            leaves_nobody(pool);
        }
        let error = ProcessPool::builder().spares(5_000).build().unwrap_err();
        assert!(error.is_setting() && error.to_string().contains("spares(5000)"), "{error}");
    });
}

/// Goal: a pool ends at once, whatever its spare is doing: ready, stopped, or in an initializer that does not end.
#[test]
fn a_spare_does_not_hold_up_a_shutdown() {
    fn wait(path: String) {
        meet(&path, "starting");
    }
    test(|| {
        for method in [StartMethod::Spawn, StartMethod::ForkServer] {
            let pool =
                builder(method, 1).spares(1).grace(Duration::from_millis(200)).build().unwrap();
            pool.warm_up().unwrap();
            wait_until("a spare", || spare_pids(&pool).len() == 1);
            kill(Pid::from_raw(spare_pids(&pool)[0] as i32), Signal::SIGSTOP).unwrap();
            pool.shutdown(Shutdown::Drain);
            leaves_nobody(pool);
            let meeting = Meeting::new();
            let pool = builder(method, 1).spares(1).initializer(wait, meeting.path());
            let pool = pool.build().unwrap();
            let future = pool.submit(who, ());
            meeting.next().go();
            future.result().unwrap();
            let spare = meeting.next();
            pool.shutdown(Shutdown::Drain);
            drop(spare);
            leaves_nobody(pool);
        }
    });
}
