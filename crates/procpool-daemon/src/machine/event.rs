//! What can happen, and what follows from it.

use std::collections::HashSet;

use crate::job::{Attempt, Ending, JobId, JobSpec, Record, State, Who};
use crate::store::Change;

use super::queue::QueueOrder;

/// What can happen.
#[derive(Debug)]
pub enum Event {
    /// A client wants a job. The queue must exist, and each job that it depends on be live or among `ended`.
    Submit {
        /// What it wants.
        spec: Box<JobSpec>,
        /// Who.
        by: Who,
        /// The jobs that it depends on and that have ended, and how.
        ended: Vec<(JobId, State)>,
    },
    /// An attempt has ended.
    Ended {
        /// The job.
        id: JobId,
        /// The attempt that was started. What is told of an earlier one is not heard.
        attempt: Attempt,
        /// How.
        ending: Box<Ending>,
    },
    /// A job that was given a slot has been taken back before it began.
    TakenBack {
        /// The job.
        id: JobId,
        /// Its attempt.
        attempt: Attempt,
        /// Why.
        because: Because,
    },
    /// A job shall not be started.
    Cancel {
        /// The job.
        id: JobId,
        /// The attempt, if it was given a slot and has been taken back before it began.
        taken_back: Option<Attempt>,
        /// Who wants it.
        by: Who,
    },
    /// A job shall be stopped, whether it runs or not.
    Abort {
        /// The job.
        id: JobId,
        /// As above.
        taken_back: Option<Attempt>,
        /// Who wants it.
        by: Who,
    },
    /// A job that has ended shall be run once more, now, whatever it waited for. It must not be live.
    Retry {
        /// What is known of it.
        record: Box<Record>,
        /// Who wants it.
        by: Who,
    },
    /// Somebody has set something of a queue, which must exist.
    Queue {
        /// Its name.
        name: String,
        /// What.
        order: QueueOrder,
    },
    /// The configuration has changed: these are the queues, and their slots.
    Configured(Vec<(String, usize)>),
    /// All jobs of an earlier daemon are [restored](super::Machine::restore). What ran then is interrupted, or
    /// run again if it may be: nobody knows how far it had come.
    Restarted {
        /// Those that had a slot and certainly no worker. They wait again.
        unbegun: HashSet<JobId>,
    },
    /// A running job is given up, since the daemon ends.
    Interrupt {
        /// The job.
        id: JobId,
    },
    /// No job shall be started any more.
    Drain,
    /// Time has passed.
    Time,
}

/// Why a job was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// The slot that it was given in advance did not become free in time.
    Late,
    /// Its queue starts no jobs any more.
    Closed,
}

/// What a caller of [`Machine::handle`](super::Machine::handle) is told at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// There is nothing to say.
    Nothing,
    /// The job has this number.
    Born(JobId),
    /// The job will never run.
    Cancelled,
    /// The job runs.
    Running,
    /// The job waits for a slot again.
    Queued,
    /// The job has ended before, or never was.
    NotLive,
}

/// What follows from an event. `then` is for when `changes` are durable, and not before.
#[derive(Debug, Default)]
pub struct Effects {
    /// What is to be kept, in this order.
    pub changes: Vec<Change>,
    /// What is to be done then, in this order.
    pub then: Vec<Then>,
}

/// What is to be done once it is known for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Give the job to a worker.
    Start {
        /// The job.
        id: JobId,
        /// Its attempt.
        attempt: Attempt,
    },
    /// An attempt is over, and that is known: it counts as begun no longer.
    Over {
        /// The job.
        id: JobId,
        /// Its attempt.
        attempt: Attempt,
    },
    /// Stop it.
    Stop {
        /// The job.
        id: JobId,
    },
    /// Tell those who wait for it.
    Tell {
        /// The job.
        id: JobId,
        /// How it has ended.
        state: State,
    },
}
