//! Section N: the death of a worker costs its job alone, and its future says what happened.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::{Death, JobError, Oom, Phase, ProcessPool, Shutdown, Status};

use super::encoding::{Deadly, DiesInDecode, DiesInEncode};
use super::jobs::{Marks, Raw, double, exit, mark, pid, segv, wait_and_die};
use super::{Pool, hold};
use crate::support::{Meeting, test};

fn death<R: std::fmt::Debug>(result: Result<R, JobError>) -> Death {
    match result {
        Err(JobError::Died(death)) => death,
        other => panic!("{other:?}"),
    }
}

/// Goal: a death fails the job that ran and nobody else: jobs that wait, jobs that were handed to the same
/// worker, jobs of other workers, and later ones.
///
/// Covers: 144, 147, 151, 153, Y3, Y12
#[test]
fn a_death_fails_its_culprit_alone() {
    test(|| {
        let pool = ProcessPool::of(3);
        let meeting = Meeting::new();
        let (one, first) = hold(&pool, &meeting);
        let (two, second) = hold(&pool, &meeting);
        let culprit = pool.submit(wait_and_die, (meeting.path(), 1));
        let third = meeting.next();
        let waiting: Vec<_> = (0..50).map(|n| pool.submit(double, n)).collect();
        let before: BTreeSet<_> = pool.workers().iter().map(|w| w.pid).collect();
        third.go();
        let death = death(culprit.result());
        assert!(before.contains(&death.pid));
        assert_eq!(death.status, Status::Signal(libc::SIGSEGV, false));
        assert_eq!((death.phase, death.attempt, death.oom), (Phase::Run, 1, Oom::No));
        for (n, future) in waiting.into_iter().enumerate() {
            let outcome = future.outcome();
            assert_eq!(outcome.result.unwrap(), n as u64 * 2);
            assert_eq!(outcome.report.attempts, 1);
        }
        assert!(one.is_running() && two.is_running());
        first.go();
        second.go();
        for held in [one, two] {
            let outcome = held.outcome();
            assert_eq!(outcome.result.unwrap(), "held");
            assert!(before.contains(&outcome.report.pid.unwrap()));
        }
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
        assert_eq!(pool.stats().deaths, 1);
    });
}

/// Goal: each death has its own report, whose text names job, signal or exit code, worker, pid, phase and
/// attempt.
///
/// Covers: 145, 146, X3
#[test]
fn a_death_says_what_happened() {
    test(|| {
        let pool =
            ProcessPool::builder().workers(2).stderr(procpool::Output::Capture).build().unwrap();
        let futures = [
            pool.submit(segv, 1),
            pool.submit(exit, 0),
            pool.submit(exit, 77),
            pool.submit(|_: i32| std::process::abort(), 1),
        ];
        let words = ["SIGSEGV", "exit code 0", "exit code 77", "SIGABRT"];
        let mut pids = BTreeSet::new();
        for (future, word) in futures.into_iter().zip(words) {
            let id = future.id();
            let outcome = future.outcome();
            assert_eq!(outcome.report.attempts, 1);
            let error = outcome.result.unwrap_err();
            let text = error.to_string();
            let start = format!("job {id} ({}:", file!());
            assert!(text.starts_with(&start), "{text}");
            assert!(text.contains(word), "{text}");
            assert!(text.contains("while running, attempt 1"), "{text}");
            let death = death::<u64>(Err(error));
            assert!(text.contains(&format!("(pid {})", death.pid)), "{text}");
            assert_eq!(outcome.report.pid, Some(death.pid));
            assert!(pids.insert(death.pid));
        }
    });
}

fn last_words(_: u64) -> u64 {
    eprintln!("first line");
    eprint!("the last words\u{1b}[31m");
    super::jobs::bad_write()
}

/// Goal: the last lines that the worker wrote to its standard error are in the report, and in its text with
/// control characters escaped.
///
/// Covers: 146
#[test]
fn a_death_has_the_last_words() {
    test(|| {
        let pool =
            ProcessPool::builder().workers(1).stderr(procpool::Output::Capture).build().unwrap();
        let error = pool.submit(last_words, 1).result().unwrap_err();
        let text = error.to_string();
        let tail = death::<u64>(Err(error)).stderr_tail;
        assert!(tail.ends_with("first line\nthe last words\u{1b}[31m"), "{tail:?}");
        assert!(text.contains("first line\\nthe last words\\u{1b}[31m"), "{text}");
    });
}

