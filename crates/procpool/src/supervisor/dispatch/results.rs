//! What comes back from workers is booked.

use std::time::Duration;

use super::place::Place;
use super::{Admission, Dispatch, Request};
use crate::events::Event;
use crate::job_error::JobError;
use crate::supervisor::channel::{Harvest, Intake, PoolChannel};
use crate::supervisor::entry::{Completion, EntryBox, Next};

impl Dispatch {
    /// Lets `read` read from the worker of a slot, and books what came of it.
    pub(crate) fn harvest(
        &mut self,
        slot: usize,
        read: impl FnOnce(&mut PoolChannel, &mut Harvest),
    ) -> Harvest {
        let mut harvest = Harvest::default();
        let Some(channel) = &mut self.channels[slot] else {
            return harvest;
        };
        let before = channel.in_flight();
        read(channel, &mut harvest);
        self.sent -= before - channel.in_flight();
        if harvest.any {
            channel.wake_for_room();
        }
        self.writing |= channel.wants_to_write();
        if channel.intake == Intake::Leaving && channel.in_flight() > 0 {
            // The worker starts none of the others any more.
            let revoked = channel.revoke_last(usize::MAX);
            self.take_back(slot, revoked);
        }
        for completion in &harvest.completions {
            self.count(completion);
        }
        for entry in std::mem::take(&mut harvest.requeue) {
            if let Some(completion) = self.requeue(entry) {
                harvest.completions.push(completion);
            }
        }
        if harvest.returned {
            self.requests.push(Request::Returned(slot));
        }
        if self.channels[slot].as_ref().is_some_and(|channel| channel.fault.is_some()) {
            self.requests.push(Request::Faulty(slot));
        }
        self.note_idle(slot);
        harvest
    }

    fn count(&mut self, completion: &Completion) {
        let place = match completion.ended.error() {
            Some(JobError::Cancelled { started: false }) => Place::Cancelled,
            _ => Place::Nowhere,
        };
        place.note(&completion.cell);
        if completion.ended.is_cancelled() {
            self.stats.cancelled += 1;
        } else if completion.ended.is_failed() {
            self.stats.failed += 1;
        } else {
            self.stats.finished += 1;
        }
    }

    /// Puts back a job that left its worker; ends it if the pool is not going to run it.
    fn requeue(&mut self, entry: EntryBox) -> Option<Completion> {
        match self.refusal() {
            Some(error) => Some(self.end(entry, &error)),
            None => {
                self.enqueue(entry);
                None
            }
        }
    }

    /// Lets a job wait before it is tried again; ends it if the pool is not going to run it.
    fn retry(&mut self, entry: EntryBox, now: u64) -> Option<Completion> {
        let retry = entry.attempt() - 1;
        let wait = self.retries.backoff.wait_ns(entry.cell.id.number(), retry);
        if self.refusal().is_some() {
            return self.requeue(entry);
        }
        let (job, attempt) = (entry.cell.id, entry.attempt());
        self.notes.push(Event::JobRetry { job, attempt, wait: Duration::from_nanos(wait) });
        Place::Queued(entry.sequence()).note(&entry.cell);
        self.retries.insert(entry.sequence(), now.saturating_add(wait), entry);
        None
    }

    /// Queues the jobs whose wait is over.
    pub(crate) fn queue_retries(&mut self, now: u64) {
        while let Some(entry) = self.retries.pop_due(now) {
            self.enqueue(entry);
        }
    }

    /// How jobs end that come back to a pool which is not going to run them.
    fn refusal(&self) -> Option<JobError> {
        match &self.admission {
            Admission::Broken(error) => Some(JobError::Broken(error.clone())),
            _ if self.discard => Some(JobError::Cancelled { started: false }),
            _ => None,
        }
    }

    pub(super) fn end(&mut self, entry: EntryBox, error: &JobError) -> Completion {
        let completion = entry.fail_rest(error);
        self.count(&completion);
        completion
    }

    /// Books what became of a dead worker's job.
    pub(crate) fn settle(&mut self, next: Next, now: u64) -> Option<Completion> {
        match next {
            Next::Complete(completion) => {
                self.count(&completion);
                Some(completion)
            }
            Next::Requeue(entry) => self.requeue(entry),
            Next::Retry(entry) => self.retry(entry, now),
        }
    }
}
