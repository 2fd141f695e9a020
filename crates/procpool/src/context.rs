//! What a job can know about itself while it runs.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use procpool_wire::block::{PROGRESS_TEXT_MAX, Ticket};

use crate::cell::JobCell;
use crate::job_id::JobId;
use crate::report::Progress;
use crate::worker::SharedBlock;

/// The job that this thread is running; `None` outside of jobs. Threads that a job starts do not have
/// one of their own: hand them a clone.
pub fn context() -> Option<Context> {
    let context = CURRENT.with_borrow(|current| current.clone())?;
    if let Source::Worker(block, ticket) = &context.source {
        block.set_cooperative(*ticket);
    }
    Some(context)
}

/// The index of the worker whose job this thread is running, as [`Context::worker_index`]; `None` outside of
/// jobs. To ask does not make the job one that looks at its stop flag, as a call of [`context`] does.
pub fn worker_index() -> Option<usize> {
    CURRENT.with_borrow(|current| current.as_ref().map(|context| context.worker_index))
}

/// The running job, as it sees itself. A clone can be handed to threads that the job starts; after the
/// job has ended it answers as before, and what it reports goes nowhere.
///
/// A job that has called [`context`] is taken to look at [`is_cancelled`](Context::is_cancelled): it gets
/// half of the pool's `grace` to return by itself before it is sent SIGTERM.
#[derive(Clone)]
pub struct Context {
    job_id: JobId,
    attempt: u32,
    worker_index: usize,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Worker(Arc<SharedBlock>, Ticket),
    Thread(Arc<JobCell>),
}

thread_local! {
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

impl Context {
    pub(crate) fn in_worker(
        job_id: JobId,
        attempt: u32,
        worker_index: usize,
        block: &Arc<SharedBlock>,
        ticket: Ticket,
    ) -> Context {
        Context { job_id, attempt, worker_index, source: Source::Worker(Arc::clone(block), ticket) }
    }

    /// A context of the same worker's for its next job, in place of a new one.
    pub(crate) fn reuse(&mut self, job_id: JobId, attempt: u32, next: Ticket) {
        (self.job_id, self.attempt) = (job_id, attempt);
        if let Source::Worker(_, ticket) = &mut self.source {
            *ticket = next;
        }
    }

    /// Makes this the context of the current thread until it is taken away.
    pub(crate) fn put(self) {
        CURRENT.set(Some(self));
    }

    /// Takes the current thread's context away.
    pub(crate) fn take_away() -> Option<Context> {
        CURRENT.take()
    }

    pub(crate) fn in_thread(cell: &Arc<JobCell>, worker_index: usize) -> Context {
        Context {
            job_id: cell.id,
            attempt: 1,
            worker_index,
            source: Source::Thread(Arc::clone(cell)),
        }
    }

    /// Makes this the context of the current thread until the guard is dropped.
    pub(crate) fn enter(self) -> Entered {
        CURRENT.set(Some(self));
        Entered(())
    }

    /// The job's number, the same as its future's.
    pub fn job_id(&self) -> JobId {
        self.job_id
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The index of the worker: from 0 to the number of workers.
    pub fn worker_index(&self) -> usize {
        self.worker_index
    }

    /// True once somebody wants the job to stop: `abort`, a time limit, a shutdown. Cheap enough to ask
    /// in a loop.
    pub fn is_cancelled(&self) -> bool {
        match &self.source {
            Source::Worker(block, ticket) => block.is_asked_to_stop(*ticket),
            Source::Thread(cell) => cell.stop.load(Ordering::Relaxed),
        }
    }

    /// Reports progress, for [`JobFuture::progress`](crate::JobFuture::progress). The latest report
    /// counts; of the message 256 bytes are kept.
    pub fn progress(&self, fraction: f64, message: &str) {
        match &self.source {
            Source::Worker(block, ticket) => block.set_progress(*ticket, fraction, message),
            Source::Thread(cell) => {
                let kept = &message[..message.floor_char_boundary(PROGRESS_TEXT_MAX)];
                cell.set_progress(Progress { fraction, message: kept.to_owned() });
            }
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("job_id", &self.job_id)
            .field("attempt", &self.attempt)
            .field("worker_index", &self.worker_index)
            .finish_non_exhaustive()
    }
}

/// Takes the context away when dropped.
pub(crate) struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}
