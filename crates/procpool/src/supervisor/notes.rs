//! What the supervisor tells of: noted where it happens, mostly under the lock, and told where none is held.

use std::sync::Arc;
use std::time::Duration;

use procpool_sys::clock;

use super::Supervisor;
use super::entry::Completion;
use crate::events::{Event, Hub, StopStage};

/// What has happened and is not told yet, in its order.
pub(super) struct Notes {
    hub: Arc<Hub>,
    events: Vec<Event>,
}

impl Notes {
    pub(super) fn new(hub: Arc<Hub>) -> Notes {
        Notes { hub, events: Vec::new() }
    }

    pub(super) fn add(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Takes over what was noted elsewhere.
    pub(super) fn append(&mut self, events: &mut Vec<Event>) {
        self.events.append(events);
    }

    /// Tells everything. No lock may be held: a subscriber's code runs here.
    pub(super) fn tell(&mut self) {
        for event in std::mem::take(&mut self.events) {
            self.hub.tell(event);
        }
    }
}

impl Supervisor {
    /// Ends jobs: first what has led to it is told, then that they have ended, then their futures are done.
    pub(super) fn complete(&mut self, completions: Vec<Completion>) {
        self.notes.tell();
        self.inner.hub.tell_ends(&completions);
        self.inner.complete(completions);
    }

    /// Notes that a worker takes jobs.
    pub(super) fn note_ready(&mut self, slot: usize) {
        if let Some(started) = &self.workers[slot] {
            let took = clock::monotonic_ns().saturating_sub(started.started_ns);
            let (pid, after) = (started.process.id(), Duration::from_nanos(took));
            self.notes.add(Event::WorkerReady { worker: slot, pid, after });
        }
    }

    /// Notes that a worker is told to stop, and first why, if it broke the rules.
    pub(super) fn note_stop(&mut self, slot: usize, stage: StopStage, fault: Option<String>) {
        if let Some(started) = &self.workers[slot] {
            let (worker, pid) = (slot, started.process.id());
            if let Some(detail) = fault {
                self.notes.add(Event::WorkerFault { worker, pid, detail });
            }
            self.notes.add(Event::WorkerStopping { worker, pid, stage });
        }
    }

    /// Notes that a worker was not started, and when the next one will be.
    pub(super) fn note_failed_start(
        &mut self,
        worker: Option<usize>,
        cause: String,
        retry_at: Option<u64>,
    ) {
        let wait = |at: u64| Duration::from_nanos(at.saturating_sub(clock::monotonic_ns()));
        self.notes.add(Event::StartFailed { worker, cause, retry_in: retry_at.map(wait) });
    }
}
