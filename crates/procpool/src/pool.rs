//! [`ProcessPool`]: the handle.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use procpool_sys::clock::{Counter, counter_is_steady};
use procpool_sys::fork;
use tracing::Level;

use crate::Error;
use crate::attachments::session::{self, Collected, Reach};
use crate::builder::{Isolation, ProcessPoolBuilder, Settings, Shutdown};
use crate::cell::{Ended, JobCell, Value};
use crate::containment::{Capabilities, Capability, Containment, Memory, Processes, Tree};
use crate::events::Events;
use crate::executor::{
    Backend, Call, Callee, Control, Data, Executor, JsonCall, Options, Promise, Rejected,
    Rejection, WhenFull,
};
use crate::future::JobFuture;
use crate::init;
use crate::job::{Job, submit_call};
use crate::job_error::JobError;
use crate::map::Map;
use crate::nesting;
use crate::report::{Progress, Report, Stats, WorkerInfo};
use crate::shared::Shared;
use crate::supervisor::dispatch::{Admission, Dispatch, Pace, Request};
use crate::supervisor::entry::{Completion, Entry, EntryBox, Limits, Payload, WireTarget};
use crate::supervisor::{Inner, Supervisor};
use crate::task::TaskInfo;
use crate::worker::{RUN_BINARY, RUN_BINARY_APART, RUN_JSON, TASK_LIST};

/// Workers, each a process of its own, that run functions of this program.
///
/// A job that crashes, hangs or is killed takes down nothing but itself; its future says what happened.
/// Workers are started as jobs need them, and replaced when they die.
///
/// Dropping the pool waits for all its jobs ([`Shutdown::Drain`]); while the thread is panicking it stops
/// them ([`Shutdown::Abort`]). In a forked child of this process the pool is inert.
pub struct ProcessPool {
    core: PoolCore,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

/// The part that takes jobs.
struct PoolCore(Arc<Inner>);

thread_local! {
    /// Where arguments are encoded: one buffer a thread instead of one a job.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// Tells when jobs are submitted, for half of what it costs to ask the clock itself.
    static CLOCK: RefCell<Counter> = RefCell::new(Counter::new(counter_is_steady()));
}

/// A scratch buffer larger than this is given back: one huge argument shall not stay.
const SCRATCH_MAX: usize = 64 * 1024;

/// The monotonic clock.
fn now_ns() -> u64 {
    CLOCK.with_borrow_mut(Counter::now_ns)
}

/// Keeps the buffer for the next job of this thread.
fn put_back(scratch: Vec<u8>) {
    if scratch.capacity() <= SCRATCH_MAX {
        SCRATCH.set(scratch);
    }
}

impl ProcessPool {
    /// A pool with one worker for each available CPU.
    ///
    /// # Errors
    /// As for [`ProcessPoolBuilder::build`].
    pub fn new() -> Result<ProcessPool, Error> {
        ProcessPool::builder().build()
    }

    /// Settings for a pool.
    pub fn builder() -> ProcessPoolBuilder {
        ProcessPoolBuilder::new()
    }

    pub(crate) fn start(settings: Settings) -> Result<ProcessPool, Error> {
        let image = init::image()?;
        nesting::check()?;
        // Made before the first fork could happen, so that a child's copy can tell that it is one.
        fork::watch().map_err(|error| Error::system("cannot watch for forks", error))?;
        let supervisor = Supervisor::prepare(settings, image)?;
        let inner = Arc::clone(supervisor.inner());
        inner.hub.log_started(inner.settings.workers);
        let thread = thread::Builder::new()
            .name("procpool".into())
            .spawn(move || supervisor.run())
            .map_err(|error| Error::system("cannot start a pool's supervisor thread", error))?;
        Ok(ProcessPool { core: PoolCore(inner), supervisor: Mutex::new(Some(thread)) })
    }

    /// Submits `f(arg)`. `f` is any function, or a closure that captures nothing; several arguments
    /// travel as a tuple. Blocks only while a queue limit is reached; a job that is refused comes back as
    /// its future's outcome, [`JobError::Closed`] or [`JobError::Broken`].
    ///
    /// ```compile_fail
    /// let pool = procpool::ProcessPool::new().unwrap();
    /// let captured = String::from("a closure that captures cannot travel to another process");
    /// pool.submit(|n: usize| captured.len() + n, 1);
    /// ```
    #[track_caller]
    pub fn submit<A: Data, R: Data>(&self, f: fn(A) -> R, arg: A) -> JobFuture<R> {
        Executor::submit(self, f, arg)
    }

