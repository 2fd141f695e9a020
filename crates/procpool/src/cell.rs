//! The one place where an executor and the holders of a [`JobFuture`](crate::JobFuture) meet: a job's
//! shared cell. It is completed exactly once, by whoever is first, and then tells everyone who waits.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::attachments::List;
use crate::executor::{Control, Promise};
use crate::job_error::{JobError, Label};
use crate::job_id::JobId;
use crate::report::{Brief, Done, Progress, Report};

/// Who takes results of jobs that have ended helps with those to come once in so many times.
const TAKES_BETWEEN_LOOKS: u64 = 32;

/// Bytes that need no allocation of their own up to a small length.
pub(crate) type Bytes = SmallVec<[u8; 24]>;

/// A result before somebody takes it.
pub(crate) enum Value {
    /// Encoded.
    Bytes(Bytes),
    /// Encoded, with what the bytes refer to.
    Attached(Box<(Vec<u8>, List)>),
    /// As it is: the job ran in this process.
    Boxed(Box<dyn Any + Send>),
    /// The outcomes of a chunk's elements.
    Parts(Vec<Part>),
}

/// A run of outcomes of a chunk's elements, in order.
pub(crate) enum Part {
    /// Results, as the worker recorded them one after another.
    Recorded { elements: Vec<u8>, attachments: Option<List> },
    /// One element that ended without a result of its own.
    Failed(JobError),
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Value::Bytes(_) => "Bytes",
            Value::Attached(_) => "Attached",
            Value::Boxed(_) => "Boxed",
            Value::Parts(_) => "Parts",
        })
    }
}

/// How a job ended.
pub(crate) struct Ended {
    /// Errors are rare and large, so that every cell would carry their size.
    result: Result<Value, Box<JobError>>,
    report: Brief,
}

impl Ended {
    pub(crate) fn new(result: Result<Value, JobError>, report: Report) -> Ended {
        Ended { result: result.map_err(Box::new), report: report.into() }
    }

    /// How it ended, as far as is known without decoding the value.
    pub(crate) fn error(&self) -> Option<&JobError> {
        self.result.as_ref().err().map(|error| &**error)
    }

    /// The same; of a chunk, how each element did that ended without a value.
    pub(crate) fn errors(&self) -> impl Iterator<Item = &JobError> {
        let parts = match &self.result {
            Ok(Value::Parts(parts)) => parts.as_slice(),
            _ => &[],
        };
        let failed = parts.iter().filter_map(|part| match part {
            Part::Failed(error) => Some(error),
            Part::Recorded { .. } => None,
        });
        self.error().into_iter().chain(failed)
    }

    pub(crate) fn report(&self) -> Report {
        self.report.clone().into()
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self.error(), Some(JobError::Cancelled { .. }))
    }

    /// Cancelled is not failed.
    pub(crate) fn is_failed(&self) -> bool {
        self.result.is_err() && !self.is_cancelled()
    }

    pub(crate) fn into_parts(self) -> (Result<Value, Box<JobError>>, Report) {
        (self.result, self.report.into())
    }

    /// The result alone.
    pub(crate) fn into_result(self) -> Result<Value, Box<JobError>> {
        self.result
    }

    /// How long the last attempt ran, if there was one.
    pub(crate) fn ran(&self) -> Option<Duration> {
        (self.report.attempts() > 0).then(|| self.report.ran())
    }

    fn done(&self, id: JobId) -> Done {
        Done { id, error: self.error().cloned(), report: self.report() }
    }
}

/// The state that an executor and the futures of a job share.
pub(crate) struct JobCell {
    pub(crate) id: JobId,
    pub(crate) origin: &'static Location<'static>,
    /// Few jobs have one, and a fat pointer would be twice as large.
    name: Option<Box<Arc<str>>>,
    pub(crate) priority: i32,
    pub(crate) control: Arc<dyn Control>,
    /// The executor's own note on where the job is.
    pub(crate) place: AtomicU64,
    /// Raised to ask a job in this process to stop.
    pub(crate) stop: AtomicBool,
    done: AtomicBool,
    state: Mutex<State>,
}

