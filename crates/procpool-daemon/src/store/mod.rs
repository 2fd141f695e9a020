//! Where jobs are kept: a small trait, so that faults can be played in its place, and what is written there.
//!
//! A store belongs to one thread, the journal's, which writes and reads in one order: what is
//! read is what was written before. The daemon's own is [`sqlite`].

#[cfg(feature = "server")]
mod begun;
#[cfg(feature = "server")]
mod check;
#[cfg(feature = "server")]
mod mark;
#[cfg(feature = "server")]
mod seal;
#[cfg(feature = "server")]
mod space;
#[cfg(feature = "server")]
pub mod sqlite;

use std::io;

use crate::job::{Ending, JobId, Life, Moment, Record, State, Work};
use crate::machine::QueueSetting;

#[cfg(feature = "server")]
pub use begun::Begun;
#[cfg(feature = "server")]
pub use space::Space;

/// One thing to be kept.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "few are under way at a time, and a box would be one more allocation for each job"
)]
pub enum Change {
    /// A new job.
    Insert {
        /// What lists show of it.
        record: Record,
        /// What it is to do.
        work: Work,
    },
    /// A job has made a step, and not its last.
    Step {
        /// The job.
        id: JobId,
        /// What has become of it.
        life: Life,
    },
    /// A job that was given a slot has not begun after all, and waits again.
    Back {
        /// The job.
        id: JobId,
        /// What has become of it: all as it was before.
        life: Life,
    },
    /// A job has ended.
    End {
        /// The job.
        id: JobId,
        /// What has become of it.
        life: Life,
        /// How it ended.
        ending: Box<Ending>,
    },
    /// Somebody has set something of a queue.
    Queue {
        /// Its name.
        name: String,
        /// All that is set of it.
        setting: QueueSetting,
    },
    /// What a job left has been kept long enough: its work, its ending and its key go, its record stays.
    Expire {
        /// The job.
        id: JobId,
        /// What has become of it.
        life: Life,
    },
    /// A job that has ended is as if it had never been, but for its number. Nothing happens if there is none.
    Forget {
        /// The job.
        id: JobId,
    },
}

/// Why the store could not do its part. After one of these nothing more is written: the daemon ends.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The system or SQLite refused a read or a write.
    Io(io::Error),
    /// There is no room, and what was kept free for that case is used up.
    Full,
    /// What is there is not what was written.
    Damaged(String),
    /// It was written by a later version.
    Newer {
        /// The version of what is there.
        found: i64,
        /// The latest that this program knows.
        known: i64,
    },
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreError::Io(error) => error.fmt(f),
            StoreError::Full => f.write_str("the disk is full"),
            StoreError::Damaged(what) => write!(f, "it is damaged: {what}"),
            StoreError::Newer { found, known } => {
                write!(f, "it has version {found}, and this program knows versions up to {known}")
            }
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Io(error) => Some(error),
            StoreError::Full | StoreError::Damaged(_) | StoreError::Newer { .. } => None,
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full,
            _ => StoreError::Io(error),
        }
    }
}

/// Where jobs are kept.
pub trait Store: Send + std::fmt::Debug {
    /// Keeps all of these, or none. When it returns they are as durable as its level says.
    ///
    /// # Errors
    /// None of them can be relied on then, nor that none is there after a restart.
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError>;

    /// Gives `take` each job that has not ended, by number.
    ///
    /// # Errors
    /// If one cannot be read.
    fn live(&mut self, take: &mut dyn FnMut(Record)) -> Result<(), StoreError>;

    /// What is set of queues.
    ///
    /// # Errors
    /// If it cannot be read.
    fn queues(&mut self) -> Result<Vec<(String, QueueSetting)>, StoreError>;

    /// The number of the next job: one more than the highest that was ever given.
    ///
    /// # Errors
    /// If it cannot be read.
    fn next_id(&mut self) -> Result<JobId, StoreError>;

    /// What is known of a job.
    ///
    /// # Errors
    /// If it cannot be read.
    fn record(&mut self, id: JobId) -> Result<Option<Record>, StoreError>;

    /// Where a job stands.
    ///
    /// # Errors
    /// If it cannot be read.
    fn state(&mut self, id: JobId) -> Result<Option<State>, StoreError>;

    /// At most `limit` jobs after that number, by number.
    ///
    /// # Errors
    /// If one cannot be read.
    fn page(&mut self, after: JobId, limit: u32) -> Result<Vec<Record>, StoreError>;

    /// What a job is to do.
    ///
    /// # Errors
    /// If it cannot be read.
    fn work(&mut self, id: JobId) -> Result<Option<(Record, Work)>, StoreError>;

    /// How a job ended.
    ///
    /// # Errors
    /// If it cannot be read.
    fn ending(&mut self, id: JobId) -> Result<Option<(State, Ending)>, StoreError>;

    /// At most `limit` jobs whose ending is to expire: those that ended before that moment, and as many of the others,
    /// the oldest first, as have to go until all endings together have at most `bytes`.
    ///
    /// # Errors
    /// If one cannot be read.
    fn stale(&mut self, before: Moment, bytes: u64, limit: u32) -> Result<Vec<Record>, StoreError>;

    /// Writes what is still to be written, and closes the store well.
    ///
    /// # Errors
    /// All that was committed is kept nevertheless.
    fn close(self: Box<Self>) -> Result<(), StoreError>;

    /// The job with this key.
    ///
    /// # Errors
    /// If it cannot be read.
    fn by_key(&mut self, key: &str) -> Result<Option<JobId>, StoreError>;
}
