//! One queue: what waits in it, in which order, and how much of it runs.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::job::JobId;

/// A queue.
#[derive(Debug)]
pub struct Queue {
    name: String,
    slots: usize,
    waiting: BTreeSet<(Reverse<i32>, JobId)>,
    running: usize,
}

/// A queue as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Its name.
    pub name: String,
    /// How many of its jobs run at a time.
    pub slots: u64,
    /// How many wait for a slot.
    pub queued: u64,
    /// How many run.
    pub running: u64,
}

impl Queue {
    /// An empty queue.
    pub fn new(name: impl Into<String>, slots: usize) -> Queue {
        Queue { name: name.into(), slots, waiting: BTreeSet::new(), running: 0 }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn info(&self) -> QueueInfo {
        QueueInfo {
            name: self.name.clone(),
            slots: self.slots as u64,
            queued: self.waiting.len() as u64,
            running: self.running as u64,
        }
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    pub(super) fn insert(&mut self, priority: i32, id: JobId) {
        self.waiting.insert((Reverse(priority), id));
    }

    pub(super) fn remove(&mut self, priority: i32, id: JobId) {
        self.waiting.remove(&(Reverse(priority), id));
    }

    /// A job of it runs that was not taken out of it.
    pub(super) fn count_running(&mut self) {
        self.running += 1;
    }

    /// A job of it runs no longer.
    pub(super) fn count_ended(&mut self) {
        self.running -= 1;
    }

    /// The next job to start, if there is one and a slot for it; it counts as running then.
    pub(super) fn take_next(&mut self) -> Option<JobId> {
        if self.running >= self.slots {
            return None;
        }
        let (_, id) = self.waiting.pop_first()?;
        self.running += 1;
        Some(id)
    }
}