    /// Submits `f(arg)` without ever blocking: if the job cannot be taken now, the argument comes back.
    ///
    /// # Errors
    /// [`Rejection::Full`] at the queue limit, [`Rejection::Closed`] after `shutdown`, [`Rejection::Broken`].
    #[track_caller]
    pub fn try_submit<A: Data, R: Data>(
        &self,
        f: fn(A) -> R,
        arg: A,
    ) -> Result<JobFuture<R>, Rejected<A>> {
        self.job(f, arg).try_submit()
    }

    /// Calls `f` on every item, lazily and in order. See [`Map`].
    #[track_caller]
    pub fn map<A: Data, R: Data, I: IntoIterator<Item = A>>(
        &self,
        f: fn(A) -> R,
        items: I,
    ) -> Map<'_, A, R, I::IntoIter> {
        Executor::map(self, f, items)
    }

    /// Prepares `f(arg)` with options of its own. See [`Job`].
    #[track_caller]
    pub fn job<A: Data, R: Data>(&self, f: fn(A) -> R, arg: A) -> Job<'_, A, R> {
        Executor::job(self, f, arg)
    }

    /// Calls a [task](macro@crate::task) by its name, with its argument as JSON; the result is JSON too.
    /// For workers that are [another program](ProcessPoolBuilder::worker_program), whose types this one
    /// does not know. A name that the worker does not know ends as [`JobError::Unregistered`].
    #[track_caller]
    pub fn call(&self, task: &str, json: impl Into<String>) -> JobFuture<String> {
        let cell = JobCell::new(self.backend().control(), Location::caller(), Some(task.into()), 0);
        let mut call = JsonCall { name: task, json: json.into() };
        submit_call(self.backend(), &mut call, &cell, &Options::default());
        JobFuture::of_text(cell)
    }

    /// The tasks that the workers know. Starts a worker if there is none.
    ///
    /// # Errors
    /// As the job that asks a worker.
    #[track_caller]
    pub fn worker_tasks(&self) -> Result<Vec<TaskInfo>, JobError> {
        let json = self.call(TASK_LIST, "null").result()?;
        TaskInfo::parse_list(&json)
    }

    /// Makes a value available to many jobs: encoded now and once, sent once to each worker that needs it,
    /// of this pool or any other of this process. See [`Shared`].
    ///
    /// A value that cannot be encoded, or is longer than
    /// [`payload_limit`](ProcessPoolBuilder::payload_limit), can still be used here; jobs that are
    /// given it end as [`JobError::Encode`].
    pub fn share<T: Data + Sync>(&self, value: T) -> Shared<T> {
        Shared::new(value, self.core.0.settings.payload_limit)
    }

    /// Counts at this moment.
    pub fn stats(&self) -> Stats {
        if fork::is_child() { Stats::default() } else { self.core.0.dispatch().stats() }
    }

    /// The workers at this moment, by index.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        if fork::is_child() { Vec::new() } else { self.core.0.dispatch().workers() }
    }

    /// What happens in the pool, from now on. See [`events`](crate::events).
    pub fn events(&self) -> Events {
        self.core.0.hub.events()
    }

    /// What holds the workers of this pool. Makes the pool's cgroups if no worker has been started yet, so
    /// that it tells what is and not what might be. Where a cgroup turns out later to be of no use, a later
    /// call says so. In a forked child of this process: nothing.
    pub fn containment(&self) -> Containment {
        if fork::is_child() {
            return Containment {
                tree: Tree::ProcessGroup,
                memory: Memory::Unlimited,
                processes: Processes::Unlimited,
            };
        }
        self.core.0.cgroups().containment()
    }

    /// What this machine, and this process's place on it, allow; where something is missing, why. Its text
    /// is one line for each. Looks anew at each call, apart from cgroups, which a pool looks for once.
    pub fn capabilities(&self) -> Capabilities {
        // A copy's lock may have been held by a thread that the copy does not have.
        if fork::is_child() {
            let unknown =
                || Capability::Missing("this is a forked child of the pool's process".into());
            return Capabilities::probe(unknown(), unknown(), unknown(), unknown());
        }
        self.core.0.cgroups().capabilities()
    }

    /// Starts all workers now and waits until they are ready; in a [pause](Self::pause), until after it.
    ///
    /// # Errors
    /// [`is_start`](Error::is_start) with the first cause if they cannot be started,
    /// [`is_closed`](Error::is_closed) after `shutdown`.
    pub fn warm_up(&self) -> Result<(), Error> {
        if fork::is_child() {
            return Err(Error::closed());
        }
        let inner = &self.core.0;
        let mut dispatch = inner.dispatch();
        // While somebody waits for all of them, none leaves for being idle.
        dispatch.warming += 1;
        let result = loop {
            match &dispatch.admission {
                Admission::Closed => break Err(Error::closed()),
                Admission::Broken(error) => break Err(error.clone()),
                Admission::Open if dispatch.all_serving() => break Ok(()),
                Admission::Open => {}
            }
            if !dispatch.requests.iter().any(|request| matches!(request, Request::WarmUp)) {
                dispatch.requests.push(Request::WarmUp);
            }
            inner.wake();
            dispatch = inner.changed.wait(dispatch).unwrap_or_else(PoisonError::into_inner);
        };
        dispatch.warming -= 1;
        drop(dispatch);
        if inner.settings.idle_timeout.is_some() {
            // Their time begins to run.
            inner.wake();
        }
        result
    }

    /// Stops all workers in their tracks (SIGSTOP), each with every process below it, and returns when all were sent
    /// the signal. Until [`resume`](Self::resume) nothing is handed out, no worker is started, and no time runs: neither the limits
    /// of running jobs, nor `start_timeout`, nor `idle_timeout`. Jobs are accepted, and can be cancelled. What callers limit
    /// themselves goes on, such as [`wait_timeout`](JobFuture::wait_timeout) and [`Map::timeout`]; and
    /// [`Report::ran`](crate::Report::ran) counts the pause too.
    ///
    /// A job that is aborted meanwhile, or that was being stopped already, goes on ending; a worker that is killed is
    /// buried as ever, and replaced after the pause. [`shutdown`](Self::shutdown) and dropping the pool end the pause where jobs are still
    /// to run; a pool that is paused *during* a shutdown holds that up. Processes that run as another user are not
    /// stopped unless this one may signal them. What a job had stopped itself stays stopped.
    ///
    /// Calling it again is harmless, and so is calling it on a pool that has ended, and in a forked child of this
    /// process. If this process dies, its stopped workers die with it as running ones do.
    pub fn pause(&self) {
        if fork::is_child() {
            return;
        }
        let inner = &self.core.0;
        let mut dispatch = inner.dispatch();
        loop {
            match dispatch.pace {
                Pace::Going => {
                    dispatch.pace = Pace::Pausing;
                    dispatch.requests.push(Request::Pause);
                    inner.wake();
                }
                Pace::Pausing | Pace::Unpausing { .. } => {}
                Pace::Paused { .. } | Pace::Ended => return,
            }
            dispatch = inner.changed.wait(dispatch).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the workers go on after a [`pause`](Self::pause) (SIGCONT), and returns when all were sent the signal. Each job has
    /// as much of its time left as it had. Calling it again is harmless, and so is calling it without a pause.
    pub fn resume(&self) {
        if fork::is_child() {
            return;
        }
        let inner = &self.core.0;
        let mut dispatch = inner.dispatch();
        loop {
            match dispatch.pace {
                Pace::Paused { since } => {
                    dispatch.pace = Pace::Unpausing { since };
                    dispatch.requests.push(Request::Unpause);
                    inner.wake();
                }
                Pace::Pausing | Pace::Unpausing { .. } => {}
                Pace::Going | Pace::Ended => return,
            }
            dispatch = inner.changed.wait(dispatch).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the pool: no job is accepted any more, those that there are end as `how` says, and the call
    /// returns when no worker is left and every `on_done` callback has run (when called from one of
    /// them: every other). Calling it again is harmless; an `Abort` overtakes a `Drain` under way. A [pause](Self::pause) ends
    /// with it; an `Abort` lets what runs go on no further than it takes to end it.
    pub fn shutdown(&self, how: Shutdown) {
        if fork::is_child() {
            return;
        }
        let inner = &self.core.0;
        let mut dispatch = inner.dispatch();
        // A broken pool stays so: its cause says more than that it was shut down as well.
        if matches!(dispatch.admission, Admission::Open) {
            dispatch.admission = Admission::Closed;
        }
        dispatch.requests.push(Request::Shutdown(how));
        drop(dispatch);
        inner.room.notify_all();
        inner.changed.notify_all();
        inner.wake();
        if how != Shutdown::Abort {
            // Only now: what is cancelled must not have its moment before.
            self.resume();
        }
        inner.wait_ended();
        let thread = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The pool has ended; a panic of the supervisor's would have been seen.
            let _ = thread.join();
        }
        inner.callbacks.close();
    }
}

impl Drop for ProcessPool {
    fn drop(&mut self) {
        self.shutdown(if thread::panicking() { Shutdown::Abort } else { Shutdown::Drain });
    }
}

impl fmt::Debug for ProcessPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers = self.core.0.settings.workers;
        f.debug_struct("ProcessPool")
            .field("workers", &workers)
            .field("stats", &self.stats())
            .finish()
    }
}

