//! Which job goes to which worker. Everything here happens under one lock, which callers of `submit` and
//! the supervisor take in turns, each for a short time; nothing of the user's runs under it.

mod crew;
mod giving;
mod pause;
mod place;
mod residents;
mod results;
mod stop;

use std::sync::Arc;
use std::time::Duration;

use procpool_sys::clock;
use procpool_wire::block::{Claim, Ticket};

use super::channel::PoolChannel;
use super::entry::{Entry, EntryBox};
use super::index_set::IndexSet;
use super::machine::Manner;
use super::nanoseconds;
use super::queue::Queue;
use super::retry::Retries;
use crate::Error;
use crate::builder::Shutdown;
use crate::cell::{JobCell, Value};
use crate::events::Event;
use crate::job_error::JobError;
use crate::report::{Progress, Stats};
use crew::{Crew, Watch};
pub(crate) use crew::{Member, SHORT_NS};
pub(crate) use pause::Pace;
use place::Place;

/// Whether jobs are accepted.
#[derive(Debug, Clone)]
pub(crate) enum Admission {
    Open,
    Closed,
    Broken(Error),
}

/// What is asked of the supervisor, or noted for it.
pub(crate) enum Request {
    /// Start all workers.
    WarmUp,
    /// Stop this job, which had started.
    Abort(Arc<JobCell>),
    /// Stop the job that runs in this slot.
    StopJob(usize, Manner),
    /// The job that was to stop has returned.
    Returned(usize),
    /// The worker of this slot has run all the jobs it shall.
    Spent(usize),
    /// The worker of this slot broke the rules.
    Faulty(usize),
    /// End the pool.
    Shutdown(Shutdown),
    /// Stop all workers in their tracks.
    Pause,
    /// Let them go on.
    Unpause,
}

/// What is known of a slot's worker outside the supervisor's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resident {
    pub(crate) pid: u32,
    pub(crate) state: ResidentState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResidentState {
    Starting,
    Serving,
    Stopping,
}

/// Jobs, and the workers that can take them.
pub(crate) struct Dispatch {
    pub(crate) admission: Admission,
    queue: Queue<EntryBox>,
    /// Jobs that wait to be tried again. They count as queued.
    pub(crate) retries: Retries<EntryBox>,
    /// By slot; from the worker's start to its burial.
    channels: Vec<Option<PoolChannel>>,
    residents: Vec<Option<Resident>>,
    /// Serving workers without a job.
    idle: IndexSet,
    /// Workers with jobs.
    busy: IndexSet,
    /// Those of them that serve, and whose jobs are short.
    brisk: IndexSet,
    crew: Crew,
    /// Slots that are serving.
    serving: usize,
    /// Jobs at workers.
    sent: usize,
    /// The lowest priority that a job at a worker may have.
    lowest_sent: i32,
    /// No job that waits at a worker behind another has a higher priority.
    highest_sent: i32,
    /// Where the last job went when no worker was idle.
    cursor: usize,
    /// The slot that was helped last.
    pub(super) turn: usize,
    /// Jobs submitted since a submitter last helped.
    pub(super) submits: u32,
    /// When the supervisor must look for jobs whose time is over; `u64::MAX` if no job has a limit.
    look_at: u64,
    /// If the memory of workers is watched: how soon after a job's start, and then again, as long as one runs.
    pub(crate) memory_look: Option<Duration>,
    /// A channel may have something to write that did not fit.
    pub(crate) writing: bool,
    discard: bool,
    pub(crate) pace: Pace,
    stats: Stats,
    pub(crate) requests: Vec<Request>,
    /// What has happened here and is to be told once the lock is not held.
    pub(crate) notes: Vec<Event>,
    /// Threads that wait for room in the queue.
    pub(crate) blocked: usize,
    /// Threads that wait until all workers are ready.
    pub(crate) warming: usize,
}
impl Dispatch {
    pub(crate) fn new(workers: usize) -> Dispatch {
        Dispatch {
            admission: Admission::Open,
            queue: Queue::default(),
            retries: Retries::default(),
            channels: (0..workers).map(|_| None).collect(),
            residents: vec![None; workers],
            idle: IndexSet::new(workers),
            busy: IndexSet::new(workers),
            brisk: IndexSet::new(workers),
            crew: Crew { enough: usize::MAX, watch: Watch::Off },
            serving: 0,
            sent: 0,
            lowest_sent: i32::MAX,
            highest_sent: i32::MIN,
            cursor: 0,
            turn: 0,
            submits: 0,
            look_at: u64::MAX,
            memory_look: None,
            writing: false,
            discard: false,
            pace: Pace::Going,
            stats: Stats::default(),
            requests: Vec::new(),
            notes: Vec::new(),
            blocked: 0,
            warming: 0,
        }
    }

