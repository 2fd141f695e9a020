//! Callers read workers' results themselves: who waits for a job has nothing better to do, and who submits faster
//! than the workers run, or takes one result after another, makes room for more. So a round trip needs no thread but
//! the caller's, and a million jobs do not cross from one thread to another and back.
//!
//! All that is done here is what the supervisor does with results, under the same lock. It is never relied on: the
//! supervisor looks as well, only less often while it sees that somebody helps. What is the supervisor's alone is
//! asked of it. No code of anybody else runs on a helper's thread.

use std::hint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::thread;

use procpool_sys::clock;
use tracing::Level;

use super::Inner;
use super::channel::{Harvest, PoolChannel};
use super::dispatch::{Admission, Dispatch, Request};
use super::entry::Completion;
use super::spin::NAP;
use crate::cell::JobCell;

/// How long whoever waits looks for the results of short jobs, if none come: longer than it takes to wake a worker,
/// since the one that has the job may have slept when it was sent.
const PATIENCE_NS: u64 = 100_000;
/// Between two looks whoever waits pauses so often: about 0.1 µs, in which others get the lock.
const PAUSES: u32 = 16;
/// After so many looks in vain the processor is offered to others between them: a worker may need it.
const LOOKS_ALONE: u32 = 32;
/// Callers that submit read results once in so many times.
const SUBMITS_BETWEEN_LOOKS: u32 = 64;

/// What a look has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Something,
    Nothing,
    /// Nothing, and the worker needs the processor that this thread has.
    Beside,
    /// Nothing, and the jobs there take so long that it is better to sleep.
    Hopeless,
}

/// The one caller that looks while it waits. More would only be in each other's way.
struct Lookout<'a>(&'a AtomicBool);

impl Lookout<'_> {
    fn take(taken: &AtomicBool) -> Option<Lookout<'_>> {
        (!taken.swap(true, Ordering::Acquire)).then_some(Lookout(taken))
    }
}

impl Drop for Lookout<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Inner {
    /// Reads results while a caller waits for `cell`. True if some job has ended; false if the caller had better
    /// sleep.
    pub(crate) fn attend(&self, cell: &Arc<JobCell>) -> bool {
        // What is told of has its order, and the supervisor keeps it.
        if self.spin_ns == 0 || self.hub.wants(Level::DEBUG) {
            return false;
        }
        let Some(_lookout) = Lookout::take(&self.lookout) else {
            return false;
        };
        let start = clock::monotonic_ns();
        let mut looks = 0;
        loop {
            match self.look(cell) {
                Look::Something => return true,
                Look::Hopeless => {
                    // The end of a nap comes soon enough.
                    self.left.store(true, Ordering::Release);
                    return cell.is_done();
                }
                Look::Nothing => {
                    for _ in 0..PAUSES {
                        hint::spin_loop();
                    }
                    looks += 1;
                    if looks > LOOKS_ALONE {
                        thread::yield_now();
                    }
                }
                Look::Beside => thread::yield_now(),
            }
            if cell.is_done() {
                return true;
            }
            if clock::monotonic_ns() - start > PATIENCE_NS {
                self.leave_it();
                return false;
            }
        }
    }

    /// From here on a caller sleeps until the supervisor tells it, which must not think that it is helped.
    fn leave_it(&self) {
        self.left.store(true, Ordering::Release);
        self.wake.end_nap();
    }

