//! Jobs that end otherwise than by running: cancelled, aborted, out of time, or without a worker.

use std::sync::Arc;

use procpool_wire::block::Ticket;

use super::place::Place;
use super::{Admission, Dispatch, Pace, Request};
use crate::Error;
use crate::cell::JobCell;
use crate::events::{Event, StopCause};
use crate::job_error::{JobError, Limit};
use crate::supervisor::channel::{Intake, PoolChannel};
use crate::supervisor::cpu_limit;
use crate::supervisor::entry::{Completion, StopReason};
use crate::supervisor::machine::Manner;
use crate::supervisor::nanoseconds;

impl Dispatch {
    /// Takes a job that has not started off the books. `None`: it has started, or ended.
    pub(crate) fn cancel(&mut self, cell: &Arc<JobCell>) -> Option<Completion> {
        let entry = match Place::of(cell) {
            Place::Nowhere | Place::Cancelled => return None,
            Place::Queued(sequence) => self
                .queue
                .remove(cell.priority, sequence)
                .or_else(|| self.retries.remove(sequence))?,
            Place::Sent(..) => {
                let (slot, ticket) = self.ticket_of(cell)?;
                let entry = self.channels[slot].as_mut()?.revoke(ticket)?;
                self.sent -= 1;
                self.note_idle(slot);
                entry
            }
        };
        let completion = self.end(entry, &JobError::Cancelled { started: false });
        self.use_idle();
        Some(completion)
    }

    /// True if the job was cancelled before it started, also where its cell has not been told yet.
    pub(crate) fn was_cancelled(&self, cell: &JobCell) -> bool {
        Place::of(cell) == Place::Cancelled
    }

    /// Sees to it that a job stops. What completes at once is returned.
    pub(crate) fn abort(&mut self, cell: &Arc<JobCell>) -> Vec<Completion> {
        let Some((slot, _)) = self.ticket_of(cell) else {
            return self.cancel(cell).into_iter().collect();
        };
        // A result that is there already wins.
        let mut completions = self.harvest(slot, PoolChannel::read_results).completions;
        if let Some(completion) = self.cancel(cell) {
            completions.push(completion);
        } else if let Some((slot, ticket)) = self.ticket_of(cell) {
            self.stop_job(slot, ticket, StopReason::Abort);
        }
        completions
    }

    /// Begins to stop the running job of a slot. False: the worker has ended it and started another one,
    /// which must not be hit.
    fn stop_job(&mut self, slot: usize, ticket: Ticket, reason: StopReason) -> bool {
        let Some(channel) = &mut self.channels[slot] else {
            return false;
        };
        // First take back the others that were sent there, then look which one runs. The other way round a
        // signal can hit the wrong job:
        //   1. we see that job 8 runs, and that its time is over;
        //   2. the worker ends it, and claims job 9 before we take that back;
        //   3. SIGTERM, which is for the process, kills job 9, which has done nothing.
        let revoked = channel.revoke_last(usize::MAX);
        let manner = match channel.running() {
            Some((running, entry, _, black_box)) if running == ticket => {
                let (job, pid) = (entry.cell.id, channel.pid);
                let cause = match reason {
                    StopReason::Abort => StopCause::Abort,
                    StopReason::Timeout(Limit::Cpu, limit) => StopCause::CpuTimeout(limit),
                    StopReason::Timeout(_, limit) => StopCause::Timeout(limit),
                };
                self.notes.push(Event::JobStopping { job, worker: slot, pid, cause });
                Some(if black_box.cooperative { Manner::Cooperative } else { Manner::Plain })
            }
            // Its result has been published, or announced, and wins.
            _ => None,
        };
        if let Some(manner) = manner {
            channel.intake = Intake::Shut;
            channel.stop(ticket, reason);
            self.requests.push(Request::StopJob(slot, manner));
        }
        self.take_back(slot, revoked);
        manner.is_some()
    }

    // ---- time limits -----------------------------------------------------------------------------

    /// When to call `check_timeouts` and `queue_retries`.
    pub(crate) fn due(&self) -> Option<u64> {
        let look_at = (self.look_at < u64::MAX && self.pace == Pace::Going).then_some(self.look_at);
        look_at.into_iter().chain(self.retries.next_due()).min()
    }

