//! What somebody does to jobs and queues, apart from submitting.

use super::{Asker, Desk, Purpose, submit};
use crate::config::SLOTS_MAX;
use crate::job::{JobId, Moment, Record, Who};
use crate::journal::{Entry, Query, Urgency};
use crate::machine::{Answer, Effects, Event, QueueOrder};
use crate::protocol::{Cancelled, Phase, Refusal, Response};
use crate::store::Change;

impl Desk {
    pub(super) fn cancel(&mut self, asker: Asker, id: JobId, event: Event) {
        let mut effects = Effects::default();
        let answer = self.machine.handle(event, Moment::now(), &mut effects);
        let cancelled = match answer {
            Answer::Cancelled => Cancelled::Unstarted,
            Answer::Running => Cancelled::Running,
            Answer::Nothing | Answer::Born(_) | Answer::NotLive | Answer::Queued => {
                // Whether it has ended or never was.
                return self.ask(Query::Record(id), Purpose::Cancelled(asker, id));
            }
        };
        self.keep(effects, Some((asker, Response::Cancel(cancelled))));
    }

    /// Runs a job once more, unless it was forgotten or retried meanwhile.
    pub(super) fn retry(&mut self, asker: Asker, record: Record) {
        let id = record.id;
        if self.machine.is_live(id) {
            return self.refuse(asker, Refusal::NotEnded(id));
        }
        if self.forgetting.contains(&id) {
            return self.refuse(asker, Refusal::NoJob(id));
        }
        if self.phase == Phase::Stopping {
            return self.refuse(asker, Refusal::Stopping);
        }
        if !self.machine.has_queue(&record.terms.queue) {
            return self.refuse(asker, Refusal::NoQueue(record.terms.queue));
        }
        let event = Event::Retry { record: Box::new(record), by: Who::Client(asker.pid) };
        self.handle_for(asker, event);
    }

    /// Forgets a job, unless it was retried meanwhile.
    pub(super) fn forget(&mut self, asker: Asker, id: JobId) {
        if self.machine.is_live(id) {
            return self.refuse(asker, Refusal::NotEnded(id));
        }
        self.forgetting.insert(id);
        self.under_way += 1;
        let purpose = Purpose::Forgotten(asker, id);
        let changes = vec![Change::Forget { id }];
        let (queries, urgency) = (Vec::new(), Urgency::Now);
        self.journal.push(Entry { changes, queries, purpose, urgency });
    }

    pub(super) fn queue(&mut self, asker: Asker, name: String, order: QueueOrder) {
        if !self.machine.has_queue(&name) {
            return self.refuse(asker, submit::no_queue(&name));
        }
        if let QueueOrder::Limit(Some(slots)) = order
            && !(1..=SLOTS_MAX as u64).contains(&slots)
        {
            let why = format!("a queue has 1 to {SLOTS_MAX} slots, and not {slots}");
            return self.refuse(asker, Refusal::Invalid(why));
        }
        let is_pause = order == QueueOrder::Pause;
        self.handle_for(asker, Event::Queue { name: name.clone(), order });
        if is_pause {
            self.take_back_all(&name);
        }
    }

    /// Does what somebody asked for, who is told when it is kept.
    pub(super) fn handle_for(&mut self, asker: Asker, event: Event) {
        let mut effects = Effects::default();
        self.machine.handle(event, Moment::now(), &mut effects);
        self.keep(effects, Some((asker, Response::Done)));
        self.size_pools();
    }
}