impl Executor for ProcessPool {
    fn backend(&self) -> &dyn Backend {
        &self.core
    }
}

impl PoolCore {
    /// What the call is called between this pool and its workers.
    fn target(&self, call: &dyn Call) -> Result<WireTarget, Box<JobError>> {
        let named =
            |name: &str, run, function| WireTarget::Named(Box::new((name.into(), run, function)));
        match call.callee() {
            Callee::JsonTask(name) => Ok(named(name, RUN_JSON, 0)),
            Callee::BinaryTask(name, fingerprint) => Ok(named(name, RUN_BINARY_APART, fingerprint)),
            Callee::Function { function, signature }
                if self.0.settings.worker_program.is_none() =>
            {
                let offsets = self.0.image.offsets(function);
                let (run, function) = offsets.ok_or_else(|| {
                    Box::new(JobError::Unregistered(format!(
                        "a function outside the main image ({signature})"
                    )))
                })?;
                Ok(WireTarget::Offset(run, function))
            }
            Callee::Function { signature, .. } => match call.task() {
                Some(task) => Ok(named(task.name, RUN_BINARY, task.fingerprint)),
                None => Err(Box::new(JobError::Unregistered(format!(
                    "a function that is not a task ({signature})"
                )))),
            },
        }
    }

    /// Encodes the arguments, and answers how many there are.
    fn encode(
        &self,
        call: &mut dyn Call,
        scratch: &mut Vec<u8>,
        attached: &mut Collected,
    ) -> Result<u32, Box<JobError>> {
        scratch.clear();
        let limit = self.0.settings.payload_limit;
        let encode = || call.encode(limit, scratch).map_err(Box::new);
        session::collect_for(Reach::Workers, attached, encode)
    }

