//! One queue: what waits in it, in which order, and how much of it runs.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::job::JobId;

/// A queue.
#[derive(Debug)]
pub struct Queue {
    name: String,
    /// As it is configured.
    slots: usize,
    setting: QueueSetting,
    waiting: BTreeSet<(Reverse<i32>, JobId)>,
    running: BTreeSet<JobId>,
    /// How long its jobs take: the longest of late, which counts less with each that is shorter.
    pace: Duration,
}

/// So much work may be given slots that are not free yet, for each slot. A job waits for the journal before it begins:
/// the next ones wait meanwhile, so that a slot has work for at least as long as a commit takes. It is little enough
/// that nobody sees a job said to run that does not.
const AHEAD_TIME: Duration = Duration::from_millis(4);
/// The most jobs that have slots in advance: a commit keeps no more.
pub(super) const AHEAD_MAX: usize = 64;
/// How long the jobs of a queue of which nothing is known take, or of one in which a job took longer than was thought:
/// some twenty short ones have to be seen before any is given a slot in advance.
const PACE_MAX: Duration = Duration::from_millis(64);
/// The shortest that is believed.
const PACE_MIN: Duration = Duration::from_micros(20);

/// What somebody has set of a queue while the daemon ran. It is kept, and goes before the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetting {
    /// Whether its jobs are started.
    pub gate: Gate,
    /// How many of them run at a time.
    pub slots: Option<u64>,
}

/// Whether the jobs of a queue are started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gate {
    /// They are.
    #[default]
    Open,
    /// They wait. What runs goes on.
    Paused,
}

/// What can be asked of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueOrder {
    /// Start none of its jobs.
    Pause,
    /// Start them again.
    Resume,
    /// So many slots; `None`: as it is configured.
    Limit(Option<u64>),
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
    /// Whether its jobs are started.
    pub gate: Gate,
}

impl QueueSetting {
    pub(super) fn after(self, order: QueueOrder) -> QueueSetting {
        match order {
            QueueOrder::Pause => QueueSetting { gate: Gate::Paused, ..self },
            QueueOrder::Resume => QueueSetting { gate: Gate::Open, ..self },
            QueueOrder::Limit(slots) => QueueSetting { slots, ..self },
        }
    }
}

impl Queue {
    /// An empty queue.
    pub fn new(name: impl Into<String>, slots: usize) -> Queue {
        Queue {
            name: name.into(),
            slots,
            setting: QueueSetting::default(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            pace: PACE_MAX,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many of its jobs run at a time.
    pub fn slots(&self) -> usize {
        match self.setting.slots {
            // A limit cannot bring back a queue that is configured no more.
            Some(slots) if self.slots > 0 => usize::try_from(slots).unwrap_or(usize::MAX),
            _ => self.slots,
        }
    }

    pub(super) fn info(&self) -> QueueInfo {
        QueueInfo {
            name: self.name.clone(),
            slots: self.slots() as u64,
            queued: self.waiting.len() as u64,
            running: self.running.len() as u64,
            gate: self.setting.gate,
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.setting.gate == Gate::Paused
    }

    /// A job has ended that ran for so long.
    pub(super) fn note_ran(&mut self, ran: Duration) {
        self.pace = ran.max(self.pace * 7 / 8).clamp(PACE_MIN, PACE_MAX);
    }

    /// A job took longer than was thought.
    pub(super) fn note_late(&mut self) {
        self.pace = PACE_MAX;
    }

    /// How many jobs are given a slot before it is free.
    fn ahead(&self) -> usize {
        let each = AHEAD_TIME.as_micros() / self.pace.as_micros();
        self.slots().saturating_mul(each as usize).min(AHEAD_MAX)
    }

    pub(super) fn setting(&self) -> QueueSetting {
        self.setting
    }

    pub(super) fn set(&mut self, setting: QueueSetting) {
        self.setting = setting;
    }

    pub(super) fn configure(&mut self, slots: usize) {
        self.slots = slots;
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn running_ids(&self) -> impl Iterator<Item = JobId> {
        self.running.iter().copied()
    }

    pub(super) fn insert(&mut self, priority: i32, id: JobId) {
        self.waiting.insert((Reverse(priority), id));
    }

    pub(super) fn remove(&mut self, priority: i32, id: JobId) {
        self.waiting.remove(&(Reverse(priority), id));
    }

    /// A job of it runs that was not taken out of it.
    pub(super) fn count_running(&mut self, id: JobId) {
        self.running.insert(id);
    }

    /// A job of it runs no longer.
    pub(super) fn count_ended(&mut self, id: JobId) {
        self.running.remove(&id);
    }

    /// The next job to start, if there is one and a slot for it, or soon will be; it counts as running then.
    pub(super) fn take_next(&mut self) -> Option<JobId> {
        if self.is_paused() || self.running.len() >= self.slots().saturating_add(self.ahead()) {
            return None;
        }
        let (_, id) = self.waiting.pop_first()?;
        self.running.insert(id);
        Some(id)
    }
}
