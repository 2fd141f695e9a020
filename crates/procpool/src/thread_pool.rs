//! [`ThreadPool`]: the same interface over threads of this process, for waiting rather than computing.

mod timers;

use std::any::Any;
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Instant;

use procpool_sys::fork;

use crate::Error;
use crate::builder::Shutdown;
use crate::cell::{Ended, JobCell, Value};
use crate::context::Context;
use crate::executor::{
    Backend, Call, Control, Data, Executor, Options, Promise, Rejection, WhenFull, panic_message,
};
use crate::future::JobFuture;
use crate::job::Job;
use crate::job_error::{JobError, Panic};
use crate::map::Map;
use crate::report::{Progress, Report};
use crate::supervisor::callbacks::CallbackThreads;
use crate::supervisor::queue::Queue;
use timers::{Limits, Timers};

/// The most threads of a pool by default, as in CPython: enough to wait on many things at once.
const THREADS_MAX_DEFAULT: usize = 32;
/// Threads beyond the number of CPUs by default, as in CPython: they wait rather than compute.
const THREADS_BEYOND_CPUS: usize = 4;
/// The note in a cell's place that its job has started; smaller numbers are places in the queue.
const STARTED: u64 = u64::MAX;

/// Threads that run functions and closures of this program.
///
/// The same interface as a [`ProcessPool`](crate::ProcessPool), for work that waits: nothing is encoded,
/// and closures may [capture](ThreadPool::spawn). What threads cannot give: a crash takes the whole
/// program down, and a running job cannot be stopped. A timeout or an `abort` raises the job's
/// [flag](crate::Context::is_cancelled) and ends its future; the thread goes on until the job returns.
/// A panic's location is not known here: the library installs no panic hook in your program.
///
/// A job that waits for another job of the same pool can wait for ever, once all threads do.
///
/// Threads are started as jobs need them. Dropping the pool waits for all its jobs ([`Shutdown::Drain`]);
/// while the thread is panicking it cancels what it can ([`Shutdown::Abort`]).
pub struct ThreadPool {
    backend: ThreadBackend,
}

struct ThreadBackend(Arc<Inner>);

/// Settings for a [`ThreadPool`]. Made by [`ThreadPool::builder`].
#[must_use = "a builder does nothing until `build`"]
#[derive(Debug, Clone, Default)]
pub struct ThreadPoolBuilder {
    workers: Option<usize>,
    name: Option<String>,
}

struct Inner {
    workers: usize,
    name: String,
    state: Mutex<State>,
    /// A job came, or the pool closed.
    work: Condvar,
    /// A thread ended, or is ending the pool.
    gone: Condvar,
    callbacks: CallbackThreads,
    timers: Timers,
}

#[derive(Default)]
struct State {
    queue: Queue<Task>,
    idle: usize,
    closed: bool,
    /// One for each thread; the index is the worker index.
    threads: Vec<JoinHandle<()>>,
    ids: Vec<ThreadId>,
    running: Vec<Option<Arc<JobCell>>>,
    /// Threads that serve.
    live: usize,
    /// Those of them whose job is shutting the pool down, and which nobody can wait for there.
    leaving: usize,
}

struct Task {
    cell: Arc<JobCell>,
    run: Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>,
    limits: Limits,
    submitted: Instant,
}

impl ThreadPoolBuilder {
    /// How many threads there are at most. By default `min(32, CPUs + 4)`. 0 is an error.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// The threads are named `name_0`, `name_1`, …
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Makes the pool. No thread is started before the first job.
    ///
    /// # Errors
    /// [`is_setting`](Error::is_setting) if a setting makes no sense.
    pub fn build(self) -> Result<ThreadPool, Error> {
        static POOLS: AtomicU64 = AtomicU64::new(0);
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let workers =
            self.workers.unwrap_or_else(|| THREADS_MAX_DEFAULT.min(cpus + THREADS_BEYOND_CPUS));
        if workers == 0 {
            return Err(Error::setting("workers(0): a pool has at least one worker"));
        }
        if self.name.as_ref().is_some_and(|name| name.contains('\0')) {
            return Err(Error::setting("name: a thread's name has no NUL"));
        }
        let number = POOLS.fetch_add(1, Ordering::Relaxed);
        let name = self.name.unwrap_or_else(|| format!("ThreadPool-{number}"));
        fork::watch().map_err(|error| Error::system("cannot watch for forks", error))?;
        let inner = Inner {
            workers,
            name,
            state: Mutex::default(),
            work: Condvar::new(),
            gone: Condvar::new(),
            callbacks: CallbackThreads::default(),
            timers: Timers::default(),
        };
        Ok(ThreadPool { backend: ThreadBackend(Arc::new(inner)) })
    }
}

