//! What the daemon has done since it was started: for those who look on.

use std::collections::VecDeque;

use crate::job::{JobId, State};
use crate::protocol::{Activity, FAILURES_MAX};

/// See above.
#[derive(Debug, Default)]
pub(super) struct History {
    started: u64,
    ended: u64,
    failed: u64,
    /// Latest first.
    failures: VecDeque<JobId>,
}

impl History {
    pub(super) fn count_started(&mut self, count: u64) {
        self.started += count;
    }

    pub(super) fn note_ended(&mut self, id: JobId, state: State) {
        self.ended += 1;
        if !matches!(state, State::Succeeded | State::Cancelled | State::Expired) {
            self.failed += 1;
            self.failures.truncate(FAILURES_MAX - 1);
            self.failures.push_front(id);
        }
    }

    pub(super) fn activity(&self, running: Vec<JobId>) -> Activity {
        Activity {
            started: self.started,
            ended: self.ended,
            failed: self.failed,
            running,
            failures: self.failures.iter().copied().collect(),
        }
    }
}