    fn look(&self, cell: &Arc<JobCell>) -> Look {
        // Unless somebody is at it.
        let Some(mut dispatch) = self.dispatch_now() else {
            return Look::Nothing;
        };
        let mut completions = Vec::new();
        // Where the job is, and one other, so that nobody waits for long who has no waiter.
        let slot = dispatch.slot_of(cell);
        let other = dispatch.next_in_turn();
        let mut any = false;
        for slot in slot.into_iter().chain([other]) {
            any |= dispatch.help(slot, &mut completions);
        }
        if any {
            self.helped.fetch_add(1, Ordering::Relaxed);
        }
        let brisk = dispatch.is_brisk(slot.unwrap_or(other), self.spin_ns);
        let channel = slot.and_then(|slot| dispatch.channel_mut(slot));
        let beside = channel.is_some_and(PoolChannel::shares_cpu);
        if dispatch.needs_supervisor() {
            self.wake();
        }
        if any && dispatch.blocked > 0 {
            self.room.notify_all();
        }
        drop(dispatch);
        self.complete_as_guest(completions);
        match (any, brisk) {
            (true, _) => Look::Something,
            (false, true) if beside => Look::Beside,
            (false, true) => Look::Nothing,
            (false, false) => Look::Hopeless,
        }
    }

    /// After a caller has submitted: it reads results now and then.
    #[inline]
    pub(crate) fn help_while_submitting(&self, mut dispatch: MutexGuard<'_, Dispatch>) {
        dispatch.submits += 1;
        if dispatch.submits >= SUBMITS_BETWEEN_LOOKS && !self.hub.wants(Level::DEBUG) {
            dispatch.submits = 0;
            self.help_once(dispatch);
        }
    }

    /// For a caller that takes one result after another: it makes way for those to come.
    pub(crate) fn glance(&self) {
        if self.spin_ns > 0
            && !self.hub.wants(Level::DEBUG)
            && let Some(dispatch) = self.dispatch_now()
        {
            self.help_once(dispatch);
        }
    }

    fn help_once(&self, mut dispatch: MutexGuard<'_, Dispatch>) {
        let mut completions = Vec::new();
        let slot = dispatch.next_in_turn();
        if dispatch.help(slot, &mut completions) {
            self.helped.fetch_add(1, Ordering::Relaxed);
            if dispatch.needs_supervisor() {
                self.wake();
            }
            if dispatch.blocked > 0 {
                self.room.notify_all();
            }
        }
        drop(dispatch);
        self.complete_as_guest(completions);
    }
}

impl Dispatch {
    /// A slot whose worker has jobs, each in its turn.
    fn next_in_turn(&mut self) -> usize {
        self.turn = self.next_busy(self.turn);
        self.turn
    }

    /// Reads results on behalf of the supervisor. True if there were some.
    fn help(&mut self, slot: usize, completions: &mut Vec<Completion>) -> bool {
        let harvest = self.harvest(slot, PoolChannel::read_results);
        if !harvest.any {
            return false;
        }
        self.book(slot, harvest, completions);
        self.top_up(slot);
        true
    }

    /// What a harvest means beyond its completions.
    pub(super) fn book(
        &mut self,
        slot: usize,
        harvest: Harvest,
        completions: &mut Vec<Completion>,
    ) {
        harvest.move_completions(completions);
        // After the note that the job has returned, in the same list: who is being asked to stop does not retire.
        if self.channel(slot).is_some_and(PoolChannel::is_spent) {
            self.requests.push(Request::Spent(slot));
        }
    }

    /// True if something is left that only the supervisor does.
    pub(crate) fn needs_supervisor(&self) -> bool {
        let over = !matches!(self.admission, Admission::Open) && self.is_drained();
        let short = !self.all_serving() && self.queued() > 0;
        over || short || self.writing || self.crew_calls() || !self.requests.is_empty()
    }

    /// True if the slot's worker has more than one job, and they take a few naps of the supervisor's at most.
    pub(crate) fn is_crowded(&self, slot: usize) -> bool {
        const CROWDED_NS: u64 = 4 * NAP.as_nanos() as u64;
        self.channel(slot)
            .is_some_and(|channel| channel.in_flight() > 1 && channel.average_ns() <= CROWDED_NS)
    }

    /// True if results of this slot may come any moment.
    pub(crate) fn is_brisk(&self, slot: usize, spin_ns: u64) -> bool {
        self.channel(slot).is_some_and(|channel| channel.average_ns() <= spin_ns)
    }
}