struct State {
    ended: Option<Ended>,
    extra: Option<Box<Extra>>,
}

/// What most jobs end without.
#[derive(Default)]
struct Extra {
    progress: Option<Progress>,
    waiters: Vec<(u64, Waiter)>,
    next_key: u64,
}

impl State {
    fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    fn waiters(&mut self) -> &mut Vec<(u64, Waiter)> {
        &mut self.extra().waiters
    }

    fn add(&mut self, waiter: Waiter) -> u64 {
        let extra = self.extra();
        extra.next_key += 1;
        extra.waiters.push((extra.next_key, waiter));
        extra.next_key
    }
}

/// Somebody to be told when the job ends.
pub(crate) enum Waiter {
    Thread(Thread),
    Waker(Waker),
    Group(Arc<Group>, usize),
    Callback(Callback),
}

/// A callback of `on_done`.
pub(crate) type Callback = Box<dyn FnOnce(Done) + Send>;

/// The callbacks of a job that has just ended, to be run where they may block.
#[must_use = "callbacks that are not run are lost"]
pub(crate) struct Callbacks(Option<Box<(Done, Vec<Callback>)>>);

impl Callbacks {
    pub(crate) const NONE: Callbacks = Callbacks(None);

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Runs them in the order in which they were added. A panic in one ends that one only.
    pub(crate) fn run(self) {
        if let Some((done, callbacks)) = self.0.map(|boxed| *boxed) {
            for callback in callbacks {
                run_callback(callback, done.clone());
            }
        }
    }
}

fn run_callback(callback: Callback, done: Done) {
    // The panic hook has said what there is to say; a payload whose Drop panics must not get further.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| callback(done))) {
        std::mem::forget(payload);
    }
}

impl JobCell {
    pub(crate) fn new(
        control: Arc<dyn Control>,
        origin: &'static Location<'static>,
        name: Option<Arc<str>>,
        priority: i32,
    ) -> Arc<JobCell> {
        Arc::new(JobCell {
            id: JobId::next(),
            origin,
            name: name.map(Box::new),
            priority,
            control,
            place: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            done: AtomicBool::new(false),
            state: Mutex::new(State { ended: None, extra: None }),
        })
    }

    pub(crate) fn label(&self) -> Label {
        Label { id: self.id, name: self.name().cloned(), origin: self.origin }
    }

    pub(crate) fn name(&self) -> Option<&Arc<str>> {
        self.name.as_deref()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing of the user's runs under this lock, so a poisoned one is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.is_done() && self.state().ended.as_ref().is_some_and(Ended::is_cancelled)
    }

    /// True if the job was cancelled before it started, and so will never run.
    pub(crate) fn is_cancelled_unstarted(&self) -> bool {
        let unstarted =
            |ended: &Ended| matches!(ended.error(), Some(JobError::Cancelled { started: false }));
        self.is_done() && self.state().ended.as_ref().is_some_and(unstarted)
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.is_done() && self.state().ended.as_ref().is_some_and(Ended::is_failed)
    }

    /// Notes the latest progress; what comes after the end goes nowhere.
    pub(crate) fn set_progress(&self, progress: Progress) {
        let mut state = self.state();
        if !self.done.load(Ordering::Relaxed) {
            state.extra().progress = Some(progress);
        }
    }

    pub(crate) fn progress(&self) -> Option<Progress> {
        self.state().extra.as_ref()?.progress.clone()
    }

    /// Ends the job, unless it has ended. Wakes whoever waits; the callbacks are the caller's to run.
    pub(crate) fn complete(&self, ended: Ended) -> Callbacks {
        self.complete_with(ended, |waker| {
            waker.wake();
            None
        })
    }

