//! What jobs are to do that have just been taken: most begin soon, and need not be read from the journal again.

use std::collections::HashMap;

use crate::job::{JobId, Terms, Work};

/// How much is kept at a time. Of what comes when it is full the journal is asked.
const BYTES_MAX: u64 = 4 << 20;
/// What a job weighs apart from its work.
const JOB_BYTES: u64 = 512;

/// See above.
#[derive(Debug, Default)]
pub(super) struct Works {
    jobs: HashMap<JobId, (Terms, Work)>,
    bytes: u64,
}

impl Works {
    pub(super) fn has_room(&self) -> bool {
        self.bytes < BYTES_MAX
    }

    pub(super) fn put(&mut self, id: JobId, terms: Terms, work: Work) {
        self.bytes += JOB_BYTES + work.bytes();
        self.jobs.insert(id, (terms, work));
    }

    pub(super) fn take(&mut self, id: JobId) -> Option<(Terms, Work)> {
        let (terms, work) = self.jobs.remove(&id)?;
        self.bytes -= JOB_BYTES + work.bytes();
        Some((terms, work))
    }
}
