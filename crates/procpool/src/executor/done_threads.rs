//! [`DoneThreads`]: ending jobs without running their callbacks.

use std::fmt;

use super::{Promise, Verdict};
use crate::cell::{Bytes, Ended, Value};
use crate::job_error::JobError;
use crate::report::Report;
use crate::supervisor::callbacks::CallbackThreads;

/// Ends jobs for an executor whose own thread must get on: their callbacks, which may block, run on other threads.
/// There are as many of those as block, and at most two when none does.
///
/// A clone has the same threads. Dropping it ends none of them: see [`close`](DoneThreads::close).
#[derive(Clone, Default)]
pub struct DoneThreads(CallbackThreads);

impl DoneThreads {
    /// [`Promise::finish_encoded`].
    pub fn finish_encoded(&self, promise: &Promise, bytes: &[u8], report: Report) {
        let ended = Ended::new(Ok(Value::Bytes(Bytes::from_slice(bytes))), report);
        self.0.run(promise.0.complete(ended));
    }

    /// [`Promise::fail`].
    pub fn fail(&self, promise: &Promise, error: JobError, report: Report) {
        self.0.run(promise.0.complete(Ended::new(Err(error), report)));
    }

    /// [`Promise::fail_as`].
    pub fn fail_as(&self, promise: &Promise, verdict: Verdict, report: Report) {
        self.fail(promise, verdict.into_error(&promise.0.label()), report);
    }

    /// Waits until every callback has run, and ends the threads. The calling one may be one of them.
    pub fn close(&self) {
        self.0.close();
    }
}

impl fmt::Debug for DoneThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoneThreads").finish_non_exhaustive()
    }
}
