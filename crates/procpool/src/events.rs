//! What happens in a pool, as it happens: to be received, or to be logged.
//!
//! The same facts go two ways. [`ProcessPool::events`](crate::ProcessPool::events) gives a receiver of
//! [`Event`]s; and each is an event of the `tracing` crate with the target `procpool`, for the subscriber that
//! the program has set, if it has.
//!
//! ```
//! use procpool::{ProcessPool, Shutdown};
//! use procpool::events::Event;
//!
//! fn main() -> Result<(), procpool::Error> {
//!     procpool::init();
//!     let pool = ProcessPool::builder().workers(1).build()?;
//!     let events = pool.events();
//!     pool.submit::<_, ()>(|()| std::process::abort(), ()).wait();
//!     pool.shutdown(Shutdown::Drain);
//!     let deaths = events.filter(|event| matches!(event, Event::WorkerEnded { job: Some(_), .. }));
//!     assert_eq!(deaths.count(), 1);
//!     Ok(())
//! }
//! ```
//!
//! # Order
//!
//! The events of one worker come in the order of its life: starting, ready, stopping (if it is), its last lines,
//! ended. What is known of a job's end is told before its future is done, so whoever has waited for the future
//! finds the event in the receiver.
//!
//! # With `tracing`
//!
//! The names and fields are fixed. `pool` is in all of them: a number that tells the pools of a process apart.
//!
//! | name | level | fields besides `pool` |
//! |---|---|---|
//! | `pool_started` | DEBUG | `workers` |
//! | `pool_stopping` | DEBUG | `how` |
//! | `pool_broken` | ERROR | `error` |
//! | `pool_ended` | DEBUG | |
//! | `worker_starting` | DEBUG | `worker`, `pid` |
//! | `worker_ready` | DEBUG | `worker`, `pid`, `after` |
//! | `start_failed` | WARN | `worker`, `cause`, `retry_in` |
//! | `worker_stopping` | DEBUG | `worker`, `pid`, `stage` |
//! | `worker_fault` | WARN | `worker`, `pid`, `detail` |
//! | `worker_ended` | DEBUG if retired or killed, WARN if it died | `worker`, `pid`, `end`, `status`, `job`, `lived` |
//! | `worker_abandoned` | ERROR | `worker`, `pid`, `job`, `lived` |
//! | `worker_line` | INFO | `worker`, `pid`, `job`, `line` |
//! | `job_accepted` | TRACE | `job`, `name`, `origin` |
//! | `job_stopping` | DEBUG | `job`, `worker`, `pid`, `cause` |
//! | `job_retry` | WARN | `job`, `attempt`, `wait` |
//! | `job_failed` | DEBUG | `job`, `name`, `origin`, `error`, `attempts` |
//! | `job_quarantined` | WARN | as `job_failed` |
//! | `job_ended` | TRACE | `job`, `attempts`, `queued`, `ran`, `worker`, `pid` |
//!
//! `worker`, `pid`, `job`, `attempt`, `attempts` and `workers` are numbers; durations are text such as `1.5s`;
//! what a worker said is text with its control characters escaped. A job's start has no event: the worker claims
//! it alone, which is what makes it fast; `job_ended` says when it was. `job_accepted` is told by the thread that
//! submits, which can be later than the end of a very short job.
//!
//! While nothing is enabled, and nobody receives, all this costs a load and a compare for each batch of jobs.
//! The subscriber's own code runs on the thread of the pool that tells the event, outside of its locks. It may
//! ask the pool and submit to it; if it is slow, so is the pool; it must not wait for a job of the pool, or shut
//! the pool down. Its panics end there.