/// Goal: a death while the argument is decoded or the result encoded is the same, and says the phase.
///
/// Covers: 148, 149, 156, 159
#[test]
fn a_death_says_its_phase() {
    test(|| {
        let pool = ProcessPool::of(1);
        for how in [Deadly::Segv, Deadly::Exit] {
            let decode = death(pool.submit(|_: DiesInDecode| (), DiesInDecode::new(how)).result());
            assert_eq!(decode.phase, Phase::Decode);
            let encode = |how: Deadly| DiesInEncode(how);
            let encode = death(pool.submit(encode, how).result());
            assert_eq!(encode.phase, Phase::Encode);
            for death in [decode, encode] {
                match how {
                    Deadly::Segv => assert_eq!(death.status, Status::Signal(libc::SIGSEGV, false)),
                    Deadly::Exit => assert_eq!(death.status, Status::Exit(5)),
                }
            }
            assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
        }
    });
}

fn die_with((path, data): (String, Raw)) -> usize {
    super::jobs::wait_at((path, "large".into()));
    if data.0.len() > 1 { super::jobs::bad_write() } else { data.0.len() }
}

/// Goal: a death while a large argument is on its way to the worker is an error and no deadlock.
///
/// Covers: 150, X17
#[test]
fn a_death_with_large_data_in_flight_is_an_error() {
    test(|| {
        let pool = ProcessPool::of(1);
        let meeting = Meeting::new();
        let culprit = pool.submit(die_with, (meeting.path(), Raw(vec![1; 8 << 20])));
        let guest = meeting.next();
        let behind: Vec<_> =
            (0..3).map(|_| pool.submit(|data: Raw| data.0.len(), Raw(vec![2; 8 << 20]))).collect();
        guest.go();
        assert_eq!(death(culprit.result()).phase, Phase::Run);
        for future in behind {
            assert_eq!(future.result().unwrap(), 8 << 20);
        }
    });
}

/// Goal: jobs that were cancelled stay cancelled when their worker dies.
///
/// Covers: 152
#[test]
fn a_death_changes_nothing_for_the_cancelled() {
    test(|| {
        let pool = ProcessPool::of(1);
        let meeting = Meeting::new();
        let marks = Marks::new();
        let culprit = pool.submit(wait_and_die, (meeting.path(), 1));
        let guest = meeting.next();
        let behind: Vec<_> = (0..20).map(|n| pool.submit(mark, marks.line(n))).collect();
        assert!(behind.iter().step_by(2).all(|future| future.cancel()));
        guest.go();
        assert!(matches!(culprit.result(), Err(JobError::Died(_))));
        pool.shutdown(Shutdown::Drain);
        for (n, future) in behind.into_iter().enumerate() {
            assert_eq!(future.is_cancelled(), n % 2 == 0);
        }
        let odd: Vec<_> = (0..20).skip(1).step_by(2).map(|n| n.to_string()).collect();
        assert_eq!(marks.lines(), odd);
    });
}

/// Goal: results that were there before the death are delivered.
/// Method: the jobs before the culprit run in the same worker without the pool hearing of each; a chunk
/// holds its results back until it is done or dies.
///
/// Covers: 154, X4
#[test]
fn a_death_takes_no_finished_result_with_it() {
    test(|| {
        let pool = ProcessPool::of(1);
        let meeting = Meeting::new();
        let (_held, guest) = hold(&pool, &meeting);
        let before: Vec<_> = (0..30).map(|n| pool.submit(double, n)).collect();
        let culprit = pool.submit(segv, 1);
        let after = pool.submit(pid, ());
        guest.go();
        for (n, future) in before.into_iter().enumerate() {
            let outcome = future.outcome();
            assert_eq!(outcome.result.unwrap(), n as u64 * 2);
            assert_eq!(outcome.report.attempts, 1);
        }
        let dead = death(culprit.result()).pid;
        assert_ne!(after.result().unwrap(), dead);
    });
}

