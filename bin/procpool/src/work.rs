//! What `run` and `call` each know of their jobs, and the [batch](crate::batch) does not.

use std::time::Duration;

use procpool::{JobError, JobFuture, ProcessPool};

use crate::capsule::What;
use crate::input::Input;
use crate::record::{Record, Verdict};
use crate::report::Unwritable;

/// What a batch does with its inputs.
pub(crate) trait Work {
    type Value: Send + 'static;

    /// Starts a job. An error says why the input can be none.
    fn submit(&self, pool: &ProcessPool, job: &Job) -> Result<Next<Self::Value>, String>;

    /// How a job ended that ended with this value.
    fn verdict(&self, value: &Self::Value) -> Verdict;

    /// How a job ended without a value.
    fn describe(&self, error: &JobError) -> String;

    /// Why no worker can be started.
    fn no_workers(&self, cause: &str) -> String;

    /// Whether another attempt may help.
    fn may_retry(&self, result: &Result<Self::Value, JobError>) -> bool;

    /// Forgets what an attempt has left, before another one.
    fn discard(&self, job: &Job);

    /// The CPU time of a job, if the value knows better than the pool.
    fn cpu(&self, _value: &Self::Value) -> Option<Duration> {
        None
    }

    /// The end of what a job has said on standard error, while it has not been printed.
    fn stderr_tail(&self, job: &Job, result: &Result<Self::Value, JobError>) -> String;

    /// Prints the output of a job that was run.
    fn print(
        &mut self,
        job: &Job,
        value: Option<Self::Value>,
        record: &Record,
    ) -> Result<(), Unwritable>;

    /// Every job has ended and was printed: nothing needs to be kept any more.
    fn end(&mut self) {}

    /// What was run, for another time.
    fn what(&self, job: &Job, record: &Record) -> What;

    /// The memory that a value takes.
    fn size(&self, value: &Self::Value) -> usize;

    /// The job as messages call it.
    fn name(&self, job: &Job) -> String;
}

/// What an input becomes.
pub(crate) enum Next<V> {
    Job(JobFuture<V>),
    /// Nothing: it says nothing.
    Skip,
}

/// One input with its number, from 1.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) input: Input,
}

impl Job {
    /// What `--tag` puts before its lines.
    pub(crate) fn tag(&self) -> Vec<u8> {
        self.input.tag()
    }
}
