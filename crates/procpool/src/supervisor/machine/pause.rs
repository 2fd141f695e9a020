//! A pause, as the core sees it: no worker runs and none is started, and the time that a start may take stands still.
//!
//! It is for the workers that start or serve. One that is being stopped goes on ending, in its own time; one that is to
//! be stopped, or to leave, is continued for that. The fork server runs no jobs and is left alone: a worker that
//! it forks meanwhile is stopped at its birth.

use super::{Action, Machine};
use crate::supervisor::slot::{Place, Slot};

/// Whether workers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Going,
    Paused { since: u64 },
}

impl Machine {
    pub(crate) fn is_paused(&self) -> bool {
        matches!(self.pace, Pace::Paused { .. })
    }

    /// Whoever asked is always told that it is done, also where there was nothing to do.
    pub(super) fn pause(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.life.is_going_on() && !self.is_paused() {
            self.pace = Pace::Paused { since: now };
            self.each(Action::Suspend, out);
        }
        out.push(Action::Paused);
    }

    pub(super) fn unpause(&mut self, now: u64, out: &mut Vec<Action>) {
        if let Pace::Paused { since } = self.pace {
            self.pace = Pace::Going;
            let span = now.saturating_sub(since);
            self.slots.iter_mut().for_each(|slot| slot.wait_longer(span));
            self.spares.wait_longer(span);
            self.each(Action::Continue, out);
        }
        out.push(Action::Unpaused);
    }

    /// An action for each process that a pause stops.
    fn each(&self, action: impl Fn(Place) -> Action, out: &mut Vec<Action>) {
        let runs = |state: Slot| matches!(state, Slot::Starting { .. } | Slot::Serving);
        let slots = self.slots.iter().copied().enumerate();
        let slots = slots.filter(|(_, state)| runs(*state)).map(|(slot, _)| Place::Slot(slot));
        let spares = self.spares.states().filter(|(_, state)| runs(*state));
        out.extend(slots.chain(spares.map(|(place, _)| Place::Spare(place))).map(action));
    }

    /// A process that is about to be told to end needs to run for that.
    pub(super) fn let_end(&self, place: Place, out: &mut Vec<Action>) {
        if self.is_paused() {
            out.push(Action::Continue(place));
        }
    }

    /// A worker is back in service whose job was to be stopped and has returned.
    pub(super) fn suspend_again(&self, slot: usize, out: &mut Vec<Action>) {
        if self.is_paused() {
            out.push(Action::Suspend(Place::Slot(slot)));
        }
    }

    /// When something is due about a worker: nothing about one whose start stands still.
    pub(super) fn due(&self, slot: &Slot) -> Option<u64> {
        match slot {
            Slot::Starting { .. } if self.is_paused() => None,
            slot => slot.deadline(),
        }
    }
}