    /// The same on the thread of a caller who has come for another job, and may hold a lock that a waker wants: wakers
    /// are among the callbacks, which run elsewhere.
    pub(crate) fn complete_as_guest(&self, ended: Ended) -> Callbacks {
        self.complete_with(ended, |waker| Some(Box::new(move |_| waker.wake())))
    }

    fn complete_with(
        &self,
        ended: Ended,
        mut wake: impl FnMut(Waker) -> Option<Callback>,
    ) -> Callbacks {
        let mut state = self.state();
        if self.done.load(Ordering::Relaxed) {
            return Callbacks::NONE;
        }
        let waiters = match &mut state.extra {
            Some(extra) => std::mem::take(&mut extra.waiters),
            None => Vec::new(),
        };
        let done = waiters
            .iter()
            .any(|(_, waiter)| matches!(waiter, Waiter::Callback(_) | Waiter::Waker(_)))
            .then(|| ended.done(self.id));
        state.ended = Some(ended);
        self.done.store(true, Ordering::Release);
        drop(state);
        let mut callbacks = Vec::new();
        for (_, waiter) in waiters {
            match waiter {
                Waiter::Thread(thread) => thread.unpark(),
                Waiter::Waker(waker) => callbacks.extend(wake(waker)),
                Waiter::Group(group, index) => group.push(index),
                Waiter::Callback(callback) => callbacks.push(callback),
            }
        }
        let done = done.filter(|_| !callbacks.is_empty());
        Callbacks(done.map(|done| Box::new((done, callbacks))))
    }

    /// Adds a waiter and answers its key; hands it back if the job has ended.
    fn add(&self, waiter: Waiter) -> Result<u64, Waiter> {
        let mut state = self.state();
        if self.done.load(Ordering::Relaxed) {
            return Err(waiter);
        }
        Ok(state.add(waiter))
    }

    fn remove(&self, key: u64) {
        self.state().waiters().retain(|(other, _)| *other != key);
    }

    /// Adds a callback; runs it here and now if the job has ended.
    pub(crate) fn add_callback(&self, callback: Callback) {
        let Err(Waiter::Callback(callback)) = self.add(Waiter::Callback(callback)) else {
            self.control.expect_callback();
            return;
        };
        let state = self.state();
        let Some(ended) = &state.ended else { return };
        let done = ended.done(self.id);
        drop(state);
        run_callback(callback, done);
    }

    /// Tells `group` when the job ends, at once if it has.
    pub(crate) fn add_group(&self, group: &Arc<Group>, index: usize) {
        if self.add(Waiter::Group(Arc::clone(group), index)).is_err() {
            group.push(index);
        }
    }

    /// Forgets `group`.
    pub(crate) fn remove_group(&self, group: &Arc<Group>) {
        self.state().waiters().retain(
            |(_, waiter)| !matches!(waiter, Waiter::Group(other, _) if Arc::ptr_eq(other, group)),
        );
    }

    /// For a poll: true if the job has ended, else `waker` will be woken when it does.
    pub(crate) fn poll_done(&self, waker: &Waker) -> bool {
        let mut state = self.state();
        if self.done.load(Ordering::Relaxed) {
            return true;
        }
        let known = state.waiters().iter_mut().find_map(|(_, waiter)| match waiter {
            Waiter::Waker(known) => Some(known),
            _ => None,
        });
        match known {
            Some(known) => known.clone_from(waker),
            None => {
                state.add(Waiter::Waker(waker.clone()));
            }
        }
        false
    }

    /// Offers this thread, which waits, to the executor: true if some job has ended of it, false if it had better sleep.
    fn attend(self: &Arc<Self>) -> bool {
        !self.control.is_inert() && self.control.attend(&Promise(Arc::clone(self)))
    }