    // ---- accepting -------------------------------------------------------------------------------

    /// Jobs accepted and not started. The first job of each worker counts as started: it is, or will be
    /// in microseconds.
    pub(crate) fn unstarted(&self) -> usize {
        let busy = self.serving - self.idle.len();
        self.queue.len() + self.retries.len() + self.sent.saturating_sub(busy)
    }

    /// Takes a job in. True if the supervisor has something to do about it.
    pub(crate) fn accept(&mut self, entry: EntryBox) -> bool {
        self.stats.submitted += 1;
        let must_look = self.first_look(&entry).is_some_and(|after| self.look_no_later_than(after));
        if entry.cell.priority > self.lowest_sent {
            self.make_way(entry.cell.priority);
        }
        let may_send =
            self.pace == Pace::Going && self.queue.is_empty() && self.may_send(entry.cell.priority);
        // The question can bring jobs back that go before this one.
        let entry =
            if may_send && self.queue.is_empty() { self.try_send(entry) } else { Some(entry) };
        if let Some(entry) = entry {
            self.enqueue(entry);
            self.use_idle();
        }
        let may_start_worker = !self.all_serving() && self.residents.iter().any(Option::is_none);
        must_look || self.writing || self.crew_calls() || may_start_worker && !self.queue.is_empty()
    }

    /// Taking jobs back can leave a worker idle while others wait: the supervisor has no reason to look.
    fn use_idle(&mut self) {
        if !self.idle.is_empty() && !self.queue.is_empty() {
            self.pump();
        }
    }

    /// How soon after its start a job is to be looked at, if at all.
    fn first_look(&self, entry: &Entry) -> Option<Duration> {
        entry.first_look().into_iter().chain(self.memory_look).min()
    }

    /// A job with this limit may start now. True if the supervisor would look too late.
    pub(crate) fn look_no_later_than(&mut self, timeout: Duration) -> bool {
        let at = clock::monotonic_ns().saturating_add(nanoseconds(timeout));
        let sooner = at < self.look_at;
        self.look_at = self.look_at.min(at);
        sooner
    }

    /// Notes a job that ended as it was accepted: its argument could not be encoded.
    pub(crate) fn count_early(&mut self, result: &Result<Value, JobError>) {
        self.stats.submitted += 1;
        match result {
            Ok(_) => self.stats.finished += 1,
            Err(_) => self.stats.failed += 1,
        }
    }

    fn enqueue(&mut self, entry: EntryBox) {
        Place::Queued(entry.sequence()).note(&entry.cell);
        self.queue.insert(entry.cell.priority, entry.sequence(), entry);
    }

    /// Takes jobs of lower priority back that no worker has started.
    fn make_way(&mut self, priority: i32) {
        for slot in 0..self.channels.len() {
            let Some(channel) = &mut self.channels[slot] else {
                continue;
            };
            let revoked = channel.revoke_below(priority);
            self.take_back(slot, revoked);
        }
    }

    /// Whether a job of this priority may go to a worker. Not while one of higher priority waits at a worker
    /// behind another: the worker that this one goes to could be done with its others first, and start it
    /// before. If a worker is idle, those that wait are taken back, to be sent there instead.
    fn may_send(&mut self, priority: i32) -> bool {
        if priority >= self.highest_sent {
            return true;
        }
        let channels = self.channels.iter().flatten();
        let highest = channels.filter_map(PoolChannel::highest_behind).max();
        self.highest_sent = highest.unwrap_or(i32::MIN);
        if priority >= self.highest_sent {
            return true;
        }
        if self.idle.is_empty() {
            return false;
        }
        for slot in 0..self.channels.len() {
            if let Some(channel) = &mut self.channels[slot] {
                let revoked = channel.revoke_above(priority);
                self.take_back(slot, revoked);
            }
        }
        self.highest_sent = priority;
        true
    }

    fn take_back(&mut self, slot: usize, revoked: Vec<EntryBox>) {
        self.sent -= revoked.len();
        for entry in revoked {
            self.enqueue(entry);
        }
        self.note_idle(slot);
    }

    /// Sends a job to a worker at once, if one should have it.
    fn try_send(&mut self, entry: EntryBox) -> Option<EntryBox> {
        let slot = match self.idle.first() {
            Some(_) if self.call_crew(entry.cell.priority) => match self.next_of_crew() {
                Some(slot) => slot,
                None => return Some(entry),
            },
            Some(slot) => slot,
            // A new worker is better than a place behind another job.
            None if self.serving < self.channels.len() => return Some(entry),
            None => match self.next_with_room() {
                Some(slot) => slot,
                None => return Some(entry),
            },
        };
        match self.send(slot, entry) {
            Ok(()) => {
                self.wake(slot);
                None
            }
            Err(entry) => Some(entry),
        }
    }

