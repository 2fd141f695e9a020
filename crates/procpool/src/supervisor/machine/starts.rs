//! Which workers are started and when: as many as are wanted, later after each that fails, and at some point not at all.

use super::{Action, Life, Machine};
use crate::supervisor::slot::{Slot, Stage};

/// After a worker died before it was ready, the next start waits so long; twice as long after each more.
pub(super) const BACKOFF_FIRST_NS: u64 = 10_000_000;
/// The longest wait between starts.
pub(super) const BACKOFF_MAX_NS: u64 = 1_000_000_000;
/// The longest wait before a worker is replaced that died without having run a job. A start costs the host a
/// millisecond at most, so a storm of them costs it a hundredth of its time.
const REST_MAX_NS: u64 = 100_000_000;
/// Such deaths that are further apart than this are no storm.
const STORM_NS: u64 = 10_000_000_000;

impl Machine {
    /// How many more workers should be starting, as soon as the back-off allows.
    pub(super) fn to_start(&self) -> usize {
        if self.life != Life::Open || self.is_paused() {
            return 0;
        }
        // After a failed start one worker at a time shows whether it goes better now.
        let at_once = if self.start_deaths.is_empty() { usize::MAX } else { 1 };
        self.wanted().min(at_once).saturating_sub(self.starting() + self.spares.starting())
    }

    /// A worker is there: the one that one of the waiting jobs wanted, or the one in place of another.
    pub(super) fn note_wanted_worker(&mut self) {
        self.demand = self.demand.saturating_sub(1);
        self.replacements = self.replacements.saturating_sub(1);
    }

    /// How many workers are wanted besides those that live.
    pub(super) fn wanted(&self) -> usize {
        if self.warming_up { self.slots.len() } else { self.demand.max(self.replacements) }
    }

    /// A process was ready: whatever was wrong is over.
    pub(super) fn starts_go_well(&mut self) {
        self.start_deaths.clear();
        self.first_cause = None;
        self.short_since = None;
        self.not_before = 0;
    }

    pub(super) fn starting(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Starting { .. })).count()
    }

    /// When the next worker may be started.
    pub(super) fn start_at(&self) -> u64 {
        self.not_before.max(self.rest_until)
    }

    /// A worker that died without having been of use is replaced at once, but not one after the other: what kills them, jobs or no
    /// jobs, would have the host start workers without end.
    pub(super) fn rest(&mut self, now: u64) {
        if now.saturating_sub(self.last_unused) > STORM_NS {
            self.unused_deaths = 0;
        }
        self.last_unused = now;
        if self.unused_deaths > 0 {
            let doublings = (self.unused_deaths - 1).min(20);
            self.rest_until = now + (BACKOFF_FIRST_NS << doublings).min(REST_MAX_NS);
        }
        self.unused_deaths += 1;
    }

    pub(super) fn start_workers(&mut self, now: u64, out: &mut Vec<Action>) {
        if now < self.start_at() {
            return;
        }
        let to_start = self.to_start();
        if !self.may_start(to_start, now, out) {
            return;
        }
        let give_up_at = now.saturating_add(self.policy.start_timeout_ns);
        let empty = self.slots.iter_mut().enumerate().filter(|(_, slot)| **slot == Slot::Empty);
        for (index, slot) in empty.take(to_start) {
            *slot = Slot::Starting { give_up_at };
            out.push(Action::Spawn(index));
        }
    }

    pub(super) fn start_death(
        &mut self,
        slot: Option<usize>,
        give_up_at: u64,
        cause: String,
        now: u64,
        out: &mut Vec<Action>,
    ) {
        // Neither the time that a start takes counts, nor our own back-off. Otherwise starts that fail
        // slower than the window would be tried for ever, and the jobs that wait for them would never end.
        let began = give_up_at.saturating_sub(self.policy.start_timeout_ns);
        let idle = began.saturating_sub(self.start_at());
        if let Some(last) = self.start_deaths.back() {
            let busy = now.saturating_sub(*last).saturating_sub(idle);
            for death in &mut self.start_deaths {
                *death = death.saturating_add(busy).min(now);
            }
        }
        let window_start = now.saturating_sub(self.policy.restart_window_ns);
        while self.start_deaths.front().is_some_and(|death| *death < window_start) {
            self.start_deaths.pop_front();
        }
        if self.start_deaths.is_empty() {
            self.first_cause = Some(cause.clone());
        }
        self.short_since = None;
        self.start_deaths.push_back(now);
        let deaths = self.start_deaths.len() as u32;
        self.back_off(deaths - 1, now);
        self.rest(now);
        self.fail_start(slot, cause, deaths >= self.policy.restart_limit, now, out);
    }

    /// The system cannot start a worker now. Nobody died of it, so it has no part in the restart limit;
    /// but a pool without any worker cannot wait for ever.
    pub(super) fn shortage(
        &mut self,
        slot: Option<usize>,
        give_up_at: u64,
        cause: String,
        now: u64,
        out: &mut Vec<Action>,
    ) {
        // The time in which no worker was wanted does not count: nobody knows that it was short then.
        let began = give_up_at.saturating_sub(self.policy.start_timeout_ns);
        let idle = began.saturating_sub(self.start_at());
        let since = self.short_since.unwrap_or(now).saturating_add(idle).min(now);
        self.short_since = Some(since);
        self.first_cause.get_or_insert_with(|| cause.clone());
        let short_for = now.saturating_sub(since);
        // Waits as long again as it has waited so far, within bounds.
        self.not_before = now + short_for.clamp(BACKOFF_FIRST_NS, BACKOFF_MAX_NS);
        self.fail_start(slot, cause, short_for >= self.policy.start_timeout_ns, now, out);
    }

    /// Tells of a failed start, and gives up if that was too much.
    fn fail_start(
        &mut self,
        slot: Option<usize>,
        cause: String,
        too_much: bool,
        now: u64,
        out: &mut Vec<Action>,
    ) {
        let at = out.len();
        if too_much {
            self.break_down(now, out);
        }
        let retry_at = (self.life == Life::Open).then_some(self.start_at());
        // Before what follows from it.
        out.insert(at, Action::StartFailed { slot, cause, retry_at });
    }

    fn back_off(&mut self, doublings: u32, now: u64) {
        let wait = BACKOFF_FIRST_NS.saturating_mul(1 << doublings.min(20)).min(BACKOFF_MAX_NS);
        self.not_before = now + wait;
    }

    /// Gives up, unless a worker lives: then its jobs are safe, and the trouble may pass.
    pub(super) fn break_down(&mut self, now: u64, out: &mut Vec<Action>) {
        let lives =
            |slot: &Slot| matches!(slot, Slot::Serving | Slot::Stopping(Stage::Asked { .. }));
        if self.life != Life::Open || self.slots.iter().any(lives) {
            return;
        }
        self.life = Life::Broken;
        for slot in 0..self.slots.len() {
            if matches!(self.slots[slot], Slot::Starting { .. }) {
                self.kill(slot, now, out);
            }
        }
        self.dismiss_spares(now, out);
        self.dismiss_server(now, out);
        out.push(Action::Break(self.first_cause.take().unwrap_or_default()));
    }
}