    /// Begins to stop the jobs whose time is over, unless their results are there already: those are
    /// returned.
    pub(crate) fn check_timeouts(&mut self, now: u64) -> Vec<Completion> {
        let mut completions = Vec::new();
        if now < self.look_at || self.pace != Pace::Going {
            return completions;
        }
        let mut next = u64::MAX;
        for slot in 0..self.channels.len() {
            let Some(channel) = &self.channels[slot] else {
                continue;
            };
            let Some(first_look) = channel.first_look_ns() else {
                continue;
            };
            // A job that starts after this look cannot be over before this moment.
            let mut look_at = now.saturating_add(first_look);
            let running = channel.running();
            if running.as_ref().is_some_and(|(_, _, stopping, _)| stopping.is_some()) {
                // It gets no further job before it has ended this one.
                continue;
            }
            if let Some((ticket, entry, _, black_box)) = running {
                let mut over = None;
                if let Some(timeout) = entry.timeout() {
                    // The worker's word on when it started counts within reason only.
                    let started = black_box.started_ns.min(now);
                    let over_at = started
                        .saturating_add(nanoseconds(timeout))
                        .saturating_add(channel.paused_ns(ticket, black_box.started_ns));
                    over = (over_at <= now).then_some((Limit::Job, timeout));
                    look_at = look_at.min(over_at);
                }
                if let (None, Some(limit)) = (over, entry.cpu_timeout()) {
                    let at_start = channel.cpu_at_start(ticket);
                    match cpu_limit::next_look(at_start, channel.pid_of_job(), limit) {
                        Some(after) => {
                            look_at = look_at.min(now.saturating_add(nanoseconds(after)))
                        }
                        None => over = Some((Limit::Cpu, limit)),
                    }
                }
                if let Some((limit, after)) = over {
                    // A host that was suspended finds the time over and the result in the ring.
                    let harvest = self.harvest(slot, PoolChannel::read_results);
                    completions.extend(harvest.completions);
                    if !self.stop_job(slot, ticket, StopReason::Timeout(limit, after)) {
                        // It has ended; look again at once, at the one that runs now.
                        next = now;
                    }
                    continue;
                }
            }
            next = next.min(look_at);
        }
        if let Some(after) = self.memory_look.filter(|_| self.sent > 0) {
            next = next.min(now.saturating_add(nanoseconds(after)));
        }
        self.look_at = next;
        completions
    }

    // ---- all of them -----------------------------------------------------------------------------

    /// Cancels every job that has not started.
    pub(crate) fn cancel_unstarted(&mut self) -> Vec<Completion> {
        self.end_unstarted(&JobError::Cancelled { started: false })
    }

    fn end_unstarted(&mut self, error: &JobError) -> Vec<Completion> {
        for slot in 0..self.channels.len() {
            if let Some(channel) = &mut self.channels[slot] {
                let revoked = channel.revoke_last(usize::MAX);
                self.take_back(slot, revoked);
            }
        }
        self.queue_retries(u64::MAX);
        let mut completions = Vec::new();
        while let Some(entry) = self.queue.pop() {
            completions.push(self.end(entry, error));
        }
        completions
    }

    /// No worker can be started: ends every job that waits for one.
    pub(crate) fn break_down(&mut self, error: Error) -> Vec<Completion> {
        let completions = self.end_unstarted(&JobError::Broken(error.clone()));
        self.admission = Admission::Broken(error);
        completions
    }

    /// Stops every running job, and runs nothing that comes back.
    pub(crate) fn abort_all(&mut self) {
        self.discard = true;
        for slot in 0..self.channels.len() {
            let running = |this: &Dispatch| {
                let channel = this.channels[slot].as_ref()?;
                channel.running().map(|(ticket, ..)| ticket)
            };
            // Where the worker has moved on meanwhile, the next one is stopped. There is no third: nothing
            // that has not started is left at any worker.
            while let Some(ticket) = running(self) {
                if self.stop_job(slot, ticket, StopReason::Abort) {
                    break;
                }
            }
        }
    }
}
