//! [`JobFuture`]: the caller's end of a job.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::cell::{JobCell, Value, deadline_after};
use crate::executor::{Data, Promise, codec_error, decode_result};
use crate::job_error::{JobError, Side};
use crate::job_id::JobId;
use crate::report::{Done, Outcome, Progress, Report};

/// The outcome of a job, some day.
///
/// The outcome is taken once: by [`result`](JobFuture::result), [`outcome`](JobFuture::outcome), or by
/// awaiting the future, in any runtime. Any number of threads may [`wait`](JobFuture::wait) meanwhile. The
/// result is decoded on the thread that takes it.
///
/// Dropping the future neither cancels the job nor waits for it.
pub struct JobFuture<R> {
    cell: Arc<JobCell>,
    take: fn(Value) -> Result<R, Box<JobError>>,
}

impl<R: Data> JobFuture<R> {
    /// The future of a job whose result is encoded, or boxed.
    pub(crate) fn of_data(cell: Arc<JobCell>) -> JobFuture<R> {
        JobFuture { cell, take: take_data::<R> }
    }
}

impl JobFuture<String> {
    /// The future of a job whose result is text, as it is.
    pub(crate) fn of_text(cell: Arc<JobCell>) -> JobFuture<String> {
        JobFuture { cell, take: take_text }
    }
}

impl JobFuture<Vec<u8>> {
    /// The future of a job whose result stays encoded.
    pub(crate) fn of_encoded(cell: Arc<JobCell>) -> JobFuture<Vec<u8>> {
        JobFuture { cell, take: take_encoded }
    }
}

impl<R: Send + 'static> JobFuture<R> {
    /// The future of a job that runs in this process.
    pub(crate) fn of_local(cell: Arc<JobCell>) -> JobFuture<R> {
        JobFuture { cell, take: take_local::<R> }
    }

    /// Calls `callback` when the job has ended, in the order in which callbacks were added, on a thread
    /// of the pool's; at once and on this thread if it has ended already; inside `cancel` if that ends
    /// it. The callback may block, submit, panic or drop the pool; none of that delays another job's
    /// result. A panic in it is swallowed.
    pub fn on_done(&self, callback: impl FnOnce(Done) + Send + 'static) {
        self.cell.add_callback(Box::new(callback));
    }

    /// The latest progress that the job has reported, also after its end; `None` before the first.
    pub fn progress(&self) -> Option<Progress> {
        if !self.cell.is_done() {
            let live = self.cell.control.progress(&self.promise());
            if live.is_some() {
                return live;
            }
        }
        self.cell.progress()
    }
}

impl<R> JobFuture<R> {
    pub(crate) fn cell(&self) -> &Arc<JobCell> {
        &self.cell
    }

    fn promise(&self) -> Promise {
        Promise(Arc::clone(&self.cell))
    }

    /// The job's number.
    pub fn id(&self) -> JobId {
        self.cell.id
    }

    /// Blocks until the job has ended, and takes its value.
    pub fn result(self) -> Result<R, JobError> {
        self.cell.wait(None);
        match self.cell.take() {
            Some(ended) => ended.into_result().and_then(self.take).map_err(|error| *error),
            // A forked child's copy, or a future that was polled to its end.
            None => Err(JobError::Closed),
        }
    }

    /// Blocks until the job has ended, and takes its value with the report.
    pub fn outcome(self) -> Outcome<R> {
        self.cell.wait(None);
        match self.cell.take() {
            Some(ended) => {
                let (result, report) = ended.into_parts();
                Outcome { result: result.and_then(self.take).map_err(|error| *error), report }
            }
            // A forked child's copy, or a future that was polled to its end.
            None => Outcome { result: Err(JobError::Closed), report: Report::default() },
        }
    }

    /// Blocks until the job has ended.
    pub fn wait(&self) {
        self.cell.wait(None);
    }