impl ThreadPool {
    /// A pool of `min(32, CPUs + 4)` threads.
    ///
    /// # Errors
    /// As for [`ThreadPoolBuilder::build`].
    pub fn new() -> Result<ThreadPool, Error> {
        ThreadPool::builder().build()
    }

    /// Settings for a pool.
    pub fn builder() -> ThreadPoolBuilder {
        ThreadPoolBuilder::default()
    }

    /// Submits `f(arg)`. Never blocks.
    #[track_caller]
    pub fn submit<A: Data, R: Data>(&self, f: fn(A) -> R, arg: A) -> JobFuture<R> {
        Executor::submit(self, f, arg)
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

    /// Submits a closure, which may capture. Never blocks.
    #[track_caller]
    pub fn spawn<R: Send + 'static>(&self, f: impl FnOnce() -> R + Send + 'static) -> JobFuture<R> {
        let cell = JobCell::new(self.backend.control(), Location::caller(), None, 0);
        let run: Box<dyn FnOnce() -> Box<dyn Any + Send> + Send> = Box::new(move || Box::new(f()));
        if let Err(rejection) =
            self.backend.0.accept(Arc::clone(&cell), Limits::default(), || Some(run))
        {
            let ended = Ended::new(Err(rejection.into_job_error()), Report::default());
            cell.complete(ended).run();
        }
        JobFuture::of_local(cell)
    }

