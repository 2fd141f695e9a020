//! Time limits of jobs that run on threads.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use procpool_sys::clock;

use crate::cell::{Ended, JobCell};
use crate::job_error::{EndedBy, JobError, Limit, Timeout};
use crate::report::Report;
use crate::supervisor::callbacks::CallbackThreads;

/// Looks at a thread's CPU time are at least so far apart: a job that sleeps just before its limit shall
/// not keep us busy.
const CPU_LOOKS_APART: Duration = Duration::from_millis(5);

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

/// The limits of a job. Most jobs have none.
#[derive(Default)]
pub(super) struct Limits {
    pub(super) timeout: Option<Duration>,
    pub(super) cpu_timeout: Option<Duration>,
}

/// What a timer watches.
enum Watched {
    Time,
    /// The CPU time of this thread, from what it had used when the job began, in nanoseconds.
    Cpu {
        thread: i32,
        at_start: u64,
        started: Instant,
    },
}

struct Timer {
    /// When to look: the limit is reached then, or later.
    at: Instant,
    watched: Watched,
    after: Duration,
    cell: Weak<JobCell>,
    report: Report,
    callbacks: CallbackThreads,
}

impl Timers {
    /// Watches the job that begins now on this thread.
    pub(super) fn set(
        &self,
        started: Instant,
        limits: &Limits,
        cell: &Arc<JobCell>,
        report: &Report,
        callbacks: &CallbackThreads,
    ) {
        if let Some(after) = limits.timeout {
            self.set_one(started, after, Watched::Time, cell, report, callbacks);
        }
        if let Some(after) = limits.cpu_timeout {
            let (thread, at_start) = (clock::thread_id(), clock::thread_cpu_ns());
            let watched = Watched::Cpu { thread, at_start, started };
            self.set_one(started, after, watched, cell, report, callbacks);
        }
    }

    fn set_one(
        &self,
        started: Instant,
        after: Duration,
        watched: Watched,
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
            watched,
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
                    let again = timer.and_then(|Reverse(timer)| timer.fire());
                    let mut state = self.lock();
                    state.due.extend(again.map(Reverse));
                    state
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
    /// Ends the job if its limit is reached; else answers itself, to look once more.
    fn fire(mut self) -> Option<Timer> {
        let cell = self.cell.upgrade().filter(|cell| !cell.is_done())?;
        let limit = match self.watched {
            Watched::Time => Limit::Job,
            Watched::Cpu { thread, at_start, started } => {
                let used = clock::thread_cpu_ns_of(thread)?.saturating_sub(at_start);
                let left = self.after.saturating_sub(Duration::from_nanos(used));
                if !left.is_zero() {
                    self.at = Instant::now().checked_add(left.max(CPU_LOOKS_APART))?;
                    return Some(self);
                }
                self.report.ran = started.elapsed();
                Limit::Cpu
            }
        };
        let timeout =
            Timeout { limit, after: self.after, ended_by: EndedBy::Term, label: cell.label() };
        let ended = Ended::new(Err(JobError::TimedOut(timeout)), self.report);
        let callbacks = cell.complete(ended);
        // Only now: a job that returns as soon as it sees the flag would be done with a value instead.
        cell.stop.store(true, Ordering::Relaxed);
        self.callbacks.run(callbacks);
        None
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
