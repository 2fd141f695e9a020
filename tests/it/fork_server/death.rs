//! A fork server that dies, whenever it does: it costs no job.

use std::process;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::{JobError, Output, Shutdown};

use super::{builder, find_server, leaves_nobody};
use crate::support::{Meeting, Random, is_alive, meet, spare_pids, test, wait_gone, wait_until};

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

fn wait_for_another(than: u32) -> u32 {
    wait_until("another server", || find_server().is_some_and(|pid| pid != than));
    find_server().unwrap()
}

fn abort(_: ()) {
    process::abort();
}

/// Goal: a server that is killed while nobody needs it is replaced; its workers do not notice, and those that come
/// later are its successor's.
#[test]
fn a_server_killed_while_idle_is_replaced() {
    test(|| {
        let pool = builder(2).stderr(Output::Capture).build().unwrap();
        pool.warm_up().unwrap();
        let mut pids: Vec<u32> = pool.workers().iter().map(|worker| worker.pid).collect();
        let mut server = find_server().unwrap();
        for deaths in 0..3 {
            signal(server, Signal::SIGKILL);
            server = wait_for_another(server);
            assert!(pool.workers().iter().all(|worker| pids.contains(&worker.pid)));
            assert_eq!(pool.stats().deaths, deaths, "a server is no worker");
            // The new one is ready once it has forked a worker, or the spare that comes after a death.
            pool.submit(abort, ()).result().unwrap_err();
            pool.warm_up().unwrap();
            wait_until("a spare", || spare_pids(&pool).len() == 1);
            pids = pool.workers().iter().map(|worker| worker.pid).collect();
        }
        assert_eq!(pool.stats().deaths, 3);
        leaves_nobody(pool);
    });
}

/// Goal: jobs that run while their server is killed end as if nothing had happened.
#[test]
fn a_server_killed_while_jobs_run_costs_no_job() {
    fn work(path: String) -> u32 {
        meet(&path, "running");
        process::id()
    }
    test(|| {
        let pool = builder(2).build().unwrap();
        let meeting = Meeting::new();
        let futures = [(); 2].map(|()| pool.submit(work, meeting.path()));
        let guests = [(); 2].map(|()| meeting.next());
        let server = find_server().unwrap();
        signal(server, Signal::SIGKILL);
        wait_gone(server);
        let workers = pool.workers();
        guests.into_iter().for_each(crate::support::Guest::go);
        for future in futures {
            let outcome = future.outcome();
            let pid = outcome.result.unwrap();
            assert!(workers.iter().any(|worker| worker.pid == pid));
            assert_eq!(outcome.report.attempts, 1);
        }
        leaves_nobody(pool);
    });
}

/// Goal: a server that is killed at any moment while it forks loses no worker, no job, and nobody stays a zombie.
/// Method: each job needs a new worker, and a thread kills the server again and again. The pauses are not
/// synchronisation: at any moment the same must hold.
#[test]
fn a_server_killed_while_it_forks_costs_no_job() {
    const JOBS: u32 = 300;
    test(|| {
        let mut random = Random::new();
        let pool = builder(3)
            .max_jobs_per_worker(1)
            .restart_limit(1_000, Duration::from_secs(10))
            .build()
            .unwrap();
        let futures: Vec<_> = (0..JOBS).map(|n| pool.submit(|n: u32| n, n)).collect();
        let (mut kills, mut spawned) = (0, 0);
        while futures.iter().any(|future| !future.is_done()) {
            // One that has forked nobody yet is spared more often than not: on a busy machine none would ever get on.
            let gets_on = pool.stats().spawned > spawned || random.below(4) == 0;
            if let Some(server) = find_server().filter(|_| gets_on) {
                spawned = pool.stats().spawned;
                let _ = kill(Pid::from_raw(server as i32), Signal::SIGKILL);
                kills += 1;
            }
            thread::sleep(Duration::from_micros(random.below(20_000)));
        }
        for (n, future) in futures.into_iter().enumerate() {
            let outcome = future.outcome();
            assert_eq!(outcome.result.unwrap(), n as u32);
            assert_eq!(outcome.report.attempts, 1, "it never started twice");
        }
        println!("{kills} servers killed");
        assert!(kills > 1);
        leaves_nobody(pool);
    });
}

/// Goal: a server that is stopped does not stop the pool: it is killed when a worker is not ready in time, and
/// replaced.
#[test]
fn a_stopped_server_is_replaced() {
    test(|| {
        let pool = builder(1)
            .max_jobs_per_worker(1)
            .start_timeout(Duration::from_millis(500))
            .restart_limit(20, Duration::from_secs(10))
            .build()
            .unwrap();
        pool.submit(|()| (), ()).result().unwrap();
        pool.warm_up().unwrap();
        let server = find_server().unwrap();
        signal(server, Signal::SIGSTOP);
        // The worker that there is takes the first.
        for n in 0..3 {
            assert_eq!(pool.submit(|n: u32| n, n).result().unwrap(), n);
        }
        assert!(!is_alive(server));
        leaves_nobody(pool);
    });
}

/// Goal: a stopped server does not hold up the end of its pool beyond the grace.
#[test]
fn a_stopped_server_does_not_hold_up_a_shutdown() {
    test(|| {
        let pool = builder(2).grace(Duration::from_millis(200)).build().unwrap();
        pool.warm_up().unwrap();
        signal(find_server().unwrap(), Signal::SIGSTOP);
        pool.shutdown(Shutdown::Drain);
        leaves_nobody(pool);
    });
}

/// Goal: a preload that closes what the server needs to hear its pool breaks the pool, with the cause.
#[test]
fn a_server_that_hears_nothing_breaks_the_pool() {
    fn close_everything(_: ()) {
        for fd in 3..64 {
            let _ = nix::unistd::close(fd);
        }
    }
    test(|| {
        let pool = builder(2).preload(close_everything, ()).build().unwrap();
        match pool.submit(|()| (), ()).result() {
            Err(JobError::Broken(error)) => {
                assert!(error.to_string().contains("the fork server"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        leaves_nobody(pool);
    });
}
