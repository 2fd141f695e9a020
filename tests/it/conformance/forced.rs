//! Section Q: a forced shutdown.

use std::process::Command;
use std::time::{Duration, Instant};

use procpool::{JobError, ProcessPool, Shutdown};

use super::jobs::{Marks, double, hang, mark, pid};
use super::{Pool, hold};
use crate::support::{Meeting, children, is_alive, meet, say, test};

fn meet_and_mark((meeting, marks): (String, String)) {
    meet(&meeting, "running");
    // The meeting's end is the death of the host's side of it, which must not be taken for leave to go on.
    hang_unless_told(&meeting);
    mark((marks, "finished".into()));
}

fn hang_unless_told(meeting: &str) {
    meet(meeting, "second");
}

/// Goal: an abort ends running jobs as started, waiting ones as not started, and no later effect of either
/// is seen. Afterwards submits are refused.
///
/// Covers: 163, 164, 167, 168, Y5
#[test]
fn an_abort_ends_what_runs_and_what_waits() {
    test(|| {
        let pool = ProcessPool::of(2);
        let meeting = Meeting::new();
        let marks = Marks::new();
        let running: Vec<_> =
            (0..2).map(|_| pool.submit(meet_and_mark, (meeting.path(), marks.path()))).collect();
        let first = meeting.next();
        let second = meeting.next();
        first.go();
        second.go();
        let _guests = (meeting.next(), meeting.next());
        let waiting: Vec<_> = (0..20).map(|_| pool.submit(mark, marks.line("waited"))).collect();
        pool.shutdown(Shutdown::Abort);
        assert!(children().is_empty());
        drop(_guests);
        for future in running {
            let outcome = future.outcome();
            assert!(matches!(outcome.result, Err(JobError::Cancelled { started: true })));
            assert_eq!(outcome.report.attempts, 1);
        }
        for future in waiting {
            let outcome = future.outcome();
            assert!(matches!(outcome.result, Err(JobError::Cancelled { started: false })));
            assert_eq!(outcome.report.attempts, 0);
        }
        assert!(marks.lines().is_empty());
        assert!(matches!(pool.submit(double, 1).result(), Err(JobError::Closed)));
        let stats = pool.stats();
        assert_eq!((stats.cancelled, stats.running, stats.queued), (22, 0, 0));
    });
}

/// Goal: an abort before any worker exists is nothing special.
///
/// Covers: 166, 167
#[test]
fn an_abort_of_an_unused_pool_is_harmless() {
    test(|| {
        let pool = ProcessPool::of(2);
        pool.shutdown(Shutdown::Abort);
        assert!(matches!(pool.submit(double, 1).result(), Err(JobError::Closed)));
        assert_eq!(pool.stats().spawned, 0);
    });
}

/// Goal: an abort is prompt although much is queued and jobs hang.
///
/// Covers: X5
#[test]
fn an_abort_is_prompt() {
    test(|| {
        let pool = ProcessPool::of(2);
        let meeting = Meeting::new();
        let hanging: Vec<_> = (0..200).map(|n| pool.submit(hang, n)).collect();
        let start = Instant::now();
        pool.shutdown(Shutdown::Abort);
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(hanging.iter().all(|future| future.is_cancelled()));
        drop(meeting);
    });
}

#[expect(unsafe_code, reason = "to ignore a signal is a system call on the whole process")]
fn ignore_sigterm() {
    // SAFETY: no handler of ours is installed, the signal is only ignored.
    unsafe {
        nix::sys::signal::signal(
            nix::sys::signal::Signal::SIGTERM,
            nix::sys::signal::SigHandler::SigIgn,
        )
    }
    .unwrap();
}

fn deaf(meeting: String) {
    ignore_sigterm();
    meet(&meeting, "deaf");
    hang(0);
}

/// Goal: a job that ignores SIGTERM is killed when the grace is over, and the next worker hears again.
///
/// Covers: Y4
#[test]
fn a_job_that_ignores_sigterm_is_killed() {
    test(|| {
        let grace = Duration::from_millis(50);
        let pool = ProcessPool::builder().workers(1).grace(grace).build().unwrap();
        let meeting = Meeting::new();
        let future = pool.submit(deaf, meeting.path());
        meeting.next().go();
        let start = Instant::now();
        future.abort();
        assert!(matches!(future.result(), Err(JobError::Cancelled { started: true })));
        assert!(start.elapsed() >= grace);
        let future = pool.submit(deaf, meeting.path());
        meeting.next().go();
        pool.shutdown(Shutdown::Abort);
        assert!(future.is_cancelled());
    });
}

/// Starts a process of its own, says its number, and waits for it.
#[expect(clippy::disallowed_methods, reason = "a job may start processes as it likes")]
fn parent(meeting: String) {
    let mut child = Command::new("sleep").arg("3600").spawn().unwrap();
    say(&meeting, &child.id().to_string());
    let _ = child.wait();
}

/// Goal: what a job has started goes with it: no descendant is left when the shutdown returns.
///
/// Covers: 168, 170, X5
#[test]
fn an_abort_takes_grandchildren_along() {
    test(|| {
        for whole_pool in [false, true] {
            let pool = ProcessPool::of(1);
            let meeting = Meeting::new();
            let future = pool.submit(parent, meeting.path());
            let grandchild: u32 = meeting.next().word.parse().unwrap();
            assert!(is_alive(grandchild));
            if whole_pool {
                pool.shutdown(Shutdown::Abort);
                assert!(future.is_done());
            } else {
                future.abort();
                assert!(future.result().is_err());
            }
            crate::support::wait_gone(grandchild);
        }
    });
}

/// Goal: an abort tolerates workers that are dead or about to die.
///
/// Covers: 165
#[test]
fn an_abort_tolerates_dead_workers() {
    test(|| {
        use nix::sys::signal::{Signal, kill};
        let pool = ProcessPool::of(2);
        let meeting = Meeting::new();
        let (held, _guest) = hold(&pool, &meeting);
        let idle = pool.submit(pid, ()).result().unwrap();
        for worker in pool.workers() {
            kill(nix::unistd::Pid::from_raw(worker.pid as i32), Signal::SIGKILL).unwrap();
        }
        pool.shutdown(Shutdown::Abort);
        assert!(!is_alive(idle));
        assert!(matches!(
            held.result(),
            Err(JobError::Died(_) | JobError::Cancelled { started: true })
        ));
    });
}
