//! What is left of a dead worker: its jobs, and what became of each.

use procpool_wire::block::{BlackBox, Phase, ResultHeader, Ticket};
use procpool_wire::elements;

use super::{PoolChannel, Sent};
use crate::supervisor::entry::{Entry, EntryBox, StopReason};

/// What became of a job whose worker has died.
pub(crate) enum Fate {
    /// It can run elsewhere.
    NotStarted,
    /// All its elements have outcomes.
    Finished,
    /// It was running.
    Culprit { black_box: BlackBox, stopping: Option<StopReason> },
}

impl PoolChannel {
    /// After the worker's death, with every published result read: takes up what it had finished but
    /// not published, and gives up all its jobs, in the order in which they were sent. With each, what
    /// became of it.
    pub(crate) fn bury(mut self) -> Vec<(EntryBox, Ticket, Fate)> {
        let black_box = self.end.block().black_box();
        let pid = self.pid_of_job();
        let mut recovered = Vec::new();
        let count = if self.awaiting.is_none() { self.end.recover(&mut recovered) } else { 0 };
        let mut fates = Vec::new();
        let order: Vec<Ticket> = self.order.iter().copied().collect();
        for ticket in order {
            let Some(sent) = self.sent[ticket.index as usize].take_if(|sent| sent.ticket == ticket)
            else {
                continue;
            };
            let Sent { mut entry, stopping, .. } = sent;
            if self.end.revoke(ticket) {
                fates.push((entry, ticket, Fate::NotStarted));
                continue;
            }
            let current = black_box.ticket == ticket;
            // What a job that is stopped returns counts no more than when it is published, and the signal that stops it
            // can end its worker between the two.
            let (count, recovered) = match stopping {
                None => (count, &recovered[..]),
                Some(_) => without_last(&recovered, count),
            };
            if current && count > 0 {
                let header = ResultHeader {
                    ticket,
                    first: entry.done(),
                    count,
                    started_ns: black_box.started_ns,
                    ran_ns: 0,
                    last: false,
                    given_back: false,
                    leaked: false,
                    leaving: false,
                    child: 0,
                    usage: None,
                };
                // What does not fit the job is not recovered; the worker may have scribbled anything.
                if entry.record(count, recovered, None) {
                    entry.note_run(pid, self.slot, &header, None);
                }
            }
            let fate = if entry.remaining() == 0 {
                Fate::Finished
            } else if current && entry.done() > 0 && between_elements(&black_box, &entry) {
                // Elements were run, and the next one was not begun: nobody is to blame.
                Fate::NotStarted
            } else {
                Fate::Culprit { black_box, stopping }
            };
            fates.push((entry, ticket, fate));
        }
        fates
    }
}

/// All elements but the last, and their number.
fn without_last(recorded: &[u8], count: u32) -> (u32, &[u8]) {
    let count = count.saturating_sub(1);
    match elements::skip(recorded, count as usize) {
        Some(rest) => (count, &recorded[..recorded.len() - rest.len()]),
        None => (0, &[]),
    }
}

/// True if the element after the last one with an outcome was not begun.
fn between_elements(black_box: &BlackBox, entry: &Entry) -> bool {
    black_box.element + 1 == entry.done() && matches!(black_box.phase, Phase::Send | Phase::Drop)
}
