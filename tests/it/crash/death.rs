//! Workers that die under no job, or under somebody else's.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use procpool::{JobError, Phase, ProcessPool, Status, WorkerState};

use super::fault::Fault;
use super::ledger::{Ledger, note};
use super::{at_best, died, hang, kill_worker};
use crate::support::{Guest, Meeting, meet, say, test, wait_gone, wait_until};

/// Goal: an idle worker that is killed is nobody's fault: it is replaced, in its slot, and no job notices.
#[test]
fn a_worker_killed_while_idle_is_replaced_without_blame() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        pool.warm_up().unwrap();
        for round in 1..=20 {
            let victim = pool.workers()[0].clone();
            let other = pool.workers()[1].pid;
            kill_worker(victim.pid);
            // At once, so that some jobs are sent to the dying worker; they have to be taken back.
            let futures = [0; 4].map(|_| pool.submit(|()| (), ()));
            for future in futures {
                let outcome = future.outcome();
                outcome.result.unwrap();
                assert_eq!(outcome.report.attempts, 1);
            }
            wait_until("a replacement is ready", || {
                let now = pool.workers();
                now.len() == 2
                    && now[0].pid != victim.pid
                    && now.iter().all(|worker| worker.state == WorkerState::Idle)
            });
            assert_eq!(pool.workers()[1].pid, other);
            assert_eq!(pool.stats().deaths, round);
        }
        assert_eq!(pool.stats().failed, 0);
    });
}

/// Goal: a worker that is killed while it starts costs no job anything.
#[test]
fn a_worker_killed_while_starting_costs_no_job() {
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder()
            .workers(1)
            .initializer(|path: String| meet(&path, "starting"), meeting.path())
            .build()
            .unwrap();
        let futures: Vec<_> = (0..10_u64).map(|n| pool.submit(|n| n, n)).collect();
        let guest = meeting.next();
        let worker = pool.workers()[0].clone();
        assert_eq!(worker.state, WorkerState::Starting);
        kill_worker(worker.pid);
        meeting.next().go();
        drop(guest);
        for (n, future) in (0..).zip(futures) {
            let outcome = future.outcome();
            assert_eq!(outcome.result.unwrap(), n);
            assert_eq!(outcome.report.attempts, 1);
        }
        assert_eq!((pool.stats().deaths, pool.stats().spawned), (1, 2));
    });
}

/// Goal: a worker killed in the middle of a job is that job's death, and says which process it was.
#[test]
fn a_worker_killed_under_a_job_is_the_death_of_that_job() {
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let future = pool.submit(|path: String| meet(&path, ""), meeting.path());
        let _guest = meeting.next();
        let pid = pool.workers()[0].pid;
        kill_worker(pid);
        let death = died(future.result());
        assert_eq!(death.status, Status::Signal(libc::SIGKILL, false));
        assert_eq!((death.phase, death.pid), (Phase::Run, pid));
    });
}

/// Goal: an exit in the middle of a job is no success, whatever its code, and is told at once.
/// Covers: F-4, F-5
#[test]
fn an_exit_in_a_job_is_a_death_that_is_told_at_once() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let exits = [
            (Fault::ExitZero, 0),
            (Fault::BareExit, 0),
            (Fault::ExitThree, 3),
            (Fault::ExitElsewhere, 7),
        ];
        for (fault, code) in exits {
            let took = at_best(5, || {
                let begun = Instant::now();
                let death = died(pool.submit(Fault::strike, fault).result());
                assert_eq!((death.status, death.phase), (Status::Exit(code), Phase::Run));
                begun.elapsed()
            });
            assert!(took < Duration::from_secs(1), "{fault:?}: {took:?}");
        }
    });
}

/// Goal: jobs that had been handed to a worker that dies, and were not started, run elsewhere as their
/// first attempt; and they run once.
/// Covers: F-37
#[test]
fn bystanders_of_a_crash_run_elsewhere_as_their_first_attempt() {
    test(|| {
        let (meeting, ledger) = (Meeting::new(), Ledger::new());
        for retries in [0, 3] {
            let pool = ProcessPool::builder().workers(1).retries(retries).build().unwrap();
            let crash = |path: String| {
                meet(&path, "");
                Fault::Segfault.strike();
            };
            let culprit = pool.job(crash, meeting.path()).retries(0).submit();
            let guest = meeting.next();
            let bystanders: Vec<_> = (0..20)
                .map(|n| pool.submit(|(n, path): (u64, String)| note(&path, n), (n, ledger.path())))
                .collect();
            guest.go();
            died(culprit.result());
            for future in bystanders {
                let outcome = future.outcome();
                outcome.result.unwrap();
                assert_eq!(outcome.report.attempts, 1);
            }
            assert_eq!(pool.stats().deaths, 1);
        }
        let attempts = ledger.attempts();
        assert_eq!(attempts.len(), 20);
        assert!(attempts.values().all(|attempts| *attempts == [1, 1]));
    });
}

