//! A worker's end: its last results are read, its process is reaped, its jobs are settled.

use std::sync::Arc;

use procpool_sys::clock;
use procpool_sys::spawn::Exit;
use procpool_wire::frame::{Frame, FrameKind};

use super::channel::PoolChannel;
use super::containment::Asks;
use super::entry::Completion;
use super::machine::Event;
use super::obituary::{End, Obituary, start_cause, status_of};
use super::slot::{Slot, Stage};
use super::{Course, Supervisor, Worker};
use crate::events::{self, WorkerEnd};
use crate::job_id::JobId;

impl Supervisor {
    /// A worker's process has ended: reads its last results, learns how it ended, settles its jobs.
    pub(super) fn bury(&mut self, slot: usize) {
        let Some(worker) = &mut self.workers[slot] else {
            return;
        };
        let exit = match worker.process.exit() {
            Ok(Some(exit)) => exit,
            Ok(None) => return,
            Err(_) => Exit::Unknown,
        };
        // First what it has left: that could write to the channel for ever.
        worker.kill_remains();
        let (completions, frames) = self.last_results(slot);
        for frame in frames {
            if frame.kind == FrameKind::StartFailed {
                self.take_start_frame(slot, &frame);
            }
        }
        self.handle_events();
        let Some(worker) = self.workers[slot].take() else {
            return;
        };
        let child_exit = self.inner.dispatch().channel(slot).and_then(PoolChannel::child_exit);
        let exit = child_exit.unwrap_or(exit);
        let state = self.machine.slot(slot);
        let pid = worker.process.id();
        let (detail, tail) = self.lay_to_rest(slot, worker, exit, state, completions);
        let who = format!("worker {slot}");
        self.events.push(Event::Exited(slot, start_cause(&who, pid, exit, detail, &tail)));
    }

    /// Reads what a worker that is gone has left in its channel and in shared memory: completions, and frames.
    pub(super) fn last_results(&mut self, slot: usize) -> (Vec<Completion>, Vec<Frame>) {
        let inner = Arc::clone(&self.inner);
        let (mut completions, mut frames) = (Vec::new(), Vec::new());
        let mut dispatch = inner.dispatch();
        loop {
            let harvest = dispatch.harvest(slot, |channel, harvest| {
                channel.read_frames(&mut self.buffer, harvest, |frame| frames.push(frame));
                channel.read_results(harvest);
            });
            let more = harvest.more;
            // It may have been its last job, after which it leaves by itself.
            dispatch.book(slot, harvest, &mut completions);
            if !more {
                break;
            }
        }
        self.after_dispatch(&mut dispatch);
        (completions, frames)
    }

    /// Reaps a worker whose end was seen in `state`, and settles its jobs. What there is to say of its end, and what
    /// it wrote last.
    pub(super) fn lay_to_rest(
        &mut self,
        slot: usize,
        worker: Worker,
        exit: Exit,
        state: Slot,
        completions: Vec<Completion>,
    ) -> (Option<String>, String) {
        let pid = worker.process.id();
        let is_empty = worker.hold.is_empty();
        let tail = match is_empty {
            true => self.stderr.close_for_next(&worker.tap),
            false => self.stderr.close(&worker.tap),
        };
        let (fault, asks) = match self.inner.dispatch().channel(slot) {
            Some(channel) => {
                let asks = if channel.running().is_some() { Asks::Job } else { Asks::Nobody };
                (channel.fault.clone(), asks)
            }
            None => (None, Asks::Nobody),
        };
        let (oom, detail) = worker.verdict(exit, fault, &tail, asks);
        let lived = worker.lived();
        let Worker { process, hold, memory, .. } = worker;
        process.reap();
        let memory = memory.filter(|_| is_empty);
        hold.let_go_after(exit, state, &self.inner);
        let obituary = Obituary {
            slot,
            pid,
            status: status_of(exit),
            state,
            oom,
            detail: detail.clone(),
            end: End::Reaped,
            tail: &tail,
        };
        let (end, status) = (worker_end(state), status_of(exit));
        self.settle(&obituary, completions, |job| events::Event::WorkerEnded {
            worker: slot,
            pid,
            end,
            status,
            job,
            lived,
        });
        // The channel has gone with the jobs.
        memory.into_iter().for_each(|memory| self.memories.give_back(memory));
        (detail, tail)
    }

    /// Settles the jobs of a worker that is gone, and tells of its end.
    pub(super) fn settle(
        &mut self,
        obituary: &Obituary<'_>,
        mut completions: Vec<Completion>,
        event: impl FnOnce(Option<JobId>) -> events::Event,
    ) {
        let slot = obituary.slot;
        self.hot.retain(|hot| *hot != slot);
        let planned = match obituary.state {
            Slot::Stopping(Stage::Leaving { .. }) => true,
            // A pool that ends needs no more workers, and kills those that are not ready yet.
            Slot::Stopping(Stage::Killed { .. }) => self.course == Course::Ending,
            _ => false,
        };
        let inner = Arc::clone(&self.inner);
        let mut dispatch = inner.dispatch();
        let mut job = None;
        if let Some(channel) = dispatch.remove_worker(slot) {
            job = channel.running().map(|(_, entry, ..)| entry.cell.id);
            if job.is_none() && channel.jobs_done == 0 && obituary.end == End::Reaped {
                self.events.push(Event::Unused(slot));
            }
            if !planned {
                dispatch.count_death();
            }
            for next in obituary.settle(channel) {
                completions.extend(dispatch.settle(next, clock::monotonic_ns()));
            }
        }
        self.notes.add(event(job));
        dispatch.pump();
        self.after_dispatch(&mut dispatch);
        drop(dispatch);
        self.complete(completions);
    }
}

/// Whether the end of a worker in this state was the pool's doing.
fn worker_end(state: Slot) -> WorkerEnd {
    match state {
        Slot::Stopping(Stage::Leaving { .. }) => WorkerEnd::Retired,
        Slot::Stopping(Stage::Terminated { .. } | Stage::Killed { .. }) => WorkerEnd::Killed,
        Slot::Empty
        | Slot::Lost
        | Slot::Starting { .. }
        | Slot::Serving
        | Slot::Stopping(Stage::Asked { .. }) => WorkerEnd::Died,
    }
}
