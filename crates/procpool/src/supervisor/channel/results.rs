//! Results that a worker has published, held against the books.

use procpool_wire::block::{Body, Claim, ResultHeader};
use procpool_wire::elements;
use procpool_wire::handshake::Runs;

use super::standing::AtHand;
use super::{CHILD_NS, Intake, PoolChannel, SCRIBBLED};
use crate::attachments::List;
use crate::job_error::EndedBy;
use crate::supervisor::entry::{Completion, EntryBox, Next, Recorded, StopReason};
use crate::worker::leaked_of;

/// Weight of the last job in the running average: 1/8.
const AVERAGE_SHIFT: u32 = 3;
/// Records read before others get their turn.
const RECORDS_AT_ONCE: usize = 256;

/// What reading from a worker has brought.
#[derive(Default)]
pub(crate) struct Harvest {
    pub(crate) completions: Vec<Completion>,
    pub(crate) requeue: Vec<EntryBox>,
    /// The job that was asked to stop has returned.
    pub(crate) returned: bool,
    /// More is waiting.
    pub(crate) more: bool,
    /// Anything came at all.
    pub(crate) any: bool,
}

impl Harvest {
    /// Hands over the jobs that have ended, in most cases all at once.
    pub(crate) fn move_completions(self, to: &mut Vec<Completion>) {
        if to.is_empty() {
            *to = self.completions;
        } else {
            to.extend(self.completions);
        }
    }

    fn take(&mut self, next: Next) {
        match next {
            Next::Complete(completion) => self.completions.push(completion),
            // A job that has come back has killed nobody, so there is no retry among these.
            Next::Requeue(entry) | Next::Retry(entry) => self.requeue.push(entry),
        }
    }
}

impl PoolChannel {
    /// Reads results from the shared memory, up to a batch.
    pub(crate) fn read_results(&mut self, harvest: &mut Harvest) {
        self.read_some_results(harvest, RECORDS_AT_ONCE);
    }

    /// The same, up to so many.
    pub(crate) fn read_some_results(&mut self, harvest: &mut Harvest, records: usize) {
        for _ in 0..records {
            if self.awaiting.is_some() || self.fault.is_some() {
                harvest.more = false;
                return;
            }
            let mut body = std::mem::take(&mut self.body);
            body.clear();
            let next = self.end.next_results(&mut body);
            match next {
                Ok(None) => {
                    self.body = body;
                    harvest.more = false;
                    return;
                }
                Ok(Some((header, Body::Inline))) => {
                    harvest.any = true;
                    self.take_record(&header, Recorded::Elements(&body), None, harvest);
                }
                Ok(Some((header, Body::Streamed(len)))) => {
                    harvest.any = true;
                    let word = body.first_chunk().map_or(0, |head| u64::from_le_bytes(*head));
                    match elements::parse_header(word) {
                        Some((kind, _)) => self.awaiting = Some((header, kind, len)),
                        None => self.set_fault(SCRIBBLED),
                    }
                }
                Err(_corrupt) => self.set_fault(SCRIBBLED),
            }
            self.body = body;
        }
        harvest.more = true;
    }

    pub(super) fn take_record(
        &mut self,
        header: &ResultHeader,
        recorded: Recorded<'_>,
        attachments: Option<List>,
        harvest: &mut Harvest,
    ) {
        let index = header.ticket.index as usize;
        let claimed = self.end.block().claim(header.ticket) == Some(Claim::Claimed);
        let slot = self.sent.get_mut(index);
        let Some(sent) =
            slot.and_then(Option::as_mut).filter(|sent| claimed && sent.ticket == header.ticket)
        else {
            return self.set_fault("the worker sent a result for a job that it had not started");
        };
        let entry = &mut sent.entry;
        let ends = header.count == entry.remaining();
        if header.first != entry.done() || header.count > entry.remaining() || header.last && !ends
        {
            return self.set_fault("the worker sent results out of order");
        }
        let elements = u64::from(header.count.max(1));
        let (pid, extra_ns) = match self.runs {
            Runs::InChildren if header.child != 0 => (header.child, CHILD_NS),
            _ => (self.pid, 0),
        };
        let each = (header.ran_ns / elements + extra_ns)
            .saturating_mul(u64::from(entry.remaining().max(1)));
        // The first ones count for as much as those to come would: nothing was known before them.
        let shift = self.measured.min(AVERAGE_SHIFT);
        self.measured = shift + 1;
        self.average_ns = self.average_ns - (self.average_ns >> shift) + (each >> shift);
        self.at_hand = AtHand::Usual;
        if header.leaving {
            self.intake = Intake::Leaving;
        }
        let leaked = header.leaked.then(|| self.end.block().leak(header.ticket)).flatten();
        let leaked = leaked.map(|bytes| Box::new(leaked_of(&bytes)));
        // The usual case, without a copy in between.
        if entry.is_single() && header.count == 1 && sent.stopping.is_none() {
            let report = entry.report(pid, self.slot, header, leaked);
            let sent = self.remove(index);
            return match sent.entry.complete_single(recorded, attachments, report) {
                Some(completion) => harvest.completions.push(completion),
                None => self.set_fault(SCRIBBLED),
            };
        }
        entry.note_run(pid, self.slot, header, leaked);
        match recorded.elements() {
            Some(elements) => self.take_elements(index, header, &elements, attachments, harvest),
            None => self.set_fault("no memory for the worker's result"),
        }
    }

    fn take_elements(
        &mut self,
        index: usize,
        header: &ResultHeader,
        recorded: &[u8],
        attachments: Option<List>,
        harvest: &mut Harvest,
    ) {
        let sent = self.sent[index].as_mut().expect("the caller has looked at this job");
        match sent.stopping {
            None => {
                if !sent.entry.record(header.count, recorded, attachments) {
                    return self.set_fault(SCRIBBLED);
                }
                if header.last {
                    let sent = self.remove(index);
                    harvest.take(sent.entry.next());
                }
            }
            Some(reason) if header.last || header.given_back => {
                self.take_stopped(index, header, recorded, reason, harvest);
            }
            // It has not seen the request yet.
            Some(_) => {
                if !sent.entry.record(header.count, recorded, attachments) {
                    self.set_fault(SCRIBBLED);
                }
            }
        }
    }

    /// The last record of a job that was asked to stop: the last element in it is the one that was asked.
    fn take_stopped(
        &mut self,
        index: usize,
        header: &ResultHeader,
        recorded: &[u8],
        reason: StopReason,
        harvest: &mut Harvest,
    ) {
        let sent = self.sent[index].as_mut().expect("the caller has looked at this job");
        let before = header.count.saturating_sub(1);
        let Some(rest) = elements::skip(recorded, before as usize) else {
            return self.set_fault(SCRIBBLED);
        };
        if before > 0 && !sent.entry.record(before, &recorded[..recorded.len() - rest.len()], None)
        {
            return self.set_fault(SCRIBBLED);
        }
        harvest.returned = true;
        let entry = self.remove(index).entry;
        harvest.take(match header.count {
            // The request came between two elements.
            0 => entry.stopped_between(reason),
            _ => entry.stopped(reason, EndedBy::Itself),
        });
    }
}
