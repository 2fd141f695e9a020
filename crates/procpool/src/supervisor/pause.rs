//! Workers are stopped in their tracks, with all that is below them, and go on.
//!
//! By SIGSTOP, process by process, and not by the freezer of a cgroup: a frozen worker would not learn that its host has
//! died, and would stay, and its tree with it, until somebody thaws it.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use procpool_sys::clock;

use super::slot::Place;
use super::{Supervisor, Worker};
use crate::tree::Stopped;

/// How long the supervisor goes on stopping what is below one worker. Trees of a few processes take a millisecond.
const WALK_MAX: Duration = Duration::from_millis(250);
/// How long it waits for a worker to stand still, so that nothing of its job runs once the pool is paused: as long as a busy
/// machine may leave it without a processor.
const STILL_MAX: Duration = Duration::from_millis(100);

impl Worker {
    fn suspend(&mut self) {
        // One that is born as a pause begins is stopped at its birth and with the others: whom we have stopped ourselves must
        // not be taken for stopped by somebody else.
        if self.stopped.is_empty() {
            let wait_still = || self.process.wait_still(STILL_MAX);
            self.stopped = Stopped::from(self.process.id(), WALK_MAX, wait_still);
        }
    }

    fn go_on(&mut self) {
        mem::take(&mut self.stopped).go_on();
    }
}

impl Supervisor {
    /// Stops the process in this place. One that is not there yet is stopped at its birth.
    pub(super) fn suspend(&mut self, place: Place) {
        if let Some(worker) = self.worker_in(place) {
            worker.suspend();
        }
    }

    pub(super) fn go_on(&mut self, place: Place) {
        if let Some(worker) = self.worker_in(place) {
            worker.go_on();
        }
    }

    /// A process was born, perhaps into a pause.
    pub(super) fn suspend_newborn(&mut self, place: Place) {
        if self.machine.is_paused() {
            self.suspend(place);
        }
    }

    fn worker_in(&mut self, place: Place) -> Option<&mut Worker> {
        match place {
            Place::Slot(slot) => self.workers[slot].as_mut(),
            Place::Spare(place) => self.spares[place].as_mut().map(|spare| &mut spare.worker),
            Place::Server => self.server.as_mut().map(|server| &mut server.worker),
            Place::Nowhere => None,
        }
    }

    pub(super) fn note_paused(&mut self) {
        self.inner.dispatch().note_paused(clock::monotonic_ns());
        self.inner.changed.notify_all();
    }

    pub(super) fn note_unpaused(&mut self) {
        let inner = Arc::clone(&self.inner);
        if let Some(idle) = &mut self.idle {
            idle.forget();
        }
        let mut dispatch = inner.dispatch();
        dispatch.note_unpaused(clock::monotonic_ns());
        dispatch.pump();
        self.after_dispatch(&mut dispatch);
        drop(dispatch);
        inner.changed.notify_all();
    }
}
