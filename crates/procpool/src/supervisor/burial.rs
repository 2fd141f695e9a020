//! A worker's end: its last results are read, its process is reaped, its jobs are settled.

use std::sync::Arc;
use std::time::Duration;

use procpool_sys::clock;
use procpool_sys::spawn::Exit;
use procpool_wire::frame::FrameKind;

use super::machine::Event;
use super::obituary::{Obituary, start_cause, status_of};
use super::slot::{Slot, Stage};
use super::{Course, Supervisor, Worker};
use crate::events::{self, WorkerEnd};

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
        let inner = Arc::clone(&self.inner);
        let mut completions = Vec::new();
        let mut frames = Vec::new();
        let mut dispatch = inner.dispatch();
        loop {
            let harvest = dispatch.harvest(slot, |channel, harvest| {
                channel.read_frames(&mut self.buffer, harvest, |frame| frames.push(frame));
                channel.read_results(harvest);
            });
            completions.extend(harvest.completions);
            if !harvest.more {
                break;
            }
        }
        drop(dispatch);
        for frame in frames {
            if frame.kind == FrameKind::StartFailed {
                self.take_start_frame(slot, &frame);
            }
        }
        self.handle_events();
        let Some(worker) = self.workers[slot].take() else {
            return;
        };
        let pid = worker.process.id();
        let tail = self.stderr.close(&worker.tap);
        self.hot.retain(|hot| *hot != slot);
        let fault = inner.dispatch().channel(slot).and_then(|channel| channel.fault.clone());
        let (oom, detail) = worker.verdict(exit, fault, &tail);
        let Worker { process, hold, started_ns, .. } = worker;
        process.reap();
        hold.let_go(self);

        let mut dispatch = inner.dispatch();
        let state = self.machine.slot(slot);
        let planned = match state {
            Slot::Stopping(Stage::Leaving { .. }) => true,
            // A pool that ends needs no more workers, and kills those that are not ready yet.
            Slot::Stopping(Stage::Killed) => self.course == Course::Ending,
            _ => false,
        };
        let mut job = None;
        if let Some(channel) = dispatch.remove_worker(slot) {
            job = channel.running().map(|(_, entry, ..)| entry.cell.id);
            if job.is_none() && channel.jobs_done == 0 {
                self.events.push(Event::Unused(slot));
            }
            if !planned {
                dispatch.count_death();
            }
            let obituary = Obituary {
                slot,
                pid,
                status: status_of(exit),
                state,
                oom,
                detail: detail.clone(),
                tail: &tail,
            };
            for next in obituary.settle(channel) {
                completions.extend(dispatch.settle(next, clock::monotonic_ns()));
            }
        }
        let lived = Duration::from_nanos(clock::monotonic_ns().saturating_sub(started_ns));
        let (end, status) = (worker_end(state), status_of(exit));
        self.notes.add(events::Event::WorkerEnded { worker: slot, pid, end, status, job, lived });
        dispatch.pump();
        self.after_dispatch(&mut dispatch);
        drop(dispatch);
        self.complete(completions);
        let who = format!("worker {slot}");
        self.events.push(Event::Exited(slot, start_cause(&who, pid, exit, detail, &tail)));
    }
}

/// Whether the end of a worker in this state was the pool's doing.
fn worker_end(state: Slot) -> WorkerEnd {
    match state {
        Slot::Stopping(Stage::Leaving { .. }) => WorkerEnd::Retired,
        Slot::Stopping(Stage::Terminated { .. } | Stage::Killed) => WorkerEnd::Killed,
        Slot::Empty
        | Slot::Starting { .. }
        | Slot::Serving
        | Slot::Stopping(Stage::Asked { .. }) => WorkerEnd::Died,
    }
}
