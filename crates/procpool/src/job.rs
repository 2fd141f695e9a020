//! [`Job`]: one call with options of its own.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::cell::{Ended, JobCell};
use crate::executor::{
    Backend, Call, Data, FunctionCall, Options, Promise, Rejected, Rejection, WhenFull,
};
use crate::future::JobFuture;
use crate::report::Report;

/// A call that has not been submitted yet, with options of its own. Dropping it submits nothing.
#[must_use = "a job does nothing until it is submitted"]
pub struct Job<'p, A, R> {
    backend: &'p dyn Backend,
    f: fn(A) -> R,
    arg: A,
    origin: &'static Location<'static>,
    name: Option<Arc<str>>,
    priority: i32,
    options: Options,
}

impl<'p, A: Data, R: Data> Job<'p, A, R> {
    pub(crate) fn new(
        backend: &'p dyn Backend,
        f: fn(A) -> R,
        arg: A,
        origin: &'static Location<'static>,
    ) -> Job<'p, A, R> {
        Job { backend, f, arg, origin, name: None, priority: 0, options: Options::default() }
    }

    /// The time limit from the start of each attempt, in place of the pool's, longer or shorter.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// The limit on the CPU time of each attempt, in place of the pool's, more or less. See
    /// [`cpu_timeout`](crate::ProcessPoolBuilder::cpu_timeout). On a [`ThreadPool`](crate::ThreadPool) it
    /// counts the thread that runs the job, not those that the job starts.
    pub fn cpu_timeout(mut self, limit: Duration) -> Self {
        self.options.cpu_timeout = Some(limit);
        self
    }

    /// How often the job is run again if it kills its worker, in place of the pool's setting.
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = Some(retries);
        self
    }

    /// Jobs of higher priority start first, those of equal priority in order of submission. Default 0.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// A name for messages about the job.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into().into());
        self
    }

    /// Submits the job. Blocks only while a queue limit is reached.
    pub fn submit(self) -> JobFuture<R> {
        let mut call = FunctionCall { f: self.f, arg: Some(self.arg) };
        let cell = JobCell::new(self.backend.control(), self.origin, self.name, self.priority);
        submit_call(self.backend, &mut call, &cell, &self.options);
        JobFuture::of_data(cell)
    }

    /// Submits the job unless it is refused, in which case the argument comes back: [`Rejection::Full`] where
    /// [`submit`](Job::submit) would wait.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn try_submit(self) -> Result<JobFuture<R>, Rejected<A>> {
        let mut call = FunctionCall { f: self.f, arg: Some(self.arg) };
        let cell = JobCell::new(self.backend.control(), self.origin, self.name, self.priority);
        let promise = Promise(Arc::clone(&cell));
        match self.backend.accept(&mut call, promise, &self.options, WhenFull::Refuse) {
            Ok(()) => Ok(JobFuture::of_data(cell)),
            Err(reason) => {
                let arg = call.arg.take().expect("a refused job keeps its argument");
                Err(Rejected { arg, reason })
            }
        }
    }
}

/// Submits a call whose refusal is its future's outcome.
pub(crate) fn submit_call(
    backend: &dyn Backend,
    call: &mut dyn Call,
    cell: &Arc<JobCell>,
    options: &Options,
) {
    let promise = Promise(Arc::clone(cell));
    if let Err(rejection) = backend.accept(call, promise, options, WhenFull::Block) {
        refuse(cell, rejection);
    }
}

fn refuse(cell: &JobCell, rejection: Rejection) {
    let ended = Ended::new(Err(rejection.into_job_error()), Report::default());
    // Nobody can have added a callback yet.
    cell.complete(ended).run();
}

impl<A, R> fmt::Debug for Job<'_, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("name", &self.name)
            .field("priority", &self.priority)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