    /// Blocks until the job has ended or the deadline has passed; true if it has ended.
    pub(crate) fn wait(self: &Arc<Self>, deadline: Option<Instant>) -> bool {
        if self.is_done() {
            // Ids count up, so whoever takes one result after another does this once in so many times.
            if self.id.number().is_multiple_of(TAKES_BETWEEN_LOOKS) {
                self.control.glance();
            }
            return true;
        }
        if self.control.is_inert() {
            return false;
        }
        let in_time = || deadline.is_none_or(|deadline| Instant::now() < deadline);
        while in_time() && self.attend() {
            if self.is_done() {
                return true;
            }
        }
        let Ok(key) = self.add(Waiter::Thread(thread::current())) else {
            return true;
        };
        loop {
            if self.is_done() {
                return true;
            }
            match deadline {
                None => thread::park(),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        self.remove(key);
                        return self.is_done();
                    }
                    thread::park_timeout(left);
                }
            }
        }
    }

    /// Takes the outcome. `None` before the job has ended, or if it was taken.
    pub(crate) fn take(&self) -> Option<Ended> {
        self.state().ended.take()
    }
}

impl JobCell {
    /// The debug text of a future whose value is of the type `value`.
    pub(crate) fn fmt_future(&self, value: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        let text = match &state.ended {
            _ if !self.is_done() => "pending",
            None => "taken",
            Some(ended) if ended.is_cancelled() => "cancelled",
            Some(ended) if ended.is_failed() => "failed",
            Some(_) => "finished",
        };
        let mut future = f.debug_struct("JobFuture");
        future.field("id", &self.id.number()).field("state", &text).field("value", &value);
        if let Some(Ended { result: Err(error), .. }) = &state.ended {
            future.field("error", &error.to_string());
        }
        future.finish()
    }
}

impl fmt::Debug for JobCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobCell").field("id", &self.id.number()).finish_non_exhaustive()
    }
}

/// A million cells are a million times this, and two counts: with the job's entry in the queue, 300 bytes at most.
const _: () = assert!(size_of::<JobCell>() <= 152);

/// A set of jobs that somebody waits for together: the indices of those that have ended, in order.
#[derive(Default)]
pub(crate) struct Group {
    ended: Mutex<EndedOnes>,
    changed: Condvar,
}

#[derive(Default)]
struct EndedOnes {
    indices: VecDeque<usize>,
    /// Threads that sleep until there is one: to tell nobody would be a system call too.
    sleepers: usize,
}

impl Group {
    fn ended(&self) -> MutexGuard<'_, EndedOnes> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, index: usize) {
        let mut ended = self.ended();
        ended.indices.push_back(index);
        let somebody_sleeps = ended.sleepers > 0;
        drop(ended);
        if somebody_sleeps {
            self.changed.notify_all();
        }
    }

    /// The next index, if there is one or one comes before the deadline. `pending` is a job of the group that has not
    /// ended: before the thread sleeps, it is offered to the executor of that, as one that waits for a single job is.
    pub(crate) fn pop<'a>(
        &self,
        deadline: Option<Instant>,
        mut pending: impl FnMut() -> Option<&'a Arc<JobCell>>,
    ) -> Option<usize> {
        let mut awake = true;
        loop {
            let mut ended = self.ended();
            if let Some(index) = ended.indices.pop_front() {
                return Some(index);
            }
            let left = match deadline {
                None => None,
                Some(deadline) => match deadline.saturating_duration_since(Instant::now()) {
                    Duration::ZERO => return None,
                    left => Some(left),
                },
            };
            if awake {
                drop(ended);
                awake = pending().is_some_and(JobCell::attend);
                continue;
            }
            ended.sleepers += 1;
            let mut ended = match left {
                None => self.changed.wait(ended).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    self.changed.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            ended.sleepers -= 1;
        }
    }
}

/// The moment `timeout` from now; `None`, which is never, if it is too far away to be a moment.
pub(crate) fn deadline_after(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