    fn next_with_room(&mut self) -> Option<usize> {
        let count = self.channels.len();
        for step in 1..=count {
            let slot = (self.cursor + step) % count;
            if self.channels[slot].as_ref().is_some_and(|channel| channel.room() > 0) {
                self.cursor = slot;
                return Some(slot);
            }
        }
        None
    }

    fn send(&mut self, slot: usize, entry: EntryBox) -> Result<(), EntryBox> {
        let first_look = self.first_look(&entry);
        let Some(channel) = &mut self.channels[slot] else {
            return Err(entry);
        };
        let priority = entry.cell.priority;
        let ticket = channel.send(entry)?;
        if let Some(cell) = channel.cell_of(ticket) {
            Place::Sent(slot, ticket.index).note(cell);
        }
        if self.sent == 0 {
            self.lowest_sent = i32::MAX;
            self.highest_sent = i32::MIN;
        }
        self.sent += 1;
        if let Some(after) = first_look {
            self.look_no_later_than(after);
        }
        self.lowest_sent = self.lowest_sent.min(priority);
        self.highest_sent = self.highest_sent.max(priority);
        self.idle.remove(slot);
        self.note_busy(slot);
        Ok(())
    }

    fn wake(&mut self, slot: usize) {
        if let Some(channel) = &mut self.channels[slot] {
            channel.wake();
            self.writing |= channel.wants_to_write();
        }
    }

    fn note_idle(&mut self, slot: usize) {
        let idle = self.is_serving(slot)
            && self.channels[slot].as_ref().is_some_and(|c| c.in_flight() == 0 && c.room() > 0);
        if idle {
            self.idle.insert(slot);
        } else {
            self.idle.remove(slot);
        }
        self.note_busy(slot);
    }

    fn is_serving(&self, slot: usize) -> bool {
        matches!(self.residents[slot], Some(Resident { state: ResidentState::Serving, .. }))
    }

    // ---- questions and orders about one job ----------------------------------------------------

    fn ticket_of(&self, cell: &Arc<JobCell>) -> Option<(usize, Ticket)> {
        let Place::Sent(slot, index) = Place::of(cell) else {
            return None;
        };
        let ticket = self.channels.get(slot)?.as_ref()?.ticket_of(index, cell)?;
        Some((slot, ticket))
    }

    pub(crate) fn is_running(&self, cell: &Arc<JobCell>) -> bool {
        self.ticket_of(cell).is_some_and(|(slot, ticket)| {
            self.channels[slot].as_ref().and_then(|channel| channel.claim(ticket))
                == Some(Claim::Claimed)
        })
    }

    pub(crate) fn progress(&self, cell: &Arc<JobCell>) -> Option<Progress> {
        let (slot, ticket) = self.ticket_of(cell)?;
        self.channels[slot].as_ref()?.progress(ticket)
    }

    /// True if no job is waiting or at a worker.
    pub(crate) fn is_drained(&self) -> bool {
        self.queue.is_empty() && self.retries.len() == 0 && self.sent == 0
    }

    /// Jobs that could run now if there were a worker.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The next slot whose worker has jobs; any, if none has.
    pub(super) fn next_busy(&self, slot: usize) -> usize {
        self.busy.next_after(slot).unwrap_or(0)
    }

    /// Where the job is, if it is at a worker.
    pub(super) fn slot_of(&self, cell: &Arc<JobCell>) -> Option<usize> {
        self.ticket_of(cell).map(|(slot, _)| slot)
    }

    pub(crate) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    pub(crate) fn all_serving(&self) -> bool {
        self.serving == self.channels.len()
    }

    /// Tells workers of attachments that they need not keep.
    pub(crate) fn forget(&mut self, numbers: &[u64]) {
        if numbers.is_empty() {
            return;
        }
        for channel in self.channels.iter_mut().flatten() {
            channel.forget(numbers);
            self.writing |= channel.wants_to_write();
        }
    }

    pub(crate) fn channel(&self, slot: usize) -> Option<&PoolChannel> {
        self.channels[slot].as_ref()
    }

    pub(crate) fn channel_mut(&mut self, slot: usize) -> Option<&mut PoolChannel> {
        self.channels[slot].as_mut()
    }
}

#[cfg(test)]
mod tests;