mod hub;
mod trace;

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::mpsc::{RecvError, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use crate::Error;
use crate::builder::Shutdown;
use crate::job_error::{Escaped, JobError, Status};
use crate::job_id::JobId;
use crate::report::Report;
pub(crate) use hub::Hub;

/// Something that happened in a pool. Its text is one line, with control characters escaped.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// Workers cannot be started: the jobs that waited for one have ended, and no more are accepted.
    #[non_exhaustive]
    PoolBroken {
        /// The first cause.
        error: Error,
    },
    /// The pool is being shut down. Told again if that is asked for again.
    #[non_exhaustive]
    PoolStopping {
        /// What becomes of its jobs.
        how: Shutdown,
    },
    /// No worker is left, and none will come. The last event.
    #[non_exhaustive]
    PoolEnded {},
    /// A worker's process was started.
    #[non_exhaustive]
    WorkerStarting {
        /// Its index.
        worker: usize,
        /// Its process.
        pid: u32,
    },
    /// A worker takes jobs.
    #[non_exhaustive]
    WorkerReady {
        /// Its index.
        worker: usize,
        /// Its process.
        pid: u32,
        /// How long its start took.
        after: Duration,
    },
    /// A worker could not be started, or ended before it was ready, or was not ready in time. The same of the
    /// [fork server](crate::StartMethod::ForkServer).
    #[non_exhaustive]
    StartFailed {
        /// The index that the worker would have; `None` of a process that has none.
        worker: Option<usize>,
        /// Why, in words.
        cause: String,
        /// How long the pool waits before it starts a worker again; `None`: it is ending or broken.
        retry_in: Option<Duration>,
    },
    /// The next step of ending a worker, or the job that it runs.
    #[non_exhaustive]
    WorkerStopping {
        /// Its index.
        worker: usize,
        /// Its process.
        pid: u32,
        /// The step.
        stage: StopStage,
    },
    /// A worker broke the protocol, or closed its control channel: it is killed.
    #[non_exhaustive]
    WorkerFault {
        /// Its index.
        worker: usize,
        /// Its process.
        pid: u32,
        /// How, in words.
        detail: String,
    },
    /// A worker's process has ended.
    #[non_exhaustive]
    WorkerEnded {
        /// Its index.
        worker: usize,
        /// Its process, until now.
        pid: u32,
        /// Whether that was to be.
        end: WorkerEnd,
        /// How.
        status: Status,
        /// The job that ended with it.
        job: Option<JobId>,
        /// Time from its start.
        lived: Duration,
    },
    /// A process was sent SIGKILL and does not end, after
    /// [`unkillable_after`](crate::ProcessPoolBuilder::unkillable_after): the pool goes on without it. If it ends
    /// while there is the pool, [`WorkerEnded`](Event::WorkerEnded) tells, with its process id, for the slot that it
    /// once had.
    #[non_exhaustive]
    WorkerAbandoned {
        /// Its index; `None` of a process that had none.
        worker: Option<usize>,
        /// Its process.
        pid: u32,
        /// The job that it ran.
        job: Option<JobId>,
        /// Time from its start.
        lived: Duration,
    },
    /// With [`Output::Capture`](crate::Output::Capture): a line that a worker wrote to its standard error.
    ///
    /// The worker, the process and the order of its lines are exact. The job is the one that ran as the line was
    /// read, an instant after it was written: a line written at the very end of a job can be told without a job
    /// or with the next one, and a line of a process that a job left behind with whichever runs then.
    #[non_exhaustive]
    WorkerLine {
        /// Its index.
        worker: usize,
        /// Its process.
        pid: u32,
        /// The job that ran as the line was read.
        job: Option<JobId>,
        /// The line, without its end, at most 4 KiB of it; what is not UTF-8 is replaced. Control characters are
        /// as the worker wrote them: escape them before you print this.
        line: String,
        /// False if the line goes on in the next such event of this worker, or the worker ended before it did.
        whole: bool,
    },
    /// A running job is being stopped.
    #[non_exhaustive]
    JobStopping {
        /// Which.
        job: JobId,
        /// The index of its worker.
        worker: usize,
        /// The process of its worker.
        pid: u32,
        /// Why.
        cause: StopCause,
    },
    /// A job killed its worker, has [retries](crate::ProcessPoolBuilder::retries) left, and waits for the next.
    #[non_exhaustive]
    JobRetry {
        /// Which.
        job: JobId,
        /// The number of the attempt that will be made.
        attempt: u32,
        /// How long it waits.
        wait: Duration,
    },
    /// A job ended without a value, cancelled ones included. Each element of a chunk of a `map` that did is told
    /// by itself.
    #[non_exhaustive]
    JobFailed {
        /// Which.
        job: JobId,
        /// Its name, if it was given one.
        name: Option<Arc<str>>,
        /// Where it was submitted.
        origin: &'static Location<'static>,
        /// How it ended.
        error: JobError,
        /// What it took.
        report: Report,
    },
    /// So many events, at this place in the order, found the receiver full and are lost.
    Missed(u64),
}

/// A step of ending a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopStage {
    /// It was told to exit: its jobs are done.
    Leave,
    /// SIGTERM was sent to its process group.
    Terminate,
    /// SIGKILL was sent to its process group.
    Kill,
}

/// Whether the end of a worker was to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerEnd {
    /// It was told to exit, and did.
    Retired,
    /// The pool ended it with a signal.
    Killed,
    /// It ended of itself, or by somebody else's hand.
    Died,
}

/// Why a job is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopCause {
    /// [`abort`](crate::JobFuture::abort), or [`Shutdown::Abort`].
    Abort,
    /// It has run for as long as its time limit allows, which is this.
    Timeout(Duration),
    /// It has used as much CPU time as its limit allows, which is this.
    CpuTimeout(Duration),
}

/// Receives the events of a pool, from the call of [`ProcessPool::events`](crate::ProcessPool::events) on. Each
/// receiver gets all of them.
///
/// As an iterator it waits for the next event, and ends when the pool has ended and all events are taken. A
/// receiver holds at most 4096 events: beyond, the newest are dropped and counted ([`Event::Missed`]); the pool
/// never waits for a receiver. Dropping it has no effect on the pool, and the pool need not live as long as it.
/// In a forked child of the process it is at its end.
pub struct Events {
    queue: Arc<hub::Queue>,
    hub: Arc<Hub>,
}