    /// Ends the pool: no job is accepted any more, those that there are end as `how` says, and the call
    /// returns when every job that runs has returned and every callback has run. Called from one of the
    /// pool's own threads it does not wait for that one. Calling it again is harmless.
    pub fn shutdown(&self, how: Shutdown) {
        if !fork::is_child() {
            self.backend.0.shutdown(how);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shutdown(if thread::panicking() { Shutdown::Abort } else { Shutdown::Drain });
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.backend.0;
        f.debug_struct("ThreadPool")
            .field("name", &inner.name)
            .field("workers", &inner.workers)
            .finish()
    }
}

impl Executor for ThreadPool {
    fn backend(&self) -> &dyn Backend {
        &self.backend
    }
}

impl Backend for ThreadBackend {
    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.0) as Arc<dyn Control>
    }

    fn accept(
        &self,
        call: &mut dyn Call,
        promise: Promise,
        options: &Options,
        _when_full: WhenFull,
    ) -> Result<(), Rejection> {
        let limits = Limits { timeout: options.timeout, cpu_timeout: options.cpu_timeout };
        self.0.accept(promise.0, limits, || call.local())
    }

    fn workers(&self) -> usize {
        self.0.workers
    }

    fn takes_chunks(&self) -> bool {
        false
    }

    fn payload_limit(&self) -> Option<u64> {
        None
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Jobs run outside of this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(
        self: &Arc<Self>,
        cell: Arc<JobCell>,
        limits: Limits,
        run: impl FnOnce() -> Option<Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>>,
    ) -> Result<(), Rejection> {
        if fork::is_child() {
            return Err(Rejection::Closed);
        }
        let mut state = self.state();
        if state.closed {
            return Err(Rejection::Closed);
        }
        if state.idle <= state.queue.len()
            && state.threads.len() < self.workers
            && let Err(error) = self.start_thread(&mut state)
            && state.threads.is_empty()
        {
            let error = Error::system(format!("cannot start a thread of {}", self.name), error);
            return Err(Rejection::Broken(error));
        }
        let Some(run) = run() else {
            let error = Error::setting("a thread pool runs functions of this program only");
            return Err(Rejection::Broken(error));
        };
        let sequence = cell.id.number();
        cell.place.store(sequence, Ordering::Relaxed);
        let priority = cell.priority;
        state.queue.insert(
            priority,
            sequence,
            Task { cell, run, limits, submitted: Instant::now() },
        );
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    fn start_thread(self: &Arc<Self>, state: &mut State) -> std::io::Result<()> {
        let index = state.threads.len();
        let inner = Arc::clone(self);
        let name = format!("{}_{index}", self.name);
        let thread = thread::Builder::new().name(name).spawn(move || inner.serve(index))?;
        state.ids.push(thread.thread().id());
        state.threads.push(thread);
        state.running.push(None);
        state.live += 1;
        Ok(())
    }

    fn serve(&self, index: usize) {
        let mut state = self.state();
        loop {
            if let Some(task) = state.queue.pop() {
                task.cell.place.store(STARTED, Ordering::Relaxed);
                state.running[index] = Some(Arc::clone(&task.cell));
                drop(state);
                quietly(|| self.run(task, index));
                let last = self.state().running[index].take();
                quietly(|| drop(last));
                state = self.state();
            } else if state.closed {
                state.live -= 1;
                self.gone.notify_all();
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    fn run(&self, task: Task, index: usize) {
        let Task { cell, run, limits, submitted } = task;
        let started = Instant::now();
        let mut report = Report {
            attempts: 1,
            queued: started - submitted,
            pid: Some(process::id()),
            worker: Some(index),
            ..Report::default()
        };
        self.timers.set(started, &limits, &cell, &report, &self.callbacks);
        let result = {
            let _context = Context::in_thread(&cell, index).enter();
            catch_unwind(AssertUnwindSafe(run))
        };
        report.ran = started.elapsed();
        let result = result.map(Value::Boxed).map_err(|payload| {
            let message = panic_message(&*payload).unwrap_or("Box<dyn Any>").to_owned();
            // Its Drop may panic (rust-lang/rust#86027).
            mem::forget(payload);
            JobError::Panicked(Panic {
                message,
                location: None,
                backtrace: None,
                aborted: false,
                label: cell.label(),
            })
        });
        self.callbacks.run(cell.complete(Ended::new(result, report)));
    }

    fn shutdown(&self, how: Shutdown) {
        let mut state = self.state();
        state.closed = true;
        let mut cancelled = Vec::new();
        if how != Shutdown::Drain {
            cancelled.extend(std::iter::from_fn(|| state.queue.pop()));
        }
        let running: Vec<_> = match how {
            Shutdown::Abort => state.running.iter().flatten().cloned().collect(),
            Shutdown::Drain | Shutdown::CancelPending => Vec::new(),
        };
        let is_own = state.ids.contains(&thread::current().id());
        if is_own {
            state.leaving += 1;
            self.gone.notify_all();
        }
        drop(state);
        self.work.notify_all();
        for task in cancelled {
            self.end(&task.cell, false);
            quietly(|| drop(task));
        }
        for cell in running {
            self.end(&cell, true);
        }
        // Not by joining: each of several shutdowns at the same time waits for all threads.
        let mut state = self.state();
        while state.live > state.leaving {
            state = self.gone.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let threads = if is_own {
            state.leaving -= 1;
            Vec::new()
        } else {
            mem::take(&mut state.threads)
        };
        drop(state);
        for thread in threads {
            // Jobs' panics are caught, so a thread ends well.
            let _ = thread.join();
        }
        self.timers.close();
        self.callbacks.close();
    }

    fn end(&self, cell: &JobCell, started: bool) {
        let report = Report { attempts: u32::from(started), ..Report::default() };
        let ended = Ended::new(Err(JobError::Cancelled { started }), report);
        let callbacks = cell.complete(ended);
        // Only now: a job that returns as soon as it sees the flag would be done with a value instead.
        cell.stop.store(true, Ordering::Relaxed);
        self.callbacks.run(callbacks);
    }

    fn take_unstarted(&self, cell: &JobCell) -> Option<Task> {
        let mut state = self.state();
        match cell.place.load(Ordering::Relaxed) {
            STARTED => None,
            sequence => state.queue.remove(cell.priority, sequence),
        }
    }
}

/// Runs what may run a Drop of the user's: a panic in it costs neither the thread nor another job.
fn quietly(action: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(action)) {
        mem::forget(payload);
    }
}

impl Control for Inner {
    fn cancel(&self, job: &Promise) -> bool {
        if fork::is_child() {
            return false;
        }
        match self.take_unstarted(&job.0) {
            Some(task) => {
                let error = JobError::Cancelled { started: false };
                let ended = Ended::new(Err(error), Report::default());
                task.cell.complete(ended).run();
                true
            }
            None => job.0.is_cancelled_unstarted(),
        }
    }

    fn abort(&self, job: &Promise) {
        if !fork::is_child() && !self.cancel(job) {
            self.end(&job.0, true);
        }
    }

    fn is_running(&self, job: &Promise) -> bool {
        job.0.place.load(Ordering::Relaxed) == STARTED && !job.0.is_done()
    }

    fn progress(&self, _job: &Promise) -> Option<Progress> {
        // A thread writes it into the cell itself.
        None
    }

    fn is_inert(&self) -> bool {
        fork::is_child()
    }
}
