//! A forked child of the host: every handle is inert there, and its copies of descriptors keep nothing up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use procpool::{JobError, ProcessPool, Shutdown, Stats, ThreadPool};

use super::jobs::{double, wait_and_die};
use super::{Pool, hold, on_a_daemon, on_both_pools};
use crate::support::{Meeting, meet, test};

/// Runs `body` in a forked child, which ends with 0 if it returns true.
#[expect(unsafe_code, reason = "the test is about a raw fork")]
pub(crate) fn in_child(body: impl FnOnce() -> bool) -> Pid {
    // SAFETY: the child runs `body` and ends; glibc makes malloc usable after a fork, and the handles that
    // `body` touches take no lock in a child, which is what is tested.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let good = catch_unwind(AssertUnwindSafe(body)).unwrap_or(false);
            // SAFETY: ends the process without running what libtest registered for its own end.
            unsafe { libc::_exit(i32::from(!good)) }
        }
    }
}

pub(crate) fn assert_good(child: Pid) {
    let status = waitpid(child, None).unwrap();
    assert_eq!(status, WaitStatus::Exited(child, 0));
}

/// Goal: in a forked child submits are refused, waits end, nothing is cancelled, shutdown and drop return;
/// the host does not notice.
///
/// Covers: 173
fn handles_are_inert_in_a_forked_child<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let waiting = pool.submit(double, 4);
    let ended = pool.submit(double, 5);
    assert!(ended.cancel());
    let child = in_child(|| {
        let refused = matches!(pool.submit(double, 1).result(), Err(JobError::Closed));
        let mapped = pool.map(double, 0..3).all(|r| matches!(r, Err(JobError::Closed)));
        let waits = !held.wait_timeout(Duration::from_secs(3600)) && {
            held.wait();
            !held.is_done()
        };
        let inert = !waiting.cancel() && !waiting.is_cancelled() && !waiting.is_done();
        waiting.abort();
        held.abort();
        let progress = held.progress().is_none();
        waiting.on_done(|_| ());
        pool.shutdown(Shutdown::Drain);
        pool.shutdown(Shutdown::Abort);
        let known = ended.is_cancelled();
        refused && mapped && waits && inert && progress && known
    });
    assert_good(child);
    assert!(held.is_running() && !waiting.is_done());
    guest.go();
    assert_eq!(waiting.result().unwrap(), 8);
    assert_eq!(pool.submit(double, 2).result().unwrap(), 4);
}

/// Goal: taking results and dropping handles in a child returns as well.
fn handles_can_be_used_up_in_a_forked_child<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let mut handles = Some((pool, held));
    let child = in_child(|| {
        let (pool, held) = handles.take().unwrap();
        let closed = matches!(held.result(), Err(JobError::Closed));
        drop(pool);
        closed
    });
    assert_good(child);
    let (pool, held) = handles.take().unwrap();
    guest.go();
    assert_eq!(held.result().unwrap(), "held");
    assert_eq!(pool.submit(double, 2).result().unwrap(), 4);
}

/// Goal: the process pool's own questions are answered in a child, with nothing.
#[test]
fn a_pool_in_a_forked_child_knows_nothing() {
    test(|| {
        let pool = ProcessPool::of(2);
        pool.warm_up().unwrap();
        let child = in_child(|| {
            pool.stats() == Stats::default()
                && pool.workers().is_empty()
                && pool.warm_up().is_err()
                && pool.try_submit(double, 1).is_err_and(|rejected| rejected.arg == 1)
        });
        assert_good(child);
        assert_eq!(pool.workers().len(), 2);
    });
}

/// Goal: a forked child that lives on has copies of all descriptors; deaths and shutdowns are noticed
/// without delay all the same.
#[test]
fn a_living_child_delays_nothing() {
    test(|| {
        let pool = ProcessPool::of(2);
        pool.warm_up().unwrap();
        let meeting = Meeting::new();
        let path = meeting.path();
        let child = in_child(|| {
            meet(&path, "child");
            true
        });
        let guest = meeting.next();
        let culprit = pool.submit(wait_and_die, (meeting.path(), 1));
        meeting.next().go();
        assert!(matches!(culprit.result(), Err(JobError::Died(_))));
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
        pool.shutdown(Shutdown::Drain);
        let pool = ThreadPool::of(1);
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
        drop(pool);
        guest.go();
        assert_good(child);
    });
}

/// Goal: a job on a thread may fork, and the child can end, whatever the pool does meanwhile.
///
/// Covers: 173
#[test]
fn a_job_on_a_thread_may_fork() {
    test(|| {
        let pool = ThreadPool::of(2);
        let forks: Vec<_> = (0..4).map(|_| pool.spawn(|| assert_good(in_child(|| true)))).collect();
        for fork in forks {
            fork.result().unwrap();
        }
    });
}

on_both_pools![handles_are_inert_in_a_forked_child, handles_can_be_used_up_in_a_forked_child,];

on_a_daemon![handles_are_inert_in_a_forked_child, handles_can_be_used_up_in_a_forked_child,];
