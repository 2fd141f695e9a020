//! Callers that wait read results of others meanwhile, and no more than that.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use procpool::ProcessPool;

use crate::support::test;

fn same(n: u64) -> u64 {
    n
}

/// Tells on which thread it was woken.
struct Tells(Mutex<Sender<ThreadId>>);

impl Wake for Tells {
    fn wake(self: Arc<Self>) {
        let _ = self.0.lock().unwrap().send(thread::current().id());
    }
}

/// Goal: a caller that waits for its job ends jobs of others too, but runs none of their wakers: it may hold a lock that
/// one of them wants.
/// Method: one future is polled, others are waited for until it has ended, many times; whoever ended it, its waker has
/// run on another thread.
#[test]
fn who_helps_runs_no_waker() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        pool.warm_up().unwrap();
        let (send, told) = mpsc::channel();
        let waker = Waker::from(Arc::new(Tells(Mutex::new(send))));
        let mut polled = 0;
        for n in 0..2_000 {
            let mut future = pool.submit(same, n);
            let pending = Pin::new(&mut future).poll(&mut Context::from_waker(&waker));
            let Poll::Pending = pending else { continue };
            polled += 1;
            while !future.is_done() {
                pool.submit(same, n).result().unwrap();
            }
            let woken_on = told.recv_timeout(Duration::from_secs(20)).unwrap();
            assert_ne!(woken_on, thread::current().id(), "job {n}");
        }
        assert!(polled > 0, "every job had ended before it was polled");
    });
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let duration = |time: TimeVal| {
        Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
    };
    duration(usage.user_time()) + duration(usage.system_time())
}

/// Goal: who waits for a long job sleeps, also after short ones.
#[test]
fn who_waits_for_long_sleeps() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        for n in 0..1_000 {
            pool.submit(same, n).result().unwrap();
        }
        let before = cpu_time();
        pool.submit(thread::sleep, Duration::from_millis(500)).result().unwrap();
        let used = cpu_time() - before;
        // It looks for 0.1 ms; a fifth of the time leaves room for any machine, and none for a loop.
        assert!(used < Duration::from_millis(100), "{used:?} of CPU time in 0.5 s");
    });
}

/// Goal: who waits for whichever of several jobs ends first gets each as it ends, although it looks for results itself,
/// and sleeps where they take long.
#[test]
fn who_waits_for_several_helps_as_well() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let slow = pool.submit(thread::sleep, Duration::from_secs(1));
        let quick = (0..2_000).map(|_| pool.submit(thread::sleep, Duration::ZERO));
        let futures: Vec<_> = [slow].into_iter().chain(quick).collect();
        let slow = futures[0].id();
        let before = cpu_time();
        let order: Vec<_> = procpool::as_completed(futures).map(|future| future.id()).collect();
        let used = cpu_time() - before;
        assert_eq!(order.len(), 2_001);
        assert_eq!(order.last(), Some(&slow), "the others wait for nobody");
        assert!(used < Duration::from_millis(600), "{used:?} of CPU time");
    });
}