/// Goal: one bad job among a thousand costs itself, and no worker that did not run it.
/// Covers: F-1
#[test]
fn a_crash_among_a_thousand_jobs_costs_one_job_and_one_worker() {
    test(|| {
        let pool = ProcessPool::builder().workers(4).build().unwrap();
        pool.warm_up().unwrap();
        let before = pool.workers();
        let job = |n: u64| {
            if n == 500 {
                Fault::Segfault.strike();
            }
            n
        };
        let futures: Vec<_> = (0..1_000).map(|n| pool.submit(job, n)).collect();
        for (n, future) in (0..).zip(futures) {
            let outcome = future.outcome();
            assert_eq!(outcome.report.attempts, 1, "{n}");
            match outcome.result {
                Err(error) if n == 500 => {
                    let death = died::<()>(Err(error));
                    assert_eq!(death.status, Status::Signal(libc::SIGSEGV, false));
                    assert_eq!(death.phase, Phase::Run);
                }
                result => assert_eq!(result.unwrap(), n),
            }
        }
        pool.warm_up().unwrap();
        let now = pool.workers();
        let same = before.iter().zip(&now).filter(|(b, n)| b.pid == n.pid);
        assert_eq!(same.count(), 3);
    });
}

/// Goal: with retries a job that kills every worker is given up, after exactly as many as allowed, and
/// the pool does not suffer from it.
#[test]
fn a_poison_job_is_quarantined_after_its_retries() {
    test(|| {
        let ledger = Ledger::new();
        let pool = ProcessPool::builder().workers(2).retries(2).build().unwrap();
        let job = |(n, path): (u64, String)| {
            note(&path, n);
            if n == 5 {
                Fault::Abort.strike();
            }
        };
        let futures: Vec<_> = (0..10).map(|n| pool.submit(job, (n, ledger.path()))).collect();
        for (n, future) in (0..).zip(futures) {
            let outcome = future.outcome();
            if n != 5 {
                outcome.result.unwrap();
                continue;
            }
            assert_eq!(outcome.report.attempts, 3);
            match outcome.result {
                Err(JobError::Quarantined { attempts, last, .. }) => {
                    assert_eq!(attempts, 3);
                    assert_eq!(died::<()>(Err(*last)).attempt, 3);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(pool.stats().deaths, 3);
        assert_eq!(ledger.attempts()[&5], [1, 2, 3]);
        assert_eq!(ledger.attempts()[&6], [1]);
    });
}

/// Goal: a worker that fails while it drops a result has sent that result.
/// Covers: F-39
#[test]
fn no_result_is_lost_when_its_drop_crashes_a_thousand_times() {
    test(|| {
        #[derive(Debug, serde::Serialize, serde::Deserialize)]
        struct Fatal(u64);
        impl Drop for Fatal {
            fn drop(&mut self) {
                if procpool::context().is_some() {
                    Fault::Segfault.strike();
                }
            }
        }
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let futures: Vec<_> = (0..1_000).map(|n| pool.submit(Fatal, n)).collect();
        for (n, future) in (0..).zip(futures) {
            let outcome = future.outcome();
            assert_eq!(outcome.result.unwrap().0, n);
            assert_eq!(outcome.report.attempts, 1);
        }
        // In chunks each result is the last one of its worker, too.
        for (n, result) in (0..).zip(pool.map(Fatal, 0..100).chunk_size(10)) {
            assert_eq!(result.unwrap().0, n);
        }
        wait_until("every death is booked", || pool.stats().deaths == 1_100);
    });
}

/// Goal: a crash while the pool is being shut down ends the shutdown, not hangs it.
#[test]
fn a_crash_during_a_drain_ends_its_job_and_the_drain() {
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let crash = |path: String| {
            meet(&path, "");
            Fault::ExitZero.strike();
        };
        let culprits = [0; 2].map(|_| pool.submit(crash, meeting.path()));
        let guests = [meeting.next(), meeting.next()];
        let waiting: Vec<_> = (0..10_u64).map(|n| pool.submit(|n| n, n)).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(pool));
            guests.into_iter().for_each(Guest::go);
            for culprit in culprits {
                assert_eq!(died(culprit.result()).status, Status::Exit(0));
            }
        });
        for (n, future) in (0..).zip(waiting) {
            assert_eq!(future.result().unwrap(), n);
        }
    });
}

/// Goal: a pool that is dropped by a panic kills what runs, and ends.
#[test]
fn a_pool_dropped_while_unwinding_leaves_no_worker() {
    test(|| {
        let meeting = Meeting::new();
        let path = meeting.path();
        let (kept, pid) = (Mutex::new(None), Mutex::new(0));
        let result = std::panic::catch_unwind(|| {
            let pool = ProcessPool::builder().workers(1).build().unwrap();
            let job = |path: String| {
                say(&path, &std::process::id().to_string());
                hang();
            };
            *kept.lock().unwrap() = Some(pool.submit::<_, ()>(job, path));
            *pid.lock().unwrap() = meeting.next().word.parse().unwrap();
            std::panic::resume_unwind(Box::new("the reason to drop the pool"));
        });
        result.unwrap_err();
        wait_gone(pid.into_inner().unwrap());
        let future = kept.into_inner().unwrap().unwrap();
        assert!(matches!(future.result(), Err(JobError::Cancelled { started: true })));
    });
}