    /// Waits for room in the queue, or refuses.
    fn admit(&self, when_full: WhenFull) -> Result<MutexGuard<'_, Dispatch>, Rejection> {
        let limit = self.0.settings.queue_limit;
        let mut dispatch = self.0.dispatch();
        loop {
            match &dispatch.admission {
                Admission::Closed => return Err(Rejection::Closed),
                Admission::Broken(error) => return Err(Rejection::Broken(error.clone())),
                Admission::Open => {}
            }
            if limit.is_none_or(|limit| dispatch.unstarted() < limit) {
                return Ok(dispatch);
            }
            if when_full == WhenFull::Refuse {
                return Err(Rejection::Full);
            }
            dispatch.blocked += 1;
            dispatch = self.0.room.wait(dispatch).unwrap_or_else(PoisonError::into_inner);
            dispatch.blocked -= 1;
        }
    }
}

impl Backend for PoolCore {
    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.0) as Arc<dyn Control>
    }

    fn accept(
        &self,
        call: &mut dyn Call,
        promise: Promise,
        options: &Options,
        when_full: WhenFull,
    ) -> Result<(), Rejection> {
        if fork::is_child() {
            return Err(Rejection::Closed);
        }
        let settings = &self.0.settings;
        let cell = promise.0;
        // Taken, not borrowed: a `Serialize` may itself submit.
        let mut scratch = SCRATCH.take();
        let mut attached = Collected::default();
        let target = self.target(call);
        let encoded =
            target.and_then(|target| Ok((target, self.encode(call, &mut scratch, &mut attached)?)));
        let result = match encoded {
            Ok((_, 0)) => Ok(Value::Parts(Vec::new())),
            Err(error) => Err(*error),
            Ok((target, count)) => {
                let limits = Limits {
                    retries: options.retries.unwrap_or(settings.retries),
                    timeout: options.timeout.or(settings.job_timeout),
                    cpu_timeout: options.cpu_timeout.or(settings.cpu_timeout),
                    payload: settings.payload_limit,
                    attempts_before: options.attempts_before,
                };
                let payload = Payload::new(&scratch, attached);
                put_back(scratch);
                let entry = Entry::new(cell, target, payload, count, now_ns(), limits);
                return self.enter(entry, when_full);
            }
        };
        put_back(scratch);
        self.admit(when_full)?.count_early(&result);
        self.0
            .complete_here(vec![Completion { cell, ended: Ended::new(result, Report::default()) }]);
        Ok(())
    }

    fn workers(&self) -> usize {
        self.0.settings.workers
    }

    fn takes_chunks(&self) -> bool {
        self.0.settings.isolation == Isolation::Reuse
    }

    fn takes_attachments(&self) -> bool {
        true
    }

    fn payload_limit(&self) -> Option<u64> {
        self.0.settings.payload_limit
    }
}

