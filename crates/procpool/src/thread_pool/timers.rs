//! Time limits of jobs that run on threads.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cell::{Ended, JobCell};
use crate::job_error::{EndedBy, JobError, Limit, Timeout};
use crate::report::Report;
use crate::supervisor::callbacks::CallbackThreads;

/// The time limits of running jobs, watched by one thread, which is there from the first limit on.
#[derive(Default)]
pub(super) struct Timers(Arc<TimerShared>);

#[derive(Default)]
struct TimerShared {
    state: Mutex<TimerState>,
    changed: Condvar,
}

#[derive(Default)]
struct TimerState {
    due: BinaryHeap<Reverse<Timer>>,
    thread: Option<JoinHandle<()>>,
    closed: bool,
}

struct Timer {
    at: Instant,
    after: Duration,
    cell: Weak<JobCell>,
    report: Report,
    callbacks: CallbackThreads,
}

impl Timers {
    pub(super) fn set(
        &self,
        started: Instant,
        after: Duration,
        cell: &Arc<JobCell>,
        report: &Report,
        callbacks: &CallbackThreads,
    ) {
        // A limit beyond the end of time is none.
        let Some(at) = started.checked_add(after) else {
            return;
        };
        let mut state = self.0.lock();
        let report = Report { ran: after, ..report.clone() };
        state.due.push(Reverse(Timer {
            at,
            after,
            cell: Arc::downgrade(cell),
            report,
            callbacks: callbacks.clone(),
        }));
        if state.thread.is_none() && !state.closed {
            let shared = Arc::clone(&self.0);
            // Without a thread for it the limit is lost; the next job with one tries again.
            state.thread = thread::Builder::new()
                .name("procpool-timer".into())
                .spawn(move || shared.serve())
                .ok();
        }
        drop(state);
        self.0.changed.notify_one();
    }

    pub(super) fn close(&self) {
        let mut state = self.0.lock();
        state.closed = true;
        let thread = state.thread.take();
        drop(state);
        self.0.changed.notify_all();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl TimerShared {
    fn lock(&self) -> MutexGuard<'_, TimerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        while !state.closed {
            let now = Instant::now();
            let next = state.due.peek().map(|Reverse(timer)| timer.at);
            state = match next {
                Some(at) if at <= now => {
                    let timer = state.due.pop();
                    drop(state);
                    if let Some(Reverse(timer)) = timer {
                        timer.fire();
                    }
                    self.lock()
                }
                Some(at) => {
                    self.changed
                        .wait_timeout(state, at - now)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl Timer {
    fn fire(self) {
        let Some(cell) = self.cell.upgrade() else {
            return;
        };
        let timeout = Timeout {
            limit: Limit::Job,
            after: self.after,
            ended_by: EndedBy::Term,
            label: cell.label(),
        };
        let ended = Ended::new(Err(JobError::TimedOut(timeout)), self.report);
        let callbacks = cell.complete(ended);
        // Only now: a job that returns as soon as it sees the flag would be done with a value instead.
        cell.stop.store(true, Ordering::Relaxed);
        self.callbacks.run(callbacks);
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Timer) -> bool {
        self.at == other.at
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Timer) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Timer) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}