impl Events {
    /// Waits for the next event.
    ///
    /// # Errors
    /// The pool has ended, and there is no event left.
    pub fn recv(&self) -> Result<Event, RecvError> {
        self.queue.recv(None).map_err(|_| RecvError)
    }

    /// Takes the next event if there is one.
    ///
    /// # Errors
    /// There is none now, or there will be none.
    pub fn try_recv(&self) -> Result<Event, TryRecvError> {
        self.queue.try_recv()
    }

    /// Waits for the next event, for so long at most. Zero looks once.
    ///
    /// # Errors
    /// The time is over, or the pool has ended and there is no event left.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        // A time too long to be counted is no limit.
        self.queue.recv(Instant::now().checked_add(timeout))
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.recv().ok()
    }
}

impl Iterator for &Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.recv().ok()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.hub.leave(&self.queue);
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("waiting", &self.queue.len()).finish()
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::PoolBroken { error } => {
                write!(f, "the pool is broken: {}", Escaped(&error.to_string()))
            }
            Event::PoolStopping { how } => write!(f, "the pool is being shut down ({how:?})"),
            Event::PoolEnded {} => f.write_str("the pool has ended"),
            Event::WorkerStarting { worker, pid } => {
                write!(f, "worker {worker} (pid {pid}) starts")
            }
            Event::WorkerReady { worker, pid, after } => {
                write!(f, "worker {worker} (pid {pid}) is ready after {after:?}")
            }
            Event::StartFailed { worker, cause, retry_in } => {
                match worker {
                    Some(worker) => {
                        write!(f, "worker {worker} was not started: {}", Escaped(cause))?
                    }
                    None => write!(f, "a process was not started: {}", Escaped(cause))?,
                }
                match retry_in {
                    Some(wait) => write!(f, "; next try in {wait:?}"),
                    None => Ok(()),
                }
            }
            Event::WorkerStopping { worker, pid, stage } => {
                write!(f, "worker {worker} (pid {pid}) {stage}")
            }
            Event::WorkerFault { worker, pid, detail } => {
                write!(f, "worker {worker} (pid {pid}) is killed: {}", Escaped(detail))
            }
            Event::WorkerEnded { worker, pid, end, status, job, lived } => {
                write!(f, "worker {worker} (pid {pid}) {end} after {lived:?}: {status}")?;
                match job {
                    Some(job) => write!(f, ", and job {job} with it"),
                    None => Ok(()),
                }
            }
            Event::WorkerAbandoned { worker, pid, job, lived } => {
                match worker {
                    Some(worker) => write!(f, "worker {worker} (pid {pid})")?,
                    None => write!(f, "process {pid}")?,
                }
                write!(f, " does not end after SIGKILL and is abandoned after {lived:?}")?;
                match job {
                    Some(job) => write!(f, ", and job {job} with it"),
                    None => Ok(()),
                }
            }
            Event::WorkerLine { worker, pid, job, line, whole } => {
                write!(f, "worker {worker} (pid {pid})")?;
                if let Some(job) = job {
                    write!(f, ", job {job}")?;
                }
                write!(f, ": {}{}", Escaped(line), if *whole { "" } else { "…" })
            }
            Event::JobStopping { job, worker, pid, cause } => {
                write!(f, "job {job} is being stopped in worker {worker} (pid {pid}): {cause}")
            }
            Event::JobRetry { job, attempt, wait } => {
                write!(f, "job {job} waits {wait:?} for its attempt {attempt}")
            }
            Event::JobFailed { job, error, .. } => match error {
                JobError::Panicked(_)
                | JobError::Died(_)
                | JobError::TimedOut(_)
                | JobError::Quarantined { .. } => error.fmt(f),
                // These do not say which job they are about.
                _ => write!(f, "job {job}: {error}"),
            },
            Event::Missed(1) => f.write_str("an event was missed"),
            Event::Missed(count) => write!(f, "{count} events were missed"),
        }
    }
}

impl fmt::Display for StopStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StopStage::Leave => "is told to exit",
            StopStage::Terminate => "is sent SIGTERM",
            StopStage::Kill => "is sent SIGKILL",
        })
    }
}

impl fmt::Display for WorkerEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WorkerEnd::Retired => "retired",
            WorkerEnd::Killed => "was killed",
            WorkerEnd::Died => "died",
        })
    }
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopCause::Abort => f.write_str("aborted"),
            StopCause::Timeout(limit) => write!(f, "time limit of {limit:?}"),
            StopCause::CpuTimeout(limit) => write!(f, "CPU time limit of {limit:?}"),
        }
    }
}
