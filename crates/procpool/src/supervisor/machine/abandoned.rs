//! Processes that live on after SIGKILL, as the core sees them: abandoned, so that they hold up neither jobs nor a
//! shutdown, and counted, so that they do not pile up.
//!
//! A process that waits in the kernel for what never comes (a file system that does not answer, a frozen cgroup)
//! gets the signal only when the wait is over. It runs nothing of the user's any more, but holds what it has.

use super::{Action, Machine};
use crate::supervisor::slot::{Place, Slot, Stage};

impl Machine {
    /// The state of a process that is killed now.
    pub(super) fn killed(&self, now: u64) -> Slot {
        let abandon_at = now.saturating_add(self.policy.unkillable_after_ns);
        Slot::Stopping(Stage::Killed { abandon_at })
    }

    /// Abandons those that were killed long ago.
    pub(super) fn expire_killed(&mut self, now: u64, out: &mut Vec<Action>) {
        let is_due = |slot: Slot| slot.is_killed() && slot.deadline().is_some_and(|due| due <= now);
        // First, because it takes with it whom it has not forked.
        if self.server().is_some_and(is_due) {
            let state = self.abandon(Place::Server, out);
            self.set_server(state);
        }
        for slot in 0..self.slots.len() {
            if is_due(self.slots[slot]) {
                self.slots[slot] = self.abandon(Place::Slot(slot), out);
            }
        }
        for place in 0..self.spares.places_mut().len() {
            if is_due(self.spare(place)) {
                self.spares.places_mut()[place] = self.abandon(Place::Spare(place), out);
            }
        }
    }

    /// What becomes of the place: beyond a number of them none is filled again until one has ended after all.
    fn abandon(&mut self, place: Place, out: &mut Vec<Action>) -> Slot {
        self.abandoned += 1;
        out.push(Action::Abandon(place));
        if self.abandoned <= self.policy.abandoned_max { Slot::Empty } else { Slot::Lost }
    }

    /// One has ended, so one place that was lost can be filled again. The server's first: without it no other is
    /// of use.
    pub(super) fn abandoned_ended(&mut self) {
        self.abandoned = self.abandoned.saturating_sub(1);
        if self.server() == Some(Slot::Lost) {
            return self.set_server(Slot::Empty);
        }
        let places = self.slots.iter_mut().chain(self.spares.places_mut());
        if let Some(place) = places.into_iter().find(|place| **place == Slot::Lost) {
            *place = Slot::Empty;
        }
    }

    /// Where nobody works, and nobody can come, the jobs that wait must not wait for ever.
    pub(super) fn give_up_if_all_are_lost(&mut self, now: u64, out: &mut Vec<Action>) {
        let server_is_lost = self.server() == Some(Slot::Lost);
        let is_lost = |slot: &Slot| *slot == Slot::Lost || server_is_lost && *slot == Slot::Empty;
        if self.wanted() > 0 && self.slots.iter().all(is_lost) {
            self.first_cause = Some(format!(
                "{} processes do not end although they were sent SIGKILL (unkillable_after); \
                 /proc/PID/stack tells what they wait for",
                self.abandoned
            ));
            self.break_down(now, out);
        }
    }
}
