//! Awaiting, without a runtime: the waker's side of the contract.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use procpool::JobError;

use super::jobs::{double, fail, wait_and_double};
use super::{Pool, hold, on_a_daemon, on_both_pools};
use crate::support::Meeting;

/// Counts, and wakes a thread.
struct Bell {
    rung: AtomicUsize,
    thread: Thread,
}

impl Bell {
    fn new() -> Arc<Bell> {
        Arc::new(Bell { rung: AtomicUsize::new(0), thread: thread::current() })
    }

    fn rung(&self) -> usize {
        self.rung.load(Ordering::SeqCst)
    }

    fn wait(&self) {
        while self.rung() == 0 {
            thread::park();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Bell>) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        let bell = Bell::new();
        let waker = Waker::from(Arc::clone(&bell));
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        bell.wait();
    }
}

/// Goal: awaiting a job gives its value, error or cancel, whether it has ended or not.
///
/// Covers: 177
fn awaiting_gives_the_outcome<P: Pool>() {
    let pool = P::of(1);
    let sum = block_on(async {
        let (a, b) = (pool.submit(double, 1), pool.submit(double, 2));
        a.await.unwrap() + b.await.unwrap()
    });
    assert_eq!(sum, 6);
    let error = block_on(pool.submit(fail, 1)).unwrap_err();
    assert!(matches!(error, JobError::Panicked(_)));
    let done = pool.submit(double, 3);
    done.wait();
    assert_eq!(block_on(done).unwrap(), 6);
    let meeting = Meeting::new();
    let (held, guest) = hold(&pool, &meeting);
    let cancelled = pool.submit(double, 4);
    cancelled.cancel();
    assert!(matches!(block_on(cancelled), Err(JobError::Cancelled { started: false })));
    guest.go();
    assert_eq!(block_on(held).unwrap(), "held");
}

/// Goal: who awaits the end alone takes the outcome then, with its report, and may ask again meanwhile.
fn awaiting_the_end_takes_nothing<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let future = pool.submit(wait_and_double, (meeting.path(), 5));
    let guest = meeting.next();
    let bell = Bell::new();
    let waker = Waker::from(Arc::clone(&bell));
    let mut context = Context::from_waker(&waker);
    assert!(future.poll_done(&mut context).is_pending());
    assert_eq!(bell.rung(), 0);
    guest.go();
    bell.wait();
    assert!(future.poll_done(&mut context).is_ready());
    assert!(future.poll_done(&mut context).is_ready());
    assert_eq!(bell.rung(), 1);
    let procpool::Outcome { result, report, .. } = future.outcome();
    assert_eq!(result.unwrap(), 10);
    assert_eq!(report.attempts, 1);
}

/// Goal: a cancel wakes a task that awaits the job.
///
/// Covers: 177
fn a_cancel_wakes_the_awaiting_task<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (_held, _guest) = hold(&pool, &meeting);
    let mut future = pool.submit(double, 1);
    let bell = Bell::new();
    let waker = Waker::from(Arc::clone(&bell));
    let mut context = Context::from_waker(&waker);
    assert!(Pin::new(&mut future).poll(&mut context).is_pending());
    assert_eq!(bell.rung(), 0);
    assert!(future.cancel());
    assert_eq!(bell.rung(), 1);
    assert!(Pin::new(&mut future).poll(&mut context).is_ready());
}

/// Goal: the waker of the latest poll is woken: the task may have moved.
///
/// Covers: 177
fn the_latest_waker_counts<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let mut future = pool.submit(wait_and_double, (meeting.path(), 5));
    let guest = meeting.next();
    let bells = [Bell::new(), Bell::new(), Bell::new()];
    for bell in &bells {
        let waker = Waker::from(Arc::clone(bell));
        let poll = Pin::new(&mut future).poll(&mut Context::from_waker(&waker));
        assert!(poll.is_pending());
    }
    guest.go();
    bells[2].wait();
    assert_eq!(bells.each_ref().map(|bell| bell.rung()), [0, 0, 1]);
    // Nobody holds on to the wakers that were replaced.
    assert_eq!(Arc::strong_count(&bells[0]), 1);
    let waker = Waker::from(Arc::clone(&bells[0]));
    let poll = Pin::new(&mut future).poll(&mut Context::from_waker(&waker));
    assert!(matches!(poll, Poll::Ready(Ok(10))));
}

/// Goal: an awaiting task may give up: dropping the future neither cancels the job nor disturbs the pool.
///
/// Covers: 177
fn giving_up_an_await_cancels_nothing<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let marks = super::jobs::Marks::new();
    let (_held, guest) = hold(&pool, &meeting);
    let mut future = pool.submit(super::jobs::mark, marks.line("ran"));
    let waker = Waker::from(Bell::new());
    assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
    drop(future);
    guest.go();
    pool.shutdown(procpool::Shutdown::Drain);
    assert_eq!(marks.lines(), ["ran"]);
}

/// Goal: waiting and awaiting mix, and a future that was polled to its end says so when polled again.
fn polling_after_the_end_panics<P: Pool>() {
    let pool = P::of(1);
    let mut future = pool.submit(double, 1);
    future.wait();
    let waker = Waker::from(Bell::new());
    let mut context = Context::from_waker(&waker);
    assert!(Pin::new(&mut future).poll(&mut context).is_ready());
    let again =
        catch_unwind(AssertUnwindSafe(|| Pin::new(&mut future).poll(&mut context).is_ready()));
    assert!(again.is_err());
    assert!(future.is_done() && !future.is_cancelled() && !future.cancel());
}

on_both_pools![
    awaiting_gives_the_outcome,
    awaiting_the_end_takes_nothing,
    a_cancel_wakes_the_awaiting_task,
    the_latest_waker_counts,
    giving_up_an_await_cancels_nothing,
    polling_after_the_end_panics,
];

on_a_daemon![
    awaiting_gives_the_outcome,
    awaiting_the_end_takes_nothing,
    a_cancel_wakes_the_awaiting_task,
    the_latest_waker_counts,
    giving_up_an_await_cancels_nothing,
    polling_after_the_end_panics,
];