impl PoolCore {
    fn enter(&self, entry: EntryBox, when_full: WhenFull) -> Result<(), Rejection> {
        let accepted = self.0.hub.logs(Level::TRACE).then(|| Arc::clone(&entry.cell));
        let mut dispatch = self.admit(when_full)?;
        let wake = dispatch.accept(entry);
        self.0.help_while_submitting(dispatch);
        if wake {
            self.0.wake();
        }
        if let Some(cell) = accepted {
            self.0.hub.log_accepted(&cell);
        }
        Ok(())
    }
}

impl Control for Inner {
    fn cancel(&self, job: &Promise) -> bool {
        if fork::is_child() {
            return false;
        }
        let (completion, cancelled) = {
            let mut dispatch = self.dispatch();
            let completion = dispatch.cancel(&job.0);
            let cancelled = dispatch.was_cancelled(&job.0);
            if dispatch.blocked > 0 {
                self.room.notify_all();
            }
            if dispatch.is_drained() {
                // A shutdown may have been waiting for this job.
                self.wake();
            }
            (completion, cancelled)
        };
        match completion {
            Some(completion) => {
                self.complete_here(vec![completion]);
                true
            }
            None if cancelled => {
                // Another thread has taken it off the books, and is about to tell its cell. Not to wait
                // would be to say "it is cancelled" of a future that is not done yet.
                job.0.wait(None);
                true
            }
            None => job.0.is_cancelled_unstarted(),
        }
    }

    fn abort(&self, job: &Promise) {
        if !self.cancel(job) && !fork::is_child() {
            // It has started, so there is a worker to stop, which is the supervisor's work.
            self.dispatch().requests.push(Request::Abort(Arc::clone(&job.0)));
            self.wake();
        }
    }

    fn is_running(&self, job: &Promise) -> bool {
        !fork::is_child() && self.dispatch().is_running(&job.0) && !job.0.is_done()
    }

    fn progress(&self, job: &Promise) -> Option<Progress> {
        if fork::is_child() { None } else { self.dispatch().progress(&job.0) }
    }

    fn attend(&self, job: &Promise) -> bool {
        Inner::attend(self, &job.0)
    }

    fn expect_callback(&self) {
        if !fork::is_child() {
            self.callbacks.expect();
        }
    }

    fn glance(&self) {
        if !fork::is_child() {
            Inner::glance(self);
        }
    }

    fn is_inert(&self) -> bool {
        fork::is_child()
    }
}