/// A result whose Drop kills the worker.
#[derive(serde::Serialize, serde::Deserialize)]
struct DeadlyDrop(u32);

impl Drop for DeadlyDrop {
    fn drop(&mut self) {
        if self.0 != std::process::id() {
            super::jobs::bad_write();
        }
    }
}

/// Goal: a result is recorded before it is dropped: a Drop that goes wrong costs the worker, never the
/// result, and the next job not at all.
///
/// Covers: X4
#[test]
fn a_deadly_drop_costs_the_worker_not_the_result() {
    test(|| {
        let pool = ProcessPool::of(1);
        for n in 0..3 {
            let future = pool.submit(DeadlyDrop, std::process::id());
            let behind = pool.submit(double, n);
            assert_eq!(future.result().unwrap().0, std::process::id());
            assert_eq!(behind.result().unwrap(), n * 2);
        }
    });
}

/// Goal: an idle worker that is killed is replaced, and no job pays for it.
#[test]
fn the_death_of_an_idle_worker_is_nobodys() {
    test(|| {
        let pool = ProcessPool::of(1);
        for n in 0..5 {
            let worker = pool.submit(pid, ()).result().unwrap();
            kill(Pid::from_raw(worker as i32), Signal::SIGKILL).unwrap();
            let outcome = pool.submit(pid, ()).outcome();
            assert_ne!(outcome.result.unwrap(), worker, "round {n}");
            assert_eq!(outcome.report.attempts, 1);
        }
        assert_eq!((pool.stats().deaths, pool.stats().failed), (5, 0));
    });
}

fn attempt_and_die((marks, survive_from): (String, u32)) -> u32 {
    let attempt = procpool::context().unwrap().attempt();
    mark((marks, attempt.to_string()));
    if attempt < survive_from {
        super::jobs::bad_write();
    }
    attempt
}

/// Goal: a job that may be retried runs again after a death, sees which attempt it is, and its report
/// counts them. One that kills every worker it gets is quarantined.
#[test]
fn retries_run_a_deadly_job_again() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).retries(2).build().unwrap();
        let marks = Marks::new();
        let outcome = pool.submit(attempt_and_die, (marks.path(), 3)).outcome();
        assert_eq!(outcome.result.unwrap(), 3);
        assert_eq!(outcome.report.attempts, 3);
        assert_eq!(marks.lines(), ["1", "2", "3"]);

        let outcome = pool.submit(attempt_and_die, (marks.path(), 9)).outcome();
        assert_eq!(outcome.report.attempts, 3);
        let Err(JobError::Quarantined { attempts, last, .. }) = outcome.result else {
            panic!("{:?}", outcome.result)
        };
        assert_eq!(attempts, 3);
        assert_eq!(death::<()>(Err(*last)).attempt, 3);

        // A job's own number replaces the pool's.
        let job = pool.job(attempt_and_die, (marks.path(), 9)).retries(0);
        assert_eq!(death(job.submit().result()).attempt, 1);
        let job = pool.job(attempt_and_die, (marks.path(), 9)).retries(1);
        assert!(matches!(job.submit().result(), Err(JobError::Quarantined { attempts: 2, .. })));
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
    });
}

/// Goal: only deaths are retried: a panic, a time limit and an encoding error are final.
#[test]
fn retries_are_for_deaths_alone() {
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .retries(5)
            .grace(Duration::from_millis(1))
            .build()
            .unwrap();
        let outcomes = [
            pool.submit(super::jobs::fail, 1).outcome(),
            pool.job(super::jobs::hang, 1).timeout(Duration::from_millis(20)).submit().outcome(),
        ];
        assert!(matches!(outcomes[0].result, Err(JobError::Panicked(_))));
        assert!(matches!(outcomes[1].result, Err(JobError::TimedOut(_))));
        assert!(outcomes.iter().all(|outcome| outcome.report.attempts == 1));
        let outcome = pool.submit(super::encoding::refuse_result, 1).outcome();
        assert!(matches!(outcome.result, Err(JobError::Encode(_))));
        assert_eq!(outcome.report.attempts, 1);
    });
}
