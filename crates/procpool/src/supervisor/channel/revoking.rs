//! Jobs that the worker has not started are taken back.

use procpool_wire::block::{Claim, Ticket};

use super::{PoolChannel, Sent};
use crate::supervisor::entry::EntryBox;

impl PoolChannel {
    /// Takes back the job of a ticket, if the worker has not started it.
    pub(crate) fn revoke(&mut self, ticket: Ticket) -> Option<EntryBox> {
        let sent = self.sent.get(ticket.index as usize)?.as_ref()?;
        if sent.ticket != ticket || !self.end.revoke(ticket) {
            return None;
        }
        let sent = self.remove(ticket.index as usize);
        // It was not one of this worker's jobs after all.
        self.jobs_done -= 1;
        if let Some(quota) = &mut self.quota {
            *quota += 1;
        }
        Some(sent.entry)
    }

    /// Takes back up to `count` jobs that the worker has not started, the last ones first.
    pub(crate) fn revoke_last(&mut self, count: usize) -> Vec<EntryBox> {
        let tickets: Vec<Ticket> = self.order.iter().rev().copied().collect();
        tickets.into_iter().filter_map(|ticket| self.revoke(ticket)).take(count).collect()
    }

    /// Takes back the jobs of lower priority that the worker has not started.
    pub(crate) fn revoke_below(&mut self, priority: i32) -> Vec<EntryBox> {
        let lower = |ticket: &Ticket| {
            self.sent[ticket.index as usize]
                .as_ref()
                .is_some_and(|sent| sent.ticket == *ticket && sent.entry.cell.priority < priority)
        };
        let tickets: Vec<Ticket> = self.order.iter().copied().filter(lower).collect();
        tickets.into_iter().filter_map(|ticket| self.revoke(ticket)).collect()
    }

    /// The jobs behind the worker's first, which counts as started: it is, or will be in microseconds.
    fn behind(&self) -> impl Iterator<Item = &Sent> {
        let in_order = self.order.iter().filter_map(|ticket| {
            let sent = self.sent[ticket.index as usize].as_ref()?;
            (sent.ticket == *ticket).then_some(sent)
        });
        in_order.skip(1).filter(|sent| self.claim(sent.ticket) == Some(Claim::Sent))
    }

    /// The highest priority among the jobs that wait behind another one.
    pub(crate) fn highest_behind(&self) -> Option<i32> {
        self.behind().map(|sent| sent.entry.cell.priority).max()
    }

    /// Takes back the jobs of higher priority that wait behind another one.
    pub(crate) fn revoke_above(&mut self, priority: i32) -> Vec<EntryBox> {
        let higher = |sent: &&Sent| sent.entry.cell.priority > priority;
        let tickets: Vec<Ticket> = self.behind().filter(higher).map(|sent| sent.ticket).collect();
        tickets.into_iter().filter_map(|ticket| self.revoke(ticket)).collect()
    }
}