    /// Blocks until the job has ended, or for `timeout`. True if it has ended; false changes nothing.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.cell.wait(deadline_after(timeout))
    }

    /// Ready once the job has ended; until then the context's waker is kept, in place of that of an earlier poll. Unlike a
    /// poll of the future itself it takes nothing: [`outcome`](JobFuture::outcome) then answers at once, with the
    /// report that awaiting the future leaves out.
    ///
    /// ```no_run
    /// # async fn answer(pool: &procpool::ProcessPool) {
    /// # fn work(n: u64) -> u64 { n }
    /// let future = pool.submit(work, 1);
    /// std::future::poll_fn(|context| future.poll_done(context)).await;
    /// let procpool::Outcome { result, report, .. } = future.outcome();
    /// # }
    /// ```
    pub fn poll_done(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.cell.poll_done(context.waker()) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// True if the job has ended, with whatever outcome.
    pub fn is_done(&self) -> bool {
        self.cell.is_done()
    }

    /// True if the job has started and not ended. Exact: a job that was handed to a worker but not
    /// started there is not running.
    pub fn is_running(&self) -> bool {
        !self.cell.is_done() && self.cell.control.is_running(&self.promise())
    }

    /// True if the job was cancelled or aborted.
    pub fn is_cancelled(&self) -> bool {
        self.cell.is_cancelled()
    }

    /// Cancels the job if it has not started. True: it will never run (also when it was cancelled
    /// before). False: it runs, has run, or was stopped while it ran. Callbacks run inside.
    pub fn cancel(&self) -> bool {
        if self.cell.is_done() {
            return self.cell.is_cancelled_unstarted();
        }
        self.cell.control.cancel(&self.promise())
    }

    /// Stops the job even if it runs, and returns without waiting for that. A job that runs is asked
    /// (its context says so), then sent SIGTERM with its process group, then, after the pool's `grace`,
    /// SIGKILL. It ends as `Cancelled`, unless it has ended before.
    pub fn abort(&self) {
        if !self.cell.is_done() {
            self.cell.control.abort(&self.promise());
        }
    }
}

impl<R> Future for JobFuture<R> {
    type Output = Result<R, JobError>;

    /// # Panics
    /// If polled again after it was ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.cell.poll_done(context.waker()) {
            return Poll::Pending;
        }
        let ended = self.cell.take().expect("a JobFuture was polled after it was ready");
        Poll::Ready(ended.into_result().and_then(self.take).map_err(|error| *error))
    }
}

impl<R> fmt::Debug for JobFuture<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cell.fmt_future(type_name::<R>(), f)
    }
}

fn take_data<R: Data>(value: Value) -> Result<R, Box<JobError>> {
    match value {
        Value::Bytes(bytes) => decode_result(&bytes, None),
        Value::Attached(attached) => decode_result(&attached.0, Some(&attached.1)),
        other => take_local(other),
    }
}

fn take_local<R: Send + 'static>(value: Value) -> Result<R, Box<JobError>> {
    match value {
        Value::Boxed(value) => {
            Ok(*value.downcast().expect("a job's value has the type of its future"))
        }
        Value::Bytes(_) | Value::Attached(_) | Value::Parts(_) => {
            unreachable!("a local job's value is boxed")
        }
    }
}

fn take_encoded(value: Value) -> Result<Vec<u8>, Box<JobError>> {
    match value {
        Value::Bytes(bytes) => Ok(bytes.into_vec()),
        // The bytes refer to memory that only this process and its workers have.
        Value::Attached(_) => Err(Box::new(JobError::Decode(codec_error::<Vec<u8>>(
            Side::Caller,
            "a result with attachments stays with the pool that has its job".into(),
        )))),
        other => take_local(other),
    }
}

fn take_text(value: Value) -> Result<String, Box<JobError>> {
    match value {
        Value::Bytes(bytes) => String::from_utf8(bytes.into_vec()).map_err(|error| {
            Box::new(JobError::Decode(codec_error::<String>(Side::Caller, error.to_string())))
        }),
        other => take_local(other),
    }
}
